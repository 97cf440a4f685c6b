"""An ONNX model as a trace: the operations of an inference or a training step, from the graph's shapes alone.

Inference folds what runtimes fold: batch normalization, bias and ReLU-like activations after a product cost nothing.
Training keeps every operation and adds its gradients; the loss is not in an ONNX file, so it is not in the trace either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octosim.errors import OctosimError
from octosim.trace import DTYPE_BYTES, WORK, Op, with_winograd

Shape = tuple[int, ...]

ONNX_BYTES = 2 << 30
"""Of a file: protobuf reads no larger message."""

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
FUSES = {"BatchNormalization": "norm", "Relu": "activation", "Clip": "activation", "LeakyRelu": "activation"}
"""What disappears in a product before it where the runtime fuses it, in inference; an addition or multiplication of a constant
counts as "norm", of a tensor that is there already as "add"."""
FREE = {
    "Cast", "CastLike", "Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape", "Size",
    "Squeeze", "Unsqueeze",
}  # fmt: skip
MOVED = {
    "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "Resize", "ScatterND", "Slice",
    "SpaceToDepth", "Split", "Tile", "Transpose", "Upsample",
}  # fmt: skip
ELEMENTWISE = {
    "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Ceil", "Clip", "Div", "Elu", "Equal",
    "DequantizeLinear", "DynamicQuantizeLinear", "Erf", "Exp", "Floor", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
    "Greater", "GroupNormalization", "HardSigmoid", "HardSwish", "InstanceNormalization", "LRN", "LayerNormalization",
    "LeakyRelu", "Less", "Log", "LogSoftmax", "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu",
    "Pow", "QuantizeLinear", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Softmax", "Softplus", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "Where",
}  # fmt: skip
EXPONENTIAL = {
    "Elu", "Erf", "Exp", "Gelu", "Log", "LogSoftmax", "Mish", "Pow", "Selu", "Sigmoid", "Softmax", "Softplus", "Swish", "Tanh",
}  # fmt: skip
SHAPE_ARITHMETIC = 64  # elements; integer tensors up to this size are computed once and cost nothing


@dataclass
class _Graph:
    """What is known of the model while its nodes are walked."""

    shapes: dict[str, Shape]
    integers: set[str]  # tensors of whole numbers
    constants: set[str]  # known before the first input: weights and what follows from them
    parameters: set[str]  # initializers
    consumers: dict[str, list[Any]]
    inference: bool
    dtype: str
    float_dtype: str
    fuses: frozenset[str] = frozenset({"norm", "activation"})
    winograd: bool = True
    ready: set[str] = field(default_factory=set)  # tensors that earlier nodes have written
    codes: set[str] = field(default_factory=set)  # tensors that exist as int8 codes
    gradients: set[str] = field(default_factory=set)  # tensors whose gradient a training step needs

    def elements(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def elements_of(self, names: Iterable[str]) -> int:
        return sum(math.prod(self.shapes.get(name, (0,))) for name in names if name)


def ops(
    path: Path,
    *,
    batch: int | None = None,
    dtype: str = "float32",
    float_dtype: str | None = None,
    inference: bool = True,
    lenient: bool = False,
    fuses: Iterable[str] = ("norm", "activation"),
    winograd: bool = True,
) -> list[Op]:
    """The operations of one inference or training step of an ONNX model, in the order of its nodes.

    batch: for a symbolic first dimension of the inputs; 1 if not given.  dtype: of the products; float_dtype: of all else,
    float32 beside int8 if not given, or "int8" where everything stays in codes (inference compiled for an accelerator).
    fuses, winograd: what the runtime does in inference (octosim.hardware.Runtime).
    lenient: operators without a price count as memory traffic, instead of an error.
    """
    model = load(path, batch)
    if float_dtype is None:
        float_dtype = "float32" if dtype == "int8" else dtype
    graph = _read(model, inference, dtype, float_dtype, path)
    graph.fuses, graph.winograd = frozenset(fuses), winograd
    graph.ready = {value.name for value in model.graph.input}
    found: list[Op] = []
    folded: set[str] = set()
    for index, node in enumerate(model.graph.node):
        outputs = [name for name in node.output if name]
        needs = any(name in graph.gradients or name in graph.parameters and name not in graph.integers for name in node.input)
        if all(not name or name in graph.constants for name in node.input) and node.op_type not in ("RandomNormal",):
            graph.constants.update(outputs)  # a constant expression, or a node without inputs
            continue
        if needs:
            graph.gradients.update(outputs)
        small = node.op_type not in PRODUCTS and all(
            name in graph.integers and graph.elements_of([name]) <= SHAPE_ARITHMETIC for name in outputs
        )
        graph.ready.update(outputs)
        if outputs and outputs[0] in folded or node.op_type in FREE or small:
            graph.codes.update(outputs if node.input and node.input[0] in graph.codes else [])
            continue
        layer = node.name or f"{node.op_type.lower()}{index}"
        _shapes_known(graph, node, layer, path, lenient)
        if node.op_type in PRODUCTS:
            last, more = _fold(graph, outputs[0], folded) if inference else (outputs[0], 0)
            found += _product(graph, node, layer, last, more)
        elif node.op_type in ELEMENTWISE or node.op_type in MOVED:
            found += _pass_over(graph, node, layer, needs and not inference)
        elif lenient:
            found += _pass_over(graph, node, f"{layer} (no price: traffic only)", needs and not inference)
        else:
            raise OctosimError(
                f"{path}: operator {node.op_type} (node {layer}) has no price; --lenient counts it as memory traffic"
            )
    if not inference:
        trained = sum(graph.elements(name) for name in graph.parameters - graph.integers)
        found.append(Op("optimizer", "update", "update", "optimizer", (trained,), "float32", 12 * trained, 8 * trained))
    return found


def load(path: Path, batch: int | None) -> Any:
    """The model with every shape that can be inferred, its batch set; weights outside the file are not read.

    The same file is read once: what reads it must not change it.
    """
    try:
        status = path.stat()
    except OSError:
        return _load(path, batch)
    return _loaded(path, batch, (status.st_mtime_ns, status.st_size, status.st_ino))


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, batch: int | None, version: tuple[int, ...]) -> Any:
    return _load(path, batch)


def _load(path: Path, batch: int | None) -> Any:
    try:
        import onnx
    except ImportError:
        raise OctosimError("reading ONNX models needs the package onnx: pip install 'octosim[onnx]'") from None
    try:
        if not path.is_file() and path.exists():
            raise OctosimError(f"{path}: not a regular file, expected an ONNX model")
        if path.is_file() and path.stat().st_size > ONNX_BYTES:
            raise OctosimError(f"{path}: larger than {ONNX_BYTES >> 30} GiB, the limit of an ONNX model without external data")
        model = onnx.load(str(path), load_external_data=False)
    except OctosimError:
        raise
    except FileNotFoundError:
        raise OctosimError(f"{path}: no such file") from None
    except OSError as error:
        raise OctosimError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # protobuf's DecodeError, which has no stable home
        raise OctosimError(f"{path}: not an ONNX model, or a damaged one") from None
    if not model.graph.node:
        raise OctosimError(f"{path}: an ONNX model without operations, or no ONNX model")
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            _set_batch(value, batch, path)
    del model.graph.value_info[:]  # shapes of another batch
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # InferenceError and what protobuf raises on inconsistent graphs
        raise OctosimError(f"{path}: shapes cannot be inferred ({' '.join(str(error).split())[:200]})") from None


def batch_size(path: Path, batch: int | None) -> int:
    """The batch of the model's first input, as `ops` takes it."""
    model = load(path, batch)
    weights = {tensor.name for tensor in model.graph.initializer}
    dims = [v.type.tensor_type.shape.dim for v in model.graph.input if v.name not in weights]
    return dims[0][0].dim_value if dims and dims[0] else 1


