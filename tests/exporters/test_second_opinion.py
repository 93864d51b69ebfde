"""Other implementations of ONNX read the graphs and agree."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.families.config import preset
from sacvit_deploy.records import PROBABILITIES
from sacvit_deploy.runtime.algorithm import fine_index, select_tokens
from sacvit_deploy.spec import IMAGE, SCORE, TARGET_INDEX
from tests.exporters.graphs import normalised, read_graph, session

BUNDLES = ["sac_host", "sac_graph", "other_graph", "windowed_graph", "lv_pixels"]


def fed_and_found(bundle, count: int):
    """Inputs of each graph, and its outputs in ONNX Runtime, by role."""
    config = bundle.manifest.config
    pixels, image = normalised(bundle, count)
    feeds = {IMAGE: pixels if bundle.manifest.input_kind == "uint8" else image}
    early = session(bundle, "early_exit").run(feeds)
    target, other = select_tokens(early[SCORE], config)
    known = {**early, **feeds, TARGET_INDEX: target, "non_target_index": other}
    known["fine_index"] = fine_index(target, config.coarse_grid[1])
    taken = {spec.name: known[spec.name] for spec in bundle.graph("refine").inputs}
    refined = session(bundle, "refine").run(taken)
    return {"early_exit": (feeds, early), "refine": (taken, refined)}


def assert_agree(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value.dtype == np.int64:
            np.testing.assert_array_equal(found[name], value)
        else:
            scale = np.abs(value).max()
            np.testing.assert_allclose(found[name] / scale, value / scale, rtol=0, atol=1e-3)


def in_openvino(bundle, role, feeds):
    openvino = pytest.importorskip("openvino")
    path = bundle.graph_path(bundle.graph(role))
    # Full precision: on some machines the default is bfloat16.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return {output.get_any_name(): found[output] for output in compiled.outputs}


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("count", [1, 5])
def test_openvino_agrees(name, count, request):
    bundle = request.getfixturevalue(name)
    for role, (feeds, wanted) in fed_and_found(bundle, count).items():
        assert_agree(in_openvino(bundle, role, feeds), wanted)


@pytest.mark.parametrize("name", BUNDLES)
def test_the_reference_evaluator_agrees(name, request):
    bundle = request.getfixturevalue(name)
    for role, (feeds, wanted) in fed_and_found(bundle, 2).items():
        evaluator = ReferenceEvaluator(read_graph(bundle, role))
        found = dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))
        assert_agree(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("selection", "input_kind"), [("host", "float"), ("graph", "uint8")])
def test_deit_small_at_224_px(tmp_path, selection, input_kind):
    config = preset("sac_deit_small_patch16_224")
    options = ExportOptions(
        config, selection=selection, input_kind=input_kind, parity_batches=(1, 2, 7, 32)
    )
    bundle = export_bundle(None, tmp_path / "bundle", options)
    records = bundle.manifest.parity
    assert {record.batch for record in records} == {1, 2, 7, 32}
    for record in records:
        if record.tensor == PROBABILITIES:
            assert record.max_abs_error <= 1e-4
        else:
            assert record.relative_error <= 1e-3
    for role, (feeds, wanted) in fed_and_found(bundle, 3).items():
        assert_agree(in_openvino(bundle, role, feeds), wanted)
