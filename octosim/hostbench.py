"""Measures octosim's kernels on this machine and writes what it finds as a hardware profile (octosim.rates)."""

from __future__ import annotations

import datetime
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

import octosim
from octosim import core, host, hw, methods, models, quant, rates
from octosim.errors import OctosimError
from octosim.layers import Conv2d, DepthwiseConv2d, Flatten, Linear
from octosim.nodes import Context
from octosim.trace import Op

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

CONVOLUTIONS = (
    # batch, side, channels, filters, kernel, padding, stride: from few channels to many, none a layer of octosim's models;
    # small enough that a call takes no more than some milliseconds: undisturbed ones are then to be had on a busy machine
    (16, 28, 3, 24, 3, 1, 1), (32, 24, 1, 12, 5, 2, 1), (32, 24, 1, 5, 5, 2, 1), (32, 24, 4, 8, 5, 0, 1),
    (32, 20, 12, 12, 3, 1, 1),
    (16, 24, 24, 24, 3, 1, 1), (16, 14, 48, 48, 3, 1, 1), (4, 20, 48, 96, 3, 1, 1), (4, 10, 96, 192, 3, 1, 1),
    (1, 12, 192, 320, 3, 0, 1), (2, 6, 384, 384, 3, 1, 1), (4, 6, 448, 480, 3, 1, 1),
    (8, 6, 192, 192, 3, 1, 1), (16, 24, 24, 48, 1, 0, 1),
    (16, 12, 96, 192, 1, 0, 1), (8, 6, 384, 320, 1, 0, 1), (16, 3, 384, 448, 1, 0, 1), (16, 28, 12, 24, 3, 1, 2),
    (16, 14, 24, 48, 3, 1, 2), (16, 28, 12, 24, 1, 0, 2),
)  # fmt: skip
LINEARS = ((48, 800, 120), (96, 3000, 120), (96, 150, 100), (96, 120, 10), (48, 640, 500), (24, 1500, 1500), (96, 1200, 800),
           (48, 3000, 10), (12, 3000, 3000))  # fmt: skip
DEPTHWISE = (
    (16, 24, 24, 1), (16, 24, 24, 2), (16, 14, 96, 1), (16, 14, 96, 2), (32, 8, 192, 1), (32, 4, 384, 1), (32, 4, 384, 2),
    (64, 2, 448, 1),
)  # fmt: skip
ELEMENTS = (1 << 9, 1 << 13, 1 << 16, 1 << 19, 1 << 22)
CHANNELS = (6, 24, 128)
SWEEPS = 4
TURN_S = 0.012
"""How long the triad is repeated in each round, twice at least."""
QUIET, QUIET_THREADS = 0.5, 0.1
"""The quantile of a call's times that counts: the median, as in `octosim bench`; with several threads, whose clock does not
stop for other programs, the fastest tenth."""


def _products(scale: float) -> Iterator[tuple[Op, Call]]:
    """Products as the trace has them, and the calls that compute them.  scale: of the batches, below 1 for a quick look."""
    rng = np.random.default_rng(1)

    def make(shape: tuple[int, ...], dtype: str) -> Array:
        if dtype == "int8":
            return rng.integers(-127, 128, shape, dtype=np.int8)
        return rng.standard_normal(shape, np.float32)

    def op(pass_: str, dtype: str, shape: tuple[int, int, int], kernel: int = 0, groups: int = 1, stride: int = 1) -> Op:
        return Op("probe", pass_, "gemm", "probe", shape, dtype, 0, 0, groups, (kernel, kernel), stride)

    sums = {"int8": np.int32, "float32": np.float32}
    for dtype in ("int8", "float32"):
        zero = {"x_zero": 3} if dtype == "int8" else {}
        for batch, side, channels, filters, kernel, pad, stride in CONVOLUTIONS:
            g = core.Conv(max(1, round(batch * scale)), side, side, channels, filters, kernel, kernel, stride, pad)
            m, k, n = g.batch * g.out_h * g.out_w, kernel * kernel * channels, filters
            x, w = make((g.batch, side, side, channels), dtype), make((n, kernel, kernel, channels), dtype)
            dy = make((g.batch, g.out_h, g.out_w, n), dtype)
            y, dw, dx = (np.empty(a.shape, sums[dtype]) for a in (dy, w, x))
            yield op("forward", dtype, (m, k, n), kernel, 1, stride), _bind(core.conv_forward, g, x, w, **zero, out=y)
            yield op("dX", dtype, (m, n, k), kernel, 1, stride), _bind(core.conv_input_grad, g, dy, w, out=dx)
            yield op("dW", dtype, (n, m, k), kernel, 1, stride), _bind(core.conv_weight_grad, g, x, dy, **zero, out=dw)
        for m, k, n in LINEARS:
            m = max(1, round(m * scale))
            x, w, dy = make((m, k), dtype), make((n, k), dtype), make((m, n), dtype)
            y, dx, dw = (np.empty(a.shape, sums[dtype]) for a in (dy, x, w))
            yield op("forward", dtype, (m, k, n)), _bind(core.gemm, x, w, transpose_b=True, out=y)
            yield op("dX", dtype, (m, n, k)), _bind(core.gemm, dy, w, out=dx)
            yield op("dW", dtype, (n, m, k)), _bind(core.gemm, dy, x, transpose_a=True, out=dw)
        for batch, side, channels, stride in DEPTHWISE:
            g = core.Conv(max(1, round(batch * scale)), side, side, channels, channels, 3, 3, stride, 1)
            x, w = make((g.batch, side, side, channels), dtype), make((channels, 3, 3, 1), dtype)
            dy = make((g.batch, g.out_h, g.out_w, channels), dtype)
            y, dw, dx = (np.empty(a.shape, sums[dtype]) for a in (dy, w, x))
            m = g.batch * g.out_h * g.out_w
            yield op("forward", dtype, (m, 9, 1), 3, channels), _bind(core.depthwise_forward, g, x, w, **zero, out=y)
            yield op("dX", dtype, (m, 1, 9), 3, channels), _bind(core.depthwise_input_grad, g, dy, w, out=dx)
            yield op("dW", dtype, (1, m, 9), 3, channels), _bind(core.depthwise_weight_grad, g, x, dy, **zero, out=dw)


