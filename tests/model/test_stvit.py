"""STViT against its equations written out in numpy, one window and one token at a time."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from sacvit_deploy.families.stvit import pooling_windows
from sacvit_deploy.model.build import build_model, random_model
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from sacvit_deploy.model.stvit import IntraWindowPooling, SemanticViT
from tests.model.stored_weights import weights_of, write
from tests.model.test_vit import gelu, layer_norm
from tests.tiny_models import DENSE, SEMANTIC, strong_model

OTHERS = {
    "default": SEMANTIC,
    "mean": SEMANTIC.replace(pooling="mean"),
    "three layers": SEMANTIC.replace(layers=3, first_block=0),
    "without centers": SEMANTIC.replace(global_centers=False),
    "adaptive windows": SEMANTIC.replace(side=5),
}


def _softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class NaiveSTViT:
    """The network on one image, from weights as arrays."""

    def __init__(self, state: dict[str, np.ndarray], config) -> None:
        self.state, self.config = state, config

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x, name):
        return layer_norm(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def attend(self, q, k, v):
        """Merged heads, and the mean of their weights."""
        merged, shares = [], []
        width = self.config.embed_dim // self.config.num_heads
        for head in range(self.config.num_heads):
            part = slice(head * width, (head + 1) * width)
            weights = _softmax(q[:, part] @ k[:, part].T / np.sqrt(width))
            merged.append(weights @ v[:, part])
            shares.append(weights)
        return np.concatenate(merged, axis=1), np.mean(shares, axis=0)

    def finish(self, x, merged, name):
        x = x + self.linear(merged, f"{name}.attn.proj")
        hidden = gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def block(self, x, index):
        name = f"blocks.{index}"
        qkv = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        return self.finish(x, self.attend(*np.split(qkv, 3, axis=1))[0], name)

    def generate(self, queries, others, index):
        name = f"blocks.{index}"
        q = self.linear(self.norm(queries, f"{name}.norm1"), f"{name}.attn.q")
        kv = self.linear(self.norm(others, f"{name}.norm1"), f"{name}.attn.kv")
        merged, shares = self.attend(q, *np.split(kv, 2, axis=1))
        return self.finish(queries, merged, name), shares

    def pool(self, x):
        windows = pooling_windows(self.config.fine_grid, self.config.semantic_tokens.side)
        centers = []
        for cells in windows.cells:
            values = np.stack([x[c] if c >= 0 else np.zeros_like(x[0]) for c in cells])
            scores = self.scores(values, windows.size)
            scores = np.where(np.array(cells) < 0, scores - 100, scores)
            centers.append(_softmax(scores) @ values)
        return np.stack(centers)

    def scores(self, values, size):
        scores = np.zeros(len(values))
        if self.config.semantic_tokens.pooling == "mean":
            return scores
        framed = np.zeros((size[0] + 2, size[1] + 2, values.shape[1]))
        framed[1:-1, 1:-1] = values.reshape(*size, -1)
        kernel = self.state["pooling.conv.weight"][:, 0]
        for i in range(len(values)):
            r, c = divmod(i, size[1])
            mixed = np.einsum("rcd,drc->d", framed[r : r + 3, c : c + 3], kernel)
            hidden = gelu(self.norm(mixed + self.state["pooling.conv.bias"], "pooling.norm"))
            scores[i] = self.state["pooling.weight.weight"][0] @ hidden
        return scores

    def embed(self, image):
        patch = self.config.patch_size
        kernel = self.state["patch_embed.proj.weight"].reshape(self.config.embed_dim, -1)
        tokens = [
            kernel @ image[:, r : r + patch, c : c + patch].reshape(-1)
            for r in range(0, image.shape[1], patch)
            for c in range(0, image.shape[2], patch)
        ]
        return np.stack(tokens) + self.state["patch_embed.proj.bias"] + self.state["pos_embed"][0]

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (C,) and attention (S, N) of an image (3, H, W)."""
        semantic, x = self.config.semantic_tokens, self.embed(image)
        for index in range(semantic.first_block):
            x = self.block(x, index)
        s, _ = self.generate(self.pool(x), x, semantic.first_block)
        for index in range(semantic.first_block + 1, semantic.first_block + semantic.layers):
            both = np.concatenate([s, x])
            if index == semantic.first_block + 1 and semantic.global_centers:
                s = s + self.state["global_centers"][0]
            s, shares = self.generate(s, both, index)
        for index in range(semantic.first_block + semantic.layers, self.config.depth):
            s = self.block(s, index)
        logits = self.linear(self.norm(s, "norm").mean(axis=0), "head")
        return logits, shares[:, semantic.tokens :]


