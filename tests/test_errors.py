from __future__ import annotations

import inspect
import re

import pytest

from sacvit_deploy import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


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
