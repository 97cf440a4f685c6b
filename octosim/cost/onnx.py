"""An ONNX model as a trace: the operations of an inference or a training step, from the graph's shapes alone.

Inference folds what runtimes fold: batch normalization, bias and ReLU-like activations after a product cost nothing.
Training keeps every operation and adds its gradients; the loss is not in an ONNX file, so it is not in the trace either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octosim import onnxfile
from octosim.cost import products
from octosim.cost.products import Product
from octosim.errors import OctosimError
from octosim.onnxfile import attribute
from octosim.trace import DTYPE_BYTES, WORK, Op, with_winograd

Shape = tuple[int, ...]

FUSES = {
    "BatchNormalization": "norm", "Relu": "activation", "Clip": "activation", "LeakyRelu": "activation", "HardSwish": "gate",
    "Swish": "gate",
}  # fmt: skip
"""What disappears in a product before it where the runtime fuses it, in inference; an addition or multiplication of a constant
counts as "norm", of a tensor that is there already as "add", x sigmoid(x) (SiLU, swish), one operator or two, as "gate"; "silu"
makes one operation of the two, "pointwise" of all POINTWISE operators in a row."""
GATES = {"Sigmoid", "HardSigmoid"}
POINTWISE = {
    "Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Round",
    "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
"""Operators that make each value of one of each input."""
FREE = {
    "Cast", "CastLike", "Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape", "Size",
    "Squeeze", "Unsqueeze", "BitCast",
}  # fmt: skip
MOVED = {
    "AffineGrid", "CenterCropPad", "Col2Im", "Compress", "Concat", "DepthToSpace", "Expand", "EyeLike", "Gather",
    "GatherElements", "GatherND", "OneHot", "Pad", "Resize", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND",
    "Slice", "SpaceToDepth", "Split", "TensorScatter", "Tile", "Transpose", "Trilu", "Upsample",
}  # fmt: skip
ELEMENTWISE = {
    "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Bernoulli", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Clip", "CumProd", "CumSum", "DequantizeLinear", "Div",
    "DynamicQuantizeLinear", "Equal", "Floor", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "InstanceNormalization", "IsInf",
    "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "LpNormalization", "LpPool", "Max",
    "MaxPool", "MaxUnpool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg", "NegativeLogLikelihoodLoss",
    "Not", "Or", "PRelu", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool",
    "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear", "RMSNormalization",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "RotaryEmbedding",
    "Round", "Shrink", "Sign", "SkipLayerNormalization", "Sqrt", "Sub", "Sum", "ThresholdedRelu", "TopK", "Where", "Xor",
}  # fmt: skip
EXPONENTIAL = {
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BiasGelu", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "FastGelu",
    "Gelu", "Log", "LogSoftmax", "Mish", "Pow", "QuickGelu", "ReduceLogSum", "ReduceLogSumExp", "Selu", "Sigmoid", "Sin",
    "Sinh", "Softmax", "SoftmaxCrossEntropyLoss", "Softplus", "Softsign", "Swish", "Tan", "Tanh",
}  # fmt: skip
ELEMENTWISE |= EXPONENTIAL
WITH_BIAS = {"Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm"}
NO_PRICE, NO_SHAPE = "no price: traffic only", "shapes unknown: left out"
"""What an operation's layer says, in brackets, that --lenient counts or leaves out."""
LISTED = 20  # operators that a sentence names
SHAPE_ARITHMETIC = 64  # elements; integer tensors up to this size are computed once and cost nothing


