"""Bundles, engines, results, evaluations and calibrations in words, as lines for a person."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sacvit_deploy.bundle import Bundle, build_command
from sacvit_deploy.comparison.decisions import agreement_in_words
from sacvit_deploy.evaluation.evaluate import Evaluation
from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
from sacvit_deploy.families.config import ModelConfig, number_of_classes
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.records import EngineEntry, ExitCalibration, GraphEntry
from sacvit_deploy.runtime.result import Result
from sacvit_deploy.spec import Preprocessing

_KIB, _MIB = 1 << 10, 1 << 20
# INT8 misses the range of many a channel below this; 256 pictures are the default.
_FEW_TO_CALIBRATE = 64


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Describe network, graphs, engines, files, and how far the graphs are from torch."""
    manifest, damaged = bundle.manifest, bundle.damaged_engine_files()
    state = f"{len(damaged)} damaged, all other" if damaged else "all"
    yield f"bundle   {bundle.path} ({state} files intact)"
    yield from _network(manifest)
    for graph in manifest.graphs:
        yield from _graph(graph)
    for engine in manifest.engines:
        yield (
            f"engine   {engine.file}  {engine.role}  {engine.precision}  {engine.runtime} "
            f"{engine.runtime_version}, {_capabilities(engine)}, "
            f"batch {':'.join(map(str, engine.batch))}"
        )
        if engine.file in damaged:
            yield f"           not usable: it {damaged[engine.file]}"
            yield f"           Build it again: {build_command(bundle, engine)}"
    for calibration in manifest.exit_calibrations:
        yield from _calibration(calibration)
    for name, record in manifest.files.items():
        damage = f"  ({damaged[name]})" if name in damaged else ""
        yield f"file     {name}  {_size(record.bytes)}  sha256 {record.sha256[:12]}{damage}"
    yield f"parity   {_worst_parity(manifest)}"
    yield f"made by  {', '.join(f'{tool} {version}' for tool, version in manifest.tools.items())}"


def _network(manifest: Manifest) -> Iterator[str]:
    config = manifest.config
    yield f"network  {_architecture(config)}"
    if config.two_stage:
        yield (
            f"stages   {config.num_targets} of {config.num_coarse_tokens} tokens refined; early "
            f"exit at confidence {config.two_stage.exit_comparison} {manifest.eta:g}; "
            f"{config.two_stage.attention} attention; selection by {manifest.selection}"
        )
    yield f"pictures {_preprocessing(manifest.preprocessing)}"
    yield f"weights  {manifest.weights}"


def _architecture(config: ModelConfig) -> str:
    height, width = config.image_size
    classes = number_of_classes(config)
    return (
        f"{config.family}: {height}x{width} px, patch {config.patch_size}, width "
        f"{config.embed_dim}, depth {config.depth}, heads {config.num_heads}, "
        f"{f'{classes} classes' if classes else 'features'}"
    )


def _preprocessing(spec: Preprocessing) -> str:
    """How a picture becomes the input."""
    height, width = spec.crop
    resized = "x".join(str(math.floor(side / spec.crop_ratio)) for side in spec.crop)
    steps = {
        "crop": f"resized to cover {resized}, centre {height}x{width} cut out",
        "squash": f"resized to {resized}, centre {height}x{width} cut out",
        "pad": f"resized to lie in {height}x{width}, padded",
    }
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    return f"{steps[spec.fit]} ({spec.interpolation}), mean {mean}, std {std}"


def _graph(graph: GraphEntry) -> Iterator[str]:
    engine_file = f"  engines from {graph.engine_file}" if graph.engine_file else ""
    yield f"graph    {graph.file}  {graph.role}  {graph.precision}{engine_file}"
    for sign, tensors in (("<-", graph.inputs), ("->", graph.outputs)):
        for tensor in tensors:
            shape = ", ".join(map(str, tensor.shape))
            yield f"           {sign} {tensor.name}  {tensor.dtype} ({shape})"


