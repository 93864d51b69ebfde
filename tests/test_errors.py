from __future__ import annotations

import inspect
import re

import pytest

from sacvit_deploy import errors

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_what_was_found_and_what_to_do(kind):
    error = kind("It is broken.", "Repair it.")
    assert isinstance(error, errors.SacvitDeployError)
    assert (error.problem, error.fix, str(error)) == (
        "It is broken.",
        "Repair it.",
        "It is broken.\nRepair it.",
    )


def test_the_tree_is_drawn_as_it_is():
    drawn = re.findall(r"^ {4}([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    parents = ["SacvitDeployError"]
    for indent, name in drawn:
        depth = len(indent) // 4 + 1
        parents[depth:] = [name]
        assert getattr(errors, name).__base__.__name__ == parents[depth - 1]
    assert {name for _, name in drawn} | {"SacvitDeployError"} == {k.__name__ for k in KINDS}


def test_errors_from_elsewhere_are_raised_as_ours():
    def fail(error: Exception) -> None:
        with errors.raised_as(errors.DataError, "It cannot be read", "Check it."):
            raise error

    reason = FileNotFoundError("no such file")
    with pytest.raises(errors.DataError) as raised:
        fail(reason)
    assert str(raised.value) == "It cannot be read: no such file.\nCheck it."
    assert raised.value.__cause__ is reason
    for other in (KeyError("key"), errors.ConfigError("a", "b")):
        with pytest.raises(type(other)):
            fail(other)


def test_an_interrupt_is_found_in_a_chain():
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__cause__ = second, first  # a loop, as some libraries make
    assert errors.interrupt_in(first) is None
    first.__cause__ = KeyboardInterrupt()
    assert errors.interrupt_in(second) is first.__cause__


def test_a_warning_names_the_caller():
    with pytest.warns(UserWarning, match="Look") as caught:
        errors.warn_caller("Look", UserWarning)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_stays_short(kind):
    error = kind("a" * 1000 + "x" * 5_000_000 + "b" * 600, "c" * 5_000_000)
    assert len(str(error)) < 2000
    assert error.problem.startswith("aaa")
    assert error.problem.endswith("bbb")
    whole = kind("x" * 1400, "y" * 500)
    assert (len(whole.problem), len(whole.fix)) == (1400, 500)
    assert " ... " not in str(whole)


def test_a_path_that_the_problem_names_is_not_told_again(tmp_path):
    def opened(path: object, problem: str) -> str:
        with pytest.raises(errors.DataError) as refused, raised(problem):
            open(str(path)).close()
        return refused.value.problem

    def raised(problem: str):
        return errors.raised_as(errors.DataError, problem, "Check it.")

    missing = tmp_path / "no folder" / "x.csv"
    said = opened(missing, f"{missing} cannot be read")
    assert said == f"{missing} cannot be read: No such file or directory."
    assert str(missing) in opened(missing, "It cannot be read")
    assert opened(missing, f"The picture '{missing}' cannot be read").count(str(missing)) == 1
    inside = missing.parent / "x"
    assert f"'{inside}'" in opened(inside, f"{missing} cannot be read")
