"""Operators of ONNX that move values: reshapes, transposes, parts and joins of tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from octosim.engine.layers import ChannelShuffle, Concat, Flatten, Slice, Token, Upsample
from octosim.graph.onnx import Importer, Unsupported, Value
from octosim.onnxfile import attribute


def axes_of(node: Any, importer: Importer, rank: int, at: int = 1) -> tuple[int, ...] | None:
    """The axes of a reduction or a squeeze, an attribute or an input; None: all."""
    axes = attribute(node, "axes")
    if axes is None:
        given = importer.constant(node, at)
        axes = None if given is None else given.reshape(-1).tolist()
    return None if axes is None else tuple(int(axis) % rank for axis in axes)


def transpose(importer: Importer, node: Any) -> Value:
    x = importer.value(node, heads=True, joined=True)
    # axes that ONNX has as one move together
    groups = [x.joined if axis in x.joined else (axis,) for axis in range(len(x.shape)) if axis not in x.joined[1:]]
    perm = list(attribute(node, "perm") or range(len(groups))[::-1])
    if sorted(perm) != list(range(len(groups))):
        raise Unsupported(f"by {perm} of a tensor of shape {x.shape}")
    return moved(x, [axis for at in perm for axis in groups[at]])


def moved(x: Value, order: list[int]) -> Value:
    """A value whose axes in ONNX are in another order, which is none here."""
    return replace(
        x, shape=tuple(x.shape[axis] for axis in order), axes=tuple(None if a is None else order.index(a) for a in x.axes),
        batch=order.index(x.batch), joined=tuple(sorted(order.index(axis) for axis in x.joined)),
    )  # fmt: skip


def batch_first(x: Value) -> Value:
    return moved(x, [x.batch, *(axis for axis in range(len(x.shape)) if axis != x.batch)])


def _groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Which axes of a reshape, counted without the batch, become which: the smallest runs with as many elements."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        m = n = 1
        while True:
            if (m <= n or j >= len(after)) and i < len(before) and (m != n or not left):
                left.append(i)
                m *= before[i]
                i += 1
            elif j < len(after) and (m != n or not right):
                right.append(j)
                n *= after[j]
                j += 1
            if m == n and (left and right or i >= len(before) or j >= len(after)):
                break
            if i >= len(before) and j >= len(after):
                return None
        found.append((left, right))
    return found


def reshape(importer: Importer, node: Any) -> Value:
    x, shape = importer.value(node, joined=True), importer.shape(node.output[0])
    if x.batch == 0 and not x.joined and shape[:1] == x.shape[:1]:
        return _reshape(importer, node, x, shape)
    shape, batch, joined = _with_batch(x, shape)
    others = [axis for axis in range(len(shape)) if axis != batch]
    made = _reshape(importer, node, replace(batch_first(x), joined=()), (shape[batch], *(shape[axis] for axis in others)))
    order = [axis + (axis < batch) for axis in range(len(shape))]
    order[batch] = 0
    return replace(moved(made, order), joined=joined)


def _with_batch(x: Value, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """What a tensor is reshaped to with the batch as an axis of its own: the shape, where the batch is, and which axes ONNX
    has as one.  PyTorch's attention joins the batch with the heads, or with the tokens before it."""
    size, before = x.shape[x.batch], math.prod(x.shape[: x.batch])
    if 0 in (*x.shape, *shape):
        raise Unsupported(f"{x.shape} to {shape}: of no elements")
    starts = [math.prod(shape[:at]) for at in range(len(shape))]
    for at, start in enumerate(starts):
        if start == before and shape[at] == size:
            return shape, at, ()
    for at, start in enumerate(starts[:-1]):  # channels are never one with the batch: of a batch of 1 that decides
        if start == before and shape[at] % size == 0:
            return (*shape[:at], size, shape[at] // size, *shape[at + 1 :]), at, (at, at + 1)
    for at, start in enumerate(starts[:-1]):
        if start * shape[at] == before * size and before % start == 0:
            return (*shape[:at], before // start, size, *shape[at + 1 :]), at + 1, (at, at + 1)
    raise Unsupported(f"{x.shape} to {shape}: of the batch")


def _reshape(importer: Importer, node: Any, x: Value, shape: tuple[int, ...]) -> Value:
    """Of a tensor whose first axis is the batch, and stays so."""
    wide = [axis for axis, size in enumerate(shape) if axis and size != 1] or [len(shape) - 1]
    if x.is_vector and len(wide) == 1:
        return replace(x, shape=shape, axes=(wide[0],))
    held = [axis for axis, size in enumerate(x.shape) if axis and size != 1]
    if [x.shape[axis] for axis in held] == [shape[axis] for axis in wide] and x.order is None:  # only sizes of 1 come and go
        places = dict(zip(held, wide, strict=True))
        return replace(x, shape=shape, axes=tuple(None if axis is None else places.get(axis) for axis in x.axes))
    if len(wide) == 1:
        return _flattened(importer, node, x, shape, wide[0])
    return _regrouped(importer, node, x, shape)


def squeeze(importer: Importer, node: Any) -> Value:
    x = importer.value(node)
    axes = axes_of(node, importer, len(x.shape))
    if x.batch == 0 and (axes is None or 0 not in axes):
        return reshape(importer, node)
    gone = set(axes if axes is not None else (a for a, size in enumerate(x.shape) if size == 1 and a != x.batch))
    if x.batch in gone:
        raise Unsupported("of the batch")
    return without(x, gone, importer.shape(node.output[0]), importer, node)


def without(x: Value, gone: set[int], shape: tuple[int, ...], importer: Importer, node: Any) -> Value:
    """A value without axes of size 1."""
    kept = [axis for axis in range(len(x.shape)) if axis not in gone]
    axes = tuple(axis for axis in x.axes if axis not in gone)
    made = replace(x, shape=shape, axes=tuple(None if a is None else kept.index(a) for a in axes), batch=kept.index(x.batch))
    if axes == x.axes:
        return made
    return replace(made, layer=importer.shaped(node, x.layer, made.own))


def _flattened(importer: Importer, node: Any, x: Value, shape: tuple[int, ...], axis: int) -> Value:
    if x.order is not None:
        raise Unsupported("of a flattened tensor")
    name = importer.emit(node, Flatten(), [x])
    importer.flattened[name] = x
    features = np.arange(math.prod(x.shape[1:])).reshape(x.shape[1:])
    own = [a - 1 for a in x.axes if a is not None]
    rest = [a for a in range(features.ndim) if a not in own]  # of size 1
    order = features.transpose(*own, *rest).reshape(-1)
    straight = bool((order == np.arange(order.size)).all())
    return Value(name, shape, (axis,), None if straight else order)


def _regrouped(importer: Importer, node: Any, x: Value, shape: tuple[int, ...]) -> Value:
    """Runs of axes are joined or split; those that do not lie side by side here are moved there first."""
    groups = _groups(x.shape[1:], shape[1:])
    if groups is None or x.order is not None:
        raise Unsupported(f"{x.shape} to {shape}")
    place = {axis: number for number, (left, _) in enumerate(groups) for axis in left}
    axes = [axis for axis in x.axes if axis is not None]

    def fits(order: list[int]) -> bool:
        """Whether each group's axes lie side by side, in ONNX's order."""
        runs = [place[axis - 1] for axis in order]
        starts = [n for i, n in enumerate(runs) if i == 0 or runs[i - 1] != n]
        return len(starts) == len(set(starts)) and all(
            a < b for a, b in zip(order, order[1:], strict=False) if place[a - 1] == place[b - 1]
        )

    if len(axes) != len(x.axes):
        x = replace(x, layer=importer.shaped(node, x.layer, tuple(x.shape[axis] for axis in axes)), axes=tuple(axes))
    if not fits(axes):
        x = importer.turn(node, x, tuple(sorted(axes)))
        axes = sorted(axes)
    made: list[int] = []
    done: set[int] = set()
    for axis in axes:
        group = place[axis - 1]
        if group not in done:
            made += [right + 1 for right in groups[group][1]]
            done.add(group)
    own = tuple(shape[axis] for axis in made)
    return Value(importer.shaped(node, x.layer, own), shape, tuple(made))


def shuffle(importer: Importer, node: Any) -> Value:
    x = importer.plain(node)
    if x.axes[-1] != 1:
        x = importer.turn(node, x, (2, 3, 1))
    return replace(x, layer=importer.emit(node, ChannelShuffle(attribute(node, "groups")), [x]))


# ---- parts and joins --------------------------------------------------


def _part(importer: Importer, node: Any, x: Value, axis: int, start: int, stop: int, shape: tuple[int, ...]) -> Value:
    if axis == x.batch:
        raise Unsupported("of the batch")
    if x.order is not None or axis not in x.axes:
        raise Unsupported("of an axis that is not one here")
    if (start, stop) == (0, x.shape[axis]):
        return replace(x, shape=shape)
    layer = Slice(start, stop, x.axes.index(axis) - len(x.axes))
    return replace(x, layer=importer.emit(node, layer, [x]), shape=shape)


def slice_(importer: Importer, node: Any) -> Value:
    x = importer.value(node)
    starts, ends, axes, steps = (attribute(node, key) for key in ("starts", "ends", "axes", "steps"))
    if starts is None:
        given = [importer.constant(node, at) for at in (1, 2, 3, 4)]
        starts, ends, axes, steps = (None if part is None else part.reshape(-1).tolist() for part in given)
    assert starts is not None and ends is not None
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = int(axes[at]) % len(x.shape) if axes is not None else at
        step = 1 if steps is None else int(steps[at])
        first, last, _ = slice(int(start), int(end), step).indices(x.shape[axis])
        if step != 1:
            raise Unsupported(f"with step {step}")
        shape = (*x.shape[:axis], last - first, *x.shape[axis + 1 :])
        if shape != x.shape:
            x = _part(importer, node, x, axis, first, last, shape)
    return x


def split(importer: Importer, node: Any) -> None:
    x = importer.value(node)
    axis = attribute(node, "axis", 0) % len(x.shape)
    at = 0
    for name in node.output:
        shape = importer.shape(name)
        if name in importer.users:
            importer.values[name] = _part(importer, node, x, axis, at, at + shape[axis], shape)
        at += shape[axis]


def gather(importer: Importer, node: Any) -> Value:
    """One element of an axis."""
    x, index = importer.value(node), importer.constant(node, 1)
    axis = attribute(node, "axis", 0) % len(x.shape)
    if index is None or index.size != 1:
        raise Unsupported("of several elements")
    at = int(index.reshape(-1)[0]) % x.shape[axis]
    one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    part = _part(importer, node, x, axis, at, at + 1, one)
    return without(part, {axis}, importer.shape(node.output[0]), importer, node) if index.ndim == 0 else part


def concat(importer: Importer, node: Any) -> Value:
    shape = importer.shape(node.output[0])
    axis = attribute(node, "axis", 0) % len(shape)
    constants = [name for name in node.input if name in importer.model.constants]
    if constants:
        return _token(importer, node, axis, shape)
    values = [importer.plain(node, at) for at in range(len(node.input))]
    if len(values) == 1:
        return values[0]
    first = max(values, key=lambda value: len(value.axes))
    if all(value.is_vector for value in values):
        return _vectors(importer, node, values, shape, axis)
    if axis not in first.axes:
        raise Unsupported("along an axis that is not one here")
    values = [importer.turn(node, value, first.axes) for value in values]
    layer = Concat(first.axes.index(axis) - len(first.axes))
    return replace(first, layer=importer.emit(node, layer, values), shape=shape)


def _vectors(importer: Importer, node: Any, values: list[Value], shape: tuple[int, ...], axis: int) -> Value:
    if any(value.axes != (axis,) for value in values):
        raise Unsupported("along an axis that is not one here")
    orders, at = [], 0
    for value in values:
        size = value.shape[axis]
        orders.append(at + (np.arange(size) if value.order is None else value.order))
        at += size
    order = np.concatenate(orders) if any(value.order is not None for value in values) else None
    return Value(importer.emit(node, Concat(), values), shape, (axis,), order)


def _token(importer: Importer, node: Any, axis: int, shape: tuple[int, ...]) -> Value:
    """A constant token before the others."""
    if len(node.input) != 2 or node.input[0] not in importer.model.constants or len(shape) != 3 or axis != 1:
        raise Unsupported("with a constant")
    token, x = importer.constant(node, 0), importer.plain(node, 1)
    assert token is not None
    x = importer.turn(node, x, (1, 2))
    rows = token.reshape(-1, x.shape[2]) if token.shape[1:] == (1, x.shape[2]) else token[:0]
    if not len(rows) or (rows != rows[0]).any():  # of a fixed batch each image has a copy
        raise Unsupported(f"with a constant of shape {token.shape}")
    name = importer.emit(node, Token(), [x], {"token": rows[:1]}, at=0)
    return replace(x, layer=name, shape=shape)


def resize(importer: Importer, node: Any) -> Value:
    """Each pixel several times."""
    x, shape = importer.plain(node), importer.shape(node.output[0])
    if attribute(node, "mode", "nearest") != "nearest":
        raise Unsupported(f"mode {attribute(node, 'mode', 'nearest')}")
    x = importer.turn(node, x, (2, 3, 1))
    factors = [after / before for after, before in zip(shape[2:], x.shape[2:], strict=True)]
    if shape[:2] != x.shape[:2] or any(factor != int(factor) for factor in factors):
        raise Unsupported(f"by {' x '.join(f'{factor:g}' for factor in factors)}")
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode not in ("half_pixel", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"):
        raise Unsupported(f"coordinates {mode}")
    nearest = attribute(node, "nearest_mode", "round_prefer_floor")
    if mode == "asymmetric":  # pixel k is at k / factor
        repeats = nearest == "floor" or nearest == "round_prefer_floor" and max(factors) <= 2
    else:  # at (k + 1/2) / factor - 1/2, less than half a pixel from the one that it belongs to
        repeats = nearest.startswith("round_")
    if not repeats and max(factors) > 1:
        raise Unsupported(f"coordinates {mode}, rounded by {nearest}")
    layer = Upsample((int(factors[0]), int(factors[1])))
    return replace(x, layer=importer.emit(node, layer, [x]), shape=shape)
