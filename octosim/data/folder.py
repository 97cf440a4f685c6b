"""A folder of images, a folder a class: found, decoded once into the cache, and read from there by memory map."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octosim import limits
from octosim.data.arrays import file_digest
from octosim.data.dataset import LARGEST_SIDE, Array, Dataset, Options, digest_of, name_of, row_digests, split
from octosim.errors import ArgumentError, OctosimError
from octosim.files import locked, open_regular, read_json, sync_folder, write_atomic

FORMAT = 1  # of the cache
ORIENTATION = 0x0112  # of EXIF
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Of Pillow; others are refused: some start programs."""
LARGEST_FILE = 1 << 28
MOST_PIXELS = 1 << 27
SKIPPED = {"thumbs.db", "desktop.ini", "__macosx"}
"""What systems put among the images, besides hidden files; in lower case."""
PICTURES = (
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .gif .tif .tiff .webp .ppm .pgm .pbm .pnm "
    ".heic .heif .avif .jp2 .jxl .raw .dng .cr2 .nef .psd .svg .eps"
).split()
"""Endings of images, in lower case, with those that cannot be read: a file with one of them is never left out in silence."""
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
MOST_NAMED = 5
"""Files that an error's sentence names."""

Progress = Callable[[int, int], None]
"""Told of the images done and their number."""
Read = tuple[tuple[Array, Array, Array, Array], str, tuple[str, ...]]
"""The four arrays of a data set, their digest, and of each file that was skipped what is wrong with it."""


# ---- what is there --------------------------------------------------


@dataclass
class Listing:
    """The files of a folder of images.  train, test: (file, class) in the order of classes and names; test None: no such part.
    ignored: files that belong to no class.  others: files among the images that are none, by ending and content.
    outside: links that lead out of the folder."""

    classes: tuple[str, ...]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]] | None
    ignored: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)


def _entries(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise OctosimError(f"{folder} cannot be read: {error.strerror}") from None
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in SKIPPED]


def _files_below(folder: Path) -> Iterator[Path]:
    """All files of a class; links to folders inside it are not followed."""
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(path)
        else:
            yield path


def listing(root: Path) -> Listing:
    """OctosimError where the folder does not have at least two folders of images, each a class."""
    top = [path for path in _entries(root) if path.is_dir()]
    by_name = {path.name.lower(): path for path in top}
    test_root = next((by_name[name] for name in TEST_FOLDERS if name in by_name), None)
    train_root = next((by_name[name] for name in TRAIN_FOLDERS if name in by_name), root)
    if train_root == root and test_root is not None and len(top) == 1:
        raise OctosimError(f"{root} has {test_root.name}/ but no train/, expected both, or a folder a class")
    files = Listing((), [], None)
    if not any(path.is_dir() for path in _entries(train_root)):  # `train` may be a class
        train_root = root
    if train_root == root:
        test_root = None
    known = {train_root, test_root} if train_root != root else set()
    files.ignored += [path for path in _entries(root) if path not in known and (train_root != root or not path.is_dir())]
    files.classes = tuple(path.name for path in _entries(train_root) if path.is_dir())
    if len(files.classes) < 2:
        some = f"only one folder, {files.classes[0]}/" if files.classes else "no folder"
        raise OctosimError(f"{train_root} has {some}, expected a folder of images for each of at least two classes")
    files.train = _of_classes(files, root, train_root)
    files.test = _of_classes(files, root, test_root) if test_root else None
    for part, place in ((files.train, train_root), (files.test, test_root)):
        if part is None or place is None:
            continue
        counts = np.bincount([label for _, label in part], minlength=len(files.classes))
        empty = np.flatnonzero(counts == 0)
        if empty.size and place == train_root:
            raise OctosimError(f"{place / files.classes[empty[0]]} has no image: class {files.classes[empty[0]]} is empty")
        if not part:
            raise OctosimError(f"{place} has no image")
    return files


def _is_no_image(path: Path) -> bool:
    """Whether a file can be read and holds something else than an image."""
    try:
        with quiet():
            _opened(path, lambda image: None)
    except NoImageError:
        return True
    except OctosimError:
        pass
    return False


