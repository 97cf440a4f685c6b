"""The command line as a user has it: every command, its help, its JSON, and one sentence with exit code 2 on bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.cli import octosim
from kit.thin import diagonal

from octosim import graph, hardware, methods
from octosim.engine.nodes import ROLES

COMMANDS = [
    ("train",), ("verify",), ("diff",), ("golden",), ("audit",), ("study",), ("cost",), ("bench",), ("report",), ("profiles",),
    ("profiles", "list"), ("profiles", "show"), ("profiles", "check"), ("profiles", "schema"), ("profiles", "calibrate"),
    ("data",), ("data", "list"), ("data", "fetch"), ("methods",), ("methods", "show"), ("models", "list"), ("runs", "list"),
]  # fmt: skip
LENET = ("--model", "lenet5", "--batch-size", "50")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = octosim("train", *LENET, "--steps", "12", "--out", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["step"] == 12 and 0 < result["test_accuracy"] < 1 and len(result["digest"]) == 64
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    done = octosim(*command, "--help", COLUMNS="160")
    assert done.returncode == 0 and "Usage" in done.stdout
    assert "Example: octosim" in done.stdout or command in (("profiles",), ("data",))


def test_version() -> None:
    assert octosim("--version").stdout.startswith("octosim 0.")


def test_default_folder_and_text_output(tmp_path: Path) -> None:
    done = octosim("train", "--steps", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/simplecnn-fashion-mnist-5k-octo-seed0/digest.txt").exists()
    assert "test accuracy" in done.stdout and "sha256:" in done.stdout and "memory of a step, MiB" in done.stdout
    again = octosim("train", "--steps", "2", folder=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr
    left = [tmp_path / "runs/simplecnn-fashion-mnist-5k-octo-seed0" / name for name in (".lock", ".digest.txt.0.octosim.tmp")]
    for path in left:  # of a kill after the last write
        path.touch()
    resumed = octosim("train", "--resume", folder=tmp_path)
    assert resumed.returncode == 0 and "finished already" in resumed.stderr and not any(path.exists() for path in left)


def test_verify(run: Path) -> None:
    done = octosim("verify", str(run), OCTOSIM_ISA="ref")
    assert done.returncode == 0 and done.stdout.startswith("equal: sha256:"), done.stderr
    assert json.loads(octosim("verify", str(run), "--json", "--threads", "1").stdout)["equal"] is True


def test_verify_finds_another_digest(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("manifest.json", "records.jsonl", "checkpoint.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / "digest.txt").write_text("sha256:" + "1" * 64 + "  step 12\n")
    done = octosim("verify", str(copy))
    assert done.returncode == 1 and done.stdout.startswith("different")


TRAINERS = [name for name in hardware.names() if hardware.load(name).training.status != "forward-only"]


@pytest.mark.parametrize(("name", "method"), diagonal(TRAINERS, ["octo", "fp32"]))
def test_cost(name: str, method: str) -> None:
    done = octosim("cost", "--profile", name, *LENET, "--method", method, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert set(record["total"]) >= {"time_s", "energy_j", "peak_bytes"}
    assert record["total"]["time_s"] == pytest.approx(sum(row["time_s"] for row in record["layers"]))
    forward = json.loads(octosim("cost", "--profile", name, *LENET, "--method", method, "--inference", "--json").stdout)
    assert 0 < forward["total"]["time_s"] < record["total"]["time_s"]
    assert {row["pass"] for row in forward["layers"]} == {"forward"}


def test_cost_takes_parameters_of_the_method() -> None:
    kept = []
    for value in ("int8", "float32"):
        done = octosim("cost", "--profile", "pi4", *LENET, "--set", f"keep={value}", "--json")
        record = json.loads(done.stdout)
        assert record["parameters"] == {"keep": value}
        kept.append(record["memory"]["activations"])
    assert kept[1] > 1.5 * kept[0]


@pytest.mark.parametrize("name", [n for n in hardware.names() if hardware.load(n).training.status == "forward-only"])
def test_cost_of_a_device_that_cannot_train(name: str) -> None:
    done = octosim("cost", "--profile", name, *LENET)
    assert done.returncode == 2 and "no engine has trains = true" in done.stderr
    done = octosim("cost", "--profile", name, *LENET, "--inference", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["total"]["time_s"] > 0, done.stderr


def test_methods() -> None:
    rows = json.loads(octosim("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(methods.METHODS)
    assert all(set(row) == {"name", "summary", "paper", "bits"} and list(row["bits"]) == list(ROLES) for row in rows)
    shown = octosim("methods").stdout
    assert all(word in shown for word in ("octo", "fp32", "accumulator", "int8"))


@pytest.mark.parametrize("name", methods.METHODS)
def test_methods_show(name: str) -> None:
    record = json.loads(octosim("methods", "show", name, "--json").stdout)
    assert {k: p["default"] for k, p in record["parameters"].items()} == methods.parameters(methods.make(name, {}))
    assert all(p["doc"] and p["values"] for p in record["parameters"].values()), "every parameter has its words"
    assert name == "fp32" or "Differs from the" in record["doc"]
    shown = octosim("methods", "show", name)
    assert shown.returncode == 0 and all(key in shown.stdout for key in record["parameters"]), shown.stderr


def test_methods_show_of_none() -> None:
    done = octosim("methods", "show", "octa")
    assert done.returncode == 2 and "unknown method 'octa'; did you mean 'octo'?" in done.stderr


@pytest.mark.parametrize("model", graph.MODELS)
def test_cost_of_every_model(model: str) -> None:
    """The name is in the help too."""
    done = octosim("cost", "--model", model, "--image", "32x32x3", "--batch-size", "8", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["macs"] > 0
    assert model in octosim("train", "--help", COLUMNS="400").stdout


def test_a_model_file(tmp_path: Path) -> None:
    """Wherever a model's name is taken; a run goes on and is verified without it."""
    file = tmp_path / "my net.toml"
    file.write_text("[[layers]]\nkind = 'flatten'\n[[layers]]\nkind = 'linear'\n")
    done = octosim("train", "--model", "my net.toml", "--steps", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert octosim("cost", "--model", str(file)).returncode == 0
    assert octosim("bench", "--model", str(file), "--seconds", "0.1", "--batch-size", "20").returncode == 0
    file.unlink()
    folder = tmp_path / "runs/my net-fashion-mnist-5k-octo-seed0"
    assert octosim("verify", str(folder)).returncode == 0
    assert "finished already" in octosim("train", "--resume", "--out", str(folder)).stderr
    done = octosim("cost", "--model", str(file))
    assert done.returncode == 2 and done.stderr.count("\n") <= 2 and "no such model file" in done.stderr


def test_training_in_the_arithmetic_of_a_profile(tmp_path: Path) -> None:
    """--profile stands for the accumulator that the profile states, here and beside --resume."""
    asked = ("--model", "lenet5", "--steps", "1", "--batch-size", "8")
    for more, folder in (("--profile", "pi4"), "profile"), (("--accumulator", "smlal"), "accumulator"):
        done = octosim("train", *asked, *more, "--out", folder, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f / "manifest.json").read_text())["decides"] for f in ("profile", "accumulator"))
    assert first == second and first["numerics"]["accumulator"] == "smlal"
    again = octosim("train", "--resume", "--profile", "pi5", "--out", "profile", folder=tmp_path)
    assert again.returncode == 2 and "started with accumulator = smlal, not sdot" in again.stderr


