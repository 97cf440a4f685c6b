"""Operators of ONNX as layers: one handler each, see HANDLERS.  A new layer needs one more entry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from octosim.engine.layers import (
    GELU,
    LONGEST_WINDOW,
    Add,
    Attention,
    BatchNorm,
    Clip,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    HardSigmoid,
    HardSwish,
    LayerNorm,
    LeakyReLU,
    Linear,
    Multiply,
    Positions,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from octosim.engine.nodes import LOSSES
from octosim.graph import movement, windows
from octosim.graph.onnx import Array, Importer, Unsupported, Value
from octosim.graph.windows import Ints, images, sides, window
from octosim.onnxfile import attribute

TAKES_OVER = ("conv", "depthwise", "linear", "batchnorm", "layernorm")
"""Kinds of layers whose weights take a factor or a summand of each channel over."""
LARGEST = float(np.finfo(np.float32).max)
Handler = Callable[[Importer, Any], Value]
NONNEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "avgpool", "pool")
"""Stems of layers whose output is not negative where their input is not."""

# ---- products --------------------------------------------------


def _conv(importer: Importer, node: Any) -> Value:
    x = importer.value(node, pad=True)
    w, b = importer.constant(node, 1), importer.constant(node, 2)
    assert w is not None
    shape = importer.shape(node.output[0])
    groups = attribute(node, "group", 1)
    if x.is_vector and x.axes == (1,) and x.order is None and math.prod(w.shape[2:]) == 1 and groups == 1 and not x.pad:
        # a 1x1 convolution of what a global pooling left
        return Value(_linear(importer, node, x, w.reshape(len(w), -1), b), shape, (1,))
    x = images(importer, node, x)
    kernel, stride, dilation, pads = window(node, x, w.shape[2:])
    channels, filters = x.shape[1], len(w)
    w = w.reshape(filters, -1, *kernel).transpose(0, 2, 3, 1)
    geometry = {"kernel": sides(kernel), "stride": sides(stride), "pad": sides(pads), "dilation": sides(dilation)}
    fields: Any = geometry | {"bias": b is not None}
    patches = kernel == stride and not any(pads) and groups == 1 and set(dilation) == {1}
    if patches and math.prod(kernel) * max(channels, filters) > LONGEST_WINDOW:
        return _patches(importer, node, x, kernel, w, b)
    if groups == channels and groups > 1 and filters % channels == 0:
        layer: Any = DepthwiseConv2d(multiplier=filters // channels, **fields)
    else:
        layer = Conv2d(filters, groups=groups, **fields)
    return Value(importer.emit(node, layer, [replace(x, pad=None)], _with(w, b), at=1), shape, x.axes)


def _patches(importer: Importer, node: Any, x: Value, kernel: tuple[int, int], w: Array, b: Array | None) -> Value:
    """A convolution of patches side by side, too large for one: a linear layer of each patch."""
    (high, wide), (height, width, channels), filters = kernel, x.own, len(w)
    rows, columns = height // high, width // wide
    if (rows * high, columns * wide) != (height, width):
        raise Unsupported(f"patches of {high}x{wide} that do not fill {height}x{width}")
    split = (rows, high, columns, wide, channels)
    parts = Value(importer.shaped(node, x.layer, split), (1, *split), (1, 2, 3, 4, 5))
    turned = importer.turn(node, parts, (1, 3, 2, 4, 5))
    flat = (rows * columns, high * wide * channels)
    tokens = Value(importer.shaped(node, turned.layer, flat), (1, *flat), (1, 2))
    name = _linear(importer, node, tokens, w.reshape(filters, -1), b)
    return Value(importer.shaped(node, name, (rows, columns, filters)), importer.shape(node.output[0]), (2, 3, 1))


def _with(w: Array, b: Array | None) -> dict[str, Array]:
    return {"w": w} if b is None else {"w": w, "b": b}


def _linear(importer: Importer, node: Any, x: Value, w: Array, b: Array | None, at: int = 1) -> str:
    """A linear layer with weights (outputs, inputs) in ONNX's order of the inputs."""
    if x.order is not None:
        if len(x.order) != w.shape[1]:
            raise Unsupported(f"of a flattened tensor of shape {x.shape} by weights of shape {w.shape}")
        w = w[:, x.order]
    bias = None if b is None else _row(b, len(w))
    if len(x.axes) == 3:  # of each pixel
        return importer.emit(node, Conv2d(len(w), 1, bias=bias is not None), [x], _with(w[:, None, None, :], bias), at=at)
    return importer.emit(node, Linear(len(w), bias=bias is not None), [x], _with(w, bias), at=at)


