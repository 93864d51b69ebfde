"""Results in a file, one row each as they come: JSON lines, CSV or Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.files import check_output, folder_lock, open_regular, replacing
from sacvit_deploy.libraries import require

Row = Mapping[str, Any]
"""Values by column; columns that are not in it are empty."""
Write = Callable[[Row], None]

COLUMNS = (
    "image",
    "frame",
    "class_index",
    "label",
    "probability",
    "stage",
    "early_exit_probability",
    "top5",
    "target_tokens",
    "kept_tokens",
)
"""Columns of every table, in order. CSV has lists as JSON."""

LABELLED_COLUMNS = ("image", "true_class_index", "true_label", "correct", *COLUMNS[2:])
"""Columns of a table of labelled pictures."""

_KINDS = (".jsonl", ".csv", ".parquet")
_UNWRITABLE = "Choose another file, in a folder that exists and can be written to."
_ROW_GROUP = 1000  # rows of a Parquet file that are in memory


class Key(NamedTuple):
    """What tells two rows apart: the picture, and the number of the frame in a video."""

    image: str
    frame: int | None


class Opened(NamedTuple):
    """A file of results that is being written.

    Attributes:
        write: Adds a row. It is in the file when the call returns, except in Parquet.
        done: Rows that were there before.
    """

    write: Write
    done: frozenset[Key]


@contextlib.contextmanager
def result_file(path: Path, *, resume: bool = False) -> Iterator[Opened]:
    """Write rows to a file while the block lasts.

    JSON lines and CSV grow row by row, and keep their rows however the block ends. Parquet appears
    when the block ends without an error.

    Args:
        path: A .jsonl, .csv or .parquet file.
        resume: Go on with the file if it exists. What a killed process left of its last row goes.

    Raises:
        ConfigError: The name ends differently, the file exists and is not resumed, or is not one
            that this function wrote, cannot be written, or is being written by another process.
        MissingDependencyError: Parquet was asked for, and pyarrow is not installed.
    """
    kind = _kind(path)
    if path.exists() and not resume:
        raise ConfigError(
            f"{path} exists.", "Go on with it: --resume. Or name another file, or remove this one."
        )
    if kind == ".parquet":
        if resume:
            raise ConfigError(
                "A Parquet file cannot be resumed.", "Write .jsonl or .csv, which can be."
            )
        with _parquet(path, COLUMNS) as write:
            yield Opened(write, frozenset())
        return
    with raised_as(ConfigError, f"{path} cannot be written", _UNWRITABLE):
        stream = path.open("ab")
    with stream, folder_lock(path, wait=False) as is_alone:
        if not is_alone:
            raise ConfigError(
                f"{path} is being written by another process.", "Wait for it, or name another file."
            )
        done, end = _json_lines(path) if kind == ".jsonl" else _csv_rows(path)
        stream.truncate(end)
        yield Opened(_writer(stream, kind, COLUMNS, is_new=end == 0), frozenset(done))


def write_results(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write a file of results, whole or not at all; an old file is replaced.

    Args:
        path: A .jsonl, .csv or .parquet file.
        rows: Results.
        columns: `COLUMNS` or `LABELLED_COLUMNS`.

    Raises:
        ConfigError: The name ends differently, or the file cannot be written.
        MissingDependencyError: See `result_file`.
    """
    kind = _kind(path)
    with raised_as(ConfigError, f"{path} cannot be written", _UNWRITABLE), ExitStack() as stack:
        if kind == ".parquet":
            write = stack.enter_context(_parquet(path, columns))
        else:
            unfinished = stack.enter_context(replacing(path))
            stream = stack.enter_context(unfinished.open("wb"))
            write = _writer(stream, kind, columns, is_new=True)
        for row in rows:
            write(row)


def check_results(path: Path) -> None:
    """Check before the work that `write_results` can write a file; raise as it does."""
    if _kind(path) == ".parquet":
        require("pyarrow", "Writing Parquet")
    check_output(path)


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise ConfigError(
            f"The results were to be written to {path}.", f"Name it {', '.join(_KINDS)}."
        )
    return kind


