"""Networks by name against their definitions in PyTorch: parameters, MACs, and outputs for the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octosim import engine, graph, methods
from octosim.engine import plan
from octosim.engine.nodes import Context

PUBLISHED = {
    # classes, image, parameters, millions of MACs: torchvision's and timm's documents, MLPerf Tiny's paper and models, whose
    # 78,666, 24,908 and 221,794 parameters count running statistics too
    "resnet18": (1000, (224, 224, 3), 11_689_512, 1814),
    "mobilenetv2": (1000, (224, 224, 3), 3_504_872, 301),
    "mobilenetv3-small": (1000, (224, 224, 3), 2_542_856, 57),
    "squeezenet1.1": (1000, (224, 224, 3), 1_235_496, 349),
    "shufflenetv2": (1000, (224, 224, 3), 2_278_604, 145),
    "efficientnet-lite0": (1000, (224, 224, 3), 4_652_008, 385),
    "vit-tiny": (10, (32, 32, 3), 5_362_762, 365),
    "resnet8": (10, (32, 32, 3), 78_186, 12.5),
    "ds-cnn": (12, (49, 10, 1), 23_756, 2.66),
    "mobilenetv1-0.25": (2, (96, 96, 3), 216_322, 7.49),
    "autoencoder": (0, (640,), 267_928, 0.264),  # 269,992 with running statistics
}


def network(name: str, classes: int, shape: tuple[int, ...], seed: int | None = None) -> engine.Network:
    return engine.Network(graph.layers(name, classes, in_shape=shape), shape, methods.make("fp32", {}), seed)


@pytest.mark.parametrize("name", graph.NETWORKS)
def test_parameters_and_products(name: str) -> None:
    classes, shape, parameters, macs = PUBLISHED[name]
    layers = graph.layers(name, classes, in_shape=shape)
    dry = plan.dry(layers, shape, methods.make("fp32", {}))
    count = sum(
        w.size for node in dry.nodes for key, w in node.params.items() if key != "b" or getattr(node.layer, "bias", True)
    )  # fmt: skip
    assert count == parameters
    assert sum(op.macs for op in plan.trace(dry, 1, training=False)) == pytest.approx(macs * 1e6, rel=0.01)


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 96, 3), (65, 97, 1)])
@pytest.mark.parametrize("name", [name for name in graph.NETWORKS if name not in ("ds-cnn", "vit-tiny", "autoencoder")])
def test_any_image_size(name: str, shape: tuple[int, ...]) -> None:
    dry = plan.dry(graph.layers(name, 7, in_shape=shape), shape, methods.make("octo", {}))
    assert dry.nodes[-1].out_shape == (7,)


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2", "mobilenetv3-small", "squeezenet1.1", "vit-tiny"])
def test_a_step_in_int8(name: str) -> None:
    """A step of octo: finite, and its loss that of fp32 nearly."""
    shape = (32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    losses = []
    for method in ("fp32", "octo"):
        made = engine.Network(graph.layers(name, 4, in_shape=shape), shape, methods.make(method, {}), 1)
        loss, _ = made.gradients(images, np.arange(4, dtype=np.int32), Context(True, 0, 1))
        losses.append(float(loss))
        for node in made.nodes:
            assert all(np.isfinite(g).all() for g in node.grads.values() if isinstance(g, np.ndarray)), node.name
    assert losses[1] == pytest.approx(losses[0], rel=0.25)


DEFINITIONS: dict[str, Any] = {
    "resnet18": lambda tv, timm: tv.resnet18(num_classes=10),
    "mobilenetv2": lambda tv, timm: tv.mobilenet_v2(num_classes=10),
    "mobilenetv3-small": lambda tv, timm: tv.mobilenet_v3_small(num_classes=10),
    "squeezenet1.1": lambda tv, timm: tv.squeezenet1_1(num_classes=10),
    "shufflenetv2": lambda tv, timm: tv.shufflenet_v2_x1_0(num_classes=10),
    "efficientnet-lite0": lambda tv, timm: timm.create_model("efficientnet_lite0", num_classes=10),
    "vit-tiny": lambda tv, timm: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10),
}
KEYS = {"weight": ("w", "gamma"), "bias": ("b", "beta"), "running_mean": ("mean",), "running_var": ("var",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFINITIONS)
def test_outputs_of_pytorchs_definitions(name: str) -> None:
    """Weights are copied by name: the layers are those of the definition."""
    torch = pytest.importorskip("torch")
    from kit import torchvision_models

    tv, timm = torchvision_models.modules()
    torch.manual_seed(0)
    module = DEFINITIONS[name](tv, timm).eval()
    size = 32 if name == "vit-tiny" else 64
    made = network(name, 10, (size, size, 3), 0)
    tensors = made.tensors()
    copied = set()
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if value.ndim == 1 and "running" in key:
            value = value + 0.1 * torch.rand_like(value)
        layer, _, kind = key.rpartition(".")
        names = [f"{layer}.{short}" for short in KEYS.get(kind, ())] + [f"{key}.token", f"{key}.positions"]
        target = next((name for name in names if name in tensors), None)
        assert target, f"{key}: no layer has it"
        array = value.numpy()
        array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        tensors[target][:] = array.reshape(tensors[target].shape)
        module.state_dict()[key].copy_(value)
        copied.add(target)
    left = {name for name in tensors if name not in copied}
    assert not any(tensors[name].any() for name in left), left
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        wanted = module(x).numpy()
    found = made.forward(np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1)), Context(False, 0, 0))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
