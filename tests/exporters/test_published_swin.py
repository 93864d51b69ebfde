"""Exported graphs compute what the code of STViT-R's authors computed."""

from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.spec import IMAGE, LOGITS
from tests.exporters.graphs import op_counts, read_graph
from tests.published_swin import PublishedSwin


def in_onnx_runtime(bundle, role, image):
    path = bundle.graph_path(bundle.graph(role))
    with_one_thread = SessionOptions(threads=1)
    return OnnxRuntimeSession(path, with_one_thread).run({IMAGE: image})


@pytest.mark.slow
def test_the_logits_are_theirs(shared, made_once, tmp_path):
    published = PublishedSwin.read(shared, "stvitr_swin_cls", tmp_path)
    options = ExportOptions(published.config())
    bundle = made_once(
        "stvitr_cls", lambda path: export_bundle(published.checkpoint, path, options)
    )
    found = in_onnx_runtime(bundle, "single", published.image().numpy())
    np.testing.assert_allclose(found[LOGITS], published["logits"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("picture", range(3))
def test_the_features_are_theirs(picture, shared, made_once, tmp_path):
    published = PublishedSwin.read(shared, "stvitr_swin_backbone", tmp_path)
    height, width = published.meta["image_sizes"][picture]
    options = ExportOptions(published.config((height, width)))
    bundle = made_once(
        f"stvitr_backbone_{picture}",
        lambda path: export_bundle(published.checkpoint, path, options),
    )
    found = in_onnx_runtime(bundle, "backbone", published.image(f"image_{picture}").numpy())
    for name in ("c4", "c5"):
        wanted = published[f"features_{name}_{picture}"]
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=5e-5)


def test_windows_are_gathers_and_constants_are_folded(backbone_bundle):
    counts = op_counts(read_graph(backbone_bundle, "backbone"))
    assert not {"Roll", "Slice", "Expand", "Where", "BatchNormalization", "Shape"} & counts.keys()
    assert counts["HardSwish"] == 2
    config = backbone_bundle.manifest.config
    assert counts["LayerNormalization"] == 2 * config.depth + 3 + 3 + 4  # keys, mergings, c2 to c5
