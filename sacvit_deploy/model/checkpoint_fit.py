"""Does a state dict belong to a model? Everything that does not fit is said in one error."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.checkpoint_layout import COARSE_TABLE, DENSE_TABLE, FINE_TABLE
from sacvit_deploy.model.two_stage import build_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sacvit_deploy.spec import ModelConfig

# Up to here every key is written out; longer lists name the blocks of equal keys together.
_WRITTEN_OUT = 24
_SAMPLE = 8


@dataclass(frozen=True)
class _Differences:
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    def any(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)


def check_fit(state: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """Compare a state dict in the own layout with what a model needs.

    Args:
        state: To be loaded.
        config: The model.
        source: What to call the checkpoint in the error.

    Raises:
        CheckpointError: Names every missing, unexpected and misshapen key, and what the weights
            seem to be instead.
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
    if not found.any():
        return
    if _is_foreign(state, expected):
        raise _foreign(state, source)
    problem = f"{source} does not fit the model."
    classes = _size_of(state).get("num_classes", config.num_classes)
    if classes != config.num_classes:
        problem = f"{source} has {classes} classes, the model {config.num_classes}."
    lines = [problem, *_list_differences(found, state, expected)]
    raise CheckpointError("\n".join(lines), " ".join(_hints(state, config, found)))


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Every weight is a number.

    Raises:
        CheckpointError: Names the tensors that hold NaN or infinity.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinite weights in {len(broken)} of {len(tensors)} tensors: "
            f"{list_keys(broken)}.",
            "Its training diverged, or the file is damaged: take an earlier checkpoint.",
        )


def list_keys(names: list[str], total: int | None = None) -> str:
    """All names in one line; long lists write `blocks.{0-11}.norm1.weight` for twelve of them.

    Args:
        names: The keys.
        total: Length of the list these are a part of, if it is told in parts.
    """
    if (total or len(names)) <= _WRITTEN_OUT:
        return ", ".join(names)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in names:
        before, index, after = _split_at_number(name)
        groups[before, after].append(index)
    return ", ".join(_join_group(before, after, sorted(i)) for (before, after), i in groups.items())


def _split_at_number(name: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
    return (match[1], int(match[2]), match[3]) if match else (name, -1, "")


def _join_group(before: str, after: str, indices: list[int]) -> str:
    if indices[0] < 0:
        return before
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return f"{before}{text}{after}" if len(indices) == 1 else f"{before}{{{text}}}{after}"


def _list_differences(
    found: _Differences,
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> list[str]:
    lines = []
    if found.missing:
        lines.append(f"Missing ({len(found.missing)}): {list_keys(found.missing)}")
    if found.unexpected:
        lines.append(f"Unexpected ({len(found.unexpected)}): {list_keys(found.unexpected)}")
    if found.misshapen:
        lines.append(f"Wrong shape ({len(found.misshapen)}):")
        lines.extend(_list_shapes(found.misshapen, state, expected))
    return lines


def _list_shapes(
    names: list[str], state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[str]:
    """One line for all keys that are wrong in the same way."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[f"found {_describe(state[name])}, wanted {_describe(expected[name])}"].append(name)
    total = len(names)
    return [f"  {list_keys(group, total)}: {shapes}" for shapes, group in groups.items()]


def _describe(tensor: Tensor) -> str:
    shape = "(" + ", ".join(map(str, tensor.shape)) + ")"
    return shape if tensor.is_floating_point() else f"{tensor.dtype} {shape}".removeprefix("torch.")


def _is_foreign(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Most names are unknown even when block numbers are not looked at."""
    known = {
        re.sub(r"\d+", "#", name) for name in (*expected, DENSE_TABLE, COARSE_TABLE, FINE_TABLE)
    }
    strangers = sum(re.sub(r"\d+", "#", name) not in known for name in state)
    return 2 * strangers > len(state)


def _foreign(state: Mapping[str, Tensor], source: str) -> CheckpointError:
    sample = ", ".join(list(state)[:_SAMPLE])
    fix = "Name a checkpoint of SAC-ViT, CF-ViT, LF-ViT or DeiT (in DeiT's or timm's names)."
    if any("encoder.layer." in name for name in state):
        fix += " These look like Hugging Face transformers' names: take the same weights from timm."
    return CheckpointError(
        f"{source} is not a Vision Transformer of this family: its {len(state)} tensors are called "
        f"{sample}{', ...' if len(state) > _SAMPLE else ''}.",
        fix,
    )


def _hints(state: Mapping[str, Tensor], config: ModelConfig, found: _Differences) -> list[str]:
    hints = []
    size = _size_of(state)
    wrong = [
        name
        for name, value in size.items()
        if getattr(config, name) != value and name != "num_classes"
    ]
    if wrong:
        weights = ", ".join(f"{name} {size[name]}" for name in wrong)
        model = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        hints.append(
            f"The weights have {weights}; the model has {model}: choose a preset to match."
        )
    classes = size.get("num_classes", config.num_classes)
    if classes != config.num_classes:
        hints.append(
            f"To keep the weights' {classes} classes, give --set num_classes={classes} "
            f"(in Python: config.replace(num_classes={classes}))."
        )
    if COARSE_TABLE in found.unexpected or FINE_TABLE in found.unexpected:
        hints.append(
            "These weights are a two-stage network's: choose a sac_ or cf_ preset."
            if config.two_stage is None
            else "The weights have two position tables: give --set position_tables=2."
        )
    return hints or ["Name the preset the weights were trained with, or another checkpoint."]


def _size_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What the weights say about their network, by the name of the config's field."""
    size = {}
    blocks = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in state) if m]
    if blocks:
        size["depth"] = 1 + max(blocks)
    if "cls_token" in state and state["cls_token"].ndim == 3:
        size["embed_dim"] = state["cls_token"].shape[-1]
    if "patch_embed.proj.weight" in state and state["patch_embed.proj.weight"].ndim == 4:
        size["patch_size"] = state["patch_embed.proj.weight"].shape[-1]
    if "head.weight" in state and state["head.weight"].ndim == 2:
        size["num_classes"] = state["head.weight"].shape[0]
    return size
