"""cffi API-mode build of `octosim._core`: the declarations are octosim.h itself, between its two marks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cffi import FFI
from setuptools import Distribution
from setuptools.errors import CompileError, LinkError

HERE = Path(__file__).resolve().parent
SOURCES = [
    "ref.c", "x86_avx2.c", "x86_avx512vnni.c", "arm_neon.c", "arm_dotprod.c", "arm_i8mm.c",
    "dispatch.c", "api_gemm.c", "api_blocks.c", "api_layers.c", "api_normalize.c", "api_quantize.c", "peak.c",
]  # fmt: skip
HEADERS = [
    "octosim.h", "kernels.h", "kernels.def", "dispatch.h", "loops.inc", "quantize.inc", "blocks.inc", "products.inc",
    "depthwise.inc", "accumulate.inc", "arm_gemm.inc",
]  # fmt: skip


def declarations() -> str:
    """The part of octosim.h that cffi reads, comments included."""
    text = (HERE / "octosim.h").read_text()
    return text.split("/* cffi: begin */")[1].split("/* cffi: end */")[0]


def compiler_takes(flag: str) -> bool:
    """Whether the C compiler that setuptools uses compiles and links with `flag`."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("int main(void) { return 0; }\n")
        try:
            objects = compiler.compile([str(source)], output_dir=folder, extra_preargs=[flag])
            compiler.link_executable(objects, os.path.join(folder, "probe"), extra_postargs=[flag])
        except (CompileError, LinkError):
            return False
    return True


# -fno-math-errno lets sqrtf become an instruction; it changes no result.  OpenMP only where the compiler has it.
flags = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
openmp = ["-fopenmp"] if compiler_takes("-fopenmp") else []
assert Distribution  # setuptools must be imported before distutils' parts

ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "octosim._core",
    '#include "octosim.h"',
    sources=[f"cext/{name}" for name in SOURCES],
    depends=[f"cext/{name}" for name in HEADERS],
    include_dirs=["cext"],
    extra_compile_args=flags + openmp,
    extra_link_args=openmp,
    py_limited_api=True,
)
