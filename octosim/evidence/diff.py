"""Where two runs part: both replayed from their manifests, in lockstep, every tensor compared bit for bit."""

from __future__ import annotations

import math
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


def _step(run: train.Run, observed: probes.Observed) -> tuple[Tensors, str | None]:
    """The next step's tensors, in the order in which they are made; where the step fails, those before, and why."""
    observed.clear()
    images, labels = run.batch(run.step + 1)
    batch: Tensors = {("batch", "input", "images"): images, ("batch", "input", "labels"): labels}
    try:
        run.train_step(batch=(images, labels))
    except OctosimError as error:  # a NaN, as the run itself ended with
        return batch | observed.tensors, str(error)
    return batch | observed.tensors | _state(run, "update"), None


def _differs(a: Array, b: Array) -> Array:
    """Which elements differ in a bit (-0 is not 0, a NaN is itself); of two types, which differ in value."""
    if a.dtype == b.dtype:
        bits = np.dtype(f"u{a.dtype.itemsize}")
        differs: Array = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
        return differs
    return np.asarray(a.astype(np.float64) != b.astype(np.float64))


def sqnr_db(a: Array, b: Array) -> float | None:
    """10 log10(sum a^2 / sum (a - b)^2); None where a is 0, the two are equal or one has a NaN or an infinity."""
    return measure.decibels(float(np.square(a.astype(np.float64)).sum()), float(np.square(_distance(a, b)).sum()))


def _distance(a: Array, b: Array) -> Array:
    """|a - b|, float64; 0 between infinities of a sign and between NaNs, NaN from a NaN to a number."""
    one, other = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where((one == other) | np.isnan(one) & np.isnan(other), 0.0, np.abs(one - other))


def _as_json(value: Any) -> Any:
    """A number, or the name of one that JSON does not have: "nan", "inf", "-inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
        "largest": _as_json(float(_distance(a, b).max(initial=0))),
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
            "values": None if index is None else [_as_json(one[index].item()), _as_json(other[index].item())],
            "tensors": rows,
        }
    return None


def diff(
    first: Path, second: Path, steps: int | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Replays two runs side by side until they part, or for `steps` steps, or to the end of the shorter one.

    Step 0 stands for the initial parameters, pass "input" for the batch, "update" for parameters and optimizer after the step.
    Tensors that only one of the methods has are left out.  A step that fails, as with a NaN, is compared up to there;
    "failures" has each run's reason.
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
    failures: list[str | None] = [None, None]
    found, step = _parting(0, _state(a, "start"), _state(b, "start")), 0
    while found is None and step < most and not any(failures):
        step += 1
        ours, theirs = (_step(run, seen) for run, seen in zip(runs, observed, strict=True))
        found, failures = _parting(step, ours[0], theirs[0]), [ours[1], theirs[1]]
        if progress:
            progress(step, most)
    ended = {"failures": failures} if any(failures) else {}
    return about | {"equal": found is None, "compared_steps": step} | ended | (found or {})
