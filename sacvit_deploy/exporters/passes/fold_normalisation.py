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
    """Make a pass that folds (x/255 - mean)/std into the first convolution.

    With W' = W/(255 std) and b' = b - sum W mean/std the convolution of raw pixels equals that of
    normalised pixels. The half-size step is an average whose weights sum to 1, so it commutes with
    the normalisation. So does a convolution without padding. With padding the mean is subtracted
    from the pixels, because the zeros at the border stand for it. The image input becomes uint8.

    Args:
        preprocessing: Source of mean and std.

    Returns:
        A pass that changes one convolution. It raises `ExportError` if there is not exactly one
        that takes in colours.
    """

    def fold_normalisation(graph: gs.Graph) -> int:
        first = [
            node
            for node in graph.nodes
            if node.op == "Conv" and node.inputs[1].shape[1] == len(preprocessing.mean)
        ]
        if len(first) != 1:
            raise ExportError(
                f"A uint8 input needs one convolution of the picture; the graph has {len(first)}.",
                "Export with --input float.",
            )
        pixels = _take_pixels(graph)
        _fold(first[0], preprocessing)
        if any(first[0].attrs.get("pads", ())):
            _subtract_mean(graph, pixels, preprocessing)
        return 1

    return fold_normalisation


def _fold(node: gs.Node, preprocessing: Preprocessing) -> None:
    weight = node.inputs[1].values.astype(np.float64)
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (preprocessing.mean, preprocessing.std))
    padded = any(node.attrs.get("pads", ()))
    shift = (weight * mean / std).sum(axis=(1, 2, 3)) * (not padded)
    # The exporter leaves a bias of zeros out.
    bias = node.inputs[2].values if len(node.inputs) > 2 else np.float64(0)
    # New constants, not changed ones: another node may share them. They keep the module's name.
    module = node.inputs[1].name.rpartition(".weight")[0]
    folded = _constant(f"{module}.weight_pixels", weight / (_MAX_PIXEL * std))
    node.inputs = [node.inputs[0], folded, _constant(f"{module}.bias_pixels", bias - shift)]


def _constant(name: str, values: np.ndarray) -> gs.Constant:
    return gs.Constant(name, values.astype(np.float32))


def _take_pixels(graph: gs.Graph) -> gs.Variable:
    """Put a Cast behind the image, before all nodes: engines take uint8 at their border only.

    Returns:
        Its result.
    """
    image = next(tensor for tensor in graph.inputs if tensor.name == IMAGE)
    pixels = gs.Variable("image_pixels", np.float32, image.shape)
    redirect(image, pixels)
    cast = gs.Node("Cast", "cast_pixels", {"to": TensorProto.FLOAT}, [image], [pixels])
    image.dtype = np.uint8
    graph.nodes.insert(0, cast)
    return pixels


def _subtract_mean(graph: gs.Graph, pixels: gs.Variable, preprocessing: Preprocessing) -> None:
    mean = np.reshape(np.multiply(_MAX_PIXEL, preprocessing.mean), (1, 3, 1, 1))
    centred = gs.Variable("image_centred", np.float32, pixels.shape)
    redirect(pixels, centred)
    constant = _constant("image_mean", mean)
    graph.nodes.insert(1, gs.Node("Sub", "subtract_mean", {}, [pixels, constant], [centred]))
