"""Matrix products and convolutions: exact against int64, equal to the bit on every instruction set, and against others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import oracle
from kit.examples import examples

from octosim import core
from octosim.core import call, products
from octosim.errors import OctosimError
from octosim.numerics import ACCUMULATORS

F = np.float32
SLOW = examples(60)


def view(rng: np.random.Generator, rows: int, cols: int, spare: int, low: int = -128) -> np.ndarray:
    """Random int8 codes; with spare columns a strided view of a larger array."""
    return rng.integers(low, 128, (rows, cols + spare), dtype=np.int8)[:, :cols]


@SLOW
@given(
    m=st.integers(1, 130), n=st.integers(1, 150), k=st.integers(1, 300), ta=st.booleans(), tb=st.booleans(),
    spare=st.integers(0, 5), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_int8_equals_the_oracle(kernels: str, m: int, n: int, k: int, ta: bool, tb: bool, spare: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = view(rng, *((k, m) if ta else (m, k)), spare)
    b = view(rng, *((n, k) if tb else (k, n)), spare)
    found = core.gemm(a, b, transpose_a=ta, transpose_b=tb)
    assert found.dtype == np.int32
    assert np.array_equal(found, oracle.gemm(a, b, ta, tb))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 24577, 3), (3, 24576 + 255, 2), (2, 60000, 70), (500, 3, 1), (1, 5, 400), (49, 64, 65)]
)
def test_shapes_at_the_edges(kernels: str, shape: tuple[int, int, int]) -> None:
    """Reductions longer than a job takes, single rows and columns."""
    m, k, n = shape
    rng = np.random.default_rng(k)
    a, b = view(rng, m, k, 0), view(rng, n, k, 0)
    assert np.array_equal(core.gemm(a, b, transpose_b=True), oracle.gemm(a, b, False, True))
    assert np.array_equal(
        core.gemm(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), transpose_a=True), oracle.gemm(a, b.T)
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(30, 9001, 25), (1, 4096, 1), (49, 6145, 3), (5, 2047, 65)])
def test_threads_share_long_sums(kernels: str, shape: tuple[int, int, int], threads: int) -> None:
    """A small result has rows for one or two threads only; int8 sums are exact in any order."""
    m, k, n = shape
    rng = np.random.default_rng(k)
    a, b = view(rng, m, k, 3), view(rng, k, n, 2)
    expected, out = oracle.gemm(a, b), np.empty((m, n), np.int32)
    core.gemm(a, b, threads=threads, out=out)
    assert np.array_equal(out, expected)
    assert np.array_equal(core.gemm(np.ascontiguousarray(a.T), b, transpose_a=True, threads=threads), expected)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("shape", [(2400, 25, 6), (640, 9, 8), (129 * 16, 40, 1), (1024, 3, 2), (1025, 7, 5), (128, 24576, 4)])
def test_rows_of_narrow_results_are_computed_together(kernels: str, shape: tuple[int, int, int], transpose_b: bool) -> None:
    m, k, n = shape
    rng = np.random.default_rng(m)
    a, b = view(rng, m, k, 0), view(rng, k, n, 0)
    given_b = np.ascontiguousarray(b.T) if transpose_b else b
    assert np.array_equal(core.gemm(a, given_b, transpose_b=transpose_b, threads=2), oracle.gemm(a, b))
    spare = np.pad(a, ((0, 0), (0, 1)))[:, :k]  # rows that lie apart
    assert np.array_equal(core.gemm(spare, given_b, transpose_b=transpose_b), oracle.gemm(a, b))


def test_all_pairs_of_codes(kernels: str) -> None:
    codes = np.arange(-128, 128).astype(np.int8)
    found = core.gemm(codes[:, None], codes[None, :])
    assert np.array_equal(found, np.multiply.outer(codes.astype(np.int32), codes.astype(np.int32)))


@pytest.mark.parametrize(
    ("a", "b", "most"), [(-128, -128, 131071), (127, 127, 133144), (-127, 127, 133144), (-128, 127, 132104)]
)
def test_longest_safe_sums(kernels: str, a: int, b: int, most: int) -> None:
    """The bounds 2^31 - 1 over the product: exact up to there, refused one further."""
    rows, cols = np.full((2, most), a, np.int8), np.full((3, most), b, np.int8)
    assert np.array_equal(core.gemm(rows, cols, transpose_b=True), np.full((2, 3), a * b * most))
    with pytest.raises(OctosimError, match=f"at most {most} are safe"):
        core.gemm(np.full((2, most + 1), a, np.int8), np.full((3, most + 1), b, np.int8), transpose_b=True)


def test_long_sums_of_small_codes_are_accepted() -> None:
    a = np.full((1, 1_000_000), 10, np.int8)
    assert core.gemm(a, a, transpose_b=True)[0, 0] == 100_000_000


@pytest.mark.parametrize("shape", [(100, 25, 30), (64, 150, 16), (100, 4320, 100), (33, 257, 65)])
def test_int8_equals_onnxruntime(shape: tuple[int, int, int]) -> None:
    """MatMulInteger, an implementation that shares nothing with ours."""
    onnx = pytest.importorskip("onnx", reason="needs the extra 'peers'")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra 'peers'")
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = view(rng, m, k, 0), view(rng, k, n, 0)
    helper, types = onnx.helper, onnx.TensorProto
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    infos = [helper.make_tensor_value_info(x, types.INT8, s) for x, s in (("a", [m, k]), ("b", [k, n]))]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("c", types.INT32, [m, n])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # no saturating pairs in u8 x s8 kernels
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert np.array_equal(core.gemm(a, b), session.run(None, {"a": a, "b": b})[0])


# ---- float32 -----------------------------------------


@SLOW
@given(m=st.integers(1, 60), n=st.integers(1, 70), k=st.integers(1, 600), seed=st.integers(0, 2**32))
def test_float32_is_summed_in_the_stated_order(kernels: str, m: int, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=s).astype(F) * np.exp2(rng.integers(-20, 20, s)).astype(F) for s in ((m, k), (k, n)))
    expected = oracle.gemm_f32(a, b)
    assert core.gemm(a, b).tobytes() == expected.tobytes()
    assert core.gemm(np.asfortranarray(a).T, b, transpose_a=True).tobytes() == expected.tobytes()
    assert core.gemm(a, np.ascontiguousarray(b.T), transpose_b=True).tobytes() == expected.tobytes()


# ---- convolutions --------------------------------------------------

GEOMETRIES = [
    core.Conv(3, 9, 8, 1, 6, 5, 5), core.Conv(2, 10, 10, 5, 7, 3, 3, 1, 1), core.Conv(2, 11, 9, 4, 3, 3, 3, 2, 1),
    core.Conv(3, 12, 12, 16, 20, 5, 5, 1, 2), core.Conv(2, 8, 8, 3, 33, 1, 1), core.Conv(2, 15, 15, 3, 8, 4, 4, 3),
    core.Conv(1, 5, 5, 70, 2, 5, 5), core.Conv(40, 6, 7, 2, 3, 2, 2, 2), core.Conv(2, 7, 7, 1, 1, 3, 3, 1, 2),
    core.Conv(5, 1, 1, 9, 4, 1, 1), core.Conv(1, 6, 16, 900, 1, 5, 5, 1, 2), core.Conv(1, 6, 16, 1, 900, 5, 5, 1, 2),
    core.Conv(2, 9, 16, 2, 3, 3, 3, 2, 1), core.Conv(2, 12, 12, 1, 4, 5, 5, 1, 2), core.Conv(64, 4, 4, 24, 72, 1, 1),
    core.Conv(1, 4, 4, 530, 130, 3, 3, 1, 1),
]  # fmt: skip


def operands(g: core.Conv, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, w, dy = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in (g.x_shape, g.w_shape, g.y_shape))
    return x, w, dy


def check_convolution(g: core.Conv, x_zero: int, seed: int) -> None:
    """All three passes against the oracle."""
    x, w, dy = operands(g, seed)
    padded = oracle.pad(x.astype(np.int64), g.pad, x_zero)
    assert np.array_equal(core.conv_forward(g, x, w, x_zero=x_zero), oracle.convolution(padded, w.astype(np.int64), g.stride))
    dx, dw = oracle.convolution_grads(padded, w.astype(np.int64), dy.astype(np.int64), g.stride)
    inner = dx[:, g.pad : dx.shape[1] - g.pad, g.pad : dx.shape[2] - g.pad]
    assert np.array_equal(core.conv_input_grad(g, dy, w), inner)
    assert np.array_equal(core.conv_weight_grad(g, x, dy, x_zero=x_zero), dw)


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
@pytest.mark.parametrize("x_zero", [0, -127, 5])
def test_int8_convolution_equals_the_oracle(kernels: str, g: core.Conv, x_zero: int) -> None:
    check_convolution(g, x_zero, 1)


@SLOW
@given(
    batch=st.integers(1, 5), height=st.integers(1, 14), width=st.integers(1, 14), channels=st.integers(1, 20),
    filters=st.integers(1, 20), kernel=st.integers(1, 5), stride=st.integers(1, 3), pad=st.integers(0, 4),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_any_convolution(kernels: str, seed: int, **sizes: int) -> None:
    kernel = sizes.pop("kernel")
    if sizes["pad"] >= kernel or min(sizes["height"], sizes["width"]) + 2 * sizes["pad"] < kernel:
        with pytest.raises(core.CoreError, match="convolution"):
            g = core.Conv(**sizes, kernel_h=kernel, kernel_w=kernel)
            core.conv_forward(g, np.zeros(g.x_shape, np.int8), np.zeros(g.w_shape, np.int8))
        return
    g = core.Conv(**sizes, kernel_h=kernel, kernel_w=kernel)
    check_convolution(g, -3, seed)


def float_operands(g: core.Conv) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=shape).astype(F) for shape in (g.x_shape, g.w_shape, g.y_shape)]


@pytest.mark.parametrize(
    "g",
    [
        core.Conv(3, 6, 6, 5, 256, 3, 3), core.Conv(2, 7, 9, 3, 512, 3, 3, 1, 1), core.Conv(3, 8, 5, 20, 64, 4, 4),
        core.Conv(2, 5, 5, 2, 100, 3, 3), core.Conv(1, 12, 4, 9, 256, 5, 1),
    ],
    ids=str,
)  # fmt: skip
def test_float32_input_gradients_sum_all_taps_in_order(kernels: str, g: core.Conv) -> None:
    """Those in the padding too, in blocks of 256: what is left out near the border may change no bit."""
    _, w, dy = float_operands(g)
    wide = [(0, 0), (g.kernel_h - 1 - g.pad,) * 2, (g.kernel_w - 1 - g.pad,) * 2, (0, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(dy, wide), (g.kernel_h, g.kernel_w), (1, 2))
    left = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, g.kernel_h * g.kernel_w * g.filters)
    right = w[:, ::-1, ::-1].transpose(1, 2, 0, 3).reshape(-1, g.channels)
    expected = oracle.gemm_f32(np.ascontiguousarray(left), np.ascontiguousarray(right)).reshape(g.x_shape)
    assert core.conv_input_grad(g, dy, w).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "g", [*GEOMETRIES, core.Conv(20, 24, 24, 3, 10, 5, 5), core.Conv(8, 14, 14, 32, 40, 3, 3, 1, 1)], ids=str
)
def test_float32_convolution_is_the_same_everywhere_and_right(each_isa: list[tuple[str, int]], g: core.Conv) -> None:
    x, w, dy = float_operands(g)
    results = {}
    for isa, threads in each_isa:
        core.set_isa(isa)
        core.set_threads(threads)
        results[isa, threads] = (core.conv_forward(g, x, w), core.conv_input_grad(g, dy, w), core.conv_weight_grad(g, x, dy))
    first = results["ref", 1]
    for found, expected in itertools.product(results.values(), [first]):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    tx, tw = (torch.from_numpy(t.transpose(0, 3, 1, 2).copy()).double().requires_grad_() for t in (x, w))
    y = torch.nn.functional.conv2d(tx, tw, stride=g.stride, padding=g.pad)
    y.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()).double())
    for found, expected in zip(first, (y.detach(), tx.grad, tw.grad), strict=True):
        expected = expected.numpy().transpose(0, 2, 3, 1)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# ---- refusals --------------------------------------------------

A, B = np.zeros((3, 4), np.int8), np.zeros((4, 5), np.int8)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((A, B.T), {}, "the inner sizes differ: op(a) is 3 x 4, op(b) is 5 x 4"),
        ((A.astype(F), B), {}, "must both be float32 or both integer, not float32 and int8"),
        ((A.astype(np.int16), B), {}, "a must be a 2-D array of int8 or uint8 or float32"),
        ((A, B.astype(np.uint8)), {}, "b must be a 2-D array of int8 or float32"),
        ((A[0], B), {}, "a must be a 2-D"),
        (("x", B), {}, "a must be a 2-D"),
        ((A, B), {"threads": 0}, "threads must be in 1 .. 1024, not 0"),
        ((A, B), {"out": np.zeros((3, 4), np.int32)}, "out must have shape (3, 5), not (3, 4)"),
        ((A, B), {"out": np.zeros((3, 5), F)}, "out must be an int32 array, not float32"),
        ((A, B), {"out": np.zeros((5, 3), np.int32).T}, "out must be C-contiguous"),
        ((A.astype(F), B.astype(F)), {"accumulator": ACCUMULATORS["acc16"]}, "acc16 is for integer operands"),
    ],
)
def test_bad_products(arguments: tuple, options: dict, words: str) -> None:
    threads = core.threads()
    with pytest.raises(core.CoreError) as caught:
        core.gemm(*arguments, **options)
    assert words in str(caught.value) and core.threads() == threads


def test_threads_of_one_call_only() -> None:
    before = core.threads()
    core.gemm(A, B, threads=3)
    assert core.threads() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(pad=3), "padding must be smaller than the kernel"),
        (dict(channels=20000), "at most 24576"),
        (dict(filters=0), "must be positive"),
        (dict(batch=2**21), "larger than 2^20"),
    ],
)
def test_bad_geometries(change: dict, words: str) -> None:
    g = core.Conv(**(dict(batch=1, height=8, width=8, channels=2, filters=3, kernel_h=3, kernel_w=3) | change))
    lib, ffi = call.lib, call.ffi
    # refused before memory is touched
    status = lib.octo_conv_forward_s8(products.conv_struct(g), ffi.NULL, 0, ffi.NULL, ffi.NULL)
    assert status and words in ffi.string(lib.octo_error()).decode()


@pytest.mark.parametrize("change", [dict(kernel_h=20), dict(stride=0), dict(kernel_w=9), dict(height=1)])
def test_geometries_without_output(change: dict) -> None:
    with pytest.raises(core.CoreError, match="convolution: a .* does not fit a .* image"):
        core.Conv(**(dict(batch=1, height=8, width=8, channels=2, filters=3, kernel_h=3, kernel_w=3) | change))


def test_sizes_near_the_limits_are_refused_not_wrapped() -> None:
    lib, ffi, big = call.lib, call.ffi, 2**62
    for m, n, k in itertools.product((1, big), repeat=3):
        if (m, n, k) != (1, 1, 1):
            assert lib.octo_gemm_s8(0, 0, m, n, k, ffi.NULL, k, ffi.NULL, n, ffi.NULL, n)
            assert "2^40" in ffi.string(lib.octo_error()).decode()
    assert lib.octo_gemm_s8(0, 0, -1, 1, 1, ffi.NULL, 1, ffi.NULL, 1, ffi.NULL, 1)
