"""DoReFa against a direct transcription of its quantizers."""

from __future__ import annotations

import numpy as np
import pytest
from kit import hooks as direct

from octosim import core, methods
from octosim.engine.nodes import Context
from octosim.errors import OctosimError

F = np.float32


def quantize_k(x, k):
    return np.rint(x * (2**k - 1)) / (2**k - 1)


def near_steps(made, expected, k, scale) -> bool:
    """Equal, but for values that lie between two steps to within float32's resolution and may go either way."""
    off = np.abs(np.asarray(made, np.float64) - expected) > 1e-6 * scale
    return bool(off.mean() < 0.005 and np.abs(made - expected).max() <= 1.001 * scale * 2 / (2**k - 1))


def weights(w: np.ndarray, bits: int) -> np.ndarray:
    return core.binary_weights(w) if bits == 1 else core.level_weights(w, 2**bits - 1)[0]


@pytest.mark.parametrize("edges", ["float", "quantized"])
@pytest.mark.parametrize(("kw", "ka", "kg"), [(8, 8, 8), (1, 2, 4), (3, 1, 32), (32, 4, 2)])
def test_three_steps(kw: int, ka: int, kg: int, edges: str) -> None:
    parameters = {"weight_bits": kw, "activation_bits": ka, "gradient_bits": kg, "edges": edges}
    names = []
    for seen in direct.three_steps("dorefa", parameters):
        node, x, w, dy = seen["node"], seen["x"], seen["w"], seen["dy"]
        names.append(node.name)
        plain = edges == "float" and node.name in ("conv1", "fc2")
        assert node.is_first_or_last == (node.name in ("conv1", "fc2"))
        w_q, slope, x_q, inside = w.astype(float), 1.0, x.astype(float), 1.0
        if kw == 1 and not plain:
            w_q = np.where(w < 0, -1, 1) * np.abs(w.astype(float)).mean()
        elif kw < 32 and not plain:
            t = np.tanh(w.astype(float))
            w_q = 2 * quantize_k(t / (2 * np.abs(t).max()) + 0.5, kw) - 1
            slope = (1 - t * t) / np.abs(t).max()
        if ka < 32 and not plain:
            x_q, inside = quantize_k(np.clip(x.astype(float), 0, 1), ka), (x >= 0) & (x <= 1)
        made_w, made_x, error = weights(w, kw) if kw < 32 and not plain else w, seen["saved"]["x"], seen["error"]
        assert near_steps(made_w, w_q, min(kw, 8), 1.0) and near_steps(made_x, x_q, min(ka, 8), 1.0)
        assert direct.close(seen["y"], direct.forward(made_x, made_w) + seen["b"])
        if kg < 32 and not plain:
            words = core.philox(dy.size, 3, seen["context"].step, node.index * 16).astype(np.uint64) >> np.uint64(8)
            noise = (words.astype(float) / 2**24 - 0.5).reshape(dy.shape)
            for n in range(len(dy)):
                largest = np.abs(dy[n].astype(float)).max()
                if largest:
                    inner = np.clip(dy[n] / (2 * largest) + 0.5 + noise[n] / (2**kg - 1), 0, 1)
                    assert near_steps(error[n], 2 * largest * (quantize_k(inner, kg) - 0.5), kg, largest)
                else:
                    assert not error[n].any()
        else:
            assert np.array_equal(error, dy)
        assert direct.close(seen["dw"], direct.weight_grad(made_x, error, w.shape) * slope)
        assert direct.close(seen["db"], direct.bias_grad(error), direct.bias_grad(np.abs(error)))
        if "dx" in seen:
            assert direct.close(seen["dx"], direct.input_grad(error, made_w) * inside)
    assert len(names) == 12 and set(names) == {"conv1", "conv2", "fc1", "fc2"}


def test_tanh() -> None:
    """Of weights of 8 bits: a level is 2/255 of the largest."""
    x = np.concatenate([np.linspace(-50, 50, 9999), [0, 1e-8, -1e-8, 1e30]]).astype(F)
    assert np.abs(weights(x, 8) - np.tanh(x.astype(float))).max() <= 1.001 / 255


def test_gradients_are_right_on_average_and_keyed_by_the_step() -> None:
    dy = np.random.default_rng(0).normal(size=(40, 30)).astype(F) * 1e-4
    made = [core.level_errors(dy, 3, (1, step, 0)) for step in range(1, 301)]
    assert not np.array_equal(made[0], made[1]) and np.array_equal(made[0], core.level_errors(dy, 3, (1, 1, 0)))
    assert len(np.unique(made[0][0])) <= 4
    assert np.abs(np.mean(made, axis=0) - dy).max() < 0.15 * np.abs(dy).max()


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((2, 3), F)
    assert not weights(zeros, 4).any() and not weights(zeros, 1).any() and not core.level_errors(zeros, 15, (0, 1, 0)).any()


def test_a_nan_is_told() -> None:
    network, images, labels = direct.network_and_batch("dorefa", {})
    network.nodes[2].params["w"].flat[3] = np.nan
    with pytest.raises(core.NotFiniteError, match="layer conv2, forward"):
        network.gradients(images, labels, Context(True, 0, 1))


@pytest.mark.parametrize("name", ["weight_bits", "activation_bits", "gradient_bits"])
@pytest.mark.parametrize("value", [0, 9, 16, 33])
def test_refused_bits(name: str, value: int) -> None:
    with pytest.raises(OctosimError, match=f"dorefa: {name} must be in 1 .. 8, or 32, not {value}"):
        methods.make("dorefa", {name: value})
