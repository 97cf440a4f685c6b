"""The same networks in PyTorch, to measure against and to judge gradients by.  Needs the extra `peers`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octosim import methods
from octosim.engine import Network, plan
from octosim.engine.accumulation import micro_batch
from octosim.engine.graph import Graph, as_graph
from octosim.engine.inputs import Input
from octosim.engine.layers import Flatten, Linear, ReLU, Stack
from octosim.engine.network import nodes
from octosim.engine.selection import ALL, Selection
from octosim.errors import ArgumentError, OctosimError
from octosim.hardware.state import text

Array = np.ndarray[Any, Any]


def torch_module() -> Any:
    """PyTorch, or OctosimError with what to install."""
    try:
        import torch
    except ImportError:
        raise OctosimError("PyTorch is not installed: pip install 'octosim[peers]'") from None
    return torch


def onnx_modules() -> tuple[Any, Any]:
    """onnx and onnxruntime, or OctosimError with what to install."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise OctosimError("onnx and onnxruntime are not installed: pip install 'octosim[peers]'") from None
    return onnx, onnxruntime


def apytypes_module() -> Any:
    """APyTypes, or OctosimError with what to install."""
    try:
        import apytypes
    except ImportError:
        raise OctosimError("apytypes is not installed: pip install 'octosim[peers]'") from None
    return apytypes


def _permuted(flat: Array, shape: tuple[int, ...]) -> Array:
    """Columns of a linear layer after a flatten: (height, width, channels) order -> (channels, height, width)."""
    height, width, channels = shape
    return flat.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(flat.shape)


def to_torch(stack: Graph | Stack, in_shape: tuple[int, ...]) -> Any:
    """The same layers for (batch, channels, height, width) float32 input; a state's names begin with the node's index.

    An nn.Sequential where each layer takes the one before, else a small module that follows the nodes' inputs.
    """
    nn = torch_module().nn

    class Graph(nn.Module):  # type: ignore[name-defined]
        def __init__(self, modules: list[Any], inputs: list[tuple[int, ...]]):
            super().__init__()
            for i, module in enumerate(modules):
                self.add_module(str(i), module)
            self.inputs = inputs

        def forward(self, x: Any) -> Any:
            values = {-1: x}
            for i, (module, inputs) in enumerate(zip(self.children(), self.inputs, strict=True)):
                values[i] = module(*(values[j] for j in inputs))
            return values[i]

    flat = nodes(stack, in_shape)
    made: list[Any] = []
    for node in flat:
        module = node.layer.peer(nn, *(flat[i].out_shape if i >= 0 else in_shape for i in node.inputs))
        if isinstance(node.layer, ReLU):
            module.inplace = node.in_place
        made.append(module)
    if all(node.inputs == (node.index - 1,) for node in flat):
        return nn.Sequential(*made)
    return Graph(made, [node.inputs for node in flat])


NAMES = {"w": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "positions": "positions", "token": "token"}
"""PyTorch's names of a layer's parameters."""


def freeze(model: Any, stack: Graph | Stack, in_shape: tuple[int, ...], selection: Selection) -> None:
    """Freezes the parameters of `to_torch`'s module that a selection does not train; layers that octosim runs as in inference,
    and normalizations with running statistics, are in evaluation mode."""
    if selection.channels:
        raise ArgumentError("PyTorch trains whole weights: leave out {channels}, or the comparison with it")
    flat = plan.dry(stack, in_shape, methods.make("fp32", {}), True, selection=selection).nodes
    for node, module in zip(flat, model.children(), strict=True):
        module.train(node.backward and not node.running)
        for key in node.frozen:
            parameter = getattr(module, NAMES.get(key, key), None)
            if parameter is not None:
                parameter.requires_grad_(False)


def weights_to_torch(network: Network) -> dict[str, Array]:
    """The network's parameters, and its gradients under "grad.", named and laid out as `to_torch`'s state."""
    found: dict[str, Array] = {}
    flattened: tuple[int, ...] | None = None
    for i, node in enumerate(network.nodes):
        if isinstance(node.layer, Flatten) and len(node.in_shape) == 3:
            flattened = node.in_shape
        for key, value in node.params.items():
            for prefix, array in (("", value), ("grad.", node.grads.get(key))):
                if array is None or key not in NAMES or key == "b" and not getattr(node.layer, "bias", True):
                    continue
                if key == "w" and array.ndim == 4:
                    array = array.transpose(0, 3, 1, 2)
                elif key == "w" and flattened:
                    array = _permuted(array, flattened)
                found[f"{prefix}{i}.{NAMES[key]}"] = np.ascontiguousarray(array)
        if isinstance(node.layer, Linear):
            flattened = None
    return found


# ---- steps to measure --------------------------------------------------

Step = Callable[[], None]
"""A whole training step: input conversion, forward, loss, backward, update."""


@dataclass(frozen=True)
class Task:
    """The step that peers make: a network, its batch (images (batch, height, width, channels) of bytes or float32, labels), an
    optimizer and its rate, threads; source: how the images are normalized; selection: what is trained; accumulate:
    micro-batches."""

    stack: Graph | Stack
    images: Array
    labels: Array
    optimizer: str
    lr: float
    threads: int
    source: Input = Input()
    selection: Selection = ALL
    accumulate: int = 1


