"""Conversion of published checkpoint layouts to this package's own, and a check of the result.

| layout              | positions               | fusion                       |
|---------------------|-------------------------|------------------------------|
| own, two tables     | pos_embed_coarse, _fine | fusion.norm, fusion.mlp      |
| own, one table      | pos_embed_fine          | fusion.norm, fusion.mlp      |
| CF-ViT and LF-ViT   | pos_embed_list.0, .1    | reuse_block.0, reuse_block.1 |
| DeiT, timm, LV-ViT  | pos_embed               | none: starts neutral         |

All other names are DeiT's and LV-ViT's in every layout.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sacvit_deploy.decode import check_field
from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.vit import STEM_WIDTH
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.two_stage import FeatureFusion, resize_position_table

_LOG = logging.getLogger(__name__)

_DENSE_TABLE = "pos_embed"
_COARSE_TABLE = "pos_embed_coarse"
_FINE_TABLE = "pos_embed_fine"
_FUSION = "fusion."
_BATCH_COUNT = ".num_batches_tracked"  # of BatchNorm; nothing depends on it
_DISTILLATION = ("dist_token", "head_dist.")
_CONV_STEM = "patch_embed.conv1.weight"
_INIT_STD = 0.02  # DeiT's

# Longer lists of keys write the blocks together. Names and lists of a message have an end.
_WRITTEN_OUT = 24
_SAMPLE = 8
_LONGEST_NAME = 60
_LONGEST_LIST = 480
_LONGEST_LISTS = 1440
# Fields of a configuration, and the weight, its rank and the axis that tell each.
_SIZES = {
    "embed_dim": ("cls_token", 3, -1),
    "patch_size": ("patch_embed.proj.weight", 4, -1),
    "num_classes": ("head.weight", 2, 0),
}

_Grid = tuple[int, int]


def to_own_layout(
    tensors: Mapping[str, Tensor], config: ModelConfig, stored: ModelConfig | None = None
) -> dict[str, Tensor]:
    """Rename, interpolate and complete the tensors of a checkpoint for a model.

    Position tables of another resolution are interpolated bicubically. A dense DeiT starts the
    training of a two-stage model: its position table becomes both tables, and the fusion adds
    zero. Tensors that do not belong to the model are kept for `check_fit` to report.

    Args:
        tensors: Tensors by the file's names.
        config: Model that will load them.
        stored: Model they were saved from, if known. It tells the grid of a position table.
            Otherwise the grid of `config` is tried first, then a square.

    Raises:
        CheckpointError: The weights belong to a distilled DeiT.
    """
    _refuse_distilled(tensors)
    own = {
        _own_name(name, config): tensor
        for name, tensor in tensors.items()
        if not name.endswith(_BATCH_COUNT)
    }
    if config.two_stage is None:
        _fit_table(own, _DENSE_TABLE, config.fine_grid, stored.fine_grid if stored else None)
        return own
    has_fusion = any(name.startswith(_FUSION) for name in own)
    if _DENSE_TABLE in own and _FINE_TABLE not in own and not has_fusion:
        _LOG.warning(
            "These are the weights of a dense network: a start for training, not a trained %s.",
            config.family,
        )
        own[_FINE_TABLE] = own.pop(_DENSE_TABLE)
        own.update(_neutral_fusion(config))
    _fit_two_tables(own, config, stored)
    return own


def check_fit(state: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """Check that a state dict in this package's layout fits a model; errors name its `source`.

    Raises:
        CheckpointError: Lists missing, unexpected and misshapen keys, as many as a message can
            hold, and suggests the network the weights belong to.
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
    if not any(found):
        return
    _refuse_foreign(state, expected, source)
    problem = f"{source} does not fit the model."
    classes = _size_of(state).get("num_classes", config.num_classes)
    if classes != config.num_classes:
        problem = f"{source} has {classes} classes, the model {config.num_classes}."
    lines = [problem, *_list_differences(found, state, expected)]
    raise CheckpointError("\n".join(lines), " ".join(_hints(state, config, found)))


