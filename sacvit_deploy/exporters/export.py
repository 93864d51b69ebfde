"""Export: a checkpoint, or a torch model, becomes a bundle folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import check_replaceable, new_bundle, write_manifest
from sacvit_deploy.class_labels import labels_for
from sacvit_deploy.comparison.network import Network
from sacvit_deploy.comparison.tensors import (
    check_parity,
    compare_tensors,
    parity_batches,
    random_pixels,
)
from sacvit_deploy.comparison.torch_network import torch_network
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.session import SessionOptions, for_any_batch
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.exporters.gate_capacity import CapacityRequest, with_capacity
from sacvit_deploy.exporters.onnx_from_torch import onnx_from_torch
from sacvit_deploy.exporters.passes import DEFAULT_PASSES, Pass, run_passes
from sacvit_deploy.exporters.passes.fold_normalisation import fold_normalisation
from sacvit_deploy.exporters.passes.store_half import store_half
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.exporters.preprocessing import PreprocessingRequest, preprocessing_for
from sacvit_deploy.exporters.shared_weights import save_with_shared_weights
from sacvit_deploy.exporters.timm_models import read_source
from sacvit_deploy.families.config import (
    ModelConfig,
    graph_specs,
    number_of_classes,
)
from sacvit_deploy.libraries import own_versions, versions
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.model.build import as_stored, random_model
from sacvit_deploy.model.checkpoint_fit import check_finite
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.model.layouts import refuse_distilled
from sacvit_deploy.model.preset_fit import presets_that_fit
from sacvit_deploy.model.vision_model import VisionModel
from sacvit_deploy.progress import OnProgress, Steps, silent, within
from sacvit_deploy.records import GraphEntry, TensorParity, WeightsOrigin
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import (
    GraphSpec,
    InputKind,
    Preprocessing,
    Selection,
    WeightStorage,
    check_eta,
)

_LOG = logging.getLogger(__name__)

_RECORDED_TOOLS = ("torch", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "numpy")
_NAME_PRESET = "Name it with --preset, for example --preset sac_deit_small_patch16_224."
_UNASKED = PreprocessingRequest()
_IN_MEMORY = WeightsOrigin("model", file="a model in memory")


@dataclass(frozen=True)
class ExportOptions:
    """Choices of an export.

    Attributes:
        config: Architecture of a checkpoint or of random weights; None takes the one the checkpoint
            records.
        overrides: Fields of the architecture to change.
        seed: Seed of random weights.
        origin: Record of the weights of a model in memory, for `bundle.json`.
        labels: See `class_labels.labels_for`; None numbers the classes.
        opset: ONNX operator set.
        selection: Who picks the target tokens: the `host`, or the refine `graph` itself.
        input_kind: `float` takes the normalised image; `uint8` takes pixels.
        eta: Default exit threshold in [0, 1].
        weight_storage: `fp16` halves the files. The weights are rounded once, before everything
            else, and computed with in float32.
        parity_batches: Batch sizes at which the graphs are compared with torch; none for the usual
            ones, see `comparison.tensors.parity_batches`.
        preprocessing: How the network wants its pictures, where that is given.
        capacity: Pictures to find the capacities of gates on; None leaves the configuration.
        precisions: Graphs to add to the FP32 ones.
        threads: CPU threads of one operator; None leaves it to ONNX Runtime. torch has its own
            setting.
        force: Replace an existing bundle.

    Raises:
        ConfigError: `eta` is out of range.
        EngineError: The number of threads is out of range.
    """

    config: ModelConfig | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    origin: WeightsOrigin = _IN_MEMORY
    labels: str | Path | Sequence[str] | None = None
    opset: int = 18
    selection: Selection = "host"
    input_kind: InputKind = "float"
    eta: float = 0.5
    weight_storage: WeightStorage = "fp32"
    parity_batches: tuple[int, ...] = ()
    preprocessing: PreprocessingRequest = _UNASKED
    capacity: CapacityRequest | None = None
    precisions: tuple[PrecisionRequest, ...] = ()
    threads: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        SessionOptions(threads=self.threads)  # checks it
        check_eta(self.eta)


_DEFAULT = ExportOptions()


def export_bundle(
    source: Path | Checkpoint | VisionModel | None,
    output: Path,
    options: ExportOptions = _DEFAULT,
    on_progress: OnProgress = silent,
) -> Bundle:
    """Write the bundle of a network; it appears whole or not at all.

    Args:
        source: Checkpoint file, or the name of a model of timm; or a checkpoint that was read; or a
            model in any mode, which stays as it is; or None for random weights.
        output: Folder to create.
        options: Choices.
        on_progress: Called with the share of the work done, in [0, 1], and a short text.

    Raises:
        BundleError: Something is in the way of the folder.
        CheckpointError: The checkpoint cannot be read or does not fit, or a weight is not finite.
        ConfigError: The options do not fit the network.
        DataError: The pictures for the capacities cannot be read.
        ExportError: A graph could not be written.
        ParityError: A graph differs from the model.
        PrecisionError: A lower precision would change the decisions of the network.
    """
    check_replaceable(output, force=options.force)
    steps = _steps(options, on_progress)
    steps.part("reading")(0.0, "reading the weights")
    resolved = _resolve(source, options)
    model = resolved.model
    if options.capacity is not None:
        counting = steps.part("counting")
        found = with_capacity(model, resolved.preprocessing, options.capacity, counting)
        model.config = found
    labels = _read_labels(options.labels, model.config)
    specs = graph_specs(model.config, selection=options.selection, input_kind=options.input_kind)
    with new_bundle(output, force=options.force) as folder:
        graphs = {}
        for number, spec in enumerate(specs):
            part = within(steps.part("graphs"), number / len(specs), (number + 1) / len(specs))
            graphs[spec.file] = _export_graph(resolved, spec, options, part)
        save_with_shared_weights(graphs, folder)
        batches = options.parity_batches or parity_batches(model.config.image_size)
        checked = replace(options, parity_batches=batches)
        parity = _compare_with_torch(resolved, specs, checked, folder, steps.part("parity"))
        check_parity(parity)
        manifest = Manifest(
            config=model.config,
            preprocessing=resolved.preprocessing,
            selection=options.selection,
            input_kind=options.input_kind,
            eta=options.eta,
            labels=labels,
            graphs=tuple(GraphEntry(s.role, "fp32", s.file, s.inputs, s.outputs) for s in specs),
            weights=resolved.weights,
            parity=tuple(parity),
            tools=own_versions() | versions(*_RECORDED_TOOLS),
        )
        write_manifest(folder, manifest)
        staged = Bundle.open(folder, check_hashes=False)
        for request in options.precisions:
            staged = add_precision(staged, request, steps.part(request.precision))
    on_progress(1.0, "exported")
    return Bundle.open(output, check_hashes=False)


def _steps(options: ExportOptions, on_progress: OnProgress) -> Steps:
    """The steps of an export, with their times for a network of 224 pixels in seconds."""
    counting = {} if options.capacity is None else {"counting": 5.0}
    known = {"fp16": 8.0, "int8": 40.0}
    lower: dict[str, float] = {r.precision: known[r.precision] for r in options.precisions}
    return Steps(on_progress, {"reading": 1, **counting, "graphs": 8, "parity": 2, **lower})


class _Resolved(NamedTuple):
    """A network with its weights as they will be stored, their record, and its preprocessing."""

    model: VisionModel
    weights: WeightsOrigin
    preprocessing: Preprocessing


def _resolve(source: Path | Checkpoint | VisionModel | None, options: ExportOptions) -> _Resolved:
    model: VisionModel
    request, checkpoint = options.preprocessing, None
    if isinstance(source, Path):
        source, published = read_source(source)
        request = request.over(published)
    if isinstance(source, Checkpoint):
        checkpoint, origin = source, source.origin
        config = options.config or checkpoint.config or _only_preset(checkpoint)
        model = checkpoint.model(config.replace(**options.overrides))
    elif source is None:
        if options.config is None:
            raise ConfigError(
                "Random weights were asked for, but not of which network.", _NAME_PRESET
            )
        model = random_model(options.config.replace(**options.overrides), options.seed)
        origin = WeightsOrigin("random", seed=options.seed)
    else:
        check_finite(source.state_dict(), "The model")
        model, origin = source, options.origin
    weights = replace(origin, storage=options.weight_storage)
    preprocessing = preprocessing_for(model.config, request, checkpoint)
    return _Resolved(as_stored(model, weights), weights, preprocessing)


def _only_preset(checkpoint: Checkpoint) -> ModelConfig:
    """The preset that the weights have the shapes of, if there is just one."""
    fits = presets_that_fit(checkpoint.tensors)
    if len(fits) == 1:
        ((name, config),) = fits.items()
        _LOG.info("Preset %s, the only one that fits", name)
        return config
    problem = f"{checkpoint.name} does not say which network it holds, and no preset was given."
    if not fits:
        refuse_distilled(checkpoint.tensors)
        raise ConfigError(f"{problem} No preset has just its tensors.", _NAME_PRESET)
    names = ", ".join(fits)
    raise ConfigError(f"{problem} Its shapes are those of {names}.", "Name one with --preset.")


def _read_labels(source: str | Path | Sequence[str] | None, config: ModelConfig) -> tuple[str, ...]:
    classes = number_of_classes(config)
    if source is None:
        return tuple(f"class {index}" for index in range(classes))
    return labels_for(source, classes)


def _export_graph(
    resolved: _Resolved, spec: GraphSpec, options: ExportOptions, on_progress: OnProgress
) -> onnx.ModelProto:
    on_progress(0.0, f"translating {spec.file} ({spec.role})")
    translated = onnx_from_torch(resolved.model, spec, opset=options.opset)
    on_progress(0.7, f"simplifying {spec.file} ({spec.role})")
    passes: tuple[Pass, ...] = DEFAULT_PASSES
    if options.input_kind == "uint8":
        passes = (*passes, fold_normalisation(resolved.preprocessing))
    if options.weight_storage == "fp16":
        passes = (*passes, store_half)
    graph, _ = run_passes(translated, spec, passes)
    return graph


def _compare_with_torch(
    resolved: _Resolved,
    specs: tuple[GraphSpec, ...],
    options: ExportOptions,
    folder: Path,
    on_progress: OnProgress,
) -> list[TensorParity]:
    """Measure the error of every tensor of the written graphs on random pixels."""
    model, _, preprocessing = resolved
    sessions = SessionOptions(threads=options.threads)
    written = Network(
        "ONNX",
        model.config,
        Preprocessor(preprocessing, options.input_kind),
        {
            spec.role: for_any_batch(
                OnnxRuntimeSession(folder / spec.file, sessions, graph=spec), spec
            )
            for spec in specs
        },
        options.selection,
    )

    def batches() -> Iterator[NDArray[np.uint8]]:
        for done, size in enumerate(options.parity_batches):
            share = done / len(options.parity_batches)
            on_progress(share, f"comparing with torch at batch {size}")
            yield random_pixels(preprocessing.crop, size)

    return compare_tensors(torch_network(model, preprocessing), written, batches())
