"""The same networks in PyTorch, to measure against and to judge gradients by.  Needs the extra `peers`."""

from __future__ import annotations

from collections.abc import Callable
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


TORCH_KINDS = ("contiguous", "channels_last", "bfloat16 contiguous", "bfloat16 channels_last")
"""PyTorch's memory formats, in float32 or under autocast to bfloat16."""


def torch_steps(
    stack: Graph | Stack,
    images: Array,
    labels: Array,
    optimizer: str,
    lr: float,
    threads: int,
    kinds: tuple[str, ...] = TORCH_KINDS,
    source: Input = Input(),
    selection: Selection = ALL,
    accumulate: int = 1,
) -> dict[str, Callable[[], None]]:
    """PyTorch training steps on one batch, by kind, of TORCH_KINDS.

    Eager mode, fused optimizer, float32 weights; each call is one whole step (input conversion, forward, loss, backward,
    update).  source: how the images are normalized.  selection: what is trained, as `freeze` has it.  accumulate: micro-batches
    of a step.
    """
    torch = torch_module()
    torch.set_num_threads(threads)
    steps: dict[str, Callable[[], None]] = {}
    planar = images.ndim == 4
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2) if planar else images))
    unit = 1.0 if source.floats else 1 / 255
    mean, deviation = np.array(source.mean or (0.0,)), np.array(source.deviation or (1.0,))
    factors = [v.astype(np.float32).reshape((-1, 1, 1) if planar else (-1,)) for v in (unit / deviation, -mean / deviation)]
    scale, shift = map(torch.from_numpy, factors)
    target, size = torch.from_numpy(labels.astype(np.int64)), micro_batch(len(labels), accumulate)
    squares = as_graph(stack).loss == "mse"
    for name in kinds:
        layout = torch.channels_last if planar and name.endswith("channels_last") else torch.contiguous_format
        half = name.startswith("bfloat16")
        model = to_torch(stack, images.shape[1:]).to(memory_format=layout)
        freeze(model, stack, images.shape[1:], selection)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
        extra = {"fused": True} | ({"momentum": 0.9} if optimizer == "sgd" else {})
        updater = kind([p for p in model.parameters() if p.requires_grad], lr=lr, **extra)
        entropy = torch.nn.MSELoss() if squares else torch.nn.CrossEntropyLoss()

        def step(
            model: Any = model, updater: Any = updater, layout: Any = layout, entropy: Any = entropy, half: bool = half
        ) -> None:
            updater.zero_grad(set_to_none=True)
            for some, labels in zip(pixels.split(size), target.split(size), strict=True):
                x = some.to(dtype=torch.float32, memory_format=layout, copy=True).mul_(scale)
                if source.mean:
                    x.add_(shift)
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    y = model(x)
                    loss = entropy(y, x.reshape(y.shape) if squares else labels) * (len(labels) / len(target))
                loss.backward()
            updater.step()

        steps[name] = step
    return steps
