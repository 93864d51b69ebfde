from __future__ import annotations

import pytest
import torch

from sacvit_deploy.families.config import PRESETS, preset
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.preset_fit import presets_that_fit


def shapes(config) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_model(config).state_dict()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_its_own_weights(name):
    fits = presets_that_fit(shapes(PRESETS[name]))
    assert fits[name] == PRESETS[name]
    own = shapes(PRESETS[name])
    for other, config in fits.items():
        found = shapes(config)
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in own.items()}, other


def test_the_number_of_classes_is_that_of_the_weights():
    config = preset("stvit_deit_tiny_patch16_224").replace(num_classes=11)
    assert presets_that_fit(shapes(config)) == {"stvit_deit_tiny_patch16_224": config}


def test_other_weights_fit_nothing():
    wide = preset("deit_tiny_patch16_224").replace(embed_dim=240)
    assert presets_that_fit(shapes(wide)) == {}
    assert presets_that_fit({"head.weight": torch.zeros(3)}) == {}
    assert presets_that_fit({}) == {}
