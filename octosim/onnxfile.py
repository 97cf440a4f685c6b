"""ONNX files as their readers want them: functions inlined, constants folded, every shape known that can be known.

Nodes are walked once in their order.  A node whose inputs are constants is a constant: small ones are computed at once, as the
arithmetic of shapes needs them, weights when they are asked for.  Weights outside the file are read no sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octosim.errors import OctosimError

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

ONNX_BYTES = 2 << 30
"""Of a file: protobuf reads no larger message."""
SMALL = 4096
"""Elements of a constant that is computed while the nodes are walked."""
LARGEST = 1 << 29
"""Elements of a constant that is computed or sparse: 2 GiB of float32, as much as a file holds of one that is written out."""
REFERENCE_OPSET = 21
"""For operators whose older versions onnx's reference has not, as DequantizeLinear before 19."""
UNREPEATABLE = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "If", "Loop", "Scan",
}  # fmt: skip
"""Operators whose output is no constant, whatever their inputs are."""


@dataclass
class OnnxModel:
    """An ONNX model.

    nodes: those that depend on the inputs, in their order.  inputs, outputs: names.  parameters: initializers and constants of
    nodes.  constants: all that is known before the first input.  shapes, types: of tensors by name, as far as they can be
    inferred; types as in onnx.TensorProto.  opset: of the standard operators.
    """

    path: Path
    opset: int
    nodes: list[Any] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    _tensors: dict[str, Any] = field(default_factory=dict)
    _values: dict[str, Array] = field(default_factory=dict)
    _later: dict[str, Any] = field(default_factory=dict)
    _imports: list[Any] = field(default_factory=list)
    _ir: int = 9

    def value(self, name: str) -> Array:
        """A constant; OctosimError where its file is not there or it cannot be computed."""
        if name in self._values:
            return self._values[name]
        if name in self._tensors:
            value = _array(self._tensors[name], self.path)
        else:
            self._compute(self._later[name])
            value = self._values[name]
        self._values[name] = value
        return value

    def small(self, name: str) -> Array | None:
        """A constant of few elements, None where there is none or it cannot be read."""
        if name not in self.constants or math.prod(self.shapes.get(name, (SMALL + 1,))) > SMALL:
            return None
        try:
            return self.value(name)
        except OctosimError:
            return None

    def _compute(self, node: Any) -> None:
        for name in node.output:
            refuse_large(f"{self.path}: node {title(node)}", self.shapes.get(name, ()))
        values = [self.value(name) if name else None for name in node.input]
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):  # exporters share weights so: no evaluator needed
            values = self._evaluate(node, values)
        for name, value in zip(node.output, values, strict=False):
            if name:
                self._values[name] = np.asarray(value)

    def _evaluate(self, node: Any, values: list[Any]) -> list[Any]:
        from onnx import TensorProto, helper
        from onnx.reference import ReferenceEvaluator

        if node.domain == MICROSOFT and node.op_type in ("QuantizeLinear", "DequantizeLinear"):  # of 16 bits before opset 21
            standard = type(node)()
            standard.CopyFrom(node)
            standard.domain, node = "", standard
        named = {name: value for name, value in zip(node.input, values, strict=False) if name}
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for name, v in named.items()
        ]
        outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output if name]
        graph = helper.make_graph([node], "constant", infos, outputs)
        try:
            evaluator = None
            for imports in (self._imports, [helper.make_opsetid("", REFERENCE_OPSET)]):
                model = helper.make_model(graph, opset_imports=imports, ir_version=self._ir)
                try:
                    evaluator = ReferenceEvaluator(model)
                    break
                except RuntimeError:  # onnx has no code for so old an operator
                    if self.opset >= REFERENCE_OPSET:
                        raise
            assert evaluator is not None
            found = iter(evaluator.run(None, named))
        except Exception as error:  # whatever an operator's own code raises
            text = " ".join(str(error).split())[:150]
            raise OctosimError(f"{self.path}: node {title(node)} cannot be computed ({text})") from None
        return [next(found) if name else None for name in node.output]


