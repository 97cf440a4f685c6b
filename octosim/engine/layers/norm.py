"""Normalization of each pixel, token or vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Rule, Unweighted, channel_last, number
from octosim.engine.nodes import Array, Context, Method, Node


@dataclass(frozen=True)
class LayerNorm(Unweighted):
    """Layer normalization over the last axis (Ba et al. 2016); keeps its input."""

    eps: float = 1e-5
    stem: ClassVar[str] = "ln"
    kind: ClassVar[str] = "layernorm"
    rules: ClassVar[Mapping[str, Rule]] = {"eps": number(lambda v: 0 < v < 1, "a number between 0 and 1")}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        channels = node.in_shape[-1]
        node.params.update(gamma=np.ones(channels, np.float32), beta=np.zeros(channels, np.float32))

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        out = x if node.in_place and not context.training else node.buffer(x.shape, np.float32)
        y, mean, inv_std = core.layernorm(x, node.params["gamma"], node.params["beta"], eps=self.eps, out=out)
        node.saved.update(x=x, mean=mean, inv_std=inv_std)
        return y

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        saved, gamma = node.saved, node.params["gamma"]
        dx, work = (node.buffer(dy.shape, np.float32) for _ in range(2))
        core.layernorm_backward(saved["x"], dy, gamma, saved["mean"], saved["inv_std"], work=work, out=dx)
        for key, values in (("gamma", work), ("beta", dy)):
            node.grads[key] = core.column_sums(values, out=node.buffer(gamma.shape, np.float32))
        return dx

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        size, eps = shapes[0][-1], self.eps

        def normalized(x: Any, weight: Any, bias: Any) -> Any:
            return nn.functional.layer_norm(x, (size,), weight, bias, eps)

        return channel_last(nn, normalized, {"weight": (size,), "bias": (size,)})
