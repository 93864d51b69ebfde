"""Answers of both stages for labelled pictures, and the setting they were measured in."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.engines.machine import device_name
from sacvit_deploy.errors import DataError, ImageError, raised_as
from sacvit_deploy.evaluation.class_names import match_classes
from sacvit_deploy.libraries import own_versions, versions
from sacvit_deploy.progress import OnProgress, PictureCount, silent
from sacvit_deploy.runtime.control.stats import Stats
from sacvit_deploy.runtime.pictures import PictureSource
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.readers import Reader, reader_threads
from sacvit_deploy.runtime.scheduler import Outcome
from sacvit_deploy.samples import Sample, SampleSet
from sacvit_deploy.spec import LARGEST_COUNT, check_count

OnCorrupt = Literal["skip", "stop"]

# Runs before the clock counts: backends allocate, and some compile, in the first ones.
_WARM_UPS = 3


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read.

    Attributes:
        name: Name in the data set.
        reason: One line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class StageAnswers:
    """Answers of both stages for n labelled pictures, whatever the threshold.

    Attributes:
        decisions: Logits of both stages and the target tokens. A network of one stage has its
            logits in both places, and no tokens, (n, 0).
        class_index: True class of each picture as an index of the bundle's labels, (n,).
        samples: The pictures, in order.
        skipped: Pictures that could not be read.
        data_sha256: Hash of class, file name and bytes of the n pictures: the same for a folder, a
            zip of it and a table, in any order.
        early_ms: Time of the first stage, or of the only one, for each picture, without
            preprocessing, (n,). In a batch it is the picture's share of the time.
        refine_ms: Time of the second stage with the selection of tokens, (n,); zeros for a network
            of one stage. A picture that does not exit early takes `early_ms + refine_ms`.
    """

    decisions: Decisions
    class_index: NDArray[np.int64]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]
    data_sha256: str
    early_ms: NDArray[np.float64]
    refine_ms: NDArray[np.float64]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the pictures, in order."""
        return tuple(sample.name for sample in self.samples)


def collect_answers(  # noqa: PLR0913  all but the first two have a good default
    pipeline: Pipeline,
    samples: SampleSet,
    class_names: Mapping[str, str] | None = None,
    *,
    on_progress: OnProgress = silent,
    on_corrupt: OnCorrupt = "skip",
    batch_size: int = 1,
) -> StageAnswers:
    """Run both stages for every picture; one at a time, as a live stream would, or in batches.

    Args:
        pipeline: Pipeline of one or two stages; its threshold has no effect.
        samples: Data, whose classes `match_classes` finds among the labels.
        class_names: Names of the data's classes, if the data has ids.
        on_progress: Called after each batch with the share of the work done, in (0, 1], and a short
            text.
        on_corrupt: `skip` and list a picture that cannot be read, or `stop`.
        batch_size: Pictures that are computed together; files are then read in threads meanwhile.

    Raises:
        DataError: The classes are not those of the network, or no picture can be read.
        ImageError: A picture cannot be read, with `on_corrupt="stop"`.
        ConfigError: `batch_size` is no whole number from 1 on, or more than the engines take.
        EngineError: The backend failed.
    """
    check_count("batch_size", batch_size, pipeline.largest_batch or LARGEST_COUNT)
    indices = match_classes(samples.classes, pipeline.manifest.labels, class_names)
    count = len(samples.samples)
    answered: list[_Answered] = []
    skipped: list[Skipped] = []

    def skip(position: int, _: PictureSource, error: ImageError) -> None:
        skipped.append(Skipped(samples.samples[position].name, error.problem))

    digests: dict[object, bytes] = {}

    def prepare(source: PictureSource) -> NDArray[Any]:
        array = pipeline.preprocess(source)
        digests[source] = _digest(source)  # type: ignore[arg-type]  # a sample
        return array

    passing = PictureCount(count)
    threads = reader_threads(None) if batch_size > 1 else 0
    reader = Reader(prepare, time.perf_counter, Stats())
    with closing(
        reader.ahead(
            samples.samples,
            threads=threads,
            room=batch_size + threads,
            on_error=skip if on_corrupt == "skip" else None,
        )
    ) as reads:
        while batch := list(islice(reads, batch_size)):
            images = np.stack([read.array for read in batch])
            for _ in range(0 if answered else _WARM_UPS):
                pipeline.outcomes(images, eta=1.0)
            for read, outcome in zip(batch, pipeline.outcomes(images, eta=1.0), strict=True):
                sample = samples.samples[read.position]
                # What nobody asks for would take up to 12 KB of memory for each picture.
                kept = replace(outcome, score=None, semantic_attention=None)
                answered.append(_Answered(sample, digests[sample], kept))
            done = len(answered) + len(skipped)
            on_progress(passing.share(done), passing.in_words(done))
    on_progress(1.0, passing.in_words(count))  # the last ones may have been skipped
    if not answered:
        found = f"; the first: {skipped[0].reason}" if skipped else ""
        raise DataError(
            f"None of the {count} pictures of the data can be read{found}", "Check the data set."
        )
    return _joined(answered, skipped, indices)


