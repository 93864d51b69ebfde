from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.visualize.canvas import viridis


@pytest.mark.parametrize(
    ("value", "published"),
    [
        (0.0, (68, 1, 84)),
        (0.25, (59, 82, 139)),
        (0.5, (33, 145, 140)),
        (0.75, (94, 201, 98)),
        (1.0, (253, 231, 37)),
    ],
)
def test_the_colours_are_those_of_viridis(value, published):
    assert np.abs(np.subtract(viridis(value), published)).max() <= 4


def test_lightness_only_grows():
    weights = np.array([0.2126, 0.7152, 0.0722])
    light = [float(weights @ viridis(step / 100)) for step in range(101)]
    assert (np.diff(light) > 0).all()


def test_values_outside_are_clipped():
    assert viridis(-1) == viridis(0)
    assert viridis(9) == viridis(1)
