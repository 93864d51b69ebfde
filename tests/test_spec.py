from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.spec import Preprocessing, check_count, check_eta, check_temperature


@pytest.mark.parametrize(
    "fields",
    [
        {"crop": (0, 32)},
        {"crop": (32,)},
        {"crop_ratio": 0},
        {"crop_ratio": 1.5},
        {"std": (0, 1, 1)},
        {"mean": (0, float("nan"), 0)},
        {"interpolation": "box"},
    ],
)
def test_impossible_preprocessing_is_refused(fields):
    with pytest.raises(ConfigError):
        Preprocessing(**{"crop": (32, 32), **fields})


@pytest.mark.parametrize("eta", [0, 1, 0.25, np.float32(0.25)])
def test_a_threshold_is_a_number_from_0_to_1(eta):
    found = check_eta(eta)
    assert found == eta
    assert type(found) is float


@pytest.mark.parametrize(
    "eta",
    [-0.01, 1.01, float("nan"), "0.5", None, True, 10**400, pytest.param(10**5000, id="huge")],
)
def test_another_threshold_is_refused(eta):
    with pytest.raises(ConfigError, match="eta is"):
        check_eta(eta)


@pytest.mark.parametrize("count", [0, 9, 2.0, "2", None, True, pytest.param(10**5000, id="huge")])
def test_a_count_is_a_whole_number_in_range(count):
    assert check_count("many", 8, 8) == 8
    with pytest.raises(ConfigError, match=r"many is .*\n.*from 1 to 8"):
        check_count("many", count, 8)


@pytest.mark.parametrize("temperature", [1, 0.25, 40.0])
def test_a_temperature_is_a_float(temperature):
    assert type(check_temperature(temperature)) is float


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), True, "1", 10**400])
def test_another_temperature_is_refused(temperature):
    with pytest.raises(ConfigError, match="temperature is"):
        check_temperature(temperature)
