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
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.families import family_named
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.two_stage import FeatureFusion, resize_position_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.families.config import ModelConfig


_LOG = logging.getLogger(__name__)

DENSE_TABLE = "pos_embed"
COARSE_TABLE = "pos_embed_coarse"
FINE_TABLE = "pos_embed_fine"
FUSION = "fusion."

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
    own = {own_name(name, config): tensor for name, tensor in tensors.items()}
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


def own_name(name: str, config: ModelConfig) -> str:
    """The name of a tensor in this package's layout, given its name in any layout."""
    for prefix, own in family_named(config.family).checkpoint_names.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


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


# Up to here every key is written out; longer lists name the blocks of equal keys together.
_WRITTEN_OUT = 24
_SAMPLE = 8


@dataclass(frozen=True)
class _Differences:
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    def any(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)


def check_fit(state: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """Compare a state dict in the own layout with what a model needs.

    Args:
        state: To be loaded.
        config: The model.
        source: What to call the checkpoint in the error.

    Raises:
        CheckpointError: Names every missing, unexpected and misshapen key, and what the weights
            seem to be instead.
    """
    with torch.device("meta"):
        expected = build_model(config).state_dict()
    found = _Differences(
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        misshapen=[
            name
            for name, tensor in expected.items()
            if name in state and _describe(state[name]) != _describe(tensor)
        ],
    )
    if not found.any():
        return
    if _is_foreign(state, expected):
        raise _foreign(state, source)
    problem = f"{source} does not fit the model."
    classes = _size_of(state).get("num_classes", config.num_classes)
    if classes != config.num_classes:
        problem = f"{source} has {classes} classes, the model {config.num_classes}."
    lines = [problem, *_list_differences(found, state, expected)]
    raise CheckpointError("\n".join(lines), " ".join(_hints(state, config, found)))


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Every weight is a number.

    Raises:
        CheckpointError: Names the tensors that hold NaN or infinity.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinite weights in {len(broken)} of {len(tensors)} tensors: "
            f"{list_keys(broken)}.",
            "Its training diverged, or the file is damaged: take an earlier checkpoint.",
        )


def list_keys(names: list[str], total: int | None = None) -> str:
    """All names in one line; long lists write `blocks.{0-11}.norm1.weight` for twelve of them.

    Args:
        names: The keys.
        total: Length of the list these are a part of, if it is told in parts.
    """
    if (total or len(names)) <= _WRITTEN_OUT:
        return ", ".join(names)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in names:
        before, index, after = _split_at_number(name)
        groups[before, after].append(index)
    return ", ".join(_join_group(before, after, sorted(i)) for (before, after), i in groups.items())


def _split_at_number(name: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
    return (match[1], int(match[2]), match[3]) if match else (name, -1, "")


def _join_group(before: str, after: str, indices: list[int]) -> str:
    if indices[0] < 0:
        return before
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return f"{before}{text}{after}" if len(indices) == 1 else f"{before}{{{text}}}{after}"


def _list_differences(
    found: _Differences,
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> list[str]:
    lines = []
    if found.missing:
        lines.append(f"Missing ({len(found.missing)}): {list_keys(found.missing)}")
    if found.unexpected:
        lines.append(f"Unexpected ({len(found.unexpected)}): {list_keys(found.unexpected)}")
    if found.misshapen:
        lines.append(f"Wrong shape ({len(found.misshapen)}):")
        lines.extend(_list_shapes(found.misshapen, state, expected))
    return lines


def _list_shapes(
    names: list[str], state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[str]:
    """One line for all keys that are wrong in the same way."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[f"found {_describe(state[name])}, wanted {_describe(expected[name])}"].append(name)
    total = len(names)
    return [f"  {list_keys(group, total)}: {shapes}" for shapes, group in groups.items()]


def _describe(tensor: Tensor) -> str:
    shape = "(" + ", ".join(map(str, tensor.shape)) + ")"
    return shape if tensor.is_floating_point() else f"{tensor.dtype} {shape}".removeprefix("torch.")


def _is_foreign(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Most names are unknown even when block numbers are not looked at."""
    known = {
        re.sub(r"\d+", "#", name) for name in (*expected, DENSE_TABLE, COARSE_TABLE, FINE_TABLE)
    }
    strangers = sum(re.sub(r"\d+", "#", name) not in known for name in state)
    return 2 * strangers > len(state)


def _foreign(state: Mapping[str, Tensor], source: str) -> CheckpointError:
    sample = ", ".join(list(state)[:_SAMPLE])
    fix = "Name a checkpoint of SAC-ViT, CF-ViT, LF-ViT or DeiT (in DeiT's or timm's names)."
    if any("encoder.layer." in name for name in state):
        fix += " These look like Hugging Face transformers' names: take the same weights from timm."
    return CheckpointError(
        f"{source} is not a Vision Transformer of this family: its {len(state)} tensors are called "
        f"{sample}{', ...' if len(state) > _SAMPLE else ''}.",
        fix,
    )


def _hints(state: Mapping[str, Tensor], config: ModelConfig, found: _Differences) -> list[str]:
    hints = []
    size = _size_of(state)
    wrong = [
        name
        for name, value in size.items()
        if getattr(config, name) != value and name != "num_classes"
    ]
    if wrong:
        weights = ", ".join(f"{name} {size[name]}" for name in wrong)
        model = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        hints.append(
            f"The weights have {weights}; the model has {model}: choose a preset to match."
        )
    classes = size.get("num_classes", config.num_classes)
    if classes != config.num_classes:
        hints.append(
            f"To keep the weights' {classes} classes, give --set num_classes={classes} "
            f"(in Python: config.replace(num_classes={classes}))."
        )
    if COARSE_TABLE in found.unexpected or FINE_TABLE in found.unexpected:
        hints.append(
            "These weights are a two-stage network's: choose a sac_ or cf_ preset."
            if config.two_stage is None
            else "The weights have two position tables: give --set position_tables=2."
        )
    return hints or ["Name the preset the weights were trained with, or another checkpoint."]


def _size_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What the weights say about their network, by the name of the config's field."""
    size = {}
    blocks = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in state) if m]
    if blocks:
        size["depth"] = 1 + max(blocks)
    if "cls_token" in state and state["cls_token"].ndim == 3:
        size["embed_dim"] = state["cls_token"].shape[-1]
    if "patch_embed.proj.weight" in state and state["patch_embed.proj.weight"].ndim == 4:
        size["patch_size"] = state["patch_embed.proj.weight"].shape[-1]
    if "head.weight" in state and state["head.weight"].ndim == 2:
        size["num_classes"] = state["head.weight"].shape[0]
    return size
