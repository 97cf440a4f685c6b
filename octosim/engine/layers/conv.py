"""Convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from octosim import core
from octosim.engine.layers.base import COUNT, DEVIATION, FLAG, Rule, Sides, Weighted, by, integer, pads, pair, several
from octosim.engine.nodes import Convolution, Depthwise, Node, Product
from octosim.errors import OctosimError

LONGEST_WINDOW = 24576
"""Largest kernel x kernel x channels (and x filters) of a convolution's group: OCTO_MAX_DEPTH of cext/kernels.h."""
MOST_TAPS = 225  # of a depthwise convolution's kernel: OCTO_DEPTHWISE_TAPS of cext/kernels.h
WINDOW = {
    "kernel": several(1, 1024, (2,), "two, down and across"),
    "stride": several(1, 1024, (2,), "two, down and across"),
    "pad": several(0, 1024, (2, 4), "two, down and across, or four, above, left, below and right"),
    "deviation": DEVIATION,
    "dilation": several(1, 1024, (2,), "two, down and across"),
    "bias": FLAG,
}
"""Rules of the fields that convolutions share."""


class _Windows(Weighted):
    """What convolutions share: kernel, stride, pad and dilation, each a size for all sides or one for each (`base.Sides`)."""

    kernel: Sides
    stride: Sides
    pad: Sides
    dilation: Sides

    @lru_cache(maxsize=4096)  # noqa: B019 (layers are values; a step asks for the same geometry in each of its passes)
    def geometry(self, in_shape: tuple[int, ...], batch: int, filters: int, groups: int) -> core.Conv:
        """OctosimError where such images cannot be taken."""
        if len(in_shape) != 3:
            raise OctosimError(f"a {self.title} cannot take an input of shape {in_shape}")
        height, width, channels = in_shape
        (high, wide), (down, across), padding = pair(self.kernel), pair(self.dilation), pads(self.pad)
        extent = ((high - 1) * down + 1, (wide - 1) * across + 1)
        if max(padding[0], padding[2]) >= extent[0] or max(padding[1], padding[3]) >= extent[1]:
            raise OctosimError(f"the padding {self.pad} of a {self.title} must be smaller than its kernel")
        if height + padding[0] + padding[2] < extent[0] or width + padding[1] + padding[3] < extent[1]:
            raise OctosimError(f"a {self.title} cannot take an input of shape {in_shape}")
        if high * wide * max(channels, filters) // groups > LONGEST_WINDOW or high * wide > 1024:
            raise OctosimError(
                f"a {self.title} from {channels} channels to {filters} is too wide: kernel x kernel x channels must be "
                f"at most {LONGEST_WINDOW}"
            )
        strides, dilations = pair(self.stride), (down, across)
        return core.Conv(batch, height, width, channels, filters, high, wide, strides, padding, dilations, groups)

    @property
    def title(self) -> str:
        raise NotImplementedError

    def _peer(self, nn: Any, channels: int, filters: int, groups: int) -> Any:
        top, left, bottom, right = pads(self.pad)
        rest = pair(self.dilation), groups, self.bias
        if (top, left) == (bottom, right):
            return nn.Conv2d(channels, filters, pair(self.kernel), pair(self.stride), (top, left), *rest)

        class Padded(nn.Conv2d):
            def forward(self, x: Any) -> Any:
                return super().forward(nn.functional.pad(x, (left, right, top, bottom)))

        return Padded(channels, filters, pair(self.kernel), pair(self.stride), 0, *rest)


@dataclass(frozen=True)
class Conv2d(_Windows):
    """A convolution with zero padding.  deviation: of the initial weights; None is He's.  groups: of consecutive channels and
    filters, each seeing its own."""

    filters: int
    kernel: Sides
    stride: Sides = 1
    pad: Sides = 0
    deviation: float | None = None
    dilation: Sides = 1
    groups: int = 1
    bias: bool = True
    stem: ClassVar[str] = "conv"
    kind: ClassVar[str] = "conv"
    rules: ClassVar[Mapping[str, Rule]] = {"filters": COUNT, "groups": COUNT} | WINDOW

    @property
    def title(self) -> str:
        return f"conv {by(self.kernel)}"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) == 3 and (in_shape[2] % self.groups or self.filters % self.groups):
            raise OctosimError(
                f"{in_shape[2]} channels and {self.filters} filters of a {self.title} are not {self.groups} groups"
            )
        g = self.geometry(in_shape, 1, self.filters, self.groups)
        return (g.out_h, g.out_w, self.filters)

    def outputs_of_a_group(self, in_shape: tuple[int, ...]) -> int:
        return 1 if self.groups == 1 else self.filters // self.groups

    def with_outputs(self, in_shape: tuple[int, ...], count: int) -> tuple[Any, int]:
        if self.groups == 1:
            return replace(self, filters=count), in_shape[-1]
        groups = count * self.groups // self.filters
        return replace(self, filters=count, groups=groups), groups * (in_shape[-1] // self.groups)

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.filters, *pair(self.kernel), in_shape[2] // self.groups)

    def product(self, node: Node, batch: int) -> Product:
        return node.product_hook(Convolution(self.geometry(node.in_shape, batch, self.filters, self.groups)))

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return self._peer(nn, shapes[0][-1], self.filters, self.groups)


@dataclass(frozen=True)
class DepthwiseConv2d(_Windows):
    """A convolution of each channel with kernels of its own (Howard et al. 2017), `multiplier` of them, otherwise as Conv2d."""

    kernel: Sides = 3
    stride: Sides = 1
    pad: Sides = 1
    deviation: float | None = None
    dilation: Sides = 1
    multiplier: int = 1
    bias: bool = True
    stem: ClassVar[str] = "dw"
    kind: ClassVar[str] = "depthwise"
    rules: ClassVar[Mapping[str, Rule]] = {"multiplier": integer(1, 1024)} | WINDOW

    @property
    def title(self) -> str:
        return f"depthwise {by(self.kernel)}"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        high, wide = pair(self.kernel)
        if high * wide > MOST_TAPS:
            raise OctosimError(f"a {self.title} has more than {MOST_TAPS} taps")
        g = self._geometry(in_shape, 1)
        return (g.out_h, g.out_w, g.filters)

    def _geometry(self, in_shape: tuple[int, ...], batch: int) -> core.Conv:
        channels = in_shape[-1]
        return self.geometry(in_shape, batch, channels * self.multiplier, channels)

    def outputs_of_a_group(self, in_shape: tuple[int, ...]) -> int:
        return self.multiplier

    def with_outputs(self, in_shape: tuple[int, ...], count: int) -> tuple[Any, int]:
        return self, count // self.multiplier

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (in_shape[2] * self.multiplier, *pair(self.kernel), 1)

    def product(self, node: Node, batch: int) -> Product:
        g = self._geometry(node.in_shape, batch)
        if self.multiplier == 1 and g.dilation == 1:
            return node.product_hook(Depthwise(core.Conv(*g.numbers[:9])))
        return node.product_hook(Convolution(g))

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        channels = shapes[0][-1]
        return self._peer(nn, channels, channels * self.multiplier, channels)
