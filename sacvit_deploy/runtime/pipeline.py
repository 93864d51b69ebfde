"""From what a user gives to the arrays that the network takes, timed."""

from __future__ import annotations

import os
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from sacvit_deploy.bundle import Bundle, check_eta
from sacvit_deploy.engines.registry import AUTO, open_sessions
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.errors import ConfigError, ImageError
from sacvit_deploy.runtime.control.budget import BudgetGoal
from sacvit_deploy.runtime.control.budget_controller import BudgetController
from sacvit_deploy.runtime.control.observation import Observation
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.rebatch import Rebatcher
from sacvit_deploy.runtime.result import Result, result_from_outcome
from sacvit_deploy.runtime.scheduler import Scheduler
from sacvit_deploy.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.bundle import Manifest, Precision
    from sacvit_deploy.engines.registry import OpenedSessions
    from sacvit_deploy.runtime.control.budget import Budget
    from sacvit_deploy.runtime.control.drift import DriftReport
    from sacvit_deploy.runtime.control.stats import Stats
    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.runtime.scheduler import Array, Outcome

    Pictures: TypeAlias = list[Any] | tuple[PictureSource, ...]


class PictureReader:
    """Prepares pictures and tells how long each took."""

    def __init__(
        self,
        preprocess: Preprocessor,
        clock: Callable[[], float],
        prepared: Callable[[float], None],
    ) -> None:
        """Keep what is needed.

        Args:
            preprocess: From a picture to the input tensor.
            clock: Seconds since whenever.
            prepared: Told the milliseconds of each picture.
        """
        self._preprocess = preprocess
        self._clock = clock
        self._prepared = prepared

    def read(self, source: PictureSource) -> Array:
        """The input tensor (3, H, W) of one picture.

        Raises:
            ImageError: It cannot be read.
        """
        start = self._clock()
        array = self._preprocess(source)
        self._prepared((self._clock() - start) * 1e3)
        return array

    def read_all(
        self, sources: Sequence[PictureSource], start: int
    ) -> tuple[list[Array], ImageError | None]:
        """Input tensors (3, H, W) up to the first picture that cannot be read, and its error.

        Args:
            sources: The pictures.
            start: Index of the first of them, for the error.
        """
        arrays: list[Array] = []
        for index, source in enumerate(sources, start):
            try:
                arrays.append(self.read(source))
            except ImageError as error:  # noqa: PERF203  the loop ends here
                failure = ImageError(f"At index {index}: {error.problem}", error.fix)
                failure.__cause__ = error
                return arrays, failure
        return arrays, None


def name_of(source: PictureSource) -> str | None:
    """Path as it was given; None for a picture that has none."""
    if isinstance(source, Sample):
        return source.name
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None


CALL_BATCH = 32
STREAM_BATCH = 8
# With a quarter of the pictures hard, a full second-stage batch takes four first-stage batches.
_BATCHES_HELD = 4


