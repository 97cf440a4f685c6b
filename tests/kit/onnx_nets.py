"""Small networks in ONNX, as exporters write them, of any opset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F = np.float32
Net = Callable[["Builder"], str]


class Builder:
    """Nodes and initializers of a model of one opset; `x` is the input."""

    def __init__(self, opset: int, seed: int = 0) -> None:
        self.opset, self.rng = opset, np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def tensor(self, *shape: int, scale: float = 0.5) -> str:
        return self.constant((self.rng.normal(0, scale, shape)).astype(F))

    def constant(self, value: Any, node: bool = False) -> str:
        name = f"t{len(self.weights) + len(self.nodes)}"
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.weights.append(tensor)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), node=bool(self.rng.integers(2)))

    def add(self, op: str, *inputs: str, domain: str = "", name: str = "", **attributes: Any) -> str:
        out = f"y{len(self.nodes)}"
        name = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=name, domain=domain, **attributes))
        return out

    # what changed from opset to opset
    def axes(self, op: str, since: int, x: str, axes: list[int], **attributes: Any) -> str:
        if self.opset >= since:
            return self.add(op, x, self.ints(*axes), **attributes)
        return self.add(op, x, axes=axes, **attributes)

    def conv(self, x: str, cin: int, cout: int, k: int = 3, group: int = 1, bias: bool = True, **attributes: Any) -> str:
        attributes = {"pads": [k // 2] * 4} | attributes
        w = self.tensor(cout, cin // group, k, k)
        return self.add("Conv", x, w, *([self.tensor(cout)] if bias else []), group=group, **attributes)

    def bn(self, x: str, c: int, **attributes: Any) -> str:
        var = self.constant(self.rng.uniform(0.5, 2, c).astype(F))
        return self.add("BatchNormalization", x, self.tensor(c), self.tensor(c), self.tensor(c), var, **attributes)

    def gemm(self, x: str, cin: int, cout: int, **attributes: Any) -> str:
        shape = (cout, cin) if attributes.get("transB", 0) else (cin, cout)
        return self.add("Gemm", x, self.tensor(*shape), self.tensor(cout), **attributes)

    def model(self, y: str, shape: tuple[Any, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)], self.weights,
        )  # fmt: skip
        domains = {node.domain for node in self.nodes} - {""}
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def build(net: Net, opset: int, shape: tuple[Any, ...] = ("N", 3, 8, 8)) -> onnx.ModelProto:
    builder = Builder(opset)
    return builder.model(net(builder), shape)


def residual(b: Builder) -> str:
    x = b.add("Relu", b.bn(b.conv("x", 3, 8, bias=False), 8))
    y = b.bn(b.conv(b.add("Relu", b.conv(x, 8, 8)), 8, 8), 8)
    z = b.add("Relu", b.add("Add", y, x))
    return b.gemm(b.add("Flatten", b.add("GlobalAveragePool", z)), 8, 5, transB=1)


def flattened(b: Builder) -> str:
    x = b.add("MaxPool", b.add("Relu", b.conv("x", 3, 6)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("Reshape", x, b.ints(0, -1))
    x = b.add("Relu", b.bn(b.gemm(x, 96, 12), 12))
    return b.add("Softmax", b.gemm(x, 12, 4, alpha=0.5, beta=2.0), axis=1)


def shape_arithmetic(b: Builder) -> str:
    """view(x.size(0), -1) of PyTorch's first exporter."""
    x = b.add("MaxPool", b.conv("x", 3, 4), kernel_shape=[2, 2], strides=[2, 2])
    size = b.add("Gather", b.add("Shape", x), b.constant(np.array(0, np.int64)), axis=0)
    shape = b.add("Concat", b.axes("Unsqueeze", 13, size, [0]), b.ints(-1), axis=0)
    return b.gemm(b.add("Reshape", x, shape), 64, 3)