def _of_classes(found: Listing, root: Path, place: Path) -> list[tuple[Path, int]]:
    numbers = {name: number for number, name in enumerate(found.classes)}
    files: list[tuple[Path, int]] = []
    real = os.path.realpath(root)
    for folder in _entries(place):
        if not folder.is_dir():
            found.ignored += [] if place == root else [folder]
            continue
        if folder.name not in numbers:
            raise OctosimError(f"{folder} is a class that the training images do not have ({', '.join(numbers)[:200]})")
        for path in _files_below(folder):
            if path.suffix.lower() not in PICTURES and _is_no_image(path):
                found.others.append(path)
                continue
            files.append((path, numbers[folder.name]))
            if path.is_symlink() and os.path.commonpath([real, os.path.realpath(path)]) != real:
                found.outside.append(path)
    return files


# ---- decoding --------------------------------------------------


class NoImageError(OctosimError):
    """A file is of no format that is read, whatever its ending."""


def pillow() -> Any:
    """The module PIL.Image; OctosimError where Pillow is not installed."""
    try:
        import PIL.Image
    except ImportError:
        raise OctosimError("reading images needs Pillow: pip install 'octosim[images]'") from None
    return PIL.Image


def _version() -> str:
    """Of Pillow: another one may decode to other pixels."""
    pillow()
    import PIL

    return str(PIL.__version__)


def read_image(path: Path, shape: tuple[int, int, int] | None = None) -> Array:
    """An image file as uint8 (height, width, 1 or 3), turned as its EXIF data say.

    shape: what it is brought to: cut to the proportions about its centre, then scaled; else its own size.  Transparent pixels
    are laid over white; 16 bits become 8, rounded; palettes and other colour spaces become RGB.  OctosimError names the file.
    """
    pixels: Array = _opened(path, lambda image: _decode(path, image, shape))
    return pixels


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings about odd files; outside of threads, which share the filters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(path: Path, use: Callable[[Any], Any]) -> Any:
    """What `use` makes of an image file; OctosimError names the file."""
    image_module = pillow()
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise OctosimError(f"{path} is empty: it has 0 bytes")
            if size > LARGEST_FILE:
                raise OctosimError(f"{path} has {size:,} bytes, expected an image of at most {LARGEST_FILE:,}")
            with image_module.open(file, formats=FORMATS) as image:
                _check_size(path, *image.size)
                return use(image)
    except image_module.DecompressionBombError:
        raise OctosimError(f"{path} has more than {MOST_PIXELS:,} pixels") from None
    except image_module.UnidentifiedImageError:
        raise NoImageError(f"{path} is no image that can be read ({', '.join(FORMATS)})") from None
    except OctosimError:
        raise
    except Exception as error:  # a broken file may raise nearly anything: struct.error, SyntaxError, ValueError, OSError
        text = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise OctosimError(f"{path} cannot be decoded: {text[:200]}") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise OctosimError(f"{path} has {width} x {height} pixels, expected at most {MOST_PIXELS:,} in all")
    if width < 2 or height < 2:
        raise OctosimError(f"{path} has {width} x {height} pixels, expected at least 2 a side")


def _decode(path: Path, image: Any, shape: tuple[int, int, int] | None) -> Array:
    from PIL import ImageOps

    if shape is not None and image.format == "JPEG":  # decodes at a half, a quarter or an eighth where that is still larger
        side = 2 * max(shape[:2])
        image.draft(None, (side, side))
    image.load()
    image = ImageOps.exif_transpose(image)
    image = _plain(path, image)
    if shape is None:
        return np.atleast_3d(np.asarray(image)).copy()
    height, width, channels = shape
    image = image.convert("RGB" if channels == 3 else "L")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), pillow().Resampling.BILINEAR)
    return np.asarray(image).reshape(shape).copy()


