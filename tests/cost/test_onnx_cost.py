"""Prices of ONNX files: files that say the same cost the same, whoever wrote them; what is left out is said."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
from kit.onnx_nets import NETS, Builder, build  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from octosim import hardware, onnxfile  # noqa: E402
from octosim.cli.app import app  # noqa: E402
from octosim.cost import onnx as onnx_ops  # noqa: E402
from octosim.errors import OctosimError  # noqa: E402
from octosim.trace import Op  # noqa: E402
from octosim.workload import CostQuery, types_of  # noqa: E402
from octosim.workload import source as workload_of  # noqa: E402

F = np.float32


def save(path: Path, nodes: list[Any], inputs: dict[str, Any], weights: dict[str, Any], output: str, **more: Any) -> Path:
    kinds = {"functions": more.pop("functions", [])}
    sparse = more.pop("sparse", [])
    opset = more.pop("opset", 17)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()], sparse_initializer=sparse,
    )  # fmt: skip
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("my", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9, **kinds), path)
    return path


def macs(ops: list[Op], dtype: str | None = None) -> int:
    return sum(op.macs for op in ops if dtype in (None, op.dtype))


node = helper.make_node


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_opsets_cost_the_same(name: str, inference: bool, lenient: bool, tmp_path: Path) -> None:
    """The same network in any opset: the same products, the same passes."""
    net, shape = NETS[name]
    found = []
    for opset in (11, 13, 18, 21):
        path = tmp_path / f"{opset}.onnx"
        onnx.save(build(net, opset, shape), path)
        ops = onnx_ops.ops(path, batch=2, inference=inference, lenient=lenient)
        found.append([(op.pass_, op.kind, op.name, op.shape, op.reads, op.writes, op.weights) for op in ops])
    assert all(each == found[0] for each in found) and macs(ops)
    assert [*onnx_ops.notes(ops, True, lenient)] == ["--lenient: every operator has a price, nothing is left out"] * lenient


def test_the_data_give_the_images_of_an_epoch(tmp_path: Path) -> None:
    """Size and classes are the file's."""
    net, shape = next(iter(NETS.values()))
    onnx.save(build(net, 17, shape), tmp_path / "net.onnx")
    images = {"x_train": np.zeros((30, 4, 4), np.uint8), "x_test": np.ones((9, 4, 4), np.uint8)}
    np.savez(tmp_path / "own.npz", **images, y_train=np.arange(30) % 3, y_test=np.arange(9) % 3)
    command = ["cost", "--profile", "pi4", "--model", str(tmp_path / "net.onnx"), "--json"]
    same = [CliRunner().invoke(app, [*command, *more]) for more in (["--data", str(tmp_path / "own.npz")], ["--images", "30"])]
    assert same[0].exit_code == 0 and same[0].stdout == same[1].stdout and "your 30 images" in same[0].stdout