def _calibration(record: ExitCalibration) -> Iterator[str]:
    temperature = f", temperature {record.temperature:.4g}" if record.temperature != 1 else ""
    yield (
        f"exit     {record.precision} in {record.runtime}: eta {record.eta:.4g}{temperature} for "
        f"{record.goal}"
    )
    yield (
        f"           top-1 {record.top1:.1%} {_interval(record.top1_interval, '.1%')}, "
        f"{record.early_exit_fraction:.1%} exit early, {record.macs_mean_g:.4g} G on average; "
        f"{record.images} pictures, data {record.data_sha256[:12]}"
    )


def _worst_parity(manifest: Manifest) -> str:
    if not manifest.parity:
        return "not measured"
    worst = max(manifest.parity, key=lambda record: record.relative_error)
    return (
        f"worst {worst.tensor} of {worst.role}: {worst.max_abs_error:.2g} "
        f"({worst.relative_error:.2g} of its largest value) at batch {worst.batch}"
    )


def describe_export(bundle: Bundle) -> Iterator[str]:
    """Describe a new bundle: its graphs, and how far they are from torch and from FP32."""
    yield f"{bundle.path}: {', '.join(graph.file for graph in bundle.manifest.graphs)}"
    yield f"Network: {_architecture(bundle.manifest.config)}"
    yield f"Pictures: {_preprocessing(bundle.manifest.preprocessing)}"
    yield f"Parity with torch: {_worst_parity(bundle.manifest)}."
    for precision, record in bundle.manifest.precisions.items():
        agreement = record.agreement
        same = agreement_in_words(agreement, bundle.manifest.config)
        yield f"{precision} against fp32 on {agreement.images} pictures: {same}."
        if precision == "int8" and agreement.images < _FEW_TO_CALIBRATE:
            yield (
                f"{agreement.images} pictures are few to calibrate INT8 on, and prove little: "
                "name some hundred with --calibration-data."
            )


def describe_engines(engines: Sequence[EngineEntry]) -> Iterator[str]:
    """Describe new engines: file, size, build time, and the precision of their weights."""
    for engine in engines:
        shares = ", ".join(f"{share:.1%} {kind}" for kind, share in engine.precision_share.items())
        yield (
            f"{engine.file}: {engine.role}, {_size(engine.bytes)} in {engine.build_s:.1f} s, "
            f"{_capabilities(engine)}"
        )
        yield f"  weights: {shares}"


def describe_results(results: Sequence[Result], names: Sequence[str]) -> Iterator[str]:
    """Describe each picture, in columns; see `describe_result`."""
    widths = max(map(len, names)), max(len(result.label) for result in results)
    for name, result in zip(names, results, strict=True):
        yield describe_result(result, name, widths)


def describe_result(
    result: Result, name: str, widths: tuple[int, int] = (0, 0), top: int = 1
) -> str:
    """Describe one picture: its name, `top` classes with their probabilities, where it left.

    The name and each class take at least their `widths`.
    """
    name_width, label_width = widths
    best = ", ".join(
        f"{label:<{label_width}}  {share:6.1%}" for _, label, share in result.top5[:top]
    )
    return f"{name:<{name_width}}  {best}  {_stage(result)}"


def _stage(result: Result) -> str:
    if result.kept_tokens is not None:
        again = ", computed again in full" if result.stage == "refine" else ""
        return f"kept {' '.join(map(str, result.kept_tokens))} tokens{again}"
    if result.stage == "single":
        return "one stage"
    if result.target_tokens is None:
        return "left at the early exit"
    return (
        f"refined {len(result.target_tokens)} tokens "
        f"(early exit confidence {result.early_exit_probability:.1%})"
    )