@dataclass
class _Graph:
    """What is known of the model while its nodes are walked."""

    shapes: dict[str, Shape]
    integers: set[str]  # tensors of whole numbers
    parameters: set[str]  # initializers: all that is known before the first input, as `onnxfile.simplified` leaves it
    consumers: dict[str, list[Any]]
    inference: bool
    dtype: str
    float_dtype: str
    fuses: frozenset[str] = frozenset({"norm", "activation"})
    winograd: bool = True
    ready: set[str] = field(default_factory=set)  # tensors that earlier nodes have written
    codes: set[str] = field(default_factory=set)  # tensors that exist as int8 codes
    narrow: set[str] = field(default_factory=set)  # tensors of int8 or uint8
    coded: set[int] = field(default_factory=set)  # nodes, by id, that work on codes: a quantized file's in inference
    gradients: set[str] = field(default_factory=set)  # tensors whose gradient a training step needs

    def elements(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def elements_of(self, names: Iterable[str]) -> int:
        return sum(math.prod(self.shapes.get(name, (0,))) for name in names if name)


def _name(node: Any, index: int) -> str:
    return node.name or f"{node.op_type.lower()}{index}"


def _is_small(graph: _Graph, node: Any) -> bool:
    """Whether a node is arithmetic of shapes."""
    outputs = [name for name in node.output if name]
    return products.of(node) is None and all(
        name in graph.integers - graph.narrow and graph.elements_of([name]) <= SHAPE_ARITHMETIC for name in outputs
    )


def _without_price(graph: _Graph, nodes: Sequence[Any], first: int) -> str:
    """A sentence about the operators without a price, from one of them on."""
    priced = {*FREE, *ELEMENTWISE, *MOVED}
    found = [
        (node.op_type, _name(node, index)) for index, node in enumerate(nodes)
        if index == first
        or index > first and node.op_type not in priced and not products.of(node) and not _is_small(graph, node)
    ]  # fmt: skip
    if len(found) == 1:
        return f"operator {found[0][0]} (node {found[0][1]}) has no price; --lenient counts it as memory traffic"
    listed = ", ".join(f"{kind} (node {name})" for kind, name in found[:LISTED])
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"operators {listed}{more} have no price; --lenient counts them as memory traffic"


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
    shapes: Mapping[str, Shape] | None = None,
) -> list[Op]:
    """The operations of one inference or training step of an ONNX model, in the order of its nodes.

    batch: for a symbolic first dimension of the inputs; 1 if not given.  shapes: of inputs by name.
    dtype: of the products; float_dtype: of all else, float32 beside int8 if not given, or "int8" where
    everything stays in codes (inference compiled for an accelerator).
    fuses, winograd: what the runtime does in inference (octosim.hardware.Runtime).
    lenient: operators without a price count as memory traffic, instead of an error; see `notes`.
    """
    model = load(path, batch, shapes)
    if float_dtype is None:
        float_dtype = "float32" if dtype == "int8" else dtype
    graph = _read(model, inference, dtype, float_dtype, path)
    graph.fuses, graph.winograd = frozenset(fuses), winograd
    graph.ready = {value.name for value in model.graph.input}
    if inference:
        _find_coded(graph, model)
    found: list[Op] = []
    folded: set[str] = set()
    for index, node in enumerate(model.graph.node):
        outputs = [name for name in node.output if name]
        converts = node.op_type in ("QuantizeLinear", "DequantizeLinear")  # their scales are not trained
        given = node.input[:1] if converts else node.input
        needs = any(name in graph.gradients or name in graph.parameters and name not in graph.integers for name in given)
        if needs:
            graph.gradients.update(outputs)
        geometry, small = products.of(node), _is_small(graph, node)
        graph.ready.update(outputs)
        if outputs and outputs[0] in folded or node.op_type in FREE or small or _is_conversion(graph, node):
            graph.codes.update(outputs if node.input and node.input[0] in graph.codes else [])
            if id(node) in graph.coded:
                graph.codes.add(graph.consumers[outputs[0]][0].output[0])
            continue
        layer = _name(node, index)
        if not _shapes_known(graph, node, layer, path, lenient):
            name, kind = node.op_type.lower(), graph.float_dtype
            found.append(Op(f"{layer} ({NO_SHAPE})", "forward", "elementwise", name, (1,), kind, 0, 0))
        elif geometry:
            last, more = _fold(graph, outputs[0], folded) if inference else (outputs[0], 0)
            try:
                parts = geometry(node, graph.shapes)
            except (KeyError, IndexError, ValueError, ZeroDivisionError):
                raise OctosimError(f"{path}: the shapes of node {layer} ({node.op_type}) do not fit together") from None
            for part in parts:
                found += _product(graph, node, layer, part, last, more)
            found += _gates(graph, node, layer, parts)
        elif node.op_type in ELEMENTWISE or node.op_type in MOVED:
            pair = _gated(graph, node.input[0], graph.consumers.get(node.input[0], [])) if node.op_type in GATES else None
            if pair and inference and "silu" in graph.fuses:
                folded.add(pair[1].output[0])
            joined = _joined(graph, node, folded) if inference and "pointwise" in graph.fuses else [node]
            alone = len(joined) == 1
            found += _pass_over(graph, node, layer, needs and not inference) if alone else _as_one(graph, joined, layer)
        elif lenient:
            found += _pass_over(graph, node, f"{layer} ({NO_PRICE})", needs and not inference)
        else:
            raise OctosimError(f"{path}: {_without_price(graph, model.graph.node, index)}")
    if not inference:
        trained = sum(graph.elements(name) for name in graph.parameters - graph.integers)
        found.append(Op("optimizer", "update", "update", "optimizer", (trained,), "float32", 12 * trained, 8 * trained))
    return found


