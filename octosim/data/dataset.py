"""A data set in memory or in a memory map: what its arrays must be, its digest, its split and a part of it."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from octosim import limits
from octosim.errors import ArgumentError, OctosimError

Array = np.ndarray[Any, Any]

LARGEST_SIDE = 1 << 12
"""Pixels of an image's side."""
MOST_CLASSES = 1 << 16
TEST_SHARE = 0.2
"""Of each class, where a source has no test part of its own."""
PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class Dataset:
    """Images to train on and to test with, and their labels.

    images: uint8 or float32, (N, height, width, channels), or vectors (N, values).  labels: integers 0 .. classes - 1, (N,).
    sha256: of the content; equal for equal arrays of a user's own data, whatever files they came from.
    path: the absolute path of a user's own data.  test_share: the share of each class that was put aside for testing, where the
    source has no test part.  notes: sentences about what was converted or left out.
    normalizations: what runs have measured of the training images, once for all of them: a study builds hundreds.
    """

    name: str
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    classes: tuple[str, ...]
    sha256: str
    path: str | None = None
    test_share: float | None = None
    notes: tuple[str, ...] = ()
    normalizations: dict[bool, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Options:
    """How a source is read.

    image: (height, width, channels) that images are brought to.  test_share: see Dataset.  skip_unreadable: leave out image
    files that cannot be decoded, instead of refusing all.
    """

    image: tuple[int, int, int] | None = None
    test_share: float | None = None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise ArgumentError(f"{{test_share}} must be above 0 and below 1, not {self.test_share}")

    def share_of(self, path: Path, has_test: bool) -> float | None:
        """The share that a source puts aside, None where it has a test part; ArgumentError where one is asked for then."""
        if not has_test:
            return TEST_SHARE if self.test_share is None else self.test_share
        if self.test_share is not None:
            raise ArgumentError(f"{path} has a test part; {{test_share}} is for data without one")
        return None


def parse_image(text: str) -> tuple[int, int, int]:
    """96x96x3 -> (96, 96, 3); OctosimError for anything else."""
    try:
        height, width, channels = (int(part) for part in text.split("x"))
    except ValueError:
        raise ArgumentError(f"{{image}} takes HEIGHTxWIDTHxCHANNELS, as in 96x96x3, not '{text[:40]}'") from None
    if not (2 <= height <= LARGEST_SIDE and 2 <= width <= LARGEST_SIDE and channels in (1, 3)):
        raise ArgumentError(f"{{image}} takes sides in 2 .. {LARGEST_SIDE} and 1 or 3 channels, not '{text[:40]}'")
    return height, width, channels


def name_of(path: Path) -> str:
    """The name of a user's own data: the last part of its path."""
    return os.path.basename(os.path.abspath(path))


# ---- digests --------------------------------------------------


def _bytes(array: Array) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def digest_of(*arrays: Array) -> str:
    """SHA-256 over the types, shapes and little-endian bytes of a data set's four arrays."""
    total = hashlib.sha256()
    for name, array in zip(PARTS, arrays, strict=True):
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(_bytes(array))
    return total.hexdigest()


def row_digests(rows: Array) -> list[bytes]:
    """A digest of the bytes of each image."""
    return [hashlib.sha256(_bytes(row)).digest() for row in rows]


# ---- split and part --------------------------------------------------


def split(digests: Sequence[bytes], labels: Array, share: float) -> tuple[Array, Array]:
    """Indices, in ascending order, of images to train on and to test with.

    Of each class the images with the smallest digests are for testing: round(share N) of its N different images, at least one
    and not all.  Equal images of a class stay together; a class of one image is for training only.
    """
    held: dict[int, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (digest, label) in enumerate(zip(digests, labels.tolist(), strict=True)):
        held[label][digest].append(index)
    test: list[int] = []
    for groups in held.values():
        count = min(max(round(share * len(groups)), 1), len(groups) - 1)
        test += [index for digest in sorted(groups)[:count] for index in groups[digest]]
    chosen = np.zeros(len(labels), bool)
    chosen[test] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def limited(dataset: Dataset, limit: int) -> Dataset:
    """The data set with `limit` training images: the first of each class, the second of each, and so on, in their order."""
    labels = dataset.train_labels
    least = max(1, len(dataset.classes))
    if limit < least:
        raise ArgumentError(f"{{limit}} must be at least {least}, an image a class of {dataset.name}, not {limit}")
    if limit >= len(labels):
        return dataset
    rank = np.empty(len(labels), np.int64)  # of an image in its class
    for label in range(least):
        places = np.flatnonzero(labels == label)
        rank[places] = np.arange(len(places))
    chosen = np.sort(np.argsort(rank, kind="stable")[:limit])
    return replace(dataset, train_images=dataset.train_images[chosen], train_labels=labels[chosen])


# ---- arrays of a user --------------------------------------------------


def refuse_large(where: str, nbytes: int) -> None:
    """OctosimError where so many bytes are more than this process may have."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62
    most = min(pages, limits.memory() or pages)
    if nbytes > most:
        raise OctosimError(f"{where} takes {nbytes:,} bytes unpacked, more than the {most:,} bytes of memory here")


def check_header(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuses values that no network takes, before they are read."""
    if dtype.hasobject:
        raise OctosimError(f"{where} holds Python objects, which are never loaded; expected uint8 or float32")
    if dtype != np.uint8 and dtype.kind != "f":
        remedy = "; of pixels in 0 .. 255 use .astype(numpy.uint8)" if dtype.kind in "iu" else ""
        remedy = "; use .astype(numpy.float32)" if dtype.kind == "b" else remedy
        raise OctosimError(f"{where} is {dtype}, expected uint8 or float32{remedy}")
    expected = "expected (N, height, width, channels), (N, channels, height, width), (N, height, width) or vectors (N, values)"
    if not 2 <= len(shape) <= 4 or 0 in shape[1:]:
        raise OctosimError(f"{where} has the shape {shape}, {expected}")
    if len(shape) == 2:
        return
    if len(shape) == 4 and not {1, 3} & {shape[1], shape[3]} and shape[1] == shape[3]:
        raise OctosimError(f"{where} has the shape {shape}, {expected}, with 1, 3 or fewer channels than pixels beside")
    first = len(shape) == 4 and channels_first(shape)
    height, width = (shape[2], shape[3]) if first else (shape[1], shape[2])
    if max(height, width) > LARGEST_SIDE:
        raise OctosimError(f"{where} has images of {height} x {width} pixels, expected at most {LARGEST_SIDE} a side")
    if height == width == 1:
        raise OctosimError(f"{where} has images of 1 x 1 pixels; give vectors as (N, values)")


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images of four axes are (N, channels, height, width): 1 or 3 channels, else the smaller of the two axes."""
    if shape[3] in (1, 3):
        return False
    return shape[1] in (1, 3) or shape[1] < shape[3]


def as_values(where: str, x: Array, notes: list[str]) -> Array:
    """Images (N, height, width, channels) or vectors (N, values), uint8 or float32, of what `check_header` lets pass."""
    if x.dtype != np.uint8:
        kind = x.dtype
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(x, np.float32)
        bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
        if bad.size:
            found = x[bad[0]].reshape(-1)
            value = found[~np.isfinite(found)][0]
            raise OctosimError(f"{where}[{bad[0]}] has a value that is {value} in float32, expected finite numbers")
        if kind.itemsize != 4:
            notes.append(f"{where} is {kind}: converted to float32")
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim == 4 and channels_first(x.shape):
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x)


def as_labels(where: str, y: Array, count: int, images: str) -> Array:
    """int32 labels (N,) of integers of any type; OctosimError for what are no labels."""
    if y.dtype.hasobject:
        raise OctosimError(f"{where} holds Python objects, which are never loaded; expected integers")
    if y.dtype.kind not in "iu":
        raise OctosimError(f"{where} is {y.dtype}, expected integers from 0: the numbers of the classes")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        remedy = "; of one-hot labels use .argmax(1)" if y.ndim == 2 else ""
        raise OctosimError(f"{where} has the shape {y.shape}, expected (N,): one class number an image{remedy}")
    if len(y) != count:
        raise OctosimError(f"{where} has {len(y)} labels, but {images} has {count} images")
    for extreme in (y.min(), y.max()) if len(y) else ():
        if not 0 <= extreme < MOST_CLASSES:
            index = int(np.flatnonzero(y == extreme)[0])
            raise OctosimError(f"{where}[{index}] is {extreme}, expected a class number in 0 .. {MOST_CLASSES - 1}")
    return y.astype(np.int32)


@dataclass
class Given:
    """Arrays as a source has them; labels None: there are none.  names: what an error's sentence calls the four, such as
    "mine.npz: x_train".  test arrays None: there is no test part.  classes: their names; empty: numbers."""

    path: Path
    names: tuple[str, str, str, str]
    train_images: Array
    train_labels: Array | None
    test_images: Array | None = None
    test_labels: Array | None = None
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def checked(given: Given, options: Options) -> Dataset:
    """The data set of a user's arrays, split where there is no test part; OctosimError names the array that does not fit."""
    x_name, y_name, tx_name, ty_name = given.names
    check_header(x_name, given.train_images.shape, given.train_images.dtype)
    images = as_values(x_name, given.train_images, given.notes)
    if not len(images):
        raise OctosimError(f"{x_name} is empty")
    classes: tuple[str, ...] = ()
    if given.train_labels is None:
        count, labels = 1, np.zeros(len(images), np.int32)
        given = replace(given, test_labels=None if given.test_images is None else np.zeros(len(given.test_images), np.int32))
    else:
        labels = as_labels(y_name, given.train_labels, len(images), x_name)
        check_classes(y_name, labels, given.classes)
        count = max(int(labels.max()) + 1, len(given.classes))
        classes = given.classes or tuple(str(number) for number in range(count))
    path = os.path.abspath(given.path)
    share = options.share_of(given.path, given.test_images is not None and given.test_labels is not None)
    if given.test_images is None or given.test_labels is None:
        assert share is not None
        train, test = split(row_digests(images), labels, share)
        if not test.size:
            raise OctosimError(f"{x_name}: no class has two different images, so none can be put aside for testing")
        arrays = images[train], labels[train], images[test], labels[test]
        return Dataset(
            name_of(given.path), *arrays, classes, digest_of(*arrays), path, share, tuple(given.notes)
        )  # fmt: skip
    check_header(tx_name, given.test_images.shape, given.test_images.dtype)
    tests = as_values(tx_name, given.test_images, given.notes)
    if tests.shape[1:] != images.shape[1:]:
        raise OctosimError(f"{tx_name}: the shape of each is {tests.shape[1:]}, expected {images.shape[1:]} as in {x_name}")
    if tests.dtype != images.dtype:
        raise OctosimError(f"{tx_name} is {tests.dtype}, expected {images.dtype} as {x_name} is")
    test_labels = as_labels(ty_name, given.test_labels, len(tests), tx_name)
    if not len(tests):
        raise OctosimError(f"{tx_name} is empty")
    if test_labels.max() >= count:
        index = int(test_labels.argmax())
        raise OctosimError(f"{ty_name}[{index}] is {test_labels.max()}, expected 0 .. {count - 1}, the classes of {y_name}")
    arrays = images, labels, tests, test_labels
    return Dataset(name_of(given.path), *arrays, classes, digest_of(*arrays), path, None, tuple(given.notes))


def check_classes(where: str, labels: Array, names: tuple[str, ...] = ()) -> None:
    """Refuses labels of one class only, and a class without an image to train on."""
    largest = int(labels.max())
    if len(set(names)) < len(names):
        name = next(name for at, name in enumerate(names) if name in names[:at])
        raise OctosimError(f"{where}: two classes are called {name!r}, expected a name for each")
    if names and largest >= len(names):
        index = int(labels.argmax())
        raise OctosimError(f"{where}[{index}] is {largest}, expected 0 .. {len(names) - 1}: {len(names)} classes have names")
    counts = np.bincount(labels, minlength=len(names))
    if np.count_nonzero(counts) == 1 and len(names) < 2:
        raise OctosimError(f"{where}: every label is {largest}, expected at least two classes")
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        name = f" ({names[empty]})" if names else ""
        raise OctosimError(f"{where}: class {empty}{name} has no image, expected every class from 0 to {len(counts) - 1}")
