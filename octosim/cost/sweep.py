"""Many points at once: networks x batches x devices priced in one pass of NumPy.

A network is read at two batches: where every column of its operations is affine in the batch (a third batch checks that), any
other batch follows without planning it.  Where small calls join larger ones at some batches, each batch is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octosim.cost import model
from octosim.errors import OctosimError
from octosim.hardware import Device, Runtime
from octosim.trace import Op, is_training

Array = np.ndarray[Any, Any]

CHUNK = 1 << 14
"""Operations times points that are priced at once: the arrays of a pass stay in the cache."""

READ_AT = (2, 6, 4)
"""Batches at which a network is read; the last checks the line through the others."""


@dataclass(frozen=True)
class Table:
    """A network's operations as columns [GEOMETRY][operation] at any batch: `one` + `each` x batch.

    ops: the operations at the first batch read, for what is no number.  exact: whether all columns are affine; else `read` is
    asked.
    """

    ops: tuple[Op, ...]
    one: Array
    each: Array
    exact: bool
    read: Callable[[int], tuple[tuple[Op, ...], Array]]

    def at(self, batches: Sequence[int]) -> Array:
        """[GEOMETRY][batch][operation] of a network whose columns are affine."""
        sizes = np.asarray(batches, float)[None, :, None]
        return self.one[:, None, :] + self.each[:, None, :] * sizes


def table(read: Callable[[int], Sequence[Op]], batches: Sequence[int] = READ_AT) -> Table:
    """The table of a network that `read` gives the operations of at a batch; batches: some that it takes.

    Few batches are read as they are: a file may have no other.
    """

    @functools.lru_cache(maxsize=256)
    def columns(batch: int) -> tuple[tuple[Op, ...], Array]:
        ops = tuple(read(batch))
        return ops, model.geometry(ops)

    if len(batches) < len(READ_AT):
        ops, one = columns(batches[0])
        return Table(ops, one, one, False, columns)
    low, high, middle = READ_AT
    (ops, a), (_, b), (_, c) = columns(low), columns(high), columns(middle)
    if a.shape != b.shape or a.shape != c.shape:
        return Table(ops, a, a, False, columns)
    each = (b - a) / (high - low)
    one = a - each * low
    fixed = [model.GEOMETRY.index(name) for name in ("kind", "code", "winograd", "size", "forward")]
    exact = bool(np.allclose(one + each * middle, c, rtol=1e-9, atol=0.5) and not each[fixed].any())
    return Table(ops, one, each, exact, columns)


def times(network: Table, batches: Sequence[int], devices: Sequence[tuple[Device, Runtime | None, int | None]]) -> Array:
    """Seconds of a step or an inference [device][batch]; NaN where a device cannot run it.

    devices: with their runtime and threads.  Devices whose rates were measured are left to octosim.cost.predict: NaN.
    """
    choices = [[(alone, r, count) for alone, count in model.alternatives(d, t)] for d, r, t in devices]
    if any(len(some) > 1 for some in choices):  # a network runs on the fastest of a chip's clusters
        found = times(network, batches, [one for some in choices for one in some])
        return np.fmin.reduceat(found, np.cumsum([0, *map(len, choices[:-1])]))
    training = is_training(network.ops)
    machines = [None if d.rates is not None else model.Machine(d, r, t, training) for d, r, t in devices]
    found = np.full((len(devices), len(batches)), np.nan)
    several = [at for at, batch in enumerate(batches) if network.exact and batch > 1]  # one row is another kind
    if several:
        found[:, several] = _times(network.ops, network.at([batches[at] for at in several]), machines)
    for at in set(range(len(batches))) - set(several):
        ops, columns = network.read(batches[at])
        found[:, [at]] = _times(ops, columns[:, None], machines)
    for at, (_, runtime, _) in enumerate(devices):
        if training and runtime and runtime.backward:
            found[at] += runtime.backward.step_ms.value * 1e-3
    return found


def _times(ops: Sequence[Op], columns: Array, machines: Sequence[model.Machine | None]) -> Array:
    """[machine][batch]; columns [GEOMETRY][batch][operation]."""
    codes = columns[model.GEOMETRY.index("code"), 0]
    distinct, first = np.unique(codes.astype(int), return_index=True)
    found = np.full((len(machines), columns.shape[1]), np.nan)
    groups: dict[tuple[bool, bool], list[int]] = {}
    rows: dict[int, tuple[Array, Array]] = {}
    for at, machine in enumerate(machines):
        if machine is None:
            continue
        try:
            machine.add(distinct.tolist(), [ops[i] for i in first.tolist()])
        except OctosimError:
            continue
        rows[at] = machine.tables(codes)
        border = machine.runtime is None or machine.runtime.border
        gpu = any(engine.multiprocessors for engine in machine.device.engines)
        groups.setdefault((border, gpu), []).append(at)
    for (border, _), members in groups.items():
        fixed = np.stack([rows[at][0] for at in members], axis=1)[:, :, None, :]  # [MACHINE][D][1][n]
        factors = np.stack([rows[at][1] for at in members])[:, None]  # [D][1][n][PARAMETERS]
        some = max(1, CHUNK // max(1, fixed[0].size))
        for start in range(0, columns.shape[1], some):
            part = model._prepared(columns[:, None, start : start + some], fixed, factors, border)
            found[members, start : start + some] = model.times(part, part.parameters)[0].sum(axis=-1)
    return found
