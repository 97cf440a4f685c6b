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
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octosim.errors import OctosimError
from octosim.hardware import DTYPES, Device, Dtype, Engine, Runtime, efficiency, rates
from octosim.hardware.device import cluster_shares, clusters_of
from octosim.hardware.efficiency import CpuFactors
from octosim.trace import DTYPE_BYTES, Op, is_training

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

BORROWED_SPREAD = 0.2
"""The same, in addition, where a core has factors in float16 alone and they stand for float32."""

ESTIMATED_SPREAD = 0.3
"""The same, in addition, for products of a core whose rate is an estimate and whose factors are those of other cores: one
pipe more or less is a factor of two."""

WAVE_EFFICIENCY = 0.5
"""Achieved / peak of a GPU's full waves of output tiles where a profile states none: the median of the stated."""

TILES, SPLITS = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32)), (1, 4)
"""Rows and columns of output tiles that a GPU's kernels choose among (CUTLASS' threadblocks), and splits of the reduction."""

L2_BYTES = 40.0
"""Bytes a clock that one multiprocessor gets from L2: 5120 for the 108 of an A100 (NVIDIA's white paper)."""

TILE_CLOCKS = 600.0
"""Clocks in which a tile computes nothing: the first operands come from memory and the sums go back."""

GPU_DEPTHWISE = 0.25
"""Share of a GPU's float32 peak that depthwise convolutions reach where memory does not bind: loads and index arithmetic."""

INTERVAL = 1.2816
"""Standard deviations each way: the interval holds 80 % of a normal distribution."""

KINDS = ("conv3x3", "conv", "pointwise", "depthwise", "linear", "elementwise")
"""Kinds of operation with a factor each; the first three are matrix products to the processor."""

DEPTHWISE, LINEAR, ELEMENTWISE = 3, 4, 5  # places in KINDS

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

WINDOW = 1 / 8
"""What an element of a pooling window costs a core, as a share of one that is read and written once: estimate.  Windows overlap
and lie in the first cache, a load brings a vector of them; a pass over memory has 3 to 4 bytes a clock (the pool's factors)."""

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
    share: of the engine's units that work; of CPU cores, of the peak of all clusters.
    engine, cores: the engine's name and how many of its units work; "" where measured rates know none.
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
    share: float = 1.0
    engine: str = ""
    cores: int = 0


def predict(
    ops: Iterable[Op], device: Device, threads: int | None = None, runtime: Runtime | None = None
) -> list[OpCost]:
    """The cost of each operation, in order.  threads: cores that work at once; all of an engine's if not given.

    runtime: whose kernels run; octosim's plan and the factors fitted to the core if not given.
    Raises OctosimError when no engine of the device can run an operation (its dtype or a wider one, its pass).
    """
    if device.rates is not None and (runtime is None or runtime.name == "octosim"):
        return [_measured(op, device, threads) for op in ops]
    prepared = prepare(ops, device, threads, runtime)
    training = is_training(prepared.ops)
    time, compute, memory, overhead = times(prepared, prepared.parameters)
    slowest = np.stack([compute, memory, overhead]).argmax(axis=0) if len(time) else []
    shares = cluster_shares(device)
    return [
        OpCost(
            op, t, c, m, o, BOUNDS[b], run.dtype, run.note, _spread(op, run, device, runtime, training),
            cores / run.engine.units.value * shares.get(run.engine.name, 1.0), run.engine.name, round(cores),
        )
        for op, run, t, c, m, o, b, cores in zip(
            prepared.ops, prepared.runs, *(x.tolist() for x in (time, compute, memory, overhead)), slowest,
            prepared.cores.tolist(), strict=True,
        )  # fmt: skip
    ] + ([_step(runtime)] if runtime and runtime.backward and training else [])


