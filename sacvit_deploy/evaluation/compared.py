"""Rows of other evaluations, read back to be shown beside a new one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacvit_deploy.decode import parse_json, read_bounded
from sacvit_deploy.errors import ConfigError, DataError, raised_as
from sacvit_deploy.evaluation.statistics import Interval, share_interval


@dataclass(frozen=True)
class Compared:
    """One row of another evaluation.

    Attributes:
        name: Bundle, precision and threshold.
        top1: Accuracy, in [0, 1].
        macs_mean_g: Mean cost of a picture, in 10^9 multiply-accumulates.
        latency_ms_mean: Mean latency of a picture, in milliseconds.
        data_sha256: Hash of the data; see `StageAnswers`.
        images: Number of pictures, 1 or more.
        batch_size: Pictures that were computed together.

    Raises:
        ValueError: A number is out of range.
    """

    name: str
    top1: float
    macs_mean_g: float
    latency_ms_mean: float
    data_sha256: str
    images: int
    batch_size: int = 1

    def __post_init__(self) -> None:
        # Written so that NaN fails too; a chart has no place for it.
        costs = (self.macs_mean_g, self.latency_ms_mean)
        if not (0 <= self.top1 <= 1 and all(0 <= cost < math.inf for cost in costs)):
            raise ValueError(f"{self} is out of range")
        if self.images < 1:
            raise ValueError(f"{self} has no pictures")

    @property
    def top1_interval(self) -> Interval:
        """95 % interval of `top1`; see `share_interval`."""
        return share_interval(self.top1, self.images)


def read_compared(file: Path) -> tuple[Compared, ...]:
    """Read the JSON document of another evaluation.

    Raises:
        DataError: The file cannot be read, or is not such a document.
    """
    problem = f"{file} is not an evaluation"
    fix = "Name a file that was written with: sacvit-deploy evaluate BUNDLE DATA --json > FILE"
    try:
        with raised_as(DataError, problem, fix):
            content = read_bounded(file)
        document = parse_json(content, "It")
        rows = document.get("rows", [document])
        return tuple(_compared(document, row) for row in rows)
    except (ValueError, TypeError, LookupError, AttributeError, ConfigError) as error:
        reason = f"{type(error).__name__}: {error}."
        if isinstance(error, KeyError):
            reason = f"it has no {error}."
        elif isinstance(error, ConfigError):
            reason = error.problem
        raise DataError(f"{problem}: {reason}", fix) from error


def _compared(document: Mapping[str, Any], row: Mapping[str, Any]) -> Compared:
    eta = "" if row["eta"] is None else f", eta {row['eta']:.4g}"
    return Compared(
        name=f"{document['bundle']} {document['precision']}{eta}",
        top1=float(row["top1"]),
        macs_mean_g=float(row["macs_mean_g"]),
        latency_ms_mean=float(row["latency_ms_mean"]),
        data_sha256=str(document["data_sha256"]),
        images=int(row["images"]),
        batch_size=int(document.get("batch_size", 1)),
    )
