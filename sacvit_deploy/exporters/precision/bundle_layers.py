"""The graphs of a bundle, to be looked into layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacvit_deploy.exporters.precision.half_precision import rounding_model
from sacvit_deploy.exporters.precision.layers import (
    GraphLayers,
    probes,
    read_graph,
    tensor_names,
)

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from sacvit_deploy.bundle import Bundle, Precision
    from sacvit_deploy.exporters.precision.layers import Probe
    from sacvit_deploy.manifest import GraphEntry
    from sacvit_deploy.spec import Role


def bundle_probes(bundle: Bundle) -> dict[Role, list[Probe]]:
    """What can be compared, named as in the FP32 graphs."""
    entries = [graph for graph in bundle.manifest.graphs if graph.precision == "fp32"]
    return {e.role: probes(read_graph(bundle.graph_path(e)), e.role) for e in entries}


def bundle_layers(bundle: Bundle, precision: Precision, scratch: Path) -> GraphLayers:
    """The graphs of one precision; FP16 is rounded at every tensor, as a GPU does.

    Args:
        bundle: With FP32 graphs, whose names those of every precision share.
        precision: Which of its graphs to look into.
        scratch: An existing folder for files nobody keeps.
    """
    names = {role: tensor_names(found) for role, found in bundle_probes(bundle).items()}
    models = {role: _literal(bundle, bundle.graph(role, precision)) for role in names}
    return GraphLayers(models, names, scratch)


def _literal(bundle: Bundle, entry: GraphEntry) -> onnx.ModelProto:
    graph = read_graph(bundle.graph_path(entry))
    return rounding_model(graph) if entry.precision == "fp16" else graph