def _bind(function: Callable[..., Any], *args: Any, **more: Any) -> Call:
    return lambda: function(*args, **more)


NARROW = {
    "batchnorm", "batchnorm, ReLU", "batchnorm, int8 kept", "batchnorm, ReLU, int8 kept", "max pool", "average pool",
    "bias", "bias gradient", "bias, LAC gradients", "dequantize, LAC", "dequantize dX",
}  # fmt: skip
"""Passes whose speed depends on the number of channels: measured at each of CHANNELS, the others at the middle one."""


def _passes(elements: int, channels: int) -> Iterator[tuple[str, str, Call]]:
    """(name, pass, call) of the passes over about so many elements that training makes, as layers and methods call them."""
    rows = max(8, elements // channels)
    side = next(s for s in (16, 8, 2) if rows >= min(4, s) * s * s or s == 2)
    images = max(1, rows // (side * side))
    rows = images * side * side
    x = np.random.default_rng(2).standard_normal((rows, channels), np.float32)
    y, dy, acc = x.copy(), x * np.float32(0.01), (x * 1000).astype(np.int32)
    codes, zeros, ones = np.empty(x.shape, np.int8), np.zeros(channels, np.int32), np.ones(channels, np.float32)
    small = np.full(channels, 0.1, np.float32)
    mean, var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    pool = core.Pool(images, side, side, channels, 2, 2)
    px = x.reshape(pool.x_shape)
    py, argmax = core.maxpool(pool, px)
    mean_y = core.avgpool(px)
    weights, flat = x.reshape(-1), y.reshape(-1)
    logits = x.reshape(-1)[: x.size // 10 * 10].reshape(-1, 10).copy()
    labels = np.zeros(len(logits), np.int32)
    stat, out = np.ones(channels, np.float32), np.empty_like(x)
    lac, dpx = (ones, small, small), np.empty_like(px)

    def quantize() -> None:
        quant.asymmetric(x, *core.value_range(x), out=codes)

    def quantize_symmetric() -> None:
        quant.symmetric(x, *core.value_range(x), out=codes)

    def bias_gradients() -> None:
        core.column_sums(codes)
        core.lac_backward(core.column_sums(codes, channels).astype(np.float32), lac, 0.1)

    def dequantize_lac() -> None:
        core.dequantize_sums(acc, core.lac_fold(small, zeros, 100.0, lac), 0.01, out=out)

    def update() -> None:
        core.sgd(weights, flat, out.reshape(-1), lr=1e-6, momentum=0.9, decay=0.0)

    yield "quantize x", "forward", quantize
    yield "quantize w", "forward", quantize_symmetric
    yield "PRC, quantize dY", "dW", quantize_symmetric
    yield "quantize x, range known", "forward", _bind(quant.asymmetric, x, -3.0, 3.0, out=codes)
    yield "PRC, quantize dY, range known", "dW", _bind(quant.symmetric, x, -3.0, 3.0, out=codes)
    yield "dequantize, LAC", "forward", dequantize_lac
    yield "dequantize dX", "dX", _bind(core.dequantize_sums, acc, zeros, 0.01, out=out)
    yield "bias, LAC gradients", "dW", bias_gradients
    yield "bias", "forward", _bind(core.affine, x, ones, small, out=out)
    yield "bias gradient", "dW", _bind(core.column_sums, dy)
    signs = np.empty(core.sign_bytes(x.size), np.uint8)
    lazy = core.Sums(acc, zeros, 0.01)
    for relu, compact in itertools.product((False, True), (False, True)):
        name = "batchnorm" + ", ReLU" * relu + ", int8 kept" * compact
        bits = {"signs": signs if relu else None, "find_range": compact, "out": out}
        kept = codes if compact else None
        yield name, "forward", _bind(
            core.batchnorm_forward, lazy if compact else x, ones, small, mean, var,
            eps=1e-5, momentum=0.1, relu=relu, codes=kept, **bits,
        )  # fmt: skip
        of_x, of_dy = (codes, lazy) if compact else (x, dy)
        yield name, "dX", _bind(core.batchnorm_backward, of_x, of_dy, ones, small, stat, **bits)
    yield "relu", "forward", _bind(core.relu, x, signs=signs, out=out)
    yield "relu", "dX", _bind(core.relu_backward, signs, dy, out=out)
    yield "max pool", "forward", _bind(core.maxpool, pool, px, out=py, argmax=argmax)
    yield "max pool", "dX", _bind(core.maxpool_backward, pool, py, argmax, out=dpx)
    yield "average pool", "forward", _bind(core.avgpool, px, out=mean_y)
    yield "average pool", "dX", _bind(core.avgpool_backward, mean_y, side, side, out=dpx)
    yield "dropout", "forward", _bind(core.dropout, x, 0.5, (1, 2, 3), out=out)
    yield "dropout", "dX", _bind(core.dropout, dy, 0.5, (1, 2, 3), out=out)
    yield "add", "forward", _bind(core.add, x, y, out=out)
    yield "add, ReLU", "forward", _bind(core.add, x, y, relu=True, signs=signs, find_range=True, out=out)
    yield "add, ReLU", "dX", _bind(core.relu_backward, signs, core.Pair(dy, lazy), out=out)
    yield "copy", "dX", _bind(np.copyto, out, x)
    yield "sum of gradients", "dX", _bind(core.add, x, y, out=out)
    yield "softmax cross-entropy", "forward", _bind(core.softmax_cross_entropy, logits, labels)
    yield "optimizer", "update", update


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


def _in_turn(calls: Sequence[Call], samples: Sequence[list[float]], clock: Callable[[], float]) -> None:
    """All calls one after the other, SWEEPS times after one that does not count: as in a network, each finds in the near caches
    what others left there."""
    for sweep in range(SWEEPS + 1):
        for call, some in zip(calls, samples, strict=True):
            before = clock()
            call()
            if sweep:
                some.append(clock() - before)


def _quiet(samples: Sequence[float], threads: int) -> float:
    return float(np.quantile(samples, QUIET if threads == 1 else QUIET_THREADS))


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


def fit(rows: Sequence[tuple[tuple[float, ...], float]]) -> tuple[Array, Array]:
    """(costs by FEATURES, ln(measured / fitted)) of products: (features, microseconds), least squares of relative errors."""
    x, t = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    costs = non_negative(x / t[:, None], np.ones(len(t)))
    return costs, np.log(t / np.maximum(x @ costs, 1e-9))


def _bandwidth(threads: int, caches: Sequence[dict[str, Any]], rounds: int, largest: int) -> list[dict[str, Any]]:
    """Triad at half of each cache level, and at four times the last, at most `largest` bytes."""
    sizes = [(c["name"], int(c["size_kib"]["value"] * 1024 / 2)) for c in caches] or [("L1D", 16 << 10), ("L2", 256 << 10)]
    sizes.append(("main memory", min(largest, 8 * max(size for _, size in sizes))))
    found = []
    for name, size in sizes:
        arrays = [np.ones(max(16, size // 12), np.float32) for _ in range(3)]
        samples: list[float] = []
        for _ in range(rounds):
            _time(_bind(core.stream_triad, *arrays, 3.0), samples, clock_for(threads))
        rate = 12 * arrays[0].size / _quiet(samples, threads)
        found.append({"level": name, "threads": threads, "bytes": 12 * arrays[0].size, "gb_s": rate / 1e9})
    return found


def calibrate(
    *, scale: float = 1.0, rounds: int = 3, elements: Sequence[int] = ELEMENTS, threads: Sequence[int] | None = None,
    command: str = "octosim profiles calibrate", progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A profile of this machine, as plain data for `hw.Device` and `toml`.  threads: 1 and all if not given.

    Each product and pass is measured in `rounds` turns spread over the whole time; the median counts,
    of several threads the fastest tenth.
    """
    data = host.read(Path("/"), platform.machine())
    cores = core.threads()
    counts = sorted(set(threads or (1, cores)))
    products: list[dict[str, Any]] = []
    passes: list[dict[str, Any]] = []
    bandwidth: list[dict[str, Any]] = []
    residuals: list[float] = []
    peaks: dict[int, float] = {}
    best: dict[str, float] = {}
    done, steps = 0, len(counts) * (rounds + 1)

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done / steps)

    try:
        for count in counts:
            core.set_threads(count)
            clock = clock_for(count)
            calls = list(_products(scale))
            timed: list[list[float]] = [[] for _ in calls]
            over: dict[tuple[str, str, int], dict[int, list[float]]] = {}
            for _ in range(rounds):
                _in_turn([call for _, call in calls], timed, clock)
                for size in elements:
                    for width in CHANNELS:
                        some = [row for row in _passes(size, width) if row[0] in NARROW or width == CHANNELS[1]]
                        keys = [(name, pass_, width if name in NARROW else 0) for name, pass_, _ in some]
                        held = [over.setdefault(key, {}).setdefault(size, []) for key in keys]
                        _in_turn([row[2] for row in some], held, clock)
                step()
            grouped: dict[tuple[str, str, str], list[tuple[tuple[float, ...], float]]] = {}
            for (op, _), samples in zip(calls, timed, strict=True):
                seconds = _quiet(samples, count)
                grouped.setdefault((rates.kind_of(op), op.dtype, op.pass_), []).append((rates.features(op), seconds * 1e6))
                best[op.dtype] = max(best.get(op.dtype, 0.0), op.macs / seconds / count)
            for (kind, dtype, pass_), rows in grouped.items():
                costs, off = fit(rows)
                residuals += off.tolist()
                products.append({"kind": kind, "dtype": dtype, "pass": pass_, "threads": count}
                                | dict(zip(rates.FEATURES, map(float, costs), strict=True)))  # fmt: skip
            for (name, pass_, width), by_size in over.items():
                times = [_quiet(samples, count) * 1e6 for samples in by_size.values()]
                passes.append({"name": name, "pass": pass_, "threads": count, "channels": width, "elements": list(by_size),
                               "us": times})  # fmt: skip
            _add_layers([p for p in products if p["threads"] == count], passes, count, rounds, clock)
            bandwidth += _bandwidth(count, data["caches"], rounds, 256 << 20)
            peaks[count] = peak_mac_s()
            step()
    finally:
        core.set_threads(cores)
    source = f"{command}, {datetime.date.today().isoformat()}, {data['title']}, {core.isa()}, octosim {octosim.__version__}, " \
             f"Python {platform.python_version()}, NumPy {np.__version__}"  # fmt: skip
    return _profile(data, source, counts, peaks, best, products, passes, bandwidth, residuals)


def _add_layers(
    products: list[dict[str, Any]], passes: list[dict[str, Any]], threads: int, rounds: int, clock: Callable[[], float]
) -> None:
    """Adds to us_per_call what a layer takes around its kernels: a tiny network's measured passes less the price of their
    operations."""
    known = rates.Rates.model_validate({
        "source": "being measured", "spread": 1.0, "products": products, "passes": passes,
        "bandwidth": [{"level": "any", "threads": threads, "bytes": 1, "gb_s": 10.0}],
    })  # fmt: skip
    stack = (Conv2d(8, 1), Conv2d(8, 1), DepthwiseConv2d(), Flatten(), Linear(16), Linear(16))
    layers = {"convolution": "conv2", "depthwise": "dw1", "linear": "fc1"}
    images, labels = np.full((2, 4, 4, 8), 100, np.uint8), np.zeros(2, np.int32)
    for method, dtype in (("octo", "int8"), ("fp32", "float32")):
        network = models.Network(stack, (4, 4, 8), methods.make(method, {}), 1)
        taken: dict[tuple[str, str], list[float]] = {}
        last = 0.0

        def tick(layer: str, pass_: str, taken: dict[tuple[str, str], list[float]] = taken) -> None:
            nonlocal last
            taken.setdefault((layer, pass_), []).append(clock() - last)
            last = clock()

        for _ in range(40 * rounds):
            last = clock()
            network.gradients(images, labels, Context(True, 1, 1), tick)
        ops = models.trace(network, 2)
        for row in products:
            if row["dtype"] == dtype:
                layer = layers[row["kind"]]
                own = [op for op in ops if (op.layer, op.pass_) == (layer, row["pass"])]
                priced = sum(sum(rates.time_of(op, known, threads)) for op in own)
                row["us_per_call"] += max(0.0, _quiet(taken[layer, row["pass"]], threads) - priced) * 1e6


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