def title(node: Any) -> str:
    """A node's name and operator."""
    output = node.output[0] if node.output else ""
    return f"{node.name or output} ({node.domain + '.' if node.domain else ''}{node.op_type})"


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute's value: a number, a string, a list or a tensor."""
    import onnx

    for each in node.attribute:
        if each.name == name:
            value = onnx.helper.get_attribute_value(each)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return default


def _array(tensor: Any, path: Path) -> Array:
    from onnx import numpy_helper

    if _is_sparse(tensor):
        return _dense(tensor, path)
    try:
        return np.asarray(numpy_helper.to_array(tensor, str(path.parent)))
    except Exception as error:  # a file of weights that is not there, or shorter than the tensor
        told = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        where = f"its values are in {told!r}, which cannot be read" if told else "its values are damaged"
        text = "" if told else f" ({' '.join(str(error).split())[:100]})"
        raise OctosimError(f"{path}: tensor {tensor.name!r} of this ONNX file: {where}{text}") from None


def _is_sparse(tensor: Any) -> bool:
    return hasattr(tensor, "indices")


def refuse_large(where: str, shape: Shape) -> None:
    """OctosimError for a constant of more than LARGEST elements."""
    if math.prod(shape) > LARGEST:
        told = "x".join(map(str, shape))
        raise OctosimError(f"{where}: a constant of the shape {told}, expected at most {LARGEST:,} elements")


def _dense(sparse: Any, path: Path) -> Array:
    """A sparse tensor with its zeros."""
    where, shape = f"{path}: sparse tensor {sparse.values.name!r}", tuple(sparse.dims)
    refuse_large(where, shape)
    values, indices = _array(sparse.values, path), _array(sparse.indices, path)
    sizes = (math.prod(shape),) if indices.ndim == 1 else shape
    given = indices.reshape(len(indices), -1) if indices.ndim in (1, 2) else np.empty((0, 0))
    fits = given.shape == (values.size, len(sizes)) and bool(np.all((given >= 0) & (given < np.array(sizes))))
    if not fits:
        raise OctosimError(f"{where}: its {len(given)} indices do not fit its {values.size} values and its shape")
    dense = np.zeros(sizes, values.dtype)
    dense[tuple(given.T)] = values.reshape(-1)
    return dense.reshape(shape)


def load(path: Path) -> Any:
    """The file's onnx.ModelProto, local functions inlined; OctosimError where it is none.  Weights outside are not read."""
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
        told = "; torch.onnx.export makes one of a PyTorch module" if path.suffix.lower() in (".pt", ".pth", ".pt2") else ""
        raise OctosimError(f"{path}: not an ONNX model, or a damaged one{told}") from None
    if not _is_text(model):
        raise OctosimError(f"{path}: a damaged ONNX model: it has names that are not UTF-8")
    if not model.graph.node:
        raise OctosimError(f"{path}: an ONNX model without operations, or no ONNX model")
    return model


def _is_text(message: Any) -> bool:
    """Whether all strings of a message, and of those in it, are UTF-8: protobuf gives the others as bytes."""
    for kind, value in message.ListFields():
        if kind.type == kind.TYPE_MESSAGE:
            if not all(map(_is_text, [value] if hasattr(value, "ListFields") else value)):
                return False
        elif kind.type == kind.TYPE_STRING:
            if not all(isinstance(each, str) for each in ([value] if isinstance(value, (str, bytes)) else value)):
                return False
    return True


def read(path: Path, batch: int | None = None, shapes: dict[str, Shape] | None = None) -> OnnxModel:
    """The model with a batch size, 1 if not given, for symbolic first dimensions, and with shapes of inputs by name."""
    return prepare(load(path), path, batch, shapes)