def _step(runtime: Runtime) -> OpCost:
    """What a framework adds to a training step, whatever its size."""
    assert runtime.backward
    seconds = runtime.backward.step_ms.value * 1e-3
    op = Op("step", "update", "update", runtime.name, (0,), "float32", 0, 0)
    return OpCost(op, seconds, 0.0, 0.0, seconds, "overhead", "float32", "", runtime.backward.spread.value)


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
    """Sums over the operations: time_s, its interval, energy_j, energy_is, peak_bytes, macs, bytes, training.

    time_low_s, time_high_s: the interval that should hold the real time four times in five.
    energy_j: idle power x time + (busy - idle) power x time x the share of the units that work; None where the profile has no
        busy power.  Without an idle power all of the busy power counts.
    energy_is: "estimate"; "at most" where the idle power is unknown; "by budget" where the busy power is a module's budget,
        which a board with its supply exceeds or does not reach.
    peak_bytes: passed through; the trace does not hold it.
    training: whether training on the device is supported or hypothetical, and why.
    """
    time_s = sum(cost.time_s for cost in costs)
    spread = sum(cost.time_s * cost.spread for cost in costs) / time_s if time_s else 0.0
    busy_s = sum(cost.time_s * cost.share for cost in costs)
    idle = device.power.idle_w.value if device.power.idle_w else None
    energy = None
    known = "by budget" if device.power.budget else "at most" if idle is None else "estimate"
    if device.busy_w is not None:
        energy = device.busy_w * time_s if idle is None else idle * time_s + max(0.0, device.busy_w - idle) * busy_s
    return {
        "time_s": time_s,
        "time_low_s": time_s * math.exp(-INTERVAL * spread),
        "time_high_s": time_s * math.exp(INTERVAL * spread),
        "energy_j": energy,
        "energy_is": None if energy is None else known,
        "peak_bytes": peak_bytes,
        "macs": sum(cost.op.macs for cost in costs),
        "bytes": sum(cost.op.traffic for cost in costs),
        "training": device.training_note,
    }


def place(costs: Sequence[OpCost], device: Device, threads: int | None) -> str:
    """Where the products run, in words: on a cluster, with fewer threads than asked for; "" where that is no question."""
    main = next((cost for cost in costs if cost.engine and cost.op.kind == "gemm"), None)
    if main is None:
        return ""
    engine = next(each for each in device.engines if each.name == main.engine)
    if engine.kind != "cpu":
        return f"--threads {threads} is of CPU cores: {engine.name} of {device.name} computes as a whole" if threads else ""
    several = len(clusters_of(device)) > 1
    more = f"--threads {threads}: {device.name} has no more than {main.cores} in {'a cluster' if several else 'all'}"
    found = [f"runs on {main.cores} cores of the cluster {engine.name}"] if several else []
    return "; ".join(found + ([more] if threads and threads > main.cores else []))


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
            "bytes": cost.op.traffic,
            "time_s": cost.time_s,
            "bound": cost.bound,
        }
        for cost in costs
    ]
    notes = list(dict.fromkeys(cost.note for cost in costs if cost.note))
    if device.memory.bandwidth_sustained_gb_s is None and device.memory.link_gb_s is None:
        notes.append(f"{device.name} has no known memory bandwidth: traffic costs no time")
    if any(engine.dataflow for engine in device.engines):
        notes.append(f"{device.name} streams images through all layers at once: the time is 1 / throughput; the latency of one "
                     "image is longer and is not predicted")  # fmt: skip
    return {"device": device.name, "total": total(costs, device, peak_bytes), "notes": notes, "layers": layers}


# ---- which engine runs an operation --------------------------------------------------


@dataclass(frozen=True)
class Run:
    """How an operation runs.  path: of efficiency.PATHS where the engine has factors, else "".  tf32: in place of float32.
    clocks: of an element and core where the runtime knows them, else 0.
    """

    engine: Engine
    dtype: Dtype
    path: str
    factors: CpuFactors | None
    note: str = ""
    tf32: bool = False
    clocks: float = 0.0


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


def factors_of(device: Device, engine: Engine, dtype: Dtype) -> CpuFactors | None:
    """The profile's own factors, else those shipped for the device's name, else the pool's; None where there are none.

    A core whose float16 was measured and whose float32 was not takes its own float16 factors: those of the pool are of other
    cores, most of them in-order.  Shares of a peak and bytes a clock do not depend on the type.
    """
    path = path_of(engine, dtype)
    known = efficiency.shipped()
    own = device.calibration, known.get(device.cores_of or device.name, {})
    found = next((row[path] for row in own if path in row), None)  # type: ignore[index]
    if found is None and path == "float32" and "float16" in engine.macs_per_clock.given():
        found = next((row["float16"] for row in (*own, known["pool"]) if "float16" in row), None)
        if found is None:
            return None
        pool = known["pool"]["float32"]  # how threads share work and how short reductions end: of float32 kernels
        spread = math.hypot(found.spread, BORROWED_SPREAD)
        return found.model_copy(update={"serial": pool.serial, "k_half": pool.k_half, "spread": spread})
    return found if found is not None else known["pool"].get(path)


