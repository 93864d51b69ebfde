"""Check and measure every installed backend on this machine's GPU, unattended, and write JSON.

    python -m benchmarks.gpu_check result.json

Each backend classifies the same random pictures with the same random weights: both stages with a
given share of hard pictures, and the dense network, in turn. Its decisions are compared with those
of torch in FP32 on the CPU, and the hand-off on the device with the hand-off through the host. On a
Jetson, `tegrastats` gives the energy of a picture. A backend that is not installed is skipped, with
the reason. One that is installed and does not work has failed, and so has a section that lacks a
part of this check itself; the rest still runs. The exit code is 1 if anything failed. The file is
written at the start and after every step.

Run it from the root of the repository. Carry to the machine:

- always: numpy, pillow, click, and onnxruntime or onnxruntime-gpu;
- to export the networks there: torch, onnx, onnxscript, onnx-graphsurgeon;
- with a GPU: polygraphy, and cuda-bindings of the driver's major version of CUDA;
- what is to be measured: tensorrt, tensorrt-rtx, the plug-in of ONNX Runtime.

On a board without torch, give two bundles that were exported elsewhere with `--selection graph
--precision fp16` instead of the second line: `--bundles TWO_STAGE DENSE`. On a machine without a
GPU:

    python -m benchmarks.gpu_check result.json --device cpu --preset tiny --seconds 0
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib.util
import json
import platform
import re
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import power
from benchmarks.contenders import (
    Bundles,
    Contender,
    Settings,
    Skipped,
    engine_contenders,
    onnxruntime_contenders,
    say,
    torch_contenders,
    torch_sessions,
)
from benchmarks.measure import (
    Reference,
    agreement,
    cuda_malloc_check,
    cuda_memory_check,
    decisions,
    engine_sessions_check,
    measured_rows,
)
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.decode import encode
from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.tensorrt_library import ENGINE_BACKENDS
from sacvit_deploy.families.config import ModelConfig, preset
from sacvit_deploy.families.two_stage import TwoStageConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sacvit_deploy.spec import Precision

    Section = Callable[[], Iterator[Contender]]

DISTRIBUTIONS = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-bindings",
    "cuda-python",
    "polygraphy",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)

# Parts of the check itself: what is imported, and the distribution that has it.
ALWAYS = {"numpy": "numpy", "PIL": "pillow", "click": "click", "onnxruntime": "onnxruntime"}
TO_EXPORT = {
    "torch": "torch",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
}
ON_A_GPU = {"cuda.bindings": "cuda-bindings", "pytest": "pytest"}


def parts_section(settings: Settings) -> dict[str, Any]:
    """Whether every part of the check itself is there, and what to carry if not."""
    parts = ALWAYS | ({} if settings.given else TO_EXPORT) | (ON_A_GPU if has_gpu() else {})
    missing = [name for module, name in parts.items() if not is_installed(module)]
    if not missing:
        return {"status": "ran"}
    reason = f"missing, and needed here: {', '.join(missing)}"
    say(reason)
    return {"status": "failed", "reason": reason, "carry": missing}


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def has_gpu() -> bool:
    """Whether there is a GPU that CUDA can use."""
    return bool(this_machine().gpus)


def sections(settings: Settings) -> dict[str, Section]:
    """Every section by name; a call runs it."""
    bundles = Bundles(settings)
    both: tuple[Precision, ...] = ("fp32", "fp16")
    of_onnxruntime = functools.partial(onnxruntime_contenders, bundles)
    of_engines = functools.partial(engine_contenders, settings, bundles)
    return {
        "torch": functools.partial(torch_contenders, settings),
        "onnxruntime CPU": functools.partial(of_onnxruntime, "CPU", ("fp32",)),
        "onnxruntime CUDA": functools.partial(of_onnxruntime, "CUDA", both),
        "onnxruntime TensorRT": functools.partial(of_onnxruntime, "Tensorrt", both),
        "onnxruntime TensorRT-RTX": functools.partial(of_onnxruntime, "NvTensorRTRTX", both),
        **{name: functools.partial(of_engines, name) for name in ENGINE_BACKENDS},
    }


def run_section(settings: Settings, start: Section, reference: Reference) -> dict[str, Any]:
    """The results of a section up to its end, and why it ended early."""
    section: dict[str, Any] = {"status": "ran", "rows": [], "agreement": []}
    try:
        for contender in start():
            section["agreement"].append(agreement(settings, contender, reference))
            for row in measured_rows(settings, contender):
                section["rows"].append(row)
                say(row_text(row))
            gc.collect()
    except Exception as error:  # unattended: the next section has to run
        section |= ending(error)
    say(f"  {section['status']}: {section.get('reason', 'complete')}")
    return section


def on_gpu(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of a check that needs a GPU, or why there is none."""
    if not has_gpu():
        return ending(Skipped("there is no GPU"))
    try:
        return {"status": "ran", **check()}
    except Exception as error:  # as in `run_section`
        return ending(error)


