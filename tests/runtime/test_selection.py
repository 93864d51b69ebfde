from __future__ import annotations

import numpy as np

from sacvit_deploy.runtime.algorithm import select_tokens


def test_best_first_and_of_equal_scores_the_lowest_index() -> None:
    score = np.array([[1, 3, 2, 3, 1, 2], [0, 0, 0, 0, 0, 0]], dtype=np.float32)
    target, non_target = select_tokens(score, 3)
    assert target.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert non_target.tolist() == [[5, 0, 4], [3, 4, 5]]
    assert target.dtype == non_target.dtype == np.int64


def test_agrees_with_torch_with_ties() -> None:
    import torch

    from sacvit_deploy.model import two_stage
    from tests.fakes import SAC

    score = np.random.default_rng(0).integers(0, 4, (50, SAC.num_coarse_tokens)).astype(np.float32)
    target, non_target = select_tokens(score, SAC.num_targets)
    wanted = two_stage.select_tokens(torch.from_numpy(score), SAC)
    np.testing.assert_array_equal(target, wanted.target.numpy())
    np.testing.assert_array_equal(non_target, wanted.non_target.numpy())
