"""Blocks of today's networks in ONNX, as exporters write them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from kit.onnx_nets import Builder, F, Net


def head(b: Builder, x: str, channels: int) -> str:
    return b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), channels, 3)


def scalar(b: Builder, value: float) -> str:
    return b.constant(F(value), node=bool(b.rng.integers(2)))


def inverted_residual(b: Builder) -> str:
    """MobileNet v2's block: ReLU6 as Clip."""
    x = b.conv("x", 3, 8)
    y = b.add("Clip", b.bn(b.conv(x, 8, 16, 1, bias=False), 16), scalar(b, 0), scalar(b, 6))
    y = b.add("Clip", b.conv(y, 16, 16, 3, group=16), scalar(b, 0), scalar(b, 6))
    return head(b, b.add("Add", b.conv(y, 16, 8, 1), x), 8)


def squeeze_and_excite(b: Builder) -> str:
    """MobileNet v3's and EfficientNet's: a gate of each channel, hard and smooth."""
    x = b.conv("x", 3, 8)
    x = b.add("Mul", x, b.add("Sigmoid", x))
    g = b.add("GlobalAveragePool", x)
    g = b.conv(b.add("Relu", b.conv(g, 8, 4, 1)), 4, 8, 1)
    x = b.add("Mul", b.add("HardSigmoid", g, alpha=1 / 6, beta=0.5), x)
    g = b.conv(b.axes("ReduceMean", 18, x, [2, 3], keepdims=1), 8, 8, 1)
    return head(b, b.add("Mul", x, b.add("Sigmoid", g)), 8)


def hard_swishes(b: Builder) -> str:
    """x times relu6(x + 3) / 6 in the forms that exporters write; hard sigmoid alone."""
    x = b.conv("x", 3, 8)
    gate = b.add("Clip", b.add("Add", x, scalar(b, 3)), scalar(b, 0), scalar(b, 6))
    x = b.add("Div", b.add("Mul", x, gate), scalar(b, 6))
    gate = b.add("Clip", b.add("Add", scalar(b, 3), x), scalar(b, 0), scalar(b, 6))
    x = b.add("Mul", x, b.add("Mul", gate, scalar(b, 1 / 6)))
    x = b.conv(b.add("LeakyRelu", b.add("Tanh", x), alpha=0.1), 8, 8, 1)
    return head(b, b.add("HardSigmoid", x), 8)


def convolutions(b: Builder) -> str:
    """Rectangular kernels, padding of one side, dilation, groups, a depthwise multiplier."""
    x = b.add("Relu", b.add("Conv", "x", b.tensor(6, 3, 1, 5), pads=[0, 1, 0, 3]))
    x = b.add("Conv", x, b.tensor(8, 3, 3, 3), group=2, dilations=[2, 1], pads=[2, 1, 2, 1])
    x = b.add("Conv", x, b.tensor(16, 1, 3, 2), group=8, strides=[2, 1], auto_pad="SAME_LOWER")
    return head(b, x, 16)


