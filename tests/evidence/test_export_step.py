"""octosim export --training: the C program of a training step takes octosim's own steps, to the bit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kit.cli import octosim as command

import octosim
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, Flatten, Linear, MaxPool, ReLU
from octosim.errors import OctosimError
from octosim.evidence import core_source, export, export_step
from octosim.methods import METHODS

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
ARM = pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")), reason="needs gcc and qemu for Arm"
)

PYTHON = {"fqat", "ui8"}
"""Methods whose step has parts in Python."""
TINY = dict(
    model=[Conv2d(4, 5, 3), BatchNorm(), ReLU(), MaxPool(2, 2), Flatten(), Linear(12), ReLU(), Linear(10)],
    batch_size=6, steps=3, limit=60,
)  # fmt: skip


def config(method: str, **change: Any) -> dict[str, Any]:
    plain = {"batchnorm": False} if not METHODS[method].batchnorm else {}
    settings = dict(TINY, method=method) | plain | change
    if plain and not isinstance(settings["model"], str):
        settings["model"] = [layer for layer in settings["model"] if not isinstance(layer, BatchNorm)]
    return settings


def exported(folder: Path, steps: int | None = None, **settings: Any) -> list[dict[str, Any]]:
    octosim.train(out=folder, **settings)
    rows = export_step.export(folder, folder / "c", steps)
    for row in rows:
        assert row["losses"] and row["digest"], row
        assert steps or row["sha256"] == octosim.open(folder).digest
        assert row["ram"] <= row["state"] + row["values"] + row["scratch"] + 16384 and row["values"] < row["planned"]
        assert row["flash"] >= row["initial"]
    return rows


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MACHINES", {"cc": export.MACHINES["cc"]})
    # the bits are the compiler's affair at every level; this one takes a quarter of the time
    monkeypatch.setattr(export_step, "FLAGS", tuple("-O0" if flag == "-O2" else flag for flag in export_step.FLAGS))
    monkeypatch.setattr(export_step, "OPTIMIZED", "-O0")


@pytest.mark.parametrize("method", ["octo"])
def test_the_program_takes_octosims_steps(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of the epoch is smaller; its steps are a function of their own."""
    alone(monkeypatch)
    rows = exported(tmp_path / "run", **config(method, limit=17, batch_size=6, steps=4))
    assert [row["runtime"] for row in rows] == ["cc"]
    text = (tmp_path / "run" / "c" / "training.c").read_text()
    assert "malloc" not in text and "#include <stdio.h>" not in text
    assert set(re.findall(r"#include [<\"](\S+)[>\"]", text)) <= {
        "training.h", "math.h", "stddef.h", "stdint.h", "string.h", "emmintrin.h", "arm_neon.h"
    }  # fmt: skip
    assert "octo_conv_forward_s8" in text and "octo_adam_f32" not in text and "octo_philox(" not in text  # only what is needed


@pytest.mark.parametrize("method", sorted(PYTHON))
def test_a_step_with_parts_in_python_is_refused(method: str, tmp_path: Path) -> None:
    octosim.train(out=tmp_path / "run", **config(method, steps=1))
    with pytest.raises(OctosimError, match=f"^method {method}: its training step cannot be exported to C") as caught:
        export_step.export(tmp_path / "run", tmp_path / "c")
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()


def test_a_wrong_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One initial weight is another: losses and digest differ."""
    alone(monkeypatch)
    octosim.train(out=tmp_path / "run", **config("fp32", steps=2))
    own = export_step.program

    def wrong(*arguments: Any) -> Any:
        made = own(*arguments)
        text = made.files["training.c"]
        at = text.index("first_conv1_w[] = {") + len("first_conv1_w[] = {\n    ")
        made.files["training.c"] = text[:at] + "0x1p-1f + " + text[at:]
        return made

    monkeypatch.setattr(export_step, "program", wrong)
    (row,) = export_step.export(tmp_path / "run", tmp_path / "c")
    assert not row["digest"] and not row["losses"]


def compile_alone(groups: dict[str, list[str]], folder: Path) -> None:
    for name, functions in groups.items():
        declared, defined = core_source.source([*functions, *core_source.RUNTIME])
        static = "".join(f"int call_{each}(void) {{ return {each} != NULL; }}\n" for each in functions if each[:7] == "octosim")
        (folder / f"{name}.c").write_text(declared + defined + static)
    line = ["cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-address", "-fsyntax-only"]
    done = subprocess.run([*line, *map(str, sorted(folder.glob("*.c")))], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[:2000]


def functions(file: str) -> list[str]:
    """Those of the core's interface that a file defines."""
    text = core_source.read(file)
    return [name for name in core_source.prototypes() if f"\nint {name}(" in text]


