"""SViT for detection: a Vision Transformer with gates, and an adapter that makes features of it.

Liu et al., "Revisiting Token Pruning for Object Detection and Instance Segmentation" (WACV 2024),
section 4, on Chen et al., "Vision Transformer Adapter for Dense Predictions" (ICLR 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from sacvit_deploy.decode import check_field
from sacvit_deploy.families.family import Family
from sacvit_deploy.families.svit import (
    GateConfig,
    check_gates,
    counted_tokens,
    encoder_macs,
    gate_shapes,
    gated_graph,
)
from sacvit_deploy.families.vit import check_image_size, image_spec, patch_macs
from sacvit_deploy.spec import BATCH, FEATURES, InputKind, Role, Selection, TensorSpec

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.families.family import Counted, Tensors

    Grid = tuple[int, int]

LAST_EXTRACTORS = 2
"""Extractors that follow that of the last interaction."""

_PATCH = 16
# embed_dim and num_heads, as published.
_BODIES = {"tiny": (192, 3), "small": (384, 6)}
_DETECTION_SIZE = (800, 1344)


@dataclass(frozen=True)
class AdapterConfig(GateConfig):
    """Gates of a network without a class token, and the adapter beside it.

    Attributes:
        class_token: `none`.
        interactions: Number of equal groups of blocks. Before each, features are injected into the
            tokens; after each, features are extracted from them.
        deform_heads: Heads of every deformable attention; divides the embedding width.
        num_points: Places where a head looks in each picture of features.
        ffn_ratio: Hidden width of the extractors' MLP over the embedding width.
        prior_width: Channels of the first convolutions on the picture.

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    class_token: Literal["none"] = "none"
    interactions: int = 4
    deform_heads: int = 6
    num_points: int = 4
    ffn_ratio: float = 0.25
    prior_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("interactions", "deform_heads", "num_points", "prior_width"):
            number = getattr(self, name)
            check_field(1 <= number <= 1 << 12, name, number, "a number from 1 to 4,096")
        check_field(
            0 < self.ffn_ratio <= 1000, "ffn_ratio", self.ffn_ratio, "above 0, at most 1000"
        )
        wanted = "false: there is no second graph for a backbone; use mode=exact or masked"
        check_field(not self.strict, "strict", self.strict, wanted)


def adapter_section(config: ModelConfig) -> AdapterConfig:
    """The section `adapter`; `ConfigError` in a family without it."""
    wanted = "set: this network has an adapter"
    check_field(config.adapter is not None, "adapter", config.adapter, wanted)
    return cast("AdapterConfig", config.adapter)


