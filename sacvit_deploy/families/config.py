"""The configuration of one network, its graphs and cost, and the presets.

Letters follow the SAC-ViT paper: B batch, D embedding width, N coarse tokens, M target tokens,
C classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sacvit_deploy.decode import OPTIONAL, check_field, check_types, shown
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families import FAMILIES, family_named
from sacvit_deploy.families.stvit import SemanticConfig
from sacvit_deploy.families.svit import GateConfig
from sacvit_deploy.families.svit_adapter import AdapterConfig
from sacvit_deploy.families.swin import SwinConfig
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.families.vit import dense_macs
from sacvit_deploy.spec import (
    LOGITS,
    MAX_SIDE,
    GraphSpec,
    InputKind,
    Preprocessing,
    Role,
    Selection,
)

if TYPE_CHECKING:
    from sacvit_deploy.families.family import Counted


_GIGA = 1e9
_SUGGESTIONS = 4  # presets named instead of an unknown one

# Fields of `ModelConfig` with the configuration of some families.
_SECTIONS: dict[str, Any] = {
    "two_stage": TwoStageConfig,
    "semantic": SemanticConfig,
    "gates": GateConfig,
    "swin": SwinConfig,
    "adapter": AdapterConfig,
}

# Far above every network of these families, and small enough to count with.
_LARGEST = {
    "patch_size": MAX_SIDE,
    "embed_dim": 1 << 20,
    "depth": 10**4,
    "num_heads": 1 << 20,
    "num_classes": 10**7,
}


@dataclass(frozen=True)
class ModelConfig:
    """One network: its body and, in two-stage families, its stages.

    Attributes:
        family: A name of `sacvit_deploy.families.FAMILIES`.
        image_size: (height, width) of the full-resolution input in pixels.
        patch_size: Side of the square patches in pixels.
        embed_dim: Embedding width D.
        depth: Number of blocks.
        num_heads: Number of attention heads; divides D.
        num_classes: Number of classes C.
        mlp_ratio: Hidden width of the MLPs over D.
        layer_norm_eps: Term added to the variance in every LayerNorm.
        stem: How a picture becomes tokens: a projection of each `patch`, or the `conv` stem of
            LV-ViT.
        qkv_bias: Whether the qkv projections have a bias.
        residual_scale: Factor of every residual branch, above 0; LV-ViT's is 0.5.
        aux_weight: Weight of the head on the patches, whose largest logits are added to those of
            the class token (LV-ViT); 0 for no such head.
        two_stage: Configuration of the stages; None in families of one stage.
        semantic: Configuration of the semantic tokens (STViT); None in other families.
        gates: Configuration of the gates; None in families without gates.
        swin: Stages and windows of Swin and STViT-R; None in other families. Then `embed_dim` and
            `num_heads` are those of the first stage, and `depth` is the sum of all stages.
        adapter: Gates and adapter of a backbone for detection (SViT); None in other families.

    Raises:
        ConfigError: A value is of another type, out of range, or does not fit the others.
    """

    family: str
    image_size: tuple[int, int]
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    stem: Literal["patch", "conv"] = "patch"
    qkv_bias: bool = True
    residual_scale: float = 1.0
    aux_weight: float = 0.0
    two_stage: TwoStageConfig | None = None
    semantic: SemanticConfig | None = field(default=None, metadata=OPTIONAL)
    gates: GateConfig | None = field(default=None, metadata=OPTIONAL)
    swin: SwinConfig | None = field(default=None, metadata=OPTIONAL)
    adapter: AdapterConfig | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        check_types(self)
        for name, most in _LARGEST.items():
            number = getattr(self, name)
            check_field(1 <= number <= most, name, number, f"a number from 1 to {most}")
        sides, wanted = self.image_size, f"at most {MAX_SIDE} pixels high and wide"
        check_field(max(sides) <= MAX_SIDE, "image_size", sides, wanted)
        ratio, eps = self.mlp_ratio, self.layer_norm_eps
        check_field(0 < ratio <= 1000, "mlp_ratio", ratio, "above 0 and at most 1000")
        check_field(0 <= eps <= 1, "layer_norm_eps", eps, "a number in [0, 1]")
        scale, aux = self.residual_scale, self.aux_weight
        check_field(0 < scale <= 1000, "residual_scale", scale, "above 0 and at most 1000")
        check_field(0 <= aux <= 1000, "aux_weight", aux, "a number from 0 to 1000")
        halves = self.stem == "patch" or self.patch_size % 2 == 0
        check_field(halves, "patch_size", self.patch_size, "even: the conv stem halves it")
        check_field(
            self.embed_dim % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"a divisor of embed_dim {self.embed_dim}",
        )
        self._check_sections()
        family_named(self.family).check(self)

    def _check_sections(self) -> None:
        own = family_named(self.family).section
        for name in _SECTIONS:
            section = getattr(self, name)
            wanted = "set" if name == own else "null"
            check_field(
                (section is None) == (name != own),
                name,
                section,
                f"{wanted} in the family {self.family}",
            )

    @property
    def stages(self) -> TwoStageConfig:
        """Configuration of the stages; `ConfigError` if the family has one stage."""
        if self.two_stage is None:
            raise ConfigError(
                f"The family {self.family!r} has one stage, and this needs two.",
                "Use a preset of a two-stage family, such as sac_deit_small_patch16_224.",
            )
        return self.two_stage

    @property
    def semantic_tokens(self) -> SemanticConfig:
        """Configuration of the semantic tokens; `ConfigError` in another family."""
        if self.semantic is None:
            raise ConfigError(
                f"The family {self.family!r} has no semantic tokens.",
                "Use a preset of STViT, such as stvit_deit_small_patch16_224.",
            )
        return self.semantic

    @property
    def gating(self) -> GateConfig:
        """Configuration of the gates; `ConfigError` if the family has none."""
        gates = self.gates or self.adapter
        if gates is None:
            raise ConfigError(
                f"The family {self.family!r} has no gates, and this needs them.",
                "Use a preset of SViT, such as svit_deit_small_patch16_224.",
            )
        return gates

    @property
    def fine_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of the full-resolution image."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def coarse_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of the half-size image."""
        rows, columns = self.fine_grid
        return rows // 2, columns // 2

    @property
    def num_fine_tokens(self) -> int:
        """4N: patches of the full-resolution image."""
        return math.prod(self.fine_grid)

    @property
    def num_coarse_tokens(self) -> int:
        """N: patches of the half-size image."""
        return math.prod(self.coarse_grid)

    @functools.cached_property  # asked for in every batch
    def num_targets(self) -> int:
        """M: coarse tokens refined in full resolution."""
        return self.stages.num_targets(self.num_coarse_tokens)

    def replace(self, **fields: Any) -> ModelConfig:
        """Copy with other values; fields of the family's section are named without a prefix.

        `ConfigError` if a field does not exist or the values do not fit together.
        """
        section = family_named(self.family).section
        own_names = {f.name for f in dataclasses.fields(ModelConfig)}
        inner_names = {f.name for f in dataclasses.fields(_SECTIONS[section])} if section else set()
        unknown = sorted(set(fields) - own_names - inner_names)
        if unknown:
            self._check_section_of(unknown)
            raise ConfigError(
                f"The family {self.family!r} has no field {', '.join(unknown)}.",
                f"Known fields: {', '.join(sorted(own_names | inner_names))}.",
            )
        inner = {k: v for k, v in fields.items() if k in inner_names}
        own = {k: v for k, v in fields.items() if k in own_names}
        if section and inner:
            own[section] = dataclasses.replace(own.get(section, getattr(self, section)), **inner)
        return dataclasses.replace(self, **own)

    def _check_section_of(self, fields: list[str]) -> None:
        """Raise a `ConfigError` that names the section of these fields, if they are of one."""
        checked = {"two_stage": "stages", "semantic": "semantic_tokens", "gates": "gating"}
        for section, of_section in checked.items():
            known = {f.name for f in dataclasses.fields(_SECTIONS[section])}
            if known.issuperset(fields):
                try:
                    getattr(self, of_section)
                except ConfigError as error:
                    named = ", ".join(fields)
                    raise ConfigError(f"{named} was set. {error.problem}", error.fix) from error