def _plain(path: Path, image: Any) -> Any:
    """The image in mode L or RGB."""
    mode = image.mode
    if mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() >= 1 << 16:
            raise OctosimError(f"{path} has values in {wide.min()} .. {wide.max()}, expected 8 or 16 bits")
        return pillow().fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if mode == "F":
        raise OctosimError(f"{path} holds float values, expected 8 or 16 bits")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = pillow().new("RGBA", image.size, "white")
        under.alpha_composite(image)
        return under.convert("L" if mode in ("LA", "La", "L", "1") else "RGB")
    return image if mode in ("L", "RGB") else image.convert("L" if mode == "1" else "RGB")


def resized(images: Array, shape: tuple[int, int, int]) -> Array:
    """uint8 images (N, height, width, channels) brought to a shape, as `read_image` does."""
    from PIL import ImageOps

    module, (height, width, channels) = pillow(), shape
    out = np.empty((len(images), *shape), np.uint8)
    for place, pixels in zip(out, images, strict=True):
        image = module.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB" if channels == 3 else "L")
        place[...] = np.asarray(ImageOps.fit(image, (width, height), module.Resampling.BILINEAR)).reshape(shape)
    return out


# ---- the source --------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A folder of images: a folder a class, or such folders in train/ and test/."""

    path: Path
    options: Options = Options()

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir()

    def identity(self) -> str:
        """SHA-256 of the files' content, their classes, and how they are read."""
        return self._key(listing(self.path))

    def _key(self, found: Listing) -> str:
        parts = [None if part is None else [(file_digest(p), label) for p, label in part] for part in (found.train, found.test)]
        about = [FORMAT, _version(), self.options.image, self._share(found), len(found.classes), parts]
        about += ["skip"] if self.options.skip_unreadable else []
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def _share(self, found: Listing) -> float | None:
        return self.options.share_of(self.path, found.test is not None)

    def load(self, progress: Progress | None = None) -> Dataset:
        files = listing(self.path)
        share = self._share(files)
        pillow()
        try:
            cached = _Cache.of(self._key(files))
        except OctosimError:  # a file that cannot be read: decoding tells of all
            cached = None
        with ExitStack() as stack:
            if cached:
                stack.enter_context(locked(cached.folder.with_suffix(".lock"), "", wait=True))
            read = cached.read() if cached else None
            arrays, digest, skipped = read or self._decode(files, share, cached, progress)
        notes = [
            *_few(" belongs to no class: left out", "files belong to no class", files.ignored),
            *_few(" is no image: left out", "files are no images", files.others),
            *_few("; left out", "files cannot be used", skipped),
        ]
        path = os.path.abspath(self.path)
        return Dataset(name_of(self.path), *arrays, files.classes, digest, path, share, tuple(notes))

    def _decode(
        self, found: Listing, share: float | None, cached: _Cache | None, progress: Progress | None
    ) -> Read:
        files = found.train + (found.test or [])
        with quiet():
            shape = self.options.image or self._common_shape(files)
        images = cached.new((len(files), *shape)) if cached else np.empty((len(files), *shape), np.uint8)
        wrong: dict[int, str] = {}

        def decode(number: int) -> None:
            pixels = read_image(files[number][0], self.options.image)
            if pixels.shape[-1] < shape[-1]:
                pixels = np.repeat(pixels, shape[-1], axis=-1)
            if pixels.shape != shape:
                raise OctosimError(f"{files[number][0]} changed while it was read")
            images[number] = pixels

        with quiet(), ThreadPoolExecutor(limits.cpus(), "octosim-images") as pool:
            waiting = []
            try:
                for number in range(len(files)):
                    waiting.append(pool.submit(decode, number))
                for number, each in enumerate(waiting):
                    try:
                        each.result()
                    except OctosimError as error:
                        wrong[number] = str(error)
                    if progress:
                        progress(number + 1, len(files))
            finally:
                pool.shutdown(cancel_futures=True)
        try:
            order, count = self._order(found, wrong, images, share)
        except OctosimError:
            if cached:
                cached.drop()
            raise
        labels = np.array([label for _, label in files], np.int32)[order]
        if len(order) < len(files) or share is not None:
            images = cached.reordered(images, order) if cached else images[order]
        arrays = images[:count], labels[:count], images[count:], labels[count:]
        skipped = tuple(wrong.values())
        return cached.keep(skipped, *arrays) if cached else (arrays, digest_of(*arrays), skipped)

    def _order(self, found: Listing, wrong: dict[int, str], images: Array, share: float | None) -> tuple[Array, int]:
        """The numbers of the files in the order of the data set, and how many of them are to train on.

        wrong: what is wrong with files that were not decoded, by number.  OctosimError where that refuses the folder.
        """
        if wrong and not self.options.skip_unreadable:
            raise _refused(self.path, [*wrong.values()])
        files = found.train + (found.test or [])
        order = np.array([number for number in range(len(files)) if number not in wrong], np.intp)
        labels = np.array([label for _, label in files], np.int32)[order]
        count = int(np.count_nonzero(order < len(found.train)))
        empty = np.flatnonzero(np.bincount(labels[:count], minlength=len(found.classes)) == 0)
        if empty.size or found.test is not None and count == len(order):
            lost = f"class {found.classes[empty[0]]}" if empty.size else "the test part"
            raise OctosimError(f"{self.path}: {lost} has no image that can be read; " + _listed([*wrong.values()]))
        if share is None:
            return order, count
        train, test = split(row_digests(images[order] if wrong else images), labels, share)
        if not test.size:
            raise OctosimError(f"{self.path}: no class has two different images, so none can be put aside for testing")
        return order[np.concatenate([train, test])], len(train)

    def _common_shape(self, files: list[tuple[Path, int]]) -> tuple[int, int, int]:
        """Height, width and channels where no size is asked for: the images' own; grey ones fit into RGB."""
        sizes, channels, unknown = _sizes(files)
        if unknown or len(sizes) > 1:  # a header may be right where the rest is not
            wrong = _wrong(files)
            if wrong and not (self.options.skip_unreadable and len(wrong) < len(files)):
                raise _refused(self.path, [*wrong.values()])
            sizes, channels, _ = _sizes([file for file in files if file[0] not in wrong])
        if len(sizes) > 1:
            (h0, w0), (h1, w1) = min(sizes), max(sizes)
            raise ArgumentError(
                f"{self.path} has images of {len(sizes)} sizes, from {h0} x {w0} to {h1} x {w1}; choose one with {{image}}, "
                f"as 96x96x{channels}"
            )
        height, width = sizes.pop()
        if max(height, width) > LARGEST_SIDE:
            raise ArgumentError(f"{self.path} has images of {height} x {width} pixels; choose a smaller size with {{image}}")
        return height, width, channels


