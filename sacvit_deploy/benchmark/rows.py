"""Rows of a benchmark: one network at one batch size, beside a dense network and the limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sacvit_deploy.benchmark.memory import FreshRun
from sacvit_deploy.benchmark.timing import Summary
from sacvit_deploy.spec import Precision, Role

_DIGITS = 4


@dataclass(frozen=True)
class Measured:
    """One network at one batch size.

    Attributes:
        summary: Its times.
        floor: Times of its matrix products alone; None if they cannot be measured.
        fresh: Memory and first answer.
    """

    summary: Summary
    floor: Summary | None
    fresh: FreshRun

    @property
    def floor_ms(self) -> float | None:
        """Median time of the products of a batch."""
        return None if self.floor is None else self.floor.p50

    @property
    def floor_share(self) -> float | None:
        """Products as a share of the whole time of a batch."""
        return None if self.floor is None else self.floor.p50 / self.summary.p50

    def graph_floor(self, role: Role) -> tuple[float | None, float | None]:
        """Median time of the products of one graph, and as a share of its time."""
        whole = self.summary.graphs_p50.get(role)
        if self.floor is None or whole is None or role not in self.floor.graphs_p50:
            return None, None
        products = self.floor.graphs_p50[role]
        return products, products / whole


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
        backend: Library that computed.
        precision: Precision of the graphs.
        threads: CPU threads of one operator; None if that was left to the backend.
        provider: Part of the backend that computed, as the backend names it.
        batch: Pictures in a batch.
        has_two_stages: Whether the network has a second stage.
        own: The network.
        dense: The dense network, measured in turns with it; None without one.
        kernels: Time of each kind of kernel by graph, for one picture.
        product_share: Share of the kernels' time in matrix products, by graph.
        files: Parts of the time from file to answer; None without pictures.
    """

    backend: str
    precision: Precision
    threads: int | None
    provider: str
    batch: int
    has_two_stages: bool
    own: Measured
    dense: Measured | None
    kernels: Mapping[Role, Mapping[str, float]]
    product_share: Mapping[Role, float]
    files: Mapping[str, float] | None = None

    @property
    def name(self) -> str:
        """Backend, precision and threads in words."""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.backend} {self.precision}{threads}"

    @property
    def images_per_s(self) -> float:
        """Pictures per second, from images to answers."""
        return self.batch * 1e3 / self.own.summary.p50

    @property
    def speedup(self) -> float | None:
        """Time of the dense network over that of this one."""
        return None if self.dense is None else self.dense.summary.p50 / self.own.summary.p50

    @property
    def best_speedup(self) -> float | None:
        """The same for the matrix products alone: what this backend allows on this machine."""
        if self.dense is None or not (self.dense.floor_ms and self.own.floor_ms):
            return None
        return self.dense.floor_ms / self.own.floor_ms

    @property
    def refine_ms_per_picture(self) -> float | None:
        """Time of the second stage for each picture that is refined; None if none was."""
        summary = self.own.summary
        if "refine" not in summary.graphs_p50:
            return None
        return summary.graphs_p50["refine"] / summary.refined_per_run

    def ms_at(self, refined: float) -> float:
        """Expected time of a batch of which another share is refined, in [0, 1]."""
        summary = self.own.summary
        if not self.has_two_stages:
            return summary.p50
        late = refined * self.batch * (self.refine_ms_per_picture or 0.0)
        return summary.graphs_p50["early_exit"] + summary.overhead_p50 + late

    @property
    def break_even_share(self) -> float | None:
        """Refined share at which the dense network is as fast; above 1, it never is.

        Below 0, the early exit alone takes longer than the dense network.
        """
        if self.dense is None or self.refine_ms_per_picture is None:
            return None
        saved = self.dense.summary.p50 - self.ms_at(0.0)
        return saved / (self.batch * self.refine_ms_per_picture)

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the JSON document."""
        summary, fresh = self.own.summary, self.own.fresh
        document: dict[str, Any] = {
            "batch": self.batch,
            "backend": self.backend,
            "provider": self.provider,
            "precision": self.precision,
            "threads": self.threads,
            **(self._stages() if self.has_two_stages else _times("", summary)),
            "overhead_ms_p50": summary.overhead_p50,
            "overhead_share": summary.overhead_p50 / summary.p50,
            "images_per_s": self.images_per_s,
            **self._dense(),
            "first_answer_ms": fresh.first_answer_ms,
            "loaded_memory_mb": fresh.loaded_mb,
            "peak_memory_mb": fresh.peak_mb,
            "floor_ms": self.own.floor_ms,
            "floor_share": self.own.floor_share,
            "best_speedup": self.best_speedup,
            "kernel_ms": {role: dict(times) for role, times in self.kernels.items()},
            "product_share": dict(self.product_share),
            "files": self.files and dict(self.files),
            "rounds": summary.rounds,
        }
        return dict(_rounded(document))

    def _stages(self) -> dict[str, Any]:
        summary = self.own.summary
        early, refine = self.own.graph_floor("early_exit"), self.own.graph_floor("refine")
        return {
            "sac_fraction": summary.refined,
            **_times("two_stage_", summary),
            "early_exit_ms_p50": summary.graphs_p50["early_exit"],
            "refine_ms_p50": summary.graphs_p50.get("refine"),
            "refine_ms_per_image": self.refine_ms_per_picture,
            "early_exit_floor_ms": early[0],
            "early_exit_floor_share": early[1],
            "refine_floor_ms": refine[0],
            "refine_floor_share": refine[1],
            "break_even_share": self.break_even_share,
        }

    def _dense(self) -> dict[str, Any]:
        names = ("first_answer_ms", "loaded_memory_mb", "peak_memory_mb")
        if self.dense is None:
            keys = ("ms_p50", "ms_p95", "ms_p99", *names, "floor_ms", "floor_share")
            return {f"dense_{key}": None for key in keys} | {"speedup": None}
        fresh = self.dense.fresh
        values = (fresh.first_answer_ms, fresh.loaded_mb, fresh.peak_mb)
        return {
            **_times("dense_", self.dense.summary),
            **{f"dense_{key}": value for key, value in zip(names, values, strict=True)},
            "dense_floor_ms": self.dense.floor_ms,
            "dense_floor_share": self.dense.floor_share,
            "speedup": self.speedup,
        }


def _times(name: str, summary: Summary) -> dict[str, float]:
    return {
        f"{name}ms_p50": summary.p50,
        f"{name}ms_p95": summary.p95,
        f"{name}ms_p99": summary.p99,
    }


def _rounded(value: Any) -> Any:
    """Round every number to a ten-thousandth, which is 0.1 microseconds."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value
