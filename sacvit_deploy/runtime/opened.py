"""What every pipeline has: a bundle whose sessions are open, until it is closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeVar

from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import Decode, Precision

_Self = TypeVar("_Self", bound="OpenedBundle")


class OpenedBundle:
    """The sessions of a bundle, and the preprocessing of its pictures.

    Attributes:
        manifest: Description of the bundle.
        preprocess: Turns a picture into the input tensor.
    """

    def __init__(self, manifest: Manifest, opened: OpenedSessions, decode: Decode) -> None:
        """Join what belongs to one bundle.

        Args:
            manifest: Description of the bundle.
            opened: Its graphs, ready to run.
            decode: See `Preprocessor`.
        """
        self.manifest = manifest
        self.preprocess = Preprocessor(manifest.preprocessing, manifest.input_kind, decode)
        self._opened = opened

    @property
    def precision(self) -> Precision:
        """Precision of the graphs that run."""
        return self._opened.precision

    @property
    def backend(self) -> str:
        """Library that computes, for example `onnxruntime`."""
        return self._opened.backend

    @property
    def provider(self) -> str:
        """Part of the backend that computes, as the backend names it."""
        return self._opened.provider

    @property
    def largest_batch(self) -> int | None:
        """Largest batch the engines were built for; None if any batch is taken."""
        return self._opened.largest_batch

    @property
    def skipped(self) -> Mapping[str, str]:
        """Backends that would have been faster, and why each was not taken."""
        return self._opened.skipped

    def close(self) -> None:
        """Release the sessions and their memory; calls after that raise `EngineError`.

        Closing twice is allowed. Pipelines made by `with_budget` share the sessions.
        """
        self._opened.close()

    def __enter__(self: _Self) -> _Self:
        """Return the pipeline itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pipeline."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied, with `TypeError`."""
        raise TypeError(
            f"A {type(self).__name__} cannot be pickled or copied: its sessions belong to this "
            "process.\nLoad the bundle in each process: sacvit_deploy.load(path)."
        )
