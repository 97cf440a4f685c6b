"""A trained run for other programs: ONNX with the integers that training ended with, safetensors; each is run and compared.

qoperator.onnx  ConvInteger and MatMulInteger on int8 codes, int32 sums, then the run's own scale: octosim's arithmetic, node
                for node; the bits are octosim's but for float32 sums in another order.
qdq.onnx        QuantizeLinear and DequantizeLinear around float operators, which compilers fuse into their own integer kernels.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import octosim
from octosim import core, train
from octosim.engine import Network, quantizers
from octosim.engine.layers import (
    Add,
    AvgPool,
    BatchNorm,
    Clip,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    ReLU6,
)
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError
from octosim.files import write_atomic
from octosim.integrity import sha256_of
from octosim.numerics import INT8

FORMS = ("qdq", "qoperator")
OPSET = 17
KINDS = ("onnx", "c", "safetensors")


@dataclass(frozen=True)
class Weighted:
    """A weighted layer in inference.  Real values: x = x_scale (q - x_zero), w = w_scale q; y = (sums + add) scale, where sums
    are of (q_x - x_zero) q_w.

    w: int8 codes, octosim's layout, or float32 where the layer is not quantized (then add is the float32 bias).
    add: int32, one for each channel or for each feature.
    """

    name: str
    w: Array
    add: Array
    x_scale: float = 1.0
    x_zero: int = 0
    w_scale: float = 1.0
    scale: float = 1.0

    @property
    def quantized(self) -> bool:
        return self.w.dtype == np.int8


class _Spy:
    """A method that keeps what its forward passes make."""

    def __init__(self, method: Method):
        self._method = method
        self.seen: dict[str, tuple[Any, Any, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def forward(self, node: Node, x: Any, context: Context) -> Any:
        y = self._method.forward(node, x, context)
        made = y
        if isinstance(y, core.LazyDequant):
            made = y.add.copy(), float(y.scale), None if y.rest is None else y.rest.copy()
        self.seen[node.name] = dict(node.saved), x, made
        return y


def _inference(network: Network, images: Array) -> dict[str, tuple[Any, Any, Any]]:
    method = network.method
    spy = network.method = _Spy(method)  # type: ignore[assignment]
    try:
        with core.float_environment():
            network.forward(network.input(images), Context(training=False, seed=network.seed, step=0))
    finally:
        network.method = method
    seen: dict[str, tuple[Any, Any, Any]] = spy.seen
    return seen


def weighted(run: train.Run) -> dict[str, Weighted]:
    """The weighted layers of a run in inference, by name; OctosimError where its integers are not fixed."""
    network = run.network
    first, second = (_inference(network, run.data.test_images[i : i + 4]) for i in (0, 4))
    found = {}
    for node in network.nodes:
        if not node.layer.weighted:
            continue
        saved, x, made = first[node.name]
        refuse = f"layer {node.name}: method {run.config.method} has no inference that can be exported"
        qx, qw = saved.get("x"), saved.get("w")
        if not isinstance(made, tuple):
            if getattr(x, "dtype", None) != np.float32 or not isinstance(qx, np.ndarray) or qx.dtype != np.float32:
                raise OctosimError(f"{refuse}: its sums are not int32 with a scale, nor its values float32")
            found[node.name] = Weighted(node.name, node.params["w"], node.params["b"])
            continue
        codes = all(isinstance(q, core.Tensor) and q.format == INT8 for q in (qx, qw))
        if not codes or qw.zero != 0:
            raise OctosimError(f"{refuse}: its operands are not int8 codes with a scale, or its weights have a zero point")
        add, scale, rest = made
        if rest is not None and rest[-1] != 0:
            raise OctosimError(f"{refuse}: its scale {scale} is so small that the bias is added in float32")
        other = second[node.name][0]["x"]
        if (other.scale, other.zero) != (qx.scale, qx.zero):
            raise OctosimError(f"{refuse}: the range of its activations is that of each batch")
        inverse = quantizers.reciprocal(qx.scale)
        again = np.clip(np.rint(x * np.float32(inverse)) + qx.zero, -LARGEST_CODE, LARGEST_CODE)
        if not np.array_equal(again.ravel(), qx.q.ravel()):
            raise OctosimError(f"{refuse}: its activations are not rounded half to even")
        rows = qw.q.reshape(len(qw.q), -1).sum(1, dtype=np.int64) * qx.zero  # sums without the zero point's part
        each = add.reshape(-1, len(rows)).astype(np.int64) + rows
        total = each.ravel().astype(np.int32)
        found[node.name] = Weighted(node.name, qw.q.copy(), total, qx.scale, qx.zero, qw.scale, scale)
    return found


# ---- ONNX --------------------------------------------------


@dataclass
class _Writer:
    """Nodes and constants of an ONNX graph; tensors are (batch, channels, height, width)."""

    helper: Any
    numpy_helper: Any
    form: str
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        self.constants[name] = self.numpy_helper.from_array(np.asarray(value, dtype), name)  # a number without axes
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name


def _kernel(w: Array) -> Array:
    """OHWI -> OIHW."""
    return w.transpose(0, 3, 1, 2) if w.ndim == 4 else w.T


def _window(node: Node) -> dict[str, Any]:
    """ONNX's attributes of a convolution."""
    product = node.layer.product(node, 1)
    g = product.geometry
    return {
        "kernel_shape": [g.kernel_h, g.kernel_w], "strides": list(g.strides), "pads": list(g.pads),
        "dilations": list(g.dilations), "group": product.groups,
    }  # fmt: skip