def _row(b: Array, outputs: int) -> Array:
    """A summand of each output, of one that ONNX broadcasts to (batch, outputs)."""
    rows = b.reshape(-1, b.shape[-1]) if b.ndim else b.reshape(1, 1)
    if b.ndim > 2 or rows.shape[1] not in (1, outputs) or (rows != rows[0]).any():
        raise Unsupported(f"with a constant of shape {b.shape}, expected one value for each of {outputs} outputs")
    return np.broadcast_to(rows[0], (outputs,))


def _gemm(importer: Importer, node: Any) -> Value:
    w, b = importer.constant(node, 1), importer.constant(node, 2)
    assert w is not None
    if attribute(node, "transA", 0):
        raise Unsupported("transA")
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    w = (w if attribute(node, "transB", 0) else w.T) * np.float32(alpha)
    return _of_channels(importer, node, w, None if b is None else b * np.float32(beta))


def _matmul(importer: Importer, node: Any) -> Value:
    if all(name not in importer.model.constants for name in node.input):
        return _activations(importer, node)
    w = importer.constant(node, 1)
    assert w is not None
    if w.ndim != 2:
        raise Unsupported(f"by a constant of shape {w.shape}")
    return _of_channels(importer, node, w.T, None)


def _of_channels(importer: Importer, node: Any, w: Array, b: Array | None) -> Value:
    """A linear layer of ONNX's last axis; w (outputs, inputs)."""
    x = importer.value(node, joined=True)
    last = len(x.shape) - 1
    if last in (x.batch, *x.joined):
        raise Unsupported("of the batch")
    if w.shape[1:] != x.shape[last:]:
        raise Unsupported(f"of a tensor of shape {x.shape} by weights of shape {w.shape}")
    if x.axes[-1] != last:
        x = importer.turn(node, x, tuple(axis for axis in x.axes if axis != last) + (last,))
    return replace(x, layer=_linear(importer, node, x, w, b), shape=(*x.shape[:-1], len(w)), order=None)


# ---- attention: products of activations --------------------------------------------------


def _activations(importer: Importer, node: Any) -> Value:
    """Q K^T, whose scores are no tensor here, or the values that softmax's weights choose from."""
    a, b = (importer.value(node, at, heads=True, joined=True) for at in (0, 1))
    shape = (*a.shape[:-1], b.shape[-1])
    if a.joined != b.joined or a.joined not in ((), (0, 1)) or len(a.shape) != len(b.shape):
        raise Unsupported("of two activations")
    if a.product and a.weighs:
        q, k = a.product
        return _attention(importer, node, q, k, b, shape)
    if a.product or b.product or a.batch or b.batch or len(shape) not in (3, 4):
        raise Unsupported("of two activations")
    return replace(a, shape=shape, product=(a, b), scale=1.0)


