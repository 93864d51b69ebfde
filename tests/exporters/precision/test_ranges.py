from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.comparison.graphs import tensor_values
from sacvit_deploy.exporters.precision.ranges import Channels
from tests.exporters.precision.conftest import ranges_of


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


def test_min_max_is_the_largest_value_of_all_batches(sac_host, batches, tmp_path):
    graph, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    names = [node.input[0] for node in graph.linear_layers.values()]
    feeds = {"image": np.concatenate(batches)}
    found = tensor_values(graph.model, names, feeds, tmp_path / "x.onnx")
    for name in names:
        values = found[name]
        low, high = (float(np.squeeze(v)) for v in ranges[name].range_value)
        assert high == -low == pytest.approx(np.abs(values).max(), rel=1e-4)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_the_other_methods_cut_off_outliers(method, sac_host, batches, tmp_path):
    graph, ranges = ranges_of(sac_host, method, tmp_path, batches)
    # Behind GELU, where a few values are far larger than the others.
    name = graph.linear_layers["blocks.0.mlp.fc2"].input[0]
    feeds = {"image": np.concatenate(batches)}
    low, high = (float(v) for v in ranges[name].range_value[:2])
    values = tensor_values(graph.model, [name], feeds, tmp_path / "x.onnx")[name]
    assert 0 < max(-low, high) < 0.99 * np.abs(values).max()


def test_the_calibrators_keep_quiet(sac_host, batches, tmp_path, capsys):
    ranges_of(sac_host, "percentile", tmp_path, batches)
    assert capsys.readouterr().out == ""
