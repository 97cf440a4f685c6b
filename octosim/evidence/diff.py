"""Where two runs part: both replayed from their manifests, in lockstep, every tensor compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from octosim import train
from octosim.engine import probes
from octosim.engine.nodes import Array
from octosim.errors import OctosimError
from octosim.train import measure

Tensors = dict[probes.Key, Array]


def _state(run: train.Run, pass_: str) -> Tensors:
    """Everything that training changes."""
    found: Tensors = {}
    for name, tensor in run.tensors().items():
        layer, _, rest = name.partition(".") if name.startswith("optimizer.") else name.rpartition(".")
        found[layer, pass_, rest] = tensor.copy()
    return found


def _step(run: train.Run, observed: probes.Observed) -> Tensors:
    """The next step's tensors, in the order in which they are made."""
    observed.clear()
    images, labels = run.batch(run.step + 1)
    run.train_step(batch=(images, labels))
    batch: Tensors = {("batch", "input", "images"): images, ("batch", "input", "labels"): labels}
    return batch | observed.tensors | _state(run, "update")


def _differs(a: Array, b: Array) -> Array:
    """Which elements differ in a bit (-0 is not 0, a NaN is itself); of two types, which differ in value."""
    if a.dtype == b.dtype:
        bits = np.dtype(f"u{a.dtype.itemsize}")
        differs: Array = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
        return differs
    return np.asarray(a.astype(np.float64) != b.astype(np.float64))


def sqnr_db(a: Array, b: Array) -> float | None:
    """10 log10(sum a^2 / sum (a - b)^2); None where a is 0 or the two are equal."""
    reference = a.astype(np.float64)
    signal, noise = np.square(reference).sum(), np.square(reference - b.astype(np.float64)).sum()
    return measure.decibels(float(signal), float(noise))


def off_by(a: Array, b: Array) -> dict[str, int]:
    """Elements by |a - b|, in powers of two: {"0": ..., "1": ..., "2..3": ..., "4..7": ...}, without empty classes but 0."""
    distance = np.abs(a.astype(np.int64) - b.astype(np.int64)).ravel()
    classes = np.bincount(np.frexp(distance.astype(np.float64))[1], minlength=1)
    names = ["0", "1", *(f"{2 ** (i - 1)}..{2**i - 1}" for i in range(2, len(classes)))]
    return {name: int(count) for name, count in zip(names, classes, strict=False) if count or name == "0"}


def _compared(key: probes.Key, a: Array, b: Array) -> dict[str, Any]:
    """One tensor's row.  Tensors of two shapes have nothing to compare but the shapes."""
    row: dict[str, Any] = dict(zip(("layer", "pass", "tensor"), key, strict=True))
    row["dtype"] = str(a.dtype) if a.dtype == b.dtype else f"{a.dtype} and {b.dtype}"
    if a.shape != b.shape:
        return row | {"shape": [list(a.shape), list(b.shape)], "elements": None, "differ": None}
    whole = a.dtype.kind in "iu" and b.dtype.kind in "iu"
    return row | {
        "elements": a.size,
        "differ": int(_differs(a, b).sum()),
        "largest": float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)),
        "sqnr_db": sqnr_db(a, b),
        "off_by": off_by(a, b) if whole else None,
    }


def _parting(step: int, a: Tensors, b: Tensors) -> dict[str, Any] | None:
    """The first of the tensors in which the runs differ, and a row for each; None where all are equal."""
    both = [key for key in a if key in b]
    rows = [_compared(key, a[key], b[key]) for key in both]
    for key, row in zip(both, rows, strict=True):
        if row["differ"] == 0 and a[key].dtype == b[key].dtype:
            continue
        one, other = a[key], b[key]
        index = None
        if row["differ"]:
            index = tuple(int(i) for i in np.unravel_index(int(_differs(one, other).argmax()), one.shape))
        return {
            "step": step,
            **{name: row[name] for name in ("layer", "pass", "tensor")},
            "index": None if index is None else list(index),
            "values": None if index is None else [one[index].item(), other[index].item()],
            "tensors": rows,
        }
    return None


def diff(
    first: Path, second: Path, steps: int | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Replays two runs side by side until they part, or for `steps` steps, or to the end of the shorter one.

    Step 0 stands for the initial parameters, pass "input" for the batch, "update" for parameters and optimizer after the step.
    Tensors that only one of the methods has are left out.
    """
    runs = [train.replay(folder) for folder in (first, second)]
    a, b = runs
    for one, other in zip(a.network.nodes, b.network.nodes, strict=False):
        if (one.name, one.in_shape, one.out_shape) != (other.name, other.in_shape, other.out_shape):
            raise OctosimError(
                f"{first} and {second} train different networks: {one.name} {one.in_shape} -> {one.out_shape} "
                f"is {other.name} {other.in_shape} -> {other.out_shape} in the second"
            )
    if len(a.network.nodes) != len(b.network.nodes):
        raise OctosimError(
            f"{first} and {second} train different networks, of {len(a.network.nodes)} and {len(b.network.nodes)} layers"
        )
    most = min(a.steps, b.steps, steps or a.steps)
    observed = [probes.watch(run.network) for run in runs]
    about = {"runs": [str(first), str(second)], "of_steps": most}
    found = _parting(0, _state(a, "start"), _state(b, "start"))
    while found is None and a.step < most:
        found = _parting(a.step + 1, _step(a, observed[0]), _step(b, observed[1]))
        if progress:
            progress(a.step, most)
    return about | {"equal": found is None, "compared_steps": a.step} | (found or {})
