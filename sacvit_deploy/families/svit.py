"""SViT: every later block updates only the tokens that a gate before it keeps.

Liu et al., "Revisiting Token Pruning for Object Detection and Instance Segmentation" (WACV 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.decode import check_field, check_types
from sacvit_deploy.families.family import Family
from sacvit_deploy.families.vit import (
    block_macs,
    body_shapes,
    check_patches,
    deit_presets,
    demo_preset,
    image_spec,
    logits_spec,
    patch_macs,
    table_shapes,
    unread_macs,
)
from sacvit_deploy.spec import (
    BATCH,
    KEPT,
    KEPT_MASK,
    OVERFLOW,
    InputKind,
    Role,
    Selection,
    TensorSpec,
)

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.families.family import Counted, Tensors

PUBLISHED_SHARE = 0.7
"""Share of the tokens that the gates of the first third keep; the others keep .7² and .7³."""


@dataclass(frozen=True)
class GateConfig:
    """Gates of a network.

    Attributes:
        first_block: Index of the first block with a gate; all later blocks have one.
        class_token: Whether the class token is `always` kept; or `gated_last`, by the last gate
            alone, as published; or `none`: there is no class token.
        mode: How the graph computes: `masked`, all tokens, those not kept under a mask; `exact`,
            the kept tokens of one picture; `capacity`, the most certain tokens of each picture,
            the same number for all.
        capacity: These numbers: one per gate, or one for each of equal parts of the gates. The
            other modes ignore it.
        strict: Whether pictures that keep more than `capacity` anywhere are computed again by a
            second graph, on all tokens.

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    first_block: int = 3
    class_token: Literal["always", "gated_last", "none"] = "gated_last"
    mode: Literal["masked", "exact", "capacity"] = "masked"
    capacity: tuple[int, ...] = ()
    strict: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_field(self.first_block >= 0, "first_block", self.first_block, "0 or more")
        numbers = len(self.capacity) <= 1 << 12 and all(count >= 1 for count in self.capacity)
        check_field(numbers, "capacity", self.capacity, "numbers of tokens, 1 or more each")
        fits = not self.strict or self.mode == "capacity"
        check_field(fits, "strict", self.strict, "false: only mode=capacity leaves tokens out")


def gate_count(config: ModelConfig) -> int:
    """Number of gates of a network."""
    return config.depth - config.gating.first_block


def gated_length(config: ModelConfig) -> int:
    """Number of tokens that every gate sees: the patches, and the class token if there is one."""
    return config.num_fine_tokens + (config.gating.class_token != "none")


def capacities(config: ModelConfig) -> tuple[int, ...]:
    """Tokens that each gated block computes in the mode `capacity`, by gate."""
    return _spread(config.gating.capacity, gate_count(config))


