"""The same networks in Flax, steps compiled by XLA: JAX in float32, and Qwix's INT8 training.  Needs the extra `jax`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np

from octosim.bench.peers import Step, Steps, Task
from octosim.engine.accumulation import micro_batch
from octosim.engine.graph import Graph, as_graph
from octosim.engine.layers import Stack
from octosim.engine.layers.base import pair
from octosim.engine.network import nodes
from octosim.errors import ArgumentError, OctosimError


@dataclass(frozen=True)
class Packages:
    """JAX, Flax's modules and optax."""

    jax: Any
    linen: Any
    optax: Any


def packages(threads: int) -> Packages:
    """JAX for the CPU with so many threads, or OctosimError with what to install.  JAX takes their number once in a process, at
    its first call."""
    for name in ("PJRT_NPROC", "NPROC"):
        os.environ.setdefault(name, str(threads))
    try:
        import flax.linen
        import jax
        import optax
    except ImportError:
        raise OctosimError("JAX and Flax are not installed: pip install 'octosim[jax]'") from None
    jax.config.update("jax_platforms", "cpu")
    return Packages(jax, flax.linen, optax)


def namespace(of: Packages) -> SimpleNamespace:
    """What layers' `peer` takes for torch.nn: the same names and arguments, in Flax, for images with the channel last."""
    linen, jax = of.linen, of.jax
    nn, numpy = jax.nn, jax.numpy

    def conv(inputs: int, filters: int, kernel: Any, stride: Any = 1, pad: Any = 0, dilation: Any = 1, groups: int = 1,
             bias: bool = True) -> Any:  # fmt: skip
        sides = [(p, p) for p in pair(pad)]
        return linen.Conv(filters, pair(kernel), pair(stride), sides, 1, pair(dilation), groups, bias)

    def max_pool(kernel: Any, stride: Any, pad: Any = 0, ceil_mode: bool = False) -> Any:
        def pool(x: Any) -> Any:
            sides = []
            for size, k, s, p in zip(x.shape[1:3], pair(kernel), pair(stride), pair(pad), strict=True):
                rest = (size + 2 * p - k) % s
                more = s - rest if ceil_mode and rest and size + p > (size + 2 * p - k) // s * s + s else 0
                sides.append((p, p + more))
            return linen.max_pool(x, pair(kernel), pair(stride), sides)

        return pool

    def average_pool(kernel: Any, stride: Any, pad: Any = 0, ceil: bool = False, count_pad: bool = True) -> Any:
        if ceil:
            raise TypeError("average pooling with a cut last window")
        sides = [(p, p) for p in pair(pad)]
        return lambda x: linen.avg_pool(x, pair(kernel), pair(stride), sides, count_pad)

    def normalization(size: int, eps: float, momentum: float) -> Any:
        return linen.BatchNorm(use_running_average=False, momentum=1 - momentum, epsilon=eps)

    def adaptive(size: int) -> Any:
        if size != 1:
            raise TypeError(f"adaptive pooling to {size}")
        return lambda x: x.mean((1, 2), keepdims=True)

    def sequence(*parts: Any) -> Any:
        def all_of(x: Any) -> Any:
            for part in parts:
                x = part(x)
            return x

        return all_of

    def channel_last(call: Callable[..., Any], parameters: Mapping[str, tuple[int, ...]] | None = None) -> Any:
        if parameters:
            raise TypeError(f"parameters {', '.join(parameters)}")
        return call

    return SimpleNamespace(
        Conv2d=conv, Linear=lambda inputs, units, bias=True: linen.Dense(units, bias), MaxPool2d=max_pool,
        AvgPool2d=average_pool, AdaptiveAvgPool2d=adaptive, BatchNorm2d=normalization, BatchNorm1d=normalization,
        Sequential=sequence, Dropout=lambda rate: linen.Dropout(rate, deterministic=False),
        Flatten=lambda: lambda x: x.reshape(len(x), -1),
        ReLU=lambda: nn.relu, ReLU6=lambda: nn.relu6, Sigmoid=lambda: nn.sigmoid, Tanh=lambda: numpy.tanh,
        SiLU=lambda: nn.silu,
        Hardswish=lambda: nn.hard_swish, Hardsigmoid=lambda: nn.hard_sigmoid,
        Hardtanh=lambda low, high: lambda x: numpy.clip(x, low, high),
        LeakyReLU=lambda slope: lambda x: nn.leaky_relu(x, slope),
        GELU=lambda approximate: lambda x: nn.gelu(x, approximate == "tanh"), channel_last=channel_last,
    )  # fmt: skip


