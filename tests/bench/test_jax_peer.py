"""The same networks in JAX: losses and gradients for the same weights, and steps of JAX and Qwix.  Needs the extra `jax`."""

from __future__ import annotations

import numpy as np
import pytest

from octosim import graph, hardware, methods
from octosim.bench import jax_peer, peers, steps
from octosim.engine import Network, selection
from octosim.engine.nodes import Context
from octosim.errors import OctosimError
from octosim.train import Config

slow = pytest.mark.slow  # JAX compiles; it is not among the tests' packages
MODELS = {
    "lenet5": (28, 28, 1), "simplecnn": (28, 28, 1), "mlp": (8, 8, 1), "resnet20": (12, 12, 3), "mobilenet": (16, 16, 3),
    "preresnet20": (12, 12, 3),
}  # fmt: skip


def state_of(network: Network, gradients: bool = False) -> dict:
    """The network's parameters, or their gradients, as Flax names and orders them: input before output channels."""
    names, found = {"w": "kernel", "b": "bias", "gamma": "scale", "beta": "bias"}, {}
    for node in network.nodes:
        for key, value in node.params.items():
            if key == "b" and not getattr(node.layer, "bias", True):
                continue
            value = node.grads[key] if gradients else value
            if key == "w":
                value = value.transpose(1, 2, 3, 0) if value.ndim == 4 else value.T
            found.setdefault(f"parts_{node.index}", {})[names[key]] = np.ascontiguousarray(value)
    return found


@slow
@pytest.mark.parametrize("name", MODELS)
def test_the_same_gradients(name: str) -> None:
    pytest.importorskip("flax", reason="needs the extra 'jax'")
    of, shape = jax_peer.packages(2), MODELS[name]
    stack, rng = graph.layers(name, 5, True, in_shape=shape), np.random.default_rng(0)
    network = Network(stack, shape, methods.make("fp32", {}), 0)
    images, labels = rng.integers(0, 256, (6, *shape), np.uint8), rng.integers(0, 5, 6).astype(np.int32)
    expected, _ = network.gradients(images, labels, Context(True, 0, 1))
    model = jax_peer.to_flax(of, stack, shape)
    x = images.astype(np.float32) / np.float32(255)
    variables = of.jax.jit(model.init)({"params": of.jax.random.key(0)}, x)
    given = of.jax.tree.map(lambda old, new: np.asarray(new).reshape(old.shape), variables.pop("params"), state_of(network))

    def loss(weights):
        y, _ = model.apply({"params": weights, **variables}, x, mutable=["batch_stats"])
        return of.optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()

    found, gradients = of.jax.jit(of.jax.value_and_grad(loss))(given)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    for part, values in state_of(network, True).items():
        for key, value in values.items():
            got = np.asarray(gradients[part][key]).reshape(value.shape)
            # a bias before batch normalization has gradient 0 up to rounding: measured against the weights'
            size = max(np.abs(value).max(), np.abs(values.get("kernel", value)).max())
            near = 0.05 if name == "mobilenet" else 2e-3  # 27 normalizations, of few pixels, each widen float32's rounding
            assert np.abs(got - value).max() <= near * size, (part, key)


@slow
@pytest.mark.parametrize("peer", ["jax", "qwix"])
def test_steps_are_measured(peer: str) -> None:
    pytest.importorskip("qwix" if peer == "qwix" else "flax", reason="needs the extra 'jax'")
    config = Config(model="lenet5", batch_size=10)
    record = steps.step_bench(config, hardware.load("pi4"), against=[peer], seconds=0.05, command="test")
    assert record["against"][peer]["ratio"] > 0 and "jitted" in record["against"][peer]["what"]


@slow
def test_steps_train() -> None:
    """The loss of a batch falls."""
    pytest.importorskip("flax", reason="needs the extra 'jax'")
    stack = graph.layers("lenet5", 5, True, in_shape=(28, 28, 1))
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), np.uint8)
    for accumulate in (1, 3):
        task = peers.Task(stack, images, np.arange(8, dtype=np.int32) % 5, "sgd", 0.05, 2, accumulate=accumulate)
        step = jax_peer.jax_steps(task)["jax"].ways["jitted"]
        held = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, list))
        before = [np.asarray(x) for x in jax_peer.packages(2).jax.tree.leaves(held[0][0])]
        step()
        after = [np.asarray(x) for x in jax_peer.packages(2).jax.tree.leaves(held[0][0])]
        assert all(np.isfinite(x).all() for x in after) and any((a != b).any() for a, b in zip(before, after, strict=True))


def test_what_it_does_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    task = peers.Task((), np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32), "sgd", 0.1, 1)
    defaults = {"freeze": [], "train_last": 1, "update": "all", "batchnorm_statistics": "batch", "rate": []}
    chosen = selection.make(train=[], **defaults)
    with pytest.raises(OctosimError, match="JAX trains all weights"):
        jax_peer.jax_steps(peers.Task(**{**vars(task), "selection": chosen}))
    monkeypatch.setitem(__import__("sys").modules, "flax", None)
    with pytest.raises(OctosimError, match=r"pip install 'octosim\[jax\]'"):
        jax_peer.qwix_steps(task)
