"""Check and measure every installed backend on this machine's GPU, unattended, and write JSON.

    python -m benchmarks.gpu_check result.json

Each backend classifies the same random pictures with the same random weights: both stages with a
given share of hard pictures, and the dense network, in turn. Its decisions are compared with those
of torch in FP32 on the CPU, and the hand-off on the device with the hand-off through the host. A
backend that is not installed is skipped, with the reason. One that is installed and does not work
has failed, and the rest still runs. The file is written at the start and after every step.

Run it from the root of the repository; only what is measured has to be installed. On a machine
without a GPU:

    python -m benchmarks.gpu_check result.json --device cpu --preset tiny --seconds 0

On a board without torch, give two bundles that were exported elsewhere with `--selection graph`:
`--bundles TWO_STAGE DENSE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import platform
import re
import tempfile
import traceback
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    cuda_memory_check,
    decisions,
    measured_rows,
)
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.decode import encode
from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.tensorrt_library import ENGINE_BACKENDS
from sacvit_deploy.errors import MissingDependencyError
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
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)


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


def memory_section() -> dict[str, Any]:
    """The result of `cuda_memory_check`, or why there is none."""
    if not this_machine().gpus:
        return ending(Skipped("there is no GPU"))
    try:
        return {"status": "ran", **cuda_memory_check()}
    except Exception as error:  # as in `run_section`
        return ending(error)


def ending(error: Exception) -> dict[str, Any]:
    """Why something ended early: it is not installed, or it failed."""
    if isinstance(error, (Skipped, ModuleNotFoundError, MissingDependencyError)):
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
        "cuda_memory": memory_section,
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


def main(arguments: list[str] | None = None) -> None:
    """Run everything and print the results."""
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
        )
        document = run(settings, options.output)
    print(json.dumps({key: document[key] for key in ("device", "versions", "cuda_memory")}))
    for name, section in document["sections"].items():
        print(f"{name}: {section['status']}. {section.get('reason', '')}")
        for line in (*section["agreement"], *map(row_text, section["rows"])):
            print(line)


if __name__ == "__main__":
    main()
