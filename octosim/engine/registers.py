"""Training in a given register: the int8 products of a network's three passes, summed as hardware with that register does.

Every layer is a convolution here (a fully connected one of a 1 x 1 image), whose windows are gathered into a matrix, and goes
through `core.gemm` with the register.  Saturating sums depend on their order; this is it:

    forward  Y[b, oh, ow, f]  k = [kernel_h][kernel_w][channel] ascending; padding holds the zero point's code
    dX       X[b, h, w, c]    k = [kernel_h][kernel_w][filter] ascending; tap (i, j) takes dY[(h + pad - i) / stride,
                              (w + pad - j) / stride] where that is an element of dY, else 0
    dW       W[f, i, j, c]    k = [batch][out_h][out_w] ascending; padding as in forward

A convolution with groups is one product a group, with the group's channels and filters; a depthwise one is one a channel.
With dilation, tap (i, j) is that of the kernel, which lies (i, j) dilation away.

A register with `unsigned` multiplies uint8 by int8.  Codes become uint8 as libraries make them: 128 is added to the operand
that is data (X in forward and dW, dY in dX; zeros outside dY are 128 then), and 128 times the other operand's sum over k
is subtracted from what the register holds at the end, modulo 2^32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, BatchedProduct, Convolution, Depthwise, FullProduct, Node, Observer, Product
from octosim.errors import OctosimError
from octosim.numerics import ACCUMULATORS, EXACT32, Accumulator, Overflow

LONGEST = 2**22  # products in a sum: octo_gemm_s8_accumulate
MODULO = ACCUMULATORS["acc32-wrap"]
WIDTHS = tuple(range(8, 33))  # registers for which a count says how many outputs would have overflowed them


@dataclass(frozen=True)
class Count:
    """What happened in one product.

    pair_saturations: pairs of products that left their pair_bits.  inexact: outputs that are not the exact sum, modulo 2^32.
    """

    overflow: Overflow
    pair_saturations: int
    inexact: int


@dataclass
class AccumulatorModel:
    """The register of a network's int8 products.

    counting: whether what happens in it goes to `counts`, as (layer, pass, Count).
    """

    accumulator: Accumulator = EXACT32
    counting: bool = False
    counts: list[tuple[str, str, Count]] = field(default_factory=list)

    def install(self, nodes: list[Node]) -> None:
        """From now on the nodes' products are made here."""
        for node in nodes:
            node.product_hook = partial(self._emulated, node.name, node.observers)

    def _emulated(self, layer: str, observers: list[Observer], product: Any) -> Any:
        if isinstance(product, BatchedProduct):
            exact = self.accumulator == EXACT32 and not self.counting
            return product if exact else EmulatedBatched(product.geometry, layer, self)
        exact = self.accumulator == EXACT32 and not self.counting and not observers
        return product if exact else EmulatedProduct(layer, product, self, observers)


def check(nodes: list[Node], batch: int, accumulator: Accumulator) -> None:
    """Refuses, with OctosimError, sums too long to be taken step by step."""
    for node in nodes:
        if node.layer.weighted:
            longest = max(node.layer.product(node, batch).depths)
            if longest > LONGEST:
                raise OctosimError(
                    f"layer {node.name}: a sum of {longest} products is too long for accumulator {accumulator.name} "
                    f"(at most {LONGEST}); use a smaller batch size"
                )


# ---- products as data --------------------------------------------------


def multiply(product: Product, pass_: str, operands: dict[str, Array], x_zero: int = 0) -> Array:
    """The sums of a product's pass, from its operands by name as Observer.product has them."""
    if pass_ == "forward":
        return product.forward(operands["x"], operands["w"], x_zero=x_zero)
    if pass_ == "dX":
        return product.input_grad(operands["dy"], operands["w"])
    return product.weight_grad(operands["x"], operands["dy"], x_zero=x_zero)


def resized(product: Product, batch: int) -> Product:
    """The same product with another batch."""
    g = product.geometry
    if isinstance(product, FullProduct):
        return FullProduct(batch, g.channels, g.filters)
    kind = Depthwise if isinstance(product, Depthwise) else Convolution
    return kind(replace(g, batch=batch))


