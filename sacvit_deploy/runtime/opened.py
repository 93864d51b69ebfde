"""What every pipeline has: a bundle whose sessions are open, until it is closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn, TypeVar

import numpy as np

from sacvit_deploy.decode import check_field
from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.scheduler import Scheduler
from sacvit_deploy.spec import Decode, Precision, check_count

_Self = TypeVar("_Self", bound="OpenedBundle")


class OpenedBundle:
    """The sessions of a bundle, and the preprocessing of its pictures.

    Attributes:
        manifest: Description of the bundle.
        preprocess: Turns a picture into the input tensor.
    """

    _scheduler: Scheduler

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

    def __repr__(self) -> str:
        where = f"{self.precision} in {self.backend} ({self.provider})"
        return f"<{type(self).__name__}: {self.manifest.network}; {where}>"

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

    def warm_up(self, batch_sizes: Iterable[int] = (1,)) -> None:
        """Do now what the first batches of these sizes would wait for.

        Both stages compute blank pictures, which are not counted anywhere. An engine makes its
        contexts, records its CUDA graphs and, with TensorRT-RTX, compiles its kernels; the second
        stage for every number of hard pictures that a batch can have. ONNX Runtime and OpenVINO
        take their memory.

        Args:
            batch_sizes: Pictures in a session at once: 1 for calls with one picture, and the
                `batch_size` of calls with several and of streams.

        Raises:
            ConfigError: A size is not a whole number from 1 on.
            EngineError: A size is above `largest_batch`, the backend failed, or the pipeline is
                closed.
        """
        numbers = isinstance(batch_sizes, Iterable) and not isinstance(batch_sizes, str)
        check_field(numbers, "batch_sizes", batch_sizes, "a list of numbers, such as [1, 8]")
        dtype = np.float32 if self.manifest.input_kind == "float" else np.uint8
        blank = np.zeros((3, *self.manifest.config.image_size), dtype)
        for size in [check_count("batch_sizes", size) for size in batch_sizes]:
            self._scheduler.warm_up(self._scheduler.batch_of([blank] * size))

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
