"""The same networks in PyTorch, to measure against and to judge gradients by.  Needs the extra `peers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from octosim.errors import OctosimError
from octosim.layers import BatchNorm, Conv2d, Dropout, Flatten, Layer, Linear, MaxPool, ReLU
from octosim.models import Network, nodes

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


def to_torch(stack: tuple[Layer, ...], in_shape: tuple[int, ...]) -> Any:
    """An nn.Sequential of the same layers for (batch, channels, height, width) float32 input."""
    nn = torch_module().nn
    made = []
    for node in nodes(stack, in_shape):
        layer, size = node.layer, node.in_shape[-1]
        match layer:
            case Conv2d():
                made.append(nn.Conv2d(size, layer.filters, layer.kernel, layer.stride, layer.pad))
            case Linear():
                made.append(nn.Linear(size, node.out_shape[0]))
            case BatchNorm():
                kind = nn.BatchNorm2d if len(node.in_shape) == 3 else nn.BatchNorm1d
                made.append(kind(size, eps=layer.eps, momentum=layer.momentum))
            case ReLU():
                made.append(nn.ReLU(inplace=True))
            case MaxPool():
                made.append(nn.MaxPool2d(layer.kernel, layer.stride))
            case Dropout():
                made.append(nn.Dropout(layer.rate))
            case Flatten():
                made.append(nn.Flatten())
    return nn.Sequential(*made)


def weights_to_torch(network: Network) -> dict[str, Array]:
    """The network's parameters, and its gradients under "grad.", named and laid out as `to_torch`'s state."""
    found: dict[str, Array] = {}
    flattened: tuple[int, ...] | None = None
    names = {"w": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}
    for i, node in enumerate(network.nodes):
        if isinstance(node.layer, Flatten) and len(node.in_shape) == 3:
            flattened = node.in_shape
        for key, value in node.params.items():
            for prefix, array in (("", value), ("grad.", node.grads.get(key))):
                if array is None or key not in names:
                    continue
                if key == "w" and array.ndim == 4:
                    array = array.transpose(0, 3, 1, 2)
                elif key == "w" and flattened:
                    array = _permuted(array, flattened)
                found[f"{prefix}{i}.{names[key]}"] = np.ascontiguousarray(array)
        if isinstance(node.layer, Linear):
            flattened = None
    return found


def torch_steps(
    stack: tuple[Layer, ...], images: Array, labels: Array, optimizer: str, lr: float, threads: int
) -> dict[str, Callable[[], None]]:
    """PyTorch FP32 training steps on one batch, by memory format: "contiguous" and "channels_last".

    Eager mode, fused optimizer, float32; each call is one whole step (input conversion, forward, loss, backward, update).
    """
    torch = torch_module()
    torch.set_num_threads(threads)
    steps: dict[str, Callable[[], None]] = {}
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    target = torch.from_numpy(labels.astype(np.int64))
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model = to_torch(stack, images.shape[1:]).to(memory_format=layout)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
        extra = {"fused": True} | ({"momentum": 0.9} if optimizer == "sgd" else {})
        updater = kind(model.parameters(), lr=lr, **extra)
        entropy = torch.nn.CrossEntropyLoss()

        def step(model: Any = model, updater: Any = updater, layout: Any = layout, entropy: Any = entropy) -> None:
            x = pixels.to(dtype=torch.float32, memory_format=layout).mul_(1 / 255)
            updater.zero_grad(set_to_none=True)
            entropy(model(x), target).backward()
            updater.step()

        steps[name] = step
    return steps
