"""Matrices of int8 codes with a float32 scale for each block of 32 x 32 (cext/blocks.inc, cext/api_blocks.c)."""

from __future__ import annotations

from typing import Any

import numpy as np

from octosim.core.call import F32, S8, Array, CoreError, Stream, costs, ffi, lib, ok, output, pointer
from octosim.core.products import Conv, conv_cost, conv_struct, gemm_cost


def _scales_shape(rows: int, cols: int) -> tuple[int, int]:
    """The shape of the scales of a matrix in blocks."""
    return -(-rows // lib.OCTO_SIDE), -(-cols // lib.OCTO_SIDE)


def _matrix(name: str, x: Array, dtype: np.dtype[Any]) -> Any:
    """The pointer of a matrix with elements."""
    if not isinstance(x, np.ndarray) or x.ndim != 2 or not x.size:
        raise CoreError(f"{name} must be a 2-D array with elements")
    return pointer(name, x, dtype)


def _quantize(px: Any, shape: tuple[int, ...], half: bool, random: Stream | None, q: Any, y: Any) -> Array:
    """Writes the codes of a matrix, or their values, where these have a pointer; returns the scales."""
    scales, ps = output("scales", None, F32, _scales_shape(*shape))
    rounding = lib.OCTO_STOCHASTIC if random else lib.OCTO_HALF_EVEN
    ok(lib.octo_quantize_blocks_s8(*shape, px, half, rounding, *(random or (0, 0, 0)), q, ps, y))
    return scales


def quantize_blocks(
    x: Array, *, half: bool = False, random: Stream | None = None, out: Array | None = None
) -> tuple[Array, Array]:
    """int8 codes of a float32 matrix and the float32 scale of each block of 32 x 32, (ceil(rows / 32), ceil(columns / 32)).

    scale = max|block| / 127, with `half` rounded to float16 (65504 at most), 0 up to 1e-38; code = x / scale within +-127,
    rounded to the nearest, ties to even, or stochastically from random = (seed, step, tensor).  NotFiniteError for a NaN or an
    infinity.
    """
    px = _matrix("x", x, F32)
    out, q = output("out", out, S8, x.shape)
    return out, _quantize(px, x.shape, half, random, q, ffi.NULL)


costs("octo_quantize_blocks_s8", rounding=4, x=2)


def round_to_blocks(
    x: Array, *, half: bool = False, random: Stream | None = None, out: Array | None = None
) -> Array:
    """The float32 values that the codes of `quantize_blocks` stand for; out may be x."""
    px = _matrix("x", x, F32)
    out, y = output("out", out, F32, x.shape)
    _quantize(px, x.shape, half, random, ffi.NULL, y)
    return out


def dequantize_blocks(q: Array, scales: Array, *, out: Array | None = None) -> Array:
    """code * scale of its block, float32; q int8, scales as `quantize_blocks` makes them."""
    pq, ps = _matrix("q", q, S8), pointer("scales", scales, F32, _scales_shape(*q.shape))
    out, y = output("out", out, F32, q.shape)
    ok(lib.octo_dequantize_blocks_s8(*q.shape, pq, ps, y))
    return out


def quantize_windows(g: Conv, x: Array, *, half: bool = False, out: Array | None = None) -> tuple[Array, Array]:
    """`quantize_blocks`, nearest, of the matrix of a convolution's windows: x float32 g.x_shape, codes (batch out_h out_w,
    kernel_h kernel_w channels).  Padding is 0."""
    rows, cols = g.batch * g.out_h * g.out_w, g.kernel_h * g.kernel_w * g.channels
    px = pointer("x", x, F32, g.x_shape)
    out, q = output("out", out, S8, (rows, cols))
    scales, ps = output("scales", None, F32, _scales_shape(rows, cols))
    ok(lib.octo_quantize_windows_s8(conv_struct(g), px, half, q, ps))
    return out, scales


costs("octo_quantize_windows_s8", run=lambda arguments: int(arguments[0].kernel_w * arguments[0].channels))


def _blocks(name: str, q: Array, scales: Array) -> tuple[bool, Any, Any]:
    """Whether codes in blocks lie in memory as their transpose, and the pointers of the codes and of their scales."""
    if not isinstance(q, np.ndarray) or q.ndim != 2 or not isinstance(scales, np.ndarray):
        raise CoreError(f"{name} must be a 2-D array of int8 and have an array of scales")
    turned = not q.flags.c_contiguous
    if turned:
        q, scales = q.T, scales.T
    return turned, pointer(name, q, S8), pointer(f"{name}'s scales", scales, F32, _scales_shape(*q.shape))


def gemm_blocks(a: Array, a_scales: Array, b: Array, b_scales: Array, *, out: Array | None = None) -> Array:
    """A B^T in float32, of int8 codes with a float32 scale for each block of 32 x 32.

    a: int8 (m, k), b: int8 (n, k), each C-contiguous or, together with its scales, the transpose of such an array; a_scales:
    float32 (ceil(m / 32), ceil(k / 32)), b_scales likewise.  For each 32 indices of the sum in ascending order
    ((int32 sum of products) S_a) S_b is added, each operation rounded.
    """
    turned_a, pa, scales_a = _blocks("a", a, a_scales)
    turned_b, pb, scales_b = _blocks("b", b, b_scales)
    (m, k), (n, k_b) = a.shape, b.shape
    if k != k_b:
        raise CoreError(f"the inner sizes differ: a is {m} x {k}, b is {n} x {k_b}")
    out, c = output("out", out, F32, (m, n))
    ok(lib.octo_gemm_blocks_s8(turned_a, not turned_b, m, n, k, pa, scales_a, pb, scales_b, c))
    return out


costs("octo_gemm_blocks_s8", product=gemm_cost, weights="b")


def conv_input_grad_blocks(
    g: Conv, dy: Array, dy_scales: Array, w: Array, w_scales: Array, *, out: Array | None = None
) -> Array:
    """dX in float32, shape g.x_shape, of codes in blocks: the product, as `gemm_blocks` makes it, added up window by window.

    dy: int8 (batch out_h out_w, filters), w: int8 (filters, kernel_h kernel_w channels), with their scales.  Each pixel's
    terms are added in float32 from 0 in ascending (kernel_h, kernel_w).
    """
    rows, cols = g.batch * g.out_h * g.out_w, g.kernel_h * g.kernel_w * g.channels
    pdy, pw = pointer("dy", dy, S8, (rows, g.filters)), pointer("w", w, S8, (g.filters, cols))
    scales = pointer("dy's scales", dy_scales, F32, _scales_shape(rows, g.filters))
    scales_w = pointer("w's scales", w_scales, F32, _scales_shape(g.filters, cols))
    out, pdx = output("out", out, F32, g.x_shape)
    ok(lib.octo_conv_input_grad_blocks_s8(conv_struct(g), pdy, scales, pw, scales_w, pdx))
    return out


costs("octo_conv_input_grad_blocks_s8", product=conv_cost("dX"), weights="w")
