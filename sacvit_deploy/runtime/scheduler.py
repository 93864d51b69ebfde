"""Both graphs of a network: who leaves, who goes on, and the batch put together again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.session import (
    DeviceSession,
    HostMemorySession,
    PreparingSession,
    Rows,
    Session,
    Tensor,
    sharing_memory,
)
from sacvit_deploy.errors import EngineError
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig, graph_specs
from sacvit_deploy.runtime.algorithm import confidence, exits, fine_index, select_tokens
from sacvit_deploy.spec import (
    FEATURES,
    FINE_INDEX,
    IMAGE,
    KEPT,
    KEPT_MASK,
    LOGITS,
    NON_TARGET_INDEX,
    OVERFLOW,
    SCORE,
    SEMANTIC_ATTENTION,
    TARGET_INDEX,
    Role,
    Selection,
    check_temperature,
)

Array = NDArray[Any]
Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Outcome:
    """What the network says about one picture.

    Attributes:
        early_logits: First graph, or the only one, (C,).
        early_exit_confidence: Largest probability after the first stage, at the temperature of the
            exit; None for a network of one stage.
        score: Class attention of every coarse token (Eq. 10), (N,); None for a network of one
            stage, and where it stayed on the device.
        refined_logits: Second graph, (C,); None for a picture that did not need it.
        target_index: Coarse indices of the targets, best first, (M,); None for a picture that left
            early.
        early_ms: Share of this picture in the time its batch took in the first stage.
        refine_ms: The same for the second stage, token selection included; 0 for a picture that
            exited early.
        kept: Tokens that each gate kept, (gates,); None for a network without gates.
        kept_mask: Which of them, class token first, 0 or 1, (gates, N+1).
        semantic_attention: What each semantic token takes of each image token, (S, N); None for a
            network without semantic tokens.
        features: Features of a backbone, (D, rows, columns) each, by name; None for a network with
            classes. A backbone has no logits, (0,).
    """

    early_logits: Array
    early_exit_confidence: float | None = None
    score: Array | None = None
    refined_logits: Array | None = None
    target_index: NDArray[np.int64] | None = None
    early_ms: float = 0.0
    refine_ms: float = 0.0
    kept: NDArray[np.int64] | None = None
    kept_mask: NDArray[np.uint8] | None = None
    semantic_attention: Array | None = None
    features: Tensors | None = None

    @property
    def logits(self) -> Array:
        """Logits of the stage the picture left from, (C,)."""
        return self.early_logits if self.refined_logits is None else self.refined_logits

    @property
    def stage(self) -> Role:
        """Graph the picture left from."""
        if self.refined_logits is not None:
            return "refine"
        if self.features is not None:
            return "backbone"
        return "single" if self.early_exit_confidence is None else "early_exit"

    def refined(self, outputs: Mapping[str, Any], ms: float) -> Outcome:
        """Add the second stage; `dataclasses.replace` would take four times as long.

        Args:
            outputs: Row of this picture in each output, and in `target_index` if it was an input.
            ms: Share of this picture in the time.
        """
        return Outcome(
            self.early_logits,
            self.early_exit_confidence,
            self.score,
            outputs[LOGITS],
            outputs.get(TARGET_INDEX),
            self.early_ms,
            ms,
            outputs.get(KEPT),
            outputs.get(KEPT_MASK),
        )


class ExitPolicy(Protocol):
    """Sets the exit threshold of every batch, and learns how each stage went."""

    def threshold(self) -> float:
        """Exit threshold of the batch that has just been through the first stage, in [0, 1]."""

    def saw(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from pictures that went through a stage together.

        Args:
            outcomes: After the first stage, all without `refined_logits`; or after the second, all
                with them. At least one.
        """


@dataclass(frozen=True)
class FixedExit:
    """The same threshold for every batch.

    Attributes:
        eta: Exit threshold, in [0, 1].
    """

    eta: float

    def threshold(self) -> float:
        """See `ExitPolicy.threshold`."""
        return self.eta

    def saw(self, outcomes: Sequence[Outcome]) -> None:
        """See `ExitPolicy.saw`; nothing changes a fixed threshold."""


EVERY_PICTURE = FixedExit(1.0)
"""No picture exits early: both stages answer for each."""


@dataclass(frozen=True)
class FirstPass:
    """A batch after the first stage.

    Attributes:
        outcomes: One per picture, as if all had left.
        hand_off: Tensors for the second stage, one row per picture: arrays, or handles of those
            that stayed on the device.
        survivors: Rows that go on, ascending, (K,).
    """

    outcomes: list[Outcome]
    hand_off: Mapping[str, Tensor]
    survivors: NDArray[np.int64]


