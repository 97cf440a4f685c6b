"""NITI: training with integers only.

Wang et al., "NITI: Training Integer Neural Networks Using Integer-only Arithmetic" (arXiv 2009.13108).  Equations: the
authors' code (wangmaolin/niti: ti_torch.py, ti_loss.py) as the algorithm card 5.6 gives them.

A tensor is int8 codes in +-127 with one exponent, value = q 2^exponent.  Products are summed in int32, which is shifted back
to 7 bits and a sign.  No operation of a step is on floating-point numbers; only the normalization of the pixels in front of the
first layer and the loss that a record shows are.

Differs from the paper in: the bit width is that of max|acc| (for max|acc| = 2^b one bit more than ceil(log2 max|acc|)), so that
no code overflows; the drops of mu are shares of the run, 1/2 and 3/4, instead of epochs 100 and 150 of 200.  As in the authors'
loader, pixels are normalized to mean 0 and deviation 1 before they become codes (--normalize none: a byte is shifted right by
one, into [0, 127], which costs accuracy in a network without biases).  There are reconstructions for what the paper's networks
do not have: sums of two tensors, average pooling (a power of two is divided by), depthwise convolutions.
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
from octosim.numerics import INT8, Rounding

BITS = INT8.bits - 1  # of a code's magnitude
WEIGHT, MASK = 0, 15  # roles in the Philox streams


def scaled(q: Array, exponent: core.Whole) -> core.Tensor:
    """int8 codes in +-127 with one exponent: value = q 2^exponent."""
    return core.Tensor(q, exponent=exponent)


def exponent_of(x: core.Tensor) -> core.Whole:
    """The exponent, as calls take it."""
    assert x.exponent is not None
    return x.exponent


def rounded(acc: Array, exponent: core.Whole, out: Array | None = None) -> core.Tensor:
    """RoundShift: the tensor of int32 sums with that exponent, to 7 bits, half away from zero.

    The width is max|acc|'s bit length: with ceil(log2 max|acc|), 128 would have 7 bits and become the code -128.
    """
    return scaled(*core.narrow(acc, BITS, Rounding.HALF_AWAY, exponent, out=out))


def aligned_sum(node: Node, a: core.Tensor, b: core.Tensor) -> core.Tensor:
    """a + b, exact in int32 before it is shifted back; b is nothing where it is below 2^-22 codes of a, and reversed.

    Ours: the paper's networks add no tensors.
    """
    acc, out = node.buffer(a.shape, np.int32), node.buffer(a.shape, np.int8)
    return scaled(*core.align(a.q, exponent_of(a), b.q, exponent_of(b), acc=acc, out=out))


# ---- layers without a matrix product --------------------------------------------------


class _IntLayer:
    """A layer on codes with an exponent; its geometry is in node.layer."""

    def init(self, node: Node, method: Method, seed: int) -> None:
        pass

    def weight_grad(self, node: Node, dy: core.Tensor, method: Method, context: Context) -> core.Tensor:
        return dy


class _ReLU(_IntLayer):
    def forward(self, node: Node, x: core.Tensor, method: Method, context: Context) -> core.Tensor:
        out = x.q if node.in_place else node.buffer(x.shape, np.int8)
        node.saved["y"] = core.relu_codes(x.q, out=out)
        return scaled(out, exponent_of(x))

    def input_grad(self, node: Node, dy: core.Tensor, method: Method, context: Context) -> core.Tensor:
        return scaled(core.relu_codes_backward(node.saved["y"], dy.q, out=dy.q), exponent_of(dy))


class _MaxPool(_IntLayer):
    def _geometry(self, node: Node, batch: int) -> core.Pool:
        height, width, channels = node.in_shape
        return core.Pool(batch, height, width, channels, node.layer.kernel, node.layer.stride)

    def forward(self, node: Node, x: core.Tensor, method: Method, context: Context) -> core.Tensor:
        g = self._geometry(node, len(x.q))
        y, argmax = (node.buffer(g.y_shape, t) for t in (np.int8, np.uint8))
        _, node.saved["argmax"] = core.maxpool_codes(g, x.q, out=y, argmax=argmax)
        return scaled(y, exponent_of(x))

    def input_grad(self, node: Node, dy: core.Tensor, method: Method, context: Context) -> core.Tensor:
        """dy at each window's largest; windows that overlap make sums, which are shifted back as those of products are."""
        g = self._geometry(node, len(dy.q))
        sums = core.maxpool_codes_backward(g, dy.q, node.saved["argmax"], out=node.buffer(g.x_shape, np.int32))
        return rounded(sums, exponent_of(dy), node.buffer(g.x_shape, np.int8))


