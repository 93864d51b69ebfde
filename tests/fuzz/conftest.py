"""Two profiles: the same few cases in every run of the tests, and many random ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)

settings.register_profile(
    "quick",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=_SLOW_IS_FINE,
)
settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")),
    deadline=None,
    print_blob=True,
    report_multiple_bugs=True,
    suppress_health_check=_SLOW_IS_FINE,
)
settings.load_profile("fuzz" if "FUZZ_EXAMPLES" in os.environ else "quick")
