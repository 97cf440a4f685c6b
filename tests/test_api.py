"""The Python API: what it returns is what the command line makes, in a notebook, a thread and a spawned process too."""

from __future__ import annotations

import doctest
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from kit import onnx_nets
from kit.cli import octosim as command

import octosim
from octosim import api, graph, hardware
from octosim.engine.layers import BatchNorm, Conv2d, Flatten, Linear, ReLU, Residual, Sigmoid
from octosim.methods.octo import Octo
from octosim.numerics import ACCUMULATORS, EXACT32, Accumulator, find
from octosim.train import step_of, verify

SMALL = dict(model="lenet5", batch_size=20, steps=2)
XY = (np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 2) * 2


@dataclass(frozen=True)
class Mine(Octo):
    """A method of another module."""

    name: ClassVar[str] = "mine"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> octosim.Run:
    steps: list[int] = []
    made = octosim.train(
        **SMALL, method=Octo(lac="off"), accumulator=Accumulator("own", 14, "wrap", group=2), count_overflow=2, measure=2,
        out=tmp_path_factory.mktemp("api") / "run", on_step=lambda p: steps.append(p.step),
    )  # fmt: skip
    assert steps == [1, 2]
    return made


def test_import_is_light_and_lists_the_api() -> None:
    code = "import sys, octosim; print(sorted(dir(octosim))); octosim.train, octosim.Config; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, pandas = done.stdout.splitlines()
    assert {"Config", "Run", "cost", "open", "study", "train"} <= set(eval(listed)) and pandas == "False"


def test_what_the_documents_name_is_there_after_an_import() -> None:
    """`octosim.data.load` and its like need no import of their own, as the documents write them."""
    documents = [path.read_text() for path in sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))]
    named = {name for text in documents for name in re.findall(r"`(octosim\.[a-z]+\.\w+)(?=[(`])", text)}
    named = sorted(name for name in named if not name.startswith("octosim.torch."))  # PyTorch may be missing
    assert {"octosim.core.Tensor", "octosim.data.load", "octosim.graph.from_torch", "octosim.numerics.Format"} <= set(named)
    code = "import octosim\n" + "\n".join(named)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_docstrings() -> None:
    for module in (api, octosim):
        assert doctest.testmod(module).failed == 0
    for name in octosim.__all__:
        assert getattr(octosim, name).__doc__


def test_a_run_is_that_of_the_command_line(run: octosim.Run, tmp_path: Path) -> None:
    line = "train --model lenet5 --batch-size 20 --steps 2 --lac off --accumulator bits=14,overflow=wrap,group=2 --out"
    assert command(*line.split(), str(tmp_path / "cli"), "--count-overflow", "2", "--measure", "2").returncode == 0
    other = octosim.open(tmp_path / "cli")
    assert run.digest == other.digest and run.config == other.config
    for name in ("records", "overflow", "measures"):
        assert len(getattr(run, name)) and getattr(run, name).equals(getattr(other, name))
    assert run.verify().equal


def test_inference(run: octosim.Run) -> None:
    data = run.state.data
    x, y = data.test_images, data.test_labels
    assert run.evaluate() == run.evaluate(x, y)
    last = run.records.iloc[-1]
    assert run.evaluate() == {"loss": last["test_loss"], "accuracy": last["test_accuracy"]}
    assert np.mean(run.predict(x[..., 0]) == y) == pytest.approx(last["test_accuracy"])
    assert run.logits(x[:0]).shape == (0, 10) and run.network is run.state.network
    for bad in (x.astype(np.float32), x[0], x[:, :5]):
        with pytest.raises(octosim.OctosimError, match=r"x is .*expected images uint8 \(N, 28, 28, 1\)"):
            run.predict(bad)
    with pytest.raises(octosim.OctosimError, match="y is .*expected 3 whole numbers in 0 .. 9"):
        run.evaluate(x[:3], np.array([1, 2, 10]))


def test_layers_and_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8), rng.integers(0, 3, 40)
    layers = [Conv2d(4, 3, pad=1), BatchNorm(), Residual((Conv2d(4, 3, pad=1),)), ReLU(), Flatten(), Linear(3)]
    made = octosim.train(model=layers, data=(x, y, x, y), batch_size=20, steps=3, out=tmp_path / "run")
    again = octosim.open(tmp_path / "run")
    assert again.state.layers == tuple(layers) and again.digest == made.digest and again.verify().equal
    assert again.predict(x).max() < 3
    assert verify(tmp_path / "run").equal, "the command line finds them too"
    (tmp_path / "run" / "data.npz").write_bytes(b"no archive")
    with pytest.raises(octosim.OctosimError, match="data.npz cannot be read"):
        again.verify()


