"""Search for the smallest set of nodes that has to stay in FP32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.precision.conversion import Trial, converted
from sacvit_deploy.exporters.precision.request import PrecisionRequest
from sacvit_deploy.progress import OnProgress, Steps, silent, within
from sacvit_deploy.records import Agreement

_T = TypeVar("_T")
_LEFT_BY_TRIAL = 0.9


@dataclass(frozen=True)
class Bisection:
    """Result of a bisection.

    Attributes:
        keep: Nodes to keep in FP32, each `role:node`; empty if none has to.
        where: Place of each of them.
        agreement: Agreement with FP32 while these nodes are kept.
        trials: Number of conversions that were compared.
    """

    keep: tuple[str, ...]
    where: tuple[str, ...]
    agreement: Agreement
    trials: int

    def text(self) -> str:
        """The content of a file for `--keep-float`."""
        pairs = zip(self.keep, self.where, strict=True)
        return "".join(f"{name}  # {place}\n" for name, place in pairs)


def bisect_precision(
    bundle: Bundle, request: PrecisionRequest, on_progress: OnProgress = silent
) -> Bisection:
    """Find nodes to keep in FP32 such that the limits hold and none of them can be left out.

    Whole places are tried first (a linear layer and the nodes behind it), then the nodes of the
    needed places. The nodes of `request.keep` are kept in any case and are not part of the result.

    Args:
        bundle: Bundle with FP32 graphs; not changed.
        request: Precision, and data to compare decisions on.
        on_progress: Called with the share of the work done, in [0, 1], and a short text. How many
            trials it takes is not known, so each one counts for a part of what is left.

    Raises:
        PrecisionError: The limits do not even hold with every node in FP32.
        ConfigError: A name in `request.keep` is in no graph.
        DataError: The data cannot be read.
    """
    steps = Steps(on_progress, {"converting": 1, "trials": 4})
    with converted(bundle, request, steps.part("converting")) as trial:
        trials = steps.part("trials")
        known: dict[frozenset[str], Agreement | None] = {}

        def hold(names: Sequence[str]) -> bool:
            key = frozenset(names)
            if key not in known:
                count = len(known)
                part = within(trials, 1 - _LEFT_BY_TRIAL**count, 1 - _LEFT_BY_TRIAL ** (count + 1))
                text = f"trial {count + 1}, {len(key)} nodes"
                known[key] = trial.agreement(trial.kept(names), part, text)
            return trial.holds(known[key])

        by_place = _candidates(trial)
        needed = _search(by_place, hold)
        agreement = None if needed is None else known[frozenset(needed)]
        if needed is None or agreement is None:
            raise PrecisionError(
                f"Even with every node in FP32 the {request.precision} graphs decide otherwise "
                "than the FP32 ones.",
                "Check the data, and the bundle with sacvit-deploy verify.",
            )
        place_of = {name: place for place, names in by_place.items() for name in names}
        where = tuple(place_of[name].partition(":")[2] for name in needed)
        on_progress(1.0, f"{len(known)} trials")
        return Bisection(tuple(needed), where, agreement, len(known))


def smallest(items: Sequence[_T], test: Callable[[list[_T]], bool]) -> list[_T]:
    """Find a part of the items that passes a test, and none of which can be left out.

    Junker's QuickXplain (AAAI 2004): with k needed items of n, it takes some k log(n / k) tests. If
    a part passes a test that the whole fails, the result may not pass.

    Args:
        items: All of them together pass the test, and the empty list does not.
        test: Whether a part is enough.
    """
    return _needed(list(items), [], test)


def _needed(items: list[_T], given: list[_T], test: Callable[[list[_T]], bool]) -> list[_T]:
    """The items needed besides the given ones, which are known not to be enough alone."""
    if len(items) == 1:
        return items
    first, second = items[: len(items) // 2], items[len(items) // 2 :]
    from_second = [] if test(given + first) else _needed(second, given + first, test)
    without = given + from_second
    from_first = [] if from_second and test(without) else _needed(first, without, test)
    return from_first + from_second


def _search(
    by_place: dict[str, list[str]], hold: Callable[[Sequence[str]], bool]
) -> list[str] | None:
    """Nodes that are enough, or None if not even all are."""
    everything = _nodes(by_place, list(by_place))
    if hold([]):
        return []
    if not hold(everything):
        return None
    found = smallest(list(by_place), lambda places: hold(_nodes(by_place, places)))
    in_places = _nodes(by_place, found)
    # The first is enough, except where more nodes in FP32 made the agreement worse.
    for part in (smallest(in_places, hold) if hold(in_places) else [], in_places):
        if hold(part):
            return part
    return everything


def _nodes(by_place: dict[str, list[str]], chosen: Sequence[str]) -> list[str]:
    return [name for place in chosen for name in by_place[place]]


def _candidates(trial: Trial) -> dict[str, list[str]]:
    """Nodes by place, both as `role:name`."""
    found: dict[str, list[str]] = {}
    for role, graph in trial.original.graphs.items():
        for node, place in graph.places.items():
            found.setdefault(f"{role}:{place}", []).append(f"{role}:{node}")
    return found
