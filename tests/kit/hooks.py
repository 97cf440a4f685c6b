"""Slow, direct products in float64 or integers, and a recorder of what a method's hooks took and gave in a training step."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np

from octosim import core, engine, methods
from octosim.engine import optimizers
from octosim.engine.layers import Conv2d, Flatten, Linear, ReLU
from octosim.engine.nodes import Context

SHAPE = (6, 5, 2)
STACK = (Conv2d(4, 3, pad=1), ReLU(), Conv2d(3, 3, pad=1), ReLU(), Flatten(), Linear(8), ReLU(), Linear(5))


def _wide(x):
    return x.astype(np.int64 if np.issubdtype(x.dtype, np.integer) else np.float64)


def _padded(x, pad, value=0):
    return np.pad(_wide(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=value)


def forward(x, w, pad=1, value=0):
    """X W^T, of a 3x3 convolution with padding or of a linear layer; `value` is what padding holds."""
    if w.ndim == 2:
        return _wide(x) @ _wide(w).T
    windows, k = _padded(x, pad, value), w.shape[1]
    out = np.zeros((*x.shape[:3], len(w)), windows.dtype)
    for y, z in itertools.product(range(x.shape[1]), range(x.shape[2])):
        out[:, y, z] = np.einsum("nabc,fabc->nf", windows[:, y : y + k, z : z + k], _wide(w))
    return out


def weight_grad(x, dy, shape, pad=1):
    if len(shape) == 2:
        return _wide(dy).T @ _wide(x)
    padded, dw = _padded(x, pad), np.zeros(shape)
    for i, j in itertools.product(range(shape[1]), range(shape[2])):
        dw[:, i, j] = np.einsum("nyzf,nyzc->fc", _wide(dy), padded[:, i : i + dy.shape[1], j : j + dy.shape[2]])
    return dw


def input_grad(dy, w, pad=1):
    if w.ndim == 2:
        return _wide(dy) @ _wide(w)
    n, height, width, _ = dy.shape
    full = np.zeros((n, height + 2 * pad, width + 2 * pad, w.shape[3]))
    for i, j in itertools.product(range(w.shape[1]), range(w.shape[2])):
        full[:, i : i + height, j : j + width] += np.einsum("nyzf,fc->nyzc", _wide(dy), _wide(w[:, i, j]))
    return full[:, pad:-pad, pad:-pad]


def bias_grad(dy):
    return _wide(dy).reshape(-1, dy.shape[-1]).sum(0)


def close(made, expected, terms=None) -> bool:
    """Equal to 1e-6 of the tensor's norm, or, where much cancels, of the norm of the sums of their terms' magnitudes."""
    size = np.linalg.norm(expected if terms is None else terms)
    return bool(np.linalg.norm(np.asarray(made, np.float64) - expected) <= 1e-6 * size + 1e-30)


class Recorder:
    """A method that keeps, by layer, copies of what its hooks took and gave: w, b, x, y, dy, error, dw, db, dx, saved."""

    def __init__(self, method: Any):
        self.method = method
        self.seen: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def forward(self, node, x, context):
        kept = {"node": node, "context": context, "x": x.copy(), "state": {k: v.copy() for k, v in node.state.items()}}
        kept |= {k: v.copy() for k, v in node.params.items()}
        y = core.materialize_in_place(self.method.forward(node, x, context))
        self.seen[node.name] = kept | {"y": y.copy(), "saved": dict(node.saved)}
        return y

    def error(self, node, dy, context):
        self.seen[node.name]["dy"] = dy.copy()
        error = self.method.error(node, dy, context)
        self.seen[node.name]["error"] = copy.deepcopy(error)
        return error

    def weight_grad(self, node, error, context):
        self.method.weight_grad(node, error, context)
        node.grads = {key: core.materialize_in_place(g) for key, g in node.grads.items()}
        self.seen[node.name] |= {"dw": node.grads["w"].copy(), "db": node.grads["b"].copy()}

    def input_grad(self, node, error, context):
        dx = core.materialize_in_place(self.method.input_grad(node, error, context))
        self.seen[node.name]["dx"] = dx.copy()
        return dx


def network_and_batch(name: str, parameters: dict, batch: int = 7, seed: int = 3):
    network = engine.Network(STACK, SHAPE, methods.make(name, parameters), seed)
    rng = np.random.default_rng(seed)
    for node in network.nodes:
        if "b" in node.params:
            node.params["b"][:] = rng.normal(0, 0.1, node.params["b"].shape)
    return network, rng.integers(0, 256, (batch, *SHAPE), dtype=np.uint8), rng.integers(0, 5, batch).astype(np.int32)


def three_steps(name: str, parameters: dict, optimizer: str = "sgd", lr: float = 0.1):
    """Three training steps of a small network; yields each layer's record of each step, before the update."""
    network, images, labels = network_and_batch(name, parameters)
    network.method = Recorder(network.method)
    slots = {
        f"{n.name}.{k}": {s: np.zeros_like(v) for s in optimizers.OPTIMIZERS[optimizer].slots}
        for n in network.nodes
        for k, v in n.params.items()
    }
    for step in (1, 2, 3):
        context = Context(True, 3, step, epoch=step)
        network.gradients(images, labels, context)
        yield from network.method.seen.values()
        made = optimizers.make(optimizer, lr)
        optimizers.Update(made, network.method.method, context, lr, made.corrections(step), network.nodes, slots).all()
