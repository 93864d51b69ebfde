"""Random numbers without a state: each draw is named, so that nothing has to be saved to resume."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_SEED_BYTES = 8


def derived_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for one purpose, for example `derived_seed(0, "picture", epoch, index)`."""
    text = "/".join(map(str, (seed, *name))).encode()
    digest = hashlib.blake2b(text, digest_size=_SEED_BYTES).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, *name: str | int) -> np.random.Generator:
    """A fresh numpy generator for one purpose."""
    return np.random.default_rng(derived_seed(seed, *name))


def seed_torch(seed: int, *name: str | int) -> None:
    """Set torch's own generators, on every device, for one purpose."""
    torch.manual_seed(derived_seed(seed, *name))
