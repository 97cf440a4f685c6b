"""The plan of a training step or an inference: its calls in their order and the memory that they work on.

It is made dry: the network's own code runs and calls the core, which writes down each call and makes none.  So whatever a
layer or a method does is planned, priced and counted as it is done, without tensors and weights: memory is reserved and never
touched.
"""

from __future__ import annotations

import itertools
import math
import mmap
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from octosim import core
from octosim.core.memory import PAGE, SMALL, Lease, Pool, owner
from octosim.engine import optimizers
from octosim.engine.graph import Graph
from octosim.engine.inputs import Input
from octosim.engine.layers import Stack
from octosim.engine.network import Network
from octosim.engine.nodes import Context, Method
from octosim.engine.optimizers import Sgd, Update
from octosim.engine.selection import ALL, Selection
from octosim.trace import Op, with_peak

LEAST = 64
"""A call that moves less than so small a part of what the largest of its layer's pass does is counted with it: scales, zero
points, sums of a channel."""

SCRATCH = 2 << 20
"""Bytes that a thread of the core works in: packed operands, planes, partial sums; as measured of ResNet-20's steps, between
what instruction sets take that pack codes as 8 or as 16 bits."""

WINDOWS, BORDER = 131072, 64
"""Numbers of windows that `octo_conv_input_grad_blocks_s8` adds up at a time, and rows of blocks that reach beyond them."""

CHUNK = 16384
"""Values that a thread of the core works on at a time in its own memory (CHUNK in cext/dispatch.h)."""

DEEP, ROWS, PANEL, PANELS = 1024, 48, 16, 1 << 17
"""Steps of a reduction, rows, columns of a panel, and values of panels that a float32 product packs (cext/products.inc)."""

RECORDED = 2000
"""Bytes that the tape of a recorded step takes for each call, as measured."""

RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class Buffer(NamedTuple):
    """Memory of a step.  first, last: the calls, by number, before which it is taken and after which it is free again.
    used: the first and the last call with an operand in it; None where no call has one."""

    nbytes: int
    first: int
    last: int
    used: tuple[int, int] | None


class _Seen(weakref.ref[np.ndarray[Any, Any]]):
    """An array that is no pool's: its id, bytes, and the call that it was first an operand of."""

    __slots__ = ("first", "nbytes", "number")
    number: int
    nbytes: int
    first: int


class _Dry(core.Tape):
    """A dry tape; of arrays that are no pool's the calls between which they are used."""

    def __init__(self) -> None:
        super().__init__(dry=True)
        self.buffers: list[Buffer] = []
        self.held = self.most = 0
        self._seen: dict[int, _Seen] = {}
        self.used: dict[int, tuple[int, int]] = {}  # by the id of a block, or of an array that is no pool's
        self.written: set[int] = set()  # ids of such arrays

    def operand(self, name: str, array: np.ndarray[Any, Any], access: str) -> None:
        root, at = owner(array), len(self.calls)
        key = id(root._block) if isinstance(root, Lease) else id(root)
        self.used[key] = self.used.get(key, (at, at))[0], at
        if access != core.READS:
            self.written.add(key)
        super().operand(name, array, access)

    def outside(self, array: np.ndarray[Any, Any]) -> None:
        number = id(array)
        if number not in self._seen:
            seen = _Seen(array, self._gone)
            seen.number, seen.nbytes, seen.first = number, array.nbytes, len(self.calls)
            self._seen[number] = seen
            self.take(seen.nbytes)

    def _gone(self, seen: _Seen) -> None:
        del self._seen[seen.number]
        self.held -= seen.nbytes
        self.buffers.append(Buffer(seen.nbytes, seen.first, len(self.calls), self.used.pop(seen.number, None)))

    def take(self, size: int) -> None:
        """So many bytes are in use, or no longer."""
        self.held += size
        if self.held > self.most:
            self.most = self.held


