"""Octo: INT8 forward and backward with loss-aware compensation (LAC) and parameterized range clipping (PRC).

Zhou et al., "Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for Tiny On-device Learning",
USENIX ATC 2021.  The paper's own equations for LAC and PRC are not known here; these follow the authors' released demo
(kimihe/Octo), in true integers.

Differs from the released demo in: all operands are int8 codes in +-127 (the demo's are 9-bit); zero points are integers and
corrected exactly unless zero_point="dropped" (the demo drops them); fully connected layers are quantized too; one
compensation for all samples (the demo has one a sample); the gradient passes use the codes of the forward pass (the demo
quantizes the saved float tensors again); inference uses running activation ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from octosim import core, quant
from octosim.errors import OctosimError
from octosim.methods import int8, passes
from octosim.nodes import Array, Context, Method, Node
from octosim.numerics import Rounding
from octosim.quant import QTensor
from octosim.trace import Op

MU, OFFSET, ERROR = range(3)  # roles in the Philox streams


@dataclass(frozen=True)
class Octo(Method):
    """Parameters of the method.

    lac:        compensation out = y + alpha mu + offset, one value a channel or a feature (channel, row, column); or "off".
    lac_decay:  L2 factor on mu and offset (demo: 0.1).
    prc:        clipping of dY before it is quantized: "ratio" to prc_ratio times its extremes (demo: 0.95), "gauss" to
                mean +- prc_z deviations (demo's comment: 1.96, 2.576), or "off".
    prc_ratio, prc_z: what "ratio" and "gauss" clip to.
    zero_point: "exact" subtracts the activations' zero point's part of the sums; "dropped" leaves it to LAC to learn.
    rounding:   of dY: "half-even" (demo), "stochastic", or another of `numerics.Rounding` for reals.  Weights and activations
                always round half to even.
    keep:       of batch normalization's input for its backward pass: "int8" codes of the normalized values in steps of 1/16
                deviation, within +-127 of them, or the "float32" values.
    """

    lac: Literal["off", "channel", "feature"] = "channel"
    lac_decay: float = 0.1
    prc: Literal["off", "ratio", "gauss"] = "ratio"
    prc_ratio: float = 0.95
    prc_z: float = 2.576
    zero_point: Literal["exact", "dropped"] = "exact"
    rounding: Literal["half-even", "half-away", "half-up", "floor", "toward-zero", "stochastic"] = "half-even"
    keep: Literal["int8", "float32"] = "int8"

    name: ClassVar[str] = "octo"
    summary: ClassVar[str] = "INT8 forward and backward, loss-aware compensation, range clipping"
    paper: ClassVar[str] = "Zhou et al., USENIX ATC 2021"
    bits: ClassVar[dict[str, str]] = {
        "weights": "int8",
        "activations": "int8",
        "gradients": "float32, of int8 products",
        "errors": "int8",
        "update": "float32",
        "accumulator": "int32",
        "normalization": "float32",
    }

    def __post_init__(self) -> None:
        if not 0 < self.prc_ratio <= 1:
            raise OctosimError(f"octo: prc_ratio must be in (0, 1], not {self.prc_ratio}")
        if not self.prc_z > 0:
            raise OctosimError(f"octo: prc_z must be positive, not {self.prc_z}")
        if not self.lac_decay >= 0:
            raise OctosimError(f"octo: lac_decay must not be negative, not {self.lac_decay}")

    @property
    def compact(self) -> bool:  # type: ignore[override]
        return self.keep == "int8"

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch)

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)
        if self.lac == "off":
            return
        shape = node.out_shape if self.lac == "feature" else node.out_shape[-1:]
        node.params["lac_alpha"] = np.ones(shape, np.float32)
        node.params["lac_mu"] = core.normal(shape, seed, node.tensor(MU), 1e-3)
        node.params["lac_offset"] = core.normal(shape, seed, node.tensor(OFFSET), 1e-3)

    def _compensation(self, node: Node) -> tuple[Array, Array, Array] | None:
        p = node.params
        return None if self.lac == "off" else (p["lac_alpha"], p["lac_mu"], p["lac_offset"])

    def forward(self, node: Node, x: Array, context: Context) -> core.Sums:
        batch, w = x.shape[0], node.params["w"]
        codes = node.buffer(x.shape, np.int8)
        qx = quant.asymmetric(x, *int8.running_range(node, x, context), out=codes)
        qw = quant.symmetric(w, *core.value_range(w), out=node.buffer(w.shape, np.int8))
        node.saved.update(x=qx, w=qw)
        acc = node.buffer((batch, *node.out_shape), np.int32)
        node.layer.product(node, batch).forward(qx.q, qw.q, x_zero=qx.zero, out=acc)
        # sum (q_x - Z) q_w = sum q_x q_w - Z sum q_w; padding holds Z, so every output has the same second term
        correct = self.zero_point == "exact"
        zero_term = core.row_sums(qw.q) * np.int32(-qx.zero if correct else 0)
        scale = quant.product_scale(qx.scale, qw.scale)
        inverse = 1.0 / scale if scale else 0.0
        add = core.lac_fold(node.params["b"], zero_term, min(inverse, 3e38), self._compensation(node))
        return core.Sums(acc, add, scale)

    def error(self, node: Node, dy: Array, context: Context) -> QTensor:
        low, high = node.dy_range or core.value_range(dy)
        if self.prc == "ratio":
            low, high = self.prc_ratio * low, self.prc_ratio * high
        elif self.prc == "gauss":
            mean, deviation = core.moments(dy)
            low, high = max(low, mean - self.prc_z * deviation), min(high, mean + self.prc_z * deviation)
        out = node.buffer(dy.shape, np.int8)
        random = context.random(node.tensor(ERROR))
        return quant.symmetric(dy, low, high, rounding=Rounding(self.rounding), random=random, out=out)

    def weight_grad(self, node: Node, error: QTensor, context: Context) -> None:
        qx, product = node.saved["x"], node.layer.product(node, error.q.shape[0])
        sums = core.column_sums(error.q)
        acc = node.buffer(node.params["w"].shape, np.int32)
        product.weight_grad(qx.q, error.q, x_zero=qx.zero, out=acc)
        correct = self.zero_point == "exact"
        zero_term = sums * np.int32(-qx.zero if correct else 0)
        scale = quant.product_scale(qx.scale, error.scale)
        node.grads["w"] = core.Sums(acc, zero_term, scale, by_rows=True)
        node.grads["b"] = sums.astype(np.float32) * np.float32(error.scale)
        lac = self._compensation(node)
        if lac:
            each = core.column_sums(error.q, lac[0].size).astype(np.float32) * np.float32(error.scale)
            made = core.lac_backward(each.reshape(lac[0].shape), lac, self.lac_decay)
            if node.normalized and self.lac == "channel":  # batch normalization subtracts it, as it does the bias
                made = (np.zeros_like(made[0]), np.zeros_like(made[1]), np.zeros_like(made[2]))
            node.grads.update(zip(("lac_alpha", "lac_mu", "lac_offset"), made, strict=True))

    def input_grad(self, node: Node, error: QTensor, context: Context) -> core.Sums:
        qw, batch = node.saved["w"], error.q.shape[0]
        acc = node.buffer((batch, *node.in_shape), np.int32)
        node.layer.product(node, batch).input_grad(error.q, qw.q, out=acc)
        return core.Sums(acc, np.zeros(node.in_shape[-1], np.int32), quant.product_scale(qw.scale, error.scale))

    def trace(self, node: Node, batch: int) -> list[Op]:
        x, w, y = passes.sizes(node, batch)
        wide, wide_x = node.out_shape[-1], node.in_shape[-1]
        lac = node.params["lac_alpha"].size if self.lac != "off" else 0
        reads, sums = 1 + (self.prc == "gauss") + (not node.dy_known), 2 if lac else 1
        ops = [
            # range, unless it is known, then codes
            passes.elementwise(node, "forward", "quantize x", x, (4 if node.x_known else 8) * x, x),
            passes.elementwise(node, "forward", "quantize w", w, 8 * w, w),
            passes.gemm(node, batch, "forward", "int8"),
            passes.elementwise(node, "dW", "PRC, quantize dY", y, 4 * reads * y, y),
            passes.gemm(node, batch, "dW", "int8"),
            passes.elementwise(node, "dW", "bias, LAC gradients", y, sums * y, 12 * lac, channels=wide),
            passes.gemm(node, batch, "dX", "int8"),
        ]
        if not node.lazy_y:
            ops.insert(3, passes.elementwise(node, "forward", "dequantize, LAC", y, 4 * y + 12 * lac, 4 * y, channels=wide))
        if not node.lazy_dx:
            ops.append(passes.elementwise(node, "dX", "dequantize dX", x, 4 * x, 4 * x, channels=wide_x))
        return ops
