"""Other evaluations, read back from the JSON they were written to, to stand beside a new one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacvit_deploy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Compared:
    """One row of another evaluation.

    Attributes:
        name: Of its bundle, with precision and threshold.
        top1: Share of right answers, in [0, 1].
        macs_mean_g: Mean cost of a picture, in 1e9 multiply-accumulates.
        latency_ms_mean: Mean latency of a picture at batch 1, in milliseconds.
        data_sha256: Names the pictures it was made on.

    Raises:
        ValueError: A number is out of range.
    """

    name: str
    top1: float
    macs_mean_g: float
    latency_ms_mean: float
    data_sha256: str

    def __post_init__(self) -> None:
        # Written so that NaN fails too; a chart has no place for it.
        costs = (self.macs_mean_g, self.latency_ms_mean)
        if not (0 <= self.top1 <= 1 and all(0 <= cost < math.inf for cost in costs)):
            raise ValueError(f"{self} is out of range")


def read_compared(file: Path) -> tuple[Compared, ...]:
    """Read what `sacvit-deploy evaluate --json` wrote.

    Raises:
        DataError: The file cannot be read, or was not written by it.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        rows = document.get("rows", [document])
        return tuple(_compared(document, row) for row in rows)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is not an evaluation: {type(error).__name__}: {error}.",
            f"Write it with: sacvit-deploy evaluate BUNDLE DATA --json > {file}",
        ) from error


def _compared(document: Mapping[str, Any], row: Mapping[str, Any]) -> Compared:
    eta = "" if row["eta"] is None else f", eta {row['eta']:.4g}"
    return Compared(
        name=f"{document['bundle']} {document['precision']}{eta}",
        top1=float(row["top1"]),
        macs_mean_g=float(row["macs_mean_g"]),
        latency_ms_mean=float(row["latency_ms_mean"]),
        data_sha256=str(document["data_sha256"]),
    )
