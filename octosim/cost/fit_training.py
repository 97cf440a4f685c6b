"""Fits a framework's backward pass to measured training steps, and says how well it predicts networks left out of the fit.

The parameters are those of octosim.hardware.runtime.Backward.  The fit is a least-squares fit of logarithms in which each
network counts alike, with a normal prior around PRIOR, the same for every framework: the values of a runtime that was fitted
to some steps would carry them into a fit that leaves those steps out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost
from octosim.cost import onnx as onnx_ops
from octosim.cost import runtimes
from octosim.cost.fit import in_place, one_device
from octosim.errors import OctosimError
from octosim.files import is_onnx
from octosim.hardware import Device, Runtime, load
from octosim.textfile import Row, read_csv
from octosim.trace import DTYPE_BYTES, Op

Array = np.ndarray[Any, Any]

PRIOR = {
    # (value, standard deviation of its logarithm): estimates of a framework with generic kernels, which no step is in.
    "forward": (1.0, 0.5), "forward_depthwise": (1.0, 1.5), "dx": (0.8, 0.5), "dw": (0.7, 0.5), "depthwise": (0.05, 1.2),
    "patch_passes": (1.0, 0.7), "passes": (1.5, 0.7), "update_passes": (5.0, 1.0), "call_us": (30.0, 1.0),
    "step_ms": (1.0, 1.0),
}  # fmt: skip
COUNTED = {
    # The same where passes are counted in the framework's source (hardware.runtime.Work): what is left is how fast they are.
    # Lines of a cache that several cores write move between them (interleaved).
    "forward": (1.0, 0.5), "depthwise": (0.5, 0.7), "passes": (1.5, 0.5), "interleaved": (0.2, 1.0), "call_us": (30.0, 1.0),
    "step_ms": (1.0, 1.0),
}  # fmt: skip
OPTIONAL = ("forward", "forward_depthwise", "patch_passes")
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

    device: where it was measured, if not on the fit's.  threads: None, all.  row: of the table that it was read from.
    """

    network: str
    batch: int
    ops: tuple[Op, ...]
    time_s: float
    device: Device | None = None
    threads: int | None = None
    row: Row | None = None


NETWORKS = Path(__file__).with_name("mnn_networks.csv")
"""Layers, by the program's sources, of the networks that UbiquitousLearning/Benchmark-On-Device-Training measured."""


PRODUCTS = ("conv", "depthwise", "linear")
LINEAR = ("in_channels", "out_channels", "kernel", "weights")
"""Sizes of a linear layer that count."""
IMAGES = ("in_channels", "out_channels", "in_size", "out_size")
"""Those of what is no product."""
KINDS = (*PRODUCTS, "batchnorm", "relu", "relu6", "maxpool", "avgpool", "add", "concat")


