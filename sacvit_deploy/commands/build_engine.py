"""sacvit-deploy build-engine."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.engines.build import (
    BatchRange,
    BuildOptions,
    EngineRequest,
    build_engines,
    check_request,
    graphs_in,
    parse_compute_capabilities,
)
from sacvit_deploy.engines.tensorrt_library import default_backend
from sacvit_deploy.errors import BundleError

if TYPE_CHECKING:
    from sacvit_deploy.spec import Precision

_EXPORTING = ("onnx", "onnx_graphsurgeon", "onnxruntime")


@click.command("build-engine")
@options.bundle_argument
@options.build_options
@click.option(
    "--calibration-data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Pictures for graphs of that precision, where BUNDLE has none yet.",
)
@options.json_option
def command(bundle: Path, calibration_data: Path | None, **chosen: Any) -> None:
    """Build a TensorRT or TensorRT-RTX engine for every graph of BUNDLE.

    \b
    Example:
      sacvit-deploy build-engine bundle --fp16 --runtime tensorrt-rtx --batch 1:8:32
    """
    targets, same = chosen["compute_capability"], BuildOptions.__dataclass_fields__.keys()
    how = {name: value for name, value in chosen.items() if name in same} | {
        "batch": BatchRange.parse(chosen["batch"]),
        "compute_capabilities": parse_compute_capabilities(targets) if targets else (),
    }
    precision: Precision = chosen["precision"] or "fp32"
    request = EngineRequest(precision, chosen["runtime"] or default_backend(), BuildOptions(**how))
    opened, request = Bundle.open(bundle), check_request(request)  # before the graphs are made
    opened = _with_precision(opened, precision, calibration_data)
    with options.progress_bar() as draw:
        _, engines = build_engines(opened, request, draw)
    if chosen["as_json"]:
        options.echo_json({"engines": [dataclasses.asdict(engine) for engine in engines]})
        return
    for engine in engines:
        shares = ", ".join(f"{share:.1%} {kind}" for kind, share in engine.precision_share.items())
        click.echo(
            f"{engine.file}: {engine.role}, {engine.bytes / (1 << 20):.1f} MiB in "
            f"{engine.build_s:.1f} s, compute capability {', '.join(engine.compute_capabilities)}"
        )
        click.echo(f"  weights: {shares}")


def _with_precision(bundle: Bundle, precision: Precision, data: Path | None) -> Bundle:
    """The bundle with graphs of that precision, made now if the libraries for it are there."""
    try:
        graphs_in(bundle, precision)
    except BundleError:
        if not all(map(importlib.util.find_spec, _EXPORTING)):
            raise
        from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision

        request = PrecisionRequest(precision, data=data)  # type: ignore[arg-type]  # fp32 is there
        return add_precision(bundle, request, options.progress)
    return bundle
