"""The commands that write, small enough to be killed at each of their operations.

`python -m tests.kills.cases NAME FOLDER BUNDLE CHECKPOINT` runs one sweep and prints the
number of kills.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

import sacvit_deploy
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import locked, new_bundle, publish, staging_folder, write_manifest
from sacvit_deploy.cli import main
from sacvit_deploy.files import check_output, write_output
from tests.fakes import ENGINE, fake_manifest, random_pictures
from tests.kills.harness import Case, sweep

_NAME = "bundle"
_RUN_PICTURES = 5
_STEPS = 4  # of `_RUN`, which saves after the third one, too
_RUN = """
output = "run"

[model]
preset = "sac_demo_patch8_64"
num_classes = 3
image_size = [16, 16]
patch_size = 4
embed_dim = 16
depth = 2
num_heads = 2
score_first_block = 1

[data]
train = "train"
validation = "validation"

[schedule]
epochs = 1
all_tokens_epochs = 0
warmup_epochs = 0
batch_size = 6
checkpoint_every = 3
log_every = 1
"""


def invoke(*arguments: object) -> None:
    """Call the command line; `AssertionError` with its words if it fails."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


def answer(path: Path) -> tuple[Any, ...]:
    """What a whole bundle says: its hashes are right, it answers, and no engine is damaged."""
    bundle = Bundle.open(path)
    assert not bundle.damaged_engine_files()
    with sacvit_deploy.load(path, backend="onnxruntime", eta=0.5) as pipeline:
        result = pipeline(random_pictures(1)[0])
    return result.label, f"{result.probability:.4f}", bundle.manifest.eta


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Export:
    """`export`, with graphs that are not translated again."""

    bundle: Path
    checkpoint: Path
    force: bool = False

    def start(self, folder: Path) -> None:
        if self.force:
            from tests.exporters.graphs import bias_of, with_constants

            def change(nodes: dict[str, Any]) -> None:
                for node in nodes.values():
                    bias_of(node).values = bias_of(node).values + 0.25

            with_constants(Bundle.open(self.bundle), folder / _NAME, change)

    def run(self, folder: Path) -> None:
        from tests.exporters.graphs import translated_from

        # Without --force it is refused where a kill came after the last rename.
        force = ["--force"] if (folder / _NAME).exists() else []
        with translated_from(Bundle.open(self.bundle)):
            invoke("export", self.checkpoint, "-o", folder / _NAME, "--eta", 0.75, *force)

    def seen(self, folder: Path) -> object:
        if not self.force and not (folder / _NAME).exists():
            return None
        return answer(folder / _NAME)


@dataclasses.dataclass(frozen=True)
class Calibrate:
    bundle: Path

    def start(self, folder: Path) -> None:
        shutil.copytree(self.bundle, folder / _NAME)
        self._data(folder)

    def _data(self, folder: Path) -> Path:
        from tests.labelled_pictures import write_pictures

        data = folder / "data"
        if not data.exists():
            write_pictures(data, Bundle.open(folder / _NAME).manifest.labels, 60)
        return data

    def run(self, folder: Path) -> None:
        invoke(
            *("calibrate", folder / _NAME, self._data(folder), "--plot", folder / "curve.svg"),
            *("--target-exit-fraction", 0.5),
        )

    def seen(self, folder: Path) -> object:
        plot = folder / "curve.svg"
        if plot.exists():
            assert plot.read_text(encoding="utf-8").endswith("</svg>\n")
        return answer(folder / _NAME)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """`evaluate --report`, where an older report is."""

    bundle: Path

    def start(self, folder: Path) -> None:
        from tests.labelled_pictures import write_pictures

        write_pictures(folder / "data", Bundle.open(self.bundle).manifest.labels[:3], 6)
        (folder / "report.html").write_text("old")

    def run(self, folder: Path) -> None:
        invoke("evaluate", self.bundle, folder / "data", "--report", folder / "report.html")

    def seen(self, folder: Path) -> object:
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert page == "old" or page.rstrip().endswith("</html>")
        return page == "old"


