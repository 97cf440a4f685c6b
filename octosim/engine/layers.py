"""Layers: geometry only.  A weighted layer asks the network's method for its numbers; the others work on float32 values.

A layer with one input takes and gives an array in each pass.  `Add`, which has two, takes a tuple of them forward and gives one
backward.  Each gradient array that a layer gives belongs to the receiver, who may write over it: it is never given twice, but
for what an addition gives where `Node.dy_shared` says so.

Shapes are without the batch axis, images (height, width, channels).  Each layer is a frozen value; what a network adds to it
stands in its `nodes.Node`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Convolution, Depthwise, FullProduct, Method, Node, Product
from octosim.errors import OctosimError

LONGEST_WINDOW = 24576
"""Largest kernel x kernel x channels (and x filters) of a convolution: OCTO_MAX_DEPTH of cext/kernels.h."""
MOST_TAPS = 225  # of a depthwise convolution's kernel: OCTO_DEPTHWISE_TAPS of cext/kernels.h
WEIGHT, MASK = 14, 15  # roles in the Philox streams; methods have the lower ones


def _elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _windows(title: str, in_shape: tuple[int, ...], kernel: int, stride: int, pad: int) -> tuple[int, int]:
    """Output height and width of a square window that moves over a padded image."""
    if len(in_shape) != 3 or min(in_shape[:2]) + 2 * pad < kernel:
        raise OctosimError(f"a {title} cannot take an input of shape {in_shape}")
    if not pad < kernel:
        raise OctosimError(f"the padding {pad} of a {title} must be smaller than its kernel")
    height, width = ((size + 2 * pad - kernel) // stride + 1 for size in in_shape[:2])
    return height, width


class Unweighted:
    """What layers without a matrix product share: no error of their own, no weight gradient.

    aliases: the output may lie in the input's memory.
    """

    weighted: ClassVar[bool] = False
    aliases: ClassVar[bool] = False

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        pass

    def weight_grad(self, node: Node, dy: core.Values, method: Method, context: Context) -> core.Values:
        return dy


class Weighted:
    """What Conv2d and Linear share: weights `w` [outputs][...], biases `b` [outputs], and the method's hooks."""

    weighted: ClassVar[bool] = True
    aliases: ClassVar[bool] = False
    deviation: float | None

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        raise NotImplementedError

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        """Normal weights, with the layer's deviation or He's sqrt(2 / fan-in); zero biases.  seed None: zero weights too."""
        shape = self.weight_shape(node.in_shape)
        deviation = self.deviation or math.sqrt(2 / _elements(shape[1:]))
        w = np.zeros(shape, np.float32) if seed is None else core.normal(shape, seed, node.tensor(WEIGHT), deviation)
        node.params["w"] = w
        node.params["b"] = np.zeros(shape[0], np.float32)
        if node.normalized:
            node.still.add("b")
        method.init(node, seed or 0)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        for observer in node.observers:
            observer.add(node.name, "forward", "input", x)
        y: Array = method.forward(node, x, context)
        if node.observers:
            y = core.values(y)
            _tell_meanings(node, node.saved)
        for observer in node.observers:
            observer.add(node.name, "forward", "output", y)
        return y

    def weight_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Any:
        for observer in node.observers:
            observer.add(node.name, "dW", "gradient", dy)
        error = method.error(node, dy, context)
        if node.observers:
            _tell_meanings(node, {"dy": error})
        method.weight_grad(node, error, context)
        if node.observers:
            node.grads = {name: core.values(g) for name, g in node.grads.items()}
        for observer in node.observers:
            for name, values in node.grads.items():
                observer.add(node.name, "dW", f"gradient of {name}", values)
        if node.normalized:  # only rounding would move a bias here, and the running mean could not follow it
            node.grads["b"] = np.zeros_like(node.params["b"])
        return error

    def input_grad(self, node: Node, error: Any, method: Method, context: Context) -> Array:
        dx: Array = method.input_grad(node, error, context)
        if node.observers:
            dx = core.values(dx)
        for observer in node.observers:
            observer.add(node.name, "dX", "result", dx)
        return dx


def _tell_meanings(node: Node, values: dict[str, Any]) -> None:
    """Tells the observers of codes with their meaning."""
    for name, value in values.items():
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, "q"):
                for observer in node.observers:
                    observer.means(node.name, name, part)


