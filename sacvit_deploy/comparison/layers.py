"""Two networks layer by layer: every linear layer, and every sum on the residual path.

A tensor of an exported graph keeps its name in every precision. Graphs of different exports, and
torch, have in common where in the network a tensor stands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from sacvit_deploy.comparison.graphs import (
    Graph,
    constants,
    fp32_graphs,
    linear_nodes,
    module_of,
    read_graph,
    rounding_model,
    tensor_values,
)
from sacvit_deploy.comparison.network import ONNXRUNTIME, Network
from sacvit_deploy.comparison.tensors import ReferenceTensors
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.spec import Role

Feeds = Mapping[str, NDArray[Any]]
Values = Mapping["Spot", NDArray[Any]]


class Spot(NamedTuple):
    """A tensor in any network of one configuration.

    Attributes:
        place: Name of the module: a linear layer, a convolution or a LayerNormalization.
        enters: Whether the tensor enters there; else it is the result, with its bias.
    """

    place: str
    enters: bool


@dataclass(frozen=True)
class Probe:
    """A tensor of an FP32 graph to compare.

    Attributes:
        tensor: Its name.
        node: Name of the node that makes it.
        place: Place of that node in the network.
        spot: The same tensor in other networks.
    """

    tensor: str
    node: str
    place: str
    spot: Spot


@dataclass(frozen=True)
class LayerError:
    """Error of one tensor against the reference.

    Attributes:
        role: Role of the graph.
        place: Layer of the network, for example `blocks.3.mlp.fc1`.
        kind: The `product` of a linear layer, or the residual `sum` behind it.
        tensor: Name of the tensor in the ONNX graph.
        node: Name of the node that makes it.
        error: Norm of the difference over the norm of the reference; infinite if a value is not
            finite.
    """

    role: Role
    place: str
    kind: Literal["product", "sum"]
    tensor: str
    node: str
    error: float


class LayerSource(Protocol):
    """One graph, open inside."""

    def values(self, probes: list[Probe], feeds: Feeds) -> Values:
        """Compute the tensors at the spots of some probes, those the graph has."""


@dataclass(frozen=True)
class GraphLayers:
    """An ONNX graph of any precision, computed exactly as it says; a `LayerSource`.

    Attributes:
        model: With its weights.
        probes: Its tensors that can be compared, named as in the FP32 graph.
        file: Where to put a temporary copy of the graph.
    """

    model: onnx.ModelProto
    probes: list[Probe]
    file: Path

    def values(self, probes: list[Probe], feeds: Feeds) -> Values:
        """See `LayerSource.values`."""
        known = {probe.spot: probe.tensor for probe in self.probes}
        wanted = {probe.spot: known[probe.spot] for probe in probes if probe.spot in known}
        found = tensor_values(self.model, wanted.values(), feeds, self.file)
        return {spot: found[name] for spot, name in wanted.items()}


def compare_layers(
    reference: Network, candidate: Network, pixels: NDArray[np.uint8]
) -> list[LayerError]:
    """Measure every layer of every graph; each graph gets the tensors of the reference.

    Args:
        reference: Trusted network: torch, or ONNX graphs.
        candidate: ONNX graphs in question.
        pixels: One batch, (B, 3, H, W).

    Returns:
        One error per probe, in the order of the network.

    Raises:
        ConfigError: A network runs engines, or the candidate is torch.
        EngineError: A session failed.
    """
    known = ReferenceTensors(reference, pixels)
    errors: list[LayerError] = []
    with tempfile.TemporaryDirectory(prefix="sacvit-deploy-") as scratch:
        graphs = _graph_layers(candidate, Path(scratch))
        sessions: Any = reference.sessions  # in torch each is a LayerSource
        trusted = sessions if reference.bundle is None else _graph_layers(reference, Path(scratch))
        for role, graph in graphs.items():
            wanted = trusted[role].values(graph.probes, known.feeds(reference, role))
            found = graph.values(graph.probes, known.feeds(candidate, role))
            errors += layer_errors(role, graph.probes, wanted, found)
    return errors


def _graph_layers(network: Network, scratch: Path) -> dict[Role, GraphLayers]:
    """Open the ONNX graphs of a network; FP16 is rounded at every tensor, as a GPU does."""
    if network.bundle is None or network.backend != ONNXRUNTIME:
        raise ConfigError(
            f"{network.name} cannot be looked into: the layers of an engine are fused.",
            "Leave --layers out, or compare the ONNX graphs the engine was built from.",
        )
    opened = {}
    for role, graph in fp32_graphs(network.bundle).items():
        entry = network.bundle.graph(role, network.precision)
        model = read_graph(network.bundle.graph_path(entry))
        if entry.precision == "fp16":
            model = rounding_model(model)
        opened[role] = GraphLayers(model, probes(graph), scratch / f"{role}.probes.onnx")
    return opened


def probes(graph: Graph) -> list[Probe]:
    """List the tensors of an FP32 graph to compare, in the order of the graph."""
    nodes, places = graph.model.graph.node, graph.places
    spots: dict[str, Spot] = {}
    for node in nodes:
        if node.op_type == "LayerNormalization":
            spots[node.input[0]] = Spot(places[node.name], enters=True)
    biased = _biased_outputs(graph.model)
    for node in linear_nodes(graph.model):
        result = biased.get(node.output[0], node.output[0])
        place = module_of(node) if node.op_type == "Conv" else places[node.name]
        spots[result] = Spot(place, enters=False)
    return [
        Probe(tensor, node.name, places[node.name], spots[tensor])
        for node in nodes
        for tensor in node.output
        if tensor in spots
    ]


def _biased_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Tensors to which a constant is added, and the sums.

    Before the sum INT8 may differ by a constant: the input was moved, and the bias corrects it.
    """
    known = constants(model)
    return {
        name: node.output[0]
        for node in model.graph.node
        if node.op_type == "Add" and known.intersection(node.input)
        for name in node.input
        if name not in known
    }


