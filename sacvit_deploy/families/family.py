"""What a family of networks is, in one value."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.spec import InputKind, Role, Selection, TensorSpec

    Tensors = tuple[TensorSpec, ...]

Attention = Literal["needed", "masked"]
"""Which pairs of tokens count as multiply-accumulates; see `graph_macs`."""


@dataclass(frozen=True)
class Family:
    """One published design.

    Attributes:
        name: In configurations, bundles and checkpoints.
        title: As its paper writes it.
        presets: Name of each preset to its fields of `ModelConfig`, without the family.
        files: File name of each graph, in the order in which the graphs run.
        check: Refuses a `ModelConfig` that the family cannot have.
        tensors: Inputs and outputs of each graph, by role.
        macs: Multiply-accumulates of each graph for one picture, by role.
        layers: Names of the linear layers and LayerNormalizations of a graph that have weights, in
            the order in which they depend on each other, without end; see `comparison.graphs`.
        model: `module:class` of the torch network, made from a `ModelConfig`.
        view: `module:function` that gives the part of a network one graph is traced from.
        checkpoint_names: Prefixes of tensor names in published checkpoints to those used here.
    """

    name: str
    title: str
    presets: Mapping[str, Mapping[str, Any]]
    files: Mapping[Role, str]
    check: Callable[[ModelConfig], None]
    tensors: Callable[[ModelConfig, Selection, InputKind], Mapping[Role, tuple[Tensors, Tensors]]]
    macs: Callable[[ModelConfig, Attention], dict[Role, int]]
    layers: Callable[[Role], Iterator[str]]
    model: str
    view: str
    checkpoint_names: Mapping[str, str]

    def load(self, part: Literal["model", "view"]) -> Any:
        """The torch class or function that the family names; torch has to be installed."""
        module, _, name = getattr(self, part).partition(":")
        return getattr(importlib.import_module(module), name)
