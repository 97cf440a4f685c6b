"""What ONNX files hold besides usual networks: it is computed as onnxruntime does, or refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph.test_onnx_import import outputs, relative
from kit.cli import octosim
from kit.onnx_blocks import BLOCKS, head
from kit.onnx_nets import Builder, F, build

from octosim import graph
from octosim.engine.nodes import INPUT_RANGE
from octosim.errors import OctosimError
from octosim.graph import onnx as importer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FLOAT, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
IMAGE = ("N", 3, 8, 8)


def saved(net: Callable[[Builder], str], path: Path, shape: tuple[Any, ...] = IMAGE, opset: int = 17) -> Path:
    onnx.save(build(net, opset, shape), path / "net.onnx")
    return path / "net.onnx"


def features(b: Builder) -> str:
    return b.gemm(b.add("Flatten", "x"), 192, 5)


def pooled(b: Builder) -> str:
    return b.add("GlobalAveragePool", b.conv("x", 3, 4))


def gate(b: Builder) -> str:
    """1 - x, -x and x - y, of values that others take, too."""
    x, y = b.add("Sigmoid", b.conv("x", 3, 4)), b.conv("x", 3, 4)
    z = b.add("Mul", b.add("Sub", b.constant(F(1)), x), b.add("Neg", y))
    return head(b, b.add("Sub", b.add("Relu", z), b.add("Mul", x, y)), 4)


def hard_gate(b: Builder) -> str:
    x = b.conv("x", 3, 4)
    return head(b, b.add("Mul", x, b.add("HardSigmoid", x, alpha=1 / 6, beta=0.3)), 4)


COMPUTED: dict[str, Callable[[Builder], str]] = {
    "classes are a flattened image": lambda b: b.add("Flatten", b.conv("x", 3, 4, strides=[4, 4])),
    "classes are a reshaped image": lambda b: b.add("Reshape", b.add("Relu", b.conv("x", 3, 4, strides=[4, 4])), b.ints(0, -1)),
    "a factor at the end": lambda b: b.add("Mul", b.add("Relu", features(b)), b.constant(F(0.25))),
    "a temperature at the end": lambda b: b.add("Div", b.add("Tanh", features(b)), b.constant(F([4]))),
    "gates": gate,
    "a hard gate that is no hard swish": hard_gate,
    "a single bias for all": lambda b: b.add("Gemm", b.add("Flatten", "x"), b.tensor(192, 5), b.constant(F(0.3))),
    "equal rows of biases": lambda b: b.add("Gemm", b.add("Flatten", "x"), b.tensor(192, 5), b.constant(np.full((1, 1), F(2)))),
    "a softmax of pooled channels": lambda b: b.add("Flatten", b.add("Softmax", pooled(b), axis=1)),
    "one factor for all channels": lambda b: b.gemm(b.add("LayerNormalization", features(b), b.tensor(1), b.tensor(1)), 5, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_outputs_are_onnxruntimes(name: str, tmp_path: Path) -> None:
    path = saved(COMPUTED[name], tmp_path)
    assert relative(path, graph.load(path)) <= 1e-4


REFUSED: dict[str, tuple[Callable[[Builder], str], str]] = {
    "whole numbers": (
        lambda b: head(b, b.add("Cast", b.add("Cast", b.conv("x", 3, 4), to=INT32), to=FLOAT), 4), "Cast .*: to int32"
    ),
    "a softmax over images": (lambda b: b.add("Softmax", features(b), axis=0), "Softmax .*: over axis 0 of"),
    "a softmax over nothing": (
        lambda b: b.add("Flatten", b.add("Softmax", pooled(b), axis=-1)), "over axis -1 of"
    ),
    "biases of images": (
        lambda b: b.add("Gemm", b.add("Flatten", "x"), b.tensor(192, 5), b.tensor(2, 5)), r"a constant of shape \(2, 5\)"
    ),
    "a factor for each pixel": (
        lambda b: head(b, b.add("LayerNormalization", b.conv("x", 3, 4), b.tensor(8, 8), b.tensor(8, 8), axis=-1), 4),
        r"LayerNormalization .*: with a constant of shape \(8, 8\)",
    ),
    "other channels": (lambda b: head(b, b.conv("x", 2, 4), 4), r"Conv .*weights here are \(4, 3, 3, 2\)"),
    "other biases": (lambda b: head(b, b.add("Conv", "x", b.tensor(4, 3, 3, 3), b.tensor(7)), 4), r"biases here are \(7,\)"),
    "no weights": (lambda b: head(b, b.add("Conv", "x"), 4), "Conv .*: not as ONNX has it"),
    "a NaN": (lambda b: b.add("Gemm", b.add("Flatten", "x"), b.constant(np.full((192, 5), F(np.nan)))), "w has a NaN"),
    "by zero": (lambda b: head(b, b.add("Div", b.conv("x", 3, 4), b.constant(F(0))), 4), "w has a NaN or an infinity"),
    "turned behind flattening": (
        lambda b: b.add("Relu", b.add("Flatten", b.conv("x", 3, 4, strides=[4, 4]))), "its output is a flattened image"
    ),
    "integers": (lambda b: head(b, b.add("QLinearConv", *["x"] * 8), 4), "in the form QDQ are taken"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_other_numbers_is_refused(name: str, tmp_path: Path) -> None:
    net, words = REFUSED[name]
    path = saved(net, tmp_path, (2, 3, 8, 8))
    with pytest.raises(OctosimError, match=words) as caught:
        graph.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_only_the_node_that_lacks_a_layer_is_named(tmp_path: Path) -> None:
    """Not those behind it, whose axes and shapes are not known."""

    def net(b: Builder) -> str:
        x = b.add("Reshape", b.conv("x", 3, 8), b.ints(0, 2, -1))
        x = b.add("InstanceNormalization", x, b.tensor(2), b.tensor(2), name="group")
        return head(b, b.add("Mul", b.add("Reshape", x, b.ints(-1, 8, 8, 8)), b.tensor(1, 8, 1, 1)), 8)

    path = saved(net, tmp_path)
    with pytest.raises(OctosimError, match=r": 1 node cannot be trained: InstanceNormalization \(group\)$"):
        graph.load(path)


def test_an_autoencoder_keeps_its_softmax(tmp_path: Path) -> None:
    """The loss mse makes none."""
    path = saved(lambda b: b.add("Softmax", b.gemm("x", 6, 6)), tmp_path, ("N", 6))
    with pytest.raises(OctosimError, match="Softmax .*: in a network whose loss is mse"):
        importer.read(path, loss="mse")


def test_an_autoencoder_of_reshaped_values(tmp_path: Path) -> None:
    """Its output stands in the order of its input."""
    path = saved(lambda b: b.add("Reshape", b.gemm(b.add("Relu", b.gemm(b.add("Flatten", "x"), 192, 6)), 6, 192),
                                 b.ints(-1, 3, 8, 8)), tmp_path)  # fmt: skip
    imported, x = importer.read(path, loss="mse"), np.random.default_rng(0).random((2, 3, 8, 8)).astype(F)
    wanted = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0].transpose(0, 2, 3, 1)
    found = outputs(imported, x.transpose(0, 2, 3, 1))
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_weights_that_layers_share_are_told(tmp_path: Path) -> None:
    def net(b: Builder) -> str:
        w = b.tensor(4, 4, 3, 3)
        x = b.add("Conv", b.add("Relu", b.add("Conv", b.conv("x", 3, 4), w, pads=[1] * 4)), w, pads=[1] * 4)
        return head(b, x, 4)

    imported = graph.load(saved(net, tmp_path))
    assert [note for note in imported.notes if "is shared by conv2, conv3: here each trains its own copy" in note]


def test_inputs_of_bytes_and_of_0_to_255(tmp_path: Path) -> None:
    """What a file that takes bytes does to them first is the input's normalization; of one that divides floats by 255 it is
    said."""

    def net(b: Builder, *normalized: str) -> str:
        x = b.add("Div", b.add("Cast", "x", to=FLOAT), b.constant(F(255)))
        if normalized:
            mean, deviation = F([[[0.4]], [[0.5]], [[0.6]]]), F([[[0.2]], [[0.3]], [[0.4]]])
            x = b.add("Div", b.add("Sub", x, b.constant(mean)), b.constant(deviation))
        return head(b, b.add("Relu", b.conv(x, 3, 4)), 4)

    model = build(net, 17, IMAGE)
    onnx.save(model, tmp_path / "net.onnx")
    floats = graph.load(tmp_path / "net.onnx")
    assert floats.graph.input.deviation is None and "pixels were 0 .. 255" in floats.notes[0]
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, tmp_path / "bytes.onnx")
    plain = graph.load(tmp_path / "bytes.onnx")
    assert plain.graph.input.deviation is None and not plain.notes
    other = build(lambda b: net(b, "normalized"), 17, IMAGE)
    other.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(other, tmp_path / "normalized.onnx")
    normalized = graph.load(tmp_path / "normalized.onnx")
    assert normalized.graph.input.mean == pytest.approx([0.4, 0.5, 0.6], rel=1e-6)
    assert normalized.graph.input.deviation == pytest.approx([0.2, 0.3, 0.4], rel=1e-6)
    raw = build(lambda b: head(b, b.add("Relu", b.conv(b.add("Cast", "x", to=FLOAT), 3, 4)), 4), 17, IMAGE)
    raw.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(raw, tmp_path / "raw.onnx")
    assert graph.load(tmp_path / "raw.onnx").graph.input.deviation == pytest.approx([1 / 255] * 3)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    for name in ("bytes", "normalized", "raw"):
        imported = graph.load(tmp_path / f"{name}.onnx")
        spec = imported.graph.input
        assert [entry.layer.kind for entry in imported.graph.layers][0] == "conv"
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        wanted = session.run(None, {"x": images})[0]
        pixels = images.transpose(0, 2, 3, 1) / 255
        found = outputs(imported, (pixels - np.array(spec.mean or 0)) / np.array(spec.deviation or 1))
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_files_that_onnxruntime_optimized(tmp_path: Path) -> None:
    """Its own operators are named, and why they are there."""

    def net(b: Builder) -> str:
        return head(b, b.add("Relu", b.conv("x", 3, 4)), 4)

    onnx.save(build(net, 17, IMAGE), tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), options, providers=["CPUExecutionProvider"])
    with pytest.raises(OctosimError, match=r"com\.microsoft\.FusedConv .*onnxruntime's optimization puts together: import"):
        graph.load(tmp_path / "optimized.onnx")


def test_what_the_first_output_does_not_need_is_left_out(tmp_path: Path) -> None:
    """Another head, and nodes that nothing takes."""

    def net(b: Builder) -> str:
        x = b.add("Tanh", b.conv("x", 3, 4))
        b.add("Erf", x, name="unused")
        y = head(b, b.add("Mul", x, b.tensor(4, 1, 1)), 4)
        b.add("Softplus", x, name="second")
        return y

    model = build(net, 17, IMAGE)
    model.graph.output.append(onnx.helper.make_tensor_value_info(model.graph.node[-1].output[0], FLOAT, None))
    onnx.save(model, tmp_path / "net.onnx")
    imported = graph.load(tmp_path / "net.onnx")
    assert relative(tmp_path / "net.onnx", imported) <= 1e-4 and "are left out" in imported.notes[0]


def test_a_batch_of_0_is_open_and_an_unused_input_is_left_out(tmp_path: Path) -> None:
    model = build(features, 17, (0, 3, 8, 8))
    model.graph.input.append(onnx.helper.make_tensor_value_info("unused", FLOAT, (1, 2)))
    onnx.save(model, tmp_path / "net.onnx")
    imported = graph.load(tmp_path / "net.onnx")
    assert imported.graph.input.shape == (8, 8, 3) and outputs(imported, np.zeros((2, 8, 8, 3))).shape == (2, 5)


@pytest.mark.parametrize("kind", ["QUInt8", "QInt8", "QInt16"])
@pytest.mark.parametrize("name", ["gelus", "transformer", "tanh gelus", "hard swishes"])
def test_quantized_blocks_of_several_nodes(name: str, kind: str, tmp_path: Path) -> None:
    """What stands in several nodes is one layer where QuantizeLinear and DequantizeLinear stand between, too; 16 bits are
    operators of onnxruntime's own in opset 17."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    net, shape = BLOCKS[name]
    onnx.save(build(net, 17, shape), tmp_path / "float.onnx")
    left = [{"x": np.random.default_rng(at).random((1, *shape[1:])).astype(F)} for at in range(4)]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> Any:
            return left.pop() if left else None

    types = quantization.QuantType
    quantization.quantize_static(
        tmp_path / "float.onnx", tmp_path / "net.onnx", Reader(), activation_type=types[kind], weight_type=types.QInt8
    )
    imported, floats = graph.load(tmp_path / "net.onnx"), graph.load(tmp_path / "float.onnx")
    kinds = [[entry.layer.kind for entry in each.graph.layers] for each in (imported, floats)]
    assert all(kinds[0].count(kind) == kinds[1].count(kind) for kind in ("gelu", "attention", "layernorm"))
    weighted = [entry.name for entry in imported.graph.layers if entry.layer.kind in ("conv", "linear")]
    assert all(f"{name}.{INPUT_RANGE}" in imported.weights for name in weighted)
    x = np.random.default_rng(7).random((2, *floats.graph.input.shape))
    found, wanted = outputs(imported, x), outputs(floats, x)
    assert np.abs(found - wanted).max() <= 0.1 * np.abs(wanted).max()


