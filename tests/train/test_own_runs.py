"""Runs on a user's own data: what their directories hold, data that moved or changed, the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import own_data
from kit.own_data import npz, parts
from PIL import Image

from octosim import cli, data, report, train
from octosim.data import sets
from octosim.errors import OctosimError
from octosim.evidence import diff


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return own_data.folder(tmp_path / "photos", parts(20, 8, classes=2, shape=(8, 8, 3)))


def finished(folder: Path, **change: Any) -> Path:
    run = train.create(train.Config(**dict(model="mlp", batch_size=5, steps=3) | change), folder, "test")
    assert train.train(run, folder)
    return folder


def test_what_the_manifest_holds(tmp_path: Path, photos: Path) -> None:
    manifest = train.read_manifest(finished(tmp_path / "a", data=str(photos), image="6x7x3"))
    held = manifest["data"]
    assert held["image_shape"] == [6, 7, 3] and held["classes"] == ["class0", "class1"] and held["path"] == str(photos)
    assert manifest["decides"]["data"] == {
        "name": "photos", "sha256": held["sha256"], "train_images": 20, "test_images": 8,
    }  # fmt: skip
    assert held["test_share"] is None and "input" not in manifest["decides"]
    vectors = parts(shape=(5,))
    path = npz(tmp_path / "v.npz", vectors, x_train=vectors[0].astype(np.float32), x_test=None, y_test=None)
    manifest = train.read_manifest(finished(tmp_path / "b", data=str(path)))
    assert manifest["data"]["test_share"] == 0.2 and manifest["data"]["image_shape"] == [5]
    assert len(manifest["decides"]["input"]["mean"]) == 5
    assert train.step_of(manifest)[0]


def test_the_report_needs_no_data(tmp_path: Path, photos: Path) -> None:
    folder = finished(tmp_path / "a", data=str(photos))
    shutil.rmtree(photos)
    page = tmp_path / "page.html"
    report.write_report([folder], page, "test", profiles=["pi4"], step_of=train.step_of)
    assert "photos" in page.read_text()


@pytest.mark.parametrize("where", ["folder", "npz"])
def test_data_that_moved(tmp_path: Path, photos: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """verify and --resume find them where they were, from any folder, or where they are told; the same pixels will do."""
    monkeypatch.chdir(tmp_path)
    folder = finished(tmp_path / "a", data="photos")
    started = tmp_path / "b"
    run = train.create(train.Config(model="mlp", batch_size=5, steps=3, data="photos"), started, "test")
    run.advance()
    monkeypatch.chdir("/")
    assert train.verify(folder).equal
    d = data.load(str(photos))
    moved = tmp_path / "elsewhere"
    if where == "folder":
        photos.rename(moved)
    else:
        shutil.rmtree(photos)
        moved = npz(tmp_path / "moved.npz", (d.train_images, d.train_labels, d.test_images, d.test_labels))
    for use in (train.verify, train.reopen, train.replay):
        with pytest.raises(OctosimError, match=f"the run's data {photos} are not there; put them back, or name") as caught:
            use(folder)
        assert "\n" not in str(caught.value)
    assert train.verify(folder, place=str(moved)).equal
    run = train.reopen(started, place=str(moved))
    assert train.train(run, started) and train.read_digest(started) == train.read_digest(folder)
    assert train.replay(folder, place=str(moved)).data.name == "photos"


def test_data_that_changed(tmp_path: Path, photos: Path) -> None:
    folder = finished(tmp_path / "a", data=str(photos))
    changed = photos / "train" / "class0" / "0000.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(changed)
    for use in (train.verify, train.reopen, train.replay):
        with pytest.raises(OctosimError, match=f"the run's data had sha256 .*, those at {photos} have"):
            use(folder)
    changed.unlink()
    with pytest.raises(OctosimError, match="the run's data had sha256"):
        train.verify(folder)


def test_two_runs_on_equal_data_do_not_part(tmp_path: Path, photos: Path) -> None:
    d = data.load(str(photos))
    other = npz(tmp_path / "photos.npz", (d.train_images, d.train_labels, d.test_images, d.test_labels))
    first, second = finished(tmp_path / "a", data=str(photos)), finished(tmp_path / "b", data=str(other))
    assert train.read_digest(first) == train.read_digest(second)
    assert diff.diff(first, second)["equal"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": "vgg11"}, r"vgg11 cannot take images of 8 x 8 x 3, as photos has: .*larger images \(image\)"),
        ({"data": "vectors", "model": "simplecnn"}, "cannot take vectors of 5 numbers, as v.npz has.*model mlp takes"),
        ({"data": "vectors", "augment": "crop-flip"}, "augment crop-flip is for images, and v.npz has vectors"),
        ({"batch_size": 21}, "batch_size 21 is larger than the 20 training images of photos"),
    ],
)
def test_networks_that_do_not_fit(tmp_path: Path, photos: Path, change: dict[str, Any], words: str) -> None:
    vectors = npz(tmp_path / "v.npz", parts(shape=(5,)))
    where = str(vectors) if change.get("data") == "vectors" else str(photos)
    with pytest.raises(OctosimError, match=words) as caught:
        train.Run(train.Config(**dict(model="mlp", batch_size=5, steps=1) | change | {"data": where}))
        raise OctosimError("fits")
    assert "\n" not in str(caught.value)


def test_command_line(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a stranger types it: check, train, verify; an interrupted run goes on with data that moved."""
    monkeypatch.chdir(tmp_path)

    def octosim(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["octosim", *arguments])
        code = cli._run()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    code, out, err = octosim("data", "check", "photos", "--json")
    found = json.loads(out)
    assert code == 0 and not found["problems"], err
    assert found["classes"] == [{"name": "class0", "train": 10, "test": 4}, {"name": "class1", "train": 10, "test": 4}]
    assert found["shape"] == [8, 8, 3] and found["sizes"] == {"8 x 8": 28}
    arguments = ("--model", "mlp", "--batch-size", "5", "--steps", "3")
    code, out, err = octosim("train", "--data", "photos/", *arguments)
    assert code == 0 and "2 classes, uint8 images 8 x 8 x 3, 20 to train and 8 to test" in err
    made = Path("runs") / "mlp-photos-octo-seed0"
    assert train.read_manifest(made)["decides"]["data"]["sha256"] == found["sha256"]
    photos.rename("moved")
    code, _, err = octosim("verify", str(made))
    assert code == 2 and "are not there" in err
    assert octosim("verify", str(made), "--data", "moved")[0] == 0
    (made / "digest.txt").unlink()
    assert octosim("train", "--resume", "--out", str(made), "--data", "moved")[0] == 0
    for wrong in (("moved", "--image", "0x1x3"), ("moved", "--test-share", "0.5"), ("nowhere/",), ("moved", "--limit", "1")):
        code, _, err = octosim("train", "--data", *wrong, *arguments, "--out", "x")
        assert code == 2 and len(err.strip().splitlines()) == 1 and not Path("x").exists()
    for wrong in (("--out", str(made)), ("--model", "mpl", "--out", "x")):  # told before a long time of decoding
        code, _, err = octosim("train", "--data", "moved", *arguments, *wrong)
        assert code == 2 and len(err.strip().splitlines()) == 1
    Path("moved/train/class0/zz.jpg").write_text("hello")
    for command in (("data", "check", "moved"), ("train", "--data", "moved", *arguments, "--out", "x")):
        code, _, err = octosim(*command)
        assert code == 2 and "zz.jpg is no image" in err
