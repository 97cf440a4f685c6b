"""Codes with a scale for each block of 32 x 32, on every instruction set: quantization, products, convolutions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import oracle
from kit.examples import examples

from octosim import core

F = np.float32
SLOW = examples(30)
Matrix = tuple[np.ndarray, np.ndarray]


def wide(codes: np.ndarray, scales: np.ndarray) -> Matrix:
    """The codes and, at each place, the scale of its block, as the oracle takes them."""
    return codes, scales.repeat(32, 0).repeat(32, 1)[: codes.shape[0], : codes.shape[1]]


def random_blocks(rng: np.random.Generator, rows: int, cols: int, low: int = -60, high: int = 30) -> Matrix:
    """Codes and scales of 2^low to 2^high."""
    scales = np.ldexp(rng.uniform(1, 2, (-(-rows // 32), -(-cols // 32))), rng.integers(low, high))
    return rng.integers(-128, 128, (rows, cols), dtype=np.int8), scales.astype(F)


def values(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values of many magnitudes, some 0, some denormal."""
    sizes = np.exp2(rng.integers(-12, 3, shape) + rng.integers(-135, 40)) * rng.integers(0, 2, shape)
    return (rng.normal(size=shape) * sizes).astype(F)


# ---- quantization -----------------------------------------


@SLOW
@given(
    rows=st.integers(1, 70), cols=st.integers(1, 130), half=st.booleans(), stochastic=st.booleans(), seed=st.integers(0, 2**32)
)  # fmt: skip
def test_quantized_as_the_oracle_does(kernels: str, rows: int, cols: int, half: bool, stochastic: bool, seed: int) -> None:
    x = values(np.random.default_rng(seed), (rows, cols))
    random = (seed, 5, 6) if stochastic else None
    words = core.philox(x.size, *random).reshape(x.shape) if random else None
    with np.errstate(under="ignore"):
        q, scales = oracle.quantize_blocks(x, half, words)
    found, found_scales = core.quantize_blocks(x, half=half, random=random)
    assert np.array_equal(found, q) and np.array_equal(wide(found, found_scales)[1], scales)
    real = q.astype(F) * scales
    assert core.dequantize_blocks(found, found_scales).tobytes() == real.tobytes()
    assert core.round_to_blocks(x, half=half, random=random).tobytes() == real.tobytes()
    assert core.round_to_blocks(x, half=half, random=random, out=x) is x and x.tobytes() == real.tobytes()


def test_every_scale_of_float16(kernels: str) -> None:
    """All float16, and the float32 halfway between neighbours and just below and above, the scale of a block each."""
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(F)
    between = (exact[1:] + exact[:-1]) / 2
    beside = [np.nextafter(between, F(0)), np.nextafter(between, F(1e6))]
    wanted = np.concatenate([exact, between, *beside, np.array([65519, 65520, 1e30], F)])
    x = np.zeros((32, 32 * len(wanted)), F)
    x[7, 5::32] = wanted * F(127)
    scales = core.quantize_blocks(x, half=True)[1][0]
    assert np.array_equal(scales, np.minimum(x[7, 5::32] / F(127), F(65504)).astype(np.float16).astype(F))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("half", [False, True])
def test_what_has_no_code(kernels: str, bad: float, half: bool) -> None:
    x = np.ones((70, 40), F)
    x[66, 39] = bad
    for call in (core.quantize_blocks, core.round_to_blocks):
        with pytest.raises(core.NotFiniteError, match="a value is NaN or infinite"):
            call(x, half=half)
    g = core.Conv(1, 70, 40, 1, 2, 3, 3)
    with pytest.raises(core.NotFiniteError):
        core.quantize_windows(g, x.reshape(g.x_shape), half=half)


# ---- products -----------------------------------------


def check_product(a: Matrix, b: Matrix) -> None:
    expected = oracle.gemm_blocks(wide(*a), wide(*b)).tobytes()
    turned_a, turned_b = ([np.ascontiguousarray(t.T).T for t in x] for x in (a, b))
    for left, right in itertools.product((a, turned_a), (b, turned_b)):
        assert core.gemm_blocks(*left, *right).tobytes() == expected


@SLOW
@given(m=st.integers(1, 130), n=st.integers(1, 150), k=st.integers(1, 150), seed=st.integers(0, 2**32), tiny=st.booleans())
def test_products_are_added_in_the_stated_order(kernels: str, m: int, n: int, k: int, seed: int, tiny: bool) -> None:
    rng = np.random.default_rng(seed)
    low, high = (-90, -50) if tiny else (-60, 30)  # tiny: terms that underflow, to zeros of either sign too
    check_product(random_blocks(rng, m, k, low, high), random_blocks(rng, n, k, low, high))


