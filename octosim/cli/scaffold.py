"""`octosim new method NAME`: a package with a method, its entry point and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from octosim.cli.terminal import say, shell_word
from octosim.errors import OctosimError

new_app = typer.Typer(no_args_is_help=True, help="Start a package of your own: new method NAME.")

PYPROJECT = '''[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "@PACKAGE@"
version = "0.1.0"
dependencies = ["octosim"]

[project.entry-points."octosim.methods"]
@NAME@ = "@PACKAGE@:@CLASS@"

[tool.setuptools]
packages = ["@PACKAGE@"]
'''

METHOD = '''"""A training method for octosim: INT8 products, whose output gradients are clipped before they are quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError
from octosim.methods import int8


@dataclass(frozen=True)
class @CLASS@(Method):
    """Parameters of the method.

    share: of the output gradients' range, to which they are clipped; in (0, 1].
    """

    share: float = 0.9

    name: ClassVar[str] = "@NAME@"
    summary: ClassVar[str] = "INT8 forward and backward, clipped output gradients"
    paper: ClassVar[str] = "-"
    bits: ClassVar[Mapping[str, str]] = int8.BITS

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OctosimError(f"@NAME@: share must be in (0, 1], not {self.share}")

    def check(self, node: Node, batch: int) -> None:
        """Refuses a batch whose sums could overflow."""
        int8.refuse_overflow(node, batch)

    def forward(self, node: Node, x: Array, context: Context) -> core.LazyDequant:
        """Y of int8 codes, symmetric within the ranges of this batch."""
        found = node.x_range or core.value_range(x)
        return int8.forward(node, int8.symmetric(node, x, found.low, found.high), int8.weights(node))

    def error(self, node: Node, dy: Array, context: Context) -> core.Tensor:
        """Codes of dY, which both gradient passes take."""
        found = node.dy_range or core.value_range(dy)
        return quantizers.symmetric(dy, found.low, found.high, share=self.share, out=node.buffer(dy.shape, "int8"))

    def weight_grad(self, node: Node, error: core.Tensor, context: Context) -> None:
        int8.weight_grad(node, error)

    def input_grad(self, node: Node, error: core.Tensor, context: Context) -> core.LazyDequant:
        return int8.input_grad(node, error)
'''

TEST = '''from octosim.testing import check_method

from @PACKAGE@ import @CLASS@


def test_@PACKAGE@(tmp_path):
    check_method(@CLASS@, tmp_path)
'''


@new_app.callback()
def new() -> None:
    """Start a package of your own.  Example: octosim new method clipped"""


@new_app.command("method")
def new_method(
    name: Annotated[str, typer.Argument(help="The method's name: lower-case letters, digits, hyphens.")],
    out: Annotated[Optional[Path], typer.Option(help="The package's folder; NAME if not given.")] = None,  # noqa: UP045
) -> None:
    """Write a package with a training method of 60 lines, its entry point and its test, to begin with.

    Example: octosim new method clipped
    """
    from octosim import methods
    from octosim.files import write_atomic

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise OctosimError(f"a method's name has lower-case letters, digits and single hyphens, not '{name}'")
    class_name = "".join(part.capitalize() for part in name.split("-"))
    if keyword.iskeyword(name) or keyword.iskeyword(class_name):
        raise OctosimError(f"'{name}' is a word of Python; choose another name")
    if name in methods.METHODS:
        raise OctosimError(f"octosim has a method {name} already; choose another name")
    folder, package = out or Path(name), f"octosim_{name.replace('-', '_')}"
    if folder.exists():
        raise OctosimError(f"{folder} exists already; choose another --out")
    words = {"@PACKAGE@": package, "@NAME@": name, "@CLASS@": class_name}
    files = {"pyproject.toml": PYPROJECT, f"{package}/__init__.py": METHOD, f"tests/test_{package}.py": TEST}
    for path, text in files.items():
        for word, value in words.items():
            text = text.replace(word, value)
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OctosimError(f"cannot make {(folder / path).parent}: {error.strerror}") from None
        write_atomic(folder / path, text.encode())
    say(f"{folder}: {', '.join(files)}")
    say(f"to go on: pip install -e {shell_word(folder)}, pytest {shell_word(folder)}, octosim train --method {name}")
