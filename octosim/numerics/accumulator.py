"""Accumulators in which products are added up, and what happened in them."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal

from octosim.errors import OctosimError, suggest


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
        for name in ("bits", "group", *(("pair_bits",) if self.pair_bits is not None else ())):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise OctosimError(f"accumulator {self.name}: {name} must be a whole number, not {value!r}")
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

    @property
    def text(self) -> str:
        """What `find` makes this accumulator of: a preset's name, or its fields, as bits=14,overflow=wrap,group=4."""
        named = Accumulator(f"acc{self.bits}{'-wrap' * (self.overflow == 'wrap')}", self.bits, self.overflow)
        for preset in (ACCUMULATORS.get(self.name), named, *ACCUMULATORS.values()):
            if preset is not None and replace(preset, name=self.name) == self:
                return preset.name
        plain = replace(named, name="")
        told = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        changed = {key: v for key, v in told.items() if key in ("bits", "overflow") or v != getattr(plain, key)}
        return ",".join(f"{key}={str(v).lower()}" for key, v in changed.items())

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


def find(text: str) -> Accumulator:
    """A preset by name, accN or accN-wrap of any N in 8 .. 32, or an accumulator by its fields, as
    "bits=14,overflow=wrap,group=4" (`Accumulator`; overflow is saturate if not given); OctosimError where there is none."""
    if text in ACCUMULATORS:
        return ACCUMULATORS[text]
    if match := re.fullmatch(r"acc(\d{1,2})(-wrap)?", text):
        return Accumulator(text, int(match[1]), "wrap" if match[2] else "saturate")
    if "=" not in text:
        raise OctosimError(f"unknown accumulator '{text}'" + suggest(text, ACCUMULATORS))
    given: dict[str, Any] = {"overflow": "saturate"}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key in ("bits", "group", "pair_bits") and re.fullmatch(r"\d{1,5}", value):
            given[key] = int(value)
        elif key == "unsigned" and value in ("true", "false"):
            given[key] = value == "true"
        elif key == "overflow":
            given[key] = value
        else:
            raise OctosimError(
                f"accumulator '{text}': '{part}' is none of bits=N, overflow=saturate|wrap, group=N, pair_bits=N, "
                "unsigned=true|false"
            )
    if "bits" not in given:
        raise OctosimError(f"accumulator '{text}': bits=N is missing")
    return Accumulator(text, **given)


@dataclass(frozen=True)
class Overflow:
    """What happened in the accumulators of one matrix product.

    steps:       additions to accumulators (outputs x groups of a row).
    saturations, wraps: steps whose sum left the register and was saturated or wrapped.
    needed:      needed[b]: outputs whose accumulator peaked at b bits before overflow (33: more than 32).
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
