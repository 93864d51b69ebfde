from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.runtime.result import Result
from sacvit_deploy.visualize.panel_sheet import Panel, PanelLook, PanelSheet
from tests.visualize.surface import Fill, Surface, Text

LIGHT = np.array([[1.0, 0.5, 0.0], [0.0, 0.25, 1.0]])


def sheet(panels: int, pictures: int = 1, name: str | None = "a/cat.jpg") -> PanelSheet:
    result = Result(name, 3, "cat", 0.75, "single", None, ((3, "cat", 0.75),))
    seen = Image.new("RGB", (40, 20), (200, 200, 200))
    look = PanelLook(seen, result, tuple(Panel(f"part {n}", LIGHT) for n in range(panels)))
    return PanelSheet((look,) * pictures, 0.5, "What parts see", "a note")


def test_dark_tokens_are_dark_and_light_ones_are_as_they_are():
    made = sheet(1)
    surface = Surface(made)
    assert len(surface.pictures) == 2
    fills = surface.of(Fill)
    assert [round(1 - fill.ink.opacity / 0.85, 6) for fill in fills] == LIGHT.ravel().tolist()
    boxes = [fill.box for fill in fills]
    left, top, right, bottom = surface.pictures[1]
    assert boxes[0][:2] == (left, top)
    assert boxes[-1][2:] == pytest.approx((right, bottom))


@pytest.mark.parametrize("panels", [1, 8, 9, 16])
@pytest.mark.parametrize("pictures", [1, 3])
def test_everything_is_on_the_sheet(panels, pictures):
    made = sheet(panels, pictures)
    surface = Surface(made)
    width, height = made.size
    assert len(surface.pictures) == pictures * (1 + panels)
    for left, top, right, bottom in surface.pictures:
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
    tops = sorted({box[1] for box in surface.pictures})
    rows = -(-panels // 8)
    assert len(tops) == pictures * (1 + rows)
    assert made.image().size[0] > width


def test_the_answer_and_the_parts_are_named():
    said = [text.text for text in Surface(sheet(2)).of(Text)]
    assert said == ["What parts see", "a note", "cat.jpg: cat, 75.0%", "part 0", "part 1"]
    assert "picture without a name: cat, 75.0%" in [
        text.text for text in Surface(sheet(1, name=None)).of(Text)
    ]
