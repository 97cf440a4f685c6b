"""Banner et al. against a direct transcription of its equations, pass by pass on the passes' own inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kit import passes as direct

from octosim import core, engine, methods
from octosim.engine.layers import BatchNorm, Conv2d, Flatten, Linear, ReLU
from octosim.engine.nodes import Context, Node
from octosim.methods import banner

F = np.float32
D = np.float64
STACK = (Conv2d(4, 3, pad=1), BatchNorm(), ReLU(), Conv2d(5, 3), BatchNorm(), Flatten(), Linear(3))


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """To 1e-6 of the tensor's largest value, give or take the sums' rounding."""
    return bool(np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max())


def fake(x: np.ndarray) -> np.ndarray:
    low, step = x.min(), F((float(x.max()) - float(x.min())) / 254)
    return np.rint((x - low) * F(1 / float(step))).astype(F) * step + low if step else x


def fake_gradient(dy: np.ndarray, words: np.ndarray) -> np.ndarray:
    q, scale = direct.codes(dy, *direct.extremes(dy), "stochastic", words)
    return q.astype(F) * scale


def image_range(x: np.ndarray) -> tuple[float, float]:
    flat = x.reshape(len(x), -1).astype(D)
    return float(F(flat.min(1).mean())), float(F(flat.max(1).mean()))


def activation_codes(x: np.ndarray) -> tuple[np.ndarray, int, np.float32]:
    """Codes of +-127 between the means of the images' minima and maxima, zero point and scale."""
    low, high = image_range(x)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = F((high - low) / 254)
    inverse = F(1 / float(scale))
    zero = int(np.rint(-127 - low * float(inverse)))
    return np.clip(np.rint((x * inverse).astype(F)).astype(np.int64) + zero, -127, 127), zero, scale


def fake_activations(x: np.ndarray) -> np.ndarray:
    q, zero, scale = activation_codes(x)
    return (q - zero).astype(F) * scale


def chunk_factor(count: int) -> float:
    return 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(count))


