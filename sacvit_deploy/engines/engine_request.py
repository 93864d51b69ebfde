"""What an engine build is asked for: precision, library, batches and options."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sacvit_deploy.errors import EngineError
from sacvit_deploy.records import EngineFlags
from sacvit_deploy.spec import EngineBackend, Precision

HardwareCompatibility = Literal["none", "same-compute-capability", "ampere-plus"]

# More memory than any GPU has, and a number of bytes that the libraries can hold.
_MOST_WORKSPACE_MIB = 1 << 24
_LARGEST_BATCH = (1 << 31) - 1

_BATCH_FIX = "Write --batch MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX < 2^31, for example 1:8:32."

# Of the pictures of a batch, about this many reach the second stage at the published thresholds.
_SURVIVING = 4


@dataclass(frozen=True)
class BatchRange:
    """Batches that an engine accepts, of either stage.

    Attributes:
        smallest: 1 or more.
        best: The batch its kernels are chosen for.
        largest: The batch its memory is allocated for.
    """

    smallest: int
    best: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.best <= self.largest <= _LARGEST_BATCH:
            raise EngineError(
                f"The batch range is {self.smallest}:{self.best}:{self.largest}.", _BATCH_FIX
            )

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Read `MIN:OPT:MAX`, or one number for all three; `EngineError` if it is neither."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
            raise EngineError(f"The batch range is {text!r}.", _BATCH_FIX)
        numbers = [int(part) for part in parts]
        return cls(*(numbers if len(numbers) == 3 else numbers * 3))

    @property
    def survivors(self) -> BatchRange:
        """The range of those who reach the second stage: kernels for a quarter of the batch.

        All of a batch may still reach it, so the limits are those of the batch.
        """
        return dataclasses.replace(self, best=max(self.smallest, -(-self.best // _SURVIVING)))

    @property
    def triple(self) -> tuple[int, int, int]:
        """(smallest, best, largest)."""
        return self.smallest, self.best, self.largest


@dataclass(frozen=True)
class EngineRequest:
    """One call of `build_engines`.

    Attributes:
        precision: Precision of the graphs.
        backend: The library that builds.
        batch: The optimization profile.
        compute_capabilities: GPUs to build for, such as `8.6`; empty for the one of this machine.
            TensorRT-RTX only.
        workspace_mib: Upper limit of scratch memory in MiB; None leaves it to the builder.
        optimization_level: 0 (fast build) to 5 (fast engine); None leaves it to the builder.
        timing_cache: File with the timings of earlier builds, written again afterwards. TensorRT
            only.
        version_compatible: The engine also loads in later TensorRT releases of the same major
            version, somewhat slower. TensorRT only.
        hardware_compatibility: Other GPUs that the engine runs on. TensorRT only.
    """

    precision: Precision
    backend: EngineBackend
    batch: BatchRange = BatchRange(1, 8, 32)
    compute_capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= _MOST_WORKSPACE_MIB:
            raise EngineError(
                f"The workspace limit is {self.workspace_mib} MiB.",
                f"Make it 1 to {_MOST_WORKSPACE_MIB}.",
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise EngineError(
                f"The optimization level is {self.optimization_level}.", "Make it 0 to 5."
            )
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise EngineError(
                f"The hardware compatibility is {self.hardware_compatibility!r}.",
                f"Choose one of {', '.join(get_args(HardwareCompatibility))}.",
            )

    @property
    def only_tensorrt(self) -> list[str]:
        """Options set here that TensorRT-RTX does not have, as the command line writes them."""
        chosen = {
            "--timing-cache": self.timing_cache is not None,
            "--version-compatible": self.version_compatible,
            "--hardware-compatibility": self.hardware_compatibility != "none",
        }
        return [name for name, is_set in chosen.items() if is_set]

    @property
    def flags(self) -> EngineFlags:
        """The options that an engine's entry records, without those left to the builder."""
        hardware = self.hardware_compatibility
        return EngineFlags(
            self.workspace_mib,
            self.optimization_level,
            self.version_compatible or None,
            None if hardware == "none" else hardware,
        )


def parse_compute_capabilities(text: str) -> tuple[str, ...]:
    """Read `86,89,120` or `8.6,8.9,12.0` as `("8.6", "8.9", "12.0")`, each once.

    `EngineError` if one is not a compute capability.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,2})\.?(\d)", part.strip(), re.ASCII)
        if match is None:
            raise EngineError(
                f"The compute capability {part.strip()!r} cannot be read.",
                "Write them as 86,89,120; sacvit-deploy doctor shows the one of this machine.",
            )
        found.append(f"{match[1]}.{match[2]}")
    return tuple(dict.fromkeys(found))