def _attention(importer: Importer, node: Any, q: Value, k: Value, v: Value, shape: Ints) -> Value:
    """q and v (batch, heads, tokens, depth), k (batch, heads, depth, tokens); the axis of the heads may be missing."""
    rank = len(q.shape)
    depth = q.shape[-1]
    if not math.isclose(q.scale * k.scale, 1 / math.sqrt(depth), rel_tol=1e-3) or v.scale != 1:
        raise Unsupported(f"scores times {q.scale * k.scale:g}, expected 1 / sqrt({depth})")
    heads = q.shape[1] if rank == 4 else 1

    def rows(value: Value, tokens: int, channels: int) -> Value:
        middle = (1,) if rank == 4 and 1 in value.axes else ()
        value = importer.turn(node, replace(value, scale=1.0), (tokens, *middle, channels))
        own = (value.shape[tokens], heads * value.shape[channels])
        return replace(value, layer=importer.shaped(node, value.layer, own), shape=(1, *own), axes=(1, 2), joined=())

    parts = [rows(q, rank - 2, rank - 1), rows(k, rank - 1, rank - 2), rows(v, rank - 2, rank - 1)]
    name = importer.emit(node, Attention(heads), parts)
    if heads == 1:
        return Value(name, shape, (rank - 2, rank - 1), joined=q.joined)
    return Value(importer.shaped(node, name, (shape[2], heads, shape[3])), shape, (2, 1, 3), joined=q.joined)


def _softmax(importer: Importer, node: Any) -> Value:
    x = importer.value(node, heads=True, joined=True)
    if not x.product:
        return _at_the_end(importer, node)
    axis, rank = attribute(node, "axis", -1 if importer.model.opset >= 13 else 1), len(importer.shape(node.input[0]))
    if axis % rank != rank - 1:
        raise Unsupported("of scores over another axis than the last")
    q, k = x.product
    return replace(x, product=(replace(q, scale=q.scale * x.scale), k), scale=1.0, weighs=True)


