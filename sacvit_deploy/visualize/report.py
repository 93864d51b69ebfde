"""An evaluation as one page: charts, tables and where the numbers come from, in one file."""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from sacvit_deploy.visualize import evaluation_charts as charts
from sacvit_deploy.visualize.report_tables import (
    class_table,
    confusion_table,
    facts,
    key_figures,
    row_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sacvit_deploy.evaluation.compared import Compared
    from sacvit_deploy.evaluation.evaluate import Evaluation

# Class and name of a mark, by the colour it has.
_CURVE = (
    ("stroke", "mix", "mixture of both stages, one point for each eta"),
    ("round", "early", "early exit alone"),
    ("round", "late", "second stage alone"),
)
_DENSE = (("dashed", "quiet", "cost of the dense network of the same body"),)
_OTHERS = (("round", "other", "other evaluations"),)
_STAGES = (
    ("", "early", "left early, right"),
    ("wrong", "early", "left early, wrong"),
    ("wrong", "late", "looked again, wrong"),
    ("", "late", "looked again, right"),
)
_RELIABILITY = (
    ("", "early", "share of right answers"),
    ("dashed", "quiet", "a network that is as sure as it is right"),
)
_MATRIX = (("", "good", "right"), ("", "bad", "taken for another class"))

Mark = tuple[str, str, str]


def html_report(evaluation: Evaluation, compared: Sequence[Compared] = ()) -> str:
    """The page: it fetches nothing, runs nothing, and follows the reader's light or dark setting.

    Args:
        evaluation: What to show.
        compared: Other evaluations, as points in the charts.
    """
    setting = evaluation.setting
    title = f"{setting.bundle} on {setting.data}"
    body = "\n".join(
        (
            f"<h1>{escape(title)}</h1>",
            f'<p class="quiet">{escape(_subtitle(evaluation))}</p>',
            key_figures(evaluation),
            _card("At each threshold", _rows_note(evaluation), row_table(evaluation, compared)),
            f'<div class="grid">{"".join(_figures(evaluation, compared))}</div>',
            _card("Classes, the worst first", "", class_table(evaluation)),
            _confusions(evaluation),
            _card("Where the numbers come from", "", facts(evaluation)),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_style()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    file = resources.files("sacvit_deploy") / "assets" / "report.css"
    return file.read_text(encoding="utf-8")


def _subtitle(evaluation: Evaluation) -> str:
    setting = evaluation.setting
    return (
        f"{evaluation.images} pictures; {setting.network}; {setting.precision} with "
        f"{setting.runtime} on {setting.device}"
    )


def _rows_note(evaluation: Evaluation) -> str:
    sources = {row.exit.source for row in evaluation.rows if row.exit}
    if "fp32" not in sources:
        return ""
    return (
        f"A lower precision shifts the confidences. The first row has the threshold that was "
        f"calibrated for {evaluation.setting.precision}, the second that of FP32, both on the "
        f"{evaluation.setting.precision} graphs. The charts are drawn at the exit temperature "
        "of the first row; a point with another one may lie off the curve."
    )


def _figures(evaluation: Evaluation, compared: Sequence[Compared]) -> list[str]:
    others = _OTHERS if compared else ()
    two_stage = evaluation.late_path is not None
    curve = _CURVE if two_stage else (("round", "mix", "this network"),)
    found = [
        _figure(
            "Accuracy against cost",
            "How many right answers the mean cost of a picture buys.",
            (*curve, *(_DENSE if two_stage else ()), *others),
            charts.accuracy_against_macs(evaluation, compared),
        ),
        _figure(
            "Accuracy against latency",
            f"Measured picture by picture on {evaluation.setting.device}.",
            (*curve, *others),
            charts.accuracy_against_latency(evaluation, compared),
        ),
    ]
    if two_stage:
        caption = "Where pictures leave as the exit threshold rises (SAC-ViT, Fig. 4)."
        svg = charts.shares_by_stage(evaluation)
        found.append(_figure("Pictures by stage", caption, _STAGES, svg))
    where = "at the early exit" if two_stage else "of the network"
    caption = (
        f"Confidence {where} against right answers; bars below the line: too sure. Expected "
        f"calibration error {evaluation.reliability.ece:.1%}."
    )
    svg = charts.reliability_diagram(evaluation)
    return [*found, _figure("Reliability", caption, _RELIABILITY, svg)]


def _confusions(evaluation: Evaluation) -> str:
    """The matrix where it can be read, and the pairs that are confused most."""
    table = _card("Most frequent confusions", "", confusion_table(evaluation))
    if len(evaluation.labels) > charts.MOST_CLASSES_DRAWN:
        return table
    svg = charts.confusion_matrix(evaluation)
    caption = (
        "Rows: true class; columns: what it was taken for. The stronger the colour, the larger "
        "the share of the row."
    )
    return f'<div class="wide">{_figure("Confusion matrix", caption, _MATRIX, svg)}</div>{table}'


def _figure(title: str, caption: str, marks: Sequence[Mark], svg: str) -> str:
    legend = "".join(
        f'<li><i class="{kind}" style="--c:var(--{colour})"></i>{escape(text)}</li>'
        for kind, colour, text in marks
    )
    return (
        f'<figure class="card"><h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>'
        f'<ul class="legend">{legend}</ul>{svg}</figure>'
    )


def _card(title: str, note: str, content: str) -> str:
    paragraph = f'<p class="quiet">{escape(note)}</p>' if note else ""
    return f'<section class="card wide"><h2>{escape(title)}</h2>{paragraph}{content}</section>'