def kernels_of(device: Device, engine: Engine, dtype: Dtype, runtime: Runtime | None) -> CpuFactors | None:
    """The factors with what the runtime's kernels reach in place of what those of the fit reached; None where there are none.

    Those of the profile were fitted with this software: nothing of it counts twice.
    """
    factors, path = factors_of(device, engine, dtype), path_of(engine, dtype)
    if factors is None or runtime is None or path in device.calibration:
        return factors
    kernels = runtime.kernels.get(path)  # type: ignore[call-overload]
    return factors.model_copy(update=kernels.given()) if kernels else factors


def _scale(device: Device, path: str, runtime: Runtime | None) -> float:
    """Times as long as the factors say that an inference takes with a runtime."""
    return 1.0 if runtime is None or path in device.calibration else runtime.scale_of(path)


def is_in_order(engine: Engine, device: Device) -> bool:
    """Whether the engine's cores issue in order, by the name of the core, or of all that the title names."""
    names = re.findall(r"Cortex-A\d+", engine.core or device.title)
    return bool(names) and set(names) <= IN_ORDER


def cores_of(engine: Engine, device: Device, threads: int | None) -> int:
    """Units that work.  Threads are a CPU's: an accelerator takes all units of its own, a vector unit beside them too."""
    own = engine.kind == "cpu" and (engine.core is not None or all(e.kind == "cpu" for e in device.engines))
    return min(threads, engine.units.value) if threads and own else engine.units.value


def alternatives(device: Device, threads: int | None = None) -> list[tuple[Device, int | None]]:
    """The device with each of its clusters of CPU cores alone, since a network runs on one of them; with the threads.

    threads not given: as many as the first cluster has cores.
    """
    clusters = clusters_of(device)
    if len(clusters) < 2:
        return [(device, threads)]
    count = threads or clusters[0].units.value
    others = [engine for engine in device.engines if engine not in clusters]
    return [(device.model_copy(update={"engines": (cluster, *others)}), count) for cluster in clusters]


def _engines(pass_: str, layer: str, device: Device) -> list[Engine]:
    """The engines that can run a pass; never empty.

    An NPU beside a GPU (a Jetson's DLA) computes nothing: software takes the GPU unless it is told otherwise, and a network
    that is given to a DLA runs on that alone (`hardware.with_cluster`).
    """
    engines = [engine for engine in device.engines if engine.trains or pass_ == "forward"]
    if any(engine.kind == "gpu" for engine in engines):
        engines = [engine for engine in engines if engine.kind != "npu"]
    if not engines:
        raise OctosimError(
            f"profile {device.name}: no engine has trains = true, so the pass {pass_} of layer {layer} cannot run there; "
            "only its inference can be priced (--inference)"
        )
    return engines


