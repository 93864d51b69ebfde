"""A bundle in words, a line for each fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacvit_deploy.bundle import build_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.evaluation.evaluate import Evaluation
    from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
    from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
    from sacvit_deploy.evaluation.exit_threshold import Calibration
    from sacvit_deploy.manifest import EngineEntry, ExitCalibration, GraphEntry, Manifest


_KIB, _MIB = 1 << 10, 1 << 20


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Network, graphs, engines, files, and how far from torch the graphs are.

    Yields:
        Lines for a person; the names on the left line up.
    """
    manifest, damaged = bundle.manifest, bundle.damaged_engine_files()
    state = f"but for {len(damaged)}, every" if damaged else "every"
    yield f"bundle   {bundle.path} ({state} file is as it was written)"
    yield from _network(manifest)
    for graph in manifest.graphs:
        yield from _graph(graph)
    for engine in manifest.engines:
        yield _engine(engine)
        if engine.file in damaged:
            yield f"           not usable: it {damaged[engine.file]}"
            yield f"           Build it again: {build_command(bundle, engine)}"
    for calibration in manifest.exit_calibrations:
        yield from _calibration(calibration)
    for name, record in manifest.files.items():
        bad = f"  ({damaged[name]})" if name in damaged else ""
        yield f"file     {name}  {_size(record.bytes)}  sha256 {record.sha256[:12]}{bad}"
    yield f"parity   {_worst_parity(manifest)}"
    yield f"made by  {', '.join(f'{tool} {version}' for tool, version in manifest.tools.items())}"


def describe_calibration(found: BundleCalibration) -> Iterator[str]:
    """The threshold, what it gives, and how sure that is.

    Yields:
        Lines for a person.
    """
    calibration = found.calibration
    chosen, intervals = calibration.chosen, calibration.intervals
    early, late = calibration.macs_g
    yield (
        f"eta {chosen.eta:.6g} for {calibration.goal}: {found.precision} in {found.backend}, "
        f"{calibration.images} pictures; in brackets the 95 % interval"
    )
    yield f"top-1        {chosen.top1:.2%} {_interval(intervals['top1'], '.1%')}"
    yield f"early exit   {_exit_share(calibration)}"
    yield (
        f"mean cost    {chosen.macs_mean_g:.4g} G {_interval(intervals['macs_mean_g'], '.4g')}; "
        f"{early:.4g} G early, {late:.4g} G late"
    )
    yield (
        f"latency      {chosen.latency_ms_mean:.2f} ms on average "
        f"{_interval(intervals['latency_ms_mean'], '.2f')}, 95th percentile "
        f"{chosen.latency_ms_p95:.2f} ms; this machine, one picture at a time"
    )
    if calibration.goal.kind == "max_accuracy_drop":
        drop = tuple(100 * end for end in intervals["goal"])
        yield (
            f"drop         {100 * calibration.reached:.2f} points {_interval(drop, '.2f')} below "
            f"{calibration.reference_top1:.2%}"
        )
    if (fit := calibration.likelihood) is not None:
        yield (
            f"temperature  {calibration.temperature:.4g}; negative log likelihood "
            f"{fit.before:.4f} -> {fit.after:.4f}"
        )
    yield "written to the bundle" if found.written else "dry run: the bundle is as it was"


def _exit_share(calibration: Calibration) -> str:
    share = calibration.chosen.early_exit_fraction
    return f"{share:.1%} {_interval(calibration.intervals['early_exit_fraction'], '.1%')}"


def _interval(ends: tuple[float, ...], form: str) -> str:
    return "[" + ", ".join(format(end, form) for end in ends) + "]"


def _calibration(record: ExitCalibration) -> Iterator[str]:
    temperature = f", temperature {record.temperature:.4g}" if record.temperature != 1 else ""
    yield (
        f"exit     {record.precision} in {record.runtime}: eta {record.eta:.4g}{temperature} for "
        f"{record.goal}"
    )
    yield (
        f"           top-1 {record.top1:.1%} {_interval(record.top1_interval, '.1%')}, "
        f"{record.early_exit_fraction:.1%} leave early, {record.macs_mean_g:.4g} G on average; "
        f"{record.images} pictures, data {record.data_sha256[:12]}"
    )


