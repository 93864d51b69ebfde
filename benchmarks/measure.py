"""Latency, decisions and memory of one contender in a GPU check."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders import Skipped, ThroughHost
from benchmarks.power import INTERVAL_S
from sacvit_deploy.benchmark.networks import random_images
from sacvit_deploy.benchmark.shares import batches_in_round, imposed_etas
from sacvit_deploy.benchmark.timing import CallTime, Effort, TimedNetwork, in_turn, summarize
from sacvit_deploy.errors import EngineError
from sacvit_deploy.libraries import version
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.contenders import Contender, Settings
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.spec import Role

COMPARED = 32
_ROOT = Path(__file__).resolve().parents[1]
_SESSION_TESTS = "tests/engines/test_sessions_on_cuda.py"
_SECONDS = 300


def through_host(contender: Contender) -> dict[Role, Session]:
    """Wrap both stages so that every tensor goes through the host."""
    return {role: ThroughHost(session) for role, session in contender.sessions.items()}


def measured_rows(settings: Settings, contender: Contender) -> Iterator[dict[str, Any]]:
    """Measure one row for each batch and each way of the hand-off."""
    ways: dict[str, Mapping[Role, Session]] = {"host": through_host(contender)}
    if contender.hands_over_on_device:
        ways["device"] = contender.sessions
    for batch in settings.batches:
        for way, sessions in ways.items():
            work = work_of(settings, sessions, contender.dense, batch)
            yield {
                "runtime": contender.runtime,
                "precision": contender.precision,
                "cuda_graphs": contender.cuda_graphs,
                "hand_off": way,
                "batch": batch,
                **timings(settings, work, batch),
                **energies(settings, work, batch),
            }


@dataclass(frozen=True)
class Work:
    """What is measured: a batch in both networks, once for each index of a round.

    Attributes:
        calls: By the name of the network.
        rounds: Indices of a round.
    """

    calls: Mapping[str, Callable[[int], CallTime]]
    rounds: int


def work_of(
    settings: Settings, sessions: Mapping[Role, Session], dense: Session, batch: int
) -> Work:
    """A round in which the wanted share of the pictures is refined."""
    config, share = settings.two_stage, settings.fraction
    network = TimedNetwork(config, sessions, "graph")
    baseline = TimedNetwork(settings.dense, {"single": dense})
    rounds = batches_in_round(batch, share)
    images = [random_images(config.image_size, "float", batch, seed) for seed in range(rounds)]
    etas = imposed_etas(network.scheduler, images, share, config.stages.exit_comparison)
    calls: dict[str, Callable[[int], CallTime]] = {
        "two_stage": lambda index: network.run(images[index], etas[index]),
        "dense": lambda index: baseline.run(images[index], 1.0),
    }
    return Work(calls, rounds)


def timings(settings: Settings, work: Work, batch: int) -> dict[str, Any]:
    """Measure the milliseconds of a batch; both networks take turns."""
    times = in_turn(work.calls, work.rounds, Effort(settings.seconds))
    own, other = summarize(times["two_stage"], batch), summarize(times["dense"], batch)
    return {
        "sac_fraction": round(own.refined, 4),
        "two_stage_ms_p50": round(own.p50, 4),
        "two_stage_ms_p95": round(own.p95, 4),
        "early_exit_ms_p50": round(own.graphs_p50["early_exit"], 4),
        "refine_ms_p50": round(own.graphs_p50.get("refine", 0.0), 4),
        "overhead_ms_p50": round(own.overhead_p50, 4),
        "dense_ms_p50": round(other.p50, 4),
        "images_per_s": round(batch * 1e3 / own.p50, 1),
        "speedup": round(other.p50 / own.p50, 3),
        "repeats": own.rounds,
    }


def energies(settings: Settings, work: Work, batch: int) -> dict[str, Any]:
    """Measure the millijoules of a picture, of the whole board; one network after the other.

    Nothing where there is no meter.
    """
    meter, found = settings.power, {}
    if meter is None:
        return {}
    for name, call in work.calls.items():
        seconds, pictures, start = 0.0, 0, time.perf_counter()
        while seconds < max(settings.seconds, 3 * INTERVAL_S):
            for index in range(work.rounds):  # a round has the wanted share
                call(index)
            pictures += batch * work.rounds
            seconds = time.perf_counter() - start
        watts = meter.mean_w(start, start + seconds)
        if watts is not None:
            found[f"{name}_w"] = round(watts, 3)
            found[f"{name}_mj_per_image"] = round(watts * seconds / pictures * 1e3, 3)
    return found


def decisions(settings: Settings, sessions: Mapping[Role, Session]) -> dict[str, Any]:
    """Compute the logits of both stages and the targets of some pictures."""
    count = min(COMPARED, max(settings.batches))
    images = random_images(settings.two_stage.image_size, "float", count)
    early = Scheduler(settings.two_stage, sessions, "graph").run(images, FixedExit(0.0))
    late = Scheduler(settings.two_stage, sessions, "graph").run(images, FixedExit(1.0))
    return {
        "early": np.stack([outcome.logits for outcome in early]),
        "late": np.stack([outcome.logits for outcome in late]),
        "targets": np.array([outcome.target_index for outcome in late]),
    }


class Reference:
    """Decisions that all others are compared with, and the name of their contender."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.decisions: dict[str, Any] = {}

    def set(self, contender: Contender, decisions: dict[str, Any]) -> None:
        """Store the decisions of a contender as the reference."""
        self.name = f"{contender.runtime} {contender.precision}"
        self.decisions = decisions