def power_section(settings: Settings) -> dict[str, Any]:
    """How power is measured, and what the board takes while nothing runs."""
    meter = settings.power
    if meter is None:
        return ending(Skipped("there is no tegrastats; it comes with a Jetson"))
    idle = meter.idle_w(max(settings.seconds, 3 * power.INTERVAL_S))
    if idle is None:
        return ending(RuntimeError("tegrastats names no rail that is known; run it to see which."))
    return {"status": "ran", "rails": meter.rails, "idle_w": round(idle, 3)}


def ending(error: Exception) -> dict[str, Any]:
    """Why something ended early: it does not apply here, or it failed.

    A part of the check itself that is not installed is a failure: nothing was checked.
    """
    if isinstance(error, Skipped):
        return {"status": "skipped", "reason": str(error)}
    return {"status": "failed", "reason": str(error), "trace": traceback.format_exc()}


def row_text(row: dict[str, Any]) -> str:
    """A row as text."""
    return (
        f"  {row['runtime']:<28} {row['precision']}  {row['hand_off']:<6} batch {row['batch']:>3}  "
        f"two-stage {row['two_stage_ms_p50']:>9.3f} ms  dense {row['dense_ms_p50']:>9.3f} ms  "
        f"x{row['speedup']:.2f}"
    )


