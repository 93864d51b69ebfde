"""What tests of the stages share: a threshold that some pictures pass, and a comparison."""

from __future__ import annotations

import numpy as np

ETA = 0.19  # about the median confidence of the fake


def same(found, wanted) -> None:
    """Two lists of outcomes agree to the bit; their times do not count."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.early_exit_confidence == other.early_exit_confidence
        for name in ("early_logits", "refined_logits", "target_index"):
            np.testing.assert_equal(getattr(one, name), getattr(other, name))
