"""Sums of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Unweighted, broadcast, channel_last, reduced, widened
from octosim.engine.nodes import Array, Context, Method, Node


@dataclass(frozen=True)
class Add(Unweighted):
    """The sum of two tensors, of one shape, as where branches meet, or broadcast.  relu, shares_dy: see FusedAdd."""

    relu = shares_dy = False
    stem: ClassVar[str] = "add"
    kind: ClassVar[str] = "add"
    inputs: ClassVar[int] = 2

    def out_shape(self, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
        return broadcast(first, second)

    def forward(self, node: Node, x: tuple[Array, Array], method: Method, context: Context) -> Array:
        shape = (len(x[0]), *node.out_shape)
        relu_mask = node.saved["relu_mask"] = node.buffer((core.sign_bytes(math.prod(shape)),), np.uint8) if self.relu else None
        out = x[0] if node.in_place and x[0].shape == shape else node.buffer(shape, np.float32)
        if node.in_shapes[0] == node.in_shapes[1]:
            y, node.output_range = core.add(*x, relu=self.relu, relu_mask=relu_mask, find_range=method.saves_int8, out=out)
            return y
        a, b = (widened(core.materialize_in_place(each), out.ndim) for each in x)
        y = core.plus(a, b, out)
        if self.relu:
            y, node.output_range = core.relu(y, relu_mask=relu_mask, find_range=method.saves_int8, out=out)
        return y

    def input_grad(self, node: Node, dy: Array | core.LazyAdd, method: Method, context: Context) -> tuple[Array, Array]:
        """dy for each branch; a copy for one, since both may write over theirs, unless the first leaves it as it is.  An input
        that was broadcast gets sums."""
        if self.relu:
            dy = core.relu_backward(node.saved["relu_mask"], dy, out=core.reuse_buffer(dy))
        assert not isinstance(dy, core.LazyAdd)
        whole = [node.out_shape == shape for shape in node.in_shapes]
        if not all(whole):
            first, second = (dy if same else reduced(node, at, dy) for at, same in enumerate(whole))
            return first, second
        copy = dy if self.shares_dy else node.buffer(dy.shape, np.float32)
        return dy, dy if copy is dy else core.copy(dy, out=copy)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        most = max(map(len, shapes)) + 1
        return channel_last(nn, lambda a, b: widened(a, most) + widened(b, most))


@dataclass(frozen=True)
class FusedAdd(Add):
    """A pass of an addition and what stands behind it (engine.fusion).

    relu: it does the ReLU too.  shares_dy: its inputs get the same gradient, which the first one leaves as it is.
    """

    relu: bool = False
    shares_dy: bool = False
