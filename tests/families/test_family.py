"""A new family is one value: nothing else has to know it."""

from __future__ import annotations

import dataclasses

import pytest

from sacvit_deploy.decode import decode, encode
from sacvit_deploy.errors import BundleIntegrityError, ConfigError
from sacvit_deploy.families import FAMILIES, family_named
from sacvit_deploy.families.config import ModelConfig, graph_macs, graph_specs, mean_macs_g
from sacvit_deploy.families.family import Family
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.vit import VisionTransformer
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import BATCH, IMAGE, LOGITS, TensorSpec
from tests.fakes import fake_manifest


def _check(config: ModelConfig) -> None:
    if config.depth != 1:
        raise ConfigError(f"depth is {config.depth}.", "Make it 1.")


TOY = Family(
    name="toy",
    title="Toy",
    presets={},
    files={"early_exit": "look.onnx", "refine": "think.onnx"},
    section=None,
    check=_check,
    tensors=lambda config, _, kind: {
        "refine": ((TensorSpec("seen", "float32", (BATCH, 5)),), (_logits(config),)),
        "early_exit": (
            (TensorSpec(IMAGE, "uint8" if kind == "uint8" else "float32", (BATCH, 3, 8, 8)),),
            (_logits(config), TensorSpec("seen", "float32", (BATCH, 5))),
        ),
    },
    macs=lambda config, _: {"early_exit": 10, "refine": 3 * config.embed_dim},
    model="sacvit_deploy.model.vit:VisionTransformer",
    view="sacvit_deploy.model.views:single_view",
    layout="sacvit_deploy.model.layouts:dense_layout",
    checkpoint_names={},
    stored_shapes=lambda config: {"cls_token": (1, 1, config.embed_dim)},
)


def _logits(config: ModelConfig) -> TensorSpec:
    return TensorSpec(LOGITS, "float32", (BATCH, config.num_classes))


@pytest.fixture
def config(monkeypatch) -> ModelConfig:
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    return ModelConfig("toy", (8, 8), 4, 24, 1, 3, num_classes=7)


def test_its_graphs_and_costs_are_known(config):
    first, second = graph_specs(config, input_kind="uint8")
    assert (first.role, first.file, second.role, second.file) == (
        "early_exit",
        "look.onnx",
        "refine",
        "think.onnx",
    )
    assert first.inputs[0].dtype == "uint8"
    assert first.outputs[1] == second.inputs[0]
    assert graph_macs(config) == {"early_exit": 10, "refine": 72}
    assert mean_macs_g(config, 0.5) == 46 / 1e9


def test_its_configuration_is_checked_and_survives_json(config):
    with pytest.raises(ConfigError, match="depth is 2"):
        config.replace(depth=2)
    assert decode(ModelConfig, encode(config)) == config


def test_its_bundle_is_described(config):
    manifest = dataclasses.replace(
        fake_manifest(config),
        graphs=tuple(
            GraphEntry(spec.role, "fp32", spec.file, spec.inputs, spec.outputs)
            for spec in graph_specs(config)
        ),
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(BundleIntegrityError, match="'toy' needs early_exit and refine"):
        dataclasses.replace(manifest, graphs=manifest.graphs[:1])


def test_its_torch_network_is_found_by_name(config):
    assert isinstance(build_model(config), VisionTransformer)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_found_by_its_name(family):
    assert family_named(family.name) is family
    for part in ("model", "view", "layout"):
        assert callable(family.load(part))


@pytest.mark.parametrize("name", ["resnet", None, 3])
def test_another_name_is_refused(name):
    with pytest.raises(ConfigError, match=", ".join(FAMILIES)):
        family_named(name)
