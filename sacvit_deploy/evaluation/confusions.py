"""Class by class: what is right, what leaves early, and what is taken for what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassRow:
    """The pictures of one class.

    Attributes:
        class_index: Of the network.
        label: Its name.
        images: How many, at least 1.
        top1: Share of right answers of the mixture.
        early_exit_fraction: Share that leaves early; None for a network of one stage.
        top1_early_exit_only: Share of right answers of the first stage; None for one stage.
        top1_refine_only: Share of right answers of the second stage; None for one stage.
    """

    class_index: int
    label: str
    images: int
    top1: float
    early_exit_fraction: float | None = None
    top1_early_exit_only: float | None = None
    top1_refine_only: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Confusion:
    """How often one class was taken for another, or for itself.

    Attributes:
        true: Class index.
        predicted: Class index.
        images: How many pictures, at least 1.
    """

    true: int
    predicted: int
    images: int


def class_rows(
    true: NDArray[np.int64], labels: Sequence[str], shares: dict[str, NDArray[np.bool_]]
) -> tuple[ClassRow, ...]:
    """One row for every class that has pictures, in class order.

    Args:
        true: Class of each picture, (n,).
        labels: Name of each class.
        shares: By the name of a field of `ClassRow`, which pictures count, (n,).
    """
    images = np.bincount(true, minlength=len(labels))
    counts = {
        name: np.bincount(true, which.astype(np.float64), minlength=len(labels))
        for name, which in shares.items()
    }
    return tuple(
        ClassRow(
            index,
            labels[index],
            int(images[index]),
            **{name: float(count[index] / images[index]) for name, count in counts.items()},
        )
        for index in np.flatnonzero(images).tolist()
    )


def confusions(true: NDArray[np.int64], predicted: NDArray[np.int64]) -> tuple[Confusion, ...]:
    """The confusion matrix without its zeros, by true and then by predicted class.

    Args:
        true: Class of each picture, (n,).
        predicted: What it was taken for, (n,).
    """
    pairs, counts = np.unique(np.stack([true, predicted], axis=1), axis=0, return_counts=True)
    found = zip(pairs.tolist(), counts.tolist(), strict=True)
    return tuple(Confusion(pair[0], pair[1], count) for pair, count in found)
