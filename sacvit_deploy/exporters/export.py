"""Export: a torch model becomes a bundle folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sacvit_deploy.bundle import Bundle, check_replaceable, new_bundle, write_manifest
from sacvit_deploy.comparison.network import Network
from sacvit_deploy.comparison.tensors import check_parity, compare_tensors, random_pixels
from sacvit_deploy.comparison.torch_network import torch_network
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.errors import CheckpointError, ConfigError
from sacvit_deploy.exporters.onnx_from_torch import onnx_from_torch
from sacvit_deploy.exporters.passes import DEFAULT_PASSES, run_passes
from sacvit_deploy.exporters.passes.fold_normalisation import FoldNormalisation
from sacvit_deploy.exporters.passes.store_half import store_half
from sacvit_deploy.exporters.precision import add_precision
from sacvit_deploy.exporters.shared_weights import save_with_shared_weights
from sacvit_deploy.families.config import graph_specs, preset_preprocessing
from sacvit_deploy.libraries import own_versions, versions
from sacvit_deploy.manifest import GraphEntry, Manifest
from sacvit_deploy.model.build import random_model, random_origin, rounded_to_half
from sacvit_deploy.model.checkpoints import checkpoint_config, checkpoint_model, checkpoint_origin
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import check_eta

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import onnx

    from sacvit_deploy.comparison.tensors import TensorParity
    from sacvit_deploy.exporters.passes import Pass
    from sacvit_deploy.exporters.precision import PrecisionRequest
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.model.vit import Backbone
    from sacvit_deploy.spec import GraphSpec, InputKind, Preprocessing, Selection, WeightStorage


_RECORDED_TOOLS = ("torch", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        preprocessing: From a picture to the network's input.
        labels: One name a class.
        weights: Where the weights came from, for the record.
        opset: ONNX operator set.
        selection: Who picks the target tokens: the `host`, or the refine `graph` itself.
        input_kind: `float` takes the normalised image; `uint8` takes pixels.
        eta: Default exit threshold in [0, 1].
        weight_storage: `fp16` halves the files; the weights are rounded once, before everything
            else, and computed with in float32.
        parity_batches: Batch sizes at which the graphs are compared with torch.
        precisions: What to add to the FP32 graphs.
    """

    preprocessing: Preprocessing
    labels: tuple[str, ...]
    weights: dict[str, Any]
    opset: int = 18
    selection: Selection = "host"
    input_kind: InputKind = "float"
    eta: float = 0.5
    weight_storage: WeightStorage = "fp32"
    parity_batches: tuple[int, ...] = field(default=(1, 2, 7))
    precisions: tuple[PrecisionRequest, ...] = ()

    def __post_init__(self) -> None:
        check_eta(self.eta)