def takes_tokens(node: Node) -> bool:
    """Whether a layer is a fully connected one of several vectors an image."""
    return node.layer.weighted and len(node.in_shape) > 1 and node.layer.product(node, 1).kernel == (0, 0)


def _in_channels(w: _Writer, name: str, values: Array, node: Node) -> str:
    """A constant to be added to a layer's output: one for each channel, or for each feature."""
    if len(node.out_shape) == 1 or values.size != node.out_shape[-1]:
        shaped = values.reshape(1, *node.out_shape)
        return w.constant(name, shaped.transpose(0, 3, 1, 2) if shaped.ndim == 4 else shaped)
    return w.constant(name, values.reshape(1, -1, *[1] * (len(node.out_shape) - 1)))


def _product(w: _Writer, node: Node, x: list[str], held: dict[str, Weighted]) -> str:
    layer, name = held[node.name], node.name
    is_conv = node.layer.product(node, 1).kernel != (0, 0)
    attributes = _window(node) if is_conv else {}
    kernel = _kernel(layer.w)
    if not layer.quantized:
        y = w.node("Conv" if is_conv else "MatMul", [x[0], w.constant(f"{name}.w", kernel)], f"{name}.product", **attributes)
        return w.node("Add", [y, _in_channels(w, f"{name}.b", layer.add, node)], f"{name}.y")
    zero = w.constant(f"{name}.x_zero", layer.x_zero, np.int8)
    codes = w.constant(f"{name}.w", kernel)
    if w.form == "qoperator":
        inverse = w.constant(f"{name}.x_inverse", quantizers.reciprocal(layer.x_scale), np.float32)
        one = w.constant("one", 1.0, np.float32)
        scaled = w.node("Mul", [x[0], inverse], f"{name}.x_scaled")
        q = w.node("QuantizeLinear", [scaled, one, zero], f"{name}.x_any")
        ends = [w.constant("lowest", -LARGEST_CODE, np.int8), w.constant("highest", LARGEST_CODE, np.int8)]
        q = w.node("Clip", [q, *ends], f"{name}.x")
        product = "ConvInteger" if is_conv else "MatMulInteger"
        sums = w.node(product, [q, codes, zero], f"{name}.sums", **attributes)
        total = w.node("Add", [sums, _in_channels(w, f"{name}.add", layer.add, node)], f"{name}.total")
        wide = w.node("Cast", [total], f"{name}.float", to=1)
        return w.node("Mul", [wide, w.constant(f"{name}.scale", layer.scale, np.float32)], f"{name}.y")
    scale = w.constant(f"{name}.x_scale", layer.x_scale, np.float32)
    q = w.node("QuantizeLinear", [x[0], scale, zero], f"{name}.x")
    real = w.node("DequantizeLinear", [q, scale, zero], f"{name}.x_real")
    w_scale, w_zero = w.constant(f"{name}.w_scale", layer.w_scale, np.float32), w.constant("zero", 0, np.int8)
    w_real = w.node("DequantizeLinear", [codes, w_scale, w_zero], f"{name}.w_real")
    y = w.node("Conv" if is_conv else "MatMul", [real, w_real], f"{name}.product", **attributes)
    bias = layer.add.astype(np.float32) * np.float32(layer.scale)
    return w.node("Add", [y, _in_channels(w, f"{name}.b", bias, node)], f"{name}.y")


