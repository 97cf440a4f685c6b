"""Data sets: idx files checked by SHA-256, from the package, from OCTOSIM_DATA or from the cache of `octosim data fetch`."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch

from octosim.errors import OctosimError, suggest

Array = np.ndarray[Any, Any]

FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.  sha256: of FILES, in their order.  url: of the folder of FILES; None: in the package."""

    title: str
    classes: tuple[str, ...]
    train_images: int
    test_images: int
    licence: str
    sha256: tuple[str, str, str, str]
    url: str | None = None


SOURCES = {
    "fashion-mnist-5k": Source(
        "a class-balanced part of Fashion-MNIST, in the package", CLOTHES, 5000, 1000, "MIT",
        ("43293cd6d291761cb070201552a541a0c46b16bafbee82af7bcbff102286ec78",
         "6d5f1ae86a2399a0f2d1aae475d39d8367a73d801147b510e9266a8661779c3f",
         "1d883f3966f98d7fc5011e0ff22f6e190d3b994ad0583bfd53c4b120eb39f754",
         "4f81dd80fbbee90c38545ee999e120b1c191bf127f0aa516f21ef7e023d316a9"),
    ),
    "fashion-mnist": Source(
        "Fashion-MNIST (Xiao et al. 2017)", CLOTHES, 60000, 10000, "MIT",
        ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
         "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
         "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
         "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "mnist": Source(
        "MNIST (LeCun et al. 1998)", DIGITS, 60000, 10000, "CC BY-SA 3.0, commonly given",
        ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
         "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
         "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, height, width, channels), labels uint8 (N,); sha256 names the content of all four files."""

    name: str
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    classes: tuple[str, ...]
    sha256: str


def _cache() -> Path:
    return Path(pooch.os_cache("octosim"))


def _places(name: str) -> dict[str, Path]:
    """Folders that may hold a data set, in the order of search."""
    if SOURCES[name].url is None:
        return {"package": Path(str(importlib.resources.files("octosim"))) / "datasets" / name}
    places = {}
    if os.environ.get("OCTOSIM_DATA"):
        places["OCTOSIM_DATA"] = Path(os.environ["OCTOSIM_DATA"]) / name
    places["cache"] = _cache() / name
    return places


def _find(name: str) -> tuple[str, Path] | None:
    """The first place that has the data set's folder."""
    return next(((place, folder) for place, folder in _places(name).items() if folder.is_dir()), None)


def _check_name(name: str) -> Source:
    if name not in SOURCES:
        raise OctosimError(f"unknown data set '{name}'" + suggest(name, SOURCES))
    return SOURCES[name]


def parse_idx(path: Path, content: bytes) -> Array:
    """The uint8 array of an idx file's bytes; OctosimError names the file where they are not one."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not 1 <= content[3] <= 4:
        raise OctosimError(f"{path} is not an idx file of bytes: it starts with {content[:4].hex() or 'nothing'}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise OctosimError(f"{path} is truncated: its header ends after {len(content)} bytes")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        raise OctosimError(f"{path}: the header says {expected} bytes of data, the file has {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read(path: Path, sha256: str) -> Array:
    """One .gz file, its checksum and its array."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise OctosimError(f"{path} cannot be read: {error.strerror}") from None
    found = hashlib.sha256(packed).hexdigest()
    if found != sha256:
        raise OctosimError(f"{path} ({len(packed)} bytes) has sha256 {found}, expected {sha256}: truncated or changed?")
    try:
        return parse_idx(path, gzip.decompress(packed))
    except (OSError, EOFError, zlib.error) as error:
        raise OctosimError(f"{path} cannot be unpacked: {error}") from None


def load(name: str) -> Dataset:
    """A data set by name, every file checked.

    Raises OctosimError for an unknown name, a set that is not there (with both remedies), a wrong checksum, a broken file.
    """
    source = _check_name(name)
    found = _find(name)
    if found is None:
        looked = ", ".join(str(folder) for folder in _places(name).values())
        raise OctosimError(
            f"data set {name} is not here (looked in {looked}): run 'octosim data fetch {name}', "
            f"or set OCTOSIM_DATA to a folder that holds {name}/"
        )
    arrays = [_read(found[1] / file, digest) for file, digest in zip(FILES, source.sha256, strict=True)]
    train_images, train_labels, test_images, test_labels = arrays
    for images, labels, count in (
        (train_images, train_labels, source.train_images),
        (test_images, test_labels, source.test_images),
    ):
        if images.ndim != 3 or labels.shape != (count,) or len(images) != count or labels.max() >= len(source.classes):
            raise OctosimError(f"{found[1]}: images {images.shape} and labels {labels.shape} are not {count} labelled images")
    total = hashlib.sha256("".join(source.sha256).encode()).hexdigest()
    return Dataset(name, train_images[..., None], train_labels, test_images[..., None], test_labels, source.classes, total)


def available() -> list[dict[str, Any]]:
    """Every data set with its size, licence and where it was found."""
    rows = []
    for name, source in SOURCES.items():
        found = _find(name)
        rows.append({
            "name": name,
            "what": source.title,
            "train": source.train_images,
            "test": source.test_images,
            "classes": len(source.classes),
            "licence": source.licence,
            "found": found[0] if found else "no; octosim data fetch " + name,
        })  # fmt: skip
    return rows


def fetch(name: str, progress: bool = False) -> Path:
    """Downloads a data set into the cache, each file by checksum; returns its folder.

    A file that fails its checksum or a lost connection leaves nothing half-written.
    """
    source = _check_name(name)
    if source.url is None:
        raise OctosimError(f"data set {name} is in the package: there is nothing to fetch")
    folder = _cache() / name
    for file, digest in zip(FILES, source.sha256, strict=True):
        try:
            pooch.retrieve(
                source.url + file, f"sha256:{digest}", fname=file, path=folder,
                downloader=pooch.HTTPDownloader(progressbar=progress, timeout=30),
            )  # fmt: skip
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: the checksum
            raise OctosimError(f"could not fetch {source.url}{file}: {str(error).splitlines()[0]}") from None
    return folder