def layer_errors(
    role: Role, found: list[Probe], wanted: Values, measured: Values
) -> list[LayerError]:
    """Measure the error at every spot that both have, in the order of the graph.

    Args:
        role: Role of the graph.
        found: Its probes.
        wanted: Values of the reference.
        measured: Values of the candidate, fed with the same tensors.
    """
    return [
        LayerError(
            role=role,
            place=probe.place,
            kind="sum" if probe.spot.enters else "product",
            tensor=probe.tensor,
            node=probe.node,
            error=max(
                map(
                    _relative,
                    _parts(probe, wanted[probe.spot]),
                    _parts(probe, measured[probe.spot]),
                )
            ),
        )
        for probe in found
        if probe.spot in wanted
        and probe.spot in measured
        # A gate may have chosen another number of tokens.
        and wanted[probe.spot].size == measured[probe.spot].size
    ]


def _parts(probe: Probe, values: NDArray[Any]) -> list[NDArray[Any]]:
    """What is compared by itself: of `attn.qkv` the query, which is scaled, and the key.

    INT8 may scale the value part, and undo that in `attn.proj`.
    """
    if probe.place.endswith("attn.qkv") and not probe.spot.enters:
        return np.split(values, 3, axis=-1)[:2]
    return [values]


def _relative(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    exact = wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = found.astype(np.float64).reshape(exact.shape) - exact
        error = float(np.linalg.norm(difference)) / max(float(np.linalg.norm(exact)), 1e-30)
    return error if np.isfinite(error) else float("inf")


def worst_step(layers: Iterable[LayerError]) -> LayerError | None:
    """Find the first layer that is not finite, or else the largest jump of the error.

    Args:
        layers: In the order of the network; each graph begins anew.

    Returns:
        None if there are no layers.
    """
    largest: dict[Role, float] = {}
    jumps = []
    for layer in layers:
        if not np.isfinite(layer.error):
            return layer
        before = largest.setdefault(layer.role, 0.0)
        jumps.append((layer.error - before, layer))
        largest[layer.role] = max(before, layer.error)
    return max(jumps, key=lambda jump: jump[0])[1] if jumps else None
