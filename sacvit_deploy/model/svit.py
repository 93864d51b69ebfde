"""SViT for classification: a DeiT whose later blocks update only the tokens that a gate keeps."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.svit import capacities, gate_count
from sacvit_deploy.model.gating import (
    CERTAIN,
    Chosen,
    Gate,
    choose_all,
    choose_exact,
    choose_most_certain,
    sample_kept,
    update_sampled,
    update_tokens,
)
from sacvit_deploy.model.layouts import dense_layout, warn_of_start
from sacvit_deploy.model.vision_model import Answers
from sacvit_deploy.model.vit import Block, ClassTokenBackbone
from sacvit_deploy.spec import GraphSpec

GateMode = Literal["masked", "exact", "capacity"]

_FINAL_EPS = 1e-6  # of the last norm; blocks and gates have that of the configuration

# Published names of the layers of a block, which are those of PyTorch's encoder layer.
_BLOCK = re.compile(r"(blocks\.\d+\.)TransformerEncoderLayer\.(.*)")
_LAYERS = {
    "self_attn.in_proj_": "attn.qkv.",
    "self_attn.out_proj.": "attn.proj.",
    "linear1.": "mlp.fc1.",
    "linear2.": "mlp.fc2.",
}


class SelectiveOutput(NamedTuple):
    """Answer of a network with gates.

    Attributes:
        logits: (B, C).
        keep: Decision of every gate on every token, (B, gates, L).
    """

    logits: Tensor
    keep: Tensor


class SelectiveViT(ClassTokenBackbone):
    """A Vision Transformer with a gate before each of its later blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width, eps = config.embed_dim, config.layer_norm_eps
        self.norm = nn.LayerNorm(width, eps=_FINAL_EPS)
        self.pos_embed = self.position_table(config.num_fine_tokens)
        self.gates = nn.ModuleList(Gate(width, eps) for _ in range(gate_count(config)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as DeiT, with gates that keep everything at first."""
        super().reset_parameters()
        for _, gate in self.gated_blocks():
            gate.reset_parameters()

    def forward(self, image: Tensor, mode: GateMode | None = None) -> SelectiveOutput:
        """Answer; the gates decide without noise.

        Args:
            image: Normalised, (B, 3, H, W); B is 1 in the mode `exact`.
            mode: How to compute; None is as configured. `masked` and `exact` give the same numbers,
                and so does `capacity` for pictures that do not keep more.
        """
        x = self._ungated(image)
        *gated, (last, gate) = self.gated_blocks()
        margins = []
        for number, (block, each) in enumerate(gated):
            margins.append(self._margin(each, x, number))
            x = update_tokens(block, x, self._choose(x, margins[-1], number, mode))
        number = len(gated)
        margins.append(self._margin(gate, x, number))
        # Nothing but the class token is read. It queries in any case, so that there is a query.
        chosen = self._choose(x, _with_class(margins[-1]), number, mode)
        updated = last.class_token(chosen.tokens, mask=chosen.mask)
        kept = margins[-1][:, :1, None] > 0
        logits = self.classify(self.norm(torch.where(kept, updated, x[:, :1])))
        return SelectiveOutput(logits, torch.stack(margins, dim=1) > 0)

    def sequence(self, image: Tensor, mode: GateMode | None = None) -> Tensor:
        """Compute all tokens before the last norm, (B, L, D); arguments as in `forward`."""
        x = self._ungated(image)
        for number, (block, gate) in enumerate(self.gated_blocks()):
            chosen = self._choose(x, self._margin(gate, x, number), number, mode)
            x = update_tokens(block, x, chosen)
        return x

    def answers(self, image: Tensor, *, all_tokens: bool = False) -> Answers:
        """See `VisionModel.answers`; in training mode gates draw their decisions, and learn."""
        del all_tokens  # of two-stage networks
        if not self.training:
            logits, keep = self(image, "masked")
            return Answers(logits, kept=keep.float().mean(dim=(0, 2)))
        x = self._ungated(image)
        shares = []
        for number, (block, gate) in enumerate(self.gated_blocks()):
            kept = sample_kept(self._margin(gate, x, number))
            shares.append(kept.mean())
            x = update_sampled(block, x, kept)
        return Answers(self.classify(self.norm(x)), kept=torch.stack(shares))

    def _ungated(self, image: Tensor) -> Tensor:
        """Embed, and run the blocks without a gate: (B, L, D)."""
        x = self.with_class_token(self.pos_embed, self.patch_embed(image) + self.pos_embed[:, 1:])
        for block in self.encoder()[: self.config.gating.first_block]:
            x = block(x)
        return x

    def gated_blocks(self) -> list[tuple[Block, Gate]]:
        """Each block that has a gate, with its gate, in order."""
        gates = [cast("Gate", gate) for gate in self.gates]
        return list(zip(self.encoder()[-len(gates) :], gates, strict=True))

    def _margin(self, gate: Gate, x: Tensor, number: int) -> Tensor:
        """Margins of all tokens, (B, L), the class token's far above 0 where it is always kept."""
        margin: Tensor = gate(x)
        last = number == len(self.gates) - 1
        if last and self.config.gating.class_token == "gated_last":
            return margin
        return _with_class(margin)

    def _choose(self, x: Tensor, margin: Tensor, number: int, mode: GateMode | None) -> Chosen:
        return choose_tokens(self.config, number, x, margin, mode)


def choose_tokens(
    config: ModelConfig, number: int, x: Tensor, margin: Tensor, mode: GateMode | None
) -> Chosen:
    """Choose the tokens of (B, L, D) that the block of gate `number` computes, by (B, L) margins.

    The mode None is that of the configuration.
    """
    mode = mode or config.gating.mode
    if mode == "exact":
        return choose_exact(x, margin)
    if mode == "capacity":
        return choose_most_certain(x, margin, capacities(config)[number])
    return choose_all(x, margin)


def _with_class(margin: Tensor) -> Tensor:
    """Raise the margin of the class token so that it is kept, and the most certain one."""
    certain = torch.zeros(margin.shape[1], dtype=margin.dtype, device=margin.device)
    certain[0] = CERTAIN
    return margin + certain


class SelectiveView(nn.Module):
    """A network with gates: image to the outputs of the graph's contract."""

    def __init__(self, model: SelectiveViT, mode: GateMode) -> None:
        super().__init__()
        self.model, self.mode = model, mode

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs: logits, kept tokens, their mask, and in `capacity` whether one has no place."""
        logits, keep = self.model(image, self.mode)
        return (logits, *gate_outputs(self.model.config, keep, self.mode))


def gate_outputs(config: ModelConfig, keep: Tensor, mode: GateMode) -> tuple[Tensor, ...]:
    """What a graph tells of its gates' decisions (B, gates, L); see `SelectiveView.forward`."""
    kept = keep.sum(dim=2)
    if mode != "capacity":
        return kept, keep.to(torch.uint8)
    most = torch.tensor(capacities(config), device=kept.device)
    return kept, keep.to(torch.uint8), (kept > most).any(dim=1).to(torch.int64)


def selective_view(model: SelectiveViT, spec: GraphSpec) -> nn.Module:
    """The view of the graph for every picture, or of the one for pictures that overflow."""
    own = spec.role == "single"
    return SelectiveView(model, model.config.gating.mode if own else "masked")


def selective_layout(
    own: dict[str, Tensor], config: ModelConfig, stored: ModelConfig | None
) -> None:
    """Complete the tensors of a network with gates, in place.

    Published blocks have the names of PyTorch's encoder layer. A dense DeiT starts the training:
    its new gates keep everything.
    """
    rename_encoder_layers(own)
    if not any(name.startswith("gates.") for name in own):
        warn_of_start(config)
        own.update(_new_gates(config))
    dense_layout(own, config, stored)


def rename_encoder_layers(own: dict[str, Tensor]) -> None:
    """Rename the tensors of PyTorch's encoder layers to those of a block, in place."""
    for name in list(own):
        if match := _BLOCK.fullmatch(name):
            own[match[1] + _layer(match[2])] = own.pop(name)


def _layer(name: str) -> str:
    for published, layer in _LAYERS.items():
        if name.startswith(published):
            return layer + name.removeprefix(published)
    return name


def _new_gates(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of gates that keep everything but can learn, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for number in range(gate_count(config)):
        gate = Gate(config.embed_dim, config.layer_norm_eps)
        gate.reset_parameters(generator)
        state |= {f"gates.{number}.{name}": t for name, t in gate.state_dict().items()}
    return state
