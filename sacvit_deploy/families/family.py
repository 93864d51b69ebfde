"""The description of a family of networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sacvit_deploy.spec import InputKind, Role, Selection, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        files: File name of each graph, in the order in which the graphs run. A configuration need
            not have all of them.
        section: Field of `ModelConfig` with the family's own configuration; None for none.
        check: Refuses a `ModelConfig` that the family cannot have. It has the family's section, and
            no other.
        tensors: Gives the inputs and outputs of each graph of a network, by role, in the order in
            which the graphs run.
        macs: Counts multiply-accumulates of each graph for one picture, by role.
        model: `module:class` of the torch network; its argument is a `ModelConfig`.
        view: `module:function` that gives the part of a network to trace for one graph.
        layout: `module:function` that completes renamed tensors of a checkpoint for a network; see
            `sacvit_deploy.model.layouts`.
        checkpoint_names: Prefixes of tensor names used here, by those in published checkpoints.
        stored_shapes: Gives the shapes of the weights that tell the sizes of a network, by name.
        kept_macs: Counts mean multiply-accumulates of the first graph over pictures, from the
            tokens that each gate kept, (n, gates); None if all pictures cost the same.
        chooses: Name of the tokens that a network chooses; None if it chooses none.
        goes_on: Who goes on to the second graph, where there is one: pictures of low `confidence`,
            or those whose `overflow` the first graph reports.
        float_in_int8: Names the linear layers, such as `blocks.0.mlp.fc2`, that INT8 leaves in
            floating point; None for none.
        dense_macs: Counts multiply-accumulates of the dense network of the same body; None for
            that of DeiT and LV-ViT.
    """

    name: str
    title: str
    presets: Mapping[str, Mapping[str, Any]]
    files: Mapping[Role, str]
    section: str | None
    check: Callable[[ModelConfig], None]
    tensors: Callable[[ModelConfig, Selection, InputKind], Mapping[Role, tuple[Tensors, Tensors]]]
    macs: Callable[[ModelConfig, Counted], dict[Role, int]]
    model: str
    view: str
    layout: str
    checkpoint_names: Mapping[str, str]
    stored_shapes: Callable[[ModelConfig], Mapping[str, tuple[int, ...]]]
    kept_macs: Callable[[ModelConfig, NDArray[np.int64]], float] | None = None
    chooses: Literal["target tokens", "kept tokens"] | None = None
    goes_on: Literal["confidence", "overflow"] = "confidence"
    float_in_int8: Callable[[ModelConfig], tuple[str, ...]] | None = None
    dense_macs: Callable[[ModelConfig], int] | None = None

    def load(self, part: Literal["model", "view", "layout"]) -> Any:
        """Import the torch class or function that the family names; this needs torch."""
        module, _, name = getattr(self, part).partition(":")
        return getattr(importlib.import_module(module), name)
