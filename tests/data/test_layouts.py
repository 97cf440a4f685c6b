"""Data sets where and how other programs leave them, and for users without a home directory."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octosim import data
from octosim.data import sets
from octosim.errors import OctosimError

PART = "fashion-mnist-5k"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OCTOSIM_DATA, empty; mnist is the part of Fashion-MNIST that is in the package."""
    packaged = sets._places(PART)[0][1]
    digests = tuple(hashlib.sha256(gzip.decompress((packaged / f).read_bytes())).hexdigest() for f in sets.FILES)
    source = dataclasses.replace(data.SOURCES[PART], url="http://localhost/", unpacked=digests, folders=("MNIST/raw",))
    monkeypatch.setitem(data.SOURCES, "mnist", source)
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path / "given"))
    monkeypatch.setattr(sets, "cache", lambda: tmp_path / "cache")
    return tmp_path / "given"


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
@pytest.mark.parametrize("form", ["packed", "unpacked", "dotted", "both"])
def test_idx_files_as_other_programs_leave_them(root: Path, folder: str, form: str) -> None:
    packaged = sets._places(PART)[0][1]
    (root / folder).mkdir(parents=True)
    for file in sets.FILES:
        content, plain = (packaged / file).read_bytes(), file.removesuffix(".gz")
        if form in ("packed", "both"):
            (root / folder / file).write_bytes(content)
        if form in ("unpacked", "both"):
            (root / folder / plain).write_bytes(gzip.decompress(content))
        if form == "dotted":
            (root / folder / plain.replace("-idx", ".idx")).write_bytes(gzip.decompress(content))
    found, expected = data.load("mnist"), data.load(PART)
    assert found.sha256 == expected.sha256 and (found.train_images == expected.train_images).all()
    assert data.find_given("mnist") == root / folder
    changed = sets._file(root / folder, sets.FILES[0], data.SOURCES["mnist"])
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(OctosimError, match=f"{changed}.*truncated or changed"):
        data.load("mnist")


def test_the_digests_of_unpacked_files() -> None:
    given = os.environ.get("OCTOSIM_DATA")
    for name in ("mnist", "fashion-mnist"):
        source = data.SOURCES[name]
        if not given or not (Path(given) / name / sets.FILES[0]).exists():
            pytest.skip(f"no {name} in OCTOSIM_DATA")
        for file, digest in zip(source.files, source.unpacked, strict=True):
            assert hashlib.sha256(gzip.decompress((Path(given) / name / file).read_bytes())).hexdigest() == digest


def test_what_is_given_is_not_fetched(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from octosim import cli

    shutil.copytree(sets._places(PART)[0][1], root / "mnist")
    monkeypatch.setattr(sys, "argv", ["octosim", "data", "fetch", "mnist"])
    assert cli._run() == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(root / "mnist") and "is in OCTOSIM_DATA already" in said.err


def test_a_user_without_a_home_directory() -> None:
    """As `docker run --user 12345` has it: no HOME, and no entry among the users."""
    code = (
        "import pwd\n"
        "def getpwuid(number): raise KeyError(number)\n"
        "pwd.getpwuid = getpwuid\n"
        "from octosim import data\nfrom octosim.errors import OctosimError\n"
        "print(len(data.available()))\n"
        "for use in (data.load, data.fetch):\n"
        "    try: use('mnist')\n"
        "    except OctosimError as error: print(error)\n"
    )
    variables = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "OCTOSIM_DATA")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(len(data.SOURCES)) and done.stdout.count("no home directory") == 2
