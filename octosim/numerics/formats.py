"""Number formats: how a tensor's numbers are stored and which real values they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from octosim.errors import OctosimError
from octosim.numerics.mulaw import mu_levels

STORED = ("int8", "uint8", "int32", "int64", "float32")
"""Element types of tensors in memory."""


@dataclass(frozen=True)
class Format:
    """How a tensor's numbers are stored.  The scale, the zero point or the exponent belong to the tensor (`core.Tensor`).

    stored:    one of STORED; an element of `bits` bits may lie in a wider one.
    bits:      of an element, 1 .. 64.
    signed:    two's complement; else from 0.
    symmetric: of signed integers: the lowest is -(2^(bits - 1) - 1), and -2^(bits - 1) stays unused.
    real:      floating point, which is its own value.
    block:     side of the square blocks of a matrix that have a scale each; 0: one scale, or one for each channel.
    table:     values of the magnitudes 0 .. 2^(bits - 1) - 1, in units of the scale, ascending from 0; the top bit is the sign.
               Empty: values are the integers themselves.

    Raises OctosimError for fields that contradict each other.
    """

    name: str
    stored: str
    bits: int
    signed: bool = True
    symmetric: bool = False
    real: bool = False
    block: int = 0
    table: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        wrong = ""
        if self.stored not in STORED:
            wrong = f"stored must be one of {', '.join(STORED)}, not '{self.stored}'"
        elif not 1 <= self.bits <= self.stored_bits:
            wrong = f"bits must be in 1 .. {self.stored_bits}, not {self.bits}"
        elif self.real != (self.stored == "float32"):
            wrong = f"real={self.real} does not go with elements of {self.stored}"
        elif self.symmetric and not self.signed:
            wrong = "an unsigned format cannot be symmetric"
        elif self.block < 0:
            wrong = f"block must be 0 or the side of a block, not {self.block}"
        elif self.table and (len(self.table) != 2 ** (self.bits - 1) or list(self.table) != sorted({0.0, *self.table})):
            wrong = f"table must hold {2 ** (self.bits - 1)} ascending values from 0"
        if wrong:
            raise OctosimError(f"format {self.name}: {wrong}")

    @property
    def stored_bits(self) -> int:
        """Bits of an element in memory."""
        return int(self.stored.removeprefix("u").removeprefix("int").removeprefix("float"))

    @property
    def low(self) -> int:
        """The least integer of the format."""
        return 0 if not self.signed else -self.high - (not self.symmetric)

    @property
    def high(self) -> int:
        """The largest integer of the format."""
        return 2 ** (self.bits - self.signed) - 1


@lru_cache(maxsize=16)
def symmetric(bits: int) -> Format:
    """Integers in +-(2^(bits - 1) - 1), 2 .. 8 bits, in int8."""
    return Format(f"int{bits}", "int8", bits, symmetric=True)


@lru_cache(maxsize=16)
def unsigned(bits: int) -> Format:
    """Integers in 0 .. 2^bits - 1, 1 .. 8 bits, in uint8."""
    return Format(f"uint{bits}", "uint8", bits, signed=False)


@lru_cache(maxsize=16)
def mu_law(mu: int = 255) -> Format:
    """8-bit codes with logarithmic steps (`MuLaw`): a sign and a magnitude m that stands for F^-1(m / 127)."""
    return Format("mu8" if mu == 255 else f"mu8, mu={mu}", "uint8", 8, table=tuple(mu_levels(mu)))


FLOAT32 = Format("float32", "float32", 32, real=True)
INT8 = symmetric(8)
"""+-127: -128 stays unused, so |q| <= 127 bounds every sum of products."""
INT32 = Format("int32", "int32", 32)
"""Sums of products."""
INT8_BLOCKS = Format("int8, a scale a block of 32 x 32", "int8", 8, symmetric=True, block=32)
