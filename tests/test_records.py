"""Records of `bundle.json`, on their own."""

from __future__ import annotations

import dataclasses

import pytest

from sacvit_deploy.decode import decode, encode
from sacvit_deploy.errors import BundleError, ConfigError
from sacvit_deploy.records import (
    CalibrationPoint,
    EngineEntry,
    EngineFlags,
    ExitCalibration,
    WeightsOrigin,
)
from tests.exit_records import exit_record
from tests.fakes import ENGINE, fake_manifest


@pytest.mark.parametrize("record", [ENGINE, exit_record(), *fake_manifest().graphs])
def test_what_is_written_is_read_back(record):
    assert decode(type(record), encode(record)) == record


def test_what_was_left_at_its_default_is_not_written():
    assert encode(EngineFlags(workspace_mib=64)) == {"workspace_mib": 64}
    assert encode(WeightsOrigin("random", seed=3)) == {"origin": "random", "seed": 3}
    assert str(WeightsOrigin("random", seed=3)) == "origin random, seed 3"


def test_the_files_of_a_graph_and_of_an_engine():
    graph = fake_manifest().graphs[0]
    assert graph.files == ("ee.onnx",)
    lower = dataclasses.replace(graph, file="ee.int8.onnx", engine_file="ee.int8-fp16.onnx")
    assert lower.files == ("ee.int8.onnx", "ee.int8-fp16.onnx")
    assert ENGINE.files == ("engines/ee.fp16.tensorrt.engine", "engines/ee.fp16.tensorrt.log")


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 4), (1, 8, 4), (1, 1, 1 << 21)])
def test_the_batches_of_an_engine_ascend(batch):
    with pytest.raises(BundleError, match=r"batch range .*\n.*build-engine"):
        dataclasses.replace(ENGINE, batch=batch)


def test_an_engine_that_leaves_something_out_is_refused():
    values = encode(ENGINE)
    del values["batch"]
    with pytest.raises(ConfigError, match="batch is missing"):
        decode(EngineEntry, values)


POINT = CalibrationPoint(0.5, 0.9, 0.5, 1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eta": 1.5}, "eta is 1.5"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"confidence_histogram": (1.0,)}, "has 1 bins"),
        ({"confidence_histogram": (2.0, -1.0, *[0.0] * 18)}, "add up to 1"),
        ({"top1_interval": (0.9, 0.1)}, "top-1 interval"),
        ({"images": 0}, "of 0 pictures"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"top1": 1.5}, "150.0% are correct"),
        ({"curve": (POINT, dataclasses.replace(POINT, eta=0.1))}, "not sorted"),
    ],
)
def test_a_calibration_out_of_range_is_refused(change, says):
    values = {**encode(exit_record()), **encode(change)}
    with pytest.raises((BundleError, ConfigError), match=says):
        decode(ExitCalibration, values)


def test_an_older_calibration_was_made_picture_by_picture():
    values = encode(exit_record(batch_size=8))
    assert decode(ExitCalibration, values).batch_size == 8
    del values["batch_size"]
    assert decode(ExitCalibration, values).batch_size == 1
