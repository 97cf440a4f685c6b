"""The Arm variants, executed: cross-compiled and run by qemu-aarch64 as processors that have more and more of the instructions.

Needs the Debian packages qemu-user (or qemu-user-static), gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import torchvision_models
from kit.checkasm import SOURCES, passed
from kit.isas import ISAS
from kit.thin import diagonal

from octosim import methods

ROOT = Path(__file__).resolve().parents[2]
# processor -> what dispatch must choose, by the features alone
CPUS = {"cortex-a53": "neon", "cortex-a72": "neon", "cortex-a76": "dotprod", "max": "i8mm"}
ROWS = ["ref", "neon", "dotprod", "i8mm"]
GCC = "aarch64-linux-gnu-gcc"
OPTIMIZED = ("-static", "-Wall", "-Wextra", "-O3", "-fno-math-errno")

def need(*programs: str) -> str:
    """The path of the first of these programs that there is; otherwise the test is skipped."""
    for program in programs:
        if found := shutil.which(program):
            return found
    pytest.skip(f"{' or '.join(programs)} is not installed")


def emulate(cpu: str, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    qemu = need("qemu-aarch64", "qemu-aarch64-static")
    command = [qemu, "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu, str(program), *arguments]
    environment = {"ASAN_OPTIONS": "detect_leaks=0", **os.environ}  # the leak check needs ptrace, which qemu has not
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def check(cpu: str, program: Path, *arguments: str) -> None:
    """Runs checkasm as `cpu`: the right row chosen, this and the rows before it tested, the others left alone."""
    lines = passed(emulate(cpu, program, *arguments))
    assert lines[0].endswith(f"this CPU uses {CPUS[cpu]}")
    assert [line.split()[0] for line in lines[1:-1]] == ROWS[: ROWS.index(CPUS[cpu]) + 1]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """compiled(flags ...): checkasm for Arm, built once for each set of flags, its objects beside it."""
    compiler, folder = need(GCC), tmp_path_factory.mktemp("arm")
    probe = [compiler, "-x", "c", "-include", "stdio.h", "/dev/null", "-fsyntax-only"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"{GCC} has no C library (package libc6-dev-arm64-cross)")

    @functools.cache
    def build(*flags: str) -> Path:
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        done = subprocess.run([compiler, *flags, "-c", *SOURCES], capture_output=True, text=True, cwd=place)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        subprocess.run([compiler, *flags, *map(str, place.glob("*.o")), "-o", str(place / "checkasm")], check=True)
        return place / "checkasm"

    return build


@pytest.mark.parametrize("cpu", CPUS)
def test_checkasm(cpu: str, compiled: Callable[..., Path]) -> None:
    """Every kernel that the processor can run equals ref; dispatch goes by the processor's features."""
    check(cpu, compiled(*OPTIMIZED), "--rounds", "6" if cpu == "max" else "1", "--seed", "6")  # max runs every row