def export_bundle(
    model: Backbone,
    options: ExportOptions,
    path: Path,
    *,
    force: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write the bundle of a model; it appears whole or not at all.

    Args:
        model: The network, any mode.
        options: How.
        path: The folder to create.
        force: Replace a bundle that is already there.
        report: Called with one line for each step.

    Raises:
        BundleError: Something is in the way.
        CheckpointError: A weight is not finite.
        ExportError: A graph could not be written.
        ParityError: A graph does not compute what the model computes.
        PrecisionError: A lower precision would change the decisions of the network.
    """
    _check_finite(model)
    if options.weight_storage == "fp16":
        model = rounded_to_half(model)
    specs = graph_specs(model.config, selection=options.selection, input_kind=options.input_kind)
    with new_bundle(path, force=force) as folder:
        graphs = {spec.file: _graph(model, spec, options, report) for spec in specs}
        save_with_shared_weights(graphs, folder)
        report(f"Comparing with torch at batches {', '.join(map(str, options.parity_batches))}")
        parity = _parity(model, options, specs, folder)
        check_parity(parity)
        write_manifest(folder, _manifest(model, options, specs, parity))
        staged = Bundle.open(folder, check_hashes=False)
        for request in options.precisions:
            staged = add_precision(staged, request, report)
    return Bundle.open(path, check_hashes=False)


def _graph(
    model: Backbone,
    spec: GraphSpec,
    options: ExportOptions,
    report: Callable[[str], None],
) -> onnx.ModelProto:
    report(f"Exporting {spec.file} ({spec.role})")
    passes: tuple[Pass, ...] = DEFAULT_PASSES
    if options.input_kind == "uint8":
        passes = (*passes, FoldNormalisation(options.preprocessing))
    translated = onnx_from_torch(model, spec, opset=options.opset)
    if options.weight_storage == "fp16":
        passes = (*passes, store_half)
    graph, _ = run_passes(translated, spec, passes)
    return graph


def _parity(
    model: Backbone, options: ExportOptions, specs: Sequence[GraphSpec], folder: Path
) -> list[TensorParity]:
    """Compare the written graphs with torch on random pixels."""
    written = Network(
        "ONNX",
        model.config,
        Preprocessor(options.preprocessing, options.input_kind),
        {spec.role: OnnxRuntimeSession(folder / spec.file) for spec in specs},
        options.selection,
    )
    batches = (random_pixels(options.preprocessing.crop, size) for size in options.parity_batches)
    return compare_tensors(torch_network(model, options.preprocessing), written, batches)


def _check_finite(model: Backbone) -> None:
    bad = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"NaN or infinite weights in {len(bad)} tensors: {', '.join(bad[:5])}"
            f"{', ...' if len(bad) > 5 else ''}.",
            "The training diverged or the file is damaged; export an earlier checkpoint.",
        )


def _manifest(
    model: Backbone,
    options: ExportOptions,
    specs: tuple[GraphSpec, ...],
    parity: list[TensorParity],
) -> Manifest:
    return Manifest(
        config=model.config,
        preprocessing=options.preprocessing,
        selection=options.selection,
        input_kind=options.input_kind,
        eta=options.eta,
        labels=options.labels,
        graphs=tuple(GraphEntry(s.role, "fp32", s.file, s.inputs, s.outputs) for s in specs),
        weights={**options.weights, "storage": options.weight_storage},
        parity=[record.to_dict() for record in parity],
        tools=own_versions() | versions(*_RECORDED_TOOLS),
    )


@dataclass(frozen=True)
class ExportRequest:
    """One call of `sacvit-deploy export`.

    Attributes:
        output: The bundle folder to create.
        checkpoint: File with the weights; None draws them from `seed`.
        base: Configuration to start from; None takes the one the checkpoint records.
        overrides: Fields of the configuration to change.
        seed: Of random weights.
        opset: ONNX operator set.
        selection: Who picks the target tokens.
        input_kind: What the graphs take.
        labels: Text file, one class name a line; None numbers the classes.
        eta: Default exit threshold in [0, 1].
        weight_storage: `fp32`, or `fp16` for half the bytes.
        force: Replace a bundle that is already there.
        precisions: What to add to the FP32 graphs.
    """

    output: Path
    checkpoint: Path | None = None
    base: ModelConfig | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    opset: int = 18
    selection: Selection = "host"
    input_kind: InputKind = "float"
    labels: Path | None = None
    eta: float = 0.5
    weight_storage: WeightStorage = "fp32"
    force: bool = False
    precisions: tuple[PrecisionRequest, ...] = ()


def run_export(request: ExportRequest, report: Callable[[str], None] = lambda _: None) -> Bundle:
    """Build the model, export it, and return the bundle.

    Raises:
        SacvitDeployError: Anything in the request does not fit; nothing is written then.
    """
    # Cheap refusals first: nobody wants to wait for an export that cannot be kept.
    check_eta(request.eta)
    check_replaceable(request.output, force=request.force)
    config = _config(request)
    labels = _labels(request, config)
    if request.checkpoint is None:
        model, origin = random_model(config, request.seed), random_origin(request.seed)
    else:
        model = checkpoint_model(request.checkpoint, config)
        origin = checkpoint_origin(request.checkpoint)
    options = ExportOptions(
        preset_preprocessing(config),
        labels,
        origin,
        opset=request.opset,
        selection=request.selection,
        input_kind=request.input_kind,
        eta=request.eta,
        weight_storage=request.weight_storage,
        precisions=request.precisions,
    )
    return export_bundle(model, options, request.output, force=request.force, report=report)


def _config(request: ExportRequest) -> ModelConfig:
    if request.checkpoint is not None:
        config = checkpoint_config(request.checkpoint, request.base)
    elif request.base is not None:
        config = request.base
    else:
        raise ConfigError(
            "Random weights were asked for, but not of which network.",
            "Name it with --preset, for example --preset sac_deit_small_patch16_224.",
        )
    return config.replace(**request.overrides)


def _labels(request: ExportRequest, config: ModelConfig) -> tuple[str, ...]:
    if request.labels is None:
        return tuple(f"class {index}" for index in range(config.num_classes))
    try:
        lines = request.labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The labels file {request.labels} cannot be read: {error}.",
            "Give a UTF-8 text file with one class name a line.",
        ) from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) != config.num_classes:
        raise ConfigError(
            f"{request.labels} names {len(labels)} classes, the network has {config.num_classes}.",
            "Give one class name a line, in class order, or set --set num_classes=N.",
        )
    return labels
