from __future__ import annotations

import itertools

import numpy as np
import pytest

from sacvit_deploy.visualize.canvas import Ink, Pen, text_width
from sacvit_deploy.visualize.plot import Axis, Mark, Plot
from tests.visualize.surface import Area, Dot, Fill, Line, Surface, Text


def unit_plot() -> Plot:
    return Plot(Axis("x", 0, 1), Axis("y", 0, 1), "test")


def names(surface: Surface) -> list[Text]:
    return [text for text in surface.of(Text) if text.style.halo]


def test_ticks_are_round_numbers_inside_the_axis():
    axis = Axis.around("x", [0.571, 0.618], percent=True)
    assert axis.low <= 0.571 < 0.618 <= axis.high
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks())
    assert 3 <= len(axis.ticks()) <= 9
    assert {axis.text(0.5), Axis("x", 0, 1).text(0.5)} == {"50 %", "0.5"}
    same = Axis.around("x", [0.0, 0.0])
    assert same.low < same.high


@pytest.mark.parametrize("values", [(0.623, 0.628), (0.0, 0.0), (1.0, 1.0), (0.97, 0.99)])
def test_an_axis_in_percent_does_not_magnify_noise(values):
    axis = Axis.around("top-1", values, percent=True)
    assert 0 <= axis.low <= values[0] <= values[1] <= axis.high <= 1
    assert 0.1 <= axis.high - axis.low <= 0.2


@pytest.mark.parametrize("percent", [True, False])
def test_an_axis_ends_at_ticks(percent):
    generator = np.random.default_rng(0)
    for values in generator.random((300, 2)) ** 2:
        axis = Axis.around("x", values.tolist(), percent=percent)
        ticks = axis.ticks()
        assert [ticks[0], ticks[-1]] == pytest.approx([axis.low, axis.high])
        assert axis.low <= min(values) <= max(values) <= axis.high
        assert 3 <= len(ticks) <= 8


def test_a_wide_range_in_percent_is_not_widened():
    axis = Axis.around("top-1", (0.2, 0.6), percent=True)
    assert (axis.low, axis.high) == pytest.approx((0.1, 0.7), abs=0.1)


def test_the_axes_have_their_titles_and_ticks():
    surface = Surface(Plot(Axis("cost (G)", 0, 2), Axis("top-1", 0, 1, percent=True), "test"))
    turned = [text.text for text in surface.of(Text) if text.style.turned]
    assert turned == ["top-1"]
    assert {"cost (G)", "0", "0.5", "2", "20 %", "100 %"} <= set(surface.words().splitlines())
    assert len(surface.of(Line)) == 6 + 5 + 1


def test_points_lie_where_the_axes_say():
    plot = unit_plot()
    for at in ((0, 0), (1, 1), (0.5, 0.25)):
        plot.dot(at, "early", Mark(""))
    plot.bar(0.25, 0.5, 0.5, Ink("early"), "a bar")
    surface = Surface(plot)
    low, high, other = [dot.centre for dot in surface.of(Dot)[::2]]
    assert other == pytest.approx(
        ((low[0] + high[0]) / 2, low[1] - 0.25 * (low[1] - high[1])), abs=0.01
    )
    assert low[0] < high[0]
    assert low[1] > high[1]
    (bar,) = surface.of(Fill)
    assert bar.box[3] == low[1]
    assert bar.box[1] == pytest.approx((low[1] + high[1]) / 2, abs=0.01)
    assert bar.tip == "a bar"


def test_points_cover_names_and_names_cover_lines():
    plot = unit_plot()
    plot.dot((0.5, 0.5), "early", Mark("name"))
    plot.vertical(0.4, "rule")
    plot.line([(0, 0), (1, 1)], Pen("ink"))
    plot.area([(0, 0), (1, 0)], [(0, 1), (1, 1)], Ink("late"))
    kinds = [type(part) for part in Surface(plot).parts]
    assert kinds[-6:] == [Line, Area, Text, Text, Dot, Dot]


def test_labels_do_not_lie_on_each_other():
    plot = unit_plot()
    for number in range(5):
        plot.dot((0.5, 0.5), "ink", Mark(f"point {number}"))
    placed = names(Surface(plot))
    assert len(placed) == 5
    for one, other in itertools.combinations(placed, 2):
        (left, top), (x, y) = sorted((one.at, other.at))
        assert abs(top - y) >= 12 or x - left >= text_width(one.text, one.style.size)


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("above", [True, False])
def test_names_stay_inside_the_axes(at, above):
    plot = unit_plot()
    plot.dot((0, 0), "ink", Mark(""))
    plot.dot((1, 1), "ink", Mark(""))
    plot.dot(at, "ink", Mark("a longer name", above=above))
    surface = Surface(plot)
    (left, bottom), (right, top) = (dot.centre for dot in surface.of(Dot)[:4:2])
    (name,) = names(surface)
    assert left <= name.at[0] < right - 70
    assert top <= name.at[1] <= bottom - name.style.size


def test_a_name_keeps_off_lines_and_points():
    plot = unit_plot()
    plot.line([(0, 0.5), (0.6, 0.5), (0.6, 0)], Pen("ink"))
    plot.dot((0.5, 0.5), "ink", Mark("a name below"))
    plot.dot((0.6, 0.58), "ink", Mark(""))
    surface = Surface(plot)
    (name,) = names(surface)
    (line,) = (line for line in surface.of(Line) if len(line.points) == 3)
    left, right = name.at[0], name.at[0] + text_width(name.text, name.style.size)
    assert name.at[1] > line.points[0][1]
    assert right < line.points[1][0]
    assert left < right


def test_rules_go_from_end_to_end():
    plot = unit_plot()
    plot.vertical(0.5, "upright")
    plot.horizontal(0.5, "level")
    surface = Surface(plot)
    upright, level = [line for line in surface.of(Line) if line.pen.dashed]
    assert upright.points[0][0] == upright.points[1][0]
    assert level.points[0][1] == level.points[1][1]
    assert [text.text for text in names(surface)] == ["upright", "level"]


def test_an_interval_has_two_bars_and_four_caps():
    plot = unit_plot()
    before = len(Surface(plot).of(Line))
    plot.interval_across((0.25, 0.75), 0.5, Pen("other", 2))
    plot.interval_upwards(0.5, (0.4, 0.6), Pen("other", 2))
    lines = [line.points for line in Surface(plot).of(Line)[before:]]
    assert len(lines) == 2 * 3
    across, upwards = lines[0], lines[3]
    assert across[1][0] - across[0][0] == pytest.approx(0.5 * 434, abs=0.1)
    assert upwards[1][1] - upwards[0][1] == pytest.approx(0.2 * 286, abs=0.1)
    for start, end in (lines[1], lines[2]):
        assert start[0] == end[0]
    for start, end in (lines[4], lines[5]):
        assert start[1] == end[1]


def test_a_heading_makes_room_for_itself():
    plain = unit_plot()
    headed = Plot(Axis("x", 0, 1), Axis("y", 0, 1), "test", ("Heading", "many words " * 20))
    assert headed.size[1] > plain.size[1]
    words = Surface(headed).words().splitlines()
    assert words[0] == "Heading"
    assert " ".join(words[1:4]).startswith("many words many")