def networks(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Layers by network from a CSV with the columns network, layer, kind, in_channels, out_channels, kernel, stride, in_size,
    out_size, weights.  kind: one of KINDS; a product's weights include its biases."""
    sizes = ("in_channels", "out_channels", "kernel", "stride", "in_size", "out_size", "weights")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_csv(path, ("network", "layer", "kind", *sizes)):
        if row.cells["kind"] not in KINDS:
            raise row.error(f"kind is '{row.cells['kind'][:60]}', expected one of {', '.join(KINDS)}")
        layer: dict[str, Any] = {k: row.number(k, int, "a whole number", lambda v: 0 <= v < 1 << 50) for k in sizes}
        kind = row.cells["kind"]
        needed = LINEAR if kind == "linear" else sizes if kind in PRODUCTS else IMAGES
        empty = next((size for size in needed if not layer[size]), None)
        if empty:
            raise row.error(f"{empty} is 0, expected a size above zero for {kind}")
        if kind == "depthwise" and layer["out_channels"] % layer["in_channels"]:
            raise row.error(f"in_channels is {layer['in_channels']}, which does not divide the {layer['out_channels']} out")
        found.setdefault(row.cells["network"], []).append(layer | {"name": row.cells["layer"], "kind": row.cells["kind"]})
    return found


def differences(given: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Sentences about networks of a table whose layers have other sizes than those of the same names in NETWORKS."""
    found, own, sizes_of = [], networks(NETWORKS), itemgetter("stride", "in_size", "out_size")
    for name, layers in given.items():
        sizes = {layer["name"]: sizes_of(layer) for layer in own.get(name, [])}
        other = [layer["name"] for layer in layers if sizes.get(layer["name"], sizes_of(layer)) != sizes_of(layer)]
        if other:
            found.append(f"{name}: {len(other)} of {len(layers)} layers, {other[0]} first, have another size or stride than in "
                         "the program that was measured; without --layers octosim takes the program's")  # fmt: skip
    return found


def step_ops(layers: Sequence[Mapping[str, Any]], batch: int) -> list[Op]:
    """A float32 training step of a table's network: products in three passes, what lies between them, the optimizer.

    A table of products alone does not say what lies between: an activation after each, then.
    """
    size = DTYPE_BYTES["float32"]
    found: list[Op] = []
    products = [layer for layer in layers if layer["kind"] in PRODUCTS]
    alone, first = len(products) == len(layers), True
    for layer in layers:
        kind, ci, co, k = layer["kind"], layer["in_channels"], layer["out_channels"], layer["kernel"]
        name, linear = layer["name"], kind == "linear"
        x = batch * ci * (1 if linear else layer["in_size"] ** 2) * size
        y = batch * co * (1 if linear else layer["out_size"] ** 2) * size
        if kind not in PRODUCTS:
            side = min(k, layer["in_size"]) if kind in ("maxpool", "avgpool") else 0
            count, window = y // size * max(1, side**2), (side, side)
            reads = 2 * x if kind in ("batchnorm", "add") else x
            found.append(Op(name, "forward", "elementwise", kind, (count,), "float32", reads, y, kernel=window))
            found.append(Op(name, "dX", "elementwise", kind, (count,), "float32", x + y, x, kernel=window))
            continue
        found += _products(layer, batch, x, y, first)
        first = False
        if alone:
            found.append(Op(name, "forward", "elementwise", "activation", (y // size,), "float32", y, y))
            found.append(Op(name, "dX", "elementwise", "activation", (y // size,), "float32", 2 * y, y))
    trained = [layer["weights"] for layer in layers if layer["weights"]]
    count = sum(trained)
    tensors = 2 * len(trained)
    found.append(Op("optimizer", "update", "update", "sgd", (count,), "float32", 12 * count, 8 * count, groups=tensors))
    return found


def _products(layer: Mapping[str, Any], batch: int, x: int, y: int, first: bool) -> list[Op]:
    """The three products of a layer with x bytes of input and y of result; the network's first has no dX."""
    size, linear = DTYPE_BYTES["float32"], layer["kind"] == "linear"
    ci, co, k = layer["in_channels"], layer["out_channels"], layer["kernel"]
    groups = ci if layer["kind"] == "depthwise" else 1
    m, inner, n = y // size // co, ci // groups * k * k, co // groups
    w = layer["weights"] * size

    def product(pass_: str, shape: tuple[int, int, int], reads: int, writes: int, weights: int) -> Op:
        return Op(
            layer["name"], pass_, "gemm", layer["kind"], shape, "float32", reads, writes, groups=groups,
            kernel=(0, 0) if linear else (k, k), stride=1 if linear else layer["stride"], weights=weights,
        )  # fmt: skip

    found = [product("forward", (m, inner, n), x + w, y, w), product("dW", (n, m, inner), x + y, w, 0)]
    return found if first else [*found, product("dX", (m, n, inner), w + y, x, w)]


COLUMNS = ("device", "profile", "mode", "threads", "runtime", "trains")
"""Those that a table of steps may have."""


def steps(path: Path, layers: Path | None, device: Device, runtime: Runtime, only: str = "") -> list[Step]:
    """Rows of a CSV with the columns network, batch, train_ms: of a runtime, on a device if they do not say their own.

    network: in the table of layers, which is NETWORKS if not given, or an .onnx file.  only: what the rows' device begins with.

    COLUMNS: profile, the device of the row, and mode, its power mode; threads, all if not given; runtime, this one;
    trains, "all" (if not given) or "head", the last weighted layer alone.
    """
    runtimes.check(runtime, device, False)
    rows = [row for row in read_csv(path, ("network", "batch", "train_ms"), COLUMNS) if row.get("device").startswith(only)]
    if not only:
        one_device(row for row in rows if not row.get("profile"))
    nets, found = networks(layers or NETWORKS), []
    for row in rows:
        name = row.cells["network"]
        batch = row.number("batch", int, "a batch size", lambda v: 0 < v < 1 << 20)
        ms = row.number("train_ms", float, "a time above zero", lambda v: 0 < v < float("inf"))
        if is_onnx(name):
            with row.placed():
                ops = onnx_ops.ops(Path(name), batch=batch, dtype="float32", inference=False)
        elif name in nets:
            ops = step_ops(nets[name], batch)
        else:
            raise row.error(f"network {name!r} is neither the path of an .onnx file nor in the table of layers")
        trains = row.get("trains") or "all"
        if trains not in ("all", "head"):
            raise row.error(f"trains is '{trains[:60]}', expected all or head")
        threads = None
        if row.get("threads"):
            threads = row.number("threads", int, "a number of threads above zero", lambda v: 1 <= v <= 1 << 20)
        own = device
        if row.get("profile"):
            with row.placed():
                own = load(row.get("profile"))
                runtimes.check(runtime, own, False)
        own = in_place(row, own, runtime)
        found.append(Step(name, batch, tuple(head_alone(ops) if trains == "head" else ops), ms * 1e-3,
                          None if own is device else own, threads, row))  # fmt: skip
    if not found:
        raise OctosimError(f"{path}: no training step" + (f" of a device that begins with '{only}'" if only else ""))
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
    if runtime.backward.work:
        return tuple(COUNTED)
    return tuple(name for name in PRIOR if name not in OPTIONAL or getattr(runtime.backward, name) is not None)


class _Problem:
    """The times of some steps as a function of the parameters: prepared once with all of them 1, then scaled."""

    def __init__(self, measured: Sequence[Step], device: Device, runtime: Runtime) -> None:
        ones = with_backward(runtime, dict.fromkeys(parameters(runtime), 1.0), 1.0, "of the fit")
        planned = [runtimes.training_ops(s.ops, ones, s.batch) for s in measured]
        prepared = [cost.prepare(ops, s.device or device, s.threads, ones) for ops, s in zip(planned, measured, strict=True)]
        counts = bool(runtime.backward and runtime.backward.work)
        owners = [_owners(op, counts) for ops in planned for op in ops]
        self.names = tuple(PRIOR | COUNTED)
        self.shares = np.array([[name in shares for name in self.names] for shares, _ in owners], float)
        self.passes = np.array([[name == own for name in self.names] for _, own in owners], float)
        self.starts = np.cumsum([0, *(len(ops) for ops in planned[:-1])])
        fields = [name for name, value in vars(prepared[0]).items() if isinstance(value, np.ndarray)]
        joined: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in prepared]) for name in fields}
        self.all = replace(prepared[0], **joined)

    def log_times(self, values: Mapping[str, float]) -> Array:
        known = np.log([values.get(name, 1.0) for name in self.names])
        slow, passes = np.exp(-self.shares @ known), np.exp(self.passes @ known)
        scaled = replace(
            self.all, work=self.all.work * slow * passes, weights=self.all.weights * passes, other=self.all.other * passes
        )
        factors = self.all.parameters.copy()
        factors[:, cost.PARAMETERS.index("overhead_us")] = values.get("call_us", 1.0)
        if np.any(scaled.queued):  # what is hidden behind what follows from a step's sums
            parts = itertools.pairwise([*self.starts.tolist(), len(factors)])
            time = np.concatenate([cost.times(_part(scaled, *part), factors[slice(*part)])[0] for part in parts])
        else:
            time, *_ = cost.times(scaled, factors)
        found: Array = np.log(np.add.reduceat(time, self.starts) + values.get("step_ms", 1.0) * 1e-3)
        return found