def _set_batch(value: Any, batch: int | None, path: Path) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0:
            if axis == 0 and batch not in (None, dim.dim_value):
                raise OctosimError(
                    f"{path}: the batch of input {value.name} is fixed at {dim.dim_value}; export the model with a symbolic one"
                )
        elif axis == 0:
            dim.dim_value = batch or 1
        else:
            name = dim.dim_param or "?"
            raise OctosimError(f"{path}: dimension {axis} ({name}) of input {value.name} is symbolic; only the batch may be")


def _read(model: Any, inference: bool, dtype: str, float_dtype: str, path: Path) -> _Graph:
    from onnx import TensorProto

    whole = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8}
    shapes: dict[str, Shape] = {}
    integers: set[str] = set()
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.WhichOneof("value") == "dim_value" else -1 for dim in tensor.shape.dim]
        if tensor.HasField("shape") and all(d >= 0 for d in dims):
            shapes[value.name] = tuple(dims)
        if tensor.elem_type in whole:
            integers.add(value.name)
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        if tensor.data_type in whole:
            integers.add(tensor.name)
    consumers: dict[str, list[Any]] = {}
    known = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    for node in model.graph.node:
        for name in node.input:
            if name and name not in known:
                raise OctosimError(f"{path}: node {node.name or node.op_type} reads {name!r}, which nothing before it makes")
            consumers.setdefault(name, []).append(node)
        known.update(node.output)
    for value in model.graph.output:
        consumers.setdefault(value.name, []).append(None)  # somebody outside
    parameters = {tensor.name for tensor in model.graph.initializer}
    return _Graph(shapes, integers, set(parameters), parameters, consumers, inference, dtype, float_dtype)


