"""Data sets: the packaged part, the full sets where they are, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import shutil
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octosim import data
from octosim.data import sets
from octosim.errors import OctosimError

PART = "fashion-mnist-5k"
PACKAGED = sets._places(PART)[0][1]
FULL = [name for name, source in data.SOURCES.items() if source.url]
# per channel, of the training images in [0, 1]: the normalization constants in common use, to four digits
MEANS = {"mnist": [0.1307], "fashion-mnist": [0.2860], "cifar10": [0.4914, 0.4822, 0.4465]}
SHA256 = {  # of Dataset.sha256: a change would refuse the replay of every run before it
    PART: "7c7d44f6f3c73363",
    "fashion-mnist": "ba2e37a64f59ed31",
    "mnist": "1380708c276834e0",
    "cifar10": "97fff95240daa5ad",
}


def full_set(name: str) -> data.Dataset:
    folder = os.environ.get("OCTOSIM_DATA")
    found = sets._find(name)
    if not folder or found is None or found[0] != "OCTOSIM_DATA":
        pytest.skip(f"no {name} in OCTOSIM_DATA ({folder or 'not set'})")
    return data.load(name)


def test_packaged_part() -> None:
    d = data.load(PART)
    assert d.train_images.shape == (5000, 28, 28, 1) and d.test_images.shape == (1000, 28, 28, 1)
    assert d.train_images.dtype == d.train_labels.dtype == np.uint8
    assert np.bincount(d.train_labels).tolist() == [500] * 10
    assert np.bincount(d.test_labels).tolist() == [100] * 10
    assert d.train_images.max() == 255 and d.train_images.min() == 0
    assert len(d.classes) == 10 and len(d.sha256) == 64 and d.sha256.startswith(SHA256[PART])
    assert not d.train_images.flags.writeable and not d.test_labels.flags.writeable


def test_licence_and_origin_are_beside_the_packaged_part() -> None:
    assert "MIT" in (PACKAGED / "LICENSE").read_text() and "Zalando" in (PACKAGED / "LICENSE").read_text()
    assert "make_fashion_part.py" in (PACKAGED / "README.md").read_text()
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 3_000_000


def test_packaged_files_have_no_time_stamp_or_name() -> None:
    """Bytes 3 (flags) and 4 to 8 (time) of a gzip header: the same input gives the same file."""
    for file in sets.FILES:
        assert (PACKAGED / file).read_bytes()[3:8] == bytes(5)


def test_aliases() -> None:
    for alias, name in data.ALIASES.items():
        assert sets.resolve(alias) == (name, data.SOURCES[name])
    assert not set(data.ALIASES) & set(data.SOURCES)


def test_available() -> None:
    rows = data.available()
    assert [row["name"] for row in rows] == list(data.SOURCES)
    assert rows[0] == {
        "name": PART, "what": rows[0]["what"], "train": 5000, "test": 1000, "shape": [28, 28, 1], "classes": 10,
        "licence": "MIT", "found": "package",
    }  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_full_sets(name: str) -> None:
    d = full_set(name)
    source = data.SOURCES[name]
    assert d.name == name and d.train_images.shape == (source.train_images, *source.shape)
    assert d.test_images.shape == (10000, *source.shape)
    for array in (d.train_images, d.train_labels, d.test_images, d.test_labels):
        assert array.dtype == np.uint8 and array.flags.c_contiguous and not array.flags.writeable
    assert len(d.train_labels) == source.train_images and set(np.unique(d.test_labels)) == set(range(10))
    assert d.train_images.mean((0, 1, 2)) / 255 == pytest.approx(MEANS[name], abs=6e-5)
    assert d.sha256.startswith(SHA256[name])


def test_packaged_part_is_of_the_full_set() -> None:
    """tools/make_fashion_part.py: the first 500 and 100 of each class, in their order."""
    whole, part = full_set("fashion-mnist"), data.load(PART)
    for labels, images, some_labels, some_images, each in (
        (whole.train_labels, whole.train_images, part.train_labels, part.train_images, 500),
        (whole.test_labels, whole.test_images, part.test_labels, part.test_images, 100),
    ):
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(10)]))
        assert np.array_equal(labels[chosen], some_labels) and np.array_equal(images[chosen], some_images)


def part_tool() -> object:
    path = Path(__file__).resolve().parents[2] / "tools" / "make_fashion_part.py"
    spec = importlib.util.spec_from_file_location("make_fashion_part", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool_makes_the_packaged_part(tmp_path: Path) -> None:
    full_set("fashion-mnist")
    part_tool().make(Path(os.environ["OCTOSIM_DATA"]) / "fashion-mnist", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(sets.FILES)
    for file in sets.FILES:  # unpacked: another zlib may pack differently
        made, packaged = ((folder / file).read_bytes() for folder in (tmp_path / "out", PACKAGED))
        assert gzip.decompress(made) == gzip.decompress(packaged)


def test_the_tool_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte.gz: its content has sha256 .* expected bad3541b"):
        part_tool().make(PACKAGED, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- what can be wrong --------------------------------------------------


def test_unknown_name() -> None:
    with pytest.raises(OctosimError, match="unknown data set 'fashion-mnst'; did you mean 'fashion-mnist'"):
        data.load("fashion-mnst")
    for use in (data.load, data.fetch):
        with pytest.raises(OctosimError) as caught:
            use("imagenet")
        assert all(name in str(caught.value) for name in data.SOURCES)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("fmnist", "fashion-mnist"), ("cifar10", sets.BATCH_FOLDER)])
def test_missing_set(name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path / "given"))
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    with pytest.raises(OctosimError) as caught:
        data.load(name)
    own = data.ALIASES.get(name, name)
    for words in (
        f"data set {own} is not here", f"{tmp_path / 'given' / folder}: no such folder", str(tmp_path / "cache" / folder),
        f"octosim data fetch {own}", f"OCTOSIM_DATA to a folder that holds {folder}/",
    ):  # fmt: skip
        assert words in str(caught.value)
    assert next(row for row in data.available() if row["name"] == own)["found"] == f"no; octosim data fetch {own}"
    monkeypatch.delenv("OCTOSIM_DATA")
    with pytest.raises(OctosimError, match="is not here") as caught:
        data.load(name)
    assert "given" not in str(caught.value)


def test_damaged_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "_places", lambda name: [("package", tmp_path)])
    with pytest.raises(OctosimError, match="no train-images-idx3-ubyte.gz, .*installation of octosim is damaged"):
        data.load(PART)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packaged part that passes for MNIST."""
    folder = tmp_path / "mnist"
    shutil.copytree(PACKAGED, folder)
    source = data.SOURCES[PART]
    monkeypatch.setitem(
        data.SOURCES, "mnist", data.Source("copy", sets.DIGITS, 5000, 1000, "-", source.sha256, "http://localhost/")
    )
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path))
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    assert data.load("mnist").sha256 == data.load(PART).sha256
    return folder


