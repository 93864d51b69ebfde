from __future__ import annotations

import copy
import itertools
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.bundle import Bundle, demo_bundle
from sacvit_deploy.bundle_changes import new_bundle, write_manifest
from sacvit_deploy.errors import (
    BundleError,
    ConfigError,
    EngineError,
    ImageError,
    PicturesError,
)
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.preprocess import Preprocessor
from tests.fakes import DENSE, SAC, fake_manifest, fake_opened, random_pictures

ETA = 0.19  # about the median confidence of the fake
PICTURES = random_pictures(20)
LOADS = int(os.environ.get("SACVIT_TEST_LOADS", "200"))


def make(config=SAC, selection="host", eta=ETA) -> Pipeline:
    return Pipeline(fake_manifest(config, selection, eta), fake_opened(config, selection))


@pytest.fixture(params=["host", "graph"])
def pipeline(request) -> Pipeline:
    return make(selection=request.param)


def test_every_kind_of_picture_gives_the_same_result(pipeline, tmp_path) -> None:
    path = tmp_path / "cat.png"
    Image.fromarray(PICTURES[0]).save(path)
    wanted = pipeline(PICTURES[0])
    assert wanted.image is None
    assert pipeline(Image.open(path)) == wanted
    assert pipeline(path).image == str(path)
    assert pipeline(str(path)).to_dict() == {**wanted.to_dict(), "image": str(path)}


def test_a_list_equals_its_pictures_one_by_one(pipeline) -> None:
    results = pipeline(PICTURES)
    assert {result.stage for result in results} == {"early_exit", "refine"}
    assert results == [pipeline(picture) for picture in PICTURES]
    assert pipeline(tuple(PICTURES), batch_size=3) == results


def test_an_empty_list_gives_an_empty_list(pipeline) -> None:
    assert pipeline([]) == []
    assert list(pipeline.stream([])) == []


@pytest.mark.parametrize(("batch_size", "max_waiting"), [(1, None), (3, None), (3, 1), (64, 5)])
def test_a_stream_equals_a_call(pipeline, batch_size, max_waiting) -> None:
    found = pipeline.stream(iter(PICTURES), batch_size=batch_size, max_waiting=max_waiting)
    assert list(found) == pipeline(PICTURES)


def endless(seen: list[int]):
    for index in itertools.count():
        seen.append(index)
        yield PICTURES[index % 20]


@pytest.mark.parametrize("eta", [0.0, ETA, 1.0])
def test_an_endless_stream_holds_back_no_more_than_it_says(pipeline, eta) -> None:
    seen: list[int] = []
    stream = pipeline.stream(endless(seen), eta=eta, batch_size=2, max_waiting=6)
    results = []
    for result in itertools.islice(stream, 40):
        results.append(result)
        assert len(seen) - len(results) < 6 + 2
    assert results == pipeline(PICTURES * 2, eta=eta)


def test_an_easy_frame_waits_for_nobody() -> None:
    seen: list[int] = []
    next(make().stream(endless(seen), eta=0, batch_size=1))
    assert seen == [0]


def test_eta_of_bundle_pipeline_and_call(pipeline) -> None:
    assert pipeline.eta == ETA
    assert {result.stage for result in pipeline(PICTURES, eta=1)} == {"refine"}
    assert {result.stage for result in pipeline(PICTURES, eta=0)} == {"early_exit"}
    assert pipeline.eta == ETA
    started = pipeline.stream(PICTURES)
    pipeline.eta = 1
    assert {result.stage for result in pipeline(PICTURES)} == {"refine"}
    assert {result.stage for result in started} == {"early_exit", "refine"}


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True, 10**400])
def test_eta_out_of_range_is_refused_everywhere(pipeline, eta) -> None:
    with pytest.raises(ConfigError, match="eta"):
        pipeline(PICTURES[0], eta=eta)
    with pytest.raises(ConfigError, match="eta"):
        pipeline.stream([], eta=eta)
    with pytest.raises(ConfigError, match="eta"):
        pipeline.eta = eta
    with pytest.raises(ConfigError, match="eta"):
        Pipeline(fake_manifest(), fake_opened(SAC), eta=eta)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "x", [1], 10**30])
