"""A network that can be run and compared: the graphs or engines of a bundle, or torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.bundle import Bundle, from_bundle
from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.engines.registry import open_sessions
from sacvit_deploy.engines.session import Session, SessionOptions
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import ModelConfig, graph_specs, number_of_classes
from sacvit_deploy.libraries import require
from sacvit_deploy.progress import OnProgress, PictureCount, silent
from sacvit_deploy.runtime.pictures import PictureSource
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.scheduler import EVERY_PICTURE, Outcome, Scheduler
from sacvit_deploy.spec import Backend, Precision, Role, Selection

ONNXRUNTIME = "onnxruntime"
TORCH = "torch"

_BATCH = 16
_PICTURES_WITH_FEATURES = 4
_NAMED = re.compile(
    rf"(?:(?P<bundle>.+):)?(?P<precision>{'|'.join(get_args(Precision))})"
    rf"(?:@(?P<backend>{'|'.join(get_args(Backend))}))?"
)
_SYNTAX = (
    "Name a checkpoint file, another bundle, a precision of this bundle (fp32, fp16, int8), or "
    "OTHER:PRECISION, with @openvino, @tensorrt or @tensorrt-rtx behind the precision for another "
    "backend than ONNX Runtime."
)


@dataclass(frozen=True)
class Network:
    """The sessions of one network, with everything needed to feed and name them.

    Attributes:
        name: Shown to the user, for example `bundle (fp16 in onnxruntime)`.
        config: Architecture.
        preprocess: Makes the input of a picture.
        sessions: `early_exit` and `refine`, or `single`, in the order in which they run.
        selection: Who chooses the target tokens: the `host`, or the `graph`.
        largest_batch: Largest batch the sessions take; None for any.
        precision: Precision of the graphs; `fp32` for torch.
        backend: Library that computes: `torch`, or a backend of `sacvit_deploy.spec.Backend`.
        random: Whether the weights were never trained.
        bundle: Bundle the sessions were opened from; None for torch.
        labels: One per class; empty where they are unknown.
    """

    name: str
    config: ModelConfig
    preprocess: Preprocessor
    sessions: Mapping[Role, Session]
    selection: Selection = "host"
    largest_batch: int | None = None
    precision: Precision = "fp32"
    backend: str = ONNXRUNTIME
    random: bool = False
    bundle: Bundle | None = None
    labels: tuple[str, ...] = ()

    @property
    def scheduler(self) -> Scheduler:
        """Runs both stages."""
        return Scheduler(self.config, self.sessions, self.selection)

    @property
    def takes_one_picture(self) -> bool:
        """Whether its graphs have a fixed batch of 1; sessions run larger ones row by row."""
        return graph_specs(self.config)[0].inputs[0].shape[0] == 1

    def pixels(self, pictures: Sequence[PictureSource]) -> NDArray[np.uint8]:
        """Resize and crop pictures, at least one, to (B, 3, H, W).

        Raises:
            ImageError: A picture cannot be read.
        """
        crop = replace(self.preprocess, input_kind="uint8")
        return np.stack([crop(picture) for picture in pictures]).astype(np.uint8, copy=False)

    def images(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn pixels (B, 3, H, W) into what the graphs take: normalised, or as they are."""
        is_float = self.preprocess.input_kind == "float"
        return self.preprocess.normalize(pixels) if is_float else pixels

    def decisions(
        self,
        pictures: Sequence[PictureSource],
        on_progress: OnProgress = silent,
        text: str = "running",
    ) -> Decisions:
        """Run both stages on every picture, in batches.

        Args:
            pictures: At least one.
            on_progress: Called after each batch.
            text: What to call this work.

        Raises:
            ImageError: A picture cannot be read.
            EngineError: A session failed, or gave logits that are not finite.
        """
        size = min(_BATCH, self.largest_batch or _BATCH)
        if not number_of_classes(self.config):
            # Features of a picture take some ten megabytes.
            pictures, size = pictures[:_PICTURES_WITH_FEATURES], 1
        passing, outcomes = PictureCount(len(pictures), text), list[Outcome]()
        for start in range(0, len(pictures), size):
            batch = self.images(self.pixels(pictures[start : start + size]))
            outcomes += self.scheduler.run(batch, EVERY_PICTURE)
            on_progress(passing.share(len(outcomes)), passing.in_words(len(outcomes)))
        return Decisions.of(outcomes)


