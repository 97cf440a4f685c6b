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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node, Product
from octosim.errors import OctosimError
from octosim.methods import float32, int8, octo
from octosim.methods.fp32 import Fp32

MU, OFFSET, X, W = range(4)  # roles in the Philox streams
LARGEST = 255  # code of the forward pass; of the backward pass 254.  More where a tensor's range excludes 0
PART = 127  # the largest |low| and |high|
BASE = 2 * PART + 1
LARGEST_CODE = BASE * PART + PART  # that two parts hold
LINEAR = Fp32()  # fully connected layers
EPS = 1e-6  # of the variance; "10e-7" in the demo


# ---- codes: int8 low and high parts --------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Codes 255 high + low, both int8 in +-127, and their scale, float64."""

    low: Array
    high: Array
    scale: core.Scalar


def chunks(size: int, each: int = 1 << 16) -> Iterator[slice]:
    """Parts of so many elements: float64 values of a whole tensor would take more memory than the step."""
    return (slice(first, first + each) for first in range(0, size, each))


def forward_codes(x: Array, rounding: str, random: core.Stream) -> tuple[Array, float]:
    """Codes floor(x / S + Z + u) and S = (max - min) / 510; Z = 255 - max / S, in +-255, is not rounded, nor ever subtracted.

    u: uniform in [0, 1) of the Philox stream, or where rounding is "half-even" nothing and the nearest code.
    """
    low, high = core.value_range(x)
    scale, zero = (high - low) / (2 * LARGEST), 0.0
    if scale:
        zero = min(max(LARGEST - high / scale, -LARGEST), LARGEST)
    words = None if rounding == "half-even" else core.philox(x.size, *random)
    flat, codes = x.reshape(-1), np.empty(x.size, np.int32)
    for part in chunks(x.size):
        real = flat[part] / np.float64(scale or 1.0) + zero
        real = np.rint(real) if words is None else np.floor(real + words[part] * 2.0**-32)
        codes[part] = np.clip(real, -LARGEST_CODE, LARGEST_CODE)
    return codes.reshape(x.shape), scale or 1.0


def backward_codes(x: Array, ratio: float, with_zero: bool = False) -> tuple[Array, float]:
    """Codes rint(clip(x) / S), S = (max - min) / 254 of x clipped to `ratio` times its ends.

    with_zero: x's windows also hold padding, whose 0 belongs to its range.
    """
    low, high = core.value_range(x)
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = max(low, ratio * low), min(high, ratio * high)
    scale = (high - low) / (2 * PART) or 1.0
    flat, codes = x.reshape(-1), np.empty(x.size, np.int32)
    for part in chunks(x.size):
        real = np.rint(np.clip(flat[part].astype(np.float64), low, high) / scale)
        codes[part] = np.clip(real, -LARGEST_CODE, LARGEST_CODE)
    return codes.reshape(x.shape), scale


