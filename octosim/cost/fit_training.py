"""Fits a framework's backward pass to measured training steps, and says how well it predicts networks left out of the fit.

The parameters are those of octosim.hardware.runtime.Backward.  The fit is a least-squares fit of logarithms in which each
network counts alike, with a normal prior around PRIOR, the same for every framework: the values of a runtime that was fitted
to some steps would carry them into a fit that leaves those steps out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost
from octosim.cost import runtimes
from octosim.errors import OctosimError
from octosim.hardware import Device, Runtime
from octosim.textfile import read_csv
from octosim.trace import DTYPE_BYTES, Op, with_winograd

Array = np.ndarray[Any, Any]

PRIOR = {
    # (value, standard deviation of its logarithm): the estimates for eager PyTorch, which no step of another framework is in
    "dx": (0.8, 0.5), "dw": (0.7, 0.5), "depthwise": (0.35, 1.5), "passes": (1.5, 1.5), "update_passes": (1.2, 1.5),
    "call_us": (30.0, 1.0), "step_ms": (1.0, 1.0),
}  # fmt: skip
PARAMETERS = tuple(PRIOR)
NOISE = 0.2
"""Standard deviation of ln(measured / predicted) of one network's steps that the parameters do not explain."""
INSIDE = 0.8
"""Share of the steps that an interval should hold."""


@dataclass(frozen=True)
class Step:
    """One measured training step: its network's float32 operations by octosim's plan, and seconds."""

    network: str
    batch: int
    ops: tuple[Op, ...]
    time_s: float


