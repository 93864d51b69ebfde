"""The `build-engine` command."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, get_args

import click

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.commands.describe import describe_engines
from sacvit_deploy.engines.build import build_engines, check_request, graphs_in
from sacvit_deploy.engines.engine_request import (
    BatchRange,
    EngineRequest,
    HardwareCompatibility,
    parse_compute_capabilities,
)
from sacvit_deploy.engines.tensorrt_library import default_backend
from sacvit_deploy.errors import BundleError
from sacvit_deploy.spec import EngineBackend, Precision

_EXPORTING = ("onnx", "onnx_graphsurgeon", "onnxruntime")


@click.command("build-engine")
@options.bundle_argument
@click.option("--fp32", "precision", flag_value="fp32", help="Build from FP32 graphs (default).")
@click.option("--fp16", "precision", flag_value="fp16", help="Build from FP16 graphs.")
@click.option("--int8", "precision", flag_value="int8", help="Build from INT8 graphs.")
@click.option(
    "--runtime",
    type=click.Choice(get_args(EngineBackend)),
    help="Library that builds; the default is the one installed.",
)
@click.option(
    "--compute-capability",
    metavar="86,89,120",
    help="GPUs to build for. TensorRT-RTX only; TensorRT builds for the GPU of this machine.",
)
@click.option(
    "--batch",
    default="1:8:32",
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="Smallest, most frequent and largest batch.",
)
@click.option("--workspace-mib", type=int, help="Limit of scratch memory.")
@click.option("--optimization-level", type=int, help="0 (fast build) to 5 (fast engine).")
@click.option("--timing-cache", type=options.PATH, help="Reuse kernel timings. TensorRT only.")
@click.option(
    "--version-compatible", is_flag=True, help="Loads in later releases too. TensorRT only."
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(get_args(HardwareCompatibility)),
    default="none",
    help="Runs on other GPUs too. TensorRT only.",
)
@options.calibration_data_option
@options.json_option
def command(bundle: Path, calibration_data: Path | None, **chosen: Any) -> None:
    """Build a TensorRT or TensorRT-RTX engine for every graph of BUNDLE.

    If BUNDLE has no graphs of that precision, they are made first.

    \b
    Example:
      sacvit-deploy build-engine bundle --fp16 --runtime tensorrt-rtx --batch 1:8:32
    """
    targets, same = chosen["compute_capability"], EngineRequest.__dataclass_fields__.keys()
    precision: Precision = chosen["precision"] or "fp32"
    how = {name: value for name, value in chosen.items() if name in same} | {
        "precision": precision,
        "batch": BatchRange.parse(chosen["batch"]),
        "compute_capabilities": parse_compute_capabilities(targets) if targets else (),
        "backend": chosen["runtime"] or default_backend(),
    }
    request = EngineRequest(**how)
    opened, request = Bundle.open(bundle), check_request(request)  # before the graphs are made
    opened = _with_precision(opened, precision, calibration_data)
    with Progress() as progress:
        _, engines = build_engines(opened, request, progress.bar)
    if chosen["as_json"]:
        options.echo_json({"engines": engines})
    else:
        options.echo_lines(describe_engines(engines))


def _with_precision(bundle: Bundle, precision: Precision, data: Path | None) -> Bundle:
    """Return the bundle with graphs of that precision, made now if the libraries are installed."""
    try:
        graphs_in(bundle, precision)
    except BundleError:
        if not all(map(importlib.util.find_spec, _EXPORTING)):
            raise
        from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision

        request = PrecisionRequest(precision, data=data)  # type: ignore[arg-type]  # fp32 is there
        with Progress() as progress:
            return add_precision(bundle, request, progress.bar)
    return bundle
