"""Layers that move values and change none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import COUNT, Rule, Sides, Unweighted, channel_last, elements, integer, integers, pair, several
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError


@dataclass(frozen=True)
class Flatten(Unweighted):
    """(height, width, channels) -> (height * width * channels,), no copy."""

    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "flatten"
    kind: ClassVar[str] = "flatten"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (elements(in_shape),)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        return x.reshape(x.shape[0], -1)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy.reshape(dy.shape[0], *node.in_shape)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Flatten()


@dataclass(frozen=True)
class Reshape(Unweighted):
    """Another shape of the same elements, in the order of (height, width, channels); no copy.  One size may be -1: the rest."""

    shape: tuple[int, ...]
    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "reshape"
    kind: ClassVar[str] = "reshape"
    rules: ClassVar[Mapping[str, Rule]] = {"shape": integers(1, -1, 2**20)}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        count, known = elements(in_shape), elements(tuple(size for size in self.shape if size != -1))
        made = tuple(count // known if size == -1 else size for size in self.shape) if known > 0 else ()
        if 0 in self.shape or self.shape.count(-1) > 1 or elements(made) != count:
            raise OctosimError(f"a reshape cannot make {self.shape} of {in_shape}")
        return made

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        return x.reshape(x.shape[0], *node.out_shape)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy.reshape(dy.shape[0], *node.in_shape)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        shape = self.out_shape(*shapes)
        return channel_last(nn, lambda x: x.reshape(len(x), *shape))


class _Moved(Unweighted):
    """A layer whose output is a view of its input, copied.  view: of an array (batch, ...) of the input's shape, in the
    output's order; `assign` gives the gradient of what the view has more than once its sum."""

    def view(self, x: Any) -> Any:
        raise NotImplementedError

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        view, out = self.view(x), node.buffer((x.shape[0], *node.out_shape), np.float32)
        core.assign(out.reshape(view.shape), view)
        return out

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        dx = node.buffer((dy.shape[0], *node.in_shape), np.float32)
        view = self.view(dx)
        core.assign(view, dy.reshape(view.shape))
        return dx

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        shape = self.out_shape(*shapes)
        return channel_last(nn, lambda x: self.view(x).reshape(len(x), *shape))


def turned(x: Any, axes: tuple[int, ...]) -> Any:
    """An array, or a PyTorch tensor, with its axes in another order."""
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)


@dataclass(frozen=True)
class Transpose(_Moved):
    """The axes in another order: 0 is the first behind the batch."""

    axes: tuple[int, ...]
    stem: ClassVar[str] = "transpose"
    kind: ClassVar[str] = "transpose"
    rules: ClassVar[Mapping[str, Rule]] = {"axes": integers(1, 0, 5)}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if sorted(self.axes) != list(range(len(in_shape))):
            raise OctosimError(f"a transpose by the axes {self.axes} cannot take an input of shape {in_shape}")
        return tuple(in_shape[axis] for axis in self.axes)

    def view(self, x: Any) -> Any:
        return turned(x, (0, *(axis + 1 for axis in self.axes)))


@dataclass(frozen=True)
class ChannelShuffle(_Moved):
    """Channels of `groups` groups, taken one of each in turn (Zhang et al. 2017)."""

    groups: int
    stem: ClassVar[str] = "shuffle"
    kind: ClassVar[str] = "shuffle"
    rules: ClassVar[Mapping[str, Rule]] = {"groups": COUNT}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if in_shape[-1] % self.groups:
            raise OctosimError(f"{in_shape[-1]} channels are not {self.groups} groups")
        return in_shape

    def view(self, x: Any) -> Any:
        split = x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        last = split.ndim - 1
        return turned(split, (*range(last - 1), last, last - 1))


