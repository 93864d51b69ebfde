"""The description of a family of networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sacvit_deploy.spec import InputKind, Role, Selection, TensorSpec

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig

    Tensors = tuple[TensorSpec, ...]


Counted = Literal["papers", "needed", "graph"]
"""What counts as multiply-accumulates; see `graph_macs`."""


@dataclass(frozen=True)
class Family:
    """One published design.

    Attributes:
        name: Name in configurations, bundles and checkpoints.
        title: Name in its paper.
        presets: Fields of `ModelConfig` without the family, by preset.
        files: File name of each graph, in the order in which the graphs run.
        check: Refuses a `ModelConfig` that the family cannot have.
        tensors: Gives the inputs and outputs of each graph, by role.
        macs: Counts multiply-accumulates of each graph for one picture, by role.
        model: `module:class` of the torch network; its argument is a `ModelConfig`.
        view: `module:function` that gives the part of a network to trace for one graph.
        checkpoint_names: Prefixes of tensor names used here, by those in published checkpoints.
    """

    name: str
    title: str
    presets: Mapping[str, Mapping[str, Any]]
    files: Mapping[Role, str]
    check: Callable[[ModelConfig], None]
    tensors: Callable[[ModelConfig, Selection, InputKind], Mapping[Role, tuple[Tensors, Tensors]]]
    macs: Callable[[ModelConfig, Counted], dict[Role, int]]
    model: str
    view: str
    checkpoint_names: Mapping[str, str]

    def load(self, part: Literal["model", "view"]) -> Any:
        """Import the torch class or function that the family names; this needs torch."""
        module, _, name = getattr(self, part).partition(":")
        return getattr(importlib.import_module(module), name)
