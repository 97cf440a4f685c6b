"""Sums in a register, in Python integers in the documented order; products to try them with."""

from __future__ import annotations

import numpy as np

from octosim import core, train
from octosim.engine.nodes import Convolution, Depthwise, FullProduct
from octosim.engine.registers import shapes as _shapes
from octosim.numerics import Accumulator


def narrow(value: int, bits: int, overflow: str) -> int:
    limit = 1 << (bits - 1)
    if overflow == "saturate":
        return min(max(value, -limit), limit - 1)
    return (value + limit) % (2 * limit) - limit


def bits_of(value: int) -> int:
    """The smallest two's-complement width that holds a value."""
    return next(w for w in range(1, 80) if -(1 << (w - 1)) <= value < 1 << (w - 1))

PRODUCTS = [
    Convolution(core.Conv(2, 5, 4, 3, 5, 3, 3, 1, 1)),
    Convolution(core.Conv(2, 7, 6, 2, 3, 3, 3, 2, 1)),
    Convolution(core.Conv(1, 6, 6, 3, 2, 5, 5, 1, 0)),
    Convolution(core.Conv(2, 5, 5, 2, 3, 1, 1, 2, 0)),
    Depthwise(core.Conv(2, 5, 6, 4, 4, 3, 3, 2, 1)),
    FullProduct(3, 13, 4),
]


def operands(product, seed: int = 0, largest: int = 127) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, w and dy of a product."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-largest, largest + 1, s).astype(np.int8) for s in _shapes(product))


def slow_sum(pairs: list[tuple[int, int]], how: Accumulator) -> tuple[int, int, int, int]:
    """(sum, times it was narrowed, bits needed, pairs saturated) of products of (data, other), in Python integers."""
    correction = 128 * sum(b for _, b in pairs) if how.unsigned else 0
    products = [(a + 128) * b if how.unsigned else a * b for a, b in pairs]
    acc, narrowed, most, saturated = 0, 0, 1, 0
    for i in range(0, len(products), how.group):
        group = products[i : i + how.group]
        if how.pair_bits:
            sums = [sum(group[p : p + 2]) for p in range(0, len(group), 2)]
            group = [narrow(value, how.pair_bits, "saturate") for value in sums]
            saturated += sum(a != b for a, b in zip(sums, group, strict=True))
        wanted = acc + sum(group)
        acc = narrow(wanted, how.bits, how.overflow)
        narrowed, most = narrowed + (acc != wanted), max(most, bits_of(wanted))
    return narrow(acc - correction, 32, "wrap"), narrowed, most, saturated


def slow_passes(product, x, w, dy, x_zero: int, how: Accumulator) -> dict[str, list[tuple[int, int, int, int]]]:
    """The sums of all passes, flat, from the definition in engine/registers.py."""
    g, single = product.geometry, isinstance(product, Depthwise)
    x, w, dy = (v.astype(int) for v in (x.reshape(g.x_shape), w, dy.reshape(g.y_shape)))
    w = w.reshape(g.filters, g.kernel_h, g.kernel_w, -1)
    taps = [(i, j) for i in range(g.kernel_h) for j in range(g.kernel_w)]
    places = [(b, h, v) for b in range(g.batch) for h in range(g.out_h) for v in range(g.out_w)]

    def at(b: int, oh: int, ow: int, i: int, j: int, c: int) -> int:
        h, v = oh * g.stride + i - g.pad, ow * g.stride + j - g.pad
        return int(x[b, h, v, c]) if 0 <= h < g.height and 0 <= v < g.width else x_zero

    def gradient(b: int, h: int, v: int, i: int, j: int, f: int) -> int:
        (oh, r), (ow, s) = divmod(h + g.pad - i, g.stride), divmod(v + g.pad - j, g.stride)
        return int(dy[b, oh, ow, f]) if r == s == 0 and 0 <= oh < g.out_h and 0 <= ow < g.out_w else 0

    def channels(f: int) -> list[tuple[int, int]]:
        """(channel of x, channel of w) that a filter sees."""
        return [(f, 0)] if single else [(c, c) for c in range(g.channels)]

    def filters(c: int) -> list[tuple[int, int]]:
        """(filter, its channel of w) that see a channel."""
        return [(c, 0)] if single else [(f, c) for f in range(g.filters)]

    return {
        "forward": [
            slow_sum([(at(*p, i, j, c), int(w[f, i, j, wc])) for i, j in taps for c, wc in channels(f)], how)
            for p in places for f in range(g.filters)
        ],
        "dX": [
            slow_sum([(gradient(b, h, v, i, j, f), int(w[f, i, j, wc])) for i, j in taps for f, wc in filters(c)], how)
            for b in range(g.batch) for h in range(g.height) for v in range(g.width) for c in range(g.channels)
        ],
        "dW": [
            slow_sum([(at(*p, i, j, c), int(dy[(*p, f)])) for p in places], how)
            for f in range(g.filters) for i, j in taps for c, _ in channels(f)
        ],
    }  # fmt: skip


def passes(product, x, w, dy, x_zero: int) -> dict[str, np.ndarray]:
    return {
        "forward": product.forward(x, w, x_zero=x_zero),
        "dX": product.input_grad(dy, w),
        "dW": product.weight_grad(x, dy, x_zero=x_zero),
    }


class Stop(Exception):
    pass


def stop_after_4(progress: train.Progress) -> None:
    if progress.step == 4:
        raise Stop
