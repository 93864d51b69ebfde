"""Networks of a bundle, opened in the backends and precisions that are measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.benchmark.limit.floor import Floor
from sacvit_deploy.benchmark.limit.products import GraphProfile, is_product, profile_graph
from sacvit_deploy.benchmark.timing import Clock, TimedNetwork
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.registry import OpenedSessions, open_sessions
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.errors import EngineError
from sacvit_deploy.runtime.scheduler import FixedExit
from sacvit_deploy.spec import IMAGE, InputKind, Precision, Role

_STEPS = (1, 4, 16)


@dataclass(frozen=True)
class Choice:
    """One way to compute a bundle.

    Attributes:
        backend: Name from the registry, or `auto`.
        precision: Precision of the graphs; None takes the backend's usual one.
        threads: CPU threads of one operator; None leaves it to the backend.
    """

    backend: str = "auto"
    precision: Precision | None = None
    threads: int | None = None

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{self.backend}{f' {self.precision}' if self.precision else ''}{threads}"

    @property
    def options(self) -> SessionOptions:
        """Options of its sessions."""
        return SessionOptions(threads=self.threads)


@dataclass(frozen=True)
class Network:
    """A bundle, opened and ready to be timed.

    Attributes:
        bundle: Its bundle.
        choice: How it is computed; backend and precision are those that were taken.
        opened: Its sessions.
        timed: Runs its batches.
        floor: Its matrix products; None if the backend computes no single graphs.
        profiles: Kernels of each graph in ONNX Runtime.
    """

    bundle: Bundle
    choice: Choice
    opened: OpenedSessions
    timed: TimedNetwork
    floor: Floor | None = None
    profiles: Mapping[Role, GraphProfile] = field(default_factory=dict)

    @property
    def has_two_stages(self) -> bool:
        """Whether there is a second stage."""
        return self.bundle.manifest.config.two_stage is not None

    def random_images(self, count: int, seed: int = 0) -> NDArray[Any]:
        """Make random images (count, 3, H, W) as the network takes them."""
        manifest = self.bundle.manifest
        return random_images(manifest.config.image_size, manifest.input_kind, count, seed)

    @property
    def kernel_ms(self) -> dict[Role, dict[str, float]]:
        """Time of each kind of kernel for one picture, if ONNX Runtime computes."""
        if self.opened.backend != "onnxruntime":
            return {}
        return {role: dict(profile.kernel_ms) for role, profile in self.profiles.items()}

    @property
    def product_share(self) -> dict[Role, float]:
        """Share of the kernels' time that is in matrix products, if ONNX Runtime computes."""
        return {
            role: sum(ms for name, ms in kernels.items() if is_product(name))
            / max(sum(kernels.values()), 1e-9)
            for role, kernels in self.kernel_ms.items()
        }

    def close(self) -> None:
        """Close all sessions."""
        self.opened.close()
        if self.floor is not None:
            self.floor.close()


def open_network(bundle: Bundle, choice: Choice, clock: Clock = time.perf_counter) -> Network:
    """Open a bundle, without its floor.

    Raises:
        BundleError: The bundle has no graphs in that precision.
        EngineError: The backend cannot run it.
        MissingDependencyError: The backend is not installed.
    """
    opened = open_sessions(
        bundle, backend=choice.backend, precision=choice.precision, options=choice.options
    )
    manifest = bundle.manifest
    _, temperature = manifest.usual_exit(opened.precision, opened.backend)
    timed = TimedNetwork(manifest.config, opened.sessions, manifest.selection, temperature, clock)
    taken = Choice(opened.backend, opened.precision, choice.threads)
    return Network(bundle, taken, opened, timed)


def with_floor(network: Network, clock: Clock = time.perf_counter) -> Network:
    """Add the matrix products of a network, if its backend computes single graphs."""
    profiles = dict(_profiles(network))
    products = {role: profile.products for role, profile in profiles.items()}
    choice = network.choice
    try:
        floor = Floor(products, network.opened, choice.options, clock)
    except EngineError:
        return network
    return Network(network.bundle, choice, network.opened, network.timed, floor, profiles)


def _profiles(network: Network) -> Iterator[tuple[Role, GraphProfile]]:
    """Profile each graph with the feeds that the scheduler gives it for one picture."""
    bundle, choice = network.bundle, network.choice
    scheduler = network.timed.scheduler
    images = network.random_images(1)
    feeds: dict[str, Any] = {IMAGE: images}
    first = scheduler.first_pass(images, FixedExit(1.0))
    for graph in bundle.manifest.graphs:
        if graph.precision == choice.precision:
            if graph.role == "refine":
                # Whether or not this picture goes on.
                feeds = scheduler.refine_feeds(first.hand_off, np.arange(len(images)))
            yield graph.role, profile_graph(bundle, graph, feeds, choice.threads)


def random_images(
    size: tuple[int, int], kind: InputKind, count: int, seed: int = 0
) -> NDArray[Any]:
    """Make input tensors (count, 3, H, W) with structure at several scales.

    Args:
        size: (height, width) in pixels.
        kind: Type of the images.
        count: Number of images.
        seed: Seed of the pixels.

    Returns:
        float32 about 0, or uint8 about 128.
    """
    generator = np.random.default_rng(seed)
    height, width = size
    total = np.zeros((count, 3, height, width), np.float32)
    for step in _STEPS:
        coarse = generator.normal(size=(count, 3, -(-height // step), -(-width // step)))
        total += coarse.repeat(step, 2).repeat(step, 3)[:, :, :height, :width].astype(np.float32)
    return total if kind == "float" else np.clip(128 + 32 * total, 0, 255).astype(np.uint8)
