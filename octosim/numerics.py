"""Frozen values that name an arithmetic.  They go into a run's manifest: what is here decides bits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Rounding(Enum):
    """How a real number becomes a code."""

    HALF_EVEN = "half-even"  # to the nearest integer, ties to the even one (IEEE 754 roundTiesToEven)
    STOCHASTIC = "stochastic"  # floor(x + u), u uniform in [0, 1) from Philox: right on average


@dataclass(frozen=True)
class Accumulator:
    """The register in which products of a matrix product are added up.

    bits:     width of the two's-complement sum.
    overflow: "wrap" (modulo 2^bits).
    """

    name: str
    bits: int
    overflow: str

    def safe_depth(self, largest_a: int, largest_b: int) -> int:
        """The largest K for which no sum of K products with |a| <= largest_a, |b| <= largest_b can overflow.

        The bound is K largest_a largest_b <= 2^(bits-1) - 1: 133,144 for codes in +-127 and 32 bits.
        """
        product = largest_a * largest_b
        return (2 ** (self.bits - 1) - 1) // product if product else 2**63 - 1


EXACT32 = Accumulator("exact32", 32, "wrap")
"""Signed 32 bits; used where K is within `safe_depth`, so that nothing ever wraps and the sum is exact."""

ACCUMULATORS = {a.name: a for a in (EXACT32,)}