def prepare(model: Any, path: Path, batch: int | None = None, shapes: dict[str, Shape] | None = None) -> OnnxModel:
    """As `read`, of an onnx.ModelProto.  path: what errors begin with, and where external data is looked for."""
    if model.functions:
        try:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        except Exception as error:
            raise OctosimError(f"{path}: local functions cannot be inlined ({' '.join(str(error).split())[:150]})") from None
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)
    known = OnnxModel(path, opset, _imports=list(model.opset_import), _ir=model.ir_version or 9)
    for tensor in model.graph.initializer:
        _add_tensor(known, tensor.name, tensor)
    for sparse in model.graph.sparse_initializer:
        _add_tensor(known, sparse.values.name, sparse)
    _read_inputs(known, model, batch, shapes or {})
    known.outputs = [value.name for value in model.graph.output]
    declared = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    walk = _Walk(known, declared)
    defined = {*known.shapes, *known.types, *known.inputs, *known.constants}
    for node in model.graph.node:
        for name in node.input:
            if name and name not in defined:
                raise OctosimError(f"{path}: node {title(node)} reads {name!r}, which nothing before it makes")
        defined.update(node.output)
        try:
            walk.node(node)
        except (LookupError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())[:100]
            raise OctosimError(f"{path}: node {title(node)} is not as ONNX has it ({text})") from None
    return known


def _add_tensor(known: OnnxModel, name: str, tensor: Any) -> None:
    """tensor: an onnx.TensorProto or, of a constant most of whose elements are 0, an onnx.SparseTensorProto."""
    shape = tuple(tensor.dims)
    if min(shape, default=0) < 0:
        told = "x".join(map(str, shape))
        raise OctosimError(f"{known.path}: tensor {name!r} has the shape {told}, expected no negative size")
    known._tensors[name] = tensor
    known.shapes[name], known.types[name] = shape, (tensor.values if _is_sparse(tensor) else tensor).data_type
    known.parameters.add(name)
    known.constants.add(name)


def _add_value(known: OnnxModel, name: str, value: Array, parameter: bool = True) -> None:
    from onnx import helper

    known._values[name] = value
    known.shapes[name], known.types[name] = value.shape, helper.np_dtype_to_tensor_dtype(value.dtype)
    known.constants.add(name)
    if parameter:
        known.parameters.add(name)


def _read_inputs(known: OnnxModel, model: Any, batch: int | None, shapes: dict[str, Shape]) -> None:
    path = known.path
    for value in model.graph.input:
        if value.name in known.constants:
            continue
        known.inputs.append(value.name)
        tensor = value.type.tensor_type
        known.types[value.name] = tensor.elem_type
        if not tensor.HasField("shape"):
            if value.name in shapes:
                known.shapes[value.name] = shapes[value.name]
            continue
        dims = list(tensor.shape.dim)
        given = shapes.get(value.name)
        if given is not None and len(given) != len(dims):
            raise OctosimError(f"--shape {value.name}={'x'.join(map(str, given))}: the input has {len(dims)} dimensions")
        sizes: list[int] = []
        for axis, dim in enumerate(dims):
            fixed = dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0 else None
            if given is not None:
                if fixed is not None and fixed != given[axis]:
                    raise OctosimError(
                        f"--shape {value.name}={'x'.join(map(str, given))}: dimension {axis} of the input is fixed at {fixed}"
                    )
                sizes.append(given[axis])
            elif fixed is not None:
                sizes.append(fixed)
            elif axis == 0:
                sizes.append(batch or 1)
            else:
                raise OctosimError(
                    f"{path}: dimension {axis} ({dim.dim_param or '?'}) of input {value.name} is symbolic; give its sizes, "
                    f"--shape {value.name}={'x'.join('1' if i == 0 else str(d.dim_value or 224) for i, d in enumerate(dims))}"
                )
        known.shapes[value.name] = tuple(sizes)
    firsts = {name: known.shapes[name][0] for name in known.inputs if known.shapes.get(name) and name not in shapes}
    if batch is not None and firsts and batch not in firsts.values():
        name, size = next(iter(firsts.items()))
        raise OctosimError(f"{path}: the batch of input {name} is fixed at {size}; export the model with a symbolic one")
    for name in shapes:
        if name not in known.inputs:
            raise OctosimError(f"--shape {name}: {path} has no such input, but {', '.join(known.inputs) or 'none'}")


