from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.exporters.precision.int8 import LEVELS, rounded_weight

INPUTS, OUTPUTS = 200, 24  # more inputs than one block of corrections


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray]:
    """A weight, and inputs that have much in common with each other."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    common = rng.normal(size=(2000, 20)) @ rng.normal(size=(20, INPUTS))
    return weight, common + 0.3 * rng.normal(size=(2000, INPUTS))


def moment(rows) -> np.ndarray:
    found: np.ndarray = rows.T @ rows / len(rows)
    return found


def squared_error(weight, rounded, rows) -> float:
    return float(((rows @ (rounded.values * rounded.scale - weight)) ** 2).mean())


def test_the_output_changes_far_less_than_with_rounding_to_nearest(layer):
    weight, rows = layer
    found = rounded_weight(weight, moment(rows[:1000]))
    nearest = rounded_weight(weight, np.eye(INPUTS))
    # On rows it has not seen.
    assert squared_error(weight, found, rows[1000:]) < 0.3 * squared_error(
        weight, nearest, rows[1000:]
    )


def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest(layer):
    weight, _ = layer
    found = rounded_weight(weight, np.diag(np.linspace(1, 2, INPUTS)))
    np.testing.assert_array_equal(found.values, np.rint(weight / found.scale))
    np.testing.assert_allclose(found.scale, np.abs(weight).max(axis=0) / LEVELS, rtol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_layer_that_saw_hardly_anything_stays_near_its_weight(layer, rank):
    weight, rows = layer
    found = rounded_weight(weight, rank * moment(rows[:1]))
    assert np.abs(found.values * found.scale - weight).max() <= 1.5 * found.scale.max()


def test_an_output_without_weights_stays_zero(layer):
    weight, rows = layer
    weight[:, 3] = 0
    found = rounded_weight(weight, moment(rows))
    assert not found.values[:, 3].any()
    assert np.isfinite(found.scale).all()
