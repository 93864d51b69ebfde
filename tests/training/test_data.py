from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sacvit_deploy.errors import DataError
from sacvit_deploy.families.config import preset_preprocessing
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import Sample, SampleSet, read_samples, sample_pictures
from sacvit_deploy.spec import Preprocessing
from sacvit_deploy.training.data import (
    BatchPlan,
    Key,
    TrainingPictures,
    UnreadablePictureWarning,
    ValidationPictures,
    check_same_classes,
    epoch_order,
    open_samples,
    read_batches,
)
from sacvit_deploy.training.run import Processes

CPU = torch.device("cpu")


def pictures_of(run, samples) -> TrainingPictures:
    return TrainingPictures(samples, preset_preprocessing(run.model), run)


@pytest.fixture
def zipped(train_folder, tmp_path):
    return shutil.make_archive(
        str(tmp_path / "train"), "zip", train_folder.parent, train_folder.name
    )


def test_a_zip_gives_the_same_pictures(run, zipped, tmp_path):
    from_folder = pictures_of(run, read_samples(run.data.train))
    from_zip = pictures_of(run, read_samples(tmp_path / "train.zip"))
    for index in (0, 11, 23):
        (one, label), (other, same_label) = (
            from_folder.read(Key(1, index)),
            from_zip.read(Key(1, index)),
        )
        assert torch.equal(one, other)
        assert label == same_label == index // 8


def test_each_epoch_varies_a_picture_anew(run):
    pictures = pictures_of(run, read_samples(run.data.train))
    assert torch.equal(pictures.read(Key(0, 3))[0], pictures.read(Key(0, 3))[0])
    assert not torch.equal(pictures.read(Key(0, 3))[0], pictures.read(Key(1, 3))[0])


def test_workers_change_nothing(run, zipped, tmp_path):
    pictures = pictures_of(run, read_samples(tmp_path / "train.zip"))
    keys = [[Key(0, index) for index in range(start, start + 6)] for start in (0, 6)]
    alone, helped = (
        list(torch.utils.data.DataLoader(pictures, batch_sampler=keys, num_workers=count))
        for count in (0, 2)
    )
    for (image, label), (same_image, same_label) in zip(alone, helped, strict=True):
        assert torch.equal(image, same_image)
        assert torch.equal(label, same_label)


