"""The dense baseline against DeiT written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.model.build import build_model


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def naive_deit(state: dict[str, np.ndarray], image: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Logits (C,) of one image (3, H, W), as DeiT's paper and code have it."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"])

    patch, head_dim = config.patch_size, config.embed_dim // config.num_heads
    kernel = state["patch_embed.proj.weight"].reshape(config.embed_dim, -1)
    tokens = [state["cls_token"][0, 0]]
    for row in range(0, image.shape[1], patch):
        for column in range(0, image.shape[2], patch):
            pixels = image[:, row : row + patch, column : column + patch].reshape(-1)
            tokens.append(kernel @ pixels + state["patch_embed.proj.bias"])
    x = np.stack(tokens) + state["pos_embed"][0]
    for block in (f"blocks.{i}" for i in range(config.depth)):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(len(x), 3, config.num_heads, head_dim).transpose(1, 2, 0, 3)
        scores = np.exp(np.einsum("hid,hjd->hij", q, k) / math.sqrt(head_dim))
        attended = np.einsum("hij,hjd->ihd", scores / scores.sum(-1, keepdims=True), v)
        x = x + linear(attended.reshape(len(x), -1), f"{block}.attn.proj")
        hidden = gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2")
    logits: np.ndarray = linear(norm(x, "norm")[0], "head")
    return logits


@pytest.mark.parametrize(("size", "patch"), [((24, 24), 8), ((16, 40), 8), ((18, 12), 6)])
def test_equals_naive_deit(size, patch):
    config = ModelConfig("vit", size, patch, 24, 3, 3, num_classes=7)
    torch.manual_seed(0)
    model = build_model(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = model(image).numpy()
    wanted = np.stack([naive_deit(state, one, config) for one in image.numpy()])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    assert np.abs(found[0] - found[1]).max() > 1e-2
