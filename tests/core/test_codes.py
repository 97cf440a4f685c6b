"""Codes: every rounding by its truth table and against exact fractions, requantization, mu-law."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kit import oracle
from kit.examples import examples
from kit.mu_law import mu_product
from kit.thin import diagonal

from octosim import core
from octosim.engine import quantizers
from octosim.errors import OctosimError
from octosim.numerics import MuLaw, Requantization, Rounding, fixed_point, mu_levels, mu_tables, mu_thresholds

F = np.float32
SLOW = examples(60)
REALS = [r for r in Rounding if r.for_reals]

# ---- truth tables, by hand --------------------------------------------------

VALUES = [-2.75, -2.5, -2.25, -2.0, -1.75, -1.5, -1.25, -0.75, -0.5, -0.25, 0.0]
VALUES += [-v for v in VALUES[-2::-1]]
TRUTH = {
    Rounding.HALF_EVEN: [-3, -2, -2, -2, -2, -2, -1, -1, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3],
    Rounding.HALF_AWAY: [-3, -3, -2, -2, -2, -2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3],
    Rounding.HALF_UP: [-3, -2, -2, -2, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3],
    Rounding.FLOOR: [-3, -3, -3, -2, -2, -2, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2],
    Rounding.TOWARD_ZERO: [-2, -2, -2, -2, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2],
}
# NITI's shift by 3: the dropped bits b2 b1 b0 (of the magnitude) round up where b2 b1 > b0 0
PSEUDO_3 = {0: 0, 1: 0, 2: 1, 3: 0, 4: 1, 5: 0, 6: 1, 7: 1}
# and by 2: b1 > b0
PSEUDO_2 = {0: 0, 1: 0, 2: 1, 3: 0}


@pytest.mark.parametrize("rounding", TRUTH, ids=lambda r: r.value)
def test_truth_table(rounding: Rounding, kernels: str) -> None:
    """The same table for float32 values, for float32 scales, for a shift and for a fixed-point multiplier; and the oracle."""
    expected = np.array(TRUTH[rounding], np.int8)
    quarters = np.array([int(4 * v) for v in VALUES], np.int32)
    assert [oracle.round_fraction(Fraction(v), rounding.value) for v in VALUES] == TRUTH[rounding]
    assert np.array_equal(core.quantize(np.array(VALUES, F), 1.0, rounding=rounding), expected)
    assert np.array_equal(core.requantize_float(quarters, 0.25, rounding=rounding), expected)
    assert np.array_equal(core.requantize(quarters, 1, 2, rounding=rounding), expected)
    assert not core.requantize(quarters, 3 << 20, 22, rounding=rounding, add=-quarters).any()
    assert np.array_equal(core.requantize(quarters, 2**30, 32, rounding=rounding), expected)


def test_every_rounding_has_a_table() -> None:
    assert set(TRUTH) | {Rounding.STOCHASTIC, Rounding.PSEUDO_STOCHASTIC} == set(Rounding)


def test_pseudo_stochastic_truth_table(kernels: str) -> None:
    for shift, table in ((2, PSEUDO_2), (3, PSEUDO_3)):
        for sign in (1, -1):
            x = np.array([sign * (5 * 2**shift + low) for low in table], np.int32)
            expected = [sign * (5 + up) for up in table.values()]
            assert core.requantize(x, 1, shift, rounding=Rounding.PSEUDO_STOCHASTIC).tolist() == expected
            assert [oracle.pseudo_stochastic(int(v), shift) for v in x] == expected


def test_stochastic_rounding_is_right_on_average() -> None:
    for value in (0.25, -0.25, 3.9, -100.5, 7.0):
        codes = core.quantize(np.full(200_000, value, F), 1.0, rounding=Rounding.STOCHASTIC, random=(0, 1, 2))
        sums = np.full(200_000, int(value * 1000), np.int32)
        shifted = core.requantize(sums, *fixed_point(0.001), rounding=Rounding.STOCHASTIC, random=(0, 1, 2))
        for found in (codes, shifted):
            assert set(np.unique(found)) <= {math.floor(value), math.ceil(value)}
            assert found.mean() == pytest.approx(value, abs=0.005)


# ---- float32 to int8 --------------------------------------------------

TIES = np.arange(-300, 301).astype(F) / 2
NEAR_TIES = np.concatenate([np.nextafter(TIES, F(side)) for side in (-1e9, 1e9)])
EXTREMES = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 8388609.0, -4194303.5, 0.49999997, -0.49999997, -0.50000006], F)


@pytest.mark.parametrize("rounding", REALS, ids=lambda r: r.value)
@pytest.mark.parametrize("low, high", [(-127, 127), (-128, 127), (0, 100), (-5, -5)])
@pytest.mark.parametrize("zero", [0, -127, 127, 3])
def test_quantize(kernels: str, zero: int, low: int, high: int, rounding: Rounding) -> None:
    rng = np.random.default_rng(1)
    normal = rng.normal(0, 90, 500).astype(F)
    for x, inverse in ((TIES, 1.0), (NEAR_TIES, 1.0), (normal, 0.731), (EXTREMES, 1.0), (EXTREMES, 1e5)):
        with np.errstate(over="ignore"):
            expected = oracle.quantize(x, inverse, zero, low, high, rounding.value, core.philox(x.size, 1, 2, 3))
        found = core.quantize(x, inverse, zero=zero, low=low, high=high, rounding=rounding, random=(1, 2, 3))
        assert np.array_equal(found, expected)


@given(st.floats() | st.floats(width=32) | st.floats(3.4e38, 3.5e38))
@example(3.4028235677973366e38)
@example(-3.4028235677973362e38)
def test_scales_are_rounded_to_float32(value: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        expected = float(F(value))
    found = float(core.combined_scale(value, 1.0))
    assert found == expected or math.isnan(value) and math.isnan(found)


def _rounded(value: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(F(value))


def _inverse(scale: float) -> float:
    return _rounded(1 / scale) if scale > 1e-38 else 0.0


SIZES = [st.floats(-limit, limit, width=32) for limit in (2.0**127, 2.0, 2.0**-120)]
ENDS = st.tuples(*[st.one_of(SIZES)] * 2)


@given(ENDS.map(sorted), st.sampled_from([1.0, 0.95, 0.3, 2.0**-149]))
@example([-1.0, 1.0], 0.95)
@example([0.0, 0.0], 1.0)
def test_symmetric_codes_are_those_of_the_formula(ends: list[float], share: float) -> None:
    """In double, rounded where octosim.h says so; round() is half to even."""
    low, high = (share * end for end in ends)
    found = core.symmetric_codes(*ends, share)
    scale = _rounded(max(abs(low), abs(high)) / 127)
    inverse = _inverse(scale)
    codes = [max(-127, min(127, round(_rounded(_rounded(end) * inverse)))) for end in (low, high)]
    assert [float(found.scale), float(found.inverse), int(found.zero)] == [scale, inverse, 0]
    assert [int(found.low), int(found.high)] == codes


@given(ENDS.map(sorted))
@example([0.0, 0.0])
@example([3.0, 5.0])
@example([-7.0, -2.0])
def test_asymmetric_codes_are_those_of_the_formula(ends: list[float]) -> None:
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    found = core.asymmetric_codes(*ends)
    scale = _rounded((high - low) / 254)
    inverse = _inverse(scale)
    zero = max(-127, min(127, round(-127 - low * inverse))) if inverse else 0
    assert [float(found.scale), float(found.inverse), int(found.zero)] == [scale, inverse, zero]
    assert [int(found.low), int(found.high)] == [-127, 127]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40), st.integers(-128, 127))
def test_zero_term_is_modulo_2_to_the_32(sums: list[int], zero: int) -> None:
    expected = np.array([-zero * value for value in sums], np.int64).astype(np.int32)
    assert np.array_equal(core.zero_point_correction(np.array(sums, np.int32), zero), expected)


@given(st.lists(ENDS.map(sorted), min_size=1, max_size=5))
def test_ranges_follow_and_join(all_ends: list[list[float]]) -> None:
    ranges = [core.Range(*ends) for ends in all_ends]
    lows, highs = zip(*all_ends, strict=True)
    out = core.Range(9, 9)
    assert core.join_ranges(ranges, out) is out and tuple(out) == (min(lows), max(highs))
    running, expected = np.zeros(2, F), np.zeros(2, F)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for one, ends in zip(ranges, all_ends, strict=True):
            core.ema_range(running, one, 0.1)
            now = np.array(ends, F)
            expected = expected + F(0.1) * (now - expected) if expected.any() else now
            assert running.tobytes() == expected.astype(F).tobytes() or not np.isfinite(expected).all()


def test_copy() -> None:
    for size in (1, 5, 16384, 40001):
        x = np.random.default_rng(size).normal(size=size).astype(F)
        out = np.zeros_like(x)
        assert core.copy(x, out=out) is out and np.array_equal(out, x)


@given(st.floats(-3e38, 3e38), st.floats(-3e38, 3e38), st.floats(-1.5, 1.5))
def test_symmetric_clips_to_the_range_then_rounds(a: float, b: float, middle: float) -> None:
    low, high = min(a, b), max(a, b)
    with np.errstate(over="ignore", under="ignore"):
        x = (np.array([low, high, middle * low, middle * high, 0.0])).astype(F)
        x = np.clip(x, F(-3e38), F(3e38))
        q = quantizers.symmetric(x, low, high)
        expected = np.rint(np.clip(x, F(low), F(high)) * F(quantizers.reciprocal(q.scale)))
    assert q.q.tolist() == np.clip(expected, -127, 127).tolist()


def test_quantize_refuses() -> None:
    x = np.zeros(3, F)
    with pytest.raises(core.CoreError, match="needs random"):
        core.quantize(x, 1.0, rounding=Rounding.STOCHASTIC)
    with pytest.raises(core.CoreError, match="pseudo-stochastic rounding is defined for integers"):
        core.quantize(x, 1.0, rounding=Rounding.PSEUDO_STOCHASTIC)
    with pytest.raises(core.CoreError, match="do not fit in int8"):
        core.quantize(x, 1.0, low=-129)


# ---- int32 to int8 --------------------------------------------------

INT32 = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-300, 300),
    st.builds(lambda m, e, d: m * 2**e + d, st.integers(-255, 255), st.integers(0, 22), st.integers(-1, 1)),
)


def expected_codes(acc, add, scales, rounding, zero, low, high, words, gemmlowp=None):  # type: ignore[no-untyped-def]
    """Codes by exact fractions; scales: Fraction a column, or gemmlowp's (multiplier, shift)."""
    made = []
    for i, row in enumerate(acc):
        for c, value in enumerate(row):
            x = oracle.wrap32(int(value) + int(add[c]))
            if gemmlowp is not None:
                code = oracle.gemmlowp(x, *gemmlowp[c])
            elif rounding is Rounding.PSEUDO_STOCHASTIC:
                code = oracle.pseudo_stochastic(x, int(math.log2(scales[c].denominator)))
            else:
                code = oracle.round_fraction(x * scales[c], rounding.value, int(words[i * len(row) + c]))
            made.append(min(max(code + zero, low), high))
    return np.array(made, np.int8).reshape(acc.shape)


