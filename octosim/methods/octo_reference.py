"""Octo's released demo: its numbers as they are, in integers that are integers.

Zhou et al., "Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for Tiny On-device Learning",
USENIX ATC 2021; the authors' demo is kimihe/Octo.  Its "INT8" codes have 9 bits: +-255 in the forward pass, without the
zero points' part of the sums, and up to 254 for one-sided tensors in the backward pass.  Codes, scales and sums are those of
the demo's scheme "LossAwareCompensation" with gradient quantization; only convolutions are quantized.

The demo multiplies codes in float64.  Here a code is 255 high + low with both parts in +-127; the products of the parts are
exact int32 sums of the core's int8 kernels, and are put together as integers: the same, whatever the machine.

Differs from the demo in: float32 between layers and for fully connected layers, normalization and optimizer (demo: float64);
codes beyond +-32,512, of tensors whose range excludes 0 by far, are clamped; cross-entropy without 1e-7 in the logarithm,
recorded without the compensation's L2 term (`metrics` has it); the test set is normalized and quantized in batches of 500,
whose image i takes compensation i modulo the training batch's size; a convolution's bias in front of normalization is not
trained, as with every method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Circumstances, Context, Method, Node, Product, Seen
from octosim.errors import OctosimError
from octosim.methods import float32, int8, octo
from octosim.methods.fp32 import Fp32
from octosim.numerics import Rounding

MU, OFFSET, X, W = range(4)  # roles in the Philox streams
LINEAR = Fp32()  # fully connected layers
EPS = 1e-6  # of the variance; "10e-7" in the demo


# ---- codes: int8 low and high parts --------------------------------------------------


def _memory(node: Node, shape: tuple[int, ...]) -> dict[str, Array]:
    return {name: node.buffer(shape, np.int8) for name in ("low", "high")}


def exact_sums(
    product: Callable[..., Array], a: core.Parts, b: core.Parts, buffer: Callable[[], Array]
) -> list[Array]:
    """int32 products of the parts: low low, low high, high low, high high, each in memory of `buffer`."""
    return [product(u, v, out=buffer()) for u in (a.low, a.high) for v in (b.low, b.high)]


def real_sums(node: Node, a: core.Parts, b: core.Parts, sums: list[Array], bias: Array | None = None) -> Array:
    """float32 values of the sums, and the bias."""
    return core.combine_parts(sums, a.scale, b.scale, bias, out=node.buffer(sums[0].shape, np.float32))


def _product(node: Node, batch: int) -> Product:
    """Not the run's register: there the parts' sums would saturate, which no hardware's 9-bit products do."""
    found: Product = node.layer.product(replace(node, product_hook=lambda product: product), batch)
    return found


# ---- layers that the demo has its own way --------------------------------------------------


class FeatureBatchNorm:
    """Batch normalization of each feature (row, column, channel) over the batch alone, in inference too: no running statistics.

    The demo's gamma and beta have a copy a sample, with one gradient: here there is one.
    """

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        node.params.update(gamma=np.ones(node.in_shape, np.float32), beta=np.zeros(node.in_shape, np.float32))

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        rows, gamma, beta = x.reshape(len(x), -1), node.params["gamma"].ravel(), node.params["beta"].ravel()
        unused = np.zeros_like(gamma), np.ones_like(gamma)
        y = node.buffer(rows.shape, np.float32)
        y, mean, inv_std, _ = core.batchnorm_forward(rows, gamma, beta, *unused, eps=EPS, momentum=0.1, out=y)
        if context.training:
            node.saved.update(rows=rows, mean=mean, inv_std=inv_std)
        return y.reshape(x.shape)

    def weight_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        saved, shape, rows = node.saved, node.in_shape, dy.reshape(len(dy), -1)
        gamma = node.params["gamma"].ravel()
        dx, dgamma, dbeta, _ = core.batchnorm_backward(saved["rows"], rows, gamma, saved["mean"], saved["inv_std"], out=rows)
        node.grads.update(gamma=dgamma.reshape(shape), beta=dbeta.reshape(shape))
        return dx.reshape(dy.shape)


class Dropout:
    """The demo's dropout multiplies by the mask in training and by the share kept in inference."""

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        pass

    def _kept(self, node: Node, x: Array) -> Array:
        """x times the share that is kept, in its memory."""
        return core.scale(x, 1 - node.layer.rate, out=x)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        y: Array = node.layer.forward(node, x, method, context)
        return self._kept(node, core.copy(y, out=node.buffer(y.shape, np.float32)) if y is x else y)

    def weight_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return self._kept(node, node.layer.input_grad(node, dy, method, context))