def published_shares(gates: int, share: float = PUBLISHED_SHARE) -> tuple[float, ...]:
    """Share of the tokens that each gate is trained to keep: powers of `share` by thirds."""
    return tuple(share ** (1 + 3 * gate // gates) for gate in range(gates))


def gated_macs(config: ModelConfig, kept: Sequence[int], counted: Counted = "papers") -> int:
    """Multiply-accumulates for one picture, of which each gated block computes `kept` tokens.

    See `graph_macs` for what is counted.
    """
    computed = [max(1, count) for count in kept]  # the last block has the class token, kept or not
    blocks = encoder_macs(config, computed)
    last = computed[-1]
    unread = 0 if counted == "papers" else unread_macs(config, last, last**2)
    ends = patch_macs(config, config.num_fine_tokens) + config.embed_dim * config.num_classes
    return blocks - unread + ends


def encoder_macs(config: ModelConfig, kept: Sequence[int]) -> int:
    """The same of the blocks and the gates alone, each block on all of its tokens."""
    tokens, width = gated_length(config), config.embed_dim
    lengths = [tokens] * config.gating.first_block + [*kept]
    blocks = sum(block_macs(config, length, length**2) for length in lengths)
    # LayerNorm aside, a gate is two linear layers on every token: D to D/4, and to 2.
    return blocks + len(kept) * tokens * (width // 4) * (width + 2)


def counted_tokens(config: ModelConfig) -> Sequence[int]:
    """Tokens that each gated block computes; in `exact` as if the published shares were kept."""
    tokens, gates = gated_length(config), gate_count(config)
    if config.gating.mode == "capacity":
        return capacities(config)
    if config.gating.mode == "exact":
        return [round(tokens * share) for share in published_shares(gates)]
    return [tokens] * gates


def _spread(counts: tuple[int, ...], gates: int) -> tuple[int, ...]:
    """Repeat each number for its part of the gates; the parts are equal."""
    return tuple(counts[gate * len(counts) // gates] for gate in range(gates))


def _check(config: ModelConfig) -> None:
    class_token = config.gating.class_token
    wanted = "always or gated_last: the class token answers"
    check_field(class_token != "none", "class_token", class_token, wanted)
    check_gates(config)


def check_gates(config: ModelConfig) -> None:
    """Raise `ConfigError` if body and gates do not fit together."""
    check_patches(config)
    gating, tokens = config.gating, gated_length(config)
    first, counts = gating.first_block, gating.capacity
    wanted = f"a block of this network, 0 to {config.depth - 1}"
    check_field(first < config.depth, "first_block", first, wanted)
    check_field(config.aux_weight == 0, "aux_weight", config.aux_weight, "0: only DeiT has gates")
    if gating.mode == "capacity":
        gates = gate_count(config)
        fits = bool(counts) and gates % len(counts) == 0 and max(counts) <= tokens
        wanted = (
            f"numbers from 1 to {tokens}, as many as gates ({gates}) or as a divisor of that; "
            "capacities of a data set: --calibration-data"
        )
        check_field(fits, "capacity", counts, wanted)


def _tensors(
    config: ModelConfig, _: Selection, input_kind: InputKind
) -> dict[Role, tuple[Tensors, Tensors]]:
    """Inputs and outputs: one graph, and if it is strict a second one for what overflows."""
    image, logits = image_spec(config, input_kind), logits_spec(config)
    tensors: dict[Role, tuple[Tensors, Tensors]] = {"single": gated_graph(config, image, (logits,))}
    if config.gating.strict:
        tensors["refine"] = (image,), (logits, *_decisions(config))
    return tensors


def gated_graph(
    config: ModelConfig, image: TensorSpec, answers: Tensors
) -> tuple[Tensors, Tensors]:
    """Inputs and outputs of a graph in the configured mode: answers, and what gates decided."""
    outputs = (*answers, *_decisions(config))
    if config.gating.mode == "capacity":
        outputs = (*outputs, TensorSpec(OVERFLOW, "int64", (BATCH,)))
    if config.gating.mode == "exact":
        return (_of_one(image),), tuple(map(_of_one, outputs))
    return (image,), outputs


def _decisions(config: ModelConfig) -> Tensors:
    gates = gate_count(config)
    kept = TensorSpec(KEPT, "int64", (BATCH, gates))
    return kept, TensorSpec(KEPT_MASK, "uint8", (BATCH, gates, gated_length(config)))


def _of_one(tensor: TensorSpec) -> TensorSpec:
    """The same tensor at batch 1: the number of kept tokens differs from picture to picture."""
    return dataclasses.replace(tensor, shape=(1, *tensor.shape[1:]))


def _macs(config: ModelConfig, counted: Counted) -> dict[Role, int]:
    macs: dict[Role, int] = {"single": gated_macs(config, counted_tokens(config), counted)}
    if config.gating.strict:
        every = [gated_length(config)] * gate_count(config)
        macs["refine"] = gated_macs(config, every, counted)
    return macs


def _before_the_gates(config: ModelConfig) -> tuple[str, ...]:
    """Linear layers of the blocks without a gate, whose errors reach the decisions of all gates."""
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = range(config.gating.first_block)
    return tuple(f"blocks.{block}.{layer}" for block in blocks for layer in layers)


def _kept_macs(config: ModelConfig, kept: NDArray[np.int64]) -> float:
    """Mean over pictures: in the mode `exact` each computes what it keeps."""
    if config.gating.mode != "exact":
        return _macs(config, "papers")["single"]
    rows, counts = np.unique(kept, axis=0, return_counts=True)
    costs = [gated_macs(config, row) for row in rows.tolist()]
    return float(np.average(costs, weights=counts))


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return body_shapes(config) | table_shapes(config, "pos_embed") | gate_shapes(config)


def gate_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that tell the number of gates, by name."""
    shape = config.embed_dim // 4, config.embed_dim
    return {f"gates.{gate}.mlp.fc1.weight": shape for gate in range(gate_count(config))}


def _presets() -> dict[str, dict[str, Any]]:
    small = "svit_deit_small_patch16_224"
    # PyTorch's encoder layers, which the published code uses, have 1e-5.
    fields = {"layer_norm_eps": 1e-5, "gates": GateConfig()}
    # Four of the demo's five blocks: about the share of DeiT's blocks that has gates.
    demo = {**fields, "gates": GateConfig(first_block=1)}
    presets = {small: {**deit_presets("svit_")[small], **fields}}
    return presets | {name: {**body, **demo} for name, body in demo_preset("svit_").items()}


SVIT = Family(
    name="svit",
    title="SViT",
    presets=_presets(),
    files={"single": "model.onnx", "refine": "masked.onnx"},
    section="gates",
    check=_check,
    tensors=_tensors,
    macs=_macs,
    model="sacvit_deploy.model.svit:SelectiveViT",
    view="sacvit_deploy.model.svit:selective_view",
    layout="sacvit_deploy.model.svit:selective_layout",
    checkpoint_names={"selective_modules.": "gates."},
    stored_shapes=_stored_shapes,
    chooses="kept tokens",
    kept_macs=_kept_macs,
    goes_on="overflow",
    float_in_int8=_before_the_gates,
)
