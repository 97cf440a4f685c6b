"""A user's own data: every kind of source gives the same arrays and digests; damage of each kind is a sentence."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from kit import own_data
from kit.own_data import IMAGES, idx_bytes, npz, parts

from octosim import data, train
from octosim.data import dataset as datasets
from octosim.data import sets
from octosim.errors import OctosimError

RUN = dict(model="mlp", batch_size=8, steps=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def same(a: data.Dataset, b: data.Dataset) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in datasets.PARTS) and a.sha256 == b.sha256


# ---- the same data from every source --------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_every_source_gives_the_same_images(tmp_path: Path, channels: int) -> None:
    content = parts(shape=(8, 8, channels))
    found = {}
    for number, (kind, write) in enumerate(IMAGES.items()):
        if not (channels == 3 and kind == "idx file"):
            (tmp_path / str(number)).mkdir()
            found[kind] = data.load(str(write(tmp_path / str(number), content)))
    expected = found["npz"]
    assert np.array_equal(expected.train_images, content[0]) and np.array_equal(expected.test_labels, content[3])
    assert expected.train_images.shape == (24, 8, 8, channels) and expected.train_labels.dtype == np.int32
    for kind, other in found.items():
        assert same(other, expected), kind
    assert found["folder"].classes == ("class0", "class1", "class2") and expected.classes == ("0", "1", "2")


def test_runs_on_every_source_have_one_digest(tmp_path: Path) -> None:
    content, digests = parts(), set()
    for number, write in enumerate(IMAGES.values()):
        (tmp_path / str(number)).mkdir()
        run = train.Run(train.Config(data=str(write(tmp_path / str(number), content)), augment="crop-flip", limit=20, **RUN))
        assert len(run.data.train_labels) == 20 and np.bincount(run.data.train_labels).tolist() == [7, 7, 6]
        while run.step < run.steps:
            run.advance()
        digests.add(run.digest())
    assert len(digests) == 1


def test_cifar_binary(tmp_path: Path) -> None:
    x, y, tx, ty = parts(20, 10, shape=(32, 32, 3))

    def records(images: Any, labels: Any, more: bytes = b"") -> bytes:
        return b"".join(more + bytes([n]) + i.transpose(2, 0, 1).tobytes() for i, n in zip(images, labels, strict=True))

    (tmp_path / "ten").mkdir()
    (tmp_path / "ten" / "data_batch_1.bin").write_bytes(records(x[:12], y[:12]))
    (tmp_path / "ten" / "data_batch_2.bin").write_bytes(records(x[12:], y[12:]))
    (tmp_path / "ten" / "test_batch.bin").write_bytes(records(tx, ty))
    (tmp_path / "ten" / "batches.meta.txt").write_text("car\ndog\nship\n\n")
    found = data.load(str(tmp_path / "ten"))
    assert same(found, data.load(str(npz(tmp_path / "own.npz", (x, y, tx, ty))))) and found.classes == ("car", "dog", "ship")
    (tmp_path / "hundred").mkdir()
    (tmp_path / "hundred" / "train.bin").write_bytes(records(x, y, b"\7"))
    (tmp_path / "hundred" / "test.bin").write_bytes(records(tx, ty, b"\7"))
    assert same(data.load(str(tmp_path / "hundred")), found)
    (tmp_path / "ten" / "data_batch_1.bin").write_bytes(records(x[:12], y[:12])[:-1])
    with pytest.raises(OctosimError, match=r"data_batch_1.bin has 36875 bytes, expected a multiple of 3073"):
        data.load(str(tmp_path / "ten"))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", ">i4"])
def test_labels_of_any_integer_type(tmp_path: Path, dtype: str) -> None:
    x, y, tx, ty = parts()
    found = data.load(str(npz(tmp_path / "own.npz", (x, y.astype(dtype), tx, ty[:, None].astype(dtype)))))
    assert same(found, data.load(str(npz(tmp_path / "plain.npz", (x, y, tx, ty)))))


def test_idx_files_of_other_types(tmp_path: Path) -> None:
    x, y, _, _ = parts()
    (tmp_path / "a-images-idx2-ubyte").write_bytes(idx_bytes(x.reshape(24, -1).astype(np.float64)))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx_bytes(y.astype(np.int32)))
    for where in (tmp_path, tmp_path / "a-images-idx2-ubyte"):
        found = data.load(str(where))
        assert found.train_images.dtype == np.float32 and found.train_images.shape[1:] == (64,) and found.test_share == 0.2
        assert "converted to float32" in found.notes[0]


# ---- splits and parts --------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    images=arrays_of.arrays(np.uint8, st.tuples(st.integers(2, 60), st.just(2)), elements=st.integers(0, 3)),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_split(images: Any, share: float, seed: int) -> None:
    """No image is on both sides, a class with two different images has some on each; the order of the images says nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, len(images))
    digests = datasets.row_digests(images)
    learn, test = datasets.split(digests, labels, share)
    assert sorted([*learn, *test]) == list(range(len(images)))
    rows = [{(label, image.tobytes()) for label, image in zip(labels[at], images[at], strict=True)} for at in (learn, test)]
    assert not rows[0] & rows[1]
    for label in set(labels.tolist()):
        different = len({row for row in rows[0] | rows[1] if row[0] == label})
        held = [len({row for row in side if row[0] == label}) for side in rows]
        assert held[1] == min(max(round(share * different), 1), different - 1)
    order = rng.permutation(len(images))
    again, _ = datasets.split([digests[i] for i in order], labels[order], share)
    assert sorted(order[again]) == learn.tolist()


