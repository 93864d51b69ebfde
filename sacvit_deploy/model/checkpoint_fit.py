"""Checks that a checkpoint's tensors fit a network."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sacvit_deploy.decode import check_field
from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.families import FAMILIES, family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.model.build import build_model

_TABLES = ("pos_embed", "pos_embed_coarse", "pos_embed_fine")
_GATES = ("gates.", "selective_modules.")  # ours, and as published
_GATES_FIX = "These weights have the gates of SViT: choose an svit_ preset."
_CONV_STEM = "patch_embed.conv1.weight"

# Longer lists of keys write the blocks together. Names and lists of a message have an end.
_WRITTEN_OUT = 24
_SAMPLE = 8
_LONGEST_NAME = 60
_LONGEST_LIST = 480
_LONGEST_LISTS = 1440
# Fields of a configuration, and the weight, its rank and the axis that tell each.
_SIZES = {
    "embed_dim": ("patch_embed.proj.weight", 4, 0),
    "patch_size": ("patch_embed.proj.weight", 4, -1),
    "num_classes": ("head.weight", 2, 0),
}

_Grid = tuple[int, int]


def check_fit(state: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """Check that a state dict in this package's layout fits a model; errors name its `source`.

    Raises:
        CheckpointError: Lists missing, unexpected and misshapen keys, as many as a message can
            hold, and suggests the network the weights belong to.
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
    if not any(found):
        return
    _refuse_foreign(state, expected, source)
    problem = f"{source} does not fit the model."
    classes = _size_of(state).get("num_classes", config.num_classes)
    if classes != config.num_classes:
        problem = f"{source} has {classes} classes, the model {config.num_classes}."
    lines = [problem, *_list_differences(found, state, expected)]
    raise CheckpointError("\n".join(lines), " ".join(_hints(state, config, found)))


