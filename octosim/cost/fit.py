"""Fits efficiency factors to measured times of whole networks.

The fit is a maximum a posteriori estimate in logarithms: residuals are ln(predicted / measured) with Huber's loss, every
factor has a normal prior around that of the pool (or PRIOR, for the pool itself), and a campaign of measurements may have
an offset of its own, which stands for software version, cooling and clock and is not part of the factors.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from octosim import cost
from octosim.cost.runtimes import check, onnx_rules
from octosim.errors import OctosimError
from octosim.files import is_onnx
from octosim.hardware import Device, Runtime, at_mode, load, load_runtime
from octosim.hardware.efficiency import CpuFactors
from octosim.textfile import Row, read_csv
from octosim.trace import DTYPE_BYTES, Op, with_winograd

Array = np.ndarray[Any, Any]

PRIOR = {
    # (value, standard deviation of its logarithm): shares of a peak, then the order of published latencies
    "conv3x3": (0.4, 0.5), "conv": (0.5, 0.5), "pointwise": (0.7, 0.5), "depthwise": (0.2, 0.5), "linear": (0.5, 0.5),
    "elementwise": (3.2, 0.5), "bandwidth": (0.9, 0.3), "cache": (4.0, 0.5), "k_half": (8.0, 0.7), "serial": (0.05, 0.7),
    "in_order": (0.7, 0.4), "exposed": (0.5, 0.7), "overhead_us": (3.0, 0.7), "fork_us": (6.0, 0.7),
}  # fmt: skip
OWN_SD = 0.35
"""How far a device's factors lie from the pool's: standard deviation of the logarithm, at most that of PRIOR."""
NOISE = 0.12
"""Standard deviation of ln(measured / predicted) that is no fault of the factors: 2 to 5 % of measuring, the rest what
the model and the tables of layers leave out."""
CAMPAIGN_SD = 0.3
JACOBIAN_STEP = 1e-3
HUBER = 1.5  # residuals beyond so many NOISE count linearly
START = np.array([PRIOR[name][0] for name in cost.PARAMETERS])
_MEAN = np.log(START)
_SD = np.array([PRIOR[name][1] for name in cost.PARAMETERS])
_MOST = np.array([1.0 if name in (*cost.KINDS[:-1], "exposed") else np.inf for name in cost.PARAMETERS])  # shares
_ARRAYS = (
    "kind", "work", "clock", "rate", "cores", "share", "fill", "k", "in_order", "weights", "other", "weights_miss",
    "other_miss", "bandwidth", "parameters",
)  # fmt: skip


# ---- measurements and networks --------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One row of a table of measurements.  precision: as written there, one of PRECISIONS and perhaps more; time in seconds.

    threads: None, as many as the engine has units.  profile, mode, runtime: "" where the row does not say.
    """

    device: str
    network: str
    precision: str
    threads: int | None
    time_s: float
    row: Row
    batch: int = 1
    profile: str = ""
    mode: str = ""
    runtime: str = ""

    @property
    def type(self) -> Literal["int8", "float16", "float32"]:
        """The type that its precision names."""
        return PRECISIONS[_type_of(self.precision)]

    @property
    def is_int8(self) -> bool:
        return self.type == "int8"


PRECISIONS: dict[str, Literal["int8", "float16", "float32"]] = {
    "int8": "int8", "fp16": "float16", "float16": "float16", "fp32": "float32", "float32": "float32",
}  # fmt: skip
"""What a precision begins with, in any case, and the type that it names: ncnn's table has fp16-default(asimdhp)."""
METRIC = "latency_min"
OPTIONAL = ("device", "unit", "metric", "backend", "batch", "profile", "mode", "runtime")


def _type_of(precision: str) -> str:
    """The key of PRECISIONS that a precision begins with, "" for none."""
    return next((key for key in PRECISIONS if re.match(rf"{key}(?![0-9a-z])", precision.casefold())), "")


