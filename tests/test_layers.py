"""Networks in float32 against PyTorch: values, gradients, updates, running statistics."""

from __future__ import annotations

import numpy as np
import pytest

from octosim import core, methods, models, peers
from octosim.layers import BatchNorm, Conv2d, Dropout, Flatten, Linear, MaxPool, ReLU
from octosim.nodes import Context

torch = pytest.importorskip("torch", reason="needs the extra 'peers'")

STACKS = {
    "simplecnn": (models.layers("simplecnn", 10), (28, 28, 1)),
    "lenet5": (models.layers("lenet5", 10), (28, 28, 1)),
    "lenet5, no batchnorm, colour": (models.layers("lenet5", 7, batchnorm=False), (32, 32, 3)),
    "strides, overlapping windows": (
        (Conv2d(9, 3, stride=2, pad=1), ReLU(), MaxPool(3, 2), Conv2d(5, 1), BatchNorm(), ReLU(), Flatten(), Linear(4)),
        (17, 14, 3),
    ),
    "normalized vector": ((Flatten(), Linear(12), BatchNorm(), ReLU(), Linear(3)), (5, 5, 2)),
}


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / (np.abs(expected).max() + 1e-12))


def build(name: str, seed: int = 3) -> tuple[models.Network, object, np.ndarray, np.ndarray]:
    """A network, the same in PyTorch in float64, images and labels.

    Few images: among very many values two in one pooling window, or one beside ReLU's corner, may be so near that float32
    and float64 choose differently, which moves a gradient by more than rounding.
    """
    stack, shape = STACKS[name]
    network = models.Network(stack, shape, methods.make("fp32", {}), seed)
    rng = np.random.default_rng(seed)
    for node in network.nodes:  # away from the special values 0 and 1
        for key in ("b", "gamma", "beta"):
            if key in node.params:
                node.params[key] += rng.normal(0, 0.3, node.params[key].shape).astype(np.float32)
    model = peers.to_torch(stack, shape).double()
    state = {k: torch.from_numpy(v) for k, v in peers.weights_to_torch(network).items()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all("running" in key or "num_batches" in key for key in missing.missing_keys)
    images = rng.integers(0, 256, (6, *shape), dtype=np.uint8)
    labels = rng.integers(0, network.nodes[-1].out_shape[0], 6).astype(np.int32)
    return network, model, images, labels


def torch_input(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2) * float(np.float32(1 / 255)))


@pytest.mark.parametrize("name", STACKS)
def test_loss_and_gradients(name: str) -> None:
    network, model, images, labels = build(name)
    loss, _ = network.gradients(images, labels, Context(True, 0, 1))
    expected = torch.nn.functional.cross_entropy(model(torch_input(images)), torch.from_numpy(labels).long())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    found = peers.weights_to_torch(network)
    gradients = {f"grad.{k}": p.grad.numpy() for k, p in model.named_parameters()}
    assert gradients and set(gradients) <= set(found)
    # a bias before batch normalization has gradient 0 up to rounding: measured against the layer's weight gradient
    for key, value in gradients.items():
        scale = max(np.abs(value).max(), np.abs(gradients[key.replace("bias", "weight")]).max())
        assert np.abs(found[key] - value).max() <= 1e-4 * scale, key


@pytest.mark.parametrize("name", STACKS)
def test_inference_uses_running_statistics(name: str) -> None:
    network, model, images, labels = build(name)
    for step in range(3):
        network.gradients(images, labels, Context(True, 0, step + 1))
        model(torch_input(images))
    model.eval()
    expected = model(torch_input(images)).detach().numpy()
    found = network.forward(network.input(images), Context(False, 0, 0)).copy()
    assert relative(found, expected) < 1e-4
    alone = [network.forward(network.input(images[i : i + 1]), Context(False, 0, 0)).copy() for i in range(len(images))]
    assert np.array_equal(np.concatenate(alone), found)


@pytest.mark.parametrize("method", ["fp32", "octo"])
def test_inference_does_not_look_at_the_batch(method: str) -> None:
    """One image's logits are the same to the bit alone, among others, and among outliers."""
    stack, shape = STACKS["lenet5"]
    network = models.Network(stack, shape, methods.make(method, {}), 0)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 200, (16, *shape), dtype=np.uint8)
    network.gradients(images, rng.integers(0, 10, 16).astype(np.int32), Context(True, 0, 1))
    one = network.forward(network.input(images[:1]), Context(False, 0, 0)).copy()
    outliers = np.concatenate([images[:1], np.full((40, *shape), 255, np.uint8)])
    among = network.forward(network.input(outliers), Context(False, 0, 0))
    assert np.array_equal(one, among[:1])


def test_dropout_is_the_same_mask_in_both_passes() -> None:
    stack = (Flatten(), Dropout(0.25), Linear(3))
    network = models.Network(stack, (20, 20, 5), methods.make("fp32", {}), 0)
    node = network.nodes[1]
    context = Context(True, 7, 11)
    x = np.ones((8, 2000), np.float32)
    y = node.layer.forward(node, x, network.method, context).copy()
    dx = node.layer.input_grad(node, np.ones_like(x), network.method, context)
    assert np.array_equal(y, dx)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    other = node.layer.forward(node, x, network.method, Context(True, 7, 12))
    assert not np.array_equal(other, y)
    assert np.array_equal(node.layer.forward(node, x, network.method, Context(False, 7, 11)), x)


def test_float32_products_are_close_to_pytorch_at_real_sizes() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((300, 4320), (100, 4320)))
    expected = a.astype(np.float64) @ b.T.astype(np.float64)
    assert relative(core.gemm(a, b, transpose_b=True), expected) < 1e-5
