"""The cost model: pure functions (ops, Device) -> time, energy, memory.  It knows no layers.

One operation takes

    time = overhead + max(compute, memory) + exposed x min(compute, memory)

compute: work / rate of the engine that runs it; on CPU cores the rate follows from the kind of operation, its shape and
calibrated factors (octosim.efficiency).  memory: bytes / bandwidth of main memory and, where factors exist, of the last
cache level.  See docs/cost-model.md for the equations, their parameters and what is not modelled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octosim.errors import OctosimError
from octosim.hardware import DTYPES, Device, Dtype, Engine, efficiency, rates
from octosim.hardware.efficiency import Factors
from octosim.trace import DTYPE_BYTES, Op

BOUNDS = ("compute", "memory", "overhead")
"""What limits an operation: the largest of its three times, the first named here where they are equal."""

ASSUMED_EFFICIENCY = 0.37
"""Achieved / peak of matrix products where a profile states none: the median of the INT8 ratios that profiles do state,
nearly all from whole ResNet-50 inference (0.31 to 0.49; CPUs, GPUs and NPUs do not differ)."""

ASSUMED_SPREAD = 0.5
"""Standard deviation of ln(real / predicted) where no factors exist: one efficiency for all shapes is about a factor of
1.5 off (one standard deviation) against published measurements."""

SOFTWARE_SPREAD = 0.3
"""The same, in addition to that of fitted factors: they describe one inference library, and XNNPACK or another version of
the same library differs by about so much on the same board (docs/validation.md)."""

BACKWARD_SPREAD = 0.3
"""The same, in addition, for passes other than forward: no factor was fitted to training."""

INTERVAL = 1.2816
"""Standard deviations each way: the interval holds 80 % of a normal distribution."""

KINDS = ("conv3x3", "conv", "pointwise", "depthwise", "linear", "elementwise")
"""Kinds of operation with a factor each; the first three are matrix products to the processor."""

PARAMETERS = (
    *KINDS, "bandwidth", "cache", "k_half", "serial", "in_order", "exposed", "overhead_us", "fork_us",
)  # fmt: skip

IN_ORDER = {f"Cortex-A{number}" for number in (5, 7, 32, 34, 35, 53, 55, 510, 520)}
LANES = 4  # of float32 in a NEON register; its kernels compute blocks of 4 x 4
TASK = 8  # rows and columns of a product that one thread takes at a time
WINOGRAD_TILE, WINOGRAD_SAVES, WINOGRAD_WEIGHTS, WINOGRAD_VALUES = 4, 4, 4, 2.25
"""F(4x4, 3x3): 36 products where the definition has 144; 36 transformed weights for 9; 36 transformed values for 16, which are
written and read besides the tensor itself."""
WINOGRAD_CODES = 2
"""Bytes of a transformed int8 code: the rows of the input's transform sum to 10 in magnitude, 127 x 10^2 needs 16 bits."""

UNPRICED_SPREAD = 0.7
"""Of an operation that a calibration did not measure: within a factor of two, two times in three."""

PADDING = 2  # times that a convolution wider than 1x1 also moves its input: a copy with the border, written and read

CACHE_SHARE = 0.5
"""Of the last cache level that one operation's data can count on: what was there before, and what comes next, share it."""

PEAK_SHARE = 0.6
"""Of main memory's peak bandwidth that several cores together reach, where one alone reaches less."""

Array = NDArray[Any]


@dataclass(frozen=True)
class OpCost:
    """The predicted cost of one operation; times in seconds.

    time_s = overhead_s + max(compute_s, memory_s) + exposed x min(compute_s, memory_s), exposed 0 without factors, 1 with
    measured rates.
    dtype_used: the arithmetic that runs on the device; wider than op.dtype where it has no such units (see note).
    spread: standard deviation of ln(real / predicted).
    """

    op: Op
    time_s: float
    compute_s: float
    memory_s: float
    overhead_s: float
    bound: str
    dtype_used: str
    note: str
    spread: float = ASSUMED_SPREAD


def predict(ops: Iterable[Op], device: Device, threads: int | None = None) -> list[OpCost]:
    """The cost of each operation, in order.  threads: cores that work at once; all of an engine's if not given.

    Raises OctosimError when no engine of the device can run an operation (its dtype or a wider one, its pass).
    """
    if device.rates is not None:
        return [_measured(op, device, threads) for op in ops]
    prepared = prepare(ops, device, threads)
    time, compute, memory, overhead = times(prepared, prepared.parameters)
    slowest = np.stack([compute, memory, overhead]).argmax(axis=0) if len(time) else []
    return [
        OpCost(op, t, c, m, o, BOUNDS[b], run.dtype, run.note, _spread(op, run))
        for op, run, t, c, m, o, b in zip(
            prepared.ops, prepared.runs, *(x.tolist() for x in (time, compute, memory, overhead)), slowest, strict=True
        )
    ]


