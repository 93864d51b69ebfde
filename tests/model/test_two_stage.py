"""The two-stage forward: mapping, selection, score, clusters, shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.model import attention
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.two_stage import (
    FeatureFusion,
    TokenSelection,
    TwoStageViT,
    fine_index,
    halve_image,
    resize_position_table,
    select_tokens,
)
from sacvit_deploy.model.vit import Block, VisionTransformer

BOTH_UPDATES = pytest.mark.parametrize("cls_update", ["joint", "mean"])


def strong(config: ModelConfig, **options) -> TwoStageViT:
    """Random weights far from the initial ones, where attention is nearly uniform."""
    torch.manual_seed(0)
    model = TwoStageViT(config, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def pictures(config: ModelConfig, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, *config.image_size, generator=generator)


@torch.no_grad()
def refined(model: TwoStageViT, image: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(image).refined_logits
    return logits


# Eq. 11


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (9, 9), (2, 5), (5, 2), (1, 3), (3, 1)])
def test_children_are_the_four_cells_under_a_coarse_cell(rows, columns):
    fine = np.arange(4 * rows * columns).reshape(2 * rows, 2 * columns)
    wanted = [
        fine[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].ravel()
        for r, c in itertools.product(range(rows), range(columns))
    ]
    found = fine_index(torch.arange(rows * columns)[None], columns)[0].numpy()
    np.testing.assert_array_equal(found, np.concatenate(wanted))
    np.testing.assert_array_equal(np.sort(found), fine.ravel())


# Selection


def test_selection_orders_by_score_and_leaves_nobody_out(tiny):
    score = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    selection = select_tokens(score, tiny)
    order = torch.cat([selection.target, selection.non_target], dim=1)
    assert selection.target.shape == (4, 8)
    assert selection.fine.shape == (4, 32)
    assert (torch.gather(score, 1, order).diff(dim=1) <= 0).all()
    assert (order.sort(dim=1).values == torch.arange(16)).all()


def test_of_equal_scores_the_lowest_index_wins(tiny):
    score = torch.tensor([[0.0] * 16, [0.0, 1.0] * 8, [float(i < 4) for i in range(16)]])
    selection = select_tokens(score, tiny)
    assert selection.target.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 3, 5, 7, 9, 11, 13, 15],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ]
    assert selection.non_target[1].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_number_of_targets_can_be_given(tiny):
    selection = select_tokens(torch.rand(2, 16), tiny, num_targets=16)
    assert selection.non_target.shape == (2, 0)
    assert selection.fine.sort(dim=1).values.tolist() == [list(range(64))] * 2


# Score


@pytest.mark.parametrize("start", ["zero", "first"])
@pytest.mark.parametrize("first", [0, 2, 3])
def test_score_is_the_moving_average_of_class_attention(tiny, start, first):
    config = tiny.replace(score_start=start, score_first_block=first, score_beta=0.7)
    model = strong(config)
    image = pictures(config)
    with torch.no_grad():
        positions = model.coarse_positions()
        x = model.with_class_token(
            positions, model.patch_embed(halve_image(image)) + positions[:, 1:]
        )
        matrices = []
        for block in model.blocks:
            assert isinstance(block, Block)
            qkv = block.attn.qkv(block.norm1(x)).reshape(3, 17, 3, 3, 8)
            q, k, _ = qkv.permute(2, 0, 3, 1, 4)
            matrices.append(torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, dim=-1))
            x = block(x)
        found = model.early_exit(image).score
    average = matrices[first] if start == "first" else 0.3 * matrices[first]
    for matrix in matrices[first + 1 :]:
        average = 0.7 * average + 0.3 * matrix
    torch.testing.assert_close(found, average.mean(dim=1)[:, 0, 1:], rtol=0, atol=1e-6)


# Clusters


@BOTH_UPDATES
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_masked_network_equals_split_network(tiny, cls_update, dtype, atol):
    config = tiny.replace(cls_update=cls_update)
    image = pictures(config).to(dtype)
    masked = refined(strong(config, cluster_kernel="masked").to(dtype), image)
    split = refined(strong(config, cluster_kernel="split").to(dtype), image)
    scale = masked.abs().max()
    torch.testing.assert_close(masked / scale, split / scale, rtol=0, atol=atol)
    joint = refined(strong(config.replace(attention="joint")).to(dtype), image)
    assert (masked - joint).abs().max() > 1e-2 * scale


def test_both_class_updates_differ(tiny):
    image = pictures(tiny)
    joint, mean = (refined(strong(tiny.replace(cls_update=u)), image) for u in ("joint", "mean"))
    assert (joint - mean).abs().max() > 1e-3


@BOTH_UPDATES
def test_without_the_mask_it_is_the_joint_network(tiny, cls_update, monkeypatch):
    image = pictures(tiny)
    joint = refined(strong(tiny.replace(attention="joint")), image)
    original = attention.cluster_mask
    monkeypatch.setattr(attention, "cluster_mask", lambda *a: torch.zeros_like(original(*a)))
    unmasked = refined(strong(tiny.replace(cls_update=cls_update)), image)
    torch.testing.assert_close(unmasked, joint, rtol=1e-5, atol=1e-5)


def test_with_every_token_refined_there_is_one_cluster(tiny):
    image = pictures(tiny)
    results = []
    for kind in ("clustered", "joint"):
        model = strong(tiny.replace(attention=kind))
        with torch.no_grad():
            coarse = model.early_exit(image)
            everything = select_tokens(coarse.score, tiny, num_targets=16)
            results.append(model.refine(image, coarse, everything))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_order_inside_a_cluster_does_not_matter(tiny):
    model, image = strong(tiny), pictures(tiny)
    with torch.no_grad():
        result = model(image)
        chosen = result.selection
        target, other = chosen.target.flip(1), chosen.non_target.flip(1)
        turned = TokenSelection(target, other, fine_index(target, 4))
        found = model.refine(image, result.early_exit, turned)
    torch.testing.assert_close(found, result.refined_logits, rtol=1e-5, atol=1e-5)


# What enters the second stage


@pytest.mark.parametrize("source", ["embedding", "final"])
def test_non_targets_are_reused(tiny, source):
    model = strong(tiny.replace(non_target_source=source))
    image = pictures(tiny)
    with torch.no_grad():
        result = model(image)
        sequence = model.refine_sequence(image, result.early_exit, result.selection)
    early = result.early_exit
    tokens = early.embeddings if source == "embedding" else early.features
    rows = torch.arange(3)[:, None]
    assert torch.equal(sequence[:, 33:], tokens[rows, result.selection.non_target])
    assert torch.equal(sequence[0, 0], (model.cls_token + model.pos_embed_fine[:, :1])[0, 0])


def test_fusion_copies_a_token_to_its_four_children(tiny):
    torch.manual_seed(0)
    fusion = FeatureFusion(tiny)
    features = torch.randn(2, 3, 24)
    fused = fusion(features)
    assert fused.shape == (2, 12, 24)
    for child in range(4):
        torch.testing.assert_close(fused[:, child::4], fusion.mlp(fusion.norm(features)))


# Shapes, batches


@pytest.mark.parametrize(
    ("size", "patch", "grid"),
    [((32, 32), 4, (4, 4)), ((32, 64), 8, (2, 4)), ((84, 56), 14, (3, 2)), ((16, 48), 2, (4, 12))],
)
def test_any_size_that_the_patches_divide(size, patch, grid):
    stages = TwoStageConfig(score_first_block=0)
    config = ModelConfig("sac_vit", size, patch, 12, 2, 2, num_classes=3, two_stage=stages)
    assert config.coarse_grid == grid
    model = strong(config)
    with torch.no_grad():
        result = model(pictures(config, batch=2))
    tokens, targets = config.num_coarse_tokens, config.num_targets
    assert result.early_exit.logits.shape == result.refined_logits.shape == (2, 3)
    assert result.early_exit.score.shape == (2, tokens)
    assert result.early_exit.embeddings.shape == (2, tokens, 12)
    assert result.early_exit.features.shape == (2, tokens, 12)
    assert result.selection.fine.shape == (2, 4 * targets)
    assert result.refined_logits.isfinite().all()


def test_a_batch_is_its_images_in_any_order(tiny):
    model, image = strong(tiny), pictures(tiny, batch=4)
    order = [2, 0, 3, 1]
    whole = refined(model, image)
    single = torch.cat([refined(model, one[None]) for one in image])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(refined(model, image[order]), whole[order], rtol=1e-5, atol=1e-5)


def test_build_model_follows_the_family(tiny, tiny_dense):
    assert isinstance(build_model(tiny), TwoStageViT)
    assert isinstance(build_model(tiny_dense), VisionTransformer)


# Resampling


def test_halving_aligns_the_corners():
    image = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = halve_image(image)[0, 0].numpy()
    pixels = image[0, 0].numpy()
    columns = np.linspace(0, 7, 4)
    across = np.stack([np.interp(columns, np.arange(8), row) for row in pixels])
    rows = np.linspace(0, 5, 3)
    wanted = np.stack([np.interp(rows, np.arange(6), column) for column in across.T], axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_resized_table_keeps_the_class_row_and_constants():
    table = torch.ones(1, 1 + 6 * 4, 5)
    table[:, 0] = 7
    resized = resize_position_table(table, (6, 4), (3, 2))
    assert resized.shape == (1, 7, 5)
    assert (resized[:, 0] == 7).all()
    torch.testing.assert_close(resized[:, 1:], torch.ones(1, 6, 5))


def test_resized_table_is_row_major():
    rows = torch.arange(4.0)[:, None].expand(4, 6).reshape(1, 24, 1)
    resized = resize_position_table(torch.cat([rows[:, :1], rows], dim=1), (4, 6), (2, 3))
    grid = resized[0, 1:, 0].reshape(2, 3)
    assert (grid[0] == grid[0, 0]).all()
    assert grid[1, 0] > grid[0, 0]


def test_one_table_serves_both_stages(tiny):
    model = strong(tiny.replace(position_tables=1))
    assert "pos_embed_coarse" not in model.state_dict()
    wanted = resize_position_table(model.pos_embed_fine, (8, 8), (4, 4))
    assert torch.equal(model.coarse_positions(), wanted)
    assert refined(model, pictures(tiny)).isfinite().all()
