"""Elements of an HTML page: cards, tables, figures and pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from sacvit_deploy.visualize.canvas import Drawing

# Titles of columns of words, which are aligned to the left.
_WORDS = ("", "class", "taken for")


def table(head: Sequence[str], rows: Iterable[Iterable[str | float]]) -> str:
    """A table that scrolls inside its card.

    Cells are HTML already, or a share in [0, 1], which is shown as a bar behind its number.
    """
    classes = [' class="text"' if title in _WORDS else "" for title in head]
    titles = "".join(f"<th{of}>{title}</th>" for title, of in zip(head, classes, strict=True))
    lines = "".join(f"<tr>{''.join(map(_cell, row, classes))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(value: str | float, class_: str) -> str:
    if isinstance(value, float):
        return f'<td class="share" style="--v:{value:.1%}">{value:.1%}</td>'
    return f"<td{class_}>{value}</td>"


def figure(title: str, caption: str, marks: Sequence[tuple[str, str, str]], chart: Drawing) -> str:
    """A chart with its caption and a legend.

    Args:
        title: Heading.
        caption: Below the heading.
        marks: Entries of the legend: class of the mark, role of its colour, and meaning.
        chart: Drawn into the page.
    """
    legend = "".join(
        f'<li><i class="{kind}" style="--c:var(--{role})"></i>{escape(text)}</li>'
        for kind, role, text in marks
    )
    return (
        f'<figure class="card"><h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>'
        f'<ul class="legend">{legend}</ul>{chart.svg(inline=True)}</figure>'
    )


def card(title: str, content: str, note: str = "") -> str:
    """A wide card; the content is HTML, title and note are text."""
    paragraph = f'<p class="quiet">{escape(note)}</p>' if note else ""
    return f'<section class="card wide"><h2>{escape(title)}</h2>{paragraph}{content}</section>'


def pairs(entries: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they stand for."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries)
    return f'<dl class="facts">{lines}</dl>'
