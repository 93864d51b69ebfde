"""The progress of a build as one share of its work."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from sacvit_deploy.progress import OnProgress


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """The methods of an `IProgressMonitor`, which turn nested phases into one share.

    A phase has steps, and a phase inside it counts as one of them. A builder announces a phase when
    it begins and not before, so the share is kept from falling.

    `on_progress` must not raise: the exception would have to cross the library's C++ code.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._share = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[phase_name] = _Phase(parent_phase, max(num_steps, 1))
        self._tell(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step, counted from 0, is done; True goes on with the build."""
        with self._lock:
            if phase_name in self._phases:
                self._phases[phase_name].done = step + 1
        self._tell(phase_name)
        return True

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends, perhaps before its last step."""
        with self._lock:
            self._phases.pop(phase_name, None)

    def _tell(self, phase_name: str) -> None:
        with self._lock:
            share = self._share = max(self._share, self._share_of(phase_name))
        self._on_progress(share, phase_name)

    def _share_of(self, phase_name: str) -> float:
        """Share of the whole work that is done, seen from a phase upwards."""
        share, phase = 0.0, self._phases.get(phase_name)
        while phase is not None:
            share = min((phase.done + share) / phase.steps, 1.0)
            phase = self._phases.get(phase.parent or "")
        return share