class _Dropout(_IntLayer):
    """Kept values are doubled, for each factor of 2 in 1 / (1 - rate), by the exponent.  All images of a batch lose the same
    ones, as in the authors' code (TiDropout): a weight behind a lost value does not move in that step."""

    def _doublings(self, node: Node) -> int:
        return 1 - math.frexp(1 - node.layer.rate)[1]

    def init(self, node: Node, method: Method, seed: int) -> None:
        if math.frexp(1 - node.layer.rate)[0] != 0.5 or self._doublings(node) > 16:
            raise OctosimError(f"layer {node.name}: niti takes dropout rates 1 - 2^-k only, as 0.5, not {node.layer.rate}")

    def forward(self, node: Node, x: core.Tensor, method: Method, context: Context) -> core.Tensor:
        doublings = self._doublings(node)
        if not context.training or not doublings:
            return x
        y = core.dropout_codes(x.q, doublings, context.random(node.tensor(MASK)), out=node.buffer(x.shape, np.int8))
        return scaled(y, core.add_exponents(exponent_of(x), doublings))

    def input_grad(self, node: Node, dy: core.Tensor, method: Method, context: Context) -> core.Tensor:
        doublings = self._doublings(node)
        if not doublings:
            return dy
        q = core.dropout_codes(dy.q, doublings, context.random(node.tensor(MASK)), out=dy.q)
        return scaled(q, core.add_exponents(exponent_of(dy), doublings))


class _AveragePool(_IntLayer):
    """The sum of an image's pixels, divided by the power of two at or below their number.  Ours."""

    def _halvings(self, node: Node) -> int:
        return math.prod(node.in_shape[:2]).bit_length() - 1

    def forward(self, node: Node, x: core.Tensor, method: Method, context: Context) -> core.Tensor:
        return rounded(core.pixel_sums(x.q), core.add_exponents(exponent_of(x), -self._halvings(node)))

    def input_grad(self, node: Node, dy: core.Tensor, method: Method, context: Context) -> core.Tensor:
        dx = core.spread(dy.q, *node.in_shape[:2], out=node.buffer((dy.shape[0], *node.in_shape), np.int8))
        return scaled(dx, core.add_exponents(exponent_of(dy), -self._halvings(node)))


