"""FP16 or INT8 graphs beside the FP32 ones of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import PurePosixPath

import onnx
from onnx import TensorProto, numpy_helper

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import check_unchanged, locked, publish, staging_folder
from sacvit_deploy.exporters.passes import check_contract
from sacvit_deploy.exporters.precision.conversion import Kept, Trial, converted
from sacvit_deploy.exporters.precision.request import LowPrecision, PrecisionRequest
from sacvit_deploy.exporters.shared_weights import save_with_shared_weights
from sacvit_deploy.libraries import versions
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.progress import OnProgress, Steps, silent
from sacvit_deploy.records import Agreement, GraphEntry, PrecisionRecord
from sacvit_deploy.spec import GraphSpec, Role

_KINDS: dict[int, str] = {
    TensorProto.FLOAT16: "half",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT: "float",
}
_RECORDED_TOOLS = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy")


def add_precision(
    bundle: Bundle, request: PrecisionRequest, on_progress: OnProgress = silent
) -> Bundle:
    """Add FP16 or INT8 graphs to a bundle; the FP32 graphs stay.

    Names, dtypes and shapes of inputs and outputs are those of the FP32 graphs. The same request
    gives the same files. Graphs of that precision that exist already are replaced, and engines
    built from them are removed.

    Args:
        bundle: Bundle with FP32 graphs.
        request: What to add.
        on_progress: Called with the share of the work done, in [0, 1], and a short text.

    Returns:
        The bundle with its new description. When anything is raised, the folder is as before,
        except for a failure while files are being moved: the bundle is valid at every moment, and
        graphs that were to be replaced may be missing then.

    Raises:
        PrecisionError: The network would not decide as before.
        ConfigError: A name in `request.keep` is in no graph.
        DataError: The calibration data cannot be read.
        ImageError: A picture of it cannot be read.
        BundleError: The folder cannot be written to.
    """
    steps = Steps(on_progress, {"converting": 6, "comparing": 3, "writing": 1})
    with converted(bundle, request, steps.part("converting")) as trial:
        kept = trial.kept()
        agreement = trial.check(kept, steps.part("comparing"))
        entries = tuple(_entry(bundle, role, request.precision) for role in kept)
        files = {
            name: graph
            for e in entries
            for name, graph in zip(
                e.files, trial.conversion.graphs(e.role, kept[e.role]), strict=True
            )
        }
    record = _record(trial, kept, agreement, {e.role: files[e.files[-1]] for e in entries})
    with staging_folder(bundle) as staging:
        for entry in entries:
            for name in entry.files:
                spec = GraphSpec(entry.role, name, entry.inputs, entry.outputs)
                check_contract(files[name], spec)
        save_with_shared_weights(files, staging, f"weights.{request.precision}.bin")
        steps.part("writing")(0.5, f"writing {', '.join(files)}")
        with locked(bundle.path) as current:
            check_unchanged(current, bundle.graph_files(), "converted", "Export again.")
            added = publish(current, staging, _manifest(current.manifest, entries, record))
    on_progress(1.0, f"{request.precision} added")
    return added


def _entry(bundle: Bundle, role: Role, precision: LowPrecision) -> GraphEntry:
    """The entry of the FP32 graph with another precision and file: `ee.onnx`, `ee.fp16.onnx`."""
    original = bundle.graph(role)
    file = PurePosixPath(original.file)
    engine_file = str(file.with_suffix(".int8-fp16.onnx")) if precision == "int8" else None
    return dataclasses.replace(
        original,
        precision=precision,
        file=str(file.with_suffix(f".{precision}.onnx")),
        engine_file=engine_file,
    )


def _record(
    trial: Trial, kept: Kept, agreement: Agreement, graphs: dict[Role, onnx.ModelProto]
) -> PrecisionRecord:
    request, pictures = trial.request, trial.original.pictures
    return PrecisionRecord(
        method=request.method if request.precision == "int8" else None,
        smoothing=trial.conversion.smoothing,
        data=pictures.name,
        data_sha256=pictures.sha256,
        pictures=len(pictures.sources),
        seed=request.seed,
        kept_in_fp32={role: tuple(sorted(nodes)) for role, nodes in kept.items()},
        agreement=agreement,
        eta=trial.original.bundle.manifest.eta,
        weight_shares={role: weight_shares(graph) for role, graph in graphs.items()},
        linear_weight_shares={role: linear_weight_shares(g) for role, g in graphs.items()},
        tools=versions(*_RECORDED_TOOLS),
    )


def _manifest(
    manifest: Manifest, entries: tuple[GraphEntry, ...], record: PrecisionRecord
) -> Manifest:
    precision = entries[0].precision
    return dataclasses.replace(
        manifest.without_engines([e for e in manifest.engines if e.precision == precision]),
        graphs=(*(g for g in manifest.graphs if g.precision != precision), *entries),
        precisions={**manifest.precisions, precision: record},
    )


def weight_shares(model: onnx.ModelProto) -> dict[str, float]:
    """Share of the bytes of all constants in `half`, `int8` and `float`; indices do not count."""
    return _shares(model.graph.initializer)


def linear_weight_shares(model: onnx.ModelProto) -> dict[str, float]:
    """Same shares, of the weights of the patch embedding, the linear layers and the head only."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    names = set()
    for node in model.graph.node:
        if node.op_type not in {"MatMul", "Gemm", "Conv"}:
            continue
        name = node.input[1]
        if name in makers and makers[name].op_type in {"DequantizeLinear", "Cast"}:
            name = makers[name].input[0]
        names.add(name)
    return _shares(stored[name] for name in names & stored.keys())


def _shares(tensors: Iterable[onnx.TensorProto]) -> dict[str, float]:
    counts = dict.fromkeys(_KINDS.values(), 0)
    for tensor in tensors:
        if tensor.data_type in _KINDS:
            counts[_KINDS[tensor.data_type]] += numpy_helper.to_array(tensor).nbytes
    total = max(sum(counts.values()), 1)
    return {kind: count / total for kind, count in counts.items()}
