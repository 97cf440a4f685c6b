"""How real numbers become integers, and sums of products codes."""

from __future__ import annotations

import math
from enum import Enum

from octosim.errors import OctosimError


class Rounding(Enum):
    """How a real number becomes an integer; tests/core/test_codes.py has the truth table of each."""

    HALF_EVEN = "half-even"  # to the nearest, ties to the even one (IEEE 754 roundTiesToEven)
    HALF_AWAY = "half-away"  # to the nearest, ties away from zero (C's round(); NITI's RoundShift)
    HALF_UP = "half-up"  # to the nearest, ties up: floor(x + 1/2) (a shifter with a rounding bit; NEON SRSHR)
    FLOOR = "floor"  # down: an arithmetic shift
    TOWARD_ZERO = "toward-zero"  # C's integer division
    STOCHASTIC = "stochastic"  # floor(x + u), u uniform in [0, 1) from Philox: right on average
    PSEUDO_STOCHASTIC = "pseudo-stochastic"  # NITI: the fraction's lower half of bits decides about its upper half

    @property
    def for_reals(self) -> bool:
        """Whether it rounds any number; pseudo-stochastic rounding is defined on the bits that a shift drops."""
        return self is not Rounding.PSEUDO_STOCHASTIC


class Requantization(Enum):
    """How an int32 sum times a real scale becomes an int8 code."""

    GEMMLOWP = "gemmlowp"  # 31-bit multiplier, high half rounded half up, then a shift rounded half away (Jacob et al. 2018)
    SINGLE_ROUNDING = "single-rounding"  # 31-bit multiplier and shift, rounded once
    POWER_OF_TWO = "power-of-two"  # a shift
    FLOAT_SCALE = "float-scale"  # float32 of the sum times a float32 scale


def fixed_point(scale: float) -> tuple[int, int]:
    """(multiplier, shift) with multiplier / 2^shift nearest to scale: 2^30 <= multiplier < 2^31 for scale >= 2^-31.

    Smaller scales keep fewer bits, as the shift ends at 62.  Raises OctosimError unless 0 <= scale <= 2^31 - 1.
    Jacob et al. 2018, section 2.2: M = 2^-n M0 with M0 in [1/2, 1) as a 31-bit fraction.
    """
    if not 0 <= scale <= 2**31 - 1:
        raise OctosimError(f"a fixed-point scale must be in 0 .. 2^31 - 1, not {scale}")
    shift = min(31 - math.frexp(scale)[1], 62)
    multiplier = round(scale * 2**shift)  # the product is exact: a power of two
    return (multiplier // 2, shift - 1) if multiplier == 2**31 else (multiplier, shift)
