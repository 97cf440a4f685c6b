"""Measures octosim's kernels on this machine and writes what it finds as a hardware profile (octosim.rates)."""

from __future__ import annotations

import datetime
import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

import octosim
from octosim import core, hardware, methods
from octosim.bench.clock import rate
from octosim.data import Dataset
from octosim.engine import plan
from octosim.engine.layers import (
    BatchNorm,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Stack,
)
from octosim.errors import OctosimError
from octosim.graph.zoo import conv, residual, separable
from octosim.hardware import detect, rates
from octosim.trace import Op
from octosim.train import Config, Run

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

# ---- what is measured --------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A network whose training steps are timed: images (height, width, channels), batch size, layers."""

    images: tuple[int, int, int]
    batch: int
    layers: Stack


def _dense(*units: int) -> Stack:
    return Flatten(), *(layer for n in units for layer in (Linear(n), ReLU())), Linear(10)


PROBES = (
    # from few channels to many, most of them multiples of 16 as networks have them, small kernels and large, padded and not; no
    # layer is one of octosim's models
    Probe((26, 26, 1), 64, (*conv(12, 5, pad=2), MaxPool(), *conv(24, 5, pad=0), MaxPool(), *_dense(150))),
    Probe((30, 30, 3), 48, (*conv(40, 5, pad=0), MaxPool(), *_dense(120))),
    Probe((22, 22, 3), 56, (*conv(16), *conv(16), *residual(32, 2, True), *conv(32), *residual(64, 2, True), *conv(64),
                            GlobalAvgPool(), *_dense())),
    Probe((22, 22, 3), 16, (*conv(48), *conv(96, pad=0), *conv(160), MaxPool(), *conv(224, pad=0), *conv(192, 1, pad=0),
                            *_dense(512))),
    Probe((18, 18, 3), 8, (*conv(96), *conv(160, pad=0), *conv(320), MaxPool(), *conv(384, pad=0), *conv(448),
                           *conv(512, pad=0), Dropout(0.5), *_dense(1536))),
    Probe((26, 26, 1), 12, (*conv(48, 9), MaxPool(), *conv(192, 5), MaxPool(), *conv(320), *_dense(640))),
    Probe((22, 22, 3), 52, (*conv(32), *separable(64), *separable(96, 2), *separable(128), *separable(192, 2),
                            *separable(256), *separable(384, 2), *separable(512), GlobalAvgPool(), *_dense())),
    Probe((20, 20, 1), 96, _dense(300, 150)),
    Probe((26, 26, 3), 24, _dense(3072, 2048, 512)),
    Probe((26, 26, 3), 80, (*conv(24), *residual(48, 2, True), *conv(48), *residual(96, 2, True), GlobalAvgPool(), *_dense())),
    Probe((10, 10, 3), 16, (*conv(80), MaxPool(), *conv(272), *conv(400), Dropout(0.5), *_dense(2304, 1024))),
    # few channels; and channels a kernel each in a small batch, where a call takes more than its products
    Probe((24, 24, 3), 36, (*conv(7, 5, pad=0), MaxPool(), *conv(14, 5, pad=0), MaxPool(), *_dense(100))),
    Probe((20, 20, 3), 12, (*conv(24), *separable(48), *separable(80, 2), *separable(160), *separable(288, 2),
                            *separable(320), GlobalAvgPool(), *_dense())),
)  # fmt: skip
REFERENCE = replace(PROBES[0], batch=16)
"""A small network whose steps beside others' say how fast the machine is at that moment."""
FULL_SPEED = 0.1
"""Quantile of the reference's times that counts as the machine's full speed: its fastest moments but for luck."""
PACE = {"octo": 1.0, "fp32": 2.0}
"""About how much longer a probe takes with a method, others three times as long; for what `progress` says."""
METHODS = tuple(PACE)
"""What all probes are trained with; with the other methods OTHERS, for the functions of the core that only they call."""
OTHERS = (0, 2, 6, 10, 11)
STEPS, WARM_UP = 4, 3
"""Steps of each probe in a round that count, and before them some that do not: they find their memory and are recorded."""

REWEIGHTED = 8
"""How often the fit is repeated with new weights."""
TURN_S = 0.012
"""How long the triad is repeated in each round, twice at least."""


def clock_for(threads: int) -> Callable[[], float]:
    """The clock to measure with: one thread's own time does not count when another program has its core."""
    return time.thread_time if threads == 1 else time.perf_counter


