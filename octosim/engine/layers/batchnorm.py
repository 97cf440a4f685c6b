"""Batch normalization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Rule, Unweighted, number
from octosim.engine.layers.pool import MaxPool
from octosim.engine.nodes import Array, Context, Method, Node

NORMAL_STEP = 1 / 16  # of the codes of normalized values, as in core.batchnorm_forward


@dataclass(frozen=True)
class BatchNorm(Unweighted):
    """Batch normalization of each channel (Ioffe & Szegedy 2015); inference uses the running statistics.

    momentum is the weight of the new batch in the running mean and variance, as in PyTorch.
    running: whether it can use its running statistics in training (`nodes.Node.running`).  relu, keeps_dy: see FusedBatchNorm.
    """

    running: ClassVar[bool] = True
    normalizes: ClassVar[bool] = True
    relu = keeps_dy = False

    eps: float = 1e-5
    momentum: float = 0.1
    stem: ClassVar[str] = "bn"
    kind: ClassVar[str] = "batchnorm"
    rules: ClassVar[Mapping[str, Rule]] = {
        "eps": number(lambda v: 0 < v < 1, "a number between 0 and 1"),
        "momentum": number(lambda v: 0 < v <= 1, "a number above 0, at most 1"),
    }

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        channels = node.in_shape[-1]
        node.params.update(gamma=np.ones(channels, np.float32), beta=np.zeros(channels, np.float32))
        node.state.update(mean=np.zeros(channels, np.float32), var=np.ones(channels, np.float32))

    def forward(self, node: Node, x: core.Values, method: Method, context: Context) -> Array:
        p, s = node.params, node.state
        if isinstance(x, core.LazyDequant) and x.add.size != node.in_shape[-1]:
            x = core.materialize_in_place(x)
        # the values in float32 stay only where the backward pass takes them
        free = node.in_place and (method.saves_int8 or not context.training)
        out = core.reuse_buffer(x) if free else node.buffer(x.shape, np.float32)
        columns = (p["gamma"], p["beta"], s["mean"], s["var"])
        if not context.training:
            return core.batchnorm_inference(x, *columns, eps=self.eps, relu=self.relu, out=out)
        if node.running:
            return self._forward_running(node, x, method, out)
        if not method.saves_int8:
            x = core.materialize_in_place(x)
        codes = node.buffer(x.shape, np.int8) if method.saves_int8 else None
        relu_mask = node.buffer((core.sign_bytes(out.size),), np.uint8) if self.relu else None
        y, mean, inv_std, node.output_range = core.batchnorm_forward(
            x, *columns, eps=self.eps, momentum=self.momentum, relu=self.relu, codes=codes, relu_mask=relu_mask,
            find_range=method.saves_int8, out=out,
        )  # fmt: skip
        node.saved.update(x=x if codes is None else codes, mean=mean, inv_std=inv_std, relu_mask=relu_mask)
        return y

    def _forward_running(self, node: Node, x: core.Values, method: Method, out: Array) -> Array:
        """As in inference; keeps what a step of gamma and a ReLU behind need."""
        p, s = node.params, node.state
        if node.trains("gamma"):
            x = core.materialize_in_place(x)
            normal = core.batchnorm_inference(
                x, np.ones_like(p["gamma"]), np.zeros_like(p["beta"]), s["mean"], s["var"], eps=self.eps,
                out=node.buffer(x.shape, np.float32),
            )  # fmt: skip
            if method.saves_int8:
                normal = core.quantize(normal, 1 / NORMAL_STEP, out=node.buffer(x.shape, np.int8))
            node.saved["normal"] = normal
        y = core.batchnorm_inference(x, p["gamma"], p["beta"], s["mean"], s["var"], eps=self.eps, out=out)
        if self.relu:
            relu_mask = node.saved["relu_mask"] = node.buffer((core.sign_bytes(y.size),), np.uint8)
            y, node.output_range = core.relu(y, relu_mask=relu_mask, find_range=method.saves_int8, out=y)
        return y

    def _backward_running(self, node: Node, dy: core.Values) -> Array:
        """dy times gamma / deviation; the statistics are constants."""
        p, saved = node.params, node.saved
        out = node.buffer(dy.shape, np.float32) if self.keeps_dy else core.reuse_buffer(dy)
        dy = core.relu_backward(saved["relu_mask"], dy, out=out) if self.relu else core.materialize_in_place(dy)
        if node.trains("gamma"):
            normal = saved["normal"]
            if normal.dtype == np.int8:
                normal = core.dequantize(normal, NORMAL_STEP, out=node.buffer(dy.shape, np.float32))
            node.grads["gamma"] = core.column_sums(core.multiply(dy, normal, out=normal))
        if node.trains("beta"):
            node.grads["beta"] = core.column_sums(dy)
        zeros, row = np.zeros_like(p["gamma"]), np.ones((1, p["gamma"].size), np.float32)
        scale = core.batchnorm_inference(row, p["gamma"], zeros, zeros, node.state["var"], eps=self.eps)
        return core.affine(dy, scale.reshape(-1), zeros, out=out)

    def input_grad(self, node: Node, dy: core.Values, method: Method, context: Context) -> Array:
        saved = node.saved
        if node.running:
            return self._backward_running(node, dy)
        dx, dgamma, dbeta, node.output_range = core.batchnorm_backward(
            saved["x"], dy, node.params["gamma"], saved["mean"], saved["inv_std"], relu_mask=saved["relu_mask"],
            find_range=method.saves_int8, out=node.buffer(dy.shape, np.float32) if self.keeps_dy else core.reuse_buffer(dy),
        )  # fmt: skip
        node.grads.update(gamma=dgamma, beta=dbeta)
        return dx

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        kind = nn.BatchNorm2d if len(shapes[0]) == 3 else nn.BatchNorm1d
        return kind(shapes[0][-1], eps=self.eps, momentum=self.momentum)


@dataclass(frozen=True)
class FusedBatchNorm(BatchNorm):
    """A pass of batch normalization and what stands behind it (engine.fusion).

    relu: it does the ReLU too.  keeps_dy: another layer needs the gradient of its output, which it may overwrite otherwise.
    """

    relu: bool = False
    keeps_dy: bool = False


@dataclass(frozen=True)
class PooledBatchNorm(BatchNorm):
    """A pass of batch normalization with the ReLU and the max pooling behind it (engine.fusion), not where the node uses its
    running statistics in training; pool: a square one without padding, stride == kernel."""

    relu = True
    pool: MaxPool = MaxPool()

    def forward(self, node: Node, x: core.Values, method: Method, context: Context) -> Array:
        p, s, g = node.params, node.state, self.pool.square(node, x.shape[0])
        assert g
        out, argmax = node.buffer(g.y_shape, np.float32), node.buffer(g.y_shape, np.uint8)
        if not context.training:
            return core.maxpool(g, super().forward(node, x, method, context), out=out, argmax=argmax)[0]
        if not method.saves_int8 or isinstance(x, core.LazyDequant) and x.add.size != g.channels:
            x = core.materialize_in_place(x)
        codes = node.buffer(g.x_shape, np.int8) if method.saves_int8 else None
        y, _, mean, inv_std, node.output_range = core.batchnorm_maxpool(
            g, x, p["gamma"], p["beta"], s["mean"], s["var"], eps=self.eps, momentum=self.momentum, codes=codes,
            find_range=method.saves_int8, out=out, argmax=argmax,
        )  # fmt: skip
        node.saved.update(x=x if codes is None else codes, mean=mean, inv_std=inv_std, argmax=argmax)
        return y

    def input_grad(self, node: Node, dy: core.Values, method: Method, context: Context) -> Array:
        saved, g = node.saved, self.pool.square(node, dy.shape[0])
        assert g
        dx, dgamma, dbeta, node.output_range = core.batchnorm_maxpool_backward(
            g, saved["x"], dy, saved["argmax"], node.params["gamma"], saved["mean"], saved["inv_std"],
            find_range=method.saves_int8, out=node.buffer(g.x_shape, np.float32),
        )  # fmt: skip
        node.grads.update(gamma=dgamma, beta=dbeta)
        return dx
