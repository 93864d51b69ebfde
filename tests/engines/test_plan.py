"""The process that builds, from outside: its messages, its end, and the end of its parent."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sacvit_deploy.engines.engine_request import EngineRequest
from sacvit_deploy.engines.plan import Plan, build_plan, check_polygraphy
from sacvit_deploy.engines.plan_inspection import InspectionWarning
from sacvit_deploy.engines.plan_worker import PlanOrder
from sacvit_deploy.engines.tensorrt_library import load_library
from sacvit_deploy.errors import EngineError, MissingDependencyError
from tests.engines.stand_in_tensorrt import install_stand_in
from tests.engines.typed_onnx import write_typed_graph
from tests.fakes import fake_manifest

pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
pytest.importorskip("polygraphy", reason="needs polygraphy")

_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture
def order(tmp_path) -> PlanOrder:
    """A build of a graph of a few nodes with the stand-in of TensorRT."""
    graph = fake_manifest().graphs[0]
    write_typed_graph(tmp_path / "ee.onnx", graph, "fp32")
    sides = graph.inputs[0].shape[1:]
    shapes = tuple((size, *sides) for size in (1, 2, 4))
    return PlanOrder(
        EngineRequest("fp32", "tensorrt"),
        graph=tmp_path / "ee.onnx",
        plan=tmp_path / "ee.engine",
        shapes={"image": shapes},  # type: ignore[dict-item]  # every side is a number
        kept_share=None,
        opens_here=False,
    )


def built(order: PlanOrder, told: list[tuple[float, str]] | None = None) -> Plan:
    library = load_library(order.request.backend)
    return build_plan(library, order, lambda *step: told.append(step) if told is not None else None)


@pytest.fixture
def replaced(tmp_path, monkeypatch):
    """Install the stand-in with a builder of one's own; returns how."""

    def replace(builder: str) -> None:
        install_stand_in(tmp_path, monkeypatch, f"class Builder:\n    {builder}\n")

    return replace


def test_the_engine_the_log_and_the_progress_come_back(order, tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)
    told: list[tuple[float, str]] = []
    plan = built(order, told)
    assert plan.bytes == order.plan.stat().st_size > 1000
    assert plan.share.weights["float"] == 1
    assert "Input filename" in plan.log.text
    assert "opt=(2, " in plan.log.text, "Polygraphy's lines stand between those of the library"
    assert len(told) > 10
    assert 0 < plan.build_s < 60


def test_neither_process_imports_what_it_does_not_need(order, tmp_path, monkeypatch):
    """Importing Polygraphy would choose a library for the user's whole process."""
    code = f"""
    made = Builder
    def Builder(logger):
        open({str(tmp_path / "modules")!r}, "w").write(" ".join(sys.modules))
        return made(logger)
    """
    install_stand_in(tmp_path, monkeypatch, code)
    before = set(sys.modules)
    built(order)
    assert not {name for name in set(sys.modules) - before if name.startswith("polygraphy")}
    there = set((tmp_path / "modules").read_text().split())
    assert "polygraphy" in there
    assert not there & {"torch", "onnx", "onnxruntime", "pytest"}


def test_a_library_that_does_not_start_is_an_error(order, replaced):
    replaced(
        "def __init__(self, logger):\n"
        "        logger.log(ILogger.ERROR, 'CUDA initialization failure with error: 35')\n"
        "        raise TypeError('pybind11::init(): factory function returned nullptr')"
    )
    with pytest.raises(EngineError, match=r"10\.3\.0 does not start .*:\n  CUDA .* 35\n.*doctor"):
        built(order)


@_POSIX
@pytest.mark.parametrize(
    ("end", "match"),
    [
        ("os.abort()", r"was ended by SIGABRT:\n  no kernel for this\n.*doctor"),
        ("os._exit(3)", r"ended with exit code 3:\n  no kernel for this\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was ended by SIGKILL(?s:.)*--workspace-mib"),
    ],
)
def test_a_crash_is_an_error_with_the_last_words(order, replaced, end, match):
    replaced(
        f"def __init__(self, logger):\n        logger.log(ILogger.ERROR, 'no kernel for this')\n"
        f"        {end}"
    )
    with pytest.raises(
        EngineError, match=rf"crashed while it built .*ee\.onnx; its process {match}"
    ):
        built(order)


