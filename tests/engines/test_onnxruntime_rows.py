from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from sacvit_deploy.engines.onnxruntime_rows import RowGatherer


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64"])
@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [1, 3], [2]])
def test_rows_are_gathered(dtype, numbers) -> None:
    values = np.arange(24).reshape(4, 3, 2).astype(dtype)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(values, "cpu", 0)
    found = RowGatherer(onnxruntime)(value, values.dtype, np.array(numbers), "cpu").numpy()
    np.testing.assert_array_equal(found, values[numbers])
    assert found.dtype == np.dtype(dtype)


def test_one_session_serves_all_tensors_of_a_type() -> None:
    gather = RowGatherer(onnxruntime)
    for shape in ((4, 2), (3, 5, 7)):
        values = np.ones(shape, np.float32)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(values, "cpu", 0)
        assert gather(value, values.dtype, np.array([0, 2]), "cpu").shape() == [2, *shape[1:]]
    assert len(gather._sessions) == 1