@dataclass(frozen=True)
class _Answered:
    sample: Sample
    digest: bytes
    outcome: Outcome


def _digest(sample: Sample) -> bytes:
    """SHA-256 of the encoded picture.

    Raises:
        ImageError: It cannot be read any more.
    """
    problem = f"The picture {sample.name!r} cannot be read"
    with raised_as(ImageError, problem, "Check the data set."), sample.open() as stream:
        return hashlib.sha256(stream.read()).digest()


def _joined(
    answered: Sequence[_Answered], skipped: Sequence[Skipped], indices: Mapping[str, int]
) -> StageAnswers:
    outcomes = [each.outcome for each in answered]
    return StageAnswers(
        decisions=Decisions.of(outcomes),
        class_index=np.array([indices[each.sample.label] for each in answered], dtype=np.int64),
        samples=tuple(each.sample for each in answered),
        skipped=tuple(skipped),
        data_sha256=_data_sha256(answered),
        early_ms=np.array([outcome.early_ms for outcome in outcomes]),
        refine_ms=np.array([outcome.refine_ms for outcome in outcomes]),
    )


def _data_sha256(answered: Sequence[_Answered]) -> str:
    """Hash the pictures themselves, not their places or their order."""
    lines = sorted(
        f"{each.sample.label}\0{PurePath(each.sample.name).name}\0{each.digest.hex()}\n"
        for each in answered
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Setting:
    """Network, data, machine and libraries of a measurement.

    Attributes:
        bundle: Name of the bundle's folder.
        network: Family and size, in words.
        weights: Origin of the weights, in words.
        data: Name of the data set.
        precision: Precision of the graphs.
        runtime: Backend that computed.
        provider: Part of the backend that computed, as the backend names it.
        device: Name of the GPU, board or CPU.
        versions: Versions of the libraries, by name.
        batch_size: Pictures that were computed together.
        threads: CPU threads of one operator; None where the backend chose.
        date: Day of the measurement in UTC, such as 2026-01-31.
    """

    bundle: str
    network: str
    weights: str
    data: str
    precision: str
    runtime: str
    provider: str
    device: str
    versions: dict[str, str]
    batch_size: int = 1
    threads: int | None = None
    date: str = ""


def describe_setting(
    pipeline: Pipeline, bundle: Path, data: Path, batch_size: int = 1, threads: int | None = None
) -> Setting:
    """Describe a measurement of today.

    Args:
        pipeline: Pipeline that measured.
        bundle: Folder of its bundle.
        data: Data set.
        batch_size: Pictures that were computed together.
        threads: CPU threads of one operator, if they were chosen.
    """
    config = pipeline.manifest.config
    height, width = config.image_size
    return Setting(
        bundle=bundle.resolve().name,
        network=f"{config.family}, {height}x{width} px, patch {config.patch_size}, width "
        f"{config.embed_dim}, depth {config.depth}, {config.num_classes} classes",
        weights=str(pipeline.manifest.weights),
        data=data.resolve().name,
        precision=pipeline.precision,
        runtime=pipeline.backend,
        provider=pipeline.provider,
        device=device_name(pipeline.provider),
        versions=own_versions() | versions(pipeline.backend, "numpy"),
        batch_size=batch_size,
        threads=threads,
        date=datetime.now(timezone.utc).date().isoformat(),
    )