def _writer(stream: IO[bytes], kind: str, columns: Sequence[str], *, is_new: bool) -> Write:
    def write(row: Row) -> None:
        stream.write(_as_json(row) if kind == ".jsonl" else _as_csv(row, columns))
        stream.flush()

    if is_new and kind == ".csv":
        stream.write(_csv_line(columns))
    return write


def _as_json(row: Row) -> bytes:
    # ASCII, so that a name which is no UTF-8 can be written and read again.
    return (json.dumps(dict(row)) + "\n").encode("ascii")


def _as_csv(row: Row, columns: Sequence[str]) -> bytes:
    cells = (row.get(name) for name in columns)
    return _csv_line(["" if cell is None else _cell(cell) for cell in cells])


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, (bool, list, tuple)) else value


def _csv_line(cells: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _json_lines(path: Path) -> tuple[set[Key], int]:
    """Keys of the whole rows, and the number of bytes they take."""
    done, end = set(), 0
    with open_regular(path) as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            with _not_ours(path):
                row = json.loads(line)
                done.add(Key(row["image"], row.get("frame")))
            end += len(line)
    return done, end


def _csv_rows(path: Path) -> tuple[set[Key], int]:
    done, end, buffer = set(), 0, b""
    with open_regular(path) as stream:
        for line in stream:
            buffer += line
            # A line break inside of quotes belongs to the row.
            if buffer.count(b'"') % 2 or not buffer.endswith(b"\n"):
                continue
            with _not_ours(path):
                text = buffer.decode("utf-8", "surrogateescape")
                (cells,) = csv.reader(io.StringIO(text, newline=""))
                row = dict(zip(COLUMNS, cells, strict=True))
                if end == 0 and tuple(cells) != COLUMNS:
                    raise ValueError(f"its columns are {', '.join(cells)}")
                if end:
                    done.add(Key(row["image"], int(row["frame"]) if row["frame"] else None))
            end, buffer = end + len(buffer), b""
    return done, end


def _not_ours(path: Path) -> contextlib.AbstractContextManager[None]:
    wrong = ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error
    fix = "Resume a file that run --output wrote, or name another one."
    return raised_as(ConfigError, f"{path} does not hold results", fix, wrong)


@contextlib.contextmanager
def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    arrow = require("pyarrow", "Writing Parquet")
    parquet = require("pyarrow.parquet", "Writing Parquet")
    tokens, number, real, text = (
        arrow.list_(arrow.int64()),
        arrow.int64(),
        arrow.float64(),
        arrow.string(),
    )
    best = arrow.list_(
        arrow.struct([("class_index", number), ("label", text), ("probability", real)])
    )
    kinds = {
        **dict.fromkeys(("image", "true_label", "label", "stage"), text),
        **dict.fromkeys(("frame", "true_class_index", "class_index"), number),
        **dict.fromkeys(("probability", "early_exit_probability"), real),
        **dict.fromkeys(("target_tokens", "kept_tokens"), tokens),
        "correct": arrow.bool_(),
        "top5": best,
    }
    schema = arrow.schema([(name, kinds[name]) for name in columns])
    check_output(path)
    rows: list[dict[str, Any]] = []
    with replacing(path) as unfinished, parquet.ParquetWriter(unfinished, schema) as writer:

        def flush() -> None:
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(_for_arrow(row))
            if len(rows) == _ROW_GROUP:
                flush()

        yield write
        flush()


def _for_arrow(row: Row) -> dict[str, Any]:
    names = ("class_index", "label", "probability")
    top = [dict(zip(names, each, strict=True)) for each in row["top5"]]
    # Arrow's text is UTF-8; a name that is not is written with escapes.
    image = row["image"].encode("utf-8", "backslashreplace").decode()
    return {**row, "image": image, "top5": top}
