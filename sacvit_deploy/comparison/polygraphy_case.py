"""A comparison to go on with in NVIDIA's Polygraphy: inputs, reference outputs and a script.

On a board without this package, or for the tools that it does not have: ONNX Runtime against
TensorRT, layer by layer, and the smallest graph that still differs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.comparison.tensors import ReferenceTensors
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.libraries import require
from sacvit_deploy.records import EngineEntry, GraphEntry

if TYPE_CHECKING:
    from sacvit_deploy.comparison.network import Network

SCRIPT = "compare.sh"

_HEAD = """\
#!/bin/sh
# Compares graphs and engines of a bundle with the reference outputs in this folder.
# Written by `sacvit-deploy verify --save-polygraphy`: {candidate} against {reference}.
#
#   sh compare.sh inspect       what each graph holds
#   sh compare.sh onnxruntime   each graph in ONNX Runtime
#   sh compare.sh tensorrt      each graph in an engine that TensorRT builds for this
#   sh compare.sh engines       the engines of the bundle
#   sh compare.sh layers        every tensor of TensorRT with that of ONNX Runtime
#   sh compare.sh reduce        the smallest part of a graph that differs in TensorRT
#
# BUNDLE=... names the bundle if it was moved. POLYGRAPHY_USE_TENSORRT_RTX=1 takes TensorRT-RTX in
# place of TensorRT. The exit code is 1 if anything differs.
here=$(cd "$(dirname "$0")" && pwd)
bundle=${{BUNDLE:-{bundle}}}
export NVIDIA_TF32_OVERRIDE=0  # as in the engines of a bundle: FP32 products keep their digits
status=0
case "$1" in
"""
_TAIL = """\
*)
    sed -n '2,/^here/s/^# \\{0,1\\}//p' "$0" >&2
    exit 2 ;;
