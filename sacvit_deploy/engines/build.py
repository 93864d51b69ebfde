"""Build the engines of a bundle: the checks, and the entries in its description."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sacvit_deploy.bundle import ENGINE_FOLDER, Bundle
from sacvit_deploy.bundle_changes import check_unchanged, locked, publish, staging_folder
from sacvit_deploy.decode import encode
from sacvit_deploy.engines.engine_request import BatchRange, EngineRequest
from sacvit_deploy.engines.machine import Machine, this_machine
from sacvit_deploy.engines.plan import Plan, build_plan, check_polygraphy, check_timing_cache
from sacvit_deploy.engines.plan_worker import PlanOrder, Shape
from sacvit_deploy.engines.tensorrt_library import (
    RTX_CAPABILITIES,
    TURING,
    Library,
    library_cuda,
    load_library,
)
from sacvit_deploy.errors import BundleError, EngineError
from sacvit_deploy.families import family_named
from sacvit_deploy.progress import OnProgress, within
from sacvit_deploy.records import EngineEntry, GraphEntry
from sacvit_deploy.spec import Precision, Role

# What TensorRT-RTX builds for by default without a GPU: the cards, and not DGX Spark (12.1).
_PORTABLE_TARGETS = tuple(target for target in RTX_CAPABILITIES if target != "12.1")


def build_engines(
    bundle: Bundle, request: EngineRequest, on_progress: OnProgress
) -> tuple[Bundle, tuple[EngineEntry, ...]]:
    """Build one engine per graph, and replace older ones of that precision and backend.

    On any error the engines are those from before. An engine that takes the place of an older one
    has another name, so that the older one serves until `bundle.json` names the new one.

    Args:
        bundle: Bundle with graphs of that precision.
        request: The precision, the library and its options.
        on_progress: Called with the share of the work done, in [0, 1], and the role and phase.

    Returns:
        The bundle with the new entries, and those entries in the order of the graphs.

    Raises:
        BundleError: There are no such graphs, or the folder cannot be written.
        BundleIntegrityError: The graphs were replaced while their engines were built.
        EngineError: The library refuses, a graph is not of its precision, or its shapes depend on
            the picture.
        MissingDependencyError: The library is not installed.
        KeyboardInterrupt: Ctrl-C.
    """
    graphs = graphs_in(bundle, request.precision)
    _check_shapes(graphs)
    request = check_request(request)
    library, machine = load_library(request.backend), this_machine()
    with staging_folder(bundle) as staging:
        (staging / ENGINE_FOLDER).mkdir()
        entries = []
        for number, graph in enumerate(graphs):
            file = _free_name(bundle, graph, request)
            order = PlanOrder(
                request,
                graph=bundle.engine_graph_path(graph),
                plan=staging / file,
                shapes=_shapes(graph, request.batch),
                kept_share=_kept_share(bundle, graph),
                opens_here=_here(machine) in request.compute_capabilities,
            )
            of_graph = _graph_progress(on_progress, graph.role, number, len(graphs))
            plan = build_plan(library, order, of_graph)
            entries.append(_entry(graph, file, request, plan, machine))
            _write_log(staging, entries[-1], plan, request)
        # Read again: another build may have ended since.
        with locked(bundle.path) as current:
            check_unchanged(current, bundle.graph_files(), "built", "Build again.")
            kinds = {(e.role, e.precision, e.runtime) for e in entries}
            engines = current.manifest.engines
            old = [e for e in engines if (e.role, e.precision, e.runtime) in kinds]
            kept = current.manifest.without_engines(old)
            manifest = dataclasses.replace(kept, engines=(*kept.engines, *entries))
            return publish(current, staging, manifest), tuple(entries)


def _check_shapes(graphs: Iterable[GraphEntry]) -> None:
    """Refuse graphs whose shapes depend on the picture, which take one picture for that reason."""
    for graph in graphs:
        if graph.inputs[0].shape[0] == 1:
            raise EngineError(
                f"{graph.file} computes only the tokens that its gates keep of one picture "
                "(operator NonZero): an engine needs shapes that do not depend on the picture.",
                "Export it again with --gates capacity, or with --gates masked.",
            )


def _shapes(graph: GraphEntry, batch: BatchRange) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Smallest, best and largest shape of each input of a graph, by its name.

    There is one profile. A second one, for small batches, doubles the time of a build.
    """
    rows = batch.survivors if graph.role == "refine" else batch

    def shape(sides: Iterable[str | int], size: int) -> Shape:
        return tuple(size if isinstance(side, str) else side for side in sides)

    return {
        spec.name: (
            shape(spec.shape, rows.smallest),
            shape(spec.shape, rows.best),
            shape(spec.shape, rows.largest),
        )
        for spec in graph.inputs
    }


def _graph_progress(on_progress: OnProgress, role: Role, number: int, count: int) -> OnProgress:
    """Report the build of one of `count` graphs as a part of the whole."""
    part = within(on_progress, number / count, (number + 1) / count)
    return lambda share, phase: part(share, f"{role}: {phase}")


def check_request(request: EngineRequest) -> EngineRequest:
    """Check everything that needs no graph, and add the GPUs to build for.

    Raises:
        EngineError: The library, this machine or an option does not allow it.
        MissingDependencyError: The library is not installed.
    """
    targets = _targets(load_library(request.backend), request, _here(this_machine()))
    check_polygraphy()
    if request.timing_cache is not None:
        check_timing_cache(request.timing_cache)
    return dataclasses.replace(request, compute_capabilities=targets)


