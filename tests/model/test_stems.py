from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sacvit_deploy.model.build import random_model
from sacvit_deploy.model.stems import BatchNorm, ConvStem
from sacvit_deploy.model.vit import Backbone
from tests.tiny_models import CF_LV, DENSE_LV


def test_batch_norm_is_torchs_but_for_the_count():
    ours, theirs = BatchNorm(5).double(), nn.BatchNorm2d(5).double()
    x = 3 * torch.randn(4, 5, 6, 6, dtype=torch.float64) + 1
    torch.testing.assert_close(ours.train()(x), theirs.train()(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)
    state = theirs.state_dict()
    del state["num_batches_tracked"]
    torch.testing.assert_close(dict(ours.state_dict()), dict(state), rtol=0, atol=0)


def test_the_folded_stem_computes_the_same_without_batch_norm():
    model = random_model(CF_LV, 0)
    assert isinstance(model, Backbone)
    stem = model.patch_embed.double().eval()
    assert isinstance(stem, ConvStem)
    assert isinstance(stem.bn2, BatchNorm)
    assert stem.bn2.running_var.std() > 0
    image = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        wanted, folded = stem(image), stem.folded()
        np.testing.assert_allclose(folded(image), wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose(folded.folded()(image), wanted, rtol=0, atol=1e-12)
    assert not any(isinstance(module, BatchNorm) for module in folded.modules())
    assert isinstance(stem.bn1, BatchNorm)


def test_the_folded_network_computes_the_same():
    model = random_model(DENSE_LV, 1).double()
    assert isinstance(model, Backbone)
    image = torch.randn(2, 3, *DENSE_LV.image_size, dtype=torch.float64)
    with torch.no_grad():
        folded, wanted = model.folded(), model(image)
        assert isinstance(folded, Backbone)
        np.testing.assert_allclose(folded(image), wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose(folded.folded()(image), wanted, rtol=0, atol=1e-12)
    assert {block.branch_scale for block in model.encoder()} == {0.5}
    assert {block.branch_scale for block in folded.encoder()} == {1.0}
