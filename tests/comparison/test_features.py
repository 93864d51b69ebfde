"""Backbones, which decide nothing, are compared by their features."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sacvit_deploy.comparison.decisions import (
    Decisions,
    Limits,
    agreement_in_words,
    compare_decisions,
)
from sacvit_deploy.comparison.network import of_bundle, of_torch
from sacvit_deploy.comparison.tensors import parity_batches
from sacvit_deploy.comparison.verify import VerifyRequest, verify
from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.samples import sample_pictures
from tests.exporters.precision.conftest import copy_of
from tests.tiny_models import ADAPTED, BACKBONE


def features_of(*values: float) -> Decisions:
    none = np.zeros((len(values), 0), np.float32)
    features = np.array(values, np.float32).reshape(-1, 1, 1, 1)
    return Decisions(none, none, none.astype(np.int64), features={"c2": features})


def test_the_error_is_that_of_the_worst_feature():
    agreement = compare_decisions(features_of(1, 4), features_of(1, 4.1), BACKBONE, 0.5)
    assert agreement.images == 2
    assert agreement.max_tensor_error == pytest.approx(0.025, rel=1e-4)
    assert [missed.limit for missed in Limits.of("fp16", 2, random=True).missed(agreement)] == [
        "max_tensor_error"
    ]
    assert Limits.of("int8", 2, random=True).hold(agreement)


def test_with_gates_the_mean_counts_and_kept_tokens():
    """One of four tokens is decided otherwise, and its features with it."""
    wanted, found = features_of(4, 4, 4, 4), features_of(4, 4, 4, 5)
    masks = np.ones((2, 4, 1, 3), np.uint8)
    masks[1, 3, 0, 0] = 0
    wanted, found = (
        dataclasses.replace(each, kept_mask=mask)
        for each, mask in zip((wanted, found), masks, strict=True)
    )
    agreement = compare_decisions(wanted, found, ADAPTED, 0.5)
    assert agreement.max_tensor_error == pytest.approx(1 / 16)
    assert agreement.target_overlap == pytest.approx(11 / 12)
    words = "features off by 0.062 of their mean value, 91.7% of kept tokens the same"
    assert agreement_in_words(agreement, ADAPTED) == words


def test_a_bundle_agrees_with_its_model(backbone_bundle):
    candidate = of_bundle(backbone_bundle)
    found = verify(of_torch(backbone_bundle), candidate, VerifyRequest(sample_pictures()))
    assert found.passed
    (graph,) = found.graphs
    assert graph.role == "backbone"
    assert found.agreement is not None
    assert (found.agreement.max_tensor_error or 1) < 1e-4
    assert found.to_dict()["max_tensor_error"] == found.agreement.max_tensor_error


def test_half_precision_is_held_to_the_features(backbone_bundle, tmp_path):
    copy = copy_of(backbone_bundle, tmp_path / "half")
    bundle = add_precision(copy, PrecisionRequest("fp16"))
    error = bundle.manifest.precisions["fp16"].agreement.max_tensor_error
    assert error is not None
    assert 1e-5 < error < 0.02


def test_int8_is_refused(backbone_bundle, tmp_path):
    pictures = sample_pictures()[0].parent
    with pytest.raises(PrecisionError, match="a backbone has none"):
        add_precision(backbone_bundle, PrecisionRequest("int8", pictures))


def test_large_pictures_are_compared_in_small_batches():
    assert parity_batches((224, 224)) == (1, 2, 7)
    assert parity_batches((800, 1344)) == (1, 2)
