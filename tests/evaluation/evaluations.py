"""An evaluation of made-up answers."""

from __future__ import annotations

import dataclasses

import numpy as np

from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.evaluation.answers import Setting, Skipped, StageAnswers
from sacvit_deploy.evaluation.evaluate import evaluate_answers
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.samples import Sample
from tests.fakes import SAC, fake_manifest, fake_opened

SETTING = Setting(
    "bundle", "sac_vit", "random", "val", "fp32", "fake", "Fake", "a <chip>", {"python": "3"}
)


def fake_answers(config=SAC, images=40, seed=0) -> StageAnswers:
    """Random logits; the second stage is correct more often."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, config.num_classes, images)
    early, refined = generator.normal(size=(2, images, config.num_classes)).astype(np.float32)
    early[np.arange(images), true] += 1
    refined[np.arange(images), true] += 2
    if config.two_stage is None:
        refined = early
    return StageAnswers(
        Decisions(early, refined, np.zeros((images, 0), np.int64)),
        true,
        tuple(Sample(f"{index}.png", "") for index in range(images)),
        (Skipped("bad.png", "It is <empty>."),),
        "ab" * 32,
        np.linspace(1, 2, images),
        np.full(images, 0.0 if config.two_stage is None else 3.0),
    )


def fake_pipeline(config=SAC, eta=0.5, calibrations=(), precision="fp32") -> Pipeline:
    manifest = fake_manifest(config, eta=eta)
    graphs = [
        dataclasses.replace(graph, precision=each, file=f"{each}.{graph.file}")
        for graph in manifest.graphs
        for each in ("fp32", "int8")
    ]
    manifest = dataclasses.replace(
        manifest, graphs=tuple(graphs), exit_calibrations=tuple(calibrations)
    )
    opened = dataclasses.replace(fake_opened(config), backend="onnxruntime", precision=precision)
    return Pipeline(manifest, opened)


def fake_evaluation(config=SAC, etas=(), images=40):
    pipeline = fake_pipeline(config)
    return evaluate_answers(pipeline, fake_answers(config, images), SETTING, etas)
