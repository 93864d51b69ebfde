"""Arguments of any type, in Python and on the command line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacvit_deploy.bundle import demo_bundle
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.samples import sample_pictures
from tests.fakes import random_pictures
from tests.fuzz.strategies import anything, check_refusals, command

_PICTURE = random_pictures(1)[0]
_LONG_NAME = 300
_ETAS = anything() | st.none() | st.floats(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder to work in: a bundle, pictures, a table of them, and what is none of these."""
    home: Path = tmp_path_factory.mktemp("arguments")
    shutil.copytree(demo_bundle(), home / "bundle")
    for picture in sample_pictures():
        shutil.copy(picture, home)
    names = [picture.name for picture in sample_pictures()]
    (home / "data.csv").write_text("path,label\n" + "".join(f"{n},koala\n" for n in names))
    (home / "names.json").write_text("{}")
    (home / "empty").mkdir()
    (home / "nothing.png").touch()
    (home / "link").symlink_to("link")
    os.mkfifo(home / "fifo")
    before = Path.cwd()
    os.chdir(home)
    yield home
    os.chdir(before)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with load(demo_bundle(), backend="onnxruntime", threads=1) as opened:
        yield opened


def _mapping(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the keywords, the first ones more often."""
    return st.fixed_dictionaries({}, optional=values)


_LOAD = _mapping(
    eta=_ETAS,
    backend=anything() | st.just("onnxruntime"),
    precision=anything() | st.just("fp32"),
    providers=anything() | st.just(["CPU"]),
    threads=anything() | st.just(1),
    decode=anything() | st.just("exact"),
)


@given(anything() | st.just(demo_bundle()), _LOAD)
def test_load(path, keywords):
    def opened() -> None:
        with load(path, **keywords) as pipeline:
            pipeline(_PICTURE)

    check_refusals(opened)


_CALL = _mapping(
    eta=_ETAS, batch_size=anything() | st.just(1), readers=anything() | st.integers(0, 2)
)
_STREAM = _mapping(
    max_waiting=anything(),
    max_delay_ms=anything() | st.just(0.5),
    in_order=anything() | st.booleans(),
)
_SOURCES = anything() | st.just(_PICTURE)
_PICTURES = _SOURCES | st.lists(_SOURCES, max_size=3)


@given(_PICTURES, _CALL)
def test_call(pipeline, pictures, keywords):
    check_refusals(lambda: pipeline(pictures, **keywords))


@given(_PICTURES, _CALL, _STREAM)
def test_stream(pipeline, frames, keywords, more):
    check_refusals(lambda: list(pipeline.stream(frames, **keywords, **more)))


@given(anything(), _mapping(eta=_ETAS, scores=st.booleans()))
def test_outcomes(pipeline, images, keywords):
    check_refusals(lambda: pipeline.outcomes(images, **keywords))


@given(anything())
def test_eta_of_a_pipeline(pipeline, value):
    def change() -> None:
        before, pipeline.eta = pipeline.eta, value
        pipeline.eta = before

    check_refusals(change)


_BUDGET = _mapping(
    ms=anything() | st.just(5),
    fps=anything(),
    min_eta=_ETAS,
    max_eta=_ETAS,
    min_top1=anything(),
    max_accuracy_drop=anything(),
    hysteresis=anything(),
)


@given(_BUDGET)
def test_with_budget(pipeline, keywords):
    def classify() -> None:
        budgeted = pipeline.with_budget(**keywords)
        budgeted(_PICTURE)
        budgeted.budget.to_dict()

    check_refusals(classify)


# The command line. An operating system passes no NUL, and of the half surrogate pairs only those
# that stand for bytes that are no text.

_WORDS = st.sampled_from(
    [
        *("", "0", "1", "0.5", "-1", "-0.0", "nan", "inf", "1e-320", "1" + "0" * 200, "x", "auto"),
        *("fp32", "int8", "onnxruntime", "tensorrt", "--json", "-h", "--nope", "-", "--"),
        *("\udcff", "\x1b[2J", "%s{}"),
    ]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
_PATHS = st.sampled_from(
    [
        *("bundle", "koala.jpg", "data.csv", "names.json", "empty", "nothing.png", "link"),
        *("fifo", "bundle/bundle.json", "bundle/sac.onnx", "missing", "", ".", "/dev/null"),
        *("/dev/zero", "x" * _LONG_NAME, "x/" * 300, "\udcff", "curve.png"),
    ]
)


def _arguments(
    options: dict[str, st.SearchStrategy[str]], flags: tuple[str, ...]
) -> st.SearchStrategy[list[str]]:
    named = [st.tuples(st.just(name), value | _WORDS) for name, value in options.items()]
    alone = st.sampled_from(flags).map(lambda flag: (flag,))
    pairs = st.lists(st.one_of(alone, *named), max_size=4)
    return pairs.map(lambda found: [word for words in found for word in words])


_NUMBERS = st.floats().map(str)
_SHARED = {
    "--backend": st.sampled_from(["onnxruntime", "auto", "tensorrt-rtx"]),
    "--precision": st.sampled_from(["fp32", "fp16"]),
}
_RUN = _arguments({"--eta": _NUMBERS, **_SHARED}, ("--json",))
_CALIBRATE = _arguments(
    {
        "--max-accuracy-drop": _NUMBERS,
        "--reference-top1": _NUMBERS,
        "--target-macs": _NUMBERS,
        "--target-latency-ms": _NUMBERS,
        "--percentile": _NUMBERS,
        "--target-exit-fraction": _NUMBERS,
        "--class-names": _PATHS,
        "--plot": _PATHS,
        **_SHARED,
    },
    ("--json", "--temperature-scaling"),
)
_BUNDLES = st.just("bundle") | _PATHS | _WORDS


@given(_BUNDLES, st.lists(st.just("koala.jpg") | _PATHS | _WORDS, max_size=3), _RUN)
def test_run(folder, bundle, pictures, options):
    check_refusals(command("run", bundle, *pictures, *options))


@given(_BUNDLES, _arguments({}, ("--json",)))
def test_inspect(folder, bundle, options):
    check_refusals(command("inspect", bundle, *options))


@given(_BUNDLES, st.just("data.csv") | _PATHS | _WORDS, _CALIBRATE)
def test_calibrate(folder, bundle, data, options):
    check_refusals(command("calibrate", "--dry-run", bundle, data, *options))
