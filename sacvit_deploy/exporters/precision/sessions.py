"""Sessions that measure: one that remembers, one that computes exactly what the graph says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime

from sacvit_deploy.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from sacvit_deploy.engines.session import Session

    Feeds = Mapping[str, NDArray[Any]]

_ONLY_ERRORS = 3


class RecordingSession:
    """Another session, and the first feeds it was given in `first_feeds`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.provider = session.provider
        self.first_feeds: Feeds = {}

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        self.first_feeds = self.first_feeds or dict(feeds)
        return self._session.run(feeds)


class LiteralSession:
    """ONNX Runtime on the CPU without graph optimisation: no rounding is skipped, nothing fused."""

    provider = "CPUExecutionProvider"

    def __init__(self, path: Path) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _ONLY_ERRORS
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), settings, providers=[self.provider]
            )
        except Exception as error:  # its exceptions share no other base
            raise EngineError(
                f"ONNX Runtime cannot load a converted graph: {error}",
                "Export with --precision fp32, and please report this.",
            ) from error

    @classmethod
    def of(cls, model: onnx.ModelProto, file: Path) -> LiteralSession:
        """Of a graph in memory, by way of a file."""
        onnx.save(model, file)
        return cls(file)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The same graph with some tensors in the middle of it as outputs."""
    typed = onnx.shape_inference.infer_shapes(model)
    infos = {info.name: info for info in typed.graph.value_info}
    outputs = {info.name for info in typed.graph.output}
    typed.graph.output.extend(infos[name] for name in tensors if name not in outputs)
    return typed


def tensor_values(
    model: onnx.ModelProto, tensors: Iterable[str], feeds: Feeds, file: Path
) -> dict[str, NDArray[Any]]:
    """Outputs of a graph, and some tensors in the middle of it.

    Args:
        model: With its weights.
        tensors: Names.
        feeds: Inputs of the graph.
        file: Where to put a copy of the graph.
    """
    return LiteralSession.of(with_outputs(model, tensors), file).run(feeds)
