"""Exported graphs compute what the authors of SViT computed, in every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.spec import IMAGE, KEPT, KEPT_MASK, LOGITS, OVERFLOW
from tests.exporters.graphs import session
from tests.published import Published


def fields_of(mode: str, published: Published) -> dict[str, Any]:
    largest = tuple(published["kept_counts"].max(0).tolist())
    return {"mode": mode, "capacity": largest if mode == "capacity" else ()}


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory) -> Published:
    return Published.read(shared, "svit_cls", tmp_path_factory.mktemp("svit_cls"))


@pytest.mark.parametrize("mode", ["masked", "exact", "capacity"])
def test_logits_and_gates_are_theirs(published, made_once, mode):
    config = published.config.replace(**fields_of(mode, published))
    options = ExportOptions(config, parity_batches=(2,))
    bundle = made_once(
        f"svit_{mode}", lambda path: export_bundle(published.checkpoint, path, options)
    )
    run = session(bundle, "single").run
    for rows in (slice(0, 1), slice(1, 2)) if mode == "exact" else (slice(0, 1), slice(0, 3)):
        found = run({IMAGE: published.image[rows]})
        np.testing.assert_allclose(found[LOGITS], published["logits"][rows], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found[KEPT_MASK], published["selected"][rows])
        np.testing.assert_array_equal(found[KEPT], published["kept_counts"][rows])
        if mode == "capacity":
            assert not found[OVERFLOW].any()
