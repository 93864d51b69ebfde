"""Hold the frame rate of a camera by moving the exit threshold.

A window that moves over one picture replaces the camera:
    python examples/camera_budget.py bundle cat.jpg --fps 30
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from PIL import Image

import sacvit_deploy


def camera(picture: str, count: int) -> Iterator[np.ndarray]:
    """Yield frames as a camera does: HWC uint8 arrays in RGB order.

    OpenCV's frames are BGR: give `channels="bgr"` to the stream.
    """
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    height, width = (max(1, side * 3 // 4) for side in pixels.shape[:2])
    for index in range(count):
        left = index * (pixels.shape[1] - width) // max(1, count - 1)
        yield pixels[:height, left : left + width]


def main() -> None:
    """Print the state of the budget every 50 frames, and the latency of each stage at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--frames", type=int, default=200)
    arguments = parser.parse_args()

    with sacvit_deploy.load(arguments.bundle).with_budget(fps=arguments.fps) as pipeline:
        pipeline.warm_up([1])
        # One frame at a time has the least delay.
        stream = pipeline.stream(camera(arguments.picture, arguments.frames), batch_size=1)
        for number, _ in enumerate(stream, start=1):
            if number % 50 == 0 or number == arguments.frames:
                budget = pipeline.budget
                print(
                    f"frame {number:4}  {budget.state:8}  eta {budget.eta:.3f}  "
                    f"{budget.expected_ms:.2f} of {budget.goal_ms:.2f} ms"
                )
        stats = pipeline.stats.snapshot()
    for stage, latency in stats.stages.items():
        print(
            f"{stage}: {latency.pictures} frames, "
            f"p50 {latency.latency_ms_p50:.2f} ms, p95 {latency.latency_ms_p95:.2f} ms"
        )


if __name__ == "__main__":
    main()
