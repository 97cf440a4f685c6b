"""The three passes in float32, and their operations in a trace: what several methods share."""

from __future__ import annotations

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Node
from octosim.engine.registers import x_windows


def forward(node: Node, x: Array, w: Array) -> Array:
    """X W^T + b."""
    product, b = node.layer.product(node, x.shape[0]), node.params["b"]
    y = product.forward(x, w, out=node.buffer((x.shape[0], *node.out_shape), np.float32))
    return core.affine(y, np.ones_like(b), b, out=y)


def weight_grad(node: Node, x: Array | None, dy: Array) -> None:
    """dY^T X and the bias's gradient, into node.grads."""
    product, w, b = node.layer.product(node, dy.shape[0]), node.params["w"], node.params["b"]
    if node.trains("w"):
        node.grads["w"] = product.weight_grad(x, dy, out=node.buffer(w.shape, np.float32))
    node.grads["b"] = core.column_sums(dy, out=node.buffer(b.shape, np.float32))


def input_grad(node: Node, dy: Array, w: Array) -> Array:
    """dY W."""
    product = node.layer.product(node, dy.shape[0])
    return product.input_grad(dy, w, out=node.buffer((dy.shape[0], *node.in_shape), np.float32))


def windows(g: core.Conv, x: Array) -> Array:
    """(batch out_h out_w, kernel_h kernel_w, channels) of a convolution's input, values or codes; padding holds 0."""
    return np.ascontiguousarray(x_windows(g, x, 0)).reshape(-1, g.kernel_h * g.kernel_w, g.channels)


def total(x: Array) -> float:
    """The sum in float64, one after the other: NumPy's sums, unlike its running sums, may differ from machine to machine."""
    flat, size = x.ravel(), 1 << 16
    return sum(float(np.cumsum(flat[i : i + size], dtype=np.float64)[-1]) for i in range(0, flat.size, size))
