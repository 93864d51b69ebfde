"""Key layouts of published checkpoints, brought to this package's own.

| layout              | positions               | fusion                       |
|---------------------|-------------------------|------------------------------|
| own, two tables     | pos_embed_coarse, _fine | fusion.norm, fusion.mlp      |
| own, one table      | pos_embed_fine          | fusion.norm, fusion.mlp      |
| CF-ViT and LF-ViT   | pos_embed_list.0, .1    | reuse_block.0, reuse_block.1 |
| DeiT, timm          | pos_embed               | none: starts neutral         |

All other names are DeiT's in every layout.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.two_stage import FeatureFusion, resize_position_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.spec import ModelConfig

_LOG = logging.getLogger(__name__)

DENSE_TABLE = "pos_embed"
COARSE_TABLE = "pos_embed_coarse"
FINE_TABLE = "pos_embed_fine"
FUSION = "fusion."

_CF_VIT_NAMES = {"pos_embed_list.0": COARSE_TABLE, "pos_embed_list.1": FINE_TABLE}
_CF_VIT_PREFIXES = {"reuse_block.0.": "fusion.norm.", "reuse_block.1.": "fusion.mlp."}
_DISTILLATION = ("dist_token", "head_dist.")
_INIT_STD = 0.02  # DeiT's

Grid = tuple[int, int]


def to_own_layout(
    tensors: Mapping[str, Tensor], config: ModelConfig, stored: ModelConfig | None = None
) -> dict[str, Tensor]:
    """Rename, interpolate and complete what a checkpoint holds for a model.

    Position tables of another resolution are interpolated bicubically. A two-stage model takes a
    dense DeiT as the start of its training: both position tables from its one, and a fusion that
    adds nothing (see `neutral_fusion`). What does not belong to the model is kept, so that the
    caller can name it.

    Args:
        tensors: As read from the file.
        config: The model that will take them.
        stored: The model they were saved from, where the file says so; it tells the grid of a
            position table, which is otherwise taken for the model's own, or a square.

    Raises:
        CheckpointError: The weights are those of a distilled DeiT.
    """
    _refuse_distilled(tensors)
    own = {own_name(name): tensor for name, tensor in tensors.items()}
    if config.two_stage is None:
        _fit_table(own, DENSE_TABLE, config.fine_grid, stored.fine_grid if stored else None)
        return own
    if DENSE_TABLE in own and FINE_TABLE not in own and not _has_fusion(own):
        _LOG.warning(
            "These are the weights of a dense DeiT: a start for training, not a trained %s.",
            config.family,
        )
        own[FINE_TABLE] = own.pop(DENSE_TABLE)
        own.update(neutral_fusion(config))
    _fit_two_tables(own, config, stored)
    return own


def own_name(name: str) -> str:
    """The name of a tensor in this package's layout, given its name in any layout."""
    for prefix, own in _CF_VIT_PREFIXES.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return _CF_VIT_NAMES.get(name, name)


def neutral_fusion(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of a feature fusion that adds exactly zero and yet learns.

    The last layer is zero, so that a network just made from a dense DeiT sees the tokens that DeiT
    saw. The first layer is random (always the same), because with both at zero no gradient flows.
    """
    with torch.device("meta"):
        shapes = FeatureFusion(config).state_dict()
    state = {FUSION + name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    state["fusion.norm.weight"].fill_(1.0)
    generator = torch.Generator().manual_seed(0)
    nn.init.trunc_normal_(state["fusion.mlp.fc1.weight"], std=_INIT_STD, generator=generator)
    return state


def _refuse_distilled(tensors: Mapping[str, Tensor]) -> None:
    found = [name for name in tensors if name.startswith(_DISTILLATION)]
    if found:
        raise CheckpointError(
            "These are the weights of a distilled DeiT, which has a second class token and head "
            f"that this network lacks: {', '.join(found)}.",
            "Take the undistilled weights of the same size (deit_*, not deit_*_distilled): without "
            "its second token a distilled network is a worse one.",
        )


def _has_fusion(own: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(FUSION) for name in own)


def _fit_two_tables(
    own: dict[str, Tensor], config: ModelConfig, stored: ModelConfig | None
) -> None:
    stored_fine = stored.fine_grid if stored else None
    if config.stages.position_tables == 2:
        if COARSE_TABLE in own:
            _fit_table(
                own, COARSE_TABLE, config.coarse_grid, stored.coarse_grid if stored else None
            )
        elif FINE_TABLE in own:
            # From the table as it was learned: through another fine grid it would blur twice.
            grid = _grid_of(own[FINE_TABLE], config.fine_grid, stored_fine)
            if grid is not None:
                own[COARSE_TABLE] = resize_position_table(own[FINE_TABLE], grid, config.coarse_grid)
    _fit_table(own, FINE_TABLE, config.fine_grid, stored_fine)


def _fit_table(own: dict[str, Tensor], name: str, grid: Grid, stored: Grid | None) -> None:
    """Interpolate one table in place; one whose grid cannot be told stays, to be reported."""
    if name not in own:
        return
    found = _grid_of(own[name], grid, stored)
    if found is not None and found != grid:
        _LOG.info("Interpolating %s from a %dx%d to a %dx%d grid.", name, *found, *grid)
        own[name] = resize_position_table(own[name], found, grid)


def _grid_of(table: Tensor, wanted: Grid, stored: Grid | None) -> Grid | None:
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[1] < 2:
        return None
    patches = table.shape[1] - 1
    side = math.isqrt(patches)
    candidates = (stored, wanted, (side, side))
    return next((grid for grid in candidates if grid and math.prod(grid) == patches), None)