def _run(op: Op, device: Device, runtime: Runtime | None = None) -> Run:
    """A product runs on the fastest engine with op.dtype, else on the fastest with a wider dtype.

    INT8 products without INT8 units run in float32: float16 (at most 65504) holds the sum of no more than four of them.  INT16
    products always do: profiles know no units for them.  A GPU's depthwise convolutions run on its float32 cores, whatever the
    type: tensor cores take matrix products.
    """
    engines = _engines(op.pass_, op.layer, device)
    convolution = op.kind == "gemm" and op.kernel != (0, 0)
    tf32 = runtime is not None and (runtime.tf32 == "all" or runtime.tf32 == "convolutions" and convolution)

    def rate(engine: Engine, dtype: Dtype) -> float:
        return engine.peak_mac_s(dtype, tf32) * _efficiency(engine, dtype)

    if op.kind != "gemm":
        engine = max(engines, key=lambda e: (e.elements_s(), rate(e, "float32")))
        has = engine.macs_per_clock.given()
        width: Dtype = next((d for d in DTYPES if d == op.dtype and d in has), "float32")
        path, own = path_of(engine, width), kernels_of(device, engine, width, runtime)
        loops = runtime.loops_of(engine.core) if runtime and own and path not in device.calibration else None
        clocks = loops.clocks.get(op.function, 0.0) if loops else 0.0
        note = f"{runtime.title} on {engine.core}: clocks of passes over memory ({loops.kind})" if runtime and loops else ""
        return Run(engine, op.dtype, path, own, note if clocks else "", clocks=clocks)  # type: ignore[arg-type]
    if op.dtype not in (*DTYPES, "int16"):
        raise OctosimError(
            f"layer {op.layer}: a matrix product in {op.dtype!r} has no price, expected one of {', '.join(DTYPES)}"
        )
    order: dict[str, tuple[Dtype, ...]] = {"int8": ("int8", "float32", "float16"), "float16": ("float16", "float32")}
    for dtype in order.get(op.dtype, ("float32",)):
        engine = max(engines, key=lambda e: rate(e, dtype))
        if rate(engine, dtype):
            own = kernels_of(device, engine, dtype, runtime)
            notes = []
            if dtype != op.dtype:
                notes.append(f"{device.name} has no {op.dtype} units for this pass: runs in {dtype}")
            if engine.efficiency(dtype) is None and own is None:
                assumed = _efficiency(engine, dtype)
                notes.append(f"{device.name}: efficiency of {engine.name} in {dtype} unknown, {assumed} assumed")
            if kind_of(op) == "depthwise" and engine.multiprocessors:
                cores = max((e for e in engines if e.multiprocessors), key=lambda e: e.peak_mac_s("float32"))
                engine = cores if cores.peak_mac_s("float32") else engine
            cut = engine.per_clock(dtype, tf32) > engine.per_clock(dtype)
            if cut and runtime:
                what = "products" if runtime.tf32 == "all" else runtime.tf32
                notes.append(f"{runtime.title} computes float32 {what} in TF32 on {device.name}: ten bits of mantissa")
            return Run(engine, dtype, path_of(engine, dtype), own, "; ".join(notes), cut)
    raise OctosimError(
        f"profile {device.name}: no engine computes {op.dtype} or a wider type, which the pass "
        f"{op.pass_} of layer {op.layer} needs"
    )


def _efficiency(engine: Engine, dtype: Dtype) -> float:
    """Achieved / peak of an engine without factors."""
    stated = engine.efficiency(dtype)
    if stated is not None:
        return stated
    return WAVE_EFFICIENCY if engine.multiprocessors else ASSUMED_EFFICIENCY


# ---- what an operation takes, as arrays over operations --------------------------------------------------

GEOMETRY = (
    "kind", "code", "m", "k", "n", "groups", "macs", "elements", "bytes", "inputs", "writes", "weights", "area", "winograd",
    "size", "forward", "slow", "passes", "threads", "calls", "images", "windows",
)  # fmt: skip
"""Columns of a network at one batch: what does not depend on the device.  code: of the class that decides the engine.
windows: whether octosim makes it of windows of dY (`_of_windows`)."""

MACHINE = (
    "clock", "peak", "cores", "units", "factored", "width", "bandwidth", "cache", "in_order", "tile_m", "tile_n", "tile_k",
    "rows", "columns", "sms", "depthwise_rate", "dataflow", "queued", "linked", "clocks",
    "border", "own",
)  # fmt: skip
"""Columns of a class of operations on a device with a number of threads.  clocks: as of Run.  border: whether the software
copies the input of a convolution with its border; own: whether octosim's kernels run."""

_TYPES = ("int8", "int16", "float16", "float32", "int32")
_functions: dict[str, int] = {"": 0}
"""Numbers of the functions of operations that are no products, in the order in which they were first met."""


def geometry(ops: Sequence[Op]) -> Array:
    """[GEOMETRY][operation]."""
    rows = []
    for op in ops:
        kind = KINDS.index(kind_of(op))
        gemm = op.kind == "gemm"
        m, k, n = op.shape if gemm else (op.shape[0], 0, 0)
        types = _TYPES.index(op.dtype) if op.dtype in _TYPES else len(_TYPES)
        group = 0 if not gemm else 2 if kind == DEPTHWISE else 3 if op.kernel == (0, 0) else 1
        function = 0 if gemm else _functions.setdefault(op.function, len(_functions))
        code = 64 * function + group * 16 + 2 * types + (op.pass_ == "forward")
        rows.append((
            kind, code, m, k, n, op.groups, op.macs, op.elements, op.bytes, op.reads - op.weights, op.writes, op.weights,
            op.kernel[0] * op.kernel[1], op.algorithm == "winograd", DTYPE_BYTES.get(op.dtype, 4), op.pass_ == "forward",
            op.slow, op.passes, op.threads, op.calls, op.images, _of_windows(op),
        ))  # fmt: skip
    return np.array(rows, float).reshape(len(rows), len(GEOMETRY)).T


