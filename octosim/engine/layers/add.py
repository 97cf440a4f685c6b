"""Sums of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Unweighted
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError


@dataclass(frozen=True)
class Add(Unweighted):
    """The sum of two tensors of one shape: where a residual block's branches meet.  relu, shares_dy: see FusedAdd."""

    relu = shares_dy = False
    stem: ClassVar[str] = "add"
    kind: ClassVar[str] = "add"
    inputs: ClassVar[int] = 2

    def out_shape(self, in_shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
        if in_shape != other:
            raise OctosimError(f"the body makes {in_shape}, the shortcut {other}: only equal shapes can be added")
        return in_shape

    def forward(self, node: Node, x: tuple[Array, Array], method: Method, context: Context) -> Array:
        signs = node.saved["signs"] = node.buffer((core.sign_bytes(x[0].size),), np.uint8) if self.relu else None
        out = x[0] if node.in_place else node.buffer(x[0].shape, np.float32)
        y, node.found = core.add(*x, relu=self.relu, signs=signs, find_range=method.compact, out=out)
        return y

    def input_grad(self, node: Node, dy: Array | core.Pair, method: Method, context: Context) -> tuple[Array, Array]:
        """dy for each branch; a copy for one, since both may write over theirs, unless the first leaves it as it is."""
        if self.relu:
            dy = core.relu_backward(node.saved["signs"], dy, out=core.memory_of(dy))
        assert not isinstance(dy, core.Pair)
        copy = dy if self.shares_dy else node.buffer(dy.shape, np.float32)
        return dy, dy if copy is dy else core.copy(dy, out=copy)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        class Sum(nn.Module):
            def forward(self, a: Any, b: Any) -> Any:
                return a + b

        return Sum()


@dataclass(frozen=True)
class FusedAdd(Add):
    """A pass of an addition and what stands behind it (engine.fusion).

    relu: it does the ReLU too.  shares_dy: its inputs get the same gradient, which the first one leaves as it is.
    """

    relu: bool = False
    shares_dy: bool = False