def networks(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Layers by network from a CSV with the columns network, layer, kind (conv, depthwise, linear), in_channels, out_channels,
    kernel, stride, in_size, out_size, weights."""
    sizes = ("in_channels", "out_channels", "kernel", "stride", "in_size", "out_size", "weights")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_csv(path, ("network", "layer", "kind", *sizes)):
        layer: dict[str, Any] = {k: row.number(k, int, "a whole number", lambda v: 0 <= v < 1 << 50) for k in sizes}
        found.setdefault(row.cells["network"], []).append(layer | {"name": row.cells["layer"], "kind": row.cells["kind"]})
    return found


def step_ops(layers: Sequence[Mapping[str, Any]], batch: int) -> list[Op]:
    """A float32 training step of a table's network: products in three passes, an activation after each, the optimizer."""
    size = DTYPE_BYTES["float32"]
    found: list[Op] = []
    for at, layer in enumerate(layers):
        linear, depthwise = layer["kind"] == "linear", layer["kind"] == "depthwise"
        ci, co, k = layer["in_channels"], layer["out_channels"], layer["kernel"]
        groups = ci if depthwise else 1
        pixels = batch * (1 if linear else layer["out_size"] ** 2)
        m, inner, n = pixels, ci // groups * k * k, co // groups
        x = batch * ci * (1 if linear else layer["in_size"] ** 2) * size
        y, w = pixels * co * size, layer["weights"] * size
        shared = {"groups": groups, "kernel": (0, 0) if linear else (k, k), "stride": 1 if linear else layer["stride"]}
        name, kind = layer["name"], layer["kind"]

        def product(pass_: str, shape: tuple[int, int, int], reads: int, writes: int, weights: int, name: str = name,
                    kind: str = kind, shared: dict[str, Any] = shared) -> Op:  # fmt: skip
            return Op(name, pass_, "gemm", kind, shape, "float32", reads, writes, weights=weights, **shared)

        found.append(product("forward", (m, inner, n), x + w, y, w))
        found.append(Op(name, "forward", "elementwise", "activation", (m * co,), "float32", y, y))
        found.append(Op(name, "dX", "elementwise", "activation", (m * co,), "float32", 2 * y, y))
        found.append(product("dW", (n, m, inner), x + y, w, 0))
        if at:
            found.append(product("dX", (m, n, inner), w + y, x, w))
    count = sum(layer["weights"] for layer in layers)
    found.append(Op("optimizer", "update", "update", "sgd", (count,), "float32", 12 * count, 8 * count, groups=2 * len(layers)))
    return found


def steps(path: Path, layers: Path) -> list[Step]:
    """Rows of a CSV with the columns network, batch, train_ms whose networks are in the table of layers."""
    nets, found = networks(layers), []
    for row in read_csv(path, ("network", "batch", "train_ms")):
        name = row.cells["network"]
        if name not in nets:
            raise row.error(f"network {name!r} is not in {layers}")
        batch = row.number("batch", int, "a batch size", lambda v: 0 < v < 1 << 20)
        ms = row.number("train_ms", float, "a time above zero", lambda v: 0 < v < float("inf"))
        found.append(Step(name, batch, tuple(step_ops(nets[name], batch)), ms * 1e-3))
    return found


class _Problem:
    """The times of some steps as a function of the parameters: prepared once, scaled as runtimes.training_ops scales them."""

    def __init__(self, measured: Sequence[Step], device: Device, runtime: Runtime, threads: int | None) -> None:
        if runtime.backward is None:
            raise OctosimError(f"runtime {runtime.name} has no [backward] to fit")
        self.patches = runtime.backward.patches
        planned = [[with_winograd(op) if runtime.winograd and op.pass_ == "forward" else op for op in s.ops] for s in measured]
        self.prepared = [cost.prepare(ops, device, threads, runtime) for ops in planned]
        self.masks = []
        for s in measured:
            kinds = np.array([cost.kind_of(op) == "depthwise" for op in s.ops])
            gemm = np.array([op.kind == "gemm" for op in s.ops])
            passes = np.array([op.pass_ for op in s.ops])
            wide = np.array([op.kernel[0] * op.kernel[1] > 1 for op in s.ops])
            back = gemm & (passes != "forward")
            bytes_ = np.array([2.0 * runtimes.patch_bytes(op) if op.kind == "gemm" else 0.0 for op in s.ops])
            unfolded = np.where(back & wide, bytes_, 0.0)
            self.masks.append((gemm & (passes == "dX"), gemm & (passes == "dW"), back & kinds,
                               np.array([op.kind == "elementwise" for op in s.ops]),
                               np.array([op.kind == "update" for op in s.ops]), unfolded))  # fmt: skip

    def log_times(self, values: Mapping[str, float]) -> Array:
        found = []
        for p, (dx, dw, depthwise, elementwise, update, unfolded) in zip(self.prepared, self.masks, strict=True):
            slow = np.where(dx, 1 / values["dx"], 1.0) * np.where(dw, 1 / values["dw"], 1.0)
            slow = slow * np.where(depthwise, 1 / values["depthwise"], 1.0)
            passes = np.where(elementwise, values["passes"], np.where(update, values["update_passes"], 1.0))
            more = unfolded if self.patches else 0.0
            scaled = replace(p, work=p.work * slow * passes, weights=p.weights * passes, other=p.other * passes + more)
            parameters = p.parameters.copy()
            parameters[:, cost.PARAMETERS.index("overhead_us")] = values["call_us"]
            time, *_ = cost.times(scaled, parameters)
            found.append(float(time.sum()) + values["step_ms"] * 1e-3)
        return np.log(found)


def fit(measured: Sequence[Step], device: Device, runtime: Runtime, threads: int | None = None) -> dict[str, float]:
    """The parameters with which the runtime explains these steps, leaning to PRIOR."""
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise OctosimError("fitting training steps needs scipy: pip install 'octosim[fit]'") from None
    problem = _Problem(measured, device, runtime, threads)
    mean = np.log([PRIOR[name][0] for name in PARAMETERS])
    sd = np.array([PRIOR[name][1] for name in PARAMETERS])
    times = np.log([s.time_s for s in measured])
    counts = {name: sum(s.network == name for s in measured) for name in {s.network for s in measured}}
    weight = np.array([NOISE * counts[s.network] ** 0.5 for s in measured])

    def residuals(x: Array) -> Array:
        values = dict(zip(PARAMETERS, np.exp(x).tolist(), strict=True))
        return np.concatenate([(problem.log_times(values) - times) / weight, (x - mean) / sd])

    slow = mean - 2 * sd * np.array([name == "depthwise" for name in PARAMETERS])  # near the mean memory may hide its products
    found = min((least_squares(residuals, start, max_nfev=60, x_scale="jac") for start in (mean, slow)), key=lambda f: f.cost)
    return dict(zip(PARAMETERS, np.exp(found.x).tolist(), strict=True))


def leave_out(
    measured: Sequence[Step], device: Device, runtime: Runtime, held: int = 2, threads: int | None = None
) -> list[dict[str, Any]]:
    """Every split that leaves `held` networks out of the fit: for each of their steps ln(predicted / measured)."""
    names = list(dict.fromkeys(s.network for s in measured))
    if len(names) <= held:
        raise OctosimError(f"{len(names)} networks are too few to leave {held} out")
    found = []
    for out in itertools.combinations(names, held):
        values = fit([s for s in measured if s.network not in out], device, runtime, threads)
        rest = [s for s in measured if s.network in out]
        predicted = _Problem(rest, device, runtime, threads).log_times(values)
        for s, value in zip(rest, predicted.tolist(), strict=True):
            found.append({"left_out": out, "network": s.network, "batch": s.batch, "error": value - float(np.log(s.time_s))})
    return found


def with_backward(runtime: Runtime, values: Mapping[str, float], spread: float, source: str) -> Runtime:
    """The runtime with fitted parameters."""
    assert runtime.backward
    figures = {name: {"value": float(f"{value:.4g}"), "kind": "derived", "source": source} for name, value in values.items()}
    figures["spread"] = {"value": float(f"{spread:.3g}"), "kind": "derived", "source": source}
    data = runtime.backward.model_dump() | figures
    return runtime.model_copy(update={"backward": type(runtime.backward).model_validate(data)})


def spread_of(rows: Iterable[Mapping[str, Any]]) -> float:
    """Standard deviation with which an interval holds INSIDE of these errors."""
    return max(0.05, float(np.quantile([abs(row["error"]) for row in rows], INSIDE)) / cost.INTERVAL)