def test_counts_out_of_range_are_refused(pipeline, count) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        pipeline([], batch_size=count)
    with pytest.raises(ConfigError, match="batch_size"):
        pipeline.stream([], batch_size=count)
    with pytest.raises(ConfigError, match="max_waiting"):
        pipeline.stream([], max_waiting=count)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"eta": 10**400}, "eta is 1000"),
        ({"threads": 1.5}, r"1\.5 threads"),
        ({"threads": "2"}, "'2' threads"),
        ({"threads": 10**30}, "000 threads"),
        ({"backend": ["auto"]}, r"no backend \['auto'\]"),
        ({"precision": ["fp32"]}, r"no precision \['fp32'\]"),
        ({"providers": [5]}, r"providers are \(5,\)"),
        ({"providers": 5}, "providers are 5"),
    ],
)
def test_arguments_of_load_that_cannot_be(arguments, says) -> None:
    with pytest.raises((ConfigError, EngineError), match=says):
        load(demo_bundle(), **arguments)


@pytest.mark.parametrize("path", [None, 5, b"bundle"])
def test_a_bundle_without_a_path_is_refused(path) -> None:
    with pytest.raises(BundleError, match="path of a bundle is"):
        load(path)


@pytest.mark.parametrize("providers", ["CPU", ["CPU"], ("CPU",)])
def test_a_provider_may_stand_without_a_list(providers) -> None:
    with load(demo_bundle(), providers=providers) as opened:
        assert opened.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("frames", ["cat.jpg", Path("cat.jpg"), PICTURES[0], PICTURES[0][0]])
def test_one_picture_is_no_stream(pipeline, frames) -> None:
    with pytest.raises(ConfigError, match=r"and one .* found.\nPass one picture to the pipeline"):
        pipeline.stream(frames)


def test_a_stream_of_nothing_is_refused(pipeline) -> None:
    with pytest.raises(ConfigError, match="NoneType found"):
        pipeline.stream(None)


def test_a_stack_of_frames_is_a_stream(pipeline) -> None:
    assert list(pipeline.stream(np.stack([PICTURES[0]] * 3))) == pipeline([PICTURES[0]] * 3)


def test_outcomes_are_of_an_array(pipeline) -> None:
    with pytest.raises(ConfigError, match="images is None"):
        pipeline.outcomes(None)


def test_representations_fit_a_screen(pipeline) -> None:
    assert repr(pipeline) == (
        "<Pipeline: sac_vit, 24x32 px, 7 classes; fp32 in fake (FakeProvider)>"
    )
    assert repr(pipeline.stats) == "<Stats: 0 pictures>"
    pipeline(PICTURES)
    assert repr(pipeline.stats).startswith("<Stats: 20 pictures, ")
    assert repr(pipeline.manifest) == (
        "<Manifest: sac_vit, 24x32 px, 7 classes; 2 graphs, 0 engines>"
    )
    assert len(repr(Bundle.open(demo_bundle()))) < 200


