from __future__ import annotations

import dataclasses
import itertools
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.evaluation.evaluate import Compared
from sacvit_deploy.evaluation.exit_sweep import Exit
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.visualize.plot import Axis, Mark, Plot
from sacvit_deploy.visualize.report import html_report
from tests.evaluation.evaluations import fake_evaluation
from tests.fakes import DENSE, SAC

_VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that every element is closed, and keeps titles and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag not in _VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def charts(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.S)]


def test_the_page_is_whole_and_fetches_nothing():
    html = html_report(fake_evaluation(etas=(0.4,)))
    page = Page(html)
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"https?:|@import|url\(|<script", html)
    assert page.titles == [
        "At each threshold",
        "Accuracy against cost",
        "Accuracy against latency",
        "Pictures by stage",
        "Reliability",
        "Classes, the worst first",
        "Confusion matrix",
        "Most frequent confusions",
        "Where the numbers come from",
    ]
    assert "prefers-color-scheme: dark" in html
    assert "a &lt;chip&gt;" in html
    assert "It is &lt;empty&gt;." in html
    assert "nan" not in html.lower().replace("nano", "")


def test_charts_have_titles_units_and_legends():
    html = html_report(fake_evaluation(etas=(0.4,)))
    assert len(charts(html)) == 5
    for unit in ("G multiply-accumulates", "ms, batch 1", "top-1 accuracy", "exit threshold eta"):
        assert unit in html
    assert html.count('<ul class="legend">') == 5
    assert "dense, " in html


def test_everything_drawn_lies_inside_its_chart():
    for chart in charts(html_report(fake_evaluation(etas=(0.0, 0.4, 1.0)))):
        width, height = map(float, chart.attrib["viewBox"].split()[2:])
        for shape in chart.iter():
            pairs = re.findall(r"(-?[\d.]+),(-?[\d.]+)", shape.get("points", ""))
            if shape.get("cx"):
                pairs.append((shape.attrib["cx"], shape.attrib["cy"]))
            for x, y in pairs:
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height


def test_one_stage_shows_what_there_is():
    html = html_report(fake_evaluation(DENSE))
    page = Page(html)
    assert page.open == []
    assert "Pictures by stage" not in page.titles
    assert "early exit" not in html
    assert len(charts(html)) == 4


def test_other_evaluations_are_marked_and_named():
    found = fake_evaluation()
    here = Compared("dense fp32", 0.5, 0.001, 1.0, found.data_sha256)
    html = html_report(found, [here, dataclasses.replace(here, name="far", data_sha256="0")])
    assert html.count('class="dot other"') == 4
    assert html.count("on other data") == 1
    assert "other evaluations" in html
    assert "other evaluations" not in html_report(found)


def test_the_threshold_of_fp32_stands_beside_its_own():
    found = fake_evaluation()
    rows = [
        dataclasses.replace(found.rows[0], **vars(exit_))
        for exit_ in (Exit(0.3, 1.0, "calibrated"), Exit(0.6, 1.0, "fp32"))
    ]
    html = html_report(dataclasses.replace(found, rows=tuple(rows)))
    assert "eta 0.3<" in html
    assert "eta 0.6 (of fp32)" in html
    assert "shifts the confidences" in html


def test_a_thousand_classes_are_listed_and_not_drawn():
    many = fake_evaluation(SAC.replace(num_classes=1000), images=60)
    html = html_report(many)
    assert "Confusion matrix" not in html
    assert "Most frequent confusions" in html
    assert len(html) < 200_000


def test_ticks_are_round_numbers_inside_the_axis():
    axis = Axis.around("x", [0.571, 0.618], percent=True)
    assert axis.low <= 0.571 < 0.618 <= axis.high
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks())
    assert 3 <= len(axis.ticks()) <= 9
    assert {axis.text(0.5), Axis("x", 0, 1).text(0.5)} == {"50 %", "0.5"}
    same = Axis.around("x", [0.0, 0.0])
    assert same.low < same.high


def test_labels_do_not_lie_on_each_other():
    plot = Plot(Axis("x", 0, 1), Axis("y", 0, 1), "test")
    for number in range(3):
        plot.dot((0.5, 0.5), "mix", Mark(f"point {number}", ""))
    found = re.findall(r'class="label" x="[\d.]+" y="([\d.]+)"', plot.svg())
    heights = sorted(map(float, found))
    assert len(heights) == 3
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 12


def test_a_report_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    check_output(file)
    assert list(tmp_path.iterdir()) == []
    write_output(file, "first")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(ConfigError, match="disk full"):
        write_output(file, "second")
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", [".", "none/report.html"])
def test_a_place_that_cannot_be_written_is_known_before(name, tmp_path):
    with pytest.raises(ConfigError, match=r"folder|cannot be written"):
        check_output(tmp_path / Path(name))
