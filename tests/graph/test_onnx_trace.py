"""ONNX models as traces: shapes and counts by hand, folding, training, int8, and one sentence on what is no model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from kit.cli import octosim

from octosim import cost, hardware
from octosim.errors import OctosimError

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
from onnx import TensorProto, helper  # noqa: E402

from octosim.cost import onnx as onnx_ops  # noqa: E402
from octosim.onnxfile import ONNX_BYTES  # noqa: E402


class Builder:
    """A model, node by node."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, *shape):
        name = f"w{len(self.weights)}"
        self.weights.append(helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).tobytes(), raw=True))
        return name

    def constant(self, *values):
        name = f"w{len(self.weights)}"
        self.weights.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def __call__(self, op, *inputs, outputs=1, domain="", **attributes):
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}{len(self.nodes)}", domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x, cin, cout, k, stride=1, group=1, **more):
        return self("Conv", x, self.weight(cout, cin // group, k, k), *more.pop("bias", ()), strides=[stride, stride],
                    pads=[k // 2] * 4, group=group, **more)

    def batchnorm(self, x, c):
        return self("BatchNormalization", x, *(self.weight(c) for _ in range(4)))

    def save(self, path, output, shape=("N", 3, 32, 32), opset=17):
        graph = helper.make_graph(
            self.nodes, "test", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], self.weights)
        sets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
        onnx.save(helper.make_model(graph, opset_imports=sets), path)
        return path


@pytest.fixture
def small(tmp_path):
    """conv-bn-relu, depthwise, residual pointwise, pooling, a linear layer and softmax."""
    b = Builder()
    x = b("Relu", b.batchnorm(b.conv("x", 3, 16, 3, stride=2), 16))
    y = b("Clip", b.conv(x, 16, 16, 3, group=16))
    y = b("Add", b.conv(y, 16, 16, 1), x)
    y = b("Flatten", b("GlobalAveragePool", y))
    y = b("Softmax", b("Gemm", y, b.weight(10, 16), b.weight(10), transB=1))
    return b.save(tmp_path / "small.onnx", y)


def one(tmp_path, op, *inputs, shape=("N", 8, 16, 16), **attributes):
    """The operations of a model of one node."""
    b = Builder()
    made = [b.weight(*i) if isinstance(i, tuple) else i for i in inputs]
    return onnx_ops.ops(b.save(tmp_path / "one.onnx", b(op, *made, **attributes), shape))


def test_inference(small):
    ops = onnx_ops.ops(small, batch=4)
    found = [(op.name, op.shape, op.groups, op.kernel, op.stride, cost.kind_of(op)) for op in ops]
    assert found == [
        ("conv 3x3", (4 * 256, 27, 16), 1, (3, 3), 2, "conv"),
        ("conv 3x3", (4 * 256, 9, 1), 16, (3, 3), 1, "depthwise"),
        ("conv 1x1", (4 * 256, 16, 16), 1, (1, 1), 1, "pointwise"),
        ("add", (4 * 16 * 256,), 1, (0, 0), 1, "elementwise"),
        ("globalaveragepool", (4 * 16 * 256,), 1, (0, 0), 1, "elementwise"),
        ("linear", (4, 16, 10), 1, (0, 0), 1, "pointwise"),
        ("softmax", (4 * 4 * 10,), 1, (0, 0), 1, "elementwise"),
    ]
    first, second = ops[0], ops[1]
    assert first.macs == 4 * 256 * 27 * 16 and second.macs == 4 * 256 * 9 * 16
    assert first.weights == 4 * 16 * 27 and first.reads == 4 * (4 * 3 * 1024 + 16 * 27) and first.writes == 4 * 4 * 16 * 256
    assert {op.pass_ for op in ops} == {"forward"} and {op.dtype for op in ops} == {"float32"}


def test_the_batch(small, tmp_path):
    assert sum(op.macs for op in onnx_ops.ops(small, batch=8)) == 8 * sum(op.macs for op in onnx_ops.ops(small))
    assert onnx_ops.batch_size(small, None) == 1 and onnx_ops.batch_size(small, 8) == 8
    b = Builder()
    fixed = b.save(tmp_path / "fixed.onnx", b("Relu", "x"), (2, 3, 8, 8))
    assert onnx_ops.batch_size(fixed, None) == 2 == onnx_ops.batch_size(fixed, 2)
    with pytest.raises(OctosimError, match="the batch of input x is fixed at 2; export the model with a symbolic one"):
        onnx_ops.ops(fixed, batch=3)
    free = Builder()
    path = free.save(tmp_path / "free.onnx", free("Relu", "x"), ("N", 3, "H", 8))
    with pytest.raises(OctosimError, match=r"dimension 2 \(H\) of input x is symbolic; give its sizes"):
        onnx_ops.ops(path)


def test_training(small):
    ops = onnx_ops.ops(small, batch=4, inference=False)
    by = {}
    for op in ops:
        by.setdefault((op.layer, op.pass_), []).append(op)
    assert ("Conv0", "dW") in by and ("Conv0", "dX") not in by, "nobody needs the gradient of the images"
    (dw,), (dx,) = by["Conv3", "dW"], by["Conv3", "dX"]
    assert (dw.shape, dx.shape, dw.groups) == ((1, 1024, 9), (1024, 1, 9), 16)
    assert {cost.kind_of(op) for op in (dw, dx)} == {"depthwise"} and dw.macs == dx.macs == 4 * 256 * 9 * 16
    names = {op.name for op in ops}
    assert {"batchnormalization", "relu", "clip", "add", "bias", "bias gradient"} <= names, "training folds nothing"
    assert {op.algorithm for op in ops} == {"direct"}
    update = ops[-1]
    trained = 16 * 27 + 4 * 16 + 16 * 9 + 16 * 16 + 160 + 10
    assert (update.pass_, update.shape, update.reads) == ("update", (trained,), 12 * trained)
    macs = {p: sum(op.macs for op in ops if op.pass_ == p) for p in ("forward", "dW", "dX")}
    assert macs["forward"] == macs["dW"] and macs["dX"] == macs["forward"] - 4 * 256 * 27 * 16
    assert cost.predict(ops, hardware.load("pi4"))


def test_int8(small):
    ops = onnx_ops.ops(small, dtype="int8")
    products = [op for op in ops if op.kind == "gemm"]
    assert {op.dtype for op in products} == {"int8"} and products[0].weights == 16 * 27
    assert products[0].reads == 3 * 1024 + 16 * 27 and products[0].writes == 4 * 16 * 256
    names = [(op.layer, op.name) for op in ops if op.kind == "elementwise"]
    # the depthwise convolution takes conv's codes through the ReLU only where nobody else reads the float: here Add does
    assert names[:4] == [("Conv0", "quantize"), ("Conv0", "requantize"), ("Conv3", "quantize"), ("Conv3", "requantize")]
    assert ("Conv5", "quantize") not in names, "Conv3's only reader takes its codes"
    training = onnx_ops.ops(small, dtype="int8", inference=False)
    assert {"quantize dY", "dequantize"} <= {op.name for op in training}
    assert {op.dtype for op in training if op.kind == "gemm"} == {"int8"}


def test_int8_throughout(small):
    ops = onnx_ops.ops(small, dtype="int8", float_dtype="int8")
    assert [op.name for op in ops] == [op.name for op in onnx_ops.ops(small)], "no passes of quantization"
    assert {op.dtype for op in ops} == {"int8"} and ops[0].writes == 16 * 256
    found = json.loads(octosim("cost", "--model", str(small), "--profile", "jetson", "--inference", "--dtype", "int8",
                               "--json").stdout)
    assert {layer["dtype"] for layer in found["layers"]} == {"int8"}


def test_float16(small):
    ops = onnx_ops.ops(small, dtype="float16")
    assert {op.dtype for op in ops} == {"float16"} and ops[0].weights == 2 * 16 * 27


def test_winograd_in_inference_only(tmp_path):
    b = Builder()
    path = b.save(tmp_path / "w.onnx", b.conv("x", 32, 32, 3), (1, 32, 28, 28))
    assert onnx_ops.ops(path)[0].algorithm == "winograd"
    assert onnx_ops.ops(path, inference=False)[0].algorithm == "direct"
    b = Builder()
    wide = b("Conv", "x", b.weight(32, 32, 3, 3), pads=[2] * 4, dilations=[2, 2])
    assert onnx_ops.ops(b.save(tmp_path / "d.onnx", wide, (1, 32, 28, 28)))[0].algorithm == "direct"


@pytest.mark.parametrize("op, inputs, attributes, shape, macs", [
    ("Conv", ["x", (4, 8, 3, 3)], {}, ("N", 8, 16, 16), 14 * 14 * 72 * 4),
    ("Conv", ["x", (8, 2, 3, 3)], {"group": 4}, ("N", 8, 16, 16), 14 * 14 * 18 * 8),
    ("Conv", ["x", (4, 8, 3)], {}, ("N", 8, 16), 14 * 24 * 4),
    ("ConvTranspose", ["x", (8, 4, 2, 2)], {"strides": [2, 2]}, ("N", 8, 16, 16), 256 * 8 * 16),
    ("MatMul", ["x", (16, 5)], {}, ("N", 8, 16, 16), 8 * 16 * 16 * 5),
    ("MatMul", ["x", "x"], {}, ("N", 8, 16, 16), 8 * 16 * 16 * 16),
    ("Gemm", ["x", (16, 5)], {}, ("N", 16), 16 * 5),
    ("Gemm", ["x", (5, 16), (5,)], {"transB": 1}, ("N", 16), 16 * 5)])
def test_products(tmp_path, op, inputs, attributes, shape, macs):
    (found,) = one(tmp_path, op, *inputs, shape=shape, **attributes)
    assert found.macs == macs


@pytest.mark.parametrize("op, attributes", [
    ("Relu", {}), ("Sigmoid", {}), ("HardSwish", {}), ("LeakyRelu", {}), ("Tanh", {}), ("Softmax", {}),
    ("MaxPool", {"kernel_shape": [2, 2]}), ("AveragePool", {"kernel_shape": [2, 2]}), ("GlobalAveragePool", {}),
    ("Transpose", {"perm": [0, 2, 3, 1]}), ("LRN", {"size": 5}), ("DepthToSpace", {"blocksize": 2}), ("Erf", {}),
    ("Sqrt", {}), ("ReduceMean", {"axes": [2, 3]})])
def test_passes_over_memory(tmp_path, op, attributes):
    (found,) = one(tmp_path, op, "x", **attributes)
    assert found.kind == "elementwise" and found.reads == 4 * 2048 and 0 < found.writes <= 4 * 2048 and found.macs == 0


def test_exponentials_count_more(tmp_path):
    relu, sigmoid, lrn = (one(tmp_path, op, "x", **a)[0] for op, a in (("Relu", {}), ("Sigmoid", {}), ("LRN", {"size": 5})))
    assert relu.elements < sigmoid.elements < lrn.elements and relu.bytes == sigmoid.bytes


@pytest.mark.parametrize("op", ["Flatten", "Identity", "Dropout"])
def test_views_are_free(tmp_path, op):
    assert one(tmp_path, op, "x") == []


def test_shape_arithmetic_and_concat(tmp_path):
    b = Builder()
    size = b("Gather", b("Shape", "x"), b.constant(0), axis=0)
    rows = b("Concat", size, b.constant(-1), axis=0)
    flat = b("Reshape", b("Concat", "x", b("Relu", "x"), axis=1), rows)
    path = b.save(tmp_path / "c.onnx", b("Gemm", flat, b.weight(2 * 2048, 10)), ("N", 8, 16, 16))
    ops = onnx_ops.ops(path, batch=2)
    assert [op.name for op in ops] == ["relu", "concat", "linear"]
    assert ops[1].reads == ops[1].writes == 2 * 2 * 2048 * 4 and ops[2].shape == (2, 4096, 10)


def test_constants_cost_nothing(tmp_path):
    b = Builder()
    made = b("Mul", b("Relu", b.weight(10, 10)), b.weight(10, 10))
    path = b.save(tmp_path / "k.onnx", b("MatMul", "x", made), ("N", 10))
    assert [op.name for op in onnx_ops.ops(path)] == ["linear"]


def test_attention_trains_both_sides(tmp_path):
    b = Builder()
    q, k = b("MatMul", "x", b.weight(16, 16)), b("MatMul", "x", b.weight(16, 16))
    path = b.save(tmp_path / "a.onnx", b("MatMul", q, b("Transpose", k, perm=[0, 2, 1])), ("N", 8, 16))
    ops = onnx_ops.ops(path, batch=2, inference=False)
    scores = [op for op in ops if op.name == "matmul"]
    assert {op.pass_ for op in scores} == {"forward", "dW", "dX"} and {op.macs for op in scores} == {2 * 8 * 8 * 16}


def test_quantized_operators(tmp_path):
    b = Builder()
    q = b("DynamicQuantizeLinear", "x", outputs=3)
    b.weights.append(helper.make_tensor("w8", TensorProto.INT8, [16, 4], bytes(64), raw=True))
    path = b.save(tmp_path / "q.onnx", b("Cast", b("MatMulInteger", q[0], "w8"), to=TensorProto.FLOAT), ("N", 16))
    ops = onnx_ops.ops(path)
    assert [(op.name, op.dtype) for op in ops] == [("dynamicquantizelinear", "float32"), ("linear", "int8")]
    assert ops[1].weights == 64 and ops[1].reads == 16 + 64


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content, message", [
    (None, "no such file"), (b"", "no ONNX model"), (b"\x08garbage \xff\xff", "ONNX model"),
    (b"just text, no model at all", "not an ONNX model, or a damaged one")])
