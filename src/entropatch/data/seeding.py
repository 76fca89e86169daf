"""Random numbers that depend on where one is, not on what was drawn before.

Each training image is augmented, and each step is taken, with random numbers that follow from (seed, epoch, image) or
(seed, epoch, step) alone. So a run resumed in the middle of an epoch, one with more loading processes, or one spread
over several machines draws the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed that depends on all the non-negative numbers and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def set_seeds(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's CPU random numbers seeded inside the block, and as they were after it."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
