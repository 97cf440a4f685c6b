"""Layers, a file a kind: each class is all that its layer is, see `base.Layer`."""

from __future__ import annotations

from dataclasses import dataclass

from octosim.engine.layers.activation import (
    GELU,
    Clip,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from octosim.engine.layers.add import Add
from octosim.engine.layers.attention import Attention
from octosim.engine.layers.base import MASK, WEIGHT, Layer, Rule, Unweighted, Weighted
from octosim.engine.layers.batchnorm import BatchNorm
from octosim.engine.layers.conv import LONGEST_WINDOW, MOST_TAPS, Conv2d, DepthwiseConv2d
from octosim.engine.layers.dropout import Dropout
from octosim.engine.layers.linear import Linear
from octosim.engine.layers.multiply import Multiply
from octosim.engine.layers.norm import LayerNorm
from octosim.engine.layers.pool import AvgPool, GlobalAvgPool, MaxPool
from octosim.engine.layers.shape import ChannelShuffle, Concat, Flatten, Reshape, Slice, Transpose, Upsample
from octosim.engine.layers.tokens import Positions, Token

__all__ = [
    "Add", "Attention", "AvgPool", "BatchNorm", "ChannelShuffle", "Clip", "Concat", "Conv2d", "DepthwiseConv2d",
    "Dropout", "Flatten", "GELU", "GlobalAvgPool", "HardSigmoid", "HardSwish", "Item", "LAYERS", "LONGEST_WINDOW",
    "Layer", "LayerNorm", "LeakyReLU", "Linear", "MASK", "MOST_TAPS", "MaxPool", "Multiply", "Positions", "ReLU",
    "ReLU6", "Reshape", "Residual", "Rule", "SiLU", "Sigmoid", "Slice", "Stack", "Tanh", "Token", "Transpose",
    "Unweighted", "Upsample", "WEIGHT", "Weighted",
]  # fmt: skip

LAYERS: tuple[type[Layer], ...] = (
    Conv2d, DepthwiseConv2d, Linear, BatchNorm, ReLU, ReLU6, Clip, LeakyReLU, HardSigmoid, HardSwish, Sigmoid, SiLU, Tanh, GELU,
    MaxPool, AvgPool, GlobalAvgPool, LayerNorm, Dropout, Flatten, Reshape, Transpose, Slice, Concat, ChannelShuffle, Upsample,
    Positions, Token, Add, Multiply, Attention,
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