def check_stored(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Check that a stored configuration has the sizes of the weights beside it.

    It comes before any network is built: a configuration may claim 10**9 classes.

    Raises:
        ConfigError: A size differs, or the weight that tells it is missing.
    """
    width = config.embed_dim
    channels, patch = 3, config.patch_size
    if config.stem == "conv":
        channels, patch = STEM_WIDTH, patch // 2
    wanted = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "blocks.0.mlp.fc1.weight": (round(width * config.mlp_ratio), width),
        "head.weight": (config.num_classes, width),
        _FINE_TABLE if config.two_stage else _DENSE_TABLE: (1, config.num_fine_tokens + 1, width),
    }
    for name, shape in wanted.items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        check_field(found == shape, name, found, f"{shortened(str(shape))}, as configured")
    blocks = len(_block_numbers(tensors))
    check_field(blocks == config.depth, "depth", config.depth, f"{blocks}, the blocks in the file")


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that every weight is finite.

    Raises:
        CheckpointError: Names the tensors that hold NaN or infinity.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinite weights in {len(broken)} of {len(tensors)} tensors: "
            f"{_list_keys(broken)}.",
            "Its training diverged, or the file is damaged: use an earlier checkpoint.",
        )


def _refuse_distilled(tensors: Mapping[str, Tensor]) -> None:
    found = [name for name in tensors if name.startswith(_DISTILLATION)]
    if found:
        raise CheckpointError(
            "These are the weights of a distilled DeiT, which has a second class token and head "
            f"that this network lacks: {_list_keys(found)}.",
            "Use the undistilled weights of the same size (deit_*, not deit_*_distilled): without "
            "its second token a distilled network is a worse one.",
        )


def _own_name(name: str, config: ModelConfig) -> str:
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
        _fit_table(own, _COARSE_TABLE, config.coarse_grid, coarse)
        if _COARSE_TABLE not in own and _FINE_TABLE in own:
            # From the table as learned, because interpolating twice blurs twice.
            grid = _grid_of(own[_FINE_TABLE], config.fine_grid, fine)
            if grid is not None:
                own[_COARSE_TABLE] = resize_position_table(
                    own[_FINE_TABLE], grid, config.coarse_grid
                )
    _fit_table(own, _FINE_TABLE, config.fine_grid, fine)


def _fit_table(own: dict[str, Tensor], name: str, grid: _Grid, stored: _Grid | None) -> None:
    """Interpolate one table in `own`. A table of unknown grid stays for `check_fit` to report."""
    if name not in own:
        return
    found = _grid_of(own[name], grid, stored)
    if found is not None and found != grid:
        _LOG.info("Interpolating %s from a %dx%d to a %dx%d grid.", name, *found, *grid)
        own[name] = resize_position_table(own[name], found, grid)


def _grid_of(table: Tensor, wanted: _Grid, stored: _Grid | None) -> _Grid | None:
    is_table = table.ndim == 3 and table.shape[0] == 1 and table.shape[1] >= 2
    if not is_table or not table.is_floating_point():
        return None
    patches = table.shape[1] - 1
    side = math.isqrt(patches)
    candidates = (stored, wanted, (side, side))
    return next((grid for grid in candidates if grid and math.prod(grid) == patches), None)


class _Differences(NamedTuple):
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def _list_differences(
    found: _Differences, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[str]:
    lines = [
        f"{title} ({len(names)}): {_list_keys(names)}"
        for title, names in (("Missing", found.missing), ("Unexpected", found.unexpected))
        if names
    ]
    if found.misshapen:
        lines.append(f"Wrong shape ({len(found.misshapen)}):")
    # One line for all keys with the same wrong and expected shape.
    groups: dict[str, list[str]] = defaultdict(list)
    for name in found.misshapen:
        groups[f"found {_describe(state[name])}, wanted {_describe(expected[name])}"].append(name)
    total = len(found.misshapen)
    shapes = [f"  {_list_keys(group, total)}: {shapes}" for shapes, group in groups.items()]
    return (
        [*lines, _joined(shapes, "\n", _LONGEST_LISTS - sum(map(len, lines)))] if shapes else lines
    )


def _list_keys(names: list[str], total: int | None = None) -> str:
    """Join names in one line; long lists write `blocks.{0-11}.norm1.weight` for twelve of them.

    Args:
        names: Keys to list.
        total: Length of the whole list, if `names` is a part of it.
    """
    if (total or len(names)) <= _WRITTEN_OUT:
        return _joined([shortened(name) for name in names], ", ", _LONGEST_LIST)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in names:
        match = re.fullmatch(r"(.*?\.)(\d{1,6})(\..*)", name)
        group = groups[(match[1], match[3]) if match else (name, "")]
        if match:
            group.append(int(match[2]))
    parts = [shortened(_join_group(around, sorted(i))) for around, i in groups.items()]
    return _joined(parts, ", ", _LONGEST_LIST)


def _joined(parts: list[str], between: str, longest: int) -> str:
    """Join parts up to `longest` characters, and count the others."""
    ends = accumulate(len(part) + len(between) for part in parts)
    fit = sum(end <= longest for end in ends)
    rest = [f"and {len(parts) - fit} more"] if fit < len(parts) else []
    return between.join(parts[:fit] + rest)


def shortened(text: str, most: int = _LONGEST_NAME) -> str:
    """Cut the middle out of a text from a file, and write what cannot be printed as escapes."""
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[3 - most // 2 :]}"
    return text if text.isprintable() else ascii(text)[1:-1]


def _join_group(name: tuple[str, str], indices: list[int]) -> str:
    before, after = name
    if not indices:
        return before
    known = set(indices)
    starts = [i for i in indices if i - 1 not in known]
    ends = [i for i in indices if i + 1 not in known]
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"{before}{text}{after}" if len(indices) == 1 else f"{before}{{{text}}}{after}"


def _describe(tensor: Tensor) -> str:
    shape = shortened("(" + ", ".join(map(str, tensor.shape)) + ")")
    return shape if tensor.is_floating_point() else f"{tensor.dtype} {shape}".removeprefix("torch.")


def _refuse_foreign(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Refuse weights of which most names are unknown, whatever their block numbers."""
    known = {
        re.sub(r"\d+", "#", name) for name in (*expected, _DENSE_TABLE, _COARSE_TABLE, _FINE_TABLE)
    }
    strangers = sum(re.sub(r"\d+", "#", name) not in known for name in state)
    if 2 * strangers <= len(state):
        return
    sample = ", ".join(map(shortened, list(state)[:_SAMPLE]))
    fix = (
        "Name a checkpoint of SAC-ViT, CF-ViT, LF-ViT, LV-ViT or DeiT (in DeiT's or timm's names)."
    )
    if any("encoder.layer." in name for name in state):
        fix += " These look like Hugging Face transformers' names: take the same weights from timm."
    raise CheckpointError(
        f"{source} is not a Vision Transformer of this family: its {len(state)} tensors are called "
        f"{sample}{', ...' if len(state) > _SAMPLE else ''}.",
        fix,
    )


def _hints(state: Mapping[str, Tensor], config: ModelConfig, found: _Differences) -> list[str]:
    hints = []
    wrong = {k: v for k, v in _size_of(state).items() if getattr(config, k) != v}
    classes = wrong.pop("num_classes", None)
    if wrong:
        weights = ", ".join(f"{name} {value}" for name, value in wrong.items())
        model = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        hints.append(
            f"The weights have {weights}; the model has {model}: choose a preset to match."
        )
    if classes is not None:
        hints.append(
            f"To keep the weights' {classes} classes, give --set num_classes={classes} "
            f"(in Python: config.replace(num_classes={classes}))."
        )
    if _COARSE_TABLE in found.unexpected or _FINE_TABLE in found.unexpected:
        hints.append(
            "These weights are a two-stage network's: choose a preset such as sac_ or cf_."
            if config.two_stage is None
            else "The weights have two position tables: give --set position_tables=2."
        )
    if _CONV_STEM in found.unexpected:
        hints.append("These weights have the stem of LV-ViT: choose a lv_ or cf_lv_ preset.")
    return hints or ["Name the preset the weights were trained with, or another checkpoint."]


def _size_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the size of a network from its weights, by field of `ModelConfig`."""
    blocks = _block_numbers(state)
    depth = {"depth": 1 + max(blocks)} if blocks else {}
    sizes = {
        field: state[name].shape[axis]
        for field, (name, rank, axis) in _SIZES.items()
        if name in state and state[name].ndim == rank
    }
    if "patch_size" in sizes and _CONV_STEM in state:
        sizes["patch_size"] *= 2  # its projection comes after a convolution of stride 2
    return depth | sizes


def _block_numbers(state: Mapping[str, Tensor]) -> set[int]:
    matches = (re.match(r"blocks\.(\d{1,6})\.", name) for name in state)
    return {int(match[1]) for match in matches if match}
