"""Translation of a traced view to ONNX."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch

from sacvit_deploy.errors import ExportError, interrupt_in
from sacvit_deploy.model.views import example_inputs, view_for
from sacvit_deploy.model.vision_model import VisionModel
from sacvit_deploy.spec import GraphSpec

# LayerNormalization is one operator from 17 on, and 18 is the oldest set the exporter writes.
# TensorRT 11 reads up to 25.
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: its modules from the outside, and itself
OLDEST_OPSET, NEWEST_OPSET = 18, 25


def onnx_from_torch(model: VisionModel, spec: GraphSpec, *, opset: int = 18) -> onnx.ModelProto:
    """Translate the part of a model that `spec` describes.

    Args:
        model: A model in any mode; it is traced in evaluation mode.
        spec: Names and shapes of inputs and outputs; strings are dynamic axes.
        opset: ONNX operator set of the result.

    Raises:
        ExportError: The operator set is not supported, or the translation failed.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(
            f"Operator set {opset} was asked for.",
            f"Choose one from {OLDEST_OPSET} to {NEWEST_OPSET}; 18 runs everywhere.",
        )
    view = view_for(model, spec)
    inputs = example_inputs(spec, model.config)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                view,
                inputs,
                dynamo=True,
                opset_version=opset,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=_dynamic_shapes(spec),
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        if (interrupt := interrupt_in(error)) is not None:
            raise KeyboardInterrupt(*interrupt.args) from error
        if not isinstance(error, torch.onnx.errors.OnnxExporterError):
            raise
        raise ExportError(
            f"torch {torch.__version__} could not translate the {spec.role} graph: {error}",
            "Try --opset 18, or another release of torch and onnxscript.",
        ) from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing.", "Install torch 2.6 or later.")
    model = program.model_proto
    _name_weights(model)
    return model


def _name_weights(model: onnx.ModelProto) -> None:
    """Name the weights of linear layers, which the exporter transposed, after their modules.

    Everything that speaks of a layer later finds it by this name; see `comparison.graphs`.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and (weight := weights.get(node.input[1])) is not None:
            scopes = next(p.value for p in node.metadata_props if p.key == _SCOPES)
            *_, module, _ = ast.literal_eval(scopes)
            renamed[weight.name] = f"{module}.weight_transposed"
    for name, new in renamed.items():
        weights[name].name = new
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _dynamic_shapes(spec: GraphSpec) -> tuple[Any, ...]:
    """One symbol for each dynamic axis name, in the form of torch.export.

    A view takes the image and `*tensors`, so the second entry covers all inputs after the first.
    """
    names = sorted({a for t in spec.inputs for a in t.shape if isinstance(a, str)})
    symbols = {name: torch.export.Dim(name, min=1, max=65535) for name in names}
    axes = [
        {i: symbols[a] for i, a in enumerate(t.shape) if isinstance(a, str)} for t in spec.inputs
    ]
    return (axes[0], tuple(axes[1:])) if len(axes) > 1 else (axes[0],)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log and warnings: missing torchvision, its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
