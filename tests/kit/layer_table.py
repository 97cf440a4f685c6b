"""A small network for every kind of layer: what the tests train and the documentation's status page lists."""

from __future__ import annotations

from octosim.engine import layers
from octosim.engine.graph import Entry, Graph
from octosim.engine.layers import (
    GELU,
    AvgPool,
    BatchNorm,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    HardSwish,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool,
    Multiply,
    Positions,
    ReLU,
    ReLU6,
    Reshape,
    Sigmoid,
    SiLU,
    Slice,
    Tanh,
    Token,
    Transpose,
    Upsample,
)

SHAPE = (8, 7, 3)


def graph(*rows: tuple) -> Graph:
    """Entries from (name, layer, inputs ...); without inputs the row before."""
    entries: list[Entry] = []
    for name, layer, *inputs in rows:
        entries.append(Entry(name, layer, tuple(inputs) or (entries[-1].name if entries else "input",)))
    return Graph(tuple(entries))


def around(*between: object, wide: float = 1.5) -> Graph:
    """The layers behind a convolution with outputs of about that deviation, before a classifier."""
    rows = [("stem", Conv2d(6, 3, pad=1, deviation=wide)), *((f"l{i}", layer) for i, layer in enumerate(between))]
    return graph(*rows, ("flatten", Flatten()), ("fc", Linear(4, deviation=0.1)))


def end(*rows: tuple) -> Graph:
    return graph(*rows, ("flatten", Flatten()), ("fc", Linear(4, deviation=0.1)))


STEM = ("a", Conv2d(6, 3, pad=1))
ROWS: dict[str, Graph] = {
    "relu": around(ReLU()),
    "relu6": around(ReLU6(), wide=3),
    "clip": around(Clip(-1, 2.5)),
    "leakyrelu": around(LeakyReLU(0.2)),
    "hardsigmoid": around(HardSigmoid()),
    "hardsigmoid, ONNX's": around(HardSigmoid(0.2, 0.5)),
    "hardswish": around(HardSwish()),
    "sigmoid": around(Sigmoid()),
    "silu": around(SiLU()),
    "tanh": around(Tanh()),
    "gelu": around(GELU()),
    "gelu, tanh": around(GELU("tanh")),
    # activations in each other's memory: none may write over what another keeps
    "activations in a row": around(Tanh(), ReLU6(), SiLU(), LeakyReLU(), Sigmoid(), Clip(0.3, 0.6), HardSwish(), ReLU()),
    "kept beside a view": end(STEM, ("t", Tanh()), ("f", Flatten()), ("r", ReLU())),
    "conv, rectangular": around(Conv2d(5, (3, 1), pad=(1, 0)), ReLU()),
    "conv, a line": end(("r", Reshape((1, 56, 3))), ("c", Conv2d(5, (1, 5), (1, 2), (0, 2))), ("s", SiLU())),
    "conv, strides and padding": around(Conv2d(5, (3, 2), (2, 1), (0, 1, 1, 0)), ReLU()),
    "conv, dilation": around(Conv2d(5, 3, pad=2, dilation=2), ReLU()),
    "conv, groups, no bias": around(Conv2d(9, 3, pad=1, groups=3, bias=False), BatchNorm(), ReLU()),
    "depthwise, multiplier": around(DepthwiseConv2d(multiplier=2), ReLU()),
    "depthwise, dilation": around(DepthwiseConv2d(3, 1, 2, dilation=2), ReLU()),
    "depthwise, padding below and right": around(DepthwiseConv2d(3, 2, (0, 0, 1, 1), bias=False), BatchNorm(), ReLU6()),
    "linear, no bias": end(("f", Flatten()), ("l", Linear(9, bias=False)), ("s", ReLU())),
    "batchnorm": around(BatchNorm()),
    "layernorm": around(LayerNorm(), ReLU()),
    "maxpool": around(MaxPool(3, 2)),
    "maxpool, padding": around(MaxPool(3, 2, 1)),
    "maxpool, ceil": around(MaxPool((3, 2), (2, 3), (1, 0), ceil=True)),
    "maxpool, wide": around(MaxPool((8, 1), 1)),
    "averagepool": around(AvgPool(3, 2, 1)),
    "averagepool, without padding, ceil": around(AvgPool((3, 2), (2, 2), (1, 1), ceil=True, count_pad=False)),
    "avgpool": graph(STEM, ("p", GlobalAvgPool()), ("fc", Linear(4))),
    "dropout": around(Dropout(0.0)),
    "reshape": around(Reshape((7, -1, 2)), Conv2d(4, 3)),
    "transpose": around(Transpose((2, 0, 1)), Conv2d(4, 3)),
    "slice": around(Slice(1, 5), Slice(2, axis=0), Conv2d(4, 3)),
    "shuffle": around(ChannelShuffle(3), Conv2d(4, 3)),
    "upsample": around(Upsample((2, 3)), Conv2d(4, 3, 2)),
    "concat": end(STEM, ("b", Conv2d(4, 1), "input"), ("c", Concat(), "a", "b", "a"), ("d", Conv2d(4, 3)), ("r", ReLU())),
    "concat of lines": end(STEM, ("b", Conv2d(6, 1, 2), "input"), ("s", Slice(0, 4, 1), "a"), ("c", Concat(0), "s", "b"),
                           ("d", Conv2d(4, 3))),
    "split": end(STEM, ("u", Slice(0, 3)), ("v", Slice(3, 6), "a"), ("m", Multiply(), "u", "v"), ("s", layers.Add(), "m", "u")),
    "multiply": end(STEM, ("b", Conv2d(6, 1), "input"), ("m", Multiply(), "a", "b"), ("r", ReLU())),
    "squeeze and excite": end(STEM, ("h", HardSwish()), ("p", GlobalAvgPool()), ("r", Linear(3)), ("i", ReLU()),
                              ("e", Linear(6)), ("g", HardSigmoid()), ("m", Multiply(), "h", "g"), ("c", Conv2d(4, 1))),
    "scaled from the left": end(STEM, ("p", GlobalAvgPool()), ("g", Sigmoid()), ("m", Multiply(), "g", "a"),
                                ("c", Conv2d(4, 1))),
    "add": end(STEM, ("b", Conv2d(6, 1), "input"), ("s", layers.Add(), "a", "b"), ("r", ReLU())),
    "add, broadcast": end(STEM, ("p", GlobalAvgPool()), ("s", layers.Add(), "a", "p"), ("r", ReLU()), ("c", Conv2d(4, 1))),
    "add, broadcast from the left": end(STEM, ("p", GlobalAvgPool()), ("s", layers.Add(), "p", "a"), ("c", Conv2d(4, 1))),
    "positions, token": end(STEM, ("t", Reshape((56, 6))), ("k", Token()), ("p", Positions()), ("n", LayerNorm()),
                            ("l", Linear(5)), ("g", GELU()), ("s", Slice(0, 2, 0))),
    "attention": end(STEM, ("t", Reshape((56, 6))), ("p", Positions()), ("q", Linear(8)), ("k", Linear(8), "p"),
                     ("v", Linear(6), "p"), ("at", layers.Attention(2), "q", "k", "v"), ("o", Linear(6)),
                     ("s", layers.Add(), "o", "p"), ("n", LayerNorm())),
    "attention, one tensor": end(STEM, ("t", Reshape((-1, 6))), ("at", layers.Attention(3), "t", "t", "t")),
}  # fmt: skip
