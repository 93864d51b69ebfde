from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from sacvit_deploy.families.config import preset
from sacvit_deploy.families.swin import swin_stages
from sacvit_deploy.model.build import build_model, random_model

DEMO = preset("swin_demo_128")
FEATURES = DEMO.replace(task="features", image_size=(76, 100))


def strong(config, seed=0):
    model = random_model(config, seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return model


def by_definition(model, image):
    """The paper's network with padding, roll, windows and merging, one step after the other."""
    config = model.config
    x = model.patch_embed(image)
    for stage, layer in zip(swin_stages(config), model.layers, strict=True):
        x = x.reshape(len(x), *stage.grid, -1)
        for number, block in enumerate(layer.blocks):
            whole = min(stage.grid) <= config.swin.window and config.swin.task == "classes"
            shift = 0 if number % 2 == 0 or whole else config.swin.window // 2
            x = x + attended(block.attn, block.norm1(x), config.swin.window, shift)
            x = x + block.mlp(block.norm2(x))
        yield x
        if layer.downsample is not None:
            rows, columns = stage.grid
            x = functional.pad(x, (0, 0, 0, columns % 2, 0, rows % 2))
            parts = [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x = layer.downsample.reduction(layer.downsample.norm(torch.cat(parts, -1)))


def attended(attn, x, side, shift):
    rows, columns = x.shape[1:3]
    x = functional.pad(x, (0, 0, 0, -columns % side, 0, -rows % side))
    regions = torch.zeros(x.shape[1:3])
    for i, down in enumerate((slice(-side), slice(-side, -shift), slice(-shift, None))):
        for j, right in enumerate((slice(-side), slice(-side, -shift), slice(-shift, None))):
            regions[down, right] = 3 * i + j
    x = torch.roll(x, (-shift, -shift), (1, 2))
    whole = x.shape
    x, region = windows(x, side), windows(regions[None, ..., None], side)[..., 0]
    qkv = attn.qkv(x).reshape(len(x), side**2, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = qkv[0] * qkv[0].shape[-1] ** -0.5 @ qkv[1].transpose(-1, -2) + bias(attn, side)
    if shift:
        apart = (region[:, :, None] != region[:, None]) * -100.0
        scores = scores + apart.repeat(whole[0], 1, 1)[:, None]
    x = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2)
    x = attn.proj(x).reshape(whole[0], whole[1] // side, whole[2] // side, side, side, -1)
    x = torch.roll(x.transpose(2, 3).reshape(whole), (shift, shift), (1, 2))
    return x[:, :rows, :columns]


def windows(x, side):
    x = x.reshape(len(x), x.shape[1] // side, side, x.shape[2] // side, side, -1)
    return x.transpose(2, 3).reshape(-1, side**2, x.shape[-1])


def bias(attn, side):
    table = attn.relative_position_bias_table.reshape(2 * side - 1, 2 * side - 1, -1)
    found = torch.zeros(attn.num_heads, side**2, side**2, dtype=torch.float64)
    for a, b in np.ndindex(side**2, side**2):
        down, right = a // side - b // side, a % side - b % side
        found[:, a, b] = table[down + side - 1, right + side - 1]
    return found


@torch.no_grad()
def test_logits_are_those_of_the_definition():
    model, image = strong(DEMO), torch.rand(2, 3, 128, 128, dtype=torch.float64)
    *_, last = by_definition(model, image)
    wanted = model.head(model.norm(last).mean((1, 2)))
    torch.testing.assert_close(model(image), wanted, rtol=0, atol=1e-9)


@torch.no_grad()
def test_features_of_padded_windows_are_those_of_the_definition():
    model, image = strong(FEATURES), torch.rand(2, 3, 76, 100, dtype=torch.float64)
    found = model(image)
    assert [tuple(c.shape[1:]) for c in found] == [
        (48, 19, 25),
        (96, 10, 13),
        (192, 5, 7),
        (384, 3, 4),
    ]
    for number, tokens in enumerate(by_definition(model, image)):
        wanted = model.get_submodule(f"norm{number}")(tokens).permute(0, 3, 1, 2)
        torch.testing.assert_close(found[number], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", [DEMO, FEATURES], ids=["classes", "features"])
@torch.no_grad()
def test_folding_changes_nothing(config):
    model = strong(config)
    image = torch.rand(1, 3, *config.image_size, dtype=torch.float64)
    folded = model.folded()
    for one, other in zip(model(image), folded(image), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)
    assert folded.layers[0].blocks[0].attn.relative_position_bias_table.shape == (3, 16, 16)
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.shape == (49, 3)


def test_each_block_ends_in_two_layers():
    ends = build_model(DEMO).branch_ends()
    assert len(ends) == DEMO.depth == 12
    assert [layer.out_features for layer in ends[-1]] == [384, 384]


# Millions of parameters as the paper has them (table 1).
@pytest.mark.parametrize(
    ("name", "millions"), [("swin_tiny_224", 29), ("swin_small_224", 50), ("swin_base_224", 88)]
)
def test_size_of_the_published_networks(name, millions):
    with torch.device("meta"):
        model = build_model(preset(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.8)
