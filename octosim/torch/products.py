"""The products of PyTorch's layers as the engine's, and what the modules of a network share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.core.memory import Pool
from octosim.engine import registers
from octosim.engine.layers import Weighted
from octosim.engine.nodes import Array, Convolution, Depthwise, FullProduct, Method, Node, Product
from octosim.numerics import EXACT32, Accumulator


@dataclass
class Session:
    """The arithmetic of converted modules, and what was seen of it.

    seed: of the random streams, whose step is a module's number of training passes.  every: passes are observed in one of so
    many training steps of a module; 0: never.  counts, noise: by (layer, pass).
    """

    method: Method
    accumulator: Accumulator
    seed: int = 0
    every: int = 1
    layers: list[str] = field(default_factory=list)
    counts: dict[tuple[str, str], list[registers.Count]] = field(default_factory=dict)
    noise: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    observers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registers = registers.Registers(self.accumulator)
        self.pool = Pool()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: without memory and observers."""
        return {key: v for key, v in vars(self).items() if key not in ("pool", "registers")} | {"observers": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def through(self, layer: str, product: Product) -> Product:
        exact = self.accumulator == EXACT32 and not self.registers.counting and not self.observers
        return product if exact else registers.InRegister(layer, product, self.registers, self.observers)

    def show(self, layer: str, pass_: str, product: Any, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        for observer in self.observers:
            observer.product(layer, pass_, product, operands, x_zero, sums)

    @contextlib.contextmanager
    def counting(self, wanted: bool) -> Iterator[None]:
        """Counts what happens in the register inside."""
        self.registers.counting, self.registers.counts = wanted, []
        try:
            yield
        finally:
            for layer, pass_, count in self.registers.counts:
                held = self.counts.setdefault((layer, pass_), [])
                held.append(count)
                if len(held) > 1:
                    held[:] = [registers.total(held)]
            self.registers.counting, self.registers.counts = False, []

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Nobody is told of the products inside."""
        observers = self.observers[:]
        self.observers.clear()
        try:
            yield
        finally:
            self.observers.extend(observers)

    def compare(self, layer: str, pass_: str, values: Array, reference: Array) -> None:
        """Adds to the signal and the noise of a pass."""
        held = self.noise.setdefault((layer, pass_), [0.0, 0.0])
        exact = reference.astype(np.float64)
        held[0] += float(np.square(exact).sum())
        held[1] += float(np.square(exact - values.reshape(exact.shape)).sum())


# ---- products of any geometry --------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """The matrix products of a convolution in groups, dilated, with a stride and padding of each axis; `nodes.Product`.

    Operands: x (batch, height, width, channels), w (filters, kernel_h, kernel_w, channels / groups), dy (batch, out_h, out_w,
    filters).  Sums run as in engine/registers.py, in ascending [kernel_h][kernel_w][channel of the group].
    """

    batch: int
    size: tuple[int, int]
    channels: int
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    session: Session
    layer: str

    @property
    def out_size(self) -> tuple[int, int]:
        h, w = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                self.size, self.pad, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return h, w

    @property
    def geometry(self) -> core.Conv:
        """That of the convolution without groups and dilation; for sizes alone."""
        (h, w), (kh, kw) = self.size, self.kernel
        return core.Conv(self.batch, h, w, self.channels, self.filters, kh, kw)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N) of a group's forward pass."""
        taps = self.kernel[0] * self.kernel[1]
        return self.batch * math.prod(self.out_size), taps * (self.channels // self.groups), self.filters // self.groups

    @property
    def depths(self) -> tuple[int, int, int]:
        m, k, n = self.shape
        return k, self.kernel[0] * self.kernel[1] * n, m

    def _gather(self, x: Array, zero: Any) -> Array:
        """What each output sees: (batch, out_h, out_w, kernel_h, kernel_w, channels), of x padded with a value; a view."""
        (ph, pw), (dh, dw), (kh, kw) = self.pad, self.dilation, self.kernel
        n, (h, w) = self.batch, self.size
        padded = np.full((n, h + 2 * ph, w + 2 * pw, self.channels), zero, x.dtype)
        padded[:, ph : ph + h, pw : pw + w] = x
        reach = dh * (kh - 1) + 1, dw * (kw - 1) + 1
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, (1, 2))
        view = view[:, :: self.stride[0], :: self.stride[1], :, ::dh, ::dw]
        return view.transpose(0, 1, 2, 4, 5, 3)

    def _split(self, count: int) -> list[slice]:
        each = count // self.groups
        return [slice(g * each, (g + 1) * each) for g in range(self.groups)]

    def forward(self, x: Array, w: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        windows = self._gather(x, int(x_zero))
        made = []
        for inputs, outputs in zip(self._split(self.channels), self._split(self.filters), strict=True):
            a = np.ascontiguousarray(windows[..., inputs]).reshape(self.shape[0], -1)
            made.append(self._gemm("forward", a, w[outputs].reshape(-1, a.shape[1]), transpose_b=True))
        y = np.concatenate(made, axis=1).reshape(self.batch, *self.out_size, self.filters)
        self.session.show(self.layer, "forward", self, {"x": x, "w": w}, int(x_zero), y)
        return _into(out, y)

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        """Each input pixel's gradient sees dY at the outputs that it reaches, else 0."""
        (kh, kw), (dh, dw), (sh, sw), (ph, pw) = self.kernel, self.dilation, self.stride, self.pad
        (h, w_), (oh, ow) = self.size, self.out_size
        up, left = dh * (kh - 1) - ph, dw * (kw - 1) - pw
        height, width = h + dh * (kh - 1), w_ + dw * (kw - 1)
        full = np.zeros((self.batch, max(height, up + sh * (oh - 1) + 1), max(width, left + sw * (ow - 1) + 1), self.filters),
                        dy.dtype)  # fmt: skip
        rows, columns = np.arange(oh) * sh + up, np.arange(ow) * sw + left
        inside = np.ix_(np.arange(self.batch), rows[rows >= 0], columns[columns >= 0])
        full[inside] = dy.reshape(self.batch, oh, ow, self.filters)[:, rows >= 0][:, :, columns >= 0]
        full = full[:, :height, :width]
        view = np.lib.stride_tricks.sliding_window_view(full, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), (1, 2))
        windows = view[..., ::dh, ::dw].transpose(0, 1, 2, 4, 5, 3)[:, :, :, ::-1, ::-1]
        made = []
        for outputs in self._split(self.filters):
            a = np.ascontiguousarray(windows[..., outputs]).reshape(self.batch * h * w_, -1)
            b = np.ascontiguousarray(w[outputs].transpose(3, 1, 2, 0)).reshape(-1, a.shape[1])
            made.append(self._gemm("dX", a, b, transpose_b=True))
        dx = np.concatenate(made, axis=1).reshape(self.batch, h, w_, self.channels)
        self.session.show(self.layer, "dX", self, {"dy": dy, "w": w}, 0, dx)
        return _into(out, dx)

    def weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        windows, rows = self._gather(x, int(x_zero)), dy.reshape(-1, self.filters)
        made = []
        for inputs, outputs in zip(self._split(self.channels), self._split(self.filters), strict=True):
            a = np.ascontiguousarray(windows[..., inputs]).reshape(self.shape[0], -1)
            made.append(self._gemm("dW", a, np.ascontiguousarray(rows[:, outputs]), transpose_a=True).T)
        dw = np.concatenate(made).reshape(self.filters, *self.kernel, self.channels // self.groups)
        self.session.show(self.layer, "dW", self, {"x": x, "dy": dy}, int(x_zero), dw)
        return _into(out, dw)

    def _gemm(self, pass_: str, a: Array, b: Array, **transposed: Any) -> Array:
        own = self.session.registers
        if a.dtype != np.int8 or own.accumulator == EXACT32 and not own.counting:
            return core.gemm(a, b, **transposed)
        sums, counts = registers.InRegister(self.layer, self, own).gemm(a, b, **transposed)
        own.counts += [(self.layer, pass_, count) for count in counts]
        return sums


def _into(out: Array | None, values: Array) -> Array:
    if out is None:
        return np.ascontiguousarray(values)
    out[...] = values.reshape(out.shape)
    return out


@dataclass(frozen=True)
class ConvolutionLayer(Weighted):
    """A convolution of PyTorch's as a layer of the engine."""

    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    session: Session = field(repr=False, compare=False)
    stem: ClassVar[str] = "conv"
    kind: ClassVar[str] = "conv"

    def product(self, node: Node, batch: int) -> Product:
        h, w, channels = node.in_shape
        plain = self.dilation == (1, 1) and self.stride[0] == self.stride[1] and self.pad[0] == self.pad[1]
        if plain and self.pad[0] < min(self.kernel) and (self.groups == 1 or self.groups == channels == self.filters):
            geometry = core.Conv(batch, h, w, channels, self.filters, *self.kernel, self.stride[0], self.pad[0])
            return node.through(Convolution(geometry) if self.groups == 1 else Depthwise(geometry))
        return Windows(batch, (h, w), channels, self.filters, self.kernel, self.stride, self.pad, self.dilation, self.groups,
                       self.session, node.name)  # fmt: skip


@dataclass(frozen=True)
class MatrixLayer(Weighted):
    """Rows times a matrix [outputs][inputs]."""

    stem: ClassVar[str] = "fc"
    kind: ClassVar[str] = "linear"

    def product(self, node: Node, batch: int) -> Product:
        return node.through(FullProduct(batch, node.in_shape[0], node.out_shape[0]))
