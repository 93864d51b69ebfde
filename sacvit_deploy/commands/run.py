"""The `run` command, also called `predict`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import click

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.commands.describe import describe_result
from sacvit_deploy.errors import ImageError
from sacvit_deploy.progress import PictureCount
from sacvit_deploy.runtime.load import load_classifier
from sacvit_deploy.runtime.pictures import PictureSource
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.result import Result
from sacvit_deploy.runtime.result_file import Key, Row, result_file
from sacvit_deploy.runtime.sources import Frame, Sources, open_sources
from sacvit_deploy.runtime.video import Pace
from sacvit_deploy.visualize.annotate import Annotator

Sink = Callable[[Frame, Result], None]
"""Takes the pictures and their results, one after another."""

_WIDEST_NAME, _WIDEST_LABEL = 60, 24
_LOADING = ("eta", "backend", "precision", "threads", "decode")


@click.command("run")
@options.bundle_argument
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@options.eta_option
@options.backend_option
@options.precision_option
@options.threads_option
@options.batch_size_option(None, "; 8, or 1 live")
@options.decode_option("fast")
@click.option("--every", default=1, show_default=True, help="Take each N-th frame of a video.")
@click.option("--fps", type=float, help="Take at most so many frames of a video per second.")
@options.choice_option(
    "--on-error", ["skip", "stop"], "What to do with a picture that cannot be read."
)
@click.option("--top", default=1, type=click.IntRange(1, 5), help="Classes to print, 1 to 5.")
@click.option(
    "--output",
    type=options.PATH,
    metavar="FILE",
    help="Write the results to a .jsonl, .csv or .parquet file.",
)
@click.option(
    "--save",
    type=options.PATH,
    metavar="FOLDER",
    help="Write copies with class, stage and target tokens drawn on them.",
)
@click.option("--resume", is_flag=True, help="Go on with the --output of a run that was stopped.")
@options.json_option
def command(bundle: Path, sources: tuple[str, ...], **chosen: Any) -> None:
    """Classify the pictures of each SOURCE with BUNDLE.

    A SOURCE is a picture, a folder, a pattern in quotes, a zip or table of pictures, a video, the
    number of a camera, the URL of a stream, or - for paths on stdin. `predict` is the same command.

    \b
    Example:
      sacvit-deploy run bundle cat.jpg dog.jpg --eta 0.6
      sacvit-deploy run bundle photos/ --output results.jsonl
      sacvit-deploy run bundle clip.mp4 --fps 5 --output frames.csv
    """
    _check_usage(**chosen)
    Bundle.open(bundle, check_hashes=False)  # before the sources: the two may be in wrong order
    output = chosen["output"]
    pace = Pace(chosen["every"], chosen["fps"])
    listed = getattr(sys.stdin, "buffer", BytesIO())  # it may be closed
    run = _Run(open_sources(sources, pace, listed), stops=chosen["on_error"] == "stop")
    if chosen["resume"] and run.sources.is_live:
        raise click.UsageError(
            "A camera or a stream begins anew, so that --resume cannot go on with it. Name another "
            "--output."
        )
    with ExitStack() as stack:
        loading = {name: chosen[name] for name in _LOADING}
        pipeline = stack.enter_context(load_classifier(bundle, **loading))
        options.tell_backend(pipeline, chosen["backend"])
        sinks, done = _sinks(stack, pipeline, run, chosen)
        progress = stack.enter_context(Progress())
        shows = output or not sys.stdout.isatty()  # else the results themselves
        for frame, result in run.results(pipeline, chosen["batch_size"], done):
            for sink in sinks:
                sink(frame, result)
            if shows:
                progress.bar(run.share, run.progress)
        if shows and run.count:
            progress.bar(1.0, run.in_words)
    if output:
        click.echo(f"{run.in_words}; written to {output}")
    if run.failed:
        click.echo(f"{run.failed:,} of {run.done:,} could not be read.", err=True)
        click.get_current_context().exit(1)


def _check_usage(
    output: Path | None, save: Path | None, *, resume: bool, as_json: bool, **_: object
) -> None:
    if output and as_json:
        raise click.UsageError("--json prints the results; --output writes them. Give one.")
    if resume and not output:
        raise click.UsageError("--resume goes on with a file; name it with --output.")
    if resume and save:
        raise click.UsageError(
            "--save has no copies of the pictures that --resume skips. Give one."
        )


def _sinks(
    stack: ExitStack, pipeline: Pipeline, run: _Run, chosen: Mapping[str, Any]
) -> tuple[list[Sink], frozenset[Key]]:
    """Open what takes the results, and find those that a file has already."""
    done: frozenset[Key] = frozenset()
    sinks: list[Sink] = []
    if chosen["output"]:
        write, done = stack.enter_context(result_file(chosen["output"], resume=chosen["resume"]))
        sinks.append(lambda frame, result: write(_row(frame, result)))
    elif chosen["as_json"]:
        add = stack.enter_context(options.json_array())
        sinks.append(lambda frame, result: add(_row(frame, result)))
    else:
        labels = pipeline.manifest.labels or ("",)
        label_width = min(_WIDEST_LABEL, max(map(len, labels)))
        sinks.append(_printer(run.name_width, label_width, chosen["top"]))
    if chosen["save"]:
        sinks.append(stack.enter_context(Annotator(chosen["save"], pipeline)).add)
    return sinks, done


def _printer(name_width: int, label_width: int, top: int) -> Sink:
    """Print results in columns; that of the names widens where they are not known before."""
    widest = name_width

    def show(frame: Frame, result: Result) -> None:
        nonlocal widest
        name = _name(frame)
        widest = max(widest, min(_WIDEST_NAME, len(name)))
        click.echo(describe_result(result, name, (widest, label_width), top))

    return show


def _row(frame: Frame, result: Result) -> Row:
    """The result with the full name of its picture."""
    row = {**result.to_dict(), "image": frame.name}
    row.pop("index", None)
    return row if frame.number is None else {**row, "frame": frame.number}


def _name(frame: Frame) -> str:
    return frame.name if frame.number is None else f"{frame.name}:{frame.number}"


@dataclass
class _Run:
    """Pictures on their way through a pipeline, and how many of them are done.

    Attributes:
        sources: The pictures.
        stops: Whether a picture that cannot be read ends the run.
        count: Pictures that were classified.
        failed: Pictures and videos that could not be read.
        early: Pictures that exited early.
        skipped: Pictures that were done before.
    """

    sources: Sources
    stops: bool
    count: int = 0
    failed: int = 0
    early: int = 0
    skipped: int = 0
    _share: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    @property
    def name_width(self) -> int:
        """Width of the column of names."""
        return min(_WIDEST_NAME, max(map(len, self.sources.names or ("",))))

    @property
    def share(self) -> float:
        """Share of the pictures that is done, or of the sources if their number is not known."""
        return self._passing.share(self.done) if self.sources.names else self._share

    @property
    def progress(self) -> str:
        """How many pictures are done, how fast, the time left, and how many exited early."""
        return self._passing.in_words(self.done, self.skipped) + self._exits

    @property
    def in_words(self) -> str:
        """How many pictures were classified, how fast, and how many exited early."""
        rate = self.count / (time.perf_counter() - self._start)
        before = f", {self.skipped:,} were there before" if self.skipped else ""
        pictures = f"{self.count:,} picture{'s' * (self.count != 1)}"
        return f"{pictures}, {rate:.1f}/s{self._exits}{before}"

    @property
    def done(self) -> int:
        """Pictures that were classified, now or before, and those that could not be read."""
        return self.count + self.failed + self.skipped

    @property
    def _passing(self) -> PictureCount:
        return PictureCount(len(self.sources.names or ()) or None, start=self._start)

    @property
    def _exits(self) -> str:
        return f", {self.early / max(1, self.count):.0%} early" if self.early else ""

    def results(
        self, pipeline: Pipeline, batch_size: int | None, done: frozenset[Key]
    ) -> Iterator[tuple[Frame, Result]]:
        """Classify all pictures but those that are done, in order."""
        waiting: dict[int | None, Frame] = {}

        def pictures() -> Iterator[PictureSource]:
            index = 0
            for frame in self.sources.frames(self._told):
                if Key(frame.name, frame.number) in done:
                    self.skipped += 1
                    continue
                waiting[index] = frame
                index += 1
                yield frame.picture

        def failed(index: int, _: PictureSource, error: ImageError) -> None:
            del waiting[index]
            self._told(error)

        if batch_size is None and self.sources.is_live:
            batch_size = 1
        stream = pipeline.stream(pictures(), batch_size=batch_size, channels="bgr", on_error=failed)
        self._start = time.perf_counter()
        with closing(stream) as results:
            for result in results:
                self.count += 1
                self.early += result.stage == "early_exit"
                frame = waiting.pop(result.index)
                self._share = frame.share
                yield frame, result

    def _told(self, error: ImageError) -> None:
        if self.stops:
            raise error
        self.failed += 1
        click.echo(f"Not read: {error.problem} {error.fix}", err=True)
