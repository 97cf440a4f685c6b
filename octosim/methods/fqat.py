"""FQAT: INT8 forward and backward with Clipping Batch Normalization, which fixes the activations' range in advance.

Luo, "Int8-based fully quantization-aware training", MSc thesis, The Hong Kong Polytechnic University, 2021.  Only its
abstract is known here (algorithm card 4): INT8 weights, activations and gradients, uniform linear codes, batch normalization
and range clipping in one function. What that function is, is our reconstruction, in three variants; x_hat is the normalized
sum of a channel, z a number of deviations:

    a   y = clip(gamma x_hat + beta, beta - z |gamma|, beta + z |gamma|)      S = (z max|gamma| + max|beta|) / 127
    b   q = clip(round(x_hat / (z / 127)), +-127), y = gamma q z / 127 + beta                           S as in a
    c   y = clip(gamma x_hat + beta, -c, c), c trained                                                  S = c / 127

y becomes codes q_y = round(y / S): no range of an activation is taken.  In inference this is one requantization of the int32
sums with a multiplier and an addend a channel (two in b: to q, and from q to q_y).

Differs from the paper in: unknown.  Ours beside the variants: the gradient passes where nothing is clipped, and the
clip's own gradient reaches c alone; a layer behind another without a normalization between them (the last fully connected ones)
takes a running range, as in `octo`; a sum of two tensors has the sum of their ranges; dY has its own extremes as range; weights
are symmetric per tensor; the update is float32; in inference too, a normalization behind anything but a weighted layer is
float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.engine.quantizers import LARGEST_CODE, QTensor
from octosim.errors import OctosimError
from octosim.methods import float32, int8
from octosim.numerics import Requantization, Rounding

ERROR = 0  # role in the Philox streams
F = np.float32
LEAST_CLIP = 2.0**-10  # c of variant c does not fall below
LARGEST_ADD = 2**30  # of an addend to the int32 sums, which stay below 2^30 themselves: `Fqat.check`
DEEPEST = LARGEST_ADD // LARGEST_CODE**2  # products in such a sum: 66,572
FRACTION = 16  # bits of the addend below a code, in b's second requantization
CONSTANT = 2.0**-16  # the scale of a channel that its sums do not move


class Ranged(np.ndarray):
    """float32 values between layers that know more of themselves.

    bound: no magnitude is larger; None: not known in advance.  sums: in inference, of a weighted layer in front of a
    normalization: the int32 sums that the values are, and their scale.
    """

    bound: float | None = None
    sums: tuple[Array, float] | None = None


def ranged(x: Array, bound: float | None, sums: tuple[Array, float] | None = None) -> Array:
    """x, knowing its bound; no copy."""
    made = x.view(Ranged)
    made.bound, made.sums = bound, sums
    return made


def bound_of(x: Array) -> float | None:
    return getattr(x, "bound", None)


# ---- clipping batch normalization --------------------------------------------------


def affine_codes(acc: Array, scale: Array, shift: Array) -> Array:
    """int8 codes clip(round(scale acc + shift), +-127) of int32 sums in |acc| < 2^30, in integers.

    scale, shift: float64, one for each channel.  A multiplier and a right shift stand for |scale|; shift becomes an addend in
    units of the sums, so that there is one rounding, half up.  A channel's sign changes its sums, as it would its weights.
    A channel becomes the constant round(shift) where shift is 2^30 units of its sums or more, as where gamma is 0.
    """
    moves = (np.abs(scale) > 2.0**-31) & (np.abs(shift) < np.abs(scale) * LARGEST_ADD)
    sign = np.where(moves, np.sign(scale), 0).astype(np.int32)
    step = np.where(moves, np.minimum(np.abs(scale), 2.0**30), CONSTANT)
    limit = np.clip(np.where(moves, shift, np.clip(shift, -LARGEST_CODE, LARGEST_CODE)) / step, -LARGEST_ADD, LARGEST_ADD)
    how, add = Requantization.SINGLE_ROUNDING, np.rint(limit).astype(np.int32)
    return quantizers.requantize(acc * sign, step, how, add=add, low=-LARGEST_CODE, high=LARGEST_CODE)


class ClippingBatchNorm:
    """Batch normalization, a clip and codes as one function; float32 in training, integers in inference."""

    def init(self, node: Node, method: Fqat, seed: int | None) -> None:
        node.layer.init(node, method, seed)
        if method.variant == "c":
            node.params["clip"] = np.array([method.z], F)

    def _limits(self, node: Node, method: Fqat) -> tuple[Array, Array, float]:
        """The clip's ends for each channel, and the bound of the codes."""
        gamma, beta = np.abs(node.params["gamma"]), node.params["beta"]
        if method.variant == "c":
            end = np.maximum(node.params["clip"], F(LEAST_CLIP))
            return -end, end, float(end[0])
        reach = F(method.z) * gamma
        return beta - reach, beta + reach, float(F(method.z) * gamma.max() + np.abs(beta).max())

    def _finish(self, node: Node, q: Array, low: Array, high: Array, bound: float) -> Array:
        """The values of codes that are clipped at the channels' ends."""
        step = float(F(bound / LARGEST_CODE))
        ends = [np.rint(end * F(quantizers.reciprocal(step))).astype(np.int8) for end in (low, high)]
        np.clip(q, *ends, out=q)
        return ranged(core.dequantize(q, step, out=node.buffer(q.shape, F)), step * LARGEST_CODE)

    def forward(self, node: Node, x: Array, method: Fqat, context: Context) -> Array:
        low, high, bound = self._limits(node, method)
        p, s, eps, plain = node.params, node.state, node.layer.eps, np.asarray(x)
        if not context.training and isinstance(x, Ranged) and x.sums is not None:
            return self._finish(node, self._folded(node, *x.sums, method, bound), low, high, bound)
        columns, out = (p["gamma"], p["beta"], s["mean"], s["var"]), node.buffer(x.shape, F)
        if context.training:
            y, mean, inv_std, _ = core.batchnorm_forward(plain, *columns, eps=eps, momentum=node.layer.momentum, out=out)
            node.saved.update(x=plain, mean=mean, inv_std=inv_std, signs=None, inside=(y >= low) & (y <= high))
            if method.variant == "c":
                node.saved["side"] = (y > high).view(np.int8) - (y < low).view(np.int8)
        else:
            y = core.batchnorm_inference(plain, *columns, eps=eps, out=out)
            mean, inv_std = s["mean"], F(1) / np.sqrt(s["var"] + F(eps))
        if method.variant == "b":
            step = F(method.z / LARGEST_CODE)
            normal = core.quantize(core.affine(plain, inv_std, -mean * inv_std, out=out), float(F(1) / step))
            y = core.affine(core.dequantize(normal, float(step), out=out), p["gamma"], p["beta"], out=out)
        inverse = quantizers.reciprocal(float(F(bound / LARGEST_CODE)))
        return self._finish(node, core.quantize(y, inverse), low, high, bound)

    def _folded(self, node: Node, sums: Array, scale: float, method: Fqat, bound: float) -> Array:
        """The codes of inference from the sums of the layer in front, in integers; with running statistics."""
        gamma, beta, mean, var = (
            held[key].astype(np.float64)
            for held, key in ((node.params, "gamma"), (node.params, "beta"), (node.state, "mean"), (node.state, "var"))
        )
        inv_std = 1 / np.sqrt(var + node.layer.eps)
        over = LARGEST_CODE / bound if bound else 0.0
        if method.variant == "b":
            step = method.z / LARGEST_CODE
            codes = affine_codes(sums, scale * inv_std / step, -mean * inv_std / step).astype(np.int32)
            # shifted left, as the addend would be rounded to whole codes
            return affine_codes(codes << FRACTION, gamma * step * over / 2**FRACTION, beta * over)
        return affine_codes(sums, scale * gamma * inv_std * over, (beta - gamma * mean * inv_std) * over)

    def weight_grad(self, node: Node, dy: Array, method: Fqat, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Fqat, context: Context) -> Array:
        if method.variant == "c":
            node.grads["clip"] = np.array([float32.total(dy * node.saved["side"])], F)
        dy *= node.saved["inside"]
        dx: Array = node.layer.input_grad(node, dy, method, context)
        return dx


