from __future__ import annotations

import time

import pytest

from sacvit_deploy.engines.session import check_feeds
from sacvit_deploy.engines.timing import picture_ms
from tests.fakes import CF, LF, SAC, fake_manifest


class Sleeper:
    """A session that only takes time, and that checks what it is fed."""

    provider = "sleep"

    def __init__(self, graph, ms, order) -> None:
        self.graph, self.ms, self.order = graph, ms, order

    def run(self, feeds):
        assert set(check_feeds(feeds, self.graph.inputs).values()) == {1}
        self.order.append(self.ms)
        time.sleep(self.ms / 1e3)
        return {}

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("config", [SAC, CF, LF], ids=lambda config: config.family)
@pytest.mark.parametrize("selection", ["host", "graph"])
def test_candidates_take_turns_with_one_picture(config, selection) -> None:
    graphs = {graph.role: graph for graph in fake_manifest(config, selection).graphs}
    order: list[float] = []
    candidates = [
        {role: Sleeper(graph, ms, order) for role, graph in graphs.items()} for ms in (3.0, 0.5)
    ]
    slow, fast = picture_ms(candidates, graphs)
    assert slow > 6
    assert fast >= 1
    assert order[:8] == [3.0, 3.0, 0.5, 0.5] * 2
