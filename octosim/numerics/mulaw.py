"""Mu-law codes: 8 bits with logarithmic steps."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache

from octosim.errors import OctosimError

LARGEST_LINEAR = 8191
"""Linear value of an operand's largest mu-law code: 14 bits with the sign, as in ITU-T G.711; 32 products fit in 32 bits."""


@dataclass(frozen=True)
class MuLaw:
    """8-bit codes with logarithmic steps (mu-law companding), as operands and as accumulator: LogBTQ's MU8.

    A code is a sign and a magnitude m in 0 .. 127 that stands for bound F^-1(m / 127), with
    F(x) = ln(1 + mu x) / ln(1 + mu) and F^-1(y) = ((1 + mu)^y - 1) / mu; encoding rounds 127 F(|x|) to the nearest, ties up.

    mu:       255 in telephony, and the only reading of the paper's "MU8", whose text is not known to us.
    headroom: the accumulator's bound is 2^headroom times the product of the operands' bounds, -8 .. 16.
    group:    products summed exactly before the accumulator is encoded again, 1 .. 32; 1 is the strict 8-bit accumulator.
    encode_products: whether a group's sum is encoded by itself before it is added: acc = mu8(acc + mu8(a b)).
    """

    mu: int = 255
    headroom: int = 4
    group: int = 1
    encode_products: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (("mu", 1, 65535), ("headroom", -8, 16), ("group", 1, 32)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise OctosimError(f"mu-law {name} must be in {low} .. {high}, not {value}")

    @property
    def shift(self) -> int:
        """The accumulator counts in products' units / 2^shift, so that its bound and a group's sum are each at most 2^30."""
        return max(0, max(self.headroom, (self.group - 1).bit_length()) - 4)


_EXACT = Context(prec=60)


@lru_cache(maxsize=64)
def expanded(mu: int, twice: int) -> Decimal:
    """F^-1(twice / 254) for the given mu, to 60 digits: levels at even `twice`, the borders between them at odd ones."""
    y = _EXACT.divide(Decimal(twice), Decimal(254))
    return _EXACT.divide(_EXACT.subtract(_EXACT.power(Decimal(1 + mu), y), Decimal(1)), Decimal(mu))


def mu_levels(mu: int) -> list[float]:
    """F^-1(m / 127) for m = 0 .. 127."""
    return [float(expanded(mu, 2 * m)) for m in range(128)]


def mu_thresholds(mu: int) -> list[float]:
    """The smallest |x| / bound of each magnitude code: 0 and F^-1((m - 1/2) / 127)."""
    return [0.0, *(float(expanded(mu, 2 * m - 1)) for m in range(1, 128))]


@lru_cache(maxsize=16)
def mu_tables(how: MuLaw) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(decode, level, threshold) of a product in mu-law codes, in integers (octo_mu8 in cext/octosim.h).

    decode: linear value of each of the 256 operand codes; level and threshold: of the accumulator's magnitude codes.
    """
    unit = _EXACT.multiply(Decimal(LARGEST_LINEAR**2), _EXACT.power(Decimal(2), Decimal(how.headroom - how.shift)))

    def scaled(twice: int, factor: Decimal, rounding: str) -> int:
        return int(_EXACT.multiply(expanded(how.mu, twice), factor).to_integral_value(rounding))

    linear = [scaled(2 * m, Decimal(LARGEST_LINEAR), ROUND_HALF_EVEN) for m in range(128)]
    level = tuple(scaled(2 * m, unit, ROUND_HALF_EVEN) for m in range(128))
    threshold = (0, *(scaled(2 * m - 1, unit, ROUND_CEILING) for m in range(1, 128)))
    return (*linear, *(-v for v in linear)), level, threshold
