"""Memory that a training step or an inference needs, from a network's geometry; docs/cost-model.md has the formula."""

from __future__ import annotations

import math

from octosim.layers import Add, BatchNorm, Dropout, Flatten, MaxPool, ReLU
from octosim.models import Network

FLOAT = 4  # bytes of float32

OPTIMIZER_SLOTS = 1
"""float32 values that the optimizer keeps for each parameter: the velocity of SGD with momentum; Adam has two."""


def footprint(network: Network, batch: int, inference: bool = False, slots: int = OPTIMIZER_SLOTS) -> dict[str, int]:
    """Bytes by what they hold, and their sum "peak": weights, gradients, optimizer, activations, workspace.

    A layer's gradients are gone when its parameters have moved, so the largest tensor's count.

    Inference keeps the codes of the weights alone.  The activations are what the backward passes need of the forward pass,
    each tensor once, in the narrowest form that they can use.  The workspace is the largest that values between layers take
    at any time besides these.
    """
    codes = 0 if network.method.name == "fp32" else 1  # bytes an element of a quantized tensor
    parameters = sum(p.size for node in network.nodes for p in node.params.values())
    quantized = sum(node.params["w"].size for node in network.nodes if node.layer.weighted)
    parts = {
        "weights": FLOAT * parameters + codes * quantized * (1 - FLOAT * inference),
        "gradients": 0 if inference else FLOAT * max(p.size for node in network.nodes for p in node.params.values()),
        "optimizer": 0 if inference else FLOAT * slots * parameters,
        "activations": 0 if inference else _activations(network, batch, codes),
        "workspace": max(_forward(network, batch, codes), 0 if inference else _backward(network, batch, codes)),
    }
    return parts | {"peak": sum(parts.values())}


def largest_batch(network: Network, capacity: float, inference: bool = False) -> int:
    """The largest batch whose peak is at most `capacity` bytes; 0 where none is."""
    one, two = (footprint(network, batch, inference)["peak"] for batch in (1024, 2048))
    slope = (two - one) / 1024  # every part is constant or proportional to the batch
    batch = max(0, int((capacity - (one - 1024 * slope)) / slope))
    while batch and footprint(network, batch, inference)["peak"] > capacity:  # parts round up to whole bytes
        batch -= 1
    return batch


def _activations(network: Network, batch: int, codes: int) -> int:
    """Kept from the forward to the backward pass.

    A float32 product keeps its input, an int8 product its input's codes; batch normalization its input, or where the method is
    compact its codes; ReLU the signs of its output, max pooling a byte an output; dropout draws its mask again.
    """
    source = _same_tensor(network)
    floats: set[int] = set()  # tensors kept in float32
    total = 0
    for node in network.nodes:
        if isinstance(node.layer, BatchNorm) and network.method.compact:
            total += batch * math.prod(node.in_shape)
        elif isinstance(node.layer, BatchNorm) or node.layer.weighted and not codes:
            floats.add(source[node.inputs[0]])
        elif node.layer.weighted:
            total += codes * batch * math.prod(node.in_shape)
        elif isinstance(node.layer, MaxPool):
            total += batch * math.prod(node.out_shape)
    for node in network.nodes:
        if isinstance(node.layer, ReLU):
            total += -(-batch * math.prod(node.out_shape) // 8)
    return total + sum(FLOAT * batch * _elements(network, tensor) for tensor in floats)


def _forward(network: Network, batch: int, codes: int) -> int:
    """The largest input and output of a layer that are there at once, with the codes of a quantized input."""
    sizes = []
    for node in network.nodes:
        x, y = (batch * math.prod(shape) for shape in (node.in_shape, node.out_shape))
        if node.layer.weighted:
            sizes.append(FLOAT * (x + y) + codes * x)
        else:
            sizes.append(FLOAT * (max(x, y) if isinstance(node.layer, ReLU | BatchNorm | Flatten | Dropout) else x + y))
    return max(sizes)


def _backward(network: Network, batch: int, codes: int) -> int:
    """The most gradients of tensors that are there at once.  Elementwise layers turn dY into dX in place."""
    held = {len(network.nodes) - 1: FLOAT * batch * math.prod(network.nodes[-1].out_shape)}
    most = 0
    for node in reversed(network.nodes):
        if node.index not in held:
            continue
        x, y = (batch * math.prod(shape) for shape in (node.in_shape, node.out_shape))
        in_place = isinstance(node.layer, ReLU | BatchNorm | Flatten | Dropout)
        made = 0 if in_place else FLOAT * x * (isinstance(node.layer, Add) or any(i >= 0 for i in node.inputs))
        most = max(most, sum(held.values()) + made + (codes * y if node.layer.weighted else 0))
        del held[node.index]
        for i in node.inputs:
            if i >= 0:
                held[i] = FLOAT * batch * math.prod(network.nodes[i].out_shape)
    return most


def _same_tensor(network: Network) -> dict[int, int]:
    """The node whose output a node's output is, seen through layers that move nothing; -1 is the network's input."""
    source = {-1: -1}
    for node in network.nodes:
        source[node.index] = source[node.inputs[0]] if isinstance(node.layer, Flatten) else node.index
    return source


def _elements(network: Network, tensor: int) -> int:
    return math.prod(network.nodes[0].in_shape if tensor < 0 else network.nodes[tensor].out_shape)