class _Add(_IntLayer):
    def forward(self, node: Node, x: tuple[core.Tensor, core.Tensor], method: Method, context: Context) -> core.Tensor:
        return aligned_sum(node, *x)

    def input_grad(self, node: Node, dy: core.Tensor, method: Method, context: Context) -> tuple[core.Tensor, core.Tensor]:
        return dy, scaled(core.copy_codes(dy.q, out=node.buffer(dy.shape, np.int8)), exponent_of(dy))


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
    normalize: ClassVar[str] = "data"
    random_loss: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
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
        int8.refuse_overflow(node, batch, long=True)

    def init(self, node: Node, seed: int) -> None:
        """Glorot's uniform weights as codes of +-max|w|, with the exponent ceil(log2 max|w|) - 7; no bias.  Of weights that are
        given the nearest codes with that exponent."""
        w = node.params.pop("w")
        shape = w.shape
        del node.params["b"]
        node.taken.discard("b")
        if "w" in node.taken and w.any():
            self._set_exponent(node, float(np.abs(w).max()))
            codes = np.rint(np.ldexp(w.astype(np.float64), -int(node.state["exponent"][0])))
            node.params["w"] = np.clip(codes, -LARGEST_CODE, LARGEST_CODE).astype(np.int8)
            return
        if not core.makes():
            node.params["w"], node.state["exponent"] = np.zeros(shape, np.int8), np.zeros(1, np.int32)
            return
        taps = math.prod(shape[1:-1]) if len(shape) > 2 else 1
        limit = math.sqrt(6 / (taps * (shape[0] + shape[-1])))
        words = core.philox(math.prod(shape), seed, 0, node.tensor(WEIGHT)).astype(np.float64)
        uniform = (2 * words + 1) / 2**32 - 1
        largest = float(np.abs(uniform).max())
        node.params["w"] = np.rint(uniform / largest * LARGEST_CODE).astype(np.int8).reshape(shape)
        self._set_exponent(node, limit * largest)

    def _set_exponent(self, node: Node, largest: float) -> None:
        """Of codes of values up to this magnitude."""
        mantissa, exponent = math.frexp(largest)
        node.state["exponent"] = np.array([exponent - (mantissa == 0.5) - BITS], np.int32)

    def input(self, images: Array, out: Array) -> core.Tensor:
        return scaled(core.images_as_codes(images, 1), -BITS)

    def input_values(self, x: Array, limit: float) -> core.Tensor:
        """Codes with the exponent ceil(log2 limit) - 7; what is larger in magnitude is clipped."""
        mantissa, exponent = math.frexp(limit)
        exponent -= (mantissa == 0.5) + BITS
        return scaled(core.quantize(x, math.ldexp(1.0, -exponent)), exponent)

    def forward(self, node: Node, x: core.Tensor, context: Context) -> core.Tensor:
        shape = (x.shape[0], *node.out_shape)
        acc = node.buffer(shape, np.int32)
        node.layer.product(node, x.shape[0]).forward(x.q, node.params["w"], out=acc)
        node.saved["x"] = x
        return rounded(acc, self._exponent(node, x), node.buffer(shape, np.int8))

    def _exponent(self, node: Node, x: core.Tensor) -> core.Whole:
        """Of products with the weights."""
        return core.add_exponents(exponent_of(x), int(node.state["exponent"][0]))

    def error(self, node: Node, dy: core.Tensor, context: Context) -> core.Tensor:
        return dy

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        """PstoShift to mu bits; the exponent is not used: weights are moved by codes."""
        shape = node.params["w"].shape
        acc = int8.direction(node, node.saved["x"].q, error.q)
        out = node.buffer(shape, np.int8)
        node.grads["w"], _ = core.narrow(acc, self.phase(context), Rounding.PSEUDO_STOCHASTIC, out=out)

    def phase(self, context: Context) -> int:
        """The bits of the weight gradient's codes."""
        done, steps = context.number - 1, context.steps
        drops = (2 * done >= steps) + (4 * done >= 3 * steps) if steps and self.schedule == "paper" else 0
        return max(1, self.mu - drops)

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> core.Tensor:
        shape = (error.shape[0], *node.in_shape)
        acc = node.buffer(shape, np.int32)
        node.layer.product(node, error.shape[0]).input_grad(error.q, node.params["w"], out=acc)
        return rounded(acc, self._exponent(node, error), node.buffer(shape, np.int8))

    def loss(
        self, logits: core.Tensor, labels: Array, *, smoothing: float = 0.0, gradient: bool = True,
        random: core.Stream = (0, 0, 0),
    ) -> tuple[core.Number, core.Tensor | None, core.Whole]:
        """The gradient in integers, 2^11 (p - t), then 4 bits less, rounded stochastically (StoShift); the loss and the count
        are for the record only, from the logits' real values.

        Logits far from 0 (exponent > -7) take powers of two of x log2(e), the largest's being 2^10; near 0, exp(x) is
        1 + x + x^2 / 2, times 2^(1 - 2 exponent).
        """
        dlogits = scaled(core.softmax_codes_gradient(logits.q, exponent_of(logits), labels, random), 0) if gradient else None
        real = core.dequantize(logits.q, core.power_of_two(exponent_of(logits)))
        value, _, correct = core.softmax_cross_entropy(real, labels, gradient=False)
        return value, dlogits, correct

    def accumulate_grad(self, node: Node, a: core.Tensor, b: core.Tensor) -> core.Tensor:
        return aligned_sum(node, a, b)

    def update(self, node: Node, key: str, lr: float, rule: Callable[[float], None], context: Context) -> None:
        core.subtract_codes(node.params[key], node.grads[key], LARGEST_CODE)
