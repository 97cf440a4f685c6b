"""Networks that Keras and tf2onnx wrote are imported.

tensorflow/NAME_TOOL_OPSET.txtpb are such files as text (Keras 3.15, TensorFlow 2.21, tf2onnx 1.17); their float weights of more
than four numbers were left out and are random here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octosim import core, engine, graph, methods
from octosim.engine.inputs import Input
from octosim.engine.nodes import Context

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
text_format = pytest.importorskip("google.protobuf.text_format")

FILES = sorted((Path(__file__).parent / "tensorflow").glob("*.txtpb"))


def filled(text: str, path: Path) -> None:
    """Writes the model with random weights."""
    model, rng = text_format.Parse(text, onnx.ModelProto()), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.raw_data and not tensor.float_data:
            values = rng.normal(0, 0.5, list(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_outputs_are_onnxruntimes_and_a_step_is_taken(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    filled(file.read_text(), path)
    imported = graph.load(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    x = np.random.default_rng(1).random([size if isinstance(size, int) else 3 for size in given.shape]).astype(np.float32)
    wanted = session.run(None, {given.name: x})[0]
    shape = imported.graph.input.shape
    assert imported.graph.input.layout == "nhwc" and x[0].size == np.prod(shape)
    x = x.reshape(len(x), *shape)

    def network(method: str) -> engine.Network:
        made = methods.make(method, {})
        return engine.Network(imported.graph, shape, made, 0, source=Input(True), initial=imported.weights)

    found = np.asarray(core.materialize_in_place(network("fp32").forward(x.copy(), Context(False, 0, 0))))
    if any("Softmax" in note for note in imported.notes):
        found = np.exp(found - found.max(1, keepdims=True))
        found /= found.sum(1, keepdims=True)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    trained = network("octo")
    loss, _ = trained.gradients(x, np.arange(len(x), dtype=np.int32) % 2, Context(True, 0, 1))
    assert np.isfinite(float(loss))
    assert all(np.isfinite(g).all() for node in trained.nodes for g in node.grads.values() if isinstance(g, np.ndarray))


def test_there_are_files() -> None:
    assert len({file.stem.rpartition("_")[2] for file in FILES}) >= 4 and len(FILES) >= 6
