"""Fits a framework's backward pass to measured training steps, and says how well it predicts networks left out of the fit.

The parameters are those of octosim.hardware.runtime.Backward.  The fit is a least-squares fit of logarithms in which each
network counts alike, with a normal prior around PRIOR, the same for every framework: the values of a runtime that was fitted
to some steps would carry them into a fit that leaves those steps out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost
from octosim.cost import onnx as onnx_ops
from octosim.cost import runtimes
from octosim.errors import OctosimError
from octosim.files import is_onnx
from octosim.hardware import Device, Runtime, load
from octosim.textfile import read_csv
from octosim.trace import DTYPE_BYTES, Op

Array = np.ndarray[Any, Any]

PRIOR = {
    # (value, standard deviation of its logarithm): estimates of a framework with generic kernels, which no step is in.
    # Passes: MNN's sources convert, transpose and pack a result about ten times on one thread, where several threads take half
    # as long, and read or write a linear layer's weights four times; optimizer and copies pass over parameters five times.
    "forward": (1.0, 0.5), "forward_depthwise": (1.0, 1.5), "dx": (0.8, 0.5), "dw": (0.7, 0.5), "depthwise": (0.05, 1.2),
    "patch_passes": (1.0, 0.7), "passes": (1.5, 0.7), "product_passes": (20.0, 1.2), "row_passes": (2.0, 1.0),
    "update_passes": (5.0, 1.0), "call_us": (30.0, 1.0), "step_ms": (1.0, 1.0),
}  # fmt: skip
OPTIONAL = ("forward", "forward_depthwise", "patch_passes", "product_passes", "row_passes")
"""Fitted where the runtime states them."""
NOISE = 0.2
"""Standard deviation of ln(measured / predicted) of one network's steps that the parameters do not explain."""
FEW = 6
"""Networks up to which two at a time are left out of a fit."""
INSIDE = 0.8
"""Share of the steps that an interval should hold."""


@dataclass(frozen=True)
class Step:
    """One measured training step: its network's float32 operations by octosim's plan, and seconds.

    device: where it was measured, if not on the fit's.
    """

    network: str
    batch: int
    ops: tuple[Op, ...]
    time_s: float
    device: Device | None = None


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


def steps(path: Path, layers: Path | None) -> list[Step]:
    """Rows of a CSV with the columns network (in the table of layers, or an .onnx file), batch, train_ms.

    Optional columns: profile, the device of the row; trains, "all" (if not given) or "head", the last weighted layer alone.
    """
    nets, found = networks(layers) if layers else {}, []
    for row in read_csv(path, ("network", "batch", "train_ms")):
        name = row.cells["network"]
        batch = row.number("batch", int, "a batch size", lambda v: 0 < v < 1 << 20)
        ms = row.number("train_ms", float, "a time above zero", lambda v: 0 < v < float("inf"))
        if is_onnx(name):
            ops = onnx_ops.ops(Path(name), batch=batch, dtype="float32", inference=False)
        elif name in nets:
            ops = step_ops(nets[name], batch)
        else:
            raise row.error(f"network {name!r} is neither the path of an .onnx file nor in the table of layers")
        trains = row.get("trains") or "all"
        if trains not in ("all", "head"):
            raise row.error(f"trains is '{trains[:60]}', expected all or head")
        profile = row.get("profile")
        found.append(Step(name, batch, tuple(head_alone(ops) if trains == "head" else ops), ms * 1e-3,
                          load(profile) if profile else None))  # fmt: skip
    return found


def head_alone(ops: Sequence[Op]) -> list[Op]:
    """A step that trains the last weighted layer alone: the forward pass, and that layer's dW and update."""
    weighted = [op.layer for op in ops if op.kind == "gemm" and op.pass_ == "dW"]
    forward = [op.layer for op in ops if op.kind == "gemm" and op.pass_ == "forward" and op.layer in weighted]
    last = forward[-1] if forward else ""
    return [op for op in ops if op.pass_ == "forward" or op.layer == last and op.pass_ in ("dW", "update")]


def parameters(runtime: Runtime) -> tuple[str, ...]:
    """Names of the parameters of a runtime's backward pass that are fitted."""
    if runtime.backward is None:
        raise OctosimError(f"runtime {runtime.name} has no [backward] to fit")
    return tuple(name for name in PRIOR if name not in OPTIONAL or getattr(runtime.backward, name) is not None)


