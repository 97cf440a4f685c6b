"""WAGE: weights in 2 bits, activations, gradients and errors in 8, powers of two as scales.

Wu, Li, Chen and Shi, "Training and Inference with Integers in Deep Neural Networks", ICLR 2018.  Equations: the authors' code
(boluoweifenda/WAGE) as the algorithm card 5.3 gives them.

Weights are int8 codes k, w = k / 128 in +-0.5; every product is on int8 codes.  Between the layers stand float32 values.

Differs from the paper in: activations are quantized where a layer takes them and errors where it gets them, so pooling and ReLU
lie between the two; the learning rate falls to 1/8 at 2/3 of the run and to 1/64 at 5/6, instead of after epochs 200 and 250 of
300; the record's loss is the mean over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.engine.quantizers import QTensor
from octosim.errors import OctosimError
from octosim.methods import int8

UNIT = 2.0**-7  # sigma(8): the step of 8-bit values
LARGEST_WEIGHT = 64  # 0.5, the clip of 2-bit weights, as a code
WEIGHT, UPDATE = range(2)  # roles in the Philox streams


def shift(largest: float) -> float:
    """2^round(log2 largest); a mantissa of at least sqrt(1/2) is nearer to the power above."""
    mantissa, exponent = math.frexp(largest)
    return math.ldexp(1.0, exponent if mantissa >= math.sqrt(0.5) else exponent - 1)


def ternary(k: Array) -> Array:
    """2-bit weights in halves, Q(C(w, 2)): ties, at a quarter, go to 0."""
    return (k > 32).astype(np.int8) - (k < -32)


def steps(g: Array, lr: float, random: core.Stream) -> Array:
    """The update in codes, of int32 sums g: round(lr g / Shift(max|g|), 16 bits), stochastically rounded to integers."""
    low, high = core.sum_range(g)
    largest = max(-low, high)
    if not largest:
        return np.zeros(g.shape, np.int32)
    fixed = np.rint(np.abs(g).astype(np.float64) * (lr / shift(largest) * 2**15)).astype(np.int64)
    chance = (core.philox(g.size, *random) >> np.uint32(17)).reshape(g.shape)
    n = (fixed >> 15) + (chance < (fixed & 32767))
    return (np.sign(g) * n).astype(np.int32)


@dataclass(frozen=True)
class Wage(Method):
    """Parameters of the method.

    rate: learning rate at first, in codes: the largest gradient moves its weight by about so many steps of 1/128 (paper: 8).
    """

    rate: float = 8.0

    name: ClassVar[str] = "wage"
    summary: ClassVar[str] = "2-bit weights, 8-bit activations, gradients and errors, no normalization"
    paper: ClassVar[str] = "Wu et al., ICLR 2018"
    bits: ClassVar[dict[str, str]] = {
        "weights": "2 bits",
        "activations": "int8",
        "gradients": "int32 sums",
        "errors": "int8",
        "update": "int8",
        "accumulator": "int32",
        "normalization": "none",
    }
    batchnorm: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = (
        "optimizer", "lr", "weight_decay", "schedule", "milestones", "gamma", "warmup", "label_smoothing",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 128:
            raise OctosimError(f"wage: rate must be above 0, at most 128, not {self.rate}")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch)

    def init(self, node: Node, seed: int) -> None:
        """Uniform weights rounded to -0.5, 0 and 0.5, and the layer's scale; no bias."""
        w = node.params.pop("w")
        del node.params["b"]
        limit = math.sqrt(3 / math.prod(w.shape[1:]))
        bound = max(limit, 0.75)
        uniform = (2 * core.philox(w.size, seed, 0, node.tensor(WEIGHT)).astype(np.float64) + 1) / 2**32 - 1
        node.params["w"] = (np.clip(np.rint(2 * bound * uniform), -1, 1) * LARGEST_WEIGHT).astype(np.int8).reshape(w.shape)
        node.state["scale"] = np.array([max(shift(0.75 / limit), 1.0)], np.float32)

    def input(self, images: Array, out: Array) -> Array:
        """Pixels in [-1, 1]."""
        return core.images(images, 2 / 255, -1.0, out=out)

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        core.value_range(x)  # refuses a NaN
        codes = core.quantize(x, 1 / UNIT, out=node.buffer(x.shape, np.int8))
        if context.training:
            inside = np.abs(x) <= np.float32(1 - UNIT)
            node.saved.update(x=QTensor(codes, UNIT, 0), inside=inside, w=ternary(node.params["w"]))
        acc = node.buffer((len(x), *node.out_shape), np.int32)
        node.layer.product(node, len(x)).forward(codes, ternary(node.params["w"]), out=acc)
        return self._real(node, acc)

    def _real(self, node: Node, acc: Array) -> Array:
        """Sums of products of 8-bit codes and 2-bit weights in float32, in the sums' memory."""
        scale = UNIT * 0.5 / float(node.state["scale"][0])
        return core.dequantize_sums(acc, np.zeros(acc.shape[-1], np.int32), scale, out=acc.view(np.float32))

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        """Codes of dY / Shift(max|dY|): its direction only."""
        low, high = core.value_range(dy)
        largest = max(-low, high)
        inverse = 1 / (UNIT * shift(largest)) if largest > 1e-30 else 0.0
        return core.quantize(dy, inverse, out=node.buffer(dy.shape, np.int8))

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        out = node.buffer(node.params["w"].shape, np.int32)
        node.grads["w"] = node.layer.product(node, len(error)).weight_grad(node.saved["x"].q, error, out=out)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        """dX where x was not clipped."""
        acc = node.buffer((len(error), *node.in_shape), np.int32)
        node.layer.product(node, len(error)).input_grad(error, node.saved["w"], out=acc)
        dx = self._real(node, acc)
        return np.multiply(dx, node.saved["inside"], out=dx)

    def loss(self, logits: Array, labels: Array, *, smoothing: float = 0.0, gradient: bool = True) -> tuple[float, Any, int]:
        """Half the sum of squared differences to one-hot targets, its mean over images; the gradient is not divided."""
        core.value_range(logits)
        difference = logits.copy()
        difference[np.arange(len(labels)), labels] -= np.float32(1)
        squares = (difference.astype(np.float64) ** 2).ravel().tolist()
        correct = int((logits.argmax(1) == labels).sum())
        # fsum is exact, so it does not depend on an order
        return 0.5 * math.fsum(squares) / len(labels), difference if gradient else None, correct

    def update(self, node: Node, key: str, lr: float, rule: Callable[[float], None], context: Context) -> None:
        k = node.params[key]
        change = steps(node.grads[key], self._rate(context), context.random(node.tensor(UPDATE)))
        k[...] = np.clip(k - change, -LARGEST_WEIGHT, LARGEST_WEIGHT)

    def _rate(self, context: Context) -> float:
        done, steps = int(context.step) - 1, context.steps
        drops = (3 * done >= 2 * steps) + (6 * done >= 5 * steps) if steps else 0
        return self.rate * 0.125**drops
