"""Measure how a budget holds on a machine that becomes slower, with real sessions and real time.

From the middle on, every stage is computed twice, as on a machine half as fast:
    python benchmarks/budget_hold.py bundle picture.jpg ... --frames 1200
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import numpy as np

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.registry import open_sessions
from sacvit_deploy.engines.session import Session, SessionOptions
from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.runtime.pipeline import Pipeline

GROUP = 50


class Slowed:
    """A session that computes everything `times` times."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.times = 1

    @property
    def provider(self) -> str:
        """See `Session.provider`."""
        return self.session.provider

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute `times` times, and return the last outputs."""
        for _ in range(self.times - 1):
            self.session.run(feeds)
        return self.session.run(feeds)

    def close(self) -> None:
        """See `Session.close`."""
        self.session.close()


def main() -> None:
    """Print one JSON document: the goal, and the mean cost and eta of every 50 frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    bundle = Bundle.open(arguments.bundle)
    options = SessionOptions(("CPU",), arguments.threads)
    opened = open_sessions(bundle, backend="onnxruntime", options=options)
    slowed = {role: Slowed(session) for role, session in opened.sessions.items()}
    plain = Pipeline(bundle.manifest, replace(opened, sessions=slowed))
    frames = _frames(arguments.pictures, arguments.frames, arguments.seed)
    goal_ms = _goal_ms(plain, frames[:100])
    pipeline = plain.with_budget(ms=goal_ms)
    rows: list[dict[str, Any]] = []
    before = _totals(pipeline)
    for start in range(0, arguments.frames, GROUP):
        if start == arguments.frames // 2 // GROUP * GROUP:
            for session in slowed.values():
                session.times = 2
        for _ in pipeline.stream(frames[start : start + GROUP], batch_size=1):
            pass
        after = _totals(pipeline)
        rows.append(
            {
                "frame": start + GROUP,
                "slowed": next(iter(slowed.values())).times,
                "latency_ms_mean": round((after[0] - before[0]) / (after[1] - before[1]), 3),
                "eta": round(pipeline.eta, 4),
                "state": pipeline.budget.state,
            }
        )
        before = after
    document = {"goal_ms": round(goal_ms, 3), "provider": opened.provider, "rows": rows}
    print(json.dumps(document, indent=2))


def _frames(paths: list[str], count: int, seed: int) -> list[np.ndarray]:
    """Crop random parts of the pictures, so that some are easy and some are hard."""
    generator = np.random.default_rng(seed)
    frames = []
    for path in islice(cycle(paths), count):
        pixels = np.asarray(read_picture(path))
        share = generator.uniform(0.3, 1.0)
        height, width = (max(8, int(side * share)) for side in pixels.shape[:2])
        top, left = (
            int(generator.integers(0, side - part + 1))
            for side, part in zip(pixels.shape, (height, width), strict=False)
        )
        frames.append(pixels[top : top + height, left : left + width])
    return frames


def _goal_ms(pipeline: Pipeline, frames: list[np.ndarray]) -> float:
    """Choose nine tenths of the time of both stages; a slower machine holds it by refining less."""
    late = []
    for frame in frames:
        pipeline.stats.reset()
        pipeline(frame, eta=1.0)
        late.append(pipeline.stats.snapshot().latency_ms_mean or 0.0)
    pipeline.stats.reset()
    return 0.9 * statistics.median(late)


def _totals(pipeline: Pipeline) -> tuple[float, int]:
    """Return the total milliseconds, and the number of pictures."""
    now = pipeline.stats.snapshot()
    return (now.latency_ms_mean or 0.0) * now.pictures, now.pictures


if __name__ == "__main__":
    main()