def measurements(path: Path, device: str = "", needed: Sequence[str] = ()) -> list[Measurement]:
    """Rows of a CSV with the columns network, precision, threads, value and, if there, OPTIONAL.

    device: what the rows' device begins with.  needed: more columns that it must have.

    Of several metrics latency_min is taken; rows of GPU backends are left out.
    """
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    found = []
    rows = read_csv(path, ("network", "precision", "threads", "value", *needed), OPTIONAL)
    for row in rows:
        if (row.get("metric") or METRIC).casefold() != METRIC or not (row.get("backend") or "cpu").casefold().endswith("cpu"):
            continue
        value = row.number("value", float, "a time above zero", lambda v: 0 < v < math.inf)
        threads = batch = None
        if row.cells["threads"]:
            threads = row.number("threads", int, "a number of threads above zero", lambda v: 1 <= v <= 1 << 20)
        if row.get("batch"):
            batch = row.number("batch", int, "a batch size", lambda v: 0 < v < 1 << 20)
        unit = row.get("unit") or "ms"
        if unit not in units:
            raise row.error(f"unit is '{unit[:60]}', expected s, ms or us")
        if not _type_of(row.cells["precision"]):
            raise row.error(f"precision is '{row.cells['precision'][:60]}', expected int8, fp16 or fp32")
        found.append(Measurement(row.get("device"), row.cells["network"], row.cells["precision"], threads, value * units[unit],
                                 row, batch or 1, row.get("profile"), row.get("mode"), row.get("runtime")))  # fmt: skip
    if rows and not found:
        raise OctosimError(f"{path}: every row is left out, expected the metric {METRIC} and a backend that ends in cpu")
    found = [row for row in found if row.device.startswith(device)]
    if not found:
        raise OctosimError(f"{path}: no measurement" + (f" of a device that begins with '{device}'" if device else ""))
    return found


def one_device(rows: Iterable[Row]) -> None:
    """Raises OctosimError where the rows name several devices: one profile's factors would be fitted to all of them."""
    first = {row.get("device"): row for row in rows if row.get("device")}
    if len(first) > 1:
        names = [f"'{name[:60]}'" for name in first]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        path = next(iter(first.values())).path
        raise OctosimError(f"{path}: measurements of several devices, expected one or --device: {', '.join(names[:3])}{more}")


def in_place(row: Row, device: Device, runtime: Runtime) -> Device:
    """The device in the row's power mode, where the row is of this software."""
    with row.placed():
        if row.get("runtime") and load_runtime(row.get("runtime")).name != runtime.name:
            raise OctosimError(f"runtime is {row.get('runtime')}, and what is fitted is {runtime.name}")
        return at_mode(device, row.get("mode")) if row.get("mode") else device


_SIZES = (
    "in_c", "in_h", "in_w", "out_c", "out_h", "out_w", "kh", "kw", "sh", "groups", "macs", "weight_count", "int8_scale_term",
)  # fmt: skip


_SHAPE = ("in_c", "in_h", "in_w", "out_c", "out_h", "out_w")
_CONVOLUTION = (*_SHAPE, "kh", "kw", "sh", "macs", "weight_count")
NEEDED = {
    "Convolution": _CONVOLUTION, "ConvolutionDepthWise": _CONVOLUTION, "Deconvolution": _CONVOLUTION,
    "DeconvolutionDepthWise": _CONVOLUTION, "InnerProduct": (*_SHAPE, "macs", "weight_count"), "MultiHeadAttention": _SHAPE,
    "Pooling": _SHAPE,
}  # fmt: skip
"""Types of layers, and the sizes that must be above zero: a Pooling's kernel of 0 is the whole image."""
GROUPED = tuple(name for name in NEEDED if name not in ("InnerProduct", "Pooling"))


@dataclass(frozen=True)
class Layer:
    """One row of a table of layers; sizes as (channels, height, width)."""

    name: str
    type: str
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: int
    groups: int
    macs: int
    weights: int
    int8_output: bool


def networks(layers: Path, summary: Path | None = None) -> dict[str, tuple[list[Layer], int]]:
    """Network -> (weighted layers and pooling, elements that other layers produce), from the tables of ncnn's networks.

    layers: columns network, layer, type, in_c ... out_w, kh, kw, sh, groups, macs, weight_count, int8_scale_term.
    summary: columns network, activation_elements_sum (all layers and the input).
    """
    found: dict[str, list[Layer]] = {}
    for row in read_csv(layers, ("network", "layer", "type", *_SIZES)):
        n = {k: row.number(k, int, "a whole number", lambda v: 0 <= v < 1 << 60) for k in _SIZES}
        _check(row, n)
        found.setdefault(row.cells["network"], []).append(
            Layer(
                row.cells["layer"], row.cells["type"],
                (n["in_c"], n["in_h"], n["in_w"]), (n["out_c"], n["out_h"], n["out_w"]), (n["kh"], n["kw"]), n["sh"],
                max(1, n["groups"]), n["macs"], n["weight_count"], n["int8_scale_term"] > 100,
            )
        )  # fmt: skip
    produced = {}
    for row in read_csv(summary, ("network", "activation_elements_sum")) if summary else ():
        count = row.number("activation_elements_sum", int, "a whole number", lambda v: 0 <= v < 1 << 60)
        produced[row.cells["network"]] = count
    other = {}
    for name, stack in found.items():
        known = sum(math.prod(layer.outputs) for layer in stack) + math.prod(stack[0].inputs)
        other[name] = max(0, produced.get(name, 0) - known)
    return {name: (stack, other[name]) for name, stack in found.items()}