def _shapes_known(graph: _Graph, node: Any, layer: str, path: Path, lenient: bool) -> None:
    priced = node.op_type in PRODUCTS or node.op_type in ELEMENTWISE or node.op_type in MOVED
    for name in (*node.input, *node.output):
        optional = name in node.output[1:] or name in node.input[2:]
        if name and name not in graph.shapes and not optional and priced and not lenient:
            raise OctosimError(f"{path}: the shape of {name!r} at node {layer} ({node.op_type}) cannot be inferred")
        if name and name not in graph.shapes and lenient:
            graph.shapes[name] = (0,)


def _fold(graph: _Graph, name: str, folded: set[str]) -> tuple[str, int]:
    """Follows a product's output through what disappears in it: the last tensor, and elements that the product reads too."""
    more = 0
    while True:
        readers = graph.consumers.get(name, [])
        if len(readers) != 1 or readers[0] is None:
            return name, more
        node = readers[0]
        others = [other for other in node.input if other and other != name]
        constant = all(other in graph.constants for other in others)
        adds = node.op_type == "Add" and len(others) == 1 and "add" in graph.fuses and others[0] in graph.ready
        if constant:
            kind = "norm" if node.op_type in ("Add", "Mul") and others else FUSES.get(node.op_type)
        else:
            kind = "add" if adds and graph.shapes.get(others[0]) == graph.shapes.get(name) else None
        if kind not in graph.fuses:
            return name, more
        more += graph.elements(others[0]) if kind == "add" else 0
        name = node.output[0]
        folded.add(name)


def _attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) if attribute.ints else attribute.i
    return default


def _product(graph: _Graph, node: Any, layer: str, last: str, more: int = 0) -> list[Op]:
    """A convolution or matrix product; in int8 with the passes that make codes and floats of each other.

    more: elements that a fused addition reads.
    """
    (m, k, n), groups, kernel, stride, what = _geometry(graph, node)
    quantized = "Integer" in node.op_type or "QLinear" in node.op_type
    second = 3 if node.op_type.startswith("QLinear") else 1
    x, w, y = node.input[0], node.input[second], node.output[0]
    dtype = "int8" if quantized else graph.dtype
    fixed = w in graph.constants
    x_size, w_size, y_size = graph.elements(x), graph.elements(w), graph.elements(y)
    size, wide = DTYPE_BYTES[dtype], DTYPE_BYTES[graph.float_dtype]
    fused = graph.inference and graph.float_dtype == "int8"
    sum_size = 4 if dtype == "int8" and not fused else size
    float_dtype = graph.float_dtype

    def gemm(pass_: str, shape: tuple[int, int, int], reads: int, writes: int, weights: int) -> Op:
        return Op(
            layer, pass_, "gemm", what, shape, dtype, reads, writes,
            groups=groups, kernel=kernel, stride=stride, weights=weights,
        )  # fmt: skip

    def over(pass_: str, name: str, elements: int, reads: int, writes: int) -> Op:
        return Op(layer, pass_, "elementwise", name, (elements,), float_dtype, reads, writes)

    weights = w_size * size if fixed else 0
    found = []
    # quantization in training first reads the tensor for its range
    scans = 1 if graph.inference else 2
    if dtype == "int8" and not quantized and not fused:
        for name, count in ((x, x_size), (w, w_size)):
            if name not in graph.codes and not (graph.inference and name in graph.constants):
                found.append(over("forward", "quantize", count, count * wide * scans, count))
                graph.codes.add(name)
    forward = gemm("forward", (m, k, n), (x_size + w_size) * size + more * wide, y_size * sum_size, weights)
    dilated = max(_attribute(node, "dilations", [1])) > 1
    plain = node.op_type != "ConvTranspose" and not dilated
    found.append(with_winograd(forward) if graph.winograd and graph.inference and plain else forward)
    if dtype == "int8" and not quantized and not fused:
        readers = graph.consumers.get(last, [])
        stays = graph.inference and bool(readers) and all(r is not None and r.op_type in PRODUCTS for r in readers)
        found.append(over("forward", "requantize", y_size, 4 * y_size, y_size * (1 if stays else wide)))
        graph.codes.update([last] if stays else [])
    if graph.inference:
        return found
    if len(node.input) > 2 and not quantized:
        found.append(over("forward", "bias", y_size, y_size * wide, y_size * wide))
        found.append(over("dW", "bias gradient", y_size, y_size * wide, 0))
    back = []
    if fixed or w in graph.gradients:
        back.append(("dW", (n, m, k), x_size + y_size, w_size, 0))
    if x in graph.gradients:
        back.append(("dX", (m, n, k), w_size + y_size, x_size, weights))
    if dtype == "int8" and back:
        found.append(over("dW" if back[0][0] == "dW" else "dX", "quantize dY", y_size, 2 * y_size * wide, y_size))
    for pass_, shape, reads, writes, held in back:
        found.append(gemm(pass_, shape, reads * size, writes * sum_size, held))
        if dtype == "int8":
            found.append(over(pass_, "dequantize", writes, 4 * writes, 4 * writes))
    return found


