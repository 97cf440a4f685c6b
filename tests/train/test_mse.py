"""Networks without classes: the loss mse, whose target is the input, from the kernel to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.cli import octosim as command

import octosim
from octosim import core, engine, graph, methods, report, train
from octosim.bench import peers
from octosim.engine.graph import Graph
from octosim.engine.inputs import Input
from octosim.engine.nodes import Context
from octosim.errors import OctosimError

F = np.float32
MODEL = 'loss = "mse"\n[[layers]]\nname = "flat"\nkind = "flatten"\n' + "".join(
    f'[[layers]]\nname = "{name}"\nkind = "{kind}"\n'
    for name, kind in (("fc1", 'linear"\nunits = "8'), ("relu", "relu"), ("out", "linear"))
).replace('"8"', "8")


def vectors(count: int, size: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.tanh(rng.standard_normal((count, 3)) @ np.random.default_rng(9).standard_normal((3, size))).astype(F)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mse") / "net.toml"
    path.write_text(MODEL)
    np.savez(path.with_name("x.npz"), x_train=vectors(40), x_test=vectors(10, seed=1))
    return path


@pytest.fixture(scope="module")
def run(model: Path) -> Path:
    out = model.with_name("run")
    config = train.Config(model=str(model), data=str(model.with_name("x.npz")), batch_size=10, epochs=2, method="octo")
    assert train.train(train.create(config, out, "test"), out)
    return out


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 4, 5, 3), (7, 4097)])
def test_the_kernel_against_pytorch(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    y, target = (rng.standard_normal(shape).astype(F) for _ in range(2))
    given = torch.from_numpy(y).double().requires_grad_()
    wanted = torch.nn.functional.mse_loss(given, torch.from_numpy(target).double())
    wanted.backward()
    loss, dy = core.mean_squared_error(y, target)
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-6)
    np.testing.assert_allclose(dy, given.grad.numpy(), rtol=1e-6, atol=1e-9)
    alone, none = core.mean_squared_error(y, target, gradient=False)
    assert float(alone) == float(loss) and none is None
    y[...] = np.nan
    with pytest.raises(core.NotFiniteError):
        core.mean_squared_error(y, target)


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_pytorchs(shape: tuple[int, ...], accumulate: int, model: Path) -> None:
    torch = pytest.importorskip("torch")
    layers = graph.layers(str(model), 0, in_shape=shape)
    assert isinstance(layers, Graph) and layers.loss == "mse"
    network = engine.Network(layers, shape, methods.make("fp32", {}), 1, source=Input(True), accumulate=accumulate)
    x = vectors(6).reshape(6, *shape)
    loss, correct = network.gradients(x, np.zeros(6, np.int32), Context(True, 0, 1))
    assert correct is None and network.evaluate(x, np.zeros(6, np.int32))[1] is None
    values = peers.weights_to_torch(network)
    module = peers.to_torch(layers, shape)
    module.load_state_dict({key: torch.from_numpy(w) for key, w in values.items() if not key.startswith("grad.")})
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim == 4 else x))
    flat = torch.from_numpy(x.reshape(6, -1))  # octosim's order
    wanted = torch.nn.functional.mse_loss(module(given), flat)
    wanted.backward()
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-5)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(values[f"grad.{name}"], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_a_run_says_errors_and_no_accuracy(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert rows[-1]["test_loss"] > 0 and not any("test_accuracy" in row for row in rows)
    assert train.verify(run).equal
    opened = octosim.open(run)
    assert opened.evaluate() == {"loss": pytest.approx(rows[-1]["test_loss"])}
    assert opened.evaluate(vectors(10, seed=1)) == opened.evaluate()
    assert opened.logits(vectors(4)).shape == (4, 12)
    with pytest.raises(OctosimError, match="no classes"):
        opened.predict(vectors(4))
    assert "error" in opened._repr_html_() and "accuracy" not in opened._repr_html_()
    page = run.with_name("page.html")
    report.write_report([run], page, "test", profiles=[], step_of=train.step_of)
    text = page.read_text()
    assert "Mean squared test error of" in text and "above chance." not in text and "Test error" in text


def test_the_commands_say_errors(model: Path, tmp_path: Path) -> None:
    data = str(model.with_name("x.npz"))
    options = ["--model", str(model), "--data", data, "--batch-size", "10", "--steps", "4", "--out", str(tmp_path / "r")]
    done = command("train", *options)
    assert done.returncode == 0 and "mean squared test error" in done.stdout and "accuracy" not in done.stdout + done.stderr
    assert "no labels" in done.stderr and "test error" in done.stderr
    checked = command("data", "check", data)
    assert checked.returncode == 0 and "Traceback" not in checked.stderr


def test_layers_are_kept_by_manifest_and_file(model: Path, run: Path) -> None:
    held = train.read_manifest(run)["decides"]["layers"]
    assert held["loss"] == "mse"
    layers = graph.layers(str(model), 0, in_shape=(12,))
    assert graph.parse_network("it:", graph.describe(layers)) == layers
    assert isinstance(layers, Graph) and 'loss = "mse"' in graph.to_toml(layers)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "niti"}, "method niti does not cover the loss mse"),
    "wage": ({"method": "wage"}, "method wage does not cover the loss mse"),
    "smoothing": ({"label_smoothing": 0.1}, "is for labels"),
    "no labels": ({"model": "mlp"}, "has no labels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, model: Path) -> None:
    change, words = REFUSED[name]
    config = {"model": str(model), "data": str(model.with_name("x.npz")), "batch_size": 10, "steps": 1, **change}
    with pytest.raises(OctosimError, match=words):
        train.Run(train.Config(**config))


def test_sizes_that_differ_and_unknown_losses(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.toml"
    path.write_text(MODEL.replace('name = "out"\nkind = "linear"', 'name = "out"\nkind = "linear"\nunits = 5'))
    with pytest.raises(OctosimError, match=r"layer out: the output \(5,\) has another size than the input \(12,\)"):
        train.Run(train.Config(model=str(path), data=str(model.with_name("x.npz")), batch_size=10, steps=1))
    path.write_text(MODEL.replace('"mse"', '"l1"'))
    with pytest.raises(OctosimError, match="field 'loss' must be one of cross-entropy, mse, not 'l1'"):
        graph.find(str(path))


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
def test_an_imported_autoencoder(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The output's features stand in the input's order, whatever the file's order is."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from kit.onnx_nets import Builder

    b = Builder(17)
    x = b.add("Flatten", "x") if len(shape) == 3 else "x"
    y = b.gemm(b.add("Relu", b.gemm(x, 12, 6)), 6, 12)
    onnx.save(b.model(y, ("N", *shape)), tmp_path / "a.onnx")
    imported = graph.onnx.read(tmp_path / "a.onnx", loss="mse")
    assert imported.graph.loss == "mse"
    network = engine.Network(
        imported.graph, imported.graph.input.shape, methods.make("fp32", {}), 0, source=Input(True), initial=imported.weights
    )
    planar = vectors(5).reshape(5, *shape)
    wanted = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).run(None, {"x": planar})[0]
    here = np.ascontiguousarray(np.moveaxis(planar, 1, -1) if len(shape) == 3 else planar)
    loss, _ = network.evaluate(here, np.zeros(5, np.int32))
    assert loss == pytest.approx(float(((wanted - planar.reshape(5, -1)) ** 2).mean()), rel=1e-5)