def check_stored(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Check that a stored configuration has the sizes of the weights beside it.

    It comes before any network is built: a configuration may claim 10**9 classes.

    Raises:
        ConfigError: A size differs, or the weight that tells it is missing.
    """
    wanted = family_named(config.family).stored_shapes(config)
    for name, shape in wanted.items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        check_field(found == shape, name, found, f"{shortened(str(shape))}, as configured")
    blocks = len(_blocks(tensors))
    check_field(blocks == config.depth, "depth", config.depth, f"{blocks}, the blocks in the file")


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that every weight is finite.

    Raises:
        CheckpointError: Names the tensors that hold NaN or infinity.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinite weights in {len(broken)} of {len(tensors)} tensors: "
            f"{list_keys(broken)}.",
            "Its training diverged, or the file is damaged: use an earlier checkpoint.",
        )


class _Differences(NamedTuple):
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def _list_differences(
    found: _Differences, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[str]:
    lines = [
        f"{title} ({len(names)}): {list_keys(names)}"
        for title, names in (("Missing", found.missing), ("Unexpected", found.unexpected))
        if names
    ]
    if found.misshapen:
        lines.append(f"Wrong shape ({len(found.misshapen)}):")
    # One line for all keys with the same wrong and expected shape.
    groups: dict[str, list[str]] = defaultdict(list)
    for name in found.misshapen:
        groups[f"found {_describe(state[name])}, wanted {_describe(expected[name])}"].append(name)
    total = len(found.misshapen)
    shapes = [f"  {list_keys(group, total)}: {shapes}" for shapes, group in groups.items()]
    return (
        [*lines, _joined(shapes, "\n", _LONGEST_LISTS - sum(map(len, lines)))] if shapes else lines
    )


def list_keys(names: list[str], total: int | None = None) -> str:
    """Join names in one line; long lists write `blocks.{0-11}.norm1.weight` for twelve of them.

    Args:
        names: Keys to list.
        total: Length of the whole list, if `names` is a part of it.
    """
    if (total or len(names)) <= _WRITTEN_OUT:
        return _joined([shortened(name) for name in names], ", ", _LONGEST_LIST)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in names:
        match = re.fullmatch(r"(.*?\.)(\d{1,6})(\..*)", name)
        group = groups[(match[1], match[3]) if match else (name, "")]
        if match:
            group.append(int(match[2]))
    parts = [shortened(_join_group(around, sorted(i))) for around, i in groups.items()]
    return _joined(parts, ", ", _LONGEST_LIST)


def _joined(parts: list[str], between: str, longest: int) -> str:
    """Join parts up to `longest` characters, and count the others."""
    ends = accumulate(len(part) + len(between) for part in parts)
    fit = sum(end <= longest for end in ends)
    rest = [f"and {len(parts) - fit} more"] if fit < len(parts) else []
    return between.join(parts[:fit] + rest)


def shortened(text: str, most: int = _LONGEST_NAME) -> str:
    """Cut the middle out of a text from a file, and write what cannot be printed as escapes."""
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[3 - most // 2 :]}"
    return text if text.isprintable() else ascii(text)[1:-1]


def _join_group(name: tuple[str, str], indices: list[int]) -> str:
    before, after = name
    if not indices:
        return before
    known = set(indices)
    starts = [i for i in indices if i - 1 not in known]
    ends = [i for i in indices if i + 1 not in known]
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"{before}{text}{after}" if len(indices) == 1 else f"{before}{{{text}}}{after}"


def _describe(tensor: Tensor) -> str:
    shape = shortened("(" + ", ".join(map(str, tensor.shape)) + ")")
    return shape if tensor.is_floating_point() else f"{tensor.dtype} {shape}".removeprefix("torch.")


def _refuse_foreign(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Refuse weights of which most names are unknown, whatever their block numbers."""
    known = {re.sub(r"\d+", "#", name) for name in (*expected, *_TABLES)}
    strangers = sum(re.sub(r"\d+", "#", name) not in known for name in state)
    if 2 * strangers <= len(state):
        return
    sample = ", ".join(map(shortened, list(state)[:_SAMPLE]))
    titles = ", ".join(family.title for family in FAMILIES.values())
    fix = f"Name a checkpoint of one of {titles} (in the names of its authors, DeiT or timm)."
    if _has_gates(state):
        fix = _GATES_FIX
    if any("encoder.layer." in name for name in state):
        fix += " These look like Hugging Face transformers' names: take the same weights from timm."
    raise CheckpointError(
        f"{source} is not a Vision Transformer of this family: its {len(state)} tensors are called "
        f"{sample}{', ...' if len(state) > _SAMPLE else ''}.",
        fix,
    )


def _setting(field: str, value: int) -> str:
    """How a field is set wherever weights are read."""
    return (
        f"give export --set {field}={value}, or train {field} = {value} in [model] "
        f"(in Python: config.replace({field}={value}))"
    )


def _hints(state: Mapping[str, Tensor], config: ModelConfig, found: _Differences) -> list[str]:
    hints = []
    wrong = {k: v for k, v in _size_of(state).items() if getattr(config, k) != v}
    classes = wrong.pop("num_classes", None)
    if wrong:
        weights = ", ".join(f"{name} {value}" for name, value in wrong.items())
        model = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        hints.append(
            f"The weights have {weights}; the model has {model}: choose a preset to match."
        )
    if classes is not None:
        hints.append(f"To keep the weights' {classes} classes, {_setting('num_classes', classes)}.")
    if {*_TABLES[1:]} & {*found.unexpected}:
        hints.append(
            "These weights are a two-stage network's: choose a preset such as sac_ or cf_."
            if config.two_stage is None
            else f"The weights have two position tables: {_setting('position_tables', 2)}."
        )
    if _CONV_STEM in found.unexpected:
        hints.append("These weights have the stem of LV-ViT: choose a lv_ or cf_lv_ preset.")
    if config.gates is None and _has_gates(found.unexpected):
        hints.append(_GATES_FIX)
    return hints or ["Name the preset the weights were trained with, or another checkpoint."]


def _has_gates(names: Iterable[str]) -> bool:
    return any(name.startswith(_GATES) for name in names)


def _size_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the size of a network from its weights, by field of `ModelConfig`."""
    blocks = _blocks(state)
    depth = {"depth": len(blocks)} if blocks else {}
    sizes = {
        field: state[name].shape[axis]
        for field, (name, rank, axis) in _SIZES.items()
        if name in state and state[name].ndim == rank
    }
    if "patch_size" in sizes and _CONV_STEM in state:
        sizes["patch_size"] *= 2  # its projection comes after a convolution of stride 2
    return depth | sizes


def _blocks(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the blocks, in stages or not."""
    matches = (re.match(r"((layers\.\d{1,6}\.)?blocks\.\d{1,6})\.", name) for name in state)
    return {match[1] for match in matches if match}
