"""Hostile descriptions of bundles: read, listed, loaded and run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacvit_deploy.bundle import demo_bundle
from sacvit_deploy.bundle_changes import write_manifest
from sacvit_deploy.manifest import MANIFEST, Manifest
from sacvit_deploy.runtime.load import load
from tests.fakes import CF, DENSE, fake_manifest, random_pictures
from tests.fuzz.strategies import check_refusals, command, damages, edited, edits, sealed
from tests.test_manifest import FULL

_PICTURE = random_pictures(1)[0]
_FAKES = {"full": FULL, "cf_vit": fake_manifest(CF), "vit": fake_manifest(DENSE)}
_NAMES = ("demo", *_FAKES)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, tuple[Path, bytes]]:
    """Folder and description of the demo, and of bundles whose graphs are none."""
    home: Path = tmp_path_factory.mktemp("bundles")
    shutil.copytree(demo_bundle(), home / "demo")
    for name, manifest in _FAKES.items():
        files = [file for graph in manifest.graphs for file in graph.files]
        for file in (*files, *(engine.file for engine in manifest.engines)):
            (home / name / file).parent.mkdir(parents=True, exist_ok=True)
            (home / name / file).write_bytes(b"none")
        write_manifest(home / name, dataclasses.replace(manifest, files={}))
    return {name: (home / name, (home / name / MANIFEST).read_bytes()) for name in _NAMES}


def check(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)

    def read_twice() -> None:
        manifest = Manifest.from_json(text)
        assert Manifest.from_json(manifest.to_json()) == manifest

    def classify() -> None:
        with load(folder, backend="onnxruntime", threads=1) as pipeline:
            pipeline(_PICTURE).to_dict()

    check_refusals(
        read_twice,
        command("inspect", str(folder)),
        command("inspect", str(folder), "--json"),
        classify,
    )


@given(st.sampled_from(_NAMES), st.booleans(), st.data())
def test_damaged_text(bundles, name, seal, data):
    folder, text = bundles[name]
    damaged = data.draw(damages({name: text})).of(text)
    check(folder, sealed(damaged) if seal else damaged)


@given(st.sampled_from(_NAMES), st.data())
def test_edited_values(bundles, name, data):
    folder, text = bundles[name]
    document = json.loads(text)
    check(folder, sealed(edited(document, data.draw(edits(document)))))


def test_untouched_ones_are_read(bundles):
    """Else all others would be refused for the same reason."""
    for folder, text in bundles.values():
        again = sealed(edited(json.loads(text), ()))
        assert Manifest.from_json(again) == Manifest.from_json(text), folder
