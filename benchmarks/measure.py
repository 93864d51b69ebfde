"""Latency, decisions and memory of one contender in a GPU check."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders import ThroughHost
from sacvit_deploy.errors import EngineError
from sacvit_deploy.runtime.algorithm import confidence
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from sacvit_deploy.spec import IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.contenders import Contender, Settings
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.spec import Role

COMPARED = 32
MOST_REPEATS = 200


def pictures(settings: Settings, count: int) -> Any:
    """Make normalised random input tensors (count, 3, H, W) with structure at several scales."""
    generator = np.random.default_rng(0)
    height, width = settings.two_stage.image_size
    total = np.zeros((count, 3, height, width), np.float32)
    for step in (1, 4, 16):
        coarse = generator.normal(size=(count, 3, -(-height // step), -(-width // step)))
        total += coarse.repeat(step, 2).repeat(step, 3)[:, :, :height, :width].astype(np.float32)
    return total


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
            scheduler = Scheduler(settings.two_stage, sessions, "graph")
            timed = timings(settings, scheduler, contender.dense, batch)
            yield {
                "runtime": contender.runtime,
                "precision": contender.precision,
                "cuda_graphs": contender.cuda_graphs,
                "hand_off": way,
                "batch": batch,
                **timed,
            }


def timings(settings: Settings, scheduler: Scheduler, dense: Session, batch: int) -> dict[str, Any]:
    """Measure the milliseconds of a batch, in turns, so that drift affects all alike.

    A batch of 1 cannot be split. So the wanted share of a round of batches is refined.
    """
    rounds = 1 if batch > 1 else 17
    images = [
        pictures(settings, batch * rounds)[i * batch : (i + 1) * batch] for i in range(rounds)
    ]
    hard = round(settings.fraction * batch * rounds)
    etas = [imposed_eta(scheduler, image, hard) for image in images] if rounds == 1 else [
        1.0 if index < hard else 0.0 for index in range(rounds)
    ]  # fmt: skip
    exits = [FixedExit(eta) for eta in etas]
    work: dict[str, Callable[[], object]] = {
        "two_stage": lambda: [scheduler.run(i, e) for i, e in zip(images, exits, strict=True)],
        "early_exit": lambda: [scheduler.run(image, FixedExit(0.0)) for image in images],
        "dense": lambda: [dense.run({IMAGE: image}) for image in images],
    }
    samples = in_turn(work, settings.seconds)
    found = {name: np.array(values) * 1e3 / rounds for name, values in samples.items()}
    refined = sum(
        outcome.target_index is not None
        for image, policy in zip(images, exits, strict=True)
        for outcome in scheduler.run(image, policy)
    )
    medians = {f"{name}_ms_p50": round(float(np.median(v)), 4) for name, v in found.items()}
    return {
        "sac_fraction": round(refined / (batch * rounds), 4),
        **medians,
        "two_stage_ms_p95": round(float(np.percentile(found["two_stage"], 95)), 4),
        "images_per_s": round(batch * 1e3 / medians["two_stage_ms_p50"], 1),
        "speedup": round(medians["dense_ms_p50"] / medians["two_stage_ms_p50"], 3),
        "repeats": len(found["dense"]),
    }


def imposed_eta(scheduler: Scheduler, images: Any, hard: int) -> float:
    """Find a threshold that sends `hard` pictures of this batch to the second stage."""
    logits = np.stack([outcome.logits for outcome in scheduler.run(images, FixedExit(0.0))])
    ordered = np.sort(confidence(logits))
    above = np.append(ordered, 1.0)[hard]
    below = np.append(0.0, ordered)[hard]
    return float((above + below) / 2)


def in_turn(work: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Time each piece of work in turns until the time is up; two rounds warm up. In seconds."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(2):
        for function in work.values():
            function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples["dense"]) < 3:
        for name, function in work.items():
            start = time.perf_counter()
            function()
            samples[name].append(time.perf_counter() - start)
        if len(samples["dense"]) >= MOST_REPEATS:
            break
    return samples


def decisions(settings: Settings, sessions: Mapping[Role, Session]) -> dict[str, Any]:
    """Compute the logits of both stages and the targets of some pictures."""
    images = pictures(settings, min(COMPARED, max(settings.batches)))
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