def _check(row: Row, n: Mapping[str, int]) -> None:
    """Raises the row's error where its sizes make no layer."""
    type_ = row.cells["type"]
    if type_ not in NEEDED:
        raise row.error(f"type is '{type_[:60]}', expected one of {', '.join(NEEDED)}; what other layers produce counts in the "
                        "--summary")  # fmt: skip
    empty = next((size for size in NEEDED[type_] if not n[size]), None)
    if empty:
        raise row.error(f"{empty} is 0, expected a size above zero for {type_}")
    if type_ == "InnerProduct" and n["weight_count"] < n["out_c"]:
        raise row.error(f"weight_count is {n['weight_count']}, expected at least the {n['out_c']} of out_c")
    groups = max(1, n["groups"])
    divided = "in_c" if type_ == "MultiHeadAttention" else "out_c"
    if type_ in GROUPED and (n[divided] % groups or n["in_c"] < groups):
        raise row.error(f"groups is {groups}, which does not divide the channels, {n['in_c']} in and {n['out_c']} out")


def layer_ops(stack: Sequence[Layer], other: int, float_dtype: str, int8: bool, linear_bytes: int | None = None) -> list[Op]:
    """The forward pass of a table's network, one image; weighted layers in int8 if asked for, the others in float_dtype.

    other: elements that unlisted layers produce, priced as passes over memory of the layers' mean size.
    linear_bytes: bytes of a stored weight of fully connected layers, where not those of the type.
    """
    size = DTYPE_BYTES[float_dtype]
    ops: list[Op] = []
    from_int8 = False  # whether the layer before left int8 codes
    for layer in stack:
        inputs, outputs = math.prod(layer.inputs), math.prod(layer.outputs)
        (ci, _, wi), (co, ho, wo) = layer.inputs, layer.outputs
        if layer.type == "Pooling":
            count = outputs * max(1, layer.kernel[0] * layer.kernel[1])  # a sum or maximum over the window
            ops.append(Op(layer.name, "forward", "elementwise", "pool", (count,), float_dtype, inputs * size, outputs * size,
                          kernel=layer.kernel))  # fmt: skip
            continue
        if layer.type == "MultiHeadAttention":
            ops += attention_ops(layer.name, wi, ci, layer.groups, float_dtype)
            continue
        weight_size = 1 if int8 else size
        linear = layer.type == "InnerProduct"
        if linear:
            shape = (max(1, layer.macs // layer.weights), layer.weights // co, co)
            weight_size = weight_size if int8 or linear_bytes is None else linear_bytes
        else:
            shape = (ho * wo, ci // layer.groups * layer.kernel[0] * layer.kernel[1], co // layer.groups)
        if int8 and not from_int8:
            ops.append(Op(layer.name, "forward", "elementwise", "quantize", (inputs,), float_dtype, inputs * size, inputs))
        op = Op(
            layer.name, "forward", "gemm", "linear" if linear else f"conv {layer.kernel[0]}x{layer.kernel[1]}", shape,
            "int8" if int8 else float_dtype,
            inputs * (1 if int8 else size) + layer.weights * weight_size, outputs * (4 if int8 else size),
            groups=1 if linear else layer.groups, kernel=(0, 0) if linear else layer.kernel,
            stride=1 if linear else layer.stride, weights=layer.weights * weight_size,
        )  # fmt: skip
        ops.append(with_winograd(op))
        if int8:
            written = outputs * (1 if layer.int8_output else size)
            ops.append(Op(layer.name, "forward", "elementwise", "requantize", (outputs,), float_dtype, outputs * 4, written))
        from_int8 = layer.int8_output
    if other:
        mean = sum(math.prod(layer.outputs) for layer in stack) / len(stack)
        count = max(1, round(other / mean))
        share = max(1, other // count)
        ops += [Op(f"other{i}", "forward", "elementwise", "other", (share,), float_dtype, share * size * 3 // 2, share * size)
                for i in range(count)]  # fmt: skip
    return ops


def attention_ops(name: str, tokens: int, width: int, heads: int, dtype: str) -> list[Op]:
    """Multi-head self-attention: four projections, the scores and the weighted sums."""
    size, head = DTYPE_BYTES[dtype], width // heads
    x, w, scores = tokens * width * size, width * width * size, heads * tokens * tokens * size

    def product(what: str, shape: tuple[int, int, int], groups: int, reads: int, writes: int, weights: int) -> Op:
        return Op(name, "forward", "gemm", what, shape, dtype, reads, writes, groups=groups, weights=weights)

    projections = [product(what, (tokens, width, width), 1, x + w, x, w) for what in ("query", "key", "value", "output")]
    return [
        *projections[:3],
        product("scores", (tokens, head, tokens), heads, 2 * x, scores, 0),
        product("weighted sums", (tokens, tokens, head), heads, scores + x, x, 0),
        projections[3],
    ]


# ---- the fit --------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One network measured on one device.  campaign: measurements that share an offset."""

    network: str
    campaign: str
    ops: cost.Prepared
    time_s: float


@dataclass(frozen=True)
class Fit:
    """Factors by arithmetic, in the order of cost.PARAMETERS, and how much slower each campaign is: a logarithm."""

    factors: dict[str, Array]
    campaigns: dict[str, float]


class _Problem:
    """The samples as one table of operations; the factors of one arithmetic are free.

    What they do not change is priced once, and equal operations of a sample are priced as one.
    """

    def __init__(self, samples: Sequence[Sample], path: str, known: Mapping[str, Array]):
        self.samples, self.path, self.known = samples, path, known
        whole, owner, paths = _table(samples, known)
        free = paths == path
        fixed = _select(whole, ~free)
        self.fixed = np.bincount(owner[~free], cost.times(fixed, fixed.parameters)[0], len(samples))
        columns = np.stack([owner, *(getattr(whole, name) for name in _ARRAYS[:-1])])[:, free]
        distinct, self.often = np.unique(columns.T, axis=0, return_counts=True)
        self.owner, arrays = distinct[:, 0].astype(int), distinct[:, 1:].T
        by_name = dict(zip(_ARRAYS, arrays, strict=False))
        by_name |= {"kind": by_name["kind"].astype(int), "in_order": by_name["in_order"] > 0}
        self.ops = cost.Prepared(ops=[], runs=[], parameters=np.empty(0), **by_name)
        self.changed = [self._changed(name) for name in cost.PARAMETERS]

    def _changed(self, name: str) -> tuple[Array, cost.Prepared]:
        """The operations whose time depends on a factor: their places, and their table."""
        ops = self.ops
        depends = {"k_half": ops.k > 0, "serial": ops.cores > 1, "fork_us": ops.cores > 1, "in_order": ops.in_order}
        some = ops.kind == cost.KINDS.index(name) if name in cost.KINDS else depends.get(name, np.ones(len(ops.kind), bool))
        at = np.flatnonzero(some)
        return at, _select(ops, at)

    def times(self, factors: Array) -> Array:
        """Of the operations, each as often as it is there."""
        return cost.times(self.ops, factors)[0] * self.often

    def log_sums(self, times: Array) -> Array:
        return np.log(self.fixed + np.bincount(self.owner, times, len(self.samples)))

    def shifted(self, times: Array, factors: Array, parameter: int) -> Array:
        """log_sums of the operations' times after one factor has changed; times: before."""
        at, some = self.changed[parameter]
        after = times.copy()
        after[at] = cost.times(some, factors)[0] * self.often[at]
        return self.log_sums(after)


def _table(samples: Sequence[Sample], known: Mapping[str, Array]) -> tuple[cost.Prepared, Array, Array]:
    """The samples' operations as one table with known factors, the sample of each operation, and its arithmetic ("": fixed)."""
    whole = concatenate([s.ops for s in samples])
    owner = np.repeat(np.arange(len(samples)), [len(s.ops.runs) for s in samples])
    paths = np.array([run.path if run.factors else "" for s in samples for run in s.ops.runs])
    for name in set(paths.tolist()) & set(known):
        whole.parameters[paths == name] = known[name]
    return whole, owner, paths


def concatenate(prepared: Sequence[cost.Prepared]) -> cost.Prepared:
    """Several networks' operations as one table."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in prepared]) for name in _ARRAYS}
    return cost.Prepared(ops=[o for p in prepared for o in p.ops], runs=[r for p in prepared for r in p.runs], **arrays)


def _select(ops: cost.Prepared, at: Array) -> cost.Prepared:
    """Some of the operations."""
    arrays: dict[str, Any] = {name: getattr(ops, name)[at] for name in _ARRAYS if len(getattr(ops, name))}
    return replace(ops, ops=[], runs=[], **arrays)


def log_times(samples: Sequence[Sample], factors: Mapping[str, Array]) -> Array:
    """ln of the predicted times, with these factors where they replace the samples' own."""
    found: Array = np.log(part_times(samples, factors).sum(axis=1))
    return found


PARTS = ("products", "passes over memory", "calls")


def part_times(samples: Sequence[Sample], factors: Mapping[str, Array]) -> Array:
    """[sample][PARTS]: seconds of the predicted times' parts, with these factors where they replace the samples' own."""
    ops, owner, _ = _table(samples, factors)
    time, _, _, overhead = cost.times(ops, ops.parameters)
    product = ops.kind != cost.KINDS.index("elementwise")
    work = time - overhead
    return np.stack([np.bincount(owner, part, len(samples)) for part in (work * product, work * ~product, overhead)], axis=1)


def fit(
    samples: Sequence[Sample],
    path: str,
    known: Mapping[str, Array] | None = None,
    prior: Array | None = None,
    campaigns: bool = False,
    steps: int = 25,
) -> Fit:
    """The factors of one arithmetic; those of the others are `known`, or the samples' own.

    prior: factors to start from and lean to, at OWN_SD; PRIOR if not given.  campaigns: whether each may have an offset.
    Huber's loss is a change of the residuals.
    """
    if not samples:
        raise OctosimError("no measurements to fit")
    return _fit(_Problem(samples, path, known or {}), prior, campaigns, steps)


def _fit(problem: _Problem, prior: Array | None, campaigns: bool, steps: int, without: Iterable[str] = ()) -> Fit:
    """without: networks whose samples do not count."""
    kept = np.array([s.network not in without for s in problem.samples])
    some = list(itertools.compress(problem.samples, kept))
    measured = np.log([s.time_s for s in some])
    names = list(dict.fromkeys(s.campaign for s in some)) if campaigns else []
    owner = np.array([names.index(s.campaign) for s in some], int) if names else np.zeros(0, int)
    n = len(_MEAN)
    mean, sd = (_MEAN, _SD) if prior is None else (np.log(prior), np.minimum(_SD, OWN_SD))

    def factors_at(x: Array) -> Array:
        return np.minimum(np.exp(x[:n]), _MOST)

    def residuals(x: Array, log_times: Array) -> Array:
        r = log_times[kept] - measured
        if names:
            r = r + x[n:][owner]
        r = r / NOISE
        far = np.abs(r) > HUBER
        r = np.where(far, np.sign(r) * np.sqrt(np.maximum(2 * HUBER * np.abs(r) - HUBER**2, 0)), r)
        return np.concatenate([r, (x[:n] - mean) / sd, x[n:] / CAMPAIGN_SD])

    def function(x: Array) -> Array:
        return residuals(x, problem.log_sums(problem.times(factors_at(x))))

    def jacobian(x: Array) -> Array:
        """Numeric; only the times that a factor changes are computed again."""
        times = problem.times(factors_at(x))
        log_times = problem.log_sums(times)
        r, columns = residuals(x, log_times), []
        for j in range(len(x)):
            at = x.copy()
            at[j] += JACOBIAN_STEP
            after = problem.shifted(times, factors_at(at), j) if j < n else log_times
            columns.append((residuals(at, after) - r) / JACOBIAN_STEP)
        return np.stack(columns, axis=1)

    starts = [mean] if prior is None else [mean, _MEAN]  # two, for the least of two local minima
    found = (_descend(function, jacobian, np.concatenate([m, np.zeros(len(names))]), steps) for m in starts)
    x = min(found, key=lambda x: float(function(x) @ function(x)))
    return Fit({**problem.known, problem.path: factors_at(x)}, dict(zip(names, x[n:].tolist(), strict=True)))


def _descend(residuals: Callable[[Array], Array], jacobian: Callable[[Array], Array], x: Array, steps: int) -> Array:
    """Levenberg-Marquardt."""
    r, damping = residuals(x), 0.1
    for _ in range(steps):
        slope = jacobian(x)
        normal, gradient = slope.T @ slope, slope.T @ r
        before = float(r @ r)
        for _ in range(8):
            move = np.clip(np.linalg.solve(normal + damping * np.eye(len(x)), -gradient), -0.7, 0.7)
            tried = residuals(x + move)
            if tried @ tried < before:
                x, r, damping = x + move, tried, max(damping / 5, 1e-4)
                break
            damping *= 4
        if float(r @ r) > before * (1 - 3e-4):
            break
    return x


def as_factors(values: Array, spread: float, source: str) -> CpuFactors:
    """The fitted values as they are stored."""
    return CpuFactors(**dict(zip(cost.PARAMETERS, map(float, values), strict=True)), spread=float(spread), source=source)


# ---- a device's own calibration --------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """A device's fitted factors and what they come from: by arithmetic the number of measurements, and the median of
    |predicted / measured - 1| with a network's own measurements in the fit, left out of it, and without calibration."""

    factors: dict[str, CpuFactors]
    report: dict[str, dict[str, float]]


def calibrate(
    device: Device, rows: Iterable[Measurement], nets: Mapping[str, tuple[list[Layer], int]], source: str,
    runtime: Runtime | None = None,
) -> Calibration:
    """Factors of a device from measured times of whole networks, leaning to those before where they say little.

    runtime: the software that was measured, ncnn if not given: what `octosim cost --runtime` will price is what is fitted here.
    Factors that predict networks left out of the fit worse than one scale of the software are not returned: the scale is.
    Networks are names of `nets` or paths of .onnx files.  A float precision ("fp32", "fp16..." ...) counts as the
    narrowest float type that its name allows and the device has.
    """
    rows = list(rows)
    runtime = runtime or load_runtime("ncnn")
    engine = max(device.engines, key=lambda e: e.rate_mac_s("float32", 1.0) or e.rate_mac_s("int8", 1.0))
    if not cost.path_of(engine, "int8"):
        raise OctosimError(f"profile {device.name}: engine {engine.name} is no CPU core with an accumulator smlal or sdot")
    check(runtime, device, False)
    groups: dict[str, list[Sample]] = {}
    for row in rows:
        with row.row.placed():
            if row.profile and load(row.profile).name != device.name:
                raise OctosimError(f"profile is {row.profile}, and what is fitted is {device.name}")
        chip = in_place(row.row, device, runtime)
        ops, path = operations(row, chip, nets, cost.path_of(engine, "int8"), runtime)
        sample = Sample(row.network, row.device, cost.prepare(ops, chip, row.threads, runtime), row.time_s)
        groups.setdefault(path, []).append(sample)
    known: dict[str, Array] = {}
    factors: dict[str, CpuFactors] = {}
    report: dict[str, dict[str, float]] = {}
    for path in sorted(groups, key=lambda p: p in ("smlal", "sdot")):  # float first: int8 networks hold float layers
        samples = groups[path]
        pool = cost.priced_factors(device, engine, "int8" if path in ("smlal", "sdot") else path, runtime)  # type: ignore[arg-type]
        if pool is None:
            raise OctosimError(f"no pool of factors for {path}")
        fitted = fit(samples, path, known, pool)
        left = leave_one_out(samples, path, known, pool)
        measured = np.log([s.time_s for s in samples])
        plain = log_times(samples, {**known, path: pool}) - measured
        inside = log_times(samples, fitted.factors) - measured
        by_scale = _one_scale(samples, path, known, pool) - measured
        chosen = fitted.factors[path]
        if median_error(left - measured) > median_error(by_scale) and len({s.network for s in samples}) > 1:
            chosen, left = _scaled(pool, plain), by_scale + measured
            inside = log_times(samples, {**known, path: chosen}) - measured
        spread = float(np.sqrt(np.mean((left - measured) ** 2)))
        text = f"{source}: {len(samples)} measurements of {len({s.network for s in samples})} networks"
        factors[path] = as_factors(chosen, max(spread, 0.05), text)
        known = {**known, path: chosen}
        errors = {
            "fitted": median_error(inside), "left_out": median_error(left - measured), "one_scale": median_error(by_scale),
            "uncalibrated": median_error(plain),
        }  # fmt: skip
        worse = max(errors["fitted"], errors["left_out"]) > errors["uncalibrated"]
        report[path] = {"measurements": len(samples), **errors, "worse": worse}
    return Calibration(factors, report)


def _scaled(prior: Array, plain: Array) -> Array:
    """The factors with one scale of all times, as far as shares of a peak allow it; plain: ln(predicted / measured) without."""
    found: Array = np.minimum(cost.slowed(prior, float(np.exp(-np.median(plain)))), _MOST)
    return found


def _one_scale(samples: Sequence[Sample], path: str, known: Mapping[str, Array], prior: Array) -> Array:
    """ln of each sample's time with one scale of all times, from the other networks' measurements."""
    found = log_times(samples, {**known, path: prior})
    plain = found - np.log([s.time_s for s in samples])
    names = np.array([s.network for s in samples])
    for network in dict.fromkeys(names.tolist()):
        mine = names == network
        if not mine.all():
            factors = _scaled(prior, plain[~mine])
            found[mine] = log_times(list(itertools.compress(samples, mine)), {**known, path: factors})
    return found


def leave_one_out(
    samples: Sequence[Sample], path: str, known: Mapping[str, Array], prior: Array, never: Sequence[str] = ()
) -> Array:  # fmt: skip
    """ln of each sample's time, predicted by a fit to the samples of all other networks but those in no fit (never)."""
    found = np.empty(len(samples))
    problem = _Problem(samples, path, known)
    names = np.array([s.network for s in samples])
    for network in dict.fromkeys(names.tolist()):
        out = {network, *never}
        factors = prior if out.issuperset(names.tolist()) else _fit(problem, prior, False, 15, out).factors[path]
        mine = names == network
        found[mine] = problem.log_sums(problem.times(factors))[mine]
    return found


def rank_correlation(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Spearman's; equal values have the order in which they stand."""
    order: list[Any] = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*order)[0, 1])


def median_error(log_ratio: Array) -> float:
    """Median of |predicted / measured - 1|."""
    return float(np.median(np.abs(np.expm1(log_ratio))))


def operations(
    row: Measurement, device: Device, nets: Mapping[str, tuple[list[Layer], int]], int8_path: str, runtime: Runtime
) -> tuple[list[Op], str]:
    """The operations that a measurement's software runs, and the arithmetic that its factors belong to."""
    has = {dtype for engine in device.engines for dtype in engine.macs_per_clock.given()}
    halves = row.is_int8 and runtime.float16 or row.type == "float16"  # int8 networks hold float layers too
    narrow = "float16" in has and halves
    dtype: Literal["float32", "float16"] = "float16" if narrow else "float32"
    path = int8_path if row.is_int8 else dtype
    if is_onnx(row.network):
        from octosim.cost import onnx as onnx_ops

        kind = "int8" if row.is_int8 else dtype
        rules = onnx_rules(runtime, device, kind, True)
        with row.row.placed():
            return onnx_ops.ops(Path(row.network), batch=row.batch, dtype=kind, **rules), path
    if row.batch != 1:
        raise row.row.error(f"network {row.network!r}: tables of layers are of one image, and this row's batch is {row.batch}")
    if row.network not in nets:
        raise row.row.error(f"network {row.network!r} is neither in the table of layers nor the path of an .onnx file")
    stack, other = nets[row.network]
    if row.is_int8 and runtime.codes == "throughout":
        stack = [replace(layer, int8_output=True) for layer in stack]
    ops = layer_ops(stack, other, dtype, row.is_int8)
    if row.is_int8 and runtime.codes == "throughout":  # no pass makes codes or floats of each other, sums leave as codes
        ops = [_in_codes(op) for op in ops if op.name not in ("quantize", "requantize")]
    return [op if runtime.winograd else replace(op, algorithm="direct") for op in ops], path


def _in_codes(op: Op) -> Op:
    if op.kind == "gemm":
        return replace(op, writes=op.writes // 4)
    size = DTYPE_BYTES[op.dtype]
    return replace(op, dtype="int8", reads=op.reads // size, writes=op.writes // size)
