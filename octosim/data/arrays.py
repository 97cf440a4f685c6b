"""A user's own arrays: .npz and idx files, tables in CSV, and CIFAR's binary edition.

Each kind is a class with `fits`, `load` and `identity`, as `sources.Source` says.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim.data.cifar import parse_records
from octosim.data.dataset import Array, Dataset, Given, Options, check_header, checked, refuse_large
from octosim.data.idx import read_idx
from octosim.errors import OctosimError, reading, suggest
from octosim.files import open_regular
from octosim.textfile import read_text

CSV_BYTES = 1 << 30
CHUNK = 1 << 20
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
BEYOND_FLOAT32 = 2.0**128 * (1 - 2.0**-25)  # the least number that float32 rounds to infinity


def file_digest(path: Path) -> str:
    """SHA-256 of a regular file; OctosimError where it cannot be read."""
    total = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
    except (OSError, ValueError) as error:
        raise OctosimError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return total.hexdigest()


def files_digest(paths: list[Path]) -> str:
    return hashlib.sha256("".join(file_digest(path) for path in paths).encode()).hexdigest()


# ---- npz --------------------------------------------------

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Npz:
    """x_train, y_train, x_test, y_test in a .npz file, and perhaps `classes`, their names; the test part may be missing, and
    both labels, where the network has no classes (the loss mse)."""

    path: Path
    options: Options = Options()

    @staticmethod
    def fits(path: Path) -> bool:
        return path.suffix.lower() == ".npz" and not path.is_dir()

    def identity(self) -> str:
        return file_digest(self.path)

    def load(self, progress: Any = None) -> Dataset:
        with reading(self.path, ".npz"), open_regular(self.path) as file, zipfile.ZipFile(file) as archive:
            arrays = self._read(archive)
        names = arrays.get("classes")
        if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
            raise OctosimError(f"{self.path}: classes is {names.dtype} {names.shape}, expected names, one a class")
        x, y, tx, ty = (f"{self.path}: {name}" for name in ARRAYS)
        return checked(
            Given(
                self.path, (x, y, tx, ty), arrays["x_train"], arrays.get("y_train"), arrays.get("x_test"), arrays.get("y_test"),
                () if names is None else tuple(map(str, names)),
            ),
            self.options,
        )  # fmt: skip

    def _read(self, archive: zipfile.ZipFile) -> dict[str, Array]:
        """The arrays, each header checked before any data are unpacked."""
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        labelled = any(name in members for name in (*ARRAYS[1::2], "classes"))
        for name in ARRAYS[:2] if labelled else ARRAYS[:1]:
            if name not in members:
                near = suggest(name, members) if members else ""
                raise OctosimError(f"{self.path} has no array {name}, expected {', '.join(ARRAYS)}{near}")
        if labelled and ("x_test" in members) != ("y_test" in members):
            raise OctosimError(f"{self.path} has only one of x_test and y_test, expected both or none")
        wanted = {name: members[name] for name in (*ARRAYS, "classes") if name in members}
        refuse_large(f"{self.path}:", sum(info.file_size for info in wanted.values()))
        for name, info in wanted.items():
            where = f"{self.path}: {name}"
            with archive.open(info) as stream:
                shape, dtype = _npy_header(where, stream)
            if name.startswith("x_"):
                check_header(where, shape, dtype)
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise OctosimError(f"{where} is cut off: {shape} of {dtype} is more than its {info.file_size} bytes")
        read = {}
        for name, info in wanted.items():
            with archive.open(info) as stream:
                read[name] = np.lib.format.read_array(stream, allow_pickle=False)
        return read


def _npy_header(where: str, stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise OctosimError(f"{where} is of version {version} of .npy, expected 1 to 3")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise OctosimError(f"{where} holds Python objects, which are never loaded; expected numbers")
    return shape, dtype


# ---- idx --------------------------------------------------

_IDX = re.compile(r"images[-_.]idx[1-4](-ubyte)?(\.gz)?$", re.IGNORECASE)
_TRAIN, _TEST = "train", ("t10k", "test")


@dataclass(frozen=True)
class Idx:
    """Files X-images-idx3-ubyte and X-labels-idx1-ubyte, compressed or not: a folder, or one of images beside its labels."""

    path: Path
    options: Options = Options()

    @staticmethod
    def fits(path: Path) -> bool:
        if not path.is_dir():
            return bool(_IDX.search(path.name)) or "labels-idx1" in path.name
        return any(_IDX.search(name) for name in _names(path))

    def identity(self) -> str:
        return files_digest([path for path in self._files() if path])

    def load(self, progress: Any = None) -> Dataset:
        train, labels, test, test_labels = self._files()
        images = [read_idx(path, _checker(path)) if path else None for path in (train, test)]
        numbers = [read_idx(path, lambda shape, dtype: None) if path else None for path in (labels, test_labels)]
        assert images[0] is not None and numbers[0] is not None
        names = (str(train), str(labels), str(test), str(test_labels))
        return checked(Given(self.path, names, images[0], numbers[0], images[1], numbers[1]), self.options)

    def _files(self) -> tuple[Path, Path, Path | None, Path | None]:
        """Images and labels to train on, and those to test with, where there are any."""
        if self.path.is_dir():
            found = sorted({_IDX.sub("", name): name for name in _names(self.path) if _IDX.search(name)}.items())
            train = [name for part, name in found if _TRAIN in part.lower()]
            train = train or [name for part, name in found if not any(word in part.lower() for word in _TEST)]
            if len(train) != 1:
                raise OctosimError(
                    f"{self.path} has {len(train)} idx files of images to train on, expected one, named "
                    "train-images-idx3-ubyte or with .gz; or give the file itself"
                )
            first = self.path / train[0]
        elif _IDX.search(self.path.name):
            first = self.path
        else:
            raise OctosimError(f"{self.path} holds labels; give the file of the images beside it")
        second = None
        for word in _TEST if _TRAIN in first.name.lower() else ():
            other = re.sub(_TRAIN, word, first.name, count=1, flags=re.IGNORECASE)
            second = second or next((p for p in _spellings(first.with_name(other)) if p.exists()), None)
        return first, _labels_of(first), second, _labels_of(second) if second else None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise OctosimError(f"{folder} cannot be read: {error.strerror}") from None


def _spellings(path: Path) -> list[Path]:
    """A file's name with and without .gz."""
    plain = path.name.removesuffix(".gz")
    return [path, path.with_name(plain), path.with_name(plain + ".gz")]


