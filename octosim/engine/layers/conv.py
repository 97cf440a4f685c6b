"""Convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from octosim import core
from octosim.engine.layers.base import COUNT, DEVIATION, Rule, Weighted, integer, windows
from octosim.engine.nodes import Convolution, Depthwise, Node, Product
from octosim.errors import OctosimError

LONGEST_WINDOW = 24576
"""Largest kernel x kernel x channels (and x filters) of a convolution: OCTO_MAX_DEPTH of cext/kernels.h."""
MOST_TAPS = 225  # of a depthwise convolution's kernel: OCTO_DEPTHWISE_TAPS of cext/kernels.h
WINDOW = {"kernel": integer(1, 32), "stride": integer(1, 32), "pad": integer(0, 31), "deviation": DEVIATION}
"""Rules of the fields that convolutions share."""


@dataclass(frozen=True)
class Conv2d(Weighted):
    """A convolution with square kernel and symmetric zero padding.  deviation: of the initial weights; None is He's."""

    filters: int
    kernel: int
    stride: int = 1
    pad: int = 0
    deviation: float | None = None
    stem: ClassVar[str] = "conv"
    kind: ClassVar[str] = "conv"
    rules: ClassVar[Mapping[str, Rule]] = {"filters": COUNT} | WINDOW

    @property
    def title(self) -> str:
        return f"conv {self.kernel}x{self.kernel}"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        side = windows(self.title, in_shape, self.kernel, self.stride, self.pad)
        if self.kernel**2 * max(in_shape[2], self.filters) > LONGEST_WINDOW:
            raise OctosimError(
                f"a {self.title} from {in_shape[2]} channels to {self.filters} is too wide: kernel x kernel x channels must be "
                f"at most {LONGEST_WINDOW}"
            )
        return (*side, self.filters)

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.filters, self.kernel, self.kernel, in_shape[2])

    def product(self, node: Node, batch: int) -> Product:
        height, width, channels = node.in_shape
        k = self.kernel
        geometry = core.Conv(batch, height, width, channels, self.filters, k, k, self.stride, self.pad)
        return node.through(Convolution(geometry))

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Conv2d(shapes[0][-1], self.filters, self.kernel, self.stride, self.pad)


@dataclass(frozen=True)
class DepthwiseConv2d(Weighted):
    """A convolution of each channel with a kernel of its own (Howard et al. 2017), otherwise as Conv2d."""

    kernel: int = 3
    stride: int = 1
    pad: int = 1
    deviation: float | None = None
    stem: ClassVar[str] = "dw"
    kind: ClassVar[str] = "depthwise"
    rules: ClassVar[Mapping[str, Rule]] = WINDOW

    @property
    def title(self) -> str:
        return f"depthwise {self.kernel}x{self.kernel}"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.kernel**2 > MOST_TAPS:
            raise OctosimError(f"a {self.title} has more than {MOST_TAPS} taps")
        return (*windows(self.title, in_shape, self.kernel, self.stride, self.pad), in_shape[2])

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (in_shape[2], self.kernel, self.kernel, 1)

    def product(self, node: Node, batch: int) -> Product:
        height, width, channels = node.in_shape
        k = self.kernel
        geometry = core.Conv(batch, height, width, channels, channels, k, k, self.stride, self.pad)
        return node.through(Depthwise(geometry))

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        channels = shapes[0][-1]
        return nn.Conv2d(channels, channels, self.kernel, self.stride, self.pad, groups=channels)