@dataclasses.dataclass(frozen=True)
class Run:
    """`run --output`; what counts is that a killed run goes on without losing or repeating a row.

    Attributes:
        bundle: Classifies.
        name: File of the results.
    """

    bundle: Path
    name: str

    def start(self, folder: Path) -> None:
        from tests.labelled_pictures import write_pictures

        write_pictures(folder / "data", ["a", "b"], _RUN_PICTURES)

    def run(self, folder: Path) -> None:
        output = ("--output", folder / self.name, "--resume")
        invoke("run", self.bundle, folder / "data", "--batch-size", 2, *output)

    def seen(self, folder: Path) -> object:
        """Pictures and classes of all whole rows, once all are there; None before that."""
        from sacvit_deploy.runtime.result_file import result_file

        file = folder / self.name
        if not file.exists():
            return None
        copy = shutil.copy(file, folder.parent / f"copy-{self.name}")
        with result_file(Path(copy), resume=True) as (_, done):
            pass
        lines = Path(copy).read_text().splitlines()
        assert len(lines) == len(done) + (bool(lines) and file.suffix == ".csv")
        if len(done) < _RUN_PICTURES:
            return None
        return [line.replace(str(folder), "") for line in lines]


@dataclasses.dataclass(frozen=True)
class BuildEngine:
    """`build-engine` with a builder that takes no time.

    Attributes:
        again: Replace older engines.
        bundle: Build in FP16 from this bundle, whose FP16 graphs are made first; None: in FP32.
    """

    again: bool = False
    bundle: Path | None = None

    def start(self, folder: Path) -> None:
        from tests.engines.typed_onnx import write_typed_bundle

        if self.bundle is not None:
            shutil.copytree(self.bundle, folder / _NAME)
        else:
            write_typed_bundle(folder / _NAME)
        if self.again:
            self._build(folder, 2)

    def run(self, folder: Path) -> None:
        self._build(folder, 4)

    def _build(self, folder: Path, batch: int) -> None:
        import pytest

        from sacvit_deploy.engines import build
        from sacvit_deploy.engines.machine import Machine

        precision = "--fp32" if self.bundle is None else "--fp16"
        arguments = (precision, "--runtime", "tensorrt-rtx", "--compute-capability", "8.6")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "this_machine", lambda: Machine("linux-x86_64", None, ()))
            patch.setattr(build, "build_plan", self._built)
            invoke("build-engine", folder / _NAME, *arguments, "--batch", f"1:{batch}:{batch}")

    def _built(self, library: Any, order: Any, _report: Any) -> Any:
        from sacvit_deploy.engines.plan import Plan
        from sacvit_deploy.engines.plan_inspection import PrecisionShare
        from sacvit_deploy.engines.tensorrt_library import LibraryLog

        share = PrecisionShare({"float": 1.0}, {"float": 1.0}, {"float": 1.0})
        order.plan.write_bytes(f"{order.graph.name} for {order.request.batch}".encode() * 1000)
        return Plan(library, order.plan.stat().st_size, share, LibraryLog(), 1.0)

    def seen(self, folder: Path) -> object:
        """The answer, and the batches of the engines: the old ones, or the new ones."""
        engines = Bundle.open(folder / _NAME).engines()
        return answer(folder / _NAME), [engine.batch[-1] for engine in engines]


class Replace:
    """What `export --force` does with files, and nothing else."""

    def start(self, folder: Path) -> None:
        self._write(folder, 0.25)

    def run(self, folder: Path) -> None:
        self._write(folder, 0.75)

    def _write(self, folder: Path, eta: float) -> None:
        with new_bundle(folder / _NAME, force=True) as staging:
            for graph in (manifest := fake_manifest(eta=eta)).graphs:
                (staging / graph.file).write_text(f"{eta}")
            write_manifest(staging, manifest)

    def seen(self, folder: Path) -> object:
        bundle = Bundle.open(folder / _NAME)
        return bundle.manifest.eta, sorted(bundle.manifest.files)


class ReplaceInTwoRenames(Replace):
    """The same where two folders cannot be exchanged in one step."""

    def run(self, folder: Path) -> None:
        import pytest

        def fails(*_: Any) -> None:
            raise OSError("there is no such library")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ctypes.CDLL", fails)
            super().run(folder)


class New(Replace):
    """What `export` does with files, and nothing else."""

    def start(self, folder: Path) -> None:
        pass

    def seen(self, folder: Path) -> object:
        return super().seen(folder) if (folder / _NAME).exists() else None


