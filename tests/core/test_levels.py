"""Fits of few levels, Newton steps and codes in two parts against NumPy, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from kit import few_levels as reference

from octosim import core
from octosim.numerics import Rounding, power

F = np.float32
SIZES = (1, 2, 3, 64, 257, 20_001, 140_000)


def tensors(kind: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and curvature: normal; few values, among them zeros of both signs; tiny; zeros."""
    rng = np.random.default_rng(size)
    d = rng.uniform(1e-8, 3, size).astype(F)
    if kind == "normal":
        return rng.normal(0, 0.4, size).astype(F), d
    if kind == "ties":
        return rng.choice(np.array([-0.5, -0.25, -0.0, 0.0, 0.25, 0.5], F), size), np.ones(size, F)
    if kind == "tiny":
        return (rng.normal(size=size) * 1e-44).astype(F), d
    return np.zeros(size, F), d


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("bits", "exact"), [(1, False), (2, False), (2, True), (3, False), (4, False), (8, False)])
@pytest.mark.parametrize("kind", ["normal", "ties", "tiny", "zeros"])
@pytest.mark.parametrize("size", SIZES)
def test_fits(size: int, kind: str, bits: int, exact: bool) -> None:
    w, d = tensors(kind, size)
    codes, alpha, changes = np.zeros(size, np.int8), np.zeros(1, F), np.zeros(1, np.int64)
    before, expected_changes = codes.copy(), 0
    for _ in range(2):  # from nothing, then from codes
        core.fit_levels(w, d, codes, alpha, changes, bits=bits, exact=exact)
        with np.errstate(all="ignore"):
            expected, scale = reference.fit(w, d, bits, exact, before)
        expected_changes += np.count_nonzero(expected != before)
        assert same(codes, expected) and same(alpha, np.array([scale], F)) and changes[0] == expected_changes
        before = expected
    levels = 1 if bits == 1 else 2 ** (bits - 1) - 1
    assert same(core.level_values(codes, alpha, levels, out=np.empty(size, F)), codes * (alpha[0] / F(levels)))


@pytest.mark.parametrize("size", SIZES)
def test_turned(size: int) -> None:
    rng = np.random.default_rng(size)
    w, before = rng.normal(0, 1, size).astype(F), rng.normal(0, 0.5, size).astype(F)
    before[::3] = np.clip(w[::3], -1, 1)
    sign, count = rng.integers(-1, 2, size).astype(np.int8), np.array([5], np.int64)
    now = np.clip(w, F(-1), F(1))
    change = np.sign(now - before).astype(np.int8)
    expected = 5 + np.count_nonzero(change * sign < 0), np.where(change, change, sign)
    core.count_reversals(before, w, sign, count)
    assert same(w, now) and same(sign, expected[1]) and count[0] == expected[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1, 2, 777, 2**31 + 5])
def test_newton_steps(size: int, step: int) -> None:
    rng = np.random.default_rng(size)
    w, g, m = (rng.normal(size=size).astype(F) for _ in range(3))
    v, decay = rng.uniform(0, 1, size).astype(F), F(0.1)
    direction, curvature, first, second = (np.empty(size, F) for _ in range(4))
    core.newton_sgd(w, g, m, momentum=0.9, decay=0.1, direction=direction, curvature=curvature, after=first)
    expected = F(0.9) * m + (g + decay * w)
    assert same(direction, expected) and same(first, expected) and same(curvature, np.ones(size, F))
    c1, c2 = (core.bias_correction(core.step_number(step - 1), 1, base) for base in (0.9, 0.999))
    assert (float(c1), float(c2)) == (1 - power(0.9, step), 1 - power(0.999, step))
    core.newton_adam(w, g, m, v, b1=0.9, b2=0.999, eps=1e-7, c1=c1, c2=c2, decay=0.1, direction=direction,
                     curvature=curvature, m_after=first, v_after=second)  # fmt: skip
    grad = g + decay * w
    after_m, after_v = F(0.9) * m + (F(1) - F(0.9)) * grad, F(0.999) * v + (F(1) - F(0.999)) * (grad * grad)
    assert same(first, after_m) and same(second, after_v) and same(direction, after_m / F(float(c1)))
    assert same(curvature, np.sqrt(after_v / F(float(c2))) + F(1e-7))
    assert same(core.newton_move(w, direction, curvature, 0.05, out=np.empty(size, F)), w - F(0.05) * direction / curvature)
    assert same(core.blend(g, m, 0.6, out=m.copy()), F(0.6) * g + F(1 - 0.6) * m)
    only = np.empty(size, F)
    core.newton_adam(w, g, m, v, b1=0.9, b2=0.999, eps=1e-7, c1=c1, c2=c2, decay=0.1, curvature=only)
    assert same(only, curvature)


