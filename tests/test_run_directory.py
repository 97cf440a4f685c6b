"""A run directory tells the truth: every field of every file forged, damaged or cut, and what each command says to it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow import few_images
from safetensors import safe_open
from safetensors.numpy import save

from octosim import data, train
from octosim.errors import OctosimError

NET = """
[[layers]]
kind = "conv"
filters = 2
kernel = 9
stride = 4
[[layers]]
kind = "relu"
[[layers]]
kind = "flatten"
[[layers]]
kind = "linear"
"""
LINES = ("records.jsonl", "overflow.jsonl", "measures.jsonl")
STEPS = 4


def tiny_images(name: str) -> data.Dataset:
    d = few_images(name)
    return dataclasses.replace(
        d, train_images=d.train_images[:12], train_labels=d.train_labels[:12], test_images=d.test_images[:5],
        test_labels=d.test_labels[:5],
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_data() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", tiny_images)
        yield


def config(folder: Path, **change: Any) -> train.Config:
    (folder / "net.toml").write_text(NET)
    given = dict(
        model=str(folder / "net.toml"), method="octo", batch_size=4, steps=STEPS, eval_every=2, count_overflow=2, measure=2,
    )  # fmt: skip
    return train.Config(**given | change)


def finish(folder: Path, every: int = 100, **change: Any) -> Path:
    run = train.create(config(folder.parent, **change), folder, "octosim train ...")
    assert train.train(run, folder, every=every)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_data: None) -> Path:
    """A finished run, which no test changes."""
    return finish(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, small_data: None) -> Path:
    """The same run, interrupted: its checkpoint is of step 2, its records go on to step 3."""
    folder = tmp_path_factory.mktemp("half") / "run"

    def stop(progress: train.Progress) -> None:
        if progress.step == 3:
            raise InterruptedError

    with pytest.raises(OctosimError):
        train.train(train.create(config(folder.parent), folder, "octosim train ..."), folder, stop, every=2)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


# ---- forgeries --------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values of a JSON value that are no containers, or empty ones."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    paths = [each for key, inner in inside for each in leaves(inner, (*path, key))]
    yield from paths or [path]


def forged(value: Any, path: tuple[Any, ...]) -> Any:
    """The value with the leaf at a path changed to another of its kind."""
    made = copy.deepcopy(value)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    if isinstance(old, bool):
        new: Any = not old
    elif isinstance(old, int):
        new = old + 1
    elif isinstance(old, float):
        new = math.nextafter(old, 2.0)
    elif isinstance(old, str):
        new = old + "x" if not old.endswith("x") else old[:-1]
    else:
        new = 1 if old is None else {"x": 1} if old == {} else [1.0]
    holder[path[-1]] = new
    return made


def named(verdict_of: Callable[[], train.Verdict]) -> str:
    """What verify says: the differences, or the sentence of a damaged run."""
    try:
        verdict = verdict_of()
    except OctosimError as error:
        assert "\n" not in str(error)
        return str(error)
    assert verdict.equal == (not verdict.differences)
    return "\n".join(verdict.differences)


def test_equal(whole: Path) -> None:
    verdict = train.verify(whole)
    assert verdict.equal and verdict.differences == () and verdict.recorded == verdict.replayed


def test_every_field_of_the_manifest(copied: Path) -> None:
    path = copied / "manifest.json"
    content = json.loads(path.read_text())
    paths = list(leaves(content))
    assert len(paths) > 100 and {"decides", "config", "environment", "sums", "command"} <= {where[0] for where in paths}
    for where in paths:
        path.write_text(json.dumps(forged(content, where)))
        said = named(lambda: train.verify(copied))
        assert "manifest.json" in said, where
        if where[0] == "sums" or len(where) > 1:
            assert where[1] in said, (where, said)
    edits = [{key: value for key, value in content.items() if key != gone} for gone in content] + [content | {"extra": 1}]
    for edited in edits:
        path.write_text(json.dumps(edited))
        assert "manifest.json" in named(lambda: train.verify(copied)), set(content) ^ set(edited)


def chosen(rows: list[dict[str, Any]], everything: bool) -> list[int]:
    """Lines to forge: all, or the first, the last and two others."""
    inner = random.Random(7).sample(range(len(rows)), min(2, len(rows)))
    return list(range(len(rows))) if everything else sorted({0, len(rows) - 1, *inner})


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("name", LINES)
def test_every_field_of_the_lines(name: str, everything: bool, copied: Path) -> None:
    path = copied / name
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) >= STEPS // 2
    seen = set()
    for number in chosen(rows, everything):
        for where in leaves(rows[number]):
            if not everything and (len(where) > 1 and where[-1] not in (0, "16")) and (number, where[0]) in seen:
                continue  # one bin of a histogram
            seen.add((number, where[0]))
            changed = [*rows[:number], forged(rows[number], where), *rows[number + 1 :]]
            path.write_text("".join(json.dumps(row) + "\n" for row in changed))
            said = named(lambda: train.verify(copied))
            assert name in said, (number, where)
            if name != "measures.jsonl":  # a float of which is told by the checkpoint's sum where it is near
                assert str(where[0]) in said and f"line {number + 1} " in said or "line" in said and "step" == where[0], said


LINE_EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "one less": lambda lines: lines[:-1],
    "first gone": lambda lines: lines[1:],
    "twice": lambda lines: [*lines[:2], *lines[1:]],
    "one more": lambda lines: [*lines, lines[-1].replace(f'"step": {STEPS}', f'"step": {STEPS + 1}')],
    "backwards": lambda lines: lines[::-1],
    "none": lambda lines: [],
    "extra field": lambda lines: [lines[0].replace("{", '{"extra": 1, ', 1), *lines[1:]],
    "field gone": lambda lines: [json.dumps(dict(list(json.loads(lines[0]).items())[:-1])) + "\n", *lines[1:]],
    "field twice": lambda lines: [lines[0].replace("{", '{"step": 9, ', 1), *lines[1:]],
    "integer as float": lambda lines: [lines[0].replace('"step": ', '"step": 0.0e0', 1), *lines[1:]],
}


@pytest.mark.parametrize("edit", LINE_EDITS)
@pytest.mark.parametrize("name", LINES)
def test_lines(name: str, edit: str, copied: Path) -> None:
    path = copied / name
    path.write_text("".join(LINE_EDITS[edit](path.read_text().splitlines(keepends=True))))
    assert name in named(lambda: train.verify(copied))
    with pytest.raises(OctosimError, match=name.replace(".", r"\.")):
        train.check(copied)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_every_tensor_and_field_of_the_checkpoint(copied: Path) -> None:
    path = copied / "checkpoint.safetensors"
    metadata, tensors = read(path)
    assert list(metadata) == ["octosim"] and "conv1.w" in tensors
    for name, tensor in tensors.items():
        changed = tensor.copy()
        changed.reshape(-1).view(np.uint8)[0] ^= 1
        path.write_bytes(save({**tensors, name: changed}, metadata))
        assert f"checkpoint.safetensors: tensor {name} " in named(lambda: train.verify(copied))
        path.write_bytes(save({key: value for key, value in tensors.items() if key != name}, metadata))
        assert f"checkpoint.safetensors: tensor {name} is missing" in named(lambda: train.verify(copied))
    path.write_bytes(save({**tensors, "more": tensor}, metadata))
    assert "checkpoint.safetensors: tensor more is none of the run" in named(lambda: train.verify(copied))
    about = json.loads(metadata["octosim"])
    for where in leaves(about):
        path.write_bytes(save(tensors, {"octosim": json.dumps(forged(about, where))}))
        said = named(lambda: train.verify(copied))
        assert "checkpoint.safetensors" in said and (str(where[-1]) in said or "cannot be read" in said), (where, said)
        with pytest.raises(OctosimError, match=r"checkpoint\.safetensors"):
            train.check(copied)


@pytest.mark.parametrize(
    "change",
    [lambda text: text.replace(f"step {STEPS}", "step 4000"), lambda text: text.replace("sha256:", "sha256:0")[:-1] + "\n",
     lambda text: "sha256:" + "0" * 64 + text[71:], lambda text: text + "more\n", lambda text: text.rstrip(), lambda text: "",
     lambda text: "\x80" + text, lambda text: text.replace("  ", " ")],
)  # fmt: skip
def test_digest(change: Callable[[str], str], copied: Path) -> None:
    path = copied / "digest.txt"
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    assert "digest.txt" in named(lambda: train.verify(copied))
    with pytest.raises(OctosimError, match=r"digest\.txt"):
        train.check(copied)


def test_equal_runs_have_equal_checkpoints(whole: Path, half: Path, tmp_path: Path) -> None:
    """To the byte, interrupted or not, whatever the intervals."""
    again = finish(tmp_path / "run", every=1, model=str(whole.parent / "net.toml"))
    resumed = tmp_path / "resumed"
    shutil.copytree(half, resumed)
    assert train.train(train.reopen(resumed), resumed)
    for name in ("checkpoint.safetensors", "digest.txt", *LINES):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
        assert name == "checkpoint.safetensors" or (resumed / name).read_bytes() == (whole / name).read_bytes()
    assert train.verify(resumed).equal
