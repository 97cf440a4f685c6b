"""What is shipped, and that it builds where the compiler has no OpenMP or is not there; tools/check_install.py goes further."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = (".ci/", ".github/", ".gitignore")
WRITTEN = ("PKG-INFO", "setup.cfg", "octosim.egg-info/")  # by setuptools


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)


def wheel(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    return run(*pip, "-w", folder, ".", **environment)


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A C compiler in a folder with a space, quick, without OpenMP: as clang where libomp is not installed."""
    path = tmp_path / "a folder" / "cc"
    path.parent.mkdir()
    path.write_text(
        '#!/bin/sh\nfor each; do [ "$each" != -fopenmp ] || { echo "unsupported option -fopenmp" >&2; exit 1; }; done\n'
        'exec cc "$@" -O0\n'
    )
    path.chmod(0o755)
    return path


def test_the_sdist_has_every_file_of_the_checkout(tmp_path: Path) -> None:
    listed = run("git", "ls-files", "-coz", "--exclude-standard") if (ROOT / ".git").exists() else None
    if listed is None or listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    done = run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in packed if not name.startswith(WRITTEN)} == {n for n in tracked if not n.startswith(NOT_SHIPPED)}


def sources() -> list[str]:
    """Files of the core that an exported training step takes its kernels from, and the module beside them."""
    names = [path.name for path in (ROOT / "cext").iterdir() if path.suffix in (".c", ".h", ".inc", ".py")]
    return [name for name in names if not re.match(r"(x86|arm|dispatch|peak|pool|checkasm).*\.c$", name)]


def test_a_compiler_without_openmp(compiler: Path, tmp_path: Path) -> None:
    """The wheel is made, for every Python from 3.11 on, and works with one thread."""
    done = wheel(tmp_path, CC=f"'{compiler}' -DSPARE")
    assert done.returncode == 0 and "has no OpenMP" in done.stdout + done.stderr, done.stdout + done.stderr[-3000:]
    made = next(tmp_path.glob("*.whl"))
    assert "-cp311-abi3-" in made.name
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path / "site")
        shipped = {name for name in archive.namelist() if name.startswith("octosim/") and not name.endswith((".so", ".pyc"))}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "octosim").rglob("*") if path.is_file()}
    package |= {f"octosim/{path.relative_to(ROOT)}" for path in (ROOT / "hwprofiles").rglob("*.toml")}
    package |= {f"octosim/cext/{name}" for name in sources()}
    assert shipped == {name for name in package if not name.endswith((".so", ".pyc", "_core.c"))}
    program = "from octosim import core; core.set_threads(2); print(core.threads(), core.__file__)"
    used = run(sys.executable, "-c", program, PYTHONPATH=str(tmp_path / "site"), PYTHONSAFEPATH="1")
    assert used.stdout.startswith("1 ") and str(tmp_path) in used.stdout, used.stderr


@pytest.mark.parametrize("name", ["no-such-compiler", "/dev/null", "false"])
def test_no_compiler(name: str, tmp_path: Path) -> None:
    done = wheel(tmp_path, CC=name)
    said = done.stdout + done.stderr
    assert done.returncode and f"octosim needs a C compiler, gcc or clang: '{name}'" in said and "Traceback" not in said, said


def test_python_without_headers(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "Python.h").write_text("#error no headers\n")
    done = wheel(tmp_path, CC=f"'{compiler}' -I{tmp_path}")
    said = done.stdout + done.stderr
    assert done.returncode and "octosim needs the headers of Python" in said and "Traceback" not in said, said


def test_python_m_octosim() -> None:
    plain, module = run(sys.executable, "-m", "octosim.cli", "--version"), run(sys.executable, "-m", "octosim", "--version")
    assert plain.stdout == module.stdout == f"octosim {__import__('octosim').__version__}\n"
