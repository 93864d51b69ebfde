"""The smallest set of nodes that has to stay in FP32."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sacvit_deploy.comparison.graphs import places, resolve_keep
from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.precision.conversion import holds, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.exporters.precision.conversion import Conversion
    from sacvit_deploy.exporters.precision.request import PrecisionRequest
    from sacvit_deploy.manifest import Agreement

_T = TypeVar("_T")


@dataclass(frozen=True)
class Bisection:
    """What a bisection found.

    Attributes:
        keep: Nodes to keep in FP32, each `role:node`; empty if none has to.
        where: Place of each of them.
        agreement: With FP32, with these nodes kept.
        trials: How many conversions were compared.
    """

    keep: tuple[str, ...]
    where: tuple[str, ...]
    agreement: Agreement
    trials: int

    def text(self) -> str:
        """A file that `--keep-float` reads."""
        pairs = zip(self.keep, self.where, strict=True)
        return "".join(f"{name}  # {place}\n" for name, place in pairs)


def bisect_precision(
    bundle: Bundle, request: PrecisionRequest, report: Callable[[str], None] = lambda _: None
) -> Bisection:
    """Find nodes to keep in FP32 such that the limits hold and none of them can be left out.

    First whole places are tried (a linear layer and what follows it), then the nodes of those that
    are needed. What `request.keep` names is kept in any case and is not part of the result.

    Args:
        bundle: With FP32 graphs; not changed.
        request: The precision, and the data to compare decisions on.
        report: Called with one line for each trial.

    Raises:
        PrecisionError: The limits do not even hold with every node in FP32.
        ConfigError: `request.keep` names what is not there.
        DataError: The data cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="sacvit-deploy-") as scratch:
        trials = _Trials(prepare(bundle, request, Path(scratch), report), report)
        by_place = trials.candidates()
        needed = _search(by_place, trials.hold)
        if needed is None:
            raise PrecisionError(
                f"Even with every node in FP32 the {request.precision} graphs decide otherwise "
                "than the FP32 ones.",
                "Check the data, and the bundle with sacvit-deploy verify.",
            )
        place_of = {name: place for place, names in by_place.items() for name in names}
        where = tuple(place_of[name].partition(":")[2] for name in needed)
        return Bisection(tuple(needed), where, trials.agreement(needed), trials.count)


def smallest(items: Sequence[_T], test: Callable[[list[_T]], bool]) -> list[_T]:
    """A part of the items that passes a test, and none of which can be left out.

    Junker's QuickXplain: of n items, k of which are needed, it takes some k log(n / k) tests. A
    test that a part passes and the whole fails may lead it to a part that does not pass.

    Args:
        items: All of them pass the test; none at all does not.
        test: Whether a part is enough.
    """
    return _needed(list(items), [], test)


def _needed(items: list[_T], given: list[_T], test: Callable[[list[_T]], bool]) -> list[_T]:
    """What is needed of the items besides what is given, which alone is known not to be enough."""
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
    # Each but the last only counts where more nodes in FP32 made the agreement worse.
    for part in (smallest(in_places, hold) if hold(in_places) else [], in_places):
        if hold(part):
            return part
    return everything


def _nodes(by_place: dict[str, list[str]], chosen: Sequence[str]) -> list[str]:
    return [name for place in chosen for name in by_place[place]]


class _Trials:
    """Converts with some nodes in FP32, compares, and remembers."""

    def __init__(self, conversion: Conversion, report: Callable[[str], None]) -> None:
        self._conversion = conversion
        self._report = report
        self._known: dict[frozenset[str], Agreement | None] = {}

    @property
    def count(self) -> int:
        return len(self._known)

    def candidates(self) -> dict[str, list[str]]:
        """Place to nodes, both with their role before them."""
        found: dict[str, list[str]] = {}
        for role, model in self._conversion.models.items():
            for node, place in places(model, role).items():
                found.setdefault(f"{role}:{place}", []).append(f"{role}:{node}")
        return found

    def hold(self, names: Sequence[str]) -> bool:
        """Whether the limits hold with these nodes in FP32."""
        key = frozenset(names)
        if key not in self._known:
            request = self._conversion.request
            kept = resolve_keep([*request.keep, *names], self._conversion.models)
            self._known[key] = self._conversion.agreement(kept)
            verdict = "enough" if holds(self._conversion, self._known[key]) else "not enough"
            self._report(f"Trial {self.count}: {len(key)} nodes in FP32 are {verdict}")
        return holds(self._conversion, self._known[key])

    def agreement(self, names: Sequence[str]) -> Agreement:
        """Of a set of nodes that was tried, and was enough."""
        found = self._known[frozenset(names)]
        if found is None:
            raise ValueError(f"{len(names)} nodes were not enough")
        return found