def test_what_only_stderr_says_is_in_the_error(order, replaced):
    replaced("def __init__(self, logger): os.write(2, b'free(): invalid\\n'); os._exit(134)")
    with pytest.raises(EngineError, match=r"exit code 134:\n  free\(\): invalid"):
        built(order)


def test_an_engine_that_cannot_be_written_is_an_error_of_the_system(order, tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"none.ee\.engine"):
        built(dataclasses.replace(order, plan=tmp_path / "none" / "ee.engine"))


def test_a_doubt_of_the_inspector_is_a_warning_here(order, tmp_path, monkeypatch):
    """This machine cannot open the engine, so the stand-in has a runtime of its own."""
    code = """
    class Inspector:
        def get_engine_information(self, kind):
            return '{"Name": "copy of image", "DataType": "Float"}'
    class Engine:
        num_io_tensors = 5
        def get_tensor_name(self, index): return str(index)
        def create_engine_inspector(self): return Inspector()
    class Runtime:
        def __init__(self, logger): pass
        def deserialize_cuda_engine(self, plan): return Engine()
    """
    install_stand_in(tmp_path, monkeypatch, code)
    write_typed_graph(order.graph, fake_manifest().graphs[0], "fp16")
    request = dataclasses.replace(order.request, precision="fp16")
    with pytest.warns(
        InspectionWarning, match=r"ee\.engine: The inspector shows only 1 of"
    ) as seen:
        plan = built(dataclasses.replace(order, request=request, opens_here=True))
    assert seen[0].filename == __file__
    assert plan.log.text.endswith("proven from the network only.\n")
    assert "[WARNING] The inspector shows only 1" in plan.log.text


def test_what_a_library_prints_is_no_message(order, tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch, "os.write(1, b'hello\\n'); print('hello')")
    assert built(order).bytes > 1000


_HANG = "def __init__(self, logger): open({file!r}, 'w').write(str(os.getpid())); time.sleep(60)"


def wait_for(file: Path) -> int:
    """The number that appears in a file."""
    end = time.monotonic() + 30
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end, f"{file} is not written"
        time.sleep(0.02)
    return int(file.read_text())


def is_gone(process: int) -> bool:
    for _ in range(250):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@_POSIX
def test_ctrl_c_does_not_wait_for_the_builder(order, replaced, ctrl_c, tmp_path):
    file = tmp_path / "builder"
    replaced(_HANG.format(file=str(file)))

    def press() -> None:
        wait_for(file)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        built(order)
    assert time.monotonic() - start < 30
    thread.join()
    assert is_gone(wait_for(file))


@_POSIX
def test_ctrl_c_that_only_the_builder_gets_is_ctrl_c(order, replaced, ctrl_c):
    """A terminal sends it to both; the main thread may be waiting for the one that builds."""
    replaced("def __init__(self, logger): os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        built(order)


# No `if __name__ == "__main__"` stands in it, as in most scripts of users.
_SCRIPT = """
import pickle, sys
from sacvit_deploy.engines.plan import build_plan
from sacvit_deploy.engines.tensorrt_library import load_library

print("once", flush=True)
order = pickle.load(open(sys.argv[1], "rb"))
print(build_plan(load_library("tensorrt"), order, lambda *_: None).bytes)
"""


@pytest.fixture
def script(order, tmp_path) -> list[str]:
    """The command of a user's script that builds."""
    import pickle

    (tmp_path / "order").write_bytes(pickle.dumps(order))
    (tmp_path / "script.py").write_text(_SCRIPT)
    return [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "order")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_users_script_is_not_run_again(script, tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)
    ran = subprocess.run(script, env=environment(), capture_output=True, text=True, check=True)
    once, size = ran.stdout.split()
    assert once == "once"
    assert int(size) > 1000


@_POSIX
def test_the_builder_ends_with_its_parent_however_that_ends(script, replaced, tmp_path):
    file = tmp_path / "builder"
    replaced(_HANG.format(file=str(file)))
    with subprocess.Popen(script, env=environment(), stdout=subprocess.DEVNULL) as parent:
        builder = wait_for(file)
        assert builder != parent.pid
        parent.kill()
    assert is_gone(builder)


def test_without_polygraphy_the_command_that_brings_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"polygraphy.*\n.*pip install polygraphy"):
        check_polygraphy()