def _time(call: Call, samples: list[float], clock: Callable[[], float]) -> None:
    """A call that does not count, then as many as fit in TURN_S."""
    call()
    begun = before = clock()
    some = 0
    while some < 2 or before - begun < TURN_S:
        call()
        now = clock()
        samples.append(now - before)
        before, some = now, some + 1


class Reference:
    """Steps of REFERENCE, one with each of METHODS, with as many threads as the core has.

    A processor's speed changes while one measures: its clock, the cache and the memory that others use, a core of which half
    is another guest's.  What is measured between two of these steps is told in their time, and times seconds at full speed.
    clock: see `clock_for`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.times: list[float] = []
        self._runs = [_run(REFERENCE, method, WARM_UP) for method in METHODS]
        for _ in range(WARM_UP):
            self.time()
        self.times.clear()

    def time(self) -> float:
        """Seconds of the steps now."""
        before = self.clock()
        for run in self._runs:
            run.train_step()
        self.times.append(self.clock() - before)
        return self.times[-1]

    @property
    def seconds(self) -> float:
        """Of the steps at full speed."""
        return float(np.quantile(self.times, FULL_SPEED))


@dataclass(frozen=True)
class Timed:
    """A call of a probe's step, with the small ones that count with it.  time: the median of its times, as multiples of the
    reference's or, of several rounds, in seconds at full speed."""

    op: Op
    time: float


class _Watch(core.Probe):
    """The seconds of the calls of recorded steps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = core.CLOCKS[clock]
        self.calls: list[core.Call] = []
        self.seconds: list[Array] = []

    def replay(self, tape: core.Tape) -> None:
        seconds = tape.replay(self.clock)
        assert seconds is not None
        self.calls = tape.calls
        self.seconds.append(seconds)


def _run(probe: Probe, method: str, steps: int) -> Run:
    """A run on noise, with so many steps an epoch: at the beginning of each some methods do more."""
    rng = np.random.default_rng(1)
    count = probe.batch * steps
    images = rng.integers(0, 256, (count, *probe.images), np.uint8)
    labels = rng.integers(0, 10, count, np.uint8)
    data = Dataset("noise", images, labels, images[:1], labels[:1], tuple("0123456789"), "")
    made = methods.METHODS[method]
    layers = probe.layers if made.batchnorm else _without_norm(probe.layers)
    run = Run(Config(model="probe", method=method, lr=rate(method), batch_size=probe.batch, epochs=1 << 20), layers, data)
    run.allow_replay = True
    return run


def probe_steps(probe: Probe, method: str, reference: Reference) -> list[Timed]:
    """The calls of a step on noise, in STEPS steps after some that do not count, each between two of the reference's."""
    run = _run(probe, method, WARM_UP + STEPS)
    watch = _Watch(reference.clock)
    before = reference.time()
    relative: list[Array] = []
    for _ in range(WARM_UP + STEPS):
        watch.seconds.clear()
        run.train_step(watch=watch)
        after = reference.time()
        relative += [seconds * 2 / (before + after) for seconds in watch.seconds]
        before = after
    assert len(relative) >= STEPS, f"{method}: a step that is not recorded"
    medians = np.median(relative[-STEPS:], axis=0)
    return [Timed(op, float(sum(medians[at] for at in some))) for op, some in plan.merged(watch.calls)]


def _without_norm(layers: Stack) -> Stack:
    """The layers of a network for a method that has no batch normalization."""
    return tuple(
        item if not isinstance(item, Residual) else Residual(_without_norm(item.body), _without_norm(item.shortcut))
        for item in layers
        if not isinstance(item, BatchNorm)
    )


def non_negative(a: Array, b: Array, steps: int = 2000) -> Array:
    """x >= 0 that minimizes |a x - b|^2, by coordinate descent; columns of a are scaled first."""
    size = np.linalg.norm(a, axis=0)
    size[size == 0] = 1.0
    gram, right = (a / size).T @ (a / size), (a / size).T @ b
    x = np.zeros(len(right))
    for _ in range(steps):
        before = x.copy()
        for j in range(len(x)):
            if gram[j, j]:
                x[j] = max(0.0, x[j] + (right[j] - gram[j] @ x) / gram[j, j])
        if np.abs(x - before).max() <= 1e-9 * max(1e-300, np.abs(x).max()):
            break
    return x / size


