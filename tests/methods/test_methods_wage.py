"""WAGE against a slow transcription of its equations in real numbers: equal to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kit import passes as direct

from octosim import core, engine, methods, train
from octosim.engine import probes
from octosim.engine.layers import Conv2d, Flatten, Linear, ReLU, Residual
from octosim.engine.nodes import Context
from octosim.errors import OctosimError
from octosim.methods import wage

F = np.float32
STACK = (Conv2d(4, 3, pad=1), ReLU(), Conv2d(5, 3), Flatten(), Linear(3))
PADS = (1, 0, 0)


def sigma(k: int) -> float:
    return 2.0 ** (1 - k)


def q(x: np.ndarray, k: int) -> np.ndarray:
    return np.rint(x / sigma(k)) * sigma(k)


def c(x: np.ndarray, k: int) -> np.ndarray:
    return np.clip(x, -1 + sigma(k), 1 - sigma(k))


def shift(x: float) -> float:
    return 2.0 ** round(math.log2(x))


def direct_step(
    ws: list, scales: list, images: np.ndarray, labels: np.ndarray, words: list, lr: float
) -> tuple[list, np.ndarray]:
    """One step in real numbers; all of them are multiples of powers of two that float64 holds exactly."""
    x, kept = (images.astype(F) * F(2 / 255) + F(-1)).astype(np.float64), []
    for layer, (w, scale, pad) in enumerate(zip(ws, scales, PADS, strict=True)):
        if w.ndim == 2:
            x = x.reshape(len(x), -1)
        a, wq = q(c(x, 8), 8), q(c(w, 2), 2) / scale
        kept.append((x, a, wq))
        y = direct.forward(a, wq, pad)
        x = np.maximum(y, 0) if layer == 0 else y
    e = y - np.eye(3)[labels]
    updated = []
    for layer in (2, 1, 0):
        x, a, wq = kept[layer]
        e = q(c(e / shift(np.abs(e).max()), 8), 8)
        g = direct.weight_grad(a, e, wq, PADS[layer])
        n = q(lr * g / shift(np.abs(g).max()), 16)
        whole = np.floor(np.abs(n))
        n = np.sign(n) * (whole + (words[layer] / 2**32 < np.abs(n) - whole))
        updated.insert(0, c(ws[layer] - n / 128, 2))
        e = direct.input_grad(e, wq, PADS[layer]) * (np.abs(x) <= 1 - sigma(8))
        if layer == 2:
            e = e.reshape(len(e), 5, 5, 5)
        elif layer == 1:
            e = e * (x > 0)
    return updated, y


@pytest.mark.parametrize("rate", [8.0, 1.0])
def test_three_steps(rate: float) -> None:
    network = engine.Network(STACK, (7, 7, 2), methods.make("wage", {"rate": rate}), 3)
    weighted = [node for node in network.nodes if node.layer.weighted]
    assert all(set(np.unique(node.params["w"])) == {-64, 0, 64} for node in weighted)
    ws = [node.params["w"] / 128 for node in weighted]
    scales = [float(node.state["scale"][0]) for node in weighted]
    fans = [18, 36, 125]
    assert scales == [max(shift(0.75 / math.sqrt(3 / fan)), 1) for fan in fans] and scales[2] > 1
    rng = np.random.default_rng(0)
    for step in (1, 2, 3):
        images, labels = rng.integers(0, 256, (6, 7, 7, 2), dtype=np.uint8), rng.integers(0, 3, 6).astype(np.int32)
        words = [core.philox(w.size, 3, step, n.tensor(1)).reshape(w.shape) for n, w in zip(weighted, ws, strict=True)]
        # 15 random bits decide
        ws, logits = direct_step(ws, scales, images, labels, [word >> 17 << 17 for word in words], rate)
        context = Context(True, 3, step)
        found = network.forward(network.input(images), context)
        assert np.array_equal(found, logits)
        loss, dlogits, correct = network.method.loss(found, labels)
        assert float(loss) == pytest.approx(0.5 * ((logits - np.eye(3)[labels]) ** 2).sum(1).mean())
        assert int(correct) == (logits.argmax(1) == labels).sum()
        network.backward(dlogits, context)
        for node, w in zip(weighted, ws, strict=True):
            network.method.update(node, "w", 0.0, lambda lr: pytest.fail("no optimizer"), context)
            assert node.params["w"].dtype == np.int8 and np.array_equal(node.params["w"] / 128, w), (step, node.name)
    assert any(len(np.unique(w)) > 5 for w in ws), "between the 2-bit values after an update"


@pytest.mark.parametrize("shortcut", [(), (Conv2d(8, 1),)], ids=["identity", "projection"])
def test_gradients_meet_in_one_unit(shortcut: tuple) -> None:
    """What arrives in front of residual blocks has the direction of the float gradients at the same weights and input."""
    block = Residual((Conv2d(8, 3, pad=1), ReLU(), Conv2d(8, 3, pad=1)), shortcut)
    stack = (Conv2d(8, 3, pad=1), block, block, Flatten(), Linear(4))
    rng = np.random.default_rng(0)
    images, dlogits = rng.integers(96, 160, (8, 6, 6, 3), dtype=np.uint8), rng.normal(size=(8, 4)).astype(F)
    wage_, exact = (engine.Network(stack, (6, 6, 3), methods.make(name, {}), 1) for name in ("wage", "fp32"))
    for a, b in zip(wage_.nodes, exact.nodes, strict=True):
        if a.layer.weighted:
            b.params["w"][:] = core.ternary_codes(a.params["w"], wage.TERNARY) * F(0.5) / a.state["scale"][0]
    arrived = []
    for network in (wage_, exact):
        seen, context = probes.watch(network), Context(True, 1, 1)
        network.forward(wage_.method.input(images, np.empty(images.shape, F)), context)
        network.backward(dlogits.copy(), context)
        arrived.append(seen.tensors["conv1", "dW", "gradient"].ravel().astype(np.float64))
    a, b = arrived
    assert a @ b / math.sqrt((a @ a) * (b @ b)) > 0.98
    assert (a @ a) / (b @ b) == pytest.approx(1, abs=0.2)


def test_shift_is_the_nearest_power_of_two() -> None:
    for value in (1e-30, 0.3, 0.353, 0.354, 0.5, 0.7, 0.71, 1.0, 1.41, 1.42, 3, 2.0**31):
        assert wage.shift(value) == shift(value)


def test_two_bits() -> None:
    k = np.arange(-64, 65, dtype=np.int8)
    assert np.array_equal(core.ternary_codes(k, wage.TERNARY) / 2, q(c(k / 128, 2), 2))


def test_steps_are_right_on_average() -> None:
    def walked(g: np.ndarray, rate: float) -> np.ndarray:
        w = np.zeros(g.shape, np.int8)
        core.walk_codes(w, g, rate, 64, (0, 1, 2))
        return -w

    g = np.repeat(np.array([1000, -300, 7, 0], np.int32), 20_000)
    assert walked(g, 2.0).reshape(4, -1).mean(1) == pytest.approx(2 * np.array([1000, -300, 7, 0]) / 1024, abs=0.02)
    assert not walked(np.zeros(5, np.int32), 8.0).any()


def test_rate_falls_with_the_run() -> None:
    method = methods.make("wage", {})
    assert [method.phase(Context(True, 0, step, 6)) for step in range(1, 7)] == [8, 8, 8, 8, 1, 0.125]
    assert method.phase(Context(True, 0, 100)) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "layer bn1: method wage has no batch normalization; use --no-batchnorm"),
        ({"batchnorm": False, "lr": 0.1}, "lr has no meaning for method wage"),
        ({"batchnorm": False, "parameters": {"rate": 0}}, "wage: rate must be above 0, at most 128, not 0"),
    ],
)
def test_refused(change: dict, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        train.Run(train.Config(model="lenet5", method="wage", **change))
    assert words in str(caught.value)
