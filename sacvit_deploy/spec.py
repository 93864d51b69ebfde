"""What a model is and what its graphs take and give: plain data that every layer shares.

Nothing here needs torch or an inference runtime. Letters follow the SAC-ViT paper: B batch,
D embedding width, N coarse tokens, M target tokens, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from sacvit_deploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Family = Literal["sac_vit", "cf_vit", "vit"]
Role = Literal["early_exit", "refine", "single"]
Selection = Literal["host", "graph"]
InputKind = Literal["float", "uint8"]
WeightStorage = Literal["fp32", "fp16"]

# Tensor names, the same in torch, in ONNX and in an engine.
IMAGE = "image"
LOGITS = "logits"
SCORE = "score"
COARSE_EMBEDDINGS = "coarse_embeddings"
COARSE_FEATURES = "coarse_features"
TARGET_INDEX = "target_index"
NON_TARGET_INDEX = "non_target_index"
FINE_INDEX = "fine_index"
SURVIVOR_ROWS = "survivor_rows"

BATCH = "batch"
SURVIVORS = "survivors"

# alpha * N is meant in the reals: .88 * 25 must be 22, whatever the last bit of the product.
_COUNT_SLACK = 1e-9

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TwoStageConfig:
    """Everything that distinguishes one two-stage network from another.

    Attributes:
        alpha: Share of coarse tokens looked at again in full resolution, in (0, 1).
        target_rounding: M = floor(alpha N) in SAC-ViT, ceil(alpha N) in CF-ViT.
        exit_comparison: Exit when the largest softmax probability is `>` (SAC-ViT) or `>=`
            (CF-ViT) the threshold eta.
        attention: `clustered` restricts targets to targets and non-targets to non-targets
            (SAC-ViT); `joint` lets every token attend to every other (CF-ViT).
        cls_update: How the class token, which belongs to both clusters, is updated. `joint`: its
            query attends to all tokens. `mean`: the mean of what it gets from each cluster.
        score_first_block: First 0-based block whose class attention counts in Eq. 10.
        score_beta: Weight of the past in the moving average of Eq. 10, in [0, 1).
        score_start: Value of the moving average before the first block: `zero`, or the `first`
            class attention itself.
        non_target_source: Tokens reused for non-targets: the patch `embedding` with coarse
            positions as it entered block 0, or the `final` normalised token.
        position_tables: 2 learned tables (coarse, fine), or 1 fine table from which the coarse
            one is interpolated.
    """

    alpha: float = 0.5
    target_rounding: Literal["floor", "ceil"] = "floor"
    exit_comparison: Literal[">", ">="] = ">"
    attention: Literal["clustered", "joint"] = "clustered"
    cls_update: Literal["joint", "mean"] = "joint"
    score_first_block: int = 3
    score_beta: float = 0.99
    score_start: Literal["zero", "first"] = "zero"
    non_target_source: Literal["embedding", "final"] = "embedding"
    position_tables: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        check_types(self)
        check_field(
            0 < self.alpha < 1, "alpha", self.alpha, "a number between 0 and 1, both excluded"
        )
        check_field(0 <= self.score_beta < 1, "score_beta", self.score_beta, "a number in [0, 1)")
        check_field(
            self.score_first_block >= 0, "score_first_block", self.score_first_block, "0 or more"
        )


@dataclass(frozen=True)
class ModelConfig:
    """One network: the DeiT body and, for two-stage families, what happens around it.

    Attributes:
        family: `sac_vit`, `cf_vit`, or `vit` for the dense baseline.
        image_size: (height, width) of the full-resolution input in pixels.
        patch_size: Side of the square patches in pixels.
        embed_dim: Embedding width D.
        depth: Number of blocks.
        num_heads: Attention heads; divides D.
        num_classes: C.
        mlp_ratio: Hidden width of the MLPs over D.
        layer_norm_eps: Added to the variance in every LayerNorm.
        two_stage: None for one-graph families.
    """

    family: Family
    image_size: tuple[int, int]
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    two_stage: TwoStageConfig | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "num_classes"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check_field(
            self.embed_dim % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"a divisor of embed_dim {self.embed_dim}",
        )
        wanted = (self.family != "vit") == (self.two_stage is not None)
        check_field(
            wanted,
            "two_stage",
            self.two_stage,
            f"set for two-stage families only; this is {self.family}",
        )
        step = self.patch_size * (2 if self.two_stage else 1)
        check_field(
            all(side > 0 and side % step == 0 for side in self.image_size),
            "image_size",
            self.image_size,
            f"two multiples of {step} ({'twice the' if self.two_stage else 'the'} patch size)",
        )
        if self.two_stage:
            self._check_two_stage(self.two_stage)

    def _check_two_stage(self, two_stage: TwoStageConfig) -> None:
        check_field(
            two_stage.score_first_block < self.depth,
            "score_first_block",
            two_stage.score_first_block,
            f"a block of this network, 0 to {self.depth - 1}",
        )
        tokens = self.num_coarse_tokens
        check_field(
            1 <= self.num_targets < tokens,
            "alpha",
            two_stage.alpha,
            f"such that at least one and not all of the {tokens} coarse tokens are targets",
        )

    @property
    def stages(self) -> TwoStageConfig:
        """The two-stage part.

        Raises:
            ConfigError: The family has one graph and no such part.
        """
        if self.two_stage is None:
            raise ConfigError(
                f"The family {self.family!r} has one stage; what was asked needs two.",
                "Use a sac_ or cf_ preset.",
            )
        return self.two_stage

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

    @property
    def num_targets(self) -> int:
        """M: coarse tokens looked at again in full resolution."""
        product = self.stages.alpha * self.num_coarse_tokens
        if self.stages.target_rounding == "floor":
            return math.floor(product + _COUNT_SLACK)
        return math.ceil(product - _COUNT_SLACK)

    def replace(self, **fields: Any) -> ModelConfig:
        """A copy with other values; fields of the two-stage part are named without a prefix.

        Raises:
            ConfigError: A field does not exist, or the values do not fit together.
        """
        stage_names = {f.name for f in dataclasses.fields(TwoStageConfig)}
        own_names = {f.name for f in dataclasses.fields(ModelConfig)}
        unknown = sorted(set(fields) - stage_names - own_names)
        if unknown:
            raise ConfigError(
                f"Unknown model field: {', '.join(unknown)}.",
                f"Known fields: {', '.join(sorted(own_names | stage_names))}.",
            )
        stage_fields = {k: v for k, v in fields.items() if k in stage_names}
        own_fields = {k: v for k, v in fields.items() if k in own_names}
        if stage_fields:
            base = own_fields.get("two_stage", self.stages)
            own_fields["two_stage"] = dataclasses.replace(base, **stage_fields)
        return dataclasses.replace(self, **own_fields)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read a mapping written by `to_dict`.

        Raises:
            ConfigError: A field is missing, unknown, or out of range.
        """
        fields = dict(values)
        try:
            stages = fields.pop("two_stage", None)
            fields["image_size"] = tuple(fields["image_size"])
            return cls(**fields, two_stage=TwoStageConfig(**stages) if stages else None)
        except (TypeError, KeyError) as error:
            raise ConfigError(
                f"The model configuration cannot be read: {error}.",
                "Export the bundle again with this release.",
            ) from error


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the input tensor: resize, centre crop, normalise.

    Attributes:
        crop: (height, width) of the result in pixels.
        crop_ratio: Crop side over the side the picture is resized to, in (0, 1].
        interpolation: Pillow's name of the resampling filter.
        mean: Per RGB channel, on the 0 to 1 scale.
        std: Per RGB channel, on the 0 to 1 scale.
    """

    crop: tuple[int, int]
    crop_ratio: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_types(self)
        check_field(0 < self.crop_ratio <= 1, "crop_ratio", self.crop_ratio, "a number in (0, 1]")
        check_field(all(s > 0 for s in self.std), "std", self.std, "three positive numbers")
        check_field(all(side >= 1 for side in self.crop), "crop", self.crop, "two positive numbers")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read a mapping written by `dataclasses.asdict`.

        Raises:
            ConfigError: A field is missing, unknown, or out of range.
        """
        try:
            fields: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(
                f"The preprocessing description cannot be read: {error}.",
                "Export the bundle again with this release.",
            ) from error


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one input or output; a string in the shape is a dynamic axis."""

    name: str
    dtype: Literal["float32", "float16", "uint8", "int64"]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """The contract of one graph."""

    role: Role
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = field(default=())


_FILES: dict[tuple[Family, Role], str] = {
    ("sac_vit", "early_exit"): "ee.onnx",
    ("sac_vit", "refine"): "sac.onnx",
    ("cf_vit", "early_exit"): "coarse.onnx",
    ("cf_vit", "refine"): "fine.onnx",
    ("vit", "single"): "model.onnx",
}


def graph_specs(
    config: ModelConfig, *, selection: Selection = "host", input_kind: InputKind = "float"
) -> tuple[GraphSpec, ...]:
    """The graphs a model is exported to, in the order they run.

    With `selection="host"` the refine graph takes the survivors' rows of every tensor and the
    indices the host chose. With `"graph"` it takes the tensors of the whole batch as the early-exit
    graph left them plus the survivors' row numbers, and chooses by itself.
    """
    image = _image_spec(config, input_kind, BATCH)
    logits = TensorSpec(LOGITS, "float32", (BATCH, config.num_classes))
    if config.two_stage is None:
        return (GraphSpec("single", _FILES[config.family, "single"], (image,), (logits,)),)
    hand_off = _hand_off(config, BATCH)
    first = GraphSpec(
        "early_exit", _FILES[config.family, "early_exit"], (image,), (logits, *hand_off)
    )
    return first, _refine_spec(config, selection, input_kind)


def _refine_spec(config: ModelConfig, selection: Selection, input_kind: InputKind) -> GraphSpec:
    file = _FILES[config.family, "refine"]
    targets, tokens = config.num_targets, config.num_coarse_tokens
    image = _image_spec(config, input_kind, BATCH)
    if selection == "host":
        tensors = [t for t in _hand_off(config, BATCH) if t.name != SCORE]
        indices = (
            TensorSpec(TARGET_INDEX, "int64", (BATCH, targets)),
            TensorSpec(NON_TARGET_INDEX, "int64", (BATCH, tokens - targets)),
            TensorSpec(FINE_INDEX, "int64", (BATCH, 4 * targets)),
        )
        logits = TensorSpec(LOGITS, "float32", (BATCH, config.num_classes))
        return GraphSpec("refine", file, (image, *tensors, *indices), (logits,))
    rows = TensorSpec(SURVIVOR_ROWS, "int64", (SURVIVORS,))
    outputs = (
        TensorSpec(LOGITS, "float32", (SURVIVORS, config.num_classes)),
        TensorSpec(TARGET_INDEX, "int64", (SURVIVORS, targets)),
    )
    return GraphSpec("refine", file, (image, *_hand_off(config, BATCH), rows), outputs)


def _image_spec(config: ModelConfig, input_kind: InputKind, batch: str) -> TensorSpec:
    dtype: Literal["uint8", "float32"] = "uint8" if input_kind == "uint8" else "float32"
    return TensorSpec(IMAGE, dtype, (batch, 3, *config.image_size))


def _hand_off(config: ModelConfig, batch: str) -> tuple[TensorSpec, ...]:
    """What the first stage leaves for the second; embeddings only where they are reused."""
    tokens, width = config.num_coarse_tokens, config.embed_dim
    tensors = [TensorSpec(SCORE, "float32", (batch, tokens))]
    if config.stages.non_target_source == "embedding":
        tensors.append(TensorSpec(COARSE_EMBEDDINGS, "float32", (batch, tokens, width)))
    tensors.append(TensorSpec(COARSE_FEATURES, "float32", (batch, tokens, width)))
    return tuple(tensors)


def check_field(holds: bool, name: str, found: object, wanted: str) -> None:
    """Refuse a value of a configuration.

    Args:
        holds: Whether the value is right.
        name: Of the field.
        found: The value.
        wanted: What would be right, as in "Make it {wanted}".

    Raises:
        ConfigError: It does not hold.
    """
    if not holds:
        raise ConfigError(f"{name} is {found!r}.", f"Make it {wanted}.")


def check_types(config: object) -> None:
    """Refuse a configuration whose fields are not what their annotations say.

    A file or a command line may bring anything.

    Raises:
        ConfigError: A value is of another type, or not one of the choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            wanted = "one of " + ", ".join(map(repr, get_args(hint)))
            check_field(value in get_args(hint), name, value, wanted)
        elif get_origin(hint) is tuple:
            kinds = get_args(hint)
            fits = isinstance(value, tuple) and len(value) == len(kinds)
            fits = fits and all(map(_is_a, value, kinds))
            check_field(fits, name, value, f"{len(kinds)} numbers")
        elif hint in (int, float):
            check_field(_is_a(value, hint), name, value, f"of type {hint.__name__}")


def _is_a(value: object, kind: type) -> bool:
    """As a type checker sees it: an int is a float, and a bool is neither."""
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and not isinstance(value, bool)