def test_split_is_the_same_for_a_folder_and_an_npz(tmp_path: Path) -> None:
    x, y, _, _ = content = parts(40)
    root = own_data.folder(tmp_path / "all", content)
    shutil.rmtree(root / "test")
    found = data.load(str(root / "train"), test_share=0.25)
    assert same(found, data.load(str(npz(tmp_path / "own.npz", content, x_test=None, y_test=None)), test_share=0.25))
    assert found.test_share == 0.25 and len(found.test_labels) == 10 and (root / "train").name == found.name


def test_limit_takes_as_many_of_each_class() -> None:
    d = data.load("fashion-mnist-5k", limit=25)
    assert sorted(np.bincount(d.train_labels)) == [2] * 5 + [3] * 5 and len(d.test_labels) == 1000
    whole = data.load("fashion-mnist-5k")
    assert data.load("fashion-mnist-5k", limit=10**9).train_labels.size == 5000
    by_class = [np.flatnonzero(whole.train_labels == label)[:3].tolist() for label in range(10)]
    seconds, thirds = [at for places in by_class for at in places[:2]], sorted(places[2] for places in by_class)
    expected = sorted([*seconds, *thirds[:5]])
    assert np.array_equal(d.train_images, whole.train_images[expected])
    for limit, words in ((9, "at least 10"), (0, "at least 1")):
        with pytest.raises(OctosimError, match=f"^limit must be {words}"):
            data.load("fashion-mnist-5k", limit=limit)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_test_share_out_of_range(tmp_path: Path, share: float) -> None:
    with pytest.raises(OctosimError, match="test_share must be above 0 and below 1"):
        data.load(str(npz(tmp_path / "own.npz", parts(), x_test=None, y_test=None)), test_share=share)