def fit(rows: Sequence[tuple[tuple[float, ...], float, float]]) -> tuple[Array, Array]:
    """(costs by rates.COSTS, ln(measured / fitted)) of layers' passes: (work, microseconds of the product, of the whole pass).

    The least sum of |ln(measured / fitted)| of the whole: what a step takes is to be right, not each part of it, and what
    disturbed a few measurements is to count little.  By least squares, weighted again and again.
    """
    x, t, whole = np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    weight = 1 / whole
    for _ in range(REWEIGHTED):
        costs = non_negative(x * weight[:, None], t * weight)
        fitted = np.maximum(whole - t + x @ costs, 1e-3 * whole)
        off = np.log(whole / fitted)
        # near a fit ln(m / f) = (m - f) / sqrt(m f); below 0.02 a square, so that no weight is infinite
        weight = 1 / np.sqrt(whole * fitted * np.maximum(np.abs(off), 0.02))
    return costs, off


def _bandwidth(threads: int, caches: Sequence[dict[str, Any]], rounds: int, largest: int) -> list[rates.Bandwidth]:
    """Triad at half of each cache level, and at four times the last, at most `largest` bytes."""
    sizes = [(c["name"], int(c["size_kib"]["value"] * 1024 / 2)) for c in caches] or [("L1D", 16 << 10), ("L2", 256 << 10)]
    sizes.append(("main memory", min(largest, 8 * max(size for _, size in sizes))))
    found = []
    for name, size in sizes:
        arrays = [np.ones(max(16, size // 12), np.float32) for _ in range(3)]
        samples: list[float] = []
        for _ in range(rounds):
            _time(partial(core.stream_triad, arrays[0], arrays[1], arrays[2], 3.0), samples, clock_for(threads))
        moved = 12 * arrays[0].size
        found.append(rates.Bandwidth(level=name, threads=threads, bytes=moved, gb_s=moved / statistics.median(samples) / 1e9))
    return found


def _fit_products(calls: Sequence[Timed], threads: int, best: dict[str, float]) -> tuple[list[dict[str, Any]], list[float]]:
    """Costs of products with so many threads, and ln(measured / fitted) of each.  best: the most MAC/s of a core by dtype."""
    grouped: dict[tuple[str, str, str], list[tuple[tuple[float, ...], float, float]]] = {}
    tiling = rates.Tiling(**core.tiling()._asdict())
    for call in calls:
        op = call.op
        if op.kind == "gemm":
            took = call.time * 1e6
            row = rates.work(op, tiling).scaled(), took, took
            grouped.setdefault((rates.kind_of(op), op.dtype, op.pass_), []).append(row)
            best[op.dtype] = max(best.get(op.dtype, 0.0), op.macs / call.time / threads)
    products, residuals = [], []
    for (kind, dtype, pass_), rows in grouped.items():
        costs, off = fit(rows)
        residuals += off.tolist()
        products.append({"kind": kind, "dtype": dtype, "pass": pass_, "threads": threads}
                        | dict(zip(rates.COSTS, map(float, costs), strict=True)))  # fmt: skip
    return products, residuals


def _passes(calls: Sequence[Timed], threads: int) -> list[rates.PassRate]:
    """The times of each function of the core over memory by numbers of elements, and what runs and bytes of them take."""
    grouped: dict[str, list[Pass]] = {}
    for call in calls:
        if call.op.kind != "gemm":
            once = rates.calls(call.op)
            found = Pass(max(1, call.op.elements // once), rates.runs(call.op), call.op.bytes / once, call.time * 1e6 / once)
            grouped.setdefault(call.op.function, []).append(found)
    return [fit_pass(function, some, threads) for function, some in grouped.items()]


class Pass(NamedTuple):
    """A call of a function over memory: its elements, in so many runs, of so many bytes, and microseconds."""

    elements: int
    runs: float
    bytes: float
    us: float


SHARES = (0.0, *np.geomspace(0.01, 1, 15))
"""Of the median time that a run, or a byte, would take if nothing else took any: what is tried for them."""


def fit_pass(function: str, measured: Sequence[Pass], threads: int) -> rates.PassRate:
    """Times by numbers of elements, medians of those within a factor of two, beside what runs and bytes take: of SHARES what
    leaves the least sum of |ln(measured / fitted)|."""
    by_run = statistics.median(p.us / p.runs for p in measured) if all(p.runs for p in measured) else 0.0
    by_byte = statistics.median(p.us / p.bytes for p in measured)
    tried = [_curve(function, measured, threads, by_run * run, by_byte * byte)
             for run in SHARES[: len(SHARES) if by_run else 1] for byte in SHARES]  # fmt: skip
    return min(tried, key=lambda row: sum(abs(math.log(p.us / row.time(*p[:3]))) for p in measured))


def _curve(function: str, measured: Sequence[Pass], threads: int, by_run: float, by_byte: float) -> rates.PassRate:
    """by_run, by_byte: microseconds of each; at least a tenth of a time remains."""
    by_size: dict[int, list[tuple[int, float]]] = {}
    for p in measured:
        rest = max(p.us - by_run * p.runs - by_byte * p.bytes, p.us / 10, 1e-3)
        by_size.setdefault(p.elements.bit_length(), []).append((p.elements, rest))
    points = [tuple(statistics.median(column) for column in zip(*rows, strict=True)) for _, rows in sorted(by_size.items())]
    sizes, times = [round(p[0]) for p in points], [p[1] for p in points]
    if len(points) == 1:  # in proportion
        sizes, times = [*sizes, 2 * sizes[0]], [*times, 2 * times[0]]
    return rates.PassRate(name=function, threads=threads, ps_per_run=by_run * 1e6, ps_per_byte=by_byte * 1e6,
                          elements=tuple(sizes), us=tuple(times))  # fmt: skip


def _turns(probes: Sequence[Probe], rounds: int) -> list[tuple[Probe, str]]:
    """What is measured with so many threads, in this order: all probes in each round, other methods in the first."""
    some = [probes[i] for i in OTHERS if i < len(probes)]
    others = [(probe, method) for probe in some for method in methods.METHODS if method not in METHODS]
    return [*itertools.product(probes, METHODS), *others, *list(itertools.product(probes, METHODS)) * (rounds - 1)]


def _pace(turn: tuple[Probe, str]) -> float:
    """About how long a turn takes, beside others: by its products and the bytes that it moves."""
    probe, method = turn
    found = plan.trace(plan.dry(probe.layers, probe.images, methods.make("fp32", {})), probe.batch)
    return PACE.get(method, 3.0) * sum(op.macs + 10 * op.bytes for op in found)


def medians(rounds: Sequence[Sequence[Timed]], seconds: float = 1.0) -> list[Timed]:
    """Of each call of a step that was measured several times the median, times `seconds`."""
    return [Timed(same[0].op, statistics.median(call.time for call in same) * seconds) for same in zip(*rounds, strict=True)]


def _measure_steps(
    turns: Sequence[tuple[Probe, str]], reference: Reference, done: Callable[[tuple[Probe, str]], None]
) -> list[Timed]:
    """The calls of a step of each turn, in seconds at full speed, of several the median; calls `done` after each."""
    measured: dict[tuple[Probe, str], list[list[Timed]]] = {}
    known: set[str] = set()
    for probe, method in turns:
        timed = probe_steps(probe, method, reference)
        if method in METHODS:
            known |= {call.op.function for call in timed}
        else:  # only what other methods do not call
            timed = [call for call in timed if call.op.function not in known]
        measured.setdefault((probe, method), []).append(timed)
        done((probe, method))
    return [call for rounds in measured.values() for call in medians(rounds, reference.seconds)]


def calibrate(
    *, probes: Sequence[Probe] = PROBES, rounds: int = 3,
    threads: Sequence[int] | None = None, command: str = "octosim profiles calibrate",
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A profile of this machine, as plain data for `hardware.Device` and `toml`.  threads: 1 and all if not given.

    Everything is measured in `rounds` turns spread over the whole time, by the time of a reference beside it (`Reference`);
    the profile has the reference's own time at full speed.  Medians count, as in `octosim bench`.
    """
    data = detect.read(Path("/"), platform.machine())
    cores = core.threads()
    counts = sorted(set(threads or (1, cores)))
    products: list[dict[str, Any]] = []
    passes: list[rates.PassRate] = []
    levels: list[rates.Bandwidth] = []
    residuals: list[float] = []
    references: list[dict[str, Any]] = []
    peaks: dict[int, float] = {}
    best: dict[str, float] = {}
    least = math.inf  # seconds of a call
    turns = _turns(probes, rounds)
    paces = {turn: _pace(turn) for turn in dict.fromkeys(turns)} if progress else {}
    done, whole = 0.0, len(counts) * sum(paces[turn] for turn in turns if progress)

    def step(turn: tuple[Probe, str]) -> None:
        nonlocal done
        if progress:
            done += paces[turn]
            progress(done / whole)

    try:
        for count in counts:
            core.set_threads(count)
            reference = Reference(clock_for(count))
            taken = _measure_steps(turns, reference, step)
            least = min(least, *(call.time / rates.calls(call.op) for call in taken))
            references.append({"threads": count, "us": reference.seconds * 1e6})
            levels += _bandwidth(count, data["caches"], rounds, 256 << 20)
            passes += _passes(taken, count)
            some_products, off = _fit_products(taken, count, best)
            products, residuals = products + some_products, residuals + off
            peaks[count] = peak_mac_s()
    finally:
        core.set_threads(cores)
    source = f"{command}, {datetime.date.today().isoformat()}, {data['title']}, {core.isa()}, octosim {octosim.__version__}, " \
             f"Python {platform.python_version()}, NumPy {np.__version__}"  # fmt: skip
    plain = [[row.model_dump(by_alias=True, exclude_none=True) for row in rows] for rows in (passes, levels)]
    return _profile(data, source, counts, references, peaks, best, products, plain[0], plain[1], residuals, least * 1e6)


def peak_mac_s(seconds: float = 0.15) -> float:
    """int8 MAC/s from registers alone, with the instruction set and threads in use.

    The fastest call within about so many seconds: another program can only slow a call down.  The calls are short (about a
    millisecond), so that some of them have all cores to themselves on a machine with other work.
    """
    best, begun = 0.0, time.perf_counter()
    while True:
        before = time.perf_counter()
        macs = core.peak(200_000)
        now = time.perf_counter()
        best = max(best, macs / (now - before))
        if now - begun > seconds:
            return best


def _profile(
    data: dict[str, Any], source: str, counts: Sequence[int], references: list[dict[str, Any]], peaks: dict[int, float],
    best: dict[str, float], products: list[dict[str, Any]], passes: list[dict[str, Any]], bandwidth: list[dict[str, Any]],
    residuals: list[float], call_us: float,
) -> dict[str, Any]:  # fmt: skip
    def measured(value: float) -> dict[str, Any]:
        return {"value": float(f"{value:.4g}"), "kind": "measured", "source": source}

    engine = data["engines"][0]
    clock = engine["clock_ghz"]["value"] * 1e9
    engine["units"] = {"value": max(counts), "kind": "measured", "source": source + "; threads in use"}
    per_clock = peaks[min(counts)] / min(counts) / clock
    engine["macs_per_clock"]["int8"] = measured(per_clock)
    engine["gemm_efficiency"]["int8"] = measured(min(1.0, best["int8"] / (per_clock * clock)))
    floats = max(engine["macs_per_clock"]["float32"]["value"], best["float32"] / clock)
    engine["macs_per_clock"]["float32"] |= {"value": float(f"{floats:.4g}")}
    engine["gemm_efficiency"]["float32"] = measured(min(1.0, best["float32"] / (floats * clock)))
    main = {row["threads"]: row["gb_s"] for row in bandwidth if row["level"] == "main memory"}
    data["memory"]["bandwidth_sustained_gb_s"] = measured(main[max(counts)])
    data["note"] = "Calibrated: octosim's own kernels, measured on this machine; without energy."
    data["overhead_us"] = measured(call_us)
    spread = max(0.05, 1.4826 * float(np.median(np.abs(residuals))))  # of a normal distribution, by its median
    data["rates"] = {"source": source, "kernels": rates.KERNELS, "tiling": core.tiling()._asdict(), "references": references,
                     "spread": float(f"{spread:.3g}"), "products": products, "passes": passes,
                     "bandwidth": bandwidth}  # fmt: skip
    return data


# ---- TOML --------------------------------------------------


def toml(data: dict[str, Any]) -> str:
    """A profile as TOML, six digits a number."""
    return tomli_w.dumps(_rounded(data))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load_check(text: str) -> hardware.Device:
    """The device that a profile's text describes; OctosimError where it is not valid."""
    device = hardware.parse(text, "the calibrated profile")
    if device.rates is None:
        raise OctosimError("the calibrated profile has no rates")
    return device
