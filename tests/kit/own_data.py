"""A user's own data: the same images as each kind of source."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Parts = tuple[Array, Array, Array, Array]
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def parts(train: int = 24, test: int = 9, classes: int = 3, shape: tuple[int, ...] = (8, 8, 1), seed: int = 0) -> Parts:
    """Random images whose labels are in the order of the classes, each brighter the higher its class."""
    rng = np.random.default_rng(seed)
    made = []
    for count in (train, test):
        labels = np.sort(np.arange(count) % classes).astype(np.int64)
        noise = rng.integers(0, 120, (count, *shape))
        made += [(noise + 40 * labels.reshape(-1, *[1] * len(shape))).astype(np.uint8), labels]
    return made[0], made[1], made[2], made[3]


def npz(path: Path, data: Parts, **change: Any) -> Path:
    """change: arrays in place of some; None: without it."""
    arrays = dict(zip(ARRAYS, data, strict=True)) | change
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def idx_bytes(array: Array) -> bytes:
    kinds = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    head = bytes([0, 0, kinds[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def idx(folder: Path, data: Parts, packed: bool = False) -> Path:
    folder.mkdir()
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    for name, array in zip(names, data, strict=True):
        array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
        content = idx_bytes(array.astype(np.uint8))
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    return folder


def folder(root: Path, data: Parts) -> Path:
    """PNG files, in train/ and test/."""
    from PIL import Image

    for part, images, labels in (("train", *data[:2]), ("test", *data[2:])):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = root / part / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(place / f"{number:04}.png")
    return root


def photos(root: Path, count: int = 15) -> Path:
    """JPEG files of two classes, each image of a size of its own."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpg")
    return root


def csv_folder(root: Path, data: Parts) -> Path:
    """train.csv and test.csv of the pixels, the label last."""
    root.mkdir()
    for part, images, labels in (("train", *data[:2]), ("test", *data[2:])):
        lines = [",".join(map(str, [*image.reshape(-1).tolist(), label])) for image, label in zip(images, labels, strict=True)]
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root


IMAGES: dict[str, Callable[[Path, Parts], Path]] = {
    "npz": lambda where, data: npz(where / "own.npz", data),
    "npz, channels first": lambda where, data: npz(
        where / "own.npz", (data[0].transpose(0, 3, 1, 2), data[1], data[2].transpose(0, 3, 1, 2), data[3])
    ),
    "idx": lambda where, data: idx(where / "own", data),
    "idx.gz": lambda where, data: idx(where / "own", data, packed=True),
    "idx file": lambda where, data: idx(where / "own", data) / "train-images-idx3-ubyte",
    "folder": lambda where, data: folder(where / "own", data),
}
"""Writes the same images as each kind of source; returns what --data is."""
