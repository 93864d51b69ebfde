from __future__ import annotations

import pytest

from sacvit_deploy.commands.options import parse_overrides
from sacvit_deploy.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("depth=3", 3),
        ("alpha=.4", 0.4),
        ("alpha=0.4", 0.4),
        ("layer_norm_eps=1e-5", 1e-5),
        ("image_size=224x320", (224, 320)),
        ("image_size=[224, 320]", (224, 320)),
        ("attention=joint", "joint"),
        ("exit_comparison=>=", ">="),
        ("exit_comparison==", "="),
        ("name=axb", "axb"),
    ],
)
def test_values_are_read_as_what_they_look_like(text, value):
    name = text.partition("=")[0]
    assert parse_overrides([text]) == {name: value}


def test_the_last_assignment_counts_and_options_that_were_not_given_do_not():
    found = parse_overrides(["depth=3", "depth=4"], alpha=None, eta=0.5)
    assert found == {"depth": 4, "eta": 0.5}


@pytest.mark.parametrize("text", ["depth", "", "=3"])
def test_an_assignment_without_a_value_is_refused(text):
    with pytest.raises(ConfigError, match="has no value"):
        parse_overrides([text])
