"""QAT against a direct transcription: codes and int32 sums equal, float32 gradients to 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
from kit import hooks as direct

from octosim import engine, methods
from octosim.engine.layers import Conv2d, Flatten, Linear
from octosim.engine.nodes import Context
from octosim.errors import OctosimError

F = np.float32


def weight_codes(w, per_channel):
    """round(w / S) with S = max|w| / 127, of the tensor or of each output channel."""
    codes, scales = np.zeros(w.shape, np.int64), np.zeros(len(w) if per_channel else 1, F)
    for c in range(len(w)):
        scale = F(np.abs(w[c] if per_channel else w).max() / F(127))
        scales[c if per_channel else 0] = scale
        codes[c] = np.clip(np.rint(w[c] * F(1 / scale)), -127, 127)
    return codes, scales


@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_three_steps(weights: str) -> None:
    ranges, layers = {}, 0
    for seen in direct.three_steps("qat", {"weights": weights, "smoothing": 0.9}):
        name, x, layers = seen["node"].name, seen["x"], layers + 1
        low, high = F(x.min()), F(x.max())
        if name in ranges:
            before = ranges[name]
            low, high = (old + F(1 - 0.9) * (new - old) for old, new in zip(before, (low, high), strict=True))
        ranges[name] = low, high
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = F((high - low) / 254)
        inverse = F(1 / float(scale))
        zero = int(np.rint(-127 - low * float(inverse)))
        qx = np.clip(np.rint(x * inverse) + zero, -127, 127).astype(np.int64)
        qw, scales = weight_codes(seen["w"], weights == "channel")
        # y: int32 sums with the bias at S_x S_w, padding holding the zero point
        s = (scales * scale).astype(F)
        bias = np.rint(seen["b"] / s).astype(np.int64)
        sums = direct.forward(qx - zero, qw) + bias
        assert np.abs(sums).max() < 2**31
        assert np.array_equal(seen["y"], sums.astype(F) * s)
        # gradients: the float layer's at the quantized values, none where the activations' quantizer is flat
        x_real = (qx - zero).astype(F) * scale
        w_real = qw * scales.reshape(-1, *[1] * (qw.ndim - 1)).astype(np.float64)
        assert seen["error"] is not None and np.array_equal(seen["error"], seen["dy"])
        assert direct.close(seen["dw"], direct.weight_grad(x_real, seen["dy"], qw.shape))
        assert direct.close(seen["db"], direct.bias_grad(seen["dy"]), direct.bias_grad(np.abs(seen["dy"])))
        if "dx" in seen:
            inside = (x >= scale * F(-127 - zero)) & (x <= scale * F(127 - zero))
            assert direct.close(seen["dx"], direct.input_grad(seen["dy"], w_real.astype(F)) * inside)
    assert layers == 12


def test_range_is_an_average_and_clips() -> None:
    network = engine.Network((Flatten(), Linear(3)), (2, 2, 1), methods.make("qat", {"smoothing": 0.75}), 1)
    node = network.nodes[1]
    first, second = np.array([[-1, 0, 1, 3]], F), np.array([[-5, 0, 1, 7]], F)
    network.method.forward(node, first, Context(True, 0, 1))
    assert node.state["x_range"].tolist() == [-1, 3]
    network.method.forward(node, second, Context(True, 0, 2))
    assert node.state["x_range"].tolist() == [-2, 4]
    dy = np.ones((1, 3), F)
    dx = network.method.input_grad(node, dy, Context(True, 0, 2))
    assert (dx != 0).tolist() == [[False, True, True, False]]
    network.method.forward(node, 100 * second, Context(False, 0, 0))
    assert node.state["x_range"].tolist() == [-2, 4]


def test_delay_leaves_activations_alone() -> None:
    network = engine.Network((Flatten(), Linear(3)), (2, 2, 1), methods.make("qat", {"delay": 2}), 1)
    node = network.nodes[1]
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(F)
    qw, scale = weight_codes(node.params["w"], False)
    plain = x @ (qw * scale).astype(F).T
    assert np.allclose(network.method.forward(node, x, Context(True, 0, 2)), plain, rtol=1e-6, atol=1e-6)
    dx = network.method.input_grad(node, plain, Context(True, 0, 2))
    assert np.allclose(dx, plain @ (qw * scale).astype(F), rtol=1e-6, atol=1e-6)
    assert not np.allclose(network.method.forward(node, x, Context(True, 0, 3)), plain, rtol=1e-6, atol=1e-6)


def test_channels_of_zeros() -> None:
    network = engine.Network((Conv2d(3, 3), Flatten(), Linear(2)), (4, 4, 1), methods.make("qat", {"weights": "channel"}), 1)
    node = network.nodes[0]
    node.params["w"][1] = 0
    y = network.method.forward(node, np.ones((2, 4, 4, 1), F), Context(True, 0, 1))
    assert np.isfinite(y).all() and not y[..., 1].any() and y[..., 0].any()


def test_refusals() -> None:
    for parameters in ({"smoothing": 1}, {"smoothing": float("nan")}, {"delay": -1}, {"weights": "row"}):
        with pytest.raises(OctosimError, match=r"smoothing|delay|weights"):
            methods.make("qat", parameters)
    network = engine.Network((Flatten(), Linear(2)), (400, 400, 1), methods.make("qat", {}), 0)
    with pytest.raises(OctosimError, match="layer fc1, forward: a sum of 160000 int8 products could overflow"):
        network.check(1)
