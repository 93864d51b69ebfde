"""Sessions of OpenVINO: CPUs, and Intel's GPUs and NPUs."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.session import (
    SessionOptions,
    check_feeds,
    check_outputs,
    check_tensors,
    closed_error,
)
from sacvit_deploy.errors import EngineError, MissingDependencyError, SacvitDeployError
from sacvit_deploy.libraries import require
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import Precision, TensorSpec, external_data

_CPU = "CPU"
_DTYPES = {"f32": "float32", "f16": "float16", "u8": "uint8", "i64": "int64"}
# A device's name of a half precision, and the library's; FP16 is the more exact.
_HALVES = {"FP16": "f16", "BF16": "bf16"}
# Characters of the library's messages and of names in a graph, which may be of any length.
_SHOWN = 800


class OpenVinoSession:
    """One ONNX graph in OpenVINO.

    FP32 graphs compute in FP32. What is not INT8 in FP16 and INT8 graphs computes in the half
    precision of the device: FP16, else BF16, or FP32 where it has neither.

    Inputs are read where they are, and outputs are new arrays in which the library wrote them:
    nothing is copied.

    Attributes:
        inputs: Its inputs, as the contract names them.
        provider: Device, and precision of what is not INT8; for example `CPU bf16`.
    """

    def __init__(
        self,
        path: Path,
        graph: GraphEntry,
        options: SessionOptions | None = None,
        *,
        cache: Path | None = None,
        weights: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Load a graph.

        Args:
            path: The `.onnx` file; its external weights lie beside it.
            graph: Its precision, and the contract that its inputs and outputs have to keep, at load
                and in every call.
            options: Devices, as `providers`, and threads.
            cache: Where a GPU or NPU may keep its compiled kernels; for this graph alone.
            weights: External weights that are links to another folder, by the name in the graph.

        Raises:
            EngineError: The library cannot run the file, its tensors are not those of the
                contract, or there is no such device.
            MissingDependencyError: OpenVINO is not installed.
        """
        options = options or SessionOptions()
        library = openvino()
        core = _core(library)
        device = asked_device(library, options.providers)
        self._path = path
        fix = "Check the bundle with sacvit-deploy inspect, or use another backend."
        with _one_error(f"OpenVINO {release(library)} cannot load {path} on {device}", fix):
            settings = _settings(library, device, graph.precision, options)
            settings |= _cache(device, cache)
            with _in_one_folder(path, weights) as file:
                model = core.read_model(file)
            check_tensors(path, graph, *map(_tensor_specs, (model.inputs, model.outputs)))

            def compiled(model: Any) -> _Graph:
                # Compiled ports get names of tensors inside, too.
                names = [port.get_any_name() for port in model.outputs]
                return _Graph(library, core.compile_model(model, device, settings), names)

            single = _one_row(model, graph) if graph.precision == "int8" else None
            graphs = _Graphs(compiled, model, single)
        self.provider = f"{device} {graphs.computes_in}"
        self.inputs, self._contract = graph.inputs, graph.outputs
        self._graphs: _Graphs | None = graphs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output; see `Session.run`."""
        graphs = self._graphs  # lives until this call has ended
        if graphs is None:
            raise closed_error(f"The session of {self._path}")
        sizes = check_feeds(feeds, self.inputs)
        fix = "If memory ran out, use a smaller batch; else check it with sacvit-deploy verify."
        with _one_error(f"OpenVINO failed on {self.provider}", fix):
            outputs = graphs.of(sizes).run(feeds)
        check_outputs(outputs, self._contract, sizes)
        return outputs

    def close(self) -> None:
        """Release the graph; see `Session.close`."""
        self._graphs = None


class _Graphs:
    """One graph, compiled for any number of rows; or for one row, and for more when they come.

    With all sizes fixed, one picture in INT8 takes a tenth less time (DeiT-S). In FP32 it is 3 %,
    which is not worth weights packed twice. Which of them computes depends on the number of rows
    alone, so that equal calls have equal results.
    """

    def __init__(self, compiled: Callable[[Any], _Graph], model: Any, single: Any) -> None:
        """Compile one of them.

        Args:
            compiled: Compiles a model.
            model: The library's model for any number of rows.
            single: The same for one row; None to use the other for that, too.
        """
        self._lock = threading.Lock()
        self._compiled, self._model = compiled, model
        self._single = None if single is None else compiled(single)
        self._any_size = compiled(model) if single is None else None
        first: Any = self._single or self._any_size
        self.computes_in: str = first.computes_in

    def of(self, sizes: Mapping[str, int]) -> _Graph:
        """The graph for these sizes of the dynamic axes."""
        if self._single is not None and set(sizes.values()) <= {1}:
            return self._single
        with self._lock:
            if self._any_size is None:
                self._any_size = self._compiled(self._model)
            return self._any_size


class _Graph:
    """A compiled graph, and its requests that no thread uses at the moment.

    A request has the memory of one run, so each thread takes one of its own.

    Attributes:
        computes_in: Precision of what is not INT8, as the library obtained it.
    """

    def __init__(self, library: ModuleType, compiled: Any, outputs: Sequence[str]) -> None:
        self._tensor: Any = library.Tensor
        self._compiled = compiled
        self._inputs = {port.get_any_name(): self._empty(port) for port in compiled.inputs}
        self._outputs = dict(zip(outputs, compiled.outputs, strict=True))
        self._idle: list[Any] = []
        self.computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output, in memory that belongs to it alone."""
        # The library reads the arrays themselves. It takes only those it could also write to.
        arrays = {name: np.require(array, requirements=["C", "W"]) for name, array in feeds.items()}
        outputs = {name: self._empty(port) for name, port in self._outputs.items()}
        request = self._idle_request()
        for name, array in arrays.items():
            request.set_tensor(name, self._tensor(array, shared_memory=True))
        for name, tensor in outputs.items():
            # The library gives it the size of the result.
            request.set_tensor(self._outputs[name].get_any_name(), tensor)
        request.infer(None, share_outputs=True)
        for name, tensor in self._inputs.items():
            request.set_tensor(name, tensor)  # the arrays may be gone before its next run
        self._idle.append(request)
        return {name: tensor.data for name, tensor in outputs.items()}

    def _idle_request(self) -> Any:
        try:
            return self._idle.pop()  # one step, also between threads
        except IndexError:
            return self._compiled.create_infer_request()

    def _empty(self, port: Any) -> Any:
        """A tensor for an input or output, with no rows."""
        shape = [0 if side.is_dynamic else side.get_length() for side in port.get_partial_shape()]
        return self._tensor(port.get_element_type(), shape)