def _measured(op: Op, device: Device, threads: int | None) -> OpCost:
    """By the measured times of octosim's own kernels; the parts do not overlap."""
    assert device.rates is not None
    compute, memory, overhead = rates.time_of(op, device.rates, threads or device.engines[0].units.value)
    slowest = max(range(3), key=lambda i: (compute, memory, overhead)[i])
    used = op.dtype if op.dtype in ("int8", "float32") else "float32"
    note, spread = "", device.rates.spread
    if not rates.priced(op, device.rates):
        note = f"{device.name} has no measured time of {op.function.removeprefix('octo_') or op.name}: priced by bandwidth"
        spread = math.hypot(spread, UNPRICED_SPREAD)
    return OpCost(op, compute + memory + overhead, compute, memory, overhead, BOUNDS[slowest], used, note, spread)


def total(costs: Sequence[OpCost], device: Device, peak_bytes: int | None = None) -> dict[str, Any]:
    """Sums over the operations: time_s, its interval, energy_j, peak_bytes, macs, bytes, training.

    time_low_s, time_high_s: the interval that should hold the real time four times in five.
    energy_j: busy power x time, None where the profile has no busy power.  An upper bound: the busy power is that of
    the whole board at full load, or the module's budget.
    peak_bytes: passed through; the trace does not hold it.
    training: whether training on the device is supported or hypothetical, and why.
    """
    time_s = sum(cost.time_s for cost in costs)
    spread = sum(cost.time_s * cost.spread for cost in costs) / time_s if time_s else 0.0
    return {
        "time_s": time_s,
        "time_low_s": time_s * math.exp(-INTERVAL * spread),
        "time_high_s": time_s * math.exp(INTERVAL * spread),
        "energy_j": None if device.busy_w is None else device.busy_w * time_s,
        "peak_bytes": peak_bytes,
        "macs": sum(cost.op.macs for cost in costs),
        "bytes": sum(cost.op.bytes for cost in costs),
        "training": device.training_note,
    }


def cost_json(costs: Sequence[OpCost], device: Device, peak_bytes: int | None = None) -> dict[str, Any]:
    """What `octosim cost --json` prints: {"device", "total", "notes", "layers"}; null where unknown."""
    layers = [
        {
            "layer": cost.op.layer,
            "pass": cost.op.pass_,
            "name": cost.op.name,
            "kind": cost.op.kind,
            "dtype": cost.dtype_used,
            "macs": cost.op.macs,
            "bytes": cost.op.bytes,
            "time_s": cost.time_s,
            "bound": cost.bound,
        }
        for cost in costs
    ]
    notes = list(dict.fromkeys(cost.note for cost in costs if cost.note))
    if device.memory.bandwidth_sustained_gb_s is None:
        notes.append(f"{device.name} has no known memory bandwidth: traffic costs no time")
    return {"device": device.name, "total": total(costs, device, peak_bytes), "notes": notes, "layers": layers}


# ---- which engine runs an operation --------------------------------------------------


@dataclass(frozen=True)
class Run:
    """How an operation runs.  path: of efficiency.PATHS where the engine has factors, else "".  source: whose they are."""

    engine: Engine
    dtype: Dtype
    path: str
    factors: Factors | None
    note: str = ""


def kind_of(op: Op) -> str:
    """The kind, of KINDS, that an operation's factor is looked up by."""
    if op.kind != "gemm":
        return "elementwise"
    m, k, n = op.shape
    if op.groups > 1 and 1 in op.shape and op.kernel[0] * op.kernel[1] in op.shape:  # in any pass
        return "depthwise"
    if op.algorithm == "winograd":
        return "conv3x3"
    if op.kernel[0] * op.kernel[1] > 1 or op.groups > 1 and op.kernel != (0, 0) or op.stride > 1:
        return "conv"
    return "linear" if m == 1 and op.kernel == (0, 0) else "pointwise"


def path_of(engine: Engine, dtype: Dtype) -> str:
    """The arithmetic by which an engine's factors are looked up, "" where it is no CPU core that factors exist for."""
    if engine.accumulator not in ("smlal", "sdot"):
        return ""
    return engine.accumulator if dtype == "int8" else dtype


