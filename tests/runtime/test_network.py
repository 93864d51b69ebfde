from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.comparison.network import Network
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import Preprocessing
from tests.fakes import SAC, fake_sessions, random_pictures

PREPROCESS = Preprocessor(Preprocessing(SAC.image_size, crop_ratio=1.0))
PICTURES = random_pictures(20)


@pytest.mark.parametrize(("largest", "sizes"), [(None, [16, 4]), (8, [8, 8, 4]), (64, [16, 4])])
@pytest.mark.parametrize("selection", ["host", "graph"])
def test_pictures_go_in_batches_that_every_session_takes(largest, sizes, selection):
    sessions = fake_sessions(SAC, selection)
    network = Network("fake", SAC, PREPROCESS, dict(sessions), selection, largest)
    found = network.decisions(PICTURES)
    assert [len(call["image"]) for call in sessions["early_exit"].calls] == sizes
    (alone,) = network.decisions(PICTURES[17:18]).refined_logits
    np.testing.assert_array_equal(found.refined_logits[17], alone)