@SLOW
@given(data=st.data())
@pytest.mark.parametrize("rounding", [*Rounding, Requantization.GEMMLOWP], ids=lambda r: r.value)
def test_requantize(kernels: str, rounding: Rounding | Requantization, data: st.DataObject) -> None:
    cols = data.draw(st.integers(1, 5))
    acc = np.array(data.draw(st.lists(st.lists(INT32, min_size=cols, max_size=cols), min_size=1, max_size=12)), np.int32)
    add = np.array(data.draw(st.lists(INT32, min_size=cols, max_size=cols)), np.int32)
    integers_only = rounding in (Rounding.PSEUDO_STOCHASTIC, Requantization.GEMMLOWP)
    shift = np.array(data.draw(st.lists(st.integers(0, 31 if integers_only else 62), min_size=cols, max_size=cols)), np.int32)
    magnitudes = INT32.map(lambda v: abs(v) % 2**31)
    multiplier = np.array(data.draw(st.lists(magnitudes, min_size=cols, max_size=cols)), np.int32)
    if rounding is Rounding.PSEUDO_STOCHASTIC:
        multiplier[:] = 1
    zero, low = data.draw(st.integers(-128, 127)), data.draw(st.integers(-128, 0))
    random = (1, 2, 3)
    words = core.philox(acc.size, *random)
    scales = [Fraction(int(m), 2 ** int(t)) for m, t in zip(multiplier, shift, strict=True)]
    pairs = list(zip(multiplier.tolist(), shift.tolist(), strict=True)) if rounding is Requantization.GEMMLOWP else None
    expected = expected_codes(acc, add, scales, rounding, zero, low, 127, words, pairs)
    found = core.requantize(acc, multiplier, shift, rounding=rounding, add=add, zero=zero, low=low, random=random)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("rounding", REALS, ids=lambda r: r.value)
