"""Layers of other packages, whose results are checked: a wrong one is told with the layer's name, and where it was made."""

from __future__ import annotations

from typing import Any

import numpy as np

from octosim.engine.layers import LAYERS
from octosim.engine.nodes import Context, Method, Node
from octosim.errors import OctosimError


def shape_of(layer: Any, shape: Any) -> tuple[int, ...]:
    """What a layer's `out_shape` gave; OctosimError where that is no shape."""
    if type(layer) in LAYERS:
        return tuple(shape)
    numbers = list(shape) if isinstance(shape, tuple) else []
    if not numbers or not all(isinstance(n, int | np.integer) and n > 0 for n in numbers):
        raise OctosimError(f"out_shape gave {shape!r}, expected a tuple of positive integers")
    return tuple(map(int, numbers))


def check_parameters(node: Node) -> None:
    """OctosimError where a layer of another package has a parameter that is no float32 array."""
    if type(node.layer) in LAYERS:
        return
    for key, values in node.params.items():
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or not values.flags.c_contiguous:
            raise OctosimError(f"layer {node.name}: parameter '{key}' is {_told(values)}, expected a contiguous float32 array")


class CheckedPasses:
    """The passes of a layer of another package."""

    def __init__(self, layer: Any):
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def forward(self, node: Node, x: Any, method: Method, context: Context) -> Any:
        batch = (x[0] if isinstance(x, tuple) else x).shape[0]
        y = self._layer.forward(node, x, method, context)
        _check(node, "forward gave", y, (batch, *node.out_shape))
        return y

    def input_grad(self, node: Node, dy: Any, method: Method, context: Context) -> Any:
        dx = self._layer.input_grad(node, dy, method, context)
        if node.layer.weighted:
            return dx
        parts = dx if isinstance(dx, tuple) else (dx,)
        if len(parts) != len(node.inputs):
            raise OctosimError(f"layer {node.name}: input_grad gave {len(parts)} gradients for {len(node.inputs)} inputs")
        for part, shape in zip(parts, node.in_shapes, strict=True):
            _check(node, "input_grad gave", part, (dy.shape[0], *shape))
        for key in sorted(node.trained):
            if key not in node.grads:
                raise OctosimError(f"layer {node.name}: the backward passes set no node.grads['{key}']")
            _check(node, f"node.grads['{key}'] is", node.grads[key], node.chosen(key).shape)
        return dx


def _check(node: Node, what: str, values: Any, shape: tuple[int, ...]) -> None:
    """OctosimError where values, which may be lazy, are no float32 array of a shape."""
    if values is not None and not isinstance(values, np.ndarray):
        return
    if values is None or values.dtype != np.float32 or values.shape != shape or not values.flags.c_contiguous:
        raise OctosimError(f"layer {node.name}: {what} {_told(values)}, expected a contiguous float32 array of shape {shape}")


def _told(values: Any) -> str:
    if not isinstance(values, np.ndarray):
        return "None" if values is None else type(values).__name__
    how = "" if values.flags.c_contiguous else ", not contiguous"
    return f"{values.dtype} {values.shape}{how}"
