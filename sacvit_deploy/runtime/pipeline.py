"""Turns pictures into results, with the sessions of one bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypeAlias, overload

import numpy as np

from sacvit_deploy.decode import check_field, shown
from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.errors import ConfigError, ImageError, PicturesError
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.runtime.control.budget import Budget, BudgetGoal
from sacvit_deploy.runtime.control.budget_controller import BudgetController
from sacvit_deploy.runtime.control.drift import DriftMonitor, DriftReport
from sacvit_deploy.runtime.control.stats import Stats
from sacvit_deploy.runtime.opened import OpenedBundle
from sacvit_deploy.runtime.pictures import Channels, PictureSource, in_rgb, name_of
from sacvit_deploy.runtime.readers import OnError, Read, Reader, reader_threads
from sacvit_deploy.runtime.rebatch import Rebatcher, Workers
from sacvit_deploy.runtime.result import Result, result_from_outcome
from sacvit_deploy.runtime.scheduler import Array, ExitPolicy, FixedExit, Outcome, Scheduler
from sacvit_deploy.runtime.stream import STREAM_BATCH, Stream, StreamOptions, checked_frames
from sacvit_deploy.spec import Decode, check_count, check_eta

# Not Sequence, which a str is too.
Pictures: TypeAlias = list[Any] | tuple[PictureSource, ...]


CALL_BATCH = 32


class Pipeline(OpenedBundle):
    """Classifies pictures; `sacvit_deploy.load` makes one.

    Safe to share between threads: a call reads `eta` when it starts and keeps everything else on
    its stack. As a context manager it is closed when the block ends.

    Attributes:
        manifest: Description of the bundle.
        preprocess: Turns a picture into the input tensor.
        calibration: Calibration of the exit for this precision and backend, if there is one.
        stats: Counts what this pipeline does; `stats.snapshot()` reads, `stats.reset()` forgets.
    """

    def __init__(  # noqa: PLR0913  all but the first two have a good default
        self,
        manifest: Manifest,
        opened: OpenedSessions,
        *,
        eta: float | None = None,
        decode: Decode = "fast",
        goal: BudgetGoal | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Join the sessions of a bundle.

        Args:
            manifest: Description of the bundle.
            opened: Its graphs, ready to run.
            eta: Exit threshold, in [0, 1]; None takes the one calibrated for this precision and
                backend, or else the bundle's.
            decode: See `Preprocessor`.
            goal: Budget that moves the threshold, starting at `eta`; None keeps it fixed.
            clock: Current time in seconds; everything is timed with it.

        Raises:
            ConfigError: `eta` is out of range, or the budget cannot be held with this network or
                its calibration.
        """
        usual, temperature = manifest.usual_exit(opened.precision, opened.backend)
        eta = check_eta(usual if eta is None else eta)
        super().__init__(manifest, opened, decode)
        self.calibration = manifest.exit_calibration(opened.precision, opened.backend)
        self.stats = Stats()
        self._clock = clock
        self._scheduler = Scheduler(
            manifest.config, opened.sessions, manifest.selection, temperature, clock
        )
        self._drift: DriftMonitor | None = None
        if self.calibration is not None:
            comparison = manifest.config.stages.exit_comparison
            self._drift = DriftMonitor(self.calibration, comparison)
        self._controller: BudgetController | None = None
        if goal is not None:
            bounded = goal.bounded(self.calibration)
            self._controller = BudgetController(bounded, manifest.config, eta)
        self._policy: ExitPolicy = self._controller or FixedExit(eta)

    @property
    def eta(self) -> float:
        """Exit threshold, in [0, 1]: 0 lets every picture exit early, 1 none.

        Setting it affects the calls and streams that start afterwards. It has no effect on a
        network of one stage. A budget moves it by itself, and then it cannot be set.
        """
        return self._policy.threshold()

    @eta.setter
    def eta(self, value: float) -> None:
        self._policy = self._asked_policy(value)

    @property
    def temperature(self) -> float:
        """Temperature of the first stage's confidence when it is compared with `eta`, above 0.

        From the calibration for this precision and backend, whatever `eta` is; 1 without one.
        """
        return self._scheduler.temperature

    @property
    def budget(self) -> Budget:
        """Where the budget stands at this moment.

        Raises:
            ConfigError: The pipeline has none.
        """
        if self._controller is None:
            raise ConfigError(
                "This pipeline has no budget.", "Make one that has: pipeline.with_budget(ms=...)."
            )
        return self._controller.report()

    @overload
    def __call__(
        self,
        images: PictureSource,
        *,
        eta: float | None = None,
        batch_size: int | None = None,
        readers: int | None = None,
        channels: Channels = "rgb",
    ) -> Result: ...

    @overload
    def __call__(
        self,
        images: Pictures,
        *,
        eta: float | None = None,
        batch_size: int | None = None,
        readers: int | None = None,
        channels: Channels = "rgb",
    ) -> list[Result]: ...

    def __call__(
        self,
        images: PictureSource | Pictures,
        *,
        eta: float | None = None,
        batch_size: int | None = None,
        readers: int | None = None,
        channels: Channels = "rgb",
    ) -> Result | list[Result]:
        """Classify one picture, or several.

        Args:
            images: A path, the bytes of a file, a file opened for reading bytes, a PIL picture, an
                array (H, W, 3) of uint8, or a list or tuple of them.
            eta: Exit threshold for this call; None takes the pipeline's.
            batch_size: Pictures in a session at once; None takes 32, or the largest batch the
                engines were built for if that is less. About twice as many are in memory.
            readers: Threads that read the files of a list ahead of the network; None takes one
                per usable core, up to 4, and 0 reads in the caller's thread.
            channels: Order of the colours in arrays: `rgb`, or `bgr` as OpenCV has it.

        Returns:
            One result, or one per picture in the order given.

        Raises:
            ImageError: The picture cannot be read.
            PicturesError: Some of a list or tuple cannot be read; the error has the results of the
                others.
            ConfigError: `eta`, `batch_size`, `readers` or `channels` is out of range.
            EngineError: The backend failed, or the pipeline is closed.
        """
        policy = self._asked_policy(eta)
        batch_size = self._batch_size(batch_size, CALL_BATCH)
        readers = reader_threads(readers)
        ordered = in_rgb(channels)
        if not isinstance(images, (list, tuple)):
            outcomes = self._run([self._reader.one(ordered(images))], policy)
            return self._result(self._counted(outcomes)[0], name_of(images))
        results: dict[int, Result] = {}
        failures: dict[int, ImageError] = {}

        def skip(index: int, _: PictureSource, error: ImageError) -> None:
            failures[index] = error

        sources = map(ordered, images)
        with closing(self._reads(sources, batch_size, readers, skip)) as reads:
            while chunk := list(islice(reads, batch_size)):
                outcomes = self._counted(self._run([read.array for read in chunk], policy))
                for read, outcome in zip(chunk, outcomes, strict=True):
                    results[read.position] = self._result(outcome, read.name)
        if failures:
            every = [results.get(index) for index in range(len(images))]
            raise PicturesError.of(every, failures)
        return list(results.values())

    def stream(  # noqa: PLR0913  all but the frames have a good default
        self,
        frames: Iterable[PictureSource],
        *,
        eta: float | None = None,
        batch_size: int | None = None,
        max_waiting: int | None = None,
        max_delay_ms: float | None = None,
        in_order: bool = True,
        readers: int | None = None,
        channels: Channels = "rgb",
        on_error: OnError | None = None,
    ) -> Generator[Result]:
        """Classify a stream, endless ones too; hard pictures of several batches are run together.

        The second stage runs when `batch_size` pictures need it, when the oldest of them has held
        back `max_waiting` results or for `max_delay_ms`, or when a fuller batch would save less
        than 5 % of its time, as measured. So a result comes before `max_waiting + batch_size` more
        frames have been read. For the least delay set `batch_size=1`.

        The workers of the pipeline (see `load`) compute several batches side by side. Then a result
        comes at most two batches for each worker later.

        Files are read ahead of the network in threads, up to `batch_size + readers` of them. Other
        frames are prepared one by one in the caller's thread. `frames` is always asked there.
        Stop early by leaving the loop; `close()` of the generator ends the threads at once.

        Args:
            frames: Pictures as a call takes them.
            eta: Exit threshold for this stream; None takes the pipeline's at this moment.
            batch_size: Pictures in a session at once, in both stages; None takes 8, or the largest
                batch the engines were built for if that is less.
            max_waiting: Results held back at most; by default four batches.
            max_delay_ms: Milliseconds that a result may be held back, looked at when a frame
                arrives, 0 or more; then incomplete batches run. None is no limit.
            in_order: Yield in the order of `frames`, or else as results are done; their `index`
                tells which frame they are of.
            readers: Threads that read files; None takes one per usable core, up to 4. At 0 files
                are read in the caller's thread too, and nothing is taken ahead.
            channels: Order of the colours in arrays: `rgb`, or `bgr` as OpenCV has it.
            on_error: Called with the index, the frame and the error of a frame that cannot be read,
                which is then skipped; None raises. It may come before the results of frames
                before it.

        Yields:
            One result per frame that can be read.

        Raises:
            ImageError: A frame cannot be read, and there is no `on_error`; the results of all
                frames before it come first, as they do before any exception of `frames` itself,
                Ctrl-C included.
            ConfigError: An option is out of range, or `frames` is one picture or cannot be
                iterated over.
            EngineError: The backend failed, or the pipeline is closed.
        """
        # Checked here and not in the generator, so that a mistake shows where it was made.
        options = StreamOptions(
            self._batch_size(batch_size, STREAM_BATCH), max_waiting, max_delay_ms, in_order
        )
        policy, readers = self._asked_policy(eta), reader_threads(readers)
        sources = map(in_rgb(channels), checked_frames(frames))
        reads = self._reads(sources, options.batch_size, readers, on_error)
        workers = Workers(self._opened.workers)
        rebatcher = Rebatcher(self._scheduler, policy, options.waiting, workers)
        return self._stream(reads, workers, Stream(reads, rebatcher, options, self._clock))

    def outcomes(
        self, images: Array, eta: float | None = None, *, scores: bool = False
    ) -> list[Outcome]:
        """Run input tensors through the stages, and return everything the stages say.

        With `eta=1` no picture exits early, so that each outcome has the answers and times of
        both stages. These pictures are not counted in `stats`, and a budget learns nothing.

        Args:
            images: (B, 3, H, W) from `preprocess`; B at most `largest_batch`.
            eta: Exit threshold, in [0, 1]; None takes the pipeline's.
            scores: Also return the score of every coarse token where it could stay on the device.

        Raises:
            ConfigError: `eta` is out of range.
            EngineError: The backend failed, or the pipeline is closed.
        """
        check_field(isinstance(images, np.ndarray), "images", images, "an array (B, 3, H, W)")
        policy = FixedExit(self.eta if eta is None else check_eta(eta))
        return self._scheduler.run(images, policy, scores=scores)

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
    ) -> Pipeline:
        """Make a pipeline with the same sessions that moves `eta` to hold a goal.

        It counts statistics of its own. One budget holds for everything that is classified with
        it, from any thread.

        Args:
            ms: Mean time of a picture in both stages, above 0; or
            fps: pictures a second, reading and preparing them counted, above 0.
            min_eta: Lower bound of `eta`, in [0, 1].
            max_eta: Upper bound of `eta`, in [0, 1].
            min_top1: Accuracy to keep, as calibrated for the precision and backend in use, in
                [0, 1].
            max_accuracy_drop: The same, counted down from the second stage alone.
            hysteresis: `eta` stays while the expected cost is within this share of the goal, in
                [0, 1).

        Raises:
            ConfigError: Not exactly one of `ms` and `fps` is given, a value is out of range, the
                network has one stage, or the accuracy asked for is not in the calibration, or
                there is none.
        """
        goal = BudgetGoal(ms, fps, min_eta, max_eta, min_top1, max_accuracy_drop, hysteresis)
        return Pipeline(
            self.manifest,
            self._opened,
            eta=self.eta,
            decode=self.preprocess.decode,
            goal=goal,
            clock=self._clock,
        )

    def check_drift(self) -> DriftReport:
        """Compare recent pictures with those the exit was calibrated with.

        The pipeline does the same every 250 pictures, and gives a `DriftWarning` the first time
        that a shift has lasted.

        Raises:
            ConfigError: The exit was not calibrated for this precision and backend.
        """
        if self._drift is None:
            raise ConfigError(
                "There is nothing to compare with: the exit was not calibrated for this precision "
                "and backend.",
                "Calibrate it: sacvit-deploy calibrate BUNDLE DATA",
            )
        return self._drift.report()

    def _run(self, pictures: Sequence[Array], policy: ExitPolicy) -> list[Outcome]:
        return self._scheduler.run(self._scheduler.batch_of(pictures), policy)

    def _stream(
        self, reads: Generator[Read], workers: Workers, stream: Stream
    ) -> Generator[Result]:
        with closing(reads), closing(workers):
            for group in stream:
                self._counted([outcome for _, _, outcome in group])
                for index, name, outcome in group:
                    yield self._result(outcome, name, index)

    def _asked_policy(self, eta: float | None) -> ExitPolicy:
        """Return the policy for an exit threshold; None is the pipeline's own."""
        if eta is None:
            return self._policy
        if self._controller is not None:
            raise ConfigError(
                f"The threshold eta={shown(eta)} was given to a pipeline whose budget moves it.",
                "Bound it with min_eta and max_eta of with_budget, or use the pipeline without a "
                "budget.",
            )
        return FixedExit(check_eta(eta))

    def _batch_size(self, asked: int | None, usual: int) -> int:
        if asked is None:
            return min(usual, self.largest_batch or usual)
        return check_count("batch_size", asked)

    @property
    def _reader(self) -> Reader:
        return Reader(self.preprocess, self._clock, self.stats, self._controller)

    def _reads(
        self,
        sources: Iterable[PictureSource],
        batch_size: int,
        readers: int,
        on_error: OnError | None,
    ) -> Generator[Read]:
        """Read pictures, so far ahead that the next batch is ready when the network is."""
        room = batch_size + readers
        return self._reader.ahead(sources, threads=readers, room=room, on_error=on_error)

    def _counted(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Count classified pictures, and pass them on."""
        self.stats.add(outcomes)
        if self._drift is not None:
            self._drift.add(outcomes)
        return outcomes

    def _result(self, outcome: Outcome, name: str | None, index: int | None = None) -> Result:
        return result_from_outcome(outcome, self.manifest.labels, name, index)