def folded(node: Node) -> tuple[Array, Array]:
    """Scale and shift of a batch normalization in inference, float32 by channel: y = x scale + shift, as the core has them."""
    p, s = node.params, node.state
    scale = p["gamma"] * (np.float32(1) / np.sqrt(s["var"] + np.float32(node.layer.eps)))
    return scale, p["beta"] - s["mean"] * scale


def _batchnorm(w: _Writer, node: Node, x: list[str], held: Any) -> str:
    scale, shift = folded(node)
    shape = (1, -1, *[1] * (len(node.in_shape) - 1))
    y = w.node("Mul", [x[0], w.constant(f"{node.name}.scale", scale.reshape(shape))], f"{node.name}.scaled")
    return w.node("Add", [y, w.constant(f"{node.name}.shift", shift.reshape(shape))], f"{node.name}.y")


def _pool(w: _Writer, node: Node, x: list[str], held: Any) -> str:
    layer: Any = node.layer
    g = layer._window(node.in_shape, 1)
    attributes: dict[str, Any] = {
        "kernel_shape": list(g.kernel), "strides": list(g.stride), "pads": list(g.pads), "ceil_mode": int(layer.ceil)
    }  # fmt: skip
    if isinstance(layer, AvgPool):
        return w.node("AveragePool", x, f"{node.name}.y", count_include_pad=int(layer.count_pad), **attributes)
    return w.node("MaxPool", x, f"{node.name}.y", **attributes)


def _flatten(w: _Writer, node: Node, x: list[str], held: Any) -> str:
    """octosim's features stand in the order (height, width, channel)."""
    last = w.node("Transpose", x, f"{node.name}.last", perm=[0, 2, 3, 1]) if len(node.in_shape) == 3 else x[0]
    return w.node("Flatten", [last], f"{node.name}.y", axis=1)


def _clip(w: _Writer, node: Node, x: list[str], held: Any) -> str:
    low, high = (w.constant(f"{node.name}.{i}", end, np.float32) for i, end in enumerate(node.layer.ends))
    return w.node("Clip", [*x, low, high], f"{node.name}.y")


def _average(w: _Writer, node: Node, x: list[str], held: Any) -> str:
    y = w.node("GlobalAveragePool", x, f"{node.name}.pooled")
    return w.node("Flatten", [y], f"{node.name}.y", axis=1)


def _simple(kind: str) -> Callable[[_Writer, Node, list[str], Any], str]:
    return lambda w, node, x, held: w.node(kind, x, f"{node.name}.y")


_LAYERS: dict[type[Any], Callable[[_Writer, Node, list[str], Any], str]] = {
    Conv2d: _product, DepthwiseConv2d: _product, Linear: _product, BatchNorm: _batchnorm, ReLU: _simple("Relu"),
    ReLU6: _clip, Clip: _clip, MaxPool: _pool, AvgPool: _pool, GlobalAvgPool: _average, Flatten: _flatten, Add: _simple("Add"),
    Dropout: _simple("Identity"),
}  # fmt: skip


def takes_pixels(run: train.Run) -> bool:
    """Whether the exported network takes the images as they are, uint8 (batch, height, width, channels); else it takes the
    values that `Network.input` makes of them, float32."""
    plain = type(run.method).input is Method.input and run.network.source.is_plain
    return bool(plain and run.data.test_images.dtype == np.uint8)


