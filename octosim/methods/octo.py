"""Octo: INT8 forward and backward with loss-aware compensation (LAC) and parameterized range clipping (PRC).

Zhou et al., "Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for Tiny On-device Learning",
USENIX ATC 2021.  The paper's own equations for LAC and PRC are not known here; these follow the authors' released demo
(kimihe/Octo), in true integers.

Differs from the released demo in: all operands are int8 codes in +-127 (the demo's are 9-bit); zero points are integers and
corrected exactly unless zero_point="dropped" (the demo drops them); fully connected layers are quantized too; one
compensation for all samples unless lac="sample" (the demo has one a sample); the gradient passes use the codes of the forward
pass unless prc_of="all" (the demo clips and quantizes the saved float tensors again); inference uses running activation ranges.
`octo_reference` is the demo as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, BatchedProduct, Circumstances, Context, Method, Node, Seen
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError
from octosim.methods import caveats, int8
from octosim.numerics import Rounding

MU, OFFSET, ERROR = range(3)  # roles in the Philox streams
COMPENSATION = ("lac_alpha", "lac_mu", "lac_offset")


def percentile(x: Array, percent: float) -> float:
    """The least magnitude that `percent` per cent of x's nonzero values do not exceed (nearest rank); 0 where all are 0.

    An order statistic is one of the values: no rounding, and no order of additions.  Zeros have no say: behind max pooling
    and ReLU most of dY is 0, and its 95th percentile can be too.  Codes of 7 bits, which are in the values' order, find the
    few that have to be sorted.
    """
    sizes = np.abs(x).ravel()
    count = np.count_nonzero(sizes)
    if not count:
        return 0.0
    rank = count - max(1, math.ceil(count * percent / 100)) + 1  # from the largest
    codes = core.quantize(sizes, quantizers.reciprocal(float(core.value_range(sizes).high) / LARGEST_CODE))
    low, high = 0, LARGEST_CODE  # the largest code that `rank` codes reach
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.count_nonzero(codes >= middle) >= rank else (low, middle - 1)
    return float(np.sort(sizes[codes == low])[np.count_nonzero(codes > low) - rank])


# ---- a compensation a sample, of this method and of octo_reference: alpha a feature, mu and offset (samples, feature) -------


def refuse_samples(batch: int, samples: int) -> None:
    """OctosimError where a batch has more samples than there are compensations."""
    if batch > samples:
        raise OctosimError(f"lac=sample has numbers for {samples} samples: --set lac_samples={batch} for a batch of {batch}")


def places(node: Node) -> int:
    """How many places of the batch training has used so far; all before it began."""
    return int(node.state["lac_places"][0]) or len(node.params["lac_mu"])


def sample_compensation(node: Node, batch: int) -> tuple[Array, Array, Array]:
    """alpha, mu and offset for each sample of a training batch, all of shape (batch, feature)."""
    alpha, mu, offset = (node.params[name] for name in COMPENSATION)
    refuse_samples(batch, len(mu))
    use_places(node, batch)
    every = core.assign(node.buffer((batch, *alpha.shape), np.float32), alpha)
    return every, mu[:batch], offset[:batch]


def use_places(node: Node, batch: int) -> None:
    """Training uses so many places of the batch."""
    core.raise_to(node.state["lac_places"], batch)


def sample_gradients(node: Node, dy: Array, lac: tuple[Array, Array, Array], decay: float) -> dict[str, Array]:
    """Gradients of `sample_compensation`'s parameters for float32 dY; samples that the batch lacks have the decay's alone."""
    batch, params = len(dy), node.params
    every = [node.buffer(params[name].shape, np.float32) for name in COMPENSATION[1:]]
    d_alpha, *_ = core.lac_backward(dy, lac, decay, out=(None, every[0][:batch], every[1][:batch]))
    for name, out in zip(COMPENSATION[1:], every, strict=True):
        if batch < len(out):
            core.scale(params[name][batch:], decay, out=out[batch:])
    sums = core.column_sums(d_alpha, d_alpha[0].size).reshape(d_alpha.shape[1:])
    return dict(zip(COMPENSATION, (sums, *every), strict=True))


def switched_off(method: Any) -> list[str]:
    """Of compensation and clipping, what the parameters of a method with both leave out."""
    whole = {"ratio": ("prc_ratio", 1), "percentile": ("prc_percentile", 100)}
    sentences = ["lac=off: no loss-aware compensation"] if method.lac == "off" else []
    name, value = whole.get(method.prc, ("prc", "off"))
    return sentences + ([f"{name}={value}: no range clipping"] if getattr(method, name) == value else [])


@dataclass(frozen=True)
class Octo(Method):
    """Parameters of the method.

    lac:        compensation out = y + alpha mu + offset, one value a channel or a feature (channel, row, column), or with
                "sample" (demo) a mu and an offset a feature of each place in the batch; or "off".  "channel" in front of batch
                normalization is subtracted again: there the method is INT8 + PRC.
    lac_samples: places in the batch that lac=sample has numbers for, at least the batch size.  A smaller last batch takes the
                first; inference takes the mean of those that training has used.
    lac_decay:  L2 factor on mu and offset (demo: 0.1).
    prc:        clipping of dY before it is quantized: "ratio" to prc_ratio times its extremes (demo: 0.95), "gauss" to
                mean +- prc_z deviations (demo's comment: 1.96, 2.576), "percentile" to the magnitude that prc_percentile
                per cent of its nonzero values do not exceed, or "off".
    prc_of:     what is clipped: "dy"; or "all" (demo), in the gradient passes X and W too, which then take symmetric codes of
                their own instead of the forward pass's.
    prc_ratio, prc_z, prc_percentile: what "ratio", "gauss" and "percentile" clip to.
    zero_point: "exact" subtracts the activations' zero point's part of the sums; "dropped" leaves it to LAC to learn.
    rounding:   of dY: "half-even" (demo), "stochastic", or another of `numerics.Rounding` for reals.  Weights and activations
                always round half to even.
    keep:       of batch normalization's input for its backward pass: "int8" codes of the normalized values in steps of 1/16
                deviation, within +-127 of them, or the "float32" values.
    """

    lac: Literal["off", "channel", "feature", "sample"] = "channel"
    lac_samples: int = 100
    lac_decay: float = 0.1
    prc: Literal["off", "ratio", "gauss", "percentile"] = "ratio"
    prc_of: Literal["dy", "all"] = "dy"
    prc_ratio: float = 0.95
    prc_z: float = 2.576
    prc_percentile: float = 99.9
    zero_point: Literal["exact", "dropped"] = "exact"
    rounding: Literal["half-even", "half-away", "half-up", "floor", "toward-zero", "stochastic"] = "half-even"
    keep: Literal["int8", "float32"] = "int8"

    name: ClassVar[str] = "octo"
    summary: ClassVar[str] = "INT8 forward and backward with range clipping (INT8 + PRC); lac=feature adds compensation"
    paper: ClassVar[str] = "Zhou et al., USENIX ATC 2021"
    bits: ClassVar[Mapping[str, str]] = int8.BITS
    multiplies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.prc_ratio <= 1:
            raise OctosimError(f"octo: prc_ratio must be in (0, 1], not {self.prc_ratio}")
        if not self.prc_z > 0:
            raise OctosimError(f"octo: prc_z must be positive, not {self.prc_z}")
        if not 0 < self.prc_percentile <= 100:
            raise OctosimError(f"octo: prc_percentile must be in (0, 100], not {self.prc_percentile}")
        if not self.lac_decay >= 0:
            raise OctosimError(f"octo: lac_decay must not be negative, not {self.lac_decay}")
        if not self.lac_samples >= 1:
            raise OctosimError(f"octo: lac_samples must be at least 1, not {self.lac_samples}")

    @property
    def saves_int8(self) -> bool:  # type: ignore[override]
        return self.keep == "int8"

    @property
    def by_channel(self) -> bool:  # type: ignore[override]
        return self.lac in ("off", "channel")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, long=True)
        if self.lac == "sample":
            refuse_samples(batch, self.lac_samples)

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)
        if self.lac == "off":
            return
        shape = node.out_shape[-1:] if self.lac == "channel" else node.out_shape
        node.params["lac_alpha"] = np.ones(shape, np.float32)
        if self.lac == "sample":
            shape = self.lac_samples, *shape
            node.state["lac_places"] = np.zeros(1, np.int32)
        node.params["lac_mu"] = core.normal(shape, seed, node.tensor(MU), 1e-3)
        node.params["lac_offset"] = core.normal(shape, seed, node.tensor(OFFSET), 1e-3)
        if self.lac == "channel" and node.normalized:
            node.zero_grad_params |= set(COMPENSATION)

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        weighted = [node for node in nodes if node.layer.weighted]
        inert = [node.name for node in weighted if node.zero_grad_params.issuperset(COMPENSATION)]
        sentences = []
        if inert:
            where = caveats.layers_text(inert, len(weighted))
            what = "batch normalization subtracts it; INT8 + PRC there (lac=feature acts)"
            sentences.append(f"lac=channel is inert {where}: {what}")
        return sentences + switched_off(self)

    def _compensation(self, node: Node, batch: int, context: Context) -> tuple[Array, Array, Array] | None:
        """alpha, mu and offset of one shape, which repeats along the batch."""
        if self.lac == "off":
            return None
        if self.lac == "sample" and context.training:
            return sample_compensation(node, batch)
        alpha, mu, offset = (node.params[name] for name in COMPENSATION)
        if self.lac == "sample":
            used = places(node)
            sums = (core.column_sums(v[:used], alpha.size).reshape(alpha.shape) for v in (mu, offset))
            mu, offset = (v / np.float32(used) for v in sums)
        return alpha, mu, offset

    def _correction(self, sums: Array, x: core.Tensor) -> Array:
        """What the zero point of x adds to a product, from the sums of the other operand's codes."""
        return core.zero_point_correction(sums, x.z if self.zero_point == "exact" else 0)

    def forward(self, node: Node, x: Array, context: Context) -> core.LazyDequant:
        batch = x.shape[0]
        codes = node.buffer(x.shape, np.int8)
        x_range = int8.running_range(node, x, context)
        qx = quantizers.asymmetric(x, x_range.low, x_range.high, out=codes)
        qw = int8.weights(node)
        node.saved.update(x=qx, w=qw)
        acc = node.buffer((batch, *node.out_shape), np.int32)
        node.layer.product(node, batch).forward(qx.q, qw.q, x_zero=qx.z, out=acc)
        # sum (q_x - Z) q_w = sum q_x q_w - Z sum q_w; padding holds Z, so every output has the same second term
        zero_point_correction = self._correction(core.row_sums(qw.q), qx)
        scale = core.combined_scale(qx.s, qw.s)
        lac = self._compensation(node, batch, context)
        if self.prc_of == "all" and self.prc != "off" and context.training:
            w = self._clipped(node, node.params["w"], node.range_of("w"))
            node.saved.update(x=self._clipped(node, x, x_range), w=w)
        rest = np.empty((lac[0].size if lac else zero_point_correction.size) + 1, np.float32)
        add = core.fold_bias(node.params["b"], zero_point_correction, scale, lac, rest=rest)
        return core.LazyDequant(acc, add, scale, rest=rest)

    def error(self, node: Node, dy: Array, context: Context) -> core.Tensor:
        dy_range, random = node.dy_range or core.value_range(dy), context.random(node.tensor(ERROR))
        return self._clipped(node, dy, dy_range, Rounding(self.rounding), random)

    def _clipped(
        self, node: Node, t: Array, limits: core.Range, rounding: Rounding = Rounding.HALF_EVEN,
        random: core.Stream | None = None,
    ) -> core.Tensor:  # fmt: skip
        """Symmetric codes of a tensor with this range after PRC."""
        out = node.buffer(t.shape, np.int8)
        if self.prc in ("gauss", "percentile"):
            _, codes = core.new_codes()
            core.python("limits of dY", partial(self._limit, limits, codes), [t])
        else:
            codes = core.symmetric_codes(limits.low, limits.high, self.prc_ratio if self.prc == "ratio" else 1.0)
        return quantizers.of_codes(t, codes, rounding=rounding, random=random, out=out)

    def _limit(self, limits: core.Range, codes: core.Codes, t: Array) -> None:
        """Codes of a tensor clipped where its deviation or a percentile says, within the range found."""
        if self.prc == "gauss":
            mean, deviation = core.moments(t)
            ends = mean - self.prc_z * deviation, mean + self.prc_z * deviation
        else:
            limit = percentile(t, self.prc_percentile)
            ends = -limit, limit
        low, high = limits
        core.symmetric_codes(max(low, ends[0]), min(high, ends[1]), out=codes)

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        sums = core.column_sums(error.q)
        if node.trains("w"):
            zero = node.saved["x"].z if self.zero_point == "exact" else 0
            node.grads["w"] = int8.weight_values(node, error, sums, zero)
        each = node.grads["b"] = int8.real(sums, error)
        if not node.trained.intersection(COMPENSATION):
            return
        lac = self._compensation(node, len(error.q), context)
        if lac and self.lac == "sample":
            each = core.dequantize(error.q, error.s)
            node.grads.update(sample_gradients(node, each, lac, self.lac_decay))
        elif lac and node.zero_grad_params.issuperset(COMPENSATION):  # batch normalization subtracts it, as it does the bias
            node.grads.update((name, np.zeros_like(value)) for name, value in zip(COMPENSATION, lac, strict=True))
        elif lac:
            if each.size != lac[0].size:
                each = int8.real(core.column_sums(error.q, lac[0].size), error)
            made = core.lac_backward(each.reshape(lac[0].shape), lac, self.lac_decay)
            node.grads.update(zip(COMPENSATION, made, strict=True))

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> core.LazyDequant:
        qw, batch = node.saved["w"], error.q.shape[0]
        acc = node.buffer((batch, *node.in_shape), np.int32)
        node.layer.product(node, batch).input_grad(error.q, qw.q, out=acc)
        return core.LazyDequant(acc, np.zeros(node.in_shape[-1], np.int32), core.combined_scale(qw.s, error.s))

    def init_products(self, node: Node, names: tuple[str, ...]) -> None:
        int8.init_products(node, names)

    def multiply(
        self, node: Node, name: str, product: BatchedProduct, a: Array, b: Array, context: Context
    ) -> Array:
        return int8.multiply(node, name, product, a, b, context)

    def multiply_grads(
        self, node: Node, name: str, product: BatchedProduct, dc: Array, context: Context
    ) -> tuple[Array, Array]:
        return int8.multiply_grads(node, name, product, self.error(node, dc, context))
