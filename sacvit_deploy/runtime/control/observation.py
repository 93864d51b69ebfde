"""Everything that watches a pipeline: its statistics, and whether its pictures have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.control.drift import DriftMonitor
from sacvit_deploy.runtime.control.stats import Stats

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.manifest import ExitCalibration
    from sacvit_deploy.runtime.control.drift import DriftReport
    from sacvit_deploy.runtime.scheduler import Outcome


class Observation:
    """Is shown every picture that was prepared or classified."""

    def __init__(self, config: ModelConfig, record: ExitCalibration | None) -> None:
        """Start with nothing seen.

        Args:
            config: The network.
            record: The calibration of its exit; without one there is nothing to drift from.
        """
        self.stats = Stats()
        self._drift: DriftMonitor | None = None
        if record is not None:
            self._drift = DriftMonitor(record, config.stages.exit_comparison)

    def prepared(self, ms: float) -> None:
        """A picture was read and prepared in so many milliseconds."""
        self.stats.add_preprocess(ms)

    def counted(self, outcomes: list[Outcome]) -> list[Outcome]:
        """The same outcomes, counted.

        Warns:
            DriftWarning: The pictures are not like those of the calibration; at most once.
        """
        self.stats.add(outcomes)
        if self._drift is not None:
            self._drift.add(outcomes)
        return outcomes

    def drift_report(self) -> DriftReport:
        """The pictures of late against those of the calibration.

        Raises:
            ConfigError: There is no calibration.
        """
        if self._drift is None:
            raise ConfigError(
                "There is nothing to compare with: the exit was not calibrated for this precision "
                "and runtime.",
                "Calibrate it: sacvit-deploy calibrate BUNDLE DATA",
            )
        return self._drift.report()
