from __future__ import annotations

import json

import pytest

from sacvit_deploy.runtime.pipeline import Pipeline
from tests.fakes import DENSE, SAC, fake_manifest, fake_opened, random_pictures
from tests.runtime.outcomes import ETA

PICTURES = random_pictures(20)


def make(config=SAC) -> Pipeline:
    return Pipeline(fake_manifest(config, eta=ETA), fake_opened(config))


def test_results_say_what_the_contract_says() -> None:
    for result in make()(PICTURES):
        values = json.loads(json.dumps(result.to_dict()))
        keys = {
            *("image", "class_index", "label", "probability", "stage"),
            *("early_exit_probability", "top5"),
        }
        is_refined = result.stage == "refine"
        assert set(values) == keys | ({"target_tokens"} if is_refined else set())
        assert values["label"] == f"class {values['class_index']}"
        assert values["top5"][0] == [result.class_index, result.label, result.probability]
        shares = [share for _, _, share in values["top5"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        if is_refined:
            assert len(values["target_tokens"]) == SAC.num_targets
            assert values["early_exit_probability"] <= ETA
        else:
            assert result.early_exit_probability == pytest.approx(result.probability)
            assert result.probability > ETA


@pytest.mark.parametrize("classes", [1, 3])
def test_top5_of_fewer_classes(classes) -> None:
    assert len(make(SAC.replace(num_classes=classes))(PICTURES[0]).top5) == classes


def test_a_dense_network_has_a_single_stage() -> None:
    values = make(DENSE)(PICTURES[0]).to_dict()
    assert values["stage"] == "single"
    assert values["early_exit_probability"] is None
    assert "target_tokens" not in values
