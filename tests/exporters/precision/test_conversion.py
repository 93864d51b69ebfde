"""Networks that a lower precision breaks, on purpose."""

from __future__ import annotations

import dataclasses

import pytest

from sacvit_deploy.bundle import Bundle, update_manifest
from sacvit_deploy.comparison.decisions import LIMITS
from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.exporters.precision.bisect import bisect_precision, smallest
from sacvit_deploy.exporters.precision.request import read_keep
from sacvit_deploy.manifest import WeightsOrigin
from tests.exporters.precision.conftest import copy_of
from tests.tiny_models import SAC, strong_two_stage

LARGE = 3e4


def exported(model, path, **options) -> Bundle:
    return export_bundle(model, path, ExportOptions(parity_batches=(1,), **options))


def planted(first: float, second: float):
    """The first linear layer of one block is too large, and the second makes up for it."""
    model = strong_two_stage(SAC)
    weights = model.state_dict()
    for name in ("fc1.weight", "fc1.bias"):
        weights[f"blocks.1.mlp.{name}"].mul_(first)
    weights["blocks.1.mlp.fc2.weight"].mul_(second)
    return model


@pytest.fixture(scope="module")
def large_activation(tmp_path_factory) -> Bundle:
    """Half holds every weight, and not what the layer gives."""
    return exported(planted(LARGE, 1 / LARGE), tmp_path_factory.mktemp("large") / "bundle")


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


def test_the_bisection_finds_what_was_planted(large_activation, tmp_path):
    found = bisect_precision(large_activation, PrecisionRequest("fp16"))
    assert 0 < len(found.keep) < 40
    assert set(found.where) <= {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"}
    assert {name.partition(":")[0] for name in found.keep} == {"early_exit", "refine"}
    assert LIMITS["fp16"].hold(dataclasses.replace(found.agreement, exit_flip_rate=0))
    file = tmp_path / "keep.txt"
    file.write_text(found.text())
    assert read_keep([str(file)]) == found.keep
    request = PrecisionRequest("fp16", keep=read_keep([str(file)]))
    copy = add_precision(copy_of(large_activation, tmp_path / "kept"), request)
    kept = copy.manifest.precisions["fp16"].kept_in_fp32
    assert sum(map(len, kept.values())) == len(found.keep)
    assert copy.manifest.precisions["fp16"].agreement.images == found.agreement.images


def test_an_export_that_collapses_leaves_nothing(tmp_path):
    model = planted(1e6, 1e-6)
    with pytest.raises(PrecisionError, match=r"blocks\.1\.mlp\.fc1 of the early_exit graph"):
        exported(model, tmp_path / "bundle", precisions=(PrecisionRequest("fp16"),))
    assert list(tmp_path.iterdir()) == []


def test_a_range_with_outliers_is_refused_in_int8(pictures, tmp_path, monkeypatch):
    """One huge channel takes all 8 bits; the others become 0 where it is not smoothed."""
    monkeypatch.setattr("sacvit_deploy.exporters.precision.conversion.smooth", lambda *_: {})
    model = strong_two_stage(SAC)
    weights = model.state_dict()
    weights["blocks.0.mlp.fc1.bias"][0] += 1e4
    weights["blocks.0.mlp.fc2.weight"][:, 0] = 0
    bundle = exported(model, tmp_path / "bundle")
    bundle = update_manifest(
        bundle, dataclasses.replace(bundle.manifest, weights=WeightsOrigin("random", seed=0))
    )
    with pytest.raises(PrecisionError, match=r"blocks\.0\.mlp\.fc2") as refused:
        add_precision(bundle, PrecisionRequest("int8", pictures))
    assert "--calibration-method" in refused.value.fix
    kept = PrecisionRequest("int8", pictures, keep=("blocks.0.mlp.fc2",))
    assert add_precision(bundle, kept).manifest.precisions["int8"].kept_in_fp32["refine"]


def test_what_is_fine_needs_nothing(sac_host):
    found = bisect_precision(sac_host, PrecisionRequest("fp16"))
    assert found.keep == ()
    assert found.trials == 1
    assert found.text() == ""


@pytest.mark.parametrize(
    "needed", [{3}, {0}, {99}, {7, 8}, {0, 99}, {10, 40, 77}, set(range(100))], ids=str
)
def test_the_search_finds_exactly_what_is_needed(needed: set[int]):
    tests: list[list[int]] = []

    def enough(items: list[int]) -> bool:
        tests.append(items)
        return needed <= set(items)

    assert smallest(range(100), enough) == sorted(needed)
    if len(needed) <= 3:
        assert len(tests) <= 2 + 16 * len(needed)


def test_one_of_two_alternatives_is_enough():
    def enough(items: list[int]) -> bool:
        return 3 in items or {1, 2} <= set(items)

    assert smallest(range(8), enough) in ([3], [1, 2])
