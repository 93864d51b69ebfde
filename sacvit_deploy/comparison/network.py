"""Any way of running a network: torch, ONNX graphs of some precision, engines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.comparison.decisions import scheduler_decisions
from sacvit_deploy.engines.registry import open_sessions
from sacvit_deploy.errors import CheckpointError, ConfigError
from sacvit_deploy.libraries import require
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.comparison.decisions import Decisions
    from sacvit_deploy.comparison.layers import LayerSource
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.model.vit import Backbone
    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.spec import Precision, Role, Selection


_BATCH = 16


@dataclass(frozen=True)
class Network:
    """Sessions, and what they are to be fed.

    Attributes:
        name: For a person, for example `fp16 in onnxruntime`.
        config: What is computed.
        preprocess: From a picture to the input.
        sessions: `early_exit` and `refine`, or `single`.
        selection: Who chooses the target tokens.
        largest_batch: More than this is refused; None if any batch is taken.
    """

    name: str
    config: ModelConfig
    preprocess: Preprocessor
    sessions: Mapping[Role, Session]
    selection: Selection = "host"
    largest_batch: int | None = None

    def decisions(self, pictures: Sequence[PictureSource]) -> Decisions:
        """Both stages for every picture.

        Args:
            pictures: At least one; read in batches.

        Raises:
            ImageError: A picture cannot be read.
            EngineError: A session failed, or gave logits that are not finite.
        """
        scheduler = Scheduler(self.config, self.sessions, self.selection)
        return scheduler_decisions(scheduler, self.batches(pictures))

    def batches(self, pictures: Sequence[PictureSource]) -> Iterator[NDArray[Any]]:
        """Inputs (B, 3, H, W) as the sessions take them."""
        size = min(_BATCH, self.largest_batch or _BATCH)
        for start in range(0, len(pictures), size):
            part = pictures[start : start + size]
            yield np.stack([self.preprocess(picture) for picture in part])


ONNXRUNTIME = "onnxruntime"
TORCH = "torch"

_NAMED = re.compile(
    r"(?:(?P<bundle>.+):)?(?P<precision>fp32|fp16|int8)"
    r"(?:@(?P<backend>onnxruntime|tensorrt|tensorrt-rtx))?"
)
_SYNTAX = (
    "Name a checkpoint file, another bundle, a precision of this bundle (fp32, fp16, int8), or "
    "OTHER:PRECISION, with @tensorrt or @tensorrt-rtx behind the precision for engines."
)


@dataclass(frozen=True)
class Contestant:
    """One of the two that are compared.

    Attributes:
        network: Ready to run.
        precision: Of its graphs; torch is `fp32`.
        backend: What runs it: `torch`, `onnxruntime`, `tensorrt` or `tensorrt-rtx`.
        random: Whether its weights were never trained.
        bundle: It comes from; None for torch.
        labels: One per class; empty where they are not known.
    """

    network: Network
    precision: Precision = "fp32"
    backend: str = TORCH
    random: bool = False
    bundle: Bundle | None = None
    labels: tuple[str, ...] = ()

    def layers(self, scratch: Path) -> LayerSource:
        """What can be looked into.

        Args:
            scratch: An existing folder for files nobody keeps.

        Raises:
            ConfigError: It is an engine, which keeps what is between its layers to itself.
            MissingDependencyError: onnx is not installed.
        """
        require("onnx", "Comparing layer by layer")
        from sacvit_deploy.comparison.layers import bundle_layers

        if self.bundle is None:
            from sacvit_deploy.comparison.torch_network import TorchLayers

            sessions: Any = self.network.sessions
            return TorchLayers(sessions)
        if self.backend != ONNXRUNTIME:
            raise ConfigError(
                f"{self.network.name} cannot be looked into: the layers of an engine are fused.",
                "Leave --layers out, or compare the ONNX graphs the engine was built from.",
            )
        return bundle_layers(self.bundle, self.precision, scratch)


def of_bundle(
    bundle: Bundle, precision: Precision | None = None, backend: str = ONNXRUNTIME
) -> Contestant:
    """The graphs or engines of a bundle.

    Args:
        bundle: Any.
        precision: Which of them; None takes FP32 in ONNX Runtime, and of the engines what
            `sacvit_deploy.load` would.
        backend: `onnxruntime`, `tensorrt` or `tensorrt-rtx`.

    Raises:
        BundleError: It has no graph of that precision.
        EngineError: It has no engine for this machine, or the runtime failed.
        MissingDependencyError: The runtime is not installed.
    """
    manifest = bundle.manifest
    opened = open_sessions(bundle, backend=backend, precision=precision)
    network = Network(
        f"{bundle.path} ({opened.precision} in {backend})",
        manifest.config,
        Preprocessor(manifest.preprocessing, manifest.input_kind),
        opened.sessions,
        manifest.selection,
        opened.largest_batch,
    )
    return Contestant(network, opened.precision, backend, bundle.is_random, bundle, manifest.labels)


def of_torch(bundle: Bundle, checkpoint: Path | None = None) -> Contestant:
    """The torch model of a bundle, its weights rounded as the bundle stores them.

    Args:
        bundle: Says which network, and where its weights came from.
        checkpoint: The weights; None makes random weights again from their seed.

    Raises:
        CheckpointError: The checkpoint does not fit, or none is given and none can be made.
        MissingDependencyError: torch is not installed.
    """
    require("torch", "Comparing a bundle with its model")
    from sacvit_deploy.comparison.torch_network import torch_network

    model = _model(bundle, checkpoint)
    name = f"{checkpoint or 'random weights'} (torch)"
    network = torch_network(model, bundle.manifest.preprocessing, name)
    return Contestant(network, random=bundle.is_random and checkpoint is None)


def reference_for(bundle: Bundle, against: str | None, candidate: Contestant) -> Contestant:
    """What a candidate is compared with.

    Args:
        bundle: The candidate's.
        against: As `--against` is written; None takes torch for FP32 graphs in ONNX Runtime, and
            these for everything else.
        candidate: What they are compared with.

    Raises:
        ConfigError: The text has two meanings or none, names the candidate itself, or a network
            that cannot be compared with it.
        SacvitDeployError: As `of_bundle` and `of_torch`, and for a bundle that cannot be opened.
    """
    reference = _named(bundle, against, candidate)
    if _is_same(reference, candidate):
        raise ConfigError(
            f"{candidate.network.name} was to be compared with itself.",
            "Name another precision, bundle or checkpoint with --against.",
        )
    _check_comparable(reference, candidate)
    return reference


def _named(bundle: Bundle, against: str | None, candidate: Contestant) -> Contestant:
    if against is None:
        plain = (candidate.precision, candidate.backend) == ("fp32", ONNXRUNTIME)
        return of_torch(bundle) if plain else of_bundle(bundle, "fp32")
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
        other = Bundle.open(named["bundle"]) if named["bundle"] else bundle
        precision: Any = named["precision"]
        return of_bundle(other, precision, named["backend"] or ONNXRUNTIME)
    if path.is_dir():
        return of_bundle(Bundle.open(path), "fp32")
    if path.is_file():
        return of_torch(bundle, path)
    raise ConfigError(f"--against {against}: there is no file or folder of that name.", _SYNTAX)


def _is_same(one: Contestant, other: Contestant) -> bool:
    if one.bundle is None or other.bundle is None:
        return False
    same_folder = one.bundle.path.resolve() == other.bundle.path.resolve()
    return same_folder and (one.precision, one.backend) == (other.precision, other.backend)


def _model(bundle: Bundle, checkpoint: Path | None) -> Backbone:
    from sacvit_deploy.model.build import as_stored, model_of_origin
    from sacvit_deploy.model.checkpoints import checkpoint_model

    manifest = bundle.manifest
    if checkpoint is not None:
        return as_stored(checkpoint_model(checkpoint, manifest.config), manifest.weights)
    model = model_of_origin(manifest.config, manifest.weights)
    if model is None:
        raise CheckpointError(
            f"The bundle was made from {manifest.weights.get('file')}, which it does not contain.",
            f"Name it: sacvit-deploy verify {bundle.path} --against CHECKPOINT",
        )
    return model


def _check_comparable(reference: Contestant, candidate: Contestant) -> None:
    """Refuse networks whose decisions mean different things."""
    wanted, found = _shape(reference.network.config), _shape(candidate.network.config)
    differing = [name for name in wanted if wanted[name] != found[name]]
    if differing:
        differences = ", ".join(f"{n} {wanted[n]} and {found[n]}" for n in differing)
        raise ConfigError(
            f"{reference.network.name} and {candidate.network.name} are different networks: "
            f"{differences}.",
            "Compare two exports of one network.",
        )
    known, asked = reference.labels, candidate.labels
    if known != asked and sorted(known) == sorted(asked):
        index = next(i for i, pair in enumerate(zip(known, asked, strict=True)) if len({*pair}) > 1)
        raise ConfigError(
            f"{reference.network.name} and {candidate.network.name} have the same classes in "
            f"another order: class {index} is {known[index]!r} and {asked[index]!r}.",
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
