"""Measure a bundle: every choice of backend, precision and threads, in turns with a dense one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sacvit_deploy.benchmark.limit.floor import memory_gb_per_s
from sacvit_deploy.benchmark.networks import (
    Choice,
    Network,
    open_network,
    with_floor,
)
from sacvit_deploy.benchmark.rounds import Pair, Plan, Round
from sacvit_deploy.benchmark.rows import Row
from sacvit_deploy.benchmark.timing import Clock, Effort
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.decode import check_field, encode
from sacvit_deploy.engines.machine import device_name
from sacvit_deploy.engines.registry import backends
from sacvit_deploy.errors import BundleError, ConfigError, EngineError, MissingDependencyError
from sacvit_deploy.libraries import own_versions, versions
from sacvit_deploy.progress import OnProgress, silent
from sacvit_deploy.samples import read_pictures
from sacvit_deploy.spec import Precision, as_number, check_count

_LARGEST_BATCH = 4096
_UNAVAILABLE = (BundleError, EngineError, MissingDependencyError)


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure.

    Attributes:
        bundle: Folder of the bundle.
        against: Folder of a dense bundle, measured in turns with it.
        sac_fraction: Share of the pictures that is refined, in [0, 1].
        batches: Batch sizes.
        backends: Names from the registry, or `auto`.
        precisions: Precisions of the graphs; None takes the backend's usual one.
        threads: CPU threads; None leaves them to the backend.
        compare: Measure every backend and precision that this machine can run, instead.
        images: Folder of pictures, to measure from file to answer; random images otherwise.
        seconds: Time to measure each batch size, 0 or more.
        cpu_time: Count the process's time on a CPU, and not the time that passed: other programs
            then matter less. Right for one thread only.

    Raises:
        ConfigError: A value is out of range, or does not fit another.
    """

    bundle: Path
    against: Path | None = None
    sac_fraction: float = 0.235
    batches: tuple[int, ...] = (1, 8, 32)
    backends: tuple[str, ...] = ("auto",)
    precisions: tuple[Precision | None, ...] = (None,)
    threads: tuple[int | None, ...] = (None,)
    compare: bool = False
    images: Path | None = None
    seconds: float = 5.0
    cpu_time: bool = False

    def __post_init__(self) -> None:
        share, seconds = as_number(self.sac_fraction), as_number(self.seconds)
        check_field(0 <= share <= 1, "sac_fraction", self.sac_fraction, "a number in [0, 1]")
        check_field(0 <= seconds <= 1e6, "seconds", self.seconds, "0 to 1,000,000")
        for batch in self.batches:
            check_count("batch", batch, _LARGEST_BATCH)
        if self.cpu_time and set(self.threads) != {1}:
            raise ConfigError(
                "CPU time was asked for with more than one thread.",
                "It adds up the time of all threads. Use it with --threads 1.",
            )

    @property
    def clock(self) -> Clock:
        """Clock that everything is timed with."""
        return time.process_time if self.cpu_time else time.perf_counter

    def choices(self, bundle: Bundle) -> list[Choice]:
        """Ways to compute the bundle."""
        names, precisions = self.backends, self.precisions
        if self.compare:
            manifest, names = bundle.manifest, tuple(backends())
            found = [g.precision for g in manifest.graphs] + [e.precision for e in manifest.engines]
            precisions = tuple(dict.fromkeys(found))
        return [Choice(*each) for each in product(names, precisions, self.threads)]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, and the machine it was made on.

    Attributes:
        bundle: Bundle that was measured.
        against: Dense bundle; None without one.
        device: Name of the GPU, board or CPU.
        clock: `wall` or `cpu`.
        memory_gb_per_s: Bandwidth of the memory for one thread, in 10^9 bytes per second.
        rows: One for each network and batch size; the fastest first within a batch size.
        skipped: Why something was not measured, by name.
    """

    bundle: Bundle
    against: Bundle | None
    device: str
    clock: str
    memory_gb_per_s: float
    rows: tuple[Row, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `benchmark`."""
        names = list(dict.fromkeys(row.backend for row in self.rows))
        document = {
            "device": self.device,
            "runtime": ", ".join(names),
            "versions": own_versions() | versions(*names, "numpy"),
            "bundle": self.bundle.path.resolve().name,
            "against": self.against and self.against.path.resolve().name,
            "weights": str(self.bundle.manifest.weights),
            "clock": self.clock,
            "memory_gb_per_s": round(self.memory_gb_per_s, 2),
            "rows": [row.to_dict() for row in self.rows],
            "skipped": dict(self.skipped),
        }
        return dict(encode(document))


