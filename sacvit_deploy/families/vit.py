"""The dense Vision Transformer on the DeiT body: the baseline of every comparison.

The other families reuse the sizes, layer names and costs of its body. Touvron et al., "Training
data-efficient image transformers & distillation through attention" (ICML 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sacvit_deploy.decode import check_field
from sacvit_deploy.families.family import Family
from sacvit_deploy.spec import BATCH, IMAGE, LOGITS, InputKind, Role, Selection, TensorSpec

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.families.family import Counted, Tensors


# DeiT, table 1: embed_dim, depth, num_heads; and the picture sides there are presets for.
_BODIES = {
    "deit_tiny": ((192, 12, 3), (224,)),
    "deit_small": ((384, 12, 6), (224, 288)),
    "deit_base": ((768, 12, 12), (224,)),
}
# Small enough to train on a desktop: 64 px pictures in 50 classes.
_DEMO = {
    "image_size": (64, 64),
    "patch_size": 8,
    "embed_dim": 384,
    "depth": 5,
    "num_heads": 6,
    "num_classes": 50,
    "mlp_ratio": 2.0,
}
STEM_WIDTH = 64
"""Channels of the convolutions of LV-ViT's stem."""


def deit_presets(prefix: str) -> dict[str, dict[str, Any]]:
    """Fields of `ModelConfig` for every DeiT body, by preset."""
    presets: dict[str, dict[str, Any]] = {}
    for body, ((width, depth, heads), sides) in _BODIES.items():
        for side in sides:
            presets[f"{prefix}{body}_patch16_{side}"] = {
                "image_size": (side, side),
                "patch_size": 16,
                "embed_dim": width,
                "depth": depth,
                "num_heads": heads,
            }
    return presets


def demo_preset(prefix: str) -> dict[str, dict[str, Any]]:
    """Fields of `ModelConfig` for the small body of the demo, by preset."""
    return {f"{prefix}demo_patch8_64": dict(_DEMO)}


def image_spec(config: ModelConfig, input_kind: InputKind) -> TensorSpec:
    """Input of every graph that sees the picture, (B, 3, H, W)."""
    dtype: Any = "uint8" if input_kind == "uint8" else "float32"
    return TensorSpec(IMAGE, dtype, (BATCH, 3, *config.image_size))


def logits_spec(config: ModelConfig) -> TensorSpec:
    """Logits, (B, C)."""
    return TensorSpec(LOGITS, "float32", (BATCH, config.num_classes))


def body_macs(config: ModelConfig, length: int, pairs: int) -> int:
    """Cost of blocks and heads for `length` tokens, of which `pairs` attend to each other."""
    width = config.embed_dim
    classified = length if config.aux_weight else 1
    heads = classified * width * config.num_classes
    return config.depth * block_macs(config, length, pairs) + heads


def block_macs(config: ModelConfig, length: int, pairs: int) -> int:
    """Cost of one block for `length` tokens, of which `pairs` attend to each other."""
    linear = 4 * config.embed_dim**2 + mlp_macs(config)
    return length * linear + 2 * pairs * config.embed_dim


def unread_macs(config: ModelConfig, length: int, pairs: int) -> int:
    """Part of `body_macs` that no head reads, and no graph computes.

    In the last block, queries, keys and values of all tokens are one product. What comes after
    them is for the class token alone, unless there is a head on the patches.
    """
    if config.aux_weight:
        return 0
    projected = (length - 1) * 3 * config.embed_dim**2
    class_token = block_macs(config, 1, length)
    return block_macs(config, length, pairs) - projected - class_token


def mlp_macs(config: ModelConfig) -> int:
    """Cost of one token in an MLP."""
    return 2 * config.embed_dim * round(config.embed_dim * config.mlp_ratio)


def patch_macs(config: ModelConfig, count: int) -> int:
    """Cost of embedding `count` patches."""
    if config.stem == "patch":
        return count * 3 * config.patch_size**2 * config.embed_dim
    # At half the resolution: 7 x 7 over the colours, twice 3 x 3, and the projection.
    pixels = count * config.patch_size**2 // 4
    return pixels * STEM_WIDTH * (49 * 3 + 2 * 9 * STEM_WIDTH + config.embed_dim)


def dense_macs(config: ModelConfig, counted: Counted = "papers") -> int:
    """Multiply-accumulates of the dense network of the same body on the whole picture.

    See `graph_macs` for what is counted.
    """
    tokens = config.num_fine_tokens
    size = tokens + 1, (tokens + 1) ** 2
    unread = 0 if counted == "papers" else unread_macs(config, *size)
    return body_macs(config, *size) - unread + patch_macs(config, tokens)


def check_patches(config: ModelConfig) -> None:
    """Raise `ConfigError` if the patches do not divide the image."""
    check_image_size(config, config.patch_size, "the")


def check_image_size(config: ModelConfig, step: int, what: str) -> None:
    """Raise `ConfigError` if the patches do not divide the image.

    Args:
        config: The network.
        step: Divisor of both sides, in pixels.
        what: `the` or `twice the`, to precede "patch size".
    """
    fits = all(side > 0 and side % step == 0 for side in config.image_size)
    wanted = f"two multiples of {step} ({what} patch size)"
    check_field(fits, "image_size", config.image_size, wanted)


def single_tensors(
    config: ModelConfig, _: Selection, input_kind: InputKind
) -> dict[Role, tuple[Tensors, Tensors]]:
    """Inputs and outputs of a network of one graph: the picture, and logits."""
    return {"single": ((image_spec(config, input_kind),), (logits_spec(config),))}


def _macs(config: ModelConfig, counted: Counted) -> dict[Role, int]:
    return {"single": dense_macs(config, counted)}


def body_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that tell the sizes of a body, by name."""
    width = config.embed_dim
    channels, patch = 3, config.patch_size
    if config.stem == "conv":
        channels, patch = STEM_WIDTH, patch // 2
    return {
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "blocks.0.mlp.fc1.weight": (round(width * config.mlp_ratio), width),
        "head.weight": (config.num_classes, width),
    }


def table_shapes(config: ModelConfig, table: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the class token and of the position table of that name."""
    width = config.embed_dim
    return {"cls_token": (1, 1, width), table: (1, config.num_fine_tokens + 1, width)}


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return body_shapes(config) | table_shapes(config, "pos_embed")


VIT = Family(
    name="vit",
    title="ViT",
    presets=deit_presets("") | demo_preset(""),
    files={"single": "model.onnx"},
    section=None,
    check=check_patches,
    tensors=single_tensors,
    macs=_macs,
    model="sacvit_deploy.model.vit:VisionTransformer",
    view="sacvit_deploy.model.views:single_view",
    layout="sacvit_deploy.model.layouts:dense_layout",
    checkpoint_names={},
    stored_shapes=_stored_shapes,
)
