"""The seam between the pipeline and whatever runs a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sacvit_deploy.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.spec import TensorSpec


class Session(Protocol):
    """One graph, ready to run; safe to call from several threads at once."""

    @property
    def provider(self) -> str:
        """What computes, as its runtime names it, for example `CUDAExecutionProvider`."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output of the graph.

        Args:
            feeds: One array per input, by name, with the dtype and shape the graph declares.

        Returns:
            One array per output, by name.

        Raises:
            EngineError: The feeds do not fit the graph, or the runtime failed.
        """


@dataclass(frozen=True)
class SessionOptions:
    """What the user may choose about a runtime.

    Attributes:
        providers: Execution providers in order of preference, by full or short name (`CUDA`,
            `CPU`); None takes the fastest one that needs no preparation.
        threads: CPU threads of one operator, 1 or more; None leaves it to the runtime.
    """

    providers: tuple[str, ...] | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise EngineError(
                f"{self.threads} threads were asked for.", "Ask for 1 or more, or for none."
            )


def check_feeds(feeds: Mapping[str, NDArray[Any]], inputs: Sequence[TensorSpec]) -> None:
    """Compare arrays with what a graph declares; a dynamic axis is 1 or more, one size per name.

    Raises:
        EngineError: A name is missing or unknown, or a dtype or shape differs.
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
        if array.dtype != np.dtype(spec.dtype) or not _fits(array.shape, spec.shape, sizes):
            raise EngineError(
                f"The input {spec.name!r} is {array.dtype} of shape {array.shape}; the graph takes "
                f"{spec.dtype} of shape ({', '.join(map(str, spec.shape))}).",
                "Prepare the input as the bundle describes: sacvit-deploy inspect BUNDLE.",
            )


def _fits(shape: tuple[int, ...], declared: tuple[int | str, ...], sizes: dict[str, int]) -> bool:
    """Whether the shape is the declared one; `sizes` remembers what a dynamic axis was before."""
    if len(shape) != len(declared):
        return False
    wanted = (
        sizes.setdefault(axis, max(side, 1)) if isinstance(axis, str) else axis
        for side, axis in zip(shape, declared, strict=True)
    )
    return shape == tuple(wanted)
