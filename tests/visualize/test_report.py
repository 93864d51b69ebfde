from __future__ import annotations

import dataclasses
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from sacvit_deploy.evaluation.compared import Compared
from sacvit_deploy.evaluation.exit_sweep import Exit
from sacvit_deploy.samples import Sample
from sacvit_deploy.visualize.canvas import ROLES
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
        "Surest mistakes",
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


def test_every_colour_of_a_chart_follows_the_reader():
    html = html_report(fake_evaluation(etas=(0.4,)))
    light, dark = html.split("prefers-color-scheme: dark", 1)
    for role, colours in ROLES.items():
        assert f"--{role}: {colours[0]};" in light
        assert f"--{role}: {colours[1]};" in dark
    used = {
        shape.get(paint)
        for chart in charts(html)
        for shape in chart.iter()
        for paint in ("fill", "stroke")
    }
    assert used - {None, "none"} <= {f"var(--{role})" for role in ROLES}


def test_one_stage_shows_what_there_is():
    html = html_report(fake_evaluation(DENSE))
    page = Page(html)
    assert page.open == []
    assert "Pictures by stage" not in page.titles
    assert "early exit" not in html
    assert len(charts(html)) == 4


def test_other_evaluations_are_marked_and_named():
    found = fake_evaluation()
    here = Compared("dense fp32", 0.5, 0.001, 1.0, found.data_sha256, 100)
    html = html_report(found, [here, dataclasses.replace(here, name="far", data_sha256="0")])
    assert html.count('r="4.5" fill="var(--other)"') == 4
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


def test_the_setting_of_the_measurement_is_told():
    found = fake_evaluation()
    setting = dataclasses.replace(found.setting, date="2026-01-31", batch_size=8, threads=2)
    html = html_report(dataclasses.replace(found, setting=setting))
    for name, text in (("date", "2026-01-31"), ("batch size", "8"), ("CPU threads", "2")):
        assert f"<dt>{name}</dt><dd>{text}</dd>" in html
    assert html.count("share of its batch of 8") == 3
    assert "ms, batch 8" in html
    assert "batch 1" not in html
    usual = html_report(found)
    assert "<dt>CPU threads</dt><dd>chosen by the runtime</dd>" in usual
    assert usual.count("picture by picture (batch 1)") == 3


def test_top1_has_its_interval_and_a_word_about_differences():
    found = fake_evaluation(etas=(0.4,))
    html = html_report(found)
    low, high = found.rows[0].top1_interval
    assert f"{low:.1%} to {high:.1%} (95\u00a0% interval), eta\u00a00.4" in html
    assert f"<td>{low:.1%} to {high:.1%}</td>" in html
    assert "Wilson (1927)" in html
    assert "a difference between two of them" in html
    alone = html_report(fake_evaluation(DENSE))
    assert "Wilson (1927)" in alone
    assert "difference" not in alone.lower()


def test_another_batch_size_is_named():
    found = fake_evaluation()
    other = Compared("dense fp32", 0.5, 0.001, 1.0, found.data_sha256, 100, batch_size=8)
    assert ">batch 8<" in html_report(found, [other])
    assert ">batch 8<" not in html_report(found, [dataclasses.replace(other, batch_size=1)])


def test_the_surest_mistakes_are_shown_and_none_is_told():
    found = fake_evaluation(images=60)
    html = html_report(found)
    wrong = round(60 * (1 - found.rows[0].top1))
    assert f"{min(24, wrong)} of the {wrong} wrong answers at eta " in html
    assert html.count('<li title="') == min(24, wrong)
    assert "KiB of this page" in html
    assert "wrong answers, those" in html_report(fake_evaluation(DENSE))
    right = dataclasses.replace(
        found.predictions, is_refined=found.predictions.is_refined, answers=all_right(found)
    )
    none = html_report(dataclasses.replace(found, predictions=right, confusions=()))
    assert none.count("No picture was taken for another class.") == 2
    assert Page(none).open == []


def all_right(found):
    answers = found.predictions.answers
    logits = np.eye(len(found.labels))[answers.class_index]
    decisions = dataclasses.replace(answers.decisions, early_logits=logits, refined_logits=logits)
    return dataclasses.replace(answers, decisions=decisions)


def test_a_name_that_is_no_text_is_shown_with_escapes():
    found = fake_evaluation()
    samples = tuple(Sample(os.fsdecode(b"\xff.png"), "") for _ in range(40))
    answers = dataclasses.replace(found.predictions.answers, samples=samples)
    predictions = dataclasses.replace(found.predictions, answers=answers)
    html = html_report(dataclasses.replace(found, predictions=predictions))
    assert "\\udcff.png</small>" in html
    html.encode()


def test_a_thousand_classes_are_listed_and_not_drawn():
    many = fake_evaluation(SAC.replace(num_classes=1000), images=60)
    html = html_report(many)
    assert "Confusion matrix" not in html
    assert "Most frequent confusions" in html
    assert len(html) < 200_000
