"""The matrix products of a graph, as a run of ONNX Runtime shows them."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.onnxruntime_providers import CPU, onnxruntime
from sacvit_deploy.engines.onnxruntime_session import add_weights
from sacvit_deploy.errors import EngineError, raised_as
from sacvit_deploy.records import GraphEntry

# Kernels that are matrix products; a convolution is one over patches.
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_KERNEL = "_kernel_time"
_QUANTIZED = ("uint8", "int8")
_MICROSECONDS = 1e3
_RUNS = 7


@dataclass(frozen=True)
class Product:
    """One matrix product, (rows, inner) times (inner, columns), for one picture.

    Attributes:
        dtype: Type of the left operand: `float`, `float16`, or `uint8` for both kinds of INT8.
        rows: Rows of the result.
        inner: Length of the sums.
        columns: Columns of the result.
        heads: Products of these sizes that are computed at once, as in attention.
        has_weights: Whether the right operand is fixed; in attention it is not.
    """

    dtype: str
    rows: int
    inner: int
    columns: int
    heads: int = 1
    has_weights: bool = True


@dataclass(frozen=True)
class GraphProfile:
    """The kernels of one graph for one picture.

    Attributes:
        products: Matrix products, in order.
        kernel_ms: Time of each kind of kernel, the longest first.
    """

    products: tuple[Product, ...]
    kernel_ms: Mapping[str, float]


def profile_graph(
    bundle: Bundle, graph: GraphEntry, feeds: Mapping[str, NDArray[Any]], threads: int | None
) -> GraphProfile:
    """Run a graph a few times with ONNX Runtime's profiler.

    The shapes come from the kernels that run, and not from the configuration. So they are those of
    any family, after every fusion.

    Args:
        bundle: Holds the graph.
        graph: Graph of any precision.
        feeds: Inputs for one picture.
        threads: CPU threads; None leaves it to the library.

    Raises:
        EngineError: The library cannot run the graph.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    ort, path = onnxruntime(), bundle.graph_path(graph)
    problem = f"ONNX Runtime cannot profile {path}"
    with (
        tempfile.TemporaryDirectory(prefix="sacvit-profile-") as folder,
        raised_as(EngineError, problem, "Check it with sacvit-deploy inspect.", Exception),
    ):
        settings = ort.SessionOptions()
        settings.log_severity_level, settings.enable_profiling = 3, True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        settings.intra_op_num_threads = threads or 0
        contents = add_weights(settings, bundle.linked_weights())
        session = ort.InferenceSession(str(path), settings, providers=[CPU])
        del contents
        for _ in range(_RUNS):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    return profile_of(kernels, _RUNS)


def profile_of(kernels: Sequence[Mapping[str, Any]], runs: int) -> GraphProfile:
    """Sum up the events of some runs of one graph.

    Of each kernel the shortest time counts: the others have waited for other programs.
    """
    of_a_run = len(kernels) // runs
    times: Counter[str] = Counter()
    for place, kernel in enumerate(kernels[:of_a_run]):
        shortest = min(kernels[place + run * of_a_run]["dur"] for run in range(runs))
        times[kernel["args"]["op_name"]] += shortest
    found = map(product_of, kernels[:of_a_run])
    products = tuple(product for product in found if product is not None)
    return GraphProfile(products, {name: us / _MICROSECONDS for name, us in times.most_common()})


def is_product(kernel: str) -> bool:
    """Whether a kind of kernel computes matrix products, such as `FusedMatMul`."""
    return any(name in kernel for name in _PRODUCTS)


def product_of(kernel: Mapping[str, Any]) -> Product | None:
    """Read one event of the profiler; None if its kernel is no matrix product.

    Weights that a kernel has packed are not among its inputs. Their shape follows from the others.
    """
    arguments = kernel["args"]
    if not is_product(arguments["op_name"]):
        return None
    inputs = [next(iter(tensor.items())) for tensor in arguments["input_type_shape"]]
    ((_, result),) = (tensor.popitem() for tensor in map(dict, arguments["output_type_shape"]))
    kind, left = inputs[0]
    dtype = "uint8" if kind in _QUANTIZED else kind
    size = math.prod(result)
    if "Conv" in arguments["op_name"]:
        columns = result[1]
        return Product(dtype, size // columns, math.prod(inputs[1][1][1:]), columns)
    columns = result[-1]
    if sum(len(shape) > 2 for _, shape in inputs) > 1:
        rows, heads = result[-2], math.prod(result[:-2])
        inner = math.prod(left) // (rows * heads)
        return Product(dtype, rows, inner, columns, heads, has_weights=False)
    rows = size // columns
    return Product(dtype, rows, math.prod(left) // rows, columns)


def random_operand(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> Any:
    """Draw values for one operand: normal, or whole numbers from -127 to 127 for INT8."""
    if dtype == "int8":
        return generator.integers(-127, 128, shape, dtype=np.int8)
    kind = np.float16 if dtype == "float16" else np.float32
    return generator.standard_normal(shape, dtype=np.float32).astype(kind, copy=False)