def peek(path: Path) -> tuple[int, int, int]:
    """Height, width and channels of an image file as its header says; it may be cut off nevertheless."""

    def size(image: Any) -> tuple[int, int, int]:
        width, height = image.size
        # turned by a quarter, which Pillow allows for in TIFF
        if image.format != "TIFF" and image.getexif().get(ORIENTATION) in (5, 6, 7, 8):
            width, height = height, width
        return height, width, 1 if image.mode[:1] in ("1", "L", "I", "F") and image.mode != "LAB" else 3

    found: tuple[int, int, int] = _opened(path, size)
    return found


def _sizes(files: list[tuple[Path, int]]) -> tuple[set[tuple[int, int]], int, int]:
    """Heights and widths of image files, the most channels, and the number of files whose header cannot be read."""
    sizes, channels, unknown = set[tuple[int, int]](), 1, 0
    for path, _ in files:
        try:
            height, width, depth = peek(path)
        except OctosimError:
            unknown += 1
            continue
        sizes.add((height, width))
        channels = max(channels, depth)
    return sizes, channels, unknown


def _wrong(files: list[tuple[Path, int]]) -> dict[Path, str]:
    """What is wrong with each file that cannot be decoded."""
    wrong = {}
    for path, _ in files:
        try:
            read_image(path)
        except OctosimError as error:
            wrong[path] = str(error)
    return wrong