@pytest.mark.slow  # minutes; those of x86 run with the others
def test_sanitizers(compiled: Callable[..., Path]) -> None:
    """Reads and writes beyond operands, undefined behaviour; the largest processor runs every row."""
    program = compiled("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    check("max", program, "--rounds", "8", "--seed", "7")


def test_no_fused_multiply_add(compiled: Callable[..., Path]) -> None:
    """AArch64 always has fused multiply-add and gcc uses it unless told otherwise: the sources tell, no flag is needed."""
    objects = map(str, compiled(*OPTIMIZED).parent.glob("*.o"))
    disassemble = [need("aarch64-linux-gnu-objdump"), "-d", *objects]
    listing = subprocess.run(disassemble, capture_output=True, text=True, check=True).stdout
    assert "\tfmul\t" in listing
    assert not [line for line in listing.splitlines() if any(f"\t{op}\t" in line for op in ("fmadd", "fmla", "fmsub", "fmls"))]


TRAIN = """
import sys
from octosim import core, train
core.set_threads(int(sys.argv[1]))
run = train.Run(train.Config(model="lenet5", data="fashion-mnist-5k", method="octo", batch_size=32, seed=7))
for _ in range(6):
    loss = run.train_step()
print(core.isa(), run.digest(), loss.hex())
"""

# With flush-to-zero and rounding toward zero set in FPCR, as a library in the same process may leave it.
HOSTILE = "from octosim.core import call\ncall.lib.octo_float_leave(1 << 24 | 3 << 22)" + TRAIN

# Every method, as the host may leave FPCR or MXCSR: 0, then flush-to-zero, then rounding toward zero.
METHODS = """
import dataclasses, platform, sys
from octosim import core, data, methods, train
from octosim.core import call
core.set_threads(int(sys.argv[1]))
images = data.load("fashion-mnist-5k")
print(core.isa())
for method in methods.METHODS.values():
    config = train.Config(model="lenet5", method=method.name, batch_size=8, seed=7, batchnorm=method.batchnorm)
    for control in (0, *((1 << 24, 3 << 22) if platform.machine() == "aarch64" else (0x9FC0, 0x7F80))):
        before = call.lib.octo_float_enter()
        call.lib.octo_float_leave(control or before)
        run = train.Run(config, dataset=images)
        for _ in range(3):
            run.train_step()
        call.lib.octo_float_leave(before)
        print(f"{method.name}:{run.digest()}")
"""

# Wider and deeper than what the kernels pack at a time, and deeper than one job: checkasm's products are smaller.
PRODUCTS = """
import hashlib, sys
import numpy as np
from octosim import core
core.set_threads(int(sys.argv[1]))
total, random = hashlib.sha256(), np.random.default_rng(3)
for m, k, n in ((5, 1000, 300), (100, 300, 900), (7, 24577, 40), (3, 60000, 20), (1, 130000, 1)):
    for low in (-128, -127):
        a = random.integers(low, 128, (m, k), np.int8)
        b = random.integers(low, 128, (k, n), np.int8)
        b[:, 0], a[0] = low, low
        for ta in (False, True):
            for tb in (False, True):
                c = core.gemm(np.ascontiguousarray(a.T) if ta else a, np.ascontiguousarray(b.T) if tb else b,
                              transpose_a=ta, transpose_b=tb)
                total.update(c.tobytes())
print(core.isa(), total.hexdigest())
"""


def outcome(command: list[str], program: str, threads: int, **environment: str) -> tuple[str, ...]:
    """What the program prints: the instruction set that it used and its result."""
    done = subprocess.run([*command, "-c", program, str(threads)], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return tuple(done.stdout.split())


@functools.cache
def native(program: str) -> tuple[str, ...]:
    """The result on this machine, the same with each of its instruction sets, with one, two and three threads in turn."""
    runs = {name: outcome([sys.executable], program, 1 + at % 3, OCTOSIM_ISA=name) for at, name in enumerate(ISAS)}
    assert all(run[0] == name for name, run in runs.items()) and len({run[1:] for run in runs.values()}) == 1, runs
    return runs["ref"][1:]


@functools.cache
def arm_python() -> Path | str:
    """A CPython for Arm with octosim in it, or why there is none."""
    folder = ROOT / "build" / "arm64"
    command = ["bash", str(ROOT / "tools" / "arm64_python.sh"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable})
    if done.returncode == 77:
        return done.stderr.strip().splitlines()[-1]
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "python"


PROGRAMS = {"lenet5-octo": TRAIN, "hostile-fpcr": HOSTILE, "large-products": PRODUCTS}


@pytest.mark.parametrize(("cpu", "name"), diagonal(["cortex-a53", "cortex-a76", "max"], list(PROGRAMS)))  # one for each row
def test_same_result_under_arm_python(cpu: str, name: str) -> None:
    """To the bit: the weights and optimizer state of LeNet-5 after 6 steps with Octo; products in several blocks."""
    program = PROGRAMS[name]
    plain = TRAIN if program is HOSTILE else program
    python = arm_python()
    if isinstance(python, str):
        pytest.skip(python)
    threads = 2 if cpu == "max" else 1
    assert outcome([str(python)], program, threads, QEMU_CPU=cpu, OCTOSIM_ISA="") == (CPUS[cpu], *native(plain))


@pytest.mark.slow
def test_every_method_under_a_hostile_arm_host() -> None:
    """The digests of all methods on emulated Arm, with whatever the host set, are those of this machine."""
    python = arm_python()
    if isinstance(python, str):
        pytest.skip(python)
    expected = outcome([sys.executable], METHODS, 1)[1:]
    assert len(expected) == 3 * len(methods.METHODS)
    assert len(set(expected)) > len(methods.METHODS) // 2  # laq and blaq begin alike
    assert outcome([str(python)], METHODS, 1, QEMU_CPU="max", OCTOSIM_ISA="")[1:] == expected


IMPORTED = """
import hashlib, sys
import numpy as np
from octosim import core, train
from octosim.data.dataset import Dataset
core.set_threads(int(sys.argv[1]))
random = np.random.default_rng(5)
images, labels = random.integers(0, 256, (8, 32, 32, 3), np.uint8), random.integers(0, 10, 8).astype(np.uint8)
data = Dataset("random", images, labels, images, labels, tuple("0123456789"), "0" * 64)
run = train.Run(train.Config(model={folder!r}, method="octo", batch_size=4, steps=2, lr=0.01, seed=7), dataset=data)
assert run.initial and not run.initial.unfit
losses = [run.train_step().hex() for _ in range(2)]
print(core.isa(), run.digest(), *losses)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """imported(name): the program that trains torchvision's network, exported by PyTorch and imported."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from octosim import graph
    from octosim.graph import onnx

    models, folder = torchvision_models.modules()[0], tmp_path_factory.mktemp("imported")

    @functools.cache
    def build(name: str) -> str:
        torch.manual_seed(3)
        module, x, path = getattr(models, name)(num_classes=10).eval(), torch.zeros(2, 3, 32, 32), folder / f"{name}.onnx"
        torch.onnx.export(module, (x,), str(path), input_names=["x"], dynamic_axes={"x": {0: "batch"}}, dynamo=False)
        graph.save(onnx.read(path), folder / name)
        return IMPORTED.format(folder=str(folder / name))

    return build


@pytest.mark.slow  # minutes under emulation
@pytest.mark.parametrize("cpu", list(CPUS))
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_imported_networks_train_alike(name: str, cpu: str, imported: Callable[[str], str]) -> None:
    """To the bit on every instruction set of this machine and under emulation, with 1 and 2 threads."""
    program, python = imported(name), arm_python()
    if isinstance(python, str):
        pytest.skip(python)
    for threads in (1, 2):
        assert outcome([str(python)], program, threads, QEMU_CPU=cpu, OCTOSIM_ISA="") == (CPUS[cpu], *native(program))
