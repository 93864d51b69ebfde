"""SViT for detection: a ViT with gates and without a class token, and ViT-Adapter beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.svit import gate_count
from sacvit_deploy.families.svit_adapter import adapter_section, feature_grids
from sacvit_deploy.model.adapter import Interaction, SpatialPrior, as_picture
from sacvit_deploy.model.deformable import DeformableAttention
from sacvit_deploy.model.gating import Gate, update_tokens
from sacvit_deploy.model.layouts import DENSE_TABLE, fit_table
from sacvit_deploy.model.stems import BatchNorm
from sacvit_deploy.model.svit import GateMode, choose_tokens, gate_outputs, rename_encoder_layers
from sacvit_deploy.model.vit import Block, Body
from sacvit_deploy.spec import GraphSpec

_PUBLISHED_CONV = "dwconv.dwconv."


class AdapterOutput(NamedTuple):
    """Answer of a network with gates and an adapter.

    Attributes:
        features: c2 to c5, each (B, D, rows, columns).
        keep: Decision of every gate on every token, (B, gates, N).
    """

    features: tuple[Tensor, ...]
    keep: Tensor


class SelectiveAdapter(Body):
    """A Vision Transformer with gates, and an adapter that makes features of its tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width, eps = config.embed_dim, config.layer_norm_eps
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_fine_tokens, width))
        self.gates = nn.ModuleList(Gate(width, eps) for _ in range(gate_count(config)))
        self.spm = SpatialPrior(config)
        self.level_embed = nn.Parameter(torch.zeros(3, width))
        count = adapter_section(config).interactions
        self.interactions = nn.ModuleList(
            Interaction(config, last=number == count - 1) for number in range(count)
        )
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        for number in range(1, 5):
            self.add_module(f"norm{number}", BatchNorm(width))
        self.folded_levels = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as DeiT and its adapter, with gates that keep everything at first."""
        super().reset_parameters()
        nn.init.normal_(self.level_embed)
        for module in self.modules():
            if isinstance(module, DeformableAttention | Gate):
                module.reset_parameters()

    def forward(self, image: Tensor, mode: GateMode | None = None) -> AdapterOutput:
        """Make features; the gates decide without noise.

        Args:
            image: Normalised, (B, 3, H, W); B is 1 in the mode `exact`.
            mode: How to compute the blocks; None is as configured. `masked` and `exact` give the
                same numbers, and so does `capacity` for pictures that do not keep more.
        """
        finest, cells = self._prior(image)
        x, margins = self.embed(image), list[Tensor]()
        for number, each in enumerate(self.interactions):
            interaction = cast("Interaction", each)
            x = interaction.injector(x, cells)
            x = self.run_group(number, x, margins, mode)
            cells = interaction.extract(cells, x)
        return AdapterOutput(self._features(finest, cells, x), torch.stack(margins, dim=1) > 0)

    def embed(self, image: Tensor) -> Tensor:
        """Patches at their positions, (B, 3, H, W) to (B, N, D)."""
        patches: Tensor = self.patch_embed(image)
        return patches + self.pos_embed

    def run_group(
        self, group: int, x: Tensor, margins: list[Tensor], mode: GateMode | None = None
    ) -> Tensor:
        """Run the blocks of one group on (B, N, D); margins of its gates, (B, N), are appended."""
        size = self.config.depth // adapter_section(self.config).interactions
        first = self.config.gating.first_block
        for index in range(group * size, (group + 1) * size):
            block = cast("Block", self.blocks[index])
            if index < first:
                x = block(x)
                continue
            margins.append(self.gates[index - first](x))
            chosen = choose_tokens(self.config, index - first, x, margins[-1], mode)
            x = update_tokens(block, x, chosen)
        return x

    def _prior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The finest picture of features, (B, D, H/4, W/4), and the cells of the others."""
        finest, *others = self.spm(image)
        parts = [other.flatten(2).transpose(1, 2) for other in others]
        if not self.folded_levels:
            parts = [p + level for p, level in zip(parts, self.level_embed, strict=True)]
        return finest, torch.cat(parts, dim=1)

    def _features(self, finest: Tensor, cells: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Put pictures together: what was extracted, and the tokens at each resolution."""
        _, *grids = feature_grids(self.config)
        parts = torch.split(cells, [math.prod(grid) for grid in grids], dim=1)
        c3, c4, c5 = (as_picture(part, grid) for part, grid in zip(parts, grids, strict=True))
        sums = zip((self.up(c3) + finest, c3, c4, c5), self._resized(x), strict=True)
        norms = (self.get_submodule(f"norm{number}") for number in range(1, 5))
        return tuple(norm(ours + own) for norm, (ours, own) in zip(norms, sums, strict=True))

    def _resized(self, x: Tensor) -> Iterator[Tensor]:
        """The tokens (B, N, D) as pictures of the size of each feature."""
        tokens = as_picture(x, self.config.fine_grid)
        for grid in feature_grids(self.config)[:2]:
            yield interpolate(tokens, size=grid, mode="bilinear", align_corners=False)
        yield tokens
        # Bilinear at half the size is the mean of two by two.
        yield avg_pool2d(tokens, 2)

    @torch.no_grad()
    def fold(self) -> None:
        """See `VisionModel.fold`."""
        super().fold()
        self.spm.fold(self.level_embed)
        self.folded_levels = True
        for interaction in self.interactions:
            cast("Interaction", interaction).fold()


class AdapterView(nn.Module):
    """A network with an adapter: image to the outputs of the graph's contract."""

    def __init__(self, model: SelectiveAdapter) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs: features, then those of `gate_outputs`."""
        features, keep = self.model(image)
        config = self.model.config
        return (*features, *gate_outputs(config, keep, config.gating.mode))


def adapter_view(model: SelectiveAdapter, _spec: GraphSpec) -> nn.Module:
    """The view of the only graph."""
    return AdapterView(model)


def adapter_layout(own: dict[str, Tensor], config: ModelConfig, stored: ModelConfig | None) -> None:
    """Complete the tensors of a network with an adapter, in place.

    Published blocks have the names of PyTorch's encoder layer, and published positions have a row
    for a class token that does not exist. Positions of another size are interpolated bicubically.
    """
    rename_encoder_layers(own)
    for name in list(own):
        if _PUBLISHED_CONV in name:
            own[name.replace(_PUBLISHED_CONV, "dwconv.")] = own.pop(name)
    table = own.get(DENSE_TABLE)
    if table is not None and stored is None and table.shape[1:2] != (config.num_fine_tokens,):
        own[DENSE_TABLE] = table[:, 1:]
    grid = stored.fine_grid if stored else None
    fit_table(own, DENSE_TABLE, config.fine_grid, grid, class_rows=0)
