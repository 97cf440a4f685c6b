"""Data sets: the packaged part, the full sets where they are, and every way a file can be wrong."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octosim import data
from octosim.errors import OctosimError

PART = "fashion-mnist-5k"
FULL = [name for name, source in data.SOURCES.items() if source.url]


def full_set(name: str) -> data.Dataset:
    folder = os.environ.get("OCTOSIM_DATA")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"no {name}/ in OCTOSIM_DATA ({folder or 'not set'})")
    return data.load(name)


def test_packaged_part() -> None:
    d = data.load(PART)
    assert d.train_images.shape == (5000, 28, 28, 1) and d.test_images.shape == (1000, 28, 28, 1)
    assert d.train_images.dtype == d.train_labels.dtype == np.uint8
    assert np.bincount(d.train_labels).tolist() == [500] * 10
    assert np.bincount(d.test_labels).tolist() == [100] * 10
    assert d.train_images.max() == 255 and d.train_images.min() == 0
    assert len(d.classes) == 10 and len(d.sha256) == 64


def test_licence_is_beside_the_packaged_part() -> None:
    assert "MIT" in (data._places(PART)["package"] / "LICENSE").read_text()


@pytest.mark.parametrize("name", FULL)
def test_full_sets(name: str) -> None:
    d = full_set(name)
    assert d.train_images.shape == (60000, 28, 28, 1) and d.test_images.shape == (10000, 28, 28, 1)
    assert set(np.unique(d.test_labels)) == set(range(10))


def test_packaged_part_is_of_the_full_set() -> None:
    """tools/make_fashion_part.py: the first 500 and 100 of each class, in their order."""
    whole, part = full_set("fashion-mnist"), data.load(PART)
    for labels, images, some_labels, some_images, each in (
        (whole.train_labels, whole.train_images, part.train_labels, part.train_images, 500),
        (whole.test_labels, whole.test_images, part.test_labels, part.test_images, 100),
    ):
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(10)]))
        assert np.array_equal(labels[chosen], some_labels) and np.array_equal(images[chosen], some_images)


# ---- what can be wrong --------------------------------------------------


def test_unknown_name() -> None:
    with pytest.raises(OctosimError, match="unknown data set 'fashion-mnst'; did you mean 'fashion-mnist'"):
        data.load("fashion-mnst")


def test_missing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OctosimError) as caught:
        data.load("mnist")
    assert str(tmp_path / "mnist") in str(caught.value)
    assert "octosim data fetch mnist" in str(caught.value) and "OCTOSIM_DATA" in str(caught.value)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packaged part that passes for MNIST."""
    folder = tmp_path / "mnist"
    shutil.copytree(data._places(PART)["package"], folder)
    source = data.SOURCES[PART]
    monkeypatch.setitem(
        data.SOURCES, "mnist", data.Source("copy", data.DIGITS, 5000, 1000, "-", source.sha256, "http://localhost/")
    )
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path))
    assert data.load("mnist").sha256 == data.load(PART).sha256
    return folder


@pytest.mark.parametrize("file", data.FILES)
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
        assert "expected" in str(caught.value) and data.SOURCES["mnist"].sha256[data.FILES.index(file)] in str(caught.value)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG\r\n", "not an idx file of bytes: it starts with 89504e47"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01", "not an idx file of bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "its header ends after 6 bytes"),
        (idx(np.zeros((3, 2), np.uint8))[:-1], "the header says 6 bytes of data, the file has 5"),
        (idx(np.zeros((3, 2), np.uint8)) + b"x", "the header says 6 bytes of data, the file has 7"),
        (b"\x00\x00\x08\x04" + b"\xff" * 16, "the header says 340282366604025813516997721482669850625 bytes"),
    ],
)
def test_bad_idx(content: bytes, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        data.parse_idx(Path("some-file"), content)
    assert str(caught.value).startswith("some-file") and words in str(caught.value)


@given(shape=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_idx_round_trip(shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(data.parse_idx(Path("x"), idx(array)), array)


def replace(copy: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes) -> None:
    """Another content with its right checksum."""
    (copy / file).write_bytes(content)
    digests = list(data.SOURCES["mnist"].sha256)
    digests[data.FILES.index(file)] = hashlib.sha256(content).hexdigest()
    source = data.Source("copy", data.DIGITS, 5000, 1000, "-", tuple(digests), "http://localhost/")
    monkeypatch.setitem(data.SOURCES, "mnist", source)


def test_files_that_do_not_fit_together(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(copy, monkeypatch, data.FILES[1], gzip.compress(idx(np.zeros(4999, np.uint8))))
    with pytest.raises(OctosimError, match=r"labels \(4999,\) are not 5000 labelled images"):
        data.load("mnist")


def test_labels_beyond_the_classes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(copy, monkeypatch, data.FILES[1], gzip.compress(idx(np.full(5000, 10, np.uint8))))
    with pytest.raises(OctosimError, match="are not 5000 labelled images"):
        data.load("mnist")


def test_broken_gzip(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(copy, monkeypatch, data.FILES[0], (copy / data.FILES[0]).read_bytes()[:-100])
    with pytest.raises(OctosimError, match="train-images-idx3-ubyte.gz cannot be unpacked"):
        data.load("mnist")


# ---- fetching, from a server on this machine --------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packaged part served over loopback as MNIST, an empty cache and no OCTOSIM_DATA; returns the served folder."""
    served = tmp_path / "served"
    shutil.copytree(data._places(PART)["package"], served)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *details: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listener.server_port}/"
    source = data.SOURCES[PART]
    monkeypatch.setitem(data.SOURCES, "mnist", data.Source("copy", data.DIGITS, 5000, 1000, "-", source.sha256, url))
    monkeypatch.delenv("OCTOSIM_DATA", raising=False)
    monkeypatch.setattr(data, "_cache", lambda: tmp_path / "cache")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield served
    listener.shutdown()


def test_fetch(server: Path) -> None:
    folder = data.fetch("mnist")
    assert sorted(p.name for p in folder.iterdir()) == sorted(data.FILES)
    assert data.load("mnist").sha256 == data.load(PART).sha256
    assert next(row for row in data.available() if row["name"] == "mnist")["found"] == "cache"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_fetch_that_fails_leaves_nothing_half_written(server: Path, damage: str) -> None:
    path = server / data.FILES[0]
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(OctosimError, match="could not fetch http://127.0.0.1.*train-images"):
        data.fetch("mnist")
    assert not [p for p in (server.parent / "cache").rglob("*") if p.is_file()]
