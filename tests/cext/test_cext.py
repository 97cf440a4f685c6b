"""The C core on its own: bare compilers, checkasm, sanitizers, valgrind, symbols."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kit.checkasm import CEXT, SOURCES, passed

from octosim import core

COMPILERS = list({os.path.realpath(shutil.which(name) or name): name for name in ("gcc", "cc", "clang")}.values())  # once each


def build(out: Path, compiler: str, *flags: str) -> Path:
    """checkasm, with the float32 tiles of a core that halves 512 bits for AVX-512 VNNI: those of the others are AVX-512BW's."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    done = subprocess.run([compiler, *flags, "-DOCTO_HALVES_512=1", *SOURCES, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    return out


def check(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    passed(done)
    return done.stdout


@pytest.mark.parametrize("compiler", COMPILERS)
def test_bare_compiler(compiler: str, tmp_path: Path) -> None:
    """cc -O2 cext/*.c: no other flag, no library, no warning; every kernel of every instruction set equals ref."""
    output = check(build(tmp_path / "checkasm", compiler, "-O2", "-Wall", "-Wextra"), "--rounds", "10", "--seed", "2")
    for name, supported in core.isas().items():
        assert (f"\n{name} " in output) == supported


@pytest.mark.slow  # the extension itself is built so
def test_with_threads_and_vectorizer(tmp_path: Path) -> None:
    """The flags that the extension is built with."""
    check(build(tmp_path / "checkasm", "cc", "-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno"), "--seed", "3")


def test_sanitizers(tmp_path: Path) -> None:
    program = build(tmp_path / "checkasm", "cc", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    check(program, "--rounds", "4", "--seed", "4")


@pytest.mark.slow
def test_valgrind(tmp_path: Path) -> None:
    """Uninitialized reads; valgrind has no AVX-512, so this covers ref and AVX2."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    program = build(tmp_path / "checkasm", "cc", "-O1", "-g")
    command = ["valgrind", "-q", "--error-exitcode=9", str(program), "--rounds", "4", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The core's objects without optimization, by the names of their sources."""
    folder = tmp_path_factory.mktemp("objects")
    subprocess.run(["cc", "-c", *SOURCES], check=True, cwd=folder)
    return {path.stem: path for path in folder.glob("*.o")}


def test_a_wrong_kernel_is_found(objects: dict[str, Path], tmp_path: Path) -> None:
    """The harness itself: with one constant of a variant changed, checkasm must fail and name kernel and element."""
    source = tmp_path / "x86_avx2.c"
    text = (CEXT / source.name).read_text()
    assert "_mm256_madd_epi16(x, b)" in text
    source.write_text(text.replace("_mm256_madd_epi16(x, b)", "_mm256_madd_epi16(b, b)"))
    if not core.isas().get("avx2"):
        pytest.skip("this CPU has no AVX2")
    program = tmp_path / "checkasm"
    others = [str(path) for name, path in objects.items() if name != source.stem]
    subprocess.run(["cc", f"-I{CEXT}", str(source), *others, "-o", str(program)], check=True)
    done = subprocess.run([str(program), "--isa", "avx2"], capture_output=True, text=True)
    assert done.returncode == 1 and "avx2 gemm_s8: element" in done.stderr


def test_every_symbol_is_ours(objects: dict[str, Path]) -> None:
    """A program that links the core must not meet a name like `threads` or `tile`."""
    command = ["nm", "-g", "--defined-only", *map(str, objects.values())]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[2] for line in listing.splitlines() if len(line.split()) == 3}
    assert len(names) > 50
    assert {name for name in names if not name.startswith("octo_")} == {"main"}