def _of_windows(op: Op) -> bool:
    """Whether octosim makes this dX as one convolution of dY.

    The reduction is over all filters of a window; software that unfolds sums over the filters and adds the windows up.
    """
    dense = op.kind == "gemm" and op.pass_ == "dX" and kind_of(op) == "conv"
    return dense and op.function != "octo_conv_input_grad_blocks_s8"


@dataclass
class Machine:
    """A device with a runtime and a number of threads: how each class of operations runs there, found when first asked for.

    device: one of `alternatives`, with at most one cluster of CPU cores.
    """

    device: Device
    runtime: Runtime | None = None
    threads: int | None = None
    training: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise OctosimError(f"threads must be at least 1, not {self.threads}")
        self.runs: dict[int, Run] = {}
        self._rows: dict[int, tuple[float, ...]] = {}
        self._factors: dict[int, Array] = {}

    def add(self, codes: Sequence[int], ops: Sequence[Op]) -> None:
        """Finds how the classes of these operations run; OctosimError where one cannot."""
        for code, op in zip(codes, ops, strict=True):
            if code not in self.runs:
                run = _run(op, self.device, self.runtime)
                self.runs[code] = run
                self._rows[code] = self._row(run)
                self._factors[code] = _parameters(run, self.device, self.runtime, self.training)

    def tables(self, codes: Array) -> tuple[Array, Array]:
        """([MACHINE][operation], [operation][PARAMETERS])."""
        distinct, at = np.unique(codes.astype(int), return_inverse=True)
        rows = np.array([self._rows[code] for code in distinct.tolist()], float).reshape(len(distinct), len(MACHINE))
        factors = np.array([self._factors[code] for code in distinct.tolist()]).reshape(len(distinct), len(PARAMETERS))
        return rows[at].T, factors[at]

    def _row(self, run: Run) -> tuple[float, ...]:
        engine, device = run.engine, self.device
        units = engine.units.value
        cores = cores_of(engine, device, self.threads)
        tile, array, sms = engine.tile, engine.array, engine.multiprocessors
        link = device.memory.link_gb_s
        clock = engine.clock_ghz.value * 1e9
        has = engine.macs_per_clock.given()
        used: Dtype = run.dtype if run.dtype in has else "float32"
        float32 = max((e.peak_mac_s("float32") for e in device.engines if e.multiprocessors), default=0.0)
        return (
            clock, clock * (engine.per_clock(used, run.tf32) or 1.0),
            cores, units, run.factors is not None, DTYPE_BYTES.get(run.dtype, 4),
            link.value * 1e9 if link else _bandwidth(device, cores if run.factors else 1),
            _last_level(device, cores if run.factors else units) / (CACHE_SHARE if link else 1.0),
            is_in_order(engine, device), tile.m.value if tile else 1, tile.n.value if tile else 1,
            tile.k_bytes.value / DTYPE_BYTES.get(run.dtype, 4) if tile else 1, array.rows.value if array else 0,
            array.columns.value if array else 0, sms.value if sms else 0, float32, engine.dataflow,
            self.runtime is not None and self.runtime.queued and engine.kind == "gpu", link is not None, run.clocks,
            self.runtime is None or self.runtime.border, self.runtime is None or self.runtime.backward is None,
        )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Operations with all that does not depend on efficiency factors; arrays end in an axis of operations.

    work: MACs; of elementwise operations clocks where the runtime knows them, else bytes if the engine has fitted factors, else
    elements.
    """

    ops: list[Op]
    runs: list[Run]
    parameters: Array  # [...][operation][PARAMETERS]
    kind: Array  # index in KINDS
    work: Array  # multiply-accumulates that are really computed; of elementwise operations clocks, bytes or elements
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
    queued: Array | bool = False  # whether calls are launched ahead of the work
    calls: Array | float = 1.0


def prepare(
    ops: Iterable[Op], device: Device, threads: int | None = None, runtime: Runtime | None = None
) -> Prepared:
    """The operations of one network on one device; of several clusters of CPU cores on the one that is predicted fastest."""
    ops = list(ops)
    choices = alternatives(device, threads)
    if len(choices) == 1:
        return _alone(ops, device, threads, runtime)
    found, refused = [], None
    for alone, count in choices:
        try:
            found.append(_alone(ops, alone, count, runtime))
        except OctosimError as error:  # a cluster without such a type, or that does not train
            refused = refused or error
    if not found:
        assert refused
        raise refused
    return min(found, key=lambda p: times(p, p.parameters)[0].sum())


def _alone(ops: list[Op], device: Device, threads: int | None, runtime: Runtime | None) -> Prepared:
    """The operations on a device that has no choice of clusters."""
    machine = Machine(device, runtime, threads, is_training(ops))
    columns = geometry(ops)
    codes = columns[GEOMETRY.index("code")]
    machine.add(codes.astype(int).tolist(), ops)
    rows, factors = machine.tables(codes)
    runs = [machine.runs[code] for code in codes.astype(int).tolist()]
    return _prepared(columns, rows, factors, ops, runs)


def _prepared(
    columns: Array, rows: Array, factors: Array, ops: list[Op] | None = None, runs: list[Run] | None = None
) -> Prepared:
    """columns [GEOMETRY][...], rows [MACHINE][...], factors [...][PARAMETERS]: leading axes broadcast."""
    g = dict(zip(GEOMETRY, columns, strict=True))
    d = dict(zip(MACHINE, rows, strict=True))
    factored, elementwise = d["factored"] > 0, g["kind"] == ELEMENTWISE
    depthwise, winograd = g["kind"] == DEPTHWISE, (g["winograd"] > 0) & factored
    wide = np.where(winograd & (d["width"] == 1), float(WINOGRAD_CODES), 1.0)
    weights = g["weights"] * np.where(winograd, WINOGRAD_WEIGHTS * wide, 1.0)
    other = g["inputs"] + g["writes"]
    transformed = np.where(winograd, 2 * WINOGRAD_VALUES * (g["inputs"] * wide + g["writes"]), 0.0)
    copied = np.where(factored & ~elementwise & (g["area"] > 1) & (d["border"] > 0), PADDING * g["inputs"], 0.0)
    other = other + transformed + copied
    resident = (weights * g["forward"]).sum(axis=-1, keepdims=True)
    cached = factored | (d["sms"] > 0) | (d["linked"] > 0)
    weights_miss = np.where(cached, _missed(resident, d["cache"]), 1.0)
    other_miss = np.where(cached, _missed(other / g["images"], d["cache"]), 1.0)
    weights = weights * g["images"]
    window = np.where((g["windows"] > 0) & (d["own"] > 0), g["area"], 1.0)
    g["k"], g["n"] = g["k"] * window, g["n"] / window
    m, k, n, macs = g["m"] / g["images"], g["k"], g["n"], g["macs"]
    # elementwise work
    windows = np.maximum(g["area"], 1.0)  # of pooling, whose elements count their windows
    counted = g["elements"] * np.where(windows > 1, 1 / windows + WINDOW, 1.0)
    moved = np.maximum(g["bytes"], 2 * counted * g["size"])
    work = np.where(elementwise, np.where(factored, moved, g["elements"]), macs)
    work = np.where(d["clocks"] > 0, g["elements"] * d["clocks"], work)
    rate = np.where(elementwise, d["clock"], d["peak"])
    blocks = np.where(depthwise, np.ceil(g["groups"] / LANES), np.ceil(m / TASK) * np.ceil(n / TASK) * g["groups"])
    tasks = np.where(elementwise, np.ceil(g["elements"] / (LANES * TASK * TASK)), blocks)
    cores = np.where(g["threads"] > 0, np.minimum(d["cores"], g["threads"]), d["cores"])
    share = np.where(factored & (tasks > 0), tasks / np.maximum(1, np.ceil(tasks / cores) * cores), 1.0)
    dense = ~elementwise & ~depthwise & (g["kind"] != LINEAR)
    fill = np.where(factored & dense, _filled(m, LANES) * _filled(n, LANES), 1.0)
    reduction = np.where(factored & dense, k, 0.0)
    side = _filled(np.sqrt(m), WINOGRAD_TILE) ** 2  # one square image
    work = work * g["slow"] * g["passes"]
    weights, other = weights * g["passes"], other * g["passes"]
    work = np.where(winograd, work / (WINOGRAD_SAVES * np.where(side > 0, side, 1.0)), work)
    if not factored.all():
        product = ~elementwise & ~factored
        block = _filled(m, d["tile_m"]) * _filled(n, d["tile_n"]) * _filled(k, d["tile_k"])
        fill = np.where(product, block, fill)
        if (d["rows"] > 0).any():
            array = product & (d["rows"] > 0)
            r, c = np.maximum(d["rows"], 1), np.maximum(d["columns"], 1)
            cycles = np.ceil(k / r) * np.ceil(n / c) * (r + m + r - 1 + c - 1)
            fill = np.where(array, m * k * n / np.maximum(1, r * c * cycles), fill)
        if (d["sms"] > 0).any():
            fill = np.where(product & (d["sms"] > 0) & ~depthwise, _waves(g, d), fill)
            slow = product & (d["sms"] > 0) & depthwise
            fill = np.where(slow, GPU_DEPTHWISE * d["depthwise_rate"] / np.maximum(1.0, rate * d["cores"]), fill)
        fill = np.where(d["dataflow"] > 0, 1.0, fill)
    shape = np.broadcast_shapes(work.shape, rate.shape)
    spread = partial(np.broadcast_to, shape=shape)
    return Prepared(
        ops or [], runs or [], factors, spread(g["kind"].astype(int)), spread(work), spread(d["clock"]), spread(rate),
        spread(cores), spread(share), spread(fill), spread(reduction), spread(d["in_order"] > 0), spread(weights),
        spread(other), spread(weights_miss), spread(other_miss), spread(d["bandwidth"]), spread(d["queued"] > 0),
        spread(g["calls"] * g["images"]),
    )  # fmt: skip


def _waves(g: Mapping[str, Array], d: Mapping[str, Array]) -> Array:
    """Share of a GPU's peak that whole waves of output tiles leave a product, with the best of TILES and SPLITS."""
    sms = np.maximum(d["sms"], 1)
    rate = d["peak"] * d["cores"] / d["clock"] / sms  # MACs a clock of one multiprocessor
    best: Array | float = np.inf
    for rows, columns in TILES:
        tiles = np.ceil(g["m"] / rows) * np.ceil(g["n"] / columns) * g["groups"]
        traffic = (rows + columns) * d["width"] / L2_BYTES  # clocks for a column of both operands
        step = np.maximum(rows * columns / np.maximum(rate, 1e-9), traffic)
        for split in SPLITS:
            length = np.ceil(np.maximum(g["k"], 1) / split)
            waves = np.ceil(tiles * split / sms)
            sums = 0.0 if split == 1 else 8.0 * split * g["m"] * g["n"] * g["groups"] / (L2_BYTES * sms)
            best = np.minimum(best, waves * (step * length + TILE_CLOCKS) + sums)
    ideal = g["macs"] / np.maximum(rate * sms, 1e-9)
    return np.divide(ideal, best, out=np.ones(np.shape(best)), where=np.broadcast_to(g["macs"] > 0, np.shape(best)))


