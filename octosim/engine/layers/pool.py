"""Pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Rule, Unweighted, integer
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError


@dataclass(frozen=True)
class MaxPool(Unweighted):
    """Max pooling with a square window, without padding."""

    kernel: int = 2
    stride: int = 2
    stem: ClassVar[str] = "pool"
    kind: ClassVar[str] = "maxpool"
    rules: ClassVar[Mapping[str, Rule]] = {"kernel": integer(1, 32), "stride": integer(1, 32)}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 3 or min(in_shape[:2]) < self.kernel:
            raise OctosimError(f"a {self.kernel}x{self.kernel} max pooling cannot take an input of shape {in_shape}")
        return core.Pool(1, *in_shape, self.kernel, self.stride).y_shape[1:]

    def _geometry(self, node: Node, batch: int) -> core.Pool:
        height, width, channels = node.in_shape
        return core.Pool(batch, height, width, channels, self.kernel, self.stride)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        g = self._geometry(node, x.shape[0])
        argmax = node.buffer(g.y_shape, np.uint8)
        y, node.saved["argmax"] = core.maxpool(g, x, out=node.buffer(g.y_shape, np.float32), argmax=argmax)
        return y

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        g = self._geometry(node, dy.shape[0])
        return core.maxpool_backward(g, dy, node.saved["argmax"], out=node.buffer(g.x_shape, np.float32))

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.MaxPool2d(self.kernel, self.stride)


@dataclass(frozen=True)
class GlobalAvgPool(Unweighted):
    """The mean over an image's pixels: (height, width, channels) -> (channels,)."""

    stem: ClassVar[str] = "avgpool"
    kind: ClassVar[str] = "avgpool"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 3:
            raise OctosimError(f"a global average pooling cannot take an input of shape {in_shape}")
        return in_shape[2:]

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        return core.avgpool(x, out=node.buffer((x.shape[0], *node.out_shape), np.float32))

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        dx = node.buffer((dy.shape[0], *node.in_shape), np.float32)
        return core.avgpool_backward(dy, *node.in_shape[:2], out=dx)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
