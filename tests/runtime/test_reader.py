from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from sacvit_deploy.errors import ImageError
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.reader import PictureReader, name_of
from sacvit_deploy.samples import Sample
from sacvit_deploy.spec import Preprocessing
from tests.fakes import random_pictures

PICTURES = random_pictures(3)
PREPROCESS = Preprocessor(Preprocessing((8, 12)))


@pytest.fixture
def times() -> list[float]:
    return []


@pytest.fixture
def reader(times) -> PictureReader:
    ticks = count()
    return PictureReader(PREPROCESS, lambda: float(next(ticks)), times.append)


def test_every_picture_is_prepared_and_timed(reader, times) -> None:
    arrays, failure = reader.read_all(PICTURES, 0)
    assert failure is None
    np.testing.assert_array_equal(arrays, [PREPROCESS(picture) for picture in PICTURES])
    assert times == [1000.0] * 3


def test_reading_ends_at_the_first_bad_picture_and_names_it(reader, times) -> None:
    arrays, failure = reader.read_all([PICTURES[0], "no such file.png", PICTURES[1]], 40)
    assert len(arrays) == len(times) == 1
    assert failure is not None
    assert "At index 41" in failure.problem
    assert isinstance(failure.__cause__, ImageError)


def test_names_are_the_paths_as_given(tmp_path) -> None:
    assert name_of("a/b.png") == "a/b.png"
    assert name_of(tmp_path / "c.png") == str(tmp_path / "c.png")
    assert name_of(Sample("val/cat/1.jpg", "cat")) == "val/cat/1.jpg"
    assert name_of(PICTURES[0]) is None
