"""Networks in float32 against PyTorch: values, gradients, updates, running statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octosim import core, engine, graph, methods
from octosim.bench import peers
from octosim.engine.layers import (
    MASK,
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    Residual,
)
from octosim.engine.nodes import Context, Node
from octosim.engine.selection import ALL, Selection

torch = pytest.importorskip("torch", reason="needs the extra 'peers'")

# The images on which each model is judged: small where it allows, since its layers' sizes follow.
IMAGES = {"mlp": (9, 9, 2), "vgg-small-7": (9, 8, 3), "resnet20": (9, 12, 3), "mobilenet": (17, 16, 3)}
CHECKED = {name: (graph.layers(name, 10, in_shape=shape), shape)
           for name, shape in ((name, IMAGES.get(name, (28, 28, 1))) for name in graph.MODELS)}  # fmt: skip
STACKS = {
    **CHECKED,
    "alexnet, CIFAR-10": (graph.layers("alexnet", 10, in_shape=(32, 32, 3)), (32, 32, 3)),
    "lenet5, no batchnorm, colour": (graph.layers("lenet5", 7, batchnorm=False), (32, 32, 3)),
    "strides, overlapping windows": (
        (Conv2d(9, 3, stride=2, pad=1), ReLU(), MaxPool(3, 2), Conv2d(5, 1), BatchNorm(), ReLU(), Flatten(), Linear(4)),
        (17, 14, 3),
    ),
    "normalized vector": ((Flatten(), Linear(12), BatchNorm(), ReLU(), Linear(3)), (5, 5, 2)),
    "depthwise, strides, kernel 5": (
        (Conv2d(20, 3), DepthwiseConv2d(3, 2, 1), ReLU(), DepthwiseConv2d(5, 1, 2), BatchNorm(), ReLU(), GlobalAvgPool(),
         Linear(4)),
        (15, 12, 3),
    ),
    # a ReLU that may not write over what the shortcut needs, behind another layer in the same memory
    "residual before activation": (
        (Conv2d(6, 3, pad=1), Residual((ReLU(), Conv2d(6, 3, pad=1), ReLU(), Conv2d(6, 1))), Residual((Dropout(0), ReLU())),
         Flatten(), Linear(4)),
        (6, 7, 2),
    ),
    # tensors used three times; a shortcut from the images; branches that are empty
    "nested residuals": (
        (Residual((Conv2d(3, 3, pad=1), Residual((Residual((Conv2d(3, 3, pad=1),)), BatchNorm())), ReLU())),
         Residual((), (Conv2d(3, 1), BatchNorm())), Residual(()), Residual((MaxPool(),), (Conv2d(3, 2, 2),)), Flatten(),
         Linear(4)),
        (8, 6, 3),
    ),
}  # fmt: skip
FEW_WEIGHTS = 5_000_000  # networks with more are judged on two images


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / (np.abs(expected).max() + 1e-12))


class Masked(torch.nn.Module):
    """Dropout with our masks: those of steps 1, 2 ..., one a call."""

    def __init__(self, node: Node):
        super().__init__()
        self.node, self.step = node, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        self.step += 1
        random = Context(True, 0, self.step).random(self.node.tensor(MASK))
        return x * torch.from_numpy(core.dropout(np.ones(tuple(x.shape), np.float32), self.node.layer.rate, random))


class Gated(torch.nn.Module):
    """ReLU that in training passes what our last forward pass passed, and requires that it differs only near 0.

    Among very many values one may be so near to 0 that float32 and float64 choose differently, which in a deep network moves
    gradients by far more than rounding.
    """

    def __init__(self, node: Node):
        super().__init__()
        self.node, self.signs = node, np.empty(0, np.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return torch.relu(x)
        shape = (len(x), *self.node.in_shape)
        passes = np.unpackbits(self.signs, count=math.prod(shape), bitorder="little").astype(bool).reshape(shape)
        passes = torch.from_numpy(passes.transpose(0, 3, 1, 2) if passes.ndim == 4 else passes)
        differs = passes != (x > 0)
        assert not differs.any() or x[differs].abs().max() < 1e-5 * x.abs().max()
        return x * passes


def build(name: str, seed: int = 3, selection: Selection = ALL) -> tuple[engine.Network, object, np.ndarray, np.ndarray]:
    """A network, the same in PyTorch in float64, images and labels.

    Few images: among very many values two in one pooling window may be so near that float32 and float64 choose differently,
    which moves a gradient by more than rounding.
    """
    stack, shape = STACKS[name]
    network = engine.Network(stack, shape, methods.make("fp32", {}), seed, selection=selection)
    network.fuse(poolings=False)  # keeps the signs that PyTorch's ReLUs take; test_models.py has the same bits with poolings
    rng = np.random.default_rng(seed)
    for node in network.nodes:  # away from the special values 0 and 1
        for key in ("b", "gamma", "beta"):
            if key in node.params:
                node.params[key] += rng.normal(0, 0.3, node.params[key].shape).astype(np.float32)
    model = peers.to_torch(stack, shape).double()
    for node in network.nodes:
        if isinstance(node.layer, Dropout):
            setattr(model, str(node.index), Masked(node))
        if isinstance(node.layer, ReLU):
            setattr(model, str(node.index), Gated(node))
    state = {k: torch.from_numpy(v) for k, v in peers.weights_to_torch(network).items()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all("running" in key or "num_batches" in key for key in missing.missing_keys)
    count = 6 if sum(w.size for node in network.nodes for w in node.params.values()) < FEW_WEIGHTS else 2
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = rng.integers(0, network.nodes[-1].out_shape[0], count).astype(np.int32)
    return network, model, images, labels


def torch_input(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2) * float(np.float32(1 / 255)))


def gradients(network: engine.Network, model: object, images: np.ndarray, labels: np.ndarray, step: int) -> float:
    """network.gradients; the signs of its ReLUs go to PyTorch's."""
    backward = network.backward

    def copying(*arguments: object, **named: object) -> None:
        for node in network.nodes:
            if node.saved.get("relu_mask") is not None:
                gate = node if isinstance(node.layer, ReLU) else next(n for n in network.nodes if n.inputs[0] == node.index)
                getattr(model, str(gate.index)).signs = node.saved["relu_mask"].copy()
        backward(*arguments, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "backward", copying)
        return float(network.gradients(images, labels, Context(True, 0, step))[0])