def test_a_bad_picture_in_a_list_is_named(pipeline, tmp_path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("not a picture")
    with pytest.raises(PicturesError, match=r"^The picture '.*broken\.jpg' is not") as caught:
        pipeline([*PICTURES[:4], broken, *PICTURES[4:]], batch_size=3)
    assert list(caught.value.failures) == [4]


def test_the_results_of_the_good_pictures_of_a_list_can_be_reached(pipeline) -> None:
    bad = PICTURES[0][:0]
    with pytest.raises(PicturesError) as caught:
        pipeline([bad, *PICTURES[:5], bad, "none.jpg", bad], batch_size=3)
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.results == [None, *pipeline(PICTURES[:5]), None, None, None]
    assert list(error.failures) == [0, 6, 7, 8]
    assert error.problem.startswith("4 of 9 pictures cannot be read.\nAt index 0: ")
    assert "At index 6: " in error.problem
    assert "'none.jpg' does not exist" in error.problem
    assert "At index 8: " not in error.problem
    with pytest.raises(ImageError, match=r"^The array picture has no pixels"):
        pipeline(bad)


def test_arrays_of_opencv(pipeline) -> None:
    wanted = pipeline(PICTURES)
    turned = [picture[..., ::-1] for picture in PICTURES]
    assert pipeline(turned, channels="bgr") == wanted
    assert list(pipeline.stream(turned, channels="bgr")) == wanted
    assert pipeline(turned[0], channels="bgr") == wanted[0] != pipeline(turned[0])
    with pytest.raises(ConfigError, match="rgb or bgr"):
        pipeline(turned[0], channels="gbr")
    with pytest.raises(ImageError, match="uint8"):
        pipeline(np.zeros((3, 3)), channels="bgr")


def ticking() -> Pipeline:
    """A pipeline whose clock goes on by a second whenever it is read."""
    ticks = itertools.count()
    return Pipeline(fake_manifest(), fake_opened(SAC), clock=lambda: float(next(ticks)))


@pytest.mark.parametrize("stream", [True, False])
def test_every_picture_is_timed(stream) -> None:
    pipeline = ticking()
    list(pipeline.stream(PICTURES[:3])) if stream else pipeline(PICTURES[:3])
    found = pipeline.stats.snapshot().preprocess
    assert found is not None
    assert (found.pictures, found.latency_ms_mean) == (3, 1000.0)


def test_a_bad_frame_comes_after_the_results_before_it(pipeline, tmp_path) -> None:
    missing = tmp_path / "missing.jpg"
    stream = pipeline.stream([*PICTURES[:7], missing, *PICTURES[7:]], batch_size=3)
    assert list(itertools.islice(stream, 7)) == pipeline(PICTURES[:7])
    with pytest.raises(ImageError, match=r"picture '.*missing\.jpg' does"):
        next(stream)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, StopAsyncIteration])
@pytest.mark.parametrize("count", [6, 7, 19])
def test_an_error_of_the_source_comes_after_the_results_before_it(pipeline, error, count) -> None:
    def frames():
        yield from PICTURES[:count]
        raise error("camera unplugged")

    stream = pipeline.stream(frames(), batch_size=3)
    assert list(itertools.islice(stream, count)) == pipeline(PICTURES[:count])
    with pytest.raises(error, match="unplugged"):
        next(stream)
    assert list(stream) == []


def test_threads_share_a_pipeline(pipeline) -> None:
    etas = [0.0, ETA, 1.0] * 4
    wanted = {eta: pipeline(PICTURES, eta=eta) for eta in set(etas)}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda eta: pipeline(PICTURES, eta=eta, batch_size=7), etas))
        streamed = list(pool.map(lambda eta: list(pipeline.stream(PICTURES, eta=eta)), etas))
    assert found == streamed == [wanted[eta] for eta in etas]


def test_paths_keep_their_names_in_a_stream(tmp_path) -> None:
    paths: list[Path | np.ndarray] = []
    for index, picture in enumerate(PICTURES[:6]):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    paths.insert(3, PICTURES[9])
    found = [result.image for result in make().stream(paths, batch_size=2)]
    assert found == [None if isinstance(p, np.ndarray) else str(p) for p in paths]


def test_both_stages_answer_every_picture_at_eta_1(pipeline) -> None:
    images = np.stack([pipeline.preprocess(picture) for picture in PICTURES])
    outcomes = pipeline.outcomes(images, 1.0)
    assert {outcome.stage for outcome in outcomes} == {"refine"}
    results = pipeline(PICTURES)
    for outcome, result in zip(outcomes, results, strict=True):
        logits = outcome.early_logits if result.stage == "early_exit" else outcome.refined_logits
        assert int(logits.argmax()) == result.class_index
    assert pipeline.stats.snapshot().pictures == len(PICTURES)


def test_a_pipeline_without_a_budget_says_so(pipeline) -> None:
    with pytest.raises(ConfigError, match="with_budget"):
        _ = pipeline.budget