class _Reserved(Pool):
    """A pool of addresses without memory behind them."""

    def __init__(self, tape: _Dry) -> None:
        super().__init__()
        self._tape = tape
        self._since: dict[int, tuple[int, int]] = {}  # by block: bytes and first call

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        kind = np.dtype(dtype)
        size = kind.itemsize * math.prod(shape)
        if size >= SMALL:
            return super().empty(shape, dtype)
        self._tape.take(size)
        return self.lease(shape, kind, mmap.mmap(-1, max(1, size), flags=RESERVED)).view(np.ndarray)

    def lease(self, shape: tuple[int, ...], dtype: np.dtype[Any], block: mmap.mmap) -> Lease:
        self._since[id(block)] = dtype.itemsize * math.prod(shape), len(self._tape.calls)
        return super().lease(shape, dtype, block)

    def take_back(self, block: mmap.mmap) -> None:
        size, first = self._since.pop(id(block))
        self._tape.buffers.append(Buffer(size, first, len(self._tape.calls), self._tape.used.pop(id(block), None)))
        if size < SMALL:
            self._tape.take(-size)
        else:
            super().take_back(block)

    def reserve(self, size: int) -> mmap.mmap:
        self._tape.take(-(-size // PAGE) * PAGE)
        return mmap.mmap(-1, size, flags=RESERVED)


@dataclass(frozen=True)
class Plan:
    """A step on so many images.

    calls: in their order.  buffers: of values, in the order in which they are free again.  weights, slots: bytes of parameters
    and other tensors that stay, and of the optimizer's.  constant: of the weights, those that no call writes.  gradients: bytes
    of the largest gradient of a parameter, or of all where they are accumulated.
    most: bytes of values that are there at once, in blocks that are used again and again, and of the core's own copies.
    core: bytes that the core works in and that the recorded calls take.
    """

    batch: int
    calls: tuple[core.Call, ...]
    buffers: tuple[Buffer, ...]
    weights: int
    constant: int
    slots: int
    gradients: int
    most: int
    core: int


def plan(network: Network, batch: int, optimizer: Any = None, training: bool = True) -> Plan:
    """The plan of a step, or of an inference, on so many images.

    network: without weights (seed None); its nodes are good for nothing else afterwards.  optimizer: SGD with momentum if not
    given.
    """
    optimizer = optimizer or Sgd()
    method, nodes = network.method, network.nodes
    images = np.zeros((batch, *nodes[0].in_shape), network.source.dtype)
    labels = np.zeros(batch, np.int32)
    slots: dict[str, dict[str, Any]] = optimizers.slots(optimizer, network) if training else {}
    tape = _Dry()
    def step() -> None:
        """As `train.Run` makes it."""
        context = Context(training, seed=0, step=core.step_number(2), steps=0)
        if not training:
            network.forward(network.input(images), context)
            return
        numbers = tuple(core.scalar(1.0) for _ in optimizers.numbers(optimizer, 1.0, 1, network))
        update = Update.of(optimizer, network, context, numbers, slots)

        def gradients(done: Any = None) -> core.Number:
            return network.gradients(images, labels, context, done=done)[0]

        with np.errstate(all="ignore"):
            method.step(nodes, gradients, update, context)

    for node in nodes:  # a step after the first: its predecessor's update found the weights' ranges, and it the inputs'
        for values in node.running_ranges:
            values[:] = 0, 1
        node.ranges = {key: core.Range() for key in node.params}
        node.known = set(node.params) if node.outputs is None else node.frozen & set(node.params)
    pool = network.pool = _Reserved(tape)
    for node in nodes:
        node.pool = pool
    for array in (images, labels, *(v for node in nodes for v in (*node.params.values(), *node.state.values())),
                 *(v for kept in slots.values() for v in kept.values())):  # fmt: skip
        tape.outside(array)
    tape.most = tape.held = 0
    with tape.recording(), core.pooled(pool):
        step()
    errors = [math.prod(node.out_shape) for node in nodes if node.layer.weighted and node.trained] if training else []
    most = tape.most + 4 * method.beyond * batch * max(errors, default=0)
    held = [values for node in nodes for values in (*node.params.values(), *node.state.values())]
    trained = [4 * node.chosen(key).size for node in nodes for key in node.trained] if training else [0]
    return Plan(
        batch,
        tuple(tape.calls),
        tuple(tape.buffers),
        sum(values.nbytes for values in held),
        sum(values.nbytes for values in held if id(owner(values)) not in tape.written),
        sum(v.nbytes for kept in slots.values() for v in kept.values()),
        sum(trained) if network.accumulate > 1 else max(trained),
        most + max(map(_padded, tape.calls)),
        SCRATCH + training * RECORDED * len(tape.calls),
    )


@lru_cache(maxsize=1024)
def _conv(geometry: tuple[Any, ...]) -> core.Conv:
    return core.Conv(*geometry)


def _padded(call: core.Call) -> int:
    """Bytes of the copy that the core makes of a convolution's operand with its padding, once for all convolutions; or of the
    windows, some images at a time, that a dX of codes in blocks adds up."""
    if not call.product or not call.product.geometry:
        return 0
    g = _conv(call.product.geometry)
    if g.is_grouped:
        return 0
    if call.function == "octo_conv_input_grad_blocks_s8":
        pixels, window = g.out_h * g.out_w, g.kernel_h * g.kernel_w * g.channels
        return 4 * window * (min(g.batch, max(1, WINDOWS // (pixels * window))) * pixels + BORDER)
    size = call.operands[0].dtype.itemsize
    if call.key[1] == "dX":
        kernel_h, kernel_w = g.extent
        wide = (g.out_h + kernel_h - 1) * (g.out_w + kernel_w - 1)
        return g.batch * wide * g.filters * size if wide > g.out_h * g.out_w else 0
    top, left, bottom, right = g.pads
    padded = (g.height + top + bottom) * (g.width + left + right)
    return g.batch * padded * g.channels * size if g.pad else 0


def dry(
    graph: Graph | Stack, in_shape: tuple[int, ...], method: Method, float_layers: bool = False, source: Input = Input(),
    selection: Selection = ALL, accumulate: int = 1,
) -> Network:  # fmt: skip
    """A network without weights, to be planned."""
    with core.Tape(dry=True).recording(), np.errstate(all="ignore"):
        return Network(graph, in_shape, method, None, float_layers, source, selection=selection, accumulate=accumulate)


# ---- price --------------------------------------------------


def operation(call: core.Call) -> Op:
    """A call as the cost model sees it."""
    cost = core.COSTS.get(call.function)
    again = cost.again if cost else {}
    layer, pass_ = call.key
    touched = [o for o in call.operands if o.name != "rest"]  # which is empty but in a layer whose scale is too small
    reads = sum(o.nbytes * again.get(o.name, 1) for o in touched if o.access != core.WRITES)
    writes = sum(o.nbytes for o in touched if o.access != core.READS)
    largest = max(call.operands, key=lambda o: o.elements)
    floats = any(o.dtype == np.float32 for o in call.operands)
    product = call.product
    if cost and product:
        kernel = (product.geometry[5], product.geometry[6]) if product.geometry else (0, 0)
        held = 0 if pass_ == "dW" else sum(o.nbytes for o in call.operands if o.name == cost.weights)
        first = next(o for o in call.operands if o.access == core.READS)
        return Op(
            layer, pass_, "gemm", _title(call.function, kernel), product.shape,
            "float32" if first.dtype == np.float32 else "int8", reads, writes, groups=product.groups, kernel=kernel,
            stride=max(_conv(product.geometry).strides) if product.geometry else 1, weights=held, function=call.function,
            geometry=product.geometry,
        )  # fmt: skip
    return Op(
        layer, pass_, "update" if cost and cost.update else "elementwise", _title(call.function), (largest.elements,),
        "float32" if floats else "int8", reads, writes, channels=call.run or (largest.shape[-1] if largest.shape else 0),
        function=call.function + call.variant,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _title(function: str, kernel: tuple[int, ...] = ()) -> str:
    """What a function does, for people."""
    if kernel:
        kind = "depthwise" if "depthwise" in function else "conv" if kernel[0] else "linear"
        return kind + (f" {kernel[0]}x{kernel[1]}" if kernel[0] else "")
    parts = function.removeprefix("octo_").removeprefix("python:").split("_")
    return " ".join(part for part in parts if part not in ("f32", "s8", "s32"))


def ops(step: Plan) -> list[Op]:
    """The operations of a step in the order of the layers' passes; an optimizer's are one."""
    operations: list[Op] = []
    updates: dict[str, int] = {}  # by function, the place in `operations`
    for op, _ in merged(step.calls):
        if op.kind != "update" or op.function not in updates:
            updates |= {op.function: len(operations)} if op.kind == "update" else {}
            operations.append(op)
            continue
        at = updates[op.function]
        merged_op = _with(operations[at], op)
        operations[at] = replace(merged_op, shape=(merged_op.shape[0] + op.shape[0],), groups=merged_op.groups + 1)
    return operations


def merged(calls: Sequence[core.Call]) -> list[tuple[Op, list[int]]]:
    """The operations of calls, and the numbers of the calls that each is; calls on numbers alone are none.

    A small call counts with the one before it, or behind it, of its layer's pass.
    """
    grouped: dict[tuple[str, ...], list[tuple[int, Op]]] = defaultdict(list)
    for at, call in enumerate(calls):
        if call.operands:
            grouped[call.key].append((at, operation(call)))
    operations: list[tuple[Op, list[int]]] = []
    for numbered in grouped.values():
        least = max(op.bytes for _, op in numbered) / LEAST
        first, ahead = len(operations), list[tuple[int, Op]]()
        beside: list[tuple[int, int]] = []  # bytes that the small calls of each of `operations` read and write
        for at, op in numbered:
            if op.kind != "elementwise" or op.bytes >= least:
                operations.append((op, [at for at, _ in ahead[::-1]] + [at]))
                beside.append((sum(small.reads for _, small in ahead), sum(small.writes for _, small in ahead)))
                ahead.clear()
            elif len(operations) > first:
                operations[-1][1].append(at)
                beside[-1] = beside[-1][0] + op.reads, beside[-1][1] + op.writes
            else:
                ahead.append((at, op))
        for number, (reads, writes) in enumerate(beside, first):
            if reads or writes:
                op = operations[number][0]
                operations[number] = replace(op, reads=op.reads + reads, writes=op.writes + writes), operations[number][1]
    return operations


def _with(op: Op, small: Op) -> Op:
    return replace(op, reads=op.reads + small.reads, writes=op.writes + small.writes)


def plan_like(network: Network, batch: int, optimizer: Any = None, training: bool = True, poolings: bool = True) -> Plan:
    """The plan of a step of a network like this one, which is left as it is.  poolings: see `Network.fuse`."""
    same = dry(
        network.graph, network.nodes[0].in_shape, network.method, True, network.source, network.selection, network.accumulate
    )
    same.fuse(poolings)
    return plan(same, batch, optimizer, training)


def trace(network: Network, batch: int, training: bool = True, poolings: bool = True) -> list[Op]:
    """The operations of a step, or of an inference, of a network like this one."""
    return ops(plan_like(network, batch, training=training, poolings=poolings))


# ---- memory --------------------------------------------------


def memory(step: Plan) -> dict[str, int]:
    """Bytes by what they hold, and their sum "peak": weights, gradients, optimizer, activations, workspace.

    activations: what the forward pass leaves for the backward pass.  gradients: the largest of a parameter; each is gone when
    the parameter has moved, unless they are accumulated.  workspace: what else there is at the moment when there is most.
    """
    loss = _loss(step)
    activations = sum(buffer.nbytes for buffer in step.buffers if buffer.first <= loss < buffer.last)
    return _parts(step, step.weights, activations, step.most, step.core)


def in_c(step: Plan) -> dict[str, int]:
    """`memory` of a step that is written as a C program (`octosim export --to c`).

    "weights apart" are its constants: the weights that no call writes, and what the others begin with.  A value is there from
    the first call that uses it to the last.  Of the core's own memory there is what these calls work in.
    """
    loss, lives = _loss(step), [(buffer.nbytes, *buffer.used) for buffer in step.buffers if buffer.used]
    changes = [0] * (len(step.calls) + 1)
    for nbytes, first, last in lives:
        changes[first] += nbytes
        changes[last + 1] -= nbytes
    activations = sum(nbytes for nbytes, first, last in lives if first <= loss < last)
    moved = [o.elements for call in step.calls if call.key[1] == "update" for o in call.operands]
    packed = max(4 * min(CHUNK, max(moved, default=0)), max(map(_packed, step.calls), default=0))
    scratch = max(map(_padded, step.calls), default=0) + packed
    parts = _parts(step, step.weights - step.constant, activations, max(itertools.accumulate(changes)), scratch)
    return parts | {"weights apart": step.weights}


def _packed(call: core.Call) -> int:
    """Bytes that the reference kernel of a float32 product works in: rows and panels of at most DEEP steps of the reduction; a
    convolution's dW copies a panel of the input alone.  Products of integers pack nothing.
    """
    if not call.product or any(o.dtype == np.int8 for o in call.operands):
        return 0
    _, k, n = call.product.shape
    deep = min(k, DEEP)
    if call.key[1] == "dW" and call.product.geometry:
        return 4 * deep * PANEL
    return 4 * deep * (ROWS + min(n, PANELS // deep))


def _loss(step: Plan) -> int:
    """The number of the first call of the loss; -1 in an inference."""
    return next((at for at, call in enumerate(step.calls) if call.key[0] == "loss"), -1)


def _parts(step: Plan, weights: int, activations: int, most: int, core: int) -> dict[str, int]:
    """most: of values at once.  core: beside them."""
    rest = max(0, most - activations)
    gradients = min(step.gradients, rest)
    return with_peak({
        "weights": weights, "gradients": gradients, "optimizer": step.slots, "activations": activations,
        "workspace": rest - gradients + core,
    })  # fmt: skip


def largest_batch(
    network: Network, capacity: float, training: bool = True, memory: Callable[[Plan], dict[str, int]] = memory,
    poolings: bool = True,
) -> int:  # fmt: skip
    """The largest batch whose peak is at most `capacity` bytes; 0 where none is.  memory, poolings: of the plans."""

    def peak(batch: int) -> int:
        return memory(plan_like(network, batch, training=training, poolings=poolings))["peak"]

    small, double = 8, 16
    low, high = peak(small), peak(double)
    # every part is about proportional to the batch, or constant; the batch itself, in float32, is always there
    each = max((high - low) / (double - small), 4 * math.prod(network.nodes[0].in_shape))
    guess = max(0, small + int((capacity - low) / each))
    fits, fails = 0, guess + 1
    if guess and peak(guess) <= capacity:
        fits, step = guess, 1 + guess // 64
        while peak(fails := fits + step) <= capacity:
            fits, step = fails, 2 * step
    else:
        fails, step = max(1, guess), 1 + guess // 64
        while fails > 1 and peak(fits := max(1, fails - step)) > capacity:
            fails, step = fits, 2 * step
        if fails == 1:
            return 0
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if peak(middle) <= capacity else (fits, middle)
    return fits