@pytest.mark.parametrize("statistics", ["batch", "frozen"])
@pytest.mark.parametrize("name", STACKS)
def test_loss_and_gradients(name: str, statistics: str) -> None:
    """With frozen statistics a bias in front of batch normalization has a gradient."""
    network, model, images, labels = build(name, selection=Selection(statistics=statistics))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            layer.train(statistics == "batch")
    loss = gradients(network, model, images, labels, 1)
    expected = torch.nn.functional.cross_entropy(model(torch_input(images)), torch.from_numpy(labels).long())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    found = peers.weights_to_torch(network)
    wanted = {f"grad.{k}": p.grad.numpy() for k, p in model.named_parameters()}
    assert wanted and set(wanted) <= set(found)
    # each normalization over few values multiplies what is behind it of rounding
    tolerance = 1e-4 if len(network.nodes) < 80 else 1e-3
    # a bias before batch normalization has gradient 0 up to rounding: measured against the layer's weight gradient
    for key, value in wanted.items():
        scale = max(np.abs(value).max(), np.abs(wanted[key.replace("bias", "weight")]).max())
        assert np.abs(found[key] - value).max() <= tolerance * scale, key


@pytest.mark.parametrize("name", STACKS)
def test_inference_uses_running_statistics(name: str) -> None:
    network, model, images, labels = build(name)
    for step in range(3):
        gradients(network, model, images, labels, step + 1)
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
    network = engine.Network(stack, shape, methods.make(method, {}), 0)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 200, (16, *shape), dtype=np.uint8)
    network.gradients(images, rng.integers(0, 10, 16).astype(np.int32), Context(True, 0, 1))
    one = network.forward(network.input(images[:1]), Context(False, 0, 0)).copy()
    outliers = np.concatenate([images[:1], np.full((40, *shape), 255, np.uint8)])
    among = network.forward(network.input(outliers), Context(False, 0, 0))
    assert np.array_equal(one, among[:1])


def test_dropout_is_the_same_mask_in_both_passes() -> None:
    stack = (Flatten(), Dropout(0.25), Linear(3))
    network = engine.Network(stack, (20, 20, 5), methods.make("fp32", {}), 0)
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