def in_rows(product: Product, operands: dict[str, Array]) -> dict[str, Array]:
    """Operands with a row for each of the product's batch: a fully connected layer's images may have several, tokens."""
    if product.kernel != (0, 0):
        return operands
    return {name: values if name == "w" else values.reshape(-1, values.shape[-1]) for name, values in operands.items()}


def exact_sums(product: Product, pass_: str, operands: dict[str, Array], x_zero: int = 0) -> Array:
    """The int64 sums of a pass on int8 codes, without overflow whatever the batch.

    A dW whose sums could leave 32 bits is made of parts.
    """
    if pass_ != "dW":
        return multiply(product, pass_, operands, x_zero).astype(np.int64)  # depths up to layers.LONGEST_WINDOW: safe
    operands = in_rows(product, operands)
    x, dy = operands["x"], operands["dy"]
    if max(product.depths) <= EXACT32.safe_depth(128, 128):
        return multiply(product, pass_, operands, x_zero).astype(np.int64)
    if product.any_length:
        return product.long_weight_grad(x, dy, x_zero=x_zero)  # type: ignore[attr-defined]
    total, some = np.zeros(shapes(product)[1], np.int64), EXACT32.safe_depth(128, 128)
    for i in range(0, len(x), some):
        part = {"x": x[i : i + some], "dy": dy[i : i + some]}
        total += multiply(resized(product, len(part["x"])), pass_, part, x_zero)
    return total


# ---- operands as matrices --------------------------------------------------


def _windows(padded: Array, g: core.Conv, strides: tuple[int, int]) -> Array:
    """(batch, out_h, out_w, kernel_h, kernel_w, channels), a view."""
    (down, across), view = g.dilations, np.lib.stride_tricks.sliding_window_view(padded, g.extent, (1, 2))
    return view[:, :: strides[0], :: strides[1], :, ::down, ::across].transpose(0, 1, 2, 4, 5, 3)


def x_windows(g: core.Conv, x: Array, x_zero: int) -> Array:
    """What each output of the forward pass sees: (batch, out_h, out_w, kernel_h, kernel_w, channels)."""
    x, (top, left, bottom, right) = x.reshape(g.x_shape), g.pads
    if g.pad:
        padded = np.full((g.batch, g.height + top + bottom, g.width + left + right, g.channels), x_zero, x.dtype)
        padded[:, top : top + g.height, left : left + g.width] = x
        x = padded
    return _windows(x, g, g.strides)


def dy_windows(g: core.Conv, dy: Array) -> Array:
    """What each input pixel's gradient sees: (batch, height, width, kernel_h, kernel_w, filters), 0 where there is no dY."""
    (high, wide), (top, left, _, _), (down, across) = g.extent, g.pads, g.strides
    h, w = high - 1 - top, wide - 1 - left
    spread = np.zeros((g.batch, g.height + high - 1, g.width + wide - 1, dy.shape[-1]), dy.dtype)
    spread[:, h : h + down * g.out_h : down, w : w + across * g.out_w : across] = dy.reshape(g.batch, g.out_h, g.out_w, -1)
    return _windows(spread, g, (1, 1))[:, :, :, ::-1, ::-1]


def _columns(product: Product, windows: Array) -> list[Array]:
    """The windows as matrices, a row a place, one for each group."""
    m, groups = math.prod(windows.shape[:3]), product.groups
    each = windows.shape[-1] // groups
    return [windows[..., i * each : (i + 1) * each].reshape(m, -1) for i in range(groups)]