def poolings(b: Builder) -> str:
    x = b.add("MaxPool", b.conv("x", 3, 4), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = b.add("AveragePool", x, kernel_shape=[2, 2], strides=[1, 1], pads=[1, 1, 0, 0], count_include_pad=0)
    x = b.add("AveragePool", x, kernel_shape=[2, 2], strides=[1, 1], pads=[1, 0, 1, 0], count_include_pad=1)
    x = b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    return head(b, b.conv(x, 4, 4), 4)


def shuffle(b: Builder) -> str:
    """ShuffleNet v2's unit: halves by Split and by Slice, the shuffle by Reshape and Transpose."""
    x = b.conv("x", 3, 8)
    a = b.add("Slice", x, b.ints(0), b.ints(4), b.ints(1))
    c = b.add("Slice", x, b.ints(4), b.ints(2**62), b.ints(1), b.ints(1))
    x = b.add("Concat", a, b.add("Relu", b.conv(c, 4, 4, 3, group=4)), axis=1)
    x = b.add("Transpose", b.add("Reshape", x, b.ints(-1, 2, 4, 8, 8)), perm=[0, 2, 1, 3, 4])
    return head(b, b.add("Reshape", x, b.ints(0, 8, 8, 8)), 8)


def dense(b: Builder) -> str:
    """Concatenations of concatenations, upsampling, a constant of each channel that no weights can take over."""
    x = b.conv("x", 3, 4, strides=[2, 2])
    y = b.add("Concat", x, b.add("Relu", b.conv(x, 4, 4)), axis=1)
    z = b.add("Concat", y, b.add("Relu", b.bn(y, 8)), axis=-3)
    z = b.add("Mul", z, b.tensor(16, 1, 1))
    scales = b.constant(np.array([1, 1, 2, 2], F))
    roi = "" if b.opset >= 13 else b.constant(np.zeros(0, F))
    z = b.add("Resize", z, roi, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return head(b, z, 16)


def gelus(b: Builder) -> str:
    """GELU by erf, in PyTorch's two exporters' orders; layer normalization over channels of a transposed image; layer scale."""
    x = b.conv("x", 3, 8)
    y = b.add("Transpose", b.conv(x, 8, 8, 3, group=8), perm=[0, 2, 3, 1])
    if b.opset >= 17:
        y = b.add("LayerNormalization", y, b.tensor(8), b.tensor(8), axis=-1, epsilon=1e-6)
    else:
        minus = b.add("Sub", y, b.axes("ReduceMean", 18, y, [-1]))
        root = b.add("Sqrt", b.add("Add", b.axes("ReduceMean", 18, b.add("Pow", minus, scalar(b, 2)), [-1]), scalar(b, 1e-6)))
        y = b.add("Add", b.add("Mul", b.add("Div", minus, root), b.tensor(8)), b.tensor(8))
    y = b.add("Add", b.add("MatMul", y, b.tensor(8, 16)), b.tensor(16))
    erf = b.add("Erf", b.add("Div", y, scalar(b, math.sqrt(2))))
    y = b.add("Mul", b.add("Mul", y, b.add("Add", erf, scalar(b, 1))), scalar(b, 0.5))
    y = b.add("Add", b.tensor(8), b.add("MatMul", y, b.tensor(16, 8)))
    half, erf = b.add("Mul", y, scalar(b, 0.5)), b.add("Erf", b.add("Mul", y, scalar(b, math.sqrt(0.5))))
    y = b.add("Mul", half, b.add("Add", erf, scalar(b, 1)))
    y = b.add("Mul", b.add("Transpose", b.add("MatMul", y, b.tensor(8, 8)), perm=[0, 3, 1, 2]), b.tensor(1, 8, 1, 1))
    return head(b, b.add("Add", x, y), 8)


def transformer(b: Builder) -> str:
    """A vision transformer's block, as timm has it: patches, a token, positions, three heads of one product."""
    x = b.add("Conv", "x", b.tensor(12, 3, 4, 4), b.tensor(12), strides=[4, 4])
    x = b.add("Transpose", b.add("Reshape", x, b.ints(0, 12, -1)), perm=[0, 2, 1])
    x = b.add("Add", b.add("Concat", b.tensor(1, 1, 12), x, axis=1), b.tensor(1, 5, 12))
    y = b.add("Add", b.add("MatMul", x, b.tensor(12, 36)), b.tensor(36))
    y = b.add("Transpose", b.add("Reshape", y, b.ints(0, 5, 3, 3, 4)), perm=[2, 0, 3, 1, 4])
    q, k, v = (b.add("Gather", y, b.constant(np.array(i, np.int64)), axis=0) for i in range(3))
    q = b.add("Mul", q, scalar(b, 0.5**0.5))
    k = b.add("Mul", b.add("Transpose", k, perm=[0, 1, 3, 2]), scalar(b, 0.5**0.5))
    y = b.add("MatMul", b.add("Softmax", b.add("MatMul", q, k), axis=-1), v)
    y = b.add("Reshape", b.add("Transpose", y, perm=[0, 2, 1, 3]), b.ints(0, 5, 12))
    x = b.add("Add", x, b.add("Add", b.add("MatMul", y, b.tensor(12, 12)), b.tensor(12)))
    return b.gemm(b.add("Gather", x, b.constant(np.array(0, np.int64)), axis=1), 12, 3)


def transformer_of_dynamo(b: Builder) -> str:
    """The same as PyTorch's second exporter has it: slices of heads, keys turned in a tensor of three axes, x (erf / 2)."""
    x = b.add("Conv", "x", b.tensor(12, 3, 4, 4), b.tensor(12), strides=[4, 4])
    x = b.add("Transpose", b.add("Reshape", x, b.ints(-1, 12, 4)), perm=[0, 2, 1])
    y = b.add("Add", b.add("MatMul", x, b.tensor(12, 36)), b.tensor(36))
    y = b.add("Transpose", b.add("Reshape", y, b.ints(-1, 4, 3, 3, 4)), perm=[2, 0, 3, 1, 4])
    q, k, v = (b.axes("Squeeze", 13, b.add("Slice", y, b.ints(i), b.ints(i + 1), b.ints(0)), [0]) for i in range(3))
    sizes = b.add("Shape", k)
    leading, tokens, width = (b.add("Slice", sizes, b.ints(i), b.ints(j)) for i, j in ((0, 2), (2, 3), (3, 4)))
    k = b.add("Transpose", b.add("Reshape", k, b.add("Concat", b.ints(-1), tokens, width, axis=0)), perm=[0, 2, 1])
    k = b.add("Mul", b.add("Reshape", k, b.add("Concat", leading, width, tokens, axis=0)), b.constant(np.array([0.5**0.5], F)))
    q = b.add("Mul", q, b.constant(np.array([0.5**0.5], F)))
    y = b.add("MatMul", b.add("Softmax", b.add("MatMul", q, k), axis=-1), v)
    y = b.add("Reshape", b.add("Transpose", y, perm=[0, 2, 1, 3]), b.ints(-1, 4, 12))
    y = b.add("Add", b.add("MatMul", y, b.tensor(12, 12)), b.tensor(12))
    erf = b.add("Add", b.add("Erf", b.add("Div", y, scalar(b, math.sqrt(2)))), scalar(b, 1))
    x = b.add("Add", x, b.add("Mul", y, b.add("Mul", scalar(b, 0.5), erf)))
    return b.gemm(b.axes("ReduceMean", 18, x, [1], keepdims=0), 12, 3)


def encoder(b: Builder, heads: int, n: int) -> str:
    """PyTorch's TransformerEncoderLayer, tokens first: heads are joined with the batch, and the batch with the tokens
    before the linear layer.  n: the batch, -1 where it is open."""
    joined = -1 if n < 0 else heads * n
    x = b.add("Reshape", b.add("Conv", "x", b.tensor(12, 3, 4, 4), b.tensor(12), strides=[4, 4]), b.ints(n, 12, 4))
    x = b.add("Transpose", x, perm=[2, 0, 1])
    y = b.add("Add", b.tensor(36), b.add("MatMul", x, b.tensor(12, 36)))
    y = b.axes("Unsqueeze", 13, b.add("Reshape", y, b.ints(4, n, 3, 12)), [0])
    y = b.axes("Squeeze", 13, b.add("Transpose", y, perm=[3, 1, 2, 0, 4]), [3])
    parts = [b.add("Gather", y, b.constant(np.array(i, np.int64)), axis=0) for i in range(3)]
    q, k, v = (b.add("Transpose", b.add("Reshape", p, b.ints(4, joined, 12 // heads)), perm=[1, 0, 2]) for p in parts)
    scores = b.add("MatMul", b.add("Mul", q, scalar(b, (12 / heads) ** -0.5)), b.add("Transpose", k, perm=[0, 2, 1]))
    y = b.add("Transpose", b.add("MatMul", b.add("Softmax", scores, axis=-1), v), perm=[1, 0, 2])
    y = b.add("Reshape", y, b.ints(-1 if n < 0 else 4 * n, 12))
    y = b.add("Reshape", b.gemm(y, 12, 12), b.ints(4, n, 12))
    x = b.add("Add", x, y)
    if b.opset >= 17:
        x = b.add("LayerNormalization", x, b.tensor(12), b.tensor(12), axis=-1)
    x = b.add("Add", x, b.add("Relu", b.add("MatMul", x, b.tensor(12, 12))))
    return b.gemm(b.axes("ReduceMean", 18, x, [0], keepdims=0), 12, 3)


def mean_of_tokens(b: Builder) -> str:
    """One head, scores divided afterwards, the mean of all tokens."""
    x = b.add("Reshape", b.conv("x", 3, 16, strides=[4, 4]), b.ints(0, 16, 4))
    x = b.add("Transpose", x, perm=[0, 2, 1])
    q, k, v = (b.add("MatMul", x, b.tensor(16, 16)) for _ in range(3))
    scores = b.add("Div", b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 1])), scalar(b, 4))
    x = b.add("Add", x, b.add("MatMul", b.add("Softmax", scores, axis=2), v))
    return b.gemm(b.axes("ReduceMean", 18, x, [1], keepdims=0), 16, 3)


def signal(b: Builder) -> str:
    """1-D convolutions over a signal."""
    x = b.add("Relu", b.add("Conv", "x", b.tensor(8, 3, 5), b.tensor(8), pads=[2, 2]))
    x = b.add("MaxPool", x, kernel_shape=[2], strides=[2])
    x = b.add("Conv", x, b.tensor(8, 1, 3), group=8, dilations=[2], pads=[2, 2])
    return b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 8, 3)


def tanh_gelus(b: Builder) -> str:
    """GELU by tanh, the cube as a power and as products; one whose inner tensor another node takes too, which is no pattern."""

    def gelu(x: str, cube: str) -> str:
        inner = b.add("Add", x, b.add("Mul", cube, scalar(b, 0.044715)))
        tanh = b.add("Tanh", b.add("Mul", inner, scalar(b, math.sqrt(2 / math.pi))))
        return b.add("Mul", b.add("Mul", x, scalar(b, 0.5)), b.add("Add", tanh, scalar(b, 1)))

    x = b.conv("x", 3, 8)
    x = gelu(x, b.add("Pow", x, scalar(b, 3)))
    y = b.conv(x, 8, 8)
    y = gelu(y, b.add("Mul", b.add("Mul", y, y), y))
    z = b.add("Add", b.add("Tanh", b.conv(y, 8, 8)), scalar(b, 1))
    return head(b, b.add("Add", z, b.add("Mul", z, scalar(b, 0.5))), 8)


def affine(b: Builder) -> str:
    """Keras's normalizations behind activations: factors and summands of vectors and of images, of single numbers too."""
    x = b.add("Sub", b.add("Mul", "x", scalar(b, 2.0)), scalar(b, 1.0))
    x = b.add("Tanh", b.conv(x, 3, 4))
    x = b.add("Add", b.add("Mul", x, b.tensor(1, 4, 1, 1)), b.tensor(1, 4, 1, 1))
    x = b.add("Tanh", b.gemm(b.add("Flatten", x), 256, 6))
    x = b.add("Add", b.add("Mul", x, b.tensor(6)), b.tensor(6))
    x = b.add("Mul", b.add("Tanh", b.gemm(x, 6, 6)), scalar(b, 0.25))
    return b.gemm(x, 6, 3)


def signal_of_keras(b: Builder) -> str:
    """1-D convolutions as tf2onnx writes them: 2-D ones of a signal (batch, length, channels)."""
    x = b.add("Transpose", b.axes("Unsqueeze", 13, "x", [1]), perm=[0, 3, 1, 2])
    x = b.axes("Squeeze", 13, b.add("Conv", x, b.tensor(8, 3, 1, 5), pads=[0, 2, 0, 2]), [2])
    x = b.add("Relu", b.add("Add", x, b.tensor(1, 8, 1)))
    x = b.add("MaxPool", b.axes("Unsqueeze", 13, x, [2]), kernel_shape=[1, 2], strides=[1, 2])
    x = b.axes("Squeeze", 13, b.add("Conv", x, b.tensor(8, 1, 1, 3), group=8), [2])
    x = b.add("Transpose", x, perm=[0, 2, 1])
    return b.gemm(b.axes("ReduceMean", 18, b.add("Add", x, b.tensor(8)), [1], keepdims=0), 8, 3)


IMAGE = ("N", 3, 8, 8)
BLOCKS: dict[str, tuple[Net, tuple[Any, ...]]] = {
    "inverted residual": (inverted_residual, IMAGE),
    "squeeze and excite": (squeeze_and_excite, IMAGE),
    "hard swishes": (hard_swishes, IMAGE),
    "convolutions": (convolutions, IMAGE),
    "poolings": (poolings, IMAGE),
    "shuffle": (shuffle, IMAGE),
    "dense": (dense, IMAGE),
    "gelus": (gelus, IMAGE),
    "transformer": (transformer, (1, *IMAGE[1:])),
    "transformer of dynamo": (transformer_of_dynamo, IMAGE),
    "encoder": (lambda b: encoder(b, 3, -1), IMAGE),
    "encoder of one head": (lambda b: encoder(b, 1, -1), IMAGE),
    "encoder of one image": (lambda b: encoder(b, 3, 1), (1, *IMAGE[1:])),
    "encoder of two images": (lambda b: encoder(b, 3, 2), (2, *IMAGE[1:])),
    "mean of tokens": (mean_of_tokens, IMAGE),
    "signal": (signal, ("N", 3, 16)),
    "tanh gelus": (tanh_gelus, IMAGE),
    "affine": (affine, IMAGE),
    "signal of keras": (signal_of_keras, ("N", 16, 3)),
}