def _network(manifest: Manifest) -> Iterator[str]:
    config = manifest.config
    height, width = config.image_size
    yield (
        f"network  {config.family}: {height}x{width} px, patch {config.patch_size}, width "
        f"{config.embed_dim}, depth {config.depth}, heads {config.num_heads}, "
        f"{config.num_classes} classes"
    )
    if config.two_stage:
        yield (
            f"stages   {config.num_targets} of {config.num_coarse_tokens} tokens are looked at "
            f"again; exit when {config.two_stage.exit_comparison} {manifest.eta:g}; "
            f"{config.two_stage.attention} attention; selection by {manifest.selection}"
        )
    origin = ", ".join(f"{key} {value}" for key, value in manifest.weights.items())
    yield f"weights  {origin}"


def _graph(graph: GraphEntry) -> Iterator[str]:
    of_engines = f"  engines from {graph.engine_file}" if graph.engine_file else ""
    yield f"graph    {graph.file}  {graph.role}  {graph.precision}{of_engines}"
    for sign, tensors in (("<-", graph.inputs), ("->", graph.outputs)):
        for tensor in tensors:
            shape = ", ".join(map(str, tensor.shape))
            yield f"           {sign} {tensor.name}  {tensor.dtype} ({shape})"


def _engine(engine: EngineEntry) -> str:
    batch = ":".join(map(str, engine.batch))
    return (
        f"engine   {engine.file}  {engine.role}  {engine.precision}  {engine.runtime} "
        f"{engine.runtime_version}, compute capability {', '.join(engine.compute_capabilities)}, "
        f"batch {batch}"
    )


def _worst_parity(manifest: Manifest) -> str:
    if not manifest.parity:
        return "not measured"
    worst = max(manifest.parity, key=lambda record: float(record["relative_error"]))
    return (
        f"worst {worst['tensor']} of {worst['role']}: {worst['max_abs_error']:.2g} "
        f"({worst['relative_error']:.2g} of its largest value) at batch {worst['batch']}"
    )


def _size(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / _KIB:.0f} KiB"


_NOTES = {
    "bundle": "default of the bundle",
    "calibrated": "calibrated for this precision",
    "fp32": "the threshold of fp32",
}


def evaluation_lines(evaluation: Evaluation) -> Iterator[str]:
    """What was measured, a line for each threshold, and what does not depend on it.

    Yields:
        Lines for a person; the columns line up.
    """
    setting = evaluation.setting
    yield (
        f"{evaluation.images} pictures of {setting.data}; {setting.bundle} in {setting.precision}, "
        f"{setting.runtime} on {setting.device}"
    )
    yield f"{'eta':>6}  {'top-1':>6}  {'early':>6}  {'G MACs':>7}  {'of dense':>8}  ms p50 / p95"
    for row in evaluation.rows:
        yield _line(row, evaluation.macs_g["dense"])
    early, late = evaluation.early_alone, evaluation.refine_alone
    if late:
        yield f"early exit alone {_alone(early)}; second stage alone {_alone(late)}"
    yield f"calibration error of the confidence {evaluation.reliability.ece:.1%}"
    if evaluation.skipped:
        yield f"pictures that could not be read: {len(evaluation.skipped)}"


def _line(row: OperatingPoint, dense: float) -> str:
    eta = f"{row.eta:.4g}" if row.source else "-"
    early = f"{row.early_exit_fraction:.1%}" if row.source else "-"
    note = _NOTES.get(row.source or "", "")
    latency = f"{row.latency_ms_p50:.1f} / {row.latency_ms_p95:.1f}"
    line = (
        f"{eta:>6}  {row.top1:6.1%}  {early:>6}  {row.macs_mean_g:7.3f}  "
        f"{row.macs_mean_g / dense:8.0%}  {latency:<12}  {note}"
    )
    return line.rstrip()


def _alone(point: OperatingPoint) -> str:
    return f"{point.top1:.1%}, {point.latency_ms_p50:.1f} ms"
