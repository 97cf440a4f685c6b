"""Peak memory of an ONNX model by the lifetimes of its tensors: an inference, or a training step with what gradients need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octosim.cost import onnx as onnx_ops
from octosim.cost.products import of as product_of
from octosim.trace import DTYPE_BYTES, with_peak

KEEPS_OUTPUT = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Softmax", "Exp", "HardSigmoid", "LogSoftmax", "Sqrt"}
"""Their gradient follows from their output; other operations keep their inputs."""
KEEPS_NOTHING = {"Add", "Sub", "Sum", "Concat", "Split", "Pad", "Slice", "Transpose", "AveragePool", "GlobalAveragePool",
                 "ReduceMean", "ReduceSum", "Neg", "Resize", "Upsample", "Expand", "Tile"}  # fmt: skip
"""Linear in their inputs: the gradient needs shapes alone."""

PADDED = {"Conv", "QLinearConv", "ConvInteger", "FusedConv"}
"""Convolutions whose input a runtime copies with a border, in training its gradient too."""


def memory(
    path: Path, batch: int | None, dtype: str, inference: bool, runtime_floats: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None, bordered: bool = True,
) -> dict[str, int]:  # fmt: skip
    """Bytes of an ONNX model's inference or training step: {"weights", "gradients", "optimizer", "activations", "workspace",
    "peak"}, as octosim.engine.plan.memory.

    dtype: of the products.  runtime_floats: type of the tensors between layers (`runtimes.onnx_rules`: int8 where a runtime
    keeps codes throughout), float32 beside int8 if not given.  Codes of a quantized file have one byte.
    bordered: whether a convolution's input is copied with a border (`Runtime.border`).
    Training keeps float32 master weights, all gradients at once (as frameworks do) and the velocity of SGD with momentum; of
    int8 products it keeps int8 inputs.  Inference shares memory between tensors whose lifetimes do not overlap.
    """
    model = onnx_ops.load(path, batch, shapes)
    floats = runtime_floats or ("float32" if dtype == "int8" else dtype)
    graph = onnx_ops._read(model, inference, dtype, floats, path)
    size = {name: math.prod(shape) for name, shape in graph.shapes.items()}
    wide, narrow = DTYPE_BYTES[floats], DTYPE_BYTES[dtype]
    views: set[int] = set()
    coded: set[str] = set()  # results of products and passes that run on codes
    if inference:
        onnx_ops._find_coded(graph, model)
        for node in model.graph.node:
            if id(node) in graph.coded and onnx_ops._is_quantized_next(graph, node.output[0]):
                coded.add(node.output[0])
                views.add(id(graph.consumers[node.output[0]][0]))
            elif node.op_type == "DequantizeLinear" and onnx_ops._is_conversion(graph, node):
                views.add(id(node))
    each = {name: 1 if name in graph.narrow | coded else 4 if name in graph.integers else wide for name in size}
    live = _live(model, graph.parameters, {name: n * each[name] for name, n in size.items()}, views)
    padded = max((2 * size.get(node.input[0], 0) * (1 if node.input[0] in graph.narrow or id(node) in graph.coded else narrow)
                  for node in model.graph.node if bordered and node.op_type in PADDED), default=0)  # fmt: skip
    if inference:
        weights = 0
        products = {name: node for node in model.graph.node if product_of(node) for name in node.input}
        for name in graph.parameters - (graph.integers - graph.narrow - set(products)):
            matrix = name in products and len(graph.shapes[name]) > 1
            of = 1 if name in graph.narrow or matrix and id(products[name]) in graph.coded else narrow if matrix else 4
            weights += size.get(name, 0) * of
        return with_peak(
            {"weights": weights, "gradients": 0, "optimizer": 0, "activations": live, "workspace": padded // 2}
        )
    count = sum(size.get(name, 0) for name in graph.parameters - graph.integers)
    kept: dict[str, int] = {}
    for node in model.graph.node:
        names = _kept(node)
        for name in names:
            if name and name not in graph.parameters and name not in graph.integers:
                kept[name] = max(kept.get(name, 0), size.get(name, 0) * (narrow if product_of(node) else wide))
    masters = 4 * count + (count * narrow if dtype != "float32" else 0)
    return with_peak({
        "weights": masters, "gradients": 4 * count, "optimizer": 4 * count, "activations": sum(kept.values()),
        "workspace": live + padded // 2,
    })  # fmt: skip


def _kept(node: Any) -> list[str]:
    if node.op_type in onnx_ops.FREE or node.op_type in KEEPS_NOTHING:
        return []
    return list(node.output[:1]) if node.op_type in KEEPS_OUTPUT else list(node.input)


def _live(model: Any, constant: set[str], size: Mapping[str, int], views: set[int]) -> int:
    """The most bytes of tensors that are in use at once when the nodes run in their order.

    views: nodes, by id, whose result shares their input's memory, beside those that are always free.
    """
    last: dict[str, int] = {}
    root: dict[str, str] = {}
    for at, node in enumerate(model.graph.node):
        for name in node.input:
            last[root.get(name, name)] = at
        if (node.op_type in onnx_ops.FREE or id(node) in views) and node.input:
            for name in node.output:
                root[name] = root.get(node.input[0], node.input[0])
    held = sum(size.get(value.name, 0) for value in model.graph.input if value.name not in constant)
    most = held
    alive = {value.name for value in model.graph.input if value.name not in constant}
    for at, node in enumerate(model.graph.node):
        for name in node.output:
            if name and name not in constant and root.get(name, name) == name:
                alive.add(name)
                held += size.get(name, 0)
        most = max(most, held)
        for name in [name for name in alive if last.get(name, at) <= at]:
            alive.discard(name)
            held -= size.get(name, 0)
    return most