@pytest.mark.parametrize("shape", [(1, 1), (700, 3), (40, 130), (9, 600), (3, 2500)])
def test_requantize_float(kernels: str, shape: tuple[int, int], rounding: Rounding) -> None:
    """Per channel, and slices of words: the definition is the float32 product, then `quantize`."""
    rng = np.random.default_rng(shape[0])
    acc, add = rng.integers(-(2**31), 2**31, shape).astype(np.int32), rng.integers(-1000, 1000, shape[1]).astype(np.int32)
    scale = (2.0 ** -rng.uniform(20, 34, shape[1])).astype(F)
    with np.errstate(over="ignore"):
        product = (acc + add).astype(F) * scale
    words = core.philox(acc.size, 4, 5, 6).reshape(shape)
    expected = oracle.quantize(product, 1.0, 3, -128, 127, rounding.value, words)
    found = core.requantize_float(acc, scale, rounding=rounding, add=add, zero=3, random=(4, 5, 6))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(700, 3), (40, 130), (9, 600), (3, 2500)])
def test_stochastic_requantization_does_not_depend_on_slices(shape: tuple[int, int], each_isa: list[tuple[str, int]]) -> None:
    """Words belong to elements: 1,024 at a time they start in the middle of a Philox block."""
    rng = np.random.default_rng(2)
    acc = rng.integers(-(2**24), 2**24, shape).astype(np.int32)
    words, scale = core.philox(acc.size, 4, 5, 6), Fraction(77777, 2**30)
    expected = [oracle.round_fraction(int(v) * scale, "stochastic", int(w)) for v, w in zip(acc.flat, words, strict=True)]
    expected = np.clip(expected, -128, 127).reshape(shape)
    for isa, threads in each_isa:
        core.set_isa(isa)
        core.set_threads(threads)
        for multiplier in (77777, np.full(shape[1], 77777, np.int32)):
            found = core.requantize(acc, multiplier, 30, rounding=Rounding.STOCHASTIC, random=(4, 5, 6))
            assert np.array_equal(found, expected)


