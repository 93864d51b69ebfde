"""On a GPU: the engines of a bundle against its ONNX graphs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.build import build_engines
from sacvit_deploy.engines.engine_request import BatchRange, EngineRequest
from sacvit_deploy.engines.registry import open_sessions
from sacvit_deploy.engines.session import SessionOptions, sharing_memory
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from sacvit_deploy.spec import IMAGE, LOGITS

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=MODULES)
def built(request, sac_graph, tmp_path_factory):
    """A backend, and a bundle with its engines."""
    pytest.importorskip(MODULES[request.param], reason=f"needs {request.param}")
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    bundle = Bundle.open(
        shutil.copytree(sac_graph.path, tmp_path_factory.mktemp("gpu") / request.param)
    )
    engines = EngineRequest("fp32", request.param, BatchRange(1, 4, 8))
    return request.param, build_engines(bundle, engines, lambda *_: None)[0]


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "plain"])
def test_engines_decide_as_the_graphs_do(built, cuda_graphs) -> None:
    backend, bundle = built
    wanted = Scheduler(
        bundle.manifest.config,
        open_sessions(bundle, backend="onnxruntime", options=SessionOptions(("CPU",))).sessions,
        "graph",
    )
    options = SessionOptions(cuda_graphs=cuda_graphs)
    sessions = open_sessions(bundle, backend=backend, options=options).sessions
    assert sharing_memory(sessions["early_exit"], sessions["refine"]) is not None
    found = Scheduler(bundle.manifest.config, sessions, "graph")
    generator = np.random.default_rng(0)
    for size in (5, 5, 1, 8, 5):
        shape = (size, 3, *bundle.manifest.config.image_size)
        images = generator.integers(0, 256, shape, dtype=np.uint8)
        for eta in (0.0, 1.0):
            policy = FixedExit(eta)
            agree(found.run(images, policy), wanted.run(images, policy))


def agree(found, wanted) -> None:
    """FP32 engines run without TF32, so only the order of sums differs."""
    for one, other in zip(found, wanted, strict=True):
        error = np.abs(one.logits - other.logits).max() / np.abs(other.logits).max()
        assert error < 1e-3
        assert (one.target_index is None) == (other.target_index is None)
        if one.target_index is not None:
            assert np.isin(one.target_index, other.target_index).mean() >= 0.75


def test_a_replayed_batch_is_the_same_to_the_last_bit(built) -> None:
    backend, bundle = built
    session = open_sessions(bundle, backend=backend).sessions["early_exit"]
    shape = (6, 3, *bundle.manifest.config.image_size)
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    first, second = (session.run({IMAGE: images})[LOGITS] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_closing_gives_the_memory_back(built) -> None:
    from cuda.bindings import runtime

    backend, bundle = built
    images = np.zeros((6, 3, *bundle.manifest.config.image_size), np.uint8)
    free = []
    for _ in range(4):
        opened = open_sessions(bundle, backend=backend)
        opened.sessions["early_exit"].run({IMAGE: images})
        opened.close()
        free.append(runtime.cudaMemGetInfo()[1])
    assert free[-1] >= free[0] - (1 << 20), "the first time the library loads its kernels, once"