def device_record(settings: Settings) -> dict[str, Any]:
    """The machine and its GPUs."""
    machine = this_machine()
    gpus = [
        {"name": g.name, "compute_capability": g.compute_capability, "memory_bytes": g.memory_bytes}
        for g in machine.gpus
    ]
    return {
        "used": settings.device,
        "os": machine.os,
        "driver_cuda": machine.driver_cuda,
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Versions of everything installed that has a part in the result."""
    # A wheel may call itself tensorrt_rtx where it is installed as tensorrt-rtx.
    installed = {
        re.sub(r"[-_.]+", "-", d.metadata["Name"] or "").lower(): d.version
        for d in metadata.distributions()
    }
    found = {name: installed[name] for name in DISTRIBUTIONS if name in installed}
    return {"python": platform.python_version(), **found}


def take_torch(settings: Settings, reference: Reference) -> dict[str, Any]:
    """Make torch on the CPU the reference, or say why it is not.

    Its weights may differ from those of the bundles.
    """
    try:
        contender = torch_sessions(settings, "cpu", "fp32")
        reference.set(contender, decisions(settings, contender.sessions))
    except Exception as error:  # as in `run_section`
        say(f"the first contender is what the others are compared with: {error}")
        return ending(error)
    return {"status": "ran"}


def run(settings: Settings, output: Path) -> dict[str, Any]:
    """Run every step, and write the document at the start and after each."""
    reference = Reference()
    document: dict[str, Any] = {
        "device": device_record(settings),
        "versions": versions(),
        "networks": encode({"two_stage": settings.two_stage, "dense": settings.dense}),
        "sac_fraction_asked": settings.fraction,
    }
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "parts": functools.partial(parts_section, settings),
        "cuda_malloc": functools.partial(on_gpu, cuda_malloc_check),
        "cuda_memory": functools.partial(on_gpu, cuda_memory_check),
        "engine_sessions": functools.partial(on_gpu, engine_sessions_check),
        "power": functools.partial(power_section, settings),
        "torch_reference": functools.partial(take_torch, settings, reference),
    }
    write(document, output)
    for name, step in steps.items():
        document[name] = step()
        write(document, output)
    document["sections"] = {}
    for name, start in sections(settings).items():
        say(name)
        document["sections"][name] = run_section(settings, start, reference)
        document["reference"] = reference.name
        write(document, output)
    return document


def write(document: dict[str, Any], output: Path) -> None:
    """Write the document as it is so far."""
    output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def tiny() -> tuple[ModelConfig, ModelConfig]:
    """Small networks, to see within seconds whether everything runs."""
    dense = ModelConfig("vit", (32, 32), 4, 48, 2, 3, num_classes=10)
    stages = TwoStageConfig(score_first_block=1)
    return dataclasses.replace(dense, family="sac_vit", two_stage=stages), dense


def networks(options: argparse.Namespace) -> tuple[ModelConfig, ModelConfig]:
    """The two-stage and the dense network that the options name."""
    if options.bundles:
        two_stage, dense = (Bundle.open(path).manifest for path in options.bundles)
        found = (two_stage.selection, two_stage.input_kind, dense.input_kind)
        if found != ("graph", "float", "float"):
            raise SystemExit("The bundles must be exported with --selection graph --input float.")
        return two_stage.config, dense.config
    if options.preset == "tiny":
        return tiny()
    return preset(options.preset), preset(options.preset.removeprefix("sac_"))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="where the JSON goes")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--preset", default="sac_deit_small_patch16_224", help="or tiny")
    parser.add_argument(
        "--bundles",
        nargs=2,
        type=Path,
        metavar=("TWO_STAGE", "DENSE"),
        help="run these bundles instead of a preset, where torch or onnx is not installed",
    )
    parser.add_argument("--batch", default="1,8,32,128", help="sizes, separated by commas")
    parser.add_argument("--sac-fraction", type=float, default=0.235)
    parser.add_argument("--seconds", type=float, default=3.0, help="for one row")
    return parser.parse_args(arguments)


def found_device() -> str:
    """Whether anything here can use a GPU."""
    if this_machine().gpus:
        return "cuda"
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def failures(document: dict[str, Any]) -> list[str]:
    """Names of the steps and sections that failed."""
    steps = {name: part for name, part in document.items() if isinstance(part, dict)}
    parts = steps | document["sections"]
    return [name for name, part in parts.items() if part.get("status") == "failed"]


def main(arguments: list[str] | None = None) -> int:
    """Run everything, print the results, and return 1 if anything failed."""
    options = parsed(arguments)
    two_stage, dense = networks(options)
    try:
        options.output.touch()
    except OSError as error:
        raise SystemExit(f"{options.output} cannot be written: {error}.") from error
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        settings = Settings(
            device=found_device() if options.device == "auto" else options.device,
            two_stage=two_stage,
            dense=dense,
            given=tuple(options.bundles or ()),
            batches=tuple(int(size) for size in options.batch.split(",")),
            fraction=options.sac_fraction,
            seconds=options.seconds,
            folder=Path(folder),
            power=power.started(),
        )
        try:
            document = run(settings, options.output)
        finally:
            if settings.power is not None:
                settings.power.close()
    shown = ("device", "versions", "parts", "cuda_malloc", "cuda_memory", "power")
    print(json.dumps({key: document[key] for key in shown}))
    for name, section in document["sections"].items():
        print(f"{name}: {section['status']}. {section.get('reason', '')}")
        for line in (*section["agreement"], *map(row_text, section["rows"])):
            print(line)
    failed = failures(document)
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