@dataclass(frozen=True)
class OctoReference(Method):
    """Parameters of the method.

    lac:        "sample" (demo): out = y + alpha mu + offset, a mu and an offset a feature of each place in the batch; or "off".
    lac_samples: places in the batch that there are numbers for, at least the batch size (demo's limit: 100).  A smaller last
                batch takes the first.
    lac_decay:  L2 factor on mu and offset (demo: 0.1).
    prc:        clipping of the backward pass's operands, im2col(x), dY and W: "ratio" to prc_ratio times their extremes
                (demo: 0.95), or "off".
    prc_ratio:  what "ratio" clips to.
    rounding:   of the forward pass's codes: "stochastic" (demo) or "half-even".  The backward pass's round half to even.
    """

    lac: Literal["off", "sample"] = "sample"
    lac_samples: int = 100
    lac_decay: float = 0.1
    prc: Literal["off", "ratio"] = "ratio"
    prc_ratio: float = 0.95
    rounding: Literal["stochastic", "half-even"] = "stochastic"

    name: ClassVar[str] = "octo-reference"
    summary: ClassVar[str] = "Octo's released demo: 9-bit codes, dropped zero points, LAC a sample, BN a feature"
    paper: ClassVar[str] = "Zhou et al., USENIX ATC 2021, demo kimihe/Octo"
    bits: ClassVar[dict[str, str]] = {
        "weights": "9-bit codes in convolutions, else float32",
        "activations": "9-bit codes in convolutions, else float32",
        "gradients": "float32, of 9-bit products in convolutions",
        "errors": "9-bit codes in convolutions, else float32",
        "update": "float32",
        "accumulator": "int64, or int32 where it suffices",
        "normalization": "float32",
    }
    layers: ClassVar[Mapping[str, Any]] = {"bn": FeatureBatchNorm(), "dropout": Dropout()}
    unused: ClassVar[tuple[str, ...]] = ("accumulator", "count_overflow")

    def __post_init__(self) -> None:
        if not 0 < self.prc_ratio <= 1:
            raise OctosimError(f"octo-reference: prc_ratio must be in (0, 1], not {self.prc_ratio}")
        if not self.lac_decay >= 0:
            raise OctosimError(f"octo-reference: lac_decay must not be negative, not {self.lac_decay}")
        if not self.lac_samples >= 1:
            raise OctosimError(f"octo-reference: lac_samples must be at least 1, not {self.lac_samples}")

    def _quantized(self, node: Node) -> bool:
        return len(node.out_shape) == 3

    def check(self, node: Node, batch: int) -> None:
        if self._quantized(node):
            int8.refuse_overflow(node, batch)  # of the parts
        if self.lac == "sample":
            octo.refuse_samples(batch, self.lac_samples)

    def init(self, node: Node, seed: int) -> None:
        if self.lac == "sample" and self._quantized(node):
            shape = self.lac_samples, *node.out_shape
            node.state["lac_places"] = np.zeros(1, np.int32)
            node.params["lac_alpha"] = np.ones(node.out_shape, np.float32)
            node.params["lac_mu"] = core.normal(shape, seed, node.tensor(MU), 1e-3)
            node.params["lac_offset"] = core.normal(shape, seed, node.tensor(OFFSET), 1e-3)

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        convolves = any(node.layer.weighted and self._quantized(node) for node in nodes)
        return ([] if convolves else ["no convolution: nothing is quantized"]) + octo.switched_off(self)

    def metrics(self, nodes: list[Node]) -> dict[str, Any]:
        """The compensation's part of the demo's loss, after the epoch's last step."""
        added = [node.params[name] for node in nodes if "lac_mu" in node.params for name in octo.COMPENSATION[1:]]
        return {"lac_penalty": self.lac_decay / 2 * sum(float32.total(v * v) for v in added)} if added else {}

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        p, batch = node.params, len(x)
        if not self._quantized(node):
            return LINEAR.forward(node, x, context)
        product = _product(node, batch)
        qx = self._forward_codes(node, x, context.random(node.tensor(X)))
        qw = self._forward_codes(node, p["w"], context.random(node.tensor(W)))
        node.saved["x"] = x
        shape = batch, *node.out_shape
        y = real_sums(node, qx, qw, exact_sums(product.forward, qx, qw, lambda: node.buffer(shape, np.int32)), p["b"])
        if "lac_mu" not in p:
            return y
        if context.training:
            octo.refuse_samples(batch, len(p["lac_mu"]))
            octo.use_places(node, batch)
            return core.compensate(p["lac_alpha"], p["lac_mu"][:batch], p["lac_offset"][:batch], y)

        def compensate(alpha: Array, mu: Array, offset: Array, used: Array, y: Array) -> None:
            where = np.arange(batch) % octo.places(node)
            np.add(y, (alpha * mu + offset)[where], out=y)

        core.python("compensate", compensate, [*(p[name] for name in octo.COMPENSATION), node.state["lac_places"]], [y])
        return y

    def _forward_codes(self, node: Node, x: Array, random: core.Stream) -> core.Parts:
        return core.forward_parts(x, Rounding(self.rounding), random, **_memory(node, x.shape))

    def _backward_codes(self, node: Node, x: Array, with_zero: bool = False) -> core.Parts:
        return core.backward_parts(x, self._ratio(), with_zero, **_memory(node, x.shape))

    def _ratio(self) -> float:
        return self.prc_ratio if self.prc == "ratio" else 1.0

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        if self._quantized(node):
            node.saved["dy"] = self._backward_codes(node, dy)
        return dy

    def weight_grad(self, node: Node, dy: Array, context: Context) -> None:
        if not self._quantized(node):
            LINEAR.weight_grad(node, dy, context)
            return
        grads, shape = node.grads, node.params["w"].shape
        product, qg = _product(node, len(dy)), node.saved["dy"]
        if node.trains("w"):
            qx = self._backward_codes(node, node.saved["x"], with_zero=max(product.geometry.pads) > 0)
            sums = exact_sums(product.weight_grad, qx, qg, lambda: node.buffer(shape, np.int32))
            grads["w"] = real_sums(node, qx, qg, sums)
        grads["b"] = core.backward_values(core.column_sums(dy))
        if "lac_mu" in node.params:
            lac = octo.sample_compensation(node, len(dy))
            grads.update(octo.sample_gradients(node, dy, lac, self.lac_decay))

    def input_grad(self, node: Node, dy: Array, context: Context) -> Array:
        if not self._quantized(node):
            return LINEAR.input_grad(node, dy, context)
        qg, qw = node.saved["dy"], self._backward_codes(node, node.params["w"])
        product, shape = _product(node, len(dy)), (len(dy), *node.in_shape)
        return real_sums(node, qg, qw, exact_sums(product.input_grad, qg, qw, lambda: node.buffer(shape, np.int32)))