@dataclass(frozen=True)
class Conv2d(Weighted):
    """A convolution with square kernel and symmetric zero padding.  deviation: of the initial weights; None is He's."""

    filters: int
    kernel: int
    stride: int = 1
    pad: int = 0
    deviation: float | None = None
    stem: ClassVar[str] = "conv"

    @property
    def title(self) -> str:
        return f"conv {self.kernel}x{self.kernel}"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        side = _windows(self.title, in_shape, self.kernel, self.stride, self.pad)
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


@dataclass(frozen=True)
class DepthwiseConv2d(Weighted):
    """A convolution of each channel with a kernel of its own (Howard et al. 2017), otherwise as Conv2d."""

    kernel: int = 3
    stride: int = 1
    pad: int = 1
    deviation: float | None = None
    stem: ClassVar[str] = "dw"

    @property
    def title(self) -> str:
        return f"depthwise {self.kernel}x{self.kernel}"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.kernel**2 > MOST_TAPS:
            raise OctosimError(f"a {self.title} has more than {MOST_TAPS} taps")
        return (*_windows(self.title, in_shape, self.kernel, self.stride, self.pad), in_shape[2])

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (in_shape[2], self.kernel, self.kernel, 1)

    def product(self, node: Node, batch: int) -> Product:
        height, width, channels = node.in_shape
        k = self.kernel
        geometry = core.Conv(batch, height, width, channels, channels, k, k, self.stride, self.pad)
        return node.through(Depthwise(geometry))


@dataclass(frozen=True)
class Linear(Weighted):
    """A fully connected layer.  units None: the number of classes of the data."""

    units: int | None = None
    deviation: float | None = None
    stem: ClassVar[str] = "fc"
    title: ClassVar[str] = "linear"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 1 or self.units is None:
            raise OctosimError(f"a linear layer needs flat input and a size, not {in_shape} and {self.units}")
        return (self.units,)

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*self.out_shape(in_shape), in_shape[0])

    def product(self, node: Node, batch: int) -> Product:
        return node.through(FullProduct(batch, node.in_shape[0], node.out_shape[0]))


@dataclass(frozen=True)
class Flatten(Unweighted):
    """(height, width, channels) -> (height * width * channels,), no copy."""

    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "flatten"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (_elements(in_shape),)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        return x.reshape(x.shape[0], -1)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy.reshape(dy.shape[0], *node.in_shape)