@dataclass(frozen=True)
class Steps:
    """A peer's steps in one arithmetic: what it is, its version, and the step in each way that the peer has for it; the fastest
    counts.  left_out: why others are missing."""

    what: str
    version: str
    ways: dict[str, Step]
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """How PyTorch makes a step: memory format, autocast to bfloat16, torch.compile."""

    layout: str
    half: bool = False
    compiled: bool = False


TORCH_KINDS = {
    "bfloat16 " * half + "compiled " * compiled + layout: Kind(layout, half, compiled)
    for half in (False, True)
    for compiled in (False, True)
    for layout in ("contiguous", "channels_last")
}


def has_bfloat16(root: Path = Path("/")) -> bool:
    """Whether the processor of a file tree has products of bfloat16.  Emulated, a step takes minutes."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(text(root / "proc/cpuinfo").split()))


def _cannot(kind: Kind) -> str:
    """Why a kind is not run here, or nothing."""
    if kind.half and not has_bfloat16():
        return "the processor has no instructions for bfloat16"
    switch = os.environ.get("TORCHDYNAMO_DISABLE", "0")  # PyTorch reads it when it is imported
    if kind.compiled and (switch not in ("", "0") or torch_module()._dynamo.config.disable):
        return "torch.compile: switched off (TORCHDYNAMO_DISABLE)"
    compilers = (os.environ.get("CXX", "").split() or ["g++"])[0], "clang++"
    if kind.compiled and not any(shutil.which(name) for name in compilers):
        return "torch.compile: no C++ compiler"
    return ""


def torch_steps(task: Task, kinds: Iterable[str] = TORCH_KINDS) -> dict[str, Step]:
    """PyTorch training steps on one batch, by kind, of TORCH_KINDS: fused optimizer, float32 weights."""
    torch = torch_module()
    torch.set_num_threads(task.threads)
    steps: dict[str, Step] = {}
    images, labels, source = task.images, task.labels, task.source
    planar = images.ndim == 4
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2) if planar else images))
    unit = 1.0 if source.floats else 1 / 255
    mean, deviation = np.array(source.mean or (0.0,)), np.array(source.deviation or (1.0,))
    factors = [v.astype(np.float32).reshape((-1, 1, 1) if planar else (-1,)) for v in (unit / deviation, -mean / deviation)]
    scale, shift = map(torch.from_numpy, factors)
    target, size = torch.from_numpy(labels.astype(np.int64)), micro_batch(len(labels), task.accumulate)
    squares = as_graph(task.stack).loss == "mse"
    for name in kinds:
        how = TORCH_KINDS[name]
        layout = torch.channels_last if planar and how.layout == "channels_last" else torch.contiguous_format
        model = to_torch(task.stack, images.shape[1:]).to(memory_format=layout)
        freeze(model, task.stack, images.shape[1:], task.selection)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[task.optimizer]
        extra = {"fused": True} | ({"momentum": 0.9} if task.optimizer == "sgd" else {})
        updater = kind([p for p in model.parameters() if p.requires_grad], lr=task.lr, **extra)
        entropy = torch.nn.MSELoss() if squares else torch.nn.CrossEntropyLoss()

        def loss_of(
            some: Any, labels: Any, model: Any = model, layout: Any = layout, entropy: Any = entropy, half: bool = how.half
        ) -> Any:
            x = some.to(dtype=torch.float32, memory_format=layout, copy=True).mul_(scale)
            if source.mean:
                x.add_(shift)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                y = model(x)
                return entropy(y, x.reshape(y.shape) if squares else labels) * (len(labels) / len(target))

        def step(updater: Any = updater, loss_of: Any = torch.compile(loss_of) if how.compiled else loss_of) -> None:
            updater.zero_grad(set_to_none=True)
            for some, labels in zip(pixels.split(size), target.split(size), strict=True):
                loss_of(some, labels).backward()
            updater.step()

        steps[name] = step
    return steps


def torch_contest(task: Task) -> dict[str, Steps]:
    """PyTorch's steps in float32, and in bfloat16 where the processor has it, in eager mode and compiled; each has run once."""
    torch = torch_module()
    found: dict[str, Steps] = {}
    for row, what, half in (("torch", "PyTorch FP32", False), ("torch-bfloat16", "PyTorch autocast to bfloat16", True)):
        ways: dict[str, Step] = {}
        left_out: dict[str, None] = {}
        for name, kind in TORCH_KINDS.items():
            if kind.half != half:
                continue
            if why := _cannot(kind):
                left_out[why] = None
                continue
            [step] = torch_steps(task, [name]).values()
            try:
                step()
            except Exception as error:
                if not kind.compiled:
                    raise
                left_out[f"torch.compile: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"] = None
                continue
            ways[name.removeprefix("bfloat16 ")] = step
        found[row] = Steps(what, torch.__version__, ways, list(left_out))
    return found
