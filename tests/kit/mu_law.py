"""Products of mu-law codes, in fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from kit import oracle

from octosim.numerics import MuLaw, mu_tables


def mu_product(a: np.ndarray, b: np.ndarray, how: MuLaw) -> tuple[np.ndarray, int]:
    decode, level, threshold = mu_tables(how)

    def settle(value: int) -> tuple[int, int, int]:
        code = max(m for m in range(128) if threshold[m] <= abs(value))
        return level[code] * (-1 if value < 0 else 1), code, abs(value) > level[127]

    out, saturated = np.zeros((len(a), b.shape[1]), np.uint8), 0
    for i in range(len(a)):
        for j in range(b.shape[1]):
            total, code = 0, 0
            for start in range(0, a.shape[1], how.group):
                part = sum(decode[a[i, p]] * decode[b[p, j]] for p in range(start, min(start + how.group, a.shape[1])))
                part = oracle.round_fraction(Fraction(part, 2**how.shift), "half-away")
                if how.encode_products:
                    part, _, over = settle(part)
                    saturated += over
                total, code, over = settle(total + part)
                saturated += over
            out[i, j] = code | (128 if total < 0 else 0)
    return out, saturated