# ---- round trips --------------------------------------------------

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(
    x=arrays_of.arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(1, 5)), elements=FLOATS),
    header=st.booleans(),
    first=st.booleans(),
)
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, x: Any, header: bool, first: bool) -> None:
    """Also without a header, with the label in a column of that name, and with names for classes."""
    root = tmp_path_factory.mktemp("csv")
    labels = np.arange(len(x)) % 2
    names = [f"v{i}" for i in range(x.shape[1])]
    for number, part in enumerate(("train", "test")):
        lines = [",".join(["Label", *names] if first else [*names, "Label"])] if header or first else []
        for row, label in zip(x, labels, strict=True):
            cells, name = [repr(float(v)) for v in row], ("no", "yes")[label]
            lines.append(",".join([name, *cells] if first else [*cells, name]))
        (root / f"{part}.csv").write_text(("\r\n", "\n")[number].join(lines))
    found = data.load(str(root))
    assert found.train_images.tobytes() == x.tobytes() == found.test_images.tobytes()
    assert found.classes == ("no", "yes") and found.train_labels.tolist() == labels.tolist()


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from([np.uint8, np.float32, np.float64, np.float16, ">f4"]),
    shape=st.sampled_from([(7,), (4, 5), (4, 5, 1), (5, 4, 3), (3, 4, 5), (1, 2, 2)]),
    packed=st.booleans(),
    fortran=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_npz_round_trip(
    tmp_path_factory: pytest.TempPathFactory, dtype: Any, shape: tuple[int, ...], packed: bool, fortran: bool, seed: int
) -> None:
    path = tmp_path_factory.mktemp("npz") / "own.npz"
    x = (np.random.default_rng(seed).standard_normal((6, *shape)) * 50 + 100).astype(dtype)
    x = np.asfortranarray(x) if fortran else x
    y = np.arange(6) % 2
    (np.savez_compressed if packed else np.savez)(path, x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    found = data.load(str(path))
    expected = x if x.dtype == np.uint8 else x.astype(np.float32)
    if x.ndim == 3:
        expected = expected[..., None]
    elif x.ndim == 4 and shape[2] not in (1, 3):
        expected = np.moveaxis(expected, 1, -1)
    assert np.array_equal(found.train_images, expected) and found.train_images.dtype == expected.dtype.newbyteorder("=")
    assert found.train_images.flags.c_contiguous and found.train_images.dtype.isnative
    assert bool(found.notes) == (np.dtype(dtype).itemsize in (2, 8))


# ---- damage of arrays --------------------------------------------------


def _with(index: int, value: float, dtype: Any = np.float64) -> Any:
    x = parts()[0].astype(dtype)
    x[index, 2, 3, 0] = value
    return x


X, Y, TX, TY = parts()
DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"x_train": _with(5, np.nan)}, r"x_train\[5\] has a value that is nan"),
    "infinite": ({"x_train": _with(7, -np.inf, np.float32)}, r"x_train\[7\] has a value that is -inf"),
    "beyond float32": ({"x_train": _with(1, 1e39)}, r"x_train\[1\] has a value that is inf in float32"),
    "nan in the test part": (
        {"x_train": X / 255.0, "x_test": np.full(TX.shape, np.nan)}, r"x_test\[0\] has a value that is nan",
    ),
    "integers": ({"x_train": X.astype(np.int64)}, r"x_train is int64, .*; of pixels in 0 .. 255 use .astype"),
    "booleans": ({"x_train": X > 9}, "x_train is bool, expected uint8 or float32; use .astype.numpy.float32"),
    "complex": ({"x_train": X.astype(complex)}, "x_train is complex128"),
    "text": ({"x_train": X.astype(str)}, "x_train is <U3"),
    "objects": ({"x_train": X.astype(object)}, "x_train holds Python objects, which are never loaded"),
    "object labels": ({"y_train": Y.astype(object)}, "y_train holds Python objects"),
    "one dimension": ({"x_train": X[:, 0, 0, 0]}, r"x_train has the shape \(24,\), expected"),
    "five dimensions": ({"x_train": X[None]}, r"x_train has the shape \(1, 24, 8, 8, 1\)"),
    "channels as rows": ({"x_train": np.repeat(X, 8, -1)}, r"x_train has the shape \(24, 8, 8, 8\).*with 1, 3 or fewer"),
    "no pixels": ({"x_train": X[:, :0]}, r"x_train has the shape \(24, 0, 8, 1\)"),
    "one pixel": ({"x_train": X[:, :1, :1]}, "x_train has images of 1 x 1 pixels"),
    "huge images": ({"x_train": np.zeros((1, 5000, 2, 1), np.uint8)}, "x_train has images of 5000 x 2 pixels, .* at most 4096"),
    "no images": ({"x_train": X[:0], "y_train": Y[:0]}, "x_train is empty"),
    "no test images": ({"x_test": TX[:0], "y_test": TY[:0]}, "x_test is empty"),
    "fewer labels": ({"y_train": Y[:-1]}, "y_train has 23 labels, but .*x_train has 24 images"),
    "fewer test labels": ({"y_test": TY[:-2]}, "y_test has 7 labels, but .*x_test has 9 images"),
    "float labels": ({"y_train": Y.astype(float)}, "y_train is float64, expected integers"),
    "names as labels": ({"y_train": Y.astype(str)}, "y_train is <U21, expected integers"),
    "one-hot labels": ({"y_train": np.eye(3, dtype=int)[Y]}, r"y_train has the shape \(24, 3\).*use .argmax"),
    "classes of one name": ({"classes": np.array(["a", "b", "a"])}, "y_train: two classes are called 'a'"),
    "negative labels": ({"y_train": Y - 1}, r"y_train\[0\] is -1, expected a class number"),
    "labels out of range": ({"y_train": Y * 10**6}, r"y_train\[16\] is 2000000, expected a class number in 0 .. 65535"),
    "large unsigned labels": ({"y_train": Y.astype(np.uint64) * 2**63}, r"y_train\[8\] is 9223372036854775808"),
    "test label out of range": ({"y_test": TY + 1}, r"y_test\[6\] is 3, expected 0 .. 2"),
    "an empty class": ({"y_train": Y * 2}, "y_train: class 1 has no image, expected every class from 0 to 4"),
    "classes from one": ({"y_train": Y + 1}, "y_train: class 0 has no image"),
    "one class": ({"y_train": Y * 0, "y_test": TY * 0}, "y_train: every label is 0, expected at least two classes"),
    "another shape": ({"x_test": TX[:, :7]}, r"x_test: the shape of each is \(7, 8, 1\), expected \(8, 8, 1\)"),
    "another type": ({"x_test": TX.astype(np.float32)}, "x_test is float32, expected uint8 as .*x_train is"),
    "without y_test": ({"y_test": None}, "only one of x_test and y_test"),
    "without x_train": ({"x_train": None}, "has no array x_train, expected x_train, y_train"),
    "numbers as names": ({"classes": np.arange(3)}, "classes is int64"),
    "too few names": ({"classes": np.array(["a", "b"])}, r"y_train\[16\] is 2, expected 0 .. 1: 2 classes have names"),
    "too many names": ({"classes": np.array(list("abcd"))}, r"class 3 \(d\) has no image"),
    "equal images": (
        {"x_train": X[:1].repeat(24, 0), "x_test": None, "y_test": None}, "no class has two different images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_npz(tmp_path: Path, damage: str) -> None:
    change, words = DAMAGE[damage]
    path = npz(tmp_path / "own.npz", parts(), **change)
    with pytest.raises(OctosimError, match=words) as caught:
        data.load(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    report = data.check(str(path))
    assert report["problems"] == [str(caught.value)]
    json.dumps(report)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _zip(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def _bomb(path: Path) -> None:
    """A header that promises 2^40 bytes."""
    about = {"descr": "|u1", "fortran_order": False, "shape": (1 << 30, 32, 32, 1)}
    _zip(path, x_train=npy(X)[:10] + repr(about).ljust(117).encode() + b"\n" + bytes(100), y_train=npy(Y))


def _flip(path: Path) -> None:
    content = bytearray(npz(path, parts()).read_bytes())
    content[300] ^= 0x55
    path.write_bytes(content)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda path: None, "is not there: no such file or folder"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as .npz: File is not a zip file"),
    "text": (lambda path: path.write_text("hello"), "cannot be read as .npz: File is not a zip file"),
    "cut off": (lambda path: path.write_bytes(npz(path, parts()).read_bytes()[:-50]), "cannot be read as .npz"),
    "a flipped bit": (_flip, "cannot be read as .npz: Bad CRC-32"),
    "a bomb": (_bomb, r"own.npz: x_train is cut off"),
    "no numbers": (lambda path: _zip(path, x_train=b"hello", y_train=npy(Y)), "cannot be read as .npz"),
    "pickles": (
        lambda path: np.savez(path, x_train=np.array([print], dtype=object), y_train=Y), "x_train holds Python objects",
    ),
    "a folder": (lambda path: path.mkdir(), "has no folder, expected a folder of images for each of at least two classes"),
}  # fmt: skip


@pytest.mark.parametrize("damage", FILES)
def test_damaged_npz_file(tmp_path: Path, damage: str) -> None:
    write, words = FILES[damage]
    write(tmp_path / "own.npz")
    with pytest.raises(OctosimError, match=words) as caught:
        data.load(str(tmp_path / "own.npz"))
    assert "own.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_more_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path / "own.npz", parts())
    monkeypatch.setattr(datasets.limits, "memory", lambda: 2000)
    with pytest.raises(OctosimError, match="own.npz: takes .* bytes unpacked, more than the 2,000 bytes of memory here"):
        data.load(str(path))
    own_data.idx(tmp_path / "own", parts(), packed=True)
    monkeypatch.setattr(datasets.limits, "memory", lambda: 1000)
    with pytest.raises(OctosimError, match="train-images-idx3-ubyte.gz takes 1,536 bytes unpacked"):
        data.load(str(tmp_path / "own"))


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("train-images-idx3-ubyte", lambda c: c[:-1], "says 1536 bytes of data, the file has 1535"),
        ("train-images-idx3-ubyte", lambda c: c + b"x", "says 1536 bytes of data, the file has 1537"),
        ("train-images-idx3-ubyte", lambda c: b"\1" + c[1:], "is not an idx file of numbers"),
        ("train-images-idx3-ubyte", lambda c: c[:9], "is truncated: its header ends after 9 bytes, expected 16"),
        ("train-images-idx3-ubyte", lambda c: gzip.compress(c)[:-9], "cannot be read: Compressed file ended"),
        ("train-labels-idx1-ubyte", lambda c: idx_bytes(np.zeros(24, np.float32)), "is float32, expected integers"),
        ("train-labels-idx1-ubyte", None, "train-images-idx3-ubyte has no labels beside it"),
        ("t10k-labels-idx1-ubyte", lambda c: idx_bytes(np.full(9, 3, np.uint8)), r"t10k-labels-idx1-ubyte\[0\] is 3"),
        ("train-images-idx3-ubyte", None, "has no folder"),
    ],
)
def test_damaged_idx(tmp_path: Path, name: str, change: Any, words: str) -> None:
    folder = own_data.idx(tmp_path / "own", parts())
    if name == "train-images-idx3-ubyte" and change is None:
        (folder / "t10k-images-idx3-ubyte").unlink()
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(OctosimError, match=words):
        data.load(str(folder))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no line of values"),
        ("a,b,label\n", "no line of values"),
        ("1,2,0\n3,4\n", "own.csv, line 2: 2 cells, the first line has 3"),
        ("a,b,label\n1,2,0\n3,,1\n", "own.csv, line 3: b is '', expected a finite number"),
        ("a,b,label\n1,2,0\n3,x,1\n", "own.csv, line 3: b is 'x', expected a finite number"),
        ("1,2,0\n3,nan,1\n", "own.csv, line 2: column 2 is 'nan', expected a finite number in float32"),
        ("1,2,0\n3,1e39,1\n", "own.csv, line 2: column 2 is '1e39', expected a finite number in float32"),
        ("a,label,label\n1,2,0\n", "the column label is there twice"),
        ("a;b;label\n1;2;0\n", "one column, expected numbers and a class.*semicolons"),
        ("1,2,0.5\n3,4,1.5\n", "own.csv, line 1: the label is '0.5', expected a class number from 0 or a name"),
        ("1,2,\n3,4,a\n", "own.csv, line 1: the label is ''"),
        ("1,2,0\n3,4,\n", "own.csv, line 2: the label is ''"),
        (f"1,2,0\n3,4,{10**18}\n", f"own.csv, line 2: the label is '{10**18}'"),
        (",a,label\n0,2,0\n1,4,1\n", "its first column has no name and counts the lines"),
        ("a,label,\n0,2,\n1,4,\n", "own.csv, line 2: a column without a name is ''"),
        ("1,2,-1\n3,4,0\n", r"its labels\[0\] is -1"),
        ("1,2,0\n3,4,0\n", "every label is 0, expected at least two classes"),
        ("1,2,0\n3,4,2\n", "class 1 has no image"),
        ('1,"2,0\n', "line 1: not valid CSV|line 2: not valid CSV"),
        ("1,2,a\n1,2,b\n", "no class has two different images"),
    ],
)
def test_damaged_csv(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(OctosimError, match=words) as caught:
        data.load(str(tmp_path / "own.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["0,1,2,target", "0,1,2,3", "a,b,c,target", "a,b,c,Label"])
@pytest.mark.parametrize("classes", [("0", "1"), ("no", "yes")])
def test_headers_of_numbers(tmp_path: Path, names: str, classes: tuple[str, str]) -> None:
    """pandas numbers columns without names: that line is no image, and its last cell no class."""
    lines = [names, *(f"{i},{i + 0.5},{i % 3},{classes[i % 2]}" for i in range(20))]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    found = data.load(str(tmp_path / "own.csv"))
    assert found.classes == classes and len(found.train_labels) + len(found.test_labels) == 20
    name = names.rpartition(",")[2]
    assert any(f"the class is in its last column, '{name}'" in note for note in found.notes) == (name != "Label")


def test_columns_of_a_test_part_in_another_order(tmp_path: Path) -> None:
    rows = [f"{i},{i + 100},{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "train.csv").write_text("\n".join(["u,v,label", *rows]))
    (tmp_path / "test.csv").write_text("\n".join(["label,v,u", *(",".join(row.split(",")[::-1]) for row in rows)]))
    found = data.load(str(tmp_path))
    assert (found.train_images == found.test_images).all() and (found.train_labels == found.test_labels).all()
    (tmp_path / "test.csv").write_text("\n".join(["u,w,label", *rows]))
    with pytest.raises(OctosimError, match=r"test.csv has no column 'v', expected those of .*train.csv: u, v"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    "given, shape", [((8, 9, 4), (8, 9, 4)), ((4, 8, 9), (8, 9, 4)), ((6, 1, 64), (1, 64, 6)), ((2, 1, 64), (1, 64, 2))]
)
def test_any_number_of_channels(tmp_path: Path, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Of other numbers than 1 and 3 the smaller axis is the channels'."""
    x = np.random.default_rng(0).normal(size=(12, *given)).astype(np.float32)
    found = data.load(str(npz(tmp_path / "own.npz", (x, np.arange(12) % 2, x, np.arange(12) % 2))))
    wanted = x if given == shape else x.transpose(0, 2, 3, 1)
    assert found.train_images.shape == (12, *shape) and (found.train_images == wanted).all()
    with pytest.raises(OctosimError, match="for images of bytes"):
        data.load(str(tmp_path / "own.npz"), image="8x8x3")
    pixels = np.zeros((12, 8, 9, 4), np.uint8)
    with pytest.raises(OctosimError, match="with 1 or 3 channels; those of bytes.npz have 4"):
        data.load(str(npz(tmp_path / "bytes.npz", (pixels, np.arange(12) % 2, pixels, np.arange(12) % 2))), image="8x8x3")


def test_a_test_part_with_a_class_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("1,a\n2,b\n")
    (tmp_path / "test.csv").write_text("1,a\n2,c\n")
    with pytest.raises(OctosimError, match="test.csv, line 2: the label is 'c', expected one of a, b"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    "name, words",
    [
        ("no/such/place", "data no/such/place is not there"),
        ("no.npz", "data no.npz is not there"),
        ("nonsense", "unknown data set 'nonsense'.*own data: a folder of images a class"),
        ("fashion-mnst", "did you mean 'fashion-mnist'"),
        ("bad\0name", "unknown data set"),
    ],
)
def test_names_of_nothing(name: str, words: str) -> None:
    with pytest.raises(OctosimError, match=words):
        data.load(name)


def test_what_is_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(OctosimError, match="is of no known kind"):
        data.load(str(tmp_path / "photo.jpg"))
    for options, words in (({"test_share": 0.2}, "test_share is for data without"), ({"image": "8"}, "image takes HEIGHT")):
        with pytest.raises(OctosimError, match=words):
            data.load("fashion-mnist-5k", **options)
    npz(tmp_path / "own.npz", parts())
    with pytest.raises(OctosimError, match="has a test part; test_share"):
        data.load(str(tmp_path / "own.npz"), test_share=0.5)


# ---- identities --------------------------------------------------


@pytest.mark.parametrize("kind", IMAGES)
def test_identity_follows_the_content(tmp_path: Path, kind: str) -> None:
    identities = []
    for number, content in enumerate((parts(), parts(), parts(seed=1))):
        (tmp_path / str(number)).mkdir()
        identities.append(data.open_source(str(IMAGES[kind](tmp_path / str(number), content))).identity())
    assert identities[0] == identities[1] != identities[2]


def test_load_in_python_takes_paths_and_shapes_and_names_what_it_does_not_take(tmp_path: Path) -> None:
    path = npz(tmp_path / "own.npz", parts(40))
    assert same(data.load(path, image=(8, 8, 3)), data.load(str(path), image="8x8x3"))
    for arguments, words in (
        ((None,), "data is None, expected a name or a path"), ((path, 8), "takes HEIGHTxWIDTHxCHANNELS.*not '8'"),
        ((path, (8, 8)), "not '8x8'"), ((path, None, None, "ten"), "limit is 'ten', expected a whole number"),
    ):  # fmt: skip
        with pytest.raises(OctosimError, match=words):
            data.load(*arguments)
    made = data.from_arrays([[0.5, 1.5], [2.5, 3.5]] * 4, [0, 1] * 4, [[0.5, 1.5]], [0])
    assert made.train_images.shape == (8, 2) and made.train_images.dtype == np.float32
