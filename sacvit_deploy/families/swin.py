"""Swin Transformer, dense: windows of tokens that shift from block to block.

STViT-R reuses its configuration, stages and costs. Liu et al., "Swin Transformer: Hierarchical
Vision Transformer using Shifted Windows" (ICCV 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from sacvit_deploy.decode import check_field, check_types
from sacvit_deploy.families.family import Family
from sacvit_deploy.families.vit import check_image_size, image_spec, logits_spec
from sacvit_deploy.spec import BATCH, FEATURES, InputKind, Role, Selection, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.families.family import Counted, Tensors


_PATCH = 4
# Table 7 of the paper: embed_dim, num_heads and depths.
_BODIES = {
    "tiny": (96, 3, (2, 2, 6, 2)),
    "small": (96, 3, (2, 2, 18, 2)),
    "base": (128, 4, (2, 2, 18, 2)),
}
_DEMO = {"embed_dim": 48, "num_heads": 3, "num_classes": 50, "mlp_ratio": 2.0}
_DETECTION_SIZE = (800, 1344)
_WIDEST_WINDOW = 64


@dataclass(frozen=True)
class SwinConfig:
    """Stages and windows of a Swin Transformer, and its semantic tokens in STViT-R.

    Attributes:
        depths: Blocks of each of the four stages.
        window: Side of the windows in tokens.
        sample_window: Side of the semantic tokens of each window; None in the dense network.
        use_global: Whether learned global centres are added to the semantic tokens of the first
            unit (STViT Eq. 2).
        shortcut: Whether the classifier's semantic tokens keep what was pooled (STViT Eq. 1); those
            of the backbone always do.
        task: `classes`: the network ends in a head on the mean token. `features`: it gives the
            normalised tokens of each stage, c2 to c5, and pads windows at the border.

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    depths: tuple[int, int, int, int]
    window: int = 7
    sample_window: int | None = None
    use_global: bool = False
    shortcut: bool = False
    task: Literal["classes", "features"] = "classes"

    def __post_init__(self) -> None:
        check_types(self)
        check_field(min(self.depths) >= 1, "depths", self.depths, "four numbers of 1 or more")
        fits = 2 <= self.window <= _WIDEST_WINDOW
        check_field(fits, "window", self.window, f"a number from 2 to {_WIDEST_WINDOW}")

    @property
    def semantic_side(self) -> int:
        """`sample_window`; `ConfigError` in a dense network."""
        wanted = f"a number from 1 to {self.window}, the window"
        side = self.sample_window
        check_field(side is not None and 1 <= side <= self.window, "sample_window", side, wanted)
        return cast("int", side)


class Stage(NamedTuple):
    """One of the four stages.

    Attributes:
        grid: (rows, columns) of its tokens.
        width: Embedding width.
        num_heads: Attention heads.
        depth: Blocks.
    """

    grid: tuple[int, int]
    width: int
    num_heads: int
    depth: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return math.prod(self.grid)

    def num_windows(self, window: int) -> int:
        """Number of windows of that side; the last ones may reach over the border."""
        rows, columns = self.grid
        return math.ceil(rows / window) * math.ceil(columns / window)


def swin_section(config: ModelConfig) -> SwinConfig:
    """The section `swin`; `ConfigError` in a family without it."""
    check_field(config.swin is not None, "swin", config.swin, "set: this network is a Swin")
    return cast("SwinConfig", config.swin)


def swin_stages(config: ModelConfig) -> tuple[Stage, ...]:
    """The stages in order: each halves the grid, rounded up, and doubles width and heads."""
    rows, columns = config.fine_grid
    return tuple(
        Stage(
            (math.ceil(rows / 2**number), math.ceil(columns / 2**number)),
            config.embed_dim << number,
            config.num_heads << number,
            depth,
        )
        for number, depth in enumerate(swin_section(config).depths)
    )


def swin_presets(
    prefix: str, image_size: tuple[int, int], suffix: str, **section: Any
) -> dict[str, dict[str, Any]]:
    """Fields of `ModelConfig` for every published body, by preset.

    Args:
        prefix: Start of the names.
        image_size: (height, width) in pixels.
        suffix: End of the names.
        section: Fields of `SwinConfig` but the depths.
    """
    return {
        f"{prefix}_{body}_{suffix}": _body(width, heads, SwinConfig(depths, **section))
        | {"image_size": image_size}
        for body, (width, heads, depths) in _BODIES.items()
    }


def swin_demo_preset(prefix: str, **section: Any) -> dict[str, dict[str, Any]]:
    """Fields of `ModelConfig` for a small network on 128 px pictures in 50 classes, by preset."""
    swin = SwinConfig((2, 2, 6, 2), window=4, **section)
    return {f"{prefix}_demo_128": _body(0, 0, swin) | {"image_size": (128, 128)} | _DEMO}


def _body(width: int, heads: int, swin: SwinConfig) -> dict[str, Any]:
    return {
        "patch_size": _PATCH,
        "embed_dim": width,
        "depth": sum(swin.depths),
        "num_heads": heads,
        "layer_norm_eps": 1e-5,
        "swin": swin,
    }


def all_swin_presets(prefix: str, **section: Any) -> dict[str, dict[str, Any]]:
    """Presets of classifiers at 224 px, of backbones for detection, and of the small network."""
    return (
        swin_presets(prefix, (224, 224), "224", **section)
        | swin_presets(prefix, _DETECTION_SIZE, "backbone", task="features", **section)
        | swin_demo_preset(prefix, **section)
    )


