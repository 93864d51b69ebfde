"""Conversion of published checkpoint layouts to this package's own.

| layout              | positions               | fusion                       |
|---------------------|-------------------------|------------------------------|
| own, two tables     | pos_embed_coarse, _fine | fusion.norm, fusion.mlp      |
| own, one table      | pos_embed_fine          | fusion.norm, fusion.mlp      |
| CF-ViT and LF-ViT   | pos_embed_list.0, .1    | reuse_block.0, reuse_block.1 |
| DeiT, timm, LV-ViT  | pos_embed               | none: starts neutral         |

All other names are DeiT's and LV-ViT's in these layouts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.model.checkpoint_fit import list_keys
from sacvit_deploy.model.two_stage import FeatureFusion, resize_position_table

_LOG = logging.getLogger(__name__)

DENSE_TABLE = "pos_embed"
_COARSE_TABLE = "pos_embed_coarse"
_FINE_TABLE = "pos_embed_fine"
_FUSION = "fusion."
_BATCH_COUNT = ".num_batches_tracked"  # of BatchNorm; nothing depends on it
_BACKBONE = "backbone."  # in checkpoints of detectors
_DISTILLATION = ("dist_token", "head_dist.")
_INIT_STD = 0.02  # DeiT's

_Grid = tuple[int, int]


def to_own_layout(
    tensors: Mapping[str, Tensor], config: ModelConfig, stored: ModelConfig | None = None
) -> dict[str, Tensor]:
    """Rename, interpolate and complete the tensors of a checkpoint for a model.

    Of a detector, the backbone is taken. Tensors that do not belong to the model are kept for
    `check_fit` to report.

    Args:
        tensors: Tensors by the file's names.
        config: Model that will load them.
        stored: Model they were saved from, if known. It tells the grid of a position table.
            Otherwise the grid of `config` is tried first, then a square.

    Raises:
        CheckpointError: The weights belong to a distilled DeiT.
    """
    refuse_distilled(tensors)
    own = {
        own_name(name, config): tensor
        for name, tensor in _backbone_of(tensors).items()
        if not name.endswith(_BATCH_COUNT)
    }
    family_named(config.family).load("layout")(own, config, stored)
    return own


def dense_layout(own: dict[str, Tensor], config: ModelConfig, stored: ModelConfig | None) -> None:
    """Interpolate the position table of a dense network, in place."""
    fit_table(own, DENSE_TABLE, config.fine_grid, stored.fine_grid if stored else None)


def two_stage_layout(
    own: dict[str, Tensor], config: ModelConfig, stored: ModelConfig | None
) -> None:
    """Complete the tensors of a two-stage network, in place.

    Position tables of another resolution are interpolated bicubically. A dense DeiT starts the
    training: its position table becomes both tables, and the fusion adds zero.
    """
    has_fusion = any(name.startswith(_FUSION) for name in own)
    if DENSE_TABLE in own and _FINE_TABLE not in own and not has_fusion:
        warn_of_start(config)
        own[_FINE_TABLE] = own.pop(DENSE_TABLE)
        own.update(_neutral_fusion(config))
    _fit_two_tables(own, config, stored)


def warn_of_start(config: ModelConfig) -> None:
    """Say that the weights are those of a dense network."""
    _LOG.warning(
        "These are the weights of a dense network: a start for training, not a trained %s.",
        config.family,
    )


def refuse_distilled(tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` if the weights belong to a distilled DeiT."""
    found = [name for name in tensors if name.startswith(_DISTILLATION)]
    if found:
        raise CheckpointError(
            "These are the weights of a distilled DeiT, which has a second class token and head "
            f"that this network lacks: {list_keys(found)}.",
            "Use the undistilled weights of the same size (deit_*, not deit_*_distilled): without "
            "its second token a distilled network is a worse one.",
        )


def _backbone_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a detector's backbone; all tensors if none is called so."""
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith(_BACKBONE)}
    return {n.removeprefix(_BACKBONE): tensor for n, tensor in backbone.items()} or tensors


def own_name(name: str, config: ModelConfig) -> str:
    """Name of a tensor in this package, by its name in a published checkpoint of the family."""
    for prefix, own in family_named(config.family).checkpoint_names.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _neutral_fusion(config: ModelConfig) -> dict[str, Tensor]:
    """Make the weights of a feature fusion that adds exactly zero but can learn.

    The last layer is zero, so that the new network sees the dense network's tokens. The first
    layer is random from a fixed seed, because no gradient flows when both are zero.
    """
    with torch.device("meta"):
        shapes = FeatureFusion(config).state_dict()
    state = {_FUSION + name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    state["fusion.norm.weight"].fill_(1.0)
    generator = torch.Generator().manual_seed(0)
    nn.init.trunc_normal_(state["fusion.mlp.fc1.weight"], std=_INIT_STD, generator=generator)
    return state


def _fit_two_tables(
    own: dict[str, Tensor], config: ModelConfig, stored: ModelConfig | None
) -> None:
    fine, coarse = (stored.fine_grid, stored.coarse_grid) if stored else (None, None)
    if config.stages.position_tables == 2:
        fit_table(own, _COARSE_TABLE, config.coarse_grid, coarse)
        if _COARSE_TABLE not in own and _FINE_TABLE in own:
            # From the table as learned, because interpolating twice blurs twice.
            grid = _grid_of(own[_FINE_TABLE], config.fine_grid, fine)
            if grid is not None:
                own[_COARSE_TABLE] = resize_position_table(
                    own[_FINE_TABLE], grid, config.coarse_grid
                )
    fit_table(own, _FINE_TABLE, config.fine_grid, fine)


def fit_table(
    own: dict[str, Tensor], name: str, grid: _Grid, stored: _Grid | None, class_rows: int = 1
) -> None:
    """Interpolate one table in `own`. A table of unknown grid stays for `check_fit` to report.

    Args:
        own: Tensors by their names here.
        name: Name of the table.
        grid: (rows, columns) of the patches it is for.
        stored: Those it was saved with, if known.
        class_rows: Rows before those of the patches.
    """
    if name not in own:
        return
    found = _grid_of(own[name], grid, stored, class_rows)
    if found is not None and found != grid:
        _LOG.info("Interpolating %s from a %dx%d to a %dx%d grid.", name, *found, *grid)
        own[name] = resize_position_table(own[name], found, grid)


def _grid_of(
    table: Tensor, wanted: _Grid, stored: _Grid | None, class_rows: int = 1
) -> _Grid | None:
    is_table = table.ndim == 3 and table.shape[0] == 1 and table.shape[1] > class_rows
    if not is_table or not table.is_floating_point():
        return None
    patches = table.shape[1] - class_rows
    side = math.isqrt(patches)
    candidates = (stored, wanted, (side, side))
    return next((grid for grid in candidates if grid and math.prod(grid) == patches), None)
