"""The seam between the pipeline and the backends: one graph, ready to run."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.decode import shown
from sacvit_deploy.engines.machine import usable_cores
from sacvit_deploy.errors import EngineError
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import GraphSpec, TensorSpec

# More than any machine has; a backend starts them all at once.
_MOST_THREADS = 1024
# Each needs memory of its own.
_MOST_WORKERS = 64


class Tensor(Protocol):
    """An input of a session: a numpy array, or a handle to a tensor that stayed on the device."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes, the batch first."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor on the device, as an input of a session there.

    Attributes:
        tensor: A handle.
        numbers: Row numbers, ascending, at least one, (K,).
    """

    tensor: Tensor
    numbers: NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Tensor.dtype`."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Tensor.shape`."""
        return (len(self.numbers), *self.tensor.shape[1:])


class Session(Protocol):
    """One graph, ready to run; safe to call from several threads at once."""

    @property
    def provider(self) -> str:
        """What computes, in the backend's own words, for example `CUDAExecutionProvider`."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output of the graph.

        Args:
            feeds: One array per input, by name, with the dtype and shape the graph declares.

        Returns:
            One array per output, by name.

        Raises:
            EngineError: The feeds do not fit, the backend failed, or the session is closed.
        """

    def close(self) -> None:
        """Release the memory of the graph; every later call raises `EngineError`.

        Calls at work in other threads still return. Closing twice is fine.
        """


@runtime_checkable
class DeviceSession(Session, Protocol):
    """A session that can leave tensors on its device, for another session to use.

    A tensor left there keeps its values while its handle lives and the session is open.
    """

    @property
    def memory(self) -> str | None:
        """Name of the memory; sessions of the same name accept each other's handles.

        None for memory of the host.
        """

    def run_on_device(
        self, feeds: Mapping[str, Tensor], keep: Collection[str]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Tensor]]:
        """Compute every output of the graph, and copy only some of them to the host.

        Args:
            feeds: One array, handle, or `Rows` of a handle per input, by name.
            keep: Names of the outputs and inputs to leave on the device.

        Returns:
            The other outputs by name, and a handle for each name in `keep`.

        Raises:
            EngineError: See `run`; or a handle belongs to a closed session.
        """


@runtime_checkable
class PreparingSession(Session, Protocol):
    """A session that prepares for each of a few batch sizes, when it first runs one of them."""

    def prepared_sizes(self, largest: int) -> list[int]:
        """Batch sizes up to `largest`, ascending, that together prepare for all of them."""


@runtime_checkable
class HostMemorySession(Session, Protocol):
    """A session that has host memory which its device reads without a detour."""

    def input_array(self, name: str, rows: int) -> NDArray[Any]:
        """An array for an input, to be filled and given to `run`; what is in it is undefined.

        Its memory is not used again while it or a view of it lives. Fill it before it is run, and
        run it once.

        Raises:
            EngineError: There are too many rows, too little memory, or the session is closed.
        """


def sharing_memory(first: Session, second: Session) -> tuple[DeviceSession, DeviceSession] | None:
    """Both sessions, if the second accepts handles of the first."""
    if not (isinstance(first, DeviceSession) and isinstance(second, DeviceSession)):
        return None
    if first.memory is None or first.memory != second.memory:
        return None
    return first, second


class RowByRow:
    """Runs a graph for one picture on a batch of any size, one row after the other."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def provider(self) -> str:
        """See `Session.provider`."""
        return self._session.provider

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`; the inputs have one row per picture."""
        return row_by_row(self._session.run, feeds)

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()


