"""Distribution Adaptive INT8 against a direct transcription of its equations."""

from __future__ import annotations

import numpy as np
import pytest
from kit import passes as direct

from octosim import core, methods
from octosim.engine.nodes import Context, Node
from octosim.errors import OctosimError

F = np.float32


@pytest.mark.parametrize("rounding", ["half-even", "stochastic"])
def test_three_steps(rounding: str) -> None:
    clip: dict[tuple[int, int], np.float32] = {}
    kinds = set()

    def error(node: Node, layer: int, dy: np.ndarray, step: int) -> tuple:
        words = [core.philox(dy.size, 3, step, node.tensor(role)).reshape(dy.shape) for role in (0, 1)]
        largest = float(np.abs(dy).max())
        tensor = direct.codes(dy, -largest, largest, rounding, words[0])
        q, scales = np.zeros(dy.shape, np.int64), np.zeros(dy.shape[-1], F)
        for c in range(dy.shape[-1]):
            g = dy[..., c]
            sigma, most = np.sqrt((g.astype(np.float64) ** 2).mean()), np.abs(g).max()
            gaussian = (np.abs(g) > sigma).mean() > 0.3
            kinds.add(bool(gaussian))
            before = clip.get((layer, c), F(0))
            if gaussian or not before:
                clip[layer, c] = most
            else:
                clip[layer, c] = F(1 - 1.0 * 0.8) * before + F(0.8) * most
            limit = float(clip[layer, c])
            q[..., c], scales[c] = direct.codes(g, -limit, limit, rounding, words[1][..., c])
        return tensor, (q, scales)

    direct.three_steps(methods.make("dai8", {"rounding": rounding}), lambda layer, x: direct.extremes(x), error)
    assert kinds == {True, False}


def test_an_inverted_t_is_clipped_and_a_gaussian_is_not() -> None:
    rng = np.random.default_rng(0)
    dy = np.stack([rng.normal(0, 1, 10_000), rng.normal(0, 1, 10_000) ** 5], 1).astype(F)
    method, node = methods.make("dai8", {}), Node("fc1", 0, None, (1,), (2,))
    method.init(node, 0)
    method.error(node, dy, Context(True, 0, 1))
    first = np.abs(dy).max(0)
    assert np.array_equal(node.state["clip"], first)
    error = method.error(node, 2 * dy, Context(True, 0, 2))
    assert node.state["clip"][0] == 2 * first[0]
    assert node.state["clip"][1] == pytest.approx(0.2 * first[1] + 0.8 * 2 * first[1])
    assert np.abs(error.channels.q).max() == 127 and error.channels.scales == pytest.approx(node.state["clip"] / 127)
    assert error.tensor.scale == pytest.approx(2 * np.abs(dy).max() / 127)


def test_zero_and_extreme_gradients() -> None:
    method, node = methods.make("dai8", {}), Node("fc1", 0, None, (1,), (2,))
    method.init(node, 0)
    for value in (0.0, 1e-40, 1e38):
        error = method.error(node, np.full((5, 2), value, F), Context(True, 0, 1))
        assert np.isfinite(error.channels.scales).all() and (error.channels.q == (127 if value == 1e38 else 0)).all()
    with pytest.raises(core.NotFiniteError):
        method.error(node, np.full((5, 2), np.nan, F), Context(True, 0, 1))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"threshold": 2}, "threshold must be in 0 .. 1"),
        ({"a": 0}, r"a and k a must be in"),
        ({"k": 2}, "a and k a must be in"),
    ],
)
def test_refused(bad: dict, words: str) -> None:
    with pytest.raises(OctosimError, match=f"dai8: {words}"):
        methods.make("dai8", bad)
