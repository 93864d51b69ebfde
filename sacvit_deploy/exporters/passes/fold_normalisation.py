"""Normalisation inside the graph, which then takes raw pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from sacvit_deploy.comparison.graphs import redirect
from sacvit_deploy.errors import ExportError
from sacvit_deploy.spec import IMAGE

if TYPE_CHECKING:
    from sacvit_deploy.spec import Preprocessing

_MAX_PIXEL = 255.0


@dataclass(frozen=True)
class FoldNormalisation:
    """Folds (x/255 - mean)/std into the patch embedding and makes the image input uint8.

    With W' = W/(255 std) and b' = b - sum W mean/std the convolution of raw pixels equals that of
    normalised pixels. The patches have no padding, and the half-size step is an average whose
    weights sum to 1, so both commute with the normalisation.

    Attributes:
        preprocessing: Source of mean and std.
    """

    preprocessing: Preprocessing

    @property
    def __name__(self) -> str:
        """Name in reports, like that of a function."""
        return "fold_normalisation"

    def __call__(self, graph: gs.Graph) -> int:
        """Change the graph in place.

        Returns:
            Number of convolutions changed, always 1.

        Raises:
            ExportError: There is not exactly one convolution.
        """
        convolutions = [node for node in graph.nodes if node.op == "Conv"]
        if len(convolutions) != 1:
            raise ExportError(
                f"A uint8 input needs one patch embedding; the graph has {len(convolutions)} Conv.",
                "Export with --input float.",
            )
        self._fold(convolutions[0])
        _take_pixels(graph)
        return 1

    def _fold(self, node: gs.Node) -> None:
        weight = node.inputs[1].values.astype(np.float64)
        mean = np.array(self.preprocessing.mean).reshape(1, 3, 1, 1)
        std = np.array(self.preprocessing.std).reshape(1, 3, 1, 1)
        shift = (weight * mean / std).sum(axis=(1, 2, 3))
        # New constants, not changed ones: the exporter may have let another node share them.
        folded = _constant(f"{node.name}_pixel_weight", weight / (_MAX_PIXEL * std))
        # The exporter leaves a bias of zeros out.
        bias = node.inputs[2].values if len(node.inputs) > 2 else np.float64(0)
        bias = _constant(f"{node.name}_pixel_bias", bias - shift)
        node.inputs = [node.inputs[0], folded, bias]


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