def test_training_tells_what_a_reader_should_know(tmp_path: Path) -> None:
    """As the import does."""
    path = saved(lambda b: b.add("Softmax", b.gemm(b.add("Flatten", "x"), 784, 10)), tmp_path, ("N", 1, 28, 28))
    done = octosim("train", "--model", str(path), "--steps", "1", "--batch-size", "5", "--out", str(tmp_path / "run"))
    assert done.returncode == 0 and "Softmax at the end is left out" in " ".join(done.stderr.split()), done.stderr


def test_data_with_other_channels_than_the_weights(tmp_path: Path) -> None:
    """The first layer would begin anew, in silence; a signal is given as an image of height 1."""
    net, shape = BLOCKS["signal"]
    onnx.save(build(net, 17, shape), tmp_path / "net.onnx")
    with pytest.raises(OctosimError, match=r"\(1, 16, 3\).*not \(3, 16, 1\); a signal is given as \(N, 3, 1, 16\)"):
        graph.layers(str(tmp_path / "net.onnx"), 3, in_shape=(3, 16, 1))
    graph.layers(str(tmp_path / "net.onnx"), 3, in_shape=(1, 20, 3))
    vectors = saved(lambda b: b.gemm("x", 6, 3), tmp_path, ("N", 6))
    with pytest.raises(OctosimError, match=r"for inputs of shape \(6,\) \(values\), not \(7,\)"):
        graph.layers(str(vectors), 3, in_shape=(7,))