def feature_grids(config: ModelConfig) -> tuple[Grid, Grid, Grid, Grid]:
    """(rows, columns) of the features c2 to c5: a fourth to a 32nd of the picture."""
    rows, columns = config.fine_grid
    return (
        (4 * rows, 4 * columns),
        (2 * rows, 2 * columns),
        (rows, columns),
        (rows // 2, columns // 2),
    )


def ffn_width(config: ModelConfig) -> int:
    """Hidden width of the extractors' MLP."""
    return int(config.embed_dim * adapter_section(config).ffn_ratio)


def _check(config: ModelConfig) -> None:
    check_gates(config)
    check_field(config.patch_size == _PATCH, "patch_size", config.patch_size, f"{_PATCH}")
    check_image_size(config, 2 * config.patch_size, "twice the")
    plain = (("stem", "patch"), ("residual_scale", 1.0), ("qkv_bias", True))
    for name, wanted in plain:
        found = getattr(config, name)
        check_field(found == wanted, name, found, f"{wanted}: the adapter is for a DeiT")
    section = adapter_section(config)
    groups, heads = section.interactions, section.deform_heads
    wanted = f"a divisor of the {config.depth} blocks"
    check_field(config.depth % groups == 0, "interactions", groups, wanted)
    wanted = f"a divisor of the embedding width, {config.embed_dim}"
    check_field(config.embed_dim % heads == 0, "deform_heads", heads, wanted)
    wanted = "such that the extractors' MLP has a hidden unit"
    check_field(ffn_width(config) >= 1, "ffn_ratio", section.ffn_ratio, wanted)


def _tensors(
    config: ModelConfig, _: Selection, input_kind: InputKind
) -> dict[Role, tuple[Tensors, Tensors]]:
    features = tuple(
        TensorSpec(name, "float32", (BATCH, config.embed_dim, *grid))
        for name, grid in zip(FEATURES, feature_grids(config), strict=True)
    )
    return {"backbone": gated_graph(config, image_spec(config, input_kind), features)}


def _macs(config: ModelConfig, _: Counted) -> dict[Role, int]:
    """Multiply-accumulates; see `counted_tokens`."""
    body = patch_macs(config, config.num_fine_tokens) + encoder_macs(config, counted_tokens(config))
    adapter = _prior_macs(config) + _interaction_macs(config)
    upsampling = 4 * math.prod(feature_grids(config)[1]) * config.embed_dim**2
    return {"backbone": body + adapter + upsampling}


def _prior_macs(config: ModelConfig) -> int:
    """Cost of the convolutions on the picture; each picture of features is made from the last."""
    channels, width = adapter_section(config).prior_width, config.embed_dim
    areas = [math.prod(grid) for grid in feature_grids(config)]
    # At half the resolution: 3 x 3 over the colours, then twice over the channels.
    macs = 4 * areas[0] * 9 * channels * (3 + 2 * channels)
    sizes = [channels, 2 * channels, 4 * channels, 4 * channels]
    for level, area in enumerate(areas):
        convolved = 9 * sizes[level - 1] * sizes[level] if level else 0
        macs += area * (convolved + sizes[level] * width)
    return macs


def _interaction_macs(config: ModelConfig) -> int:
    section, width = adapter_section(config), config.embed_dim
    _, *areas = (math.prod(grid) for grid in feature_grids(config))
    tokens, features = areas[1], sum(areas)
    # Two linear layers, and a depthwise convolution of 3 x 3 between them.
    ffn = features * ffn_width(config) * (2 * width + 9)
    inject = _deformable_macs(config, tokens, features, len(areas))
    extract = _deformable_macs(config, features, tokens, 1) + ffn
    return section.interactions * (inject + extract) + LAST_EXTRACTORS * extract


def _deformable_macs(config: ModelConfig, queries: int, values: int, levels: int) -> int:
    """Cost of a deformable attention; reading between pixels does not count."""
    section, width = adapter_section(config), config.embed_dim
    points = section.num_points * levels
    # For each point of a head two offsets and a weight; for each channel a sum over the points.
    places = 3 * width * section.deform_heads * points
    return values * width**2 + queries * (places + width * points + width**2)


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    section, width = adapter_section(config), config.embed_dim
    points = section.deform_heads * section.num_points
    extracting = "extractor.attn.attention_weights.weight"
    return {
        "patch_embed.proj.weight": (width, 3, config.patch_size, config.patch_size),
        "blocks.0.mlp.fc1.weight": (round(width * config.mlp_ratio), width),
        "pos_embed": (1, config.num_fine_tokens, width),
        "spm.stem.0.weight": (section.prior_width, 3, 3, 3),
        "interactions.0.extractor.ffn.fc1.weight": (ffn_width(config), width),
        **{f"interactions.{i}.{extracting}": (points, width) for i in range(section.interactions)},
    } | gate_shapes(config)


def _preset(width: int, heads: int, size: Grid, section: AdapterConfig) -> dict[str, Any]:
    return {
        "image_size": size,
        "patch_size": _PATCH,
        "embed_dim": width,
        "depth": 12,
        "num_heads": heads,
        # PyTorch's encoder layers, which the published code uses, have 1e-5.
        "layer_norm_eps": 1e-5,
        "adapter": section,
    }


def _presets() -> dict[str, dict[str, Any]]:
    presets = {
        f"svit_adapter_{body}_backbone": _preset(*sizes, _DETECTION_SIZE, AdapterConfig())
        for body, sizes in _BODIES.items()
    }
    demo = _preset(48, 4, (160, 224), AdapterConfig(deform_heads=4, prior_width=8))
    return presets | {"svit_adapter_demo_160": demo}


SVIT_ADAPTER = Family(
    name="svit_adapter",
    title="SViT with ViT-Adapter",
    presets=_presets(),
    files={"backbone": "backbone.onnx"},
    section="adapter",
    check=_check,
    tensors=_tensors,
    macs=_macs,
    model="sacvit_deploy.model.svit_adapter:SelectiveAdapter",
    view="sacvit_deploy.model.svit_adapter:adapter_view",
    layout="sacvit_deploy.model.svit_adapter:adapter_layout",
    checkpoint_names={"selective_modules.": "gates."},
    stored_shapes=_stored_shapes,
    chooses="kept tokens",
)
