"""Benchmarks and advice in words, as lines for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sacvit_deploy.benchmark.advice import Advice, Setting
from sacvit_deploy.benchmark.benchmark import Benchmark
from sacvit_deploy.benchmark.limit.products import is_product
from sacvit_deploy.benchmark.rows import Row

_MOST_KERNELS = 4
_NONE = "-"
_PARTS = {
    "read_ms_p50": "read",
    "resize_ms_p50": "resize",
    "first_stage_ms_p50": "first stage",
    "selection_ms_p50": "selection",
    "second_stage_ms_p50": "second stage",
}


def describe_benchmark(found: Benchmark) -> Iterator[str]:
    """Describe the machine, then a table of times, one of the limit, and one of memory."""
    against = f" against {found.against.path.resolve().name}" if found.against else ""
    kind = "CPU time" if found.clock == "cpu" else "time passed"
    yield f"{found.bundle.path.resolve().name}{against} on {found.device}; {kind}, medians in ms"
    rows, two_stages = found.rows, any(row.has_two_stages for row in found.rows)
    if rows:
        yield from _table(_TWO_STAGE_HEAD if two_stages else _HEAD, map(_times, rows))
        yield ""
        yield (
            "limit: the matrix products alone, at the same shapes; memory "
            f"{found.memory_gb_per_s:.1f} GB/s"
        )
        yield from _table(_LIMIT_HEAD, map(_limit, rows))
        yield ""
        yield from _table(_MEMORY_HEAD, map(_memory, rows))
        yield from _kernels(rows)
        for row in rows:
            yield from _files(row)
    for name, why in found.skipped.items():
        yield f"not measured: {name}: {' '.join(why.split())}"


_HEAD = ("batch", "with", "p50", "p95", "p99", "images/s", "dense", "speed-up")
_TWO_STAGE_HEAD = (
    *("batch", "with", "refined", "p50", "p95", "p99", "early exit", "refine", "overhead"),
    *("images/s", "dense", "speed-up"),
)
_LIMIT_HEAD = (
    *("batch", "with", "limit", "share", "early exit", "refine", "dense", "best speed-up"),
    "pays below",
)
_MEMORY_HEAD = ("batch", "with", "first answer", "loaded MB", "peak MB", "dense loaded", "peak")


def _times(row: Row) -> tuple[str, ...]:
    summary, dense = row.own.summary, row.dense
    totals = tuple(f"{ms:.2f}" for ms in (summary.p50, summary.p95, summary.p99))
    stages: tuple[str, ...] = ()
    if row.has_two_stages:
        graphs = summary.graphs_p50
        overhead = summary.overhead_p50
        stages = (
            _ms(graphs["early_exit"]),
            _ms(graphs.get("refine")),
            f"{overhead:.3f} ({overhead / summary.p50:.2%})",
        )
        totals = (f"{summary.refined:.1%}", *totals)
    return (
        *(str(row.batch), row.name, *totals, *stages, f"{row.images_per_s:.1f}"),
        *(_ms(None if dense is None else dense.summary.p50), _factor(row.speedup)),
    )


def _limit(row: Row) -> tuple[str, ...]:
    own, dense = row.own, row.dense
    return (
        *(str(row.batch), row.name, _ms(own.floor_ms), _share(own.floor_share)),
        *(_share(own.graph_floor(role)[1]) for role in ("early_exit", "refine")),
        _share(None if dense is None else dense.floor_share),
        _factor(row.best_speedup),
        _pays(row.break_even_share),
    )


def _memory(row: Row) -> tuple[str, ...]:
    fresh = row.own.fresh
    dense = None if row.dense is None else row.dense.fresh
    return (
        *(str(row.batch), row.name, f"{fresh.first_answer_ms:.0f} ms"),
        *(_whole(fresh.loaded_mb), _whole(fresh.peak_mb)),
        *((_NONE, _NONE) if dense is None else (_whole(dense.loaded_mb), _whole(dense.peak_mb))),
    )


def _kernels(rows: Sequence[Row]) -> Iterator[str]:
    """Name what takes time outside of products, once for each choice."""
    for row in {row.name: row for row in rows}.values():
        for role, kernels in row.kernels.items():
            total = sum(kernels.values())
            others = [(n, ms) for n, ms in kernels.items() if not is_product(n)][:_MOST_KERNELS]
            named = ", ".join(f"{name} {ms / total:.1%}" for name, ms in others)
            yield f"{row.name}, {role}: products {row.product_share[role]:.1%}; {named}"


def _files(row: Row) -> Iterator[str]:
    if row.files is not None:
        total = row.files["total_ms_p50"]
        parts = ", ".join(f"{name} {row.files[key] / total:.0%}" for key, name in _PARTS.items())
        yield (
            f"files, batch {row.batch}, {row.name}: {total:.1f} ms, "
            f"{row.files['images_per_s']:.1f} images/s: {parts}"
        )


def describe_advice(advice: Advice) -> Iterator[str]:
    """Describe what to use, or how near the nearest comes, and where two stages do not pay."""
    yield ""
    yield f"goal: {advice.goal}"
    if advice.setting is not None:
        yield f"use {_setting(advice.setting, advice.alpha)}"
    elif advice.nearest is not None:
        yield f"nothing meets it; the fastest is {_setting(advice.nearest, advice.alpha)}"
    if advice.other_alpha is not None:
        yield (
            f"at the calibrated threshold, alpha {advice.other_alpha:g} would meet it, by "
            "multiply-accumulates; measure its accuracy after export --alpha"
        )
    if not advice.is_calibrated:
        yield "accuracy is not known: run sacvit-deploy calibrate BUNDLE DATA first"
    for row in advice.rows:
        share = row.break_even_share
        if share is not None and share < 1:
            yield (
                f"{row.name} at batch {row.batch}: the dense network is faster if more than "
                f"{max(share, 0.0):.0%} is refined"
            )


def _setting(setting: Setting, alpha: float | None) -> str:
    row = setting.row
    eta = "" if setting.eta is None else f", eta {setting.eta:.4g}"
    top1 = "" if setting.top1 is None else f", top-1 {setting.top1:.1%}"
    tokens = "" if alpha is None else f", alpha {alpha:g}, {setting.refined:.0%} refined"
    ms = setting.batch_ms
    return (
        f"{row.name}, batch {row.batch}{eta}{tokens}{top1}: {ms:.2f} ms, "
        f"{row.batch * 1e3 / ms:.1f} images/s"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lay out cells in columns: the second to the left, all others to the right."""
    cells = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        places = zip(line, widths, strict=True)
        yield "  ".join(
            text.ljust(width) if number == 1 else text.rjust(width)
            for number, (text, width) in enumerate(places)
        ).rstrip()


def _ms(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _factor(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}x"


def _whole(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f}"


def _pays(share: float | None) -> str:
    if share is None:
        return _NONE
    return "always" if share >= 1 else f"{max(share, 0.0):.0%}"