@pytest.mark.parametrize("inference", [True, False])
def test_constants_wherever_they_stand(inference: bool, tmp_path: Path) -> None:
    """Initializers, Constant nodes in front or behind, values in the file or elsewhere."""
    weights = {"w": np.ones((8, 3, 3, 3), F), "low": F(0), "high": F(6)}
    conv, clip = node("Conv", ["x", "w"], ["a"], pads=[1] * 4), node("Clip", ["a", "low", "high"], ["z"])
    made = [node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(v), name)) for name, v in weights.items()]
    found = []
    for number, nodes in enumerate(([conv, clip], [*made, conv, clip], [made[0], conv, made[1], made[2], clip])):
        path = save(tmp_path / f"{number}.onnx", nodes, {"x": ("N", 3, 8, 8)}, weights if not number else {}, "z")
        found.append(onnx_ops.ops(path, inference=inference))
    stored = onnx.load(tmp_path / "0.onnx")
    onnx.save(stored, tmp_path / "3.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    found.append(onnx_ops.ops(tmp_path / "3.onnx", inference=inference))
    plain = [[(op.name, op.shape, op.reads, op.writes) for op in ops] for ops in found]
    assert all(each == plain[0] for each in plain)
    assert len(plain[0]) == (1 if inference else 5)


RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("op, directions", list(itertools.product(RECURRENT, (1, 2))))
def test_recurrent_layers(op: str, directions: int, tmp_path: Path) -> None:
    steps, batch, inputs, hidden, gates = 7, 3, 5, 4, RECURRENT[op]
    w = {"w": np.ones((directions, gates * hidden, inputs), F), "r": np.ones((directions, gates * hidden, hidden), F)}
    direction = {1: "forward", 2: "bidirectional"}[directions]
    nodes = [node(op, ["x", "w", "r"], ["y"], hidden_size=hidden, direction=direction)]
    path = save(tmp_path / "r.onnx", nodes, {"x": (steps, batch, inputs)}, w, "y")
    ops = onnx_ops.ops(path)
    assert macs(ops) == steps * batch * directions * gates * hidden * (inputs + hidden)
    assert macs(onnx_ops.ops(path, inference=False)) >= 2 * macs(ops)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 5, 8, 16), (3, 1, 16, 4), 15 * 8 * 16 * 4),
        ((5, 8, 16), (5, 16, 4), 5 * 8 * 16 * 4),
        ((8, 16), (3, 16, 4), 3 * 8 * 16 * 4),
        ((16,), (3, 16, 4), 3 * 16 * 4),
        ((8, 16), (16,), 8 * 16),
    ],
)
def test_matmul_broadcasts(a: tuple[int, ...], b: tuple[int, ...], expected: int, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], {"x": a}, {"w": np.ones(b, F)}, "y")
    assert macs(onnx_ops.ops(path)) == expected


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]), ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("ij,kj", [(3, 4), (5, 4)]), ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]), ("i,i->", [(4,), (4,)]),
        ("bn,nm,mk->bk", [(2, 3), (3, 4), (4, 5)]),
    ],
)  # fmt: skip
def test_einsum(equation: str, shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    """As many products as NumPy's own path counts, or fewer."""
    names = [f"x{i}" for i in range(len(shapes))]
    nodes = [node("Einsum", names, ["y"], equation=equation)]
    path = save(tmp_path / "e.onnx", nodes, dict(zip(names, shapes, strict=True)), {}, "y")
    labels: dict[str, int] = {}
    for term, shape in zip(equation.split("->")[0].replace("...", "Z").split(","), shapes, strict=True):
        labels.update(zip(term, shape, strict=True))
    found = macs(onnx_ops.ops(path))
    if len(shapes) == 2:
        assert found == np.prod([*labels.values()])
    else:
        assert found == 2 * 3 * 4 + 2 * 4 * 5


def test_attention(tmp_path: Path) -> None:
    """opset 23: 2 images, 3 heads, 5 queries, 7 keys, depth 4, values of 6."""
    inputs = {"q": (2, 3, 5, 4), "k": (2, 3, 7, 4), "v": (2, 3, 7, 6)}
    path = save(tmp_path / "a.onnx", [node("Attention", ["q", "k", "v"], ["y"])], inputs, {}, "y", opset=23)
    assert macs(onnx_ops.ops(path)) == 2 * 3 * 5 * 7 * (4 + 6)


def test_local_functions_and_sparse_weights(tmp_path: Path) -> None:
    body = [node("Conv", ["X", "W"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["Y"])]
    function = helper.make_function("my", "ConvRelu", ["X", "W"], ["Y"], body, [helper.make_opsetid("", 17)])
    weights, call = {"w": np.ones((4, 3, 3, 3), F)}, [node("ConvRelu", ["x", "w"], ["y"], domain="my")]
    path = save(tmp_path / "f.onnx", call, {"x": ("N", 3, 8, 8)}, weights, "y", functions=[function])
    assert macs(onnx_ops.ops(path)) == macs(onnx_ops.ops(path, lenient=True)) == 64 * 27 * 4
    values, indices = numpy_helper.from_array(np.ones(4, F), "w"), numpy_helper.from_array(np.array([0, 5, 10, 15]), "i")
    sparse = [helper.make_sparse_tensor(values, indices, [4, 4])]
    path = save(tmp_path / "s.onnx", [node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 4)}, {}, "y", sparse=sparse)
    assert macs(onnx_ops.ops(path)) == 16


@pytest.mark.parametrize(
    "shape, indices, words",
    [
        ([1 << 20, 1 << 20], [0], "a constant of the shape 1048576x1048576, expected at most 536,870,912 elements"),
        ([4, 4], [16], "its 1 indices do not fit its 1 values and its shape"),
        ([4, 4], [0, 1], "its 2 indices do not fit"),
        ([4, 4], [[0, 1, 2]], "its 1 indices do not fit"),
        ([-4, 4], [0], "has the shape -4x4, expected no negative size"),
    ],
)
def test_hostile_sparse_weights(shape: list[int], indices: list[Any], words: str, tmp_path: Path) -> None:
    sparse = onnx.SparseTensorProto(dims=shape, values=numpy_helper.from_array(np.ones(1, F), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices), "i"))
    path = save(tmp_path / "s.onnx", [node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 4)}, {}, "y", sparse=[sparse])
    with pytest.raises(OctosimError, match=words):
        onnxfile.read(path).value("w")


