"""Only what pyproject.toml cannot say: the cffi module, its compiler, and one wheel for every Python from 3.11 on (abi3)."""

import atexit
import os
import shutil
import sys
import sysconfig
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

PROBE = "#ifdef _OPENMP\n#include <omp.h>\n#endif\n#ifdef HEADERS\n#include <Python.h>\n#endif\nint main(void) { return 0; }\n"
NO_COMPILER = (
    "octosim needs a C compiler, gcc or clang: '{}' makes no program here.  Install one (Debian and Ubuntu: apt install gcc "
    "libc6-dev; Fedora: dnf install gcc; Alpine: apk add gcc musl-dev; macOS: xcode-select --install) or name one in CC."
)
NO_HEADERS = (
    "octosim needs the headers of Python {}.{}: Python.h cannot be compiled.  Install them (Debian and Ubuntu: apt install "
    "python3-dev; Fedora: dnf install python3-devel; Alpine: apk add python3-dev)."
)
OPENMP = ((("-fopenmp",), ("-fopenmp",)), (("-Xpreprocessor", "-fopenmp"), ("-lomp",)))
"""Flags to compile and to link with, of which the first that work are taken; the second are for Apple's clang and a libomp."""


class Build(build_ext):
    """Builds with OpenMP where the compiler compiles and links with it; one sentence where there is no compiler."""

    def takes(self, *flags: str, link: tuple[str, ...] = ()) -> bool:
        """Whether the compiler makes a program with these flags.  What it raises where not differs between setuptools."""
        folder = tempfile.mkdtemp(dir=scratch)
        source = Path(folder, "probe.c")
        source.write_text(PROBE)
        try:
            objects = self.compiler.compile([str(source)], output_dir=folder, extra_preargs=list(flags))
            self.compiler.link_executable(objects, os.path.join(folder, "probe"), extra_postargs=list(link))
        except Exception as error:
            self.announce(f"octosim: {error}")
            return False
        return True

    def build_extensions(self) -> None:
        if not self.takes():
            sys.exit(NO_COMPILER.format(os.environ.get("CC") or sysconfig.get_config_var("CC")))
        if not self.takes("-DHEADERS"):
            sys.exit(NO_HEADERS.format(*sys.version_info))
        flags, link = next((each for each in OPENMP if self.takes(*each[0], link=each[1])), ((), ()))
        for extension in self.extensions:
            extension.extra_compile_args += flags
            extension.extra_link_args += link
        if not flags:
            print("octosim: this compiler has no OpenMP (-fopenmp): the kernels will use one thread.")
        compile_one = self.compiler.compile

        def compile_all(sources: list[str], **settings: Any) -> list[str]:
            with ThreadPool() as pool:
                return [each for made in pool.map(lambda path: compile_one([path], **settings), sources) for each in made]

        self.compiler.compile = compile_all
        super().build_extensions()


# Two builds of one source tree do not meet, and none reads what an earlier one left.
scratch = tempfile.mkdtemp(prefix="octosim-build-")
atexit.register(shutil.rmtree, scratch, ignore_errors=True)
options = {"build": {"build_base": scratch}}
if not os.access(".", os.W_OK):
    options["egg_info"] = {"egg_base": scratch}
if not sysconfig.get_config_var("Py_GIL_DISABLED"):  # a free-threaded Python has no stable ABI
    options["bdist_wheel"] = {"py_limited_api": "cp311"}

packages = [*find_packages(include=["octosim", "octosim.*"]), "octosim.hwprofiles", "octosim.cext"]
setup(packages=packages, cffi_modules=["cext/build_ffi.py:ffi"], cmdclass={"build_ext": Build}, options=options)