# ---- codes in two parts --------------------------------------------------


def values(kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    if kind == "normal":
        return rng.normal(size=size).astype(F)
    if kind == "positive":
        return rng.uniform(1000, 1001, size).astype(F)
    if kind == "ties":
        return (rng.integers(-510, 511, size) / 2).astype(F)
    return np.zeros(size, F)


def codes_of(parts: core.Parts) -> np.ndarray:
    assert np.abs(parts.low.astype(int)).max() <= 127 and np.abs(parts.high.astype(int)).max() <= 127
    return 255 * parts.high.astype(np.int64) + parts.low


@pytest.mark.parametrize("kind", ["normal", "positive", "ties", "zeros"])
@pytest.mark.parametrize("size", SIZES)
def test_parts(size: int, kind: str) -> None:
    x = values(kind, size)
    for rounding, stream in ((Rounding.HALF_EVEN, None), (Rounding.STOCHASTIC, (7, 3, 5))):
        made = core.forward_parts(x, rounding, stream)
        expected, scale = reference.forward_codes(x, core.philox(size, *stream) if stream else None)
        assert np.array_equal(codes_of(made), expected) and float(made.scale) == scale
    for ratio, with_zero in ((1.0, False), (0.95, False), (0.95, True)):
        made = core.backward_parts(x, ratio, with_zero)
        expected, scale = reference.backward_codes(x, ratio, with_zero)
        assert np.array_equal(codes_of(made), expected) and float(made.scale) == scale
    expected, scale = reference.backward_codes(x, 1.0)
    assert same(core.backward_values(x), (expected * scale).astype(F))


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 17), (700, 33), (5, 20_000)])
def test_parts_are_combined(rows: int, cols: int) -> None:
    rng = np.random.default_rng(rows)
    sums = [rng.integers(-(2**31), 2**31, (rows, cols)).astype(np.int32) for _ in range(4)]
    bias, scales = rng.normal(size=cols).astype(F), (core.number64(1e-3), core.number64(0.7e-4))
    low, one, other, high = (each.astype(np.int64) for each in sums)
    exact = (one + other + 255 * high) * 255 + low
    out = core.combine_parts(sums, *scales, out=np.empty((rows, cols), F))
    assert same(out, (exact * (1e-3 * 0.7e-4)).astype(F))
    out = core.combine_parts(sums, *scales, bias, out=np.empty((rows, cols), F))
    assert same(out, (exact * (1e-3 * 0.7e-4) + bias).astype(F))


def test_small_maps() -> None:
    rng = np.random.default_rng(0)
    alpha, (mu, offset, y) = rng.normal(size=(5, 7)).astype(F), rng.normal(size=(3, 40, 5, 7)).astype(F)
    expected = y + (alpha * mu + offset)
    assert same(core.compensate(alpha, mu, offset, y), expected)
    x = np.append(rng.normal(size=20_000), [0.0, -0.0]).astype(F)
    assert same(core.scale(x, 0.3, out=x.copy()), x * F(0.3))
    most = np.array([4], np.int32)
    core.raise_to(most, 3)
    core.raise_to(most, 9)
    assert most[0] == 9
    with pytest.raises(core.CoreError):
        core.compensate(alpha, mu[:3], offset, y)
    with pytest.raises(core.NotFiniteError):
        core.forward_parts(np.array([np.nan], F), Rounding.HALF_EVEN)
