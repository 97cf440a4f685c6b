"""Memory that a training step or an inference needs, from a network's geometry; docs/cost-model.md has the formula."""

from __future__ import annotations

import math
from collections.abc import Sequence

from octosim.engine import Network
from octosim.engine.layers import Add, BatchNorm, Dropout, Flatten, ReLU
from octosim.engine.nodes import Kept
from octosim.trace import DTYPE_BYTES

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
    kept = _kept(network, batch)
    weights = sum(p.nbytes for node in network.nodes for p in node.params.values())
    if inference:
        weights -= sum(max(0, node.params["w"].nbytes - (one.weights or node.params["w"].nbytes))
                       for node, one in zip(network.nodes, kept, strict=True) if node.layer.weighted)  # fmt: skip
    else:
        weights += sum(one.weights for one in kept)
    parameters = sum(p.size for node in network.nodes for p in node.params.values())
    trains = 0 if inference or "optimizer" in network.method.unused else FLOAT
    parts = {
        "weights": weights,
        "gradients": 0 if inference else FLOAT * max(p.size for node in network.nodes for p in node.params.values()),
        "optimizer": trains * slots * parameters,
        "activations": 0 if inference else _activations(network, batch, kept),
        "workspace": max(_forward(network, batch, kept), 0 if inference else _backward(network, batch)),
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


def _kept(network: Network, batch: int) -> list[Kept]:
    """What each layer keeps, by the method's own pass of it where that says so."""
    passes = zip(network.passes, network.nodes, strict=True)
    return [getattr(layer, "kept", node.layer.kept)(node, network.method, batch) for layer, node in passes]


def _activations(network: Network, batch: int, kept: Sequence[Kept]) -> int:
    """Kept from the forward to the backward pass, a tensor that several layers keep once."""
    source = _same_tensor(network)
    given = {source[node.inputs[0]] for node, one in zip(network.nodes, kept, strict=True) if one.given}
    tensors = given | {node.index for node, one in zip(network.nodes, kept, strict=True) if one.made}
    size = DTYPE_BYTES[network.method.values]
    return sum(one.own for one in kept) + sum(size * batch * _elements(network, tensor) for tensor in tensors)


def _forward(network: Network, batch: int, kept: Sequence[Kept]) -> int:
    """The largest input and output of a layer that are there at once, with what is made of the input for a product."""
    sizes = []
    for node, one in zip(network.nodes, kept, strict=True):
        x, y = (batch * math.prod(shape) for shape in (node.in_shape, node.out_shape))
        if node.layer.weighted:
            sizes.append(FLOAT * (x + y) + one.own)
        else:
            sizes.append(FLOAT * (max(x, y) if isinstance(node.layer, ReLU | BatchNorm | Flatten | Dropout) else x + y))
    return max(sizes)


def _backward(network: Network, batch: int) -> int:
    """The most gradients of tensors that are there at once, with dY's codes.  Elementwise layers turn dY into dX in place."""
    codes = 1 if network.method.bits["errors"].startswith("int8") else 0
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