class Pipeline:
    """Classifies pictures; `sacvit_deploy.load` makes one.

    Safe to share between threads: a call takes its own copy of `eta` when it starts and keeps
    everything else on its stack.
    """

    def __init__(
        self,
        manifest: Manifest,
        opened: OpenedSessions,
        *,
        eta: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Join the sessions of a bundle.

        Args:
            manifest: What the bundle says.
            opened: Its graphs, ready to run.
            eta: Exit threshold, in [0, 1]; None takes the one calibrated for this precision and
                runtime, or else the bundle's.
            clock: Seconds since whenever; everything is timed with it.

        Raises:
            ConfigError: `eta` is out of range.
        """
        usual, temperature = manifest.usual_exit(opened.precision, opened.backend)
        self.manifest = manifest
        self.opened = opened
        self.preprocess = Preprocessor(manifest.preprocessing, manifest.input_kind)
        self.scheduler = Scheduler(
            manifest.config, opened.sessions, manifest.selection, temperature, clock
        )
        # What calls and streams run; a budget puts its own here.
        self._stages = self.scheduler
        self.calibration = manifest.exit_calibration(opened.precision, opened.backend)
        self._observation = Observation(manifest.config, self.calibration)
        self._reader = PictureReader(self.preprocess, clock, self._observation.prepared)
        self._eta = check_eta(usual if eta is None else eta)

    @property
    def eta(self) -> float:
        """Exit threshold, in [0, 1]: 0 lets every picture leave early, 1 none.

        Setting it affects the calls and streams that start afterwards. It has no effect on a
        network of one stage.
        """
        return self._eta

    @eta.setter
    def eta(self, value: float) -> None:
        self._eta = check_eta(value)

    @property
    def stats(self) -> Stats:
        """Counts what this pipeline does; `stats.snapshot()` reads, `stats.reset()` forgets."""
        return self._observation.stats

    @property
    def temperature(self) -> float:
        """Of the first stage's confidence when it is compared with `eta`; above 0.

        From the calibration for this precision and runtime, whatever `eta` is; 1 without one.
        """
        return self.scheduler.temperature

    @overload
    def __call__(
        self, images: PictureSource, *, eta: float | None = None, batch_size: int | None = None
    ) -> Result: ...

    @overload
    def __call__(
        self, images: Pictures, *, eta: float | None = None, batch_size: int | None = None
    ) -> list[Result]: ...

    def __call__(
        self,
        images: PictureSource | Pictures,
        *,
        eta: float | None = None,
        batch_size: int | None = None,
    ) -> Result | list[Result]:
        """Classify one picture, or several.

        Args:
            images: A path, a PIL picture, an HWC uint8 RGB array, or a list or tuple of them.
            eta: Exit threshold for this call; None takes the pipeline's.
            batch_size: Pictures in memory and in a session at once; None takes 32, or the largest
                batch the engines were built for if that is less.

        Returns:
            One result, or one per picture in the order given.

        Raises:
            ImageError: A picture cannot be read; of several, it says which.
            ConfigError: `eta` or `batch_size` is out of range.
            EngineError: The runtime failed.
        """
        eta = self._threshold(eta)
        batch_size = self._batch_size(batch_size, CALL_BATCH)
        if not isinstance(images, (list, tuple)):
            outcomes = self._observation.counted(
                self._stages.run(self._reader.read(images)[None], eta)
            )
            return self._result(outcomes[0], name_of(images))
        results: list[Result] = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            arrays, failure = self._reader.read_all(chunk, start)
            if failure is not None:
                raise failure
            outcomes = self._observation.counted(self._stages.run(np.stack(arrays), eta))
            results += map(self._result, outcomes, map(name_of, chunk))
        return results

    def stream(
        self,
        frames: Iterable[PictureSource],
        *,
        eta: float | None = None,
        batch_size: int | None = None,
        max_waiting: int | None = None,
    ) -> Iterator[Result]:
        """Classify a stream, endless ones too; hard pictures of several batches are run together.

        Frames are read `batch_size` at a time. The second stage runs when `batch_size` pictures
        need it or when more than `max_waiting` results are held back for order's sake. So at most
        `max_waiting + batch_size` frames are in memory, and a result comes before that many more
        frames have been read. For the least delay set `batch_size=1`.

        Args:
            frames: Pictures as a call takes them.
            eta: Exit threshold for this stream; None takes the pipeline's as it is now.
            batch_size: Pictures in a session at once, in both stages; None takes 8, or the largest
                batch the engines were built for if that is less.
            max_waiting: Results held back at most; by default four batches.

        Yields:
            One result per frame, in order.

        Raises:
            ImageError: A frame cannot be read; the results of all frames before it come first.
            ConfigError: `eta`, `batch_size` or `max_waiting` is out of range.
            EngineError: The runtime failed.
        """
        # Checked here and not in the generator, so that a mistake shows where it was made.
        batch_size = self._batch_size(batch_size, STREAM_BATCH)
        max_waiting = _BATCHES_HELD * batch_size if max_waiting is None else max_waiting
        _check_count("max_waiting", max_waiting)
        rebatcher = Rebatcher(
            self._stages,
            self._threshold(eta),
            refine_batch=batch_size,
            max_waiting=max_waiting,
        )
        return self._stream(iter(frames), rebatcher, batch_size)

    def _stream(
        self, frames: Iterator[PictureSource], rebatcher: Rebatcher, batch_size: int
    ) -> Iterator[Result]:
        names: deque[str | None] = deque()
        failure: ImageError | None = None
        read = 0
        while failure is None and (chunk := list(islice(frames, batch_size))):
            arrays, failure = self._reader.read_all(chunk, read)
            names.extend(map(name_of, chunk))
            read += len(arrays)
            if arrays:
                for outcome in self._observation.counted(rebatcher.push(np.stack(arrays))):
                    yield self._result(outcome, names.popleft())
        for outcome in self._observation.counted(rebatcher.finish()):
            yield self._result(outcome, names.popleft())
        if failure is not None:
            raise failure

    def with_budget(  # noqa: PLR0913  one of the first two; the others have a good default
        self,
        *,
        ms: float | None = None,
        fps: float | None = None,
        min_eta: float = 0.0,
        max_eta: float = 1.0,
        min_top1: float | None = None,
        max_accuracy_drop: float | None = None,
        hysteresis: float = 0.03,
    ) -> BudgetedPipeline:
        """A pipeline with the same sessions that moves `eta` to hold a goal.

        Args:
            ms: Mean time of a picture in both stages; or
            fps: pictures a second, reading and preparing them counted.
            min_eta: `eta` never goes below, in [0, 1].
            max_eta: Nor above, in [0, 1].
            min_top1: Accuracy to keep, as calibrated for the precision and runtime in use.
            max_accuracy_drop: The same, counted down from the second stage alone.
            hysteresis: `eta` stays while the expected cost is this share of the goal from it.

        Raises:
            ConfigError: A value is out of range, the network has one stage, or the accuracy asked
                for is not in the calibration, or there is none.
        """
        goal = BudgetGoal(ms, fps, min_eta, max_eta, min_top1, max_accuracy_drop, hysteresis)
        return BudgetedPipeline(self, goal)

    def check_drift(self) -> DriftReport:
        """Compare the pictures of late with those the exit was calibrated with.

        The same is done by itself every 250 pictures, with a `DriftWarning` the first time that a
        shift has lasted.

        Raises:
            ConfigError: The exit was not calibrated for this precision and runtime.
        """
        return self._observation.drift_report()

    def _batch_size(self, asked: int | None, usual: int) -> int:
        if asked is None:
            return min(usual, self.opened.largest_batch or usual)
        _check_count("batch_size", asked)
        return asked

    def _threshold(self, asked: float | None) -> float:
        return self._eta if asked is None else check_eta(asked)

    def _result(self, outcome: Outcome, name: str | None) -> Result:
        return result_from_outcome(outcome, self.manifest.labels, name)


def load(  # noqa: PLR0913  the one call of most users; all but the path have a good default
    path: str | os.PathLike[str],
    *,
    eta: float | None = None,
    backend: str = AUTO,
    precision: Precision | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> Pipeline:
    """Open a bundle for classification; torch is not needed.

    Args:
        path: The bundle's folder.
        eta: Exit threshold, in [0, 1]; None takes the one `sacvit-deploy calibrate` found for the
            precision and runtime that are opened, or else the bundle's.
        backend: `auto` for the fastest runtime that can run this bundle, or `onnxruntime`,
            `tensorrt`, `tensorrt-rtx`.
        precision: Which graphs of the bundle: `fp32`, `fp16` or `int8`; None takes FP32 in ONNX
            Runtime, and of the engines that were built FP16 before INT8 before FP32.
        providers: ONNX Runtime execution providers in order of preference, for example `["CUDA"]`.
        threads: CPU threads of one operator; None leaves it to the runtime.

    Raises:
        BundleError: The bundle cannot be read, is incomplete, changed, or from a newer release.
        ConfigError: `eta` is out of range.
        EngineError: The runtime is unknown or cannot run this bundle.
        MissingDependencyError: The runtime is not installed.
    """
    if eta is not None:
        check_eta(eta)
    bundle = Bundle.open(path)
    options = SessionOptions(None if providers is None else tuple(providers), threads)
    opened = open_sessions(bundle, backend=backend, precision=precision, options=options)
    return Pipeline(bundle.manifest, opened, eta=eta)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}.", "Make it a whole number, 1 or more.")


class BudgetedPipeline(Pipeline):
    """Shares the sessions of a pipeline; every call and stream moves its threshold.

    `Pipeline.with_budget` makes one. It has statistics of its own, and no `eta` can be given to it.
    One budget holds for everything that is classified with it, from whichever thread.
    """

    def __init__(self, pipeline: Pipeline, goal: BudgetGoal) -> None:
        """Start from the threshold of a pipeline.

        Args:
            pipeline: Of two stages; it stays as it is.
            goal: What to hold; its bounds hold an accuracy too if it names one.

        Raises:
            ConfigError: The network has one stage, or the accuracy cannot be held.
        """
        clock = pipeline.scheduler.clock
        super().__init__(pipeline.manifest, pipeline.opened, eta=pipeline.eta, clock=clock)
        bounded = goal.bounded(self.calibration)
        self._controller = BudgetController(bounded, self.manifest.config, pipeline.eta)
        self._reader = PictureReader(self.preprocess, clock, self._prepared)
        self._stages = _BudgetedScheduler(self, self._controller)

    @property
    def budget(self) -> Budget:
        """Where the budget stands at this moment."""
        return self._controller.report()

    @property
    def eta(self) -> float:
        """The threshold that the next batch meets, in [0, 1]; the budget moves it."""
        return self._controller.eta

    @eta.setter
    def eta(self, value: float) -> None:
        raise _moved_by_budget(value)

    def _threshold(self, asked: float | None) -> float:
        if asked is not None:
            raise _moved_by_budget(asked)
        return self._controller.eta

    def _prepared(self, ms: float) -> None:
        self._observation.prepared(ms)
        self._controller.saw_preprocess(ms)


class _BudgetedScheduler(Scheduler):
    """Asks the controller for the threshold of each batch, and tells it how each stage went."""

    def __init__(self, pipeline: Pipeline, controller: BudgetController) -> None:
        super().__init__(
            pipeline.manifest.config,
            pipeline.opened.sessions,
            pipeline.manifest.selection,
            pipeline.temperature,
            pipeline.scheduler.clock,
        )
        self._controller = controller

    def _decide(
        self,
        logits: Array,
        eta: float,
        start: float,
    ) -> tuple[list[Outcome], NDArray[np.int64]]:
        # Not the eta given: a stream asks for it once, and it moves with every batch.
        outcomes, survivors = super()._decide(logits, self._controller.eta, start)
        self._controller.saw_first(outcomes)
        return outcomes, survivors

    def _refined(
        self, waiting: Sequence[Outcome], answers: tuple[Array, NDArray[np.int64]], start: float
    ) -> list[Outcome]:
        refined = super()._refined(waiting, answers, start)
        self._controller.saw_refined(refined)
        return refined


def _moved_by_budget(eta: float) -> ConfigError:
    return ConfigError(
        f"The threshold eta={eta!r} was given to a pipeline whose budget moves it.",
        "Bound it with min_eta and max_eta of with_budget, or use the pipeline without a budget.",
    )
