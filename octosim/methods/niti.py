"""NITI: training with integers only.

Wang et al., "NITI: Training Integer Neural Networks Using Integer-only Arithmetic" (arXiv 2009.13108).  Equations: the
authors' code (wangmaolin/niti: ti_torch.py, ti_loss.py) as the algorithm card 5.6 gives them.

A tensor is int8 codes in +-127 with one exponent, value = q 2^exponent.  Products are summed in int32, which is shifted back
to 7 bits and a sign.  No operation of a step is on floating-point numbers; only the loss that a record shows is.

Differs from the paper in: the bit width is that of max|acc| (for max|acc| = 2^b one bit more than ceil(log2 max|acc|)), so that
no code overflows; pixels become codes by one right shift; the drops of mu are shares of the run, 1/2 and 3/4, instead of
epochs 100 and 150 of 200; the loss gradient's last shift is pseudo-stochastic.  There are reconstructions for what the paper's
networks do not have: sums of two tensors, average pooling (a power of two is divided by), depthwise convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError
from octosim.methods import int8
from octosim.numerics import Rounding

BITS = 7  # of a code's magnitude
LOG2_E = 47274  # log2(e) 2^15, rounded up as the authors have it
RANGE = 10  # logits more than so many powers of two below the largest get no probability
LEAST_EXPONENT = -20  # of logits in the loss: codes are shifted to it; 2^41 is the largest term then
WEIGHT, MASK = 0, 15  # roles in the Philox streams


@dataclass(frozen=True)
class IntTensor:
    """int8 codes in +-127 with one exponent: value = q 2^exponent."""

    q: Array
    exponent: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.q.shape

    def reshape(self, *shape: int) -> IntTensor:
        return IntTensor(self.q.reshape(*shape), self.exponent)


def narrow(acc: Array, bits: int, rounding: Rounding, out: Array | None = None) -> tuple[Array, int]:
    """Codes of int32 sums, shifted right until the largest has so many bits, and the shift; small sums stay as they are.

    The width is max|acc|'s bit length: with ceil(log2 max|acc|), 128 would have 7 bits and become the code -128.
    """
    low, high = core.sum_range(acc)
    shift = max(0, max(-low, high).bit_length() - bits)
    return core.requantize(acc, 1, shift, rounding=rounding, low=-LARGEST_CODE, high=LARGEST_CODE, out=out), shift


def rounded(acc: Array, exponent: int, out: Array | None = None) -> IntTensor:
    """RoundShift: the tensor of int32 sums with that exponent, to 7 bits, half away from zero."""
    q, shift = narrow(acc, BITS, Rounding.HALF_AWAY, out)
    return IntTensor(q, exponent + shift)


def aligned_sum(a: IntTensor, b: IntTensor) -> IntTensor:
    """a + b, exact in int32 before it is shifted back; b is nothing where it is below 2^-22 codes of a, and reversed.

    Ours: the paper's networks add no tensors.
    """
    high, low = (a, b) if a.exponent >= b.exponent else (b, a)
    distance = high.exponent - low.exponent
    if distance > 22:
        return IntTensor(high.q.copy(), high.exponent)
    return rounded((high.q.astype(np.int32) << distance) + low.q, low.exponent)


def loss_gradient(logits: IntTensor, labels: Array) -> Array:
    """int8 dL/dlogits of softmax cross-entropy, in integers: 2^11 (p - t), then 4 bits less.

    Logits far from 0 (exponent > -7) take powers of two of x log2(e), the largest's being 2^10; near 0, exp(x) is
    1 + x + x^2 / 2, times 2^(1 - 2 exponent).
    """
    q, e = logits.q.astype(np.int64), logits.exponent
    if e > -BITS:
        # differences above 2^10 decide everything, so a larger exponent than 20 changes nothing
        s = (q * LOG2_E << min(e, 20)) >> 15 if e >= 0 else (q * LOG2_E) >> (15 - e)
        p = (1 << np.maximum(s - (s.max(1, keepdims=True) - RANGE), 0)) - 1
    else:
        if e < LEAST_EXPONENT:
            q, e = q >> min(LEAST_EXPONENT - e, 63), LEAST_EXPONENT
        p = (1 << (1 - 2 * e)) + (q << (1 - e)) + q * q
    grad = (p << 11) // p.sum(1, keepdims=True)
    grad[np.arange(len(labels)), labels] -= grad.sum(1)
    return core.requantize(grad.astype(np.int32), 1, 4, rounding=Rounding.PSEUDO_STOCHASTIC, low=-LARGEST_CODE)


# ---- layers without a matrix product --------------------------------------------------


class _IntLayer:
    """A layer on IntTensors; its geometry is in node.layer."""

    def traffic(self, x: int, y: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Bytes read and written, forward and back, for so many elements of x and y."""
        return (x, y), (2 * y, x)

    def init(self, node: Node, method: Method, seed: int) -> None:
        pass

    def weight_grad(self, node: Node, dy: IntTensor, method: Method, context: Context) -> IntTensor:
        return dy


