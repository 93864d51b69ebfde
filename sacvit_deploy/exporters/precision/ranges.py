"""Inputs of the linear layers, measured in the pipeline as it runs: channels and ranges.

Each session here replaces the real one and gets the inputs of a deployed graph: the refine graph
gets the tensors of the early exit, and the chosen tokens.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import calibrate

from sacvit_deploy.comparison.graphs import (
    Graph,
    LiteralSession,
    constants,
    literal_settings,
    matmuls,
    with_outputs,
)
from sacvit_deploy.engines.session import Session
from sacvit_deploy.exporters.precision.request import Method
from sacvit_deploy.spec import Role

Feeds = Mapping[str, NDArray[Any]]
Array = NDArray[Any]

# One range per tensor, symmetric about zero, since TensorRT takes no zero point but 0.
_CALIBRATORS: dict[Method, tuple[Any, dict[str, float]]] = {
    "minmax": (calibrate.MinMaxCalibrater, {}),
    "percentile": (calibrate.PercentileCalibrater, {"percentile": 99.99}),
    # With as many bins as levels, the library's default, there is nothing to choose from.
    "entropy": (calibrate.EntropyCalibrater, {"num_bins": 512, "num_quantized_bins": 128}),
}


@dataclass(frozen=True)
class Channels:
    """Statistics of one tensor x, over all of its rows.

    Attributes:
        lowest: Least value of each channel, (C,).
        highest: Largest value of each channel, (C,).
        mean: E[x], (C,).
        moment: E[x x^T], (C, C), which is the Hessian of a linear layer's squared error.
        rows: Number of rows.
    """

    lowest: Array
    highest: Array
    mean: Array
    moment: Array
    rows: int

    @classmethod
    def of(cls, values: Array) -> Channels:
        """Measure one batch of a tensor (..., C)."""
        # A channel that hardly varies needs the digits, once its mean is taken out.
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        count = len(rows)
        moment = rows.T @ rows / count
        return cls(rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), moment, count)

    @property
    def variance(self) -> Array:
        """Variance of each channel, (C,)."""
        return np.asarray(np.maximum(np.diag(self.moment) - self.mean**2, 0))

    def joined(self, other: Channels) -> Channels:
        """Statistics of the rows of both."""
        rows = self.rows + other.rows
        share = other.rows / rows
        return Channels(
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            self.mean + share * (other.mean - self.mean),
            self.moment + share * (other.moment - self.moment),
            rows,
        )

    def mapped(self, centre: Array, factor: Array) -> Channels:
        """Statistics of (x - centre) / factor, with both (C,) and `factor` positive."""
        mean = self.mean - centre
        crossed = np.outer(self.mean, centre)
        moment = self.moment - crossed - crossed.T + np.outer(centre, centre)
        return Channels(
            (self.lowest - centre) / factor,
            (self.highest - centre) / factor,
            mean / factor,
            moment / np.outer(factor, factor),
            self.rows,
        )


class ChannelSession:
    """Runs an FP32 graph, and measures the channels of the inputs of its linear layers.

    Attributes:
        channels: Statistics so far, by tensor.
    """

    def __init__(self, graph: Graph, file: Path, threads: int | None = None) -> None:
        """Prepare the measurement.

        Args:
            graph: FP32 graph.
            file: Where to put a copy of it.
            threads: CPU threads of one operator; None leaves it to the library.
        """
        inputs = [node.input[0] for node in graph.linear_layers.values()]
        self._tensors = list(dict.fromkeys(inputs))
        self._outputs = [output.name for output in graph.model.graph.output]
        self._session = LiteralSession(with_outputs(graph.model, self._tensors), file, threads)
        self.provider, self.close = self._session.provider, self._session.close
        self.channels: dict[str, Channels] = {}

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        outputs = self._session.run(feeds)
        for name in self._tensors:
            found = Channels.of(outputs[name])
            known = self.channels.get(name)
            self.channels[name] = known.joined(found) if known else found
        return {name: outputs[name] for name in self._outputs}


def channels_by_place(
    graphs: Mapping[Role, Graph], sessions: Mapping[Role, ChannelSession]
) -> dict[str, Channels]:
    """Join the inputs of each linear layer over all graphs that share its weight.

    Args:
        graphs: FP32 graphs by role.
        sessions: Each has run its graph.

    Returns:
        By place.
    """
    taken: dict[str, Channels] = {}
    for role, graph in graphs.items():
        for place, node in graph.linear_layers.items():
            found = sessions[role].channels[node.input[0]]
            known = taken.get(place)
            taken[place] = known.joined(found) if known else found
    return taken


class CalibratingSession:
    """Runs a graph, and measures the ranges of the inputs of its linear layers."""

    def __init__(
        self,
        session: Session,
        model: onnx.ModelProto,
        method: Method,
        scratch: Path,
        threads: int | None = None,
    ) -> None:
        """Prepare the measurement.

        Args:
            session: FP32 graph, which gives the results.
            model: FP32 graph to measure, with the same inputs.
            method: How a range is found.
            scratch: Folder for copies of the graph, made if it is missing.
            threads: CPU threads of one operator; None leaves it to the library.
        """
        self._session = session
        self.provider, self.close = session.provider, session.close
        kind, options = _CALIBRATORS[method]
        # The calibrator writes beside the file it reads.
        scratch.mkdir(exist_ok=True)
        copy = scratch / "fp32.onnx"
        onnx.save(model, copy)
        with _quiet():
            self._calibrator = kind(
                copy, None, str(scratch / "measured.onnx"), symmetric=True, **options
            )
            self._calibrator.select_tensors_to_calibrate = _linear_inputs
            self._calibrator.augment_graph()
            self._calibrator.infer_session = _opened(self._calibrator, threads)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        with _quiet():
            self._calibrator.collect_data(_OneBatch(feeds))
        return self._session.run(feeds)

    def ranges(self) -> calibrate.TensorsData:
        """Ranges so far, by tensor."""
        with _quiet():
            return cast("calibrate.TensorsData", self._calibrator.compute_data())


def _opened(calibrator: Any, threads: int | None) -> Any:
    """What `create_inference_session` of a calibrator opens, with a number of threads."""
    return onnxruntime.InferenceSession(
        calibrator.augmented_model_path, literal_settings(threads), calibrator.execution_providers
    )


class _OneBatch(calibrate.CalibrationDataReader):  # type: ignore[misc]  # the library is untyped
    """The reader a calibrator asks for, with one batch in it."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = [dict(feeds)]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The batch, then None."""
        return self._feeds.pop() if self._feeds else None


def _linear_inputs(model: onnx.ModelProto) -> tuple[list[str], dict[str, onnx.ValueInfoProto]]:
    """Choose the tensors to measure; the calibrator would choose every input of every MatMul."""
    known = constants(model)
    infos = {v.name: v for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    inputs = [node.input[0] for node in matmuls(model)]
    return [name for name in dict.fromkeys(inputs) if name not in known], infos


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop the output of the calibrators, which print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
