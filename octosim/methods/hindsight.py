"""In-hindsight ranges: every tensor is quantized with ranges of earlier iterations, in a single pass.

Fournarakis and Nagel, "In-Hindsight Quantization Range Estimation for Quantized Training" (arXiv 2105.04246).  Only this of it
is known here (algorithm card 5.13): use ranges of earlier iterations, so that gradients can be quantized statically.

Differs from the paper in: unknown; all else is our reconstruction.  The range of a step is the moving average of the ranges of
the steps before it, and only in the first step the tensor's own; activations and output gradients alike; symmetric codes per
tensor; weights with their own range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError
from octosim.methods import int8
from octosim.numerics import Rounding

ERROR = 0  # role in the Philox streams


@dataclass(frozen=True)
class Hindsight(Method):
    """Parameters of the method.

    momentum: of the ranges: r = momentum r + (1 - momentum) of the latest tensor's (ours: 0.9).
    rounding: of dY.
    """

    momentum: float = 0.9
    rounding: Literal["stochastic", "half-even"] = "stochastic"

    name: ClassVar[str] = "hindsight"
    summary: ClassVar[str] = "INT8 forward and backward with the ranges of earlier iterations"
    paper: ClassVar[str] = "Fournarakis and Nagel, arXiv 2105.04246"
    bits: ClassVar[Mapping[str, str]] = int8.BITS
    by_channel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise OctosimError(f"hindsight: momentum must be in [0, 1), not {self.momentum}")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, long=True)

    def init(self, node: Node, seed: int) -> None:
        node.state.update(x_range=np.zeros(2, np.float32), dy_range=np.zeros(2, np.float32))

    def _range(self, kept: Array, tensor: Array, context: Context) -> core.Range:
        """The range known before this tensor, which training then lets in; the first tensor's own."""
        used = core.Range.of(kept)
        if context.training:
            used = core.earlier_range(kept, core.value_range(tensor), self.momentum)
        elif not kept.any():  # before the first step
            used = core.value_range(tensor)
        return used

    def forward(self, node: Node, x: Array, context: Context) -> core.LazyDequant:
        x_range = self._range(node.state["x_range"], x, context)
        return int8.forward(node, int8.symmetric(node, x, x_range.low, x_range.high), int8.weights(node))

    def error(self, node: Node, dy: Array, context: Context) -> core.Tensor:
        dy_range = self._range(node.state["dy_range"], dy, context)
        out, random = node.buffer(dy.shape, np.int8), context.random(node.tensor(ERROR))
        return quantizers.symmetric(dy, dy_range.low, dy_range.high, rounding=Rounding(self.rounding), random=random, out=out)

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        int8.weight_grad(node, error)

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> core.LazyDequant:
        return int8.input_grad(node, error)