class _Through:
    """A layer whose output's bound follows from its inputs'; the layer's own passes otherwise."""

    def init(self, node: Node, method: Fqat, seed: int | None) -> None:
        node.layer.init(node, method, seed)

    def forward(self, node: Node, x: Any, method: Fqat, context: Context) -> Array:
        given = x if isinstance(x, tuple) else (x,)
        bounds, plain = [bound_of(each) for each in given], tuple(np.asarray(each) for each in given)
        y = node.layer.forward(node, plain if isinstance(x, tuple) else plain[0], method, context)
        known = [bound for bound in bounds if bound is not None]
        if len(known) < len(bounds):
            return ranged(y, None)
        return ranged(y, sum(known) / (1 - getattr(node.layer, "rate", 0.0) if context.training else 1.0))

    def weight_grad(self, node: Node, dy: Array, method: Fqat, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Fqat, context: Context) -> Any:
        return node.layer.input_grad(node, dy, method, context)


# ---- the method --------------------------------------------------


@dataclass(frozen=True)
class Fqat(Method):
    """Parameters of the method.

    variant:  of Clipping Batch Normalization: "a" clips at z deviations of the output, "b" of the normalized sums, "c" at a
              trained bound.
    z:        deviations at which a and b clip (ours, as Octo's demo mentions it: 2.576; or 1.96); where c begins.
    rounding: of dY.
    """

    variant: Literal["a", "b", "c"] = "a"
    z: float = 2.576
    rounding: Literal["half-even", "stochastic"] = "half-even"

    name: ClassVar[str] = "fqat"
    summary: ClassVar[str] = "INT8 forward and backward, Clipping Batch Normalization, no range of an activation taken"
    paper: ClassVar[str] = "Luo, MSc thesis, PolyU 2021"
    bits: ClassVar[Mapping[str, str]] = int8.BITS | {"normalization": "float32; int32 in inference"}
    covers: ClassVar[tuple[str, ...]] = ("conv", "dw", "fc", "flatten", "bn", "relu", "pool", "dropout", "avgpool", "add")
    layers: ClassVar[Mapping[str, Any]] = dict.fromkeys(
        ("relu", "pool", "flatten", "dropout", "avgpool", "add"), _Through()
    ) | {"bn": ClippingBatchNorm()}

    def __post_init__(self) -> None:
        if not 0.1 <= self.z <= 100:
            raise OctosimError(f"fqat: z must be in 0.1 .. 100, not {self.z}")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch)
        depth = node.layer.product(node, batch).depths[0]
        if node.normalized and depth > DEEPEST:
            raise OctosimError(
                f"layer {node.name}, forward: a sum of {depth} int8 products, with what its normalization adds, could overflow "
                f"the 32-bit accumulator (safe up to {DEEPEST})"
            )

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, F)

    def input(self, images: Array, out: Array) -> Array:
        return ranged(super().input(images, out), 1.0)

    def forward(self, node: Node, x: Array, context: Context) -> core.Values:
        bound, x = bound_of(x), np.asarray(x)
        low, high = int8.running_range(node, x, context) if bound is None else (-bound, bound)
        qx, qw = int8.symmetric(node, x, low, high), int8.weights(node)
        sums = int8.forward(node, qx, qw)
        if context.training or not node.normalized:
            return sums
        if sums.rest is not None and sums.rest[-1]:
            return ranged(sums.array(), None)
        total = sums.acc + sums.add
        return ranged(sums.array(), None, (total, float(sums.scale)))

    def error(self, node: Node, dy: Array, context: Context) -> QTensor:
        out, random = node.buffer(dy.shape, np.int8), context.random(node.tensor(ERROR))
        return quantizers.symmetric(dy, *core.value_range(dy), rounding=Rounding(self.rounding), random=random, out=out)

    def weight_grad(self, node: Node, error: QTensor, context: Context) -> None:
        int8.weight_grad(node, error)

    def input_grad(self, node: Node, error: QTensor, context: Context) -> core.Sums:
        return int8.input_grad(node, error)