def test_vectors_and_floats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    x = rng.standard_normal((60, 5)) + 4 * y[:, None]
    made = octosim.train(model="mlp", data=(x, y, x[:20], y[:20]), batch_size=20, epochs=10, out=tmp_path / "run")
    assert made.verify().equal and np.mean(made.predict(x) == y) > 0.8
    assert made.manifest["data"]["image_shape"] == [5] and made.state.source.floats
    with pytest.raises(octosim.OctosimError, match=r"x is uint8 .*expected vectors float32 \(N, 5\)"):
        made.predict(x.astype(np.uint8))


def test_no_out_is_a_temporary_folder(tmp_path: Path) -> None:
    made = octosim.train(**SMALL)
    folder, kept = made.folder, made.save(tmp_path / "kept")
    assert folder.exists() and "octo: 2 of 2 steps" in repr(made) and "test accuracy" in made._repr_html_()
    del made
    assert not folder.exists() and kept.finished


def test_in_a_thread_and_a_spawned_process(run: octosim.Run) -> None:
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(octosim.train(**SMALL, threads=1).digest))
    thread.start()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.apply(_digest, (octosim.Config(**SMALL),))
        assert pool.apply(_digest_of, (run,)) == run.digest
    thread.join()
    assert found == [spawned] and pickle.loads(pickle.dumps(run)).digest == run.digest


def _digest(config: octosim.Config) -> str | None:
    return octosim.train(config).digest


def _digest_of(run: octosim.Run) -> str | None:
    return run.digest


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    import signal

    def stop(p) -> None:
        if p.step == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(octosim.Interrupted, match="after step 1") as caught:
        octosim.train(**SMALL, out=tmp_path / "run", on_step=stop)
    assert isinstance(caught.value, KeyboardInterrupt) and not caught.value.run.finished
    assert caught.value.run.resume().digest == octosim.train(**SMALL).digest


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(model="lenet6"), "lenet5"),
        (dict(batch_size=0), "^batch_size must be at least 1"),
        (dict(stepz=3), "no argument 'stepz'; did you mean 'steps'"),
        (dict(model=[Conv2d(4, 3), "relu"]), "model: layer 2 is relu"),
        (dict(model=[Conv2d(0, 3)]), "model: layer 1 .*'filters'"),
        (dict(data=(1, 2)), "four arrays"),
        (dict(data=(np.zeros((2, 3, 3)),) * 4), "y_train is float64"),
        (dict(accumulator=3), "accumulator is '3'"),
        (dict(method=Octo), "method is"),
        (dict(model=3), "model is int, expected a name or a list of layers"),
        (dict(config={"steps": 3}), "config is dict"),
        (dict(on_step=3), "on_step is 3"),
        (dict(out="a\0b"), "out is .* expected a path"),
        (dict(checkpoint_every=1.5), "checkpoint_every is 1.5"),
        (dict(threads="a"), "threads is 'a'"),
        (dict(data=(XY[0], XY[1], None, None)), "x_test is None"),
        (dict(data=(np.ma.masked_equal(XY[0], 3), *XY[1:])), "x_train has masked values"),
        (dict(data=XY, test_share=0.5), "test_share has no meaning for data that are arrays"),
        (dict(data=XY, image="4x4x1"), "image has no meaning for data that are arrays"),
        (dict(data=XY, limit=1), "limit must be at least 2"),
        (dict(method="nosuchmodule:Class"), "cannot be imported: ModuleNotFoundError"),
        (dict(method="json:JSONDecoder"), "expected a subclass of octosim.engine.nodes.Method"),
    ],
)
def test_errors_name_the_argument(arguments: dict, sentence: str) -> None:
    with pytest.raises(octosim.OctosimError, match=sentence) as caught:
        octosim.train(**(SMALL | arguments))
    assert "--" not in str(caught.value)


@pytest.mark.parametrize("method, profile", [("fp32", "jetson"), ("fp32", "pi4"), ("octo", "jetson")])
def test_cost_is_the_command_lines(method: str, profile: str) -> None:
    found = octosim.cost("lenet5", profile, batch_size=20, method=method)
    line = f"--model lenet5 --batch-size 20 --profile {profile} --method {method} --json"
    assert found.total == json.loads(command("cost", *line.split()).stdout)["total"]