def test_the_error_where_the_machine_is_the_profile() -> None:
    """The profile "host" is this machine, "jetson" is not."""
    asked = ("bench", "--model", "mlp", "--batch-size", "8", "--seconds", "0.05")
    here = octosim(*asked, "--profile", "host")
    assert "this machine is host: the prediction is off by " in here.stdout and "octosim profiles calibrate" in here.stdout
    record = json.loads(octosim(*asked, "--profile", "host", "--json").stdout)
    for total in (record["total"], record["fp32"]["total"]):
        assert total["error"] == pytest.approx(total["predicted_time_s"] / total["time_s"] - 1)
    away = json.loads(octosim(*asked, "--profile", "jetson", "--json").stdout)
    assert away["total"]["error"] is None and not away["device"]["here"]


def test_bench_of_a_method_with_products_of_its_own() -> None:
    """jetfire's are in blocks: the recorded calls tell them apart as they do fp32's."""
    done = octosim("bench", "--model", "mlp", "--method", "jetfire", "--batch-size", "8", "--seconds", "0.05", "--json")
    record = json.loads(done.stdout)
    assert set(record["parts"]) == {"forward", "backward", "update", "batch", "products", "around_products", "python"}
    assert set(record["fp32"]["parts"]) == set(record["parts"]) and record["parts"]["products"] > 0


