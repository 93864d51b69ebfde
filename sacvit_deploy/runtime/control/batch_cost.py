"""How much of a stage's time a fuller batch saves, learned from its runs."""

from __future__ import annotations

# A run counts half as much after about 20 more.
_FADE = 0.966
# The first run of a session allocates, and may compile.
_WARM_UPS = 1
# Variance of the sizes of batches, below which they tell nothing of what a batch costs by itself.
_LEAST_SPREAD = 0.05


class BatchCost:
    """The line `ms(k) = run_ms + k * picture_ms` through the recent runs, by least squares."""

    def __init__(self) -> None:
        """Start with no runs."""
        self._runs = 0
        self._weight = self._k = self._ms = self._kk = self._kms = 0.0

    def add(self, pictures: int, ms: float) -> None:
        """Add a run of some pictures and the milliseconds that it took as a whole."""
        self._runs += 1
        if self._runs <= _WARM_UPS:
            return
        self._weight = _FADE * self._weight + 1
        newest = 1 / self._weight
        self._k += newest * (pictures - self._k)
        self._ms += newest * (ms - self._ms)
        self._kk += newest * (pictures**2 - self._kk)
        self._kms += newest * (pictures * ms - self._kms)

    def saved(self, pictures: int, full: int) -> float | None:
        """Share of the time per picture that a full batch saves.

        Args:
            pictures: Pictures that could run now, 1 or more.
            full: Pictures of a full batch.

        Returns:
            In [0, 1); None while the runs were too few, or too much of one size, to tell.
        """
        spread = self._kk - self._k**2
        if spread < _LEAST_SPREAD:
            return None
        picture_ms = max(0.0, (self._kms - self._k * self._ms) / spread)
        run_ms = max(0.0, self._ms - picture_ms * self._k)
        now_ms, full_ms = run_ms / pictures + picture_ms, run_ms / full + picture_ms
        return max(0.0, 1 - full_ms / now_ms) if now_ms > 0 else None