@pytest.mark.parametrize("dtype, inference", [(None, False), ("int8", True), ("float32", True)])
def test_cost_of_an_onnx_file_is_the_command_lines(dtype: str | None, inference: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(onnx_nets.build(onnx_nets.residual, 13, (2, 3, 8, 8)), path)
    found = octosim.cost(str(path), "pi4", dtype=dtype, inference=inference)
    line = ["--model", str(path), "--profile", "pi4", "--json", *(["--dtype", dtype] if dtype else [])]
    printed = json.loads(command("cost", *line, *(["--inference"] if inference else [])).stdout)
    assert found.total == printed["total"] and found.results[0]["memory"] == printed["memory"]
    assert found.results[0]["notes"] == printed["notes"] and found.results[0]["layers"] == printed["layers"]
    with pytest.raises(octosim.OctosimError, match="^method is for octosim's own networks; an ONNX file takes dtype$"):
        octosim.cost(str(path), "pi4", method="octo")


@pytest.mark.parametrize("arguments, options", [
    ({"dtype": "fp32", "runtime": "pytorch", "threads": 2}, "--dtype fp32 --runtime pytorch --threads 2"),
    ({"profile": "xavier-nx", "mode": "10W", "inference": True}, "--profile xavier-nx --mode 10W --inference"),
    ({"profile": "rk3399", "cluster": "a53", "clock_ghz": 1.2}, "--profile rk3399 --cluster a53 --clock-ghz 1.2"),
    ({"train_last": 1, "accumulate": 2, "freeze": ["conv*"]}, "--train-last 1 --accumulate 2 --freeze conv*"),
    ({"runtime": "octosim", "threads": 99}, "--runtime octosim --threads 99"),
    ({"update": "biases", "channels": ["fc*=0.5"], "batchnorm_statistics": "frozen", "image": "32x32x3"},
     "--update biases --channels fc*=0.5 --batchnorm-statistics frozen --image 32x32x3"),
])  # fmt: skip
def test_options_of_cost_are_arguments(arguments: dict, options: str) -> None:
    given = {"profile": "pi4", "batch_size": 4} | arguments
    found = octosim.cost("lenet5", **given).results[0]
    line = ["--model", "lenet5", "--batch-size", "4", "--json", *options.split()]
    printed = json.loads(command("cost", *line, *([] if "--profile" in line else ["--profile", "pi4"])).stdout)
    notes = [note.replace("--", "") for note in printed["notes"]]
    assert {name: printed[name] for name in found} | {"notes": notes} == found


def test_an_onnx_file_with_open_sizes_and_int8_units_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(onnx_nets.build(onnx_nets.residual, 13, ("N", 3, "H", "W")), path)
    found = octosim.cost(path, "hailo-8", inference=True, shapes={"x": (2, 3, 8, 8)})
    line = ["--model", str(path), "--profile", "hailo-8", "--inference", "--shape", "x=2x3x8x8", "--json"]
    printed = json.loads(command("cost", *line).stdout)
    assert found.total == printed["total"] and found.results[0]["dtype"] == printed["dtype"] == "int8"


def test_layers_that_a_method_does_not_cover_are_asked_for(tmp_path: Path) -> None:
    """As in training; by `octosim cost` too."""
    layers, sentence = [Conv2d(4, 3), Sigmoid(), Flatten(), Linear(10)], r"kind 'sigmoid'; {} has them in float32"
    given = {"profile": "pi4", "method": "jetfire", "image": (8, 8, 3), "batch_size": 4}
    with pytest.raises(octosim.OctosimError, match=sentence.format("float_layers")):
        octosim.cost(layers, **given)
    kinds = ('kind = "conv"\nfilters = 4\nkernel = 3', 'kind = "sigmoid"', 'kind = "flatten"', 'kind = "linear"')
    (tmp_path / "net.toml").write_text("\n".join(f"[[layers]]\n{kind}" for kind in kinds))
    options = "--profile pi4 --method jetfire --image 8x8x3 --batch-size 4 --json"
    line = ["--model", str(tmp_path / "net.toml"), *options.split()]
    assert "; --float-layers has them in float32" in command("cost", *line).stderr
    printed = json.loads(command("cost", *line, "--float-layers").stdout)
    assert octosim.cost(layers, **given, float_layers=True).total == printed["total"]


def test_a_part_of_arrays_and_a_model_that_is_a_path(tmp_path: Path) -> None:
    made = octosim.train(model=Path("mlp"), data=XY, limit=20, batch_size=10, steps=2, out=tmp_path / "run")
    assert made.manifest["decides"]["data"]["train_images"] == 20
    assert made.verify().equal and octosim.open(made.folder).state.steps_per_epoch == 2


@pytest.mark.parametrize("size", [0, -5, "a", 1.5])
def test_batch_sizes_of_inference(run: octosim.Run, size: object) -> None:
    with pytest.raises(octosim.OctosimError, match="^batch_size"):
        run.logits(run.state.data.test_images[:3], size)


@pytest.mark.parametrize("arguments, sentence", [
    (dict(model=None), "model is NoneType"),
    (dict(profile=4), "profile is 4"),
    (dict(profile=[4]), "profile is 4"),
    (dict(batch_size=1.5), "batch_size is 1.5"),
    (dict(classes=0), "classes must be at least 1"),
    (dict(image="ax3"), "image takes HEIGHTxWIDTHxCHANNELS"),
    (dict(image=(0, 28, 1)), r"image is \(0, 28, 1\)"),
    (dict(shapes={"x": 3}), "shapes is 3, expected whole numbers"),
    (dict(runtime="tensorflow-lite2"), "unknown runtime"),
    (dict(runtime="tflite"), "runtime tflite does not train; inference prices"),
    (dict(runtime=3), "runtime is 3, expected a path"),
    (dict(mode="10W"), "profile raspberry-pi-4 has no power modes, so mode 10W says nothing"),
    (dict(mode=10), "mode is 10, expected a name"),
    (dict(cluster="a53"), "profile raspberry-pi-4 has no cluster 'a53'"),
    (dict(clock_ghz=True), "clock_ghz is True, expected a number"),
    (dict(clock_ghz=0), "clock_ghz must be above 0 and below 1000, not 0"),
    (dict(dtype="int7"), "dtype must be one of int8, float16, float32, fp16, fp32"),
    (dict(train_last=0), "train_last must be at least 1, not 0"),
    (dict(train_last="a"), "train_last is 'a', expected a whole number or None"),
    (dict(trainlast=1), "cost has no argument 'trainlast'; did you mean 'train_last'"),
    (dict(lenient=True), "lenient is for ONNX files"),
    (dict(image=(28, 28)), r"image is \(28, 28\)"),
    (dict(threads="a"), "threads is 'a'"),
    (dict(method=3), "method is 3"),
    (dict(method=Octo(), parameters={"lac": "off"}), "parameters: a method that is an object has its own"),
])  # fmt: skip
def test_arguments_of_cost(arguments: dict, sentence: str) -> None:
    with pytest.raises(octosim.OctosimError, match=sentence):
        octosim.cost(**({"model": "lenet5", "profile": "pi4"} | arguments))


@pytest.mark.parametrize("name, value", [
    ("batch_size", 5), ("method", "fp32"), ("image", (8, 8, 1)), ("batchnorm", False), ("train_last", 1),
])  # fmt: skip
def test_a_run_brings_its_own(run: octosim.Run, name: str, value: object) -> None:
    with pytest.raises(octosim.OctosimError, match=f"{name}: a run has its own"):
        octosim.cost(run, "pi4", **{name: value})


def test_paths_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(octosim.OctosimError, match=f"{tmp_path}/runs--old/a is not a run"):
        octosim.open(tmp_path / "runs--old/a")


def test_cost_of_a_run_that_trains_a_part() -> None:
    part = octosim.train(**(SMALL | {"train_last": 1, "accumulate": 2}))
    ops, parts = step_of(part.manifest)
    found = octosim.cost(part, "pi4")
    assert len(found.table) == len(ops) and found.results[0]["memory"] == parts


@pytest.mark.parametrize("profiles", [["pi4", "raspberry-pi-4"], ["pi4", "FILE"], ["raspberry-pi-4", "pi4", "pi4"]])
def test_cost_takes_a_device_once(profiles: list[str], tmp_path: Path) -> None:
    """As `octosim cost --compare` does."""
    file = tmp_path / "copy.toml"
    file.write_text(hardware.text_of("pi4"))
    given = [str(file) if name == "FILE" else name for name in (*profiles, "jetson")]
    assert octosim.cost("lenet5", given, batch_size=2).totals["device"].tolist() == ["raspberry-pi-4", "jetson-xavier-nx"]


def test_cost_and_its_pictures(run: octosim.Run, tmp_path: Path) -> None:
    result = octosim.cost("lenet5", ["pi4", "jetson"], batch_size=20, method=Octo(lac="off"))
    assert octosim.cost(run, "pi4").total == result.total
    assert result.table.groupby("device")["time_s"].sum().to_dict() == pytest.approx(
        result.totals.set_index("device")["time_s"].to_dict()
    )
    printed = json.loads(command("cost", *"--model lenet5 --batch-size 20 --profile pi4 --set lac=off --json".split()).stdout)
    assert printed["total"]["time_s"] == result.total["time_s"]
    for name, plot in (("cost.svg", result.plot), ("run.png", run.plot)):
        plot(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 2000
    assert "raspberry-pi-4" in result._repr_html_()
    with pytest.raises(octosim.OctosimError, match=r"cannot write .*x\.abc"):
        run.plot(tmp_path / "x.abc")


def test_study(tmp_path: Path) -> None:
    base = {"model": "lenet5", "batch_size": 20, "steps": 2}
    grid = {"base": base, "grid": [{"method": ["octo"], "parameters": {"lac": ["off", "channel"]}}]}
    made = octosim.study(grid, out=tmp_path / "a")
    assert made.states == {"lac=off": "finished", "lac=channel": "finished"} and len(made.records) == 2
    configs = [octosim.Config(**base, method=Octo(lac=lac)) for lac in ("off", "channel")]
    same = octosim.study(configs, out=tmp_path / "b", jobs=2)
    assert [r.digest for r in same.runs.values()] == [r.digest for r in made.runs.values()]
    assert made.report(tmp_path / "page.html").stat().st_size > 1000
    assert octosim.study(grid, out=tmp_path / "a").states == made.states  # the same again


@pytest.mark.parametrize("preset", ACCUMULATORS.values(), ids=lambda a: a.name)
def test_an_accumulators_text_is_itself(preset: Accumulator) -> None:
    assert find(preset.text) == preset
    named = Accumulator("own", preset.bits, preset.overflow, preset.group, preset.pair_bits, preset.unsigned)
    found = find(named.text)
    assert {**vars(found), "name": ""} == {**vars(named), "name": ""}
    assert found != EXACT32  # which refuses what would wrap
    assert Accumulator("own", 32, "wrap").text == "acc32-wrap"


@pytest.mark.parametrize(
    "text", ["acc13", "acc9-wrap", "bits=14", "bits=14,overflow=wrap,group=4", "bits=32,group=4,pair_bits=16,unsigned=true"]
)
def test_accumulators_without_a_preset(text: str) -> None:
    found = find(text)
    assert {**vars(find(found.text)), "name": ""} == {**vars(found), "name": ""}


@pytest.mark.parametrize("text", ["acc7", "acc33", "bits=14,foo=1", "group=2", "bits=x", "bits=14,overflow=trap", "16", ""])
def test_bad_accumulators(text: str) -> None:
    with pytest.raises(octosim.OctosimError, match="accumulator"):
        find(text)


def test_a_method_of_another_module(tmp_path: Path) -> None:
    run = octosim.train(**SMALL, method=Mine(prc="off"), out=tmp_path / "run")
    decided = run.manifest["decides"]["method"]
    assert decided["name"] == f"{__name__}:Mine" and decided["parameters"]["prc"] == "off" and decided["plugin"]["sha256"]
    assert run.verify().equal and run.digest == octosim.train(**SMALL, method=Octo(prc="off")).digest


def test_a_notebook(tmp_path: Path) -> None:
    """Cells as a user would write them: the tables are shown, a method of a cell trains, Ctrl-C leaves a run that resumes."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [
        "import octosim, signal\nfrom octosim.methods.octo import Octo",
        "run = octosim.train(model='lenet5', batch_size=20, steps=2)\nrun",
        "run.records",
        "octosim.cost(run, 'pi4')",
        "def stop(p):\n    if p.step == 1: signal.raise_signal(signal.SIGINT)\n"
        "try:\n    octosim.train(model='lenet5', batch_size=20, steps=2, on_step=stop)\n"
        "except KeyboardInterrupt as error:\n    print(error.run.resume().digest == run.digest)",
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Cell(Octo):\n    name = 'cell'\n"
        "octosim.train(model='lenet5', batch_size=20, steps=1, method=Cell()).verify().equal",
        "run.plot()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [[o.get("data", {}).get("text/html") or o.get("text") or str(o) for o in c.outputs] for c in notebook.cells]
    assert "test accuracy" in shown[1][-1] and "<table" in shown[2][0] and "raspberry-pi-4" in shown[3][0]
    assert shown[4][-1].strip() == "True" and "True" in shown[5][-1] and "image/png" in notebook.cells[6].outputs[0].data


def test_every_layer_kind_is_an_argument() -> None:
    for cls in graph.KINDS.values():
        assert api._checked_layers([cls.__new__(cls)])