def graphs_in(bundle: Bundle, precision: Precision) -> tuple[GraphEntry, ...]:
    """The graphs of one precision, one per role; `BundleError` if one is missing."""
    roles = dict.fromkeys(graph.role for graph in bundle.manifest.graphs)
    found = {g.role: g for g in bundle.manifest.graphs if g.precision == precision}
    if found.keys() == roles.keys():
        return tuple(found[role] for role in roles)
    data = " --calibration-data DATA" if precision == "int8" else ""
    present = ", ".join(dict.fromkeys(graph.precision for graph in bundle.manifest.graphs))
    raise BundleError(
        f"Bundle {bundle.path} has no {precision} graphs; it has {present}.",
        f"Make them where torch and onnx are installed: sacvit-deploy export --precision "
        f"{precision}{data}. A type cannot be switched on in the builder: it stands in the graph.",
    )


def _kept_share(bundle: Bundle, graph: GraphEntry) -> float | None:
    """Share of the weights that was converted, if nodes were kept on request or by the family."""
    record = bundle.manifest.precisions.get(graph.precision)
    by_family = family_named(bundle.manifest.config.family).float_in_int8 is not None
    if record is None or not (record.kept_in_fp32.get(graph.role) or by_family):
        return None
    shares, kind = record.linear_weight_shares, "int8"
    if graph.precision == "fp16":
        shares, kind = record.weight_shares, "half"
    return shares.get(graph.role, {}).get(kind)


def _targets(library: Library, request: EngineRequest, here: str | None) -> tuple[str, ...]:
    """The compute capabilities to build for; `here` is that of this machine."""
    if library.is_rtx:
        return _rtx_targets(library, request, here)
    if here is None:
        raise EngineError(
            "TensorRT times its kernels on the GPU it builds for, and this machine shows none.",
            "Run build-engine on the machine that will use the engine, or build for an RTX card "
            "with --runtime tensorrt-rtx, which needs no GPU. See: sacvit-deploy doctor",
        )
    if request.compute_capabilities not in ((), (here,)):
        raise EngineError(
            f"TensorRT builds for the GPU of this machine, {here}; "
            f"{', '.join(request.compute_capabilities)} was asked for.",
            "Leave --compute-capability out, or use --runtime tensorrt-rtx.",
        )
    return (here,)


def _rtx_targets(library: Library, request: EngineRequest, here: str | None) -> tuple[str, ...]:
    if request.only_tensorrt:
        raise EngineError(
            f"TensorRT-RTX has no {', '.join(request.only_tensorrt)}: it chooses kernels on the "
            "user's machine, and its engines belong to one release.",
            "Leave the option out, or use --runtime tensorrt.",
        )
    usual, known = (here,) if here else _PORTABLE_TARGETS, library.targets
    targets = request.compute_capabilities or usual
    unknown = [target for target in targets if target not in known]
    if unknown:
        why = f", and has no FP32 matrix product for {TURING} (Turing)" if TURING in unknown else ""
        raise EngineError(
            f"{library} does not build for compute capability {', '.join(unknown)}; it knows "
            f"{', '.join(known)}{why}.",
            "Use --runtime tensorrt on that GPU (Turing, Jetson and data-centre GPUs), or choose "
            "others with --compute-capability.",
        )
    return targets


def _here(machine: Machine) -> str | None:
    return machine.current_gpu.compute_capability if machine.current_gpu else None


def _free_name(bundle: Bundle, graph: GraphEntry, request: EngineRequest) -> str:
    """One of two names in turn: an old engine stays until `bundle.json` names the new one."""
    stem = PurePosixPath(graph.file).name.partition(".")[0]
    name = f"{ENGINE_FOLDER}/{stem}.{graph.precision}.{request.backend}"
    first = f"{name}.engine"
    return f"{name}-2.engine" if first in bundle.manifest.files else first


def _entry(
    graph: GraphEntry, file: str, request: EngineRequest, plan: Plan, machine: Machine
) -> EngineEntry:
    library = plan.library
    gpu = None if library.is_rtx else machine.current_gpu  # TensorRT times its kernels on it
    return EngineEntry(
        role=graph.role,
        precision=graph.precision,
        file=file,
        runtime=library.backend,
        runtime_version=library.version,
        cuda_version=library_cuda(library.backend) or machine.driver_cuda or "",
        compute_capabilities=request.compute_capabilities,
        os=machine.os,
        batch=request.batch.triple,
        precision_share=_rounded(plan.share.weights),
        flags=request.flags,
        build_s=round(plan.build_s, 3),
        bytes=plan.bytes,
        linear_share=_rounded(plan.share.linear),
        layer_share=_rounded(plan.share.layers),
        gpu=gpu.name if gpu else "",
        multiprocessors=gpu.multiprocessors if gpu else 0,
    )


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {kind: round(share, 6) for kind, share in shares.items()}


def _write_log(staging: Path, entry: EngineEntry, plan: Plan, request: EngineRequest) -> None:
    """Write the log of an engine; it begins with the request, for use in reports."""
    head = f"{plan.library}, CUDA {entry.cuda_version or 'not known'}, "
    head += f"{entry.os}, compute capability {', '.join(entry.compute_capabilities)}\n"
    flags = encode(entry.flags) or "no flags"
    head += f"{entry.role} in {entry.precision}, batch {entry.batch}, {flags}\n"
    # The bundle may be passed on; paths of folders on this machine stay private.
    text = plan.log.text.replace(f"{staging.parent}{os.sep}", "")
    if request.timing_cache is not None:
        text = text.replace(f"{request.timing_cache.parent}{os.sep}", "")
    (staging / entry.files[1]).write_text(head + text, encoding="utf-8")
