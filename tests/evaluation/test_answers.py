from __future__ import annotations

import dataclasses
import shutil
import weakref

import numpy as np
import pytest

from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.errors import ConfigError, DataError, ImageError
from sacvit_deploy.evaluation import answers as answers_module
from sacvit_deploy.evaluation.answers import collect_answers
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.samples import read_samples
from tests.fakes import CF, DENSE, SAC, fake_manifest, fake_opened
from tests.labelled_pictures import write_pictures, zipped

CLASSES = ["class 5", "class 2", "class 0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", CLASSES, 9)


def pipeline(config=SAC, selection="host", eta=0.5) -> Pipeline:
    return Pipeline(fake_manifest(config, selection, eta), fake_opened(config, selection))


@pytest.mark.parametrize("config", [SAC, CF], ids=["sac", "cf"])
@pytest.mark.parametrize("selection", ["host", "graph"])
def test_both_stages_answer_every_picture_whatever_eta_is(config, selection, folder):
    samples = read_samples(folder)
    runner = pipeline(config, selection, eta=0.0)
    answers = collect_answers(runner, samples)
    images = np.stack([runner.preprocess(sample) for sample in samples.samples])
    wanted = Decisions.of(runner.outcomes(images, 1.0))
    np.testing.assert_array_equal(answers.decisions.early_logits, wanted.early_logits)
    np.testing.assert_array_equal(answers.decisions.refined_logits, wanted.refined_logits)
    np.testing.assert_array_equal(answers.decisions.target_index, wanted.target_index)
    assert answers.names == tuple(sample.name for sample in samples.samples)
    assert answers.class_index.tolist() == [0, 0, 0, 2, 2, 2, 5, 5, 5]
    assert answers.skipped == ()
    assert answers.early_ms.shape == answers.refine_ms.shape == (9,)
    assert (answers.early_ms > 0).all()
    assert (answers.refine_ms > 0).all()


def test_a_budget_is_neither_asked_nor_told(folder):
    """At its threshold some pictures would leave, and have no second answer."""
    plain = pipeline()
    budgeted = plain.with_budget(ms=1e-3, max_eta=0.0)
    before = budgeted.budget
    wanted, found = (collect_answers(each, read_samples(folder)) for each in (plain, budgeted))
    np.testing.assert_array_equal(found.decisions.refined_logits, wanted.decisions.refined_logits)
    assert budgeted.budget == before


def test_attention_of_earlier_pictures_is_not_kept(folder, monkeypatch):
    compute = Pipeline.outcomes
    attentions: list[weakref.ref[object]] = []
    alive: list[int] = []

    def outcomes(self, images, **how):
        found = compute(self, images, **how)
        maps = [np.zeros((16, 196), np.float32) for _ in found]
        attentions.extend(map(weakref.ref, maps))
        pairs = zip(found, maps, strict=True)
        return [dataclasses.replace(each, semantic_attention=map_) for each, map_ in pairs]

    monkeypatch.setattr(Pipeline, "outcomes", outcomes)
    collect_answers(
        pipeline(DENSE),
        read_samples(folder),
        on_progress=lambda *_: alive.append(sum(map_() is not None for map_ in attentions)),
    )
    assert len(attentions) > 9
    assert max(alive) <= 1


def test_a_network_of_one_stage_has_one_answer(folder):
    answers = collect_answers(pipeline(DENSE), read_samples(folder))
    assert answers.decisions.early_logits.shape == (9, 7)
    assert answers.decisions.refined_logits is not None
    np.testing.assert_array_equal(answers.decisions.early_logits, answers.decisions.refined_logits)
    assert answers.decisions.target_index.shape == (9, 0)
    assert not answers.refine_ms.any()


def test_a_real_bundle(sac_host, tmp_path):
    labels = list(sac_host.manifest.labels[:2])
    samples = read_samples(write_pictures(tmp_path / "data", labels, 2 * len(labels)))
    runner = load(sac_host.path, backend="onnxruntime", eta=1.0)
    answers = collect_answers(runner, samples)
    for row, result in enumerate(runner(list(samples.samples))):
        assert answers.decisions.refined_logits[row].argmax() == result.class_index
        assert tuple(answers.decisions.target_index[row].tolist()) == result.target_tokens


