"""No kernel that a step calls is scalar: tools/vector_report.py on the built core and, slow, on Arm's kernels."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vector_report", ROOT / "tools" / "vector_report.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["vector_report"] = module
    spec.loader.exec_module(module)
    return module


def scalar(found: dict[str, dict[str, str]]) -> list[str]:
    return [f"{kernel} {isa}" for kernel, row in found.items() for isa, word in row.items() if word == "scalar"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the built core is read with its registers' names on x86-64")
def test_the_built_core(tool: ModuleType) -> None:
    if not shutil.which("objdump"):
        pytest.skip("objdump is not installed")
    found = tool.report([tool.built()])
    assert len(found) > 60  # most kernels are found by their symbols
    assert scalar(found) == []


def test_a_scalar_kernel_is_found(tool: ModuleType, tmp_path: Path) -> None:
    """A loop that must not be vectorized, and one that is, by the same name in two files."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if platform.machine() != "x86_64" or not compiler or not shutil.which("objdump"):
        pytest.skip("needs x86-64, a compiler and objdump")
    loop = "for (long i = 0; i < n; i++) y[i] = a[i] + b[i];"
    loop = f"void add_f32_avx2(long n, const float *a, const float *b, float *y) {{ {loop} }}"
    words = []
    for flags in (["-O3", "-mavx2"], ["-O1"]):
        source = tmp_path / "one.c"
        source.write_text(loop)
        subprocess.run([compiler, *flags, "-c", str(source), "-o", str(tmp_path / "one.o")], check=True)
        words.append(tool.report([tmp_path / "one.o"])["add_f32"]["avx2"])
    assert words == ["vector", "scalar"]


def test_what_a_call_calls_counts(tool: ModuleType) -> None:
    code = {
        "add_f32_avx2": [(0, "call", "10 <lines_avx2>")],
        "lines_avx2": [(16, "jmp", "20 <row_avx2.part.0>"), (17, "call", "<free>")],
        "row_avx2": [(32, "call", "10 <lines_avx2>")],
    }
    assert tool.reached(code, "add_f32_avx2", "avx2") == {"add_f32_avx2", "lines_avx2", "row_avx2"}


@pytest.mark.slow
def test_arm(tool: ModuleType, tmp_path: Path) -> None:
    compiler, objdump = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    objects = []
    for name in ("ref", "arm_neon", "arm_dotprod", "arm_i8mm"):
        objects.append(tmp_path / f"{name}.o")
        subprocess.run([compiler, *FLAGS, "-c", str(ROOT / "cext" / f"{name}.c"), "-o", str(objects[-1])], check=True)
    found = tool.report(objects, objdump)
    assert len(found) > 60
    assert scalar(found) == []
