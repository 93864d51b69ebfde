from __future__ import annotations

from sacvit_deploy.engines.build_progress import BuildProgress


def walk(progress: BuildProgress) -> None:
    """Two steps, the first of which is a phase of four."""
    progress.phase_start("all", None, 2)
    progress.phase_start("inner", "all", 4)
    progress.step_complete("inner", 0)
    progress.step_complete("inner", 1)
    progress.phase_finish("inner")
    progress.step_complete("all", 0)
    progress.step_complete("all", 1)
    progress.phase_finish("all")


def test_a_phase_inside_is_part_of_a_step():
    told: list[tuple[float, str]] = []
    walk(BuildProgress(lambda share, phase: told.append((share, phase))))
    assert told == [
        (0, "all"),
        (0, "inner"),
        (0.125, "inner"),
        (0.25, "inner"),
        (0.5, "all"),
        (1, "all"),
    ]


def test_the_share_never_falls_nor_passes_one():
    told: list[float] = []
    progress = BuildProgress(lambda share, _: told.append(share))
    walk(progress)
    walk(progress)  # a library may well announce the same phases again
    progress.step_complete("never announced", 3)
    progress.phase_start("empty", None, 0)
    progress.step_complete("empty", 5)
    assert told == sorted(told)
    assert max(told) == 1


def test_every_step_goes_on():
    """The process that builds is ended from outside."""
    assert BuildProgress(lambda *_: None).step_complete("all", 0) is True
