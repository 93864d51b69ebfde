"""The limit of this machine: its matrix products at the shapes of a graph, and its memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.benchmark.limit.product_graph import input_specs, product_graph
from sacvit_deploy.benchmark.limit.products import Product, random_operand
from sacvit_deploy.benchmark.timing import CallTime, Clock
from sacvit_deploy.engines.registry import OpenedSessions, open_graph
from sacvit_deploy.engines.session import Session, SessionOptions
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import Role

_COPIED_BYTES = 128 << 20
_COPIES = 5


class Floor:
    """The matrix products of one network, ready to be timed beside it.

    Nothing that computes the same products in the same backend can be faster. What the network
    takes beyond that is everything else: norms, softmaxes, activations, copies.
    """

    def __init__(
        self,
        products: Mapping[Role, tuple[Product, ...]],
        opened: OpenedSessions,
        options: SessionOptions,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Open a graph of nothing but products for each graph of a network.

        Args:
            products: Products of each graph for one picture.
            opened: The network; its backend and precision compute the products too.
            options: Those of the network.
            clock: Current time in seconds.

        Raises:
            EngineError: The backend opens no single graphs, or failed.
        """
        self._clock, self._products = clock, products
        self._feeds: dict[tuple[Role, int], dict[str, NDArray[Any]]] = {}
        self._sessions: dict[Role, Session] = {}
        with tempfile.TemporaryDirectory(prefix="sacvit-floor-") as folder:
            for role, each in products.items():
                made = product_graph(each)
                file = f"{role}.onnx"
                entry = GraphEntry(role, opened.precision, file, made.inputs, made.outputs)
                path = Path(folder) / file
                path.write_bytes(made.content)
                self._sessions[role] = open_graph(path, entry, opened.backend, options)

    def run(self, pictures: Mapping[Role, int]) -> CallTime:
        """Time the products of one batch.

        Args:
            pictures: Pictures in each graph; one with none is not run.
        """
        times: dict[Role, float] = {}
        for role, count in pictures.items():
            if count:
                feeds = self._inputs(role, count)
                start = self._clock()
                self._sessions[role].run(feeds)
                times[role] = (self._clock() - start) * 1e3
        return CallTime(sum(times.values()), times, pictures.get("refine", 0))

    def close(self) -> None:
        """Close every session."""
        for session in self._sessions.values():
            session.close()

    def _inputs(self, role: Role, count: int) -> dict[str, NDArray[Any]]:
        """Inputs of the products of a graph for some pictures; the same arrays in every call."""
        if (role, count) not in self._feeds:
            self._feeds[role, count] = _random_inputs(self._products[role], count)
        return self._feeds[role, count]


def _random_inputs(products: tuple[Product, ...], count: int) -> dict[str, NDArray[Any]]:
    """Inputs for some pictures; heads of all pictures lie side by side."""
    generator = np.random.default_rng(0)
    made: dict[tuple[Any, ...], NDArray[Any]] = {}
    feeds = {}
    for number, product in enumerate(products):
        first = count * (1 if product.has_weights else product.heads)
        for spec in input_specs(number, product):
            shape = (first, *(side for side in spec.shape if isinstance(side, int)))
            if (shape, spec.dtype) not in made:
                made[shape, spec.dtype] = random_operand(shape, spec.dtype, generator)
            feeds[spec.name] = made[shape, spec.dtype]
    return feeds


def memory_gb_per_s(clock: Clock = time.perf_counter) -> float:
    """Bandwidth of the memory for one thread that copies 128 MiB, read and written bytes counted.

    The best of five, in 10^9 bytes per second.
    """
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.zeros_like(source)
    best = float("inf")
    for _ in range(_COPIES):
        start = clock()
        np.copyto(target, source)
        best = min(best, clock() - start)
    return 2 * _COPIED_BYTES / best / 1e9
