"""float32 training: the baseline, with sums in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from octosim import core
from octosim.nodes import Array, Context, Method, Node
from octosim.trace import Op


@dataclass(frozen=True)
class Fp32(Method):
    """Everything in float32; no parameters."""

    name: ClassVar[str] = "fp32"
    summary: ClassVar[str] = "float32 baseline"

    def check(self, node: Node, batch: int) -> None:
        pass

    def init(self, node: Node, seed: int) -> None:
        pass

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        product = node.layer.product(node, x.shape[0])
        node.saved["x"] = x
        y = product.forward(x, node.params["w"], out=node.buffer("y", (x.shape[0], *node.out_shape), np.float32))
        ones = node.buffer("ones", node.params["b"].shape, np.float32)
        ones.fill(1)
        return core.affine(y, ones, node.params["b"], out=y)

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        product = node.layer.product(node, error.shape[0])
        w = node.params["w"]
        node.grads["w"] = product.weight_grad(node.saved["x"], error, out=node.buffer("dw", w.shape, np.float32))
        node.grads["b"] = core.column_sums(error, out=node.buffer("db", node.params["b"].shape, np.float32))

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        product = node.layer.product(node, error.shape[0])
        dx = node.buffer("dx", (error.shape[0], *node.in_shape), np.float32)
        return product.input_grad(error, node.params["w"], out=dx)

    def trace(self, node: Node, batch: int) -> list[Op]:
        product = node.layer.product(node, batch)
        (m, k, n), what = product.shape, {"groups": product.groups, "kernel": product.kernel, "stride": product.stride}
        x, w, y = batch * int(np.prod(node.in_shape)), node.params["w"].size, m * n * product.groups
        kind, wide = node.layer.title, node.out_shape[-1]
        return [
            Op(node.name, "forward", "gemm", kind, (m, k, n), "float32", 4 * (x + w), 4 * y, **what, weights=4 * w),
            Op(node.name, "forward", "elementwise", "bias", (y,), "float32", 4 * y, 4 * y, channels=wide),
            Op(node.name, "dW", "gemm", kind, (n, m, k), "float32", 4 * (x + y), 4 * w, **what),
            Op(node.name, "dW", "elementwise", "bias gradient", (y,), "float32", 4 * y, 0, channels=wide),
            Op(node.name, "dX", "gemm", kind, (m, n, k), "float32", 4 * (y + w), 4 * x, **what, weights=4 * w),
        ]