def _part(size: int, groups: int, at: int) -> slice:
    """A group's part of an axis."""
    return slice(at * size // groups, (at + 1) * size // groups)


def total(counts: list[Count]) -> Count:
    each = [c.overflow for c in counts]
    needed = tuple(sum(column) for column in zip(*(o.needed for o in each), strict=True))
    overflow = Overflow(sum(o.steps for o in each), sum(o.saturations for o in each), sum(o.wraps for o in each), needed)
    return Count(overflow, sum(c.pair_saturations for c in counts), sum(c.inexact for c in counts))


def as_record(count: Count) -> dict[str, Any]:
    """An account as JSON; would_overflow: outputs that a register of so many bits would not have held."""
    overflow = count.overflow
    return {
        "additions": overflow.steps,
        "saturations": overflow.saturations,
        "wraps": overflow.wraps,
        "pair_saturations": count.pair_saturations,
        "outputs": sum(overflow.needed),
        "inexact": count.inexact,
        "largest_bits": overflow.largest_bits,
        "would_overflow": {str(bits): overflow.would_overflow(bits) for bits in WIDTHS},
    }


def _pair_saturations(a: Array, b: Array, pair_bits: int) -> int:
    """Pairs of a row of `a` and a row of `b` that saturate; each pair is a product of its own in a register of so many bits."""
    pair = Accumulator("pair", pair_bits, "saturate", group=2)
    columns = range(0, a.shape[1], 2)
    return sum(core.gemm_counted(a[:, k : k + 2], b[:, k : k + 2], pair, transpose_b=True)[1].saturations for k in columns)


@dataclass(frozen=True)
class EmulatedProduct:
    """A product whose int8 sums are those of a register; float32 operands go through as they are."""

    layer: str
    product: Product
    registers: AccumulatorModel
    observers: Sequence[Observer] = ()

    @property
    def geometry(self) -> core.Conv:
        return self.product.geometry

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.product.shape

    @property
    def groups(self) -> int:
        return self.product.groups

    @property
    def kernel(self) -> tuple[int, int]:
        return self.product.kernel

    @property
    def depths(self) -> tuple[int, int, int]:
        return self.product.depths

    @property
    def any_length(self) -> bool:
        return self.product.any_length

    def forward(self, x: Array, w: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        if self._exact(x):
            out = self.product.forward(x, w, x_zero=x_zero, out=out)
        else:
            g = self.product.geometry
            out = np.empty(shapes(self.product)[2], np.int32) if out is None else out
            self._rows("forward", x_windows(g, x, int(x_zero)), w, out)
        self._notify("forward", {"x": x, "w": w}, x_zero, out)
        return out

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        if self._exact(dy):
            out = self.product.input_grad(dy, w, out=out)
        else:
            g = self.product.geometry
            out = np.empty(shapes(self.product)[0], np.int32) if out is None else out
            turned = w  # [channel][kernel_h][kernel_w][filter of the group], as the windows
            if not isinstance(self.product, Depthwise):
                parts = w.reshape(g.groups, -1, *g.w_shape[1:]).transpose(0, 4, 2, 3, 1)
                turned = np.ascontiguousarray(parts).reshape(-1, *parts.shape[2:])
            self._rows("dX", dy_windows(g, dy), turned, out)
        self._notify("dX", {"dy": dy, "w": w}, 0, out)
        return out

    def weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        if self._exact(x):
            out = self.product.weight_grad(x, dy, x_zero=x_zero, out=out)
        else:
            out = np.empty(shapes(self.product)[1], np.int32) if out is None else out
            windows = x_windows(self.product.geometry, x, int(x_zero))
            dys, made, counts = dy.reshape(-1, dy.shape[-1]), out.reshape(out.shape[0], -1), list[Count]()
            for group, a in enumerate(_columns(self.product, windows)):
                one = _part(dys.shape[1], self.product.groups, group)
                # X^T dY, so that data are the first operand, as in the other passes
                sums, count = self.gemm(a, np.ascontiguousarray(dys[:, one]), transpose_a=True)
                made[one] = sums.T
                counts += count
            self._count("dW", counts)
        self._notify("dW", {"x": x, "dy": dy}, x_zero, out)
        return out

    def long_weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        """In int64: the exact sums, or those of the register."""
        out = np.empty(shapes(self.product)[1], np.int64) if out is None else out
        if self._exact(x):
            self.product.long_weight_grad(x, dy, x_zero=x_zero, out=out)  # type: ignore[attr-defined]
            self._notify("dW", {"x": x, "dy": dy}, x_zero, out)
        else:
            np.copyto(out, self.weight_grad(x, dy, x_zero=x_zero))
        return out

    def _exact(self, data: Array) -> bool:
        """Whether the product's own kernel makes the sums."""
        return data.dtype != np.int8 or (self.registers.accumulator == EXACT32 and not self.registers.counting)

    def _rows(self, pass_: str, windows: Array, w: Array, out: Array) -> None:
        """Windows times the rows of w."""
        rows, made, counts = w.reshape(w.shape[0], -1), out.reshape(-1, out.shape[-1]), list[Count]()
        for group, a in enumerate(_columns(self.product, windows)):
            one = _part(len(rows), self.product.groups, group)
            made[:, one], count = self.gemm(a, rows[one], transpose_b=True)
            counts += count
        self._count(pass_, counts)

    def gemm(self, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> tuple[Array, list[Count]]:
        how = self.registers.accumulator
        if how.unsigned:
            a = a.view(np.uint8) ^ np.uint8(128)
        counts: list[Count] = []
        if self.registers.counting:
            sums, overflow = core.gemm_counted(a, b, how, transpose_a=transpose_a, transpose_b=transpose_b)
            pairs = inexact = 0
            if how.pair_bits or how.bits < 32 or overflow.saturations:  # else the sums are those modulo 2^32
                exact = core.gemm(a, b, accumulator=MODULO, transpose_a=transpose_a, transpose_b=transpose_b)
                inexact = int(np.count_nonzero(sums != exact))
            if how.pair_bits:
                pairs = _pair_saturations(a.T.copy() if transpose_a else a, b if transpose_b else b.T.copy(), how.pair_bits)
            counts = [Count(overflow, pairs, inexact)]
        else:
            sums = core.gemm(a, b, accumulator=how, transpose_a=transpose_a, transpose_b=transpose_b)
        if how.unsigned:
            sums -= np.int32(128) * b.sum(1 if transpose_b else 0, dtype=np.int32)
        return sums, counts

    def _count(self, pass_: str, counts: list[Count]) -> None:
        if counts:
            self.registers.counts.append((self.layer, pass_, total(counts)))

    def _notify(self, pass_: str, operands: dict[str, Array], x_zero: core.Whole, sums: Array) -> None:
        for observer in self.observers:
            observer.product(self.layer, pass_, self.product, operands, int(x_zero), sums)


@dataclass(frozen=True)
class EmulatedBatched(BatchedProduct):
    """Products of activations whose int8 sums are those of a register, k ascending; float32 operands go through as they are."""

    layer: str
    registers: AccumulatorModel

    def multiply(self, g: core.Batched, a: Array, b: Array, out: Array | None, pass_: str = "forward") -> Array:
        if a.dtype != np.int8:
            return core.gemm_batched(g, a, b, out=out)
        product = EmulatedProduct(self.layer, FullProduct(1, 1, 1), self.registers)
        out = np.empty(g.shape(2), np.int32) if out is None else out
        counts: list[Count] = []
        for image, head in itertools.product(range(g.batch), range(g.heads)):
            left, right, made = (
                x[image].reshape(len(x[image]), g.heads, -1)[:, head] if wide else x[image, head]
                for x, wide in zip((a, b, out), g.wide, strict=True)
            )
            left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
            made[:], count = product.gemm(left, right, transpose_a=g.transpose_a, transpose_b=g.transpose_b)
            counts += count
        if counts:
            self.registers.counts.append((self.layer, pass_, total(counts)))
        return out


def shapes(product: Product) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of X, W and Y."""
    g = product.geometry
    if isinstance(product, FullProduct):
        return (g.batch, g.channels), (g.filters, g.channels), (g.batch, g.filters)
    w = (g.channels, g.kernel_h, g.kernel_w, 1) if isinstance(product, Depthwise) else g.w_shape
    return g.x_shape, w, g.y_shape


Registers, InRegister = AccumulatorModel, EmulatedProduct
"""Their names in earlier releases."""