def _listed(wrong: list[str]) -> str:
    more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    return "; ".join(wrong[:MOST_NAMED]) + more


def _refused(root: Path, wrong: list[str]) -> ArgumentError:
    files = "1 file" if len(wrong) == 1 else f"{len(wrong)} files"
    return ArgumentError(
        f"{root} has {files} that cannot be used: {_listed(wrong)}; 'octosim data check' lists all; move them away, or leave "
        "them out with {skip_unreadable}"
    )


def _few(what: str, many: str, some: Sequence[Path | str]) -> list[str]:
    """A sentence for each of the first, which ends in `what`, and one for the number of the others."""
    more = len(some) - MOST_NAMED
    said = [f"{each}{what}" for each in some[:MOST_NAMED]]
    return said + ([f"{more} more {many}"] if more > 0 else [])


# ---- the cache --------------------------------------------------


@dataclass(frozen=True)
class _Cache:
    """A folder of the user's cache with decoded images: images.npy, those to train on first, and index.json.  With its lock."""

    folder: Path

    @staticmethod
    def of(key: str) -> _Cache | None:
        """None where no cache can be written to: images are then decoded into memory."""
        from octosim.data import sets

        try:
            folder = sets.cache() / "images" / key
            folder.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, OctosimError):
            return None
        return _Cache(folder) if os.access(folder.parent, os.W_OK) else None

    def read(self) -> Read | None:
        """What is there, as it was written; None where it is not, or damaged."""
        try:
            index = read_json(self.folder / "index.json")
            images = np.asarray(np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False))
            labels, count = np.array(index["labels"], np.int32), index["train"]
            arrays = images[:count], labels[:count], images[count:], labels[count:]
            if images.dtype == np.uint8 and images.ndim == 4 and index["sha256"] == digest_of(*arrays):
                return arrays, index["sha256"], tuple(map(str, index.get("skipped", ())))
        except (OctosimError, OSError, KeyError, TypeError, ValueError, EOFError):
            pass
        return None

    def _open(self, name: str, shape: tuple[int, ...]) -> Array:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # who had the lock before may have dropped it
            made: Array = np.lib.format.open_memmap(self.folder / name, "w+", np.uint8, shape)
            _allocate(self.folder / name)
        except OSError as error:
            self.drop()
            raise OctosimError(f"cannot write {self.folder}: {error.strerror}; XDG_CACHE_HOME names another place") from None
        return made

    def new(self, shape: tuple[int, ...]) -> Array:
        return self._open("decoded.tmp", shape)

    def reordered(self, images: Array, order: Array) -> Array:
        made = self._open("ordered.tmp", (len(order), *images.shape[1:]))
        for first in range(0, len(order), 256):
            made[first : first + 256] = images[order[first : first + 256]]
        os.replace(self.folder / "ordered.tmp", self.folder / "decoded.tmp")
        return made

    def keep(self, skipped: tuple[str, ...], *arrays: Array) -> Read:
        """Puts decoded images in place, durably; they are read from there from now on."""
        index = {
            "train": len(arrays[1]),
            "labels": [*arrays[1].tolist(), *arrays[3].tolist()],
            "sha256": digest_of(*arrays),
            "skipped": skipped,
        }
        base: Any = arrays[0]
        while not isinstance(base, np.memmap):
            base = base.base
        try:
            base.flush()
            os.replace(self.folder / "decoded.tmp", self.folder / "images.npy")
            sync_folder(self.folder)
        except OSError as error:
            self.drop()
            raise OctosimError(f"cannot write {self.folder}: {error.strerror}; XDG_CACHE_HOME names another place") from None
        write_atomic(self.folder / "index.json", json.dumps(index).encode())
        found = self.read()
        if found is None:
            raise OctosimError(f"{self.folder} is not as it was written: is the disk sound?")
        return found

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _allocate(path: Path) -> None:
    """Takes a file's room on the disk: a full disk is told here, by OSError, and not by a signal when a page is written."""
    if not hasattr(os, "posix_fallocate"):
        return
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, os.fstat(fd).st_size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without it
            raise
    finally:
        os.close(fd)
