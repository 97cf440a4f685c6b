"""Folders of images: what Pillow decodes, damaged files, the cache under faults and two processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import own_data
from kit.own_data import parts
from PIL import Image

from octosim import data
from octosim.data import folder as folders
from octosim.data import sets
from octosim.data.folder import read_image
from octosim.errors import OctosimError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return own_data.folder(tmp_path / "photos", parts(12, 6, classes=2, shape=(8, 8, 3)))


# ---- decoding --------------------------------------------------

RAMP = (np.arange(12, dtype=np.uint8) * 20).reshape(3, 4)
RGB = np.stack([RAMP, RAMP // 2, 255 - RAMP], -1)


def _palette() -> Image.Image:
    image = Image.fromarray(RAMP // 20, "P")
    image.putpalette(RGB.reshape(-1).tolist())
    return image


MODES: dict[str, tuple[Image.Image, str, np.ndarray]] = {
    "grey": (Image.fromarray(RAMP), "png", RAMP[..., None]),
    "colours": (Image.fromarray(RGB), "png", RGB),
    "colours, BMP": (Image.fromarray(RGB), "bmp", RGB),
    "colours, TIFF": (Image.fromarray(RGB), "tiff", RGB),
    "colours, lossless WebP": (Image.fromarray(RGB), "webp", RGB),
    "colours, PPM": (Image.fromarray(RGB), "ppm", RGB),
    "black and white": (Image.fromarray(RAMP > 99), "png", np.where(RAMP > 99, 255, 0).astype(np.uint8)[..., None]),
    "palette": (_palette(), "png", RGB),
    "opaque": (Image.fromarray(np.dstack([RGB, np.full((3, 4), 255, np.uint8)])), "png", RGB),
    "transparent": (Image.fromarray(np.dstack([RGB, np.zeros((3, 4), np.uint8)])), "png", np.full((3, 4, 3), 255, np.uint8)),
    "transparent grey": (Image.fromarray(np.dstack([RAMP, RAMP * 0])), "png", np.full((3, 4, 1), 255, np.uint8)),
    "16 bits": (Image.fromarray(RAMP.astype(np.uint16) * 257 + 100), "png", RAMP[..., None]),
    "16 bits, rounded": (Image.fromarray(RAMP.astype(np.uint16) * 257 + 200), "png", RAMP[..., None] + 1),
    "16 bits, TIFF": (Image.fromarray(RAMP.astype(np.uint16) * 257), "tiff", RAMP[..., None]),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(tmp_path: Path, mode: str) -> None:
    image, ending, expected = MODES[mode]
    path = tmp_path / f"a.{ending}"
    image.save(path, **({"lossless": True} if ending == "webp" else {}))
    got = read_image(path)
    assert got.dtype == np.uint8 and np.array_equal(got, expected)
    assert folders.peek(path) == expected.shape
    for shape in ((6, 5, 1), (6, 5, 3), (3, 4, 3)):
        assert read_image(path, shape).shape == shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff"])
def test_orientation_of_exif(tmp_path: Path, ending: str, orientation: int) -> None:
    """The four quarters of the picture as a viewer shows it."""
    shown = np.zeros((64, 32, 3), np.uint8)
    for place, colour in enumerate([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 250)]):
        shown[32 * (place // 2) :, 16 * (place % 2) :] = colour
        shown[32 * (place // 2) : 32 * (place // 2 + 1), 16 * (place % 2) : 16 * (place % 2 + 1)] = colour
    undo: dict[int, Callable[[Any], Any]] = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x), 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.ascontiguousarray(undo[orientation](shown))).save(path, exif=exif, quality=95, subsampling=0)
    got = read_image(path)
    assert got.shape == (64, 32, 3) == folders.peek(path)
    centres = got[16::32, 8::16].reshape(4, 3).astype(int)
    assert abs(centres - shown[16::32, 8::16].reshape(4, 3)).max() < 12
    assert abs(read_image(path, (32, 16, 3)).astype(int)[8::16, 4::8].reshape(4, 3) - centres).max() < 12


def test_scaled_images_keep_their_proportions(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", (10, 10, 3))[:, 1:-1] == 200).all(), "the middle is what is kept"


# ---- damage --------------------------------------------------


def _jpeg(path: Path, size: int = 64) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    return path.read_bytes()


def _huge(path: Path) -> None:
    """A PNG whose header says 20000 x 20000; its data are missing."""
    Image.fromarray(RAMP).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = (20000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (lambda path: path.write_bytes(_jpeg(path)[:-600]), "cannot be decoded: "),
    "cut off in its header": (lambda path: path.write_bytes(_jpeg(path)[:30]), "cannot be decoded|is no image"),
    "text": (lambda path: path.write_text("hello"), "is no image that can be read"),
    "empty": (lambda path: path.write_bytes(b""), "is empty: it has 0 bytes"),
    "one pixel": (lambda path: Image.fromarray(RAMP[:1, :1]).save(path, "PNG"), "has 1 x 1 pixels, expected at least 2"),
    "20000 x 20000": (_huge, "has 20000 x 20000 pixels|has more than"),
    "a dead link": (lambda path: path.symlink_to("nowhere"), "cannot be decoded: No such file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "cannot be decoded: it is not a regular file"),
    "a FIFO": (os.mkfifo, "cannot be decoded: it is not a regular file"),
    "float pixels": (lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path, "TIFF"), "holds float values"),
    "PostScript": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is no image"),
}


@pytest.mark.parametrize("size", [None, "8x8x3"])
@pytest.mark.parametrize("damage", BROKEN)
def test_broken_files(photos: Path, own_cache: Path, damage: str, size: str | None) -> None:
    write, words = BROKEN[damage]
    path = photos / "train" / "class1" / "zz.jpg"
    write(path)
    (photos / "train" / "class0" / "notes.txt").write_text("hello")
    with pytest.raises(OctosimError, match=words) as caught:
        data.load(str(photos), image=size)
    text = str(caught.value)
    assert "has 1 file that cannot be used" in text and str(path) in text and "notes.txt" not in text and "\n" not in text
    assert "leave them out with skip_unreadable" in text
    report = data.check(str(photos), image=size)
    assert report["broken"] == 1 == len(report["problems"]) and sum(report["sizes"].values()) == 18
    assert any("notes.txt is no image: left out" in warning for warning in report["warnings"])
    assert not list(own_cache.glob("images/*"))


@pytest.mark.parametrize("size", [None, "8x8x3"])
@pytest.mark.parametrize("damage", BROKEN)
def test_broken_files_left_out(photos: Path, own_cache: Path, damage: str, size: str | None) -> None:
    whole = data.load(str(photos), image=size)
    paths = [photos / "train" / "class1" / "aa.jpg", photos / "test" / "class0" / "b.png"]
    for path in paths:
        BROKEN[damage][0](path)
    for _ in range(2):  # decoded, then from the cache
        found = data.load(str(photos), image=size, skip_unreadable=True)
        assert found.sha256 == whole.sha256 and np.array_equal(found.test_images, whole.test_images)
        assert all(f"{path} " in note and note.endswith("; left out") for path, note in zip(paths, found.notes, strict=True))
    with pytest.raises(OctosimError, match="has 2 files that cannot be used"):
        data.load(str(photos), image=size)
    report = data.check(str(photos), image=size, skip_unreadable=True)
    assert report["problems"] == [] and report["sha256"] == whole.sha256 and len(report["warnings"]) >= 2


@pytest.mark.parametrize("part", ["train", "test"])
def test_nothing_left_when_broken_files_are_left_out(photos: Path, own_cache: Path, part: str) -> None:
    for folder in [photos / "train" / "class1"] if part == "train" else (photos / "test").iterdir():
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(OctosimError, match="class class1 has no image that can be" if part == "train" else "test part has no"):
        data.load(str(photos), skip_unreadable=True)
    assert not list(own_cache.glob("images/*"))


def test_the_split_without_what_is_left_out(tmp_path: Path) -> None:
    root = own_data.folder(tmp_path / "all", parts(40, 2, classes=2)) / "train"
    whole = data.load(str(root))
    (root / "class0" / "0.png").write_bytes(b"\x89PNG")
    found = data.load(str(root), skip_unreadable=True)
    assert found.sha256 == whole.sha256 and found.test_share == whole.test_share == 0.2


OTHERS = {"a.txt": b"x", "b.csv": b"1,2", "c": b"no ending", "d.json": b"{}", "e.mp4": b"\0\0\0 ftypisom", "f.py": b""}


def test_files_that_are_no_images_are_left_out(photos: Path) -> None:
    """By ending and content: an image without an ending is one; a picture of a kind that is not read is not passed over."""
    before = data.load(str(photos))
    place = photos / "train" / "class0"
    for name, content in OTHERS.items():
        (place / name).write_bytes(content or b"import os")
    (next(place.glob("*.png"))).rename(place / "0")
    found = data.load(str(photos))
    assert len(found.train_labels) == len(before.train_labels)
    assert [note.rpartition("/")[2] for note in found.notes[:-1]] == [f"{name} is no image: left out" for name in [*OTHERS][:5]]
    assert found.notes[-1] == "1 more files are no images"
    (place / "phone.heic").write_bytes(b"\0\0\0 ftypheic")
    with pytest.raises(OctosimError, match="phone.heic is no image that can be read"):
        data.load(str(photos))


def _clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


LAYOUTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty class": (lambda root: _clear(root / "train" / "class0"), "class0 has no image: class class0 is empty"),
    "one class": (lambda root: shutil.rmtree(root / "train" / "class0"), "has only one folder, class1/"),
    "no class": (lambda root: _clear(root / "train"), "has only one folder|only one folder|has no folder|train.*has no image"),
    "an empty folder": (_clear, "has no folder, expected a folder of images for each of at least two classes"),
    "a class to test only": (
        lambda root: shutil.copytree(root / "test" / "class0", root / "test" / "other"), "other is a class that the training",
    ),
    "nothing to test": (lambda root: _clear(root / "test"), "test has no image"),
    "test only": (lambda root: shutil.rmtree(root / "train"), "has test/ but no train/"),
    "several sizes": (
        lambda root: Image.fromarray(RGB).save(root / "test" / "class0" / "a.png"),
        "images of 2 sizes, from 3 x 4 to 8 x 8; .*image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_cannot_be_trained_on(photos: Path, layout: str) -> None:
    change, words = LAYOUTS[layout]
    change(photos)
    with pytest.raises(OctosimError, match=words) as caught:
        data.load(str(photos))
    assert str(photos) in str(caught.value) and "\n" not in str(caught.value)


def test_what_systems_leave_is_skipped(photos: Path) -> None:
    before = data.load(str(photos))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden/x.png", "__MACOSX/x.png"):
        place = photos / "train" / "class0" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("x")
    (photos / "readme.md").write_text("x")
    after = data.load(str(photos))
    assert after.sha256 == before.sha256 and "readme.md belongs to no class" in after.notes[0]


def test_parts_of_other_names(photos: Path) -> None:
    """They were two classes."""
    before = data.load(str(photos))
    (photos / "train").rename(photos / "Training")
    (photos / "test").rename(photos / "Testing")
    assert data.load(str(photos)).sha256 == before.sha256


def test_dark_images_of_16_bits_are_told(tmp_path: Path) -> None:
    """Those of 12 bits have 16 values left."""
    for number, label in itertools.product(range(12), "ab"):
        (tmp_path / label).mkdir(exist_ok=True)
        wide = np.random.default_rng(number).integers(0, 4096, (8, 8)).astype(np.uint16)
        Image.fromarray(wide).save(tmp_path / label / f"{number}.png")
    assert any("the largest pixel is 16 of 255" in warning for warning in data.check(str(tmp_path))["warnings"])


def test_a_class_that_is_called_train(tmp_path: Path) -> None:
    root = own_data.folder(tmp_path / "all", parts(20, 2, classes=2)) / "train"
    (root / "class0").rename(root / "train")
    (root / "class1").rename(root / "test")
    assert data.load(str(root)).classes == ("test", "train")


def test_grey_and_coloured_images_together(tmp_path: Path) -> None:
    root = own_data.folder(tmp_path / "a", parts(12, 4, classes=2, shape=(8, 8, 1)))
    Image.fromarray(np.full((8, 8, 3), (9, 8, 7), np.uint8)).save(root / "train" / "class0" / "zz.png")
    found = data.load(str(root))
    assert found.train_images.shape == (13, 8, 8, 3) and found.train_images[6].tolist() == [[[9, 8, 7]] * 8] * 8
    assert (found.train_images[0, ..., 0] == found.train_images[0, ..., 2]).all()


# ---- the cache --------------------------------------------------


def test_images_are_decoded_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.load(str(photos), image="6x6x3")
    moved = photos.with_name("moved")
    photos.rename(moved)
    monkeypatch.setattr(folders, "read_image", None)
    again = data.load(str(moved), image="6x6x3")
    assert again.sha256 == first.sha256 and np.array_equal(again.train_images, first.train_images)
    assert isinstance(again.train_images.base.base, np.memmap) and not again.train_images.flags.writeable
    with pytest.raises(TypeError):
        data.load(str(moved), image="6x5x3")


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "index", "labels", "leftover"])
def test_a_damaged_cache_is_made_again(photos: Path, own_cache: Path, damage: str) -> None:
    first = data.load(str(photos))
    (folder,) = (own_cache / "images").iterdir()
    images, index = folder / "images.npy", folder / "index.json"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    match damage:
        case "flipped":
            images.write_bytes(content)
        case "cut":
            images.write_bytes(content[:-9])
        case "missing":
            images.unlink()
        case "index":
            index.write_text("{")
        case "labels":
            index.write_text(index.read_text().replace("[0, ", "[1, "))
        case "leftover":
            index.unlink()
            (folder / "decoded.tmp").write_bytes(b"x")
    assert data.load(str(photos)).sha256 == first.sha256
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "index.json"]


@pytest.mark.parametrize("obstacle", ["a file", "not writable"])
def test_without_a_cache_images_are_decoded_into_memory(photos: Path, own_cache: Path, obstacle: str) -> None:
    if obstacle == "a file":
        own_cache.write_text("x")
    else:
        own_cache.mkdir()
        own_cache.chmod(0o500)
        if os.access(own_cache, os.W_OK):
            pytest.skip("this user may write anywhere")
    assert len(data.load(str(photos)).train_labels) == 12


def test_a_full_disk_is_a_sentence(photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OctosimError, match="cannot write .*images/.*: No space left on device; XDG_CACHE_HOME names"):
        data.load(str(photos))
    assert not list(own_cache.glob("images/*"))


def _load(folder: str, cache: str, pipe: Any) -> None:
    sets.cache = lambda: Path(cache)  # type: ignore[assignment]
    try:
        pipe.send(data.load(folder, image="16x16x3").sha256)
    except BaseException as error:
        pipe.send(repr(error))


@pytest.mark.parametrize(("side", "large"), [(360, False), (400, True)])
def test_large_photographs_are_looked_at_in_a_smaller_size(tmp_path: Path, own_cache: Path, side: int, large: bool) -> None:
    for number in range(6):
        place = tmp_path / "photos" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (number * 40, 9, 9)).save(place / f"{number}.jpg")
    report = data.check(str(tmp_path / "photos"))
    assert report["problems"] == [] and report["shape"] == ([64, 64, 3] if large else [side, side, 3])
    assert any("are large: train with --image" in warning for warning in report["warnings"]) == large


def test_processes_that_read_one_folder(photos: Path, own_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(2):
        ours, theirs = context.Pipe(duplex=False)
        workers.append(context.Process(target=_load, args=(str(photos), str(own_cache), theirs)))
        workers[-1].start()
        pipes.append(ours)
    digests = {pipe.recv() for pipe in pipes}
    for worker in workers:
        worker.join()
    assert digests == {data.load(str(photos), image="16x16x3").sha256}
    assert len(list((own_cache / "images").iterdir())) == 1


def test_without_pillow(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(OctosimError, match=r"reading images needs Pillow: pip install 'octosim\[images\]'"):
        data.load(str(photos))


def test_named_sets_and_arrays_at_another_size(tmp_path: Path) -> None:
    plain = data.load("fashion-mnist-5k", limit=20)
    found = data.load("fashion-mnist-5k", image="12x10x3", limit=20)
    assert found.train_images.shape == (20, 12, 10, 3) and found.test_images.shape == (1000, 12, 10, 3)
    assert found.sha256 != plain.sha256 and found.train_labels.tolist() == plain.train_labels.tolist()
    path = own_data.npz(tmp_path / "a.npz", parts(shape=(5,)))
    with pytest.raises(OctosimError, match="^image is for images; a.npz has vectors of 5 numbers"):
        data.load(str(path), image="8x8x1")
