"""Unified INT8 Training: direction-sensitive gradient clipping and deviation-counteractive learning-rate scaling.

Zhu et al., "Towards Unified INT8 Training for Convolutional Neural Network", CVPR 2020 (arXiv 1912.12607).  Equations: from
notes about the paper (algorithm card 5.7); no official code is known.

Differs from the paper in, or is our reconstruction of: how and when the clipping value is searched (a grid of shares of
max|dY|, every `period` steps, the share kept in between); the deviation is measured with the same stochastic rounding that the
step uses; the range of activations in inference is a running one; first and last layers are quantized as all others; biases are
float32 masters, added to the int32 sums as integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError
from octosim.methods import int8
from octosim.numerics import Rounding

ERROR = 0  # role in the Philox streams


def _square(x: Array) -> float:
    """|x|^2 in float32, in the fixed order of core.gemm."""
    row = x.reshape(1, -1)
    return float(core.gemm(row, row, transpose_b=True)[0, 0])


def _unit(x: Array) -> Array:
    """x / |x|, in its memory."""
    x *= np.float32(1 / math.sqrt(_square(x)))
    return x


def deviation(g: Array, q: Array, memory: Callable[[], Array] | None = None) -> float:
    """1 - cos(g, q) = |g / |g| - q / |q||^2 / 2 of gradients and their codes; 0 where either is all zero.

    1 - cos as such would keep no digits of a small deviation in float32.  memory: gives float32 memory of g's shape.
    """
    memory = memory or (lambda: np.empty(g.shape, np.float32))
    low, high = core.value_range(g)
    largest = max(-low, high)
    if largest < 1e-30 or not q.any():
        return 0.0
    unit = _unit(np.multiply(g, np.float32(1 / largest), out=memory()))  # of what is within +-1: squares stay in range
    unit -= _unit(core.dequantize(q, 1.0, out=memory()))
    return _square(unit) / 2


@dataclass(frozen=True)
class Ui8(Method):
    """Parameters of the method.

    grid:   clipping values tried for dY, equal shares of its largest magnitude: 1/grid, 2/grid ... 1 (ours: 20).
    period: steps between two searches (ours: 100).
    alpha, beta: the layer's learning rate is scaled by phi(d) = max(exp(-alpha d), beta), d the deviation (paper: 20, 0.1).
    """

    grid: int = 20
    period: int = 100
    alpha: float = 20.0
    beta: float = 0.1

    name: ClassVar[str] = "ui8"
    summary: ClassVar[str] = "INT8 forward and backward, direction-sensitive clipping, learning rate by deviation"
    paper: ClassVar[str] = "Zhu et al., CVPR 2020"
    bits: ClassVar[Mapping[str, str]] = int8.BITS
    by_channel: ClassVar[bool] = True
    beyond: ClassVar[int] = 1  # of `deviation`, where the rest of a step holds the other

    def __post_init__(self) -> None:
        for name, low, high in (("grid", 1, 1000), ("period", 1, 2**31), ("alpha", 0, 40), ("beta", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise OctosimError(f"ui8: {name} must be in {low} .. {high}, not {getattr(self, name)}")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, long=True)

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)
        node.state["clip"] = np.array([1, 0], np.float32)  # share of max|dY|, and its deviation

    def forward(self, node: Node, x: Array, context: Context) -> core.LazyDequant:
        return int8.forward_symmetric(node, x, context)

    def phase(self, context: Context) -> int | None:
        """Steps with a search are not like the others."""
        return None if (context.number - 1) % self.period == 0 else 0

    def error(self, node: Node, dy: Array, context: Context) -> core.Tensor:
        both, clip = core.mirrored(core.value_range(dy)), node.state["clip"]

        def codes(share: core.Number) -> core.Tensor:
            out = node.buffer(dy.shape, np.int8)
            random = context.random(node.tensor(ERROR))
            return quantizers.symmetric(
                dy, both.low, both.high, share=share, rounding=Rounding.STOCHASTIC, random=random, out=out
            )

        if self.phase(context) is None:
            shares = [i / self.grid for i in range(self.grid, 0, -1)]
            tried = [np.float32(deviation(dy, codes(share).q, lambda: node.buffer(dy.shape, np.float32))) for share in shares]
            best = int(np.argmin(tried))  # the first, which clips least, of equals
            clip[:] = shares[best], tried[best]
        return codes(core.Range.of(clip).low)

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        int8.weight_grad(node, error)

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> core.LazyDequant:
        return int8.input_grad(node, error)

    def update(
        self, node: Node, key: str, lr: core.Number, rule: Callable[[core.Number], None], context: Context
    ) -> None:
        if "clip" not in node.state:
            return rule(lr)
        return rule(core.counteract(lr, core.Range.of(node.state["clip"]).high, -self.alpha, self.beta))
