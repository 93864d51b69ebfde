"""The torch model as a network of sessions, so that it can be compared with any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.comparison.network import TORCH, Network
from sacvit_deploy.engines.session import row_by_row
from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.model.build import as_stored, model_of_origin
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.model.views import view_for
from sacvit_deploy.model.vision_model import VisionModel
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import GraphSpec, Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sacvit_deploy.comparison.layers import Probe, Spot


class TorchSession:
    """One graph of a torch model; a `Session` and a `LayerSource`."""

    provider = "torch"

    def __init__(self, model: VisionModel, spec: GraphSpec) -> None:
        self._modules = dict(model.named_modules())
        self._view = view_for(model, spec)
        self._spec = spec

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        one = self._spec.inputs[0].shape[0] == 1
        return row_by_row(self._compute, feeds) if one else self._compute(feeds)

    @torch.no_grad()
    def _compute(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = [torch.from_numpy(feeds[spec.name]) for spec in self._spec.inputs]
        names = [spec.name for spec in self._spec.outputs]
        return {k: v.numpy() for k, v in zip(names, self._view(*tensors), strict=True)}

    def close(self) -> None:
        """Release nothing: the model is the caller's."""

    def values(
        self, probes: Sequence[Probe], feeds: Mapping[str, NDArray[Any]]
    ) -> dict[Spot, NDArray[Any]]:
        """See `LayerSource.values`."""
        found: dict[Spot, NDArray[Any]] = {}
        with ExitStack() as hooks:
            for spot in (probe.spot for probe in probes):
                if (module := self._modules.get(spot.place)) is not None:
                    record = partial(_record, found, spot)
                    hooks.enter_context(module.register_forward_hook(record))
            self.run(feeds)
        return found


def _record(
    found: dict[Spot, NDArray[Any]], spot: Spot, _: object, inputs: Any, output: torch.Tensor
) -> None:
    found[spot] = (inputs[0] if spot.enters else output).numpy()


def torch_network(
    model: VisionModel, preprocessing: Preprocessing, name: str = "torch", *, random: bool = False
) -> Network:
    """Wrap a model, which takes normalised images and chooses the tokens itself.

    Args:
        model: In evaluation mode.
        preprocessing: Makes its input of a picture.
        name: Shown to the user.
        random: Whether the weights were never trained.
    """
    specs = graph_specs(model.config, selection="graph")
    sessions = {spec.role: TorchSession(model, spec) for spec in specs}
    preprocess = Preprocessor(preprocessing)
    return Network(name, model.config, preprocess, sessions, "graph", backend=TORCH, random=random)


def bundle_model(bundle: Bundle, checkpoint: Path | None) -> VisionModel:
    """Build the model a bundle was exported from; see `network.of_torch`."""
    manifest = bundle.manifest
    if checkpoint is not None:
        return as_stored(Checkpoint.read(checkpoint).model(manifest.config), manifest.weights)
    model = model_of_origin(manifest.config, manifest.weights)
    if model is None:
        raise CheckpointError(
            f"The bundle was made from {manifest.weights.file}, which it does not contain.",
            f"Name it: sacvit-deploy verify {bundle.path} --against CHECKPOINT",
        )
    return model
