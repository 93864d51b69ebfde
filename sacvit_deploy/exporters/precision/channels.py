"""How large each channel gets that a linear layer takes in, over all calibration pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.exporters.precision.sessions import LiteralSession, with_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

_ROWS_OF_A_BATCH = 64


@dataclass(frozen=True)
class Channels:
    """What one tensor held.

    Attributes:
        largest: Magnitude of each channel, (C,).
        rows: Some of its rows, from every batch, (n, C).
    """

    largest: NDArray[Any]
    rows: NDArray[Any]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Channels:
        """Of one batch of a tensor (..., C)."""
        rows = values.reshape(-1, values.shape[-1])
        step = max(1, len(rows) // _ROWS_OF_A_BATCH)
        return cls(np.abs(rows).max(axis=0), rows[::step])

    def joined(self, other: Channels) -> Channels:
        """Of both batches."""
        return Channels(
            np.maximum(self.largest, other.largest), np.concatenate([self.rows, other.rows])
        )


class ChannelSession:
    """Runs a graph, and takes note of some of its tensors.

    Like `CalibratingSession` it stands in the place of the real one, and sees what that would see.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], file: Path) -> None:
        """Prepare the measurement.

        Args:
            model: With its weights.
            tensors: Names.
            file: Where to put a copy of the graph.
        """
        self._session = LiteralSession.of(with_outputs(model, tensors), file)
        self._tensors = tensors
        self.provider = self._session.provider
        self.channels: dict[str, Channels] = {}

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        outputs = self._session.run(feeds)
        for name in self._tensors:
            found = Channels.of(outputs[name])
            known = self.channels.get(name)
            self.channels[name] = known.joined(found) if known else found
        return outputs
