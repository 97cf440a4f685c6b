"""Slow, independent definitions that judge ref.c: int64 NumPy, Python integers, float32 one operation at a time."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

F = np.float32


def gemm(a: np.ndarray, b: np.ndarray, transpose_a: bool = False, transpose_b: bool = False) -> np.ndarray:
    """The int64 product."""
    a, b = (a.T if transpose_a else a), (b.T if transpose_b else b)
    return a.astype(np.int64) @ b.astype(np.int64)


def pad(x: np.ndarray, width: int, value: int = 0) -> np.ndarray:
    return np.pad(x, ((0, 0), (width, width), (width, width), (0, 0)), constant_values=value)


def convolution(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    """Y[n, y, z, f] of padded x, NHWC, weights [f][i][j][c]."""
    filters, height, width, _ = w.shape
    out_h, out_w = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    y = np.zeros((len(x), out_h, out_w, filters), x.dtype)
    for i in range(height):
        for j in range(width):
            window = x[:, i : i + stride * out_h : stride, j : j + stride * out_w : stride][:, :out_h, :out_w]
            y += window @ w[:, i, j].T
    return y


def convolution_grads(x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """dX of the padded x, and dW."""
    _, out_h, out_w, _ = dy.shape
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(w.shape[1]):
        for j in range(w.shape[2]):
            rows, cols = slice(i, i + stride * (out_h - 1) + 1, stride), slice(j, j + stride * (out_w - 1) + 1, stride)
            dx[:, rows, cols] += dy @ w[:, i, j]
            dw[:, i, j] = np.einsum("nyzf,nyzc->fc", dy, x[:, rows, cols])
    return dx, dw


def depthwise(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    """Y of padded x, each channel with its own kernel w[c][i][j]; taps added in ascending (i, j), which float32 can tell."""
    out_h, out_w = (x.shape[1] - w.shape[1]) // stride + 1, (x.shape[2] - w.shape[2]) // stride + 1
    y = np.zeros((len(x), out_h, out_w, len(w)), x.dtype)
    for i in range(w.shape[1]):
        for j in range(w.shape[2]):
            y = y + x[:, i : i + stride * out_h : stride, j : j + stride * out_w : stride][:, :out_h, :out_w] * w[:, i, j]
    return y


def depthwise_grads(x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """dX of the padded x, taps added in ascending (i, j), and dW."""
    _, out_h, out_w, _ = dy.shape
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(w.shape[1]):
        for j in range(w.shape[2]):
            rows, cols = slice(i, i + stride * (out_h - 1) + 1, stride), slice(j, j + stride * (out_w - 1) + 1, stride)
            dx[:, rows, cols] += dy * w[:, i, j]
            dw[:, i, j] = (dy * x[:, rows, cols]).sum((0, 1, 2))
    return dx, dw


def depthwise_weight_grad_f32(x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int) -> np.ndarray:
    """dW in the documented order: pixels one after the other in slices of rows, the slices in float64."""
    images, out_h, out_w, channels = dy.shape
    step, total = max(1, 16384 // (out_w * channels)), np.zeros(w.shape)
    rows = [(n, y) for n in range(images) for y in range(out_h)]
    for start in range(0, len(rows), step):
        sums = np.zeros(w.shape, F)
        for n, y in rows[start : start + step]:
            for z in range(out_w):
                window = x[n, y * stride : y * stride + w.shape[1], z * stride : z * stride + w.shape[2]]
                sums = sums + (dy[n, y, z] * window).transpose(2, 0, 1)
        total += sums.astype(np.float64)
    return total.astype(F)


PHILOX = {  # word width: multipliers, Weyl increments (Salmon et al., SC'11, table 2)
    32: ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)),
    64: ((0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)),
}


def philox(counter: tuple[int, ...], key: tuple[int, ...], width: int = 32) -> list[int]:
    """Ten rounds of Philox4xW, in Python integers; numpy.random.Philox, which is 4x64, judges it."""
    (m0, m1), (w0, w1) = PHILOX[width]
    c, (k0, k1), mask = list(counter), key, 2**width - 1
    for _ in range(10):
        p0, p1 = m0 * c[0], m1 * c[2]
        c = [(p1 >> width) ^ c[1] ^ k0, p1 & mask, (p0 >> width) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
    return c


def philox_words(n: int, seed: int, step: int, tensor: int) -> np.ndarray:
    """The stream as octosim.h defines it."""
    mask = 0xFFFFFFFF
    words: list[int] = []
    for block in range(-(-n // 4)):
        words += philox((block & mask, block >> 32, tensor, step), (seed & mask, seed >> 32))
    return np.array(words[:n], np.uint32)


def round_fraction(x: Fraction, rounding: str, word: int = 0) -> int:
    """A rational number to an integer, by the definition of each rounding; word: 32 random bits."""
    floor = x.numerator // x.denominator
    rest = x - floor
    nearest = floor + (rest > Fraction(1, 2))
    if rounding == "floor":
        return floor
    if rounding == "toward-zero":
        return floor + (x < 0 and rest > 0)
    if rounding == "stochastic":
        return floor + (rest + Fraction(word, 2**32) >= 1)
    if rest != Fraction(1, 2):
        return nearest
    return {"half-even": floor + floor % 2, "half-up": floor + 1, "half-away": floor + (x > 0)}[rounding]


def pseudo_stochastic(x: int, shift: int) -> int:
    """NITI's shift, in its published steps: a division that truncates, the dropped bits' halves compared."""
    quotient = int(Fraction(x, 2**shift))  # toward zero
    dropped = abs(x - quotient * 2**shift)
    probability = dropped // 2 ** (shift // 2)
    random = dropped - probability * 2 ** (shift // 2)
    if shift % 2:
        random *= 2
    return quotient + (probability > random) * (1 if x > 0 else -1)


def truncated(a: int, b: int) -> int:
    """C's division."""
    return abs(a) // b * (1 if a >= 0 else -1)


