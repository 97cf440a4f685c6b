"""Numbers that any program makes alike: no random generator, integers alone until the last division."""

from __future__ import annotations

import math

import numpy as np


def ramp(step: int, modulus: int, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1): (i step + 12345) (i + 7) mod modulus of i = 0, 1 ..."""
    i = np.arange(math.prod(shape), dtype=np.int64)
    return (((i * step + 12345) * (i + 7) % modulus) / (modulus / 2) - 1).reshape(shape)