def notes(found: Sequence[Op], inference: bool, lenient: bool = False) -> list[str]:
    """What a reader of an ONNX file's price should know: what `lenient` left out, a batch normalization that is not there."""
    told = []
    for text, what in ((NO_PRICE, "without a price counted as memory traffic"), (NO_SHAPE, "of unknown shapes left out")):
        left_out = [op for op in found if op.layer.endswith(f" ({text})") and op.pass_ == "forward"]
        names = [f"{op.name} ({op.layer.removesuffix(f' ({text})')})" for op in left_out]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            told.append(f"operators {what}: {', '.join(names[:5])}{more}; the total is a lower bound")
    if lenient and not told:
        told.append("--lenient: every operator has a price, nothing is left out")
    kinds = {op.name for op in found}
    normalized = any("normalization" in name for name in kinds)
    if not inference and not normalized and any(name.startswith("conv ") for name in kinds):
        told.append(
            "no batch normalization is in this file: if the network has one, an export for inference folded it into the "
            "convolutions; export in training mode to price it"
        )
    return told


def load(path: Path, batch: int | None, shapes: Mapping[str, Shape] | None = None) -> Any:
    """The model without constant nodes, with every shape that can be inferred; weights outside the file are not read.

    The same file is read once: what reads it must not change it.
    """
    version = _version(path)
    if version is None:
        return onnxfile.simplified(onnxfile.read(path, batch))
    return _loaded(path, batch, tuple((shapes or {}).items()), version)


def _version(path: Path) -> tuple[int, ...] | None:
    """What changes with the file; None where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _file_of(path: Path) -> Any:
    """The file as it is, read once."""
    version = _version(path)
    return onnxfile.load(path) if version is None else _file(path, version)


@functools.lru_cache(maxsize=1)
def _file(path: Path, version: tuple[int, ...]) -> Any:
    """The file, for every batch; `prepare` leaves it as it is."""
    return onnxfile.load(path)


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, batch: int | None, shapes: tuple[tuple[str, Shape], ...], version: tuple[int, ...]) -> Any:
    return onnxfile.simplified(onnxfile.prepare(_file(path, version), path, batch, dict(shapes)))


def batch_size(path: Path, batch: int | None, shapes: Mapping[str, Shape] | None = None) -> int:
    """The batch of the model's first input, as `ops` takes it."""
    dims = [value.type.tensor_type.shape.dim for value in load(path, batch, shapes).graph.input]
    return dims[0][0].dim_value if dims and dims[0] else 1


def fixed_batch(path: Path, shapes: Mapping[str, Shape] | None = None) -> int | None:
    """The only batch that the model runs at: its inputs, or `shapes` of them, leave none open; None: any."""
    try:
        status = path.stat()
    except OSError:
        return None  # told by what reads the file
    graph, shapes = _file(path, (status.st_mtime_ns, status.st_size, status.st_ino)).graph, shapes or {}
    constants = {tensor.name for tensor in graph.initializer}
    firsts = []
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in shapes:
            firsts.append(shapes[value.name][0])
        elif value.name not in constants and dims:
            firsts.append(dims[0].dim_value if dims[0].WhichOneof("value") == "dim_value" else 0)
    return firsts[0] if firsts and all(size > 0 for size in firsts) else None


