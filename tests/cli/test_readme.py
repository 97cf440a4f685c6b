"""What the README shows is what the program takes: its commands are run, with small settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit import own_data, reader
from kit.cli import octosim

PYTHON = [block.text for block in reader.blocks(reader.ROOT / "README.md") if block.language == "python"]
COMMANDS = reader.commands(reader.ROOT / "README.md")
ELSEWHERE = {
    "--cluster": "tests/study/test_cluster.py",
    "study isa-divergence": "tests/study/test_study.py",
    "study docs/report.toml": "tests/study/test_study.py",
    "report studies/report ": "tests/report/test_report_overview.py",
    "calibrate": "tests/hardware/test_calibrate.py",
    ".onnx": "tests/graph/test_onnx_trace.py",
    "watch": "tests/watch/test_watch.py",
}
"""Commands of whose kind another test file runs some: of these the options are looked up."""
SLOW = ("bench", "audit")
MODEL = '[[layers]]\nkind = "conv"\nfilters = 4\nkernel = 3\n[[layers]]\nkind = "relu"\n' \
    '[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "linear"\n'  # fmt: skip


def elsewhere(command: str) -> bool:
    return any(part in command for part in ELSEWHERE) or command in ("octosim verify",)


def cases(wanted: bool) -> list:
    slow = {command: [pytest.mark.slow] if command.split()[1] in SLOW else [] for command in COMMANDS}
    return [pytest.param(command, marks=slow[command]) for command in COMMANDS if elsewhere(command) == wanted]


@pytest.fixture(scope="session")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader who followed the README is: runs/a and runs/b, a model file."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my.toml").write_text(MODEL)
    own_data.photos(folder / "photos")
    own_data.npz(folder / "mine.npz", own_data.parts(40))
    own_data.csv_folder(folder / "tables", own_data.parts(40, shape=(4,))).joinpath("train.csv").rename(folder / "table.csv")
    for name, more in (("a", []), ("b", ["--seed", "1"]), ("photos", ["--data", "photos", "--image", "32x32x3"])):
        done = octosim(
            "train", "--model", "lenet5", "--batch-size", "20", "--steps", "6", "--out", f"runs/{name}", *more, folder=folder
        )
        assert done.returncode == 0, done.stderr
    done = octosim(
        "bench", "--profile", "pi4", "--model", "mlp", "--seconds", "0.1", "--json", folder=folder
    )
    assert done.returncode == 0, done.stderr
    (folder / "bench.json").write_text(done.stdout)
    return folder


def test_there_is_something_to_test() -> None:
    assert PYTHON and len(COMMANDS) >= 20
    assert all((reader.ROOT / path).exists() for path in ELSEWHERE.values())


@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("command", cases(False))
def test_commands_run(command: str, there: Path, tmp_path: Path) -> None:
    if "torch" in command:
        pytest.importorskip("torch")
    shutil.copytree(there, tmp_path / "here")
    words = reader.small(command).split()[1:]
    if words[0] == "train" and "--resume" not in words and "--out" in words:
        shutil.rmtree(tmp_path / "here" / words[words.index("--out") + 1], ignore_errors=True)
    done = octosim(*words, folder=tmp_path / "here")
    assert done.returncode in ((0, 1) if words[0] == "diff" else (0,)), done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", cases(True))
def test_options_exist(command: str) -> None:
    words = command.split()[1:]
    names = words[:2] if words[0] in ("profiles", "data") else words[:1]
    done = octosim(*names, "--help", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for option in re.findall(r"(?<= )--?[a-z][a-z-]*", " ".join(words[len(names) :])):
        assert re.search(rf"{option}\b", done.stdout), f"{option} is no option of octosim {' '.join(names)}"
