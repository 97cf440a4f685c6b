"""A trained network in inference as ONNX, and what onnxruntime makes of it.

In the graph a tensor of three axes is (batch, channels, height, width), as ONNX has images; others are in octosim's order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import octosim
from octosim import train
from octosim.engine import quantizers
from octosim.engine.layers import (
    GELU,
    Add,
    Attention,
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
from octosim.engine.layers.attention import MIXTURE, SCORES
from octosim.engine.layers.base import pair
from octosim.engine.nodes import Array, Node
from octosim.errors import OctosimError
from octosim.evidence.export import (
    WHOLE,
    Ends,
    Multiplied,
    Weighted,
    about,
    check_kinds,
    folded,
    multiplied,
    takes_pixels,
    weighted,
)

FORMS = ("qdq", "qoperator")
OPSET = 17
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Axes of an image: channel first to channel last, and back."""


@dataclass
class _Writer:
    """Nodes and constants of an ONNX graph.

    held, products: of the weighted layers, and of the products of activations by layer and name.
    """

    helper: Any
    numpy_helper: Any
    form: str
    held: dict[str, Weighted]
    products: dict[tuple[str, str], Multiplied]
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        self.constants[name] = self.numpy_helper.from_array(np.asarray(value, dtype), name)  # a number without axes
        return name

    def whole(self, name: str, *values: int) -> str:
        return self.constant(name, values, np.int64)

    def real(self, name: str, value: float) -> str:
        return self.constant(name, value, np.float32)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def turn(self, x: str, perm: tuple[int, ...], name: str) -> str:
        return x if perm == tuple(range(len(perm))) else self.node("Transpose", [x], name, perm=list(perm))

    def last(self, x: str, rank: int, name: str) -> str:
        """A tensor in octosim's order.  rank: its axes without the batch."""
        return self.turn(x, _to_last(rank), name)

    def first(self, x: str, rank: int, name: str) -> str:
        """A tensor in octosim's order in ONNX's."""
        return self.turn(x, _to_first(rank), name)

    def constant_of(self, name: str, values: Array, shape: tuple[int, ...]) -> str:
        """A constant that goes to each element of a tensor of this shape, one for each channel or each element."""
        rank = len(shape)
        whole = values.reshape(1, *shape) if values.size != shape[-1] else values.reshape(1, *[1] * (rank - 1), -1)
        return self.constant(name, whole.transpose(_to_first(rank)))


def _to_last(rank: int) -> tuple[int, ...]:
    return LAST if rank == 3 else tuple(range(rank + 1))


def _to_first(rank: int) -> tuple[int, ...]:
    return FIRST if rank == 3 else tuple(range(rank + 1))


def _axis(axis: int, rank: int) -> int:
    """Where ONNX has an axis, 0 the first behind the batch, -1 the last."""
    return _to_first(rank).index(axis % rank + 1)


# ---- products --------------------------------------------------


def _window(node: Node) -> dict[str, Any]:
    """ONNX's attributes of a convolution."""
    product = node.layer.product(node, 1)
    g = product.geometry
    return {
        "kernel_shape": [g.kernel_h, g.kernel_w], "strides": list(g.strides), "pads": list(g.pads),
        "dilations": list(g.dilations), "group": product.groups,
    }  # fmt: skip


def _codes(w: _Writer, x: str, scale: float, zero: str, ends: Ends, name: str) -> str:
    """int8 codes of a tensor as octosim makes them: its values are multiplied by the scale's reciprocal, not divided."""
    scaled = w.node("Mul", [x, w.real(f"{name}_inverse", quantizers.reciprocal(scale))], f"{name}_scaled")
    q = w.node("QuantizeLinear", [scaled, w.real("one", 1.0), zero], f"{name}_any")
    names = ["lowest", "highest"] if ends == WHOLE else [f"{name}_lowest", f"{name}_highest"]
    return w.node("Clip", [q, *(w.constant(each, end, np.int8) for each, end in zip(names, ends, strict=True))], name)


def _rounded(w: _Writer, x: str, scale: float, zero: int, ends: Ends, name: str) -> str:
    """The values that a tensor's codes stand for; clipped before where its codes' ends are not those of int8."""
    s, z = w.real(f"{name}_scale", scale), w.constant(f"{name}_zero", zero, np.int8)
    if ends != WHOLE:
        limits = [w.real(f"{name}_{which}", (end - zero) * scale) for which, end in zip(("low", "high"), ends, strict=True)]
        x = w.node("Clip", [x, *limits], f"{name}_clipped")
    return w.node("DequantizeLinear", [w.node("QuantizeLinear", [x, s, z], name), s, z], f"{name}_real")