def _read(model: Any, inference: bool, dtype: str, float_dtype: str, path: Path) -> _Graph:
    from onnx import TensorProto

    codes = {TensorProto.INT8, TensorProto.UINT8}
    floats = {
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.COMPLEX64,
        TensorProto.COMPLEX128, TensorProto.UNDEFINED,
    }  # fmt: skip
    narrow: set[str] = set()
    shapes: dict[str, Shape] = {}
    integers: set[str] = set()
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.WhichOneof("value") == "dim_value" else -1 for dim in tensor.shape.dim]
        if tensor.HasField("shape") and all(d >= 0 for d in dims):
            shapes[value.name] = tuple(dims)
        if tensor.elem_type not in floats:
            integers.add(value.name)
        if tensor.elem_type in codes:
            narrow.add(value.name)
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        if tensor.data_type not in floats:
            integers.add(tensor.name)
        if tensor.data_type in codes:
            narrow.add(tensor.name)
    consumers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            if name:
                consumers.setdefault(name, []).append(node)
    for value in model.graph.output:
        consumers.setdefault(value.name, []).append(None)  # somebody outside
    parameters = {tensor.name for tensor in model.graph.initializer}
    return _Graph(shapes, integers, parameters, consumers, inference, dtype, float_dtype, narrow=narrow)


def _shapes_known(graph: _Graph, node: Any, layer: str, path: Path, lenient: bool) -> bool:
    """Whether the shapes that a price needs are known; OctosimError where they are not, unless `lenient`."""
    priced = products.of(node) or node.op_type in ELEMENTWISE or node.op_type in MOVED
    for name in (*node.input, *node.output):
        optional = name in node.output[1:] or name in node.input[2:]
        if name and name not in graph.shapes and not optional:
            if lenient:
                return False
            if priced:
                raise OctosimError(f"{path}: the shape of {name!r} at node {layer} ({node.op_type}) cannot be inferred")
    return True


# ---- files that are quantized --------------------------------------------------


QUANTIZED = ("QuantizeLinear", "QLinear", "QGemm", "Integer")
"""Parts of the names of operators that a quantized file has."""


def is_int8(path: Path, batch: int | None = None, shapes: Mapping[str, Shape] | None = None) -> bool:
    """Whether all products of a file's inference are int8, whatever type is asked for: it is quantized."""
    nodes = load(path, batch, shapes).graph.node
    if not any(word in node.op_type for node in nodes for word in QUANTIZED):
        return False
    return {op.dtype for op in ops(path, batch=batch, lenient=True, shapes=shapes) if op.kind == "gemm"} == {"int8"}