def check_swin(config: ModelConfig) -> None:
    """Raise `ConfigError` if body, stages and windows do not fit together."""
    section = swin_section(config)
    depth = sum(section.depths)
    check_field(config.depth == depth, "depth", config.depth, f"{depth}, the sum of depths")
    check_field(config.patch_size == _PATCH, "patch_size", config.patch_size, f"{_PATCH}")
    plain = (("stem", "patch"), ("residual_scale", 1.0), ("aux_weight", 0.0))
    for name, wanted in plain:
        found = getattr(config, name)
        check_field(found == wanted, name, found, f"{wanted}: a Swin has no other")
    if section.task == "features":
        check_image_size(config, _PATCH, "the")
        return
    step = _PATCH * 2 ** (len(section.depths) - 1) * section.window
    fits = all(side > 0 and side % step == 0 for side in config.image_size)
    wanted = f"two multiples of {step}, so that each stage has whole windows of {section.window}"
    check_field(fits, "image_size", config.image_size, wanted)


def _check(config: ModelConfig) -> None:
    check_swin(config)
    section = swin_section(config)
    for name in ("sample_window", "use_global", "shortcut"):
        found = getattr(section, name)
        check_field(not found, name, found, "unset: the dense network has no semantic tokens")


def swin_tensors(
    config: ModelConfig, _: Selection, input_kind: InputKind
) -> dict[Role, tuple[Tensors, Tensors]]:
    """Inputs and outputs of the only graph: logits, or the features of each stage."""
    image = (image_spec(config, input_kind),)
    if swin_section(config).task == "classes":
        return {"single": (image, (logits_spec(config),))}
    features = (
        TensorSpec(name, "float32", (BATCH, stage.width, *stage.grid))
        for name, stage in zip(FEATURES, swin_stages(config), strict=True)
    )
    return {"backbone": (image, tuple(features))}


def network_macs(config: ModelConfig, blocks: Mapping[int, int]) -> dict[Role, int]:
    """Cost of a network but its stem.

    Args:
        config: The network.
        blocks: Cost of all blocks of each stage, by its number.
    """
    stages = swin_stages(config)
    # The merging is a linear layer from four tokens to one of twice the width.
    merging = sum(8 * later.tokens * stage.width**2 for stage, later in pairwise(stages))
    total = sum(blocks.values()) + merging
    if swin_section(config).task == "features":
        return {"backbone": total}
    return {"single": total + stages[-1].width * config.num_classes}


def window_block_macs(config: ModelConfig, stage: Stage, counted: Counted) -> int:
    """Cost of a block of windows. As papers count, what pads windows is projected twice."""
    width, side = stage.width, swin_section(config).window
    padded = stage.num_windows(side) * side**2
    joined = padded if counted == "papers" else stage.tokens
    attention = padded * (3 * width**2 + 2 * side**2 * width) + joined * width**2
    return attention + stage.tokens * block_mlp_macs(config, width)


def block_mlp_macs(config: ModelConfig, width: int) -> int:
    """Cost of one token in an MLP of that width."""
    return 2 * width * round(width * config.mlp_ratio)


def dense_blocks_macs(config: ModelConfig, counted: Counted) -> dict[int, int]:
    """Cost of the blocks of each dense stage, by its number."""
    return {
        number: stage.depth * window_block_macs(config, stage, counted)
        for number, stage in enumerate(swin_stages(config))
    }


def _macs(config: ModelConfig, counted: Counted) -> dict[Role, int]:
    patches = config.num_fine_tokens * 3 * config.patch_size**2 * config.embed_dim
    cost = network_macs(config, dense_blocks_macs(config, counted))
    return {role: patches + macs for role, macs in cost.items()}


def _dense_macs(config: ModelConfig) -> int:
    return sum(_macs(config, "papers").values())


def swin_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that tell the sizes of stages and heads, by name."""
    section, stages = swin_section(config), swin_stages(config)
    pairs = (2 * section.window - 1) ** 2
    shapes: dict[str, tuple[int, ...]] = {}
    for number, stage in enumerate(stages):
        first = f"layers.{number}.blocks.0"
        hidden = round(stage.width * config.mlp_ratio)
        shapes[f"{first}.mlp.fc1.weight"] = (hidden, stage.width)
        shapes[f"{first}.attn.relative_position_bias_table"] = (pairs, stage.num_heads)
    if section.task == "features":
        return shapes | {f"norm{n}.weight": (stage.width,) for n, stage in enumerate(stages)}
    return shapes | {"head.weight": (config.num_classes, stages[-1].width)}


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    stem = (config.embed_dim, 3, config.patch_size, config.patch_size)
    return swin_shapes(config) | {"patch_embed.proj.weight": stem}


SWIN = Family(
    name="swin",
    title="Swin Transformer",
    presets=all_swin_presets("swin"),
    files={"single": "model.onnx", "backbone": "backbone.onnx"},
    section="swin",
    check=_check,
    tensors=swin_tensors,
    macs=_macs,
    model="sacvit_deploy.model.swin:SwinTransformer",
    view="sacvit_deploy.model.views:single_view",
    layout="sacvit_deploy.model.swin_layout:swin_layout",
    checkpoint_names={"head.fc.": "head."},
    stored_shapes=_stored_shapes,
    dense_macs=_dense_macs,
)