def test_each_file_of_the_core_compiles_alone(tmp_path: Path) -> None:
    """With what it needs and nothing else: an unused static function would be a warning."""
    registers = [name for name in core_source.prototypes() if name.startswith("octosim_")]
    assert len(registers) == 4
    files = {file.removesuffix(".c"): functions(file) for file in core_source.api_files()}
    compile_alone(files | {"register": registers}, tmp_path)


@pytest.mark.slow
def test_each_function_of_the_core_compiles_alone(tmp_path: Path) -> None:
    names = [name for file in core_source.api_files() for name in functions(file)]
    assert len(names) > 100
    compile_alone({name: [name] for name in names}, tmp_path)


def test_command(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    octosim.train(out=run, **config("fp32", steps=2))
    with pytest.raises(OctosimError, match=r"steps must be in 1 .. 2, the run's steps, not 3"):
        export_step.export(Path(run), tmp_path, 3)
    done = command("export", run, "--to", "c", "--steps", "2")
    assert done.returncode == 2 and "--steps with --training" in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = command("export", run, "--to", "c", "--training", "--no-compare", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)[0]["values"] > 0, done.stderr
    assert sorted(path.name for path in Path(run, "export").iterdir()) == ["main.c", "training.c", "training.h"]


GROUPED = [
    Conv2d(6, 3, 2, 1), ReLU(), DepthwiseConv2d(3, 2, 1), ReLU(),
    Conv2d(8, 3, (2, 1), (0, 1, 2, 1), groups=2, dilation=2), ReLU(), Flatten(), Linear(10),
]  # fmt: skip


def test_narrow_accumulators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saturating pairs of uint8 and int8: order, zero points and padding are those of the register's definition."""
    alone(monkeypatch)
    exported(tmp_path / "run", **config("octo", model=GROUPED, batch_size=3, accumulator="maddubs"))
    assert "octo_gemm_s8(" not in (tmp_path / "run" / "c" / "training.c").read_text()


# ---- evidence: every method and setting, Arm, larger networks --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(METHODS) - PYTHON))
def test_every_method_on_lenet5(method: str, tmp_path: Path) -> None:
    """Ten steps, the reference kernels' bits at the usual optimization, on Arm where it is there."""
    exported(tmp_path / "run", **config(method, model="lenet5", batch_size=8, steps=10, limit=None))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [dict(optimizer="adam"), dict(schedule="cosine"), dict(label_smoothing=0.1, weight_decay=1e-3), dict(accumulate=3),
     dict(augment="crop-flip"), dict(train_last=2), dict(parameters={"lac": "feature"}), dict(seed=2**63 + 5),
     *(dict(accumulator=name) for name in ("acc16", "acc20-wrap", "maddubs", "smlal"))],
    ids=lambda change: "-".join(map(str, change.values() if "accumulator" in change else change)),
)  # fmt: skip
def test_settings(change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    exported(tmp_path / "run", **config("octo", **{"model": "lenet5", "limit": 20} | change))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["octo", "niti", "fp32"])
@pytest.mark.parametrize("model", ["resnet20", "mobilenet"])
def test_larger_networks(model: str, method: str, tmp_path: Path) -> None:
    exported(tmp_path / "run", **config(method, model=model, batch_size=2, steps=2, limit=4))


@pytest.mark.slow
def test_fine_tuning(tmp_path: Path) -> None:
    """From given weights, in the last layers only: the frozen ones are constants."""
    octosim.train(out=tmp_path / "first", **config("octo", model="lenet5"))
    settings = config("octo", model="lenet5", init=str(tmp_path / "first"), train_last=1)
    exported(tmp_path / "run", **settings)
    text = (tmp_path / "run" / "c" / "training.c").read_text()
    assert "static const float conv1_w[" in text and "static float fc3_w[" in text
