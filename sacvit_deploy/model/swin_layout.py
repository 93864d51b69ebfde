"""Conversion of checkpoints of Swin and STViT-R, by their authors or by timm, to our names."""

from __future__ import annotations

import re

from torch import Tensor

from sacvit_deploy.families.config import ModelConfig

# Constants that follow from the configuration.
_TABLES = (".relative_position_index", ".attn_mask")
_SCALES = {".ls1.gamma": ".layer_scale_1", ".ls2.gamma": ".layer_scale_2"}
_MERGING = re.compile(r"layers\.(\d{1,6})\.downsample\.(.*)")


def swin_layout(own: dict[str, Tensor], _config: ModelConfig, _stored: ModelConfig | None) -> None:
    """Rename the tensors of timm, in place, and leave out constant tables.

    timm counts a merging with the stage after it, the authors with the one before.
    """
    tensors = {name: tensor for name, tensor in own.items() if not name.endswith(_TABLES)}
    merged = {int(match[1]) for match in map(_MERGING.match, tensors) if match}
    by_timm = bool(merged) and 0 not in merged
    own.clear()
    for name, tensor in tensors.items():
        own[_authors_name(name, by_timm=by_timm)] = tensor


def _authors_name(name: str, *, by_timm: bool) -> str:
    for ending, authors in _SCALES.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + authors
    match = _MERGING.match(name)
    if by_timm and match:
        return f"layers.{int(match[1]) - 1}.downsample.{match[2]}"
    return name