def test_requantize_ends_of_the_range(kernels: str) -> None:
    """Largest sums, multipliers and shifts: no product or rounding term overflows."""
    acc = np.array([[-(2**31), 2**31 - 1, -1, 0, 1]], np.int32).T.copy()
    for rounding in (*REALS, Requantization.GEMMLOWP):
        for multiplier in (0, 1, 2**30 - 1, 2**30, 2**31 - 1):
            for shift in (0, 1, 2, 3, 29, 30, 31, *([] if rounding is Requantization.GEMMLOWP else [32, 33, 61, 62])):
                scale, pair = [Fraction(multiplier, 2**shift)], [(multiplier, shift)]
                pairs = pair if rounding is Requantization.GEMMLOWP else None
                words = core.philox(5, 1, 2, 3)
                expected = expected_codes(acc, [0], scale, rounding, 0, -128, 127, words, pairs)
                assert np.array_equal(core.requantize(acc, multiplier, shift, rounding=rounding, random=(1, 2, 3)), expected)


def test_requantize_against_onnxruntime() -> None:
    """QLinearMatMul: float scale, half to even, zero point; per tensor and per column."""
    ort = pytest.importorskip("onnxruntime", reason="needs the extra 'peers'")
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    from onnx import TensorProto, helper

    rng = np.random.default_rng(3)
    a, b = rng.integers(-128, 128, (64, 90)).astype(np.int8), rng.integers(-127, 128, (90, 40)).astype(np.int8)
    b_scale = rng.uniform(0.001, 0.01, 40).astype(F)
    names = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero"]
    zero = np.int8(0)
    values = [a, F(0.02), zero, b, b_scale, np.zeros(40, np.int8), F(0.05), np.int8(-7)]
    node = helper.make_node("QLinearMatMul", names, ["y"])
    initializers = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names[1:], values[1:], strict=True)]
    x_info, y_info = (helper.make_tensor_value_info(n, TensorProto.INT8, None) for n in ("a", "y"))
    graph = helper.make_graph([node], "g", [x_info], [y_info], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scale = F(0.02) * b_scale / F(0.05)
    found = core.requantize_float(core.gemm(a, b), scale, zero=-7)
    assert np.array_equal(found, session.run(None, {"a": a})[0])


@pytest.mark.parametrize("how", Requantization, ids=lambda h: h.value)
def test_quant_requantize(how: Requantization) -> None:
    """Real scales, per tensor and per channel: within one code of the exact result (ties and the multiplier's 31 bits)."""
    rng = np.random.default_rng(4)
    acc = rng.integers(-(2**20), 2**20, (50, 7)).astype(np.int32)
    scales = 2.0 ** -rng.integers(12, 16, 7) if how is Requantization.POWER_OF_TWO else rng.uniform(1e-5, 1e-4, 7)
    for scale in (scales, float(scales[0])):
        found = quantizers.requantize(acc, scale, how, zero=2)
        exact = acc * np.asarray(scale) + 2
        assert np.abs(found - np.clip(exact, -128, 127)).max() <= 0.5 + 1e-3


def test_quant_requantize_refuses() -> None:
    acc = np.ones((2, 3), np.int32)
    for scale in (1.0, 3.0):
        with pytest.raises(OctosimError, match="scales below 1"):
            quantizers.requantize(acc, scale, Requantization.GEMMLOWP)
    with pytest.raises(OctosimError, match="two roundings"):
        quantizers.requantize(acc, 0.5, Requantization.GEMMLOWP, Rounding.FLOOR)
    with pytest.raises(OctosimError, match="power-of-two"):
        quantizers.requantize(acc, 0.3, Requantization.POWER_OF_TWO)
    with pytest.raises(OctosimError, match="must be in 0 .. 2"):
        quantizers.requantize(acc, -0.3, Requantization.SINGLE_ROUNDING)
    with pytest.raises(OctosimError, match="pseudo-stochastic"):
        quantizers.requantize(acc, 0.3, Requantization.SINGLE_ROUNDING, Rounding.PSEUDO_STOCHASTIC)
    with pytest.raises(core.CoreError, match="columns"):
        core.requantize(acc, np.ones(3, np.int32), 1, add=np.ones(2, np.int32))
    with pytest.raises(core.CoreError, match="expected 4 columns"):
        core.requantize(acc, np.ones(4, np.int32), 1)
    with pytest.raises(core.CoreError, match="shift 63"):
        core.requantize(acc, 1, 63)
    with pytest.raises(core.CoreError, match="negative"):
        core.requantize(acc, -1, 3)
    with pytest.raises(core.CoreError, match="integers below"):
        core.requantize(acc, 2**31, 3)


@given(scale=st.floats(1e-12, 2**31 - 1))
def test_fixed_point(scale: float) -> None:
    multiplier, shift = fixed_point(scale)
    assert 0 <= multiplier < 2**31 and 0 <= shift <= 62
    assert abs(Fraction(multiplier, 2**shift) - Fraction(scale)) <= Fraction(1, 2 ** (shift + 1))
    assert multiplier >= 2**30 or shift == 62


def test_sum_range(kernels: str) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 63, 64, 16385, 50_000):
        acc = rng.integers(-(2**31), 2**31, n).astype(np.int32)
        assert core.sum_range(acc) == (acc.min(), acc.max())
    with pytest.raises(core.CoreError, match="no elements"):
        core.sum_range(np.zeros(0, np.int32))


