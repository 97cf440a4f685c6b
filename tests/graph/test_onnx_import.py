"""Networks from ONNX and PyTorch compute what onnxruntime and PyTorch do; what cannot be trained is named."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.cli import octosim
from kit.onnx_blocks import BLOCKS
from kit.onnx_nets import NETS, Builder, build

from octosim import engine, graph, methods, train
from octosim.engine.inputs import Input
from octosim.engine.nodes import INPUT_RANGE, Context
from octosim.errors import OctosimError
from octosim.graph import Imported
from octosim.graph.names import layer_name

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def outputs(imported: Imported, x: np.ndarray) -> np.ndarray:
    """The float32 network's outputs of an input (batch, height, width, channels), or vectors."""
    shape = imported.graph.input.shape
    network = engine.Network(imported.graph, shape, methods.make("fp32", {}), 0)
    tensors = network.tensors()
    weights = {name: tensor for name, tensor in imported.weights.items() if not name.endswith(INPUT_RANGE)}
    assert set(weights) <= set(tensors)
    without = {f"{entry.name}.b" for entry in imported.graph.layers if not getattr(entry.layer, "bias", True)}
    assert set(tensors) - set(weights) == without and not any(tensors[name].any() for name in without)
    for name, tensor in weights.items():
        tensors[name][:] = tensor
    return network.forward(np.ascontiguousarray(x.reshape(len(x), *shape), np.float32), Context(False, 0, 0))


