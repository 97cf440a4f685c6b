"""The Arm kernels, executed: checkasm and a training run on emulated processors of three generations."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octosim import core, train

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(str(path) for path in (ROOT / "cext").glob("*.c"))
CROSS = "aarch64-linux-gnu-gcc"
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
# The processor and the instruction set that dispatch must choose on it, from the features alone.
CPUS = {"cortex-a53": "neon", "cortex-a72": "neon", "cortex-a76": "dotprod", "max": "i8mm"}

if not QEMU or not shutil.which(CROSS):
    pytest.skip("needs qemu-aarch64 (Debian: qemu-user) and gcc-aarch64-linux-gnu", allow_module_level=True)


def cross_build(folder: Path, *flags: str) -> str:
    program = folder / "checkasm"
    done = subprocess.run([CROSS, "-Wall", "-Wextra", *flags, *SOURCES, "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    return str(program)


@pytest.fixture(scope="module")
def checkasm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cross_build(tmp_path_factory.mktemp("arm"), "-O2", "-static")


@pytest.mark.parametrize(("cpu", "isa"), CPUS.items())
def test_checkasm(checkasm: str, cpu: str, isa: str) -> None:
    done = subprocess.run([QEMU, "-cpu", cpu, checkasm, "--rounds", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"this CPU uses {isa}\n" in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines()[1:-1]]
    assert rows == ["ref", "neon", "dotprod", "i8mm"][: ["ref", "neon", "dotprod", "i8mm"].index(isa) + 1]
    assert done.stdout.endswith(" 0 failed\n")


def test_sanitizers(tmp_path: Path) -> None:
    """Reads beyond an operand and undefined arithmetic in the Arm kernels."""
    program = cross_build(tmp_path, "-O1", "-g", "-static", "-fsanitize=undefined", "-fno-sanitize-recover")
    done = subprocess.run([QEMU, "-cpu", "max", program, "--rounds", "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_fused_multiply_add(tmp_path: Path) -> None:
    """AArch64 always has FMA and compilers contract a * b + c by default: the pragma in kernels.h must hold without flags."""
    for source in SOURCES:
        subprocess.run([CROSS, "-O3", "-c", source, "-o", str(tmp_path / (Path(source).stem + ".o"))], check=True)
    objects = [str(path) for path in tmp_path.glob("*.o")]
    listing = subprocess.run(["aarch64-linux-gnu-objdump", "-d", *objects], capture_output=True, text=True, check=True).stdout
    assert "fmul" in listing
    assert not [
        line for line in listing.splitlines() if any(f"\t{name}\t" in line for name in ("fmla", "fmadd", "fmls", "fmsub"))
    ]


STEPS, BATCH = 50, 16
PROGRAM = f"""
from octosim import core, train
run = train.Run(train.Config(model="lenet5", batch_size={BATCH}, steps={STEPS}))
while run.step < run.steps:
    run.train_step()
print(core.isa(), run.digest())
"""


@pytest.fixture(scope="module")
def arm64_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command of an emulated CPython with octosim; CPU in it stands for the processor."""
    if platform.machine() != "x86_64" or not shutil.which("apt-get"):
        pytest.skip("makes an arm64 CPython from Debian's packages on x86-64")
    folder = tmp_path_factory.mktemp("arm64")
    done = subprocess.run(
        ["bash", str(ROOT / "tools/arm64_python.sh"), str(folder), sys.executable], capture_output=True, text=True
    )
    if done.returncode and "E: " in done.stderr + done.stdout:
        pytest.skip(f"the arm64 packages could not be fetched: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def digest_here() -> str:
    run = train.Run(train.Config(model="lenet5", batch_size=BATCH, steps=STEPS))
    while run.step < run.steps:
        run.train_step()
    return run.digest()


def test_every_x86_digest_is_the_same(digest_here: str, each_isa: list[tuple[str, int]]) -> None:
    for isa, threads in each_isa:
        core.set_isa(isa)
        core.set_threads(threads)
        run = train.Run(train.Config(model="lenet5", batch_size=BATCH, steps=STEPS))
        while run.step < run.steps:
            run.train_step()
        assert run.digest() == digest_here, (isa, threads)


@pytest.mark.parametrize(("cpu", "isa"), [(c, i) for c, i in CPUS.items() if c != "cortex-a72"])
def test_training_digest_equals_x86(arm64_python: str, digest_here: str, cpu: str, isa: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [word if word != "CPU" else cpu for word in shlex.split(arm64_python)]
    done = subprocess.run([*command, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa, digest_here]
