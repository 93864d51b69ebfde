"""A bundle appears whole or not at all. The graphs come from a bundle that exists already."""

from __future__ import annotations

import copy
import errno
import importlib.metadata
import os
from typing import TYPE_CHECKING

import pytest
import torch

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.errors import BundleError, CheckpointError, ConfigError, ExportError, ParityError
from sacvit_deploy.exporters import export
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.records import WeightsOrigin
from tests.exporters.graphs import translated_from
from tests.tiny_models import DENSE, SAC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sacvit_deploy.spec import Role

LABELS = tuple(f"class {index}" for index in range(7))


@pytest.fixture
def translated(sac_host) -> Iterator[list[Role]]:
    """No translation: the graphs of `sac_host`, and a record of which were asked for."""
    with translated_from(sac_host) as asked:
        yield asked


def fail_at(role: str, error: type[BaseException], monkeypatch) -> None:
    before = vars(export)["onnx_from_torch"]

    def fails(model, spec, *, opset):
        if spec.role == role:
            raise error("stopped", "here")
        return before(model, spec, opset=opset)

    monkeypatch.setattr(export, "onnx_from_torch", fails)


def content(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_a_bundle_says(sac_host, sac_checkpoint):
    manifest = sac_host.manifest
    assert set(content(sac_host.path)) == {"bundle.json", "ee.onnx", "sac.onnx", "weights.bin"}
    assert set(manifest.files) == {"ee.onnx", "sac.onnx", "weights.bin"}
    assert manifest.config == SAC
    assert manifest.weights.file == sac_checkpoint.name
    assert len(manifest.weights.sha256) == 64
    assert manifest.labels == LABELS
    for name in ("torch", "onnx", "onnxruntime", "numpy"):
        assert manifest.tools[name] == importlib.metadata.version(name)
    assert {"sacvit-deploy", "python"} <= set(manifest.tools)
    assert Bundle.open(sac_host.path) == sac_host


def test_steps_are_reported(tmp_path, sac_model, translated):
    told: list[tuple[float, str]] = []
    export_bundle(
        sac_model, tmp_path / "bundle", on_progress=lambda share, text: told.append((share, text))
    )
    assert translated == ["early_exit", "refine"]
    shares, texts = zip(*told, strict=True)
    assert list(shares) == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert list(texts) == [
        "reading the weights",
        "translating ee.onnx (early_exit)",
        "simplifying ee.onnx (early_exit)",
        "translating sac.onnx (refine)",
        "simplifying sac.onnx (refine)",
        "comparing with torch at batch 1",
        "comparing with torch at batch 2",
        "comparing with torch at batch 7",
        "exported",
    ]


def test_the_same_export_gives_the_same_files(tmp_path, sac_model, translated):
    for name in ("first", "second"):
        export_bundle(sac_model, tmp_path / name)
    assert content(tmp_path / "first") == content(tmp_path / "second")


def test_a_model_in_memory_is_recorded_as_one(tmp_path, sac_model, translated):
    weights = export_bundle(sac_model, tmp_path / "bundle").manifest.weights
    assert weights == WeightsOrigin("model", file="a model in memory", storage="fp32")


def test_the_model_is_not_changed(tmp_path, sac_model, translated):
    before = copy.deepcopy(sac_model.state_dict())
    export_bundle(sac_model, tmp_path / "bundle")
    assert all(torch.equal(before[name], value) for name, value in sac_model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, sac_model, translated, value):
    broken = copy.deepcopy(sac_model)
    with torch.no_grad():
        broken.head.bias[3] = value
        broken.blocks[1].mlp.fc2.weight[0, 0] = value
    with pytest.raises(
        CheckpointError, match=r"in 2 of \d+ tensors: blocks\.1\.mlp\.fc2\.weight, head"
    ):
        export_bundle(broken, tmp_path / "bundle")
    assert not translated
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path, sac_model, translated):
    other = copy.deepcopy(sac_model)
    with torch.no_grad():
        other.fusion.norm.bias += 1
    with pytest.raises(ParityError, match="The refine graph differs from torch"):
        export_bundle(other, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("role", ["early_exit", "refine"])
@pytest.mark.parametrize("error", [ExportError, KeyboardInterrupt, MemoryError])
def test_a_stopped_export_leaves_nothing(tmp_path, sac_model, translated, role, error, monkeypatch):
    fail_at(role, error, monkeypatch)
    with pytest.raises(error):
        export_bundle(sac_model, tmp_path / "new" / "bundle")
    assert not list((tmp_path / "new").iterdir())


def test_a_stopped_replacement_leaves_the_old_bundle(tmp_path, sac_model, translated, monkeypatch):
    path = tmp_path / "bundle"
    export_bundle(sac_model, path)
    before = content(path)
    fail_at("refine", KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(sac_model, path, ExportOptions(force=True))
    assert content(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("step", ["save_with_shared_weights", "write_manifest", "fsync"])
def test_a_full_disk_is_one_error(tmp_path, sac_model, translated, monkeypatch, step):
    path = tmp_path / "bundle"
    export_bundle(sac_model, path)
    before = content(path)
    owner = os if step == "fsync" else export
    works = vars(owner)[step]

    def fills(*arguments):
        works(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(owner, step, fills)
    with pytest.raises(BundleError, match=r"cannot be written: .*No space left") as raised:
        export_bundle(sac_model, path, ExportOptions(force=True))
    assert "space left on the disk" in raised.value.fix
    assert content(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_only_force_replaces_a_bundle(tmp_path, sac_model, translated):
    path = tmp_path / "bundle"
    export_bundle(sac_model, path)
    before = content(path)
    later, replacing = ExportOptions(eta=0.75), ExportOptions(eta=0.75, force=True)
    translated.clear()
    with pytest.raises(BundleError, match=r"exists\.\n.*--force"):
        export_bundle(sac_model, path, later)
    assert content(path) == before
    assert not translated
    assert export_bundle(sac_model, path, replacing).manifest.eta == 0.75
    assert Bundle.open(path).manifest.eta == 0.75
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_is_checked_first(eta):
    with pytest.raises(ConfigError, match="eta"):
        ExportOptions(eta=eta)


# Options that do not fit, refused before anything is exported.


@pytest.fixture
def nothing_exported(monkeypatch):
    monkeypatch.setattr(export, "onnx_from_torch", lambda *_, **__: pytest.fail("was exported"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "Random weights .* not of which network"),
        ({"config": DENSE, "eta": 2}, "eta is 2"),
        ({"config": DENSE, "overrides": {"embed": 3}}, "has no field embed"),
        ({"config": DENSE, "overrides": {"alpha": 0.5}}, "'vit' has one stage"),
        ({"config": SAC, "overrides": {"alpha": 1.5}}, "alpha is 1.5"),
        ({"config": SAC, "overrides": {"patch_size": 5}}, "image_size is"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, nothing_exported, fields, says):
    with pytest.raises(ConfigError, match=says):
        export_bundle(None, tmp_path / "bundle", ExportOptions(**fields))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"cat\ndog\n", "names 2 classes, the network has 7"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, nothing_exported, text, says):
    labels = tmp_path / "labels.txt"
    if text is not None:
        labels.write_bytes(text)
    with pytest.raises(ConfigError, match=says):
        export_bundle(None, tmp_path / "bundle", ExportOptions(DENSE, labels=labels))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_labels_from_a_pipe_are_not_waited_for(tmp_path, nothing_exported):
    os.mkfifo(tmp_path / "labels.txt")
    with pytest.raises(ConfigError, match="not a regular file"):
        export_bundle(None, tmp_path / "x", ExportOptions(DENSE, labels=tmp_path / "labels.txt"))


def test_labels_are_read_in_order(tmp_path, sac_checkpoint, translated):
    labels = tmp_path / "labels.txt"
    names = ["Käfer", "Hund", "Katze", "d", "e", "f", "g"]
    labels.write_text("\n".join([*names[:2], "", *names[2:]]), encoding="utf-8")
    bundle = export_bundle(sac_checkpoint, tmp_path / "bundle", ExportOptions(labels=labels))
    assert bundle.manifest.labels == tuple(names)