def graph_specs(
    config: ModelConfig, *, selection: Selection = "host", input_kind: InputKind = "float"
) -> tuple[GraphSpec, ...]:
    """Inputs and outputs of every graph of a network, in the order in which the graphs run.

    Args:
        config: The network.
        selection: Place where target tokens are chosen; it sets the inputs of the refine graph.
        input_kind: Kind of the image input.
    """
    family = family_named(config.family)
    tensors = family.tensors(config, selection, input_kind)
    return tuple(
        GraphSpec(role, file, *tensors[role])
        for role, file in family.files.items()
        if role in tensors
    )


def number_of_classes(config: ModelConfig) -> int:
    """C of a network that gives logits, and 0 of one that gives features."""
    outputs = {tensor.name for spec in graph_specs(config) for tensor in spec.outputs}
    return config.num_classes if LOGITS in outputs else 0


def graph_macs(config: ModelConfig, counted: Counted = "papers") -> dict[Role, int]:
    """Multiply-accumulates of each graph for one picture, as the papers count their "FLOPs".

    Linear layers, the two products of every attention, the patch embedding and the fusion count.
    Softmax, norms, GELU and additions do not.

    Args:
        config: The network.
        counted: `papers` counts every token in every block, and the pairs of tokens that may attend
            to each other. `needed` counts attention, its output projection and the MLP of the last
            block for the class token alone, if only a head on it follows; the first stage hands on
            the others. `graph` counts what an exported graph computes: `needed`, and in clustered
            attention all pairs, which it masks. DeiT-S at 224 px has 4.60, 4.31 and 4.31 G, the
            second stage of SAC-ViT on it 2.77, 2.60 and 2.64 G.
            `sacvit_deploy/families/stvit_r.py` says what its authors count otherwise.

    Returns:
        By role.
    """
    return family_named(config.family).macs(config, counted)