# ---- shapes --------------------------------------------------


class _Walk:
    """Adds nodes to a model, one after the other."""

    def __init__(self, known: OnnxModel, declared: dict[str, int]):
        import onnx

        self.known, self.declared, self.onnx = known, declared, onnx
        self.versions = {each.domain if each.domain != "ai.onnx" else "": each.version for each in known._imports}

    def node(self, node: Any) -> None:
        known = self.known
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            self._constant(node)
            return
        if node.op_type == "CastLike" and node.input[0] in known.constants and node.input[1] in known.types:
            self._cast(node)
            return
        constant = node.op_type not in UNREPEATABLE and all(not name or name in known.constants for name in node.input)
        self._infer(node)
        sizes = [math.prod(known.shapes[n]) if n in known.shapes else None for n in node.output if n]
        if node.op_type in ("Shape", "Size") and node.input[0] in known.shapes:
            self._shape(node)
        elif constant and node.op_type != "ConstantOfShape" and all(s is not None and s <= SMALL for s in sizes) and node.input:
            if all(not name or known.small(name) is not None for name in node.input):
                self._fold(node)
            else:
                self._keep(node)
        elif constant:
            self._keep(node)
        else:
            known.nodes.append(node)

    def _keep(self, node: Any) -> None:
        """A constant that is computed when it is asked for; a small one of known inputs at once."""
        known = self.known
        for name in node.output:
            if name:
                known._later[name] = node
                known.constants.add(name)
        sizes = [math.prod(known.shapes.get(n, (SMALL + 1,))) for n in (*node.output, *node.input) if n]
        if node.input and max(sizes) <= SMALL and all(known.small(n) is not None for n in node.input if n):
            self._fold(node)

    def _fold(self, node: Any) -> None:
        known = self.known
        try:
            known._compute(node)
        except OctosimError:  # told when the value is asked for
            for name in node.output:
                known._later[name] = node
                known.constants.add(name)
            return
        for name in node.output:
            if name:
                _add_value(known, name, known._values[name], parameter=False)

    def _constant(self, node: Any) -> None:
        name = node.output[0]
        for each in node.attribute:
            if each.name == "value":
                _add_tensor(self.known, name, each.t)
                return
            if each.name == "sparse_value":
                _add_tensor(self.known, name, each.sparse_tensor)
                return
        value = self.known._evaluate(node, [])[0]
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            _add_value(self.known, name, value)

    def _cast(self, node: Any) -> None:
        """A constant in the type of a tensor."""
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(self.known.types[node.input[1]])
        _add_value(self.known, node.output[0], self.known.value(node.input[0]).astype(dtype), parameter=False)

    def _shape(self, node: Any) -> None:
        shape = self.known.shapes[node.input[0]]
        if node.op_type == "Size":
            value = np.array(math.prod(shape), np.int64)
        else:
            value = np.array(shape[attribute(node, "start", 0) : attribute(node, "end", None)], np.int64)
        _add_value(self.known, node.output[0], value, parameter=False)

    def _infer(self, node: Any) -> None:
        """The outputs' types and shapes."""
        known, onnx = self.known, self.onnx
        domain = "" if node.domain == "ai.onnx" else node.domain
        types: dict[str, Any] = {}
        data: dict[str, Any] = {}
        for name in node.input:
            if not name:
                continue
            types[name] = onnx.helper.make_tensor_type_proto(known.types.get(name, 0), known.shapes.get(name))
            small = known.small(name)
            if small is not None:
                data[name] = onnx.numpy_helper.from_array(small, name)
        found: dict[str, Any] = {}
        rule = CONTRIBUTED.get((domain, node.op_type))
        if rule:
            shape, kind = rule(known, node)
            self._take(node.output[0], shape, kind)
            return
        try:
            schema = onnx.defs.get_schema(node.op_type, self.versions.get(domain, known.opset), domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data or None, opset_imports=list(known._imports), ir_version=known._ir
            )
        except Exception:  # no schema, or inconsistent shapes: whoever needs one says that it is not known
            pass
        for name in node.output:
            kind = self.declared.get(name, 0)
            shape = None
            if name in found:
                tensor = found[name].tensor_type
                kind = tensor.elem_type or kind
                dims = [dim.dim_value if dim.WhichOneof("value") == "dim_value" else -1 for dim in tensor.shape.dim]
                if tensor.HasField("shape") and min(dims, default=0) >= 0:
                    shape = tuple(dims)
            self._take(name, shape, kind)
        if node.op_type in ("Resize", "Upsample") and node.output[0] not in known.shapes:
            self._take(node.output[0], _resized(known, node), known.types.get(node.input[0], 1))
        if node.op_type in SAME and node.output[0] not in known.shapes and node.input and node.input[0] in known.shapes:
            known.shapes[node.output[0]] = known.shapes[node.input[0]]

    def _take(self, name: str, shape: Shape | None, kind: int) -> None:
        if not name:
            return
        if shape is not None:
            self.known.shapes[name] = shape
        if kind:
            self.known.types[name] = kind