def factors_of(device: Device, engine: Engine, dtype: Dtype) -> Factors | None:
    """The profile's own factors, else those shipped for the device's name, else the pool's; None where there are none."""
    path = path_of(engine, dtype)
    known = efficiency.shipped()
    rows: tuple[Mapping[Any, Factors], ...] = (device.calibration, known.get(device.name, {}), known["pool"])
    return next((row[path] for row in rows if path in row), None)


def is_in_order(engine: Engine, device: Device) -> bool:
    """Whether the engine's cores issue in order, by the name of the core, or of all that the title names."""
    names = re.findall(r"Cortex-A\d+", engine.core or device.title)
    return bool(names) and set(names) <= IN_ORDER


def _engines(op: Op, device: Device) -> list[Engine]:
    """The engines that can run the pass of `op`; never empty."""
    engines = [engine for engine in device.engines if engine.trains or op.pass_ == "forward"]
    if not engines:
        raise OctosimError(
            f"profile {device.name}: no engine has trains = true, so the pass {op.pass_} of layer {op.layer} cannot run there; "
            "only its inference can be priced (--inference)"
        )
    return engines


def _run(op: Op, device: Device) -> Run:
    """A product runs on the fastest engine with op.dtype, else on the fastest with a wider dtype.

    INT8 products without INT8 units run in float32: float16 (at most 65504) holds the sum of no more than four of them.  INT16
    products always do: profiles know no units for them.
    """
    engines = _engines(op, device)
    if op.kind != "gemm":
        engine = max(engines, key=lambda e: e.elements_s())
        has = engine.macs_per_clock.given()
        width = next((d for d in DTYPES if d == op.dtype and d in has), "float32")
        return Run(engine, op.dtype, path_of(engine, width), factors_of(device, engine, width))  # type: ignore[arg-type]
    if op.dtype not in (*DTYPES, "int16"):
        raise OctosimError(
            f"layer {op.layer}: a matrix product in {op.dtype!r} has no price, expected one of {', '.join(DTYPES)}"
        )
    order: dict[str, tuple[Dtype, ...]] = {"int8": ("int8", "float32", "float16"), "float16": ("float16", "float32")}
    for dtype in order.get(op.dtype, ("float32",)):
        engine = max(engines, key=lambda e: e.rate_mac_s(dtype, ASSUMED_EFFICIENCY))
        if engine.rate_mac_s(dtype, ASSUMED_EFFICIENCY):
            factors = factors_of(device, engine, dtype)
            notes = []
            if dtype != op.dtype:
                notes.append(f"{device.name} has no {op.dtype} units for this pass: runs in {dtype}")
            if engine.efficiency(dtype) is None and factors is None:
                notes.append(f"{device.name}: efficiency of {engine.name} in {dtype} unknown, {ASSUMED_EFFICIENCY} assumed")
            return Run(engine, dtype, path_of(engine, dtype), factors, "; ".join(notes))
    raise OctosimError(
        f"profile {device.name}: no engine computes {op.dtype} or a wider type, which the pass "
        f"{op.pass_} of layer {op.layer} needs"
    )