class _Problem:
    """The times of some steps as a function of the parameters: prepared once with all of them 1, then scaled."""

    def __init__(self, measured: Sequence[Step], device: Device, runtime: Runtime, threads: int | None) -> None:
        ones = with_backward(runtime, dict.fromkeys(parameters(runtime), 1.0), 1.0, "of the fit")
        planned = [runtimes.training_ops(s.ops, ones) for s in measured]
        self.prepared = [cost.prepare(ops, s.device or device, threads, ones)
                         for ops, s in zip(planned, measured, strict=True)]  # fmt: skip
        self.owners = [[_owners(op) for op in ops] for ops in planned]

    def log_times(self, values: Mapping[str, float]) -> Array:
        known = {name: values.get(name, 1.0) for name in PRIOR}
        found = []
        for p, owners in zip(self.prepared, self.owners, strict=True):
            slow = np.array([math.prod(1 / known[name] for name in shares) for shares, _ in owners])
            passes = np.array([known[name] if name else 1.0 for _, name in owners])
            scaled = replace(p, work=p.work * slow * passes, weights=p.weights * passes, other=p.other * passes)
            factors = p.parameters.copy()
            factors[:, cost.PARAMETERS.index("overhead_us")] = known["call_us"]
            time, *_ = cost.times(scaled, factors)
            found.append(float(time.sum()) + known["step_ms"] * 1e-3)
        return np.log(found)


def _owners(op: Op) -> tuple[tuple[str, ...], str]:
    """The parameters that are shares of an operation's speed, and the one that counts its passes, "" where none does."""
    if op.kind == "gemm":
        depthwise = cost.kind_of(op) == "depthwise"
        if op.pass_ == "forward":
            return ("forward_depthwise" if depthwise else "forward",), ""
        return (op.pass_.lower(), *(("depthwise",) if depthwise else ())), ""
    return (), runtimes.PASSES.get(op.name, "update_passes" if op.kind == "update" else "passes")


def fit(measured: Sequence[Step], device: Device, runtime: Runtime, threads: int | None = None) -> dict[str, float]:
    """The parameters with which the runtime explains these steps, leaning to PRIOR."""
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise OctosimError("fitting training steps needs scipy: pip install 'octosim[fit]'") from None
    problem, names = _Problem(measured, device, runtime, threads), parameters(runtime)
    mean = np.log([PRIOR[name][0] for name in names])
    sd = np.array([PRIOR[name][1] for name in names])
    times = np.log([s.time_s for s in measured])
    counts = {name: sum(s.network == name for s in measured) for name in {s.network for s in measured}}
    weight = np.array([NOISE * counts[s.network] ** 0.5 for s in measured])

    def residuals(x: Array) -> Array:
        values = dict(zip(names, np.exp(x).tolist(), strict=True))
        return np.concatenate([(problem.log_times(values) - times) / weight, (x - mean) / sd])

    slow = mean - 2 * sd * np.array([name == "depthwise" for name in names])  # near the mean memory may hide its products
    found = min((least_squares(residuals, start, max_nfev=60, x_scale="jac") for start in (mean, slow)), key=lambda f: f.cost)
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))


def held_out(networks: int) -> int:
    """How many networks are left out of a fit at a time."""
    return 2 if networks <= FEW else 1


def leave_out(
    measured: Sequence[Step], device: Device, runtime: Runtime, held: int | None = None, threads: int | None = None
) -> list[dict[str, Any]]:
    """Every split that leaves `held` networks out of the fit: for each of their steps ln(predicted / measured).

    held: `held_out` if not given.
    """
    names = list(dict.fromkeys(s.network for s in measured))
    held = held or held_out(len(names))
    if len(names) <= held:
        raise OctosimError(f"{len(names)} networks are too few to leave {held} out")
    found = []
    for out in itertools.combinations(names, held):
        values = fit([s for s in measured if s.network not in out], device, runtime, threads)
        rest = [s for s in measured if s.network in out]
        predicted = _Problem(rest, device, runtime, threads).log_times(values)
        for s, value in zip(rest, predicted.tolist(), strict=True):
            error = value - float(np.log(s.time_s))
            found.append({"left_out": out, "network": s.network, "batch": s.batch, "error": error, "step": s})
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
