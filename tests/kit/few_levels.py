"""Fits of few levels and codes in two parts in NumPy: what cext/levels.inc computes, to the bit."""

from __future__ import annotations

import numpy as np

F = np.float32
LARGEST_CODE = 255 * 127 + 127


def total(x: np.ndarray) -> float:
    """The sum in float64, 65,536 elements one after the other, then their sums one after the other."""
    flat, size, result = x.ravel(), 1 << 16, 0.0
    for i in range(0, flat.size, size):
        result += float(np.cumsum(flat[i : i + size], dtype=np.float64)[-1])
    return result


def binary(w: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, float]:
    return np.where(w < 0, -1, 1).astype(np.int8), total(d * np.abs(w)) / total(d)


def ternary_exact(w: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, float]:
    order = np.argsort(-np.abs(w), axis=None, kind="stable")
    size, weight = np.abs(w).ravel()[order].astype(np.float64), d.ravel()[order].astype(np.float64)
    mass = np.cumsum(weight)
    c = np.cumsum(weight * size) / mass / 2
    fits = (size > c) & (c > np.append(size[1:], -1))
    if not fits.any():
        return np.zeros(w.shape, np.int8), 0.0
    best = int(np.argmax(np.where(fits, c * c * mass, -1)))
    codes = np.zeros(w.size, np.int8)
    codes[order[: best + 1]] = np.sign(w.ravel()[order[: best + 1]])
    return codes.reshape(w.shape), float(2 * c[best])


def iterated(w: np.ndarray, d: np.ndarray, n: int, codes: np.ndarray) -> tuple[np.ndarray, float]:
    alpha = 0.0
    for _ in range(10):
        beta = codes.astype(F) / F(n)
        weighted = d * beta
        below = total(weighted * beta)
        before, alpha = alpha, abs(total(weighted * w) / below) if below > 0 else float(np.abs(w).max())
        if alpha == 0:
            return np.zeros(w.shape, np.int8), 0.0
        codes = np.rint(np.clip(w / F(alpha), F(-1), F(1)) * F(n)).astype(np.int8)
        if abs(alpha - before) <= 1e-6:
            break
    return codes, alpha


def fit(w: np.ndarray, d: np.ndarray, bits: int, exact: bool, codes: np.ndarray) -> tuple[np.ndarray, float]:
    if bits == 1:
        return binary(w, d)
    return ternary_exact(w, d) if exact else iterated(w, d, 2 ** (bits - 1) - 1, codes)


def forward_codes(x: np.ndarray, words: np.ndarray | None) -> tuple[np.ndarray, float]:
    low, high = float(x.min()), float(x.max())
    scale, zero = (high - low) / 510, 0.0
    if scale:
        zero = min(max(255 - high / scale, -255), 255)
    real = x.astype(np.float64) / (scale or 1.0) + zero
    real = np.rint(real) if words is None else np.floor(real + words * 2.0**-32)
    return np.clip(real, -LARGEST_CODE, LARGEST_CODE).astype(np.int64), scale or 1.0


def backward_codes(x: np.ndarray, ratio: float, with_zero: bool = False) -> tuple[np.ndarray, float]:
    low, high = float(x.min()), float(x.max())
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = max(low, ratio * low), min(high, ratio * high)
    scale = (high - low) / 254 or 1.0
    real = np.rint(np.minimum(np.maximum(x.astype(np.float64), low), high) / scale)
    return np.clip(real, -LARGEST_CODE, LARGEST_CODE).astype(np.int64), scale
