"""Operators of ONNX as layers: one handler each, see HANDLERS.  A new layer needs one more entry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from octosim.engine.graph import INPUT
from octosim.engine.layers import (
    Add,
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
)
from octosim.graph.onnx import Array, Importer, Pads, Unsupported, Value
from octosim.onnxfile import attribute

Handler = Callable[[Importer, Any], Value | None]
NONNEGATIVE = ("relu", "avgpool", "pool")
"""Stems of layers whose output is not negative where their input is not."""


def _axes(node: Any, importer: Importer, rank: int, at: int = 1) -> tuple[int, ...] | None:
    """The axes of a reduction or a squeeze, an attribute or an input; None: all."""
    axes = attribute(node, "axes")
    if axes is None:
        given = importer.constant(node, at)
        axes = None if given is None else given.reshape(-1).tolist()
    return None if axes is None else tuple(int(axis) % rank for axis in axes)


# ---- products --------------------------------------------------


Ints = tuple[int, ...]


def _pads(node: Any, sizes: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> Pads:
    """Zeros (top, left, bottom, right) of a window over an image of these sizes."""
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
    else:
        pads = attribute(node, "pads") or [0] * (2 * len(sizes))
        before, after = pads[: len(sizes)], pads[len(sizes) :]
    if len(sizes) == 1:
        before, after = [0, *before], [0, *after]
    return before[0], before[1], after[0], after[1]


def _window(node: Any, value: Value, kernel: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], Pads]:
    """Kernel, stride and dilation (height, width), and zeros, of a window over an image or a signal."""
    stride = tuple(attribute(node, "strides") or [1] * len(kernel))
    dilation = tuple(attribute(node, "dilations") or [1] * len(kernel))
    pads = _pads(node, value.shape[2:], kernel, stride, dilation)
    if value.pad:
        pads = tuple(a + b for a, b in zip(pads, value.pad, strict=True))  # type: ignore[assignment]
    if len(kernel) == 1:
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    return (kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1]), pads


def _square(name: str, pair: tuple[int, ...]) -> int:
    if len(set(pair)) != 1:
        raise Unsupported(f"{name} {'x'.join(map(str, pair))}, expected one for both directions")
    return pair[0]


def _over_image(value: Value) -> None:
    if value.axes not in ((2, 3, 1), (None, 2, 1)) or len(value.shape) not in (3, 4):
        raise Unsupported(f"over a tensor of shape {value.shape} whose second axis is not that of the channels here")


def _conv(importer: Importer, node: Any) -> Value:
    x = importer.value(node, pad=True)
    w, b = importer.constant(node, 1), importer.constant(node, 2)
    assert w is not None
    shape = importer.shape(node.output[0])
    groups = attribute(node, "group", 1)
    if x.is_vector and x.axes == (1,) and x.order is None and math.prod(w.shape[2:]) == 1 and groups == 1 and not x.pad:
        # a 1x1 convolution of what a global pooling left
        return Value(_linear(importer, node, x, w.reshape(len(w), -1), b), shape, (1,))
    _over_image(x)
    kernel, stride, dilation, pads = _window(node, x, w.shape[2:])
    if set(dilation) != {1}:
        raise Unsupported(f"dilation {'x'.join(map(str, dilation))}")
    channels, filters = x.shape[1], len(w)
    size, step, pad = _square("a kernel", kernel), _square("a stride", stride), _square("padding", pads)
    w = w.reshape(filters, -1, *kernel).transpose(0, 2, 3, 1)
    if groups == channels == filters and groups > 1:
        layer: Any = DepthwiseConv2d(size, step, pad)
    elif groups == 1:
        layer = Conv2d(filters, size, step, pad)
    else:
        raise Unsupported(f"{groups} groups of {channels} channels")
    weights = {"w": w, "b": np.zeros(filters, np.float32) if b is None else b}
    return Value(importer.emit(node, layer, [x], weights, at=1), shape, x.axes)


def _linear(importer: Importer, node: Any, x: Value, w: Array, b: Array | None, at: int = 1) -> str:
    """A linear layer with weights (outputs, inputs) in ONNX's order of the inputs."""
    if x.order is not None:
        w = w[:, x.order]
    bias = np.zeros(len(w), np.float32) if b is None else np.broadcast_to(b.reshape(-1), (len(w),))
    return importer.emit(node, Linear(len(w)), [x], {"w": w, "b": bias}, at=at)