@torch.no_grad()
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_the_network_computes_its_equations(config):
    model = strong_model(config).double()
    assert isinstance(model, SemanticViT)
    naive = NaiveSTViT({name: each.numpy() for name, each in model.state_dict().items()}, config)
    images = torch.randn(2, 3, *config.image_size, dtype=torch.float64)
    out = model.forward_with_attention(images)
    for image, logits, attention in zip(images.numpy(), out.logits, out.attention, strict=True):
        wanted, shares = naive(image)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-9)
        np.testing.assert_allclose(attention, shares, rtol=0, atol=1e-12)
    assert (out.logits[0] - out.logits[1]).abs().max() > 1e-2


@torch.no_grad()
def test_the_folded_network_computes_the_same():
    model = random_model(SEMANTIC, 1).double()
    image = torch.randn(2, 3, *SEMANTIC.image_size, dtype=torch.float64)
    folded = model.folded()
    np.testing.assert_allclose(folded(image), model(image), rtol=0, atol=1e-12)
    np.testing.assert_allclose(folded.folded()(image), model(image), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_dense_deit_starts_with_mean_pooling(tmp_path, caplog):
    config = DENSE.replace(family="stvit", semantic=SEMANTIC.semantic, depth=SEMANTIC.depth)
    dense = weights_of(DENSE.replace(depth=SEMANTIC.depth))
    with caplog.at_level(logging.WARNING):
        found = Checkpoint.read(write(tmp_path, dense)).weights(config)
    assert "start for training" in caplog.text
    model = build_model(config)
    model.load_state_dict(found, strict=True)
    assert torch.equal(found["pos_embed"], dense["pos_embed"][:, 1:])
    assert not found["global_centers"].any()
    for index in SEMANTIC.semantic_tokens.generating:
        parts = (found[f"blocks.{index}.attn.{part}.weight"] for part in ("q", "kv"))
        assert torch.equal(torch.cat(list(parts)), dense[f"blocks.{index}.attn.qkv.weight"])
    assert isinstance(model, SemanticViT)
    x = torch.randn(2, config.num_fine_tokens, config.embed_dim)
    means = model.pooling(x)
    for index, cells in enumerate(pooling_windows(config.fine_grid, 3).cells):
        inside = [cell for cell in cells if cell >= 0]
        torch.testing.assert_close(means[:, index], x[:, inside].mean(dim=1))
    assert torch.equal(found["pooling.conv.weight"], _again(tmp_path, dense, config))


def _again(tmp_path, dense, config) -> torch.Tensor:
    return Checkpoint.read(write(tmp_path, dense)).weights(config)["pooling.conv.weight"]


def test_the_start_can_learn(tmp_path):
    dense = weights_of(DENSE.replace(depth=SEMANTIC.depth))
    config = DENSE.replace(family="stvit", semantic=SEMANTIC.semantic, depth=SEMANTIC.depth)
    model = Checkpoint.read(write(tmp_path, dense)).model(config)
    model(torch.randn(2, 3, *config.image_size)).square().sum().backward()
    assert isinstance(model, SemanticViT)
    assert isinstance(model.pooling, IntraWindowPooling)
    for learned in (model.pooling.weight.weight, model.global_centers):
        assert learned.grad is not None
        assert learned.grad.abs().max() > 0


def test_another_resolution_is_interpolated(tmp_path):
    larger = SEMANTIC.replace(image_size=(48, 64))
    save_checkpoint(tmp_path / "small.safetensors", weights_of(SEMANTIC), SEMANTIC)
    found = Checkpoint.read(tmp_path / "small.safetensors").weights(larger)
    assert found["pos_embed"].shape == (1, larger.num_fine_tokens, larger.embed_dim)
    build_model(larger).load_state_dict(found, strict=True)