def test_the_hash_names_the_pictures_and_not_their_container(folder, tmp_path):
    def sha256(samples):
        return collect_answers(pipeline(), samples).data_sha256

    found = sha256(read_samples(folder))
    assert len(found) == 64
    assert sha256(read_samples(zipped(folder))) == found
    table = tmp_path / "table.csv"
    files = sorted(folder.rglob("*.png"), reverse=True)
    table.write_text("".join(f"{file},{file.parent.name}\n" for file in files))
    assert sha256(read_samples(table)) == found
    table.write_text("".join(f"{file},class 1\n" for file in files))
    assert sha256(read_samples(table)) != found
    table.write_text("".join(f"{file},{file.parent.name}\n" for file in files[1:]))
    assert sha256(read_samples(table)) != found


def test_a_picture_that_cannot_be_read_is_named_and_left_out(tmp_path):
    folder = write_pictures(tmp_path / "data", ["class 1"], 3)
    whole = collect_answers(pipeline(), read_samples(folder))
    (folder / "class 1" / "bad.png").write_bytes(b"")
    seen = []
    answers = collect_answers(
        pipeline(), read_samples(folder), on_progress=lambda share, what: seen.append((share, what))
    )
    (skipped,) = answers.skipped
    assert skipped.name.endswith("bad.png")
    assert "empty" in skipped.reason
    assert answers.names == whole.names
    assert answers.data_sha256 == whole.data_sha256
    share, text = seen[0]
    assert share == 0.25
    assert text.startswith("1 of 4 pictures")
    assert seen[-1][0] == 1


def test_or_stops_the_work(tmp_path):
    folder = write_pictures(tmp_path / "data", ["class 1"], 3)
    (folder / "class 1" / "bad.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"bad\.png"):
        collect_answers(pipeline(), read_samples(folder), on_corrupt="stop")


def test_no_picture_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "class 1").mkdir()
    (tmp_path / "class 1" / "bad.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"None of the 1 pictures .*bad\.png"):
        collect_answers(pipeline(), read_samples(tmp_path))


def test_classes_are_compared_before_any_picture_is_read(tmp_path):
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "bad.png").write_bytes(b"no")
    with pytest.raises(DataError, match="'dog'"):
        collect_answers(pipeline(), read_samples(tmp_path))


def test_ids_are_understood_by_class_names(tmp_path):
    samples = read_samples(write_pictures(tmp_path / "data", ["n1", "n2"], 2))
    answers = collect_answers(pipeline(), samples, {"n1": "class 6", "n2": "class 3"})
    assert answers.class_index.tolist() == [6, 3]


@pytest.mark.parametrize("config", [SAC, DENSE], ids=["sac", "dense"])
@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_batches_give_the_same_answers(config, batch_size, folder):
    one_by_one, batched = (
        collect_answers(pipeline(config), read_samples(folder), batch_size=size)
        for size in (1, batch_size)
    )
    for name in ("early_logits", "refined_logits", "target_index"):
        np.testing.assert_array_equal(
            getattr(batched.decisions, name), getattr(one_by_one.decisions, name)
        )
    assert batched.names == one_by_one.names
    assert batched.data_sha256 == one_by_one.data_sha256
    assert (batched.early_ms > 0).all()


def test_a_bad_picture_of_a_batch_is_skipped(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "data")
    bad = sorted(copied.rglob("*.png"))[4]
    bad.write_text("no picture")
    answers = collect_answers(pipeline(), read_samples(copied), batch_size=4)
    assert [skipped.name for skipped in answers.skipped] == [str(bad)]
    assert len(answers.names) == len(answers.class_index) == 8
    with pytest.raises(ImageError, match=bad.name):
        collect_answers(pipeline(), read_samples(copied), batch_size=4, on_corrupt="stop")


@pytest.mark.parametrize("size", [0, 1.5, True])
def test_a_batch_size_out_of_range(folder, size):
    with pytest.raises(ConfigError, match="batch_size"):
        collect_answers(pipeline(), read_samples(folder), batch_size=size)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_picture_that_goes_while_it_is_read_is_skipped(folder, monkeypatch, batch_size):
    digest = answers_module._digest
    gone = read_samples(folder).samples[3].name

    def disappears(sample):
        if sample.name == gone:
            raise ImageError(f"{gone} cannot be read.", "Check the data set.")
        return digest(sample)

    monkeypatch.setattr(answers_module, "_digest", disappears)
    answers = collect_answers(pipeline(), read_samples(folder), batch_size=batch_size)
    assert [skipped.name for skipped in answers.skipped] == [gone]
    assert len(answers.names) == 8
