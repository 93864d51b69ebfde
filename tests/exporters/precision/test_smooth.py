from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from sacvit_deploy.comparison.graphs import Graph, tensor_values, to_model
from sacvit_deploy.exporters.precision.half_precision import half_model
from sacvit_deploy.exporters.precision.int8 import rounded_weights
from sacvit_deploy.exporters.precision.ranges import Channels, ChannelSession, channels_by_place
from sacvit_deploy.exporters.precision.smooth import Smoothing, smooth, smoothable, with_inserted
from tests.exporters.graphs import normalised, op_counts, placed, run_model


def enlarged(original: Graph, place: str, channel: int = 3) -> Graph:
    """One input channel of a layer is a hundred times too large, by the constants before it."""
    graph = gs.import_onnx(original.model)
    layers = smoothable(graph, original.linear_layers)
    layer = next(layer for layer in layers if layer.place == place)
    node = layer.linear.i(0)
    while layer.norm is None and not (node.op == "Add" and any(map(is_constant, node.inputs))):
        node = node.i(0)
    constant = next(filter(is_constant, reversed(node.inputs)))
    values = constant.values.copy()
    values[..., values.shape[-1] - 5 if "proj" in place else channel] += 100
    constant.values = values
    return dataclasses.replace(original, model=to_model(graph))


def is_constant(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant)


def channels_of(graph: Graph, batches, tmp_path) -> dict[str, Channels]:
    observed = ChannelSession(graph, tmp_path / "taken.onnx")
    for image in batches:
        observed.run({"image": image})
    return channels_by_place({"early_exit": graph}, {"early_exit": observed})


def smooth_one(graph: Graph, taken) -> tuple[Graph, dict[str, Smoothing]]:
    graphs, found = smooth({"early_exit": graph}, taken)
    return graphs["early_exit"], found


@pytest.fixture(params=["blocks.0.mlp.fc1", "blocks.1.attn.proj", "blocks.1.mlp.fc2"])
def smoothed(request, sac_host, tmp_path):
    """The early exit before and after, with an outlier in the input of one layer."""
    graph = enlarged(placed(sac_host, "early_exit"), request.param)
    image = normalised(sac_host, 3)[1]
    taken = channels_of(graph, [image[:1], image[1:]], tmp_path)
    before = graph.model.SerializeToString()
    after, found = smooth_one(graph, taken)
    assert request.param in found
    assert graph.model.SerializeToString() == before
    return graph.model, after.model, image, graph.linear_layers[request.param].name


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
        linear = next(node for node in model.graph.node if node.name == layer)
        name = linear.input[0]
        values = np.abs(tensor_values(model, [name], {"image": image}, tmp_path / "x.onnx")[name])
        largest = values.reshape(-1, values.shape[-1]).max(axis=0)
        return float(largest.max() / np.median(largest))

    assert spread(after) < spread(before) / 4


def test_every_linear_layer_of_the_blocks_can_be_smoothed(sac_host):
    depth = sac_host.manifest.config.depth
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    graph = placed(sac_host, "refine")
    found = smoothable(gs.import_onnx(graph.model), graph.linear_layers)
    blocks = [f"blocks.{i}.{part}" for i in range(depth) for part in parts]
    assert [layer.place for layer in found] == ["fusion.mlp.fc1", "fusion.mlp.fc2", *blocks]


@pytest.mark.parametrize(("gain", "products"), [(0.0, True), (np.inf, False)])
def test_a_product_of_its_own_has_to_be_worth_it(sac_host, tmp_path, monkeypatch, gain, products):
    monkeypatch.setattr("sacvit_deploy.exporters.precision.smooth._WORTH_A_PRODUCT", gain)
    graph = placed(sac_host, "early_exit")
    before = op_counts(graph.model)
    after, smoothed = smooth_one(graph, channels_of(graph, [normalised(sac_host, 3)[1]], tmp_path))
    added = sum(place.endswith("mlp.fc2") for place in smoothed)
    assert any(place.endswith("attn.qkv") for place in smoothed)
    assert added == (sac_host.manifest.config.depth if products else 0)
    for kind in ("Mul", "Add"):
        assert op_counts(after.model)[kind] == before[kind] + added


def test_what_comes_out_of_gelu_is_centred(sac_host, tmp_path):
    graph = placed(sac_host, "early_exit")
    image = [normalised(sac_host, 3)[1]]
    place = "blocks.0.mlp.fc2"
    taken = channels_of(graph, image, tmp_path)
    changed, found = smooth_one(graph, taken)
    before, smoothing = taken[place], found[place]
    after = channels_of(changed, image, tmp_path)[place]
    expected = before.mapped(smoothing.centre, smoothing.factor)
    np.testing.assert_allclose(
        after.lowest, -after.highest, atol=1e-4 * np.abs(after.highest).max()
    )
    np.testing.assert_allclose(after.mean, expected.mean, atol=1e-4)
    np.testing.assert_allclose(after.moment, expected.moment, atol=1e-3)


def test_channels_that_are_dead_or_constant_do_no_harm(sac_host, tmp_path):
    original = placed(sac_host, "early_exit")
    edited = gs.import_onnx(original.model)
    name = original.linear_layers["blocks.0.mlp.fc1"].name
    fc1 = next(node for node in edited.nodes if node.name == name)
    weight, bias = fc1.inputs[1], next(filter(is_constant, fc1.o().inputs))
    weight.values, bias.values = weight.values.copy(), bias.values.copy()
    weight.values[:, :2], bias.values[:2] = 0, (-50, 3)
    graph = dataclasses.replace(original, model=to_model(edited))
    image = normalised(sac_host, 3)[1]
    wanted = run_model(graph.model, image=image)
    taken = channels_of(graph, [image], tmp_path)
    changed, smoothed = smooth_one(graph, taken)
    after = smoothed["blocks.0.mlp.fc2"]
    assert after.factor.max() / after.factor.min() <= 1.001e3
    taken |= {p: taken[p].mapped(each.centre, each.factor) for p, each in smoothed.items()}
    weights = rounded_weights({"early_exit": changed}, taken)["early_exit"]
    assert all(weight.scale.min() > 0 for weight in weights.values())
    names = [output.name for output in changed.model.graph.output]
    half = half_model(changed.model)
    found = tensor_values(half, names, {"image": image}, tmp_path / "half.onnx")
    for name, exact in zip(names, wanted, strict=True):
        assert np.abs(found[name] - exact).max() < 0.05 * np.abs(exact).max()


def test_what_was_inserted_is_kept_with_its_layer(sac_host, tmp_path):
    graph = placed(sac_host, "early_exit")
    linear = graph.linear_layers["blocks.0.mlp.fc2"].name
    taken = channels_of(graph, [normalised(sac_host, 3)[1]], tmp_path)
    after, _ = smooth_one(graph, taken)
    new = {node.name for node in after.model.graph.node if linear in node.name} - set(graph.places)
    assert with_inserted(frozenset({linear})) == {linear, *new}
    assert len(new) == 2