@dataclass(frozen=True)
class Slice(_Moved):
    """Elements start .. stop - 1 of an axis, 0 the first behind the batch, -1 the last; stop None: to its end.  Several of them
    split a tensor."""

    start: int
    stop: int | None = None
    axis: int = -1
    stem: ClassVar[str] = "slice"
    kind: ClassVar[str] = "slice"
    rules: ClassVar[Mapping[str, Rule]] = {"start": integer(0, 2**20), "stop": COUNT, "axis": integer(-5, 4)}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if not -len(in_shape) <= self.axis < len(in_shape):
            raise OctosimError(f"an input of shape {in_shape} has no axis {self.axis}")
        size, stop = in_shape[self.axis], self.stop
        if not 0 <= self.start < (size if stop is None else stop) <= size:
            raise OctosimError(f"an axis of {size} elements has no elements {self.start} .. {stop}")
        axis = self.axis % len(in_shape)
        return (*in_shape[:axis], (size if stop is None else stop) - self.start, *in_shape[axis + 1 :])

    def view(self, x: Any) -> Any:
        axis = self.axis + 1 if self.axis >= 0 else self.axis + x.ndim
        return x[(slice(None),) * axis + (slice(self.start, self.stop),)]

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        dx = node.buffer((dy.shape[0], *node.in_shape), np.float32)
        core.assign(dx, np.zeros((1,) * dx.ndim, np.float32))
        core.assign(self.view(dx), dy)
        return dx


@dataclass(frozen=True)
class Upsample(_Moved):
    """Each pixel `factor` times, down and across."""

    factor: Sides = 2
    stem: ClassVar[str] = "upsample"
    kind: ClassVar[str] = "upsample"
    rules: ClassVar[Mapping[str, Rule]] = {"factor": several(1, 64, (2,), "two, down and across")}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 3:
            raise OctosimError(f"an upsampling cannot take an input of shape {in_shape}")
        (down, across), (height, width, channels) = pair(self.factor), in_shape
        return height * down, width * across, channels

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        (down, across), (height, width, channels) = pair(self.factor), node.in_shape
        out = node.buffer((x.shape[0], *node.out_shape), np.float32)
        core.assign(out.reshape(-1, height, down, width, across, channels), x.reshape(-1, height, 1, width, 1, channels))
        return out

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        (down, across), (height, width, channels) = pair(self.factor), node.in_shape
        dx = node.buffer((dy.shape[0], *node.in_shape), np.float32)
        core.assign(dx.reshape(-1, height, 1, width, 1, channels), dy.reshape(-1, height, down, width, across, channels))
        return dx

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Upsample(scale_factor=tuple(map(float, pair(self.factor))), mode="nearest")


@dataclass(frozen=True)
class Concat(Unweighted):
    """Tensors one behind the other in an axis, 0 the first behind the batch, -1 the last."""

    axis: int = -1
    stem: ClassVar[str] = "concat"
    kind: ClassVar[str] = "concat"
    inputs: ClassVar[tuple[int, int]] = (2, 2**16)
    rules: ClassVar[Mapping[str, Rule]] = {"axis": integer(-5, 4)}

    def out_shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        first = shapes[0]
        axis = self.axis % len(first)
        others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if not -len(first) <= self.axis < len(first) or len(others) > 1 or len(set(map(len, shapes))) > 1:
            raise OctosimError(f"inputs of shapes {', '.join(map(str, shapes))} cannot be joined in axis {self.axis}")
        return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])

    def _parts(self, node: Node, whole: Array) -> list[Array]:
        """Views of each input's part of the output."""
        axis, parts, at = self.axis % len(node.in_shape) + 1, [], 0
        for shape in node.in_shapes:
            size = shape[axis - 1]
            parts.append(whole[(slice(None),) * axis + (slice(at, at + size),)])
            at += size
        return parts

    def forward(self, node: Node, x: tuple[Array, ...], method: Method, context: Context) -> Array:
        out = node.buffer((len(x[0]), *node.out_shape), np.float32)
        for each, part in zip(x, self._parts(node, out), strict=True):
            core.assign(part, each)
        return out

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> tuple[Array, ...]:
        made = []
        for part in self._parts(node, dy):
            made.append(core.assign(node.buffer(part.shape, np.float32), part))
        return tuple(made)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        axis = self.axis % len(shapes[0]) + 1
        return channel_last(nn, lambda *x: sys.modules["torch"].cat(x, axis))
