"""Does a converted network still decide as it did, and if not, where does it go wrong?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.precision.layers import (
    GraphLayers,
    layer_errors,
    probes,
    tensor_names,
    worst_step,
)
from sacvit_deploy.runtime.decisions import agreement_limits

if TYPE_CHECKING:
    from sacvit_deploy.exporters.precision.conversion import Conversion, Kept
    from sacvit_deploy.exporters.precision.layers import LayerError
    from sacvit_deploy.runtime.decisions import Agreement, AgreementLimits
    from sacvit_deploy.spec import Role


def limits_for(conversion: Conversion) -> AgreementLimits:
    """The limits of the precision for as many pictures as there are."""
    images = len(conversion.pictures.sources)
    precision = conversion.request.precision
    return agreement_limits(precision, images, random=conversion.bundle.is_random)


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
    by_graph = (_errors(conversion, role, kept[role]) for role in conversion.models)
    worst = worst_step(layer for layers in by_graph for layer in layers)
    return _named(worst) if worst else "no layer that could be compared"


def _named(layer: LayerError) -> str:
    size = f"{layer.error:.1%} off" if np.isfinite(layer.error) else "not finite"
    return f"{layer.place} of the {layer.role} graph (the result of node {layer.node} is {size})"


def _errors(conversion: Conversion, role: Role, kept: frozenset[str]) -> list[LayerError]:
    """At the end of every linear layer and half block, in order."""
    found = probes(conversion.models[role], role)
    names = {role: tensor_names(found)}
    graphs = (conversion.models[role], conversion.literal(role, kept))
    values = [
        GraphLayers({role: graph}, names, conversion.scratch).values(
            role, found, conversion.feeds[role]
        )
        for graph in graphs
    ]
    return layer_errors(role, found, *values)


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
