"""One batch size: all networks and their limits in turns, on the same pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sacvit_deploy.benchmark.files import FileTime, run_files, summarize_files
from sacvit_deploy.benchmark.memory import FreshRun, run_fresh
from sacvit_deploy.benchmark.networks import Network
from sacvit_deploy.benchmark.rows import Measured, Row
from sacvit_deploy.benchmark.shares import batches_in_round, imposed_etas
from sacvit_deploy.benchmark.timing import CallTime, Clock, Effort, in_turn, summarize
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import Sample
from sacvit_deploy.spec import Role

Pair = tuple[Network, Network | None]
"""A network, and the dense one to compare it with."""


@dataclass(frozen=True)
class Plan:
    """How each batch size is measured.

    Attributes:
        share: Share of the pictures that is refined, in [0, 1].
        effort: How long.
        clock: Current time in seconds.
    """

    share: float
    effort: Effort
    clock: Clock = time.perf_counter


class Round:
    """The batches of a round at one batch size, for every network."""

    def __init__(self, plan: Plan, batch: int, samples: Sequence[Sample]) -> None:
        self._plan, self._batch = plan, batch
        self._samples: list[list[Sample]] = []
        self._count = batches_in_round(batch, plan.share)
        if samples:
            taken = [samples[index % len(samples)] for index in range(batch * self._count)]
            self._samples = [taken[start : start + batch] for start in range(0, len(taken), batch)]
        self._images: dict[Path, list[Any]] = {}

    def rows(self, pairs: Sequence[Pair]) -> list[Row]:
        """Measure all networks in turns.

        Args:
            pairs: Each network, and the dense one to compare it with.
        """
        work: dict[str, Callable[[int], CallTime]] = {}
        files: dict[str, Callable[[int], FileTime]] = {}
        for number, pair in enumerate(pairs):
            for name, network in zip(("own", "dense"), pair, strict=True):
                if network is not None:
                    key = f"{number} {name}"
                    etas = self._etas(network)
                    work |= self._work(key, network, etas)
                    if self._samples and name == "own":
                        files[key] = partial(self._run_files, network, etas)
        effort, clock = self._plan.effort, self._plan.clock
        times = in_turn(work, self._count, effort, clock)
        file_times = in_turn(files, self._count, effort, clock) if files else {}
        return [
            self._row(number, pair, times, file_times.get(f"{number} own"))
            for number, pair in enumerate(pairs)
        ]

    def _batches(self, network: Network) -> list[Any]:
        """Images of each batch, as the network takes them; both precisions get the same."""
        if network.bundle.path not in self._images:
            if self._samples:
                prepare = _preprocessor(network)
                made = [_stacked(prepare, samples) for samples in self._samples]
            else:
                seeds = range(self._count)
                made = [network.random_images(self._batch, seed) for seed in seeds]
            self._images[network.bundle.path] = made
        return self._images[network.bundle.path]

    def _etas(self, network: Network) -> list[float]:
        stages = network.bundle.manifest.config.two_stage
        if stages is None:
            return [1.0] * self._count
        scheduler, share = network.timed.scheduler, self._plan.share
        return imposed_etas(scheduler, self._batches(network), share, stages.exit_comparison)

    def _work(
        self, key: str, network: Network, etas: Sequence[float]
    ) -> dict[str, Callable[[int], CallTime]]:
        """The network, and its floor with as many pictures in each graph."""
        batches, timed = self._batches(network), network.timed
        work: dict[str, Callable[[int], CallTime]] = {
            key: lambda index: timed.run(batches[index], etas[index])
        }
        if network.floor is not None:
            run = network.floor.run
            counts = [self._pictures(network, index, etas) for index in range(self._count)]
            work[f"{key} floor"] = lambda index: run(counts[index])
        return work

    def _pictures(self, network: Network, index: int, etas: Sequence[float]) -> dict[Role, int]:
        """Pictures in each graph for one batch."""
        if not network.has_two_stages:
            return {graph.role: self._batch for graph in network.bundle.manifest.graphs}
        call = network.timed.run(self._batches(network)[index], etas[index])
        return {"early_exit": self._batch, "refine": call.refined}

    def _run_files(self, network: Network, etas: Sequence[float], index: int) -> FileTime:
        samples, clock = self._samples[index], self._plan.clock
        return run_files(network.timed, _preprocessor(network), samples, etas[index], clock)

    def _row(
        self,
        number: int,
        pair: Pair,
        times: Mapping[str, list[list[CallTime]]],
        file_times: list[list[FileTime]] | None,
    ) -> Row:
        own, dense = pair
        return Row(
            backend=own.opened.backend,
            precision=own.opened.precision,
            threads=own.choice.threads,
            provider=own.opened.provider,
            batch=self._batch,
            has_two_stages=own.has_two_stages,
            own=self._measured(f"{number} own", own, times),
            dense=None if dense is None else self._measured(f"{number} dense", dense, times),
            kernels=own.kernel_ms,
            product_share=own.product_share,
            files=None if file_times is None else summarize_files(file_times, self._batch),
        )

    def _measured(
        self, key: str, network: Network, times: Mapping[str, list[list[CallTime]]]
    ) -> Measured:
        floor = times.get(f"{key} floor")
        return Measured(
            summarize(times[key], self._batch),
            None if floor is None else summarize(floor, self._batch),
            self._fresh(network),
        )

    def _fresh(self, network: Network) -> FreshRun:
        choice = network.choice
        return run_fresh(
            network.bundle.path,
            (choice.backend, choice.precision, choice.threads),
            self._batch,
            self._plan.share,
        )


def _preprocessor(network: Network) -> Preprocessor:
    """Large pictures are reduced while they are read, as in a pipeline."""
    manifest = network.bundle.manifest
    return Preprocessor(manifest.preprocessing, manifest.input_kind, "fast")


def _stacked(prepare: Preprocessor, samples: Sequence[Sample]) -> Any:
    return np.stack([prepare(sample) for sample in samples])