def gemmlowp(x: int, multiplier: int, shift: int) -> int:
    """SaturatingRoundingDoublingHighMul and RoundingDivideByPOT as gemmlowp's fixedpoint.h states them."""
    product = x * multiplier
    high = truncated(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)
    mask = 2**shift - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> shift) + ((high & mask) > threshold)


def wrap32(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def quantize(
    x: np.ndarray,
    inv_scale: float,
    zero: int,
    low: int,
    high: int,
    rounding: str = "half-even",
    words: np.ndarray | None = None,
) -> np.ndarray:
    """Codes of the float32 product; stochastic rounding adds 24 random bits in float32."""
    product = x.astype(F) * F(inv_scale)
    if rounding == "stochastic":
        assert words is not None
        product = np.where(np.rint(product) == product, product, product + (words >> 8).astype(F) * F(2.0**-24))
        rounding = "floor"
    exact = [round_fraction(Fraction(float(v)), rounding) for v in np.clip(product, -1e6, 1e6).flat]
    return np.clip(np.array(exact, np.int64).reshape(x.shape) + zero, low, high).astype(np.int8)


def lane_rows(cols: int) -> int:
    return 16 * (32 // cols if cols <= 16 else 1) if cols <= 128 else 4 if cols < 512 else 1


def block_rows(cols: int) -> int:
    return 64 * (512 // cols if cols <= 16 else 16 if cols <= 128 else 4 if cols < 512 else 1)


def column_sums(x: np.ndarray) -> np.ndarray:
    """float32 sums in the documented order: lanes, lanes to blocks, blocks in float64."""
    rows, cols = x.shape
    lanes, step = lane_rows(cols), block_rows(cols)
    total = np.zeros(cols)
    for start in range(0, rows, step):
        block = x[start : start + step]
        sums = np.zeros((lanes, cols), F)
        for r in range(len(block)):
            sums[r % lanes] = sums[r % lanes] + block[r]
        folded = sums[0]
        for r in range(1, lanes):
            folded = folded + sums[r]
        total += folded.astype(np.float64)
    return total.astype(F)


def quantize_blocks(x: np.ndarray, half: bool = False, words: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes of blocks of 32 x 32 and, at each place, the scale of the block that it is in."""
    q, scales = np.zeros(x.shape, np.int64), np.zeros(x.shape, np.float32)
    for i in range(0, x.shape[0], 32):
        for j in range(0, x.shape[1], 32):
            here = np.s_[i : i + 32, j : j + 32]
            scale = np.float32(np.abs(x[here]).max()) / np.float32(127)
            scale = np.float32(np.float16(np.minimum(scale, np.float32(65504)))) if half else scale
            if scale > np.float32(1e-38):
                how = ("half-even", None) if words is None else ("stochastic", words[here])
                q[here], scales[here] = quantize(x[here] / scale, 1.0, 0, -127, 127, *how), scale
    return q, scales


def gemm_blocks(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """A B^T of codes with a scale at each place: for each 32 indices ((int64 sum) S_a) S_b, added in float32."""
    (qa, sa), (qb, sb) = a, b
    y = np.zeros((len(qa), len(qb)), np.float32)
    for k in range(0, qa.shape[1], 32):
        sums = qa[:, k : k + 32].astype(np.int64) @ qb[:, k : k + 32].T.astype(np.int64)
        y = y + sums.astype(np.float32) * sa[:, k, None] * sb[:, k]
    return y


def windows(x: np.ndarray, kernel: int, stride: int, pad_width: int) -> np.ndarray:
    """A row for each output pixel of a convolution: its window's elements, zeros outside the image."""
    padded = pad(x, pad_width)
    out_h, out_w = ((size - kernel) // stride + 1 for size in padded.shape[1:3])
    return np.array([
        image[y * stride : y * stride + kernel, z * stride : z * stride + kernel].ravel()
        for image in padded for y in range(out_h) for z in range(out_w)
    ])  # fmt: skip


def add_windows(rows: np.ndarray, shape: tuple[int, ...], kernel: int, stride: int, pad_width: int) -> np.ndarray:
    """The transpose of `windows`, for images of a shape: each pixel's terms added in float32 in the order of the taps."""
    dx = pad(np.zeros(shape, np.float32), pad_width)
    out_h, out_w = ((size - kernel) // stride + 1 for size in dx.shape[1:3])
    values = rows.reshape(len(dx), out_h, out_w, kernel, kernel, -1)
    for i, j in np.ndindex(kernel, kernel):
        for n, y, z in np.ndindex(len(dx), out_h, out_w):
            dx[n, y * stride + i, z * stride + j] += values[n, y, z, i, j]
    return dx[:, pad_width : pad_width + shape[1], pad_width : pad_width + shape[2]]


def gemm_f32(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32: ascending k in blocks of 256, multiply and add rounded apart."""
    total: np.ndarray | None = None
    for start in range(0, a.shape[1], 256):
        block = np.zeros((a.shape[0], b.shape[1]), F)
        for k in range(start, min(start + 256, a.shape[1])):
            block = block + a[:, k, None] * b[None, k]
        total = block if total is None else total + block
    assert total is not None
    return total
