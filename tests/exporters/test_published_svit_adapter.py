"""Exported graphs compute what the authors of SViT computed for detection, in every mode."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.spec import IMAGE, KEPT, KEPT_MASK, OVERFLOW
from tests.exporters.graphs import read_graph, session
from tests.published import Published

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory) -> Published:
    name = "svit_det_adapter"
    return Published.read(shared, name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module", params=["masked", "exact", "capacity"])
def bundle(request, published, made_once) -> Bundle:
    largest = tuple(published["adapter/selected"].sum(2).max(0).tolist())
    capacity = largest if request.param == "capacity" else ()
    config = published.config.replace(mode=request.param, capacity=capacity)
    options = ExportOptions(config, parity_batches=(2,))
    name = f"svit_adapter_{request.param}"
    made: Bundle = made_once(name, lambda path: export_bundle(published.checkpoint, path, options))
    return made


def test_features_and_gates_are_theirs(published, bundle):
    run, mode = session(bundle, "backbone").run, bundle.manifest.config.gating.mode
    for rows in (slice(0, 1), slice(1, 2)) if mode == "exact" else (slice(0, 1), slice(0, 2)):
        found = run({IMAGE: published.image[rows]})
        stored = {
            "features_f1_every4": found["c2"][:, :, ::4, ::4],
            "features_f2_every2": found["c3"][:, :, ::2, ::2],
            "features_f3": found["c4"],
            "features_f4": found["c5"],
        }
        for name, feature in stored.items():
            wanted = published[f"adapter/{name}"][rows]
            np.testing.assert_allclose(feature, wanted, rtol=0, atol=5e-5)
        selected = published["adapter/selected"][rows]
        np.testing.assert_array_equal(found[KEPT_MASK], selected)
        np.testing.assert_array_equal(found[KEPT], selected.sum(2))
        if mode == "capacity":
            assert not found[OVERFLOW].any()


def test_constants_are_folded(bundle):
    """Sizes of cells, gammas, level embeddings and norms of convolutions are in the weights."""
    counts = Counter(node.op_type for node in read_graph(bundle, "backbone").graph.node)
    # Four injectors read three pictures each, six extractors the tokens.
    assert counts["GridSample"] == 4 * 3 + 6
    # Of c2 to c5, whose sums no convolution ends.
    assert counts["BatchNormalization"] == 4
    assert not {"Expand", "GatherElements", "Slice"} & counts.keys()