class Add(Replace):
    """What `build-engine` does with files, and nothing else."""

    def run(self, folder: Path) -> None:
        bundle = Bundle.open(folder / _NAME)
        with staging_folder(bundle) as staging:
            (staging / "engines").mkdir()
            (staging / ENGINE.file).write_text("engine")
            with locked(bundle.path) as current:
                publish(current, staging, dataclasses.replace(current.manifest, engines=(ENGINE,)))


class Report:
    """What every command does with the file it writes."""

    def start(self, folder: Path) -> None:
        (folder / "report.html").write_text("old")

    def run(self, folder: Path) -> None:
        check_output(folder / "report.html")
        write_output(folder / "report.html", "new" * 1000)

    def seen(self, folder: Path) -> object:
        return (folder / "report.html").read_text()


class InPlace(Report):
    """A mistake that the harness must find."""

    def run(self, folder: Path) -> None:
        (folder / "report.html").write_text("new" * 1000)


class Train:
    """`train`; what counts is that a killed run goes on to the same weights, to the bit."""

    def start(self, folder: Path) -> None:
        from tests.training.conftest import write_pictures

        write_pictures(folder / "train", 8, seed=0)
        write_pictures(folder / "validation", 4, seed=1)
        (folder / "run.toml").write_text(_RUN)

    def run(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(1)
        invoke("train", folder / "run.toml")

    def seen(self, folder: Path) -> object:
        """What a finished run left, without the speed; None before that."""
        from safetensors import safe_open

        found = sorted((folder / "run").glob("[a-z]*.safetensors"))
        steps = set()
        for file in found:
            with safe_open(file, "pt") as stream:
                facts = stream.metadata().get("sacvit_deploy_run", "{}")
            steps.add(json.loads(facts).get("step"))
        if _STEPS not in steps:
            return None
        lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
        logged = [str({**line, "images_per_s": 0}) for line in lines]
        # The state of the run records the path of its data, which is another for each kill.
        return [(f.name, f.name == "run.safetensors" or digest(f)) for f in found], logged


_PICTURES = ("pytest", "onnxruntime", "sacvit_deploy.runtime.pipeline", "tests.labelled_pictures")
_EXPORTING = (*_PICTURES, "sacvit_deploy.commands.export", "tests.exporters.graphs")
_BUILDING = (*_PICTURES, "sacvit_deploy.commands.build_engine", "tests.engines.typed_onnx")
_MODULES: dict[str, tuple[str, ...]] = {
    "export": _EXPORTING,
    "export-force": _EXPORTING,
    "calibrate": (*_PICTURES, "sacvit_deploy.commands.calibrate"),
    "evaluate": (*_PICTURES, "sacvit_deploy.commands.evaluate"),
    "run-csv": (*_PICTURES, "sacvit_deploy.commands.run"),
    "run-jsonl": (*_PICTURES, "sacvit_deploy.commands.run"),
    "build-engine": _BUILDING,
    "build-engine-again": _BUILDING,
    "convert": (*_BUILDING, "sacvit_deploy.exporters.precision"),
    "replace-in-two-renames": ("pytest",),
    "train": (
        *("sacvit_deploy.commands.train", "sacvit_deploy.training.loop", "tests.training.conftest"),
        "torch._dynamo",  # an optimiser imports it
    ),
}


def case_named(name: str, bundle: Path, checkpoint: Path) -> Case:
    cases: dict[str, Case] = {
        "export": Export(bundle, checkpoint),
        "export-force": Export(bundle, checkpoint, force=True),
        "calibrate": Calibrate(bundle),
        "evaluate": Evaluate(bundle),
        "run-csv": Run(bundle, "results.csv"),
        "run-jsonl": Run(bundle, "results.jsonl"),
        "build-engine": BuildEngine(),
        "build-engine-again": BuildEngine(again=True),
        "convert": BuildEngine(bundle=bundle),
        "train": Train(),
        "new": New(),
        "replace": Replace(),
        "replace-in-two-renames": ReplaceInTwoRenames(),
        "in-place": InPlace(),
        "add": Add(),
        "report": Report(),
    }
    return cases[name]


if __name__ == "__main__":
    name, folder, bundle, checkpoint = sys.argv[1:]
    for module in _MODULES.get(name, ()):  # once, and not in every child
        importlib.import_module(module)
    kills = sweep(case_named(name, Path(bundle), Path(checkpoint)), Path(folder))
    sys.stdout.write(f"{kills}\n")
