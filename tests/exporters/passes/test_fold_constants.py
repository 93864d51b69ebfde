from __future__ import annotations

import numpy as np

from sacvit_deploy.exporters.passes import run_passes
from sacvit_deploy.exporters.passes.fold_constants import fold_constants
from tests.exporters.graphs import X, Y, contract, doubled, harmless, op_counts, run_model


def test_what_does_not_depend_on_the_input_is_folded():
    found, changed = run_passes(doubled(), contract(X, Y), [harmless, fold_constants])
    assert changed["fold_constants"] == 1
    assert op_counts(found) == {"Mul": 1}
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(run_model(found, x=x)[0], 2 * x)
