"""The torch model behind the seam of the sessions, to be compared with what runs elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sacvit_deploy.comparison.graphs import INPUT
from sacvit_deploy.comparison.network import Network
from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.model.views import view_for
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import GraphSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.comparison.layers import Probe, Spot
    from sacvit_deploy.model.vit import Backbone
    from sacvit_deploy.spec import Preprocessing, Role


# Every other place is called as its module is.
_MODULES = {INPUT: "patch_embed.proj"}


class TorchSession:
    """One face of a model."""

    provider = "torch"

    def __init__(self, model: Backbone, spec: GraphSpec) -> None:
        self.model = model
        self._view = view_for(model, spec)
        self._spec = spec

    @torch.no_grad()
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        tensors = [torch.from_numpy(feeds[spec.name]) for spec in self._spec.inputs]
        names = [spec.name for spec in self._spec.outputs]
        return {k: v.numpy() for k, v in zip(names, self._view(*tensors), strict=True)}

    def close(self) -> None:
        """Release nothing: the model is the caller's."""


def torch_network(model: Backbone, preprocessing: Preprocessing, name: str = "torch") -> Network:
    """The model as it stands: it takes the normalised picture and chooses the tokens itself."""
    specs = graph_specs(model.config, selection="graph")
    sessions = {spec.role: TorchSession(model, spec) for spec in specs}
    return Network(name, model.config, Preprocessor(preprocessing), sessions, "graph")


class TorchLayers:
    """The model, to be looked into layer by layer; see `exporters.precision.layers`."""

    def __init__(self, sessions: Mapping[Role, TorchSession]) -> None:
        self._sessions = sessions

    def values(
        self, role: Role, probes: Sequence[Probe], feeds: Mapping[str, NDArray[Any]]
    ) -> dict[Spot, NDArray[Any]]:
        """See `LayerSource.values`."""
        session = self._sessions[role]
        modules = dict(session.model.named_modules())
        found: dict[Spot, NDArray[Any]] = {}
        hooks = []
        for spot in (probe.spot for probe in probes):
            module = modules.get(_MODULES.get(spot.place, spot.place))
            if module is not None:
                hooks.append(module.register_forward_hook(_keeper(found, spot)))
        try:
            session.run(feeds)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _keeper(found: dict[Spot, NDArray[Any]], spot: Spot) -> Callable[..., None]:
    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        found[spot] = (inputs[0] if spot.enters else output).numpy()

    return keep
