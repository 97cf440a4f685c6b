"""Unified INT8 Training against a direct transcription of its equations."""

from __future__ import annotations

import numpy as np
import pytest
from kit import passes as direct

from octosim import core, methods
from octosim.engine.nodes import Context, Node
from octosim.errors import OctosimError
from octosim.methods import ui8

F = np.float32


def cosine_deviation(g: np.ndarray, q: np.ndarray) -> float:
    g, q = g.astype(np.float64).ravel(), q.astype(np.float64).ravel()
    return 1 - g @ q / np.sqrt((g @ g) * (q @ q))


@pytest.mark.parametrize("period", [1, 2, 100])
def test_three_steps(period: int) -> None:
    shares, deviations = {}, {}

    def error(node: Node, layer: int, dy: np.ndarray, step: int) -> tuple:
        words = core.philox(dy.size, 3, step, node.tensor(0)).reshape(dy.shape)
        largest = float(np.abs(dy).max())
        if (step - 1) % period == 0:
            tried = {}
            for i in range(100, 0, -1):
                limit = i / 100 * largest
                tried[i] = cosine_deviation(dy, direct.codes(dy, -limit, limit, "stochastic", words)[0])
            best = min(tried, key=lambda i: tried[i])
            shares[layer], deviations[layer] = best / 100, tried[best]
        limit = float(F(shares[layer])) * largest
        made = direct.codes(dy, -limit, limit, "stochastic", words)
        return made, made

    def rate(layer: int) -> float:
        return max(np.exp(-20 * deviations[layer]), 0.1)

    def heavy_tails(node: Node) -> None:
        w = node.params["w"]
        w[:] = 0.2 * (w / np.abs(w).max()) ** 7

    seen = []
    direct.three_steps(
        methods.make("ui8", {"period": period, "grid": 100}), lambda layer, x: direct.extremes(x), error, rate,
        lambda step: seen.append(dict(deviations)), heavy_tails,
    )  # fmt: skip
    assert len({tuple(s.items()) for s in seen}) == (3 if period == 1 else 2 if period == 2 else 1)
    assert any(share < 1 for share in shares.values())


def test_deviation() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-25, 1.0, 1e30):
        g = (rng.normal(0, 1, (1000, 20)) ** 3 * scale).astype(F)
        q = np.clip(np.rint(g / g.max() * 400), -127, 127).astype(np.int8)
        assert ui8.deviation(g, q) == pytest.approx(cosine_deviation(g / scale, q), rel=1e-5)
    assert ui8.deviation(g, np.zeros(g.shape, np.int8)) == 0 == ui8.deviation(np.zeros_like(g), q)
    assert ui8.deviation(g, -q) == pytest.approx(2, abs=0.1)


def test_a_sharp_gradient_is_clipped() -> None:
    """Most values far below the largest: the search must find the clipping that keeps the direction best."""
    rng = np.random.default_rng(0)
    dy = rng.normal(0, 1, (40_000, 1)).astype(F)
    dy[0] = 12.0
    method = methods.make("ui8", {})
    node = Node("fc1", 0, None, (1,), (1,))
    method.init(node, 0)
    method.error(node, dy, Context(True, 0, 1))
    share, found = node.state["clip"].tolist()
    assert 0.4 < share < 0.9 and 0 < found < 1e-3
    assert method.error(node, dy, Context(True, 0, 2)).scale == pytest.approx(share * 12 / 127)


def test_learning_rate_has_a_floor() -> None:
    method, node = methods.make("ui8", {}), Node("fc1", 0, None, (1,), (1,))
    used: list[float] = []
    method.update(node, "w", 0.5, used.append, Context(True, 0, 1))  # a layer without codes, as batch normalization
    for deviation in (0.0, 0.05, 0.5):
        node.state["clip"] = np.array([1, deviation], F)
        method.update(node, "w", 0.5, used.append, Context(True, 0, 1))
    assert [float(lr) for lr in used] == [0.5, 0.5, pytest.approx(0.5 * np.exp(-1), rel=1e-6), 0.5 * 0.1]


@pytest.mark.parametrize("bad", [{"grid": 0}, {"period": 0}, {"alpha": 41}, {"beta": 1.5}, {"alpha": float("nan")}])
def test_refused(bad: dict) -> None:
    with pytest.raises(OctosimError, match=f"ui8: {next(iter(bad))} must be in"):
        methods.make("ui8", bad)
