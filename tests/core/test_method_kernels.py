"""The kernels of training methods against NumPy, to the bit; checkasm holds the instruction sets to each other."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octosim import core
from octosim.numerics import Rounding

F = np.float32
SIZES = (1, 2, 3, 31, 64, 257, 1024, 20_001)
VALUES = ("normal", "ties", "extreme", "zero")
SHAPES = ((1, 1), (5, 3), (64, 16), (700, 16), (33, 100), (40, 130), (9, 600), (3000, 1))


def values(kind: str, shape: int | tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 numbers: normal; multiples of a half; of all magnitudes, denormals among them; zeros of both signs."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(size=shape).astype(F)
    if kind == "ties":
        return (rng.integers(-300, 300, shape) / 2).astype(F)
    if kind == "extreme":
        return (rng.choice([-1, 1], shape) * 2.0 ** rng.integers(-149, 127, shape)).astype(F)
    return rng.choice(np.array([0.0, -0.0], F), shape)


def codes(shape: int | tuple[int, ...], seed: int = 0, least: int = -127) -> np.ndarray:
    return np.random.default_rng(seed).integers(least, 128, shape).astype(np.int8)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits; zeros of either sign are told apart."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def running(x: np.ndarray) -> float:
    """The sum in float64, 65,536 elements one after the other, then their sums."""
    flat, size = x.ravel(), 1 << 16
    return sum(float(np.cumsum(flat[i : i + size], dtype=np.float64)[-1]) for i in range(0, flat.size, size))


# ---- values --------------------------------------------------


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("size", SIZES)
def test_masks(size: int, kind: str) -> None:
    x, other = values(kind, size), values("normal", size, 1)
    inside = core.within(x, -0.5, 1.5)
    assert same(inside, ((x >= F(-0.5)) & (x <= F(1.5))).view(np.uint8))
    assert same(core.mask(other, inside), other * inside.view(bool)), "a product: -0 where it was negative"
    assert same(core.mask(other, inside, out=other.copy()), other * inside.view(bool))
    assert same(core.multiply(x, other), x * other)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("size", SIZES)
def test_few_levels(size: int, kind: str, bits: int) -> None:
    n, x = F(2**bits - 1), values(kind, size)

    def steps(v: np.ndarray) -> np.ndarray:
        return np.rint(v * n) / n

    y, inside = core.levels(x, 2**bits - 1)
    assert np.array_equal(y, steps(np.clip(x, F(0), F(1)))) and same(inside, ((x >= 0) & (x <= 1)).view(np.uint8))
    e = core.exp(np.maximum(F(-2) * np.abs(x), F(-80)))
    t = np.copysign((F(1) - e) / (F(1) + e), x)
    largest = np.abs(t).max()
    w, slope = core.level_weights(x, 2**bits - 1)
    if largest:
        assert same(w, F(2) * steps(t / (F(2) * largest) + F(0.5)) - F(1)) and same(slope, (F(1) - t * t) / largest)
    else:
        assert not w.any() and (slope == 1).all()
    if kind != "extreme":
        mean = F(running(np.abs(x)) / x.size)
        assert same(core.binary_weights(x), np.where(x < 0, -mean, mean).astype(F))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 1023), (2, 1025), (4, 3, 33, 11)])
def test_stochastic_levels_of_samples(shape: tuple[int, ...], bits: int) -> None:
    dy = values("normal", shape)
    dy[-1] *= 0 if len(dy) > 2 else 1e-20
    flat, n = dy.reshape(len(dy), -1), F(2**bits - 1)
    largest = np.abs(flat).max(1, keepdims=True)
    twice = F(2) * np.where(largest > 0, largest, F(1))
    noise = (core.philox(dy.size, 7, 8, 9) >> np.uint32(8)).astype(F).reshape(flat.shape) / F(2**24) - F(0.5)
    shifted = np.clip(flat / twice + F(0.5) + noise / n, F(0), F(1))
    expected = twice * (np.rint(shifted * n) / n - F(0.5)) * (largest > 0)
    assert same(core.level_errors(dy, 2**bits - 1, (7, 8, 9)), expected.reshape(shape))


@pytest.mark.parametrize("weight", [0.0, 1e-3])
@pytest.mark.parametrize("tight", [0.1, 5.0, 100.0])
@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
@pytest.mark.parametrize("size", SIZES)
def test_barrier(size: int, kind: str, tight: float, weight: float) -> None:
    x, g, bound, t = values(kind, size), values("normal", size, 1), F(0.75), F(tight)
    x[: size // 2] *= F(0.01)
    expected = g * (np.abs(x) <= bound)
    if weight:
        z, edge = np.abs(x) - bound, F(1) / (t * t)
        expected += F(weight) * np.sign(x) * np.where(z <= -edge, F(1) / (t * np.maximum(-z, edge)), t)
    assert same(core.barrier(g.copy(), x, 0.75, tight, weight), expected)


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 200_000])
def test_signed_sum(size: int) -> None:
    x, side = values("normal", size), np.random.default_rng(1).integers(-1, 2, size).astype(np.int8)
    assert core.signed_sum(x, side).tolist() == [F(running(x * side))]


def test_counts() -> None:
    total = np.array([1, 2**40], np.int64)
    core.add_counts(np.array([3, 2**41], np.int64), total)
    assert total.tolist() == [4, 3 * 2**40]


# ---- ranges --------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from(VALUES), st.integers(0, 2**32))
def test_image_range(images: int, size: int, kind: str, seed: int) -> None:
    """The sums as fractions, rounded once: whatever the magnitudes."""
    x = values(kind, (images, size), seed)
    expected = [F(math.fsum(map(float, ends)) / images) for ends in (x.min(1), x.max(1))]
    assert [*core.image_range(x)] == expected
    exact = [float(sum(map(Fraction, map(float, ends)), Fraction(0))) for ends in (x.min(1), x.max(1))]
    assert [*core.image_range(x)] == [F(end / images) for end in exact]


def test_running_ranges() -> None:
    held, found = np.zeros(2, F), core.Range(-1.5, 0.3)
    core.average(held, found, 0.9, from_zero=True)
    assert held.tolist() == [-1.5, F(0.3)]
    before, keep = held.copy(), F(0.9)
    earlier = core.earlier_range(held, core.Range(-3, 2), 0.9)
    latest = np.array([-3, 2], F)
    assert [*earlier] == before.tolist() and same(held, keep * before + (F(1) - keep) * latest)
    assert [*core.earlier_range(np.zeros(2, F), found, 0.9)] == [-1.5, F(0.3)]
    assert [*core.mirrored(core.Range(-3, 2))] == [-3, 3] and [*core.mirrored(core.Range(1, 2))] == [-2, 2]
    columns = values("normal", 77)
    expected = keep * np.ones(77, F) + (F(1) - keep) * columns
    held = np.ones(77, F)
    core.average(held, columns, 0.9)
    assert same(held, expected)


# ---- channels --------------------------------------------------


def coded(x: np.ndarray) -> np.ndarray:
    """x as 255 codes between its least and its largest value represent it."""
    low, high = float(x.min()), float(x.max())
    step = float(F((high - low) / 254))
    q = core.quantize(x - F(low), float(F(1 / step)) if step > 1e-38 else 0.0, zero=-127)
    return core.dequantize(q, step, zero=-127) + F(low)


@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
@pytest.mark.parametrize("shape", SHAPES)
def test_range_normalization(shape: tuple[int, int], kind: str) -> None:
    (rows, cols), x, dy = shape, values(kind, shape), values("normal", shape, 1)
    chunks = next(c for c in (7, 5, 4, 3, 1) if rows % c == 0)
    gamma, beta = values("normal", cols, 2), values("normal", cols, 3)
    running, keep, factor, eps = [np.ones(cols, F), np.ones(cols, F)], F(0.9), F(0.3), F(1e-5)
    y, saved = core.range_norm_forward(x, gamma, beta, *running, eps=1e-5, keep=0.9, factor=0.3, chunks=chunks)
    parts = x.reshape(chunks, -1, cols)
    where = [pick(parts, 1)[:, None] for pick in (np.argmax, np.argmin)]
    high, low = (np.ascontiguousarray(np.take_along_axis(parts, index, 1)[:, 0]) for index in where)
    mean = core.column_sums(x) / F(rows)
    deviation = (core.column_sums(high) - core.column_sums(low)) / F(chunks) * factor
    for held, batch in zip(running, (mean, deviation), strict=True):
        assert same(held, keep * np.ones(cols, F) + (F(1) - keep) * batch)
    scale = F(1) / (deviation + eps)
    assert same(saved.centered, x - mean)
    assert same(y, core.affine(x - mean, coded(scale) * coded(gamma), coded(beta)))
    dx, dgamma, dbeta = core.range_norm_backward(saved, dy)
    products = core.column_sums(dy * saved.centered)
    assert same(dgamma, products * coded(scale)) and same(dbeta, core.column_sums(dy))
    expected = dy * (coded(gamma) * coded(scale))
    expected -= core.column_sums(expected) / F(rows)
    share = products * coded(gamma) * -(scale * scale) * factor / F(chunks)
    of_chunks = expected.reshape(parts.shape)
    for index, change in zip(where, (share, -share), strict=True):
        np.put_along_axis(of_chunks, index, np.take_along_axis(of_chunks, index, 1) + change, 1)
    assert same(dx, expected)
    y, _ = core.range_norm_forward(x, gamma, beta, mean, deviation, eps=1e-5, keep=0.9, factor=0.3, chunks=0)
    assert same(y, core.affine(x - mean, coded(scale) * coded(gamma), coded(beta))), "with the running statistics"


@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
@pytest.mark.parametrize("shape", SHAPES)
def test_channel_clips(shape: tuple[int, int], kind: str) -> None:
    (rows, cols), dy = shape, values(kind, shape)
    dy[:, ::2] *= F(1e-3)
    dy[:, ::3] = dy[:, ::3] ** 3
    clip, limit = np.random.default_rng(1).choice(np.array([0, 0.5], F), cols), rows // 4
    before = clip.copy()
    scales, inverses = core.channel_clips(dy, core.value_range(dy), clip, most_beyond=limit, keep=0.2, share=0.8)
    magnitude = np.abs(dy)
    most, largest = magnitude.max(0), float(magnitude.max())
    scaled = magnitude / F(largest if largest > 1e-30 else 1.0)
    sigma = np.sqrt(core.column_sums(scaled * scaled) / F(rows))
    gaussian = (scaled > sigma).sum(0) > limit
    assert same(clip, np.where(gaussian | (before == 0), most, F(0.2) * before + F(0.8) * most))
    assert same(scales, clip / F(127))
    assert same(inverses, np.array([F(1 / float(s)) if s > 1e-38 else 0 for s in scales], F))


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_of_rows(shape: tuple[int, int], kind: str) -> None:
    x = values(kind, shape)
    q, real, scales = core.quantize_rows(x)
    scale = np.abs(x).max(axis=1) / F(127)
    inverse = np.where(scale > 1e-38, 1 / np.maximum(scale, F(1e-38)), 0).astype(F)
    assert same(scales, scale)
    with np.errstate(over="ignore"):
        assert same(q, np.clip(np.rint(x * inverse[:, None]), -127, 127).astype(np.int8)) and same(real, q * scale[:, None])
    acc = np.random.default_rng(0).integers(-(2**24) + 1, 2**24, shape).astype(np.int32)
    with np.errstate(over="ignore"):
        assert same(core.dequantize_channels(acc, scales, core.scalar(0.3)), acc.astype(F) * (scales * F(0.3))[:, None])
        assert same(core.dequantize_channels(acc[:, 0].copy(), scales), acc[:, 0].astype(F) * scales)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("zero", [-127, 0, 5])
@pytest.mark.parametrize("kind", ["normal", "ties", "extreme", "zero"])
def test_folded_bias(kind: str, zero: int, channels: bool) -> None:
    bias, sums = values(kind, 33), np.random.default_rng(1).integers(-(2**20), 2**20, 33).astype(np.int32)
    scales = np.abs(values("normal", 33, 2)) * (np.arange(33) % 5 > 0) if channels else core.scalar(0.01)
    add, made, rest = core.fold_channel_bias(bias, scales, 0.02, sums, zero)
    scale = (scales if channels else np.array([0.01], F)) * F(0.02)
    with np.errstate(over="ignore"):
        found = np.rint(bias / np.where(scale > 0, scale, F(1)))
    left = np.where(scale > 0, np.abs(found) > 2**30, True)
    assert same(add, np.where(left, 0, found).astype(np.int32) - np.int32(zero) * sums)
    assert same(made, scale) if channels else float(made) == scale[0]
    assert same(rest[:33], np.where(left, bias, F(0.0 if channels else -0.0)))
    assert channels or rest[33] == left.any()


def test_ends_and_rates() -> None:
    assert [*core.code_ends(core.scalar(0.03), -20)] == [F(0.03) * F(-107), F(0.03) * F(147)]
    for deviation in (0.0, 0.05, 0.5, 4.0):
        factor = float(core.exp(np.array([F(-20) * F(deviation)], F))[0])
        assert float(core.counteract(0.3, core.scalar(deviation), -20.0, 0.1)) == 0.3 * max(factor, 0.1)


# ---- integers --------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_codes_of_layers(size: int) -> None:
    x, y, dy = codes(size), codes(size, 1), codes(size, 2)
    assert same(core.relu_codes(x), np.maximum(x, np.int8(0)))
    assert same(core.relu_codes_backward(y, dy), dy * (y > 0)) and same(core.copy_codes(x), x)
    words = core.philox(size, 1, 2, 3)
    images = np.stack([x, y, dy])
    for doublings in (1, 3, 16):
        assert same(core.dropout_codes(images, doublings, (1, 2, 3)), images * (words >> np.uint32(32 - doublings) == 0))
    pixels = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    assert same(core.images_as_codes(pixels, 1), (pixels >> 1).view(np.int8))
    for limit in (0, 32, 127):
        assert same(core.ternary_codes(x, limit), (x > limit).astype(np.int8) - (x < -limit))
        if limit:
            moved = x.copy()
            core.subtract_codes(moved, dy, limit)
            assert same(moved, np.clip(x.astype(np.int16) - dy, -limit, limit).astype(np.int8))


@pytest.mark.parametrize("rounding", [Rounding.HALF_AWAY, Rounding.PSEUDO_STOCHASTIC, Rounding.FLOOR])
@pytest.mark.parametrize("bits", [1, 5, 7])
@pytest.mark.parametrize("largest", [0, 1, 127, 128, 255, 2**20, 2**31 - 1])
def test_narrow(largest: int, bits: int, rounding: Rounding) -> None:
    acc = np.random.default_rng(largest).integers(-largest, largest, 501, endpoint=True).astype(np.int32)
    acc[0] = -largest
    q, exponent = core.narrow(acc, bits, rounding, -3)
    shift = max(0, largest.bit_length() - bits)
    assert int(exponent) == shift - 3 and same(q, core.requantize(acc, 1, shift, rounding=rounding, low=-127))


@pytest.mark.parametrize("distance", [-60, -23, -22, -3, 0, 1, 22, 23, 2**20])
def test_aligned_sums(distance: int) -> None:
    a, b = codes(300), codes(300, 1)
    q, exponent = core.align(a, distance, b, 0)
    high, low, far = (a, b, distance) if distance >= 0 else (b, a, -distance)
    if far > 22:
        assert same(q, high) and int(exponent) == max(distance, 0)
        return
    total = (high.astype(np.int32) << far) + low
    expected, shift = core.narrow(total, 7, Rounding.HALF_AWAY, min(distance, 0))
    assert same(q, expected) and int(exponent) == int(shift)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2), (3, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("channels", [1, 6, 16, 33])
def test_pooling_of_codes(channels: int, kernel: int, stride: int) -> None:
    g = core.Pool(3, 9, 7, channels, kernel, stride)
    x, dy = codes(g.x_shape) // np.int8(9), codes(g.y_shape, 1)  # equal ones among them
    y, argmax = core.maxpool_codes(g, x)
    expected, where = core.maxpool(g, x.astype(F))
    assert same(y, expected.astype(np.int8)) and same(argmax, where)
    assert same(core.maxpool_codes_backward(g, dy, argmax), core.maxpool_backward(g, dy.astype(F), where).astype(np.int32))
    assert same(core.pixel_sums(x), x.sum((1, 2), dtype=np.int32))
    assert same(core.spread(x[:, 0, 0].copy(), 4, 5), np.broadcast_to(x[:, :1, :1], (3, 4, 5, channels)).copy())


@pytest.mark.parametrize("rate", [8.0, 3.3, 128.0, 1e-3])
@pytest.mark.parametrize("largest", [0, 1, 90, 91, 2**20, 2**31 - 1])
def test_walk(largest: int, rate: float) -> None:
    rng = np.random.default_rng(largest)
    g, w = rng.integers(-largest, largest, 3001, endpoint=True).astype(np.int32), rng.integers(-64, 65, 3001).astype(np.int8)
    g[0] = largest
    expected = w
    if largest:
        mantissa, exponent = math.frexp(largest)
        unit = math.ldexp(1.0, exponent if mantissa >= math.sqrt(0.5) else exponent - 1)
        fixed = np.rint(np.abs(g).astype(np.float64) * (rate / unit * 2**15)).astype(np.int64)
        n = (fixed >> 15) + ((core.philox(g.size, 4, 5, 6) >> np.uint32(17)) < (fixed & 32767))
        expected = np.clip(w - np.sign(g) * n, -64, 64).astype(np.int8)
    core.walk_codes(w, g, rate, 64, (4, 5, 6))
    assert same(w, expected)


@pytest.mark.parametrize("value", [1e-30, 1.1e-30, 0.3, 0.353, 0.354, 0.5, 0.7, 0.71, 1.0, 1.41, 1.42, 3.0, 3e38])
def test_direction_scale(value: float) -> None:
    most = float(F(value))
    mantissa, exponent = math.frexp(most)
    unit = math.ldexp(1.0, exponent if mantissa >= math.sqrt(0.5) else exponent - 1)
    expected = (F(1 / (2.0**-7 * unit)), F(2.0**-7 * unit)) if most > 1e-30 else (0, 0)
    for ends in ((-value, 0.0), (-value / 2, value)):
        assert tuple(map(float, core.direction_scale(core.Range(*ends), 2.0**-7))) == expected


@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (100, 10)])
def test_squared_error(shape: tuple[int, int], kind: str) -> None:
    logits, labels = values(kind, shape), np.random.default_rng(1).integers(0, shape[1], shape[0]).astype(np.int32)
    loss, gradient, correct = core.squared_error(logits, labels)
    difference = logits.copy()
    difference[np.arange(shape[0]), labels] -= F(1)
    assert float(loss) == 0.5 * math.fsum((difference.astype(np.float64) ** 2).ravel().tolist()) / shape[0]
    assert same(gradient, difference) and int(correct) == (logits.argmax(1) == labels).sum()
    assert core.squared_error(logits, labels, gradient=False)[1] is None


def test_exponents() -> None:
    for e in (-500, -120, 0, 3, 120, 500):
        assert float(core.power_of_two(e)) == 2.0 ** min(max(e, -120), 120)
    assert int(core.add_exponents(core.add_exponents(3, -5), 9)) == 7


# ---- what is refused --------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    x = np.ones((4, 5), F)
    x[2, 1] = bad
    labels = np.zeros(4, np.int32)
    for function in (
        lambda: core.levels(x, 3), lambda: core.level_weights(x, 3), lambda: core.binary_weights(x),
        lambda: core.level_errors(x, 3, (0, 0, 0)), lambda: core.image_range(x), lambda: core.squared_error(x, labels),
    ):  # fmt: skip
        with pytest.raises(core.NotFiniteError):
            function()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: core.levels(np.ones(3, F), 256), "256 steps are not 1 .. 255"),
        (lambda: core.mask(np.ones(3, F), np.ones(3, np.int8)), "inside must be a uint8 array"),
        (lambda: core.multiply(np.ones(3, F), np.ones(4, F)), r"b must have shape \(3,\)"),
        (lambda: core.narrow(np.ones(3, np.int32), 8, Rounding.FLOOR), "1 .. 7 bits, not 8"),
        (lambda: core.narrow(np.ones(3, np.int32), 7, Rounding.STOCHASTIC), "no stochastic rounding"),
        (lambda: core.narrow(np.ones(0, np.int32), 7, Rounding.FLOOR), "no elements"),
        (lambda: core.dropout_codes(np.ones((1, 3), np.int8), 17, (0, 0, 0)), "1 .. 16 doublings, not 17"),
        (lambda: core.walk_codes(np.ones(3, np.int8), np.ones(3, np.int32), 129.0, 64, (0, 0, 0)), "at most 128, not 129"),
        (lambda: core.softmax_codes_gradient(np.ones((2, 3), np.int8), 0, np.array([0, 3], np.int32), (0,) * 3),
         "label 3 of row 1"),
        (lambda: core.pixel_sums(np.ones((2, 3), np.int8)), "average pooling needs images"),
        (lambda: core.average(np.ones(3, F), core.Range(0, 1), 0.5), r"running must have shape \(2,\)"),
    ],
)
def test_refused(call, words: str) -> None:
    with pytest.raises(core.CoreError, match=words):
        call()


@pytest.mark.parametrize("size", SIZES)
def test_threads_change_nothing(size: int) -> None:
    x, g = values("normal", size), np.random.default_rng(0).integers(-1000, 1000, size).astype(np.int32)
    made, before = [], core.threads()
    for threads in (1, 3):
        core.set_threads(threads)
        w = codes(size) // np.int8(2)
        core.walk_codes(w, g, 8.0, 64, (1, 2, 3))
        made.append([core.level_errors(x.reshape(1, -1), 7, (1, 2, 3)), core.binary_weights(x), w])
    core.set_threads(before)
    assert all(same(a, b) for a, b in zip(*made, strict=True))
