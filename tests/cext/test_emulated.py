"""The instruction sets of x86 that a processor lacks: checkasm with intrinsics that are C functions (emulated/immintrin.h).

What the kernels ask of the intrinsics is executed so, though not what the compiler makes of them.

Needs the Debian package libsimde-dev.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from kit.checkasm import CEXT, SOURCES, passed

from octosim import core

FLAGS = ("-O0", "-mavx2", "-w", "-ffp-contract=off", "-fno-math-errno", "-DOCTO_HALVES_512=1", "-DOCTO_EMULATED")
ROWS = ["ref", "avx2", "avxvnni", "avx512bw", "avx512vnni", "amx"]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The core's objects, with checkasm's, by the names of their sources."""
    probe = "cc -x c -include simde/x86/avx512.h -fsyntax-only /dev/null".split()
    if not core.isas().get("avx2") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("AVX2 and SIMDe's headers (package libsimde-dev) are not here")
    folder = tmp_path_factory.mktemp("emulated")
    compile_to(folder, *SOURCES)
    return {path.stem: path for path in folder.glob("*.o")}


def compile_to(folder: Path, *sources: str) -> None:
    command = ["cc", *FLAGS, f"-I{Path(__file__).parent / 'emulated'}", f"-I{CEXT}", "-c", *sources]
    subprocess.run(command, check=True, cwd=folder)


def checkasm(objects: dict[str, Path], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = folder / "checkasm"
    subprocess.run(["cc", *map(str, objects.values()), "-o", str(program), "-lpthread"], check=True)
    return subprocess.run([str(program), *arguments], capture_output=True, text=True)


def test_every_instruction_set(objects: dict[str, Path], tmp_path: Path) -> None:
    first, *rows, _ = passed(checkasm(objects, tmp_path, "--rounds", "3", "--seed", "7"))
    assert first.endswith("this CPU uses amx")
    assert [row.split()[0] for row in rows] == ROWS and all(" checks" in row for row in rows)


@pytest.mark.parametrize(("kernel", "intrinsic", "wrong"), [
    ("gemm_s8", "_mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(mask, c))", "_mm512_maskz_loadu_epi32(mask, c)"),
    ("depthwise_s8", "down[i] = _mm512_srai_epi32(acc[i], 8)", "down[i] = _mm512_srai_epi32(acc[i], 7)"),
])  # fmt: skip
@pytest.mark.slow
def test_a_wrong_kernel_is_found(objects: dict[str, Path], kernel: str, intrinsic: str, wrong: str, tmp_path: Path) -> None:
    shutil.copytree(CEXT, tmp_path / "cext")
    changed = tmp_path / "cext/x86_512.inc"
    text = changed.read_text()
    assert text.count(intrinsic) == 1
    changed.write_text(text.replace(intrinsic, wrong))
    compile_to(tmp_path, str(tmp_path / "cext/x86_avx512bw.c"))
    done = checkasm({**objects, "x86_avx512bw": tmp_path / "x86_avx512bw.o"}, tmp_path, "--isa", "avx512bw")
    assert done.returncode == 1 and f"avx512bw {kernel}: element" in done.stderr