SAME = {"Dropout", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Gelu", "Swish", "HardSwish", "Mish", "Attention"}


def _resized(known: OnnxModel, node: Any) -> Shape | None:
    """Before opset 13 onnx does not infer a Resize without roi."""
    shape = known.shapes.get(node.input[0])
    given = [known.small(name) if name else None for name in node.input[1:]]
    if shape is None or not given:
        return None
    if len(given) > 2 and given[2] is not None:
        return tuple(int(size) for size in given[2])
    scales = given[1] if node.op_type == "Resize" and len(given) > 1 else given[0]
    if scales is None or scales.size != len(shape):
        return None
    return tuple(math.floor(size * float(scale)) for size, scale in zip(shape, scales, strict=True))


def _broadcast(known: OnnxModel, *names: str) -> Shape | None:
    try:
        return tuple(np.broadcast_shapes(*(known.shapes[name] for name in names)))
    except (KeyError, ValueError):
        return None


def _like(at: int, kind_of: int | None = None) -> Any:
    def rule(known: OnnxModel, node: Any) -> tuple[Shape | None, int]:
        name = node.input[at]
        return known.shapes.get(name), known.types.get(node.input[at if kind_of is None else kind_of], 1)

    return rule


def _qlinear_binary(known: OnnxModel, node: Any) -> tuple[Shape | None, int]:
    return _broadcast(known, node.input[0], node.input[3]), known.types.get(node.input[0], 2)


def _pooled(known: OnnxModel, node: Any) -> tuple[Shape | None, int]:
    shape, kind = known.shapes.get(node.input[0]), known.types.get(node.input[0], 2)
    if shape is None:
        return None, kind
    if attribute(node, "channels_last", 0):
        return (shape[0], *([1] * (len(shape) - 2)), shape[-1]), kind
    return (*shape[:2], *([1] * (len(shape) - 2))), kind


def _qgemm(known: OnnxModel, node: Any) -> tuple[Shape | None, int]:
    a, b = known.shapes.get(node.input[0]), known.shapes.get(node.input[3])
    codes = len(node.input) > 7 and bool(node.input[7])
    kind = known.types.get(node.input[0], 2) if codes else 1
    if a is None or b is None:
        return None, kind
    return (a[1] if attribute(node, "transA", 0) else a[0], b[0] if attribute(node, "transB", 0) else b[1]), kind


def _matmul(first: int, second: int, kind: int) -> Any:
    def rule(known: OnnxModel, node: Any) -> tuple[Shape | None, int]:
        a, b = known.shapes.get(node.input[first]), known.shapes.get(node.input[second])
        if a is None or b is None:
            return None, kind
        if attribute(node, "transA", 0):
            a = (*a[:-2], a[-1], a[-2])
        if attribute(node, "transB", 0):
            b = (*b[:-2], b[-1], b[-2])
        return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]), kind

    return rule


