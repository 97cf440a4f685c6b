"""In-hindsight ranges against a direct transcription."""

from __future__ import annotations

import numpy as np
import pytest
from kit import passes as direct

from octosim import core, methods
from octosim.engine.nodes import Context, Node
from octosim.errors import OctosimError

F = np.float32


class Ranges:
    """The moving average of all ranges before; the first tensor's own."""

    def __init__(self, momentum: float):
        self.momentum, self.kept = F(momentum), {}

    def __call__(self, key: tuple, x: np.ndarray) -> tuple[float, float]:
        own = np.array(direct.extremes(x), F)
        before = self.kept.get(key)
        self.kept[key] = own if before is None else self.momentum * before + (F(1) - self.momentum) * own
        used = own if before is None else before
        return float(used[0]), float(used[1])


@pytest.mark.parametrize("rounding", ["half-even", "stochastic"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_three_steps(momentum: float, rounding: str) -> None:
    ranges = Ranges(momentum)

    def error(node: Node, layer: int, dy: np.ndarray, step: int) -> tuple:
        words = core.philox(dy.size, 3, step, node.tensor(0)).reshape(dy.shape)
        made = direct.codes(dy, *ranges(("dy", layer), dy), rounding, words)
        return made, made

    method = methods.make("hindsight", {"momentum": momentum, "rounding": rounding})
    direct.three_steps(method, lambda layer, x: ranges(("x", layer), x), error)


def test_a_tensor_does_not_see_its_own_range() -> None:
    method, node = methods.make("hindsight", {"rounding": "half-even"}), Node("fc1", 0, None, (1,), (1,))
    method.init(node, 0)
    one = np.array([[-1], [0.5]], F)
    assert method.error(node, one, Context(True, 0, 1)).q.ravel().tolist() == [-127, 64]
    assert method.error(node, 4 * one, Context(True, 0, 2)).q.ravel().tolist() == [-127, 64], "clipped at the range before"
    assert node.state["dy_range"] == pytest.approx([-1.3, 0.65])
    before = node.state["dy_range"].copy()
    method.error(node, 100 * one, Context(False, 0, 3))
    assert np.array_equal(before, node.state["dy_range"])


def test_refused() -> None:
    with pytest.raises(OctosimError, match=r"hindsight: momentum must be in \[0, 1\), not 1"):
        methods.make("hindsight", {"momentum": 1})
