"""Activations against float64: the errors that docs/numerics.md states; NaN, in place, gates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octosim import core

X = np.concatenate([
    np.linspace(-20, 20, 20001), np.random.default_rng(0).normal(0, 1e-3, 2000), np.linspace(-100, 100, 5001),
    [0.0, -0.0, 3, -3, 0.625, -0.625, 1e-30, 1e-42],
]).astype(np.float32)  # fmt: skip


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x)))


def phi(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


def hard(x: np.ndarray) -> np.ndarray:
    return np.clip(x / 6 + 0.5, 0, 1)


def gelu_tanh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unit, cube = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(unit * (x + cube * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * unit * (1 + 3 * cube * x * x)


def exact(kind: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes."""
    s = sigmoid(x)
    return {
        "hard-swish": lambda: (x * hard(x), np.where(x <= -3, 0, np.where(x < 3, x / 3 + 0.5, 1))),
        "sigmoid": lambda: (s, s * (1 - s)),
        "silu": lambda: (x * s, s * (1 + x * (1 - s))),
        "tanh": lambda: (np.tanh(x), 1 - np.tanh(x) ** 2),
        "gelu": lambda: (x * phi(x), phi(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
        "gelu-tanh": lambda: gelu_tanh(x),
    }[kind]()


ULPS = {"hard-swish": 2.0, "sigmoid": 2.5, "silu": 3.2, "tanh": 1.4}
SLOPES = {"hard-swish": 1e-7, "sigmoid": 1e-7, "silu": 1.2e-6, "tanh": 1.5e-7, "gelu": 3e-7, "gelu-tanh": 6e-7}


@pytest.mark.parametrize("kind", core.SMOOTH)
def test_stated_errors(kind: str) -> None:
    values, slopes = exact(kind, X.astype(np.float64))
    found, _ = core.activation(kind, X)
    error = np.abs(found - values)
    assert (error <= 1.3e-7 * np.maximum(1, np.abs(X))).all() or kind == "silu"
    if kind in ULPS:
        large = np.abs(values) > 1e-30
        assert (error[large] / np.spacing(np.abs(values[large]).astype(np.float32))).max() <= ULPS[kind]
    kept = found if kind in ("sigmoid", "tanh") else X
    assert np.abs(core.activation_backward(kind, kept, np.ones_like(X)) - slopes).max() <= SLOPES[kind]


@pytest.mark.parametrize("kind", core.SMOOTH)
def test_in_place_and_nan(kind: str) -> None:
    x, dy = X.copy(), np.linspace(-1, 1, X.size).astype(np.float32)
    wanted, slopes = core.activation(kind, X)[0], core.activation_backward(kind, X, dy)
    assert np.array_equal(core.activation(kind, x, out=x)[0], wanted)
    assert np.array_equal(core.activation_backward(kind, X, dy, out=dy), slopes)
    assert np.isnan(core.activation(kind, np.array([np.nan, 1], np.float32))[0][0])
    with pytest.raises(core.NotFiniteError):
        core.activation(kind, np.array([np.nan, 1], np.float32), find_range=True)
    y, found = core.activation(kind, X, find_range=True)
    assert found == (float(y.min()), float(y.max()))


@pytest.mark.parametrize(
    "kind, ends, values, inside",
    [
        ("clip", (-1.0, 2.5), lambda x: np.clip(x, -1, 2.5), lambda x: (x > -1) & (x < 2.5)),
        ("leaky", (0.25,), lambda x: np.where(x > 0, x, np.float32(0.25) * x), lambda x: x > 0),
        ("hard-sigmoid", (0.2, 0.5), lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1),
         lambda x: (np.float32(0.2) * x + np.float32(0.5) > 0) & (np.float32(0.2) * x + np.float32(0.5) < 1)),
    ],
)  # fmt: skip
def test_gates(kind: str, ends: tuple, values, inside) -> None:
    gate = np.zeros(core.sign_bytes(X.size), np.uint8)
    y, _ = core.activation(kind, X, *ends, gate=gate)
    bits = np.unpackbits(gate, count=X.size, bitorder="little").astype(bool)
    assert np.array_equal(y, values(X).astype(np.float32)) and np.array_equal(bits, inside(X))
    dy = np.linspace(-1, 1, X.size).astype(np.float32)
    assert np.array_equal(core.gate_backward(gate, dy, 0.2, 0.5), np.where(bits, dy * np.float32(0.2), dy * np.float32(0.5)))


def test_views_sum_in_order() -> None:
    """assign, plus, times: NumPy's broadcasting; sums over what the output has once, ascending, in float32."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4, 5, 6), (3, 1, 1, 6)))
    assert np.array_equal(core.times(a, b, np.empty_like(a)), a * b)
    turned = a.transpose(0, 2, 1, 3)
    assert np.array_equal(core.plus(turned, b, np.empty((3, 5, 4, 6), np.float32)), turned + b)
    wanted = np.zeros((3, 1, 1, 6), np.float32)
    for y in range(4):
        for x in range(5):
            term = a[:, y : y + 1, x : x + 1] * b
            wanted = term if (y, x) == (0, 0) else wanted + term
    assert np.array_equal(core.times(a, b, np.empty_like(b)), wanted)
    part = np.zeros((3, 4, 9, 6), np.float32)
    core.assign(part[:, :, 2:7], a)
    assert np.array_equal(part[:, :, 2:7], a) and not part[:, :, :2].any() and not part[:, :, 7:].any()
    with pytest.raises(core.CoreError):
        core.plus(a, rng.normal(size=(2, 6)).astype(np.float32), np.empty_like(a))
    with pytest.raises(core.CoreError):
        core.assign(np.empty((3,)), np.empty(3, np.float32))
