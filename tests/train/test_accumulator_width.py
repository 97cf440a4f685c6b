"""tools/accumulator_width.py: one command makes the folder; its prose says what the records say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/accumulator_width.py"
TINY = """
[base]
model = "mlp"
batch_size = 50
steps = 8
count_overflow = 4
[[grid]]
method = ["octo"]
accumulator = ["exact32", "acc32-wrap", "acc12"]
seed = [0, 1]
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accumulator_width", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(method: str = "octo", **accuracies: tuple[float, ...]) -> pd.DataFrame:
    """Records with an evaluation a run; equal accuracies are equal bits."""
    rows = [
        {
            "run": f"{method},{name},{seed}", "method": method, "model": "lenet5", "data": "mnist", "batch_size": 50,
            "step": 1200, "seed": seed, "accumulator": name.replace("_", "-"), "digest": f"{value}", "test_accuracy": value,
            "count_overflow": 100.0, "additions": 1000, "saturations": 10 * (name != "exact32"), "wraps": 0, "outputs": 100,
            "inexact": 1, "largest_bits": 19,
        }
        for name, values in accuracies.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


EXACT = (0.98, 0.981, 0.982)


@pytest.mark.parametrize(
    ("accuracies", "sentence"),
    [
        (
            {"acc32": EXACT, "acc20": EXACT, "acc16": (0.1,) * 3},
            "saturates trains as well as exact32 down to 20 bits; acc16 ends at 10.00 % (-88.10 points)",
        ),
        (
            {"acc24_wrap": EXACT, "acc20_wrap": (0.5,) * 3, "acc18_wrap": EXACT},
            "wraps trains as well as exact32 down to 24 bits; acc20-wrap ends at 50.00 %",
        ),
        ({"acc24_wrap": (0.1,) * 3}, "A register that wraps is worse at 24 bits already"),
        ({"acc24": EXACT, "acc12": (0.979, 0.982, 0.981)}, "Of the registers that saturate, every one down to 12 bits trains"),
        ({"acc24": (0.97, 0.971, 0.971)}, "A register that saturates is worse at 24 bits already"),  # the interval misses 0
        ({"acc24": EXACT, "maddubs": (0.1,) * 3}, "The same bits with every seed: acc24."),
    ],
)
def test_sentences(tool: ModuleType, accuracies: dict[str, tuple[float, ...]], sentence: str) -> None:
    text = tool.reading(table(exact32=EXACT, **accuracies), "made by this")
    assert sentence in text and "`made by this`" in text
    assert "exact32 ends at 98.10 % (98.00 to 98.20 over 3 seeds)" in text
    assert text.count("\n| ") == 2 + len(accuracies)


def test_several_methods_and_one_without_a_base(tool: ModuleType) -> None:
    text = tool.reading(pd.concat([table(exact32=EXACT), table("niti", acc24=EXACT)]), "c")
    assert "## octo\n" in text and "## niti\n\nNo finished run with exact32" in text


def test_one_command_makes_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    line = [sys.executable, str(TOOL), "--study", "tiny.toml", "--out", "reports/tiny", "--jobs", "2"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "reports/tiny"
    assert {path.name for path in folder.iterdir()} == {"README.md", "records.csv", "report.html"}
    assert (folder / "records.csv").read_bytes() == (tmp_path / "studies/tiny/records.csv").read_bytes()
    text = (folder / "README.md").read_text()
    assert "The same bits with every seed: acc32-wrap." in text and "| acc12 |" in text and "too few seeds" in text
