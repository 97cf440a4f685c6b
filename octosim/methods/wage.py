"""WAGE: weights in 2 bits, activations, gradients and errors in 8, powers of two as scales.

Wu, Li, Chen and Shi, "Training and Inference with Integers in Deep Neural Networks", ICLR 2018.  Equations: the authors' code
(boluoweifenda/WAGE) as the algorithm card 5.3 gives them.

Weights are int8 codes k, w = k / 128 in +-0.5; every product is on int8 codes.  Between the layers stand float32 values.

Differs from the paper in: activations are quantized where a layer takes them and errors where it gets them, so pooling and ReLU
lie between the two; an input gradient has its error's power of two again, without which gradients cannot be added where paths
meet (the authors' networks are chains, where the next error divides by it and no bit changes); the learning rate falls to 1/8
at 2/3 of the run and to 1/64 at 5/6, instead of after epochs 200 and 250 of 300; the record's loss is the mean over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError
from octosim.methods import int8

UNIT = 2.0**-7  # sigma(8): the step of 8-bit values
LARGEST_WEIGHT = 64  # 0.5, the clip of 2-bit weights, as a code
TERNARY = 32  # a quarter
WEIGHT, UPDATE = range(2)  # roles in the Philox streams


def shift(largest: float) -> float:
    """2^round(log2 largest); a mantissa of at least sqrt(1/2) is nearer to the power above."""
    mantissa, exponent = math.frexp(largest)
    return math.ldexp(1.0, exponent if mantissa >= math.sqrt(0.5) else exponent - 1)


@dataclass(frozen=True)
class Wage(Method):
    """Parameters of the method.

    rate:     learning rate at first, in codes: the largest gradient moves its weight by about so many steps of 1/128; paper: 8.
    schedule: "paper": an eighth of it from 2/3 of the run on, 1/64 from 5/6 on; or "constant".
    """

    rate: float = 8.0
    schedule: Literal["paper", "constant"] = "paper"

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
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    unused: ClassVar[tuple[str, ...]] = (
        "optimizer", "lr", "weight_decay", "schedule", "milestones", "gamma", "warmup", "label_smoothing",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 128:
            raise OctosimError(f"wage: rate must be above 0, at most 128, not {self.rate}")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, long=True)

    def init(self, node: Node, seed: int) -> None:
        """Uniform weights rounded to -0.5, 0 and 0.5, and the layer's scale; no bias."""
        w = node.params.pop("w")
        del node.params["b"]
        node.taken.clear()  # float32 weights are none of two bits
        limit = math.sqrt(3 / math.prod(w.shape[1:]))
        bound = max(limit, 0.75)
        node.state["scale"] = np.array([max(shift(0.75 / limit), 1.0)], np.float32)
        if not core.makes():
            node.params["w"] = np.zeros(w.shape, np.int8)
            return
        uniform = (2 * core.philox(w.size, seed, 0, node.tensor(WEIGHT)).astype(np.float64) + 1) / 2**32 - 1
        node.params["w"] = (np.clip(np.rint(2 * bound * uniform), -1, 1) * LARGEST_WEIGHT).astype(np.int8).reshape(w.shape)

    def input(self, images: Array, out: Array) -> Array:
        """Pixels in [-1, 1]."""
        return core.images(images, 2 / 255, -1.0, out=out)

    def input_values(self, x: Array, limit: float) -> Array:
        """Values in [-1, 1]: the largest becomes 1."""
        channels = x.shape[-1]
        return core.affine(x, np.full(channels, 1 / limit, np.float32), np.zeros(channels, np.float32), out=x)

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        core.value_range(x)  # refuses a NaN
        codes = core.quantize(x, 1 / UNIT, out=node.buffer(x.shape, np.int8))
        k = node.params["w"]
        w = core.ternary_codes(k, TERNARY, out=node.buffer(k.shape, np.int8))  # 2 bits, in halves: a tie, at 1/4, goes to 0
        if context.training:
            inside = core.within(x, UNIT - 1, 1 - UNIT, out=node.buffer(x.shape, np.uint8))
            node.saved.update(x=core.Tensor(codes, UNIT, 0), inside=inside, w=w)
        acc = node.buffer((len(x), *node.out_shape), np.int32)
        node.layer.product(node, len(x)).forward(codes, w, out=acc)
        return self._real(node, acc, UNIT)

    def _real(self, node: Node, acc: Array, unit: core.Number) -> Array:
        """Sums of products of 8-bit codes, in steps of `unit`, and 2-bit weights in float32, in the sums' memory."""
        scale = core.combined_scale(unit, 0.5 / float(node.state["scale"][0]))
        return core.dequantize_sums(acc, np.zeros(acc.shape[-1], np.int32), scale, out=acc.view(np.float32))

    def error(self, node: Node, dy: Array, context: Context) -> core.Tensor:
        """Codes of dY / Shift(max|dY|): the weights' gradient has its direction only."""
        inverse, scale = core.direction_scale(core.value_range(dy), UNIT)
        return core.Tensor(core.quantize(dy, inverse, out=node.buffer(dy.shape, np.int8)), scale, 0)

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        node.grads["w"] = int8.direction(node, node.saved["x"].q, error.q)

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> Array:
        """dX where x was not clipped, in dY's unit: Shift(max|dY|) is given back, so that gradients can be added."""
        acc = node.buffer((len(error.q), *node.in_shape), np.int32)
        node.layer.product(node, len(error.q)).input_grad(error.q, node.saved["w"], out=acc)
        dx = self._real(node, acc, error.s)
        return core.mask(dx, node.saved["inside"], out=dx)

    def loss(
        self, logits: Array, labels: Array, *, smoothing: float = 0.0, gradient: bool = True
    ) -> tuple[core.Number, Any, core.Whole]:
        """Half the sum of squared differences to one-hot targets, its mean over images; the gradient is not divided."""
        return core.squared_error(logits, labels, gradient=gradient)

    def phase(self, context: Context) -> float:
        """The learning rate."""
        done, steps = context.number - 1, context.steps
        drops = (3 * done >= 2 * steps) + (6 * done >= 5 * steps) if steps and self.schedule == "paper" else 0
        return self.rate * 0.125**drops

    def update(self, node: Node, key: str, lr: float, rule: Callable[[float], None], context: Context) -> None:
        """Moves codes by round(rate g / Shift(max|g|), 16 bits) of int32 sums g, stochastically rounded to integers."""
        random = context.random(node.tensor(UPDATE))
        core.walk_codes(node.params[key], node.grads[key], self.phase(context), LARGEST_WEIGHT, random)