# ---- NITI's traps (algorithms.md 5.6) --------------------------------------------------


def test_pseudo_stochastic_division_truncates(kernels: str) -> None:
    """Floor division in the published formula biases negative sums by nearly one code; truncation does not."""
    rng = np.random.default_rng(5)
    for shift, most in ((2, 0.13), (3, 0.07), (4, 0.1), (5, 0.03), (6, 0.06), (8, 0.03)):
        acc = -rng.integers(0, 100 << shift, 100_000).astype(np.int32)
        found = core.requantize(acc, 1, shift, rounding=Rounding.PSEUDO_STOCHASTIC, low=-128)
        assert abs(np.mean(found - acc / 2**shift)) < most
        floored = acc // 2**shift
        dropped = np.abs(acc - floored * 2**shift)
        high = dropped // 2 ** (shift // 2)
        low = (dropped - high * 2 ** (shift // 2)) * (2 if shift % 2 else 1)
        wrong = floored + np.where(high > low, -1, 0)
        assert np.mean(wrong - acc / 2**shift) < -0.6


def test_sums_that_pass_through_are_clipped(kernels: str) -> None:
    """A largest sum of exactly 128 needs no shift by ceil(log2 128) = 7 bits, and must become 127, not -128."""
    acc = np.array([128, -128, 127, 5], np.int32)
    for rounding in (Rounding.HALF_AWAY, Rounding.PSEUDO_STOCHASTIC):
        assert core.requantize(acc, 1, 0, rounding=rounding, low=-127).tolist() == [127, -127, 127, 5]


# ---- mu-law --------------------------------------------------


@pytest.mark.parametrize("mu", [1, 15, 255, 65535])
def test_mu_law_codes(kernels: str, mu: int) -> None:
    codes = np.array([m | s for s in (0, 128) for m in range(128) if m or not s], np.uint8)
    values = core.decode_mu8(codes, 3.0, mu=mu)
    assert np.all(values[128:] == -values[1:128]) and values[0] == 0 and np.all(np.diff(values[:128]) > 0)
    again, clipped = core.encode_mu8(values, 3.0, mu=mu)
    assert np.array_equal(again, codes) and clipped == 0
    rng = np.random.default_rng(mu)
    x = (rng.uniform(-1.2, 1.2, 40_000) * 10.0 ** rng.uniform(-4, 0, 40_000)).astype(F)
    found, clipped = core.encode_mu8(x, 1.0, mu=mu)
    companded = 127 * np.log1p(mu * np.abs(x.astype(np.float64))) / np.log1p(mu)
    near_border = np.abs(companded % 1 - 0.5) < 1e-4
    expected = np.minimum(np.floor(companded + 0.5), 127).astype(np.uint8)
    expected |= np.where((x < 0) & (expected > 0), 128, 0).astype(np.uint8)
    assert np.array_equal(found[~near_border], expected[~near_border]) and near_border.mean() < 0.01
    assert clipped == np.count_nonzero(np.abs(x) > 1)


def test_mu_law_constants() -> None:
    """algorithms.md 2.4: the smallest magnitude and the step near 1 for mu = 255; borders lie between levels."""
    levels, thresholds = mu_levels(255), mu_thresholds(255)
    assert levels[1] == pytest.approx(1.75e-4, rel=2e-3) and levels[127] == 1
    assert levels[127] / levels[126] - 1 == pytest.approx(0.0446, abs=3e-4)
    assert all(levels[m - 1] < thresholds[m] < levels[m] for m in range(1, 128))


MU_LAWS = [MuLaw(headroom=h, group=g) for h in (-8, -3, 0, 4, 5, 16) for g in (1, 2, 16, 17, 32)]


@pytest.mark.parametrize("how", MU_LAWS, ids=str)
def test_mu_tables(how: MuLaw) -> None:
    """What the C kernel relies on for not overflowing."""
    decode, level, threshold = mu_tables(how)
    assert max(decode) == 8191 and min(decode) == -8191 and decode[127] == 8191 and decode[255] == -8191
    assert 0 < level[1] and max(level) <= 2**30 and how.group * 8191**2 / 2**how.shift <= 2**30
    assert all(level[m - 1] < threshold[m] <= level[m] for m in range(1, 128))


@pytest.mark.parametrize(("group", "headroom", "encode"), diagonal([1, 3, 16, 32], [-2, 0, 4, 7], [False, True]))
def test_gemm_mu8(kernels: str, group: int, headroom: int, encode: bool) -> None:
    how = MuLaw(headroom=headroom, group=group, encode_products=encode)
    rng = np.random.default_rng(group)
    for shape, extreme in (((3, 70, 5), False), ((2, 33, 67), False), ((1, 40, 2), True)):
        m, k, n = shape
        a, b = (rng.integers(0, 256, s).astype(np.uint8) for s in ((m, k), (k, n)))
        if extreme:
            a, b = a | 127, b | 127
        expected, saturated = mu_product(a, b, how)
        found, count = core.gemm_mu8(a, b, how)
        assert np.array_equal(found, expected) and count == saturated


def test_gemm_mu8_approaches_the_product() -> None:
    """With blocks of 32 and enough headroom the codes stand for the real product, to mu-law's 4.5 % steps."""
    rng = np.random.default_rng(8)
    x, w = rng.normal(0, 0.2, (20, 64)).astype(F), rng.normal(0, 0.2, (64, 30)).astype(F)
    (qx, _), (qw, _) = core.encode_mu8(x, 1.0), core.encode_mu8(w, 1.0)
    how = MuLaw(headroom=2, group=32, encode_products=False)
    codes, saturated = core.gemm_mu8(qx, qw, how)
    product = core.decode_mu8(codes, 4.0)
    assert saturated == 0 and np.abs(product - x @ w).max() < 0.06 * np.abs(x @ w).max()
    strict = core.gemm_mu8(qx, qw, MuLaw(headroom=-3, group=1))
    assert strict[1] > 0  # an eighth of full scale overflows


def test_mu_law_refuses() -> None:
    for change, words in ((dict(mu=0), "mu-law mu"), (dict(headroom=17), "headroom"), (dict(group=33), "group")):
        with pytest.raises(OctosimError, match=words):
            MuLaw(**change)
    with pytest.raises(core.CoreError, match="bound above 0"):
        core.encode_mu8(np.zeros(3, F), 0.0)
    with pytest.raises(core.CoreError, match="needs"):
        core.gemm_mu8(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8), MuLaw())


def test_names_of_presets_are_not_called_arrays():
    codes = np.ones((2, 3), np.int8)
    with pytest.raises(core.CoreError, match="^gemm: accumulator is of type str, expected octosim.numerics.Accumulator$"):
        core.gemm(codes, codes, transpose_b=True, accumulator="acc16")
    with pytest.raises(core.CoreError, match="^quantize: rounding is of type str, expected octosim.numerics.Rounding$"):
        core.quantize(np.ones(3, np.float32), 1.0, rounding="floor")
    with pytest.raises(core.CoreError, match="rounding is 'gemmlowp', expected octosim.numerics.Rounding or Requantiz"):
        core.requantize(np.ones((2, 3), np.int32), 1, 1, rounding="gemmlowp")


@pytest.mark.parametrize("count", [3, 12])
def test_scales_and_addends_of_another_number_of_columns_are_refused(count):
    """Their number divides that of the sums: they were repeated along the rows."""
    acc = np.ones((4, 6), np.int32)
    with pytest.raises(core.CoreError, match=rf"acc has the shape \(4, 6\), expected {count} columns"):
        core.requantize(acc, 1, 1, add=np.zeros(count, np.int32))
    with pytest.raises(core.CoreError, match=f"expected {count} columns"):
        core.requantize_float(acc, np.ones(count, np.float32))


@pytest.mark.parametrize("given", [[1.0, 2.0], (1.0,), None, 1.0])
def test_what_is_no_array_is_called_by_its_type(given):
    """A notebook's first try: not the words of Python about an attribute."""
    with pytest.raises(core.CoreError, match=f"a NumPy array is expected in place of a value of type {type(given).__name__}$"):
        core.quantize(given, 1.0)
