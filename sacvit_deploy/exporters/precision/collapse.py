"""Does a converted network still decide as it did, and if not, where does it go wrong?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.precision.places import linear_nodes, places
from sacvit_deploy.exporters.precision.request import LIMITS
from sacvit_deploy.exporters.precision.sessions import tensor_values

if TYPE_CHECKING:
    import onnx

    from sacvit_deploy.exporters.precision.conversion import Conversion, Kept
    from sacvit_deploy.runtime.decisions import Agreement, AgreementLimits
    from sacvit_deploy.spec import Role

_RANDOM_LABELS = 0.5


def limits_for(conversion: Conversion) -> AgreementLimits:
    """The limits of the precision, no finer than one picture.

    On fewer than some hundred pictures a single one would be beyond the limit of a rate. Classes of
    a network that was never trained lie closer together than any rounding, so that its labels have
    to agree by more than chance only.
    """
    limits = LIMITS[conversion.request.precision]
    if conversion.bundle.is_random:
        limits = dataclasses.replace(limits, min_label_agreement=_RANDOM_LABELS)
    one = 1 / len(conversion.pictures.sources)
    return dataclasses.replace(
        limits,
        max_exit_flip_rate=max(limits.max_exit_flip_rate, one),
        min_label_agreement=min(limits.min_label_agreement, 1 - one),
    )


def holds(conversion: Conversion, agreement: Agreement | None) -> bool:
    """Whether an agreement is within the limits."""
    return agreement is not None and limits_for(conversion).hold(agreement)


def check_decisions(conversion: Conversion, kept: Kept) -> Agreement:
    """How far the converted network agrees, if it does.

    Raises:
        PrecisionError: Beyond the limits; it names the layer where the error appears.
    """
    agreement = conversion.agreement(kept)
    if agreement is not None and holds(conversion, agreement):
        return agreement
    precision = conversion.request.precision
    raise PrecisionError(
        f"In {precision} this network decides otherwise than in fp32. On "
        f"{len(conversion.pictures.sources)} pictures ({conversion.pictures.name}): "
        f"{_found(agreement)}. {_wanted(limits_for(conversion))}. It first goes wrong at "
        f"{first_wrong_place(conversion, kept)}.",
        f"Nothing was written. Find what has to stay in FP32 with sacvit-deploy bisect-precision "
        f"BUNDLE DATA --precision {precision} -o keep.txt, then export with --keep-float keep.txt"
        + ("; or try another --calibration-method." if precision == "int8" else "."),
    )


def first_wrong_place(conversion: Conversion, kept: Kept) -> str:
    """The place with the first value that is not finite, or else the largest jump of the error.

    Each graph gets the FP32 inputs of one batch of pictures, so that an error is its own.

    Returns:
        Such as `blocks.3.mlp.fc2 of the refine graph (the result of node x is 81.2% off)`.
    """
    jumps = []
    for role in conversion.models:
        errors = _errors(conversion, role, kept[role])
        largest = 0.0
        for node, error in errors:
            if not np.isfinite(error):
                return _place(conversion, role, node, error)
            jumps.append((error - largest, role, node, error))
            largest = max(largest, error)
    return _place(conversion, *max(jumps)[1:])


def _place(conversion: Conversion, role: Role, node: str, error: float) -> str:
    place = places(conversion.models[role], role)[node]
    size = f"{error:.1%} off" if np.isfinite(error) else "not finite"
    return f"{place} of the {role} graph (the result of node {node} is {size})"


def _errors(conversion: Conversion, role: Role, kept: frozenset[str]) -> list[tuple[str, float]]:
    """Relative error at the end of every linear layer and half block: (node, error), in order."""
    reference = conversion.models[role]
    probes = _probes(reference)
    feeds = conversion.feeds[role]
    file = conversion.scratch / f"{role}.probes.onnx"
    wanted = tensor_values(reference, probes, feeds, file)
    found = tensor_values(conversion.literal(role, kept), probes, feeds, file)
    with np.errstate(invalid="ignore", over="ignore"):
        return [(node, _relative(wanted[t], found[t])) for t, node in probes.items()]


def _probes(model: onnx.ModelProto) -> dict[str, str]:
    """Tensor to the node that makes it: results of linear layers, and sums on the residual path."""
    producers = {name: node for node in model.graph.node for name in node.output}
    tensors = {node.output[0] for node in linear_nodes(model)}
    tensors |= {n.input[0] for n in model.graph.node if n.op_type == "LayerNormalization"}
    return {t: producers[t].name for t in producers if t in tensors}


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    exact = wanted.astype(np.float64)
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(found.astype(np.float64) - exact)) / max(size, 1e-30)


def _found(agreement: Agreement | None) -> str:
    if agreement is None:
        return "its logits are not finite (NaN or infinite)"
    return (
        f"{agreement.label_agreement:.1%} of labels and {agreement.target_overlap:.1%} of target "
        f"tokens are the same, {agreement.exit_flip_rate:.1%} of exits flip"
    )


def _wanted(limits: AgreementLimits) -> str:
    return (
        f"Limits: at least {limits.min_label_agreement:.1%} and {limits.min_target_overlap:.0%}, "
        f"at most {limits.max_exit_flip_rate:.1%}"
    )
