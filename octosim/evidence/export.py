"""A trained run for other programs: ONNX with the integers that training ended with, safetensors; each is run and compared.

qoperator.onnx  ConvInteger and MatMulInteger on int8 codes, int32 sums, then the run's own scale: octosim's arithmetic, node
                for node; the bits are octosim's but for float32 sums in another order.
qdq.onnx        QuantizeLinear and DequantizeLinear around float operators, which compilers fuse into their own integer kernels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim import core, train
from octosim.engine import Network, quantizers
from octosim.engine.nodes import Array, BatchedProduct, Context, Method, Node
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError
from octosim.files import write_atomic
from octosim.integrity import sha256_of
from octosim.numerics import INT8

KINDS = ("onnx", "c", "safetensors")


Ends = tuple[int, int]
WHOLE: Ends = (-LARGEST_CODE, LARGEST_CODE)


@dataclass(frozen=True)
class Weighted:
    """A weighted layer in inference.  Real values: x = x_scale (q - x_zero), w = w_scale q; y = (sums + add) scale, where sums
    are of (q_x - x_zero) q_w.  x_ends: the codes of x's range, beyond which its values are clipped.

    w: int8 codes, octosim's layout, or float32 where the layer is not quantized (then add is the float32 bias).
    add: int32, one for each channel or for each feature.
    """

    name: str
    w: Array
    add: Array
    x_scale: float = 1.0
    x_zero: int = 0
    x_ends: Ends = WHOLE
    w_scale: float = 1.0
    scale: float = 1.0

    @property
    def quantized(self) -> bool:
        return self.w.dtype == np.int8


@dataclass(frozen=True)
class Multiplied:
    """A product of activations in inference, of codes without zero points: values are left q by right q, y = sums scale.

    The scales are 0 where it is not quantized.  left_ends, right_ends: as x_ends of a weighted layer.
    """

    left: float = 0.0
    right: float = 0.0
    scale: float = 0.0
    left_ends: Ends = WHOLE
    right_ends: Ends = WHOLE

    @property
    def quantized(self) -> bool:
        return self.scale != 0


class _Spy:
    """A method that keeps what its forward passes make.

    seen: of weighted layers what they saved, their input and their output, and the ends of the input's codes.  products: of
    products of activations, by layer and name, the same.
    """

    def __init__(self, method: Method):
        self._method = method
        self.seen: dict[str, tuple[Any, Any, Any, Any]] = {}
        self.products: dict[tuple[str, str], tuple[Any, Any, Any, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def forward(self, node: Node, x: Any, context: Context) -> Any:
        ends = None
        if isinstance(x, np.ndarray):
            ends = _ends(lambda given: (self._method.forward(node, given, context), node.saved.get("x"))[1], x)
        y = self._method.forward(node, x, context)
        made = y
        if isinstance(y, core.LazyDequant):
            made = y.add.copy(), float(y.scale), None if y.rest is None else y.rest.copy()
        self.seen[node.name] = dict(node.saved), x, made, ends
        return y


    def multiply(self, node: Node, name: str, product: BatchedProduct, a: Array, b: Array, context: Context) -> Any:
        def codes(left: Array, right: Array, at: int) -> Any:
            self._method.multiply(node, name, product, left, right, context)
            return node.saved[name][at]

        ends = _ends(lambda given: codes(given, b, 0), a), _ends(lambda given: codes(a, given, 1), b)
        given = a.copy(), b.copy()  # which softmax and others write over
        y = self._method.multiply(node, name, product, a, b, context)
        self.products[node.name, name] = node.saved[name], given, (product, y.copy()), ends
        return y


def _ends(codes: Callable[[Array], Any], x: Array) -> Ends | None:
    """The least and the largest code that a tensor gets whatever its values are; codes: of values of its shape.  None where it
    gets none."""
    found = codes(x)
    if not isinstance(found, core.Tensor) or found.format != INT8:
        return None
    beyond = np.float32(1024 * float(found.scale))
    least, most = (int(codes(np.full_like(x, value)).q.ravel()[0]) for value in (-beyond, beyond))
    return least, most


def _inference(network: Network, images: Array) -> _Spy:
    method = network.method
    spy = network.method = _Spy(method)  # type: ignore[assignment]
    try:
        with core.float_environment():
            network.forward(network.input(images), Context(training=False, seed=network.seed, step=0))
    finally:
        network.method = method
    return spy


def _twice(run: train.Run) -> tuple[_Spy, _Spy]:
    """Inferences of two batches: what is fixed is the same in both."""
    first, second = (_inference(run.network, run.data.test_images[i : i + 4]) for i in (0, 4))
    return first, second


def weighted(run: train.Run) -> dict[str, Weighted]:
    """The weighted layers of a run in inference, by name; OctosimError where its integers are not fixed."""
    network = run.network
    first, second = (spy.seen for spy in _twice(run))
    found = {}
    for node in network.nodes:
        if not node.layer.weighted:
            continue
        saved, x, made, ends = first[node.name]
        refuse = f"layer {node.name}: method {run.config.method} has no inference that can be exported"
        qx, qw = saved.get("x"), saved.get("w")
        if not isinstance(made, tuple):
            if getattr(x, "dtype", None) != np.float32 or not isinstance(qx, np.ndarray) or qx.dtype != np.float32:
                raise OctosimError(f"{refuse}: its sums are not int32 with a scale, nor its values float32")
            found[node.name] = Weighted(node.name, node.params["w"], node.params["b"])
            continue
        codes = all(isinstance(q, core.Tensor) and q.format == INT8 for q in (qx, qw))
        if not codes or qw.zero != 0 or ends is None:
            raise OctosimError(f"{refuse}: its operands are not int8 codes with a scale, or its weights have a zero point")
        add, scale, rest = made
        if rest is not None and rest[-1] != 0:
            raise OctosimError(f"{refuse}: its scale {scale} is so small that the bias is added in float32")
        other = second[node.name][0]["x"]
        if (other.scale, other.zero) != (qx.scale, qx.zero):
            raise OctosimError(f"{refuse}: the range of its activations is that of each batch")
        if not _are_nearest(x, qx, ends):
            raise OctosimError(f"{refuse}: its activations are not rounded half to even")
        rows = qw.q.reshape(len(qw.q), -1).sum(1, dtype=np.int64) * qx.zero  # sums without the zero point's part
        each = add.reshape(-1, len(rows)).astype(np.int64) + rows
        total = each.ravel().astype(np.int32)
        found[node.name] = Weighted(node.name, qw.q.copy(), total, qx.scale, qx.zero, ends, qw.scale, scale)
    return found


def check_kinds(run: train.Run, known: Container[type[Any]], form: str) -> None:
    """OctosimError with the first layer whose kind, or whose pass in this method, a form has not."""
    for node in run.network.nodes:
        kind = node.layer.kind
        if type(node.layer) not in known:
            raise OctosimError(f"layer {node.name}: layers of the kind '{kind}' are not exported to {form}")
        if node.layer.stem in run.method.layers and run.method.values == "float32":  # of others `weighted` tells more
            raise OctosimError(
                f"layer {node.name}: layers of the kind '{kind}' are not exported to {form} as method {run.config.method} "
                "computes them"
            )


def _are_nearest(x: Array, codes: core.Tensor, ends: Ends) -> bool:
    """Whether codes are those of the values, rounded half to even and clipped."""
    inverse = quantizers.reciprocal(codes.scale)
    again = np.clip(np.rint(x * np.float32(inverse)) + codes.zero, *ends)
    return np.array_equal(again.ravel(), codes.q.ravel())


def multiplied(run: train.Run) -> dict[tuple[str, str], Multiplied]:
    """The products of activations of a run in inference, by layer and name; OctosimError where their scales are not fixed."""
    if not any(node.layer.multiplies for node in run.network.nodes):
        return {}
    first, second = (spy.products for spy in _twice(run))
    found = {}
    for (layer, name), (saved, given, (product, y), ends) in first.items():
        if all(isinstance(each, np.ndarray) and each.dtype == np.float32 for each in saved):
            found[layer, name] = Multiplied()
            continue
        refuse = f"layer {layer}: method {run.config.method} has no {name} of its attention that can be exported"
        if not all(isinstance(q, core.Tensor) and q.format == INT8 and q.zero == 0 for q in saved):
            raise OctosimError(f"{refuse}: their operands are not int8 codes with a scale and no zero point")
        left, right = (float(q.scale) for q in saved)
        if [float(q.scale) for q in second[layer, name][0]] != [left, right]:
            raise OctosimError(f"{refuse}: the range of its operands is that of each batch")
        scale = float(core.combined_scale(left, right))
        again = product.forward(*(q.q for q in saved)).astype(np.float32) * np.float32(scale)
        if not all(map(_are_nearest, given, saved, ends)) or not np.array_equal(again, y):
            raise OctosimError(f"{refuse}: they are no int32 sums of codes rounded half to even, times the scales")
        found[layer, name] = Multiplied(left, right, scale, *ends)
    return found


def folded(node: Node) -> tuple[Array, Array]:
    """Scale and shift of a batch normalization in inference, float32 by channel: y = x scale + shift, as the core has them."""
    p, s = node.params, node.state
    scale = p["gamma"] * (np.float32(1) / np.sqrt(s["var"] + np.float32(node.layer.eps)))
    return scale, p["beta"] - s["mean"] * scale


def takes_pixels(run: train.Run) -> bool:
    """Whether the exported network takes the images as they are, uint8 (batch, height, width, channels); else it takes the
    values that `Network.input` makes of them, float32."""
    plain = type(run.method).input is Method.input and run.network.source.is_plain
    return bool(plain and run.data.test_images.dtype == np.uint8)


def about(run: train.Run) -> dict[str, Any]:
    c = run.config
    content = {"model": c.model, "data": run.data.name, "method": c.method, "seed": c.seed, "step": run.step}
    return content | {"digest": run.digest()}


# ---- comparisons --------------------------------------------------


def logits_of(run: train.Run, images: Array) -> Array:
    """octosim's own logits, float32 (N, classes), or the elements of another output."""
    made = []
    with core.float_environment():
        for i in range(0, len(images), 250):
            context = Context(training=False, seed=run.config.seed, step=0)
            made.append(core.materialize_in_place(run.network.forward(run.network.input(images[i : i + 250]), context)).copy())
    return np.concatenate(made).reshape(len(images), -1)


