"""Normalisation inside the graph, which then takes raw pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from sacvit_deploy.comparison.graphs import redirect
from sacvit_deploy.errors import ExportError
from sacvit_deploy.spec import IMAGE, Preprocessing

if TYPE_CHECKING:
    from sacvit_deploy.exporters.passes import Pass


_MAX_PIXEL = 255.0


def fold_normalisation(preprocessing: Preprocessing) -> Pass:
    """Make a pass that folds (x/255 - mean)/std into the patch embedding.

    With W' = W/(255 std) and b' = b - sum W mean/std the convolution of raw pixels equals that of
    normalised pixels. The patches have no padding, and the half-size step is an average whose
    weights sum to 1, so both commute with the normalisation. The image input becomes uint8.

    Args:
        preprocessing: Source of mean and std.

    Returns:
        A pass that changes one convolution. It raises `ExportError` if there is not exactly one.
    """

    def fold_normalisation(graph: gs.Graph) -> int:
        convolutions = [node for node in graph.nodes if node.op == "Conv"]
        if len(convolutions) != 1:
            raise ExportError(
                f"A uint8 input needs one patch embedding; the graph has {len(convolutions)} Conv.",
                "Export with --input float.",
            )
        _fold(convolutions[0], preprocessing)
        _take_pixels(graph)
        return 1

    return fold_normalisation


def _fold(node: gs.Node, preprocessing: Preprocessing) -> None:
    weight = node.inputs[1].values.astype(np.float64)
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (preprocessing.mean, preprocessing.std))
    shift = (weight * mean / std).sum(axis=(1, 2, 3))
    # The exporter leaves a bias of zeros out.
    bias = node.inputs[2].values if len(node.inputs) > 2 else np.float64(0)
    # New constants, not changed ones: another node may share them.
    folded = _constant(f"{node.name}_pixel_weight", weight / (_MAX_PIXEL * std))
    node.inputs = [node.inputs[0], folded, _constant(f"{node.name}_pixel_bias", bias - shift)]


def _constant(name: str, values: np.ndarray) -> gs.Constant:
    return gs.Constant(name, values.astype(np.float32))


def _take_pixels(graph: gs.Graph) -> None:
    """Put a Cast behind the image, before all nodes: engines take uint8 at their border only."""
    image = next(tensor for tensor in graph.inputs if tensor.name == IMAGE)
    pixels = gs.Variable("image_pixels", np.float32, image.shape)
    redirect(image, pixels)
    cast = gs.Node("Cast", "cast_pixels", {"to": TensorProto.FLOAT}, [image], [pixels])
    image.dtype = np.uint8
    graph.nodes.insert(0, cast)
