"""Methods against figures of their authors' own code (judges.json, made by tools/make_judges.py), which is no part of octosim.

A judge is a function that raises AssertionError; each is shown an error planted in its method, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kit.ramp import ramp

from octosim import core, engine, methods
from octosim.engine.layers import BatchNorm, Conv2d, Linear
from octosim.engine.nodes import Context, Node
from octosim.methods import banner, niti, wage

F = np.float32
FIGURES: dict[str, Any] = {
    name: {key: np.array(values) for key, values in row["figures"].items()}
    for name, row in json.loads(Path(__file__).with_name("judges.json").read_text()).items()
}
CONTEXT = Context(True, 0, 1)


def last(x: np.ndarray) -> np.ndarray:
    """Channels last, as the layers here have them."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1).astype(F))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The difference's length over that of the expected figures."""
    return float(np.linalg.norm(np.asarray(found, np.float64).ravel() - expected.ravel()) / np.linalg.norm(expected))


def first(x: np.ndarray, images: int) -> np.ndarray:
    """The first images, channels first."""
    return np.moveaxis(x[:images], -1, 1)


# ---- the judges --------------------------------------------------


def judge_octo(**parameters: Any) -> None:
    """kimihe/Octo: a convolution with compensation a sample and normalization a feature, both ways; tensors' first images."""
    expected = FIGURES["octo"]
    method = methods.make("octo-reference", {"lac_samples": 4, "rounding": "half-even"} | parameters)
    network = engine.Network((Conv2d(4, 3, pad=1), BatchNorm()), (5, 5, 3), method, 0)
    conv, norm = network.nodes
    shape = (4, 4, 5, 5)
    mu, offset = ramp(3571, 997, shape) * 0.2, ramp(6841, 1009, shape) * 0.2
    conv.params["w"][:] = last(ramp(104729, 1999, (4, 3, 3, 3)) * 0.3)
    conv.params["b"][:] = ramp(31, 97, (4,)) * 0.1
    conv.params["lac_mu"][:], conv.params["lac_offset"][:] = last(mu), last(offset)
    z = network.passes[0].forward(conv, last(np.maximum(ramp(7919, 2003, (4, 3, 5, 5)), 0)), method, CONTEXT)
    assert error(first(z, 2) - (mu + offset)[:2], expected["y"]) < 1e-5
    n = network.passes[1].forward(norm, z, method, CONTEXT)
    assert error(first(n, 2), expected["n"]) < 1e-5
    dy = network.passes[1].weight_grad(norm, last(ramp(15485863, 2011, shape) * 0.01), method, CONTEXT)
    dz = network.passes[1].input_grad(norm, dy, method, CONTEXT)
    assert error(first(dz, 2), expected["dz"]) < 1e-5
    dx = network.passes[0].weight_grad(conv, dz, method, CONTEXT)
    decay = 0.1 * mu[:1]  # the demo adds it where it sums its loss
    assert error(first(conv.grads["lac_mu"], 1) - decay, expected["d_mu"]) < 1e-5
    assert error(np.moveaxis(core.materialize_in_place(conv.grads["w"]), -1, 1), expected["dW"]) < 1e-5
    dx = core.materialize_in_place(network.passes[0].input_grad(conv, dx, method, CONTEXT))
    assert error(first(dx, 2), expected["dx"]) < 1e-5


def judge_niti(**parameters: Any) -> None:
    """wangmaolin/niti: int32 sums become activations (act_calc) and weight gradients (grad_calc), to the bit."""
    expected, acc = FIGURES["niti"], (ramp(7919, 2003, (200,)) * 91234).astype(np.int32)
    codes = niti.rounded(acc, 3)
    assert np.array_equal(codes.q, expected["act"]) and int(codes.exponent) == expected["act_exponent"]
    for mu in (3, 5):
        method = methods.make("niti", {"mu": mu} | parameters)
        node = Node("fc1", 0, Linear(1), (200,), (1,))

        def weight_grad(x: Any, dy: Any, out: np.ndarray) -> np.ndarray:
            out[...] = acc.reshape(out.shape)
            return out

        fake = SimpleNamespace(weight_grad=weight_grad, depths=(1, 1, 1), any_length=False)
        node.layer = SimpleNamespace(product=lambda node, batch, fake=fake: fake)
        node.params["w"] = np.zeros((1, 200), np.int8)
        node.saved["x"] = codes
        method.weight_grad(node, niti.scaled(np.zeros((1, 1), np.int8), 0), CONTEXT)
        assert np.array_equal(node.grads["w"].ravel(), expected[f"grad{mu}"]), mu


