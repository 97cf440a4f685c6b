"""octosim export: onnxruntime computes what octosim does from the files, with the integers that training ended with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.cli import octosim as command
from kit.layer_table import ROWS, SHAPE, STEM, around
from kit.layer_table import graph as graph_of
from kit.small import run_of

import octosim
from octosim import core, data, graph, methods, train
from octosim.engine import Network
from octosim.engine.graph import of_stack
from octosim.engine.inputs import measured, of_network
from octosim.engine.layers import (
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
    Reshape,
    Residual,
    Slice,
)
from octosim.engine.nodes import Context
from octosim.errors import OctosimError
from octosim.evidence import export, export_c, export_onnx, step_writer

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

MIXED = [
    Conv2d(8, 3, 2, 1), BatchNorm(), ReLU6(), DepthwiseConv2d(3, 1, 1), BatchNorm(), ReLU(),
    Residual((Conv2d(8, (3, 1), 1, (1, 0), groups=2), BatchNorm())), ReLU(), MaxPool(3, 2, (1, 1, 1, 1)),
    Conv2d(6, 3, 1, (0, 1, 1, 0), dilation=2), Clip(-1.0, 1.0), AvgPool(2, 1), Dropout(0.1), Flatten(), Linear(10),
]  # fmt: skip
POOLED = [Conv2d(8, 3, 2), BatchNorm(), ReLU(), GlobalAvgPool(), Linear(10)]


def trained(folder: Path, **change: Any) -> octosim.Run:
    return octosim.train(out=folder, **dict(model="lenet5", batch_size=20, steps=4) | change)


@pytest.mark.parametrize(
    "change",
    [dict(), dict(parameters={"lac": "feature"}), dict(method="hindsight"), dict(model=MIXED), dict(model=POOLED)],
    ids=["lenet5", "feature", "hindsight", "mixed", "pooled"],
)
def test_integers_are_octosims(change: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path / "run", **change)
    rows = export.export(tmp_path / "run", "onnx", tmp_path / "out", images=200)
    assert [Path(row["file"]).name for row in rows] == ["qdq.onnx"] * 2 + ["qoperator.onnx"] * 2
    for row in rows:
        assert row["equal"] + row["off_by_one"] + row["more"] == row["elements"] == 2000 and row["images"] == 200
        assert row["same_class"] >= 190 and row["bytes"] == Path(row["file"]).stat().st_size
    exact = rows[2]  # without graph optimizations: every node is octosim's own operation
    assert exact["runtime"].endswith("off") and exact["more"] == 0
    if change.get("model") is POOLED:  # the mean's sum runs in another order
        assert exact["equal"] >= 1990
    else:
        assert exact["same_bits"] == exact["equal"] == 2000


def test_the_files_hold_the_codes_of_the_last_step(tmp_path: Path) -> None:
    import onnx
    from safetensors.numpy import load_file

    run = trained(tmp_path / "run")
    held = export.weighted(run.state)
    row = export.export(tmp_path / "run", "safetensors", tmp_path / "out")[0]
    assert row["equal"] == row["elements"] > 20
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    model = onnx.load_from_string(export_onnx.onnx_model(run.state, "qoperator"))
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    for name, layer in held.items():
        w = run.tensors()[f"{name}.w"]
        codes = np.clip(np.rint(w / np.abs(w).max() * 127), -127, 127)
        assert np.abs(layer.w - codes).max() <= 1 and layer.w.dtype == tensors[f"{name}.w"].dtype == np.int8
        assert np.array_equal(tensors[f"{name}.w"], layer.w)
        own = layer.w.transpose(0, 3, 1, 2) if layer.w.ndim == 4 else layer.w.T
        assert np.array_equal(constants[f"{name}.w"], own)
    assert {p.key: p.value for p in model.metadata_props}["digest"] == run.digest


def test_float32_is_exported_as_it_is(tmp_path: Path) -> None:
    trained(tmp_path / "run", method="fp32", model=POOLED)
    for row in export.export(tmp_path / "run", "onnx", tmp_path / "out", images=100):
        assert row["equal"] == row["elements"] and row["same_class"] == 100


def test_the_comparison_sees_a_wrong_file(tmp_path: Path) -> None:
    """One code of the last layer changed: some logits are off."""
    import onnx

    run = trained(tmp_path / "run").state
    model = onnx.load_from_string(export_onnx.onnx_model(run, "qoperator"))
    last = next(c for c in model.graph.initializer if c.name == "fc3.w")
    codes = onnx.numpy_helper.to_array(last).copy()
    codes[:, 0] = -codes[:, 0]
    last.CopyFrom(onnx.numpy_helper.from_array(codes, "fc3.w"))
    images = run.data.test_images[:50]
    found = export.compare(export_onnx.run_onnx(model.SerializeToString(), images, False), export.logits_of(run, images))
    assert found["same_bits"] <= 450 and found["more"] > 0


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(method="niti", batchnorm=False), "layer conv1: method niti has no inference that can be exported"),
        (dict(method="logbtq"), "has no inference that can be exported"),
    ],
)
def test_what_cannot_be_exported(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    trained(tmp_path / "run", steps=1, **change)
    with pytest.raises(OctosimError, match=sentence):
        export.export(tmp_path / "run", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    "change",
    [dict(), dict(parameters={"lac": "feature"}), dict(method="hindsight"), dict(model=POOLED),
     dict(model=MIXED)],
    ids=["lenet5", "feature", "hindsight", "pooled", "mixed"],
)  # fmt: skip
def test_the_c_program_has_octosims_bits(change: dict[str, Any], tmp_path: Path) -> None:
    """On this machine, and on Arm where its compiler and qemu are there."""
    trained(tmp_path / "run", **change)
    rows = export.export(tmp_path / "run", "c", tmp_path / "out", images=60)
    assert {row["runtime"] for row in rows} >= {"cc"}
    for row in rows:
        assert row["same_bits"] == row["equal"] == 600, row
        assert 0 < row["flash"] < 200_000 and 0 < row["ram"] < 200_000
    text = (tmp_path / "out" / "network.c").read_text()
    normalized = any(isinstance(node.layer, BatchNorm) for node in octosim.open(tmp_path / "run").network.nodes)
    assert "malloc" not in text and ("static void affine(" in text) == normalized  # only the kernels that it needs


def test_what_the_c_export_refuses(tmp_path: Path) -> None:
    for i, (change, sentence) in enumerate((
        (dict(method="fp32"), "layer conv1: products in float32"), (dict(accumulator="acc24"), "trained in acc24"),
    )):  # fmt: skip
        trained(tmp_path / str(i), steps=1, **change)
        with pytest.raises(OctosimError, match=sentence):
            export.export(tmp_path / str(i), "c", tmp_path / "out")


def test_command(tmp_path: Path) -> None:
    trained(tmp_path / "run", steps=1)
    done = command("export", str(tmp_path / "run"), "--images", "50")
    assert done.returncode == 0 and "qoperator.onnx" in done.stdout and "500 of 500" in done.stdout, done.stderr
    done = command("export", str(tmp_path / "run"), "--to", "safetensors", "--out", str(tmp_path / "s"), "--json")
    assert json.loads(done.stdout)[0]["more"] == 0
    done = command("export", str(tmp_path / "run"), "--to", "c", "--no-compare", "--out", str(tmp_path / "c"))
    assert done.returncode == 0 and "buffers" in done.stdout and (tmp_path / "c" / "network.c").exists(), done.stderr
    for arguments, sentence in (
        (["--to", "tflite"], "to onnx"), (["--images", "0"], "--images must be at least 1"),
    ):  # fmt: skip
        done = command("export", str(tmp_path / "run"), *arguments)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def inference(imported: graph.Imported, method: str, images: np.ndarray, **parameters: Any) -> np.ndarray:
    """What an imported network makes of images."""
    source = of_network(imported.graph.input, images) or measured(images, False)
    made = methods.make(method, parameters)
    network = Network(imported.graph, images.shape[1:], made, 0, source=source, initial=imported.weights)
    values = core.materialize_in_place(network.forward(network.input(images), Context(False, 0, 0)))
    return values.reshape(len(images), -1).copy()


FOLDED = {"conv, groups, no bias", "depthwise, padding below and right", "batchnorm"}
"""Rows with a normalization, which an import folds into the weights, whose codes are others then."""


@pytest.mark.parametrize("row", ROWS)
def test_every_kind_of_layer(row: str, tmp_path: Path) -> None:
    """Each is exported to ONNX, and to C, which has octosim's bits; from qdq.onnx the same layers are imported again, which
    compute the same, in int8 to the bit."""
    for method, parameters in (("octo", {"lac": "off"}), ("fp32", {})):
        run = run_of(method, ROWS[row], SHAPE, 2)
        images, ours = run.data.test_images, export.logits_of(run, run.data.test_images)
        for form in export_onnx.FORMS:
            model = export_onnx.onnx_model(run, form)
            found = export.compare(export_onnx.run_onnx(model, images, False), ours)
            assert found["more"] == 0 and found["same_class"] == len(images), (method, form, found)
            if form == "qoperator" or method == "fp32":  # activations in float32 differ in their last bits
                assert found["equal"] >= found["elements"] - 1, (method, found)
        (tmp_path / "qdq.onnx").write_bytes(export_onnx.onnx_model(run, "qdq"))
        imported = graph.load(tmp_path / "qdq.onnx")
        again = inference(imported, method, images, **parameters)
        if method == "fp32":
            assert np.abs(again - ours).max() <= 1e-5 * np.abs(ours).max()
        elif row not in FOLDED and "attention" not in row:  # whose products have ranges of their own
            found = export.compare(again, ours)
            assert found["equal"] == found["elements"], found
        if method == "octo" and shutil.which("cc"):
            (tmp_path / "network.c").write_text(export_c.program(run).source)
            assert export.compare(export_c.run_c(tmp_path / "network.c", images, ours.shape[1]), ours)["same_bits"] == ours.size
        kinds = [entry.layer.kind for entry in ROWS[row].layers]
        left_out = {"batchnorm", "dropout"} | ({"flatten"} if "beside a view" in row or row == "linear, no bias" else set())
        if "attention" not in row:
            assert [e.layer.kind for e in imported.graph.layers if e.layer.kind not in left_out] == [
                kind for kind in kinds if kind not in left_out
            ]
        assert {e.name for e in imported.graph.layers if e.layer.weighted} == {
            e.name for e in ROWS[row].layers if e.layer.weighted
        }


def test_the_classes_of_one_token(tmp_path: Path) -> None:
    """What is flattened at the end, (1, classes), is a value for each class in the file, and comes back."""
    rows = (STEM, ("t", Reshape((56, 6))), ("s", Slice(0, 1, 0)), ("fc", Linear(4)), ("f", Flatten()))
    run = run_of("octo", graph_of(*rows), SHAPE, 2)
    images, ours = run.data.test_images, export.logits_of(run, run.data.test_images)
    (tmp_path / "qdq.onnx").write_bytes(export_onnx.onnx_model(run, "qdq"))
    found = export_onnx.run_onnx(export_onnx.onnx_model(run, "qoperator"), images, False)
    assert found.shape == ours.shape == (16, 4) and np.array_equal(found, ours)
    again = inference(graph.load(tmp_path / "qdq.onnx"), "octo", images, lac="off")
    assert export.compare(again, ours)["equal"] == 64


def test_codes_end_where_the_range_does(tmp_path: Path) -> None:
    """A method with symmetric codes clips at the end of the running range that is nearer to 0, too: images that leave it."""
    rng = np.random.default_rng(1)
    grey, images = rng.integers(110, 130, (40, 9, 9, 2), np.uint8), rng.integers(0, 256, (64, 9, 9, 2), np.uint8)
    labels = np.arange(64, dtype=np.uint8) % 4
    dataset = data.Dataset("grey", grey, labels[:40], images, labels, tuple("abcd"), "", "")
    layers = of_stack([Conv2d(4, 3, 2, deviation=1.0), Conv2d(4, 3), Flatten(), Linear(4)])
    config = train.Config(model="n.toml", method="hindsight", batch_size=8, steps=5)
    run = train.Run(config, layers, dataset)
    for _ in range(5):
        run.advance()
    ends = [layer.x_ends for layer in export.weighted(run).values()]
    assert any(-127 < low and high == 127 or low == -127 and high < 127 for low, high in ends[1:])
    ours = export.logits_of(run, images)
    files = (export_onnx.onnx_model(run, form) for form in export_onnx.FORMS)
    qdq, qoperator = (export.compare(export_onnx.run_onnx(file, images, False), ours) for file in files)
    assert qoperator["same_bits"] == 256 and qdq["more"] == 0
    if shutil.which("cc"):
        (tmp_path / "network.c").write_text(export_c.program(run).source)
        assert export.compare(export_c.run_c(tmp_path / "network.c", images, 4), ours)["same_bits"] == 256
    assert np.array_equal(export.tensors(run)["conv2.x_ends"], ends[1])


def test_safetensors_hold_all_parameters() -> None:
    """Of layers without weights too: they were left out."""
    for row in ("layernorm", "positions, token", "batchnorm", "attention"):
        run = run_of("octo", ROWS[row], SHAPE)
        held = export.tensors(run)
        for node in run.network.nodes:
            for key, values in node.params.items():
                if not node.layer.weighted:
                    assert np.array_equal(held[f"{node.name}.{key}"], values)
    for product in ("scores", "mixture"):
        assert {f"at.{product}_{key}" for key in ("left_scale", "right_scale", "left_ends", "right_ends", "scale")} <= set(held)


def test_what_onnx_has_no_operator_for_is_refused() -> None:
    pool = AvgPool(3, 2, 0, ceil=True)
    with pytest.raises(OctosimError, match=r"^layer l0: an average pooling \(kind 'averagepool'\) whose windows end beyond"):
        export_onnx.onnx_model(run_of("octo", around(pool), SHAPE), "qoperator")
    run = run_of("banner", ROWS["batchnorm"], SHAPE)
    with pytest.raises(OctosimError, match="^layer l0: layers of the kind 'batchnorm' are not exported to ONNX as method ban"):
        export_onnx.onnx_model(run, "qdq")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_names_of_layers(tmp_path: Path) -> None:
    """Names that are one in C, that are the input's in ONNX, or no names in C."""
    conv = '[[layers]]\nkind = "conv"\nfilters = 2\nkernel = 3\nstride = 2\npad = 1\nname = "{}"\n'
    last = '[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "linear"\nname = "4"\n'
    (tmp_path / "net.toml").write_text("".join(map(conv.format, ("a.b", "a_b", "images"))) + last)
    trained(tmp_path / "run", model=str(tmp_path / "net.toml"))
    for kind in ("onnx", "c"):
        rows = export.export(tmp_path / "run", kind, tmp_path / kind, images=20)
        assert all(row["same_bits"] == 200 for row in rows if "qdq" not in row["file"])
    assert step_writer._identifier("4.w") == "layer_4_w"  # of the training step's arrays


@pytest.mark.parametrize("method", ["octo", "fp32"])
def test_what_is_exported_is_imported(method: str, tmp_path: Path) -> None:
    """qdq.onnx is a network to train on, and its scales, zero points and limits are numbers without axes, as ONNX has them."""
    import onnx

    trained(tmp_path / "run", model=MIXED, method=method)
    path = Path(export.export(tmp_path / "run", "onnx", tmp_path / "out", images=20)[0]["file"])
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clip"):
            assert not any(constants[name].dims for name in node.input[1:])
    imported, images = graph.load(path), octosim.data.load("fashion-mnist-5k").test_images[:50]
    found = inference(imported, "fp32", images)
    wanted = ort.InferenceSession(str(path)).run(None, {"images": images})[0]
    assert np.abs(found - wanted).max() <= (0.1 if method == "octo" else 1e-4) * np.abs(wanted).max()