def test_a_closed_pipeline_runs_nothing(pipeline) -> None:
    budgeted = pipeline.with_budget(ms=5)
    with pipeline as opened:
        assert opened is pipeline
        assert opened(PICTURES[0]) == pipeline(PICTURES[0])
    for closed in (pipeline, budgeted):
        with pytest.raises(EngineError, match="closed"):
            closed(PICTURES[0])
        with pytest.raises(EngineError, match="closed"):
            list(closed.stream(PICTURES))
    pipeline.close()


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_pipeline_is_loaded_and_not_copied(pipeline, copied) -> None:
    with pytest.raises(TypeError, match=r"(?s)cannot be pickled.*Load the bundle in each process"):
        copied(pipeline)


_WRITER = """
import shutil, sys
from itertools import cycle
from pathlib import Path
from sacvit_deploy.bundle_changes import new_bundle

target, *sources = map(Path, sys.argv[1:])
for source in cycle(sources):
    with new_bundle(target, force=True) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)
"""


def other_weights(folder: Path) -> Path:
    """The demo with weights of another scale: the graphs fit, the answers differ."""
    shutil.copytree(demo_bundle(), folder)
    weights = np.fromfile(folder / "weights.bin", np.float16)
    (weights * np.float16(0.75)).tofile(folder / "weights.bin")
    write_manifest(folder, Bundle.open(folder, check_hashes=False).manifest)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="files in use cannot be replaced there")
def test_loads_beside_a_replacing_writer_give_one_of_two_bundles(tmp_path) -> None:
    sources = [demo_bundle(), other_weights(tmp_path / "other")]

    def answer(path: Path) -> tuple[float, ...]:
        with load(path, backend="onnxruntime", threads=1) as opened:
            (outcome,) = opened.outcomes(opened.preprocess(PICTURES[0])[None], eta=1.0)
        assert outcome.refined_logits is not None
        return (*outcome.early_logits.tolist(), *outcome.refined_logits.tolist())

    wanted = {answer(source) for source in sources}
    target = shutil.copytree(sources[0], tmp_path / "bundle")
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, target, *sources])
    try:
        found = Counter(answer(target) for _ in range(LOADS))
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert len(wanted) == 2
    assert found.keys() == wanted
    with new_bundle(target, force=True) as staging:
        shutil.copytree(sources[0], staging, dirs_exist_ok=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"bundle", "other"}


@pytest.mark.parametrize("decode", ["slow", None, 1, ["exact"], np.array(["exact"] * 2)])
def test_a_way_to_decode_that_there_is_not(decode) -> None:
    with pytest.raises(ConfigError, match="decode"):
        load(demo_bundle(), decode=decode)


def test_decode_is_kept_by_a_budget_and_exact_is_the_plain_preprocessing() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    with load(demo_bundle(), decode="exact") as exact, load(demo_bundle()) as fast:
        plain = Preprocessor(exact.manifest.preprocessing, exact.manifest.input_kind)
        assert (exact.preprocess(picture) == plain(picture)).all()
        assert (fast.preprocess(picture) != plain(picture)).any()
        assert exact.with_budget(ms=5).preprocess == exact.preprocess
        assert fast.with_budget(ms=5).preprocess == fast.preprocess


@pytest.mark.parametrize("config", [SAC, DENSE], ids=["two stages", "one"])
def test_a_warm_up_runs_every_stage_and_counts_nothing(config) -> None:
    opened = fake_opened(config)
    warm = Pipeline(fake_manifest(config), opened)
    warm.warm_up([1, 8])
    for session in opened.sessions.values():
        assert [len(feeds["image"]) for feeds in session.calls] == [1, 8]  # type: ignore[attr-defined]
    assert warm.stats.snapshot().pictures == 0


def test_a_warm_up_teaches_a_budget_nothing() -> None:
    held = make().with_budget(ms=5.0)
    before = held.budget
    held.warm_up([4])
    assert held.budget == before


@pytest.mark.parametrize("sizes", [4, "4", [0], [1.5], [True]])
def test_a_warm_up_takes_whole_numbers(pipeline, sizes) -> None:
    with pytest.raises(ConfigError, match="batch_sizes"):
        pipeline.warm_up(sizes)


def test_a_closed_pipeline_does_not_warm_up(pipeline) -> None:
    pipeline.close()
    with pytest.raises(EngineError, match="closed"):
        pipeline.warm_up()