def openvino() -> ModuleType:
    """Import the library; `MissingDependencyError` if it is not installed or cannot start."""
    try:
        return require("openvino", "Running a bundle in OpenVINO")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"Running a bundle in OpenVINO needs openvino, which cannot be imported: {error}.",
            "Install it again: pip install --force-reinstall openvino",
        ) from error


def available_devices(library: ModuleType) -> dict[str, str]:
    """Names of the devices that OpenVINO can use here, and what they are."""
    core = _core(library)
    return {
        name: str(core.get_property(name, "FULL_DEVICE_NAME")).strip()
        for name in core.available_devices
    }


def asked_device(library: ModuleType, names: tuple[str, ...] | None) -> str:
    """Name of the first device of a list that is here.

    Args:
        library: OpenVINO.
        names: For example `GPU`, `GPU.1`, `NPU` or `CPU`, in order of preference; None for the CPU.

    Raises:
        EngineError: None of them is here.
    """
    there = _core(library).available_devices
    for name in names or (_CPU,):
        asked = name.upper()
        if asked in there or any(device.startswith(f"{asked}.") for device in there):
            return asked
    raise EngineError(
        f"OpenVINO has no device {' or '.join(map(repr, names or (_CPU,)))} here.",
        f"It has: {', '.join(there) or 'none'}.",
    )