def dense_body_macs(config: ModelConfig) -> int:
    """Multiply-accumulates of the dense network of the same body, as papers count them."""
    count = family_named(config.family).dense_macs or dense_macs
    return count(config)


def mean_macs_g(config: ModelConfig, refine_fraction: float) -> float:
    """Mean cost of a picture, in 1e9 multiply-accumulates.

    Args:
        config: The network.
        refine_fraction: Share of the pictures that are refined, in [0, 1]; has no effect on a
            network of one stage.
    """
    first, *later = graph_macs(config).values()
    return (first + refine_fraction * sum(later)) / _GIGA


PRESETS: dict[str, ModelConfig] = {
    name: ModelConfig(family.name, **fields)
    for family in FAMILIES.values()
    for name, fields in family.presets.items()
}


def preset(name: str) -> ModelConfig:
    """Find a preset by its name; `ConfigError` if there is none."""
    if name not in PRESETS:
        nearest = ", ".join(difflib.get_close_matches(name, PRESETS, _SUGGESTIONS, cutoff=0))
        raise ConfigError(
            f"There is no preset {shown(name)}.",
            f"The nearest names are {nearest}. sacvit-deploy export --help lists all.",
        )
    return PRESETS[name]


def preset_preprocessing(config: ModelConfig) -> Preprocessing:
    """DeiT's evaluation transform; networks for small pictures take them whole.

    A network that gives features sees all of a picture, at its own ratio of the sides.
    """
    if not number_of_classes(config):
        return Preprocessing(config.image_size, 1.0, interpolation="bilinear", fit="pad")
    return Preprocessing(
        config.image_size, crop_ratio=0.875 if min(config.image_size) > 64 else 1.0
    )