def of_bundle(
    bundle: Bundle,
    precision: Precision | None = None,
    backend: str = ONNXRUNTIME,
    threads: int | None = None,
) -> Network:
    """Open the graphs or engines of a bundle.

    Args:
        bundle: Where they are, as `from_bundle` gives it.
        precision: Which of them. None takes FP32 graphs in ONNX Runtime and OpenVINO, and the
            engines that `sacvit_deploy.load` would take.
        backend: `onnxruntime`, `openvino`, `tensorrt` or `tensorrt-rtx`.
        threads: CPU threads of one operator; None leaves it to the backend.

    Raises:
        BundleError: The bundle has no graph of that precision.
        EngineError: The bundle has no engine for this machine, or the backend failed.
        MissingDependencyError: The backend is not installed.
    """
    manifest = bundle.manifest
    options = SessionOptions(threads=threads)
    opened = open_sessions(bundle, backend=backend, precision=precision, options=options)
    return Network(
        name=f"{bundle.path} ({opened.precision} in {backend})",
        config=manifest.config,
        preprocess=Preprocessor(manifest.preprocessing, manifest.input_kind),
        sessions=opened.sessions,
        selection=manifest.selection,
        largest_batch=opened.largest_batch,
        precision=opened.precision,
        backend=backend,
        random=bundle.is_random,
        bundle=bundle,
        labels=manifest.labels,
    )


def of_torch(bundle: Bundle, checkpoint: Path | None = None) -> Network:
    """Build the torch model of a bundle, its weights rounded as the bundle stores them.

    Args:
        bundle: Describes the network and the origin of its weights.
        checkpoint: The weights. None draws random weights again from their seed.

    Raises:
        CheckpointError: The checkpoint does not fit, or none is given and the weights are not
            random.
        MissingDependencyError: torch is not installed.
    """
    # torch is optional: verifying engines on a board does without it.
    require("torch", "Comparing a bundle with its model")
    from sacvit_deploy.comparison.torch_network import bundle_model, torch_network

    model = bundle_model(bundle, checkpoint)
    name = f"{checkpoint or 'random weights'} (torch)"
    random = bundle.is_random and checkpoint is None
    return torch_network(model, bundle.manifest.preprocessing, name, random=random)


def reference_for(
    bundle: Bundle, against: str | None, candidate: Network, threads: int | None = None
) -> Network:
    """Open the reference that `--against` names.

    Args:
        bundle: Bundle of the candidate.
        against: Text of the option. None means torch for FP32 graphs in ONNX Runtime, and these
            graphs for any other candidate.
        candidate: Network in question.
        threads: CPU threads of one operator of a backend; torch has its own setting.

    Raises:
        ConfigError: The text has two meanings or none, or names the candidate itself or a network
            that cannot be compared with it.
        SacvitDeployError: See `of_bundle`, `of_torch` and `Bundle.open`.
    """
    reference = _named(bundle, against, candidate, threads)
    one, other = (
        (network.bundle and network.bundle.path.resolve(), network.precision, network.backend)
        for network in (reference, candidate)
    )
    if candidate.bundle and one == other:
        raise ConfigError(
            f"{candidate.name} was to be compared with itself.",
            "Name another precision, bundle or checkpoint with --against.",
        )
    _check_comparable(reference, candidate)
    return reference


def _named(bundle: Bundle, against: str | None, candidate: Network, threads: int | None) -> Network:
    if against is None:
        plain = (candidate.precision, candidate.backend) == ("fp32", ONNXRUNTIME)
        return of_torch(bundle) if plain else of_bundle(bundle, "fp32", threads=threads)
    path = Path(against)
    named = _NAMED.fullmatch(against)
    if path.exists() and (named or against == TORCH):
        raise ConfigError(
            f"--against {against} is a file or folder, and also names something of a bundle.",
            f"Write ./{against} for the file, or rename it.",
        )
    if against == TORCH:
        return of_torch(bundle)
    if named:
        precision: Any = named["precision"]
        backend = named["backend"] or ONNXRUNTIME
        opened = partial(of_bundle, precision=precision, backend=backend, threads=threads)
        return from_bundle(named["bundle"], opened) if named["bundle"] else opened(bundle)
    if path.is_dir():
        return from_bundle(path, partial(of_bundle, precision="fp32", threads=threads))
    if path.is_file():
        return of_torch(bundle, path)
    raise ConfigError(f"--against {against}: there is no file or folder of that name.", _SYNTAX)


def _check_comparable(reference: Network, candidate: Network) -> None:
    """Refuse networks whose decisions mean different things."""
    wanted, found = _shape(reference.config), _shape(candidate.config)
    differences = [f"{n} {wanted[n]} and {found[n]}" for n in wanted if wanted[n] != found[n]]
    if differences:
        raise ConfigError(
            f"{reference.name} and {candidate.name} are different networks: "
            f"{', '.join(differences)}.",
            "Compare two exports of one network.",
        )
    known, asked = reference.labels, candidate.labels
    if known != asked and sorted(known) == sorted(asked):
        index = next(i for i, pair in enumerate(zip(known, asked, strict=True)) if len({*pair}) > 1)
        raise ConfigError(
            f"{reference.name} and {candidate.name} have the same classes in another order: class "
            f"{index} is {known[index]!r} and {asked[index]!r}.",
            "Export both with the same --labels.",
        )


def _shape(config: ModelConfig) -> dict[str, object]:
    two_stage = config.two_stage is not None
    return {
        "stages": 2 if two_stage else 1,
        "image size": config.image_size,
        "classes": config.num_classes,
        "coarse grid": config.coarse_grid if two_stage else None,
        "target tokens": config.num_targets if two_stage else None,
    }
