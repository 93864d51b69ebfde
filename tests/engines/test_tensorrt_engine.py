from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest

from sacvit_deploy.engines import compatibility, registry
from sacvit_deploy.engines.machine import cache_folder
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.engines.tensorrt_engine import BatchBuckets, CacheWarning
from sacvit_deploy.errors import EngineError
from sacvit_deploy.records import EngineFlags
from sacvit_deploy.spec import IMAGE
from tests.engines.fake_tensorrt import ICudaEngine, plan_for
from tests.fakes import SAC, fake_manifest, random_images


@pytest.mark.parametrize(
    ("ends", "recorded"),
    [
        ((1, 32), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)),
        ((1, 1), (1,)),
        ((4, 10), (4, 6, 8, 10)),
        ((5, 7), (5, 6, 7)),
    ],
)
def test_buckets_lie_within_the_range_and_reach_its_ends(ends, recorded) -> None:
    assert BatchBuckets.of_range(*ends).recorded == recorded


@pytest.mark.parametrize("largest", [1, 5, 32, 100])
def test_a_batch_is_padded_to_the_next_bucket_and_by_less_than_a_third(largest) -> None:
    buckets = BatchBuckets.of_range(1, largest)
    for size in range(1, largest + 1):
        padded = buckets.padded(size)
        assert size <= padded <= largest
        assert padded in buckets.recorded
        assert (padded - size) * 3 < padded


def test_without_buckets_only_too_small_a_batch_is_padded() -> None:
    assert [BatchBuckets(4, 16).padded(size) for size in (1, 4, 7, 16)] == [4, 4, 7, 16]


@pytest.mark.parametrize("buckets", [BatchBuckets(2, 8), BatchBuckets.of_range(2, 8)])
def test_too_large_a_batch_names_the_range_and_the_command(buckets) -> None:
    with pytest.raises(EngineError, match=r"of 9 .* takes 2 to 8\.\n.*build-engine .* 2:8:9"):
        buckets.padded(9)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_truncated_plan_says_what_the_library_says(workplace, backend, monkeypatch) -> None:
    whole = compatibility.checked_plan

    def truncated(*arguments):
        plan = whole(*arguments)
        return dataclasses.replace(plan, content=plan.content[:20])

    monkeypatch.setattr(registry, "checked_plan", truncated)
    with pytest.raises(EngineError, match=r"the 20 bytes of .*ends too early\.\n.*build-engine"):
        workplace.open(workplace.bundle(backend), backend)


def test_a_plan_of_another_graph_is_refused(workplace) -> None:
    bundle = workplace.bundle(plan={"tensors": [[IMAGE, "float32", ["batch", 3, 8, 8], "INPUT"]]})
    with pytest.raises(
        EngineError, match=r"not built from the bundle's ee\.onnx: .*coarse_features"
    ):
        workplace.open(bundle)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (IMAGE, ["batch", 3, 8]),
        (IMAGE, ["batch", 3, 8, 9]),
        (IMAGE, [2, 3, 8, 8]),
        ("logits", ["batch"]),
        ("logits", ["batch", 6]),
    ],
)
def test_an_engine_of_other_shapes_is_refused(workplace, name, shape) -> None:
    graph = fake_manifest(SAC, "graph").graphs[0]
    tensors = json.loads(plan_for(graph, SAC, (1, 4, 8)))["tensors"]
    changed = [[n, dtype, shape if n == name else s, mode] for n, dtype, s, mode in tensors]
    assert changed != tensors
    with pytest.raises(EngineError, match=rf"not built from .*ee\.onnx: they differ in {name}\."):
        workplace.open(workplace.bundle(plan={"tensors": changed}))


@pytest.mark.parametrize(("batch", "is_taken"), [((4, 4, 4), True), ((1, 4, 8), False)])
def test_an_engine_for_one_batch_may_have_fixed_sides(
    workplace, monkeypatch, batch, is_taken
) -> None:
    shape_of = ICudaEngine.get_tensor_shape
    monkeypatch.setattr(
        ICudaEngine,
        "get_tensor_shape",
        lambda self, name: tuple(4 if side == -1 else side for side in shape_of(self, name)),
    )
    with contextlib.nullcontext() if is_taken else pytest.raises(EngineError, match="they differ"):
        workplace.open(workplace.bundle(batch=batch))