def times(p: Prepared, parameters: Array) -> tuple[Array, Array, Array, Array]:
    """(time, compute, memory, overhead) of each operation in seconds.

    parameters: [...][operation][PARAMETERS], or [PARAMETERS] for all operations.
    Of queued operations all work is hidden behind all calls, or all calls behind all work.
    """
    at = {name: parameters[..., i] for i, name in enumerate(PARAMETERS)}
    if parameters.ndim == 1:
        own = parameters[p.kind]
    else:
        kind = p.kind if parameters.ndim == p.kind.ndim + 1 else np.broadcast_to(p.kind, parameters.shape[:-1])
        own = np.take_along_axis(parameters, kind[..., None], axis=-1)[..., 0]
    working = p.cores / (1 + at["serial"] * (p.cores - 1)) * p.share * np.where(p.in_order, at["in_order"], 1.0)
    reduction = np.divide(p.k, p.k + at["k_half"], out=np.ones(p.k.shape), where=p.k > 0)
    compute = p.work / (p.rate * own * working * p.fill * reduction)
    main = p.bandwidth * at["bandwidth"]
    cache = at["cache"] * p.clock
    missed = p.weights * p.weights_miss + p.other * p.other_miss
    memory = missed / main + (p.weights + p.other - missed) / cache
    overhead = (at["overhead_us"] + np.where(p.cores > 1, at["fork_us"], 0.0)) * 1e-6 * p.calls
    work = np.maximum(compute, memory) + at["exposed"] * np.minimum(compute, memory)
    if np.any(p.queued):
        calls = work.sum(axis=-1, keepdims=True) < overhead.sum(axis=-1, keepdims=True)
        work, compute, memory = (np.where(p.queued & calls, 0.0, x) for x in (work, compute, memory))
        overhead = np.where(p.queued & ~calls, 0.0, overhead)
    return overhead + work, compute, memory, overhead