def compare(theirs: Array, ours: Array) -> dict[str, Any]:
    """Two runs' logits.  "equal", "off_by_one", "more": elements, in int8 steps, the largest of octosim's logits being 127.
    "same_bits": elements whose float32 is the same.  "same_class": images."""
    theirs = theirs.reshape(ours.shape)
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


# ---- safetensors --------------------------------------------------


def tensors(run: train.Run) -> dict[str, Array]:
    """The network's numbers in inference, by "layer.name": w (int8, octosim's layout), w_scale, x_scale, x_zero, x_ends, add
    (int32), scale of a quantized layer; w and b of another; scales of the operands and results of an attention's products;
    parameters and running statistics of all others."""
    by_name: dict[str, Array] = {}
    for name, layer in weighted(run).items():
        if not layer.quantized:
            by_name |= {f"{name}.w": layer.w, f"{name}.b": layer.add}
            continue
        by_name |= {f"{name}.w": layer.w, f"{name}.add": layer.add, f"{name}.x_zero": np.array([layer.x_zero], np.int32)}
        by_name[f"{name}.x_ends"] = np.array(layer.x_ends, np.int32)
        for key in ("x_scale", "w_scale", "scale"):
            by_name[f"{name}.{key}"] = np.array([getattr(layer, key)], np.float32)
    for (of, product), how in multiplied(run).items():
        scales = {"left_scale": how.left, "right_scale": how.right, "scale": how.scale} if how.quantized else {}
        by_name |= {f"{of}.{product}_{key}": np.array([value], np.float32) for key, value in scales.items()}
        ends = {"left_ends": how.left_ends, "right_ends": how.right_ends} if how.quantized else {}
        by_name |= {f"{of}.{product}_{key}": np.array(value, np.int32) for key, value in ends.items()}
    for node in run.network.nodes:
        if not node.layer.weighted:
            held = node.params if node.layer.multiplies else {**node.params, **node.state}
            by_name |= {f"{node.name}.{key}": v for key, v in held.items()}
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
        from octosim.evidence.export_onnx import FORMS, onnx_model

        files = {f"{form}.onnx": onnx_model(run, form) for form in FORMS}
    else:
        from safetensors.numpy import save

        held = tensors(run)
        told = about(run) | {"layers": json.dumps(train.read_manifest(folder)["decides"]["layers"])}
        files = {"model.safetensors": save(held, {"octosim": json.dumps(told | {"sum": sha256_of(told)}, sort_keys=True)})}
    write(out, files)
    rows = [{"file": str(out / name), "bytes": len(content), "runtime": None} for name, content in files.items()]
    if not comparing:
        return rows
    if kind == "safetensors":
        return [rows[0] | {"runtime": "safetensors", **_compare_tensors(out / "model.safetensors", tensors(run))}]
    chosen = run.data.test_images[:images]
    ours = logits_of(run, chosen)
    given = chosen if takes_pixels(run) else np.array(run.network.input(chosen), np.float32)
    return [
        row | {"runtime": runtime, **compare(made, ours)}
        for row, content in zip(rows, files.values(), strict=True)
        for runtime, made in _onnxruntimes(content, given, ours)
    ]


def _onnxruntimes(model: bytes, given: Array, ours: Array) -> Iterator[tuple[str, Array]]:
    """What onnxruntime makes of a file, by the way it runs: as it is, optimized, and where that is further off without the
    saturation of pairs."""
    from octosim.evidence.export_onnx import PRECISE, run_onnx

    plain, optimized = (run_onnx(model, given, way) for way in (False, True))
    yield "onnxruntime, graph optimizations off", plain
    yield "onnxruntime, graph optimizations on", optimized
    if compare(optimized, ours)["more"] > compare(plain, ours)["more"]:
        yield f"onnxruntime, graph optimizations on, {PRECISE}", run_onnx(model, given, True, precise=True)


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