def run_benchmark(request: BenchmarkRequest, on_progress: OnProgress = silent) -> Benchmark:
    """Measure a bundle; memory in new processes, which import the script that calls this.

    Args:
        request: What to measure.
        on_progress: Called with the share of the work done, in [0, 1], and a short text.

    Raises:
        BundleError: A bundle cannot be read, or has no graphs of that precision.
        ConfigError: The bundle to compare with is not dense.
        DataError: The pictures cannot be found.
        EngineError: The backend is not available or failed, or cannot take such a batch.
        MissingDependencyError: The backend is not installed.
    """
    bundle = Bundle.open(request.bundle)
    dense = Bundle.open(request.against) if request.against else None
    if dense is not None and dense.manifest.config.two_stage is not None:
        raise ConfigError(
            f"{request.against} has two stages; a dense bundle was asked for.",
            "Export one: sacvit-deploy export --random-weights --preset deit_small_patch16_224.",
        )
    samples = read_pictures(request.images) if request.images else ()
    plan = Plan(request.sac_fraction, Effort(request.seconds), request.clock)
    skipped: dict[str, str] = {}
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        on_progress(0.0, "opening the networks")
        pairs = list(_opened(request, bundle, dense, skipped, stack))
        for number, batch in enumerate(request.batches):
            on_progress(number / len(request.batches), f"batch {batch}")
            fitting = [pair for pair in pairs if _takes(pair, batch, request, skipped)]
            found = Round(plan, batch, samples).rows(fitting)
            rows += sorted(found, key=lambda row: row.own.summary.p50)
        provider = pairs[0][0].opened.provider if pairs else ""
    on_progress(1.0, "done")
    return Benchmark(
        bundle,
        dense,
        device_name(provider),
        "cpu" if request.cpu_time else "wall",
        memory_gb_per_s(),
        tuple(rows),
        skipped,
    )


def _opened(
    request: BenchmarkRequest,
    bundle: Bundle,
    dense: Bundle | None,
    skipped: dict[str, str],
    stack: contextlib.ExitStack,
) -> Iterator[Pair]:
    """Open each choice, with the dense network in the same backend and precision."""
    for choice in request.choices(bundle):
        opened: list[Network] = []
        try:
            for each in (bundle, dense):
                if each is not None:
                    taken = opened[0].choice if opened else choice
                    opened.append(open_network(each, taken, request.clock))
                    stack.callback(opened[-1].close)
        except _UNAVAILABLE as error:
            if not request.compare:
                raise
            skipped[str(choice)] = error.problem
            continue
        opened = [with_floor(network, request.clock) for network in opened]
        yield opened[0], opened[1] if len(opened) > 1 else None


def _takes(pair: Pair, batch: int, request: BenchmarkRequest, skipped: dict[str, str]) -> bool:
    """Whether the engines of both networks were built for such a batch."""
    limits = [n.opened.largest_batch for n in pair if n is not None and n.opened.largest_batch]
    if not limits or batch <= min(limits):
        return True
    name = f"{pair[0].choice} at batch {batch}"
    problem = f"Its engines take batches up to {min(limits)}."
    if not request.compare:
        raise EngineError(f"{name}: {problem}", "Ask for smaller ones with --batch.")
    skipped[name] = problem
    return False
