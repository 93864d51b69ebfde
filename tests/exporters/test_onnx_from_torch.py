from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch

from sacvit_deploy.errors import ExportError
from sacvit_deploy.exporters import onnx_from_torch as module
from sacvit_deploy.exporters.onnx_from_torch import onnx_from_torch
from sacvit_deploy.exporters.passes import DEFAULT_PASSES, check_contract, run_passes
from sacvit_deploy.families.config import graph_specs
from tests.exporters.graphs import read_graph, run_model
from tests.tiny_models import DENSE, strong_model

BUNDLES = ["sac_host", "sac_graph", "other_graph", "golden_bundle", "lv_pixels", "dense_bundle"]


@pytest.mark.parametrize("name", BUNDLES)
def test_every_graph_keeps_its_contract(name, request):
    bundle = request.getfixturevalue(name)
    manifest = bundle.manifest
    wanted = graph_specs(
        manifest.config, selection=manifest.selection, input_kind=manifest.input_kind
    )
    for spec, entry in zip(wanted, manifest.graphs, strict=True):
        assert (entry.role, entry.file) == (spec.role, spec.file)
        assert (entry.inputs, entry.outputs) == (spec.inputs, spec.outputs)
        model = read_graph(bundle, spec.role)
        check_contract(model, spec)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        assert not model.functions


@pytest.mark.parametrize("opset", [17, 26, 0, -1])
def test_an_unsupported_operator_set_is_refused_before_any_work(opset, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("was called"))
    with pytest.raises(ExportError, match=rf"set {opset} was asked for\.\n.*18 to 25"):
        onnx_from_torch(strong_model(DENSE), graph_specs(DENSE)[0], opset=opset)


def test_a_failed_translation_is_one_error(monkeypatch):
    def fails(*_args, **_kwargs):
        raise torch.onnx.errors.OnnxExporterError("no function for aten.magic")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ExportError, match=r"translate the single graph: .*aten\.magic"):
        onnx_from_torch(strong_model(DENSE), graph_specs(DENSE)[0])


@pytest.mark.parametrize("kind", [torch.onnx.errors.OnnxExporterError, ImportError])
def test_an_interrupt_stays_one_however_it_is_wrapped(monkeypatch, kind):
    def fails(*_args, **_kwargs):
        inner = AttributeError("half imported")  # as torch does it
        inner.__context__ = KeyboardInterrupt()
        raise kind("Failed to export the model") from inner

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(KeyboardInterrupt):
        onnx_from_torch(strong_model(DENSE), graph_specs(DENSE)[0])


def test_an_exporter_that_gives_nothing_is_one_error(monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(ExportError, match="returned nothing"):
        onnx_from_torch(strong_model(DENSE), graph_specs(DENSE)[0])


def test_the_exporters_own_log_is_as_loud_afterwards_as_before():
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    inside = []

    def stops() -> None:
        with module._quiet():
            inside.append(logger.level)
            raise KeyError

    with pytest.raises(KeyError):
        stops()
    assert inside == [logging.ERROR]
    assert logger.level == before


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 25])
def test_newer_operator_sets_compute_the_same(opset):
    model, spec = strong_model(DENSE), graph_specs(DENSE)[0]
    exported, _ = run_passes(onnx_from_torch(model, spec, opset=opset), spec, DEFAULT_PASSES)
    assert exported.opset_import[0].version == opset
    image = torch.randn(5, 3, *DENSE.image_size)
    with torch.no_grad():
        wanted = model(image).numpy()
    (found,) = run_model(exported, image=image.numpy())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
