"""Networks as data: the table of models."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octosim.engine.graph import Graph, without
from octosim.engine.layers import (
    BatchNorm,
    Clip,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Item,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Stack,
)
from octosim.engine.network import nodes
from octosim.engine.nodes import LOSSES
from octosim.errors import ArgumentError, OctosimError, suggest
from octosim.graph.imported import has_weights, is_imported, load
from octosim.graph.model_file import is_file, read_file
from octosim.graph.networks import NETWORKS
from octosim.graph.onnx import head_for


@dataclass(frozen=True)
class Model:
    """A network's layers; `small`: their form for images of less than 32 pixels a side, where that is another."""

    layers: Graph | Stack
    small: Stack | None = None


# ---- the models; batch normalization after each convolution for every method alike: methods are compared on one network


def conv(filters: int, kernel: int = 3, stride: int = 1, pad: int = 1) -> Stack:
    """A convolution, a normalization and a ReLU."""
    return Conv2d(filters, kernel, stride, pad), BatchNorm(), ReLU()


def separable(filters: int, stride: int = 1) -> Stack:
    """MobileNet's block: a depthwise 3x3 and a pointwise 1x1 convolution."""
    return DepthwiseConv2d(3, stride, 1), BatchNorm(), ReLU(), *conv(filters, 1, pad=0)


def residual(filters: int, stride: int, projects: bool) -> Stack:
    """ResNet's block of two convolutions.  The shortcut is the identity or, where the shape changes, a 1x1 convolution."""
    body = (*conv(filters, 3, stride), Conv2d(filters, 3, pad=1), BatchNorm())
    return Residual(body, (Conv2d(filters, 1, stride), BatchNorm()) if projects else ()), ReLU()


def _preactivated(activation: Layer, filters: int, stride: int) -> Stack:
    """A block of a pre-activation ResNet: a normalization and an activation in front of each convolution.  With a stride the
    shape changes, and the shortcut's 1x1 convolution takes what the first convolution takes."""
    first = Conv2d(filters, 3, stride, 1), BatchNorm(), activation, Conv2d(filters, 3, pad=1)
    if stride > 1:
        return BatchNorm(), activation, Residual(first, (Conv2d(filters, 1, stride),))
    return (Residual((BatchNorm(), activation, *first)),)


def _preresnet20(activation: Layer) -> Stack:
    blocks = ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1))
    body = (layer for filters, stride in blocks for layer in _preactivated(activation, filters, stride))
    return Conv2d(16, 3, pad=1), *body, BatchNorm(), activation, GlobalAvgPool(), Linear()


def _classifier(*units: int) -> Stack:
    """Octo's demo: fully connected layers with dropout 0.5 after each but the last, which has a unit a class."""
    hidden = [layer for size in units for layer in (Linear(size), ReLU(), Dropout(0.5))]
    return Flatten(), *hidden, Linear()