def _product(w: _Writer, node: Node, x: list[str]) -> str:
    layer, name = w.held[node.name], node.name
    is_conv = node.layer.product(node, 1).kernel != (0, 0)
    attributes = _window(node) if is_conv else {}
    is_real = w.form == "qdq" and layer.quantized
    own = layer.w.transpose(0, 3, 1, 2) if layer.w.ndim == 4 else layer.w.T
    codes = w.constant(f"{name}.w_quantized" if is_real else f"{name}.w", own)
    if not layer.quantized:
        y = w.node("Conv" if is_conv else "MatMul", [x[0], codes], f"{name}.product", **attributes)
        return w.node("Add", [y, w.constant_of(f"{name}.b", layer.add, node.out_shape)], f"{name}.y")
    if not is_real:
        zero = w.constant(f"{name}.x_zero", layer.x_zero, np.int8)
        q = _codes(w, x[0], layer.x_scale, zero, layer.x_ends, f"{name}.x")
        sums = w.node("ConvInteger" if is_conv else "MatMulInteger", [q, codes, zero], f"{name}.sums", **attributes)
        total = w.node("Add", [sums, w.constant_of(f"{name}.add", layer.add, node.out_shape)], f"{name}.total")
        wide = w.node("Cast", [total], f"{name}.float", to=1)
        return w.node("Mul", [wide, w.real(f"{name}.scale", layer.scale)], f"{name}.y")
    real = _rounded(w, x[0], layer.x_scale, layer.x_zero, layer.x_ends, f"{name}.x")
    w_zero = w.constant(f"{name}.w_zero", 0, np.int8)  # of each layer its own: onnxruntime's x64quantprecision replaces them
    w_real = w.node("DequantizeLinear", [codes, w.real(f"{name}.w_scale", layer.w_scale), w_zero], f"{name}.w")
    y = w.node("Conv" if is_conv else "MatMul", [real, w_real], f"{name}.product", **attributes)
    bias = layer.add.astype(np.float32) * np.float32(layer.scale)
    return w.node("Add", [y, w.constant_of(f"{name}.b", bias, node.out_shape)], f"{name}.y")


def _multiplied(w: _Writer, node: Node, product: str, a: str, b: str) -> str:
    """A product of activations in the method's numbers."""
    how, name = w.products[node.name, product], f"{node.name}.{product}"
    if not how.quantized:
        return w.node("MatMul", [a, b], name)
    both = (a, how.left, how.left_ends, f"{name}_left"), (b, how.right, how.right_ends, f"{name}_right")
    if w.form == "qdq":
        return w.node("MatMul", [_rounded(w, x, scale, 0, ends, side) for x, scale, ends, side in both], name)
    zero = w.constant("zero", 0, np.int8)
    codes = [_codes(w, x, scale, zero, ends, side) for x, scale, ends, side in both]
    sums = w.node("MatMulInteger", [*codes, zero, zero], f"{name}_sums")
    wide = w.node("Cast", [sums], f"{name}_float", to=1)
    return w.node("Mul", [wide, w.real(f"{name}_scale", how.scale)], name)


