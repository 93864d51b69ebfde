"""Ranges of what the linear layers take in, measured in the pipeline as it runs."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, cast

import onnx
from onnxruntime.quantization import calibrate

from sacvit_deploy.exporters.precision.places import constants, linear_nodes, places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.exporters.precision.request import Method
    from sacvit_deploy.spec import Role

    Feeds = Mapping[str, NDArray[Any]]

# A range per tensor, symmetric about zero, since TensorRT takes no zero point but 0.
_CALIBRATORS: dict[Method, tuple[Any, dict[str, float]]] = {
    "minmax": (calibrate.MinMaxCalibrater, {}),
    "percentile": (calibrate.PercentileCalibrater, {"percentile": 99.99}),
    # With as many bins as levels, the library's default, there is nothing to choose from.
    "entropy": (calibrate.EntropyCalibrater, {"num_bins": 512, "num_quantized_bins": 128}),
}


def quantised_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The linear layers of the blocks and of the fusion, in order."""
    return [node for node in linear_nodes(model) if node.op_type == "MatMul"]


def linear_layers(model: onnx.ModelProto, role: Role) -> dict[str, onnx.NodeProto]:
    """The same by their place, which a layer has in every graph that shares its weight."""
    where = places(model, role)
    return {where[node.name]: node for node in quantised_nodes(model)}


class CalibratingSession:
    """Runs a graph, and takes note of the range of what its linear layers take in.

    In the place of the real session it sees exactly what a deployed graph would see: the refine
    graph gets the tensors of the early exit and the tokens that were chosen.
    """

    def __init__(
        self, session: Session, model: onnx.ModelProto, method: Method, scratch: Path
    ) -> None:
        """Prepare the measurement.

        Args:
            session: The FP32 graph, which gives the results.
            model: The same graph with its weights.
            method: How a range is found.
            scratch: A folder for copies of the graph, one of which is run beside it.
        """
        self._session = session
        self.provider = session.provider
        kind, options = _CALIBRATORS[method]
        # The calibrator writes beside what it reads.
        copy = scratch / "fp32.onnx"
        onnx.save(model, copy)
        with _quiet():
            self._calibrator = kind(
                copy, None, str(scratch / "measured.onnx"), symmetric=True, **options
            )
            self._calibrator.select_tensors_to_calibrate = _linear_inputs
            self._calibrator.augment_graph()
            self._calibrator.create_inference_session()

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        with _quiet():
            self._calibrator.collect_data(_OneBatch(feeds))
        return self._session.run(feeds)

    def ranges(self) -> calibrate.TensorsData:
        """What was found so far, by tensor name."""
        with _quiet():
            return cast("calibrate.TensorsData", self._calibrator.compute_data())


class _OneBatch(calibrate.CalibrationDataReader):  # type: ignore[misc]  # the library is untyped
    """The reader a calibrator asks for, with one batch in it."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = [dict(feeds)]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The batch, then None."""
        return self._feeds.pop() if self._feeds else None


def _linear_inputs(model: onnx.ModelProto) -> tuple[list[str], dict[str, onnx.ValueInfoProto]]:
    """In the place of the calibrator's own choice, which takes every tensor of a kind of node."""
    known = constants(model)
    infos = {v.name: v for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    inputs = [node.input[0] for node in quantised_nodes(model)]
    return [name for name in dict.fromkeys(inputs) if name not in known], infos


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The calibrators print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
