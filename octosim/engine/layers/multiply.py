"""Products of two tensors, element by element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Unweighted, broadcast, channel_last, reduced, widened
from octosim.engine.nodes import Array, Context, Method, Node


@dataclass(frozen=True)
class Multiply(Unweighted):
    """The product of two tensors, of one shape or broadcast: (height, width, channels) by (channels,) scales the channels of
    an image (squeeze-and-excite).  Keeps both inputs."""

    stem: ClassVar[str] = "multiply"
    kind: ClassVar[str] = "multiply"
    inputs: ClassVar[int] = 2

    def out_shape(self, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
        return broadcast(first, second)

    def forward(self, node: Node, x: tuple[Array, Array], method: Method, context: Context) -> Array:
        node.saved["x"] = x
        out = node.buffer((len(x[0]), *node.out_shape), np.float32)
        a, b = (widened(each, out.ndim) for each in x)
        return core.times(a, b, out)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> tuple[Array, Array]:
        a, b = (widened(each, dy.ndim) for each in node.saved["x"])
        return reduced(node, 0, dy, b), reduced(node, 1, dy, a)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        most = max(map(len, shapes)) + 1

        def product(a: Any, b: Any) -> Any:
            return widened(a, most) * widened(b, most)

        return channel_last(nn, product)