def _gemm(importer: Importer, node: Any) -> Value:
    x, w, b = importer.value(node), importer.constant(node, 1), importer.constant(node, 2)
    assert w is not None
    if attribute(node, "transA", 0):
        raise Unsupported("transA")
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    w = (w if attribute(node, "transB", 0) else w.T) * np.float32(alpha)
    b = None if b is None else b * np.float32(beta)
    return Value(_linear(importer, node, x, w, b), importer.shape(node.output[0]), (1,))


def _matmul(importer: Importer, node: Any) -> Value:
    x, w = importer.value(node), importer.constant(node, 1)
    assert w is not None
    if w.ndim != 2:
        raise Unsupported(f"by a constant of shape {w.shape}")
    if x.axes[-1] != len(x.shape) - 1:
        raise Unsupported("along an axis that is not the last here")
    shape = importer.shape(node.output[0])
    return Value(_linear(importer, node, x, w.T, None), shape, x.axes if not x.is_vector else (len(shape) - 1,))


# ---- normalization and activations --------------------------------------------------


def _batchnorm(importer: Importer, node: Any) -> Value:
    x = importer.value(node)
    gamma, beta, mean, var = (importer.constant(node, at) for at in (1, 2, 3, 4))
    assert gamma is not None and beta is not None and mean is not None and var is not None
    if x.axes[-1] != 1:
        raise Unsupported("of an axis that is not that of the channels here")
    parts = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    if x.order is not None:
        parts = {key: part[x.order] for key, part in parts.items()}
    momentum = 1 - attribute(node, "momentum", 0.9)
    layer = BatchNorm(round(attribute(node, "epsilon", 1e-5), 12), round(momentum, 6) or 0.1)
    return replace(x, layer=importer.emit(node, layer, [x], parts, at=1))


def _elementwise(layer: Any) -> Handler:
    def handler(importer: Importer, node: Any) -> Value:
        x = importer.value(node)
        return replace(x, layer=importer.emit(node, layer, [x]))

    return handler


def _clip(importer: Importer, node: Any) -> Value:
    low, high = attribute(node, "min"), attribute(node, "max")
    low = importer.constant(node, 1) if low is None else low
    high = importer.constant(node, 2) if high is None else high
    bottom, top = (None if limit is None else float(np.asarray(limit)) for limit in (low, high))
    return _clipped(importer, node, importer.value(node), bottom, top)


def _clipped(importer: Importer, node: Any, x: Value, low: float | None, high: float | None) -> Value:
    if low == 0 and (high is None or high > 3e38):
        return replace(x, layer=importer.emit(node, ReLU(), [x]))
    raise Unsupported(f"to {low} .. {high}")


def _dropout(importer: Importer, node: Any) -> Value:
    x = importer.value(node, pad=True)
    mode = importer.constant(node, 2)
    if mode is None or not bool(mode):
        return x
    ratio = importer.constant(node, 1)
    return replace(x, layer=importer.emit(node, Dropout(0.5 if ratio is None else round(float(ratio), 6)), [x]))


def _same(importer: Importer, node: Any) -> Value:
    return importer.value(node, pad=True)


