"""The limit of this machine: its matrix products at the shapes of a graph, and its memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.benchmark.limit.product_graph import dtype_of, input_names, product_graph
from sacvit_deploy.benchmark.limit.products import Product, random_operand
from sacvit_deploy.benchmark.timing import CallTime, Clock
from sacvit_deploy.engines.registry import OpenedSessions, open_graph
from sacvit_deploy.engines.session import Session, SessionOptions
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
                path = Path(folder) / f"{role}.onnx"
                path.write_bytes(product_graph(each))
                self._sessions[role] = open_graph(path, opened.backend, opened.precision, options)

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
    generator = np.random.default_rng(0)
    made: dict[tuple[Any, ...], NDArray[Any]] = {}
    feeds = {}
    for number, product in enumerate(products):
        for name, shape in zip(
            input_names(number, product), _input_shapes(product, count), strict=True
        ):
            key = (*shape, product.dtype)
            if key not in made:
                made[key] = random_operand(shape, dtype_of(product), generator)
            feeds[name] = made[key]
    return feeds


def _input_shapes(product: Product, count: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the inputs of a product for some pictures: rows are stacked, heads are not."""
    rows, inner, heads = product.rows, product.inner, product.heads * count
    if product.has_weights:
        return ((rows * count, inner),)
    return (heads, rows, inner), (heads, inner, product.columns)


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