def relative(path: Path, imported: Imported, batch: int = 2) -> float:
    """The largest difference from onnxruntime's outputs, by the largest output, without a softmax at the end."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else batch for size in given.shape]
    x = np.random.default_rng(1).random(shape).astype(np.float32)
    wanted = session.run(None, {given.name: x})[0].reshape(len(x), -1)
    nchw = imported.graph.input.layout == "nchw" and x.ndim > 2
    found = outputs(imported, np.moveaxis(x, 1, -1) if nchw else x)
    if any("Softmax" in note for note in imported.notes):
        found = np.exp(found - found.max(1, keepdims=True))
        found /= found.sum(1, keepdims=True)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_thousands_of_layers_are_named_in_their_time() -> None:
    """The first free number behind a name, without counting from 1 for each layer: that took minutes for 20,000."""
    taken, numbers, began = dict.fromkeys(["relu2", "block.relu1"]), dict[str, int](), time.process_time()
    for _ in range(20_000):
        taken[layer_name("", "", "relu", taken, numbers)] = None
    assert list(taken)[2:5] == ["relu1", "relu3", "relu4"] and list(taken)[-1] == "relu20001"
    assert time.process_time() - began < 10
    names = [layer_name("block.weight", "", "relu", taken | {"block": None, "block.relu": None}, numbers) for _ in range(2)]
    assert names == ["block.relu.1", "block.relu.2"]


@pytest.mark.parametrize("op, inputs, count", [("Mul", ("{}", "factor"), 3000), ("Add", ("{}", "{}"), 60)])
def test_layout_behind_long_chains(op: str, inputs: tuple[str, str], count: int, tmp_path: Path) -> None:
    """The search for a Transpose passes thousands of nodes, and branches that meet again, of which it looks at each once."""
    names = ["x", *(f"t{at}" for at in range(count))]
    make, kind = onnx.helper.make_node, onnx.TensorProto.FLOAT
    nodes = [make(op, [each.format(name) for each in inputs], [to]) for name, to in itertools.pairwise(names)]
    nodes += [make("Transpose", names[-1:], ["moved"], perm=[0, 3, 1, 2]), make("Conv", ["moved", "w"], ["conv"]),
              make("GlobalAveragePool", ["conv"], ["pooled"]), make("Flatten", ["pooled"], ["y"])]  # fmt: skip
    weights = {"factor": np.array(0.999, np.float32), "w": np.full((4, 6, 3, 3), 0.1, np.float32)}
    ends = [[onnx.helper.make_tensor_value_info(name, kind, shape)] for name, shape in (("x", (1, 8, 8, 6)), ("y", (1, 4)))]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "chain", *ends, constants)), tmp_path / "net.onnx")
    spec = graph.load(tmp_path / "net.onnx").graph.input
    assert spec.layout == "nhwc" and spec.shape == (8, 8, 6)


ALL = NETS | BLOCKS


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("name", ALL)
def test_outputs_are_onnxruntimes(name: str, opset: int, tmp_path: Path) -> None:
    net, shape = ALL[name]
    path = tmp_path / "net.onnx"
    onnx.save(build(net, opset, shape), path)
    imported = graph.load(path)
    assert relative(path, imported) <= 1e-4
    graph.save(imported, tmp_path / "net")
    again = graph.load(tmp_path / "net")
    assert again.graph == imported.graph and set(again.weights) == set(imported.weights)
    assert all((again.weights[key] == imported.weights[key]).all() for key in again.weights)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("nearest", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("mode", ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"])
def test_enlarged_images_are_onnxruntimes_or_refused(mode: str, nearest: str, factor: int, tmp_path: Path) -> None:
    """Only where each pixel stands `factor` times: others would be other numbers, not an error."""
    b = Builder(13)
    scales = b.constant(np.array([1, 1, factor, factor], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": nearest}
    y = b.gemm(b.add("Flatten", b.add("Resize", b.conv("x", 3, 2), "", scales, **how)), 2 * (5 * factor) ** 2, 3)
    path = tmp_path / "net.onnx"
    onnx.save(b.model(y, ("N", 3, 5, 5)), path)
    repeats = {"asymmetric": ["floor"] + ["round_prefer_floor"] * (factor < 3)}.get(
        mode, ["round_prefer_floor", "round_prefer_ceil"] if "half" in mode else []
    )
    if nearest in repeats or factor == 1 and mode != "align_corners":
        assert relative(path, graph.load(path)) <= 1e-4
    else:
        with pytest.raises(OctosimError, match="Resize"):
            graph.load(path)


def test_an_edited_model_file_is_read_anew(tmp_path: Path) -> None:
    net, shape = NETS["residual"]
    onnx.save(build(net, 17, shape), tmp_path / "net.onnx")
    graph.save(graph.load(tmp_path / "net.onnx"), tmp_path / "net")
    before, file = graph.load(tmp_path / "net").graph, tmp_path / "net/model.toml"
    file.write_text(file.read_text().replace("eps = 1e-05", "eps = 1e-03", 1))
    assert graph.load(tmp_path / "net").graph != before


def test_external_data(tmp_path: Path) -> None:
    net, shape = NETS["residual"]
    path = tmp_path / "net.onnx"
    onnx.save(build(net, 17, shape), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert relative(path, graph.load(path)) <= 1e-4
    (tmp_path / "net.bin").unlink()
    path.touch()
    with pytest.raises(OctosimError, match="its values are in 'net.bin', which cannot be read"):
        graph.load(path)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_quantized_files(kind: str, tmp_path: Path) -> None:
    """onnxruntime's QDQ files: weights dequantized, the ReLUs that its tool leaves out are back."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    net, shape = NETS["residual"]
    source, path = tmp_path / "float.onnx", tmp_path / "qdq.onnx"
    onnx.save(build(net, 17, shape), source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = [{"x": np.random.default_rng(1).random((4, 3, 8, 8)).astype(np.float32)}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    types = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
    quantization.quantize_static(source, path, Reader(), activation_type=types[kind], weight_type=quantization.QuantType.QInt8)
    imported = graph.load(path)
    assert relative(path, imported) <= 0.1
    floats = graph.load(source)
    assert sum(entry.layer.kind == "relu" for entry in imported.graph.layers) == 3
    for key, tensor in floats.weights.items():
        if key.endswith(".w") and "bn" not in key and key in imported.weights:
            assert np.abs(imported.weights[key] - tensor).max() <= np.abs(tensor).max() * 0.3  # batch norm may be folded
    # scales and zero points are the ranges that inference begins with, of each product's input; training follows on from them
    weighted = [entry.name for entry in imported.graph.layers if entry.layer.weighted]
    ranges = {name: imported.weights[f"{name}.{INPUT_RANGE}"] for name in weighted}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    step, zero, codes = float(stored["x_scale"]), int(stored["x_zero_point"]), np.iinfo(kind)
    assert ranges[weighted[0]] == pytest.approx([(codes.min - zero) * step, (codes.max - zero) * step])
    made = engine.Network(imported.graph, (8, 8, 3), methods.make("octo", {}), 0, source=Input(True), initial=imported.weights)
    images = np.random.default_rng(2).random((4, 8, 8, 3)).astype(np.float32)
    made.calibrate([images], Context(True, 0, 0))
    held = {node.name: node.state["x_range"].copy() for node in made.nodes if node.layer.weighted}
    assert all((held[name] == values).all() for name, values in ranges.items())
    made.gradients(images, np.zeros(4, np.int32), Context(True, 0, 1))
    assert all((node.state["x_range"] != held[node.name]).any() for node in made.nodes if node.layer.weighted)


@pytest.mark.slow  # torch.export takes seconds
def test_a_torch_module() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.pool = nn.MaxPool2d(2)
            self.head = nn.Linear(128, 5)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.norm(self.stem(x)))
            return self.head(torch.flatten(self.pool(x), 1))

    module = Net()
    module.norm.running_mean.normal_()
    imported = graph.from_torch(module, torch.rand(2, 3, 8, 8))
    assert [entry.name for entry in imported.graph.layers if entry.layer.weighted] == ["stem", "head"]
    assert any(entry.layer.kind == "batchnorm" for entry in imported.graph.layers) and module.training
    x = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        wanted = module.eval()(x).numpy()
    found = outputs(imported, x.numpy().transpose(0, 2, 3, 1))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.slow  # torch.export takes seconds
def test_parts_of_a_torch_module(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.split is a sequence for the exporter; modes of parts stay; what torch cannot trace is told by its cause."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")

    class Gated(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.both, self.norm, self.head = torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            a, b = self.both(x).chunk(2, 1)
            return self.head(self.norm(a * torch.sigmoid(b)))

    module = Gated()
    module.norm.eval()
    imported, x = graph.from_torch(module, torch.rand(2, 5)), torch.rand(3, 5)
    assert module.training and module.head.training and not module.norm.training
    with torch.no_grad():
        wanted = module.eval()(x).numpy()
    assert np.abs(outputs(imported, x.numpy()) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    with pytest.raises(OctosimError, match=r"^Gated: torch.export cannot trace it .*(mat1 and mat2|reduction dim)") as told:
        graph.from_torch(module, torch.rand(2, 6))
    assert "\x1b" not in str(told.value)
    with pytest.raises(OctosimError, match="takes a torch.nn.Module and a tensor as an example, not function and Tensor"):
        graph.from_torch(lambda x: x, torch.rand(2, 6))


def test_everything_that_cannot_be_trained_is_named(tmp_path: Path) -> None:
    b = Builder(17)
    x = b.add("Ceil", b.conv("x", 3, 4), name="one")
    x = b.add("Erf", b.conv(x, 4, 4), name="two")
    x = b.add("Mine", b.conv(x, 4, 4), name="three", domain="my.own")
    x = b.add("Erf", b.conv(x, 4, 4), name="four")
    y = b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 4, 3)
    path = tmp_path / "net.onnx"
    onnx.save(b.model(y, ("N", 3, 8, 8)), path)
    done = octosim("import", str(path), "-o", str(tmp_path / "net"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "4 nodes cannot be trained: Ceil (one); Erf (two, four); my.own.Mine (three)" in " ".join(done.stderr.split())
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an ONNX model without operations"),
        (b"\xff\xfe nothing", "not an ONNX model, or a damaged one"),
        (None, "cannot be read"),
    ],
)
def test_no_onnx(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OctosimError, match=words):
        graph.layers(str(path), 10)


def test_import_and_train(tmp_path: Path) -> None:
    """From the file to a verified run: the imported folder and the file itself are models, with a head for the classes."""
    b = Builder(17)
    x = b.add("Relu", b.bn(b.conv("x", 1, 4, strides=[4, 4]), 4))
    y = b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 4, 7)
    path = tmp_path / "net.onnx"
    onnx.save(b.model(y, ("N", 1, 28, 28)), path)
    done = octosim("import", str(path), "-o", str(tmp_path / "net"), "--classes", "10")
    assert done.returncode == 0 and "images of 28x28x1" in done.stdout, done.stderr
    layers = [graph.layers(str(source), 10) for source in (path, tmp_path / "net")]
    assert layers[0] == layers[1]
    for source in (path, tmp_path / "net"):
        config = train.Config(model=str(source), steps=2, batch_size=10)
        run = train.create(config, tmp_path / f"run-{source.stem}{source.suffix}", "test")
        weights, tensors = graph.load(source).weights, run.network.tensors()
        fitting = [key for key, w in weights.items() if tensors[key].shape == w.shape]
        assert config.init == str(source) and len(fitting) >= 6
        assert all((tensors[key] == weights[key]).all() for key in fitting)
    folder = tmp_path / "run-net"
    assert train.train(run, folder)
    shutil.rmtree(tmp_path / "net")
    assert train.verify(folder).equal
    with pytest.raises(OctosimError, match="cannot take an input of shape"):
        graph.layers(str(path), 10, in_shape=(32,))


def test_an_imported_network_is_priced_as_it_is(tmp_path: Path) -> None:
    """The size of its images and its classes, where nothing else is said."""
    net, shape = NETS["residual"]
    onnx.save(build(net, 17, shape), tmp_path / "net.onnx")
    assert octosim("import", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "net")).returncode == 0
    assert graph.usual(f"{tmp_path}/net") == ((8, 8, 3), 5) and graph.usual("lenet5") == ((28, 28, 1), 10)
    asked = ("cost", "--profile", "pi4", "--inference", "--dtype", "float32", "--batch-size", "1", "--json")
    own, theirs = (json.loads(octosim(*asked, "--model", str(tmp_path / name)).stdout) for name in ("net", "net.onnx"))
    own, theirs = (sum(row["macs"] for row in found["layers"]) for found in (own, theirs))
    assert own == theirs