def _part(p: cost.Prepared, first: int, last: int) -> cost.Prepared:
    """Some of the operations."""
    some: dict[str, Any] = {name: value[first:last] for name, value in vars(p).items() if isinstance(value, np.ndarray)}
    return replace(p, **some)


def _owners(op: Op, counted: bool) -> tuple[tuple[str, ...], str]:
    """The parameters that are shares of an operation's speed, and the one that counts its passes, "" where none does."""
    if op.kind == "gemm":
        depthwise = cost.kind_of(op) == "depthwise"
        if op.pass_ == "forward":
            return ("forward_depthwise" if depthwise else "forward",), ""
        if counted:
            return ("depthwise" if depthwise else "forward",), ""
        return (op.pass_.lower(), *(("depthwise",) if depthwise else ())), ""
    if counted:
        return ("interleaved",) if op.name == runtimes.INTERLEAVED else (), "passes"
    if op.name == runtimes.PATCHES:
        return (), "patch_passes"
    return (), "update_passes" if op.kind == "update" else "passes"


def fit(measured: Sequence[Step], device: Device, runtime: Runtime) -> dict[str, float]:
    """The parameters with which the runtime explains these steps, leaning to PRIOR."""
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise OctosimError("fitting training steps needs scipy: pip install 'octosim[fit]'") from None
    problem, names = _Problem(measured, device, runtime), parameters(runtime)
    assert runtime.backward
    prior = COUNTED if runtime.backward.work else PRIOR
    mean = np.log([prior[name][0] for name in names])
    sd = np.array([prior[name][1] for name in names])
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
    measured: Sequence[Step], device: Device, runtime: Runtime, held: int | None = None
) -> list[dict[str, Any]]:  # fmt: skip
    """Every split that leaves `held` networks out of the fit: for each of their steps ln(predicted / measured).

    held: `held_out` if not given.
    """
    names = list(dict.fromkeys(s.network for s in measured))
    held = held or held_out(len(names))
    if len(names) <= held:
        place = f"{measured[0].row.path}: " if measured and measured[0].row else ""
        raise OctosimError(f"{place}{len(names)} networks are too few to leave {held} out")
    found = []
    for out in itertools.combinations(names, held):
        values = fit([s for s in measured if s.network not in out], device, runtime)
        rest = [s for s in measured if s.network in out]
        predicted = _Problem(rest, device, runtime).log_times(values)
        for s, value in zip(rest, predicted.tolist(), strict=True):
            error = value - float(np.log(s.time_s))
            found.append({"left_out": out, "network": s.network, "batch": s.batch, "error": error, "step": s})
    return found


