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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Circumstances, Context, Method, Node, Seen
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError
from octosim.methods import caveats, int8
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
    normalization: the int32 sums that the values are, their scale, and what `core.fold_bias` left for float32.
    """

    bound: core.Number | None = None
    sums: tuple[Array, core.Number, Array] | None = None


def ranged(x: Array, bound: core.Number | None, sums: tuple[Array, core.Number, Array] | None = None) -> Array:
    """x, knowing its bound; no copy."""
    made = x.view(Ranged)
    made.bound, made.sums = bound, sums
    return made


def bound_of(x: Array) -> core.Number | None:
    return getattr(x, "bound", None)


def sum_bound(bounds: list[core.Number], share: float) -> core.Number:
    """The bound of a sum of values with these bounds, divided by `share`."""
    if len(bounds) == 1 and share == 1:
        return bounds[0]
    if not any(isinstance(bound, core.Scalar) for bound in bounds):
        return sum(map(float, bounds)) / share
    made = core.number64(0.0)

    def add() -> None:
        made.at[0] = sum(map(float, bounds)) / share

    core.python("add bounds", add, [])
    return made


def both_ends(bound: core.Number) -> tuple[core.Number, core.Number]:
    """-bound, bound."""
    if not isinstance(bound, core.Scalar):
        return -bound, bound
    low = core.number64(0.0)

    def negate() -> None:
        low.at[0] = -float(bound)

    core.python("negate", negate, [])
    return low, bound


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


@dataclass(frozen=True)
class Limits:
    """A clip and its codes.

    ends, codes: the clip's low and high ends for each channel, float32 (2, channels), and their int8 codes.  bound: no
    magnitude behind the clip is larger.  step, inverse: of the codes, and 1 / step; largest: the value of code 127.
    """

    ends: Array
    codes: Array
    bound: core.Scalar
    step: core.Scalar
    inverse: core.Scalar
    largest: core.Scalar


class ClippingBatchNorm:
    """Batch normalization, a clip and codes as one function; float32 in training, integers in inference."""

    def init(self, node: Node, method: Fqat, seed: int | None) -> None:
        node.layer.init(node, method, seed)
        if method.variant == "c":
            node.params["clip"] = np.array([method.z], F)

    def _limits(self, node: Node, method: Fqat) -> Limits:
        channels = node.in_shape[-1]
        limits = Limits(np.empty((2, channels), F), np.empty((2, channels), np.int8), core.number64(0.0), core.scalar(0.0),
                      core.scalar(0.0), core.number64(0.0))  # fmt: skip

        def trained(clip: Array, ends: Array, codes: Array) -> None:
            end = np.maximum(clip, F(LEAST_CLIP))
            finish(-end, end, float(end[0]), ends, codes)

        def deviations(gamma: Array, beta: Array, ends: Array, codes: Array) -> None:
            size = np.abs(gamma)
            reach = F(method.z) * size
            finish(beta - reach, beta + reach, float(F(method.z) * size.max() + np.abs(beta).max()), ends, codes)

        def finish(low: Array, high: Array, bound: float, ends: Array, codes: Array) -> None:
            step = float(F(bound / LARGEST_CODE))
            inverse = quantizers.reciprocal(step)
            for i, end in enumerate((low, high)):
                ends[i] = end
                codes[i] = np.rint(end * F(inverse)).astype(np.int8)
            numbers = limits.bound, limits.step, limits.inverse, limits.largest
            for number, value in zip(numbers, (bound, step, inverse, step * LARGEST_CODE), strict=True):
                number.at[0] = value

        if method.variant == "c":
            core.python("limits", trained, [node.params["clip"]], [limits.ends, limits.codes])
        else:
            core.python("limits", deviations, [node.params["gamma"], node.params["beta"]], [limits.ends, limits.codes])
        return limits

    def forward(self, node: Node, x: Array, method: Fqat, context: Context) -> Array:
        limits, p, s, plain = self._limits(node, method), node.params, node.state, np.asarray(x)
        out = node.buffer(x.shape, F)
        columns = p["gamma"], p["beta"], s["mean"], s["var"]
        if context.training:
            layer, (low, high) = node.layer, limits.ends
            y, mean, inv_std, _ = core.batchnorm_forward(plain, *columns, eps=layer.eps, momentum=layer.momentum, out=out)
            side = node.buffer(x.shape, np.int8) if method.variant == "c" else None
            inside = core.within_columns(y, low, high, side=side, out=node.buffer(x.shape, np.uint8))
            node.saved.update(x=plain, mean=mean, inv_std=inv_std, relu_mask=None, inside=inside, side=side)
            q = self._codes(node, plain, y, mean, inv_std, limits, method)
        elif isinstance(x, Ranged) and x.sums is not None:
            total, scale, rest = x.sums
            q = node.buffer(x.shape, np.int8)

            def infer(total: Array, rest: Array, plain: Array, *given: Array) -> None:
                if rest[-1]:
                    np.copyto(given[-1], self._inferred(node, plain, limits, method))
                else:
                    np.copyto(given[-1], self._folded(node, total, float(scale), method, float(limits.bound)))

            core.python("fold normalization", infer, [total, rest, plain, *columns], [q])
        else:
            q = self._inferred(node, plain, limits, method)
        core.clip_columns(q, *limits.codes)
        return ranged(core.dequantize(q, limits.step, out=out), limits.largest)

    def _codes(
        self, node: Node, x: Array, y: Array, mean: Array, inv_std: Array, limits: Limits, method: Fqat
    ) -> Array:
        """Codes of the normalized x, which is y before any clip; y's memory is used."""
        if method.variant == "b":
            step, shift = F(method.z / LARGEST_CODE), np.empty_like(mean)
            core.python("shift", lambda a, b, c: np.multiply(-a, b, out=c), [mean, inv_std], [shift])
            normal = core.quantize(core.affine(x, inv_std, shift, out=y), float(F(1) / step))
            y = core.affine(core.dequantize(normal, float(step), out=y), node.params["gamma"], node.params["beta"], out=y)
        return core.quantize(y, limits.inverse, out=node.buffer(y.shape, np.int8))

    def _inferred(self, node: Node, x: Array, limits: Limits, method: Fqat) -> Array:
        """Codes of inference in float32, with running statistics."""
        p, mean, var, eps = node.params, node.state["mean"], node.state["var"], node.layer.eps
        y = core.batchnorm_inference(x, p["gamma"], p["beta"], mean, var, eps=eps, out=node.buffer(x.shape, F))
        inv_std = np.empty_like(var)
        core.python("inverse deviation", lambda v, out: np.divide(F(1), np.sqrt(v + F(eps)), out=out), [var], [inv_std])
        return self._codes(node, x, y, mean, inv_std, limits, method)

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
            node.grads["clip"] = core.signed_sum(dy, node.saved["side"])
        core.mask(dy, node.saved["inside"], out=dy)
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
        return ranged(y, sum_bound(known, 1 - getattr(node.layer, "rate", 0.0) if context.training else 1.0))

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

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        return caveats.without_norm(nodes, "Clipping Batch Normalization never acts")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, long=True)
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

    def input_values(self, x: Array, limit: float) -> Array:
        return ranged(x, limit)

    def forward(self, node: Node, x: Array, context: Context) -> core.Values:
        bound, x = bound_of(x), np.asarray(x)
        low: core.Number
        high: core.Number
        if bound is None:
            x_range = int8.running_range(node, x, context)
            low, high = x_range.low, x_range.high
        else:
            low, high = both_ends(bound)
        qx, qw = int8.symmetric(node, x, low, high), int8.weights(node)
        sums = int8.forward(node, qx, qw)
        if context.training or not node.normalized:
            return sums
        total = node.buffer(sums.acc.shape, np.int32)
        core.python("add", lambda a, b, out: np.add(a, b, out=out), [sums.acc, sums.add], [total])
        assert sums.rest is not None
        return ranged(core.materialize_in_place(sums), None, (total, sums.scale, sums.rest))

    def error(self, node: Node, dy: Array, context: Context) -> core.Tensor:
        out, random = node.buffer(dy.shape, np.int8), context.random(node.tensor(ERROR))
        dy_range = core.value_range(dy)
        return quantizers.symmetric(dy, dy_range.low, dy_range.high, rounding=Rounding(self.rounding), random=random, out=out)

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        int8.weight_grad(node, error)

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> core.LazyDequant:
        return int8.input_grad(node, error)