def agreement(settings: Settings, contender: Contender, reference: Reference) -> dict[str, Any]:
    """Compare the decisions of a contender with the reference, and both ways of its hand-off.

    Without a reference, the contender becomes it.
    """
    found = decisions(settings, contender.sessions)
    if reference.name is None:
        reference.set(contender, found)
    wanted = reference.decisions
    shared = [
        np.isin(a, b).mean() for a, b in zip(found["targets"], wanted["targets"], strict=True)
    ]
    report = {
        "runtime": contender.runtime,
        "precision": contender.precision,
        "cuda_graphs": contender.cuda_graphs,
        "max_logit_error": float(np.abs(found["early"] - wanted["early"]).max()),
        "max_refined_logit_error": float(np.abs(found["late"] - wanted["late"]).max()),
        "logit_scale": float(np.abs(wanted["early"]).max()),
        "label_agreement": float((found["late"].argmax(1) == wanted["late"].argmax(1)).mean()),
        "target_overlap": float(np.mean(shared)),
    }
    if contender.hands_over_on_device:
        host = decisions(settings, through_host(contender))
        report["hand_off_max_difference"] = float(np.abs(found["late"] - host["late"]).max())
    return report


def cuda_malloc_check() -> dict[str, Any]:
    """Allocate on the GPU: whether the wheel of cuda-bindings fits driver and board at all.

    Raises:
        EngineError: It does not; the fix names what to use instead.
        MissingDependencyError: There is none.
    """
    from sacvit_deploy.engines.device_memory import CudaDevice

    installed = version("cuda-bindings")
    try:
        device = CudaDevice()
        device.allocate(1 << 20)
        device.synchronize()
    except EngineError as error:
        raise EngineError(
            f"cuda-bindings {installed} cannot use this GPU. {error.problem}",
            "Install the release of this machine's CUDA, for example cuda-bindings==12.9.*, or on "
            "a board build it from NVIDIA's sources against /usr/local/cuda. Until then ONNX "
            "Runtime runs the bundle: --backend onnxruntime.",
        ) from error
    return {"cuda_bindings": installed}


def cuda_memory_check() -> dict[str, Any]:
    """Check the memory, copies and recorded graphs of engine sessions on the real driver."""
    from sacvit_deploy.engines.device_memory import CudaDevice

    device = CudaDevice()
    size = 64 << 20
    source, target, buffer = device.pinned(size), device.pinned(size), device.allocate(size)
    other = device.allocate(size)
    device.copy_out(target, buffer.address)
    device.synchronize()
    fresh_is_zero = not target.any()
    source[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)

    def round_trip() -> None:
        device.copy_in(buffer.address, source)
        device.copy_within(other.address, buffer.address, size)
        device.copy_out(target, other.address)

    graph = device.record(round_trip)
    device.synchronize()
    recording_runs_nothing = not target.any()
    start = time.perf_counter()
    device.launch(graph)
    device.synchronize()
    seconds = time.perf_counter() - start
    try:
        device.allocate(1 << 50)
        refusal = "none"
    except EngineError as error:
        refusal = error.problem
    return {
        "fresh_memory_is_zero": fresh_is_zero,
        "recording_runs_nothing": recording_runs_nothing,
        "round_trip_is_equal": bool((source == target).all()),
        "round_trip_gb_per_s": round(2 * size / seconds / 1e9, 2),
        "too_much_memory": refusal,
    }


def engine_sessions_check() -> dict[str, Any]:
    """Test engine sessions on the GPU, with torch kernels in an engine's place.

    The tests run in a process of their own, which a driver may end.

    Raises:
        Skipped: No test could run, with the reason.
        EngineError: A test failed.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, _SESSION_TESTS],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()] or [""]
    notes = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    if ran.returncode:
        command_line = f"python -m pytest -m gpu {_SESSION_TESTS}"
        raise EngineError("\n".join([*notes, lines[-1]]), f"See it all with: {command_line}")
    if "passed" not in lines[-1]:
        raise Skipped("; ".join(notes) or lines[-1])
    return {"tests": lines[-1], "notes": notes}
