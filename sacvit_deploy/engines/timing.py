"""How long the sessions of several backends take for one picture, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.session import Session
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import Role

_WARM_UPS, _ROUNDS = 2, 7


def picture_ms(
    candidates: Sequence[Mapping[Role, Session]], graphs: Mapping[Role, GraphEntry]
) -> list[float]:
    """Median milliseconds of one picture in every graph, for each candidate.

    They take turns, so that a machine that slows down slows down all of them.

    Args:
        candidates: Sessions of the same graphs.
        graphs: One graph of each role.

    Raises:
        EngineError: A session failed.
    """
    feeds = {role: _feeds(graph) for role, graph in graphs.items()}
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(_WARM_UPS + _ROUNDS):
        for sessions, measured in zip(candidates, times, strict=True):
            start = time.perf_counter()
            for role, session in sessions.items():
                session.run(feeds[role])
            measured.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(measured[_WARM_UPS:]) for measured in times]


def _feeds(graph: GraphEntry) -> dict[str, NDArray[Any]]:
    """Random inputs of one row; every index is 0."""
    generator = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in graph.inputs:
        shape = [1 if isinstance(side, str) else side for side in spec.shape]
        scale = {"float32": 1, "float16": 1, "uint8": 64}.get(spec.dtype, 0)
        feeds[spec.name] = np.abs(scale * generator.normal(size=shape)).astype(spec.dtype)
    return feeds
