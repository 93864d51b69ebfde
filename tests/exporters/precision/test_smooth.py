from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sacvit_deploy.comparison.graphs import linear_layers, tensor_values
from sacvit_deploy.exporters.precision.half_precision import half_model
from sacvit_deploy.exporters.precision.int8 import rounded_weights
from sacvit_deploy.exporters.precision.ranges import Channels, ChannelSession, channels_by_place
from sacvit_deploy.exporters.precision.smooth import smooth, smoothable, with_inserted
from tests.exporters.graphs import normalised, op_counts, read_graph, run_model


def enlarge(model: onnx.ModelProto, layer, channel: int = 3) -> None:
    """Make one input channel of a layer a hundred times too large, by the constants before it."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    before = {name: node for node in model.graph.node for name in node.output}
    node = before[layer.linear.input[0]]
    while layer.norm is None and not (node.op_type == "Add" and set(node.input) & set(stored)):
        node = before[node.input[0]]
    name = next(name for name in reversed(node.input) if name in stored)
    values = numpy_helper.to_array(stored[name]).copy()
    values[..., values.shape[-1] - 5 if "proj" in layer.place else channel] += 100
    stored[name].CopyFrom(numpy_helper.from_array(values, name))


def channels_of(model, batches, tmp_path) -> dict[str, Channels]:
    observed = ChannelSession(model, "early_exit", tmp_path / "taken.onnx")
    for image in batches:
        observed.run({"image": image})
    return channels_by_place({"early_exit": model}, {"early_exit": observed})


@pytest.fixture(params=["blocks.0.mlp.fc1", "blocks.1.attn.proj", "blocks.1.mlp.fc2"])
def smoothed(request, sac_host, tmp_path):
    """The early exit before and after, with an outlier in what one layer takes in."""
    model = read_graph(sac_host, "early_exit")
    layers = smoothable(model, "early_exit")
    layer = next(layer for layer in layers if layer.place == request.param)
    enlarge(model, layer)
    image = normalised(sac_host, 3)[1]
    taken = channels_of(model, [image[:1], image[1:]], tmp_path)
    after = onnx.ModelProto()
    after.CopyFrom(model)
    assert layer.place in smooth({"early_exit": after}, taken)
    return model, after, image, layer


def test_it_computes_the_same(smoothed):
    before, after, image, _ = smoothed
    onnx.checker.check_model(after, full_check=True)
    for wanted, found in zip(
        run_model(before, image=image), run_model(after, image=image), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_an_outlier_shrinks(smoothed, tmp_path):
    before, after, image, layer = smoothed

    def spread(model) -> float:
        linear = next(node for node in model.graph.node if node.name == layer.linear.name)
        name = linear.input[0]
        values = np.abs(tensor_values(model, [name], {"image": image}, tmp_path / "x.onnx")[name])
        largest = values.reshape(-1, values.shape[-1]).max(axis=0)
        return float(largest.max() / np.median(largest))

    assert spread(after) < spread(before) / 4


def test_every_linear_layer_of_the_blocks_can_be_smoothed(sac_host):
    depth = sac_host.manifest.config.depth
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    found = smoothable(read_graph(sac_host, "refine"), "refine")
    blocks = [f"blocks.{i}.{part}" for i in range(depth) for part in parts]
    assert [layer.place for layer in found] == ["fusion.mlp.fc1", "fusion.mlp.fc2", *blocks]


@pytest.mark.parametrize(("gain", "products"), [(0.0, True), (np.inf, False)])
def test_a_product_of_its_own_has_to_be_worth_it(sac_host, tmp_path, monkeypatch, gain, products):
    monkeypatch.setattr("sacvit_deploy.exporters.precision.smooth._WORTH_A_PRODUCT", gain)
    model = read_graph(sac_host, "early_exit")
    before = op_counts(model)
    smoothed = smooth(
        {"early_exit": model}, channels_of(model, [normalised(sac_host, 3)[1]], tmp_path)
    )
    added = sum(place.endswith("mlp.fc2") for place in smoothed)
    assert any(place.endswith("attn.qkv") for place in smoothed)
    assert added == (sac_host.manifest.config.depth if products else 0)
    for kind in ("Mul", "Add"):
        assert op_counts(model)[kind] == before[kind] + added


def test_what_comes_out_of_gelu_is_centred(sac_host, tmp_path):
    model = read_graph(sac_host, "early_exit")
    image = [normalised(sac_host, 3)[1]]
    place = "blocks.0.mlp.fc2"
    before = channels_of(model, image, tmp_path)[place]
    smoothing = smooth({"early_exit": model}, {**channels_of(model, image, tmp_path)})[place]
    after = channels_of(model, image, tmp_path)[place]
    expected = before.mapped(smoothing.centre, smoothing.factor)
    np.testing.assert_allclose(
        after.lowest, -after.highest, atol=1e-4 * np.abs(after.highest).max()
    )
    np.testing.assert_allclose(after.mean, expected.mean, atol=1e-4)
    np.testing.assert_allclose(after.moment, expected.moment, atol=1e-3)


def test_channels_that_are_dead_or_constant_do_no_harm(sac_host, tmp_path):
    model = read_graph(sac_host, "early_exit")
    fc1 = linear_layers(model, "early_exit")["blocks.0.mlp.fc1"]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    add = next(node for node in model.graph.node if fc1.output[0] in node.input)
    bias = next(name for name in add.input if name in stored)
    weight_values = numpy_helper.to_array(stored[fc1.input[1]]).copy()
    bias_values = numpy_helper.to_array(stored[bias]).copy()
    weight_values[:, :2], bias_values[:2] = 0, (-50, 3)
    stored[fc1.input[1]].CopyFrom(numpy_helper.from_array(weight_values, fc1.input[1]))
    stored[bias].CopyFrom(numpy_helper.from_array(bias_values, bias))
    image = normalised(sac_host, 3)[1]
    wanted = run_model(model, image=image)
    taken = channels_of(model, [image], tmp_path)
    smoothed = smooth({"early_exit": model}, taken)
    after = smoothed["blocks.0.mlp.fc2"]
    assert after.factor.max() / after.factor.min() <= 1.001e3
    taken |= {p: taken[p].mapped(each.centre, each.factor) for p, each in smoothed.items()}
    weights = rounded_weights({"early_exit": model}, taken)["early_exit"]
    assert all(weight.scale.min() > 0 for weight in weights.values())
    half = half_model(model)
    names = [output.name for output in model.graph.output]
    found = tensor_values(half, names, {"image": image}, tmp_path / "half.onnx")
    for name, exact in zip(names, wanted, strict=True):
        assert np.abs(found[name] - exact).max() < 0.05 * np.abs(exact).max()


def test_what_was_inserted_is_kept_with_its_layer(sac_host, tmp_path):
    model = read_graph(sac_host, "early_exit")
    linear = linear_layers(model, "early_exit")["blocks.0.mlp.fc2"].name
    before = {node.name for node in model.graph.node}
    smooth({"early_exit": model}, channels_of(model, [normalised(sac_host, 3)[1]], tmp_path))
    new = {node.name for node in model.graph.node if linear in node.name} - before
    assert with_inserted(frozenset({linear})) == {linear, *new}
    assert len(new) == 2
