"""ONNX Runtime, on the CPU or through one of its execution providers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, cast

from sacvit_deploy.engines.session import SessionOptions, check_feeds
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.spec import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

_SUFFIX = "ExecutionProvider"
_CPU = "CPUExecutionProvider"

# Fast without building an engine first; TensorRT inside ONNX Runtime would take minutes at start.
_PREFERRED = ("CUDAExecutionProvider", _CPU)

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
}

_ONLY_ERRORS = 3


class ProviderWarning(UserWarning):
    """Another execution provider computes than the one that was asked for."""


class OnnxRuntimeSession:
    """One ONNX graph in ONNX Runtime."""

    def __init__(self, path: Path, options: SessionOptions | None = None) -> None:
        """Load a graph.

        Args:
            path: The `.onnx` file; its external weights lie beside it.
            options: Providers and threads.

        Raises:
            EngineError: The file is not a graph this runtime can run, or a provider is unknown.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        options = options or SessionOptions()
        ort = _onnxruntime()
        asked = _asked_providers(ort, options.providers)
        settings = ort.SessionOptions()
        settings.log_severity_level = _ONLY_ERRORS
        settings.intra_op_num_threads = options.threads or 0
        available = [name for name in asked if name in ort.get_available_providers()]
        try:
            self._session = ort.InferenceSession(str(path), settings, providers=available or [_CPU])
        except Exception as error:  # its exceptions share no other base
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {error}",
                "Check the bundle with sacvit-deploy inspect, or export it again.",
            ) from error
        self.inputs = tuple(
            _tensor_spec(node, index) for index, node in enumerate(self._session.get_inputs())
        )
        _warn_if_other(asked[0], self.provider, ort)

    @property
    def provider(self) -> str:
        """The execution provider that was obtained first."""
        return str(self._session.get_providers()[0])

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output; see `Session.run`."""
        check_feeds(feeds, self.inputs)
        names = [node.name for node in self._session.get_outputs()]
        try:
            arrays = self._session.run(names, dict(feeds))
        except Exception as error:  # its exceptions share no other base
            raise EngineError(
                f"ONNX Runtime failed on {self.provider}: {error}",
                "If memory ran out, use a smaller batch; else check the bundle with "
                "sacvit-deploy verify.",
            ) from error
        return dict(zip(names, arrays, strict=True))


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"Running a bundle needs onnxruntime, which cannot be imported: {error}.",
            "Install it with: pip install onnxruntime (or the build made for your device).",
        ) from error
    return cast("ModuleType", onnxruntime)


def _asked_providers(ort: ModuleType, names: tuple[str, ...] | None) -> list[str]:
    """Full provider names in order of preference, without those of which nobody has heard."""
    available = ort.get_available_providers()
    if not names:
        return [name for name in _PREFERRED if name in available]
    known = {name.removesuffix(_SUFFIX).lower(): name for name in ort.get_all_providers()}
    asked = []
    for name in names:
        short = name.lower().removesuffix(_SUFFIX.lower())
        if short not in known:
            raise EngineError(
                f"ONNX Runtime knows no execution provider {name!r}.",
                f"Here it offers: {', '.join(available)}.",
            )
        asked.append(known[short])
    return asked


def _warn_if_other(asked: str, obtained: str, ort: ModuleType) -> None:
    if asked == obtained:
        return
    warnings.warn(
        f"{asked} was asked for and {obtained} was obtained: this onnxruntime {ort.__version__} "
        f"offers {', '.join(ort.get_available_providers())}. Install the build that has {asked} "
        "and the libraries it needs, or ask for another provider.",
        ProviderWarning,
        stacklevel=3,
    )


def _tensor_spec(node: Any, position: int) -> TensorSpec:
    """What the runtime says about an input; an unnamed dynamic axis gets a name of its own."""
    if node.type not in _DTYPES:
        raise EngineError(
            f"The graph input {node.name!r} is a {node.type}.", "Use a graph from a bundle."
        )
    dtype = cast("Literal['float32', 'float16', 'uint8', 'int64']", _DTYPES[node.type])
    shape = tuple(
        side if isinstance(side, (int, str)) else f"?{position}.{axis}"
        for axis, side in enumerate(node.shape)
    )
    return TensorSpec(node.name, dtype, shape)