@pytest.mark.parametrize("seed", range(8))
def test_movements_at_random(seed: int, tmp_path: Path) -> None:
    """Reshapes, transposes and products that fit each other or not: a sentence, or a network."""
    r, path = np.random.default_rng(seed), tmp_path / "net.onnx"
    for _ in range(12):
        b, count = Builder(17), r.choice(["N", 0, 1, 2, 3], p=[0.4, 0.15, 0.15, 0.15, 0.15])
        x = b.conv("x", 3, 8)
        for kind in r.integers(0, 5, r.integers(1, 5)):
            if kind == 0:
                x = b.add("Reshape", x, b.ints(*r.choice([-1, 0, 1, 2, 4, 8, 16, 64], r.integers(1, 6)).tolist()))
            elif kind == 1:
                x = b.add("Transpose", x, perm=r.permutation(r.integers(1, 6)).tolist())
            elif kind == 2:
                x = b.axes("Unsqueeze", 13, x, [int(r.integers(0, 4))])
            elif kind == 3:
                x = b.add("MatMul", x, b.tensor(int(r.choice([8, 64])), 8))
            else:
                x = b.axes("ReduceMean", 18, x, [int(r.integers(0, 3))], keepdims=int(r.integers(2)))
        onnx.save(b.model(x, (count if count == "N" else int(count), 3, 8, 8)), path)
        with contextlib.suppress(OctosimError):
            graph.load(path)
