"""A run directory tells the truth: every field of every file forged, damaged or cut, and what each command says to it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.small import few_images
from safetensors import safe_open
from safetensors.numpy import save

from octosim import data, train
from octosim.errors import OctosimError
from octosim.evidence import audit, diff, golden
from octosim.integrity import sha256_of
from octosim.report.read import read_all
from octosim.train.planning import step_of

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


# ---- damage --------------------------------------------------

JUNK: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2 - 1],
    "byte >= 0x80": lambda content: b"\x80" + content,
    "inner byte >= 0x80": lambda content: content[:50] + b"\xff" + content[51:],
    "deep": lambda content: b"[" * 100_000 + b"\n" + content,
    "deep object": lambda content: b'{"a":' * 100_000 + b"\n",
    "NaN": lambda content: b"NaN\n" + content,
    "list": lambda content: b"[]\n",
    "number": lambda content: b"1" * 5000 + b"\n",
    "null": lambda content: b"null\n",
    "zeros": lambda content: bytes(len(content)),
}
FILES = ("manifest.json", "records.jsonl", "overflow.jsonl", "measures.jsonl", "checkpoint.safetensors", "digest.txt")


def refused(command: Callable[[], Any], name: str) -> None:
    with pytest.raises(OctosimError) as caught:
        command()
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused(name: str, junk: str, whole: Path, half: Path, tmp_path: Path) -> None:
    """By name, by each command, the run finished or not; and no file is changed by it."""
    for source in (whole, half):
        folder = tmp_path / source.parent.name
        shutil.copytree(source, folder)
        path = folder / name
        if not path.exists():
            continue  # half's digest.txt
        path.write_bytes(JUNK[junk](path.read_bytes()))
        before = {each: each.read_bytes() for each in folder.iterdir()}
        refused(lambda folder=folder: train.check(folder), name)
        refused(lambda folder=folder: audit.audit(folder, 1), name)
        refused(lambda folder=folder: diff.diff(whole, folder), name)
        refused(lambda folder=folder: golden.golden(folder, 1, None, tmp_path / "golden"), name)
        if source == half:
            refused(lambda folder=folder: train.reopen(folder), name)
        else:
            assert name in named(lambda folder=folder: train.verify(folder))
        assert before == {each: each.read_bytes() for each in folder.iterdir()}
    assert not (tmp_path / "golden").exists()


def without_sums(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """As an earlier octosim's manifest, whose fields nothing but the reader checks."""
    content = json.loads(path.read_text())
    del content["sums"]
    path.write_text(json.dumps(edit(content) or content))


VALUES = [
    None, True, -1, 2**70, 1.5, 4.0, 1e308, "x", "50", "", "a\0b", "\ud800", "a/b.toml", [], ["x"], [1.0], [[]], {}, {"x": []},
]  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(train.Config)])
def test_values_of_config(field: str, half: Path, tmp_path: Path) -> None:
    """Refused with a sentence, or the run goes on to the right bits: the field decides none of them, or is as it was."""
    for number, value in enumerate(VALUES):
        folder = tmp_path / str(number)
        shutil.copytree(half, folder)

        def edit(content: dict[str, Any], value: Any = value) -> None:
            content["config"][field] = value

        without_sums(folder / "manifest.json", edit)
        try:
            run = train.reopen(folder)
        except OctosimError as error:
            assert "\n" not in str(error).replace(str(value), "")
        else:
            decides_nothing = ("lr", "gamma", "eval_every", "count_overflow", "measure", "epochs", "float_layers")
            assert run.step == 2 and field in decides_nothing


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("decides") and None,
        lambda content: content.update(decides=[1]),
        lambda content: content.update(decides={}),
        lambda content: content["decides"].update(data=[]),
        lambda content: content["decides"]["data"].update(sha256=3),
        lambda content: content["decides"].update(layers=3),
        lambda content: content["decides"]["layers"][0].update(filters="x"),
        lambda content: content["decides"]["layers"][0].update(filters=10**30),
        lambda content: content["decides"]["layers"][0].update(kind=["x"]),
        lambda content: content["decides"]["layers"].append(7),
        lambda content: content["decides"].update(more=1),
        lambda content: content.update(config=[]),
        lambda content: content["config"].update(more=1),
        lambda content: content["config"].pop("seed") and None,
        lambda content: content.update(format=True),
        lambda content: content.update(format="1"),
        lambda content: content.update(kind=["run"]),
        lambda content: content.update(parameters=[3]),
        lambda content: content.update(memory={"octo": {"peak": "x"}}),
        lambda content: [content],
    ],
)
def test_shapes_of_the_manifest(edit: Callable[[dict[str, Any]], Any], half: Path, tmp_path: Path) -> None:
    shutil.copytree(half, tmp_path / "run")
    without_sums(tmp_path / "run/manifest.json", edit)
    with pytest.raises(OctosimError) as caught:
        train.reopen(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [-5, 0, 1, 3, 5, 999_999, 2**70, True, 2.0, "2", None])
