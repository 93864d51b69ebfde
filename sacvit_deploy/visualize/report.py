"""The HTML page of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from sacvit_deploy.evaluation.answers import Setting
from sacvit_deploy.evaluation.compared import Compared
from sacvit_deploy.evaluation.evaluate import Evaluation
from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
from sacvit_deploy.evaluation.statistics import Interval
from sacvit_deploy.visualize import charts
from sacvit_deploy.visualize.canvas import ROLES, Drawing
from sacvit_deploy.visualize.charts import row_name
from sacvit_deploy.visualize.elements import card, figure, pairs, table
from sacvit_deploy.visualize.gallery import THUMBNAIL_PIXELS, gallery

_NO_MISTAKE = '<p class="quiet">No picture was taken for another class.</p>'
_MOST_MISTAKES = 24
_MOST_CONFUSIONS = _MOST_SKIPPED = 20
# Legends: class of the mark, role of its colour, and meaning.
_CURVE = (
    ("stroke", "ink", "mixture of both stages, one point for each eta"),
    ("faint", "ink", "95 % interval"),
    ("round", "early", "early exit alone"),
    ("round", "late", "second stage alone"),
)
_DENSE = (("dashed", "ink", "cost of the dense network of the same body"),)
_ONE_STAGE = (("round", "ink", "this network"), ("upright", "ink", "95 % interval"))
_OTHERS = (("round", "other", "other evaluations"),)
_STAGES = (
    ("", "early", "exited early, correct"),
    ("pale", "early", "exited early, wrong"),
    ("pale", "late", "refined, wrong"),
    ("", "late", "refined, correct"),
)
_RELIABILITY = (
    ("", "early", "share of correct answers"),
    ("upright", "ink", "95 % interval"),
    ("dashed", "quiet", "a network whose confidence equals its accuracy"),
)
_INTERVALS = "Intervals are those of Wilson (1927) at 95\u00a0%, each of one point by itself."
_DIFFERENCES = (
    "Points on the same pictures share most of their error: a difference between two of them is "
    "more certain than their intervals suggest."
)
_LATENCIES = ("ms mean", "ms p50", "ms p95")
_MATRIX = (("", "early", "correct"), ("", "wrong", "taken for another class"))


def html_report(evaluation: Evaluation, compared: Sequence[Compared] = ()) -> str:
    """The page: it fetches nothing, runs nothing, and follows the reader's light or dark setting.

    It contains thumbnails of the surest mistakes, whose pictures are read again.

    Args:
        evaluation: Shown in charts and tables.
        compared: Other evaluations, shown as points in the charts.
    """
    setting = evaluation.setting
    title = escape(f"{setting.bundle} on {setting.data}")
    subtitle = (
        f"{evaluation.images} pictures; {setting.network}; {setting.precision} with "
        f"{setting.runtime} on {setting.device}"
    )
    body = "\n".join(
        (
            f"<h1>{title}</h1>",
            f'<p class="quiet">{escape(subtitle)}</p>',
            _key_figures(evaluation),
            _thresholds(evaluation, compared),
            f'<div class="grid">{"".join(_figures(evaluation, compared))}</div>',
            card("Classes, the worst first", _class_table(evaluation)),
            _confusions(evaluation),
            _mistakes(evaluation),
            card("Where the numbers come from", _facts(evaluation)),
        )
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_style()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    # A file name may not be valid Unicode.
    return page.encode("utf-8", "backslashreplace").decode()


def _style() -> str:
    roles = ([f"--{role}: {each};" for each in colours] for role, colours in ROLES.items())
    light, dark = map(" ".join, zip(*roles, strict=True))
    rest = (resources.files("sacvit_deploy") / "assets" / "report.css").read_text(encoding="utf-8")
    return (
        f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{rest}"
    )


def _key_figures(evaluation: Evaluation) -> str:
    row, dense = evaluation.rows[0], evaluation.macs_g["dense"]
    mean, _, p95 = _latency(row)
    name = row_name(row).replace(" ", "\u00a0")
    found = f"{_interval(row.top1_interval)} (95\u00a0% interval), {name}"
    figures = [("top-1 accuracy", f"{row.top1:.1%}", found)]
    if row.source:
        figures.append(("exit early", f"{row.early_exit_fraction:.1%}", "of the pictures"))
    figures += [
        ("mean cost", f"{row.macs_mean_g:.3g} G", f"MACs; {row.macs_mean_g / dense:.0%} of dense"),
        ("mean latency", f"{mean} ms", f"95 % below {p95} ms"),
        ("calibration error", f"{evaluation.reliability.ece:.1%}", "confidence against accuracy"),
        ("pictures", f"{evaluation.images}", f"{len(evaluation.skipped)} could not be read"),
    ]
    tiles = "".join(
        f'<div class="card"><dt>{escape(name)}</dt><dd>{escape(value)}'
        f"<small>{escape(note)}</small></dd></div>"
        for name, value, note in figures
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _thresholds(evaluation: Evaluation, compared: Sequence[Compared]) -> str:
    dense = evaluation.macs_g["dense"]
    rows = [_row(row_name(row), row, dense, row.note) for row in evaluation.rows]
    if len(evaluation.curve) > 1:
        rows.append(_row("early exit alone", evaluation.curve[0], dense, ""))
        rows.append(_row("second stage alone", evaluation.curve[-1], dense, ""))
        cost = (f"{dense:.3g}", "100%")
        rows.append(("dense network of the same body", "", "", "", *cost, "", "", "", "cost only"))
    rows += [_compared_row(each, evaluation) for each in compared]
    head = (*("", "top-1", "95 % interval", "exit early", "G MACs", "of dense"), *_LATENCIES, "")
    note, precision = _INTERVALS, evaluation.setting.precision
    if len(rows) > 1:
        note += f" {_DIFFERENCES}"
    if any(row.source == "fp32" for row in evaluation.rows):
        note += (
            f" A lower precision shifts the confidences. The first row has the threshold that was "
            f"calibrated for {precision}, the second that of FP32, both on the {precision} graphs. "
            "The charts are drawn at the exit temperature of the first row; a point with another "
            "one may lie off the curve."
        )
    return card("At each threshold", table(head, (map(escape, row) for row in rows)), note)


def _row(name: str, row: OperatingPoint, dense: float, note: str) -> tuple[str, ...]:
    early = f"{row.early_exit_fraction:.1%}" if row.source else ""
    cost = (f"{row.macs_mean_g:.3g}", f"{row.macs_mean_g / dense:.0%}")
    top1 = (f"{row.top1:.1%}", _interval(row.top1_interval))
    return name, *top1, early, *cost, *_latency(row), note


def _compared_row(row: Compared, evaluation: Evaluation) -> tuple[str, ...]:
    dense, batch = evaluation.macs_g["dense"], evaluation.setting.batch_size
    notes = [] if row.data_sha256 == evaluation.data_sha256 else ["on other data"]
    notes += [] if row.batch_size == batch else [f"batch {row.batch_size}"]
    cost = (f"{row.macs_mean_g:.3g}", f"{row.macs_mean_g / dense:.0%}")
    top1 = (f"{row.top1:.1%}", _interval(row.top1_interval))
    return row.name, *top1, "", *cost, f"{row.latency_ms_mean:.3g}", "", "", "; ".join(notes)


def _interval(ends: Interval) -> str:
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def _latency(row: OperatingPoint) -> tuple[str, str, str]:
    return f"{row.latency_ms_mean:.3g}", f"{row.latency_ms_p50:.3g}", f"{row.latency_ms_p95:.3g}"


def _figures(evaluation: Evaluation, compared: Sequence[Compared]) -> list[str]:
    two_stage = evaluation.refine_alone is not None
    others = _OTHERS if compared else ()
    curve = _CURVE if two_stage else _ONE_STAGE
    chart: Drawing = charts.accuracy_against("macs_mean_g", evaluation, compared)
    caption = "Share of correct answers for the mean cost of a picture."
    if two_stage or compared:
        caption += " Differences between points are more certain than their intervals suggest."
    marks = (*curve, *(_DENSE if two_stage else ()), *others)
    found = [figure("Accuracy against cost", caption, marks, chart)]
    chart = charts.accuracy_against("latency_ms_mean", evaluation, compared)
    caption = f"Measured {_how(evaluation.setting)} on {evaluation.setting.device}."
    found.append(figure("Accuracy against latency", caption, (*curve, *others), chart))
    if two_stage:
        chart = charts.shares_by_stage(evaluation)
        caption = "Where pictures leave as the exit threshold rises (SAC-ViT, Fig. 4)."
        found.append(figure("Pictures by stage", caption, _STAGES, chart))
    where = "at the early exit" if two_stage else "of the network"
    caption = (
        f"Confidence {where} against accuracy; where bars end below the line, the network is "
        f"overconfident, unless their interval reaches it. Expected calibration error "
        f"{evaluation.reliability.ece:.1%}."
    )
    chart = charts.reliability_diagram(evaluation)
    return [*found, figure("Reliability", caption, _RELIABILITY, chart)]


def _class_table(evaluation: Evaluation) -> str:
    two_stage = evaluation.refine_alone is not None
    head = ["class", "pictures", "top-1"]
    if two_stage:
        head += ["exit early", "early exit alone", "second stage alone"]
    rows: list[Sequence[str | float]] = []
    for row in sorted(evaluation.classes, key=lambda row: (row.top1, row.class_index)):
        shares = (row.early_exit_fraction, row.top1_early_exit_only, row.top1_refine_only)
        others = [share or 0.0 for share in shares] if two_stage else []
        rows.append((escape(row.label), str(row.images), row.top1, *others))
    return table(head, rows)


def _confusions(evaluation: Evaluation) -> str:
    wrong = [entry for entry in evaluation.confusions if entry.true != entry.predicted]
    wrong.sort(key=lambda entry: -entry.images)
    images = {row.class_index: row.images for row in evaluation.classes}
    rows = (
        (
            escape(evaluation.labels[entry.true]),
            escape(evaluation.labels[entry.predicted]),
            str(entry.images),
            entry.images / images[entry.true],
        )
        for entry in wrong[:_MOST_CONFUSIONS]
    )
    content = table(("class", "taken for", "pictures", "of its class"), rows)
    if not wrong:
        content = _NO_MISTAKE
    most = card("Most frequent confusions", content)
    if len(evaluation.labels) > charts.MOST_CLASSES_DRAWN:
        return most
    caption = (
        "Rows: true class; columns: what it was taken for. The stronger the colour, the larger "
        "the share of the row."
    )
    matrix = figure("Confusion matrix", caption, _MATRIX, charts.ConfusionMatrix(evaluation))
    return f'<div class="wide">{matrix}</div>{most}'


def _mistakes(evaluation: Evaluation) -> str:
    mistakes = evaluation.predictions.surest_mistakes(_MOST_MISTAKES)
    row = evaluation.rows[0]
    if not mistakes:
        return card("Surest mistakes", _NO_MISTAKE)
    wrong = sum(entry.images for entry in evaluation.confusions if entry.true != entry.predicted)
    at = f" at {row_name(row)}" if row.source else ""
    content = gallery(mistakes)
    note = (
        f"{len(mistakes)} of the {wrong} wrong answers{at}, those of the largest probability "
        "first. Wrong labels show up here, too. With thumbnails of at most "
        f"{THUMBNAIL_PIXELS} px they make {len(content) / 1024:.0f} KiB of this page."
    )
    return card("Surest mistakes", content, note)


def _facts(evaluation: Evaluation) -> str:
    setting = evaluation.setting
    early, late = evaluation.early_alone, evaluation.refine_alone
    entries = [
        ("date", setting.date),
        ("bundle", setting.bundle),
        ("network", setting.network),
        ("weights", setting.weights),
        ("cost", ", ".join(f"{k} {v:.4g} G MACs" for k, v in evaluation.macs_g.items())),
        ("data", f"{setting.data}, {evaluation.images} pictures"),
        ("data sha256", evaluation.data_sha256),
        ("precision", setting.precision),
        ("runtime", f"{setting.runtime}, {setting.provider}"),
        ("device", setting.device),
        ("batch size", str(setting.batch_size)),
        ("CPU threads", "chosen by the runtime" if (n := setting.threads) is None else str(n)),
        ("latency of the early path" if late else "latency", _path(early, setting)),
        *([("latency of the late path", _path(late, setting))] if late else []),
        ("made with", ", ".join(f"{k} {v}" for k, v in setting.versions.items())),
        *(("not read", f"{s.name}: {s.reason}") for s in evaluation.skipped[:_MOST_SKIPPED]),
    ]
    if (more := len(evaluation.skipped) - _MOST_SKIPPED) > 0:
        entries.append(("not read", f"{more} more"))
    return pairs(entries)


def _path(row: OperatingPoint, setting: Setting) -> str:
    mean, p50, p95 = _latency(row)
    return (
        f"{mean} ms mean, {p50} ms median, {p95} ms 95th percentile; {_how(setting)}, "
        "no preprocessing"
    )


def _how(setting: Setting) -> str:
    """How a latency was measured."""
    if setting.batch_size == 1:
        return "picture by picture (batch 1)"
    return f"as a picture's share of its batch of {setting.batch_size}"
