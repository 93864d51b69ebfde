"""What a linear layer takes in, channel by channel, over all calibration pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.exporters.precision.calibrate import linear_layers
from sacvit_deploy.exporters.precision.sessions import LiteralSession, with_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from sacvit_deploy.spec import Role

    Array = NDArray[Any]
    Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Channels:
    """What one tensor x held, all of its rows counted alike.

    Attributes:
        lowest: Least value of each channel, (C,).
        highest: Largest value of each channel, (C,).
        mean: E[x], (C,).
        moment: E[x x^T], (C, C), which is the Hessian of a linear layer's squared error.
        rows: How many there were.
    """

    lowest: Array
    highest: Array
    mean: Array
    moment: Array
    rows: int

    @classmethod
    def of(cls, values: Array) -> Channels:
        """Of one batch of a tensor (..., C)."""
        # A channel that hardly varies needs the digits, once its mean is taken out.
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        count = len(rows)
        moment = rows.T @ rows / count
        return cls(rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), moment, count)

    @property
    def variance(self) -> Array:
        """Of each channel, (C,)."""
        variance: Array = np.maximum(np.diag(self.moment) - self.mean**2, 0)
        return variance

    def joined(self, other: Channels) -> Channels:
        """Of the rows of both."""
        rows = self.rows + other.rows
        share = other.rows / rows
        return Channels(
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            self.mean + share * (other.mean - self.mean),
            self.moment + share * (other.moment - self.moment),
            rows,
        )

    def mapped(self, centre: Array, factor: Array) -> Channels:
        """Of (x - centre) / factor, with both (C,) and `factor` positive."""
        mean = self.mean - centre
        crossed = np.outer(self.mean, centre)
        moment = self.moment - crossed - crossed.T + np.outer(centre, centre)
        return Channels(
            (self.lowest - centre) / factor,
            (self.highest - centre) / factor,
            mean / factor,
            moment / np.outer(factor, factor),
            self.rows,
        )


def channels_by_place(
    models: Mapping[Role, onnx.ModelProto], sessions: Mapping[Role, ChannelSession]
) -> dict[str, Channels]:
    """What each linear layer took in, in all graphs that share its weight.

    Args:
        models: FP32 graphs.
        sessions: Each has run its graph.
    """
    taken: dict[str, Channels] = {}
    for role, model in models.items():
        for place, node in linear_layers(model, role).items():
            found = sessions[role].channels[node.input[0]]
            known = taken.get(place)
            taken[place] = known.joined(found) if known else found
    return taken


class ChannelSession:
    """Runs a graph, and takes note of what its linear layers take in, by the tensor's name.

    Like `CalibratingSession` it stands in the place of the real one, and sees what that would see.
    """

    def __init__(self, model: onnx.ModelProto, role: Role, file: Path) -> None:
        """Prepare the measurement.

        Args:
            model: FP32 graph with its weights.
            role: Its place in the pipeline.
            file: Where to put a copy of the graph.
        """
        taken = [node.input[0] for node in linear_layers(model, role).values()]
        self._tensors = list(dict.fromkeys(taken))
        self._session = LiteralSession.of(with_outputs(model, self._tensors), file)
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
