"""What a network is worth at one exit threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sacvit_deploy.evaluation.cost import mean_macs_g

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sacvit_deploy.evaluation.answers import StageAnswers
    from sacvit_deploy.evaluation.exit_sweep import ExitSweep
    from sacvit_deploy.spec import ModelConfig

EtaSource = Literal["given", "bundle", "calibrated", "fp32", "sweep"]


@dataclass(frozen=True)
class Exit:
    """When the first stage is sure enough.

    Attributes:
        eta: Threshold, in [0, 1].
        temperature: Of the confidence, above 0.
        source: `given` by the user; the default of the `bundle`; `calibrated` for the precision
            and runtime at hand; that of `fp32`, for comparison; or a point of a `sweep`.
    """

    eta: float
    temperature: float = 1.0
    source: EtaSource = "given"


@dataclass(frozen=True)
class Latency:
    """Of one picture at batch 1, in milliseconds.

    Attributes:
        mean: Over the pictures.
        p50: Median.
        p95: 95th percentile.
    """

    mean: float
    p50: float
    p95: float

    @classmethod
    def of(cls, milliseconds: NDArray[np.float64]) -> Latency:
        """Of the latency of each picture, (n,), n at least 1."""
        p50, p95 = np.percentile(milliseconds, (50, 95)).tolist()
        return cls(float(milliseconds.mean()), p50, p95)

    def to_dict(self) -> dict[str, float]:
        """JSON-ready, the unit in the names."""
        return {
            "latency_ms_mean": self.mean,
            "latency_ms_p50": self.p50,
            "latency_ms_p95": self.p95,
        }


@dataclass(frozen=True)
class OperatingPoint:
    """The mixture of both stages at one threshold.

    Attributes:
        exit: Threshold, temperature, and where they come from; None for a network of one stage.
        top1: Share of right answers, in [0, 1].
        early_exit_fraction: Share that leaves after the first stage; None for one stage.
        early_right_fraction: Share that leaves after the first stage and is right; of all pictures.
        macs_mean_g: Mean cost of a picture, in 1e9 multiply-accumulates.
        latency: Of the mixture.
    """

    exit: Exit | None
    top1: float
    early_exit_fraction: float | None
    early_right_fraction: float | None
    macs_mean_g: float
    latency: Latency

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the contract of `evaluate`; null where there is one stage."""
        fraction = self.early_exit_fraction
        return {
            "eta": self.exit and self.exit.eta,
            "eta_source": self.exit and self.exit.source,
            "temperature": self.exit and self.exit.temperature,
            "top1": self.top1,
            "early_exit_fraction": fraction,
            "refine_fraction": None if fraction is None else 1 - fraction,
            "early_right_fraction": self.early_right_fraction,
            "macs_mean_g": self.macs_mean_g,
            **self.latency.to_dict(),
        }


def operating_point(sweep: ExitSweep, exit_: Exit) -> OperatingPoint:
    """Accuracy, cost and latency of the mixture of both stages at a threshold.

    Args:
        sweep: The pictures by their confidence at the temperature of `exit_`.
        exit_: The threshold.
    """
    index = sweep.index_of(exit_.eta)
    return OperatingPoint(
        exit=exit_,
        top1=float(sweep.top1[index]),
        early_exit_fraction=float(sweep.early_exit_fraction[index]),
        early_right_fraction=float((sweep.leaves(index) & sweep.early_right).mean()),
        macs_mean_g=float(sweep.macs_mean_g[index]),
        latency=Latency.of(sweep.latency_ms(index)),
    )


def one_stage_point(answers: StageAnswers, config: ModelConfig) -> OperatingPoint:
    """The same of a network of one stage, where there is nothing to choose."""
    right = answers.decisions.early_logits.argmax(1) == answers.class_index
    return OperatingPoint(
        exit=None,
        top1=float(right.mean()),
        early_exit_fraction=None,
        early_right_fraction=None,
        macs_mean_g=mean_macs_g(config, 0),
        latency=Latency.of(answers.early_ms),
    )