def half_precision(library: ModuleType, device: str = _CPU) -> Literal["f16", "bf16", "f32"]:
    """The library's name of a device's half precision; `f32` if it has none."""
    able = _core(library).get_property(device, "OPTIMIZATION_CAPABILITIES")
    found = next((half for name, half in _HALVES.items() if name in able), "f32")
    return cast("Literal['f16', 'bf16', 'f32']", found)


@functools.cache
def _core(library: ModuleType) -> Any:
    """The library's registry of devices, which loads a device at its first use."""
    return library.Core()


def _settings(
    library: ModuleType, device: str, precision: Precision, options: SessionOptions
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        # Its default is half precision where the device has one, whatever the graph says.
        "INFERENCE_PRECISION_HINT": (
            "f32" if precision == "fp32" else half_precision(library, device)
        ),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if options.run_threads is not None and device == _CPU:
        settings["NUM_STREAMS"] = options.workers
        settings["INFERENCE_NUM_THREADS"] = options.workers * options.run_threads
    return settings


def _cache(device: str, folder: Path | None) -> dict[str, str]:
    """The setting for a folder of compiled kernels, which is made; none for a CPU.

    A GPU compiles for seconds. A CPU needs 0.2 s less with a cache, but the cache would have the
    weights in it, and flipped bits in it are not noticed.
    """
    if device == _CPU or folder is None:
        return {}
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return {}  # it only saves time
    return {"CACHE_DIR": str(folder)}


@contextlib.contextmanager
def _one_error(problem: str, fix: str) -> Iterator[None]:
    """Raise `EngineError` for errors of the library: RuntimeError, ValueError and TypeError."""
    try:
        yield
    except SacvitDeployError:
        raise
    except Exception as error:
        raise EngineError(f"{problem}: {str(error)[:_SHOWN]}", fix) from error


@contextlib.contextmanager
def _in_one_folder(path: Path, weights: Mapping[str, Path]) -> Iterator[Path]:
    """A graph beside its weights: the library refuses links out of its folder.

    Copies are gone at the end, which the library does not need any more.
    """
    if not weights:
        yield path
        return
    files = {
        name: weights.get(name, path.parent / name) for name in external_data(path.read_bytes())
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, file in {**files, path.name: path}.items():
            shutil.copyfile(file, Path(folder, name))
        yield Path(folder, path.name)


def _one_row(model: Any, graph: GraphEntry) -> Any:
    """A copy of the library's model with all its dynamic axes 1; they share their weights."""
    single = model.clone()
    single.reshape(
        {
            spec.name: [1 if isinstance(side, str) else side for side in spec.shape]
            for spec in graph.inputs
        }
    )
    return single


def _tensor_specs(ports: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(map(_tensor_spec, ports))


def _tensor_spec(port: Any) -> TensorSpec:
    """A tensor as the library describes it; a dynamic axis gets a name of its own."""
    name, kind = port.get_any_name(), port.get_element_type().get_type_name()
    if kind not in _DTYPES or port.get_partial_shape().rank.is_dynamic:
        raise EngineError(
            f"The graph has {name[:_SHOWN]!r}, which is {kind[:_SHOWN]} of shape "
            f"{str(port.get_partial_shape())[:_SHOWN]}.",
            "Use a graph from a bundle.",
        )
    dtype = cast("Literal['float32', 'float16', 'uint8', 'int64']", _DTYPES[kind])
    shape = tuple(
        f"{name}.{axis}" if side.is_dynamic else side.get_length()
        for axis, side in enumerate(port.get_partial_shape())
    )
    return TensorSpec(name, dtype, shape)


def release(library: ModuleType) -> str:
    """Version of the library without the names of its builds."""
    return str(library.__version__).partition("-")[0]