def _concatenated(known: OnnxModel, node: Any) -> tuple[Shape | None, int]:
    parts = [known.shapes.get(name) for name in node.input[2::3]]
    axis, kind = attribute(node, "axis", 0), known.types.get(node.input[2], 2)
    if any(part is None for part in parts):
        return None, kind
    shape = list(parts[0] or ())
    shape[axis] = sum(part[axis] for part in parts if part)
    return tuple(shape), kind


MICROSOFT = "com.microsoft"
CONTRIBUTED: dict[tuple[str, str], Any] = {
    (MICROSOFT, "QLinearAdd"): _qlinear_binary,
    (MICROSOFT, "QLinearMul"): _qlinear_binary,
    (MICROSOFT, "QLinearLeakyRelu"): _like(0),
    (MICROSOFT, "QLinearSigmoid"): _like(0),
    (MICROSOFT, "QLinearSoftmax"): _like(0),
    (MICROSOFT, "QLinearGlobalAveragePool"): _pooled,
    (MICROSOFT, "QGemm"): _qgemm,
    (MICROSOFT, "QLinearConcat"): _concatenated,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul(0, 1, 1),
    (MICROSOFT, "DynamicQuantizeMatMul"): _matmul(0, 1, 1),
    (MICROSOFT, "FusedMatMul"): _matmul(0, 1, 1),
    (MICROSOFT, "FusedGemm"): _matmul(0, 1, 1),
    (MICROSOFT, "Gelu"): _like(0),
    (MICROSOFT, "FastGelu"): _like(0),
    (MICROSOFT, "BiasGelu"): _like(0),
    (MICROSOFT, "QuickGelu"): _like(0),
    (MICROSOFT, "SkipLayerNormalization"): _like(0),
    (MICROSOFT, "QuantizeLinear"): _like(0, 2),
    (MICROSOFT, "DequantizeLinear"): _like(0, 1),
}
"""Output shape and type of the operators of onnxruntime's own tools, of which onnx has no schema."""


# ---- the same as a model of ONNX --------------------------------------------------


def simplified(known: OnnxModel) -> Any:
    """The model as an onnx.ModelProto without constant nodes.

    Constants are initializers, the large ones without values; every tensor of a known shape is described.
    """
    from onnx import TensorProto, helper, numpy_helper

    needed = dict.fromkeys([name for node in known.nodes for name in node.input if name] + known.outputs)
    weights: list[Any] = []
    for name in needed:
        if name not in known.constants:
            continue
        small = known.small(name)
        if small is not None and small.dtype.kind in "fiub":
            weights.append(numpy_helper.from_array(np.asarray(small), name))
        elif name in known.shapes:
            weights.append(TensorProto(name=name, dims=known.shapes[name], data_type=known.types.get(name, TensorProto.FLOAT)))

    def describe(name: str) -> Any:
        return helper.make_tensor_value_info(name, known.types.get(name, TensorProto.FLOAT), known.shapes.get(name))

    made = [name for node in known.nodes for name in node.output if name and name in known.shapes]
    inputs, outputs = ([describe(name) for name in names] for names in (known.inputs, known.outputs))
    graph = helper.make_graph(
        known.nodes, "simplified", inputs, outputs, weights, value_info=[describe(name) for name in dict.fromkeys(made)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=known._imports, ir_version=known._ir)