def _attention_operator(importer: Importer, node: Any) -> Value:
    """The operator of opset 23: (batch, heads, tokens, depth) or (batch, tokens, heads x depth)."""
    if any(node.input[3:]) or attribute(node, "is_causal", 0) or attribute(node, "softcap", 0.0):
        raise Unsupported("with a mask, a past or a softcap")
    q, k, v = (importer.plain(node, at) for at in (0, 1, 2))
    shape, scale = importer.shape(node.output[0]), attribute(node, "scale")
    if len(q.shape) == 3:
        heads = attribute(node, "q_num_heads", 1)
        if scale is not None and not math.isclose(scale, 1 / math.sqrt(q.shape[2] // heads), rel_tol=1e-3):
            raise Unsupported(f"scale {scale}")
        parts = [importer.turn(node, value, (1, 2)) for value in (q, k, v)]
        return Value(importer.emit(node, Attention(heads), parts), shape, (1, 2))
    k = replace(k, shape=(*k.shape[:2], k.shape[3], k.shape[2]), axes=tuple({2: 3, 3: 2}.get(a or 0, a) for a in k.axes))
    q = replace(q, scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return _attention(importer, node, q, k, v, shape)


# ---- normalization and activations --------------------------------------------------


def _batchnorm(importer: Importer, node: Any) -> Value:
    x = importer.plain(node)
    gamma, beta, mean, var = (importer.constant(node, at) for at in (1, 2, 3, 4))
    assert gamma is not None and beta is not None and mean is not None and var is not None
    if x.axes[-1] != 1:
        x = images(importer, node, x)
    parts = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    if x.order is not None:
        parts = {key: part[x.order] for key, part in parts.items()}
    momentum = 1 - attribute(node, "momentum", 0.9)
    layer = BatchNorm(_short(attribute(node, "epsilon", 1e-5)), round(momentum, 6) or 0.1)
    return replace(x, layer=importer.emit(node, layer, [x], parts, at=1))


def _elementwise(layer: Any) -> Handler:
    def handler(importer: Importer, node: Any) -> Value:
        x = importer.value(node, joined=True)
        return replace(x, layer=importer.emit(node, layer, [x]))

    return handler


def _clip(importer: Importer, node: Any) -> Value:
    low, high = attribute(node, "min"), attribute(node, "max")
    low = importer.constant(node, 1) if low is None else low
    high = importer.constant(node, 2) if high is None else high
    if any(np.size(limit) != 1 for limit in (low, high) if limit is not None):
        raise Unsupported("with several limits")
    bottom, top = (None if limit is None else float(np.reshape(limit, ())) for limit in (low, high))
    given = importer.values.get(node.input[0])
    if given is not None and given.weighs and all(user.op_type == "QuantizeLinear" for user in importer.users[node.output[0]]):
        return given  # the range of an attention's weights
    return _clipped(importer, node, importer.value(node), bottom, top)


def _clipped(importer: Importer, node: Any, x: Value, low: float | None, high: float | None) -> Value:
    low, high = max(-LARGEST, -LARGEST if low is None else low), min(LARGEST, LARGEST if high is None else high)
    if (low, high) == (-LARGEST, LARGEST):
        return x
    layer: Any = Clip(low, high)
    if low == 0:
        layer = ReLU() if high == LARGEST else ReLU6() if high == 6 else layer
    return replace(x, layer=importer.emit(node, layer, [x]))


def _leaky(importer: Importer, node: Any) -> Value:
    return _elementwise(LeakyReLU(_short(attribute(node, "alpha", 0.01))))(importer, node)


def _hardsigmoid(importer: Importer, node: Any) -> Value:
    alpha, beta = _short(attribute(node, "alpha", 0.2)), _short(attribute(node, "beta", 0.5))
    layer = HardSigmoid() if math.isclose(alpha, 1 / 6, rel_tol=1e-5) and beta == 0.5 else HardSigmoid(alpha, beta)
    return _elementwise(layer)(importer, node)


def _swish(importer: Importer, node: Any) -> Value:
    if attribute(node, "alpha", 1.0) != 1:
        raise Unsupported(f"alpha {attribute(node, 'alpha', 1.0)}")
    return _elementwise(SiLU())(importer, node)


def _gelu(importer: Importer, node: Any) -> Value:
    return _elementwise(GELU(attribute(node, "approximate", "none")))(importer, node)


def _short(number: float) -> float:
    """A float32 as the decimal that it was written as."""
    return float(str(np.float32(number)))


def _layernorm(importer: Importer, node: Any) -> Value:
    x, gamma, beta = importer.value(node), importer.constant(node, 1), importer.constant(node, 2)
    last = len(x.shape) - 1
    if attribute(node, "axis", -1) % len(x.shape) != last or x.batch == last or x.order is not None or gamma is None:
        raise Unsupported("over other axes than the last")
    if x.axes[-1] != last:
        x = importer.turn(node, x, tuple(axis for axis in x.axes if axis != last) + (last,))
    parts = {"gamma": gamma, "beta": np.zeros(1, np.float32) if beta is None else beta}
    parts = {key: _row(part, x.shape[last]) for key, part in parts.items()}
    layer = LayerNorm(_short(attribute(node, "epsilon", 1e-5)))
    return replace(x, layer=importer.emit(node, layer, [x], parts, at=1))


def _dropout(importer: Importer, node: Any) -> Value:
    x = importer.value(node, pad=True, joined=True)
    mode = importer.constant(node, 2)
    if mode is None or not bool(mode):
        return x
    ratio = importer.constant(node, 1)
    return replace(x, layer=importer.emit(node, Dropout(0.5 if ratio is None else round(float(ratio), 6)), [x]))


def _same(importer: Importer, node: Any) -> Value:
    return importer.value(node, pad=True, joined=True)


def _cast(importer: Importer, node: Any) -> Value:
    from onnx import TensorProto

    to = attribute(node, "to")
    if to not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        raise Unsupported(f"to {TensorProto.DataType.Name(to).lower()}, whose rounding has no gradient")
    return _same(importer, node)


def _at_the_end(importer: Importer, node: Any) -> Value:
    """Softmax: the loss makes it."""
    x = importer.value(node)
    if importer.loss != LOSSES[0]:
        raise Unsupported(f"in a network whose loss is {importer.loss}")
    axis, rank = attribute(node, "axis", -1 if importer.model.opset >= 13 else 1), len(x.shape)
    over = (axis % rank,) if importer.model.opset >= 13 else tuple(range(axis % rank, rank))  # which it flattened then
    if x.batch in over or any(at not in over for at in x.axes if at is not None):
        raise Unsupported(f"over axis {axis} of {x.shape}, expected the classes of each image")
    name = node.output[0]
    while name not in importer.model.outputs:
        users = [user for user in importer.users.get(name, []) if user is not None]
        if len(users) != 1 or users[0].op_type not in ("Identity", "Cast", "Flatten", "Reshape", "Squeeze"):
            raise Unsupported("not at the network's end")
        name = users[0].output[0]
    importer.notes.append(f"{node.op_type} at the end is left out: it belongs to the loss")
    return x


# ---- arithmetic --------------------------------------------------


def _operands(importer: Importer, node: Any, heads: bool = False) -> tuple[list[Value], list[Array], int]:
    """Values, constants, and where the first value stands."""
    values, constants, first = [], [], -1
    for at, name in enumerate(node.input):
        if name in importer.model.constants:
            constant = importer.constant(node, at)
            assert constant is not None
            constants.append(constant)
        else:
            values.append(importer.value(node, at, heads=heads, joined=True))
            first = at if first < 0 else first
    return values, constants, first


def _two(importer: Importer, node: Any, layer: Any, a: Value, b: Value) -> Value:
    """A sum or a product of two tensors, broadcast where one is smaller."""
    shape = importer.shape(node.output[0])
    if a.pad or b.pad:
        raise Unsupported("of padded tensors")
    if a.batch or b.batch or a.joined or b.joined:
        if (a.shape, a.batch, a.joined) != (b.shape, b.batch, b.joined):
            raise Unsupported("of tensors whose first axis is not the batch")
        a, b = (importer.turn(node, value, tuple(sorted(value.axes, key=str))) for value in (a, b))
        return replace(a, layer=importer.emit(node, layer, [a, b]))

    def axes(value: Value) -> tuple[int | None, ...]:
        return tuple(None if axis is None else axis + len(shape) - len(value.shape) for axis in value.axes)

    large, small = (a, b) if (len(a.axes), math.prod(a.own)) >= (len(b.axes), math.prod(b.own)) else (b, a)
    target = axes(large)
    wanted = tuple(axis for axis in target if axis in axes(small))
    if len(wanted) != len(small.axes):
        raise Unsupported(f"of tensors of shapes {a.shape} and {b.shape}")
    back = {axis: own for axis, own in zip(axes(small), small.axes, strict=True)}
    turned = importer.turn(node, small, tuple(back[axis] for axis in wanted))
    if wanted != target[len(target) - len(wanted) :]:  # sizes of 1 between
        own = tuple(1 if axis not in wanted or axis is None else turned.shape[back[axis] or 0] for axis in target)
        turned = replace(turned, layer=importer.shaped(node, turned.layer, own), axes=large.axes)
        turned = replace(turned, shape=(1, *own), axes=tuple(range(1, len(own) + 1)))
    orders = [order for order in (large.order, small.order) if order is not None]
    if len(orders) == 1 or len(orders) == 2 and not np.array_equal(orders[0], orders[1]):
        raise Unsupported("of flattened tensors in two orders")
    pair = [large, turned] if large is a else [turned, large]
    return replace(large, layer=importer.emit(node, layer, pair), shape=shape, axes=target)


def _add(importer: Importer, node: Any) -> Value:
    if node.op_type == "Add" and len(node.input) != 2:
        raise Unsupported("of other than two tensors")
    values, constants, _ = _operands(importer, node)
    if constants:
        if len(values) != 1 or len(constants) != 1:
            raise Unsupported("of several constants")
        return _affine(importer, node, values[0], None, constants[0])
    total = values[0]
    for value in values[1:]:
        total = _two(importer, node, Add(), total, value)
    return total


def _sub(importer: Importer, node: Any) -> Value:
    values, constants, first = _operands(importer, node)
    if len(values) == 1 and len(constants) == 1:
        value = values[0] if first == 0 else _negative(importer, node, values[0])
        return _affine(importer, node, value, None, -constants[0] if first == 0 else constants[0])
    return _two(importer, node, Add(), values[0], _negative(importer, node, values[1]))


def _negative(importer: Importer, node: Any, x: Value) -> Value:
    """-x, in a layer of its own: the one that makes x may have other uses."""
    return importer.affine(node, x, np.full(x.own[-1], -1, np.float32), None)


def _neg(importer: Importer, node: Any) -> Value:
    return _affine(importer, node, importer.value(node), np.array([-1], np.float32), None)


def _mul(importer: Importer, node: Any) -> Value:
    values, constants, _ = _operands(importer, node, heads=True)
    if len(values) == 1 and len(constants) == 1:
        return _affine(importer, node, values[0], constants[0], None)
    if len(values) == 2 and not any(value.product for value in values):
        a, b = values
        made = _two(importer, node, Multiply(), replace(a, scale=1.0), replace(b, scale=1.0))
        return replace(made, scale=a.scale * b.scale)
    raise Unsupported(f"of tensors of shapes {' and '.join(str(value.shape) for value in values)}")


def _div(importer: Importer, node: Any) -> Value:
    values, constants, first = _operands(importer, node, heads=True)
    if len(values) == 1 and len(constants) == 1 and first == 0:
        with np.errstate(divide="ignore"):
            return _affine(importer, node, values[0], 1 / constants[0], None)
    raise Unsupported("by a tensor")


def _affine(importer: Importer, node: Any, x: Value, scale: Array | None, shift: Array | None) -> Value:
    """x * scale + shift with constants.

    They become part of the weights of the layer that makes x, where nothing else takes x; else a factor for the product behind
    it, learned positions, or a 1x1 depthwise convolution.
    """
    constant = scale if scale is not None else shift
    assert constant is not None
    if constant.size == 1 and (scale is not None and constant.reshape(-1)[0] == 1 or shift is not None and not constant.any()):
        return x
    if x.product or x.scale != 1:
        if scale is None or constant.size != 1:
            raise Unsupported("with a constant, of scores")
        return replace(x, scale=x.scale * float(constant.reshape(-1)[0]))
    rank, channel = len(x.shape), x.axes[-1]
    sizes = (1,) * (rank - constant.ndim) + constant.shape
    wide = [axis for axis, size in enumerate(sizes) if size != 1]
    shifted = x.joined and constant.size > max(constant.shape[-1:], default=1)  # its axes and x's are not the same
    if len(sizes) > rank or channel is None or shifted or any(sizes[axis] != x.shape[axis] for axis in wide):
        raise Unsupported(f"with a constant of shape {constant.shape}")
    if wide not in ([], [channel]):
        return _positions(importer, node, x, constant.reshape(sizes), shift is not None)
    row = np.broadcast_to(constant.reshape(-1), (x.shape[channel],)) if constant.size == 1 else constant.reshape(-1)
    row = row if x.order is None else row[x.order]
    if _folded(importer, node, x, row, scale is not None):
        return x
    if scale is not None and constant.size == 1:
        return replace(x, scale=float(constant.reshape(-1)[0]))
    return importer.affine(node, x, np.ones_like(row) if scale is None else row, None if shift is None else row)


def _positions(importer: Importer, node: Any, x: Value, constant: Array, added: bool) -> Value:
    if not added or x.order is not None or None in x.axes or constant.shape[x.batch] != 1:
        raise Unsupported(f"with a constant of shape {constant.shape}")
    axes = [axis for axis in x.axes if axis is not None]
    rest = [axis for axis in range(constant.ndim) if axis not in axes]
    values = np.broadcast_to(constant.transpose(*rest, *axes).reshape([constant.shape[axis] for axis in axes]), x.own)
    at = next((i for i, name in enumerate(node.input) if name in importer.model.constants), None)
    return replace(x, layer=importer.emit(node, Positions(), [x], {"positions": values}, at=at))


def _folded(importer: Importer, node: Any, x: Value, row: Array, scales: bool) -> bool:
    """Whether the layer that makes x has taken a factor or a summand of each channel over."""
    source = next(name for name in node.input if name not in importer.model.constants)
    entry = importer.entries.get(importer.affines.get(x.layer, x.layer))
    if entry is None or not importer.alone(source) or entry.layer.kind not in TAKES_OVER:
        return False
    first, second = ("gamma", "beta") if entry.layer.kind.endswith("norm") else ("w", "b")
    weights, name = importer.weights, entry.name
    w = weights[f"{name}.{first}"]
    if len(w) != row.size:
        return False
    if scales:
        weights[f"{name}.{first}"] = w * row.reshape(-1, *([1] * (w.ndim - 1)))
        if f"{name}.{second}" in weights:
            weights[f"{name}.{second}"] = weights[f"{name}.{second}"] * row
    elif f"{name}.{second}" in weights:
        weights[f"{name}.{second}"] = weights[f"{name}.{second}"] + row
    else:
        layer: Any = entry.layer
        importer.entries[entry.name] = replace(entry, layer=replace(layer, bias=True))
        weights[f"{name}.{second}"] = np.array(row, np.float32)
    return True


# ---- quantized files --------------------------------------------------


def _quantize(importer: Importer, node: Any) -> Value:
    """The tensor itself, and its range.  A zero point at the least code means that no value was negative: tools leave out the
    ReLU whose limits the codes have anyhow."""
    x, scale, zero = importer.value(node, heads=True, joined=True), importer.constant(node, 1), importer.constant(node, 2)
    if scale is None or scale.size != 1:
        raise Unsupported("of an activation with several scales")
    if zero is not None and zero.dtype.kind not in "iu":
        raise Unsupported(f"to {zero.dtype}, expected integers")
    if x.product:
        return x  # of an attention's scores, which are no tensor here
    from onnx import helper

    kind = attribute(node, "output_dtype", 0)
    limits = np.iinfo(zero.dtype if zero is not None else helper.tensor_dtype_to_np_dtype(kind) if kind else np.uint8)
    offset, step = 0 if zero is None else int(zero.reshape(-1)[0]), float(scale.reshape(-1)[0])
    low, high = (limits.min - offset) * step, (limits.max - offset) * step
    # codes here are 255: without the file's least one the scale is the file's, and so are all other codes
    importer.ranges[node.output[0]] = low + step * (offset > limits.min and limits.bits == 8), high
    entry = importer.entries.get(x.layer)
    if entry is None or low != 0 or x.scale != 1 or entry.layer.stem in NONNEGATIVE:
        return x
    return _clipped(importer, node, x, 0.0, 6.0 if abs(high - 6) < step else None)


def _dequantize(importer: Importer, node: Any) -> Value:
    if node.input[0] in importer.ranges:
        importer.ranges[node.output[0]] = importer.ranges[node.input[0]]
    return importer.value(node, pad=True, heads=True, joined=True)


HANDLERS: dict[str, Callable[[Importer, Any], Value | None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Attention": _attention_operator,
    "BatchNormalization": _batchnorm,
    "LayerNormalization": _layernorm,
    "Relu": _elementwise(ReLU()),
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "HardSigmoid": _hardsigmoid,
    "HardSwish": _elementwise(HardSwish()),
    "Sigmoid": _elementwise(Sigmoid()),
    "Swish": _swish,
    "Tanh": _elementwise(Tanh()),
    "Gelu": _gelu,
    "MaxPool": windows.maxpool,
    "AveragePool": windows.average,
    "GlobalAveragePool": windows.global_average,
    "ReduceMean": windows.mean,
    "Dropout": _dropout,
    "Identity": _same,
    "Cast": _cast,
    "Softmax": _softmax,
    "LogSoftmax": _at_the_end,
    "Flatten": movement.reshape,
    "Reshape": movement.reshape,
    "Squeeze": movement.squeeze,
    "Unsqueeze": movement.reshape,
    "Transpose": movement.transpose,
    "ChannelShuffle": movement.shuffle,
    "Slice": movement.slice_,
    "Split": movement.split,
    "Gather": movement.gather,
    "Concat": movement.concat,
    "Resize": movement.resize,
    "Upsample": movement.resize,
    "Pad": windows.pad,
    "Add": _add,
    "Sum": _add,
    "Sub": _sub,
    "Neg": _neg,
    "Mul": _mul,
    "Div": _div,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