def row_by_row(
    run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]],
    feeds: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Run a graph once for each row of its inputs, and join the rows of its outputs."""
    size = len(next(iter(feeds.values()), ()))
    if size <= 1:
        return run(feeds)
    rows = [run({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(size)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def for_any_batch(session: Session, graph: GraphSpec | GraphEntry) -> Session:
    """The session itself, or one that takes any batch if the graph takes one picture only."""
    return RowByRow(session) if graph.inputs[0].shape[0] == 1 else session


def closed_error(name: str) -> EngineError:
    """The error of a call to a session that was closed before."""
    return EngineError(f"{name} was used after it was closed.", "Load the bundle again.")


@dataclass(frozen=True)
class SessionOptions:
    """Options of a backend.

    Attributes:
        providers: In order of preference, ONNX Runtime's execution providers by full or short name
            (`CUDA`, `CPU`), or OpenVINO's devices (`CPU`, `GPU`, `GPU.1`, `NPU`). None uses the
            fastest provider that needs no preparation, or OpenVINO's CPU.
        threads: CPU threads of one operator, 1 to 1024; None leaves it to the backend, or divides
            the usable cores among the workers if there are several.
        workers: Runs that can compute side by side on a CPU, 1 to 64. Small operators gain little
            from more threads, so several runs on one thread each compute more pictures.
        cuda_graphs: Record each batch size once and replay it, which saves the launch of a hundred
            kernels. An engine pads a batch to the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to
            the largest it was built for. ONNX Runtime's CUDA provider and TensorRT-RTX plug-in
            record the first 16 sizes as they are.
    """

    providers: tuple[str, ...] | None = None
    threads: int | None = None
    workers: int = 1
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        names = self.providers
        are_names = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        if names is not None and not are_names:
            raise EngineError(
                f"The execution providers are {shown(names)}.",
                'Give a list of names, such as ["CUDA", "CPU"].',
            )
        if self.threads is not None:
            _check_number("threads", self.threads, _MOST_THREADS)
        _check_number("workers", self.workers, _MOST_WORKERS)

    @property
    def run_threads(self) -> int | None:
        """CPU threads of one run; None leaves it to the backend."""
        if self.threads is None and self.workers > 1:
            return max(1, usable_cores() // self.workers)
        return self.threads


def _check_number(name: str, asked: object, most: int) -> None:
    is_count = isinstance(asked, int) and not isinstance(asked, bool) and 1 <= asked <= most
    if not is_count:
        raise EngineError(
            f"{shown(asked)} {name} were asked for.", f"Ask for a whole number from 1 to {most}."
        )


def check_feeds(feeds: Mapping[str, Tensor], inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """Return the size of each dynamic axis, 1 or more, by its name.

    Raise `EngineError` if names, dtypes or shapes of feeds differ from a graph's inputs.
    """
    names = {spec.name for spec in inputs}
    if feeds.keys() != names:
        raise EngineError(
            f"The graph takes {', '.join(sorted(names))}; it was given "
            f"{', '.join(sorted(feeds)) or 'nothing'}.",
            "Give exactly one array per input.",
        )
    sizes: dict[str, int] = {}
    for spec in inputs:
        array = feeds[spec.name]
        wanted = tuple(
            sizes.setdefault(axis, max(side, 1)) if isinstance(axis, str) else axis
            for axis, side in zip(spec.shape, array.shape, strict=False)
        )
        fits = len(spec.shape) == len(array.shape) and array.shape == wanted
        if array.dtype != np.dtype(spec.dtype) or not fits:
            raise EngineError(
                f"The input {spec.name!r} is {array.dtype} of shape {array.shape}; the graph takes "
                f"{_described(spec)}.",
                "Prepare the input as the bundle describes: sacvit-deploy inspect BUNDLE.",
            )
    return sizes


def check_outputs(
    outputs: Mapping[str, Tensor], specs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> None:
    """Raise `EngineError` if dtypes or shapes of results differ from a graph's outputs.

    A library does not hold a graph to the shapes it declares.

    Args:
        outputs: Every output, by name.
        specs: The outputs as the graph declares them.
        sizes: Size of each dynamic axis, by its name.
    """
    for spec in specs:
        found = outputs[spec.name]
        wanted = tuple(sizes[side] if isinstance(side, str) else side for side in spec.shape)
        if found.dtype != np.dtype(spec.dtype) or found.shape != wanted:
            raise EngineError(
                f"The graph gave {spec.name!r} as {found.dtype} of shape {found.shape}; its "
                f"contract says {spec.dtype} of shape {wanted}.",
                "Export the bundle again.",
            )


def mismatches(found: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> list[str]:
    """Ways in which tensors of a graph differ from the contract, one line each; empty if none.

    A dynamic axis fits any side of the contract, and a fixed one the same number only.
    """
    there = {spec.name: spec for spec in found}
    expected = {spec.name: spec for spec in wanted}
    extra = [f"{reprlib.repr(name)} is not expected" for name in there.keys() - expected]
    missing = [f"{name!r} is missing" for name in expected if name not in there]
    return [*missing, *extra[:3]] + [
        f"{name!r} is {_described(there[name])}, not {_described(spec)}"
        for name, spec in expected.items()
        if name in there and not _fits(there[name], spec)
    ]


def check_tensors(
    path: Path,
    graph: GraphSpec | GraphEntry,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    """Raise `EngineError` if a graph is not the one that its contract describes.

    Args:
        path: File of the graph.
        graph: The contract.
        inputs: Inputs that the library found in the file.
        outputs: Outputs that it found.
    """
    lines = [f"input {line}" for line in mismatches(inputs, graph.inputs)]
    lines += [f"output {line}" for line in mismatches(outputs, graph.outputs)]
    if lines:
        raise EngineError(
            f"{path} is not the {graph.role} graph of this network: {'; '.join(lines)}.",
            "Export the bundle again.",
        )


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    return (found.dtype, len(found.shape)) == (wanted.dtype, len(wanted.shape)) and all(
        isinstance(side, str) or side == other
        for side, other in zip(found.shape, wanted.shape, strict=True)
    )


def _described(spec: TensorSpec) -> str:
    return f"{spec.dtype} of shape ({', '.join(str(side)[:20] for side in spec.shape[:6])})"
