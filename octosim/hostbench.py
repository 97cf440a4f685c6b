"""Measures octosim's kernels on this machine and writes what it finds as a hardware profile (octosim.rates)."""

from __future__ import annotations

import datetime
import itertools
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

import octosim
from octosim import core, host, hw, methods, rates
from octosim.data import Dataset
from octosim.engine import optimizers, quantizers, trace
from octosim.engine.layers import (
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Stack,
)
from octosim.engine.nodes import Context, Node
from octosim.errors import OctosimError
from octosim.stepclock import LR, Clock, Key, stepper
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


def _conv(filters: int, kernel: int = 3, stride: int = 1, pad: int = 1) -> Stack:
    return Conv2d(filters, kernel, stride, pad), BatchNorm(), ReLU()


def _separable(filters: int, stride: int = 1) -> Stack:
    return DepthwiseConv2d(3, stride, 1), BatchNorm(), ReLU(), *_conv(filters, 1, pad=0)


def _dense(*units: int) -> Stack:
    return Flatten(), *(layer for n in units for layer in (Linear(n), ReLU())), Linear(10)


def _block(filters: int) -> Stack:
    body = (*_conv(filters, 3, 2), Conv2d(filters, 3, pad=1), BatchNorm())
    return Residual(body, (Conv2d(filters, 1, 2), BatchNorm())), ReLU()


PROBES = (
    # from few channels to many, small kernels and large, padded and not; no layer is one of octosim's models
    Probe((26, 26, 1), 64, (*_conv(12, 5, pad=2), MaxPool(), *_conv(24, 5, pad=0), MaxPool(), *_dense(150))),
    Probe((30, 30, 3), 48, (*_conv(40, 5, pad=0), MaxPool(), *_dense(120))),
    Probe((26, 26, 3), 80, (*_conv(24), *_conv(24), *_block(48), *_conv(48), *_block(96), *_conv(96), GlobalAvgPool(),
                            *_dense())),
    Probe((22, 22, 3), 16, (*_conv(48), *_conv(96, pad=0), *_conv(160), MaxPool(), *_conv(224, pad=0), *_conv(192, 1, pad=0),
                            *_dense(512))),
    Probe((18, 18, 3), 8, (*_conv(96), *_conv(160, pad=0), *_conv(320), MaxPool(), *_conv(384, pad=0), *_conv(448),
                           *_conv(512, pad=0), *_dense(1536))),
    Probe((26, 26, 1), 12, (*_conv(48, 9), MaxPool(), *_conv(192, 5), MaxPool(), *_conv(320), *_dense(640))),
    Probe((28, 28, 3), 32, (*_conv(24), *_separable(48), *_separable(96, 2), *_separable(96), *_separable(192, 2),
                            *_separable(192), *_separable(384, 2), *_separable(384), GlobalAvgPool(), *_dense())),
    Probe((20, 20, 1), 96, _dense(300, 150)),
    Probe((26, 26, 3), 24, _dense(3072, 2048, 512)),
)  # fmt: skip
METHODS = ("octo", "fp32")
"""What the probes are trained with."""
STEPS, WARM_UP = 4, 2
"""Steps of each probe in a round that count, and before them some that do not: they find their memory."""

ELEMENTS = (1 << 9, 1 << 13, 1 << 16, 1 << 19, 1 << 22)
WEIGHTS = (1 << 9, 1 << 14, 1 << 18, 1 << 21, 1 << 24)
CHANNELS = (6, 24, 128)
SWEEPS = 4
REWEIGHTED = 8
"""How often the fit is repeated with new weights."""
BETWEEN = 4
"""Tensors as large as its own that pass through the caches before a pass over memory, at most twice the last cache: what was
not just written is found as far away as in a network of some layers."""
TURN_S = 0.012
"""How long the triad is repeated in each round, twice at least."""


def _bind(function: Callable[..., Any], *args: Any, **more: Any) -> Call:
    return lambda: function(*args, **more)


NARROW = {
    "batchnorm", "batchnorm, ReLU", "batchnorm, int8 kept", "batchnorm, ReLU, int8 kept", "max pool", "average pool",
    "bias", "bias gradient", "bias, LAC gradients", "dequantize, LAC", "dequantize dX",
}  # fmt: skip
"""Passes whose speed depends on the number of channels: measured at each of CHANNELS, the others at the middle one."""