def separable(b: Builder) -> str:
    x = b.add("Relu", b.conv("x", 3, 8, strides=[2, 2]))
    x = b.add("Relu", b.conv(b.add("Relu", b.conv(x, 8, 8, group=8)), 8, 16, 1))
    x = b.axes("ReduceMean", 18, x, [2, 3], keepdims=0)
    return b.add("Add", b.add("MatMul", x, b.tensor(16, 5)), b.tensor(5))


def channels_last(b: Builder) -> str:
    """As tf2onnx writes it: NHWC input, a Transpose in front, one before the mean, padding apart, an affine BatchNorm."""
    x = b.add("Transpose", "x", perm=[0, 3, 1, 2])
    x = b.add("Pad", x, b.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="constant")
    x = b.add("Conv", x, b.tensor(4, 3, 3, 3), pads=[0] * 4)
    x = b.add("Add", b.add("Mul", x, b.tensor(1, 4, 1, 1)), b.tensor(1, 4, 1, 1))
    x = b.add("Relu", x)
    x = b.add("Transpose", x, perm=[0, 2, 3, 1])
    x = b.axes("ReduceMean", 18, x, [1, 2], keepdims=1)
    x = b.axes("Squeeze", 13, x, [1, 2])
    return b.add("Softmax", b.add("Add", b.add("MatMul", x, b.tensor(4, 3)), b.tensor(3)))


def keras_flatten(b: Builder) -> str:
    """NHWC throughout: the flattened order is that of octosim, after a Transpose back."""
    x = b.add("Transpose", "x", perm=[0, 3, 1, 2])
    x = b.add("Relu", b.add("Conv", x, b.tensor(4, 3, 3, 3), auto_pad="SAME_UPPER"))
    x = b.add("Transpose", x, perm=[0, 2, 3, 1])
    return b.gemm(b.add("Reshape", x, b.ints(-1, 256)), 256, 3)


def limits(b: Builder) -> str:
    x = b.add("Clip", b.conv("x", 3, 4), b.constant(F(0), node=True)) if b.opset >= 11 else "x"
    x = b.add("Identity", b.add("Cast", x, to=TensorProto.FLOAT))
    x = b.add("AveragePool", x, kernel_shape=[8, 8])
    return b.gemm(b.axes("Squeeze", 13, x, [2, 3]), 4, 3)


def shared(b: Builder) -> str:
    """One tensor to three layers, an addition of an addition."""
    x = b.conv("x", 3, 4)
    y = b.add("Add", b.conv(x, 4, 4), b.add("Add", b.conv(x, 4, 4, 1), x))
    return b.gemm(b.add("Flatten", b.add("GlobalAveragePool", y)), 4, 3)


def folded_weights(b: Builder) -> str:
    """Weights that constant nodes make: a Transpose, a Cast, a product."""
    w = b.add("Transpose", b.tensor(3, 3, 3, 4), perm=[3, 0, 1, 2])
    x = b.add("Relu", b.add("Conv", "x", b.add("Mul", w, b.constant(F(0.5))), pads=[1] * 4))
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    return b.add("Gemm", x, b.add("Cast", b.constant(b.rng.normal(0, 1, (4, 3)).astype(np.float16)), to=TensorProto.FLOAT))


NETS: dict[str, tuple[Net, tuple[Any, ...]]] = {
    "residual": (residual, ("N", 3, 8, 8)),
    "flattened": (flattened, ("N", 3, 8, 8)),
    "shape arithmetic": (shape_arithmetic, ("N", 3, 8, 8)),
    "separable": (separable, ("N", 3, 8, 8)),
    "channels last": (channels_last, ("N", 8, 8, 3)),
    "keras flatten": (keras_flatten, ("N", 8, 8, 3)),
    "limits": (limits, (2, 3, 8, 8)),
    "shared": (shared, ("N", 3, 8, 8)),
    "folded weights": (folded_weights, ("N", 3, 8, 8)),
}