def test_cost_table() -> None:
    done = octosim("cost", "--profile", "pi4", *LENET)
    assert done.returncode == 0 and "conv2" in done.stdout and "bound by" in done.stdout and "Raspberry Pi 4" in done.stdout


def test_bench_and_report(run: Path, tmp_path: Path) -> None:
    record_file, raw = tmp_path / "bench.json", tmp_path / "raw.json"
    done = octosim(
        "bench", "--profile", "jetson", *LENET, "--seconds", "0.5", "--json", "--out", str(record_file), "--pyperf", str(raw)
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads(record_file.read_text())
    assert record["total"]["time_s"] > 0 and record["device"]["name"] == "jetson-xavier-nx"
    parts = {"octo": record, "fp32": record["fp32"]}
    for name, part in parts.items():
        rows = {(row["layer"], row["pass"]): row for row in part["layers"]}
        assert {("conv1", "forward"), ("conv1", "dW"), ("conv2", "dX"), ("bn1", "dX"), ("optimizer", "update")} <= set(rows)
        assert ("conv1", "dX") not in rows
        for row in rows.values():
            assert row["measured"]["n"] >= 20 and row["measured"]["median_s"] > 0, (name, row)
            assert row["predicted"]["time_s"] > 0 and row["predicted"]["bound"] in ("compute", "memory", "overhead")
    assert sum(r["macs"] for r in record["layers"]) == sum(r["macs"] for r in record["fp32"]["layers"])
    assert subprocess.run([sys.executable, "-m", "pyperf", "show", str(raw)], capture_output=True).returncode == 0

    page = tmp_path / "page.html"
    done = octosim("report", str(run), str(record_file), "-o", str(page))
    assert done.returncode == 0 and "1 run, 1 bench" in done.stdout, done.stderr
    assert "lenet5" in page.read_text()


def test_bench_table_and_peer() -> None:
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    eager = {"TORCHDYNAMO_DISABLE": "1"}  # to compile takes half a minute
    done = octosim("bench", *LENET, "--seconds", "0.3", "--against", "torch", **eager)
    assert done.returncode == 0, done.stderr
    assert "PyTorch FP32" in done.stdout and "predicted on NVIDIA Jetson Xavier NX" in done.stdout
    assert "left out: PyTorch FP32: torch.compile: switched off" in done.stdout
    record = json.loads(octosim("bench", *LENET, "--seconds", "0.3", "--against", "torch", "--json", **eager).stdout)
    against = record["against"]["torch"]
    assert against["ratio"] == pytest.approx(against["time_s"] / record["total"]["time_s"])


def test_profiles() -> None:
    rows = json.loads(octosim("profiles", "list", "--json").stdout)
    assert {row["name"] for row in rows} == set(hardware.names())
    assert json.loads(octosim("profiles", "show", "jetson").stdout)["name"] == "jetson-xavier-nx"
    assert octosim("profiles", "show", "jetson", "--toml").stdout == hardware.text_of("jetson")
    listed = octosim("profiles", "list").stdout
    assert "raspberry-pi-5" in listed and "xeon-gold-6455b" in listed and "acc32-wrap" in listed
    nano = next(row for row in rows if row["name"] == "jetson-nano")
    assert nano["engines"][0]["int8_gmac_s"] is None and nano["engines"][0]["float32_gmac_s"] == pytest.approx(118, rel=0.01)
    assert json.loads(octosim("profiles", "schema").stdout) == hardware.json_schema()


def test_data_list() -> None:
    rows = json.loads(octosim("data", "list", "--json").stdout)
    assert {"fashion-mnist-5k", "mnist", "fashion-mnist"} <= {row["name"] for row in rows}
    assert "MIT" in octosim("data", "list").stdout


BAD = [
    (("train", "--model", "lenet"), "unknown model 'lenet'; did you mean 'lenet5'?"),
    (("train", "--method", "niti8"), "unknown method 'niti8'"),
    (("train", "--lac", "chanel"), "lac must be one of off, channel, feature, sample, not 'chanel'"),
    (("train", "--method", "fp32", "--prc", "off"), "method fp32 has no parameter 'prc'"),
    (("train", "--set", "lac"), "--set takes KEY=VALUE, not 'lac'"),
    (("train", "--data", "imagenet"), "unknown data set 'imagenet'"),
    (("train", "--batch-size", "0"), "--batch-size must be at least 1"),
    (("train", "--batch-size", "6000"), "larger than the 5000 training images"),
    (("train", "--milestones", "0.5,x"), "--milestones takes numbers with commas between them, as in 0.5,0.75, not '0.5,x'"),
    (("train", "--schedule", "step"), "--schedule step and --milestones go together, as in --schedule step --milestones 0.5"),
    (("train", "--schedule", "step", "--milestones", "0.5,2"), "must be ascending shares of the run below 1, or"),
    (("train", "--schedule", "step", "--milestones", "1", "--gamma", "0"), "--gamma must be a positive number, not 0.0"),
    (("train", "--warmup", "500"), "--warmup must be less than the run's 150 steps, not 500"),
    (("train", "--warmup", "-1"), "--warmup must be at least 0, not -1"),
    (("train", "--augment", "flip"), "unknown augmentation 'flip'"),
    (("train", "--label-smoothing", "1"), "--label-smoothing must be in [0, 1), not 1.0"),
    (("train", "--weight-decay", "-1"), "--weight-decay must be at least 0, not -1.0"),
    (("train", "--eval-every", "0"), "--eval-every must be at least 1, not 0"),
    (("train", "--accumulator", "accu15"), "unknown accumulator 'accu15'"),
    (("train", "--accumulator", "sdot", "--method", "fp32"), "--accumulator sdot is for methods with int8 products"),
    (("train", "--profile", "atlas"), "profile atlas-200dk states no numerics.accumulator; choose one with --accumulator"),
    (("train", "--profile", "pi4", "--accumulator", "sdot"), "--accumulator sdot differs from smlal of --profile"),
    (("train", "--profile", "pi4", "--method", "fp32"), "--accumulator smlal is for methods with int8 products"),
    (("train", "--count-overflow", "0"), "--count-overflow must be at least 1, not 0"),
    (("train", "--measure", "0"), "--measure must be at least 1, not 0"),
    (("train", "--threads", "0"), "--threads must be in 1 .. 1024"),
    (("train", "--checkpoint-every", "0"), "--checkpoint-every must be at least 1"),
    (("train", "--resume", "--out", "nowhere"), "nowhere is not a run directory"),
    (("verify", "nowhere"), "nowhere is not a run directory"),
    (("diff", "nowhere", "nowhere"), "nowhere is not a run directory"),
    (("golden", "nowhere"), "nowhere is not a run directory"),
    (("audit", "nowhere"), "nowhere is not a run directory"),
    (("study", "roundings"), "'roundings' is neither a .toml file nor a study of the package; did you mean 'rounding'?"),
    (("study", "nowhere.toml"), "nowhere.toml: no such study"),
    (("study", "rounding", "--jobs", "0"), "--jobs must be at least 1, not 0"),
    (("diff", "a", "b", "--steps", "0"), "--steps must be at least 1, not 0"),
    (("cost", "--profile", "jetsn"), "unknown profile 'jetsn', and no path of a .toml file; did you mean 'jetson'?"),
    (("cost", "--profile", "missing.toml"), "missing.toml"),
    (("cost", "--batch-size", "-1"), "--batch-size must be at least 1"),
    (("cost", "--image", "28"), "--image takes HEIGHTxWIDTHxCHANNELS"),
    (("cost", "--dtype", "int4"), "--dtype must be one of int8, float16, float32, fp16, fp32, not 'int4'"),
    (("cost", "--lenient"), "--lenient is for ONNX files"),
    (("cost", "--set", "keep"), "--set takes KEY=VALUE, not 'keep'"),
    (("cost", "--set", "keep=int7"), "octo: keep must be one of int8, float32, not 'int7'"),
    (("cost", "--model", "x.onnx", "--set", "keep=int8"), "--set is for the methods of octosim's own networks"),
    (("cost", "--profile", "coral"), "only its inference can be priced (--inference)"),
    (("bench", "--against", "tensorflow"), "unknown peer 'tensorflow' (known: torch, jax, qwix)"),
    (("bench", "--seconds", "0"), "--seconds must be in"),
    (("bench", "--plot", "x.png"), "--plot goes with --kernels"),
    (("bench", "--kernels", "--memory"), "--memory is for training steps, not for --kernels"),
    (("bench", "--kernels", "--model", "vgg11"), "--model is for training steps, not for --kernels"),
    (("bench", "--kernels", "--set", "lac=off"), "--set is for training steps, not for --kernels"),
    (("bench", "--kernels", "--against", "mkl"), "unknown peer 'mkl' for kernels (known: torch, onnxruntime, apytypes)"),
    (("report", "nowhere"), "nowhere"),
    (("profiles", "show", "pi7"), "unknown profile 'pi7'"),
    (("profiles", "show", "tflite"), "'tflite' is a runtime (--runtime; octosim profiles runtimes), not a device's profile"),
    (("profiles", "check", "nowhere.toml"), "nowhere.toml"),
    (("data", "fetch", "fashion-mnist-5k"), "is in the package"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_bad_input(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = octosim(*arguments, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("octosim: ") and done.stderr.count("\n") == 1 and words in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_unknown_instruction_set(tmp_path: Path) -> None:
    done = octosim("train", folder=tmp_path, OCTOSIM_ISA="sse9")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr == "octosim: OCTOSIM_ISA: unknown instruction set 'sse9' (known here: " + done.stderr.split("here: ")[1]


def test_resume_refuses_other_options(run: Path) -> None:
    done = octosim("train", "--resume", "--out", str(run), "--seed", "5")
    assert done.returncode == 2 and "was started with seed = 0, not 5" in done.stderr
    done = octosim("train", "--resume", "--out", str(run), "--recipe", "dorefa")
    assert done.returncode == 2 and "was started with model = " in done.stderr, "what a recipe says is asked for as well"
    done = octosim("train", "--resume", "--out", str(run), "--lac", "feature")
    assert done.returncode == 2 and "was started with lac = channel, not feature" in done.stderr
    done = octosim("train", "--resume", "--out", str(run), "--lac", "channel", "--set", "prc_ratio=0.95")
    assert done.returncode == 0 and "finished already" in done.stderr, "the method's own values"


def test_divergence_is_one_sentence(tmp_path: Path) -> None:
    """Exit code 2, and the records stay."""
    line = ("train", "--model", "lenet5", "--batch-size", "50", "--lr", "1e25", "--out", "run")
    done = octosim(*line, "--checkpoint-every", "1", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    told, *caveats, error = done.stderr.splitlines(keepends=True)
    assert told.startswith("run: 300 steps") and all(line.startswith("caveat: ") for line in caveats)
    assert re.fullmatch(r"octosim: step \d+, layer \w+, .*: .*; a smaller learning rate may help\n", error)
    steps = len((tmp_path / "run/records.jsonl").read_text().splitlines())
    assert error.startswith(f"octosim: step {steps + 1}, ") and not (tmp_path / "run/digest.txt").exists()
    again = octosim("train", "--resume", "--out", "run", folder=tmp_path)
    assert again.returncode == 2 and again.stderr.endswith(error)


def test_missing_full_set_names_both_remedies(tmp_path: Path) -> None:
    done = octosim(
        "train", "--data", "mnist", folder=tmp_path, OCTOSIM_DATA=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    assert done.returncode == 2 and "octosim data fetch mnist" in done.stderr and "OCTOSIM_DATA" in done.stderr