# ---- what an operation takes, as arrays over operations --------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """Operations with all that does not depend on efficiency factors; a row an operation.

    Of a CPU core with factors `work` of an elementwise operation is bytes, else elements.
    """

    ops: list[Op]
    runs: list[Run]
    parameters: Array  # [operation][PARAMETERS]
    kind: Array  # index in KINDS
    work: Array  # multiply-accumulates that are really computed; of elementwise operations bytes or elements
    clock: Array  # a core's clock, in Hz
    rate: Array  # a core's peak: multiply-accumulates a second; of elementwise operations clocks a second
    cores: Array
    share: Array  # of the cores' time that is not lost to uneven division
    fill: Array  # of the tiles that is not padding
    k: Array  # length of the reduction, 0 where it does not matter
    in_order: Array
    weights: Array  # bytes of parameters
    other: Array  # bytes of activations
    weights_miss: Array  # share of these that the last cache level cannot hold
    other_miss: Array
    bandwidth: Array  # of main memory, bytes a second


def prepare(ops: Iterable[Op], device: Device, threads: int | None = None) -> Prepared:
    """The operations of one network on one device."""
    ops = list(ops)
    if threads is not None and threads < 1:
        raise OctosimError(f"threads must be at least 1, not {threads}")
    runs: list[Run] = []
    chosen: dict[tuple[bool, str, bool], Run] = {}
    for op in ops:
        key = (op.kind == "gemm", op.dtype, op.pass_ != "forward")
        if key not in chosen:
            chosen[key] = _run(op, device)
        runs.append(chosen[key])
    resident = sum(_weights(op, run) for op, run in zip(ops, runs, strict=True) if op.pass_ == "forward")
    caches = {t: _last_level(device, t) for t in {_cores(run, threads) for run in chosen.values()}}
    in_order = {id(run): is_in_order(run.engine, device) for run in chosen.values()}
    parameters = {id(run): _parameters(run, device) for run in chosen.values()}
    rows = [
        _row(op, run, _cores(run, threads), caches[_cores(run, threads)], resident) for op, run in zip(ops, runs, strict=True)
    ]
    table = np.array(rows, float).reshape(len(ops), 11)
    kind, work, rate, cores, share, fill, k, weights, other, weights_miss, other_miss = table.T
    return Prepared(
        ops=ops,
        runs=runs,
        parameters=np.array([parameters[id(run)] for run in runs], float).reshape(len(ops), len(PARAMETERS)),
        kind=kind.astype(int),
        work=work,
        clock=np.array([run.engine.clock_ghz.value * 1e9 for run in runs]),
        rate=rate,
        cores=cores,
        share=share,
        fill=fill,
        k=k,
        in_order=np.array([in_order[id(run)] for run in runs], bool),
        weights=weights,
        other=other,
        weights_miss=weights_miss,
        other_miss=other_miss,
        bandwidth=np.array([_bandwidth(device, _cores(run, threads) if run.factors else 1) for run in runs], float),
    )


def times(p: Prepared, parameters: Array) -> tuple[Array, Array, Array, Array]:
    """(time, compute, memory, overhead) of each operation in seconds; parameters [operation][PARAMETERS]."""
    at = {name: parameters[:, i] for i, name in enumerate(PARAMETERS)}
    own = parameters[np.arange(len(p.kind)), p.kind]
    working = p.cores / (1 + at["serial"] * (p.cores - 1)) * p.share * np.where(p.in_order, at["in_order"], 1.0)
    reduction = np.divide(p.k, p.k + at["k_half"], out=np.ones(len(p.k)), where=p.k > 0)
    compute = p.work / (p.rate * own * working * p.fill * reduction)
    main = p.bandwidth * at["bandwidth"]
    cache = at["cache"] * p.clock
    missed = p.weights * p.weights_miss + p.other * p.other_miss
    memory = missed / main + (p.weights + p.other - missed) / cache
    overhead = (at["overhead_us"] + np.where(p.cores > 1, at["fork_us"], 0.0)) * 1e-6
    hidden = np.minimum(compute, memory)
    return overhead + np.maximum(compute, memory) + at["exposed"] * hidden, compute, memory, overhead


def _spread(op: Op, run: Run) -> float:
    own = math.hypot(run.factors.spread, SOFTWARE_SPREAD) if run.factors else ASSUMED_SPREAD
    return own if op.pass_ == "forward" else math.hypot(own, BACKWARD_SPREAD)


def vector(factors: Factors) -> Array:
    """The factors in the order of PARAMETERS."""
    return np.array([getattr(factors, name) for name in PARAMETERS], float)


def _cores(run: Run, threads: int | None) -> int:
    return run.engine.units.value if threads is None else min(threads, run.engine.units.value)


def _parameters(run: Run, device: Device) -> Array:
    """The factors, or without them the profile's one efficiency: no cache, no loss with threads, all memory time hidden."""
    if run.factors:
        return vector(run.factors)
    gemm = run.engine.efficiency(run.dtype) or ASSUMED_EFFICIENCY if run.dtype in DTYPES else 1.0
    elementwise = run.engine.elementwise_per_clock
    row = dict.fromkeys(PARAMETERS, 0.0) | dict.fromkeys(KINDS, gemm)
    row |= {"elementwise": elementwise.value if elementwise else math.inf, "bandwidth": 1.0, "cache": math.inf, "in_order": 1.0}
    row["overhead_us"] = device.overhead_us.value
    return np.array([row[name] for name in PARAMETERS])


def _weights(op: Op, run: Run) -> int:
    if not run.factors or op.algorithm != "winograd":
        return op.weights
    return op.weights * WINOGRAD_WEIGHTS * (WINOGRAD_CODES if run.dtype == "int8" else 1)


def _bandwidth(device: Device, threads: int) -> float:
    """Bytes/s of main memory: the sustained figure is of one core; several reach more where the memory has more."""
    one, peak = device.bandwidth_b_s, device.memory.bandwidth_peak_gb_s
    return max(one, min(threads * one, PEAK_SHARE * peak.value * 1e9)) if peak else one


