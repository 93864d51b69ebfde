"""Memory and first answer of a bundle, in a process that does nothing else."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

from sacvit_deploy.engines.machine import process_memory_bytes

_MIB = 1 << 20


@dataclass(frozen=True)
class FreshRun:
    """What a new process took.

    Attributes:
        first_answer_ms: Time to open the bundle and to answer for one picture, in both stages.
        loaded_mb: Memory after that, in MiB; None where the system does not tell.
        peak_mb: Largest memory up to the end of a round of batches.
    """

    first_answer_ms: float
    loaded_mb: float | None
    peak_mb: float | None


def run_fresh(
    path: Path, choice: tuple[str, str | None, int | None], batch: int, share: float
) -> FreshRun:
    """Open a bundle in a new process, and run a round of random batches there.

    In the process that measures times, memory would be that of all networks and limits together.

    Args:
        path: Folder of the bundle.
        choice: Backend, precision and threads.
        batch: Pictures in a batch.
        share: Share of them that is refined.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (path, choice, batch, share))


def _run(
    path: Path, choice: tuple[str, str | None, int | None], batch: int, share: float
) -> FreshRun:
    start = time.perf_counter()
    # The imports are a part of the wait for the first answer.
    from sacvit_deploy.benchmark.networks import Choice, open_network
    from sacvit_deploy.benchmark.shares import batches_in_round, imposed_etas
    from sacvit_deploy.bundle import Bundle

    bundle = Bundle.open(path)
    network = open_network(bundle, Choice(*choice))  # type: ignore[arg-type]  # was checked before
    network.timed.run(network.random_images(1), 1.0)
    first_answer_ms = (time.perf_counter() - start) * 1e3
    loaded, _ = process_memory_bytes()
    stages = bundle.manifest.config.two_stage
    count = batches_in_round(batch, share) if stages else 1
    batches = [network.random_images(batch, seed) for seed in range(count)]
    etas = [1.0]
    if stages:
        etas = imposed_etas(network.timed.scheduler, batches, share, stages.exit_comparison)
    for images, eta in zip(batches, etas, strict=True):
        network.timed.run(images, eta)
    _, peak = process_memory_bytes()
    network.close()
    return FreshRun(first_answer_ms, loaded and loaded / _MIB, peak and peak / _MIB)
