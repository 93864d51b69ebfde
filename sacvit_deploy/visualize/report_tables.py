"""The figures and tables of a report, in HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sacvit_deploy.visualize.evaluation_charts import row_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sacvit_deploy.evaluation.compared import Compared
    from sacvit_deploy.evaluation.evaluate import Evaluation
    from sacvit_deploy.evaluation.operating_point import Latency, OperatingPoint

# Titles of columns of words, which stand to the left of their cells.
_WORDS = ("", "class", "taken for")
_MOST_CONFUSIONS = 20
_MOST_SKIPPED = 20
_SOURCES = {
    "given": "",
    "bundle": "default of the bundle",
    "calibrated": "calibrated for this precision",
    "fp32": "of FP32",
    "sweep": "",
}


def key_figures(evaluation: Evaluation) -> str:
    """What to know first, at the first threshold."""
    row = evaluation.rows[0]
    dense = evaluation.macs_g["dense"]
    figures = [("top-1 accuracy", f"{row.top1:.1%}", f"at {row_name(row)}")]
    if row.early_exit_fraction is not None:
        figures.append(("leave early", f"{row.early_exit_fraction:.1%}", "of the pictures"))
    figures += [
        ("mean cost", f"{row.macs_mean_g:.3g} G", f"MACs; {row.macs_mean_g / dense:.0%} of dense"),
        ("mean latency", f"{row.latency.mean:.3g} ms", f"95 % below {row.latency.p95:.3g} ms"),
        ("calibration error", f"{evaluation.reliability.ece:.1%}", "confidence against accuracy"),
        ("pictures", f"{evaluation.images}", f"{len(evaluation.skipped)} could not be read"),
    ]
    tiles = "".join(
        f'<div class="card"><dt>{escape(name)}</dt><dd>{escape(value)}'
        f"<small>{escape(note)}</small></dd></div>"
        for name, value, note in figures
    )
    return f'<dl class="tiles">{tiles}</dl>'


def row_table(evaluation: Evaluation, compared: Sequence[Compared]) -> str:
    """The thresholds that were asked for, both stages alone, and other evaluations."""
    dense = evaluation.macs_g["dense"]
    rows = [_row(row_name(row), row, dense, _source(row)) for row in evaluation.rows]
    if len(evaluation.curve) > 1:
        alone = ("early exit alone", "second stage alone")
        ends = (evaluation.curve[0], evaluation.curve[-1])
        rows += [_row(name, row, dense, "") for name, row in zip(alone, ends, strict=True)]
        cells = ("dense network of the same body", "", "", f"{dense:.3g}", "100%", "", "", "")
        rows.append((*cells, "cost only"))
    for each in compared:
        same = each.data_sha256 == evaluation.data_sha256
        rows.append(
            (
                each.name,
                f"{each.top1:.1%}",
                "",
                f"{each.macs_mean_g:.3g}",
                f"{each.macs_mean_g / dense:.0%}",
                f"{each.latency_ms_mean:.3g}",
                "",
                "",
                "" if same else "on other data",
            )
        )
    head = ("", "top-1", "leave early", "G MACs", "of dense", "ms mean", "ms p50", "ms p95", "")
    return _table(head, (map(escape, row) for row in rows))


def _row(name: str, row: OperatingPoint, dense: float, note: str) -> tuple[str, ...]:
    early = row.early_exit_fraction
    return (
        name,
        f"{row.top1:.1%}",
        "" if early is None else f"{early:.1%}",
        f"{row.macs_mean_g:.3g}",
        f"{row.macs_mean_g / dense:.0%}",
        *_latency(row.latency),
        note,
    )


def _source(row: OperatingPoint) -> str:
    return _SOURCES[row.exit.source] if row.exit else ""


def _latency(latency: Latency) -> tuple[str, str, str]:
    return f"{latency.mean:.3g}", f"{latency.p50:.3g}", f"{latency.p95:.3g}"


def class_table(evaluation: Evaluation) -> str:
    """Every class that has pictures, the worst first."""
    two_stage = evaluation.late_path is not None
    head = ["class", "pictures", "top-1"]
    if two_stage:
        head += ["leave early", "early exit alone", "second stage alone"]
    rows: list[Sequence[str | _Share]] = []
    for row in sorted(evaluation.classes, key=lambda row: (row.top1, row.class_index)):
        shares = [row.top1]
        if two_stage:
            others = (row.early_exit_fraction, row.top1_early_exit_only, row.top1_refine_only)
            shares += [share or 0.0 for share in others]
        rows.append((escape(row.label), str(row.images), *map(_Share, shares)))
    return _table(head, rows)


def confusion_table(evaluation: Evaluation) -> str:
    """The pairs that are confused most."""
    wrong = [entry for entry in evaluation.confusions if entry.true != entry.predicted]
    wrong.sort(key=lambda entry: -entry.images)
    images = {row.class_index: row.images for row in evaluation.classes}
    rows = (
        (
            escape(evaluation.labels[entry.true]),
            escape(evaluation.labels[entry.predicted]),
            str(entry.images),
            _Share(entry.images / images[entry.true]),
        )
        for entry in wrong[:_MOST_CONFUSIONS]
    )
    return _table(("class", "taken for", "pictures", "of its class"), rows)


def facts(evaluation: Evaluation) -> str:
    """What was measured, and with what."""
    setting = evaluation.setting
    early, late = evaluation.early_path, evaluation.late_path
    paths = [("latency of the early path" if late else "latency", _path(early))]
    if late:
        paths.append(("latency of the late path", _path(late)))
    entries = [
        ("bundle", setting.bundle),
        ("network", setting.network),
        ("weights", setting.weights),
        ("cost", ", ".join(f"{k} {v:.4g} G MACs" for k, v in evaluation.macs_g.items())),
        ("data", f"{setting.data}, {evaluation.images} pictures"),
        ("data sha256", evaluation.data_sha256),
        ("precision", setting.precision),
        ("runtime", f"{setting.runtime}, {setting.provider}"),
        ("device", setting.device),
        *paths,
        ("made with", ", ".join(f"{k} {v}" for k, v in setting.versions.items())),
        *(("not read", f"{s.name}: {s.reason}") for s in evaluation.skipped[:_MOST_SKIPPED]),
    ]
    if (more := len(evaluation.skipped) - _MOST_SKIPPED) > 0:
        entries.append(("not read", f"{more} more"))
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries)
    return f'<dl class="facts">{pairs}</dl>'


def _path(latency: Latency) -> str:
    mean, p50, p95 = _latency(latency)
    return f"{mean} ms mean, {p50} ms median, {p95} ms 95th percentile; batch 1, no preprocessing"


class _Share(float):
    """A share in [0, 1] that is shown as a bar behind its number."""


def _table(head: Sequence[str], rows: Iterable[Iterable[str | _Share]]) -> str:
    """A table that scrolls inside its card; the cells of `rows` are HTML already."""
    titles = "".join(
        f'<th class="text">{title}</th>' if title in _WORDS else f"<th>{title}</th>"
        for title in head
    )
    columns = [title in _WORDS for title in head]
    lines = "".join(f"<tr>{''.join(map(_cell, row, columns))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(value: str | _Share, words: bool) -> str:
    if isinstance(value, _Share):
        return f'<td class="share" style="--v:{value:.1%}">{value:.1%}</td>'
    return f'<td class="text">{value}</td>' if words else f"<td>{value}</td>"
