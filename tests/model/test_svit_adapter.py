from __future__ import annotations

import pytest
import torch

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from sacvit_deploy.model.gating import Gate
from sacvit_deploy.model.svit_adapter import SelectiveAdapter
from sacvit_deploy.model.two_stage import resize_position_table
from tests.tiny_models import ADAPTED, strong_adapted

TOKENS = ADAPTED.num_fine_tokens
PREFIX = "TransformerEncoderLayer."
NAMES = {
    "attn.qkv.": f"{PREFIX}self_attn.in_proj_",
    "attn.proj.": f"{PREFIX}self_attn.out_proj.",
    "mlp.fc1.": f"{PREFIX}linear1.",
    "mlp.fc2.": f"{PREFIX}linear2.",
    "norm1.": f"{PREFIX}norm1.",
    "norm2.": f"{PREFIX}norm2.",
}


@pytest.fixture(scope="module")
def model() -> SelectiveAdapter:
    return strong_adapted(ADAPTED).double()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 3, 64, 96, dtype=torch.float64, generator=generator)


def published_names(model: SelectiveAdapter, table: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights as a detector of the authors has them, with another part and a class row."""
    state = {"rpn_head.conv.weight": torch.zeros(3, 3)}
    for name, tensor in model.state_dict().items():
        renamed = name.replace("gates.", "selective_modules.", 1)
        renamed = renamed.replace(".dwconv.", ".dwconv.dwconv.")
        if name.startswith("blocks."):
            for own, theirs in NAMES.items():
                renamed = renamed.replace(own, theirs)
        state[f"backbone.{renamed}"] = tensor.float()
    state["backbone.pos_embed"] = table
    state["backbone.norm1.num_batches_tracked"] = torch.tensor(3)
    return state


@torch.no_grad()
def test_the_modes_agree(model, image):
    masked = model(image, "masked")
    counts = masked.keep.sum(2)
    assert len(counts.unique()) > 2, "the pictures should differ in their counts"
    every = SelectiveAdapter(ADAPTED.replace(mode="capacity", capacity=(TOKENS,))).double().eval()
    every.load_state_dict(model.state_dict())
    torch.testing.assert_close(every(image), masked)
    for row, one in enumerate(image.split(1)):
        found = model(one, "exact")
        for feature, wanted in zip(found.features, masked.features, strict=True):
            torch.testing.assert_close(feature[0], wanted[row])


@torch.no_grad()
def test_a_capacity_keeps_the_most_certain_tokens(model, image):
    few = SelectiveAdapter(ADAPTED.replace(mode="capacity", capacity=(5,))).double().eval()
    few.load_state_dict(model.state_dict())
    found, masked = few(image), model(image, "masked")
    assert torch.equal(found.keep[:, 0], masked.keep[:, 0])
    assert not torch.allclose(found.features[2], masked.features[2])


@torch.no_grad()
def test_where_no_token_is_kept_the_tokens_stay(image):
    model = strong_adapted(ADAPTED).double()
    for module in model.modules():
        if isinstance(module, Gate):
            module.mlp.fc2.bias.copy_(torch.tensor([-1e3, 1e3]))
    masked, exact = (model(image[:1], mode) for mode in ("masked", "exact"))
    assert not masked.keep.any()
    assert all(feature.isfinite().all() for feature in masked.features)
    torch.testing.assert_close(exact, masked)


@torch.no_grad()
def test_folding_changes_nothing(model, image):
    torch.testing.assert_close(model.folded()(image), model(image))


def test_a_detector_of_the_authors_gives_its_backbone(model, tmp_path):
    table = torch.randn(1, 1 + 9, 24)
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": published_names(model, table)}, path)
    found = Checkpoint.read(path).weights(ADAPTED)
    wanted = {name: tensor.float() for name, tensor in model.state_dict().items()}
    wanted["pos_embed"] = resize_position_table(table[:, 1:], (3, 3), (4, 6))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_its_own_checkpoint_fits_pictures_of_another_size(model, tmp_path):
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, model.state_dict(), ADAPTED)
    assert Checkpoint.read(path).config == ADAPTED
    other = Checkpoint.read(path).weights(ADAPTED.replace(image_size=(96, 128)))
    table = model.pos_embed.detach().float()
    assert torch.equal(other["pos_embed"], resize_position_table(table, (4, 6), (6, 8)))


def test_a_checkpoint_without_an_adapter_does_not_fit(model, tmp_path):
    path = tmp_path / "dense.pth"
    names = ("blocks.", "patch_embed.", "pos_embed", "gates.")
    state = {k: v for k, v in model.state_dict().items() if k.startswith(names)}
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"level_embed, spm\.stem"):
        Checkpoint.read(path).model(ADAPTED)
