"""Every function of the core that is no matrix product, against slow definitions and independent libraries."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from kit import oracle
from kit.examples import examples

from octosim import core

F = np.float32
SLOW = examples(40)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def torch_module():
    return pytest.importorskip("torch", reason="needs the extra 'peers'")


# ---- randomness and elementary functions --------------------------------------------------

# Known-answer vectors of Random123 (Salmon et al., SC'11): counter, key, output of Philox4x32-10.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    c, k, e = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert oracle.philox(tuple(c), tuple(k)) == e
    if c[1] == 0:  # the stream reaches counters from block 0 on
        assert core.philox(4, k[1] << 32 | k[0], step=c[3], tensor=c[2]).tolist() == e


def test_oracle_against_numpys_philox() -> None:
    """NumPy has the 64-bit Philox: the same rounds with other constants.  It counts before it makes a block."""
    key, start = (0x0123456789ABCDEF, 0xFEDCBA9876543210), (2**64 - 2, 5, 0, 2**63)
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(start, np.uint64))
    expected = [int(word) for word in bits.random_raw(12)]
    counters = [(2**64 - 1, 5, 0, 2**63), (0, 6, 0, 2**63), (1, 6, 0, 2**63)]
    assert [word for counter in counters for word in oracle.philox(counter, key, 64)] == expected


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 255, 256, 257, 1030])
def test_philox_stream(kernels: str, n: int) -> None:
    seed, step, tensor = 0x0123456789ABCDEF, 0xFFFFFFFF, 77
    assert np.array_equal(core.philox(n, seed, step, tensor), oracle.philox_words(n, seed, step, tensor))


def test_philox_does_not_depend_on_slices(kernels: str) -> None:
    long = core.philox(200_000, 5, 6, 7)
    for n in (16383, 16384, 16385, 100_001):
        assert np.array_equal(core.philox(n, 5, 6, 7), long[:n])


def test_normal(kernels: str) -> None:
    n = 50_000
    z = core.normal((n,), 3, 9, 1.0)
    words = core.philox(n, 3, 0, 9)
    exact = np.array([statistics.NormalDist().inv_cdf((int(w) + 0.5) / 2**32) for w in words[:3000]])
    assert np.abs(z[:3000] - exact).max() < 2e-6
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.01
    shifted = core.normal((n,), 3, 9, 0.5, mean=2.0)
    assert np.array_equal(shifted, F(2.0) + F(0.5) * z)


def ulps(found: np.ndarray, exact: np.ndarray) -> float:
    return float((np.abs(found.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(F))).max())


def test_exp_and_log_are_within_two_ulps(kernels: str) -> None:
    x = np.concatenate([np.linspace(-87, 87, 400_001), np.linspace(-1e-3, 1e-3, 10_001)]).astype(F)
    assert ulps(core.exp(x), np.exp(x.astype(np.float64))) < 2
    y = np.concatenate([np.exp2(np.linspace(-125, 127, 400_001)), np.linspace(0.5, 2, 200_001)]).astype(F)
    y = y[y != 1]
    assert ulps(core.log(y), np.log(y.astype(np.float64))) < 2
    assert core.log(np.ones(1, F))[0] == 0 and core.exp(np.zeros(1, F))[0] == 1


# ---- ranges and quantization --------------------------------------------------


@SLOW
@given(x=arrays(np.float32, st.integers(1, 400), elements=FINITE))
def test_range(kernels: str, x: np.ndarray) -> None:
    assert core.value_range(x) == (x.min(), x.max())


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 63, 40_000])
def test_range_refuses_what_is_no_number(kernels: str, bad: float, at: int) -> None:
    x = np.ones(40_001, F)
    x[at] = bad
    with pytest.raises(core.NotFiniteError):
        core.value_range(x)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 1000, 16384, 50_001])
def test_moments(kernels: str, n: int) -> None:
    x = (np.random.default_rng(n).normal(100, 0.5, n)).astype(F)
    mean, deviation = core.moments(x)
    assert mean == pytest.approx(x.mean(dtype=np.float64), rel=1e-6)
    assert deviation == pytest.approx(x.std(dtype=np.float64), rel=1e-4, abs=1e-7)


def test_dequantize_every_code(kernels: str) -> None:
    q = np.arange(-128, 128).astype(np.int8)
    for zero in (-128, 0, 127):
        assert np.array_equal(core.dequantize(q, 0.1, zero=zero), (q.astype(F) - zero) * F(0.1))


@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (100, 6), (3, 513), (2, 2048)])
def test_dequantize_sums(kernels: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**31), 2**31, shape, dtype=np.int64).astype(np.int32)
    add, row = (rng.integers(-(2**31), 2**31, n, dtype=np.int64).astype(np.int32) for n in (shape[1], shape[0]))
    scale = F(3e-5)
    with np.errstate(over="ignore"):
        assert np.array_equal(core.dequantize_sums(acc, add, scale), (acc + add).astype(F) * scale)
        assert np.array_equal(core.dequantize_rows(acc, row, scale), (acc + row[:, None]).astype(F) * scale)
    place = acc.copy()
    assert np.array_equal(core.dequantize_sums(place, add, scale, out=place.view(F)), core.dequantize_sums(acc, add, scale))


def test_images(kernels: str) -> None:
    x = np.arange(256).astype(np.uint8)
    assert np.array_equal(core.images(x, 1 / 255, -0.5), x.astype(F) * F(1 / 255) + F(-0.5))


# ---- columns --------------------------------------------------

SHAPES = [
    (1, 1),
    (5, 1),
    (3000, 3),
    (700, 6),
    (2100, 16),
    (1500, 30),
    (90, 100),
    (3000, 128),
    (70, 129),
    (300, 511),
    (130, 512),
    (65, 700),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_column_sums_in_the_stated_order(kernels: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * np.exp2(rng.integers(-12, 12, shape))).astype(F)
    assert core.column_sums(x).tobytes() == oracle.column_sums(x).tobytes()
    q = rng.integers(-128, 128, shape, dtype=np.int8)
    assert np.array_equal(core.column_sums(q), q.sum(0, dtype=np.int32))
    assert np.array_equal(core.row_sums(q), q.sum(1, dtype=np.int32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_affine(kernels: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, a, b = rng.normal(size=shape).astype(F), rng.normal(size=shape[1]).astype(F), rng.normal(size=shape[1]).astype(F)
    expected = x * a + b
    assert np.array_equal(core.affine(x, a, b), expected)
    assert np.array_equal(core.affine(x, a, b, relu=True), np.maximum(expected, 0))
    place = x.copy()
    assert np.array_equal(core.affine(place, a, b, out=place), expected)


@pytest.mark.parametrize("shape", [(2, 3), (3000, 6), (1440, 30), (100, 100), (70, 600)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_batchnorm_against_pytorch(kernels: str, shape: tuple[int, int], offset: float) -> None:
    """Also where the mean is 50 deviations from 0, where a naive variance would lose its digits."""
    torch = torch_module()
    rng = np.random.default_rng(3)
    x, dy = rng.normal(offset, 1, shape).astype(F), rng.normal(size=shape).astype(F)
    gamma, beta = rng.normal(1, 0.3, shape[1]).astype(F), rng.normal(size=shape[1]).astype(F)
    mean, var = rng.normal(size=shape[1]).astype(F), rng.uniform(0.5, 2, shape[1]).astype(F)
    layer = torch.nn.BatchNorm1d(shape[1], eps=1e-5, momentum=0.1).double()
    for parameter, value in ((layer.weight, gamma), (layer.bias, beta), (layer.running_mean, mean), (layer.running_var, var)):
        parameter.data[:] = torch.from_numpy(value)
    tx = torch.from_numpy(x).double().requires_grad_()
    ty = layer(tx)
    ty.backward(torch.from_numpy(dy).double())
    y, batch_mean, inv_std, _ = core.batchnorm_forward(x, gamma, beta, mean, var, eps=1e-5, momentum=0.1)
    dx, dgamma, dbeta, _ = core.batchnorm_backward(x, dy, gamma, batch_mean, inv_std)
    pairs = {
        "y": (y, ty), "dx": (dx, tx.grad), "dgamma": (dgamma, layer.weight.grad), "dbeta": (dbeta, layer.bias.grad),
        "mean": (mean, layer.running_mean), "var": (var, layer.running_var),
    }  # fmt: skip
    for name, (found, expected) in pairs.items():
        expected = expected.detach().numpy()
        assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max()), name
    layer.eval()
    inference = core.batchnorm_inference(x, gamma, beta, mean, var, eps=1e-5)
    assert np.abs(inference - layer(tx).detach().numpy()).max() < 1e-4 * max(1, np.abs(inference).max())


def test_batchnorm_of_constants_is_finite(kernels: str) -> None:
    x = np.full((50, 4), 7.25, F)
    y, _, inv_std, _ = core.batchnorm_forward(
        x, np.ones(4, F), np.full(4, 2, F), np.zeros(4, F), np.ones(4, F), eps=1e-5, momentum=0.1
    )
    assert np.allclose(y, 2) and np.allclose(inv_std, 1 / np.sqrt(1e-5))


# ---- the other layers --------------------------------------------------


def _bits(mask: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(mask, count=count, bitorder="little").astype(bool)


def test_relu(kernels: str) -> None:
    x = np.array([-1, -0.0, 0.0, 1e-45, 2, -3e38, 5, 6, 7], F)
    mask = np.full(core.sign_bytes(x.size), 255, np.uint8)
    y, found = core.relu(x, relu_mask=mask, find_range=True)
    assert y.tolist() == [0, 0, 0, F(1e-45), 2, 0, 5, 6, 7] and found == (0, 7)
    assert mask.tolist() == [0b11011000, 1]
    assert core.relu_backward(mask, np.arange(1, 10).astype(F)).tolist() == [0, 0, 0, 4, 5, 0, 7, 8, 9]
    assert core.relu(x)[1] is None
    with pytest.raises(core.NotFiniteError):
        core.relu(np.array([1, np.inf], F), find_range=True)


@pytest.mark.parametrize("shape", [(1, 1), (9, 3), (700, 9), (3000, 6), (1440, 30), (333, 100), (70, 600), (9, 20000)], ids=str)
def test_batchnorm_does_the_passes_beside_it(kernels: str, shape: tuple[int, int]) -> None:
    """Sums, ReLU, signs, codes and ranges in one call are what they are one after the other, to the bit."""
    rng = np.random.default_rng(8)
    rows, cols = shape
    acc = rng.integers(-100_000, 100_000, shape, dtype=np.int32)
    lazy = core.LazyDequant(acc, rng.integers(-9999, 9999, cols, dtype=np.int32), 3e-5)
    x = core.dequantize_sums(acc, lazy.add, lazy.scale)
    gamma, beta = rng.normal(1, 0.3, cols).astype(F), rng.normal(size=cols).astype(F)
    states = [(np.zeros(cols, F), np.ones(cols, F)) for _ in range(3)]
    how = {"eps": 1e-5, "momentum": 0.1}
    plain, mean, inv_std, none = core.batchnorm_forward(x, gamma, beta, *states[0], **how)
    assert none is None
    codes, mask = np.empty(shape, np.int8), np.empty(core.sign_bytes(x.size), np.uint8)
    made = core.batchnorm_forward(
        core.LazyDequant(acc.copy(), lazy.add, lazy.scale), gamma, beta, *states[1], **how, relu=True, codes=codes,
        relu_mask=mask, find_range=True,
    )  # fmt: skip
    expected, _ = core.relu(plain)
    assert np.array_equal(made[0], expected) and np.array_equal(made[1], mean) and np.array_equal(made[2], inv_std)
    assert made[3] == core.value_range(expected)
    assert np.array_equal(states[0], states[1])
    assert np.array_equal(_bits(mask, x.size), plain.ravel() > 0)
    to_code = inv_std * F(16)
    assert np.array_equal(codes, np.clip(np.rint(x * to_code - mean * to_code), -127, 127))
    assert np.abs(codes / 16 - ((x - mean) * inv_std).clip(-127 / 16, 127 / 16)).max() <= 1 / 32 + 1e-4
    place = acc.copy()  # the output in the place of the sums
    same = core.batchnorm_forward(
        core.LazyDequant(place, lazy.add, lazy.scale), gamma, beta, *states[2], **how, out=place.view(F)
    )[0]  # fmt: skip
    assert np.array_equal(same, plain)
    mean_, var_ = states[0]
    inference = core.batchnorm_inference(x, gamma, beta, mean_, var_, eps=1e-5)
    rectified = core.batchnorm_inference(lazy, gamma, beta, mean_, var_, eps=1e-5, relu=True)
    assert np.array_equal(rectified, core.relu(inference)[0])

    dy = core.dequantize_sums(acc[::-1].copy(), np.zeros(cols, np.int32), 0.01)
    lazy_dy = core.LazyDequant(acc[::-1].copy(), np.zeros(cols, np.int32), 0.01)
    masked = core.relu_backward(mask, dy)
    assert np.array_equal(masked, np.where(plain > 0, dy, 0))
    expected = core.batchnorm_backward(x, masked, gamma, mean, inv_std)
    found = core.batchnorm_backward(x, lazy_dy, gamma, mean, inv_std, relu_mask=mask, find_range=True, out=lazy_dy.acc.view(F))
    assert all(np.array_equal(a, b) for a, b in zip(expected[:3], found[:3], strict=True))
    assert found[3] == core.value_range(expected[0])
    # codes stand for x with mean 0 and deviation 1, but for the scale gamma inv_std
    normalized, ones = codes.astype(F) / 16, np.ones(cols, F)
    dx, dgamma, dbeta, _ = core.batchnorm_backward(codes, dy, gamma, mean, inv_std, relu_mask=mask)
    other, dgamma_, dbeta_, _ = core.batchnorm_backward(normalized, masked, gamma * inv_std, np.zeros(cols, F), ones)
    assert np.array_equal(dx, other) and np.array_equal(dgamma, dgamma_) and np.array_equal(dbeta, dbeta_)


@pytest.mark.parametrize(
    "g",
    [core.Pool(5, h, w, c, k, k) for c in (1, 3, 6, 16, 20, 33) for h, w, k in ((9, 7, 2), (6, 8, 2), (11, 10, 3), (4, 5, 1))]
    + [core.Pool(2, 41, 30, 30, 2, 2), core.Pool(3, 12, 5, 130, 2, 2), core.Pool(2, 3, 4, 600, 2, 2)], ids=str,
)  # fmt: skip
@pytest.mark.parametrize("lazy", [False, True], ids=["values", "sums"])
def test_batchnorm_does_the_max_pooling_behind_it(kernels: str, g: core.Pool, lazy: bool) -> None:
    """Both ways, to the bit; of float32 or sums, with codes or x kept; equals in windows, windows that the ReLU leaves empty,
    lines and columns that no window sees."""
    rng = np.random.default_rng(8)
    acc = rng.integers(-30, 30, g.x_shape, dtype=np.int32) * 3000
    sums = core.LazyDequant(acc, rng.integers(-9999, 9999, g.channels, dtype=np.int32), 3e-5)
    x = core.materialize(sums)
    x[0, : 2 * g.kernel] = -9  # no value above 0
    given = sums if lazy else x
    x = core.materialize(given)
    gamma, beta = rng.normal(1, 0.3, g.channels).astype(F), rng.normal(-1, 1, g.channels).astype(F)
    states = [(np.zeros(g.channels, F), np.ones(g.channels, F)) for _ in range(2)]
    how = {"eps": 1e-5, "momentum": 0.1}
    codes, other, mask = np.empty(g.x_shape, np.int8), np.empty(g.x_shape, np.int8), np.empty(core.sign_bytes(x.size), np.uint8)
    y, mean, inv_std, _ = core.batchnorm_forward(x, gamma, beta, *states[0], **how, relu=True, codes=codes, relu_mask=mask)
    pooled, argmax = core.maxpool(g, y)
    made = core.batchnorm_maxpool(g, given, gamma, beta, *states[1], **how, codes=other, find_range=True)
    for a, b in zip((pooled, np.where(pooled > 0, argmax, g.kernel**2), mean, inv_std), made, strict=False):
        assert np.array_equal(a, b)
    assert made[4] == core.value_range(pooled) and np.array_equal(states[0], states[1]) and np.array_equal(codes, other)

    acc_dy = rng.integers(-100_000, 100_000, g.y_shape, dtype=np.int32)
    sums_dy = core.LazyDequant(acc_dy, rng.integers(-9999, 9999, g.channels, dtype=np.int32), 0.01)
    dy = core.materialize(sums_dy)
    for kept in (codes, x):
        apart = core.batchnorm_backward(kept, core.maxpool_backward(g, dy, argmax), gamma, mean, inv_std, relu_mask=mask)
        found = core.batchnorm_maxpool_backward(
            g, kept, sums_dy if lazy else dy, made[1], gamma, mean, inv_std, find_range=True
        )  # fmt: skip
        assert all(a.tobytes() == b.tobytes() for a, b in zip(apart[:3], found[:3], strict=True))
        assert found[3] == core.value_range(apart[0])


def test_batchnorm_finds_what_is_not_finite(kernels: str) -> None:
    x, ones, zeros = np.ones((30, 5), F), np.ones(5, F), np.zeros(5, F)
    x[17, 3] = np.nan
    how = {"eps": 1e-5, "momentum": 0.1, "find_range": True}
    with pytest.raises(core.NotFiniteError, match="NaN or infinite"):
        core.batchnorm_forward(x, ones, zeros, zeros.copy(), ones.copy(), **how)
    with pytest.raises(core.NotFiniteError, match="NaN or infinite"):
        core.batchnorm_backward(np.zeros((30, 5), np.int8), x, ones, zeros, ones, find_range=True)


POOLS = [core.Pool(2, 8, 6, c, k, s) for c in (1, 6, 16, 30, 33) for k, s in ((2, 2), (3, 2), (3, 3), (2, 3), (1, 1), (3, 1))]


@pytest.mark.parametrize("g", POOLS, ids=str)
@pytest.mark.parametrize("equal", [False, True])
def test_maxpool_against_pytorch(kernels: str, g: core.Pool, equal: bool) -> None:
    """With many equal values too: both take the first."""
    torch = torch_module()
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 3, g.x_shape) if equal else rng.normal(size=g.x_shape)).astype(F)
    dy = rng.normal(size=g.y_shape).astype(F)
    y, argmax = core.maxpool(g, x)
    tx = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).double().requires_grad_()
    ty = torch.nn.functional.max_pool2d(tx, g.kernel, g.stride)
    ty.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()).double())
    assert np.array_equal(y, ty.detach().numpy().transpose(0, 2, 3, 1).astype(F))
    expected = tx.grad.numpy().transpose(0, 2, 3, 1)
    assert np.abs(core.maxpool_backward(g, dy, argmax) - expected).max() < 1e-5
    assert argmax.max() < g.kernel**2


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_dropout(kernels: str, rate: float) -> None:
    x = np.random.default_rng(0).normal(size=40_000).astype(F)
    keep = core.philox(x.size, 1, 2, 3) >= np.uint32(int(float(F(rate)) * 2**32))
    scale = F(1) / (F(1) - F(rate))
    assert np.array_equal(core.dropout(x, rate, (1, 2, 3)), np.where(keep, x * scale, F(0)))


def test_dropout_rate_one_is_refused() -> None:
    with pytest.raises(core.CoreError, match=r"rate must be in \[0, 1\), not 1"):
        core.dropout(np.ones(3, F), 1.0, (0, 0, 0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75])
@pytest.mark.parametrize("spread", [1.0, 40.0, 1000.0])
def test_softmax_cross_entropy_against_pytorch(kernels: str, spread: float, smoothing: float) -> None:
    torch = torch_module()
    rng = np.random.default_rng(0)
    logits = (spread * rng.normal(size=(64, 10))).astype(F)
    labels = rng.integers(0, 10, 64).astype(np.int32)
    t = torch.from_numpy(logits).double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(t, torch.from_numpy(labels).long(), label_smoothing=smoothing)
    expected.backward()
    loss, dlogits, correct = core.softmax_cross_entropy(logits, labels, smoothing=smoothing)
    loss, correct = float(loss), int(correct)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert np.abs(dlogits - t.grad.numpy()).max() < 1e-8
    assert correct == (logits.argmax(1) == labels).sum()
    alone, none, right = core.softmax_cross_entropy(logits, labels, smoothing=smoothing, gradient=False)
    assert (float(alone), none, int(right)) == (loss, None, correct)


def test_softmax_refuses(kernels: str) -> None:
    logits, labels = np.zeros((2, 3), F), np.array([0, 3], np.int32)
    with pytest.raises(core.CoreError, match="label 3 of row 1 is not in 0 .. 2"):
        core.softmax_cross_entropy(logits, labels)
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(core.CoreError, match=r"label smoothing must be in \[0, 1\)"):
            core.softmax_cross_entropy(logits, np.zeros(2, np.int32), smoothing=smoothing)
    logits[0, 0] = np.nan
    with pytest.raises(core.NotFiniteError):
        core.softmax_cross_entropy(logits, np.zeros(2, np.int32))


# ---- optimizers and compensation --------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizers_against_pytorch(kernels: str, name: str, decay: float) -> None:
    torch = torch_module()
    rng = np.random.default_rng(0)
    w = rng.normal(size=3000).astype(F)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()).double())
    if name == "sgd":
        peer = torch.optim.SGD([parameter], lr=0.05, momentum=0.9, weight_decay=decay)
    else:
        peer = torch.optim.Adam([parameter], lr=0.05, weight_decay=decay)
    slots = [np.zeros_like(w), np.zeros_like(w)]
    for step in range(1, 6):
        g = rng.normal(size=w.size).astype(F)
        parameter.grad = torch.from_numpy(g).double()
        peer.step()
        if name == "sgd":
            core.sgd(w, g, slots[0], lr=0.05, momentum=0.9, decay=decay)
        else:
            c1, c2 = 1 - 0.9**step, 1 - 0.999**step
            core.adam(w, g, *slots, lr=0.05, b1=0.9, b2=0.999, eps=1e-8, c1=c1, c2=c2, decay=decay)
    assert np.abs(w - parameter.detach().numpy()).max() < 5e-6


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 40000), (2000, 9), (16384, 1), (5, 3, 3, 16384)], ids=str)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_by_sums_is_one_by_their_values(kernels: str, name: str, shape: tuple[int, ...]) -> None:
    """Rows that begin and end anywhere in the slices of an update."""
    rng = np.random.default_rng(len(shape))
    acc, add = rng.integers(-9999, 9999, shape).astype(np.int32), rng.integers(-99, 99, shape[0]).astype(np.int32)
    sums = core.LazyDequant(acc, add, 1e-3, by_rows=True)
    start = [rng.random(shape, F) for _ in range(3)]
    made, expected = [x.copy() for x in start], [x.copy() for x in start]
    for (w, v, m), g in ((made, sums), (expected, sums.materialize(np.empty(shape, F)))):
        if name == "sgd":
            core.sgd(w, g, v, lr=0.05, momentum=0.9, decay=0.01)
        else:
            core.adam(w, g, m, v, lr=0.05, b1=0.9, b2=0.999, eps=1e-8, c1=0.1, c2=0.001, decay=0.01)
    for a, b, c in zip(made, expected, start, strict=True):
        assert np.array_equal(a, b)
        assert (name == "adam" or a is not made[2]) != np.array_equal(a, c)


@pytest.mark.parametrize("at", [0, 5000, 39999])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_step_to_infinity_is_told(kernels: str, at: int, value: float) -> None:
    w, v, g = np.ones(40000, F), np.ones(40000, F), np.zeros(40000, F)
    core.sgd(w, g, v, lr=0.5, momentum=1.0, decay=0.0)
    g[at] = value
    with pytest.raises(core.NotFiniteError, match="NaN or infinite"):
        core.sgd(w, g, v, lr=0.5, momentum=1.0, decay=0.0)
    assert w[(at + 1) % w.size] == 0 and not np.isfinite(w[at])


def test_lac_fold(kernels: str) -> None:
    """Ties, the region where float32 has halves but no quarter (2^22 .. 2^23), and the clamp at 2^30."""
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 4194304.5, 4194305.5, -6000000.5, 8388609, 1e9, 2**30, 3e9, -3e9, 1e38, -1e38, 0, -0.0]
    bias = np.array(values, F)
    expected = np.clip(np.rint(bias.astype(np.float64)), -(2**30), 2**30).astype(np.int32)
    none = np.zeros(bias.size, np.int32)
    assert np.array_equal(core.fold_bias(bias, none, 1.0), expected)
    term = np.full(bias.size, 2**31 - 1, np.int32)
    with np.errstate(over="ignore"):
        assert np.array_equal(core.fold_bias(bias, term, 1.0), expected + term)
    rng = np.random.default_rng(0)
    lac = tuple(rng.normal(size=(40, bias.size)).astype(F) for _ in range(3))
    small = rng.normal(size=bias.size).astype(F)
    found = core.fold_bias(small, none, 2.0**-10, lac)
    assert np.array_equal(found, np.rint((small + (lac[0] * lac[1] + lac[2])) * F(2.0**10)).astype(np.int32))


# ---- what is refused --------------------------------------------------


def step(w: np.ndarray, g: core.Values) -> None:
    core.sgd(w, g, np.zeros(w.shape, F), lr=0.1, momentum=0.9, decay=0.0)


def sums(addends: int, by_rows: bool = False) -> core.LazyDequant:
    return core.LazyDequant(np.zeros((2, 3), np.int32), np.zeros(addends, np.int32), 1.0, by_rows)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: core.relu(np.zeros(3)), "x must be a float32 array, not float64"),
        (lambda: core.relu(np.zeros((4, 4), F)[:, ::2]), "x must be C-contiguous"),
        (lambda: core.relu(np.zeros(17, np.uint8)[1:].view(F)), "x must be aligned to the size of its items"),
        (lambda: core.relu(np.zeros(4, F), out=np.zeros(17, np.uint8)[1:].view(F)), "out must be aligned"),
        (lambda: core.assign(np.zeros(4, F), np.zeros(17, np.uint8)[1:].view(F)), "a must be aligned"),
        (lambda: core.gemm(np.zeros(65, np.uint8)[1:].view(F).reshape(4, 4)[:, :2], np.zeros((2, 2), F)), "a must be aligned"),
        (lambda: core.relu(np.zeros(3, F), out=np.zeros(4, F)), "out must have shape (3,), not (4,)"),
        (lambda: core.quantize(np.zeros(3, F), 1.0, low=-129), "do not fit in int8"),
        (lambda: core.quantize(np.zeros(3, F), 1.0, low=5, high=4), "do not fit in int8"),
        (lambda: core.value_range(np.zeros(0, F)), "no elements"),
        (lambda: core.set_isa("neon9"), "unknown instruction set 'neon9' (known here: ref"),
        (lambda: core.set_threads(0), "threads must be in 1 .. 1024, not 0"),
        (lambda: core.dequantize_sums(np.zeros(7, np.int32), np.zeros(3, np.int32), 1.0), "not a multiple of add's 3"),
        (lambda: core.maxpool(core.Pool(1, 3, 3, 1, 5, 1), np.zeros((1, 3, 3, 1), F)), "pooling: a 5 x 5 window"),
        (lambda: core.softmax_cross_entropy(np.zeros(3, F), np.zeros(3, np.int32)), "logits must be 2-D"),
        (lambda: step(np.zeros((2, 3), F), sums(3)), "g: sums need one addend for each row"),
        (lambda: step(np.zeros((2, 3), F), sums(3, by_rows=True)), "add must have shape (2,)"),
        (lambda: core.add(np.zeros((2, 3), F), sums(2, by_rows=True)), "b: sums need one addend for each column"),
        (lambda: core.add(np.zeros((2, 3), F), sums(2)), "add must have shape (3,)"),
        (lambda: step(np.zeros((3, 2), F), sums(2, by_rows=True)), "(3, 2)"),
        (lambda: step(np.zeros((2, 3), F)[:, :2], np.zeros((2, 2), F)), "w must be C-contiguous"),
        (lambda: step(np.zeros(3), np.zeros(3, F)), "w must be a float32 array, not float64"),
        (lambda: step(np.zeros(0, F), np.zeros(0, F)), "w is empty"),
    ],
)
def test_bad_calls(call, words: str) -> None:
    with pytest.raises(core.CoreError) as caught:
        call()
    assert words in str(caught.value)


def test_read_only_outputs_are_refused() -> None:
    out = np.zeros(3, F)
    out.flags.writeable = False
    with pytest.raises(core.CoreError, match="out is read-only"):
        core.relu(np.zeros(3, F), out=out)


def test_environment_chooses_the_instruction_set() -> None:
    code = "from octosim import core; print(core.isa())"
    for name, supported in core.isas().items():
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"OCTOSIM_ISA": name}
        )
        if supported:
            assert done.stdout.strip() == name
        else:
            assert f"instruction set '{name}' is not supported by this CPU" in done.stderr
