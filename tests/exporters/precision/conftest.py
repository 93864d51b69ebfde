"""Pictures to calibrate on, and tiny bundles with every precision."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.bundle import update_manifest
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.manifest import WeightsOrigin

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Bundle

PICTURES = 24


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A labelled folder of blots, which differ more from each other than noise does."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(3)
    for index in range(PICTURES):
        blots = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        file = folder / f"class {index % 3}" / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(blots).resize((64, 48), Image.Resampling.BICUBIC).save(file)
    return folder


def copy_of(bundle: Bundle, path: Path) -> Bundle:
    shutil.copytree(bundle.path, path)
    return type(bundle).open(path)


def as_random(bundle: Bundle, path: Path) -> Bundle:
    """A copy that says its weights are random, whose labels nobody expects to agree in INT8.

    Those of a network this small, with weights this strong, do not.
    """
    copy = copy_of(bundle, path)
    weights = WeightsOrigin("random", seed=0)
    return update_manifest(copy, dataclasses.replace(copy.manifest, weights=weights))


@pytest.fixture(scope="session")
def with_precisions(pictures, tmp_path_factory):
    """Both precisions added to a copy of a bundle, each once."""
    made: dict[Path, Bundle] = {}

    def make(bundle: Bundle) -> Bundle:
        if bundle.path not in made:
            copy = as_random(bundle, tmp_path_factory.mktemp("precise") / "bundle")
            copy = add_precision(copy, PrecisionRequest("fp16"))
            made[bundle.path] = add_precision(copy, PrecisionRequest("int8", pictures))
        return made[bundle.path]

    return make