MODELS: dict[str, Model] = {
    # Octo's demo (kimihe/Octo): 30 filters 5x5, pooling, 100 units; weights N(0, 0.01^2)
    "simplecnn": Model((
        Conv2d(30, 5, deviation=0.01), BatchNorm(), ReLU(), MaxPool(),
        Flatten(), Linear(100, deviation=0.01), ReLU(), Linear(deviation=0.01),
    )),
    # LeCun et al. 1998 with ReLU and max pooling; padding 2 keeps 28 x 28 in the first convolution
    "lenet5": Model((
        *conv(6, 5, pad=2), MaxPool(), *conv(16, 5, pad=0), MaxPool(),
        Flatten(), Linear(120), ReLU(), Linear(84), ReLU(), Linear(),
    )),
    "mlp": Model((Flatten(), Linear(256), ReLU(), Linear(128), ReLU(), Linear())),
    # Octo's demo: one form for CIFAR-10, one for MNIST and Fashion-MNIST
    "alexnet": Model(
        (*conv(64), MaxPool(), *conv(192), MaxPool(), *conv(384), *conv(256), *conv(256), MaxPool(),
         *_classifier(4096, 4096)),
        small=(*conv(96, 11), MaxPool(), *conv(256, 5), MaxPool(), *conv(384), *conv(384), *conv(256), MaxPool(),
               *_classifier(4096, 4096)),
    ),
    # Octo's demo: one pooling, no padding; the first fully connected layer's size follows from the images'
    "vgg11": Model((
        *conv(64, pad=0), *conv(128, pad=0), *conv(256, pad=0), *conv(256, pad=0), MaxPool(),
        *conv(512, pad=0), *conv(512, pad=0), *conv(512, pad=0), *conv(512, pad=0), *_classifier(4096, 1000),
    )),
    # WAGE and NITI: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-1024FC-10
    "vgg-small-7": Model((
        *conv(128), *conv(128), MaxPool(), *conv(256), *conv(256), MaxPool(), *conv(512), *conv(512), MaxPool(),
        Flatten(), Linear(1024), ReLU(), Linear(),
    )),
    # He et al. 2016, section 4.2, n = 3, with projection shortcuts (their option B) where the shape changes
    "resnet20": Model((
        *conv(16),
        *residual(16, 1, False), *residual(16, 1, False), *residual(16, 1, False),
        *residual(32, 2, True), *residual(32, 1, False), *residual(32, 1, False),
        *residual(64, 2, True), *residual(64, 1, False), *residual(64, 1, False),
        GlobalAvgPool(), Linear(),
    )),
    # Howard et al. 2017, table 1, width 0.5; the first convolution has stride 1, for images of 32 x 32
    "mobilenet": Model((
        *conv(16), *separable(32, 1), *separable(64, 2), *separable(64, 1), *separable(128, 2), *separable(128, 1),
        *separable(256, 2), *separable(256, 1), *separable(256, 1), *separable(256, 1), *separable(256, 1),
        *separable(256, 1), *separable(512, 2), *separable(512, 1), GlobalAvgPool(), Linear(),
    )),
}  # fmt: skip


VARIANTS: dict[str, Model] = {
    # He et al. 2016, "Identity mappings in deep residual networks", figure 1 (b): no layer takes a sum that is not normalized
    "preresnet20": Model(_preresnet20(ReLU())),
    # the same with the activation of DoReFa-Net's authors, whatever the bits (tensorpack's resnet-dorefa.py, nonlin)
    "preresnet20-clip": Model(_preresnet20(Clip())),
    # NITI's released form of it (wangmaolin/niti): dropout and one fully connected layer behind the convolutions
    "vgg-small-7-niti": Model((
        *conv(128), *conv(128), MaxPool(), *conv(256), *conv(256), MaxPool(), *conv(512), *conv(512), MaxPool(),
        Dropout(0.5), Flatten(), Linear(),
    )),
    # BLAQ on MNIST (its appendix): 20C3-MP2-50C3-MP2-500FC-10, normalization behind each layer as in LAQ's code (houlu369)
    "lenet5-wide": Model((
        *conv(20, pad=0), MaxPool(), *conv(50, pad=0), MaxPool(),
        Flatten(), Linear(500), BatchNorm(), ReLU(), Linear(), BatchNorm(),
    )),
}  # fmt: skip
"""Networks that single methods' authors use, beside MODELS."""


def model_names() -> list[str]:
    """Names of all models that are not files."""
    return [*MODELS, *VARIANTS, *NETWORKS]


def find(model: str) -> Model:
    """A model by name or from its file; OctosimError where there is none."""
    if is_imported(model):
        return Model(load(model).graph)
    if is_file(model):
        return Model(read_file(Path(model)))
    if model in NETWORKS:
        return Model(NETWORKS[model](1000))
    known = MODELS | VARIANTS
    if model not in known:
        there = f"; did you mean the folder '{model}/'?" if os.path.isdir(model) else ""
        if os.path.isfile(model):
            pytorch = os.path.splitext(model)[1].lower() in (".pth", ".pt")
            there = "; torch.onnx.export makes a .onnx file of it" if pytorch else "; a model file ends in .toml or .onnx"
        raise OctosimError(f"unknown model '{model}'" + (there or suggest(model, model_names())))
    return known[model]


