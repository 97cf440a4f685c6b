"""The products of a narrow accumulator as calls that a recorded step can hold: cext/register.inc makes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octosim import core
from octosim.core.call import READS, WRITES, ffi, pointer
from octosim.core.products import conv_struct
from octosim.engine.nodes import Array, BatchedProduct, Observer
from octosim.engine.registers import AccumulatorModel, EmulatedProduct, shapes
from octosim.errors import OctosimError
from octosim.numerics import EXACT32

INT8, INT32, INT64 = (np.dtype(kind) for kind in (np.int8, np.int32, np.int64))


@dataclass(frozen=True)
class _Recorded(EmulatedProduct):
    """A product of int8 operands that is told to the calling thread's recorder, and not made."""

    def _told(
        self, function: str, first: tuple[str, Array], x_zero: core.Whole | None, second: tuple[str, Array],
        shape: tuple[int, ...], out: Array | None, kind: np.dtype[Any] = INT32,
    ) -> Array:  # fmt: skip
        how = self.registers.accumulator
        out = np.empty(shape, kind) if out is None else out
        register = ffi.new("octo_accumulator *", (how.bits, how.overflow == "saturate", how.group, how.pair_bits or 0))
        operands = [pointer(name, array, INT8, access=READS) for name, array in (first, second)]
        given = [operands[0], *([] if x_zero is None else [x_zero]), operands[1], register, how.unsigned]
        # a depthwise convolution is one with a group for each channel
        g = conv_struct(replace(self.product.geometry, groups=self.product.groups))
        assert core.here.recorder is not None
        core.here.recorder.call(function, -1, _none, (g, *given, pointer("out", out, kind, out.shape, access=WRITES)))
        return out

    def forward(self, x: Array, w: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        if self._exact(x):
            return self.product.forward(x, w, x_zero=x_zero, out=out)
        return self._told("octosim_register_forward", ("x", x), x_zero, ("w", w), shapes(self.product)[2], out)

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        if self._exact(dy):
            return self.product.input_grad(dy, w, out=out)
        return self._told("octosim_register_input_grad", ("dy", dy), None, ("w", w), shapes(self.product)[0], out)

    def weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        if self._exact(x):
            return self.product.weight_grad(x, dy, x_zero=x_zero, out=out)
        return self._told("octosim_register_weight_grad", ("x", x), x_zero, ("dy", dy), shapes(self.product)[1], out)

    def long_weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        if self._exact(x):
            return self.product.long_weight_grad(x, dy, x_zero=x_zero, out=out)  # type: ignore[attr-defined]
        function = "octosim_register_weight_grad_long"
        return self._told(function, ("x", x), x_zero, ("dy", dy), shapes(self.product)[1], out, INT64)


def _none(*arguments: Any) -> int:
    raise AssertionError("only a recorder takes this call")


class RecordedRegisters(AccumulatorModel):
    """The accumulator of a network's int8 products while its step is recorded."""

    def _emulated(self, layer: str, observers: list[Observer], product: Any) -> Any:
        if self.accumulator == EXACT32:
            return product
        if isinstance(product, BatchedProduct):
            raise OctosimError(f"layer {layer}: products of activations in accumulator {self.accumulator.name} are not in C")
        return _Recorded(layer, product, self)
