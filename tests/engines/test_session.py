from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.engines.session import SessionOptions, check_feeds, check_outputs, mismatches
from sacvit_deploy.errors import EngineError
from sacvit_deploy.spec import TensorSpec

INPUTS = (
    TensorSpec("image", "float32", ("batch", 3, 4)),
    TensorSpec("index", "int64", ("batch", "count")),
)


def feeds(**changed) -> dict:
    arrays = {"image": np.zeros((2, 3, 4), np.float32), "index": np.zeros((2, 5), np.int64)}
    return {name: array for name, array in {**arrays, **changed}.items() if array is not None}


def test_what_fits_gives_the_sizes_of_the_dynamic_axes() -> None:
    assert check_feeds(feeds(), INPUTS) == {"batch": 2, "count": 5}
    assert check_feeds(feeds(index=np.zeros((2, 1), np.int64)), INPUTS) == {"batch": 2, "count": 1}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"image": None}, "takes image, index; it was given index"),
        ({"extra": np.zeros(1)}, "given extra, image, index"),
        ({"image": np.zeros((2, 3, 4))}, "'image' is float64 .* takes float32"),
        ({"image": np.zeros((2, 3, 5), np.float32)}, r"shape \(2, 3, 5\); .* \(batch, 3, 4\)"),
        ({"image": np.zeros((3, 4), np.float32)}, r"shape \(3, 4\)"),
        ({"index": np.zeros((3, 5), np.int64)}, r"'index' is int64 of shape \(3, 5\)"),
        ({"index": np.zeros((2, 0), np.int64)}, r"shape \(2, 0\)"),
        ({"index": np.zeros((2, 5), np.int32)}, "int32"),
    ],
)
def test_what_does_not_fit_is_named(changed, says) -> None:
    with pytest.raises(EngineError, match=says):
        check_feeds(feeds(**changed), INPUTS)


def test_tensors_of_the_contract_may_have_more_dynamic_axes() -> None:
    loose = TensorSpec("image", "float32", ("n", 3, "image.2"))
    assert mismatches((INPUTS[1], loose), INPUTS) == []


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ((INPUTS[0],), "'index' is missing"),
        ((*INPUTS, TensorSpec("mask", "uint8", ())), "'mask' is not expected"),
        (
            (INPUTS[0], TensorSpec("index", "float32", ("batch", "count"))),
            "'index' is float32 of shape (batch, count), not int64 of shape (batch, count)",
        ),
        (
            (INPUTS[1], TensorSpec("image", "float32", ("batch", 4, 4))),
            "'image' is float32 of shape (batch, 4, 4), not float32 of shape (batch, 3, 4)",
        ),
        (
            (INPUTS[1], TensorSpec("image", "float32", (1, 3, 4))),
            "'image' is float32 of shape (1, 3, 4), not float32 of shape (batch, 3, 4)",
        ),
        (
            (INPUTS[1], TensorSpec("image", "float32", ())),
            "'image' is float32 of shape (), not float32 of shape (batch, 3, 4)",
        ),
    ],
)
def test_every_difference_from_the_contract_is_a_line(found, line) -> None:
    assert mismatches(found, INPUTS) == [line]


def test_names_and_shapes_of_any_length_are_shortened() -> None:
    found = (
        TensorSpec("image", "float32", ("x" * 10_000,) * 1_000),
        *(TensorSpec(f"{n}" * 10_000, "uint8", ()) for n in range(100)),
    )
    assert len("; ".join(mismatches(found, INPUTS))) < 600


def test_results_are_held_to_the_sizes_of_the_feeds() -> None:
    sizes = check_feeds(feeds(), INPUTS)
    check_outputs(feeds(), INPUTS, sizes)
    wrong: list[tuple[dict[str, np.ndarray], str]] = [
        ({"image": np.zeros((1, 3, 4), np.float32)}, r"'image' .* \(1, 3, 4\); .* \(2, 3, 4\)"),
        ({"image": np.zeros((2, 12), np.float32)}, r"'image' as float32 of shape \(2, 12\)"),
        ({"index": np.zeros((2, 5), np.int32)}, "'index' as int32 .* says int64"),
    ]
    for changed, says in wrong:
        with pytest.raises(EngineError, match=says):
            check_outputs(feeds(**changed), INPUTS, sizes)


@pytest.mark.parametrize(
    "threads", [0, -1, 1.5, "2", True, 1025, 10**30, pytest.param(10**5000, id="huge")]
)
def test_threads_are_counted_from_one(threads) -> None:
    with pytest.raises(EngineError, match="threads were asked for"):
        SessionOptions(threads=threads)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True, 65, None])
def test_workers_are_counted_from_one(workers) -> None:
    with pytest.raises(EngineError, match="workers were asked for"):
        SessionOptions(workers=workers)


def test_workers_share_the_cores(monkeypatch) -> None:
    monkeypatch.setattr("sacvit_deploy.engines.session.usable_cores", lambda: 6)
    assert SessionOptions().run_threads is None
    assert [SessionOptions(workers=n).run_threads for n in (2, 4, 9)] == [3, 1, 1]
    assert SessionOptions(threads=5, workers=2).run_threads == 5


@pytest.mark.parametrize("providers", ["CPU", 5, (5,), ["CPU"]])
def test_providers_are_names(providers) -> None:
    with pytest.raises(EngineError, match="execution providers are"):
        SessionOptions(providers)