def quantized_weights(path: Path) -> str:
    """Why the network of a file cannot be trained: weights that are codes, which no step can move; "" where it can.

    A file with QuantizeLinear and DequantizeLinear around float weights is a network of fake quantization, as training with it
    has: its gradients pass through them.
    """
    graph = _file_of(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    for node in graph.node:
        kind = node.op_type
        if kind != "DynamicQuantizeLinear" and any(word in kind for word in ("QLinear", "QGemm", "Integer", "DynamicQuantize")):
            return f"it has {kind}"
        if kind == "DequantizeLinear" and node.input[0] in constants:
            return f"{node.input[0]!r} is stored quantized"
    return ""


def _find_coded(graph: _Graph, model: Any) -> None:
    """The nodes of a QDQ file that run on codes: between DequantizeLinear and QuantizeLinear.

    Runtimes fuse the conversions around such a node with it.
    """
    real = {name: node for node in model.graph.node for name in node.output}

    def dequantized(name: str) -> bool:
        return name in graph.parameters or name in real and real[name].op_type == "DequantizeLinear"

    for node in model.graph.node:
        geometry = products.of(node)
        priced = geometry or node.op_type in ELEMENTWISE | MOVED | FREE
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or not priced:
            continue
        inputs = [name for name in node.input if name and name not in graph.integers]
        if not inputs or not all(dequantized(name) for name in inputs) or all(name in graph.parameters for name in inputs):
            continue
        if geometry or _is_quantized_next(graph, node.output[0]):
            graph.coded.add(id(node))


def _is_conversion(graph: _Graph, node: Any) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear is part of the nodes beside it, which run on codes."""
    if node.op_type == "DequantizeLinear":
        readers = graph.consumers.get(node.output[0], [])
        return bool(readers) and all(reader is not None and id(reader) in graph.coded for reader in readers)
    return node.op_type == "QuantizeLinear" and node.output[0] in graph.codes


def _fold(graph: _Graph, name: str, folded: set[str]) -> tuple[str, int]:
    """Follows a product's output through what disappears in it: the last tensor, and elements that the product reads too."""
    more = 0
    while True:
        readers = graph.consumers.get(name, [])
        gated = _gated(graph, name, readers) if "gate" in graph.fuses else None
        if gated:
            folded.update((gated[0].output[0], gated[1].output[0]))
            name = gated[1].output[0]
            continue
        if len(readers) != 1 or readers[0] is None:
            return name, more
        node = readers[0]
        others = [other for other in node.input if other and other != name]
        constant = all(other in graph.parameters for other in others)
        adds = node.op_type == "Add" and len(others) == 1 and "add" in graph.fuses and others[0] in graph.ready
        if constant:
            kind = "norm" if node.op_type in ("Add", "Mul") and others else FUSES.get(node.op_type)
        else:
            kind = "add" if adds and graph.shapes.get(others[0]) == graph.shapes.get(name) else None
        if kind not in graph.fuses:
            return name, more
        if constant and graph.shapes.get(node.output[0]) != graph.shapes.get(name):  # a constant that makes it larger
            return name, more
        more += graph.elements(others[0]) if kind == "add" else 0
        name = node.output[0]
        folded.add(name)


def _joined(graph: _Graph, node: Any, folded: set[str]) -> list[Any]:
    """A pointwise operator with those behind it: what one writes and the next alone reads stays in registers."""
    joined, held = [node], {node.output[0]}

    def joins(other: Any) -> bool:
        if other is None or other.op_type not in POINTWISE or id(other) in graph.coded:
            return False
        return all(name in graph.ready | graph.parameters | held and name not in graph.integers for name in other.input if name)

    while joins(joined[-1]):
        name = joined[-1].output[0]
        readers = graph.consumers.get(name, [])
        gate = _gated(graph, name, readers)
        if gate:
            held.add(gate[0].output[0])
        behind = list(gate) if gate else readers
        if not behind or len(behind) > 1 and not gate or not all(map(joins, behind)):
            break
        joined += behind
        held.add(joined[-1].output[0])
    folded.update(other.output[0] for other in joined[1:])
    return joined


def _as_one(graph: _Graph, joined: Sequence[Any], layer: str) -> list[Op]:
    """Pointwise operators as one pass, which reads what none of them makes and writes the last result."""
    passes = [_pass_over(graph, node, layer, False)[0] for node in joined]
    made, size = {node.output[0] for node in joined}, DTYPE_BYTES[graph.float_dtype]
    read = graph.elements_of({name for node in joined for name in node.input} - made)
    return [Op(layer, "forward", "elementwise", ", ".join(op.name for op in passes), (sum(op.shape[0] for op in passes),),
               graph.float_dtype, size * read, passes[-1].writes)]  # fmt: skip


def _gated(graph: _Graph, name: str, readers: Sequence[Any]) -> tuple[Any, Any] | None:
    """The gate and the product x sigmoid(x) that read a tensor and nothing else does."""
    if len(readers) != 2 or None in readers:
        return None
    gate, times = sorted(readers, key=lambda node: node.op_type == "Mul")
    if gate.op_type not in GATES or times.op_type != "Mul" or set(times.input) != {name, gate.output[0]}:
        return None
    return (gate, times) if graph.consumers.get(gate.output[0]) == [times] else None


def _is_quantized_next(graph: _Graph, name: str) -> bool:
    readers = graph.consumers.get(name, [])
    return len(readers) == 1 and readers[0] is not None and readers[0].op_type == "QuantizeLinear"


def _product(graph: _Graph, node: Any, layer: str, part: Product, last: str, more: int = 0) -> list[Op]:
    """A convolution or matrix product; in int8 with the passes that make codes and floats of each other.

    more: elements that a fused addition reads.
    """
    (m, k, n), x, w, y = part.shape, part.a, part.b, part.y
    coded = id(node) in graph.coded
    quantized = coded or any(word in node.op_type for word in ("Integer", "QLinear", "QGemm", "DynamicQuantize"))
    dtype = "int8" if quantized else graph.dtype
    fixed = w in graph.parameters
    x_size, w_size, y_size = graph.elements(x), graph.elements(w), graph.elements(y)
    size, wide = DTYPE_BYTES[dtype], DTYPE_BYTES[graph.float_dtype]
    fused = graph.inference and graph.float_dtype == "int8"
    stays_coded = (coded and _is_quantized_next(graph, last)) or y in graph.narrow
    sum_size = 4 if dtype == "int8" and not fused and not stays_coded else size
    if coded and stays_coded:
        graph.codes.add(graph.consumers[last][0].output[0])
    float_dtype = graph.float_dtype

    def gemm(pass_: str, shape: tuple[int, int, int], reads: int, writes: int, weights: int) -> Op:
        return Op(
            layer, pass_, "gemm", part.name, shape, dtype, reads, writes,
            groups=part.groups, kernel=part.kernel, stride=part.stride, weights=weights,
        )  # fmt: skip

    def over(pass_: str, name: str, elements: int, reads: int, writes: int) -> Op:
        return Op(layer, pass_, "elementwise", name, (elements,), float_dtype, reads, writes)

    weights = w_size * size if fixed else 0
    found = []
    # quantization in training first reads the tensor for its range
    scans = 1 if graph.inference else 2
    if dtype == "int8" and not quantized and not fused:
        for name, count in ((x, x_size), (w, w_size)):
            if name not in graph.codes and not (graph.inference and name in graph.parameters):
                found.append(over("forward", "quantize", count, count * wide * scans, count))
                graph.codes.add(name)
    forward = gemm("forward", (m, k, n), (x_size + w_size) * size + more * wide, y_size * sum_size, weights)
    found.append(with_winograd(forward) if graph.winograd and graph.inference and part.plain else forward)
    if dtype == "int8" and not quantized and not fused:
        readers = graph.consumers.get(last, [])
        stays = graph.inference and bool(readers) and all(r is not None and products.of(r) for r in readers)
        found.append(over("forward", "requantize", y_size, 4 * y_size, y_size * (1 if stays else wide)))
        graph.codes.update([last] if stays else [])
    if graph.inference:
        return found
    if len(node.input) > 2 and node.op_type in WITH_BIAS:
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


def _gates(graph: _Graph, node: Any, layer: str, parts: Sequence[Product]) -> list[Op]:
    """What stands beside the products of one operator: the gates of a recurrent layer, the softmax of attention."""
    found = []
    for part in parts:
        if part.name.endswith("state") or part.name == "scores":
            count = part.groups * part.shape[0] * part.shape[2]
            size = DTYPE_BYTES[graph.float_dtype] * count
            name = "softmax" if part.name == "scores" else "gates"
            for pass_ in ("forward",) if graph.inference else ("forward", "dX"):
                found.append(Op(layer, pass_, "elementwise", name, (WORK["Sigmoid"] * count,), graph.float_dtype, size, size))
    return found


def _pass_over(graph: _Graph, node: Any, layer: str, backward: bool) -> list[Op]:
    """An operation that reads its inputs and writes its outputs once; backward, the same with the gradients."""
    outputs = node.output[:1] if node.op_type != "Split" else node.output
    coded = id(node) in graph.coded or any(name in graph.narrow for name in node.input[:1])
    codes = [name for name in node.input if name in graph.narrow]
    read = graph.elements_of(name for name in node.input if name not in graph.integers or name in graph.narrow)
    written = graph.elements_of(outputs)
    dtype = "int8" if coded and node.op_type != "DequantizeLinear" else graph.float_dtype
    size = DTYPE_BYTES[dtype]
    reads = graph.elements_of(codes) + size * (read - graph.elements_of(codes))
    writes = written * (1 if outputs and outputs[0] in graph.narrow else size)
    if id(node) in graph.coded:
        graph.codes.add(graph.consumers[node.output[0]][0].output[0])
    work, kernel = WORK.get(node.op_type, WORK["Sigmoid"] if node.op_type in EXPONENTIAL else 1), (0, 0)
    if node.op_type in ("AveragePool", "MaxPool"):  # an output is a sum or maximum over its window
        work = max(1, math.prod(attribute(node, "kernel_shape", [1])))
        kernel = (work, 1)
    over = read if node.op_type in ("GlobalAveragePool", "GlobalMaxPool") else written
    count = max(1, work * over)
    name = node.op_type.lower()
    scans = 2 if not graph.inference and node.op_type.endswith("Normalization") else 1  # statistics, then values
    found = [Op(layer, "forward", "elementwise", name, (count,), dtype, scans * reads, writes, kernel=kernel)]
    if backward:
        found.append(Op(layer, "dX", "elementwise", name, (count,), dtype, scans * reads + writes, reads, kernel=kernel))
    return found