@pytest.mark.parametrize(
    "made",
    [
        [node("ConstantOfShape", ["n"], ["c"])],
        [node("ConstantOfShape", ["one"], ["a"]), node("Expand", ["a", "n"], ["c"])],
        [node("ConstantOfShape", ["one"], ["a"]), node("Tile", ["a", "n"], ["c"])],
    ],
)
def test_a_constant_larger_than_any_memory(made: list[Any], tmp_path: Path) -> None:
    """Its size is known before it is computed."""
    sizes = {"n": np.array([1 << 20, 1 << 20, 4]), "one": np.array([1, 1, 4])}
    path = save(tmp_path / "c.onnx", [*made, node("Mul", ["x", "c"], ["y"])], {"x": ("N", 4)}, sizes, "y")
    known = onnxfile.read(path)
    with pytest.raises(OctosimError, match="a constant of the shape 1048576x1048576x"):
        known.value("c")


def test_sizes_of_inputs(tmp_path: Path) -> None:
    weights, nodes = {"w": np.ones((4, 3, 3, 3), F)}, [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    path = save(tmp_path / "hw.onnx", nodes, {"x": ("N", 3, "H", "W")}, weights, "y")
    with pytest.raises(OctosimError, match=r"dimension 2 \(H\) of input x is symbolic; give its sizes, --shape x=1x3x224x224"):
        onnx_ops.ops(path)
    assert macs(onnx_ops.ops(path, shapes={"x": (2, 3, 10, 20)})) == 2 * 200 * 27 * 4
    assert onnx_ops.batch_size(path, None, {"x": (2, 3, 10, 20)}) == 2
    for shapes, words in (
        ({"x": (1, 3, 8)}, "the input has 4 dimensions"), ({"x": (1, 4, 8, 8)}, "dimension 1 of the input is fixed at 3"),
        ({"z": (1, 3, 8, 8), "x": (1, 3, 8, 8)}, "has no such input, but x"),
    ):  # fmt: skip
        with pytest.raises(OctosimError, match=words):
            onnx_ops.ops(path, shapes=shapes)
    two = [node("MatMul", ["x", "a"], ["p"]), node("MatMul", ["s", "b"], ["q"]), node("ReduceSum", ["q"], ["r"], keepdims=0),
           node("Add", ["p", "r"], ["y"])]  # fmt: skip
    weights = {"a": np.ones((512, 8), F), "b": np.ones((128, 8), F)}
    path = save(tmp_path / "two.onnx", two, {"x": (1, 512), "s": (2, 1, 128)}, weights, "y")
    assert macs(onnx_ops.ops(path, batch=onnx_ops.batch_size(path, None))) == 512 * 8 + 2 * 128 * 8


@pytest.mark.parametrize("format_", ["QDQ", "QOperator"])
def test_quantized_files_are_int8(format_: str, tmp_path: Path) -> None:
    """onnxruntime's formats: the products are int8, and no slower than the float file's in int8."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    b = Builder(17)
    x = b.add("Relu", b.conv("x", 3, 16, 3, strides=[2, 2]))
    x = b.add("Relu", b.add("Add", b.conv(x, 16, 16), x))
    y = b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 16, 5, transB=1)
    source, path = tmp_path / "float.onnx", tmp_path / "q.onnx"
    onnx.save(b.model(y, ("N", 3, 16, 16)), source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = [{"x": np.random.default_rng(1).random((2, 3, 16, 16)).astype(F)}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quantization.quantize_static(source, path, Reader(), quant_format=quantization.QuantFormat[format_])
    ops, floats = onnx_ops.ops(path), onnx_ops.ops(source, dtype="int8")
    assert macs(ops, "int8") == macs(ops) == macs(floats)
    assert sum(op.bytes for op in ops) <= sum(op.bytes for op in floats)
    adds = [op for op in ops if op.name in ("add", "qlinearadd")]
    assert len(adds) == 1 and 0 <= adds[0].bytes - 3 * 16 * 64 < 16, "codes move a byte an element, and their scales"
    asked = [CostQuery(str(file), None, None, True, None, False) for file in (path, source)]
    types = [types_of(hardware.load("pi5"), workload_of(query), True) for query in asked]
    assert types == [["int8"], ["float32", "int8", "float16"]], "a quantized file has no other type"


def test_a_chip_without_floats_computes_in_int8(tmp_path: Path) -> None:
    net, shape = NETS["residual"]
    onnx.save(build(net, 17, shape), tmp_path / "net.onnx")
    arguments = ["cost", "--profile", "max78002", "--model", str(tmp_path / "net.onnx"), "--inference", "--json"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert found["dtype"] == "int8" and list(found["types"]) == ["int8"]


@pytest.mark.parametrize("op", ["Magic", "NonZero"])
@pytest.mark.parametrize("behind", ["Gemm", "Conv", "LSTM", "Relu", "Concat", "Einsum"])
def test_lenient_says_what_is_left_out(op: str, behind: str, tmp_path: Path) -> None:
    """Whatever stands behind a tensor of unknown shape: no traceback, and a note."""
    weights = {"w": np.ones((8, 8), F), "k": np.ones((4, 8, 3, 3), F), "l": np.ones((1, 8, 2), F), "r": np.ones((1, 8, 2), F)}
    inputs = {"Gemm": ["m", "w"], "Conv": ["m", "k"], "LSTM": ["m", "l", "r"], "Relu": ["m"], "Concat": ["m", "m"]}
    attributes = {"LSTM": {"hidden_size": 2}, "Concat": {"axis": 0}, "Einsum": {"equation": "ij,jk->ik"}}.get(behind, {})
    first = node(op, ["x"], ["m"], domain="my" if op == "Magic" else "", name="one")
    path = save(
        tmp_path / "l.onnx", [first, node(behind, inputs.get(behind, ["m", "w"]), ["y"], name="two", **attributes)],
        {"x": ("N", 8)}, weights, "y",
    )  # fmt: skip
    with pytest.raises(OctosimError, match="one"):
        onnx_ops.ops(path)
    for inference in (True, False):
        ops = onnx_ops.ops(path, lenient=True, inference=inference)
        assert any("lower bound" in note for note in onnx_ops.notes(ops, inference, True))


def test_a_training_step_without_normalization_is_said(tmp_path: Path) -> None:
    for name, expected in (("residual", 0), ("shared", 1)):
        net, shape = NETS[name]
        onnx.save(build(net, 17, shape), tmp_path / f"{name}.onnx")
        ops = onnx_ops.ops(tmp_path / f"{name}.onnx", inference=False)
        assert sum("no batch normalization is in this file" in note for note in onnx_ops.notes(ops, False)) == expected
        assert not onnx_ops.notes(ops, True)


@pytest.mark.parametrize("fuses, kept", [
    (("norm", "activation"), ["sigmoid", "mul"]), (("silu",), ["sigmoid"]), (("gate",), [])])  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_silu_is_two_operations_one_or_none(fuses: tuple[str, ...], kept: list[str], turned: bool, tmp_path: Path) -> None:
    """x sigmoid(x) behind a convolution; a gate that something else reads too stays where it is."""
    weight = {"w": np.ones((8, 8, 1, 1), F)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Sigmoid", ["c"], ["s"]),
             node("Mul", ["s", "c"] if turned else ["c", "s"], ["y"])]  # fmt: skip
    path = save(tmp_path / "silu.onnx", nodes, {"x": [1, 8, 4, 4]}, weight, "y")
    assert [op.name for op in onnx_ops.ops(path, fuses=fuses) if op.kind != "gemm"] == kept
    read = save(tmp_path / "read.onnx", [*nodes, node("Add", ["y", "s"], ["z"])], {"x": [1, 8, 4, 4]}, weight, "z")
    assert [op.name for op in onnx_ops.ops(read, fuses=fuses) if op.kind != "gemm"] == ["sigmoid", "mul", "add"]


@pytest.mark.parametrize("kind", ["HardSwish", "Swish"])
def test_a_gate_may_be_one_operator(kind: str, tmp_path: Path) -> None:
    """As HardSigmoid and Mul: the same network costs the same in both forms."""
    nodes = [node("Conv", ["x", "w"], ["c"]), node(kind, ["c"], ["y"])]
    path = save(tmp_path / "gate.onnx", nodes, {"x": [1, 8, 4, 4]}, {"w": np.ones((8, 8, 1, 1), F)}, "y", opset=24)
    assert [op.name for op in onnx_ops.ops(path, fuses=("gate",))] == ["conv 1x1"]
    assert len(onnx_ops.ops(path, fuses=("norm", "activation"))) == 2


def test_pointwise_operators_in_a_row_are_one(tmp_path: Path) -> None:
    """Squeeze and excitation behind a concatenation; what something else reads too, or is not there yet, ends the row."""
    weights = {"w": np.ones((8, 8, 1, 1), F), "s": np.ones(8, F), "b": np.ones(8, F), "m": np.ones(8, F), "v": np.ones(8, F)}
    nodes = [
        node("Concat", ["x", "x"], ["t"], axis=2), node("BatchNormalization", ["t", "s", "b", "m", "v"], ["n"]),
        node("Sigmoid", ["n"], ["g"]), node("Mul", ["n", "g"], ["a"]), node("GlobalAveragePool", ["a"], ["p"]),
        node("Conv", ["p", "w"], ["c"]), node("HardSigmoid", ["c"], ["h"]), node("Mul", ["a", "h"], ["y"]),
    ]  # fmt: skip
    path = save(tmp_path / "se.onnx", nodes, {"x": [1, 8, 4, 4]}, weights, "y")
    rules = ("norm", "activation", "gate", "add", "pointwise")
    names = ["concat", "batchnormalization, sigmoid, mul", "globalaveragepool", "conv 1x1", "hardsigmoid, mul"]
    found = onnx_ops.ops(path, fuses=rules)
    assert [op.name for op in found] == names
    row = found[1]
    assert (row.reads, row.writes) == (4 * (256 + 4 * 8), 4 * 256)  # what is between is neither written nor read
    assert (found[-1].reads, found[-1].writes) == (4 * (8 + 256), 4 * 256)
    assert len(onnx_ops.ops(path, fuses=("norm", "activation"))) == len(onnx_ops.ops(path, fuses=rules[:-1])) == 8
    later = save(
        tmp_path / "later.onnx",
        [node("Relu", ["x"], ["r"]), node("Conv", ["x", "w"], ["c"]), node("Add", ["r", "c"], ["y"])],
        {"x": [1, 8, 4, 4]}, weights, "y",
    )  # fmt: skip
    assert [op.name for op in onnx_ops.ops(later, fuses=("pointwise",))] == ["relu", "conv 1x1", "add"]