def test_files_that_are_no_model(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OctosimError, match=message):
        onnx_ops.ops(path)


def test_a_file_cut_short(small):
    small.write_bytes(small.read_bytes()[:-200])
    with pytest.raises(OctosimError):
        onnx_ops.ops(small)


def test_each_byte_changed(small):
    """Names that are not UTF-8 among them: the model is read, or there is one sentence."""
    content, told = small.read_bytes(), set()
    for at in range(0, len(content), 3):
        small.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :])
        try:
            onnx_ops.ops(small)
        except OctosimError as error:
            assert str(small) in str(error) and "\n" not in str(error)
            told.add("UTF-8" in str(error))
    assert told == {True, False}


def test_a_folder(tmp_path):
    with pytest.raises(OctosimError, match="not a regular file, expected an ONNX model"):
        onnx_ops.ops(tmp_path)


def test_unknown_operators(tmp_path):
    b = Builder()
    path = b.save(tmp_path / "u.onnx", b("Relu", b("Det", "x")), (2, 8, 8))
    with pytest.raises(OctosimError, match=r"operator Det \(node Det0\) has no price; --lenient counts it as memory traffic"):
        onnx_ops.ops(path)
    ops = onnx_ops.ops(path, lenient=True)
    assert ops[0].layer == "Det0 (no price: traffic only)" and ops[0].reads == 4 * 128
    b = Builder()  # an operator whose shapes nobody knows
    path = b.save(tmp_path / "v.onnx", b("Relu", b("Magic", "x", domain="mine")), (2, 8, 8))
    with pytest.raises(OctosimError, match="operator Magic"):
        onnx_ops.ops(path)
    b = Builder()  # all of them at once
    path = b.save(tmp_path / "w.onnx", b("Det", b("Magic", b("Relu", b("Det", "x")), domain="mine")), (2, 8, 8))
    told = "operators Det .node Det0., Magic .node Magic2., Det .node Det3. have no price; --lenient counts them as memory"
    with pytest.raises(OctosimError, match=told):
        onnx_ops.ops(path)
    assert onnx_ops.ops(path, lenient=True)


