"""The metrics of a run: JSON lines, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sacvit_deploy._optional import require
from sacvit_deploy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class MetricsLog:
    """Appends one JSON object a line to a file; a resumed run first drops lines it will repeat.

    Args:
        path: The file.
        from_step: Lines of later steps were written after the checkpoint that is resumed.
        tensorboard: Folder of the event files; None writes none.
    """

    def __init__(self, path: Path, from_step: int, tensorboard: Path | None = None) -> None:
        self._path = path
        self._drop_after(from_step)
        self._events: Any = None
        if tensorboard is not None:
            require("tensorboard", "Writing TensorBoard files")
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(tensorboard), purge_step=from_step + 1)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Add the values of a step.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise DataError(
                f"The metrics cannot be written to {self._path}: {error}.",
                "Make space on that disk and start the same command again.",
            ) from error
        if self._events is not None:
            for name, value in values.items():
                if not isinstance(value, str):
                    self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the event files."""
        if self._events is not None:
            self._events.close()

    def _drop_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            # A kill may have cut the last line short; it belongs to a step that is repeated.
            with suppress(ValueError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        unfinished = self._path.with_name(f".{self._path.name}.tmp")
        unfinished.write_text("".join(kept), encoding="utf-8")
        os.replace(unfinished, self._path)