def _labels_of(images: Path) -> Path:
    name = re.sub(r"images([-_.])idx[1-4]", r"labels\1idx1", images.name, flags=re.IGNORECASE)
    found = next((path for path in _spellings(images.with_name(name)) if path.exists()), None)
    if found is None:
        raise OctosimError(f"{images} has no labels beside it: there is no {name}")
    return found


def _checker(path: Path) -> Any:
    def check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        check_header(str(path), shape, dtype)
        refuse_large(str(path), math.prod(shape) * dtype.itemsize)

    return check


# ---- CIFAR's binary edition --------------------------------------------------


@dataclass(frozen=True)
class CifarBinary:
    """A folder of CIFAR-10's or CIFAR-100's binary edition: records of a label, or two, and 3072 bytes, red, green and blue."""

    path: Path
    options: Options = Options()

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and bool({"data_batch_1.bin", "train.bin", "test_batch.bin"} & set(_names(path)))

    def identity(self) -> str:
        train, test, _ = self._files()
        return files_digest([*train, *test])

    def load(self, progress: Any = None) -> Dataset:
        train, test, labels = self._files()
        images, numbers = _join([parse_records(path, _read(path), labels) for path in train])
        names = (f"{self.path}: images", f"{self.path}: labels", f"{self.path}: test images", f"{self.path}: test labels")
        tests = _join([parse_records(path, _read(path), labels) for path in test]) if test else (None, None)
        return checked(Given(self.path, names, images, numbers, tests[0], tests[1], self._classes()), self.options)

    def _files(self) -> tuple[list[Path], list[Path], int]:
        """Files to train on and to test with, and bytes of labels in a record."""
        names = _names(self.path)
        many = "train.bin" in names  # CIFAR-100
        train = ["train.bin"] if many else [name for name in names if re.fullmatch(r"data_batch_\d+\.bin", name)]
        test = [name for name in ("test.bin" if many else "test_batch.bin",) if name in names]
        if not train:
            raise OctosimError(f"{self.path} has no data_batch_1.bin, expected the binary edition of CIFAR")
        return [self.path / name for name in train], [self.path / name for name in test], 2 if many else 1

    def _classes(self) -> tuple[str, ...]:
        for name in ("batches.meta.txt", "fine_label_names.txt"):
            if (self.path / name).is_file():
                return tuple(read_text(self.path / name, 1 << 20).split())
        return ()