def range_batchnorm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, dict]:
    rows = x.reshape(-1, x.shape[-1]).astype(D)
    chunks = next(c for c in range(16, 0, -1) if len(rows) % c == 0 and (len(rows) // c >= 16 or c == 1))
    parts = rows.reshape(chunks, -1, rows.shape[1])
    factor = chunk_factor(parts.shape[1])
    deviation = (parts.max(1).mean(0) - parts.min(1).mean(0)) * factor
    scale = 1 / (deviation.astype(F) + F(1e-5))
    mean = rows.mean(0)
    y = (x - mean) * fake(scale).astype(D) * fake(gamma) + fake(beta)
    return y, dict(mean=mean, deviation=deviation, scale=scale.astype(D), parts=parts, factor=factor)


def range_batchnorm_grad(x: np.ndarray, dy: np.ndarray, gamma: np.ndarray, kept: dict) -> tuple[np.ndarray, ...]:
    """dx, dgamma, dbeta with the straight-through rule for all codes; one channel and chunk after the other."""
    rows, g = (v.reshape(-1, v.shape[-1]).astype(D) for v in (x, dy))
    centered, codes, scale = rows - kept["mean"], fake(kept["scale"].astype(F)).astype(D), kept["scale"]
    dcentered = g * fake(gamma) * codes
    dx = dcentered - dcentered.mean(0)
    drange = (g * centered).sum(0) * fake(gamma) * -(scale**2) * kept["factor"]
    chunks, length, channels = kept["parts"].shape
    for chunk in range(chunks):
        for c in range(channels):
            part = kept["parts"][chunk, :, c]
            dx[chunk * length + part.argmax(), c] += drange[c] / chunks
            dx[chunk * length + part.argmin(), c] -= drange[c] / chunks
    return dx.reshape(x.shape), (g * centered).sum(0) * codes, g.sum(0)


def test_three_steps() -> None:
    network = engine.Network(STACK, (7, 7, 2), methods.make("banner", {}), 3)
    seen = direct.spied(network)
    pads, ranges = {"conv1": 1, "conv2": 0, "fc1": 0}, {}
    rng = np.random.default_rng(0)
    running = {name: [np.zeros(c), np.ones(c)] for name, c in (("bn1", 4), ("bn2", 5))}
    for step in (1, 2, 3):
        context = Context(True, 3, step)
        images, labels = rng.integers(0, 256, (8, 7, 7, 2), dtype=np.uint8), rng.integers(0, 3, 8).astype(np.int32)
        before = {f"{node.name}.{key}": value.copy() for node in network.nodes for key, value in node.params.items()}
        network.gradients(images, labels, context)
        for node in network.nodes:
            name, words = node.name, None
            if not node.params:
                continue
            (x, y), (dy, _) = seen[name, "forward"], seen[name, "dy"]
            words = core.philox(dy.size, 3, step, node.tensor(0)).reshape(dy.shape)
            if name in pads:
                w, b, pad = before[f"{name}.w"], before[f"{name}.b"], pads[name]
                now = np.array(image_range(x))
                ranges[name] = 0.1 * ranges[name] + 0.9 * now if name in ranges else now
                assert node.state["x_range"] == pytest.approx(ranges[name], rel=1e-6)
                qx, zero, sx = activation_codes(x)
                qw, sw = direct.codes(w, *direct.extremes(w))
                scale = F(float(sx) * float(sw))
                acc = direct.forward(qx - zero, qw, pad) + np.rint((b * F(1 / float(scale))).astype(F)).astype(np.int64)
                assert np.array_equal(y, acc.astype(F) * scale), (step, name)
                assert close(node.grads["w"], direct.weight_grad((qx - zero) * D(sx), dy, w, pad)), (step, name)
                rows = dy.reshape(-1, dy.shape[-1]).astype(D)  # their sum is about 0 before a normalization
                assert np.abs(node.grads["b"] - rows.sum(0)).max() < 1e-6 * np.abs(rows).sum(0).max(), (step, name)
                q, s = direct.codes(dy, *direct.extremes(dy), "stochastic", words)
                if name != "conv1":
                    dx = direct.input_grad(q, qw, pad).astype(F) * F(float(s) * float(sw))
                    assert np.array_equal(seen[name, "dx"][1], dx), (step, name)
            else:
                gamma, now, x = before[f"{name}.gamma"], np.array(image_range(x)), fake_activations(x)
                ranges[name] = 0.1 * ranges[name] + 0.9 * now if name in ranges else now
                assert node.state["input_range"] == pytest.approx(ranges[name], rel=1e-6)
                expected, kept = range_batchnorm(x, gamma, before[f"{name}.beta"])
                assert close(y, expected), (step, name)
                for old, value in zip(running[name], (kept["mean"], kept["deviation"]), strict=True):
                    old[:] = 0.1 * old + 0.9 * value
                assert close(node.state["mean"], running[name][0]) and close(node.state["deviation"], running[name][1])
                dx, dgamma, dbeta = range_batchnorm_grad(x, fake_gradient(dy, words), gamma, kept)
                assert close(seen[name, "dx"][1], dx), (step, name)
                assert close(node.grads["gamma"], dgamma) and close(node.grads["beta"], dbeta), (step, name)
            for key, value in node.params.items():
                value -= F(0.1) * node.grads[key]


def test_range_batchnorm_normalizes() -> None:
    """Normal values get a deviation near 1, and inference with the running statistics too."""
    layer, node = banner.RangeBatchNorm(), Node("bn1", 0, BatchNorm(), (8, 8, 3), (8, 8, 3))
    layer.init(node, methods.make("banner", {}), 0)
    x = np.random.default_rng(0).normal([0, 3, -5], [1, 0.5, 2], (64, 8, 8, 3)).astype(F)
    for training in (True, True, True, True, False):
        y = layer.forward(node, x, methods.make("banner", {}), Context(training, 0, 1)).reshape(-1, 3)
        assert y.mean(0) == pytest.approx([0, 0, 0], abs=1e-2) and y.std(0) == pytest.approx([1, 1, 1], abs=0.25)


@pytest.mark.parametrize("shape", [(4, 2, 2, 3), (5, 1, 1, 2), (64, 2, 2, 2)])
def test_range_batchnorm_gradient(shape: tuple[int, ...]) -> None:
    """Against central differences, without codes."""
    node, rows = Node("bn1", 0, BatchNorm(), shape[1:], shape[1:]), int(np.prod(shape[:-1]))
    banner.RangeBatchNorm().init(node, methods.make("banner", {}), 0)
    rng = np.random.default_rng(1)
    x, dy = rng.normal(0, 1, shape).astype(F), rng.normal(0, 1, shape).astype(F)
    chunks = next(c for c in range(min(16, max(1, rows // 16)), 0, -1) if rows % c == 0)
    p, s = node.params, node.state
    _, saved = core.range_norm_forward(  # as the layer calls it, but on values without codes
        x, p["gamma"], p["beta"], s["mean"], s["deviation"], eps=1e-5, keep=0.1, factor=chunk_factor(max(rows // chunks, 2)),
        chunks=chunks,
    )  # fmt: skip
    saved.columns[1], saved.columns[2] = saved.columns[0], 1
    assert rows % saved.chunks == 0 and saved.factor == pytest.approx(chunk_factor(max(rows // saved.chunks, 2)))

    def loss(x: np.ndarray) -> float:
        flat = x.reshape(-1, shape[-1])
        parts = flat.reshape(saved.chunks, -1, shape[-1])
        spread = (parts.max(1).mean(0) - parts.min(1).mean(0)) * saved.factor
        return float((dy.reshape(flat.shape) * (flat - flat.mean(0)) / (spread + 1e-5)).sum())

    found, _, _ = core.range_norm_backward(saved, dy)
    for index in np.ndindex(*shape):
        step = np.zeros(shape)
        step[index] = 1e-6
        assert found[index] == pytest.approx((loss(x + step) - loss(x - step)) / 2e-6, rel=2e-3, abs=2e-3), index


def test_one_value_a_channel() -> None:
    """No range at all: zeros, not a NaN."""
    layer, method, node = banner.RangeBatchNorm(), methods.make("banner", {}), Node("bn1", 0, BatchNorm(), (1, 1, 2), (1, 1, 2))
    layer.init(node, method, 0)
    y = layer.forward(node, np.full((1, 1, 1, 2), 3, F), method, Context(True, 0, 1))
    assert not y.any()
    assert np.isfinite(layer.input_grad(node, np.ones((1, 1, 1, 2), F), method, Context(True, 0, 1))).all()
