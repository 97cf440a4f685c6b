"""Data sets: files checked by SHA-256, from the package, from OCTOSIM_DATA or from the cache of `octosim data fetch`."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from octosim.data.cifar import parse_batch, parse_records
from octosim.data.dataset import Array, Dataset
from octosim.data.idx import parse_idx
from octosim.errors import OctosimError, suggest

FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple(str(digit) for digit in range(10))
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")  # of CIFAR-10, the last for testing
BATCH_FOLDER, BINARY_FOLDER = "cifar-10-batches-py", "cifar-10-batches-bin"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    sha256: of files, in their order.  url: of the folder to download from; None: the set is in the package.
    shape: (height, width, channels) of an image.  archive: (name, SHA-256) of the one download that holds all files;
    None: they are downloaded one by one.  unpacked: SHA-256 of the files' other form: without .gz, as other programs leave
    them, or with .bin, CIFAR's binary edition.
    folders: other programs' names of the folder that holds the files.
    """

    title: str
    classes: tuple[str, ...]
    train_images: int
    test_images: int
    licence: str
    sha256: tuple[str, ...]
    url: str | None = None
    shape: tuple[int, int, int] = (28, 28, 1)
    files: tuple[str, ...] = FILES
    archive: tuple[str, str] | None = None
    unpacked: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


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
        unpacked=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        folders=("FashionMNIST/raw",),
    ),
    "mnist": Source(
        "MNIST (LeCun et al. 1998)", DIGITS, 60000, 10000, "CC BY-SA 3.0, commonly given",
        ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
         "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
         "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        unpacked=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        folders=("MNIST/raw",),
    ),
    "cifar10": Source(
        "CIFAR-10 (Krizhevsky 2009)", THINGS, 50000, 10000, "none stated",
        ("54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
         "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
         "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
         "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
         "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
         "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"),
        "https://www.cs.toronto.edu/~kriz/", (32, 32, 3), BATCHES,
        ("cifar-10-python.tar.gz", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
        # of the same images in the binary edition
        ("cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
         "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
         "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
         "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
         "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
         "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    ),
}  # fmt: skip
ALIASES = {"fashion": "fashion-mnist", "fmnist": "fashion-mnist", "cifar-10": "cifar10"}


# ---- where a set is --------------------------------------------------


def cache() -> Path:
    """The folder of `octosim data fetch`; OctosimError for a user without a home directory."""
    try:
        return Path(platformdirs.user_cache_dir("octosim"))
    except RuntimeError:
        raise OctosimError("this user has no home directory for downloads; set XDG_CACHE_HOME or OCTOSIM_DATA") from None


def resolve(name: str) -> tuple[str, Source]:
    """The set's own name, for an alias too, and its source."""
    name = ALIASES.get(name, name)
    if name not in SOURCES:
        raise OctosimError(f"unknown data set '{name}'" + suggest(name, SOURCES))
    return name, SOURCES[name]


def _places(name: str) -> list[tuple[str, Path]]:
    """(kind of place, folder or archive) that may hold a data set, in the order of search."""
    source = SOURCES[name]
    if source.url is None:
        return [("package", Path(__file__).parent / "datasets" / name)]
    roots = []
    if os.environ.get("OCTOSIM_DATA"):
        roots.append(("OCTOSIM_DATA", Path(os.environ["OCTOSIM_DATA"])))
    try:
        roots.append(("cache", cache()))
    except OctosimError:  # no home directory: OCTOSIM_DATA suffices
        pass
    held = (name, *source.folders)
    if source.archive is not None:
        held = (BATCH_FOLDER, BINARY_FOLDER, f"{BATCH_FOLDER}.tar.xz", source.archive[0])
    return [(place, root / what) for place, root in roots for what in held]


def _is_archive(path: Path) -> bool:
    return path.name.endswith((".tar.gz", ".tar.xz"))


def _lacks(path: Path, source: Source) -> str:
    """What keeps a place from being used; empty: nothing.  (os.path, since Path.is_dir raises where it may not look.)"""
    if _is_archive(path):
        return "" if os.path.isfile(path) else "no such file"
    if not os.path.isdir(path):
        return "no such folder"
    missing = [file for file in source.files if not os.path.exists(_file(path, file, source))]
    return "no " + ", ".join(missing) if missing else ""


def _file(path: Path, file: str, source: Source) -> Path:
    """A file of a folder under the name that it has there: as downloaded, unpacked, or with the dot of some mirrors."""
    plain = file.removesuffix(".gz")
    names = [file, plain, plain.replace("-idx", ".idx"), f"{file}.bin"] if source.unpacked else [file]
    return next((path / name for name in names if os.path.exists(path / name)), path / file)


def _find(name: str) -> tuple[str, Path] | None:
    """The first place that has all files of a data set."""
    return next(((place, path) for place, path in _places(name) if not _lacks(path, SOURCES[name])), None)


# ---- reading --------------------------------------------------


def _contents(path: Path, source: Source) -> list[bytes]:
    """The bytes of source.files, each checked, from a folder or straight from an archive."""
    contents: dict[str, bytes] = {}
    if _is_archive(path):
        members = {f"{BATCH_FOLDER}/{file}": file for file in source.files}
        try:
            # "r|": once through from front to back, since going back in an xz stream would unpack it again
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    stream = archive.extractfile(member) if member.name in members else None
                    if stream is not None:
                        contents[members[member.name]] = stream.read()
                    if len(contents) == len(members):
                        break
        except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
            raise OctosimError(f"{path} cannot be unpacked: {error}") from None
        missing = [file for member, file in members.items() if file not in contents]
        if missing:
            raise OctosimError(f"{path} has no {BATCH_FOLDER}/{missing[0]}")
    else:
        for file in source.files:
            place = _file(path, file, source)
            try:
                contents[file] = place.read_bytes()
            except OSError as error:
                raise OctosimError(f"{place} cannot be read: {error.strerror}") from None
    for number, (file, digest) in enumerate(zip(source.files, source.sha256, strict=True)):
        place = path / file if _is_archive(path) else _file(path, file, source)
        if place.name != file and not _is_archive(path):
            digest = source.unpacked[number]
        sha256 = hashlib.sha256(contents[file]).hexdigest()
        if sha256 != digest:
            size = len(contents[file])
            raise OctosimError(f"{place} ({size} bytes) has sha256 {sha256}, expected {digest}: truncated or changed?")
    return [contents[file] for file in source.files]


def _expect(path: Path, images: Array, labels_path: Path, labels: Array, count: int, source: Source) -> None:
    """count images and as many labels; OctosimError names the file, what was expected and what was found."""
    for file, array, shape in ((path, images, (count, *source.shape)), (labels_path, labels, (count,))):
        if array.shape != shape:
            raise OctosimError(f"{file}: expected an array {shape}, found {array.shape}")
    if labels.max() >= len(source.classes):
        raise OctosimError(f"{labels_path}: expected labels 0 to {len(source.classes) - 1}, found {labels.max()}")


def _read_idx(path: Path, source: Source) -> tuple[Array, Array, Array, Array]:
    arrays = []
    for file, packed in zip(source.files, _contents(path, source), strict=True):
        try:
            content = gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else packed
        except (OSError, EOFError, zlib.error) as error:
            raise OctosimError(f"{path / file} cannot be unpacked: {error}") from None
        array = parse_idx(path / file, content)
        arrays.append(array[..., None] if array.ndim == 3 else array)
    files = [path / file for file in source.files]
    for start, count in ((0, source.train_images), (2, source.test_images)):
        _expect(files[start], arrays[start], files[start + 1], arrays[start + 1], count, source)
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _read_batches(path: Path, source: Source) -> tuple[Array, Array, Array, Array]:
    batches = []
    last = len(source.files) - 1
    for index, (file, content) in enumerate(zip(source.files, _contents(path, source), strict=True)):
        place = path / file if _is_archive(path) else _file(path, file, source)
        images, labels = (parse_records if place.suffix == ".bin" else parse_batch)(place, content)
        count = source.test_images if index == last else source.train_images // last
        _expect(place, images, place, labels, count, source)
        batches.append((images, labels))
    train_images, train_labels = (np.concatenate(arrays) for arrays in zip(*batches[:-1], strict=True))
    for array in (train_images, train_labels, *batches[-1]):
        array.flags.writeable = False  # as the idx arrays are
    return train_images, train_labels, *batches[-1]


def load(name: str) -> Dataset:
    """A data set by name or alias, every file checked; the arrays are read-only.

    Raises OctosimError for an unknown name, a set that is not there (with both remedies), a wrong checksum, a broken file.
    """
    name, source = resolve(name)
    found = _find(name)
    if found is None:
        looked = "OCTOSIM_DATA is not set, and this user has no home directory"
        looked = "; ".join(f"{path}: {_lacks(path, source)}" for _, path in _places(name)) or looked
        remedy = "the installation of octosim is damaged"
        if source.url is not None:
            names = (name, *source.folders) if source.archive is None else (BATCH_FOLDER, BINARY_FOLDER)
            folder = " or ".join(f"{f}/" for f in names)
            remedy = f"run 'octosim data fetch {name}', or set OCTOSIM_DATA to a folder that holds {folder}"
        raise OctosimError(f"data set {name} is not here (looked in {looked}): {remedy}")
    read = _read_idx if source.archive is None else _read_batches
    train_images, train_labels, test_images, test_labels = read(found[1], source)
    total = hashlib.sha256("".join(source.sha256).encode()).hexdigest()
    return Dataset(name, train_images, train_labels, test_images, test_labels, source.classes, total)


def find_given(name: str) -> Path | None:
    """Where OCTOSIM_DATA has a data set; None where it has not."""
    found = _find(resolve(name)[0])
    return found[1] if found and found[0] == "OCTOSIM_DATA" else None


def available() -> list[dict[str, Any]]:
    """Every data set with its size, shape (height, width, channels), licence and where it was found."""
    rows = []
    for name, source in SOURCES.items():
        found = _find(name)
        rows.append({
            "name": name,
            "what": source.title,
            "train": source.train_images,
            "test": source.test_images,
            "shape": list(source.shape),
            "classes": len(source.classes),
            "licence": source.licence,
            "found": found[0] if found else "no; octosim data fetch " + name,
        })  # fmt: skip
    return rows
