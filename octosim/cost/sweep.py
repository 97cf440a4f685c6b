"""Many points at once: networks x batches x devices priced in one pass of NumPy.

Where a network has the same operations at two batches, its columns are affine in the batch between them: where a third batch
lies on the line, the others follow without being planned.  Small calls join larger ones at some batches: there a line ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from octosim.cost import model
from octosim.errors import OctosimError
from octosim.hardware import Device, Runtime
from octosim.trace import Op, is_training

Array = np.ndarray[Any, Any]
Read = tuple[tuple[Op, ...], Array]
Table = Callable[[int], Read]
"""A network at any batch: its operations and their columns [GEOMETRY][operation]."""

CHUNK = 1 << 14
"""Operations times points that are priced at once: the arrays of a pass stay in the cache."""

FIXED = [model.GEOMETRY.index(name) for name in ("kind", "code", "winograd", "size", "forward", "windows")]
"""Columns that are the same at every batch of a line."""


def table(read: Callable[[int], Sequence[Op]]) -> Table:
    """The table of a network that `read` gives the operations of at a batch; what was read once is kept."""

    @functools.lru_cache(maxsize=256)
    def at(batch: int) -> Read:
        ops = tuple(read(batch))
        return ops, model.geometry(ops)

    return at


def lines(network: Table, batches: Sequence[int]) -> Iterator[tuple[tuple[Op, ...], Array, Sequence[int]]]:
    """Operations, columns [GEOMETRY][batch][operation] and batches, of consecutive ones that lie on a line.

    batches: ascending.
    """
    if len(batches) > 2:
        low, middle, high = batches[0], batches[len(batches) // 2], batches[-1]
        (ops, a), (others, b), (last, c) = network(low), network(middle), network(high)
        if _same(ops, others) and _same(ops, last) and np.array_equal(a[FIXED], c[FIXED]):
            each = (c - a) / (high - low)
            if np.allclose(a + each * (middle - low), b, rtol=1e-9, atol=0.5):
                yield ops, a[:, None] + each[:, None] * (np.asarray(batches, float)[None, :, None] - low), batches
                return
    if len(batches) > 1:
        half = len(batches) // 2 + (len(batches) > 2)  # the middle one, which is read already, ends the first half
        yield from lines(network, batches[:half])
        yield from lines(network, batches[half:])
    elif batches:
        ops, columns = network(batches[0])
        yield ops, columns[:, None], batches


def _same(ops: Sequence[Op], others: Sequence[Op]) -> bool:
    """Whether these are the same operations at two batches."""
    mine, theirs = ([(op.layer, op.pass_, op.name, op.function) for op in each] for each in (ops, others))
    return mine == theirs


def times(network: Table, batches: Sequence[int], devices: Sequence[tuple[Device, Runtime | None, int | None]]) -> Array:
    """Seconds of a step or an inference [device][batch]; NaN where a device cannot run it.

    devices: with their runtime and threads.  Devices whose rates were measured are left to octosim.cost.predict: NaN.
    """
    choices = [[(alone, r, count) for alone, count in model.alternatives(d, t)] for d, r, t in devices]
    if any(len(some) > 1 for some in choices):  # a network runs on the fastest of a chip's clusters
        found = times(network, batches, [one for some in choices for one in some])
        return np.fmin.reduceat(found, np.cumsum([0, *map(len, choices[:-1])]))
    ordered = sorted(set(batches))
    training = is_training(network(ordered[-1])[0])
    machines = [None if d.rates is not None else model.Machine(d, r, t, training) for d, r, t in devices]
    priced: dict[int, Array] = {}
    alone = ordered[:1] if ordered[0] == 1 else []  # one row is another kind of product
    for some in (alone, ordered[len(alone) :]):
        for ops, columns, on_line in lines(network, some):
            priced.update(zip(on_line, _times(ops, columns, machines).T, strict=True))
    found = np.stack([priced[batch] for batch in batches], axis=1)
    for at, (_, runtime, _) in enumerate(devices):
        if training and runtime and runtime.backward:
            found[at] += runtime.backward.step_ms.value * 1e-3
    return found


def _times(ops: Sequence[Op], columns: Array, machines: Sequence[model.Machine | None]) -> Array:
    """[machine][batch]; columns [GEOMETRY][batch][operation]."""
    codes = columns[model.GEOMETRY.index("code"), 0]
    distinct, first = np.unique(codes.astype(int), return_index=True)
    found = np.full((len(machines), columns.shape[1]), np.nan)
    groups: dict[bool, list[int]] = {}  # GPUs, others
    rows: dict[int, tuple[Array, Array]] = {}
    for at, machine in enumerate(machines):
        if machine is None:
            continue
        try:
            machine.add(distinct.tolist(), [ops[i] for i in first.tolist()])
        except OctosimError:
            continue
        rows[at] = machine.tables(codes)
        groups.setdefault(any(engine.multiprocessors for engine in machine.device.engines), []).append(at)
    for members in groups.values():
        fixed = np.stack([rows[at][0] for at in members], axis=1)[:, :, None, :]  # [MACHINE][D][1][n]
        factors = np.stack([rows[at][1] for at in members])[:, None]  # [D][1][n][PARAMETERS]
        some = max(1, CHUNK // max(1, fixed[0].size))
        for start in range(0, columns.shape[1], some):
            part = model._prepared(columns[:, None, start : start + some], fixed, factors)
            found[members, start : start + some] = model.times(part, part.parameters)[0].sum(axis=-1)
    return found
