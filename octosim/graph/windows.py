"""Operators of ONNX with a window: what convolutions and poolings share, and the poolings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octosim.engine.layers import AvgPool, GlobalAvgPool, MaxPool
from octosim.graph.movement import axes_of
from octosim.graph.onnx import Importer, Pads, Unsupported, Value
from octosim.onnxfile import attribute

Ints = tuple[int, ...]


def pads_of(node: Any, sizes: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> Pads:
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


def window(node: Any, value: Value, kernel: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], Pads]:
    """Kernel, stride and dilation (height, width), and zeros, of a window over an image or a signal."""
    stride = tuple(attribute(node, "strides") or [1] * len(kernel))
    dilation = tuple(attribute(node, "dilations") or [1] * len(kernel))
    pads = pads_of(node, value.shape[2:], kernel, stride, dilation)
    if value.pad:
        pads = tuple(a + b for a, b in zip(pads, value.pad, strict=True))  # type: ignore[assignment]
    if len(kernel) == 1:
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    return (kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1]), pads


def sides(pair: Ints) -> int | Ints:
    """A size for all sides where they are alike."""
    if len(set(pair)) == 1:
        return pair[0]
    return pair[:2] if len(pair) == 4 and pair[:2] == pair[2:] else pair


def images(importer: Importer, node: Any, value: Value) -> Value:
    """An image or a signal whose channels are last here."""
    if value.batch or len(value.shape) not in (3, 4):
        raise Unsupported(f"over a tensor of shape {value.shape}")
    axes: tuple[int | None, ...] = (2, 3, 1) if len(value.shape) == 4 else (None, 2, 1)
    if None in value.axes and None not in axes:  # an axis of size 1 that came with a reshape
        added = [axis for axis in axes if axis not in value.axes and axis is not None and value.shape[axis] == 1]
        if len(added) == value.axes.count(None):
            value = replace(value, axes=tuple(added.pop(0) if axis is None else axis for axis in value.axes))
    if value.axes == axes:
        return value
    kept = tuple(axis for axis in axes if axis in value.axes and axis is not None)
    if set(kept) != set(value.axes) or value.order is not None:
        raise Unsupported(f"over a tensor of shape {value.shape} whose axes do not fit here")
    value = importer.turn(node, value, kept)
    own = tuple(1 if axis is None else value.shape[axis] for axis in axes)
    return replace(value, layer=importer.shaped(node, value.layer, own), axes=axes)


# ---- pooling --------------------------------------------------


def maxpool(importer: Importer, node: Any) -> Value:
    x = images(importer, node, importer.value(node))
    kernel, stride, dilation, pads = window(node, x, tuple(attribute(node, "kernel_shape")))
    if set(dilation) != {1}:
        raise Unsupported(f"dilation {'x'.join(map(str, dilation))}")
    layer = MaxPool(sides(kernel), sides(stride), sides(pads), bool(attribute(node, "ceil_mode", 0)))
    return Value(importer.emit(node, layer, [x]), importer.shape(node.output[0]), x.axes)


def global_average(importer: Importer, node: Any) -> Value:
    x = images(importer, node, importer.value(node))
    return Value(importer.emit(node, GlobalAvgPool(), [x]), importer.shape(node.output[0]), (1,))


def average(importer: Importer, node: Any) -> Value:
    x = images(importer, node, importer.value(node, pad=True))
    kernel, stride, dilation, pads = window(node, x, tuple(attribute(node, "kernel_shape")))
    counts = bool(attribute(node, "count_include_pad", 0))
    if set(dilation) != {1}:
        raise Unsupported(f"dilation {'x'.join(map(str, dilation))}")
    if kernel == x.own[:2] and not any(pads):  # the whole image
        return global_average(importer, node)
    if x.pad and x.pad != pads and not counts:
        raise Unsupported("with zeros of which some count and some do not")
    ceil = bool(attribute(node, "ceil_mode", 0))
    layer = AvgPool(sides(kernel), sides(stride), sides(pads), ceil, counts or x.pad is not None or not any(pads))
    return Value(importer.emit(node, layer, [replace(x, pad=None)]), importer.shape(node.output[0]), x.axes)


def mean(importer: Importer, node: Any) -> Value:
    """The mean over an image's pixels, or over tokens."""
    x = importer.value(node)
    axes, shape = axes_of(node, importer, len(x.shape)), importer.shape(node.output[0])
    if axes is None or x.order is not None:
        raise Unsupported("over all axes")
    own = tuple(axis for axis in x.axes if axis is not None)
    kept = [axis for axis in own if axis not in axes]
    if len(kept) != 1 or x.batch in axes or len(own) - len(kept) > 2:
        raise Unsupported(f"over the axes {', '.join(map(str, axes))} of {x.shape}")
    channels = kept[0]
    rest = tuple(axis for axis in own if axis != channels)
    x = importer.turn(node, replace(x, axes=own), (*rest, channels)) if len(own) == len(x.axes) else x
    sizes = [x.shape[axis] for axis in rest]
    image = (*([1] * (2 - len(sizes))), *sizes, x.shape[channels])
    given = Value(importer.shaped(node, x.layer, image) if x.own != image else x.layer, (1, *image), (1, 2, 3))
    gone = () if attribute(node, "keepdims", 1) else axes
    place, batch = (at - sum(axis < at for axis in gone) for at in (channels, x.batch))
    return Value(importer.emit(node, GlobalAvgPool(), [given]), shape, (place,), batch=batch)


def pad(importer: Importer, node: Any) -> Value:
    x = importer.value(node, pad=True)
    pads = attribute(node, "pads")
    if pads is None:
        given = importer.constant(node, 1)
        pads = [] if given is None else given.astype(int).tolist()
    value = importer.constant(node, 2)
    mode = attribute(node, "mode", "constant")
    rank = len(x.shape)
    named = importer.constant(node, 3)
    full = [0] * (2 * rank)
    for at, axis in enumerate(range(rank) if named is None else named.astype(int).tolist()):
        full[axis % rank], full[rank + axis % rank] = pads[at], pads[at + len(pads) // 2]
    if not any(full):
        return x
    if mode != "constant" or value is not None and float(value.reshape(-1)[0]) != 0 or attribute(node, "value", 0.0) != 0:
        raise Unsupported("with other values than zeros")
    if len(x.axes) != 3 or min(full) < 0:
        raise Unsupported("of no image, or by less than nothing")
    low, high = ([0 if axis is None else full[side + axis] for axis in x.axes] for side in (0, rank))
    if sum(full) != sum(low[:2]) + sum(high[:2]):
        raise Unsupported("of the batch or the channels")
    old = x.pad or (0, 0, 0, 0)
    return replace(x, pad=(old[0] + low[0], old[1] + low[1], old[2] + high[0], old[3] + high[1]))
