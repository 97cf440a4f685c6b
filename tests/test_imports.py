"""The architecture of design.md: imports go one way, one module touches C, importing octosim.train is light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from octosim._moved import MOVED

PACKAGE = Path(__file__).resolve().parent.parent / "octosim"

# A row may import only from rows above it.
ROWS = [
    {
        "errors", "schema", "settings", "files", "_callable", "extensions", "limits", "onnxfile", "outcome", "textfile",
        "trace", "_core",
    },
    {"integrity"},
    {"numerics"},
    {"core", "hardware"},
    {"data"},
    {"cost"},
    {"engine"},
    {"graph", "methods"},
    {"train"},
    {"study", "evidence", "bench", "torch", "workload"},
    {"report", "watch"},
    {"api", "testing"},
    {"cli"},
    {"__main__"},
]
# A report is made where no run can be: it reads records and computes no result.
RESULTS = {"core", "data", "engine", "graph", "methods", "train", "study", "evidence", "bench"}
NOT_BELOW = {"report": RESULTS, "watch": RESULTS}
WITHIN_A_ROW = {(name, "errors") for name in ("schema", "settings", "files", "textfile", "onnxfile", "extensions")}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p not in (PACKAGE / "__init__.py", PACKAGE / "_moved.py"))


def module_of(path: Path) -> str:
    """The module of octosim that a file belongs to; a folder counts as one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules of octosim that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"octosim.{a.name}" for a in node.names] if node.module == "octosim" else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("octosim.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = module_of(path)
    row = next((i for i, names in enumerate(ROWS) if own in names), None)
    assert row is not None, f"{own} stands in no row"
    allowed = set().union(*ROWS[:row]) | {own} | {b for a, b in WITHIN_A_ROW if a == own}
    assert imported(path) <= allowed - NOT_BELOW.get(own, set())


def test_every_row_exists() -> None:
    assert {module_of(p) for p in MODULES} | {"_core"} == set().union(*ROWS)


def test_only_core_touches_c() -> None:
    assert {module_of(p) for p in MODULES if "_core" in imported(p)} == {"core"}


HEAVY = ("torch", "pandas", "matplotlib", "scipy", "pydantic", "jinja2", "onnx", "onnxruntime", "distributed", "dask", "pooch")


@pytest.mark.parametrize(
    "code, unwanted",
    [
        ("import octosim", (*HEAVY, "numpy", "rich", "typer", "importlib.metadata", "octosim.core")),
        ("import octosim.cli; sys.argv[1:] = ['--help']; octosim.cli.main()", (*HEAVY, "numpy", "octosim.core")),
        # A board that only trains should not pay for pandas and matplotlib.
        ("import octosim.train", ("matplotlib", "pandas", "pydantic", "pooch", "torch", "tqdm")),
        ("import octosim.report", ("octosim.core", "octosim.engine", "octosim.data", "octosim.train", "torch")),
    ],
    ids=["import", "help", "train", "report"],
)
def test_what_is_not_loaded(code: str, unwanted: tuple[str, ...]) -> None:
    at_exit = f"lambda: print([m for m in {unwanted!r} if m in sys.modules], file=sys.stderr)"
    program = f"import atexit, sys\natexit.register({at_exit})\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr


def test_old_names_still_import() -> None:
    """As `import octosim.old` and `from octosim import old`, with every name that the modules in their places have."""
    code = ""
    for old, places in MOVED.items():
        package, _, name = f"octosim.{old}".rpartition(".")
        code += f"import {package}.{name}\nfrom {package} import {name} as again\nassert again is {package}.{name}\n"
        for place in places:
            # A submodule is a name of its package once somebody imports it: here others have, the program below has not.
            values = vars(importlib.import_module(f"octosim.{place}")).items()
            names = [n for n, value in values if not n.startswith("__") and not isinstance(value, ModuleType)]
            code += f"for n in {names}: getattr(again, n)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
