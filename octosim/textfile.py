"""Text files that users write, TOML and CSV: UTF-8 in any locale, with any line ends, within limits; each error a sentence.

A byte order mark, as Excel and Notepad write it, is accepted; so are CRLF and CR.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from octosim.errors import OctosimError

TOML_BYTES = 4 << 20
TOML_DEPTH = 50
TOML_VALUES = 500_000
CSV_BYTES = 64 << 20
"""Limits of a file, unpacked where it is compressed."""
_INT64 = 1 << 63

T = TypeVar("T")


def read_text(path: Path, limit: int, what: str = "file") -> str:
    """The text of a file of at most `limit` bytes, lines ending in \\n; a name in .gz is a compressed file.

    Raises OctosimError, with the line where the text is not UTF-8.  what: the kind of file, for a missing one.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise OctosimError(f"{path}: no such {what}") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a NUL in the name
        raise OctosimError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > limit:
        raise OctosimError(f"{path}: longer than {limit >> 20} MiB, the limit of such a {what}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise OctosimError(f"{path}: not a text file in UTF-8 but in UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"0x{content[error.start]:02x}"
        raise OctosimError(f"{path}, line {line}: not a text file in UTF-8 (byte {byte}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---- TOML --------------------------------------------------


def read_toml(path: Path, what: str = "file") -> dict[str, Any]:
    """The tables of a TOML file."""
    return parse_toml(read_text(path, TOML_BYTES, what), str(path))


_LONG_KEY = re.compile(rf"""(?m:^|[\[{{,])(?:[ \t]*+(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.){{{TOML_DEPTH}}}""")
"""A dotted key of more parts than tables may nest: tomllib takes time by the square of its parts."""


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text; where: what an error's sentence begins with, the file's name."""
    too_deep = f"{where}: tables or lists nested too deeply, expected at most {TOML_DEPTH} levels"
    if _LONG_KEY.search(text):
        raise OctosimError(too_deep)
    try:
        content = tomllib.loads(text)
        _check_size(content)
    except RecursionError:
        raise OctosimError(too_deep) from None
    except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
        raise OctosimError(f"{where}: not valid TOML ({error})") from None
    return content


def _check_size(content: Any) -> None:
    """Bounds on what every reader of a file may take for granted; ValueError says which is exceeded."""
    level, count = [content], 0
    for _ in range(TOML_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, int) and not -_INT64 <= value < _INT64:
                raise ValueError(f"the integer {str(value)[:20]}... does not fit in 64 bits")
        count += len(inner)
        if count > TOML_VALUES:
            raise ValueError(f"more than {TOML_VALUES:,} values")
        if not inner:
            return
        level = inner
    raise RecursionError


# ---- CSV --------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a CSV file; line: of the file, where the row ends."""

    path: Path
    line: int
    cells: dict[str, str]

    def get(self, column: str, default: str = "") -> str:
        """A cell's text, `default` where the file has no such column."""
        return self.cells.get(column, default)

    def error(self, text: str) -> OctosimError:
        return OctosimError(f"{self.path}, line {self.line}: {text}")

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Puts this row's place before the sentence of an error within."""
        try:
            yield
        except OctosimError as error:
            raise self.error(str(error)) from None

    def number(self, column: str, kind: Callable[[str], T], expected: str, fits: Callable[[T], bool]) -> T:
        """A cell as a number; kind: int or float; expected: what the error's sentence asks for."""
        text = self.cells[column]
        try:
            value = kind(text)
            if fits(value):
                return value
        except (ValueError, OverflowError):
            pass
        comma = "; decimals take a point" if "," in text else ""
        raise self.error(f"{column} is '{text[:60]}', expected {expected}{comma}")


def csv_columns(path: Path) -> list[str]:
    """The names in a CSV file's first line, also between semicolons or tabs: what its kind is told by before it is read."""
    lines = read_text(Path(path), CSV_BYTES, "CSV file").splitlines()
    return [name.strip(' "') for name in re.split("[,;\t]", next((line for line in lines if line.strip(" \t,")), ""))]


def read_csv(path: Path, needed: Iterable[str], optional: Iterable[str] = ()) -> list[Row]:
    """The rows of a CSV file, which may be compressed (.gz): commas between cells, names of columns in the first line.

    needed: columns that it must have.  optional: columns that its reader knows; one that is nearly called so is refused.  Blank
    lines are skipped.  Raises OctosimError, with the line where there is one.
    """
    path, wanted, known = Path(path), sorted(needed), tuple(optional)
    text = read_text(path, CSV_BYTES, "CSV file")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    columns: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = _columns(path, [cell.strip() for cell in cells], wanted, known)
            elif len(cells) != len(columns):
                text = f"{len(cells)} cells, expected {len(columns)} as there are columns"
                raise OctosimError(f"{path}, line {reader.line_num}: {text}")
            else:
                rows.append(Row(path, reader.line_num, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise OctosimError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
    if not columns:
        raise OctosimError(f"{path}: empty, expected a CSV with the columns {', '.join(wanted)}")
    return rows


def _columns(path: Path, names: list[str], needed: list[str], optional: Iterable[str]) -> list[str]:
    missing = [name for name in needed if name not in names]
    if missing:
        hint = ""
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            hint = "; its columns are separated by semicolons or tabs, not commas"
        raise OctosimError(f"{path}: no column {', '.join(missing)}: expected a CSV with the columns {', '.join(needed)}{hint}")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise OctosimError(f"{path}: the column {twice} is there twice")
    for column in (column for column in optional if column not in names):
        near = next((name for name in names if name not in needed and _nearly(name, column)), None)
        if near is not None:
            raise OctosimError(f"{path}: column {near}, did you mean {column}?")
    return names


def _nearly(name: str, column: str) -> bool:
    """Whether a name differs from a column's in case, punctuation or a plural alone."""
    given, wanted = (re.sub(r"[\W_]", "", text.casefold()) for text in (name, column))
    return given in (wanted, f"{wanted}s", f"{wanted}es") or f"{given}s" == wanted
