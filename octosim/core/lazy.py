"""Values that are computed where they are needed: int32 accumulators before dequantization, rows of dW, sums of two tensors.

Each has `materialize()`, which gives the float32 values and leaves it as it is, as a `Tensor` has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from octosim.core.call import F32, S32, Array, CoreError, Number, ffi, here, pointer, scalar
from octosim.core.codes import copy, dequantize_rows, dequantize_sums
from octosim.numerics import INT32, Format


@dataclass(frozen=True, slots=True)
class LazyDequant:
    """The int32 accumulators of a matrix product of quantized values, which stand for the float32 values (acc + add) * scale.

    acc: int32, any shape.  add: int32, repeats along acc; `by_rows`: one for each index of the first axis.
    rest: what `fold_bias` leaves for float32, added there; not where `by_rows`.
    """

    acc: Array
    add: Array
    scale: Number
    by_rows: bool = False
    rest: Array | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", scalar(self.scale))  # an octo_tensor points to it

    @property
    def data(self) -> Array:
        """The stored numbers, without the addend."""
        return self.acc

    @property
    def format(self) -> Format:
        return INT32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.acc.shape

    def __getitem__(self, rows: slice) -> LazyDequant:
        """A range of the first axis, where `by_rows`."""
        return LazyDequant(self.acc[rows], self.add[rows], self.scale, True)

    def materialize(self, out: Array | None = None) -> Array:
        """The float32 values, of acc's shape; in `out` if given, which may be `reuse_buffer(self)`: acc is lost then."""
        if self.by_rows:
            return dequantize_rows(self.acc, self.add, self.scale, out=out)
        return dequantize_sums(self.acc, self.add, self.scale, rest=self.rest, out=out)

    array = materialize  # its name in earlier releases


@dataclass(frozen=True, slots=True)
class LazyWeightGrad:
    """A weight gradient whose rows are computed when they are asked for, so that not all need be in memory at once.

    rows: the accumulators (by_rows) of a range of rows.
    """

    rows: Callable[[slice], LazyDequant]
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> LazyDequant:
        return self.rows(rows)

    def materialize(self, out: Array | None = None) -> Array:
        """The float32 values of all rows."""
        whole = self.rows(slice(0, self.shape[0]))
        return whole.materialize(reuse_buffer(whole) if out is None else out)


Values = Array | LazyDequant


@dataclass(frozen=True, slots=True)
class LazyAdd:
    """The sum a + b of two tensors of one shape."""

    a: Values
    b: Values


def reuse_buffer(x: Values | LazyAdd) -> Array:
    """The float32 memory that x's values may be written to: x's own, of a sum a's; what x held is lost then.

    CoreError for accumulators that are not int32.
    """
    if isinstance(x, LazyAdd):
        x = x.a
    if not isinstance(x, LazyDequant):
        return x
    if x.acc.dtype != S32:
        raise CoreError(f"sums: acc must hold int32, not {x.acc.dtype}")
    return x.acc.view(F32)


def materialize(x: Any, out: Array | None = None) -> Array:
    """The float32 values of a tensor or of accumulators, which stay as they are; of a float32 array itself.

    out: float32 of x's shape, gets the values.
    """
    if not isinstance(x, np.ndarray):
        values: Array = x.materialize(out)
        return values
    return x if out is None or out is x else copy(x, out=out)


def materialize_in_place(x: Any) -> Any:
    """x; of accumulators, their float32 values in the same memory, so that x is lost."""
    if isinstance(x, LazyDequant):
        return x.materialize(reuse_buffer(x))
    return x.materialize() if isinstance(x, LazyWeightGrad) else x


_TENSOR = ffi.typeof("octo_tensor *")


def tensor(name: str, x: Values, shape: tuple[int, ...] | None = None, *, by_rows: bool = False) -> Any:
    """octo_tensor * of float32 values, or of accumulators whose addend belongs to the last axis, or `by_rows` to the first."""
    struct = ffi.new(_TENSOR)
    if isinstance(x, LazyDequant):
        if x.by_rows != by_rows:
            raise CoreError(f"{name}: sums need one addend for each {'row' if by_rows else 'column'}")
        scale = scalar(x.scale)
        struct.sums, struct.scale = pointer(name, x.acc, S32, shape), scale.at
        if here.recorder is not None:
            here.recorder.keep(scale)
        struct.add = pointer("add", x.add, S32, x.acc.shape[:1] if by_rows else x.acc.shape[-1:])
        if x.rest is not None:
            struct.rest = pointer("rest", x.rest, F32, (x.add.size + 1,))
    else:
        struct.values = pointer(name, x, F32, shape)
    return struct
