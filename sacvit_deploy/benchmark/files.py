"""Time from picture files to answers, and where it goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sacvit_deploy.benchmark.timing import CallTime, Clock, TimedNetwork
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import Sample


@dataclass(frozen=True)
class FileTime:
    """Time of one batch of files.

    Attributes:
        read_ms: From the files to RGB pictures.
        resize_ms: From there to the input tensor.
        call: The stages.
    """

    read_ms: float
    resize_ms: float
    call: CallTime

    @property
    def parts_ms(self) -> dict[str, float]:
        """Each part by its JSON key, and all together."""
        graphs = self.call.graph_ms
        first = graphs.get("early_exit", graphs.get("single", 0.0))
        return {
            "total_ms_p50": self.read_ms + self.resize_ms + self.call.total_ms,
            "read_ms_p50": self.read_ms,
            "resize_ms_p50": self.resize_ms,
            "first_stage_ms_p50": first,
            "selection_ms_p50": self.call.overhead_ms,
            "second_stage_ms_p50": graphs.get("refine", 0.0),
        }


def run_files(
    network: TimedNetwork,
    preprocessor: Preprocessor,
    samples: Sequence[Sample],
    eta: float,
    clock: Clock = time.perf_counter,
) -> FileTime:
    """Time one batch from files to answers.

    Args:
        network: Runs the batch.
        preprocessor: Makes an input tensor of a picture.
        samples: Pictures of the batch, at least one.
        eta: Exit threshold, in [0, 1].
        clock: Current time in seconds.

    Raises:
        ImageError: A picture cannot be read.
    """
    read = resize = 0.0
    arrays = []
    for sample in samples:
        start = clock()
        reading = preprocessor.read(sample)
        between = clock()
        arrays.append(preprocessor.tensor(reading))
        read, resize = read + between - start, resize + clock() - between
    start = clock()
    images = np.stack(arrays)
    resize += clock() - start
    return FileTime(read * 1e3, resize * 1e3, network.run(images, eta))


def summarize_files(rounds: Sequence[Sequence[FileTime]], batch: int) -> dict[str, float]:
    """Median over rounds of the mean time of a batch, part by part, and pictures per second."""
    parts = [[each.parts_ms for each in calls] for calls in rounds]
    found = {
        name: float(np.median([np.mean([part[name] for part in calls]) for calls in parts]))
        for name in parts[0][0]
    }
    return {**found, "images_per_s": batch * 1e3 / found["total_ms_p50"]}