def _attention(w: _Writer, node: Node, x: list[str]) -> str:
    """The heads are an axis of their own, before the tokens."""
    name, heads = node.name, node.layer.heads

    def split(at: int, part: str, perm: tuple[int, ...]) -> str:
        tokens, width = node.in_shapes[at]
        shape = w.whole(f"{name}.{part}_shape", 0, tokens, heads, width // heads)
        return w.turn(w.node("Reshape", [x[at], shape], f"{name}.{part}_apart"), perm, f"{name}.{part}")

    q, k, v = split(0, "q", (0, 2, 1, 3)), split(1, "k", (0, 2, 3, 1)), split(2, "v", (0, 2, 1, 3))
    factor = 1 / math.sqrt(node.in_shape[1] // heads)
    scaled = w.node("Mul", [_multiplied(w, node, SCORES, q, k), w.real(f"{name}.factor", factor)], f"{name}.scaled")
    weights = w.node("Softmax", [scaled], f"{name}.weights", axis=-1)
    mixed = w.turn(_multiplied(w, node, MIXTURE, weights, v), (0, 2, 1, 3), f"{name}.mixed")
    return w.node("Reshape", [mixed, w.whole(f"{name}.shape", 0, *node.out_shape)], f"{name}.y")


# ---- normalization and activations --------------------------------------------------


def _batchnorm(w: _Writer, node: Node, x: list[str]) -> str:
    scale, shift = folded(node)
    y = w.node("Mul", [x[0], w.constant_of(f"{node.name}.scale", scale, node.in_shape)], f"{node.name}.scaled")
    return w.node("Add", [y, w.constant_of(f"{node.name}.shift", shift, node.in_shape)], f"{node.name}.y")


def _layernorm(w: _Writer, node: Node, x: list[str]) -> str:
    name, rank = node.name, len(node.in_shape)
    inputs = [w.last(x[0], rank, f"{name}.last"), *(w.constant(f"{name}.{key}", node.params[key]) for key in ("gamma", "beta"))]
    return w.first(w.node("LayerNormalization", inputs, f"{name}.normal", axis=-1, epsilon=node.layer.eps), rank, f"{name}.y")


def _clip(w: _Writer, node: Node, x: list[str]) -> str:
    low, high = (w.real(f"{node.name}.{i}", end) for i, end in enumerate(node.layer.ends))
    return w.node("Clip", [*x, low, high], f"{node.name}.y")


def _silu(w: _Writer, node: Node, x: list[str]) -> str:
    return w.node("Mul", [x[0], w.node("Sigmoid", x, f"{node.name}.gate")], f"{node.name}.y")


def _gelu(w: _Writer, node: Node, x: list[str]) -> str:
    """As PyTorch writes it for opsets before 20: x (1 + erf(x / sqrt 2)) / 2, or with tanh Hendrycks & Gimpel's formula."""
    name = node.name

    def times(a: str, value: float, part: str) -> str:
        return w.node("Mul", [a, w.real(f"{name}.{part}_factor", value)], f"{name}.{part}")

    if node.layer.approximate == "none":
        root = w.real(f"{name}.root", math.sqrt(2))
        inner = w.node("Erf", [w.node("Div", [x[0], root], f"{name}.scaled")], f"{name}.erf")
    else:
        cube = w.node("Mul", [w.node("Mul", [x[0], x[0]], f"{name}.square"), x[0]], f"{name}.cube")
        total = w.node("Add", [x[0], times(cube, 0.044715, "small")], f"{name}.sum")
        inner = w.node("Tanh", [times(total, math.sqrt(2 / math.pi), "scaled")], f"{name}.tanh")
    return times(w.node("Mul", [x[0], w.node("Add", [inner, w.real("one", 1.0)], f"{name}.plus")], f"{name}.twice"), 0.5, "y")


def _simple(kind: str, *fields: str) -> Callable[[_Writer, Node, list[str]], str]:
    """An operator that ONNX has; fields: of the layer, by ONNX's names, which are its attributes."""

    def make(w: _Writer, node: Node, x: list[str]) -> str:
        pairs = [each.partition("=") for each in fields]
        attributes = {key: getattr(node.layer, own or key) for key, _, own in pairs}
        return w.node(kind, x, f"{node.name}.y", **attributes)

    return make


# ---- poolings --------------------------------------------------


def _pool(w: _Writer, node: Node, x: list[str]) -> str:
    """A window that ends beyond the image is padded so far: ONNX's ceil_mode has windows too that begin there."""
    layer: Any = node.layer
    g = layer._window(node.in_shape, 1)
    pads = list(g.pads)
    if layer.ceil:
        sizes = zip(g.y_shape[1:3], g.stride, g.kernel, node.in_shape[:2], pads[:2], strict=True)
        ends = [max(0, (out - 1) * stride + kernel - size - low) for out, stride, kernel, size, low in sizes]
        if isinstance(layer, AvgPool) and layer.count_pad and any(a > b for a, b in zip(ends, pads[2:], strict=True)):
            raise OctosimError(
                f"layer {node.name}: an average pooling (kind '{layer.kind}') whose windows end beyond the padding that it "
                "counts cannot be exported to ONNX"
            )
        pads[2:] = ends
    attributes: dict[str, Any] = {"kernel_shape": list(g.kernel), "strides": list(g.stride), "pads": pads}
    if isinstance(layer, AvgPool):
        return w.node("AveragePool", x, f"{node.name}.y", count_include_pad=int(layer.count_pad), **attributes)
    return w.node("MaxPool", x, f"{node.name}.y", **attributes)


def _average(w: _Writer, node: Node, x: list[str]) -> str:
    y = w.node("GlobalAveragePool", x, f"{node.name}.pooled")
    return w.node("Flatten", [y], f"{node.name}.y", axis=1)


# ---- layers that move values --------------------------------------------------


def _reshape(w: _Writer, node: Node, x: list[str]) -> str:
    name = node.name
    last = w.last(x[0], len(node.in_shape), f"{name}.last")
    if len(node.out_shape) == 1:
        return w.node("Flatten", [last], f"{name}.y", axis=1)
    y = w.node("Reshape", [last, w.whole(f"{name}.shape", 0, *node.out_shape)], f"{name}.reshaped")
    return w.first(y, len(node.out_shape), f"{name}.y")


def _transpose(w: _Writer, node: Node, x: list[str]) -> str:
    rank = len(node.in_shape)
    own = (0, *(axis + 1 for axis in node.layer.axes))
    perm = tuple(_to_last(rank)[own[axis]] for axis in _to_first(rank))
    return w.turn(x[0], perm, f"{node.name}.y")


def _slice(w: _Writer, node: Node, x: list[str]) -> str:
    name, axis, rank = node.name, node.layer.axis, len(node.in_shape)
    start, count = node.layer.start, node.out_shape[axis]
    ends = [w.whole(f"{name}.from", start), w.whole(f"{name}.to", start + count), w.whole(f"{name}.axis", _axis(axis, rank))]
    return w.node("Slice", [*x, *ends], f"{name}.y")


def _concat(w: _Writer, node: Node, x: list[str]) -> str:
    return w.node("Concat", x, f"{node.name}.y", axis=_axis(node.layer.axis, len(node.in_shape)))


def _shuffle(w: _Writer, node: Node, x: list[str]) -> str:
    name, shape, groups = node.name, node.in_shape, node.layer.groups
    at, own = _axis(-1, len(shape)), [0, *(shape[axis - 1] for axis in _to_first(len(shape))[1:])]
    split = [*own[:at], groups, own[at] // groups, *own[at + 1 :]]
    perm = list(range(len(split)))
    perm[at : at + 2] = at + 1, at
    apart = w.node("Reshape", [x[0], w.whole(f"{name}.split", *split)], f"{name}.apart")
    turned = w.node("Transpose", [apart], f"{name}.turned", perm=perm)
    return w.node("Reshape", [turned, w.whole(f"{name}.shape", *own)], f"{name}.y")


def _upsample(w: _Writer, node: Node, x: list[str]) -> str:
    scales = w.constant(f"{node.name}.scales", (1, 1, *pair(node.layer.factor)), np.float32)
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return w.node("Resize", [x[0], "", scales], f"{node.name}.y", **how)


# ---- arithmetic --------------------------------------------------


def _widened(w: _Writer, x: str, shape: tuple[int, ...], rank: int, name: str) -> str:
    """A tensor with axes of size 1 behind the batch, `rank` in all without the batch."""
    if len(shape) == rank:
        return x
    x = w.last(x, len(shape), f"{name}.last")
    y = w.node("Unsqueeze", [x, w.whole(f"{name}.axes", *range(1, 1 + rank - len(shape)))], f"{name}.wide")
    return w.first(y, rank, f"{name}.first")


def _both(kind: str) -> Callable[[_Writer, Node, list[str]], str]:
    """A sum or a product of two tensors, broadcast where one is smaller."""

    def make(w: _Writer, node: Node, x: list[str]) -> str:
        rank = len(node.out_shape)
        given = [_widened(w, each, node.in_shapes[at], rank, f"{node.name}.{at}") for at, each in enumerate(x)]
        return w.node(kind, given, f"{node.name}.y")

    return make


def _positions(w: _Writer, node: Node, x: list[str]) -> str:
    values = node.params["positions"][None].transpose(_to_first(len(node.in_shape)))
    return w.node("Add", [x[0], w.constant(f"{node.name}.positions", values)], f"{node.name}.y")


def _token(w: _Writer, node: Node, x: list[str]) -> str:
    """One for each image of the batch."""
    name, token = node.name, node.params["token"]
    batch = w.node("Shape", x, f"{name}.batch", start=0, end=1)
    shape = w.node("Concat", [batch, w.whole(f"{name}.own", *token.shape)], f"{name}.shape", axis=0)
    each = w.node("Expand", [w.constant(f"{name}.token", token[None]), shape], f"{name}.each")
    return w.node("Concat", [each, x[0]], f"{name}.y", axis=1)


_LAYERS: dict[type[Any], Callable[[_Writer, Node, list[str]], str]] = {
    Conv2d: _product, DepthwiseConv2d: _product, Linear: _product, BatchNorm: _batchnorm, ReLU: _simple("Relu"),
    ReLU6: _clip, Clip: _clip, LeakyReLU: _simple("LeakyRelu", "alpha=slope"),
    HardSigmoid: _simple("HardSigmoid", "alpha", "beta"), HardSwish: _simple("HardSwish"), Sigmoid: _simple("Sigmoid"),
    SiLU: _silu, Tanh: _simple("Tanh"), GELU: _gelu, MaxPool: _pool, AvgPool: _pool, GlobalAvgPool: _average,
    LayerNorm: _layernorm, Dropout: _simple("Identity"), Flatten: _reshape, Reshape: _reshape, Transpose: _transpose,
    Slice: _slice, Concat: _concat, ChannelShuffle: _shuffle, Upsample: _upsample, Positions: _positions, Token: _token,
    Add: _both("Add"), Multiply: _both("Mul"), Attention: _attention,
}  # fmt: skip


# ---- the whole --------------------------------------------------


def onnx_model(run: train.Run, form: str) -> bytes:
    """The network in inference as an ONNX file; form: of FORMS.  OctosimError, with the layer, for what cannot be exported."""
    onnx, network, pixels = _onnx(), run.network, takes_pixels(run)
    check_kinds(run, _LAYERS, "ONNX")
    w = _Writer(onnx.helper, onnx.numpy_helper, form, weighted(run), multiplied(run))
    shape, out = network.nodes[0].in_shape, network.nodes[-1].out_shape
    x = "images"
    if pixels:
        x = w.node("Cast", [x], "images_float", to=onnx.TensorProto.FLOAT)
        x = w.node("Mul", [x, w.real("images_scale", 1 / 255)], "images_real")
    values = {-1: w.first(x, len(shape), "images_first")}
    for node in network.nodes:
        values[node.index] = _LAYERS[type(node.layer)](w, node, [values[i] for i in node.inputs])
    w.node("Identity", [w.last(values[network.nodes[-1].index], len(out), "logits_last")], "logits")
    kind = onnx.TensorProto.UINT8 if pixels else onnx.TensorProto.FLOAT
    given = onnx.helper.make_tensor_value_info("images", kind, ["batch", *shape])
    made = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", *out])
    graph = onnx.helper.make_graph(w.nodes, "octosim", [given], [made], list(w.constants.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="octosim",
                                   producer_version=octosim.__version__)  # fmt: skip
    model.ir_version = 8
    for key, value in about(run).items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        what = re.search(r"op_type:(\w+), node name: (\S+?)\.", str(error))
        where = f"layer {what[2]}: " if what else ""
        raise OctosimError(f"{where}ONNX's {what[1] if what else 'operators'} does not take its shapes") from None
    data: bytes = model.SerializeToString()
    return data


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise OctosimError("the export to ONNX needs the package onnx: pip install 'octosim[onnx]'") from None
    return onnx


PRECISE = "session.x64quantprecision"
"""The option of onnxruntime with which its optimized integer products do not saturate pairs of products at 16 bits, which they
do on x86 CPUs without VNNI."""


def run_onnx(model: bytes, values: Array, optimized: bool, precise: bool = False) -> Array:
    """What onnxruntime makes of a model on the CPU, in one thread.  precise: with PRECISE."""
    try:
        import onnxruntime
    except ImportError:
        raise OctosimError("the comparison needs the package onnxruntime: pip install onnxruntime, or --no-compare") from None
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if precise:
        options.add_session_config_entry(PRECISE, "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": values[i : i + 250]})[0] for i in range(0, len(values), 250)]
    return np.concatenate(parts)