def describe_evaluation(evaluation: Evaluation) -> Iterator[str]:
    """Describe the setting, each threshold, each stage alone, and the calibration error."""
    setting = evaluation.setting
    yield (
        f"{evaluation.images} pictures of {setting.data}; {setting.bundle} in {setting.precision}, "
        f"{setting.runtime} on {setting.device}"
    )
    titles = f"{'eta':>6}  {'top-1':>6}  {'95 % interval':<14}  {'top-5':>6}  {'early':>6}"
    yield f"{titles}  {'G MACs':>7}  {'of dense':>8}  ms p50 / p95"
    for row in evaluation.rows:
        yield _row(row, evaluation.macs_g["dense"])
    early, late = evaluation.early_alone, evaluation.refine_alone
    if late:
        yield f"early exit alone {_alone(early)}; second stage alone {_alone(late)}"
    if evaluation.kept_tokens_mean:
        kept = " ".join(f"{count:.1f}" for count in evaluation.kept_tokens_mean)
        yield f"tokens kept by the gates, mean: {kept}"
    yield f"expected calibration error of the confidence {evaluation.reliability.ece:.1%}"
    if evaluation.skipped:
        yield f"pictures that could not be read: {len(evaluation.skipped)}"


def _row(row: OperatingPoint, dense_macs_g: float) -> str:
    eta = f"{row.eta:.4g}" if row.source else "-"
    early = f"{row.early_exit_fraction:.1%}" if row.source else "-"
    latency = f"{row.latency_ms_p50:.1f} / {row.latency_ms_p95:.1f}"
    line = (
        f"{eta:>6}  {row.top1:6.1%}  {_interval(row.top1_interval, '.1%'):<14}  {row.top5:6.1%}  "
        f"{early:>6}  {row.macs_mean_g:7.3f}  "
        f"{row.macs_mean_g / dense_macs_g:8.0%}  {latency:<12}  {row.note}"
    )
    return line.rstrip()


def _alone(point: OperatingPoint) -> str:
    return f"{point.top1:.1%}, {point.latency_ms_p50:.1f} ms"


def describe_calibration(found: BundleCalibration) -> Iterator[str]:
    """Describe the threshold, its effect, and how certain that is."""
    calibration = found.calibration
    chosen, intervals = calibration.chosen, calibration.intervals
    early, late = calibration.macs_g
    exit_share = f"{chosen.early_exit_fraction:.1%}"
    size = found.batch_size
    taken = "one picture at a time" if size == 1 else f"as a picture's share of its batch of {size}"
    yield (
        f"eta {chosen.eta:.6g} for {calibration.goal}: {found.precision} in {found.backend}, "
        f"{calibration.images} pictures; 95 % intervals in brackets"
    )
    yield f"top-1        {chosen.top1:.2%} {_interval(intervals['top1'], '.1%')}"
    yield f"early exit   {exit_share} {_interval(intervals['early_exit_fraction'], '.1%')}"
    yield (
        f"mean cost    {chosen.macs_mean_g:.4g} G {_interval(intervals['macs_mean_g'], '.4g')}; "
        f"{early:.4g} G early exit, {late:.4g} G refined"
    )
    yield (
        f"latency      {chosen.latency_ms_mean:.2f} ms mean "
        f"{_interval(intervals['latency_ms_mean'], '.2f')}, {chosen.latency_ms_p95:.2f} ms 95th "
        f"percentile; {taken} on this machine"
    )
    if calibration.goal.kind == "max_accuracy_drop":
        low, high = intervals["goal"]
        yield (
            f"drop         {100 * calibration.reached:.2f} points "
            f"{_interval((100 * low, 100 * high), '.2f')} below {calibration.reference_top1:.2%}"
        )
    if calibration.likelihood:
        yield (
            f"temperature  {calibration.temperature:.4g}; negative log likelihood "
            f"{calibration.likelihood.before:.4f} -> {calibration.likelihood.after:.4f}"
        )
    yield "written to the bundle" if found.written else "dry run: the bundle is unchanged"


def _capabilities(engine: EngineEntry) -> str:
    built_on = f" ({engine.gpu}, {engine.multiprocessors} SM)" if engine.gpu else ""
    return f"compute capability {', '.join(engine.compute_capabilities)}{built_on}"


def _interval(ends: tuple[float, float], form: str) -> str:
    return f"[{', '.join(format(end, form) for end in ends)}]"


def _size(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / _KIB:.0f} KiB"
