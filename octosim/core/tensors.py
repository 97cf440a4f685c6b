"""Tensors: stored numbers and the real values that they stand for.

One contract: `data`, `format`, a scale with a zero point, an exponent, or a scale for each block, and `materialize()`, which
gives the float32 values and leaves the tensor as it is.  `lazy` has those whose numbers are accumulators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from octosim.core.blocks import dequantize_blocks
from octosim.core.call import F32, Array, CoreError, Number, Whole, not_recorded, output, python
from octosim.core.codes import decode_table, dequantize
from octosim.core.integers import power_of_two
from octosim.numerics import INT8, Format


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Stored numbers q and their meaning: S (q - Z); q 2^exponent; or, in blocks, S of its block times q.

    data: the numbers, an array of the format's type, any shape.
    s: S as calls take it: a number, which may lie in C memory.  Of a format with a table: the value of 1 in it.
    z: Z as calls take it.  exponent: of all numbers, in place of a scale; None: there is none.
    scales: in place of S, float32 (rows / 32, columns / 32), rounded up, of a format with blocks; else float32 that broadcasts
    to data, a scale for each channel; None: there is one for all.
    """

    data: Array
    s: Number = 1.0
    z: Whole = 0
    format: Format = INT8
    exponent: Whole | None = None
    scales: Array | None = None

    @property
    def q(self) -> Array:
        """The stored numbers."""
        return self.data

    @property
    def scale(self) -> float:
        """S, or 2^exponent; CoreError where each channel or block has its own."""
        if not self.is_affine:
            raise CoreError("a tensor with a scale for each channel or block has no one scale")
        if self.exponent is not None:
            return math.ldexp(1.0, int(self.exponent))
        return float(self.s)

    @property
    def zero(self) -> int:
        """Z."""
        return int(self.z)

    @property
    def is_affine(self) -> bool:
        """Whether all numbers have one scale and one zero point."""
        return self.scales is None and not self.format.table

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def __len__(self) -> int:
        return len(self.data)

    def reshape(self, *shape: int) -> Tensor:
        """The same numbers in another shape; CoreError where the place of a number decides its scale."""
        if self.scales is not None:
            raise CoreError("a tensor with a scale for each channel or block cannot be reshaped")
        return replace(self, data=self.data.reshape(*shape))

    @property
    def transposed(self) -> Tensor:
        """The transpose of a matrix, no copy."""
        return replace(self, data=self.data.T, scales=None if self.scales is None else self.scales.T)

    def materialize(self, out: Array | None = None) -> Array:
        """The float32 values, of data's shape; in `out` if given.  CoreError where data is not of the format's type."""
        if self.data.dtype != self.format.stored:
            raise CoreError(f"a tensor of {self.format.name} must hold {self.format.stored}, not {self.data.dtype}")
        data, s = self.data, self.s
        if self.scales is not None:
            if self.format.block:
                return dequantize_blocks(data, self.scales, out=out)
            out = output("out", out, F32, data.shape)[0]
            python("a scale a channel", partial(_scaled, self.z), [data, self.scales], [out])
            return out
        if not data.flags.c_contiguous:
            not_recorded("codes were copied into rows")
            data = np.ascontiguousarray(data)
        if self.format.table:
            return decode_table(data, float(s), self.format.table, out=out)
        return dequantize(data, s if self.exponent is None else power_of_two(self.exponent), zero=self.z, out=out)


def _scaled(zero: Whole, data: Array, scales: Array, out: Array) -> None:
    np.multiply(np.subtract(data, int(zero), dtype=np.float32), scales, out=out)
