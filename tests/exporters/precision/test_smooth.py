from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sacvit_deploy.exporters.precision.sessions import tensor_values
from sacvit_deploy.exporters.precision.smooth import pairs, smooth
from tests.exporters.graphs import normalised, read_graph, run_model


@pytest.fixture
def smoothed(sac_host, tmp_path):
    """The early exit before and after, with one channel of a norm a hundred times too large."""
    model = read_graph(sac_host, "early_exit")
    pair = pairs(model, "early_exit")[1]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    scale = numpy_helper.to_array(stored[pair.norm.input[1]]).copy()
    scale[3] *= 100
    stored[pair.norm.input[1]].CopyFrom(numpy_helper.from_array(scale, pair.norm.input[1]))
    image = normalised(sac_host, 3)[1]
    norms = [p.norm.output[0] for p in pairs(model, "early_exit")]
    values = tensor_values(model, norms, {"image": image}, tmp_path / "norms.onnx")
    after = onnx.ModelProto()
    after.CopyFrom(model)
    smooth({"early_exit": after}, {"early_exit": values})
    return model, after, image, norms[1]


def test_it_computes_the_same(smoothed):
    before, after, image, _ = smoothed
    onnx.checker.check_model(after, full_check=True)
    for wanted, found in zip(
        run_model(before, image=image), run_model(after, image=image), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_an_outlier_shrinks(smoothed, tmp_path):
    before, after, image, norm = smoothed

    def spread(model) -> float:
        values = np.abs(tensor_values(model, [norm], {"image": image}, tmp_path / "x.onnx")[norm])
        largest = values.reshape(-1, values.shape[-1]).max(axis=0)
        return float(largest.max() / np.median(largest))

    assert spread(after) < spread(before) / 4


def test_every_norm_before_a_linear_layer_is_smoothed(sac_host):
    depth = sac_host.manifest.config.depth
    found = pairs(read_graph(sac_host, "refine"), "refine")
    blocks = [f"blocks.{i}.{part}" for i in range(depth) for part in ("attn.qkv", "mlp.fc1")]
    assert [pair.place for pair in found] == ["fusion.mlp.fc1", *blocks]