def split(codes: Array, low: Array, high: Array) -> None:
    """The int8 parts of int32 codes in +-LARGEST_CODE."""
    flat, low, high = codes.reshape(-1), low.reshape(-1), high.reshape(-1)
    for part in chunks(codes.size):
        np.copyto(high[part], (flat[part] + PART) // BASE, casting="unsafe")
        np.copyto(low[part], flat[part] - BASE * high[part].astype(np.int32), casting="unsafe")


def in_parts(node: Node, name: str, x: Array, code: Callable[[Array], tuple[Array, float]]) -> Parts:
    """The codes of float32 x, and their scale, that `code` makes."""
    low, high, scale = node.buffer(x.shape, np.int8), node.buffer(x.shape, np.int8), core.number64(0.0)

    def quantize(x: Array, low: Array, high: Array) -> None:
        codes, scale.at[0] = code(x)
        split(codes, low, high)

    core.python(name, quantize, [x], [low, high])
    return Parts(low, high, scale)


def exact_sums(product: Callable[..., Array], a: Parts, b: Parts, buffer: Callable[[], Array]) -> list[Array]:
    """int32 products of the parts: low low, low high, high low, high high, each in memory of `buffer`."""
    return [product(u, v, out=buffer()) for u in (a.low, a.high) for v in (b.low, b.high)]


def together(sums: Sequence[Array]) -> Array:
    """int64 sums of the codes, from those of `exact_sums`."""
    low, one, other, high = sums
    total = one.astype(np.int64)
    total += other
    total += BASE * high.astype(np.int64)
    total *= BASE
    total += low
    return total


def real_sums(node: Node, a: Parts, b: Parts, sums: list[Array], bias: Array | None = None) -> Array:
    """float32 values of the sums, and the bias."""
    out, given = node.buffer(sums[0].shape, np.float32), [] if bias is None else [bias]
    scales = a.scale, b.scale

    def combine(*arrays: Array) -> None:
        cols = arrays[0].shape[-1]
        *sums, out = (each.reshape(-1, cols) for each in (*arrays[:4], arrays[-1]))
        for part in chunks(len(out), max(1, (1 << 16) // cols)):
            real = together([each[part] for each in sums]) * (float(scales[0]) * float(scales[1]))
            for bias in arrays[4:-1]:
                real += bias
            np.copyto(out[part], real, casting="same_kind")

    core.python("combine parts", combine, [*sums, *given], [out])
    return out


def _product(node: Node, batch: int) -> Product:
    """Not the run's register: there the parts' sums would saturate, which no hardware's 9-bit products do."""
    found: Product = node.layer.product(replace(node, through=lambda product: product), batch)
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
        keep = np.float32(1 - node.layer.rate)
        core.python("multiply", lambda x: np.multiply(x, keep, out=x), [], [x])
        return x

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        y: Array = node.layer.forward(node, x, method, context)
        return self._kept(node, core.copy(y, out=node.buffer(y.shape, np.float32)) if y is x else y)

    def weight_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return self._kept(node, node.layer.input_grad(node, dy, method, context))


def _compensate(alpha: Array, mu: Array, offset: Array, y: Array) -> None:
    for image, a, m, o in zip(y, alpha, mu, offset, strict=True):
        np.add(image, a * m + o, out=image)


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
            core.python("compensate", _compensate, list(octo.sample_compensation(node, batch)), [y])
            return y

        def compensate(alpha: Array, mu: Array, offset: Array, used: Array, y: Array) -> None:
            where = np.arange(batch) % octo.places(node)
            np.add(y, (alpha * mu + offset)[where], out=y)

        core.python("compensate", compensate, [*(p[name] for name in octo.COMPENSATION), node.state["lac_places"]], [y])
        return y

    def _forward_codes(self, node: Node, x: Array, random: core.Stream) -> Parts:
        return in_parts(node, "codes of x or w", x, lambda x: forward_codes(x, self.rounding, random))

    def _backward_codes(self, node: Node, x: Array, with_zero: bool = False) -> Parts:
        return in_parts(node, "codes of the gradients' operand", x, lambda x: backward_codes(x, self._ratio(), with_zero))

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
        grads, shape, bias = node.grads, node.params["w"].shape, np.empty_like(node.params["b"])
        product, qg = _product(node, len(dy)), node.saved["dy"]
        if node.trains("w"):
            qx = self._backward_codes(node, node.saved["x"], with_zero=max(product.geometry.pads) > 0)
            sums = exact_sums(product.weight_grad, qx, qg, lambda: node.buffer(shape, np.int32))
            grads["w"] = real_sums(node, qx, qg, sums)

        def gradient_of_bias(sums: Array, out: Array) -> None:
            codes, scale = backward_codes(sums, 1.0)
            np.copyto(out, codes * scale, casting="same_kind")

        core.python("gradient of bias", gradient_of_bias, [core.column_sums(dy)], [bias])
        grads["b"] = bias
        if "lac_mu" in node.params:
            lac = octo.sample_compensation(node, len(dy))
            grads.update(octo.sample_gradients(node, dy, lac, self.lac_decay))

    def input_grad(self, node: Node, dy: Array, context: Context) -> Array:
        if not self._quantized(node):
            return LINEAR.input_grad(node, dy, context)
        qg, qw = node.saved["dy"], self._backward_codes(node, node.params["w"])
        product, shape = _product(node, len(dy)), (len(dy), *node.in_shape)
        return real_sums(node, qg, qw, exact_sums(product.input_grad, qg, qw, lambda: node.buffer(shape, np.int32)))
