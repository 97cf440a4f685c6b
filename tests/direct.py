"""Slow, direct convolutions in int64 or float64, for transcriptions of a method's equations.  NHWC, stride 1."""

from __future__ import annotations

import itertools

import numpy as np


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64 if x.dtype.kind == "i" else np.float64)


def padded(x: np.ndarray, pad: int) -> np.ndarray:
    return np.pad(wide(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def forward(x: np.ndarray, w: np.ndarray, pad: int = 0) -> np.ndarray:
    """Of a convolution, or of a fully connected layer where w is a matrix."""
    if w.ndim == 2:
        return wide(x) @ wide(w).T
    x, kernel = padded(x, pad), w.shape[1]
    out_h, out_w = x.shape[1] - kernel + 1, x.shape[2] - kernel + 1
    taps = itertools.product(range(kernel), range(kernel))
    return sum(np.einsum("nyzc,fc->nyzf", x[:, i : i + out_h, j : j + out_w], wide(w)[:, i, j]) for i, j in taps)


def weight_grad(x: np.ndarray, dy: np.ndarray, w: np.ndarray, pad: int = 0) -> np.ndarray:
    if w.ndim == 2:
        return wide(dy).T @ wide(x)
    x, dw = padded(x, pad), np.zeros_like(wide(w))
    for i, j in itertools.product(range(w.shape[1]), range(w.shape[1])):
        dw[:, i, j] = np.einsum("nyzf,nyzc->fc", wide(dy), x[:, i : i + dy.shape[1], j : j + dy.shape[2]])
    return dw


def input_grad(dy: np.ndarray, w: np.ndarray, pad: int = 0) -> np.ndarray:
    if w.ndim == 2:
        return wide(dy) @ wide(w)
    kernel = w.shape[1]
    batch, out_h, out_w = dy.shape[:3]
    dx = np.zeros((batch, out_h + kernel - 1, out_w + kernel - 1, w.shape[3]), wide(w).dtype)
    for i, j in itertools.product(range(kernel), range(kernel)):
        dx[:, i : i + out_h, j : j + out_w] += np.einsum("nyzf,fc->nyzc", wide(dy), wide(w)[:, i, j])
    return dx[:, pad : dx.shape[1] - pad, pad : dx.shape[2] - pad]