def judge_wage(**parameters: Any) -> None:
    """stevenygd/WAGE.pytorch: QW, Q(C(a)), QE to the bit, and QG's updates on average."""
    expected, method = FIGURES["wage"], methods.make("wage", parameters)
    network = engine.Network((Linear(120),), (1,), method, 0)
    node = network.nodes[0]
    node.params["w"][:] = np.rint(ramp(104729, 1999, (120,)) * 64)[:, None]
    node.state["scale"][0] = 4
    y = method.forward(node, np.ones((1, 1), F), CONTEXT)  # 1 is clipped to 127/128
    assert np.array_equal(y.ravel() * 128 / 127, expected["weights"].astype(F))
    x = (ramp(7919, 2003, (120,)) * 1.5).astype(F)
    network = engine.Network((Linear(1),), (120,), method, 0)
    method.forward(network.nodes[0], x[None], CONTEXT)
    codes = network.nodes[0].saved["x"]
    assert np.array_equal(codes.q.ravel() * codes.scale, expected["activations"])
    e = method.error(node, (ramp(31337, 2011, (120,)) * 0.003).astype(F), CONTEXT)
    assert np.array_equal(e.q * wage.UNIT, expected["errors"])
    node.grads["w"] = np.rint(ramp(3571, 997, (120,)) * 5000).astype(np.int32)[:, None]
    moved = []
    for step in range(1, 401):
        node.params["w"][:] = 0
        method.update(node, "w", 0.0, lambda lr: None, Context(True, 0, step))
        moved.append(-node.params["w"].ravel() / 128)
    assert np.abs(np.mean(moved, axis=0) - expected["steps"]).max() < 4 * 0.5 / 128 / 20  # 4 standard errors


def judge_banner(**parameters: Any) -> None:
    """eladhoffer/quantized.pytorch: RangeBN with its input, scale, gamma, beta and gradient in 8 bits.

    Its codes have no exact zero, ours do, and our dY's are symmetric and stochastic: the figures agree to some hundredths."""
    expected, method = FIGURES["banner"], methods.make("banner", parameters)
    network = engine.Network((BatchNorm(),), (4, 4, 4), method, 0)
    node, layer = network.nodes[0], network.passes[0]
    node.params["gamma"][:], node.params["beta"][:] = (1.0, 0.5, 1.5, 2.0), (0.1, -0.2, 0.3, 0.0)
    x = last(ramp(7919, 2003, (16, 4, 4, 4)) + 0.3 * ramp(31, 97, (1, 4, 1, 1)))
    assert error(first(layer.forward(node, x, method, CONTEXT), 3), expected["y"]) < 0.009
    assert error(node.state["mean"], expected["mean"]) < 0.002
    dx = layer.input_grad(node, last(ramp(15485863, 2011, (16, 4, 4, 4)) * 0.01), method, CONTEXT)
    assert error(first(dx, 3), expected["dx"]) < 0.03
    assert error(node.grads["gamma"], expected["dgamma"]) < 0.05


def judge_qat(**parameters: Any) -> None:
    """torch.fake_quantize: activations with a zero point, weights with a scale a channel."""
    expected = FIGURES["qat"]
    method = methods.make("qat", {"weights": "channel", "smoothing": 0.0} | parameters)
    network = engine.Network((Linear(5),), (30,), method, 0)
    node = network.nodes[0]
    node.params["w"][:] = ramp(104729, 1999, (5, 30)) * np.arange(1, 6)[:, None]
    method.forward(node, (ramp(7919, 2003, (5, 30)) * 2 + 0.7).astype(F), CONTEXT)
    assert np.abs(node.saved["x"].ravel() - expected["x"]).max() < 1e-6
    assert np.abs(node.saved["w"].ravel() - expected["w"]).max() < 1e-6


JUDGES: dict[str, Callable[..., None]] = {
    "octo": judge_octo, "niti": judge_niti, "wage": judge_wage, "banner": judge_banner, "qat": judge_qat,
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGES)
def test_figures(name: str) -> None:
    JUDGES[name]()


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("octo", {"prc": "off"}),
        ("octo", {"prc_ratio": 0.9}),
        ("octo", {"lac": "off"}),
        ("niti", (niti, "BITS", 6)),
        ("niti", {"mu": 4}),
        ("wage", (wage, "TERNARY", 16)),
        ("wage", (wage, "UNIT", 2.0**-6)),
        ("wage", {"rate": 4.0}),
        ("banner", (banner, "SPREAD", banner.SPREAD * 1.05)),
        ("banner", (banner, "KEEP", 0.9)),
        ("banner", (banner, "_image_range", lambda running, x, context: core.value_range(x))),
        ("qat", {"weights": "tensor"}),
        ("qat", {"smoothing": 0.9, "delay": 1}),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else str(value),  # no address of a function: workers compare names
)
def test_a_planted_error_is_found(name: str, plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(plant, tuple):
        monkeypatch.setattr(*plant)
    with pytest.raises((AssertionError, KeyError)):
        JUDGES[name](**(plant if isinstance(plant, dict) else {}))
