"""Frozen values that name an arithmetic.  They go into a run's manifest: what is here decides bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal
from enum import Enum
from functools import lru_cache
from typing import Literal

from octosim.errors import OctosimError


class Rounding(Enum):
    """How a real number becomes an integer; tests/test_codes.py has the truth table of each."""

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


@dataclass(frozen=True)
class Proof:
    """Whether no sum of k products can leave a register, from bounds on the operands; text: the inequality with its numbers."""

    holds: bool
    text: str


@dataclass(frozen=True)
class Accumulator:
    """The register in which products of a matrix product are added up.

    bits:      width of the two's-complement sum, 8 .. 32.
    overflow:  "saturate" at the ends of the range, or "wrap" (modulo 2^bits).
    group:     products, in ascending k, that are summed exactly before the sum goes into the register.
    pair_bits: products are first added in pairs that saturate at so many bits (8 .. 31); None: they are not.
    unsigned:  the instruction multiplies uint8 by int8; training in it shifts int8 codes by 128 (engine/registers.py).

    Saturating sums are not associative: the order k = 0, 1, 2 ... is part of the definition.
    """

    name: str
    bits: int
    overflow: Literal["saturate", "wrap"]
    group: int = 1
    pair_bits: int | None = None
    unsigned: bool = False

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 32:
            raise OctosimError(f"accumulator {self.name}: bits must be in 8 .. 32, not {self.bits}")
        if self.overflow not in ("saturate", "wrap"):
            raise OctosimError(f"accumulator {self.name}: overflow must be saturate or wrap, not '{self.overflow}'")
        if not 1 <= self.group <= 32768:
            raise OctosimError(f"accumulator {self.name}: group must be in 1 .. 32768, not {self.group}")
        if self.pair_bits is not None and (not 8 <= self.pair_bits <= 31 or self.group % 2):
            raise OctosimError(
                f"accumulator {self.name}: pair_bits must be in 8 .. 31 and group even, not {self.pair_bits} and {self.group}"
            )

    def safe_depth(self, largest_a: int, largest_b: int) -> int:
        """The largest K for which no sum of K products with |a| <= largest_a, |b| <= largest_b can overflow.

        The bound is K largest_a largest_b <= 2^(bits-1) - 1: 133,144 for codes in +-127 and 32 bits.
        """
        product = largest_a * largest_b
        return (2 ** (self.bits - 1) - 1) // product if product else 2**63 - 1

    def proof(self, k: int, largest_a: int, largest_b: int) -> Proof:
        """Whether the register, and the pairs if it has them, hold every sum exactly for such operands."""
        most = 2 ** (self.bits - 1) - 1
        total = k * largest_a * largest_b
        holds = total <= most
        text = f"{k} x {largest_a} x {largest_b} = {total} {'<=' if holds else '>'} 2^{self.bits - 1} - 1 = {most}"
        if self.pair_bits is not None:
            count, pair_most = min(2, k), 2 ** (self.pair_bits - 1) - 1
            pair = count * largest_a * largest_b
            fits = pair <= pair_most
            text += f"; pairs: {count} x {largest_a} x {largest_b} = {pair} {'<=' if fits else '>'} "
            text += f"2^{self.pair_bits - 1} - 1 = {pair_most}"
            holds = holds and fits
        return Proof(holds, text)


EXACT32 = Accumulator("exact32", 32, "wrap")
"""Signed 32 bits; used where K is within `safe_depth`, so that nothing ever wraps and the sum is exact."""

_HARDWARE = (
    EXACT32,
    Accumulator("smlal", 32, "wrap", group=2),  # NEON SMULL, SMLAL (two products in 16 bits), SADALP
    Accumulator("sdot", 32, "wrap", group=4),  # Arm SDOT, NVIDIA DP4A
    Accumulator("vpdpbusd", 32, "wrap", group=4, unsigned=True),  # AVX-512 VNNI, u8 x s8
    Accumulator("vpdpbusds", 32, "saturate", group=4, unsigned=True),
    # x86 without VNNI: VPMADDUBSW, VPMADDWD, VPADDD
    Accumulator("maddubs", 32, "wrap", group=4, pair_bits=16, unsigned=True),
)
_NARROW = tuple(
    Accumulator(f"acc{bits}{'-wrap' if overflow == 'wrap' else ''}", bits, overflow)
    for bits in (32, 24, 20, 18, 16, 12, 8)
    for overflow in ("saturate", "wrap")
)

ACCUMULATORS = {a.name: a for a in (*_HARDWARE, *_NARROW)}
"""Presets by name: the hardware's, and accN (saturating) and accN-wrap, one product at a time."""


@dataclass(frozen=True)
class Overflow:
    """What happened in the accumulators of one matrix product.

    steps:       additions to accumulators (outputs x groups of a row).
    saturations, wraps: steps whose sum left the register and was saturated or wrapped.
    needed:      outputs by the bits that their accumulator, before it was narrowed, needed at its largest (33: more than 32).
    """

    steps: int
    saturations: int
    wraps: int
    needed: tuple[int, ...]

    @property
    def largest_bits(self) -> int:
        """Bits that the largest |accumulator| of all outputs needed."""
        return max((bits for bits, count in enumerate(self.needed) if count), default=0)

    def would_overflow(self, bits: int) -> int:
        """Outputs whose accumulator left the range of a register of so many bits at least once."""
        return sum(self.needed[bits + 1 :])


# ---- mu-law codes --------------------------------------------------

LARGEST_LINEAR = 8191
"""Linear value of an operand's largest mu-law code: 14 bits with the sign, as in ITU-T G.711; 32 products fit in 32 bits."""


@dataclass(frozen=True)
class MuLaw:
    """8-bit codes with logarithmic steps (mu-law companding), as operands and as accumulator: LogBTQ's MU8.

    A code is a sign and a magnitude m in 0 .. 127 that stands for bound F^-1(m / 127), with
    F(x) = ln(1 + mu x) / ln(1 + mu) and F^-1(y) = ((1 + mu)^y - 1) / mu; encoding rounds 127 F(|x|) to the nearest, ties up.

    mu:       255 in telephony, and the only reading of the paper's "MU8" (algorithms.md 2.4).
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


# ---- functions of reals with the same bits everywhere --------------------------------------------------


def power(base: float, exponent: int) -> float:
    """base^exponent by squaring: IEEE products only, so the same bits on every machine (libm's pow need not be)."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def half_cosine(t: float) -> float:
    """(1 + cos(pi t)) / 2 for t in [0, 1] = cos(pi t / 2)^2, by cosine's series to x^18 (below 3e-15 for x <= pi / 2).

    IEEE operations only, for the same reason as `power`.
    """
    x2, term, total = (1.5707963267948966 * t) ** 2, 1.0, 1.0
    for n in range(1, 10):
        term *= -x2 / ((2 * n - 1) * (2 * n))
        total += term
    return total * total