def with_backward(
    runtime: Runtime, values: Mapping[str, float], spread: float, source: str, devices: Iterable[str] = ()
) -> Runtime:  # fmt: skip
    """The runtime with fitted parameters; devices: on which the spread is what was measured, anywhere if none."""
    assert runtime.backward
    figures = {name: {"value": float(f"{value:.4g}"), "kind": "derived", "source": source} for name, value in values.items()}
    figures["spread"] = {"value": float(f"{spread:.3g}"), "kind": "derived", "source": source}
    data = runtime.backward.model_dump() | figures | {"devices": tuple(devices)}
    return runtime.model_copy(update={"backward": type(runtime.backward).model_validate(data)})


def spread_of(rows: Iterable[Mapping[str, Any]]) -> float:
    """Standard deviation with which an interval holds INSIDE of the errors of a network that is not among these.

    The quantile of conformal prediction (Lei et al. 2018, section 2.2), INSIDE (n + 1) / n, with networks as its n units, as
    the errors of one's steps go together: of four it is their largest error.
    """
    held = [(row["network"], abs(row["error"])) for row in rows]
    count = len({network for network, _ in held})
    level = min(1.0, INSIDE * (count + 1) / count)
    return max(0.05, float(np.quantile([error for _, error in held], level)) / cost.INTERVAL)
