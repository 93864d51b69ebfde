"""Calls of engine sessions on the fakes, and what they should give."""

from __future__ import annotations

import numpy as np

from sacvit_deploy.engines.session import Rows, SessionOptions
from sacvit_deploy.spec import COARSE_EMBEDDINGS, COARSE_FEATURES, IMAGE, SCORE
from tests.fakes import SAC, FakeSession

HANDED_ON = (SCORE, COARSE_EMBEDDINGS, COARSE_FEATURES)
PLAIN = SessionOptions(cuda_graphs=False)


def early_exit(workplace, backend="tensorrt", options=None, **bundle):
    opened = workplace.open(workplace.bundle(backend, **bundle), backend, options)
    return opened.sessions["early_exit"]


def wanted(images):
    return FakeSession(SAC, "early_exit").run({IMAGE: images})


def refined(images):
    given = {name: wanted(images)[name] for name in HANDED_ON}
    return FakeSession(SAC, "refine", "graph").run({IMAGE: images, **given})


def rows_of(handles, rows):
    return {name: Rows(handle, np.array(rows)) for name, handle in handles.items()}


def same(found, images) -> None:
    expected = wanted(images)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.float32