MALFORMED: dict[str, tuple[Callable[[Builder], str], str]] = {
    "an Add of one input": (lambda b: b.gemm(b.add("Clip", b.add("Add", features(b))), 5, 3), "Add .*of other than two"),
    "a shape of nothing": (lambda b: head(b, b.add("Reshape", b.conv("x", 3, 4), b.add("Shape")), 4), "Shape"),
    "a constant with an input": (lambda b: head(b, b.add("Mul", b.conv("x", 3, 4), b.add("Constant", "x")), 4), "Constant"),
    "an axis beyond": (lambda b: head(b, b.add("Transpose", b.conv("x", 3, 4), perm=[0, 1, 2, 9]), 4), "Transpose"),
    "no kernel": (lambda b: head(b, b.add("MaxPool", b.conv("x", 3, 4)), 4), "MaxPool"),
    "pads of one axis": (lambda b: head(b, b.conv("x", 3, 4, pads=[1, 1]), 4), "Conv"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_nodes_are_named(name: str, tmp_path: Path) -> None:
    net, words = MALFORMED[name]
    path = saved(net, tmp_path)
    with pytest.raises(OctosimError, match=words):
        graph.load(path)


def test_an_input_larger_than_any_memory(tmp_path: Path) -> None:
    path = saved(features, tmp_path, ("N", 1 << 20, 1 << 20))
    with pytest.raises(OctosimError, match="input x has shape .* expected at most 536,870,912 elements"):
        graph.load(path)


def test_a_file_of_pytorch_is_told(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"PK\3\4 a zip archive")
    with pytest.raises(OctosimError, match="not an ONNX model, or a damaged one; torch.onnx.export makes one"):
        importer.read(tmp_path / "net.pt")