def _join(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            refuse_large(str(path), os.fstat(file.fileno()).st_size)
            return file.read()
    except OSError as error:
        raise OctosimError(f"{path} cannot be read: {error.strerror}") from None


# ---- CSV --------------------------------------------------


@dataclass(frozen=True)
class Csv:
    """A table of numbers with a class a line, in the column `label` or the last; or a folder with train.csv and test.csv."""

    path: Path
    options: Options = Options()

    @staticmethod
    def fits(path: Path) -> bool:
        if path.is_dir():
            return any((path / f"train.csv{ending}").exists() for ending in ("", ".gz"))
        return path.name.lower().endswith((".csv", ".csv.gz"))

    def identity(self) -> str:
        return files_digest([path for path in self._files() if path])

    def load(self, progress: Any = None) -> Dataset:
        train, test = self._files()
        table = _table(train)
        classes, numbers = _classes(table.labels)
        train_labels = _numbered(train, table, numbers)
        names = (f"{train}: its values", f"{train}: its labels", f"{test}: its values", f"{test}: its labels")
        notes = [] if table.label is None else [f"{train}: the class is in its last column, '{table.label}'"]
        if test is None:
            return checked(Given(self.path, names, table.values, train_labels, classes=classes, notes=notes), self.options)
        other = _table(test)
        values = _in_order(test, other, train, table)
        return checked(
            Given(self.path, names, table.values, train_labels, values, _numbered(test, other, numbers), classes, notes),
            self.options,
        )

    def _files(self) -> tuple[Path, Path | None]:
        if not self.path.is_dir():
            return self.path, None
        first = next(path for path in _spellings(self.path / "train.csv") if path.exists())
        return first, next((path for path in _spellings(self.path / "test.csv") if path.exists()), None)


@dataclass(frozen=True)
class _Table:
    """values: float32 (N, columns).  lines: of the file, one a row.  columns: the values' names, where the file has a header;
    label: that of the classes, where it is not `label`."""

    values: Array
    labels: list[str]
    lines: list[int]
    columns: list[str]
    label: str | None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _table(path: Path) -> _Table:
    reader = csv.reader(io.StringIO(read_text(path, CSV_BYTES, "CSV file"), newline=""), strict=True)
    values: list[list[float]] = []
    labels: list[str] = []
    lines: list[int] = []
    columns: list[str] = []
    label, header, top = -1, False, list[str]()
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns, label, header = _heads(path, cells)
                if header:
                    continue
            if len(cells) != len(columns):
                raise OctosimError(f"{path}, line {reader.line_num}: {len(cells)} cells, the first line has {len(columns)}")
            top = top or cells[:-1]
            labels.append(cells.pop(label))
            lines.append(reader.line_num)
            values.append(_numbers(path, reader.line_num, cells, columns[:label] + columns[label + 1 :]))
    except csv.Error as error:
        raise OctosimError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
    if not header and _is_header(top, labels):
        header, columns = True, [*top, labels.pop(0)]
        del lines[0], values[0]
    if not values:
        raise OctosimError(f"{path}: no line of values, expected numbers and a class a line")
    table = np.array(values, np.float32)
    names = columns[:label] + columns[label + 1 :]
    if header and not names[0] and np.array_equal(table[:, 0], np.arange(len(table))):
        raise OctosimError(f"{path}: its first column has no name and counts the lines; leave such an index out")
    other = columns[label] if header and columns[label].lower() != "label" else None
    return _Table(table, labels, lines, names if header else [], other)


def _is_header(values: list[str], labels: list[str]) -> bool:
    """Whether a first line of numbers is a header nevertheless, as pandas writes columns without names: it counts the columns,
    or it has a name where all others have a class number.  values: of the first line."""
    first, others = labels[0] if labels else "", set(labels[1:])
    if not others or first in others:
        return False
    numbered = all(INTEGER.fullmatch(label) for label in others)
    return numbered and not _is_number(first) or len(values) > 1 and values == [str(i) for i in range(len(values))]


def _in_order(path: Path, table: _Table, train: Path, first: _Table) -> Array:
    """The values of a second file with its columns in the order of the first; OctosimError where it has others."""
    if not table.columns or not first.columns or table.columns == first.columns:
        return table.values
    if sorted(table.columns) != sorted(first.columns) or len(set(first.columns)) < len(first.columns):
        lacking = next((name for name in first.columns if name not in table.columns), None)
        told = f"no column {lacking!r}" if lacking is not None else f"the columns {', '.join(table.columns)[:100]}"
        raise OctosimError(f"{path} has {told}, expected those of {train}: {', '.join(first.columns)[:100]}")
    return np.ascontiguousarray(table.values[:, [table.columns.index(name) for name in first.columns]])


def _heads(path: Path, cells: list[str]) -> tuple[list[str], int, bool]:
    """Names of the columns, the label's place, and whether the line was a header."""
    named = [i for i, cell in enumerate(cells) if cell.lower() == "label"]
    if len(named) > 1:
        raise OctosimError(f"{path}: the column label is there twice")
    label = named[0] if named else len(cells) - 1
    header = bool(named) or any(cell and not _is_number(cell) for i, cell in enumerate(cells) if i != label)
    if len(cells) < 2:
        marks = "; are its columns separated by semicolons or tabs?" if any(mark in cells[0] for mark in ";\t") else ""
        raise OctosimError(f"{path}: one column, expected numbers and a class, separated by commas{marks}")
    return [cell if header else f"column {i + 1}" for i, cell in enumerate(cells)], label, header


def _numbers(path: Path, line: int, cells: list[str], columns: list[str]) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
        if all(abs(value) < BEYOND_FLOAT32 for value in values):  # a NaN is not
            return values
    except ValueError:
        pass
    for cell, column in zip(cells, columns, strict=True):
        if not _is_number(cell) or not abs(float(cell)) < BEYOND_FLOAT32:
            column = column or "a column without a name"
            raise OctosimError(f"{path}, line {line}: {column} is '{cell[:40]}', expected a finite number in float32")
    raise AssertionError


def _classes(labels: list[str]) -> tuple[tuple[str, ...], dict[str, int] | None]:
    """Names of classes and, where they are names rather than numbers, the number of each."""
    different = set(labels)
    if all(INTEGER.fullmatch(label) for label in different):
        return (), None
    if "" in different or all(_is_number(label) for label in different):
        return (), {}
    names = sorted(different)
    return tuple(names), {name: number for number, name in enumerate(names)}


def _numbered(path: Path, table: _Table, numbers: dict[str, int] | None) -> Array:
    for label, line in zip(table.labels, table.lines, strict=True):
        if not INTEGER.fullmatch(label) if not numbers else label not in numbers:
            if numbers == {} and label and "" in table.labels:
                continue  # the first that is missing is told
            expected = "a class number from 0 or a name" if not numbers else f"one of {', '.join(list(numbers)[:10])}"
            raise OctosimError(f"{path}, line {line}: the label is '{label[:40]}', expected {expected}")
    return np.array([int(label) if numbers is None else numbers[label] for label in table.labels], np.int64)