def _geometry(graph: _Graph, node: Any) -> tuple[tuple[int, int, int], int, tuple[int, int], int, str]:
    """((M, K, N) of one group, groups, kernel, stride, what it is called)."""
    second = 3 if node.op_type.startswith("QLinear") else 1
    a, b, y = (graph.shapes[name] for name in (node.input[0], node.input[second], node.output[0]))
    if "Conv" in node.op_type:
        groups, sides = _attribute(node, "group", 1), b[2:]
        kernel = (math.prod(sides[:-1]), sides[-1])
        stride = max(_attribute(node, "strides", [1]))
        name = "x".join(map(str, sides))
        if node.op_type == "ConvTranspose":
            shape = (a[0] * math.prod(a[2:]), a[1] // groups, b[1] * math.prod(sides))
            return shape, groups, kernel, stride, f"transposed conv {name}"
        shape = (y[0] * math.prod(y[2:]), b[1] * math.prod(sides), b[0] // groups)
        return shape, groups, kernel, stride, f"conv {name}"
    if node.op_type == "Gemm":
        m, k = (a[1], a[0]) if _attribute(node, "transA", 0) else (a[0], a[1])
        return (m, k, b[0] if _attribute(node, "transB", 0) else b[1]), 1, (0, 0), 1, "linear"
    if len(b) <= 2:  # one matrix for all rows
        k, n = (b[0], b[1]) if len(b) == 2 else (b[0], 1)
        return (max(1, math.prod(a) // k), k, n), 1, (0, 0), 1, "linear"
    groups = max(math.prod(a[:-2]), math.prod(b[:-2]))
    return (a[-2] if len(a) > 1 else 1, a[-1], b[-1]), groups, (0, 0), 1, "matmul"


def _pass_over(graph: _Graph, node: Any, layer: str, backward: bool) -> list[Op]:
    """An operation that reads its inputs and writes its outputs once; backward, the same with the gradients."""
    size = DTYPE_BYTES[graph.float_dtype]
    read = graph.elements_of(name for name in node.input if name not in graph.integers)
    written = graph.elements_of(node.output[:1] if node.op_type not in ("Split",) else node.output)
    work = WORK.get(node.op_type, WORK["Sigmoid"] if node.op_type in EXPONENTIAL else 1)
    if node.op_type in ("AveragePool", "MaxPool"):  # an output is a sum or maximum over its window
        work = max(1, math.prod(_attribute(node, "kernel_shape", [1])))
    over = read if node.op_type in ("GlobalAveragePool", "GlobalMaxPool") else written
    count = max(1, work * over)
    name = node.op_type.lower()
    scans = 2 if not graph.inference and node.op_type.endswith("Normalization") else 1  # statistics, then values
    found = [Op(layer, "forward", "elementwise", name, (count,), graph.float_dtype, scans * read * size, written * size)]
    if backward:
        found.append(
            Op(layer, "dX", "elementwise", name, (count,), graph.float_dtype, (scans * read + written) * size, read * size)
        )
    return found