@pytest.mark.parametrize(
    "shape", [(4200, 3, 40), (3, 700, 33), (700, 300, 70), (16, 144, 2000), (1, 1, 1), (4064, 6, 31), (0, 5, 3), (3, 4, 0)]
)
def test_products_of_more_than_a_tile(kernels: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m + n)
    check_product(random_blocks(rng, m, k), random_blocks(rng, n, k))


# ---- convolutions -----------------------------------------

GEOMETRIES = [
    core.Conv(3, 9, 8, 1, 6, 5, 5), core.Conv(2, 10, 10, 5, 7, 3, 3, 1, 1), core.Conv(2, 11, 9, 40, 33, 3, 3, 2, 1),
    core.Conv(2, 8, 8, 3, 33, 1, 1), core.Conv(2, 8, 8, 3, 40, 1, 1, 2), core.Conv(9, 5, 5, 2, 3, 2, 2, 3),
    core.Conv(7, 9, 9, 37, 65, 3, 3, 1, 1), core.Conv(1, 7, 6, 16, 4, 3, 3, 3, 2), core.Conv(5, 1, 1, 9, 4, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_convolutions_equal_the_oracle(kernels: str, g: core.Conv) -> None:
    """The windows' codes, and dX; the seventh geometry's images are more than a part, and share blocks."""
    rng = np.random.default_rng(g.channels)
    x, window = values(rng, g.x_shape), (g.kernel_h, g.stride, g.pad)
    for half in (False, True):
        q, scales = oracle.quantize_blocks(oracle.windows(x, *window), half)
        found = wide(*core.quantize_windows(g, x, half=half))
        assert np.array_equal(found[0], q) and np.array_equal(found[1], scales)
    dy, w = random_blocks(rng, len(q), g.filters), random_blocks(rng, g.filters, q.shape[1])
    rows = oracle.gemm_blocks(wide(*dy), tuple(t.T for t in wide(*w)))
    expected = oracle.add_windows(rows, g.x_shape, *window)
    assert core.conv_input_grad_blocks(g, *dy, *w).tobytes() == expected.tobytes()


# ---- refusals -----------------------------------------

CODES, X = np.zeros((3, 4), np.int8), np.zeros((3, 4), F)
ONE, TWO = np.ones((1, 1), F), np.ones((1, 2), F)
G = core.Conv(1, 4, 4, 2, 3, 3, 3)
DY, W = np.zeros((4, 3), np.int8), np.zeros((3, 18), np.int8)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("gemm_blocks", (CODES, ONE, CODES.T, ONE), "the inner sizes differ: a is 3 x 4, b is 4 x 3"),
        ("gemm_blocks", (CODES, TWO, CODES, ONE), "a's scales must have shape (1, 1), not (1, 2)"),
        ("gemm_blocks", (CODES, ONE, CODES, ONE.astype(np.float64)), "b's scales must be a float32 array, not float64"),
        ("gemm_blocks", (CODES.astype(np.uint8), ONE, CODES, ONE), "a must be an int8 array, not uint8"),
        ("gemm_blocks", (CODES[0], ONE, CODES, ONE), "a must be a 2-D array of int8"),
        ("gemm_blocks", (CODES, None, CODES, ONE), "a must be a 2-D array of int8 and have an array of scales"),
        ("gemm_blocks", (CODES, ONE, np.zeros((5, 8), np.int8)[:, ::2], ONE), "b must be C-contiguous"),
        ("quantize_blocks", (X[0],), "x must be a 2-D array with elements"),
        ("quantize_blocks", (X[:0],), "x must be a 2-D array with elements"),
        ("quantize_blocks", (CODES,), "x must be a float32 array, not int8"),
        ("round_to_blocks", (X.T,), "x must be C-contiguous"),
        ("dequantize_blocks", (X, ONE), "q must be an int8 array, not float32"),
        ("dequantize_blocks", (CODES, TWO), "scales must have shape (1, 1), not (1, 2)"),
        ("quantize_windows", (G, X), "x must have shape (1, 4, 4, 2), not (3, 4)"),
        ("conv_input_grad_blocks", (G, CODES, ONE, W, ONE), "dy must have shape (4, 3), not (3, 4)"),
        ("conv_input_grad_blocks", (G, DY, TWO, W, ONE), "dy's scales must have shape (1, 1), not (1, 2)"),
    ],
)
def test_refused(name: str, arguments: tuple, words: str) -> None:
    with pytest.raises(core.CoreError) as caught:
        getattr(core, name)(*arguments)
    assert words in str(caught.value)
