"""Any way of running a network: torch, ONNX graphs of some precision, engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.runtime.decisions import scheduler_decisions
from sacvit_deploy.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.runtime.decisions import Decisions
    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.runtime.preprocess import Preprocessor
    from sacvit_deploy.spec import ModelConfig, Role, Selection

_BATCH = 16


@dataclass(frozen=True)
class Network:
    """Sessions, and what they are to be fed.

    Attributes:
        name: For a person, for example `fp16 in onnxruntime`.
        config: What is computed.
        preprocess: From a picture to the input.
        sessions: `early_exit` and `refine`, or `single`.
        selection: Who chooses the target tokens.
        largest_batch: More than this is refused; None if any batch is taken.
    """

    name: str
    config: ModelConfig
    preprocess: Preprocessor
    sessions: Mapping[Role, Session]
    selection: Selection = "host"
    largest_batch: int | None = None

    def decisions(self, pictures: Sequence[PictureSource]) -> Decisions:
        """Both stages for every picture.

        Args:
            pictures: At least one; read in batches.

        Raises:
            ImageError: A picture cannot be read.
            EngineError: A session failed, or gave logits that are not finite.
        """
        scheduler = Scheduler(self.config, self.sessions, self.selection)
        return scheduler_decisions(scheduler, self.batches(pictures))

    def batches(self, pictures: Sequence[PictureSource]) -> Iterator[NDArray[Any]]:
        """Inputs (B, 3, H, W) as the sessions take them."""
        size = min(_BATCH, self.largest_batch or _BATCH)
        for start in range(0, len(pictures), size):
            part = pictures[start : start + size]
            yield np.stack([self.preprocess(picture) for picture in part])