def to_flax(of: Packages, stack: Graph | Stack, in_shape: tuple[int, ...]) -> Any:
    """The same layers as a module of flax.linen, for (batch, height, width, channels) float32 input."""
    names = namespace(of)
    parts: list[Any] = []
    inputs: list[tuple[int, ...]] = []
    for node in nodes(stack, in_shape):
        try:
            parts.append(node.layer.peer(names, *node.in_shapes))
        except (AttributeError, TypeError) as error:
            raise OctosimError(f"layers of the kind '{node.layer.kind}' have no counterpart in JAX here ({error})") from None
        inputs.append(node.inputs)

    class Network(of.linen.Module):  # type: ignore[name-defined]
        parts: Any
        inputs: Any

        def __call__(self, x: Any) -> Any:
            values = {-1: x}
            for i, (part, taken) in enumerate(zip(self.parts, self.inputs, strict=True)):
                values[i] = part(*(values[j] for j in taken))
            return values[i]

    return Network(tuple(parts), tuple(inputs))


def _step(of: Packages, model: Any, task: Task) -> Step:
    """A whole training step of a Flax module on the task's batch: images to float32, gradients, update; compiled."""
    jax, optax, numpy = of.jax, of.optax, of.jax.numpy
    source, size = task.source, micro_batch(len(task.labels), task.accumulate)
    unit = 1.0 if source.floats else 1 / 255
    mean, deviation = np.array(source.mean or (0.0,)), np.array(source.deviation or (1.0,))
    scale, shift = ((unit / deviation).astype(np.float32), (-mean / deviation).astype(np.float32))
    squares = as_graph(task.stack).loss == "mse"
    rule = optax.adam(task.lr) if task.optimizer == "adam" else optax.sgd(task.lr, momentum=0.9)
    images, labels = jax.device_put(task.images), jax.device_put(task.labels.astype(np.int32))
    key = jax.random.key(0)
    try:
        zeros = numpy.zeros((size, *task.images.shape[1:]), np.float32)
        variables = jax.jit(model.init)({"params": key, "dropout": key}, zeros)
    except (AttributeError, TypeError) as error:
        raise OctosimError(f"the network has no counterpart in JAX here: {str(error).splitlines()[0]}") from None
    weights, rest = variables.pop("params"), variables

    def loss(weights: Any, rest: Any, x: Any, labels: Any, key: Any) -> Any:
        y, rest = model.apply({"params": weights, **rest}, x, mutable=list(rest), rngs={"dropout": key})
        if squares:
            return ((y - x.reshape(y.shape)) ** 2).mean() * (len(labels) / len(task.labels)), rest
        each = optax.softmax_cross_entropy_with_integer_labels(y, labels)
        return each.sum() / len(task.labels), rest

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, images: Any, labels: Any) -> Any:
        weights, rest, moments, key = state
        total = None
        for first in range(0, len(labels), size):
            key, own = jax.random.split(key)
            x = images[first : first + size].astype(np.float32) * scale
            x = x + shift if source.mean else x
            gradients, rest = jax.grad(loss, has_aux=True)(weights, rest, x, labels[first : first + size], own)
            total = gradients if total is None else jax.tree.map(numpy.add, total, gradients)
        changes, moments = rule.update(total, moments, weights)
        return optax.apply_updates(weights, changes), rest, moments, key

    held = [(weights, rest, rule.init(weights), key)]

    def step() -> None:
        held[0] = jax.block_until_ready(update(held[0], images, labels))

    return step


def _of_task(task: Task) -> Packages:
    if not task.selection.everything or task.selection.statistics != "batch":
        raise ArgumentError(
            "JAX trains all weights: leave out {train}, {freeze}, {update} and {batchnorm_statistics}, or the comparison"
        )
    return packages(task.threads)


def jax_steps(task: Task) -> dict[str, Steps]:
    """JAX's step in float32."""
    of = _of_task(task)
    model = to_flax(of, task.stack, task.images.shape[1:])
    return {"jax": Steps("JAX FP32, Flax", version("jax"), {"jitted": _step(of, model, task)})}


def qwix_steps(task: Task) -> dict[str, Steps]:
    """Qwix's INT8 training: operands of all three products of a layer quantized, sums in int32."""
    of = _of_task(task)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import qwix
    except ImportError:
        raise OctosimError("Qwix is not installed: pip install 'octosim[jax]'") from None
    rules = [qwix.QtRule(weight_qtype="int8", act_qtype="int8", bwd_qtype="int8")]
    model = qwix.quantize_model(to_flax(of, task.stack, task.images.shape[1:]), qwix.QtProvider(rules))
    return {"qwix": Steps("Qwix INT8 training, Flax", version("qwix"), {"jitted": _step(of, model, task)})}
