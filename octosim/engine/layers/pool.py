"""Pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import FLAG, Rule, Sides, Unweighted, by, pads, pair, several
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError

WINDOW = {
    "kernel": several(1, 1024, (2,), "two, down and across"),
    "stride": several(1, 1024, (2,), "two, down and across"),
    "pad": several(0, 1024, (2, 4), "two, down and across, or four, above, left, below and right"),
    "ceil": FLAG,
}
"""Rules of the fields that poolings with a window share."""


class _Pool(Unweighted):
    """A window that moves over the image.  ceil: a window that ends beyond the image counts too, as in PyTorch's ceil_mode."""

    kernel: Sides
    stride: Sides
    pad: Sides
    ceil: bool
    title: ClassVar[str]

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        (high, wide), padding = pair(self.kernel), pads(self.pad)
        if max(padding[0], padding[2]) >= high or max(padding[1], padding[3]) >= wide:
            raise OctosimError(f"the padding {self.pad} of a {by(self.kernel)} {self.title} must be smaller than its window")
        padded = [size + low + top for size, low, top in zip(in_shape, padding[:2], padding[2:], strict=False)]
        if len(in_shape) != 3 or padded[0] < high or padded[1] < wide:
            raise OctosimError(f"a {by(self.kernel)} {self.title} cannot take an input of shape {in_shape}")
        return self._window(in_shape, 1).y_shape[1:]

    def _window(self, in_shape: tuple[int, ...], batch: int) -> core.Window:
        height, width, channels = in_shape
        return core.Window(
            batch, height, width, channels, pair(self.kernel), pair(self.stride), pads(self.pad), self.ceil
        )  # fmt: skip

    def _even(self) -> tuple[int, int]:
        """The padding as PyTorch's modules take it; OctosimError where it differs from side to side."""
        top, left, bottom, right = pads(self.pad)
        if (top, left) != (bottom, right):
            raise OctosimError(f"a {self.title} with padding {self.pad} has no counterpart in PyTorch here")
        return top, left


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Max pooling.  Padding is never the largest."""

    kernel: Sides = 2
    stride: Sides = 2
    pad: Sides = 0
    ceil: bool = False
    stem: ClassVar[str] = "pool"
    kind: ClassVar[str] = "maxpool"
    title: ClassVar[str] = "max pooling"
    rules: ClassVar[Mapping[str, Rule]] = WINDOW

    @property
    def usual(self) -> bool:
        """Whether the core's faster kernels take it: a square window of at most 15 x 15, an image that is not padded."""
        square = isinstance(self.kernel, int) and isinstance(self.stride, int) and self.kernel <= 15
        return square and not self.ceil and not max(pads(self.pad))

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        high, wide = pair(self.kernel)
        if high * wide > 256:
            raise OctosimError(f"a {by(self.kernel)} {self.title} has more than 256 elements")
        return super().out_shape(in_shape)

    def square(self, node: Node, batch: int) -> core.Pool | None:
        """The geometry for the faster kernels, where they take it."""
        if not self.usual:
            return None
        height, width, channels = node.in_shape
        return core.Pool(batch, height, width, channels, pair(self.kernel)[0], pair(self.stride)[0])

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        square, shape = self.square(node, x.shape[0]), (x.shape[0], *node.out_shape)
        out, argmax = node.buffer(shape, np.float32), node.buffer(shape, np.uint8)
        if square:
            y, node.saved["argmax"] = core.maxpool(square, x, out=out, argmax=argmax)
        else:
            y, node.saved["argmax"] = core.window_max(self._window(node.in_shape, x.shape[0]), x, out=out, argmax=argmax)
        return y

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        square, out = self.square(node, dy.shape[0]), node.buffer((dy.shape[0], *node.in_shape), np.float32)
        if square:
            return core.maxpool_backward(square, dy, node.saved["argmax"], out=out)
        return core.window_max_backward(self._window(node.in_shape, dy.shape[0]), dy, node.saved["argmax"], out=out)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.MaxPool2d(pair(self.kernel), pair(self.stride), self._even(), ceil_mode=self.ceil)


@dataclass(frozen=True)
class AvgPool(_Pool):
    """The mean of a window; count_pad: of zeros in the padding too (PyTorch's count_include_pad)."""

    kernel: Sides = 2
    stride: Sides = 2
    pad: Sides = 0
    ceil: bool = False
    count_pad: bool = True
    stem: ClassVar[str] = "meanpool"
    kind: ClassVar[str] = "averagepool"
    title: ClassVar[str] = "average pooling"
    rules: ClassVar[Mapping[str, Rule]] = WINDOW | {"count_pad": FLAG}

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        out = node.buffer((x.shape[0], *node.out_shape), np.float32)
        return core.window_mean(self._window(node.in_shape, x.shape[0]), x, with_padding=self.count_pad, out=out)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        dx = node.buffer((dy.shape[0], *node.in_shape), np.float32)
        return core.window_mean_backward(self._window(node.in_shape, dy.shape[0]), dy, with_padding=self.count_pad, out=dx)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.AvgPool2d(pair(self.kernel), pair(self.stride), self._even(), self.ceil, self.count_pad)


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
