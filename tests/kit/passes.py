"""Slow, direct convolutions in int64 or float64, for transcriptions of a method's equations.  NHWC, stride 1."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from kit import oracle

from octosim import core, engine
from octosim.engine.layers import Conv2d, Flatten, Linear, ReLU
from octosim.engine.nodes import Context, Method, Node


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64 if x.dtype.kind == "i" else np.float64)


def padded(x: np.ndarray, pad: int) -> np.ndarray:
    return np.pad(wide(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def forward(x: np.ndarray, w: np.ndarray, pad: int = 0) -> np.ndarray:
    """Of a convolution, or of a fully connected layer where w is a matrix."""
    if w.ndim == 2:
        return wide(x) @ wide(w).T
    x, kernel = padded(x, pad), w.shape[1]
    out_h, out_w = x.shape[1] - kernel + 1, x.shape[2] - kernel + 1
    taps = itertools.product(range(kernel), range(kernel))
    return sum(np.einsum("nyzc,fc->nyzf", x[:, i : i + out_h, j : j + out_w], wide(w)[:, i, j]) for i, j in taps)


def weight_grad(x: np.ndarray, dy: np.ndarray, w: np.ndarray, pad: int = 0) -> np.ndarray:
    if w.ndim == 2:
        return wide(dy).T @ wide(x)
    x, dw = padded(x, pad), np.zeros_like(wide(w))
    for i, j in itertools.product(range(w.shape[1]), range(w.shape[1])):
        dw[:, i, j] = np.einsum("nyzf,nyzc->fc", wide(dy), x[:, i : i + dy.shape[1], j : j + dy.shape[2]])
    return dw


def input_grad(dy: np.ndarray, w: np.ndarray, pad: int = 0) -> np.ndarray:
    if w.ndim == 2:
        return wide(dy) @ wide(w)
    kernel = w.shape[1]
    batch, out_h, out_w = dy.shape[:3]
    dx = np.zeros((batch, out_h + kernel - 1, out_w + kernel - 1, w.shape[3]), wide(w).dtype)
    for i, j in itertools.product(range(kernel), range(kernel)):
        dx[:, i : i + out_h, j : j + out_w] += np.einsum("nyzf,fc->nyzc", wide(dy), wide(w)[:, i, j])
    return dx[:, pad : dx.shape[1] - pad, pad : dx.shape[2] - pad]


# ---- a network with symmetric codes --------------------------------------------------

F = np.float32
STACK = (Conv2d(4, 3, pad=1), ReLU(), Conv2d(5, 3), Flatten(), Linear(3))
PADS = (1, 0, 0)


def codes(x: np.ndarray, low: float, high: float, rounding: str = "half-even", words=None) -> tuple[np.ndarray, np.float32]:
    """Symmetric codes of clip(x, low, high) and their scale."""
    scale = F(max(abs(low), abs(high)) / 127)
    inverse = F(1 / float(scale))
    ends = [int(np.clip(np.rint(F(end) * inverse), -127, 127)) for end in (low, high)]
    return oracle.quantize((x * inverse).astype(F), 1.0, 0, *ends, rounding, words).astype(np.int64), scale


def extremes(x: np.ndarray) -> tuple[float, float]:
    return float(x.min()), float(x.max())


def three_steps(
    method: Method,
    x_range: Callable[[int, np.ndarray], tuple[float, float]],
    error: Callable[[Node, int, np.ndarray, int], tuple[tuple, tuple]],
    rate: Callable[[int], float] = lambda layer: 1.0,
    check: Callable[[int], None] = lambda step: None,
    prepare: Callable[[Node], None] = lambda last: None,
) -> None:
    """Trains STACK for three steps by the method and by its equations, and compares weights and biases after each.

    x_range(layer, x): the range of a layer's input.  error(node, layer, dy, step): codes and scale of dY for dX, and codes
    and scales, one or one an output, for dW and db.  rate(layer): factor on the learning rate.  check(step): after each.
    prepare(node): may change the last layer's initial weights.
    """
    network = engine.Network(STACK, (7, 7, 2), method, 3)
    weighted = [node for node in network.nodes if node.layer.weighted]
    prepare(weighted[-1])
    params = [{key: node.params[key].copy() for key in ("w", "b")} for node in weighted]
    ours, theirs = ([{key: np.zeros_like(value) for key, value in p.items()} for p in params] for _ in range(2))
    rng = np.random.default_rng(0)
    lr = 0.1
    for step in (1, 2, 3):
        context = Context(True, 3, step, 3)
        images, labels = rng.integers(0, 256, (6, 7, 7, 2), dtype=np.uint8), rng.integers(0, 3, 6).astype(np.int32)

        x, kept = images.astype(F) * F(1 / 255), []
        for layer, (p, pad) in enumerate(zip(params, PADS, strict=True)):
            if p["w"].ndim == 2:
                x = x.reshape(len(x), -1)
            qx, sx = codes(x, *x_range(layer, x))
            qw, sw = codes(p["w"], *extremes(p["w"]))
            scale = F(float(sx) * float(sw))
            bias = np.rint((p["b"] * F(1 / float(scale))).astype(F)).astype(np.int64)
            kept.append((x, qx, sx, qw, sw))
            y = (forward(qx, qw, pad) + bias).astype(F) * scale
            x = np.maximum(y, 0) if layer == 0 else y
        found = network.forward(network.input(images), context)
        assert np.array_equal(found, y), step
        _, dlogits, _ = core.softmax_cross_entropy(y, labels)
        dy = dlogits.copy()
        gradients = []
        for layer in (2, 1, 0):
            _, qx, sx, qw, sw = kept[layer]
            (qe, se), (qg, sg) = error(weighted[layer], layer, dy, step)
            dw = weight_grad(qx, qg, qw, PADS[layer]).astype(F)
            rows = np.broadcast_to((sg * sx).astype(F), qw.shape[:1]).reshape(-1, *(1,) * (qw.ndim - 1))
            sums = qg.reshape(-1, qg.shape[-1]).sum(0).astype(F)
            gradients.insert(0, {"w": dw * rows, "b": sums * sg})
            dy = input_grad(qe, qw, PADS[layer]).astype(F) * F(float(se) * float(sw))
            if layer == 2:
                dy = dy.reshape(6, *weighted[1].out_shape)
            elif layer == 1:
                dy *= kept[1][0] > 0  # its input is what the ReLU gave
        network.backward(dlogits, context)
        for layer, node in enumerate(weighted):
            for key, w in params[layer].items():
                assert np.array_equal(node.grads[key], gradients[layer][key]), (step, node.name, key)
                sgd = partial(core.sgd, node.params[key], node.grads[key], theirs[layer][key], momentum=0.9, decay=0.0)
                method.update(node, key, lr, lambda lr, sgd=sgd: sgd(lr=lr), context)
                v = ours[layer][key]
                v[:] = F(0.9) * v + gradients[layer][key]
                w -= F(lr * rate(layer)) * v
                assert np.abs(node.params[key] - w).max() <= 1e-6 * np.abs(w).max(), (step, node.name, key)
                w[:] = node.params[key]
        check(step)


# ---- what the layers of any network take and give --------------------------------------------------


def spied(network: engine.Network) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Copies of what each layer takes and gives in each pass."""
    seen: dict[tuple[str, str], tuple[Any, Any]] = {}

    class Spy:
        def __init__(self, layer: Any):
            self.layer = layer

        def forward(self, node: Node, x: Any, *rest: Any) -> np.ndarray:
            given = tuple(each.copy() for each in x) if isinstance(x, tuple) else x.copy()
            y = core.materialize_in_place(self.layer.forward(node, x, *rest))
            seen[node.name, "forward"] = given, y.copy()
            return y

        def weight_grad(self, node: Node, dy: np.ndarray, *rest: Any) -> Any:
            seen[node.name, "dy"] = dy.copy(), None
            return self.layer.weight_grad(node, dy, *rest)

        def input_grad(self, node: Node, dy: Any, *rest: Any) -> np.ndarray:
            dx = core.materialize_in_place(self.layer.input_grad(node, dy, *rest))
            seen[node.name, "dx"] = None, dx[0].copy() if isinstance(dx, tuple) else dx.copy()
            return dx

    network.passes = [Spy(layer) for layer in network.passes]
    return seen