class _ReLU(_IntLayer):
    def forward(self, node: Node, x: IntTensor, method: Method, context: Context) -> IntTensor:
        out = x.q if node.in_place else node.buffer(x.shape, np.int8)
        node.saved["y"] = np.maximum(x.q, np.int8(0), out=out)
        return IntTensor(out, x.exponent)

    def input_grad(self, node: Node, dy: IntTensor, method: Method, context: Context) -> IntTensor:
        return IntTensor(np.multiply(dy.q, node.saved["y"] > 0, out=dy.q), dy.exponent)


class _MaxPool(_IntLayer):
    def traffic(self, x: int, y: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (x, 2 * y), (2 * y, x)

    def _taps(self, node: Node, image: Array) -> list[Array]:
        """Views of an image tensor, one for each position in the window, in the order of an argmax."""
        kernel, stride = node.layer.kernel, node.layer.stride
        height, width = ((side - 1) * stride + 1 for side in node.out_shape[:2])
        return [image[:, i : i + height : stride, j : j + width : stride] for i in range(kernel) for j in range(kernel)]

    def forward(self, node: Node, x: IntTensor, method: Method, context: Context) -> IntTensor:
        first, *rest = self._taps(node, x.q)
        y, argmax = (node.buffer(first.shape, t) for t in (np.int8, np.uint8))
        y[...], argmax[...] = first, 0
        node.saved["argmax"] = argmax
        for number, tap in enumerate(rest, 1):
            np.copyto(argmax, np.uint8(number), where=tap > y)
            np.maximum(y, tap, out=y)
        return IntTensor(y, x.exponent)

    def input_grad(self, node: Node, dy: IntTensor, method: Method, context: Context) -> IntTensor:
        """dy at each window's largest; windows that overlap need sums, which are shifted back as those of products."""
        argmax, shape = node.saved["argmax"], (dy.shape[0], *node.in_shape)
        overlap = node.layer.stride < node.layer.kernel
        dx = node.buffer(shape, np.int32 if overlap else np.int8)
        dx.fill(0)
        for number, tap in enumerate(self._taps(node, dx)):
            tap += dy.q * (argmax == number)
        return rounded(dx, dy.exponent, node.buffer(shape, np.int8)) if overlap else IntTensor(dx, dy.exponent)


class _Dropout(_IntLayer):
    """Kept values are doubled, for each factor of 2 in 1 / (1 - rate), by the exponent."""

    def _doublings(self, node: Node) -> int:
        return 1 - math.frexp(1 - node.layer.rate)[1]

    def init(self, node: Node, method: Method, seed: int) -> None:
        if math.frexp(1 - node.layer.rate)[0] != 0.5 or self._doublings(node) > 16:
            raise OctosimError(f"layer {node.name}: niti takes dropout rates 1 - 2^-k only, as 0.5, not {node.layer.rate}")

    def forward(self, node: Node, x: IntTensor, method: Method, context: Context) -> IntTensor:
        doublings = self._doublings(node)
        if not context.training or not doublings:
            return x
        words = core.philox(x.q.size, *context.random(node.tensor(MASK)))
        node.saved["kept"] = (words >> np.uint32(32 - doublings) == 0).reshape(x.shape)
        y = np.multiply(x.q, node.saved["kept"], out=node.buffer(x.shape, np.int8))
        return IntTensor(y, x.exponent + doublings)

    def input_grad(self, node: Node, dy: IntTensor, method: Method, context: Context) -> IntTensor:
        doublings = self._doublings(node)
        return IntTensor(np.multiply(dy.q, node.saved["kept"], out=dy.q), dy.exponent + doublings) if doublings else dy


class _AveragePool(_IntLayer):
    """The sum of an image's pixels, divided by the power of two at or below their number.  Ours."""

    def traffic(self, x: int, y: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (x, y), (y, x)

    def _halvings(self, node: Node) -> int:
        return math.prod(node.in_shape[:2]).bit_length() - 1

    def forward(self, node: Node, x: IntTensor, method: Method, context: Context) -> IntTensor:
        return rounded(x.q.sum((1, 2), dtype=np.int32), x.exponent - self._halvings(node))

    def input_grad(self, node: Node, dy: IntTensor, method: Method, context: Context) -> IntTensor:
        dx = node.buffer((dy.shape[0], *node.in_shape), np.int8)
        dx[...] = dy.q[:, None, None]
        return IntTensor(dx, dy.exponent - self._halvings(node))


class _Add(_IntLayer):
    def traffic(self, x: int, y: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (2 * x, y), (y, x)

    def forward(self, node: Node, x: tuple[IntTensor, IntTensor], method: Method, context: Context) -> IntTensor:
        return aligned_sum(*x)

    def input_grad(self, node: Node, dy: IntTensor, method: Method, context: Context) -> tuple[IntTensor, IntTensor]:
        return dy, IntTensor(dy.q.copy(), dy.exponent)


# ---- the method --------------------------------------------------


@dataclass(frozen=True)
class Niti(Method):
    """Parameters of the method.

    mu:       significant bits of the weight gradient's codes, 1 .. 7: the learning rate, halved by each bit less.
    schedule: "paper": one bit less from half of the run on, another from three quarters on; or "constant".
    """

    mu: int = 5
    schedule: Literal["paper", "constant"] = "paper"

    name: ClassVar[str] = "niti"
    summary: ClassVar[str] = "integers only: int8 tensors with one exponent, int8 weights, no floating point"
    paper: ClassVar[str] = "Wang et al., arXiv 2009.13108"
    bits: ClassVar[dict[str, str]] = {
        "weights": "int8",
        "activations": "int8",
        "gradients": "int8",
        "errors": "int8",
        "update": "int8",
        "accumulator": "int32",
        "normalization": "none",
    }
    batchnorm: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = (
        "optimizer", "lr", "weight_decay", "schedule", "milestones", "gamma", "warmup", "label_smoothing",
    )  # fmt: skip
    values: ClassVar[str] = "int8"
    covers: ClassVar[tuple[str, ...]] = ("conv", "dw", "fc", "flatten", "relu", "pool", "dropout", "avgpool", "add")
    layers: ClassVar[Mapping[str, Any]] = {
        "relu": _ReLU(), "pool": _MaxPool(), "dropout": _Dropout(), "avgpool": _AveragePool(), "add": _Add(),
    }  # fmt: skip

    def __post_init__(self) -> None:
        if not 1 <= self.mu <= BITS:
            raise OctosimError(f"niti: mu must be in 1 .. {BITS}, not {self.mu}")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch)

    def init(self, node: Node, seed: int) -> None:
        """Glorot's uniform weights as codes of +-max|w|, with the exponent ceil(log2 max|w|) - 7; no bias."""
        shape = node.params.pop("w").shape
        del node.params["b"]
        taps = math.prod(shape[1:-1]) if len(shape) > 2 else 1
        limit = math.sqrt(6 / (taps * (shape[0] + shape[-1])))
        words = core.philox(math.prod(shape), seed, 0, node.tensor(WEIGHT)).astype(np.float64)
        uniform = (2 * words + 1) / 2**32 - 1
        largest = float(np.abs(uniform).max())
        node.params["w"] = np.rint(uniform / largest * LARGEST_CODE).astype(np.int8).reshape(shape)
        mantissa, exponent = math.frexp(limit * largest)
        node.state["exponent"] = np.array([exponent - (mantissa == 0.5) - BITS], np.int32)

    def input(self, images: Array, out: Array) -> IntTensor:
        return IntTensor((images >> np.uint8(1)).view(np.int8), -BITS)

    def forward(self, node: Node, x: IntTensor, context: Context) -> IntTensor:
        shape = (x.shape[0], *node.out_shape)
        acc = node.buffer(shape, np.int32)
        node.layer.product(node, x.shape[0]).forward(x.q, node.params["w"], out=acc)
        node.saved["x"] = x
        return rounded(acc, x.exponent + int(node.state["exponent"][0]), node.buffer(shape, np.int8))

    def error(self, node: Node, dy: IntTensor, context: Context) -> IntTensor:
        return dy

    def weight_grad(self, node: Node, error: IntTensor, context: Context) -> None:
        """PstoShift to mu bits; the exponent is not used: weights are moved by codes."""
        shape = node.params["w"].shape
        acc = node.buffer(shape, np.int32)
        node.layer.product(node, error.shape[0]).weight_grad(node.saved["x"].q, error.q, out=acc)
        out = node.buffer(shape, np.int8)
        node.grads["w"], _ = narrow(acc, self._mu(context), Rounding.PSEUDO_STOCHASTIC, out)

    def _mu(self, context: Context) -> int:
        done, steps = int(context.step) - 1, context.steps
        drops = (2 * done >= steps) + (4 * done >= 3 * steps) if steps and self.schedule == "paper" else 0
        return max(1, self.mu - drops)

    def input_grad(self, node: Node, error: IntTensor, context: Context) -> IntTensor:
        shape = (error.shape[0], *node.in_shape)
        acc = node.buffer(shape, np.int32)
        node.layer.product(node, error.shape[0]).input_grad(error.q, node.params["w"], out=acc)
        return rounded(acc, error.exponent + int(node.state["exponent"][0]), node.buffer(shape, np.int8))

    def loss(
        self, logits: IntTensor, labels: Array, *, smoothing: float = 0.0, gradient: bool = True
    ) -> tuple[float, IntTensor | None, int]:
        """The gradient in integers; the loss and the count are for the record only, from the logits' real values."""
        dlogits = IntTensor(loss_gradient(logits, labels), 0) if gradient else None
        real = core.dequantize(logits.q, math.ldexp(1.0, min(max(logits.exponent, -120), 120)))
        value, _, correct = core.softmax_cross_entropy(real, labels, gradient=False)
        return float(value), dlogits, int(correct)

    def meet(self, a: IntTensor, b: IntTensor) -> IntTensor:
        return aligned_sum(a, b)

    def update(self, node: Node, key: str, lr: float, rule: Callable[[float], None], context: Context) -> None:
        w = node.params[key]
        w[...] = np.clip(w.astype(np.int16) - node.grads[key], -LARGEST_CODE, LARGEST_CODE)