def test_graphs_that_do_not_fit_together(tmp_path):
    b = Builder()
    path = b.save(tmp_path / "g.onnx", b("Relu", "nobody"), (2, 8))
    with pytest.raises(OctosimError, match="reads 'nobody', which nothing before it makes"):
        onnx_ops.ops(path)
    b = Builder()
    path = b.save(tmp_path / "h.onnx", b("MatMul", "x", b.weight(9, 4)), (2, 8))
    with pytest.raises(OctosimError, match="cannot be inferred"):
        onnx_ops.ops(path)


def test_without_the_extra(small):
    code = ("import sys, pathlib; sys.modules['onnx'] = None\nfrom octosim import errors\n"
            "from octosim.cost import onnx as onnx_ops\n"
            f"try: onnx_ops.ops(pathlib.Path({str(small)!r}))\nexcept errors.OctosimError as e: print(e)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "reading ONNX models needs the package onnx: pip install 'octosim[onnx]'", done.stderr


# --- the command ------------------------------------------------------------------------------------------------------


def test_cost_command(small):
    asked = ("cost", "--model", str(small), "--profile", "pi4", "--inference", "--threads", "2")
    done = octosim(*asked, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["batch_size"], found["dtype"], found["threads"], found["method"]) == (1, "float32", 2, None)
    total = found["total"]
    assert 0 < total["time_low_s"] < total["time_s"] < total["time_high_s"]
    table = octosim(*asked, "--dtype", "int8", "--batch-size", "3")
    assert "batch 3, int8" in table.stdout and "with 80 % probability" in table.stdout
    short, long = (octosim(*asked, "--dtype", name, "--json") for name in ("fp32", "float32"))
    assert short.stdout == long.stdout == done.stdout
    compared = json.loads(octosim(*asked, "--compare", "pi5,rk3588", "--json").stdout)["devices"]
    assert [d["device"] for d in compared] == ["raspberry-pi-4", "raspberry-pi-5", "rk3588"]
    assert "against the first" in octosim(*asked, "--compare", "pi5").stdout
    faster = json.loads(octosim(*asked, "--clock-ghz", "1.8", "--json").stdout)["total"]
    assert faster["time_s"] < total["time_s"]
    step = json.loads(octosim("cost", "--model", str(small), "--profile", "pi4", "--json").stdout)
    assert step["total"]["time_s"] > total["time_s"]


@pytest.mark.parametrize("more, message", [
    (("--method", "octo"), "--method is for octosim's own networks; an ONNX file takes --dtype"),
    (("--dtype", "int4"), "--dtype must be one of int8, float16, float32, fp16, fp32, not 'int4'"),
    (("--image", "32x32x3"), "--image is for octosim's own networks; an ONNX file has the size of its inputs"),
    (("--threads", "0"), "threads must be at least 1, not 0"),
    (("--clock-ghz", "0"), "--clock-ghz must be above 0 and below 1000, not 0.0"),
    (("--compare", "pi9"), "unknown profile 'pi9'")])
def test_cost_command_refuses(small, more, message):
    done = octosim("cost", "--profile", "pi4", "--model", str(small), *more)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("more, message", [
    (("--dtype", "float16", "--method", "octo"), "--method octo does not compute in float16"),
    (("--dtype", "int8", "--method", "fp32"), "--method fp32 does not compute in int8")])
def test_dtype_of_own_networks(more, message):
    done = octosim("cost", "--profile", "pi4", *more)
    assert done.returncode == 2 and message in done.stderr
    found = json.loads(octosim("cost", "--profile", "pi4", "--dtype", "float32", "--json").stdout)
    assert found["method"] == "fp32" and found["dtype"] == "float32"


@pytest.mark.parametrize("target", ["/dev/zero", "."])
def test_what_is_no_regular_file(target, tmp_path):
    (tmp_path / "x.onnx").symlink_to(target)
    with pytest.raises(OctosimError, match="not a regular file"):
        onnx_ops.load(tmp_path / "x.onnx", None)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "x.onnx", "wb") as file:
        file.truncate(ONNX_BYTES + 1)  # sparse: takes no space
    with pytest.raises(OctosimError, match="larger than 2 GiB"):
        onnx_ops.load(tmp_path / "x.onnx", None)
