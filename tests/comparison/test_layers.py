from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from sacvit_deploy.comparison.graphs import fp32_graphs, read_graph
from sacvit_deploy.comparison.layers import (
    LayerError,
    Probe,
    Spot,
    layer_errors,
    probes,
    worst_step,
)
from sacvit_deploy.exporters.export import ExportOptions, export_bundle

SPOT = Spot("blocks.0.mlp.fc1", enters=False)
PROBE = Probe("val_1", "node_1", "blocks.0.mlp.fc1", SPOT)


def layer(role, error, place="head") -> LayerError:
    return LayerError(role, place, "product", "tensor", "node", error)


@pytest.fixture(scope="module")
def stored_half(sac_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "bundle"
    return export_bundle(sac_checkpoint, path, ExportOptions(weight_storage="fp16"))


@pytest.mark.parametrize("role", ["early_exit", "refine"])
def test_weights_stored_in_half_hide_no_layer(sac_host, stored_half, role):
    found, wanted = (
        [probe.spot for probe in probes(fp32_graphs(b)[role])] for b in (stored_half, sac_host)
    )
    assert found == wanted
    as_it_is = onnx.load(stored_half.graph_path(stored_half.graph(role)))
    assert any(node.name.endswith("_cast") for node in as_it_is.graph.node)


def test_the_graph_computes_what_it_did(stored_half, tmp_path):
    from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
    from tests.fakes import random_images
    from tests.tiny_models import SAC

    file = stored_half.graph_path(stored_half.graph("early_exit"))
    onnx.save(read_graph(file), tmp_path / "single.onnx")
    feeds = {"image": random_images(2, SAC)}
    wanted, found = (OnnxRuntimeSession(f).run(feeds) for f in (file, tmp_path / "single.onnx"))
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ([3.0, 4.0], 0.0),
        ([3.0, 9.0], 1.0),
        ([3.0, math.nan], math.inf),
        ([9e9, math.inf], math.inf),
    ],
)
def test_the_error_is_relative_to_the_size(found, error):
    wanted = {SPOT: np.array([3.0, 4.0], np.float32)}
    (measured,) = layer_errors("single", [PROBE], wanted, {SPOT: np.array(found, np.float32)})
    assert measured.error == pytest.approx(error)
    assert (measured.place, measured.kind, measured.tensor) == (PROBE.place, "product", "val_1")


def test_only_what_both_have_is_compared():
    values = {SPOT: np.ones(2)}
    assert layer_errors("single", [PROBE], values, {}) == []
    assert layer_errors("single", [PROBE], {}, values) == []


def test_shapes_may_differ_where_the_numbers_do_not():
    wanted = {SPOT: np.arange(6.0).reshape(2, 3)}
    (measured,) = layer_errors("single", [PROBE], wanted, {SPOT: np.arange(6.0)})
    assert measured.error == 0


def test_the_worst_step_is_where_the_error_grows_most_in_one_graph():
    grown = layer("refine", 0.4)
    layers = [layer("early_exit", e) for e in (0.2, 0.5)] + [grown, layer("refine", 0.6)]
    assert worst_step(layers) == grown
    broken = layer("refine", math.inf)
    assert worst_step([*layers, broken, layer("refine", math.inf, "later")]) == broken
    assert worst_step([]) is None


def test_an_error_of_the_scaled_query_is_as_large_as_one_of_the_key():
    spot = Spot("blocks.0.attn.qkv", enters=False)
    probe = Probe("val_1", "node_1", spot.place, spot)
    wanted = np.array([[1.0, 1.0, 8.0, 8.0, 8.0, 8.0]])
    for part, error in ((0, 0.5), (2, 0.5), (4, 0.0)):
        found = wanted.copy()
        found[:, part : part + 2] *= 1.5
        (measured,) = layer_errors("single", [probe], {spot: wanted}, {spot: found})
        assert measured.error == pytest.approx(error)
