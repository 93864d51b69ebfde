"""Power of a Jetson board while something runs, from NVIDIA's `tegrastats`."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Rails that together feed the module, by board; the first that are all there count: Orin NX and
# Orin Nano, AGX Orin, older boards, Thor.
RAILS: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("POM_5V_IN",),
    ("VIN",),
)
INTERVAL_S = 0.1


class PowerMeter:
    """Reads `tegrastats` in a thread of its own.

    Attributes:
        rails: Names of the rails that are added up; empty until the first line was read.
    """

    def __init__(self, command: Sequence[str] = ("tegrastats",)) -> None:
        """Start `tegrastats`; OSError if it cannot be started."""
        self.rails: tuple[str, ...] = ()
        self._readings: list[tuple[float, float]] = []
        interval = ("--interval", str(round(INTERVAL_S * 1e3)))
        self._process = subprocess.Popen(
            (*command, *interval), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def mean_w(self, start: float, end: float) -> float | None:
        """Mean power in watts between two times of `time.perf_counter`; None without a reading."""
        watts = [reading for at, reading in list(self._readings) if start <= at <= end]
        return sum(watts) / len(watts) if watts else None

    def idle_w(self, seconds: float) -> float | None:
        """Mean power in watts while this thread sleeps."""
        start = time.perf_counter()
        time.sleep(seconds)
        return self.mean_w(start, time.perf_counter())

    def close(self) -> None:
        """Stop `tegrastats`; a second call does nothing."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            rails, watts = power_of(line)
            if watts is not None:
                self.rails = rails
                self._readings.append((time.perf_counter(), watts))


def power_of(line: str) -> tuple[tuple[str, ...], float | None]:
    """The rails of a line of `tegrastats`, and their power in watts; () and None without any.

    A rail is written as `VDD_IN 4987mW/4950mW`, the current value first; some releases leave out
    the unit.
    """
    found = {
        name: int(mw) for name, mw in re.findall(r"\b([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?", line)
    }
    for rails in RAILS:
        if all(rail in found for rail in rails):
            return rails, sum(found[rail] for rail in rails) / 1e3
    return (), None


def started() -> PowerMeter | None:
    """A meter; None where there is no `tegrastats`."""
    command = shutil.which("tegrastats")
    return PowerMeter((command,)) if command else None