def layers(
    model: str, classes: int, batchnorm: bool = True, in_shape: tuple[int, ...] = (28, 28, 1), hidden_batchnorm: bool = False
) -> Graph | Stack:
    """The layers of a model (a name or a file) for so many classes and such images; OctosimError where they do not fit.

    hidden_batchnorm: batch normalization behind hidden fully connected layers too, where a stack has none.
    """
    found = Model(NETWORKS[model](classes)) if model in NETWORKS else find(model)
    network = found.small if found.small is not None and min(in_shape[:2]) < 32 else found.layers
    is_classifier = not isinstance(network, Graph) or network.loss == LOSSES[0]
    classes = classes if is_classifier else math.prod(in_shape)

    def sized(item: Layer) -> Layer:
        return dataclasses.replace(item, units=classes) if isinstance(item, Linear) and item.units is None else item

    def chain(stack: Stack) -> Stack:
        return tuple(
            Residual(chain(item.body), chain(item.shortcut)) if isinstance(item, Residual) else sized(item)
            for item in stack
            if batchnorm or not isinstance(item, BatchNorm)
        )

    if hidden_batchnorm:
        if not batchnorm:
            raise ArgumentError("{hidden_batchnorm} needs {batchnorm}")
        if isinstance(network, Graph):
            raise OctosimError(f"{model} has layers with names: hidden_batchnorm (--hidden-batchnorm) is for networks without")
        network = tuple(_normalized_hidden(network))
    if isinstance(network, Graph):
        entries = tuple(dataclasses.replace(entry, layer=sized(entry.layer)) for entry in network.layers)
        network = dataclasses.replace(network, layers=entries)
        network = network if batchnorm else without(network, BatchNorm)
    else:
        network = chain(network)
    if has_weights(model) and isinstance(network, Graph):
        made_for = network.input.shape or in_shape
        if len(made_for) == len(in_shape) and made_for[-1] != in_shape[-1]:
            what = "(height, width, channels)" if len(made_for) == 3 else "(values)"
            is_signal = len(made_for) == 3 and made_for[0] == 1
            given = f"; a signal is given as (N, {made_for[-1]}, 1, {made_for[1]})" if is_signal else ""
            raise OctosimError(f"{model}: its weights are for inputs of shape {made_for} {what}, not {in_shape}{given}")
    if is_imported(model) and isinstance(network, Graph) and is_classifier:
        network = head_for(network, classes)
    if is_file(model):
        _check_shapes(model, network, in_shape, classes)
    return network


def _normalized_hidden(stack: Stack) -> Iterator[Item]:
    """A stack with batch normalization behind its fully connected layers but the last."""
    last = max(at for at, item in enumerate(stack) if getattr(item, "weighted", True))
    for at, item in enumerate(stack):
        yield item
        if isinstance(item, Linear) and at != last and not isinstance(stack[at + 1], BatchNorm):
            yield BatchNorm()


def usual(model: str) -> tuple[tuple[int, ...], int]:
    """The images (height, width, channels) or vectors (values,), and the number of classes, that a model is for, where nothing
    else is said.

    Those of an imported network, or of a model file's [input]; else 28 x 28 x 1 and 10.
    """
    network = find(model).layers
    if not isinstance(network, Graph) or network.input.shape is None:
        return (28, 28, 1), 10
    shape = network.input.shape
    return shape, nodes(network, shape)[-1].out_shape[0] if is_imported(model) and network.loss == LOSSES[0] else 10


def _check_shapes(model: str, network: Graph | Stack, in_shape: tuple[int, ...], classes: int) -> None:
    try:
        last = nodes(network, in_shape)[-1]
    except OctosimError as error:
        raise OctosimError(f"{model}: {error}") from None
    if isinstance(network, Graph) and network.loss != LOSSES[0]:
        return  # the network compares it with its input
    if last.out_shape != (classes,):
        place = f"layer {last.name}" if isinstance(network, Graph) else f"layer {len(network)}"
        raise OctosimError(
            f"{model}: {place}, the last, makes {last.out_shape} of an image {in_shape}, expected one value for "
            f"each of {classes} classes: a linear layer without 'units'"
        )