@dataclass(frozen=True)
class BatchNorm(Unweighted):
    """Batch normalization of each channel (Ioffe & Szegedy 2015); inference uses the running statistics.

    momentum is the weight of the new batch in the running mean and variance, as in PyTorch.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    stem: ClassVar[str] = "bn"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        channels = node.in_shape[-1]
        node.params.update(gamma=np.ones(channels, np.float32), beta=np.zeros(channels, np.float32))
        node.state.update(mean=np.zeros(channels, np.float32), var=np.ones(channels, np.float32))

    def forward(self, node: Node, x: core.Values, method: Method, context: Context) -> Array:
        p, s = node.params, node.state
        if isinstance(x, core.Sums) and x.add.size != node.in_shape[-1]:
            x = x.array()
        # the values in float32 stay only where the backward pass takes them
        free = node.in_place and (method.compact or not context.training)
        out = core.memory_of(x) if free else node.buffer(x.shape, np.float32)
        columns = (p["gamma"], p["beta"], s["mean"], s["var"])
        if not context.training:
            return core.batchnorm_inference(x, *columns, eps=self.eps, relu=node.fused, out=out)
        if not method.compact:
            x = core.values(x)
        codes = node.buffer(x.shape, np.int8) if method.compact else None
        signs = node.buffer((core.sign_bytes(out.size),), np.uint8) if node.fused else None
        y, mean, inv_std, node.found = core.batchnorm_forward(
            x, *columns, eps=self.eps, momentum=self.momentum, relu=node.fused, codes=codes, signs=signs,
            find_range=method.compact, out=out,
        )  # fmt: skip
        node.saved.update(x=x if codes is None else codes, mean=mean, inv_std=inv_std, signs=signs)
        return y

    def input_grad(self, node: Node, dy: core.Values, method: Method, context: Context) -> Array:
        saved = node.saved
        dx, dgamma, dbeta, node.found = core.batchnorm_backward(
            saved["x"], dy, node.params["gamma"], saved["mean"], saved["inv_std"], signs=saved["signs"],
            find_range=method.compact, out=node.buffer(dy.shape, np.float32) if node.dy_shared else core.memory_of(dy),
        )  # fmt: skip
        node.grads.update(gamma=dgamma, beta=dbeta)
        return dx


@dataclass(frozen=True)
class ReLU(Unweighted):
    """max(x, 0), in the memory of its input where nothing else needs that; keeps a bit an element."""

    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "relu"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        if node.fused:
            return x
        signs = node.saved["signs"] = node.buffer((core.sign_bytes(x.size),), np.uint8)
        out = x if node.in_place else node.buffer(x.shape, np.float32)
        y, node.found = core.relu(x, signs=signs, find_range=method.compact, out=out)
        return y

    def input_grad(self, node: Node, dy: Any, method: Method, context: Context) -> Any:
        return dy if node.fused else core.relu_backward(node.saved["signs"], dy, out=dy)


@dataclass(frozen=True)
class MaxPool(Unweighted):
    """Max pooling with a square window, without padding."""

    kernel: int = 2
    stride: int = 2
    stem: ClassVar[str] = "pool"

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


@dataclass(frozen=True)
class Dropout(Unweighted):
    """Inverted dropout: in training a share `rate` is zeroed and the rest scaled up; nothing in inference."""

    rate: float = 0.5
    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "dropout"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if not 0 <= self.rate < 1:
            raise OctosimError(f"dropout rate must be in [0, 1), not {self.rate}")
        return in_shape

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        if not context.training:
            return x
        y = node.buffer(x.shape, np.float32)
        return core.dropout(x, self.rate, context.random(node.tensor(MASK)), out=y)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return core.dropout(dy, self.rate, context.random(node.tensor(MASK)), out=dy)


@dataclass(frozen=True)
class GlobalAvgPool(Unweighted):
    """The mean over an image's pixels: (height, width, channels) -> (channels,)."""

    stem: ClassVar[str] = "avgpool"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 3:
            raise OctosimError(f"a global average pooling cannot take an input of shape {in_shape}")
        return in_shape[2:]

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        return core.avgpool(x, out=node.buffer((x.shape[0], *node.out_shape), np.float32))

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        dx = node.buffer((dy.shape[0], *node.in_shape), np.float32)
        return core.avgpool_backward(dy, *node.in_shape[:2], out=dx)


@dataclass(frozen=True)
class Add(Unweighted):
    """The sum of two tensors of one shape: where a residual block's branches meet."""

    stem: ClassVar[str] = "add"

    def out_shape(self, in_shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
        if in_shape != other:
            raise OctosimError(f"the body makes {in_shape}, the shortcut {other}: only equal shapes can be added")
        return in_shape

    def forward(self, node: Node, x: tuple[Array, Array], method: Method, context: Context) -> Array:
        signs = node.saved["signs"] = node.buffer((core.sign_bytes(x[0].size),), np.uint8) if node.fused else None
        out = x[0] if node.in_place else node.buffer(x[0].shape, np.float32)
        y, node.found = core.add(*x, relu=node.fused, signs=signs, find_range=method.compact, out=out)
        return y

    def input_grad(self, node: Node, dy: Array | core.Pair, method: Method, context: Context) -> tuple[Array, Array]:
        """dy for each branch; a copy for one, since both may write over theirs, unless the first leaves it as it is."""
        if node.fused:
            dy = core.relu_backward(node.saved["signs"], dy, out=core.memory_of(dy))
        assert not isinstance(dy, core.Pair)
        copy = dy if node.dy_shared else node.buffer(dy.shape, np.float32)
        return dy, dy if copy is dy else core.copy(dy, out=copy)


@dataclass(frozen=True)
class Residual:
    """A block of layers beside a shortcut; the two results are added (He et al. 2016).  An empty shortcut is the identity.

    It stands in a network's data only: `nodes` puts the body, the shortcut and an `Add` in its place.
    """

    body: tuple[Item, ...]
    shortcut: tuple[Item, ...] = ()


Layer = Conv2d | DepthwiseConv2d | Linear | Flatten | BatchNorm | ReLU | MaxPool | GlobalAvgPool | Dropout | Add
Item = Layer | Residual
Stack = tuple[Item, ...]