@pytest.mark.parametrize("file", sets.FILES)
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "missing", "folder"])
def test_damaged_files(copy: Path, file: str, damage: str) -> None:
    path = copy / file
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        changed = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        path.write_bytes({"truncated": content[:-5], "changed": changed, "empty": b""}[damage])
    with pytest.raises(OctosimError) as caught:
        data.load("mnist")
    assert file in str(caught.value)
    if damage in ("truncated", "changed", "empty"):
        assert "expected" in str(caught.value) and data.SOURCES["mnist"].sha256[sets.FILES.index(file)] in str(caught.value)


def test_an_incomplete_folder_is_passed_over_and_a_wrong_file_is_not(copy: Path) -> None:
    shutil.copytree(copy, sets.cache() / "mnist")
    assert sets._find("mnist") == ("OCTOSIM_DATA", copy)
    (copy / sets.FILES[3]).write_bytes(b"")
    with pytest.raises(OctosimError, match=str(copy)):
        data.load("mnist")
    (copy / sets.FILES[3]).unlink()
    assert sets._find("mnist") == ("cache", sets.cache() / "mnist")
    assert len(data.load("mnist").test_labels) == 1000


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG\r\n", "not an idx file of bytes: it starts with 89504e47"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01", "it starts with 00000d01, expected 000008"),
        (b"\x00\x00\x08\x00", "it starts with 00000800, expected 000008 and 01 to 04"),
        (b"\x00\x00\x08\x03\x00\x00", "its header ends after 6 bytes, expected 16"),
        (idx(np.zeros((3, 2), np.uint8))[:-1], "the header says 6 bytes of data, the file has 5"),
        (idx(np.zeros((3, 2), np.uint8)) + b"x", "the header says 6 bytes of data, the file has 7"),
        (b"\x00\x00\x08\x04" + b"\xff" * 16, "the header says 340282366604025813516997721482669850625 bytes"),
    ],
)
def test_bad_idx(content: bytes, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        sets.parse_idx(Path("some-file"), content)
    assert str(caught.value).startswith("some-file") and words in str(caught.value)


@given(shape=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_idx_round_trip(shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(sets.parse_idx(Path("x"), idx(array)), array)


def replace(copy: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes) -> None:
    """Another content with its right checksum."""
    (copy / file).write_bytes(content)
    digests = list(data.SOURCES["mnist"].sha256)
    digests[sets.FILES.index(file)] = hashlib.sha256(content).hexdigest()
    source = data.Source("copy", sets.DIGITS, 5000, 1000, "-", tuple(digests), "http://localhost/")
    monkeypatch.setitem(data.SOURCES, "mnist", source)


@pytest.mark.parametrize(
    ("file", "array", "words"),
    [
        (1, np.zeros(4999, np.uint8), "expected an array (5000,), found (4999,)"),
        (3, np.zeros((1000, 1), np.uint8), "expected an array (1000,), found (1000, 1)"),
        (0, np.zeros((5000, 28, 27), np.uint8), "expected an array (5000, 28, 28, 1), found (5000, 28, 27, 1)"),
        (2, np.zeros((28, 28), np.uint8), "expected an array (1000, 28, 28, 1), found (28, 28)"),
        (1, np.full(5000, 10, np.uint8), "expected labels 0 to 9, found 10"),
    ],
)
def test_files_that_do_not_fit(
    copy: Path, monkeypatch: pytest.MonkeyPatch, file: int, array: np.ndarray, words: str
) -> None:
    replace(copy, monkeypatch, sets.FILES[file], gzip.compress(idx(array)))
    with pytest.raises(OctosimError) as caught:
        data.load("mnist")
    assert str(caught.value) == f"{copy / sets.FILES[file]}: {words}"


def test_broken_gzip(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(copy, monkeypatch, sets.FILES[0], (copy / sets.FILES[0]).read_bytes()[:-100])
    with pytest.raises(OctosimError, match="train-images-idx3-ubyte.gz cannot be unpacked"):
        data.load("mnist")


# ---- CIFAR-10: pickles that may call nothing --------------------------------------------------


class _Python2:
    """Pickles as numpy 1 under Python 2 did: the names that the real files ask for."""

    def __init__(self, module: str, name: str) -> None:
        self.line = f"c{module}\n{name}\n".encode()


def py2(thing: object) -> bytes:
    """Opcodes (protocol 2) that build a value; bytes become Python 2 strings."""
    match thing:
        case _Python2():
            return thing.line
        case None:
            return b"N"
        case bool():
            return b"\x88" if thing else b"\x89"
        case int():
            return b"J" + struct.pack("<i", thing)
        case bytes():
            return b"T" + struct.pack("<I", len(thing)) + thing
        case tuple():
            return b"(" + b"".join(map(py2, thing)) + b"t"
        case list():
            return b"](" + b"".join(map(py2, thing)) + b"e"
        case dict():
            return b"}(" + b"".join(py2(key) + py2(value) for key, value in thing.items()) + b"u"
        case np.ndarray():
            dtype = py2(_Python2("numpy", "dtype")) + py2((thing.dtype.str[1:].encode(), 0, 1)) + b"R"
            dtype += py2((3, b"|", None, None, None, -1, -1, 0)) + b"b"
            made = py2(_Python2("numpy.core.multiarray", "_reconstruct"))
            made += b"(" + py2(_Python2("numpy", "ndarray")) + py2((0,)) + py2(b"b") + b"tR"
            return made + b"(" + py2(1) + py2(thing.shape) + dtype + py2(False) + py2(thing.tobytes()) + b"tb"
    raise TypeError(thing)


def batch(rows: int = 4, seed: int = 0) -> tuple[bytes, np.ndarray, np.ndarray]:
    """The pickle of a small batch, its images (rows, 32, 32, 3) and its labels."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, rows, dtype=np.uint8)
    planes = np.concatenate([images[..., channel].reshape(rows, 1024) for channel in range(3)], axis=1)
    content = py2({b"data": planes, b"labels": [int(label) for label in labels], b"batch_label": b"a batch", b"filenames": []})
    return b"\x80\x02" + content + b".", images, labels


def test_the_batches_made_here_are_what_numpy_reads() -> None:
    """The helper above against plain pickle, which may load what this file has made itself."""
    content, images, _ = batch()
    plain = pickle.loads(content, encoding="bytes")[b"data"]
    assert np.array_equal(plain.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), images)


def test_parse_batch() -> None:
    content, images, labels = batch()
    got_images, got_labels = sets.parse_batch(Path("x"), content)
    assert np.array_equal(got_images, images) and np.array_equal(got_labels, labels)
    assert got_images.dtype == got_labels.dtype == np.uint8


class Touches:
    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for malice in (Touches(os.mkdir, str(mark)), Touches(eval, f"open({str(mark)!r}, 'w')"), Touches(np.fromfile, str(mark))):
        for content in (malice, {b"data": malice, b"labels": []}):
            with pytest.raises(OctosimError, match=r"some-file is not a CIFAR-10 batch: it asks for .*; refused"):
                sets.parse_batch(Path("some-file"), pickle.dumps(content, protocol))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touches(os.mkdir, str(mark)), protocol))
    assert mark.exists(), "the malice above has to be real"


def test_a_pickle_cannot_change_numpy() -> None:
    """dtype('i4', copy=False) is one object for the whole process; its __setstate__ would turn its byte order round."""
    shared = py2(_Python2("numpy", "dtype")) + py2((b"i4", 0, 0)) + b"R" + py2((3, b">", None, None, None, -1, -1, 0)) + b"b"
    with pytest.raises(OctosimError, match="'data' are not uint8 rows"):
        sets.parse_batch(Path("x"), b"\x80\x02" + shared + b".")
    assert np.dtype("i4").byteorder == "=" and np.array([1], "i4").tobytes()[0] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a CIFAR-10 batch"),
        (b"\x80\x02", "not a CIFAR-10 batch"),
        (b"<html>", "not a CIFAR-10 batch"),
        (batch()[0][:-100], "not a CIFAR-10 batch"),
        (batch()[0].replace(py2((4, 3072)), py2((5, 3072))), "'data' are not uint8 rows of 3072"),  # a shape that lies
        (pickle.dumps([1, 2]), "'data' are not uint8 rows of 3072"),
        (pickle.dumps({b"data": b"x" * 3072, b"labels": [1]}), "'data' are not uint8 rows of 3072"),
        (b"\x80\x02" + py2({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 1]}) + b".", "'data' are not uint8"),
        (b"\x80\x02" + py2({b"data": np.zeros((2, 3072), np.int8), b"labels": [1, 1]}) + b".", "'data' are not uint8"),
        (b"\x80\x02" + py2({b"data": np.zeros((1, 3072), np.uint8)}) + b".", "'labels' are not a list"),
        (b"\x80\x02" + py2({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}) + b".", "'labels' are not a list"),
        (b"\x80\x02" + py2({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"1"]}) + b".", "'labels' are not a list"),
    ],
)
def test_bad_batch(content: bytes, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        sets.parse_batch(Path("some-file"), content)
    assert str(caught.value).startswith("some-file") and words in str(caught.value) and "\n" not in str(caught.value)


SMALL = batch(1)[0]


@given(at=st.integers(0, len(SMALL) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_any_changed_byte_gives_a_batch_or_a_sentence(at: int, value: int, cut: bool) -> None:
    content = SMALL[:at] + bytes([value]) + (b"" if cut else SMALL[at + 1 :])
    try:
        images, labels = sets.parse_batch(Path("x"), content)
    except OctosimError:
        return
    assert images.shape[1:] == (32, 32, 3) and labels.dtype == np.uint8


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-10 of 5 x 4 + 4 images, in a folder of OCTOSIM_DATA; returns that folder."""
    folder = tmp_path / "given" / sets.BATCH_FOLDER
    folder.mkdir(parents=True)
    contents = [batch(4, seed)[0] for seed in range(6)]
    for file, content in zip(sets.BATCHES, contents, strict=True):
        (folder / file).write_bytes(content)
    digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    archive = ("cifar-10-python.tar.gz", "0" * 64)
    source = data.Source("small", sets.THINGS, 20, 4, "-", digests, "http://localhost/", (32, 32, 3), sets.BATCHES, archive)
    monkeypatch.setitem(data.SOURCES, "cifar10", source)
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path / "given"))
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    return folder


def pack(folder: Path, archive: Path, files: tuple[str, ...] = sets.BATCHES) -> None:
    """Into a .tar.gz or .tar.xz; last file first, as nothing says what order an archive has."""
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, f"w:{archive.suffix[1:]}") as out:
        for file in reversed(files):
            out.add(folder / file, f"{sets.BATCH_FOLDER}/{file}")


def test_cifar_folder(cifar: Path) -> None:
    d = data.load("cifar-10")
    assert d.name == "cifar10" and d.classes == sets.THINGS
    assert not any(a.flags.writeable for a in (d.train_images, d.train_labels, d.test_images, d.test_labels))
    assert np.array_equal(d.train_images, np.concatenate([batch(4, seed)[1] for seed in range(5)]))
    assert np.array_equal(d.train_labels, np.concatenate([batch(4, seed)[2] for seed in range(5)]))
    assert np.array_equal(d.test_images, batch(4, 5)[1]) and np.array_equal(d.test_labels, batch(4, 5)[2])


@pytest.mark.parametrize(
    "place", ["given/cifar-10-batches-py.tar.xz", "given/cifar-10-python.tar.gz", "cache/cifar-10-python.tar.gz"]
)
def test_cifar_archive(cifar: Path, tmp_path: Path, place: str) -> None:
    from_folder = data.load("cifar10")
    pack(cifar, tmp_path / place)
    shutil.rmtree(cifar)
    before = sorted(tmp_path.rglob("*"))
    d = data.load("cifar10")
    assert sets._find("cifar10")[1] == tmp_path / place
    assert d.sha256 == from_folder.sha256 and np.array_equal(d.train_images, from_folder.train_images)
    assert np.array_equal(d.test_labels, from_folder.test_labels)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked to disk"


def test_cifar_binary_edition(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same data set, checked by its own digests."""
    from_pickles = data.load("cifar10")
    folder, digests = cifar.parent / "cifar-10-batches-bin", []
    folder.mkdir()
    for seed, file in enumerate(sets.BATCHES):
        _, images, labels = batch(4, seed)
        rows = np.concatenate([labels[:, None].astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(4, -1)], 1)
        (folder / f"{file}.bin").write_bytes(rows.tobytes())
        digests.append(hashlib.sha256(rows.tobytes()).hexdigest())
    source = dataclasses.replace(data.SOURCES["cifar10"], unpacked=tuple(digests))
    monkeypatch.setitem(data.SOURCES, "cifar10", source)
    assert sets._find("cifar10")[1] == cifar, "the pickles are looked for first"
    shutil.rmtree(cifar)
    found = data.load("cifar10")
    assert found.sha256 == from_pickles.sha256 and np.array_equal(found.train_images, from_pickles.train_images)
    assert np.array_equal(found.test_labels, from_pickles.test_labels)
    (folder / "data_batch_3.bin").write_bytes(bytes(rows.size))
    with pytest.raises(OctosimError, match="data_batch_3.bin .* has sha256 .* truncated or changed"):
        data.load("cifar10")


@pytest.mark.parametrize("damage", ["truncated", "not an archive", "empty", "a file less", "changed", "a link"])
@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_damaged_archive(cifar: Path, tmp_path: Path, damage: str, suffix: str) -> None:
    name = {"gz": "cifar-10-python.tar.gz", "xz": "cifar-10-batches-py.tar.xz"}[suffix]
    archive = tmp_path / "given" / name
    words = "cannot be unpacked"
    if damage == "a file less":
        pack(cifar, archive, sets.BATCHES[:-1])
        words = "has no cifar-10-batches-py/test_batch"
    elif damage == "changed":
        (cifar / "data_batch_3").write_bytes(batch(4, 99)[0])
        pack(cifar, archive)
        words = f"data_batch_3 ({len(batch()[0])} bytes) has sha256"
    elif damage == "a link":
        (cifar / "test_batch").unlink()
        (cifar / "test_batch").symlink_to("/etc/hostname")
        pack(cifar, archive)
        words = "cannot be unpacked: cannot extract (sym)link"
    else:
        pack(cifar, archive)
        content = archive.read_bytes()
        archive.write_bytes({"truncated": content[: len(content) // 2], "empty": b""}.get(damage, b"<html>" * 5000))
    shutil.rmtree(cifar)
    with pytest.raises(OctosimError) as caught:
        data.load("cifar10")
    assert str(archive) in str(caught.value) and words in str(caught.value)


def test_wrong_checksum_is_told_before_a_pickle_is_read(cifar: Path, tmp_path: Path) -> None:
    (cifar / "data_batch_1").write_bytes(pickle.dumps(Touches(os.mkdir, str(tmp_path / "mark"))))
    with pytest.raises(OctosimError, match="data_batch_1 .* has sha256 .* expected"):
        data.load("cifar10")


def test_batch_with_a_row_less(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = batch(3)[0]
    (cifar / "data_batch_2").write_bytes(content)
    source = data.SOURCES["cifar10"]
    digests = (source.sha256[0], hashlib.sha256(content).hexdigest(), *source.sha256[2:])
    monkeypatch.setitem(data.SOURCES, "cifar10", dataclasses.replace(source, sha256=digests))
    with pytest.raises(OctosimError) as caught:
        data.load("cifar10")
    assert str(caught.value) == f"{cifar / 'data_batch_2'}: expected an array (4, 32, 32, 3), found (3, 32, 32, 3)"


# ---- fetching, from a server on this machine --------------------------------------------------


asked: list[str] = []  # of the server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The packaged part served over loopback as MNIST, an empty cache and no OCTOSIM_DATA; returns the served folder."""
    served = tmp_path / "served"
    asked.clear()
    shutil.copytree(PACKAGED, served)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *details: object) -> None:
            asked.append(self.path)

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{listener.server_port}/"
    source = data.SOURCES[PART]
    monkeypatch.setitem(data.SOURCES, "mnist", data.Source("copy", sets.DIGITS, 5000, 1000, "-", source.sha256, url))
    monkeypatch.delenv("OCTOSIM_DATA", raising=False)
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield served
    listener.shutdown()
    listener.server_close()


def test_fetch(server: Path) -> None:
    folder = data.fetch("mnist")
    assert sorted(p.name for p in folder.iterdir()) == sorted(sets.FILES)
    assert data.load("mnist").sha256 == data.load(PART).sha256
    assert next(row for row in data.available() if row["name"] == "mnist")["found"] == "cache"
    asked.clear()
    assert data.fetch("mnist") == folder and not asked, "what is there is not downloaded again"
    (folder / sets.FILES[2]).write_bytes(b"broken")
    data.fetch("mnist")
    assert asked and all(path.endswith(sets.FILES[2]) for path in asked), "what is broken is"
    assert len(data.load("mnist").test_images) == 1000


def test_fetch_archive(server: Path, cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cifar-10-python.tar.gz"
    pack(cifar, server / name)
    digest = hashlib.sha256((server / name).read_bytes()).hexdigest()
    url = data.SOURCES["mnist"].url
    source = dataclasses.replace(data.SOURCES["cifar10"], url=url, archive=(name, digest))
    monkeypatch.setitem(data.SOURCES, "cifar10", source)
    shutil.rmtree(cifar)
    assert data.fetch("cifar-10") == sets.cache() / name
    assert sets._find("cifar10") == ("cache", sets.cache() / name) and len(data.load("cifar10").test_labels) == 4


def test_fetch_without_a_connection(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    monkeypatch.setitem(data.SOURCES, "mnist", dataclasses.replace(data.SOURCES["mnist"], url=url))
    with pytest.raises(OctosimError) as caught:
        data.fetch("mnist")
    assert str(caught.value) == f"could not fetch {url}{sets.FILES[0]}: Connection refused"


def test_fetch_that_is_cut_off(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends in the middle of the file."""
    serve = http.server.SimpleHTTPRequestHandler.copyfile
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler, "copyfile",
        lambda self, source, out: serve(self, io.BytesIO(source.read(1000)), out),
    )  # fmt: skip
    with pytest.raises(OctosimError, match="could not fetch http://127.0.0.1.*train-images-idx3-ubyte.gz: .") as caught:
        data.fetch("mnist")
    assert "\n" not in str(caught.value)
    assert not [path for path in sets.cache().rglob("*") if path.is_file()]


def test_fetch_into_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the folder, not the address, and nothing is asked of the network."""
    monkeypatch.setattr(pooch, "retrieve", None)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "file")
    with pytest.raises(OctosimError, match=f"cannot make {tmp_path}/file/mnist: Not a directory; XDG_CACHE_HOME"):
        data.fetch("mnist")
    monkeypatch.setattr(sets, "cache", lambda: tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OctosimError, match=f"{tmp_path}/mnist is not writable; XDG_CACHE_HOME"):
        data.fetch("mnist")


def test_fetch_of_the_packaged_part() -> None:
    with pytest.raises(OctosimError, match="is in the package: there is nothing to fetch"):
        data.fetch(PART)


@pytest.mark.parametrize("error", [OSError(), ValueError(), TimeoutError("timed out\nafter a while"), OSError(28, "No space")])
def test_every_failed_fetch_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sets, "cache", lambda: tmp_path)
    monkeypatch.setattr(pooch, "retrieve", fails)
    with pytest.raises(OctosimError, match=r"could not fetch https://\S+train-images-idx3-ubyte.gz: \w") as caught:
        data.fetch("mnist")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_fetch_that_fails_leaves_nothing_half_written(server: Path, damage: str) -> None:
    path = server / sets.FILES[0]
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    words = {"changed": "what came has not the expected sha256", "missing": "404"}[damage]
    with pytest.raises(OctosimError, match=f"could not fetch http://127.0.0.1.*train-images.*: {words}"):
        data.fetch("mnist")
    assert not [p for p in (server.parent / "cache").rglob("*") if p.is_file()]
