"""Real engines of the families, both resolutions, both ways to select, every precision.

The weights are random, which makes no difference to the builder or to the types.
"""

from __future__ import annotations

from typing import Any

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines import build
from sacvit_deploy.engines.build import build_engines
from sacvit_deploy.engines.engine_request import BatchRange, EngineRequest
from sacvit_deploy.engines.machine import Machine
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import graph_specs, preset
from sacvit_deploy.spec import Selection

pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
pytestmark = pytest.mark.slow

_TARGETS = ("8.6", "8.9", "12.0")
_BUILD_LIMIT_S = 60  # 3 s on an idle core; the machines that run this are shared


_CAPACITY = {"mode": "capacity", "capacity": (138, 97, 68), "strict": True}
# A few blocks have all layers and shapes of a network. The first is whole; those of LV-ViT too, as
# their stem and heads stay in float, and a few blocks would not make enough of the rest INT8.
_NETWORKS: dict[str, tuple[str, Selection, dict[str, Any]]] = {
    "sac-224-host": ("sac_deit_small_patch16_224", "host", {}),
    "sac-224-graph": ("sac_deit_small_patch16_224", "graph", {"depth": 5}),
    "sac-288-host": ("sac_deit_small_patch16_288", "host", {"depth": 5}),
    "lf-288-graph": ("lf_deit_small_patch16_288", "graph", {"depth": 5}),
    "cf-lv-224-graph": ("cf_lv_vit_small_224", "graph", {}),
    "cf-lv-288-host": ("cf_lv_vit_small_288", "host", {}),
    "stvit-224": ("stvit_deit_small_patch16_224", "host", {"depth": 8}),
    "stvit-r-224": ("stvit_r_swin_small_224", "host", {"depth": 12, "depths": (2, 2, 6, 2)}),
    "swin-224": ("swin_tiny_224", "host", {"depth": 8, "depths": (2, 2, 2, 2)}),
    # Both graphs of gates: `capacity`, and `masked` for what overflows.
    "svit-224": ("svit_deit_small_patch16_224", "host", _CAPACITY),
}


@pytest.fixture(scope="module", params=_NETWORKS.values(), ids=list(_NETWORKS))
def network(request, tmp_path_factory) -> Bundle:
    """FP32, FP16 and INT8 graphs; other tests check their agreement."""
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle
    from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
    from sacvit_deploy.samples import sample_pictures

    name, selection, fields = request.param
    folder = tmp_path_factory.mktemp(f"{name}-{selection}")
    pictures = folder / "pictures.csv"
    pictures.write_text("path,label\n" + "".join(f"{path},0\n" for path in sample_pictures()))
    options = ExportOptions(preset(name).replace(**fields), selection=selection)
    bundle = export_bundle(None, folder / "bundle", options)
    for precision in ("fp16", "int8"):
        bundle = add_precision(bundle, PrecisionRequest(precision, pictures, samples=4))
    return bundle


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_network_becomes_engines(network, precision, monkeypatch):
    monkeypatch.setattr(build, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    request = EngineRequest(
        precision, "tensorrt-rtx", BatchRange(1, 8, 32), compute_capabilities=_TARGETS
    )
    bundle, engines = build_engines(network, request, lambda *_: None)
    roles = [graph.role for graph in graph_specs(network.manifest.config)]
    assert [engine.role for engine in engines] == roles
    for engine in engines:
        assert engine.compute_capabilities == _TARGETS
        assert engine.build_s < _BUILD_LIMIT_S
        by_family = family_named(network.manifest.config.family).float_in_int8 is not None
        _check_share(precision, engine, linear=0.5 if by_family else 0.8)
    sizes = {e.precision: e.bytes for e in Bundle.open(bundle.path).engines(roles[0])}
    if precision == "int8":
        assert sizes["int8"] < 0.8 * sizes["fp16"] < 0.5 * sizes["fp32"]


def _check_share(precision, engine, linear=0.8) -> None:
    if precision == "fp32":
        assert engine.precision_share == {"half": 0, "int8": 0, "float": 1}
    elif precision == "fp16":
        assert engine.precision_share["half"] >= 0.90
    else:
        assert engine.linear_share["int8"] >= linear
        assert engine.layer_share["int8"] > 0.05, "activations are quantised too"
        assert engine.layer_share["half"] > 0.6, "and the rest is half, but for norms and ranking"


_ADAPTER = {"image_size": (192, 320), "depth": 8, "first_block": 2}
_BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "stvit-r": ("stvit_r_swin_tiny_backbone", {"image_size": (320, 544)}),
    "swin": (
        "swin_tiny_backbone",
        {"image_size": (320, 544), "depth": 8, "depths": (2, 2, 2, 2)},
    ),
    "svit-masked": ("svit_adapter_tiny_backbone", _ADAPTER),
    "svit-capacity": (
        "svit_adapter_tiny_backbone",
        {**_ADAPTER, "mode": "capacity", "capacity": (168, 120, 88)},
    ),
}


@pytest.mark.parametrize(("name", "fields"), _BACKBONES.values(), ids=list(_BACKBONES))
def test_a_backbone_becomes_engines(name, fields, tmp_path, monkeypatch):
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle
    from sacvit_deploy.exporters.precision import PrecisionRequest

    monkeypatch.setattr(build, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    options = ExportOptions(preset(name).replace(**fields), precisions=(PrecisionRequest("fp16"),))
    bundle = export_bundle(None, tmp_path / "bundle", options)
    for precision in ("fp32", "fp16"):
        request = EngineRequest(
            precision, "tensorrt-rtx", BatchRange(1, 1, 4), compute_capabilities=_TARGETS
        )
        bundle, (engine,) = build_engines(bundle, request, lambda *_: None)
        assert engine.role == "backbone"
        _check_share(precision, engine)
