from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from sacvit_deploy.engines.machine import cache_folder


def test_it_belongs_to_the_files_of_one_bundle(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = cache_folder(bundle)
    assert folder.parent == tmp_path / "caches" / "sacvit-deploy"
    assert cache_folder(bundle) == folder
    fewer = dict(list(bundle.manifest.files.items())[1:])
    manifest = dataclasses.replace(bundle.manifest, files=fewer)
    assert cache_folder(dataclasses.replace(bundle, manifest=manifest)) != folder


def test_who_has_no_home_has_a_cache_all_the_same(bundle, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder(bundle).is_relative_to(Path(tempfile.gettempdir()) / "sacvit-deploy")