@pytest.mark.parametrize("allowed", [True, False])
def test_code_in_a_plan_runs_only_where_it_was_built_so(workplace, monkeypatch, allowed) -> None:
    made = []
    module = workplace.modules["tensorrt"]
    runtime = module.Runtime

    def make(logger):
        made.append(runtime(logger))
        return made[-1]

    monkeypatch.setattr(module, "Runtime", make)
    flags = EngineFlags(version_compatible=True if allowed else None)
    workplace.open(workplace.bundle(entry={"flags": flags}))
    assert [r.engine_host_code_allowed for r in made] == [allowed] * 2


def opened_rtx(workplace):
    opened = workplace.open(workplace.bundle("tensorrt-rtx"), "tensorrt-rtx")
    return opened.sessions["early_exit"]


def test_rtx_records_by_itself_and_keeps_what_it_compiled(workplace) -> None:
    bundle = workplace.bundle("tensorrt-rtx")
    opened = workplace.open(bundle, "tensorrt-rtx")
    settings = workplace.library("tensorrt-rtx").settings[0]
    assert settings.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert settings.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    opened.sessions["early_exit"].run({IMAGE: random_images(3)})
    assert workplace.gpu.launches == 0
    (cache,) = (workplace.folder / "cache").rglob("early_exit.*.rtx-cache")
    assert cache.read_bytes() == b"kernels"
    cache.write_bytes(b"kernels and more")
    again = workplace.open(bundle, "tensorrt-rtx")
    assert workplace.library("tensorrt-rtx").settings[2]._cache.serialize() == b"kernels and more"
    again.sessions["early_exit"].run({IMAGE: random_images(3)})
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize("content", [b"", b"of another machine"])
def test_a_cache_that_does_not_fit_is_written_anew(workplace, content) -> None:
    bundle = workplace.bundle("tensorrt-rtx")
    workplace.open(bundle, "tensorrt-rtx").sessions["early_exit"].run({IMAGE: random_images(1)})
    (cache,) = (workplace.folder / "cache").rglob("early_exit.*.rtx-cache")
    cache.write_bytes(content)
    workplace.open(bundle, "tensorrt-rtx").sessions["early_exit"].run({IMAGE: random_images(1)})
    assert cache.read_bytes() == b"kernels"


def test_a_cache_that_cannot_be_written_is_no_failure(workplace) -> None:
    (workplace.folder / "cache").write_text("a file where the folder should be")
    session = workplace.open(workplace.bundle("tensorrt-rtx"), "tensorrt-rtx").sessions[
        "early_exit"
    ]
    with pytest.warns(CacheWarning, match="compiled again at the next start"):
        session.run({IMAGE: random_images(1)})


def test_a_cache_that_the_library_does_not_hand_out_is_no_failure(workplace, monkeypatch) -> None:
    monkeypatch.setattr("tests.engines.fake_tensorrt.IRuntimeCache.serialize", lambda _: None)
    session = workplace.open(workplace.bundle("tensorrt-rtx"), "tensorrt-rtx").sessions[
        "early_exit"
    ]
    with pytest.warns(CacheWarning, match="does not hand them out"):
        session.run({IMAGE: random_images(1)})
    assert not list(workplace.folder.rglob("*.rtx-cache"))


@pytest.fixture
def lazy(workplace):
    """A session whose kernels are compiled by and by, those so far, and the file of its cache."""
    bundle = workplace.bundle("tensorrt-rtx")
    opened = workplace.open(bundle, "tensorrt-rtx", SessionOptions(cuda_graphs=False))
    settings = workplace.library("tensorrt-rtx").settings[0]
    assert settings.dynamic_shapes_kernel_specialization_strategy.name == "LAZY"
    file = cache_folder(bundle) / "early_exit.fp32.rtx-cache"
    return opened.sessions["early_exit"], settings._cache, file


def test_kernels_that_come_later_are_kept_when_the_session_is_closed(lazy) -> None:
    session, compiled, file = lazy
    for _ in range(5):
        session.run({IMAGE: random_images(3)})
    compiled._content = b"kernels for batches of 3"
    assert file.read_bytes() == b"kernels"
    session.close()
    assert file.read_bytes() == b"kernels for batches of 3"


def test_kernels_that_come_later_are_kept_by_a_process_that_never_closes(lazy) -> None:
    session, compiled, file = lazy
    kept = []
    for run in range(1, 10):
        compiled._content = b"kernels %d" % run
        session.run({IMAGE: random_images(3)})
        kept.append(file.read_bytes())
    assert kept == [b"kernels %d" % run for run in (1, 2, 2, 4, 4, 4, 4, 8, 8)]


def test_a_session_that_never_ran_keeps_nothing(lazy) -> None:
    session, _, file = lazy
    session.close()
    assert not file.exists()