def _rate_is_estimate(run: Run, device: Device) -> bool:
    """Whether a core's factors were fitted to other cores and multiply a rate that nobody measured."""
    fitted = run.path in device.calibration or run.path in efficiency.shipped().get(device.cores_of or device.name, {})
    rate = getattr(run.engine.macs_per_clock, run.dtype, None)
    return run.factors is not None and not fitted and rate is not None and rate.kind == "estimate"


def _spread(op: Op, run: Run, device: Device, runtime: Runtime | None, training: bool) -> float:
    if training and runtime and runtime.backward:
        own, known = runtime.backward.spread.value, runtime.backward.devices
        return math.hypot(own, run.factors.spread) if known and run.factors and device.name not in known else own
    own = ASSUMED_SPREAD
    if run.factors:
        kernels = runtime.kernels.get(run.path) if runtime else None  # type: ignore[call-overload]
        if kernels and kernels.spread and run.path not in device.calibration:
            own = kernels.spread.value
        else:
            own = math.hypot(run.factors.spread, runtime.spread if runtime else SOFTWARE_SPREAD)
        if op.kind == "gemm" and _rate_is_estimate(run, device):
            own = math.hypot(own, ESTIMATED_SPREAD)
    return own if op.pass_ == "forward" else math.hypot(own, BACKWARD_SPREAD)


