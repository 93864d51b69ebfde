"""What a measurement was made with: without it a number means nothing."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.engines.machine import jetson_release, this_machine
from sacvit_deploy.errors import DataError, ImageError
from sacvit_deploy.evaluation.class_names import match_classes
from sacvit_deploy.libraries import own_versions, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.runtime.pipeline import Pipeline
    from sacvit_deploy.runtime.scheduler import Outcome
    from sacvit_deploy.samples import Sample, SampleSet


_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Setting:
    """Where numbers come from.

    Attributes:
        bundle: Name of its folder.
        network: Family and size, in words.
        weights: Where they come from, in words.
        data: Name of the data set.
        precision: Of the graphs.
        runtime: What computed them.
        provider: The same, as the runtime names it.
        device: Name of the GPU or CPU.
        versions: Of the libraries, by name.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def describe_setting(pipeline: Pipeline, bundle: Path, data: Path) -> Setting:
    """Ask the pipeline and the machine.

    Args:
        pipeline: That measures.
        bundle: Its folder.
        data: The data set.
    """
    config = pipeline.manifest.config
    height, width = config.image_size
    return Setting(
        bundle=bundle.resolve().name,
        network=f"{config.family}, {height}x{width} px, patch {config.patch_size}, width "
        f"{config.embed_dim}, depth {config.depth}, {config.num_classes} classes",
        weights=", ".join(f"{k} {v}" for k, v in pipeline.manifest.weights.items()),
        data=data.resolve().name,
        precision=pipeline.precision,
        runtime=pipeline.backend,
        provider=pipeline.provider,
        device=_cpu() if pipeline.provider.startswith("CPU") else _accelerator(),
        versions=own_versions() | versions(pipeline.backend, "numpy"),
    )


def _accelerator() -> str:
    gpu = this_machine().current_gpu
    board = jetson_release()
    if board is not None and board.board:
        return board.board
    return gpu.name if gpu else _cpu()


def _cpu() -> str:
    """The processor's name where the system tells, else its architecture."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if names:
        return f"{names[0]}, {len(names)} cores"
    return platform.processor() or platform.machine()


OnCorrupt = Literal["skip", "stop"]

# Runs before the clock counts: runtimes allocate, and some compile, in the first ones.
_WARM_UPS = 3


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read.

    Attributes:
        name: As its data set names it.
        reason: One line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class StageAnswers:
    """What both stages say about n labelled pictures, whatever the threshold.

    Attributes:
        decisions: Logits of both stages and the target tokens. A network of one stage has its
            logits in both places, and no tokens, (n, 0).
        class_index: The true class of each picture as an index of the bundle's labels, (n,).
        names: Of the pictures, in order.
        skipped: Pictures that could not be read.
        data_sha256: Of class, file name and bytes of the n pictures: the same for a folder, a zip
            of it and a table, whatever their order.
        early_ms: Time of the first stage, or of the only one, for each picture by itself, without
            preprocessing, (n,).
        refine_ms: Time of the second stage with the selection of tokens, (n,); zeros for a network
            of one stage. A picture that does not leave early costs `early_ms + refine_ms`.
    """

    decisions: Decisions
    class_index: NDArray[np.int64]
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    data_sha256: str
    early_ms: NDArray[np.float64]
    refine_ms: NDArray[np.float64]


def collect_answers(
    pipeline: Pipeline,
    samples: SampleSet,
    class_names: Mapping[str, str] | None = None,
    *,
    report: Callable[[float, str], None] = lambda share, what: None,
    on_corrupt: OnCorrupt = "skip",
) -> StageAnswers:
    """Run both stages for every picture, one at a time, as a live stream would.

    The threshold of the pipeline has no effect.

    Args:
        pipeline: Of one or two stages.
        samples: The data; its classes are found among the labels by `match_classes`.
        class_names: What the data's classes are called, where they are ids.
        report: Called after each picture with the share of the work done, in (0, 1], and with
            what is done in words.
        on_corrupt: `skip` a picture that cannot be read and say so, or `stop`.

    Raises:
        DataError: The classes are not those of the network, or no picture can be read.
        ImageError: A picture cannot be read, with `on_corrupt="stop"`.
        EngineError: The runtime failed.
    """
    indices = match_classes(samples.classes, pipeline.manifest.labels, class_names)
    taken: list[_Taken] = []
    skipped: list[Skipped] = []
    for number, sample in enumerate(samples.samples, start=1):
        try:
            image = pipeline.preprocess(sample)[None]
            digest = _digest(sample)
        except ImageError as error:
            if on_corrupt == "stop":
                raise
            skipped.append(Skipped(sample.name, error.problem))
        else:
            for _ in range(0 if taken else _WARM_UPS):
                pipeline.outcomes(image, 1.0)
            taken.append(_Taken(sample, digest, *pipeline.outcomes(image, 1.0)))
        report(number / len(samples.samples), f"{number} of {len(samples.samples)} pictures")
    if not taken:
        found = f"; the first: {skipped[0].reason}" if skipped else ""
        raise DataError(
            f"None of the {len(samples.samples)} pictures of the data can be read{found}",
            "Check the data set.",
        )
    return _joined(taken, skipped, indices)


@dataclass(frozen=True)
class _Taken:
    """One picture that was read, and what came out."""

    sample: Sample
    digest: bytes
    outcome: Outcome


def _digest(sample: Sample) -> bytes:
    """Of the encoded picture.

    Raises:
        ImageError: It cannot be read any more.
    """
    try:
        with sample.open() as stream:
            return hashlib.sha256(stream.read()).digest()
    except OSError as error:
        raise ImageError(
            f"The picture {sample.name!r} cannot be read: {error}.", "Check the data set."
        ) from error


def _joined(
    taken: Sequence[_Taken], skipped: Sequence[Skipped], indices: Mapping[str, int]
) -> StageAnswers:
    return StageAnswers(
        decisions=Decisions.of([entry.outcome for entry in taken]),
        class_index=np.array([indices[entry.sample.label] for entry in taken], dtype=np.int64),
        names=tuple(entry.sample.name for entry in taken),
        skipped=tuple(skipped),
        data_sha256=_data_sha256(taken),
        early_ms=np.array([entry.outcome.early_ms for entry in taken]),
        refine_ms=np.array([entry.outcome.refine_ms for entry in taken]),
    )


def _data_sha256(taken: Sequence[_Taken]) -> str:
    """Of what the pictures are, not of where they lie or in which order."""
    lines = sorted(
        f"{entry.sample.label}\0{PurePath(entry.sample.name).name}\0{entry.digest.hex()}\n"
        for entry in taken
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
