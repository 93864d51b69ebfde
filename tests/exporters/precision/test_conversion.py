"""Networks that a lower precision breaks, on purpose."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest
from PIL import Image

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.exporters.precision.conversion import Original
from sacvit_deploy.exporters.precision.request import chosen_pictures
from sacvit_deploy.records import WeightsOrigin
from tests.exporters.graphs import bias_of, translated_from, with_constants
from tests.exporters.precision.conftest import LARGE
from tests.tiny_models import SAC, strong_two_stage


def content(bundle: Bundle) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in bundle.path.rglob("*") if f.is_file()}


def test_an_overflow_is_refused_and_named(large_activation):
    before = content(large_activation)
    with pytest.raises(PrecisionError) as refused:
        add_precision(large_activation, PrecisionRequest("fp16"))
    assert "blocks.1.mlp.fc1 of the early_exit graph" in refused.value.problem
    assert "is not finite" in refused.value.problem
    assert "bisect-precision" in refused.value.fix
    assert content(large_activation) == before


def test_an_export_that_collapses_leaves_nothing(large_activation, tmp_path):
    model = strong_two_stage(SAC)
    weights = model.state_dict()
    for name in ("fc1.weight", "fc1.bias"):
        weights[f"blocks.1.mlp.{name}"].mul_(LARGE)
    weights["blocks.1.mlp.fc2.weight"].mul_(1 / LARGE)
    options = ExportOptions(parity_batches=(1,), precisions=(PrecisionRequest("fp16"),))
    refused = pytest.raises(PrecisionError, match=r"blocks\.1\.mlp\.fc1 of the early_exit graph")
    with translated_from(large_activation) as asked, refused:
        export_bundle(model, tmp_path / "bundle", options)
    assert asked == ["early_exit", "refine"]
    assert list(tmp_path.iterdir()) == []


def plant_outlier(layers: dict[str, gs.Node]) -> None:
    first, second = (layers[f"blocks.0.mlp.fc{number}"] for number in (1, 2))
    bias, weight = bias_of(first), second.inputs[1]
    bias.values, weight.values = bias.values.copy(), weight.values.copy()
    bias.values[0] += 1e4
    weight.values[0] = 0


def test_a_range_with_outliers_is_refused_in_int8(sac_host, pictures, tmp_path, monkeypatch):
    """One huge channel takes all 8 bits; the others become 0 where it is not smoothed."""
    monkeypatch.setattr(
        "sacvit_deploy.exporters.precision.int8.smooth", lambda graphs, _: (graphs, {})
    )
    bundle = with_constants(
        sac_host, tmp_path / "bundle", plant_outlier, WeightsOrigin("random", seed=0)
    )
    with pytest.raises(PrecisionError, match=r"blocks\.0\.mlp\.fc2") as refused:
        add_precision(bundle, PrecisionRequest("int8", pictures))
    assert "--calibration-method" in refused.value.fix
    kept = PrecisionRequest("int8", pictures, keep=("blocks.0.mlp.fc2",))
    assert add_precision(bundle, kept).manifest.precisions["int8"].kept_in_fp32["refine"]


def test_pictures_of_all_sizes_become_batches(tmp_path, sac_host):
    for index in range(9):
        file = tmp_path / "data" / "c" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + index, 40)).save(file)
    pictures = chosen_pictures(PrecisionRequest("int8", tmp_path / "data"))
    original = Original(sac_host, {}, pictures, tmp_path)
    shapes = []

    class Watched:
        def __init__(self, session) -> None:
            self.session = session
            self.provider, self.close = session.provider, session.close

        def run(self, feeds):
            shapes.append(feeds["image"].shape)
            return self.session.run(feeds)

    original.decisions({role: Watched(s) for role, s in original.sessions().items()})
    assert shapes == [(8, 3, 32, 48)] * 2 + [(1, 3, 32, 48)] * 2
