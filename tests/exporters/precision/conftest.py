"""Pictures to calibrate on, tiny bundles with every precision, and one that FP16 breaks."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from PIL import Image

from sacvit_deploy.bundle_changes import update_manifest
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.exporters.precision.ranges import CalibratingSession
from sacvit_deploy.records import WeightsOrigin
from tests.exporters.graphs import bias_of, normalised, placed, session, with_constants

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Bundle

PICTURES = 24
LARGE = 3e4


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
def with_precisions(pictures, made_once):
    """Both precisions added to a copy of a bundle."""

    def make(bundle: Bundle) -> Bundle:
        def make_here(path: Path) -> Bundle:
            copy = add_precision(as_random(bundle, path), PrecisionRequest("fp16"))
            return add_precision(copy, PrecisionRequest("int8", pictures))

        made: Bundle = made_once(f"{bundle.path.parent.name}_precise", make_here)
        return made

    return make


@pytest.fixture(scope="session")
def large_activation(sac_host, tmp_path_factory) -> Bundle:
    """A linear layer is too large, and the next one corrects it.

    Half holds every weight, and not the result of the layer.
    """

    def enlarge(layers: dict[str, gs.Node]) -> None:
        first, second = (layers[f"blocks.1.mlp.fc{number}"] for number in (1, 2))
        for constant, factor in (
            (first.inputs[1], LARGE),
            (bias_of(first), LARGE),
            (second.inputs[1], 1 / LARGE),
        ):
            constant.values = constant.values * np.float32(factor)

    return with_constants(sac_host, tmp_path_factory.mktemp("large") / "bundle", enlarge)


@pytest.fixture
def batches(sac_host) -> list[np.ndarray]:
    """The last one is smaller, as in real life."""
    images = normalised(sac_host, 11)[1]
    return [images[:8], images[8:]]


def ranges_of(bundle, method, tmp_path, batches):
    """The first graph of a bundle, and the ranges of the inputs of its linear layers."""
    graph = placed(bundle, "early_exit")
    measuring = CalibratingSession(session(bundle, "early_exit"), graph.model, method, tmp_path)
    for image in batches:
        measuring.run({"image": image})
    return graph, measuring.ranges()
