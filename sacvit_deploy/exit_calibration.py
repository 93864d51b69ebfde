"""What a calibration of the exit found, as `bundle.json` keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacvit_deploy.errors import BundleError, ConfigError
from sacvit_deploy.manifest_values import (
    Precision,
    Runtime,
    all_real,
    all_typed,
    check_eta,
    choice,
    real,
    typed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

HISTOGRAM_BINS = 20

_CALIBRATE_AGAIN = "Calibrate again: sacvit-deploy calibrate BUNDLE DATA."


def check_temperature(temperature: float) -> float:
    """The temperature of the exit's confidence as a float.

    Raises:
        ConfigError: It is not a finite number above 0.
    """
    if isinstance(temperature, bool) or not 0 < temperature < math.inf:
        raise ConfigError(
            f"The exit temperature is {temperature!r}.", "Make it a finite number above 0."
        )
    return float(temperature)


@dataclass(frozen=True)
class CalibrationPoint:
    """What the mixture of both stages is worth at one exit threshold.

    Attributes:
        eta: The threshold, in [0, 1].
        top1: Share of right answers, in [0, 1].
        early_exit_fraction: Share of pictures that leave after the first stage.
        macs_mean_g: Mean cost of a picture, in 10^9 multiply-accumulates.
        latency_ms_mean: Mean latency of a picture at batch 1, in milliseconds.
        latency_ms_p95: Its 95th percentile.
    """

    eta: float
    top1: float
    early_exit_fraction: float
    macs_mean_g: float
    latency_ms_mean: float
    latency_ms_p95: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibrationPoint:
        """Read a mapping written by `dataclasses.asdict`.

        Raises:
            BundleError: A field is missing or of the wrong type.
        """
        return cls(**{name: real(values, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class ExitCalibration:
    """The exit threshold found for one precision in one runtime, and what it rests on.

    Attributes:
        precision: Of the graphs that were measured.
        runtime: That computed them.
        eta: The threshold that was chosen, in [0, 1].
        temperature: The first stage's logits are divided by it before the confidence is compared
            with `eta`; above 0.
        goal: What was asked for, for example `max_accuracy_drop=0.005`.
        images: Pictures measured.
        data_sha256: Of their names, labels and bytes.
        top1: Share of right answers at `eta`.
        top1_interval: Lower and upper end of its 95 % interval.
        macs_mean_g: Mean cost of a picture at `eta`, in 10^9 multiply-accumulates.
        early_exit_fraction: Share of pictures that leave after the first stage at `eta`.
        confidence_histogram: Share of pictures in each of 20 equal bins of the first stage's
            confidence over [0, 1]; adds up to 1.
        curve: The same at other thresholds, by ascending `eta`.

    Raises:
        ConfigError: `eta` or `temperature` is out of range.
        BundleError: A number of pictures or a share, the histogram, the interval or the curve
            cannot be one.
    """

    precision: Precision
    runtime: Runtime
    eta: float
    temperature: float
    goal: str
    images: int
    data_sha256: str
    top1: float
    top1_interval: tuple[float, float]
    macs_mean_g: float
    early_exit_fraction: float
    confidence_histogram: tuple[float, ...]
    curve: tuple[CalibrationPoint, ...]

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_temperature(self.temperature)
        shares = self.confidence_histogram
        if len(shares) != HISTOGRAM_BINS or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
            raise BundleError(
                f"The confidence histogram has {len(shares)} bins that add up to {sum(shares):g}; "
                f"{HISTOGRAM_BINS} shares that add up to 1 are needed.",
                _CALIBRATE_AGAIN,
            )
        if len(self.top1_interval) != 2 or self.top1_interval[0] > self.top1_interval[1]:
            raise BundleError(f"The top-1 interval is {self.top1_interval}.", _CALIBRATE_AGAIN)
        if self.images < 1 or not all(0 <= s <= 1 for s in (self.top1, self.early_exit_fraction)):
            raise BundleError(
                f"The calibration says that of {self.images} pictures {self.top1:.1%} are right "
                f"and {self.early_exit_fraction:.1%} leave early.",
                _CALIBRATE_AGAIN,
            )
        etas = [check_eta(point.eta) for point in self.curve]
        if etas != sorted(etas):
            raise BundleError("The curve does not go by ascending eta.", _CALIBRATE_AGAIN)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExitCalibration:
        """Read a mapping written by `dataclasses.asdict`.

        Raises:
            BundleError: A field is missing, of the wrong type, or impossible.
            ConfigError: `eta` or `temperature` is out of range.
        """
        numbers = ("eta", "temperature", "top1", "macs_mean_g", "early_exit_fraction")
        fields: dict[str, Any] = {name: real(values, name) for name in numbers}
        return cls(
            precision=choice(values, "precision", Precision),
            runtime=choice(values, "runtime", Runtime),
            goal=typed(values, "goal", str),
            images=typed(values, "images", int),
            data_sha256=typed(values, "data_sha256", str),
            top1_interval=all_real(values, "top1_interval"),  # type: ignore[arg-type]
            confidence_histogram=all_real(values, "confidence_histogram"),
            curve=tuple(map(CalibrationPoint.from_dict, all_typed(values, "curve", dict))),
            **fields,
        )