def test_the_checkpoint_of_another_step(step: Any, half: Path, tmp_path: Path) -> None:
    """With its sum made right again, too: the records do not go with it."""
    for name, right in (("plain", False), ("summed", True)):
        folder = tmp_path / name
        shutil.copytree(half, folder)
        metadata, tensors = read(folder / "checkpoint.safetensors")
        about = json.loads(metadata["octosim"]) | {"step": step}
        if right:
            about.pop("sum")
            about["sum"] = sha256_of(about)
        (folder / "checkpoint.safetensors").write_bytes(save(tensors, {"octosim": json.dumps(about)}))
        before = {each: each.read_bytes() for each in folder.iterdir()}
        with pytest.raises(OctosimError):
            train.reopen(folder)
        assert before == {each: each.read_bytes() for each in folder.iterdir()}, "nothing is lost"


def test_the_checkpoint_of_another_run(half: Path, whole: Path, tmp_path: Path) -> None:
    other = finish(tmp_path / "other", seed=1, model=str(whole.parent / "net.toml"))
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    shutil.copy(other / "checkpoint.safetensors", folder)
    with pytest.raises(OctosimError, match="is the checkpoint of another run"):
        train.reopen(folder)


# ---- one writer at a time --------------------------------------------------


def test_a_second_writer_is_told(half: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    told = []

    def second(progress: train.Progress) -> None:
        for attempt in (lambda: train.reopen(folder), lambda: train.train(late, folder)):
            with pytest.raises(OctosimError, match="another process works on this run"):
                attempt()
            told.append(progress.step)

    late, run = train.reopen(folder), train.reopen(folder)
    assert train.train(run, folder, second)
    assert len(told) == 4 and train.verify(folder).equal
    with pytest.raises(OctosimError, match="is finished already"):
        train.train(late, folder)
    assert train.verify(folder).equal


def test_a_run_that_another_process_took_further(half: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    late = train.reopen(folder)

    def stop(progress: train.Progress) -> None:
        if progress.step == 4:
            raise InterruptedError

    with pytest.raises(OctosimError):
        train.train(train.reopen(folder), folder, stop, every=3)
    with pytest.raises(OctosimError, match="is at step 3, not 2: another process worked on it"):
        train.train(late, folder)
    assert train.train(train.reopen(folder), folder) and train.verify(folder).equal


@pytest.mark.parametrize("tries", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_three_processes_on_one_run(tries: int, tmp_path: Path) -> None:
    """One trains, two resume it at any moment: each ends well or with a sentence, and nothing is lost."""
    line = [sys.executable, "-m", "octosim.cli", "train", "--threads", "1", "--out"]
    shape = ["--model", "mlp", "--batch-size", "20", "--steps", "300", "--checkpoint-every", "7"]
    moments, pipes = random.Random(5), dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for number in range(tries):
        folder = tmp_path / str(number)
        processes = [subprocess.Popen([*line, str(folder), *shape], **pipes)]
        while not (folder / "manifest.json").exists():
            assert processes[0].poll() is None
            time.sleep(0.01)
        for _ in range(2):
            time.sleep(moments.uniform(0, 1))
            processes.append(subprocess.Popen([*line, str(folder), "--resume"], **pipes))
        for process in processes:
            _, errors = process.communicate(timeout=120)
            told = process.returncode == 2 and errors.splitlines()[-1].startswith("octosim: ")
            assert "Traceback" not in errors and (process.returncode == 0 or told), errors
        done = subprocess.run([*line, str(folder), "--resume"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        steps = [json.loads(text)["step"] for text in (folder / "records.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 301))
        train.check(folder)
        assert len({(tmp_path / str(i) / "digest.txt").read_text() for i in range(number + 1)}) == 1


# ---- faults --------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "stride"),
    [("kill", 17), ("full", 29)]
    + [pytest.param(fault, 1, marks=pytest.mark.slow) for fault in ("kill", "eio", "enospc", "full", "erofs")],
)
def test_each_file_operation(fault: str, stride: int, tmp_path: Path) -> None:
    """Killed or failing at every one: the next command finishes the run to the same files."""
    script = Path(__file__).resolve().parents[1] / "kit" / "run_faults.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), fault, str(stride)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["tries"] * stride > 150 and result["wrong"] == [] and result["left"] == [], done.stderr


# ---- report --------------------------------------------------


FORGERIES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "accuracy": ("records.jsonl", lambda content: re.sub(rb'"test_accuracy": [0-9.]+', b'"test_accuracy": 0.99', content)),
    "overflow": ("overflow.jsonl", lambda content: content.replace(b'"saturations": 0', b'"saturations": 9')),
    "seed": ("manifest.json", lambda content: content.replace(b'"seed": 0', b'"seed": 7')),
    "processor": ("manifest.json", lambda content: content.replace(b'"isa": "', b'"isa": "x')),
    "digest": ("digest.txt", lambda content: content.replace(b"sha256:", b"sha256:0")[:-1]),
    "metadata": ("checkpoint.safetensors", lambda content: content.replace(b'\\"step\\": 4', b'\\"step\\": 5')),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_report_leaves_a_forged_run_out_and_says_so(forgery: str, whole: Path, tmp_path: Path) -> None:
    name, change = FORGERIES[forgery]
    shutil.copytree(whole, tmp_path / "forged")
    shutil.copytree(whole, tmp_path / "sound")
    path = tmp_path / "forged" / name
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    found = read_all([tmp_path / "forged", tmp_path / "sound"])
    assert [run.name for run in found.runs] == ["sound"]
    assert [Path(place).name for place, _ in found.skipped] == ["forged"] and name in found.skipped[0][1]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
@pytest.mark.parametrize("name", ["manifest.json", "records.jsonl", "digest.txt", "checkpoint.safetensors", "failure.json"])
def test_a_huge_file_is_not_read(name: str, copied: Path) -> None:
    """Sparse, of 16 GiB: with 2 GiB more than there are now, each reader has its sentence or goes on without it."""
    import resource

    if name == "failure.json":
        (copied / "digest.txt").unlink()
    with open(copied / name, "ab") as file:
        file.truncate(16 << 30)
    held = int(re.search(r"VmSize:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + (2 << 30), before[1]))
    try:
        found = read_all([copied])
        assert found.skipped or found.runs[0].notes or name == "checkpoint.safetensors"  # whose header alone is read
        for read in (train.verify, lambda folder: train.train(train.reopen(folder), folder), train.check):
            if name != "failure.json":
                with pytest.raises(OctosimError):
                    read(copied)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_sums_need_no_core() -> None:
    code = "import octosim.integrity, sys; print([m for m in ('numpy', 'octosim.core', 'octosim.train') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_step_is_priced_from_the_manifest_alone(whole: Path) -> None:
    """Also where nobody knows the data set by name; as from the manifest of octosim 0.1, which has the name only."""
    content = json.loads((whole / "manifest.json").read_text())
    expected = step_of(content)
    unknown = copy.deepcopy(content)
    unknown["decides"]["data"]["name"] = "mine"
    assert step_of(unknown) == expected == step_of({"decides": content["decides"]})
    for wrong in ([], [28, 28], [0, 28, 1], "x", [28, 28, True], None):
        unknown["data"]["image_shape"] = wrong
        with pytest.raises(OctosimError, match=r"data\.image_shape"):
            step_of(unknown)
