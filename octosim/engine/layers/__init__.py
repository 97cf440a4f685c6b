"""Layers, a file a kind: each class is all that its layer is, see `base.Layer`."""

from __future__ import annotations

from dataclasses import dataclass

from octosim.engine.layers.activation import ReLU
from octosim.engine.layers.add import Add
from octosim.engine.layers.base import MASK, WEIGHT, Layer, Rule, Unweighted, Weighted
from octosim.engine.layers.batchnorm import BatchNorm
from octosim.engine.layers.conv import LONGEST_WINDOW, MOST_TAPS, Conv2d, DepthwiseConv2d
from octosim.engine.layers.dropout import Dropout
from octosim.engine.layers.linear import Linear
from octosim.engine.layers.pool import GlobalAvgPool, MaxPool
from octosim.engine.layers.shape import Flatten

__all__ = [
    "LAYERS", "LONGEST_WINDOW", "MASK", "MOST_TAPS", "WEIGHT", "Add", "BatchNorm", "Conv2d", "DepthwiseConv2d", "Dropout",
    "Flatten", "GlobalAvgPool", "Item", "Layer", "Linear", "MaxPool", "ReLU", "Residual", "Rule", "Stack", "Unweighted",
    "Weighted",
]  # fmt: skip

LAYERS: tuple[type[Layer], ...] = (
    Conv2d, DepthwiseConv2d, Linear, BatchNorm, ReLU, MaxPool, GlobalAvgPool, Dropout, Flatten, Add,
)  # fmt: skip
"""The kinds, in the order in which a model file's errors list them."""


@dataclass(frozen=True)
class Residual:
    """A block of layers beside a shortcut; the two results are added (He et al. 2016).  An empty shortcut is the identity.

    It stands in a network's data only: `nodes` puts the body, the shortcut and an `Add` in its place.
    """

    body: tuple[Item, ...]
    shortcut: tuple[Item, ...] = ()


Item = Layer | Residual
Stack = tuple[Item, ...]
