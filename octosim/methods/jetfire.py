"""Jetfire: INT8 between all operators, with a scale for each block of 32 x 32 values.

Xi et al., "Jetfire: Efficient and Accurate Transformer Pretraining with INT8 Data Flow and Per-Block Quantization", ICML 2024
(arXiv 2403.12422).  Equations: the authors' code (thu-ml/Jetfire-INT8Training) as the algorithm card 5.12 gives them.

    block of 32 x 32: S = max|block| / 127;  q = round(x / S), nearest forward, stochastic backward
    A B^T: for each 32 of the sum's indices in ascending order, float32 sum += (int32 sum of 32 products) S_a S_b
    Y, dX: quantized again in blocks; dW: float32;  all other layers read and write codes with their scales

A tensor's matrix has a row for each image, or pixel, and a column for each feature, or channel.

Differs from the paper in: scales are float32 (the code's float16 is scales="float16"); the paper's networks are transformers,
so these are ours: a convolution multiplies the matrix of its windows (a row for each output pixel, columns in the order of the
weights), which is cut into blocks, and thereby rounded, anew; the gradients of the windows are added up in float32, tap after
tap; a depthwise convolution, whose sums are shorter than a block, multiplies in float32 the values that codes stand for;
batch normalization and pooling read and write codes as the paper's other layers do.  Biases are float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.methods import float32
from octosim.numerics import INT8_BLOCKS

SIDE = INT8_BLOCKS.block  # of a block; a sum of 32 products of codes in +-127 has 20 bits, and is exact in float32 too
F = np.float32
ERROR, GRADIENT = range(2)  # roles in the Philox streams


def in_blocks(q: Array, scales: Array) -> core.Tensor:
    """A matrix as int8 codes (rows, columns) and a float32 scale for each block (ceil(rows / 32), ceil(columns / 32))."""
    return core.Tensor(q, scales=scales, format=INT8_BLOCKS)


def cut(x: Array, scales: str = "float32", random: core.Stream | None = None, out: Array | None = None) -> core.Tensor:
    """The codes of a float32 matrix, nearest, or stochastic where there is a Philox stream.  NotFiniteError for a NaN."""
    return in_blocks(*core.quantize_blocks(x, half=scales == "float16", random=random, out=out))


def product(a: core.Tensor, b: core.Tensor, out: Array | None = None) -> Array:
    """A B^T in float32: for each 32 indices of the sum, ((int32 sum) S_a) S_b is added, each operation rounded."""
    return core.gemm_blocks(a.q, _scales(a), b.q, _scales(b), out=out)


def _scales(x: core.Tensor) -> Array:
    assert x.scales is not None
    return x.scales


# ---- layers without a matrix product --------------------------------------------------


class _Coded:
    """A layer whose float32 passes read codes and whose results become codes, in blocks of 32 pixels x 32 channels."""

    running = True

    def init(self, node: Node, method: Jetfire, seed: int | None) -> None:
        node.layer.init(node, method, seed)

    def forward(self, node: Node, x: Any, method: Jetfire, context: Context) -> Array:
        return method.coded(node, node.layer.forward(node, x, method, context))

    def weight_grad(self, node: Node, dy: Array, method: Jetfire, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Jetfire, context: Context) -> Any:
        dx = node.layer.input_grad(node, dy, method, context)
        # the gradients of a sum's terms are dY's codes as they are
        return dx if isinstance(dx, tuple) else method.coded(node, dx, context.random(node.tensor(GRADIENT)))


# ---- the method --------------------------------------------------


@dataclass(frozen=True)
class Jetfire(Method):
    """Parameters of the method.

    scales: float32, or float16 as in the authors' code: below 6e-8 they are 0 then, and so are all values of their block.
    """

    scales: Literal["float32", "float16"] = "float32"

    name: ClassVar[str] = "jetfire"
    summary: ClassVar[str] = "INT8 between all layers, a scale for each block of 32 x 32"
    paper: ClassVar[str] = "Xi et al., ICML 2024"
    bits: ClassVar[dict[str, str]] = {
        "weights": "int8, a scale a block",
        "activations": "int8, a scale a block",
        "gradients": "float32, of int8 products",
        "errors": "int8, a scale a block",
        "update": "float32",
        "accumulator": "int32 for 32 products, then float32",
        "normalization": "float32, of int8",
    }
    # no sum of 32 products leaves a register that hardware has, and the sums of these sums are float32
    unused: ClassVar[tuple[str, ...]] = ("accumulator", "count_overflow")
    covers: ClassVar[tuple[str, ...]] = ("conv", "dw", "fc", "flatten", "bn", "relu", "pool", "dropout", "avgpool", "add")
    layers: ClassVar[Mapping[str, Any]] = dict.fromkeys(("bn", "relu", "pool", "dropout", "avgpool", "add"), _Coded())

    def coded(self, node: Node, x: Array, random: core.Stream | None = None) -> Array:
        """The values that a tensor's codes stand for, its last axis being the columns of its matrix."""
        out = node.buffer(x.shape, F)
        matrix = -1, x.shape[-1]
        core.round_to_blocks(x.reshape(matrix), half=self.scales == "float16", random=random, out=out.reshape(matrix))
        return out

    def check(self, node: Node, batch: int) -> None:
        pass

    def init(self, node: Node, seed: int) -> None:
        pass

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        w, b, batch = node.params["w"], node.params["b"], len(x)
        qw = cut(w.reshape(len(w), -1), self.scales)
        shape = node.layer.product(node, batch)
        if shape.geometry.is_grouped or shape.groups > 1:
            x_real, w_real = self.coded(node, x), qw.materialize().reshape(w.shape)
            node.saved.update(x=x_real, w=w_real)
            return self.coded(node, float32.forward(node, x_real, w_real))
        m, k, n = shape.shape
        codes = node.buffer((m, k), np.int8)
        if shape.kernel != (0, 0):
            qx = in_blocks(*core.quantize_windows(shape.geometry, x, half=self.scales == "float16", out=codes))
        else:
            qx = cut(x.reshape(m, k), self.scales, out=codes)
        node.saved.update(x=qx, w=qw)
        y = product(qx, qw, node.buffer((m, n), F))
        y = core.affine(y, np.ones(n, F), b, out=y)
        return self.coded(node, y.reshape(batch, *node.out_shape))

    def error(self, node: Node, dy: Array, context: Context) -> core.Tensor:
        dy = dy.reshape(-1, dy.shape[-1])
        return cut(dy, self.scales, context.random(node.tensor(ERROR)), node.buffer(dy.shape, np.int8))

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        w, dy = node.params["w"], error.materialize(node.buffer(error.q.shape, F))
        if not node.trains("w"):
            node.grads["b"] = core.column_sums(dy, out=node.buffer(node.params["b"].shape, F))
            return
        x = node.saved["x"]
        if isinstance(x, core.Tensor):
            rows, cols = error.q.shape[1], x.q.shape[1]
            node.grads["w"] = product(error.transposed, x.transposed, node.buffer((rows, cols), F)).reshape(w.shape)
            node.grads["b"] = core.column_sums(dy, out=node.buffer(node.params["b"].shape, F))
        else:
            float32.weight_grad(node, x, dy.reshape(len(x), *node.out_shape))

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> Array:
        batch, w = error.q.shape[0] // math.prod(node.out_shape[:-1]), node.saved["w"]
        shape, size = node.layer.product(node, batch), (batch, *node.in_shape)
        if shape.geometry.is_grouped or shape.groups > 1:
            dx = float32.input_grad(node, error.materialize().reshape(batch, *node.out_shape), w)
        elif shape.kernel != (0, 0):
            dx = core.conv_input_grad_blocks(shape.geometry, error.q, _scales(error), w.q, _scales(w), out=node.buffer(size, F))
        else:
            dx = product(error, w.transposed, node.buffer((len(error.q), node.in_shape[-1]), F)).reshape(size)
        return self.coded(node, dx, context.random(node.tensor(GRADIENT)))