class Scheduler:
    """Runs batches through one or two sessions; holds no state between calls.

    Where both graphs compute on one device, the hand-off stays there: `run` copies the images in
    and the logits out, and the device copies the survivors' rows. If the host chooses the tokens,
    the scores come out and the indices go in.
    """

    def __init__(
        self,
        config: ModelConfig,
        sessions: Mapping[Role, Session],
        selection: Selection = "host",
        temperature: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Join the sessions of one network.

        Args:
            config: The network.
            sessions: `early_exit` and `refine`; or `single`, and `refine` if it is strict.
            selection: Who chooses the target tokens of the refine graph: the `host`, or the
                `graph`.
            temperature: Divides the logits before the exit decision, above 0; no result changes.
            clock: Current time in seconds; both stages are timed with it.

        Raises:
            ConfigError: `temperature` is out of range.
        """
        self.temperature = check_temperature(temperature)
        self._clock = clock
        self._config = config
        self._sessions = sessions
        self._selection = selection
        specs = {spec.role: spec for spec in graph_specs(config, selection=selection)}
        self._first: Role = next(iter(specs))
        self._goes_on = family_named(config.family).goes_on if "refine" in specs else None
        self._handed_on: set[str] = set()
        self._device_pair: tuple[DeviceSession, DeviceSession] | None = None
        if self._goes_on is not None:
            self._device_pair = sharing_memory(sessions[self._first], sessions["refine"])
        if self._goes_on == "confidence":
            left = {spec.name for spec in specs["early_exit"].outputs}
            taken = {spec.name for spec in specs["refine"].inputs}
            self._handed_on = (left & taken) | {SCORE}
            # Eq. 11 once for every token: in each batch it would take as long as the exit.
            tokens = np.arange(config.num_coarse_tokens)[:, None]
            self._children = fine_index(tokens, config.coarse_grid[1])

    def run(self, images: Array, policy: ExitPolicy, *, scores: bool = False) -> list[Outcome]:
        """Run both stages on a batch; the second only for the pictures that did not leave.

        Args:
            images: (B, 3, H, W) with B at least 1, as the graphs take them.
            policy: Sets the exit threshold; has no effect on a network of one stage.
            scores: Fetch the scores, also where the hand-off could stay on the device.

        Returns:
            One outcome per picture, in order.

        Raises:
            EngineError: A session failed, or gave logits that are not finite.
        """
        first = self.first_pass(images, policy, on_device=not scores)
        if first.survivors.size:
            waiting = [first.outcomes[row] for row in first.survivors]
            refined = self.refine(waiting, first.hand_off, first.survivors, policy)
            for row, outcome in zip(first.survivors, refined, strict=True):
                first.outcomes[row] = outcome
        return first.outcomes

    def batch_of(self, pictures: Sequence[Array]) -> Array:
        """Stack pictures (3, H, W), at least one, where the first session reads them best.

        The batch may hold memory of the session while it lives: drop it after its run.

        Raises:
            EngineError: There are too many, or the session is closed.
        """
        session = self._sessions[self._first]
        if isinstance(session, HostMemorySession):
            return np.stack(pictures, out=session.input_array(IMAGE, len(pictures)))
        return pictures[0][None] if len(pictures) == 1 else np.stack(pictures)

    def warm_up(self, images: Array) -> None:
        """Run both stages as `run` does, the second with every size that its session prepares for.

        Args:
            images: A batch as `run` takes it; what it shows has no effect.

        Raises:
            EngineError: As in `run`.
        """
        first = self.first_pass(images, EVERY_PICTURE, on_device=True)
        if self._goes_on is None:
            return
        session, sizes = self._sessions["refine"], [len(images)]
        if isinstance(session, PreparingSession):
            sizes = session.prepared_sizes(len(images))
        for size in sizes:
            rows = np.arange(size, dtype=np.int64)
            self.refine(first.outcomes[:size], first.hand_off, rows, EVERY_PICTURE)

    def first_pass(
        self, images: Array, policy: ExitPolicy, *, on_device: bool = False
    ) -> FirstPass:
        """Run the first stage, or the only one; arguments and errors as in `run`.

        With `on_device`, what the second stage takes stays on the device, if it can.
        """
        start = self._clock()
        outputs: Tensors
        hand_off: Mapping[str, Tensor]
        if on_device and self._device_pair is not None:
            kept = self._handed_on | {IMAGE}
            if self._selection == "host":
                kept -= {SCORE}
            outputs, handles = self._device_pair[0].run_on_device({IMAGE: images}, kept)
            hand_off = {name: outputs[name] for name in self._handed_on - kept} | handles
        else:
            outputs = self._sessions[self._first].run({IMAGE: images})
            hand_off = {IMAGE: images} | {name: outputs[name] for name in self._handed_on}
        if LOGITS not in outputs:
            return self._features(outputs, start)
        logits = _finite(outputs[LOGITS], self._first)
        if self._goes_on != "confidence":
            ms = self._ms_each(start, len(logits))
            shown = (KEPT, KEPT_MASK, SEMANTIC_ATTENTION)
            columns = [outputs.get(name, [None] * len(logits)) for name in shown]
            outcomes = [
                Outcome(row, early_ms=ms, kept=kept, kept_mask=mask, semantic_attention=attention)
                for row, kept, mask, attention in zip(logits, *columns, strict=True)
            ]
            over = outputs[OVERFLOW] if self._goes_on == "overflow" else ()
            return FirstPass(outcomes, hand_off, np.flatnonzero(over))
        confidences = confidence(logits, self.temperature)
        leaving = exits(confidences, policy.threshold(), self._config.stages.exit_comparison)
        ms = self._ms_each(start, len(logits))
        scores = outputs[SCORE] if SCORE in outputs else [None] * len(logits)
        outcomes = [
            Outcome(row, value, score, early_ms=ms)
            for row, value, score in zip(logits, confidences.tolist(), scores, strict=True)
        ]
        policy.saw(outcomes)
        return FirstPass(outcomes, hand_off, (~leaving).nonzero()[0])

    def _features(self, outputs: Tensors, start: float) -> FirstPass:
        features = {name: _finite(outputs[name], self._first) for name in FEATURES}
        count = len(features[FEATURES[0]])
        kept, masks = (outputs.get(name, [None] * count) for name in (KEPT, KEPT_MASK))
        ms, none = self._ms_each(start, count), np.empty(0, np.float32)
        outcomes = [
            Outcome(
                none,
                early_ms=ms,
                kept=kept[row],
                kept_mask=masks[row],
                features={name: array[row] for name, array in features.items()},
            )
            for row in range(count)
        ]
        return FirstPass(outcomes, {}, np.empty(0, np.int64))

    def refine(
        self,
        waiting: Sequence[Outcome],
        hand_off: Mapping[str, Tensor],
        rows: NDArray[np.int64],
        policy: ExitPolicy,
    ) -> list[Outcome]:
        """Run the second stage on some rows of a batch.

        Args:
            waiting: Outcomes of these rows after the first stage, K.
            hand_off: From the first pass.
            rows: Row numbers, ascending, at least one, (K,).
            policy: Learns from the result.

        Returns:
            The same outcomes after the second stage.

        Raises:
            EngineError: The session failed, or gave logits that are not finite.
        """
        start = self._clock()
        feeds = self.refine_feeds(hand_off, rows)
        if self._device_pair is not None and not isinstance(hand_off[IMAGE], np.ndarray):
            outputs, _ = self._device_pair[1].run_on_device(feeds, ())
        else:
            outputs = self._sessions["refine"].run(feeds)  # type: ignore[arg-type]  # all arrays
        _finite(outputs[LOGITS], "refine")
        columns: dict[str, Any] = {n: feeds[n] for n in (TARGET_INDEX,) if n in feeds} | outputs
        ms = self._ms_each(start, len(waiting))
        refined = [
            outcome.refined({name: column[row] for name, column in columns.items()}, ms)
            for row, outcome in enumerate(waiting)
        ]
        if self._goes_on == "confidence":
            policy.saw(refined)
        return refined

    def refine_feeds(
        self, hand_off: Mapping[str, Tensor], rows: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """Make the inputs of the refine graph; arguments as in `refine`."""
        if self._goes_on == "overflow":
            return _chosen_rows({IMAGE: hand_off[IMAGE]}, rows)
        feeds = _chosen_rows(hand_off, rows)
        if self._selection == "graph":
            return feeds
        target, non_target = select_tokens(feeds.pop(SCORE), self._config)
        feeds[TARGET_INDEX], feeds[NON_TARGET_INDEX] = target, non_target
        feeds[FINE_INDEX] = self._children[target].reshape(len(target), -1)
        return feeds

    def _ms_each(self, start: float, pictures: int) -> float:
        """Divide the milliseconds since `start` among some pictures."""
        return (self._clock() - start) * 1e3 / pictures


def _chosen_rows(tensors: Mapping[str, Tensor], rows: NDArray[np.int64]) -> dict[str, Any]:
    """Some rows of arrays and of handles."""
    arrays = {name: each for name, each in tensors.items() if isinstance(each, np.ndarray)}
    on_device = {name: Rows(tensors[name], rows) for name in tensors.keys() - arrays.keys()}
    return {**(view_rows(arrays, rows) if arrays else {}), **on_device}


def take_rows(tensors: Mapping[str, Any], rows: NDArray[np.int64]) -> Tensors:
    """Select rows of every tensor, ascending; copies nothing when that is all of them."""
    if all(len(array) == len(rows) for array in tensors.values()):
        return tensors
    return {name: array.take(rows, axis=0) for name, array in tensors.items()}


def view_rows(tensors: Mapping[str, Any], rows: NDArray[np.int64]) -> Tensors:
    """The same, and copies nothing when the rows lie side by side; keeps all tensors in memory."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) < len(next(iter(tensors.values()))):
        return {name: array[first : last + 1] for name, array in tensors.items()}
    return take_rows(tensors, rows)


def join_rows(parts: Sequence[Tensors]) -> Tensors:
    """Stack the rows of several batches; copies nothing when there is one batch."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _finite(values: Array, role: Role) -> Array:
    """Refuse a NaN, which would leave or stay by accident and be reported as a class."""
    # The sum of squares is one call, and takes half the time after a session has used the caches.
    # It overflows only far beyond the logits of a network, and then each is looked at.
    if not math.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
        what = "features" if role == "backbone" else "logits"
        raise EngineError(
            f"The {role} graph gave {what} that are not finite (NaN or infinite).",
            "Check the bundle with sacvit-deploy verify; if it runs in half precision, export it "
            "with --precision fp32.",
        )
    return values
