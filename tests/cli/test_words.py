"""What shells complete, and names in any case: every option that takes known words, runs or studies."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
from kit.pages import make_run, records
from typer.testing import CliRunner

from octosim.cli import words
from octosim.cli.app import app

FREE = {  # numbers, sizes, files, patterns and texts, which nothing knows beforehand
    "--against", "--batch-size", "--channels", "--cluster", "--device", "--freeze", "--image", "--layer", "--milestones",
    "--rate", "--shape", "--train", "--sweep", "--plugin", "name",
}


def options() -> Iterator[tuple[str, Any]]:
    """(command, parameter) of all commands."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        for parameter in command.params:
            yield path, parameter
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{path} {name}")

    yield from walk(typer.main.get_command(app), "octosim")


def test_every_option_completes_what_is_known() -> None:
    """An option of text, or an argument, has words, or its text is free."""
    bare = set()
    for path, parameter in options():
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
        if parameter.type_descriptor.annotation not in (str, list[str], list[str] | None):
            continue
        if parameter._custom_shell_complete is None and name not in FREE:
            bare.add(f"{path} {name}")
    assert not bare


def completed(shell: str, line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a shell offers, as typer's scripts for it ask octosim."""
    monkeypatch.setenv("_OCTOSIM_COMPLETE", f"complete_{shell}")
    if shell == "bash":
        parts = [part for word in line.split(" ") for part in re.split(r"([=:]+)", word) if part or not word]
        monkeypatch.setenv("COMP_WORDS", "\n".join(parts))
        monkeypatch.setenv("COMP_CWORD", str(len(parts) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    if shell == "bash":
        with redirect_stdout(io.StringIO()) as out:
            words.complete_in_bash(app)
        return out.getvalue().split()
    said = CliRunner().invoke(app, prog_name="octosim").output
    if shell == "zsh":
        return re.findall(r'"([^"]+)"', said)
    return said.split()


LINES = [
    ("octosim train --model le", ["lenet5", "lenet5-wide"]),
    ("octosim train --model LE", ["LEnet5", "LEnet5-wide"]),
    ("octosim train --data fashion-mnist-", ["fashion-mnist-5k"]),
    ("octosim train --method hind", ["hindsight"]),
    ("octosim train --accumulator acc24", ["acc24", "acc24-wrap"]),
    ("octosim train --set rounding=half-", ["rounding=half-away", "rounding=half-even", "rounding=half-up"]),
    ("octosim train --method laq --set t", ["ternary="]),
    ("octosim train --lac f", ["feature"]),
    ("octosim train --optimizer a", ["adam"]),
    ("octosim train --update h", ["head"]),
    ("octosim train --init runs/", ["runs/a"]),
    ("octosim cost --compare pi5,jetson-na", ["pi5,jetson-nano"]),
    ("octosim cost --runtime tfl", ["tflite"]),
    ("octosim cost --mode MODE_20W_2", ["MODE_20W_2CORE"]),
    ("octosim cost --cluster a5", ["a53", "a55"]),
    ("octosim bench --kernels --against torch,onn", ["torch,onnxruntime"]),
    ("octosim export runs/a --to on", ["onnx"]),
    ("octosim golden --requantize g", ["gemmlowp"]),
    ("octosim check x.npz --against y.npy --tensor dw_", ["dw_codes"]),
    ("octosim verify ", ["runs/a", "st/method=octo,seed=0"]),
    ("octosim verify st/method=oc", ["st/method=octo,seed=0"]),
    ("octosim watch st", ["st", "st/method=octo,seed=0"]),
    ("octosim study me", ["methods"]),
    ("octosim methods show wa", ["wage"]),
    ("octosim profiles show raspberry-pi-5", ["raspberry-pi-5"]),
    ("octosim data fetch mn", ["mnist"]),
    ("octosim verify nothing", []),
    ("octosim train --plot x", []),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("runs/a", "st/method=octo,seed=0"):
        make_run(tmp_path / name, records())
    (tmp_path / "st" / "study.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shell", ("bash", "zsh", "fish"))
def test_completion(shell: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line, expected in LINES if shell == "bash" else LINES[:6]:
        found = completed(shell, line, monkeypatch)
        if shell == "bash":  # only what follows the last of the characters at which it parts words
            cut = max(line.rpartition(" ")[2].rfind(each) for each in words.BREAKS) + 1
            expected = [word[cut:] for word in expected]
        assert found == expected, line


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself(here: Path) -> None:
    """The script that octosim gives bash, and bash's own words."""
    script = 'eval "$(_OCTOSIM_COMPLETE=source_bash octosim)"; COMP_WORDS=(octosim verify st/method = oc); COMP_CWORD=4; ' \
        '_octosim_completion octosim; printf "%s\\n" "${COMPREPLY[@]}"'  # fmt: skip
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True,
                          env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})  # fmt: skip
    assert done.stdout == "octo,seed=0\n", done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_shells_file_that_cannot_be_written() -> None:
    line = f"{sys.executable} -m octosim --install-completion; echo $?"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ | {"HOME": "/dev/null"})
    assert done.stdout == "2\n" and done.stderr.startswith("octosim: the completion cannot be installed"), done.stderr
    assert "--show-completion" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind, typed, known", [
    ("models", "LeNet5", "lenet5"), ("models", "ResNet18", "resnet18"), ("models", "PreResNet20", "preresnet20"),
    ("data", "MNIST", "mnist"), ("methods", "FP32", "fp32"),
    ("accumulators", "ACC16-Wrap", "acc16-wrap"), ("accumulators", "ACC13", "acc13"), ("profiles", "PI4", "pi4"),
    ("accumulators", "Bits=14,Overflow=wrap", "bits=14,overflow=wrap"), ("runtimes", "TFLite", "tflite"),
    ("dtypes", "FP16", "fp16"), ("formats", "ONNX", "onnx"), ("optimizers", "Adam", "adam"), ("models", "Nothing", "Nothing"),
    ("studies", "Methods", "methods"), ("tensors", "DW", "dw"), ("layouts", "nhwc", "NHWC"),
])  # fmt: skip
def test_case_does_not_count(kind: str, typed: str, known: str) -> None:
    assert words.in_known_case(kind, typed) == known


def test_a_path_keeps_its_case(here: Path) -> None:
    (here / "MNIST").mkdir()
    assert words.in_known_case("data", "MNIST") == "MNIST"


@pytest.mark.parametrize("command", [
    "cost --profile PI4 --model LeNet5 --runtime TFLite --inference --dtype FP32 --compare Pi5,RK3588", "methods show OCTO",
    "profiles show Jetson", "data check Fashion-MNIST-5K", "study Rounding --dry-run",
])  # fmt: skip
def test_commands_take_any_case(command: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, done.exception


def test_unknown_words_get_a_suggestion() -> None:
    for command in ("train --model lenet6", "train --data mnits", "train --method otco", "train --accumulator acc1q",
                    "cost --profile pi44", "cost --runtime tflit", "export x --to onx", "cost --dtype int9",
                    "cost --profile jetson --mode 21W", "study method", "train --optimizer addam"):  # fmt: skip
        error = CliRunner().invoke(app, command.split()).exception
        assert re.search(r"did you mean '|known: |must be one of|exported to|no run directory|not a run", str(error)), command