def _at_the_end(importer: Importer, node: Any) -> Value:
    """Softmax: the loss makes it."""
    x = importer.value(node)
    name = node.output[0]
    while name not in importer.model.outputs:
        users = [user for user in importer.users.get(name, []) if user is not None]
        if len(users) != 1 or users[0].op_type not in ("Identity", "Cast", "Flatten", "Reshape", "Squeeze"):
            raise Unsupported("not at the network's end")
        name = users[0].output[0]
    importer.notes.append(f"{node.op_type} at the end is left out: it belongs to the loss")
    return x


# ---- pooling --------------------------------------------------


def _maxpool(importer: Importer, node: Any) -> Value:
    x = importer.value(node)
    _over_image(x)
    kernel, stride, dilation, pads = _window(node, x, tuple(attribute(node, "kernel_shape")))
    shape = importer.shape(node.output[0])
    if set(dilation) != {1} or attribute(node, "ceil_mode", 0) and shape != _floor(x, kernel, stride, pads):
        raise Unsupported("with dilation or ceil_mode")
    if any(pads):
        raise Unsupported("with padding")
    layer = MaxPool(_square("a kernel", kernel), _square("a stride", stride))
    return Value(importer.emit(node, layer, [x]), importer.shape(node.output[0]), x.axes)


def _floor(x: Value, kernel: tuple[int, int], stride: tuple[int, int], pads: Pads) -> tuple[int, ...]:
    height, width = (
        (size + pads[i] + pads[i + 2] - kernel[i]) // stride[i] + 1 for i, size in enumerate(x.own[:2])
    )
    return (*x.shape[:2], height, width) if len(x.shape) == 4 else (*x.shape[:2], width)


def _global_average(importer: Importer, node: Any) -> Value:
    x = importer.value(node)
    shape = importer.shape(node.output[0])
    if x.is_vector or x.axes[-1] != 1:
        raise Unsupported(f"of a tensor of shape {x.shape}")
    return Value(importer.emit(node, GlobalAvgPool(), [x]), shape, (1,))


def _average(importer: Importer, node: Any) -> Value:
    """A window over the whole image."""
    x = importer.value(node)
    _over_image(x)
    kernel, _, _, pads = _window(node, x, tuple(attribute(node, "kernel_shape")))
    if kernel != x.own[:2] or any(pads):
        raise Unsupported(f"a window of {'x'.join(map(str, kernel))}")
    return _global_average(importer, node)


def _mean(importer: Importer, node: Any) -> Value:
    """The mean over height and width."""
    x = importer.value(node)
    axes = _axes(node, importer, len(x.shape))
    if axes is None or len(x.axes) != 3 or {x.axes[0], x.axes[1]} - {None} != set(axes):
        raise Unsupported("over other axes than height and width")
    shape = importer.shape(node.output[0])
    channels = x.axes[2]
    assert channels is not None
    kept = attribute(node, "keepdims", 1)
    own = channels if kept else channels - sum(axis < channels for axis in axes)
    return Value(importer.emit(node, GlobalAvgPool(), [x]), shape, (own,))


# ---- shapes --------------------------------------------------


def _transpose(importer: Importer, node: Any) -> Value:
    x = importer.value(node)
    rank = len(x.shape)
    perm = attribute(node, "perm") or list(range(rank))[::-1]
    if perm[0] != 0:
        raise Unsupported("of the batch")
    axes = tuple(None if axis is None else perm.index(axis) for axis in x.axes)
    return replace(x, shape=importer.shape(node.output[0]), axes=axes)


def _reshape(importer: Importer, node: Any) -> Value:
    x, shape = importer.value(node), importer.shape(node.output[0])
    if shape[:1] != x.shape[:1]:
        raise Unsupported(f"{x.shape} to {shape}: of the batch")
    wide = [axis for axis, size in enumerate(shape) if axis and size != 1] or [len(shape) - 1]
    if x.is_vector and len(wide) == 1:
        return replace(x, shape=shape, axes=(wide[0],))
    held = [axis for axis, size in enumerate(x.shape) if axis and size != 1]
    if [x.shape[axis] for axis in held] == [shape[axis] for axis in wide] and x.order is None:  # only sizes of 1 come and go
        places = dict(zip(held, wide, strict=True))
        return replace(x, shape=shape, axes=tuple(None if axis is None else places.get(axis) for axis in x.axes))
    if len(wide) == 1:
        return _flattened(importer, node, x, shape, wide[0])
    raise Unsupported(f"{x.shape} to {shape}")


