from __future__ import annotations

import stat
import sys
import time

import pytest

from benchmarks.power import PowerMeter, power_of

ORIN_NANO = (
    "11-22-2026 10:00:00 RAM 2448/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) CPU [3%@1510,off] "
    "GR3D_FREQ 61% cpu@45.2C gpu@46.5C VDD_IN 7487mW/5213mW VDD_CPU_GPU_CV 2891mW/1042mW "
    "VDD_SOC 1542mW/1301mW"
)
AGX_ORIN = "RAM 1/2MB VDD_GPU_SOC 3204mW/3204mW VDD_CPU_CV 801mW/801mW VIN_SYS_5V0 2910mW/2910mW"
NANO = "RAM 1/2MB POM_5V_IN 2112/2050 POM_5V_GPU 0/0 POM_5V_CPU 411/390"


@pytest.mark.parametrize(
    ("line", "rails", "watts"),
    [
        (ORIN_NANO, ("VDD_IN",), 7.487),
        (AGX_ORIN, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 6.915),
        (NANO, ("POM_5V_IN",), 2.112),
        ("RAM 1/2MB VDD_CPU_CV 801mW/801mW", (), None),
        ("", (), None),
    ],
)
def test_the_rails_that_feed_a_board_are_added_up(line, rails, watts) -> None:
    assert power_of(line) == (rails, pytest.approx(watts) if watts else watts)


@pytest.fixture
def tegrastats(tmp_path):
    """A command that prints the lines of a board until it is stopped."""
    script = tmp_path / "tegrastats"
    script.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        "assert sys.argv[1:] == ['--interval', '100']\n"
        f"while True:\n    print({ORIN_NANO!r}, flush=True)\n    time.sleep(0.01)\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def test_the_power_of_a_while_is_read(tegrastats) -> None:
    meter = PowerMeter((tegrastats,))
    try:
        deadline = time.monotonic() + 20
        while not meter.rails and time.monotonic() < deadline:
            time.sleep(0.01)
        assert meter.rails == ("VDD_IN",)
        assert meter.idle_w(0.2) == pytest.approx(7.487)
        assert meter.mean_w(0.0, 0.0) is None
    finally:
        meter.close()
    meter.close()
    assert meter._process.returncode is not None