def vector(factors: CpuFactors) -> Array:
    """The factors in the order of PARAMETERS."""
    return np.array([getattr(factors, name) for name in PARAMETERS], float)


_SLOWS = dict.fromkeys((*KINDS, "bandwidth", "cache"), -1) | {"overhead_us": 1, "fork_us": 1}
"""Powers of a software's scale that the factors are multiplied by, so that every time is multiplied by it once."""


def slowed(factors: Array, scale: float) -> Array:
    """Factors with which every time is `scale` times as long."""
    return factors * np.array([scale ** _SLOWS.get(name, 0) for name in PARAMETERS])


def priced_factors(device: Device, engine: Engine, dtype: Dtype, runtime: Runtime) -> Array | None:
    """The factors that price an inference on a core with a runtime, where a calibration starts; None where there are none."""
    factors = kernels_of(device, engine, dtype, runtime)
    return None if factors is None else slowed(vector(factors), _scale(device, path_of(engine, dtype), runtime))


def _parameters(run: Run, device: Device, runtime: Runtime | None, training: bool) -> Array:
    """The factors, or without them the profile's one efficiency: no cache, no loss with threads, all memory time hidden."""
    backward = runtime.backward if runtime and training else None
    if run.factors:
        made = vector(run.factors)
        if run.clocks:
            made[[PARAMETERS.index("elementwise"), PARAMETERS.index("in_order")]] = 1.0
        if not backward:
            return slowed(made, _scale(device, run.path, runtime))
        made[[PARAMETERS.index("overhead_us"), PARAMETERS.index("fork_us")]] = backward.call_us.value, 0.0
        return made
    gemm = _efficiency(run.engine, run.dtype) if run.dtype in DTYPES else 1.0
    elementwise, sms = run.engine.elementwise_per_clock, run.engine.multiprocessors
    row = dict.fromkeys(PARAMETERS, 0.0) | dict.fromkeys(KINDS, gemm)
    row |= {"elementwise": elementwise.value if elementwise else math.inf, "bandwidth": 1.0, "cache": math.inf, "in_order": 1.0}
    if sms:
        row |= {"depthwise": 1.0, "cache": L2_BYTES * sms.value}
    called = backward.call_us if backward else runtime.call_us if runtime and run.engine.kind != "cpu" else None
    launched = device.call_scale.value if device.call_scale else 1.0
    row["overhead_us"] = 0.0 if run.engine.dataflow else called.value * launched if called else device.overhead_us.value
    return np.array([row[name] for name in PARAMETERS])


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


def _missed(working_set: Array, cache: Array) -> Array:
    """The share of a working set that a cache cannot hold."""
    return np.where(working_set > 0, np.maximum(0.0, 1 - CACHE_SHARE * cache / np.maximum(working_set, 1e-9)), 0.0)


def _filled(size: Array, tile: Array | float) -> Array:
    """The share of the tiles along one side that is not padding."""
    return np.where(size > 0, size / np.maximum(1e-9, np.ceil(size / tile) * tile), 1.0)


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