def _last_level(device: Device, threads: int) -> float:
    """Bytes of the largest cache level, all instances that so many threads use together; 0 where none is known."""
    sizes = [0.0]
    for cache in device.caches:
        sharing = re.match(r"(\d+) ", cache.shared_by)
        alone = threads if cache.shared_by.endswith("core") else 1
        sizes.append(cache.size_kib.value * 1024 * (math.ceil(threads / int(sharing[1])) if sharing else alone))
    return max(sizes)


def _row(op: Op, run: Run, cores: int, cache: float, resident: float) -> tuple[float, ...]:
    """kind, work, rate, cores, share, fill, k, weights, other, weights_miss, other_miss of one operation."""
    kind = kind_of(op)
    clock = run.engine.clock_ghz.value * 1e9
    if kind == "elementwise":
        work = float(max(op.bytes, 2 * op.elements * DTYPE_BYTES.get(op.dtype, 4)) if run.factors else op.elements)
        tasks = math.ceil(op.elements / (LANES * TASK * TASK)) if run.factors else 0
        return KINDS.index(kind), work, clock, cores, _even(tasks, cores), 1.0, 0.0, *_traffic(op, run, cache, resident)
    m, k, n = op.shape
    rate = clock * run.engine.macs_per_clock.given()[run.dtype]
    fill, tasks, reduction, work = 1.0, 0, 0.0, float(op.macs)
    if run.factors:
        tasks = math.ceil(m / TASK) * math.ceil(n / TASK) * op.groups
        if kind == "depthwise":
            tasks = math.ceil(op.groups / LANES)
        elif kind != "linear":
            fill, reduction = _filled(m, LANES) * _filled(n, LANES), float(k)
        if op.algorithm == "winograd":
            work /= WINOGRAD_SAVES * _filled(math.sqrt(m), WINOGRAD_TILE) ** 2  # one square image
    elif run.engine.array:
        rows, columns = run.engine.array.rows.value, run.engine.array.columns.value
        fill = m * k * n / (rows * columns * systolic_cycles(m, k, n, rows, columns))
    elif run.engine.tile:
        tile = run.engine.tile
        fill = _filled(m, tile.m.value) * _filled(n, tile.n.value) * _filled(k * DTYPE_BYTES[run.dtype], tile.k_bytes.value)
    return KINDS.index(kind), work, rate, cores, _even(tasks, cores), fill, reduction, *_traffic(op, run, cache, resident)


def _traffic(op: Op, run: Run, cache: float, resident: float) -> tuple[float, float, float, float]:
    """(bytes of weights, bytes of activations, share of each that main memory delivers)."""
    if not run.factors:
        return op.weights, op.bytes - op.weights, 1.0, 1.0
    inputs = op.reads - op.weights
    other = float(inputs + op.writes)
    if op.algorithm == "winograd":
        other += 2 * WINOGRAD_VALUES * (inputs * (WINOGRAD_CODES if run.dtype == "int8" else 1) + op.writes)
    if op.kernel[0] * op.kernel[1] > 1:
        other += PADDING * inputs
    return _weights(op, run), other, _missed(resident, cache), _missed(other, cache)


def _missed(working_set: float, cache: float) -> float:
    """The share of a working set that a cache cannot hold."""
    return max(0.0, 1 - CACHE_SHARE * cache / working_set) if working_set else 0.0


def _filled(size: float, tile: int) -> float:
    """The share of the tiles along one side that is not padding."""
    return size / (math.ceil(size / tile) * tile)


def systolic_cycles(m: int, k: int, n: int, rows: int, columns: int) -> int:
    """Clocks in which a weight-stationary systolic array of rows x columns computes a product M x K x N.

    The weights are cut into ceil(K / rows) x ceil(N / columns) folds.  A fold is loaded, a row a clock (`rows` clocks), then M
    rows of the input stream through.  Each row of the array takes its element one clock after the row above, and each column
    sums one clock after the column before: the last sum leaves rows - 1 + columns - 1 clocks after the last input row enters.
    Folds do not overlap: a double-buffered array hides the loading.
    """
    return systolic_folds(k, n, rows, columns) * (rows + m + (rows - 1) + (columns - 1))


def systolic_folds(k: int, n: int, rows: int, columns: int) -> int:
    """How many times such an array is loaded with weights."""
    return math.ceil(k / rows) * math.ceil(n / columns)


def _even(tasks: int, cores: int) -> float:
    """The share of the cores' time that equal tasks fill."""
    return tasks / (math.ceil(tasks / cores) * cores) if tasks else 1.0