esac
exit $status
"""


@dataclass(frozen=True)
class _Case:
    """One graph with what it was fed and what it should give.

    Attributes:
        graph: Its entry in the bundle.
        path: Its file, relative to the bundle.
        engine_path: The file that its engines are built from.
        feeds: Inputs by name.
        tolerances: Largest error of each output.
        engines: Engines of it, in the precision that is compared.
    """

    graph: GraphEntry
    path: PurePath
    engine_path: PurePath
    feeds: Mapping[str, NDArray[Any]]
    tolerances: Mapping[str, float]
    engines: tuple[EngineEntry, ...]


def save_polygraphy(
    reference: Network, candidate: Network, pixels: NDArray[np.uint8], share: float, folder: Path
) -> None:
    """Write inputs and reference outputs of each graph in Polygraphy's JSON, and a script.

    Args:
        reference: Trusted network; its outputs are written.
        candidate: Network in question; the script names its graphs and engines.
        pixels: The batch, (B, 3, H, W), cropped to the input size.
        share: Largest error of an output that is allowed, over its largest value.
        folder: Where to write; made if it is not there.

    Raises:
        ConfigError: The candidate has no bundle, or the folder cannot be written.
        EngineError: A session failed.
        MissingDependencyError: Polygraphy is not installed.
    """
    require("polygraphy", "Writing a comparison for Polygraphy")
    bundle = candidate.bundle
    if bundle is None:
        raise ConfigError(f"{candidate.name} has no graphs.", "Verify a bundle.")
    fix = "Choose a folder that can be written to."
    with raised_as(ConfigError, f"{folder} cannot be written", fix):
        folder.mkdir(parents=True, exist_ok=True)
        check_output(folder / SCRIPT)
    cases = list(_cases(ReferenceTensors(reference, pixels), candidate, bundle, share, folder))
    names = {"candidate": candidate.name, "reference": reference.name}
    head = _HEAD.format(**names, bundle=shlex.quote(str(bundle.path.resolve())))
    steps = "".join(
        f"{name})\n{''.join(lines)}    ;;\n" for name, lines in _steps(cases, folder).items()
    )
    write_output(folder / SCRIPT, head + steps + _TAIL)


def _cases(
    known: ReferenceTensors, candidate: Network, bundle: Bundle, share: float, folder: Path
) -> Iterator[_Case]:
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    for role in candidate.sessions:
        graph = bundle.graph(role, candidate.precision)
        feeds = known.feeds(candidate, role)
        outputs = {spec.name: known.tensors[role][spec.name] for spec in graph.outputs}
        results = RunResults()
        results.add([outputs], runner_name="reference")
        save_json([feeds], str(folder / f"{role}.inputs.json"))
        save_json(results, str(folder / f"{role}.outputs.json"))
        tolerances = {
            name: share * float(np.abs(array.astype(np.float64)).max())
            for name, array in outputs.items()
        }
        yield _Case(
            graph,
            bundle.graph_path(graph).relative_to(bundle.path),
            bundle.engine_graph_path(graph).relative_to(bundle.path),
            feeds,
            tolerances,
            bundle.engines(role, candidate.precision),
        )


def _steps(cases: list[_Case], folder: Path) -> dict[str, list[str]]:
    """Shell commands of each step, by its name."""
    return {
        "inspect": [_command("inspect model", _graph(case)) for case in cases],
        "onnxruntime": [
            _command("run", _graph(case), "--onnxrt", *_compared(case)) for case in cases
        ],
        "tensorrt": [
            _command("run", _typed(case), *_trt(case), *_compared(case)) for case in cases
        ],
        "engines": [line for case in cases for line in _engines(case)] or ["    : none\n"],
        "layers": [
            _command(
                "run", _typed(case), "--onnxrt", *_trt(case), _loaded(case), "--onnx-outputs '*'",
                "--trt-outputs '*'", *_tolerances({"": max(case.tolerances.values())}),
            )
            for case in cases
        ],
        "reduce": [line for case in cases for line in _reduction(case)],
    }  # fmt: skip


def _command(verb: str, *parts: str, environment: str = "") -> str:
    lines = " \\\n        ".join(part for part in parts if part)
    return f"    {environment}polygraphy {verb} {lines} || status=1\n"


def _graph(case: _Case) -> str:
    return _in_bundle(case.path)


def _typed(case: _Case) -> str:
    return _in_bundle(case.engine_path)


def _in_bundle(path: PurePath) -> str:
    return f'"$bundle"/{shlex.quote(path.as_posix())}'


def _here(case: _Case, what: str) -> str:
    return f'"$here"/{case.graph.role}.{what}'


def _loaded(case: _Case) -> str:
    return f"--load-inputs {_here(case, 'inputs.json')}"


def _compared(case: _Case) -> tuple[str, ...]:
    outputs = f"--load-outputs {_here(case, 'outputs.json')}"
    return _loaded(case), outputs, *_tolerances(case.tolerances)


def _tolerances(tolerances: Mapping[str, float]) -> tuple[str, ...]:
    named = (
        f"{name}:{value:.3g}" if name else f"{value:.3g}" for name, value in tolerances.items()
    )
    return (f"--rtol 0 --atol {' '.join(named)}",)


def _shapes(case: _Case) -> str:
    shapes = (f"{name}:{list(array.shape)}".replace(" ", "") for name, array in case.feeds.items())
    return " ".join(map(shlex.quote, shapes))


def _trt(case: _Case) -> tuple[str, ...]:
    return "--trt --strongly-typed", f"--input-shapes {_shapes(case)}"


def _engines(case: _Case) -> Iterator[str]:
    for engine in case.engines:
        rtx = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if engine.runtime == "tensorrt-rtx" else ""
        yield _command(
            "run",
            _in_bundle(PurePath(engine.file)),
            "--trt --model-type engine",
            *_compared(case),
            environment=rtx,
        )


def _reduction(case: _Case) -> tuple[str, ...]:
    """Polygraphy's own recipe: every tensor of ONNX Runtime is input and reference of the parts."""
    golden, inputs = _here(case, "layers.json"), _here(case, "layer-inputs.json")
    return (
        _command(
            "run", _typed(case), "--onnxrt", _loaded(case), "--onnx-outputs '*'",
            f"--save-outputs {golden}",
        ),
        _command("data merge", _here(case, "inputs.json"), golden, f"-o {inputs}"),
        _command(
            "debug reduce",
            _typed(case),
            f"--mode bisect -o {_here(case, 'reduced.onnx')}",
            f"--model-input-shapes {_shapes(case)}",
            f"--load-inputs {inputs}",
            "--check polygraphy run polygraphy_debug.onnx --trt --strongly-typed",
            f"--load-inputs {inputs} --load-outputs {golden}",
            *_tolerances({"": max(case.tolerances.values())}),
        ),
    )  # fmt: skip