@dataclass(frozen=True)
class _Pass:
    """A pass over memory, with its name and pass in a trace.

    call: calls of the core, recorded and made again, as in a step.  fresh: what the layer before has just written, and what it
    is to hold; the pass may write over it.  before: what Python does each time.
    """

    name: str
    pass_: str
    call: Call
    fresh: tuple[Array, Array] | None = None
    before: Call | None = None


def _passes(elements: int, channels: int) -> Iterator[_Pass]:
    """The passes over about so many elements that training makes, as layers and methods call them: in place where they are."""
    rows = max(8, elements // channels)
    side = next(s for s in (16, 8, 2) if rows >= min(4, s) * s * s or s == 2)
    images = max(1, rows // (side * side))
    rows = images * side * side
    made = np.random.default_rng(2).standard_normal((rows, channels), np.float32)
    x, out, sums = made.copy(), made.copy(), (made * 1000).astype(np.int32)
    acc, codes, zeros = sums.copy(), np.zeros(x.shape, np.int8), np.zeros(channels, np.int32)
    ones, small, mean = np.ones(channels, np.float32), np.full(channels, 0.1, np.float32), np.zeros(channels, np.float32)
    values, products = (x, made), (acc, sums)
    pool = core.Pool(images, side, side, channels, 2, 2)
    px, pout = x.reshape(pool.x_shape), out.reshape(pool.x_shape)
    py, argmax = core.maxpool(pool, px)
    mean_y = core.avgpool(px)
    pooled, means = (py, py.copy()), (mean_y, mean_y.copy())
    logits = made.reshape(-1)[: x.size // 10 * 10].reshape(-1, 10).copy()
    labels, lac = np.zeros(len(logits), np.int32), (ones, small, small)
    signs = np.zeros(core.sign_bytes(x.size), np.uint8)

    def quantize(quantizer: Callable[..., Any]) -> None:
        found = core.value_range(x)
        quantizer(x, found.low, found.high, out=codes)

    def bias_gradients() -> None:
        sums = core.column_sums(codes, channels)
        core.zero_term(sums, 3)
        core.lac_backward(core.dequantize_sums(sums, zeros, 0.01), lac, 0.1)

    def dequantize_lac() -> None:
        core.Sums(acc, core.lac_fold(small, zeros, 0.01, lac), 0.01).array()

    pixels, order = np.zeros(px.shape, np.uint8), np.random.default_rng(3).permutation(images)
    batch = pixels.copy()
    gather = _bind(np.take, pixels, order, axis=0, out=batch)
    yield _Pass("images", "forward", _bind(core.images, batch, 1 / 255, 0.0, out=pout), before=gather)
    yield _Pass("quantize x", "forward", _bind(quantize, quantizers.asymmetric), values)
    yield _Pass("PRC, quantize dY", "dW", _bind(quantize, quantizers.symmetric), values)
    yield _Pass("quantize x, range known", "forward", _bind(quantizers.asymmetric, x, -3.0, 3.0, out=codes), values)
    yield _Pass("PRC, quantize dY, range known", "dW", _bind(quantizers.symmetric, x, -3.0, 3.0, out=codes), values)
    yield _Pass("dequantize, LAC", "forward", dequantize_lac, products)
    yield _Pass("dequantize dX", "dX", core.Sums(acc, zeros, 0.01).array, products)
    yield _Pass("bias, LAC gradients", "dW", bias_gradients, (codes, codes.copy()))
    yield _Pass("bias", "forward", _bind(core.affine, x, ones, small, out=x), values)
    yield _Pass("bias gradient", "dW", _bind(core.column_sums, x), values)
    lazy, in_acc = core.Sums(acc, zeros, 0.01), acc.view(np.float32)
    for relu, compact in itertools.product((False, True), (False, True)):
        name = "batchnorm" + ", ReLU" * relu + ", int8 kept" * compact
        bits = {"signs": signs if relu else None, "find_range": compact}
        given, there = (products, in_acc) if compact else (values, out)
        yield _Pass(name, "forward", _bind(
            core.batchnorm_forward, lazy if compact else x, ones, small, mean.copy(), ones.copy(),
            eps=1e-5, momentum=0.1, relu=relu, codes=codes if compact else None, out=there, **bits,
        ), given)  # fmt: skip
        of_x, of_dy, there = (codes, lazy, in_acc) if compact else (out, x, x)
        yield _Pass(name, "dX", _bind(core.batchnorm_backward, of_x, of_dy, ones, small, ones, out=there, **bits), given)
    yield _Pass("relu", "forward", _bind(core.relu, x, signs=signs, out=x), values)
    yield _Pass("relu", "dX", _bind(core.relu_backward, signs, x, out=x), values)
    yield _Pass("max pool", "forward", _bind(core.maxpool, pool, px, out=py, argmax=argmax), values)
    yield _Pass("max pool", "dX", _bind(core.maxpool_backward, pool, py, argmax, out=pout), pooled)
    yield _Pass("average pool", "forward", _bind(core.avgpool, px, out=mean_y), values)
    yield _Pass("average pool", "dX", _bind(core.avgpool_backward, mean_y, side, side, out=pout), means)
    yield _Pass("dropout", "forward", _bind(core.dropout, x, 0.5, (1, 2, 3), out=out), values)
    yield _Pass("dropout", "dX", _bind(core.dropout, x, 0.5, (1, 2, 3), out=x), values)
    yield _Pass("add", "forward", _bind(core.add, x, made, out=out), values)
    yield _Pass("add, ReLU", "forward", _bind(core.add, x, made, relu=True, signs=signs, find_range=True, out=out), values)
    yield _Pass("add, ReLU", "dX", _bind(core.relu_backward, signs, core.Pair(x, lazy), out=x), values)
    yield _Pass("copy", "dX", _bind(core.copy, x, out=out), values)
    yield _Pass("sum of gradients", "dX", _bind(core.add, out, x, out=out), values)
    yield _Pass("softmax cross-entropy", "forward", _bind(core.softmax_cross_entropy, logits, labels))


def _weight_passes(elements: int) -> Iterator[_Pass]:
    """The passes over so many weights."""
    w, g, v = (np.full(elements, 0.01, np.float32) for _ in range(3))
    codes = np.empty(elements, np.int8)
    node = Node("probe", 0, None, (), (), params={"w": w}, grads={"w": g})
    method, slots = methods.make("fp32", {}), {"probe.w": {"v": v}}
    update = optimizers.Update(optimizers.Sgd(lr=LR), method, Context(True, 1, 1), LR, (), [node], slots)

    def quantize() -> None:
        found = core.value_range(w)
        quantizers.symmetric(w, found.low, found.high, out=codes)

    yield _Pass("quantize w", "forward", quantize)
    yield _Pass("quantize w, range known", "forward", _bind(quantizers.symmetric, w, -3.0, 3.0, out=codes))
    yield _Pass("optimizer", "update", _bind(update.node, node))


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


def _in_turn(passes: Sequence[_Pass], clock: Callable[[], float], traffic: int) -> list[float]:
    """The median times of passes that are made one after the other, SWEEPS times.

    traffic: bytes that pass through the caches between two calls, before what is fresh is written.
    """
    a, b, c = (np.zeros(max(16, traffic // 12), np.float32) for _ in range(3))
    tapes = [core.Tape() for _ in passes]
    for one, tape in zip(passes, tapes, strict=True):
        with tape.recording():
            one.call()
    samples: list[list[float]] = [[] for _ in passes]
    for _ in range(SWEEPS):
        for one, tape, some in zip(passes, tapes, samples, strict=True):
            core.stream_triad(a, b, c, 3.0)
            if one.fresh:
                np.copyto(*one.fresh)
            begun = clock()
            if one.before:
                one.before()
            before = clock() - begun if one.before else 0.0
            seconds = tape.replay(core.CLOCKS[clock])
            assert seconds is not None
            some.append(before + float(seconds.sum()))
    return [statistics.median(some) for some in samples]


@dataclass(frozen=True)
class _Step:
    """A probe's step: its trace, and the median seconds of each layer's passes in some steps."""

    ops: list[Op]
    times: dict[Key, float]

    @property
    def total(self) -> float:
        return sum(self.times.values())


def _probe_steps(probe: Probe, method: str, clock: Callable[[], float]) -> _Step:
    """STEPS steps on noise, after some that do not count."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (probe.batch, *probe.images), np.uint8)
    labels = rng.integers(0, 10, probe.batch, np.uint8)
    data = Dataset("noise", images, labels, images[:1], labels[:1], tuple("0123456789"), "")
    run = Run(Config(model="probe", method=method, lr=LR, batch_size=probe.batch, epochs=1 << 20), probe.layers, data)
    watch = Clock(clock)
    step = stepper(run, watch, [])
    for number in range(WARM_UP + STEPS):
        if number == WARM_UP:
            watch.forget()
        step()
    medians = {key: statistics.median(values) for key, values in watch.values.items()}
    return _Step(trace(run.network, probe.batch), medians)


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
    """(costs by FEATURES, ln(measured / fitted)) of layers' passes: (features, microseconds of the product, of the whole pass).

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
            _time(_bind(core.stream_triad, *arrays, 3.0), samples, clock_for(threads))
        moved = 12 * arrays[0].size
        found.append(rates.Bandwidth(level=name, threads=threads, bytes=moved, gb_s=moved / statistics.median(samples) / 1e9))
    return found


def _fit_products(
    measured: Sequence[_Step], passes: Sequence[rates.PassRate], levels: Sequence[rates.Bandwidth], threads: int,
    best: dict[str, float],
) -> tuple[list[dict[str, Any]], list[float]]:  # fmt: skip
    """Costs of products with so many threads, and ln(measured / fitted) of the layers' passes that they come from.

    A layer's pass is its product, small calls beside it, and passes over memory, whose price is known.
    best: the highest MAC/s of a core by dtype so far, of whole layers' passes.
    """
    grouped: dict[tuple[str, str, str], list[tuple[tuple[float, ...], float, float]]] = {}
    for taken in measured:
        for op in (op for op in taken.ops if op.kind == "gemm"):
            key = (op.layer, op.pass_)
            whole = taken.times[key]
            others = (o for o in taken.ops if (o.layer, o.pass_) == key and o is not op)
            took = max(0.1 * whole, whole - sum(sum(rates.pass_time(o, passes, levels, threads)) for o in others))
            row = rates.features(op), took * 1e6, whole * 1e6
            grouped.setdefault((rates.kind_of(op), op.dtype, op.pass_), []).append(row)
            best[op.dtype] = max(best.get(op.dtype, 0.0), op.macs / whole / threads)
    products, residuals = [], []
    for (kind, dtype, pass_), rows in grouped.items():
        costs, off = fit(rows)
        residuals += off.tolist()
        products.append({"kind": kind, "dtype": dtype, "pass": pass_, "threads": threads}
                        | dict(zip(rates.FEATURES, map(float, costs), strict=True)))  # fmt: skip
    return products, residuals


def _in_steps(
    passes: Sequence[rates.PassRate], measured: Sequence[_Step], levels: Sequence[rates.Bandwidth], threads: int
) -> list[rates.PassRate]:  # fmt: skip
    """The passes as the probes' steps take them, of those that are a layer's whole pass there.

    Two costs: a time for each call, which is what starting it costs with the caches full of other things, and a factor on
    the measured times, for operands that are nearer or farther than in the measurement.
    """
    found = []
    for row in passes:
        points: list[tuple[tuple[float, ...], float, float]] = []
        for taken in measured:
            keys = Counter((op.layer, op.pass_) for op in taken.ops)
            for op in taken.ops:
                key = (op.layer, op.pass_)
                if (op.name, op.pass_) == (row.name, row.pass_) and keys[key] == 1:
                    took = taken.times[key] * 1e6
                    alone = sum(rates.pass_time(op, passes, levels, threads)) * 1e6
                    points.append(((rates.calls(op), alone), took, took))
        if len(points) > 1:
            (call, factor), _ = fit(points)
            row = row.model_copy(update={"us_per_call": call, "us": tuple(max(1e-3, factor * t) for t in row.us)})
        found.append(row)
    return found


def _measure_passes(
    elements: Sequence[int], weights: Sequence[int], rounds: int, threads: int, cache: int
) -> list[rates.PassRate]:  # fmt: skip
    """Every pass at each number of elements, of the rounds the fastest.  cache: bytes of the last level."""
    least: dict[tuple[str, str, int], dict[int, float]] = {}
    for _ in range(rounds):
        work = [(size, width, _passes(size, width)) for size in elements for width in CHANNELS]
        work += [(size, CHANNELS[1], _weight_passes(size)) for size in weights]
        for size, width, every in work:
            some = [p for p in every if p.name in NARROW or width == CHANNELS[1]]
            traffic = min(2 * cache, 4 * BETWEEN * size)
            for one, took in zip(some, _in_turn(some, clock_for(threads), traffic), strict=True):
                by_size = least.setdefault((one.name, one.pass_, width if one.name in NARROW else 0), {})
                by_size[size] = min(took, by_size.get(size, took))
    return [
        rates.PassRate.model_validate({
            "name": name, "pass": pass_, "threads": threads, "channels": width, "elements": list(by_size),
            "us": [seconds * 1e6 for seconds in by_size.values()]})
        for (name, pass_, width), by_size in least.items()
    ]  # fmt: skip


def _measure_steps(probes: Sequence[Probe], rounds: int, threads: int, done: Callable[[], None]) -> list[_Step]:
    """A step of each probe with each method, of the rounds the fastest; calls `done` after each measurement."""
    best: dict[tuple[Probe, str], _Step] = {}
    for _ in range(rounds):
        for key in itertools.product(probes, METHODS):
            taken = _probe_steps(*key, clock_for(threads))
            best[key] = min(taken, best.get(key, taken), key=lambda one: one.total)
            done()
    return list(best.values())


def calibrate(
    *, probes: Sequence[Probe] = PROBES, rounds: int = 3, elements: Sequence[int] = ELEMENTS, weights: Sequence[int] = WEIGHTS,
    threads: Sequence[int] | None = None, command: str = "octosim profiles calibrate",
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A profile of this machine, as plain data for `hw.Device` and `toml`.  threads: 1 and all if not given.

    Everything is measured in `rounds` turns spread over the whole time.  Medians count, as in `octosim bench`, and of the
    rounds the fastest: other programs slow down some seconds, not all.
    """
    data = host.read(Path("/"), platform.machine())
    cores = core.threads()
    counts = sorted(set(threads or (1, cores)))
    cache = max((int(c["size_kib"]["value"] * 1024) for c in data["caches"]), default=32 << 20)
    products: list[dict[str, Any]] = []
    passes: list[rates.PassRate] = []
    levels: list[rates.Bandwidth] = []
    residuals: list[float] = []
    peaks: dict[int, float] = {}
    best: dict[str, float] = {}
    done, steps = 0, len(counts) * (rounds * len(probes) * len(METHODS) + 2)

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done / steps)

    try:
        for count in counts:
            core.set_threads(count)
            taken = _measure_steps(probes, rounds, count, step)
            levels += _bandwidth(count, data["caches"], rounds, 256 << 20)
            alone = _measure_passes(elements, weights, rounds, count, cache)
            step()
            passes += _in_steps(alone, taken, levels, count)
            some_products, off = _fit_products(taken, passes, levels, count, best)
            products, residuals = products + some_products, residuals + off
            peaks[count] = peak_mac_s()
            step()
    finally:
        core.set_threads(cores)
    source = f"{command}, {datetime.date.today().isoformat()}, {data['title']}, {core.isa()}, octosim {octosim.__version__}, " \
             f"Python {platform.python_version()}, NumPy {np.__version__}"  # fmt: skip
    plain = [[row.model_dump(by_alias=True) for row in rows] for rows in (passes, levels)]
    return _profile(data, source, counts, peaks, best, products, plain[0], plain[1], residuals)


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
    data: dict[str, Any], source: str, counts: Sequence[int], peaks: dict[int, float], best: dict[str, float],
    products: list[dict[str, Any]], passes: list[dict[str, Any]], bandwidth: list[dict[str, Any]], residuals: list[float],
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
    call = min(row["us"][0] for row in passes)
    data["overhead_us"] = measured(call)
    spread = max(0.05, 1.4826 * float(np.median(np.abs(residuals))))  # of a normal distribution, by its median
    data["rates"] = {"source": source, "spread": float(f"{spread:.3g}"), "products": products, "passes": passes,
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


def load_check(text: str) -> hw.Device:
    """The device that a profile's text describes; OctosimError where it is not valid."""
    device = hw.parse(text, "the calibrated profile")
    if device.rates is None:
        raise OctosimError("the calibrated profile has no rates")
    return device