def _flattened(importer: Importer, node: Any, x: Value, shape: tuple[int, ...], axis: int) -> Value:
    name = importer.emit(node, Flatten(), [x])
    features = np.arange(math.prod(x.shape[1:])).reshape(x.shape[1:])
    own = [a - 1 for a in x.axes if a is not None]
    rest = [a for a in range(features.ndim) if a not in own]  # of size 1
    order = features.transpose(*own, *rest).reshape(-1)
    straight = bool((order == np.arange(order.size)).all())
    return Value(name, shape, (axis,), None if straight else order)


def _pad(importer: Importer, node: Any) -> Value:
    x = importer.value(node, pad=True)
    pads = attribute(node, "pads")
    if pads is None:
        given = importer.constant(node, 1)
        pads = [] if given is None else given.astype(int).tolist()
    value = importer.constant(node, 2)
    mode = attribute(node, "mode", "constant")
    _over_image(x)
    rank = len(x.shape)
    named = importer.constant(node, 3)
    full = [0] * (2 * rank)
    for at, axis in enumerate(range(rank) if named is None else named.astype(int).tolist()):
        full[axis % rank], full[rank + axis % rank] = pads[at], pads[at + len(pads) // 2]
    if not any(full):
        return x
    if mode != "constant" or value is not None and float(value.reshape(-1)[0]) != 0 or attribute(node, "value", 0.0) != 0:
        raise Unsupported("with other values than zeros")
    if any(full[:2]) or any(full[rank : rank + 2]) or min(full) < 0:
        raise Unsupported("of the batch or the channels, or by less than nothing")
    low, high = full[2:rank], full[rank + 2 :]
    low, high = ([0, *low], [0, *high]) if rank == 3 else (low, high)
    old = x.pad or (0, 0, 0, 0)
    return replace(x, pad=(old[0] + low[0], old[1] + low[1], old[2] + high[0], old[3] + high[1]))


# ---- arithmetic --------------------------------------------------


def _operands(importer: Importer, node: Any) -> tuple[list[Value], list[Array], int]:
    """Values, constants, and where the first value stands."""
    values, constants, first = [], [], -1
    for at, name in enumerate(node.input):
        if name in importer.model.constants:
            constant = importer.constant(node, at)
            assert constant is not None
            constants.append(constant)
        else:
            values.append(importer.value(node, at))
            first = at if first < 0 else first
    return values, constants, first


def _add(importer: Importer, node: Any) -> Value:
    values, constants, _ = _operands(importer, node)
    if constants:
        if len(values) != 1 or len(constants) != 1:
            raise Unsupported("of several constants")
        return _affine(importer, node, values[0], None, constants[0])
    if len(values) > 2 or len(values) < 1:
        raise Unsupported(f"of {len(values)} tensors")
    if len(values) == 1:
        return values[0]
    a, b = values
    if a.own != b.own or a.axes != b.axes or (a.order is None) != (b.order is None):
        raise Unsupported(f"of tensors of shapes {a.shape} and {b.shape}")
    return replace(a, layer=importer.emit(node, Add(), [a, b]), shape=importer.shape(node.output[0]))


def _sub(importer: Importer, node: Any) -> Value:
    values, constants, first = _operands(importer, node)
    if len(values) == 1 and len(constants) == 1 and first == 0:
        return _affine(importer, node, values[0], None, -constants[0])
    raise Unsupported("of two tensors")


def _mul(importer: Importer, node: Any) -> Value:
    values, constants, _ = _operands(importer, node)
    if len(values) == 1 and len(constants) == 1:
        return _affine(importer, node, values[0], constants[0], None)
    raise Unsupported(f"of tensors of shapes {' and '.join(str(value.shape) for value in values)}")


def _div(importer: Importer, node: Any) -> Value:
    values, constants, first = _operands(importer, node)
    if len(values) == 1 and len(constants) == 1 and first == 0:
        return _affine(importer, node, values[0], 1 / constants[0], None)
    raise Unsupported("by a tensor")


def _affine(importer: Importer, node: Any, x: Value, scale: Array | None, shift: Array | None) -> Value:
    """x * scale + shift with constants: part of the weights of the layer that makes x, where nothing else takes x."""
    constant = scale if scale is not None else shift
    assert constant is not None
    rank, channel = len(x.shape), x.axes[-1]
    sizes = (1,) * (rank - constant.ndim) + constant.shape
    if len(sizes) > rank or any(size != 1 and axis != channel for axis, size in enumerate(sizes)):
        raise Unsupported(f"with a constant of shape {constant.shape}")
    assert channel is not None
    row = np.broadcast_to(constant.reshape(-1), (x.shape[channel],)) if constant.size == 1 else constant.reshape(-1)
    row = row if x.order is None else row[x.order]
    if scale is not None and bool((row == 1).all()) or shift is not None and not row.any():
        return x
    source = next(name for name in node.input if name not in importer.model.constants)
    entry = importer.entry(x.layer)
    if x.layer == INPUT or entry is None or not importer.alone(source):
        raise Unsupported("with a constant, of a tensor whose layer cannot take it over")
    keys = {"bn": ("gamma", "beta")}.get(entry.layer.stem, ("w", "b"))
    weights, name = importer.weights, entry.name
    if f"{name}.{keys[0]}" not in weights or weights[f"{name}.{keys[1]}"].shape != row.shape:
        raise Unsupported("with a constant, of a tensor whose layer cannot take it over")
    if scale is not None:
        w = weights[f"{name}.{keys[0]}"]
        weights[f"{name}.{keys[0]}"] = w * row.reshape(-1, *([1] * (w.ndim - 1)))
        weights[f"{name}.{keys[1]}"] = weights[f"{name}.{keys[1]}"] * row
    else:
        weights[f"{name}.{keys[1]}"] = weights[f"{name}.{keys[1]}"] + row
    return x


# ---- quantized files --------------------------------------------------


def _quantize(importer: Importer, node: Any) -> Value:
    """The tensor itself.  A zero point at the least code means that no value was negative: tools leave out the ReLU whose
    limits the codes have anyhow."""
    x, scale, zero = importer.value(node), importer.constant(node, 1), importer.constant(node, 2)
    if scale is None or scale.size != 1:
        raise Unsupported("of an activation with several scales")
    limits = np.iinfo(np.uint8 if zero is None else zero.dtype)
    offset, step = 0 if zero is None else int(zero.reshape(-1)[0]), float(scale.reshape(-1)[0])
    low, high = (limits.min - offset) * step, (limits.max - offset) * step
    entry = importer.entry(x.layer)
    if entry is None or low != 0 or entry.layer.stem in NONNEGATIVE:
        return x
    top = 6.0 if abs(high - 6) < step else None
    try:
        return _clipped(importer, node, x, 0.0, top)
    except Unsupported:
        return _clipped(importer, node, x, 0.0, None)


HANDLERS: dict[str, Handler] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batchnorm,
    "Relu": _elementwise(ReLU()),
    "Clip": _clip,
    "MaxPool": _maxpool,
    "AveragePool": _average,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _mean,
    "Dropout": _dropout,
    "Identity": _same,
    "Cast": _same,
    "Softmax": _at_the_end,
    "LogSoftmax": _at_the_end,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Pad": _pad,
    "Add": _add,
    "Sum": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _same,
}
