"""Graph passes between torch's translation and the file, one pass per file.

A pass takes an onnx-graphsurgeon graph, changes it in place and returns the number of places it
changed. `run_passes` checks after each pass that the graph is still valid, and after the last that
it keeps its contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_graphsurgeon as gs

from sacvit_deploy.comparison.graphs import to_model
from sacvit_deploy.errors import ExportError
from sacvit_deploy.exporters.passes.fold_constants import fold_constants
from sacvit_deploy.exporters.passes.gather_token_rows import gather_token_rows
from sacvit_deploy.exporters.passes.order_gelu import order_gelu
from sacvit_deploy.exporters.passes.static_resize import static_resize
from sacvit_deploy.spec import GraphSpec

Pass = Callable[[gs.Graph], int]

DEFAULT_PASSES: tuple[Pass, ...] = (
    fold_constants,
    static_resize,
    gather_token_rows,
    order_gelu,
)


def run_passes(
    model: onnx.ModelProto, spec: GraphSpec, passes: Sequence[Pass]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Run passes in order.

    Args:
        model: A graph.
        spec: Contract that it has to keep when the last pass is done.
        passes: Passes to run.

    Returns:
        The new model; and the number of places that each pass changed, by its name.

    Raises:
        ExportError: A pass left an invalid graph, or the contract is not kept.
    """
    changed: dict[str, int] = {}
    for run in passes:
        graph = gs.import_onnx(model)
        changed[run.__name__] = run(graph)
        model = to_model(graph.cleanup().toposort())
        _check_valid(model, list(changed))
    check_contract(model, spec)
    return model, changed


def _check_valid(model: onnx.ModelProto, done: list[str]) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"The graph is invalid after the passes {', '.join(done)}: {error}",
            "This is a defect of the last of these passes; please report it.",
        ) from error


def check_contract(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Check that names, dtypes and shapes of inputs and outputs are those of the contract.

    Raises:
        ExportError: One of them differs.
    """
    for kind, found, wanted in (
        ("inputs", model.graph.input, spec.inputs),
        ("outputs", model.graph.output, spec.outputs),
    ):
        has = [_describe(value) for value in found]
        must = [(t.name, t.dtype, t.shape) for t in wanted]
        if has != must:
            raise ExportError(
                f"The {kind} of the {spec.role} graph are {has}, the contract says {must}.",
                "This is a defect of the export; please report it.",
            )


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return value.name, dtype, shape
