from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sacvit_deploy.comparison.network import Network, of_bundle
from sacvit_deploy.comparison.tensors import check_parity, compare_tensors, random_pixels
from sacvit_deploy.comparison.torch_network import torch_network
from sacvit_deploy.errors import ParityError
from sacvit_deploy.families.config import preset_preprocessing
from sacvit_deploy.records import PROBABILITIES, TensorParity
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import IMAGE, KEPT_MASK
from tests.tiny_models import ADAPTED


def measured(bundle, model, batches=(3,)) -> list[TensorParity]:
    preprocessing = bundle.manifest.preprocessing
    pixels = (random_pixels(preprocessing.crop, batch) for batch in batches)
    return compare_tensors(torch_network(model, preprocessing), of_bundle(bundle), pixels)


def changed(model, name: str, index: int = 0, by: float = 0.5):
    """A copy with one wrong number in one weight."""
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.get_parameter(name).view(-1)[index] += by
    return wrong


def test_every_output_is_measured_at_every_batch(sac_graph, sac_model):
    records = measured(sac_graph, sac_model, (1, 4))
    check_parity(records)
    wanted = {
        ("early_exit", name, batch)
        for name in ("logits", "score", "coarse_embeddings", "coarse_features", PROBABILITIES)
        for batch in (1, 4)
    }
    wanted |= {
        ("refine", name, batch)
        for name in ("logits", "target_index", PROBABILITIES)
        for batch in (1, 4)
    }
    assert {(r.role, r.tensor, r.batch) for r in records} == wanted
    # Not zero either: two runtimes, so something was really compared.
    assert 0 < max(r.relative_error for r in records) < 1e-4


@pytest.mark.parametrize(
    "name", ["sac_host", "sac_graph", "other_graph", "lv_pixels", "dense_bundle"]
)
def test_the_record_is_in_the_bundle(name, request):
    bundle = request.getfixturevalue(name)
    records = bundle.manifest.parity
    check_parity(records)
    assert {record.batch for record in records} == {1, 2, 7}
    assert {record.role for record in records} == {g.role for g in bundle.manifest.graphs}
    assert all(record.max_abs_error < 1e-4 for record in records if record.tensor == PROBABILITIES)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ("fusion.mlp.fc2.bias", r"The refine graph .* Worst tensor: (logits|probabilities)"),
        ("pos_embed_coarse", r"The early_exit graph .* Worst tensor: coarse_embeddings"),
        ("head.bias", r"Worst tensor: (logits|probabilities) at batch 3, by 0\.\d+"),
        ("blocks.2.mlp.fc1.bias", "Worst tensor: [a-z]+ at batch 3"),
    ],
)
def test_one_wrong_number_stops_the_export(sac_host, sac_model, weight, says):
    # Row 0 of the position table belongs to the class token, which is handed to nobody.
    index = 30 if weight == "pos_embed_coarse" else 0
    records = measured(sac_host, changed(sac_model, weight, index))
    with pytest.raises(ParityError, match=says):
        check_parity(records)


def test_a_value_that_is_not_finite_is_infinitely_wrong(sac_host, sac_model):
    records = measured(sac_host, changed(sac_model, "head.bias", by=math.nan))
    assert max(record.max_abs_error for record in records) == math.inf
    assert max(record.relative_error for record in records) == math.inf
    with pytest.raises(ParityError, match="by inf"):
        check_parity(records)


@pytest.mark.parametrize(
    ("tensor", "absolute", "relative", "fine"),
    [
        (PROBABILITIES, 0.9e-4, 1.0, True),
        (PROBABILITIES, 1.1e-4, 0.0, False),
        ("logits", 9.0, 0.9e-3, True),
        ("logits", 0.0, 1.1e-3, False),
    ],
)
def test_tolerances(tensor, absolute, relative, fine):
    records = [
        TensorParity("single", "logits", 1, 0.0, 0.0),
        TensorParity("single", tensor, 2, absolute, relative),
    ]
    if fine:
        check_parity(records)
    else:
        with pytest.raises(ParityError, match=f"Worst tensor: {tensor} at batch 2"):
            check_parity(records)


def test_pictures_are_random_and_the_same_every_time():
    pixels = random_pixels((6, 8), 4)
    assert pixels.shape == (4, 3, 6, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(random_pixels((6, 8), 4), pixels)
    assert not np.array_equal(random_pixels((6, 8), 5)[:4], pixels)


class _Gated:
    """A backbone's graph that says the same of every picture."""

    provider = "made up"

    def __init__(self, feature: NDArray[np.float32], mask: list[int]) -> None:
        self.feature, self.mask = feature, np.array([[mask]], np.uint8)

    def run(self, feeds: Any) -> dict[str, NDArray[Any]]:
        count = len(feeds[IMAGE])
        return {"c4": np.repeat(self.feature, count, 0), KEPT_MASK: np.repeat(self.mask, count, 0)}

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(("mask", "wanted"), [([1, 1, 0, 1], 0.3), ([1, 1, 1, 1], 0.1)])
def test_where_no_gates_agree_the_mean_counts(mask, wanted):
    ones = np.ones((1, 1, 1, 3), np.float32)
    other = ones + np.array([0, 0, 0.3], np.float32)
    preprocess = Preprocessor(preset_preprocessing(ADAPTED))
    reference, candidate = (
        Network("made up", ADAPTED, preprocess, {"backbone": _Gated(*each)})
        for each in ((ones, [1, 1, 0, 1]), (other, mask))
    )
    records = compare_tensors(reference, candidate, [random_pixels((64, 96), 2)])
    found = {record.tensor: record for record in records}
    assert found["c4"].max_abs_error == pytest.approx(0.3)
    assert found["c4"].relative_error == pytest.approx(wanted)
    assert found[KEPT_MASK].relative_error == (0 if wanted == 0.3 else 0.25)