@pytest.fixture
def with_a_broken_one(train_folder, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(train_folder, folder)
    (folder / "green" / "2.png").write_bytes(b"not a picture")
    return read_samples(folder)


def test_a_corrupt_picture_stops_by_name(run, with_a_broken_one):
    with pytest.raises(DataError, match=r"green.2\.png.* is not a picture that can be read"):
        pictures_of(run, with_a_broken_one).read(Key(0, 10))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_survives_a_reading_process(run, with_a_broken_one, workers):
    pictures = pictures_of(run, with_a_broken_one)
    with pytest.raises(DataError, match=r"green.2\.png.* is not a picture that can be read"):
        list(read_batches(pictures, [[Key(0, 9), Key(0, 10)]], workers))


def test_a_corrupt_picture_is_skipped_by_choice(run, with_a_broken_one):
    object.__setattr__(run.data, "on_corrupt", "skip")
    pictures = pictures_of(run, with_a_broken_one)
    with pytest.warns(UnreadablePictureWarning, match=r"2\.png"):
        image, label = pictures.read(Key(0, 10))
    assert label == 1
    assert torch.isfinite(image).all()


def test_nothing_can_be_read(run, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    object.__setattr__(run.data, "on_corrupt", "skip")
    pictures = pictures_of(run, read_samples(tmp_path))
    with (
        pytest.warns(UnreadablePictureWarning),
        pytest.raises(DataError, match="No picture of the data set"),
    ):
        pictures.read(Key(0, 0))


def one_sample(path) -> SampleSet:
    return SampleSet((Sample(str(path), "a"),), ("a",))


@pytest.mark.parametrize("path", sample_pictures(), ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "spec",
    [Preprocessing((224, 224)), Preprocessing((32, 32)), Preprocessing((24, 40), 1.0, "bilinear")],
    ids=["224", "32", "24x40"],
)
def test_validation_sees_what_the_runtime_sees(path, spec):
    image, _ = ValidationPictures(one_sample(path), spec).read(0)
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy(), Preprocessor(spec)(path))


@pytest.mark.parametrize("kind", ["16-bit grey", "transparent", "turned by EXIF"])
def test_training_reads_pictures_as_the_runtime_does(run, tmp_path, kind):
    """Each kind of picture and a plain one of the same look become the same tensors."""
    values = np.linspace(0, 255, 20 * 20).reshape(20, 20).astype(np.uint8)
    plain, special = tmp_path / "plain.png", tmp_path / "special.png"
    Image.fromarray(values).save(plain)
    if kind == "16-bit grey":
        Image.fromarray(values.astype(np.uint16) * 257).save(special)
    elif kind == "transparent":
        Image.fromarray(np.full_like(values, 255)).save(plain)
        Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(special)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 3
        Image.fromarray(values[::-1, ::-1]).save(special, exif=exif)
    (one, _), (other, _) = (
        pictures_of(run, one_sample(p)).read(Key(0, 0)) for p in (plain, special)
    )
    assert torch.equal(one, other)
    spec = preset_preprocessing(run.model)
    for path in (plain, special):
        image, _ = ValidationPictures(one_sample(path), spec).read(0)
        assert np.array_equal(image.numpy(), Preprocessor(spec)(plain))


def test_a_corrupt_validation_picture_stops_by_name(run, with_a_broken_one):
    pictures = ValidationPictures(with_a_broken_one, preset_preprocessing(run.model))
    with pytest.raises(DataError, match=r"green.2\.png.* is not a picture that can be read"):
        pictures.read(10)


def test_as_many_classes_as_the_model(train_folder):
    with pytest.raises(DataError, match="has 3 classes, the model 5"):
        open_samples(train_folder, 5)


def test_an_empty_class(train_folder, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(train_folder, folder)
    (folder / "yellow").mkdir()
    with pytest.raises(DataError, match="without a picture: yellow"):
        open_samples(folder, 4)


def test_the_same_classes_in_both(train_folder, validation_folder, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(validation_folder, folder)
    (folder / "red").rename(folder / "orange")
    with pytest.raises(DataError, match="only one has: orange, red"):
        check_same_classes(read_samples(train_folder), read_samples(folder), folder)


def test_validation_pictures(run):
    pictures = ValidationPictures(
        read_samples(run.data.validation), preset_preprocessing(run.model)
    )
    assert [pictures.read(index)[1] for index in range(len(pictures))] == [0] * 4 + [1] * 4 + [
        2
    ] * 4
    assert torch.equal(pictures.read(0)[0], pictures.read(0)[0])


def test_orders_differ_by_epoch_and_hold_every_picture():
    first, second = epoch_order(0, 0, 50), epoch_order(0, 1, 50)
    assert sorted(first) == list(range(50))
    assert (first != second).any()
    assert (first == epoch_order(0, 0, 50)).all()


def plan(parts: int = 1, count: int = 1, rank: int = 0) -> BatchPlan:
    return BatchPlan(50, 12, parts, Processes(count, rank, CPU), seed=0)


def test_full_batches_in_the_order_of_the_epoch():
    assert plan().steps_per_epoch == 4
    parts = list(plan().parts_from(4))
    assert len(parts) == 4
    taken = [key.picture for part in parts for key in part]
    assert taken == epoch_order(0, 1, 50)[:48].tolist()
    assert {key.epoch for part in parts for key in part} == {1}


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_later_start_gives_the_same_rest(step):
    assert list(plan().parts_from(step)) == list(plan().parts_from(0))[step:]


@pytest.mark.parametrize(("parts", "count"), [(1, 2), (2, 2), (3, 1), (2, 3)])
def test_processes_and_parts_share_a_step(parts, count):
    """However a step is divided, it holds the same pictures, none twice."""
    whole = {key.picture for key in next(plan().parts_from(0))}
    shares = []
    for rank in range(count):
        own = list(plan(parts, count, rank).parts_from(0))[:parts]
        assert len({len(part) for part in own}) == 1
        shares += [key.picture for part in own for key in part]
    assert len(shares) == 12
    assert set(shares) == whole


def test_a_batch_larger_than_the_data():
    with pytest.raises(DataError, match="has 5 pictures, a step takes 12"):
        BatchPlan(5, 12, 1, Processes(1, 0, CPU), seed=0)


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(DataError, match="cannot be divided among 5 processes"):
        plan(count=5)