def onnx_model(run: train.Run, form: str) -> bytes:
    """The network in inference as an ONNX file; form: of FORMS.  OctosimError, with the layer, for what cannot be exported."""
    onnx, held = _onnx(), weighted(run)
    w = _Writer(onnx.helper, onnx.numpy_helper, form)
    network, pixels = run.network, takes_pixels(run)
    shape = network.nodes[0].in_shape
    x = "images"
    if pixels:
        x = w.node("Cast", [x], "images.float", to=onnx.TensorProto.FLOAT)
        x = w.node("Mul", [x, w.constant("images.scale", np.float32(1 / 255))], "images.real")
    if len(shape) == 3:
        x = w.node("Transpose", [x], "images.first", perm=[0, 3, 1, 2])
    values = {-1: x}
    for node in network.nodes:
        make = _LAYERS.get(type(node.layer))
        if make is None or takes_tokens(node) or node.layer.stem in run.method.layers:
            raise OctosimError(f"layer {node.name}: layers of the kind '{node.layer.kind}' cannot be exported to ONNX yet")
        values[node.index] = make(w, node, [values[i] for i in node.inputs], held)
    w.node("Identity", [values[network.nodes[-1].index]], "logits")
    kind = onnx.TensorProto.UINT8 if pixels else onnx.TensorProto.FLOAT
    given = onnx.helper.make_tensor_value_info("images", kind, ["batch", *shape])
    made = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", *network.nodes[-1].out_shape])
    graph = onnx.helper.make_graph(w.nodes, "octosim", [given], [made], list(w.constants.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="octosim",
                                   producer_version=octosim.__version__)  # fmt: skip
    model.ir_version = 8
    for key, value in _about(run).items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        what = re.search(r"op_type:(\w+), node name: (\S+?)\.", str(error))
        where = f"layer {what[2]}: " if what else ""
        raise OctosimError(f"{where}ONNX's {what[1] if what else 'operators'} does not take its shapes") from None
    data: bytes = model.SerializeToString()
    return data


def _about(run: train.Run) -> dict[str, Any]:
    c = run.config
    about = {"model": c.model, "data": run.data.name, "method": c.method, "seed": c.seed, "step": run.step}
    return about | {"digest": run.digest()}


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise OctosimError("the export to ONNX needs the package onnx: pip install 'octosim[onnx]'") from None
    return onnx


def logits_of(run: train.Run, images: Array) -> Array:
    """octosim's own logits, float32 (N, classes)."""
    made = []
    with core.float_environment():
        for i in range(0, len(images), 250):
            context = Context(training=False, seed=run.config.seed, step=0)
            made.append(core.materialize_in_place(run.network.forward(run.network.input(images[i : i + 250]), context)).copy())
    return np.concatenate(made)


def compare(theirs: Array, ours: Array) -> dict[str, Any]:
    """Two runs' logits.  "equal", "off_by_one", "more": elements, in int8 steps, the largest of octosim's logits being 127.
    "same_bits": elements whose float32 is the same.  "same_class": images."""
    step = np.float64(np.abs(ours).max()) / LARGEST_CODE or 1.0
    distance = np.abs(np.rint(theirs / step) - np.rint(ours / step))
    return {
        "elements": ours.size,
        "same_bits": int(np.count_nonzero(theirs.view(np.int32) == ours.view(np.int32))),
        "equal": int(np.count_nonzero(distance == 0)),
        "off_by_one": int(np.count_nonzero(distance == 1)),
        "more": int(np.count_nonzero(distance > 1)),
        "images": len(ours),
        "same_class": int(np.count_nonzero(theirs.argmax(1) == ours.argmax(1))),
    }


def run_onnx(model: bytes, values: Array, optimized: bool) -> Array:
    """What onnxruntime makes of a model on the CPU, in one thread."""
    try:
        import onnxruntime
    except ImportError:
        raise OctosimError("the comparison needs the package onnxruntime: pip install onnxruntime, or --no-compare") from None
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": values[i : i + 250]})[0] for i in range(0, len(values), 250)]
    return np.concatenate(parts)


# ---- safetensors --------------------------------------------------


def tensors(run: train.Run) -> dict[str, Array]:
    """The network's numbers in inference, by "layer.name": w (int8, octosim's layout), w_scale, x_scale, x_zero, add (int32),
    scale of a quantized layer; w and b of another; scale and shift of batch normalization."""
    by_name: dict[str, Array] = {}
    for name, layer in weighted(run).items():
        if not layer.quantized:
            by_name |= {f"{name}.w": layer.w, f"{name}.b": layer.add}
            continue
        by_name |= {f"{name}.w": layer.w, f"{name}.add": layer.add, f"{name}.x_zero": np.array([layer.x_zero], np.int32)}
        for key in ("x_scale", "w_scale", "scale"):
            by_name[f"{name}.{key}"] = np.array([getattr(layer, key)], np.float32)
    for node in run.network.nodes:
        if node.layer.normalizes:
            by_name |= {f"{node.name}.{key}": v for key, v in {**node.params, **node.state}.items()}
    return {name: np.ascontiguousarray(v) for name, v in by_name.items()}


# ---- the whole --------------------------------------------------


def export(folder: Path, kind: str, out: Path, images: int | None = None, comparing: bool = True) -> list[dict[str, Any]]:
    """Writes a finished run for other programs; kind: of KINDS.

    out: a folder.  images: of the test set to compare on; all if not given.  Returns a row for each file and way to run it:
    "file", "bytes", "runtime", and what `compare` says.
    """
    if kind not in KINDS:
        raise OctosimError(f"a run can be exported to {', '.join(KINDS)}, not to '{kind}'")
    train.check(folder)
    if train.read_digest(folder) is None:
        raise OctosimError(f"{folder} is not finished: continue it with --resume")
    run = train.reopen(folder)
    files: dict[str, bytes] = {}
    if kind == "c":
        return _export_c(run, out, images, comparing)
    if kind == "onnx":
        files = {f"{form}.onnx": onnx_model(run, form) for form in FORMS}
    else:
        from safetensors.numpy import save

        held = tensors(run)
        about = _about(run) | {"layers": json.dumps(train.read_manifest(folder)["decides"]["layers"])}
        files = {"model.safetensors": save(held, {"octosim": json.dumps(about | {"sum": sha256_of(about)}, sort_keys=True)})}
    write(out, files)
    rows = [{"file": str(out / name), "bytes": len(content), "runtime": None} for name, content in files.items()]
    if not comparing:
        return rows
    if kind == "safetensors":
        return [rows[0] | {"runtime": "safetensors", **_compare_tensors(out / "model.safetensors", tensors(run))}]
    chosen = run.data.test_images[:images]
    ours = logits_of(run, chosen)
    given = chosen if takes_pixels(run) else np.array(run.network.input(chosen), np.float32)
    compared = []
    for row, content in zip(rows, files.values(), strict=True):
        for optimized in (False, True):
            runtime = f"onnxruntime, graph optimizations {'on' if optimized else 'off'}"
            compared.append(row | {"runtime": runtime, **compare(run_onnx(content, given, optimized), ours)})
    return compared


def write(out: Path, files: dict[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make {out}: {error.strerror}") from None
    for name, content in files.items():
        write_atomic(out / name, content)


MACHINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cc": (("cc",), ()),
    "qemu-aarch64": (("aarch64-linux-gnu-gcc", "-static"), ("qemu-aarch64",)),
    "qemu-arm": (("arm-linux-gnueabihf-gcc", "-static", "-fno-math-errno"), ("qemu-arm",)),
}
"""Compilers, and what runs their programs here; those for Arm are tried where they are there."""


def machines() -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Name, compiler and runner of those of MACHINES that are here; "cc" always, whose lack is an error."""
    for name, (compiler, runner) in MACHINES.items():
        if name == "cc" or all(shutil.which(tool) for tool in (compiler[0], *runner)):
            yield name, compiler, runner


def _export_c(run: train.Run, out: Path, images: int | None, comparing: bool) -> list[dict[str, Any]]:
    """network.c, compiled and run here, and for Arm where that is possible."""
    from octosim.evidence import export_c

    made = export_c.program(run)
    write(out, {"network.c": made.source.encode()})
    row = {"file": str(out / "network.c"), "bytes": len(made.source), "flash": made.flash, "ram": made.ram, "runtime": None}
    if not comparing:
        return [row]
    chosen = run.data.test_images[:images]
    ours, rows = logits_of(run, chosen), []
    for runtime, compiler, runner in machines():
        made_there = export_c.run_c(out / "network.c", chosen, ours.shape[1], compiler, runner)
        rows.append(row | {"runtime": runtime, **compare(made_there, ours)})
    return rows


def _compare_tensors(path: Path, expected: dict[str, Array]) -> dict[str, Any]:
    """The file read again."""
    from safetensors.numpy import load_file

    again = load_file(path)
    equal = [name for name, v in expected.items() if name in again and again[name].tobytes() == v.tobytes()]
    return {"elements": len(expected), "equal": len(equal), "off_by_one": 0, "more": len(expected) - len(equal)}
