"""Where a run's data come from: a data set by name, or a user's own files, by the first kind of KINDS that fits them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from octosim import extensions
from octosim.data import folder as folders
from octosim.data import sets
from octosim.data.arrays import CifarBinary, Csv, Idx, Npz
from octosim.data.dataset import Array, Dataset, Given, Options, checked, digest_of, limited, parse_image
from octosim.data.folder import Folder, Progress
from octosim.errors import ArgumentError, OctosimError, suggest


class Source(Protocol):
    """A user's own data at a path, read as `options` say."""

    def __init__(self, path: Path, options: Options) -> None: ...

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether the path, which is there, looks like data of this kind."""

    def load(self, progress: Progress | None = None) -> Dataset:
        """The data set; OctosimError, naming file and field, where it cannot be trained on."""

    def identity(self) -> str:
        """SHA-256 of the files that `load` would read; cheaper than that."""


KINDS: dict[str, type[Any]] = {
    ".npz with x_train, y_train, x_test, y_test": Npz,
    "idx files": Idx,
    "CIFAR's binary edition": CifarBinary,
    "CSV, a class a line": Csv,
    "a folder of images a class": Folder,
}
"""Classes of `Source` by what they read; the first that fits is taken."""

ARRAYS = "arrays"
"""The name of data that were given as arrays, in Python."""
ENDINGS = (".npz", ".csv", ".gz", ".npy", ".zip", "-ubyte")
OWN = "own data: a folder of images a class, .npz, .csv, idx files; see docs/data.md"


def is_own(name: str) -> bool:
    """Whether a name is a path of a user's own data."""
    if name in sets.SOURCES or name in sets.ALIASES:
        return False
    return "/" in name or os.sep in name or name.lower().endswith(ENDINGS) or _there(name)


def _there(name: str) -> bool:
    return bool(name) and "\0" not in name and os.path.exists(name)


def open_source(name: str, options: Options = Options()) -> Source:
    """The source of a user's own data; OctosimError where there are none that can be read."""
    path = Path(name)
    if not _there(name):
        raise OctosimError(f"data {name} is not there: no such file or folder")
    for kind in (*extensions.loaded("octosim.data")[0].values(), *KINDS.values()):
        if kind.fits(path):
            source: Source = kind(path, options)
            return source
    raise OctosimError(f"data {name} is of no known kind (known: {', '.join(KINDS)})")


def load(
    name: str | os.PathLike[str],
    image: str | tuple[int, int, int] | None = None,
    test_share: float | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """A data set by name, alias or path.

    image: "HEIGHTxWIDTHxCHANNELS" or (height, width, channels), to which images are brought.
    test_share: of each class, put aside for testing where there is no test part.  limit: training images, see `limited`.
    skip_unreadable: of a folder of images, leave out files that cannot be decoded; `notes` says which.
    Raises OctosimError for what is not there or cannot be trained on.
    """
    if not isinstance(name, str | os.PathLike):
        raise OctosimError(f"data is {str(name)[:60]}, expected a name or a path")
    name = os.fsdecode(name)
    if image is not None:
        image = parse_image(image if isinstance(image, str) else "x".join(map(str, np.atleast_1d(image))))
    options = Options(image, test_share, skip_unreadable)
    if limit is not None and not isinstance(limit, int | np.integer):
        raise ArgumentError(f"{{limit}} is {limit!r}, expected a whole number")
    if limit is not None and limit < 1:
        raise ArgumentError(f"{{limit}} must be at least 1, not {limit}")
    if is_own(name):
        found = open_source(name, options).load(progress)
    elif name in sets.SOURCES or name in sets.ALIASES:
        if test_share is not None:
            raise ArgumentError(f"data set {name} has a test part; {{test_share}} is for data without one")
        found = sets.load(name)
    else:
        near = suggest(name, sets.SOURCES)
        raise OctosimError(f"unknown data set '{name}'{near}" + ("" if "did you mean" in near else f"; {OWN}"))
    found = found if limit is None else limited(found, limit)
    return _at_size(found, options)


def from_arrays(
    x_train: Array, y_train: Array, x_test: Array | None = None, y_test: Array | None = None, classes: tuple[str, ...] = ()
) -> Dataset:
    """A data set of arrays, as a .npz file has them; OctosimError names the array that does not fit.

    x: uint8 or float32, (N, height, width), (N, height, width, channels), (N, channels, height, width) or (N, values).
    y: integers (N,).  Without a test part a share is put aside.
    """
    y, tx, ty = (None if array is None else np.asarray(array) for array in (y_train, x_test, y_test))
    given = Given(Path(ARRAYS), ("x_train", "y_train", "x_test", "y_test"), np.asarray(x_train), y, tx, ty, classes)
    return replace(checked(given, Options()), path=None)


def _at_size(dataset: Dataset, options: Options) -> Dataset:
    """The data set with images of the size that is asked for; a folder's have it already."""
    shape = dataset.train_images.shape[1:]
    if options.image is None or shape == options.image:
        return dataset
    if len(shape) != 3:
        raise ArgumentError(f"{{image}} is for images; {dataset.name} has vectors of {shape[0]} numbers")
    if dataset.train_images.dtype != "uint8":
        raise ArgumentError(f"{{image}} is for images of bytes; those of {dataset.name} are {dataset.train_images.dtype}")
    if shape[2] not in (1, 3):
        raise ArgumentError(f"{{image}} is for images with 1 or 3 channels; those of {dataset.name} have {shape[2]}")
    images = [folders.resized(part, options.image) for part in (dataset.train_images, dataset.test_images)]
    arrays = images[0], dataset.train_labels, images[1], dataset.test_labels
    return replace(dataset, train_images=images[0], test_images=images[1], sha256=digest_of(*arrays))
