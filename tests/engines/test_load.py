"""From a bundle on disk to a result, as a user's process does it."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

import sacvit_deploy
from sacvit_deploy.errors import BundleError, ConfigError
from tests.fakes import random_pictures

_FIRST_RESULT = """
import sys
import numpy as np
import sacvit_deploy

pipeline = sacvit_deploy.load(sys.argv[1], eta=1)
result = pipeline(np.zeros((40, 50, 3), np.uint8))
assert result.stage == "refine", result
heavy = {"torch", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_load_gives_a_pipeline(bundle, eta) -> None:
    pipeline = sacvit_deploy.load(bundle.path, eta=eta, threads=1, providers=["CPU"])
    assert pipeline.eta == (0.5 if eta is None else eta)
    pictures = random_pictures(6)
    results = pipeline(pictures, batch_size=4)
    assert [result.label for result in results] == ["class 6"] * 6
    singles = [pipeline(picture).probability for picture in pictures]
    np.testing.assert_allclose([result.probability for result in results], singles, rtol=1e-6)
    streamed = [result.label for result in pipeline.stream(pictures, batch_size=4)]
    assert streamed == ["class 6"] * 6


def test_the_first_result_comes_soon_and_without_the_offline_half(bundle) -> None:
    command = [sys.executable, "-c", _FIRST_RESULT, str(bundle.path)]
    seconds = []
    for _ in range(2):  # the first start may have to read the libraries from a cold disk
        start = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert run.returncode == 0, run.stderr
    assert min(seconds) < 2


def test_mistakes_are_found_before_anything_is_loaded(bundle, tmp_path) -> None:
    with pytest.raises(ConfigError, match="eta"):
        sacvit_deploy.load(bundle.path, eta=2)
    with pytest.raises(BundleError, match="no such folder"):
        sacvit_deploy.load(tmp_path / "none")


def test_public_names_exist() -> None:
    for name in sacvit_deploy.__all__:
        assert getattr(sacvit_deploy, name) is not None
        assert name in dir(sacvit_deploy)
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        sacvit_deploy.magic  # noqa: B018
