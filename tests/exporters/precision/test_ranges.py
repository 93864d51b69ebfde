from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.exporters.precision.ranges import Channels


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(2.0, 3.0, (50, 4)).astype(np.float32)


def close(found: Channels, wanted: Channels) -> None:
    assert found.rows == wanted.rows
    for name in ("lowest", "highest", "mean", "moment", "variance"):
        expected = getattr(wanted, name)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, atol=1e-4)


def test_they_are_those_of_numpy(rows):
    found = Channels.of(rows.reshape(5, 10, 4))
    np.testing.assert_allclose(found.variance, rows.var(axis=0), rtol=1e-4)
    moment = np.cov(rows.T, bias=True) + np.outer(rows.mean(axis=0), rows.mean(axis=0))
    np.testing.assert_allclose(found.moment, moment, rtol=1e-4)


def test_batches_of_any_size_make_up_the_whole(rows):
    found = Channels.of(rows[:7]).joined(Channels.of(rows[7:40])).joined(Channels.of(rows[40:]))
    close(found, Channels.of(rows))


def test_they_follow_a_change_of_the_values(rows):
    centre, factor = np.array([1.0, -2.0, 0.0, 3.0]), np.array([0.5, 2.0, 1.0, 4.0])
    close(Channels.of(rows).mapped(centre, factor), Channels.of((rows - centre) / factor))
