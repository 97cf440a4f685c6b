"""Grids of runs: what a study's file says, what is refused, parallel runs, kills, records and the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from kit.cli import octosim
from kit.studies import LONG, file, rows_of, same_records

from octosim import data, study, train
from octosim.errors import OctosimError
from octosim.methods import METHODS

BASE = '[base]\nmodel = "mlp"\nbatch_size = 50\nsteps = 12\n'
TINY = f"""
title = "Tiny"
{BASE}
count_overflow = 6
eval_every = 6
[[grid]]
accumulator = ["exact32", "acc16"]
seed = [0, 1]
"""


# ---- the file --------------------------------------------------


def test_rows_are_all_combinations(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        '[base]\nmodel = "mlp"\nlr = 1\n[base.parameters]\nlac = "off"\n[[grid]]\nseed = [0, 1]\n'
        '[grid.parameters]\nprc = ["off", "gauss"]\n[[grid]]\nmethod = ["octo"]\nmilestones = [[0.5], [0.25, 0.5]]\n',
    )
    assert [row.name for row in rows] == [
        "seed=0,prc=off", "seed=0,prc=gauss", "seed=1,prc=off", "seed=1,prc=gauss",
        "method=octo,milestones=_0.5_", "method=octo,milestones=_0.25,_0.5_",
    ]  # fmt: skip
    assert rows[3].config == train.Config(model="mlp", lr=1, seed=1, parameters={"lac": "off", "prc": "gauss"})
    assert rows[5].config.milestones == [0.25, 0.5]


@pytest.mark.parametrize("name", study.shipped())
def test_shipped_studies_are_good(name: str) -> None:
    path = study.source(name)
    read = study.read(path)
    plan = study.rows(read, path)
    assert len(plan) >= 6 and read.title and "\n" not in read.about
    if next(row["found"] for row in data.available() if row["name"] == read.base.data).startswith("no"):
        pytest.skip(f"{read.base.data} is not on this machine (OCTOSIM_DATA)")
    study.check(plan, path)


def test_all_methods(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, '[[grid]]\nmethod = "all"\nseed = [0, 1]\n')
    assert [(row.config.method, row.config.seed) for row in rows] == [(name, s) for name in METHODS for s in (0, 1)]


def test_rows_whose_names_would_be_equal(tmp_path: Path) -> None:
    """Two patterns whose characters no folder can have; and the same twice."""
    one, two = rows_of(tmp_path, '[[grid]]\ntrain = [["conv*"], ["conv?"]]\n')
    assert one.name == "train=_conv_" and two.name.startswith("train=_conv_-") and one.config != two.config
    again = rows_of(tmp_path, '[[grid]]\ntrain = [["conv*"], ["conv?"]]\n')[1]
    assert again.name == two.name


def test_flags_are_values_of_parameters(tmp_path: Path) -> None:
    rows = study.from_python([train.Config(method="fp32", parameters={"x": True})])[1]
    with pytest.raises(OctosimError, match="method fp32 has no parameter 'x'"):
        study.check(rows, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid = 3", "tiny.toml: field grid is 3, expected a list"),
        ("[base]", "tiny.toml: field grid is missing, expected a table"),
        ("[[grid]]\nseeds = [0]", "unknown field grid[0].seeds, did you mean seed?"),
        ("[bases]\n[[grid]]\nseed = [0]", "unknown field bases, did you mean base?"),
        ("[[grid]]\nmethod = 'each'", "field grid[0].method is 'each', expected a list"),
        ("", "tiny.toml: field grid is missing, expected a table"),
        ("grid = []", "tiny.toml: field grid is [], expected at least 1"),
        ("[[grid]]\nseed = 0", "field grid[0].seed is 0, expected a list"),
        ("[[grid]]\nseed = ['0']", "field grid[0].seed[0] is '0', expected a whole number"),
        ("[base]\nbatchnorm = 1\n[[grid]]\nseed = [0]", "field base.batchnorm is 1, expected true or false"),
        ("[[grid]]\nseed = []", "a list of a grid is empty: the study has no rows"),
        ("[[grid]\n", "tiny.toml: not valid TOML"),
        ("[[grid]]\nseed = [3, 3]", "every row of a study must be another run"),
        ("[[grid]]\nseed = [0, -1]", "row 2 (seed=-1): seed must be in"),
        ("[[grid]]\nmethod = ['octo', 'fp32']\naccumulator = ['exact32', 'acc16']",
         "row 4 (method=fp32,accumulator=acc16): accumulator acc16 is for methods with int8 products"),
        ("[[grid]]\nmethod = ['octo', 'fp32']\n[grid.parameters]\nlac = ['off']", "row 2 (method=fp32): method fp32 has no"),
        ("[[grid]]\n[grid.parameters]\nlac = ['on']", "row 1 (run): method octo: lac must be one of"),
        ("[[grid]]\nmodel = ['mlp', 'lenet']", "row 2 (model=lenet): unknown model 'lenet'"),
        ("[[grid]]\nseed = [0]\n[[grid]]\nseed = [0]\n[grid.parameters]\nlac = ['channel']",
         "row 2 (lac=channel) is the same run as run"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_runs(text: str, words: str, tmp_path: Path) -> None:
    path = file(tmp_path, text)
    done = octosim("study", str(path), folder=tmp_path)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert done.stderr.startswith("octosim: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


# ---- runs --------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, finished."""
    folder = tmp_path_factory.mktemp("study")
    done = octosim("study", str(file(folder, TINY)), "--jobs", "2", "--out", "out", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "4 finished" in done.stdout and done.stderr.count(": finished") == 4
    return folder / "out"


def test_records(finished: Path) -> None:
    table = pd.read_csv(finished / "records.csv")
    assert len(table) == 4 * 2 and table["run"].tolist()[::2] == [
        f"seed={s},accumulator={a}" for s in (0, 1) for a in ("exact32", "acc16")
    ]
    assert table["step"].tolist() == [6, 12] * 4 and table["test_accuracy"].between(0, 1).all()
    assert set(table["method.lac"]) == {"channel"} and set(table["model"]) == {"mlp"}
    narrow = table[table["accumulator"] == "acc16"]
    assert (narrow["saturations"] > 0).all() and (table[table["accumulator"] == "exact32"]["saturations"] == 0).all()
    assert (narrow["inexact"] > 0).all() and (table[table["accumulator"] == "exact32"]["inexact"] == 0).all()
    assert (table["additions"][1::2].to_numpy() == 2 * table["additions"][::2].to_numpy()).all()
    for name, digest in zip(table["run"], table["digest"], strict=True):
        assert train.read_digest(finished / name) == digest
    summary = json.loads((finished / "study.json").read_text())
    assert summary["kind"] == "study" and {row["state"] for row in summary["rows"]} == {"finished"}


def test_runs_are_runs(finished: Path) -> None:
    """As octosim train makes them."""
    assert train.verify(finished / "seed=1,accumulator=acc16").equal


def test_report(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = octosim("report", str(finished), "-o", str(page))
    assert done.returncode == 0 and "4 runs, 0 benches" in done.stdout and not done.stderr, done.stderr
    assert "accumulator=acc16" in page.read_text()


def test_finished_runs_are_skipped(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("checkpoint.safetensors")}
    content = (finished / "records.csv").read_bytes()
    (finished / "records.csv").unlink()
    done = octosim("study", str(finished.parent / "tiny.toml"), "--out", str(finished), "--json")
    assert done.returncode == 0, done.stderr
    assert {row["state"] for row in json.loads(done.stdout)["rows"]} == {"finished"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (finished / "records.csv").read_bytes() == content


def test_dry_run(tmp_path: Path) -> None:
    done = octosim("study", str(file(tmp_path, TINY)), "--dry-run", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == "seed=0,accumulator=exact32"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_settings_are_refused(finished: Path, tmp_path: Path) -> None:
    path = file(tmp_path, TINY.replace("batch_size = 50", "batch_size = 40"))
    done = octosim("study", str(path), "--out", str(finished))
    assert done.returncode == 2 and "was started with other settings" in done.stderr


def test_a_run_that_diverges_is_a_result(tmp_path: Path) -> None:
    """Exit code 0, the row and the page say so; the study's next start leaves the run as it is."""
    path = file(tmp_path, BASE + "[[grid]]\nlr = [0.01, 1e30]\n")
    rows = []
    for _ in range(2):
        done = octosim("study", str(path), "--out", "out", "--jobs", "1", folder=tmp_path)
        rows.append(json.loads((tmp_path / "out/study.json").read_text())["rows"])
        assert done.returncode == 0, done.stderr
        assert "1 finished, 1 diverged" in done.stdout and "lr=1e+30 diverged: step " in done.stderr
        failure = (tmp_path / "out/lr=1e+30/failure.json").stat().st_mtime_ns
    assert [row["state"] for row in rows[0]] == ["finished", "diverged"] and rows[1] == rows[0]
    assert octosim("study", str(path), "--out", "out", "--json", folder=tmp_path).returncode == 0
    assert (tmp_path / "out/lr=1e+30/failure.json").stat().st_mtime_ns == failure
    octosim("report", "out", "-o", "page.md", folder=tmp_path)
    assert "diverged" in (tmp_path / "page.md").read_text()


def test_broken_runs_are_named_and_the_others_trained(tmp_path: Path) -> None:
    """A diverging one, a damaged manifest, a damaged checkpoint, and a folder that was only just made."""
    path = file(tmp_path, BASE + "[[grid]]\nlr = [0.01, 1e30]\n[[grid]]\nseed = [1, 2, 3]\n")
    rows = {row.name: row for row in study.rows(study.read(path), path)}
    assert list(rows) == ["lr=0.01", "lr=1e+30", "seed=1", "seed=2", "seed=3"]
    for name in ("seed=1", "seed=2"):
        train.create(rows[name].config, tmp_path / "out" / name, "test")
    (tmp_path / "out/seed=1/manifest.json").write_text("{")
    (tmp_path / "out/seed=2/checkpoint.safetensors").write_text("no")
    (tmp_path / "out/seed=3").mkdir()
    (tmp_path / "out/seed=3/.manifest.json.1.tmp").write_text("{")
    done = octosim("study", str(path), "--out", "out", "--jobs", "2", "--json", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    states = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert [row["state"] for row in states.values()] == ["finished", "diverged", "broken", "broken", "finished"]
    assert "a smaller learning rate may help" in states["lr=1e+30"]["reason"] and "checkpoint" in states["seed=2"]["reason"]
    assert "seed=1 is broken: " in done.stderr and "manifest.json cannot be read" in done.stderr
    assert set(pd.read_csv(tmp_path / "out/records.csv")["run"]) == {"lr=0.01", "seed=3"}


DAMAGE = [
    ("records.jsonl", lambda text: text[:-9], "records.jsonl: line 12 is cut off or not JSON; move the run away"),
    ("records.jsonl", lambda text: "", "records.jsonl does not end with an evaluation"),
    ("records.jsonl", lambda text: text.rsplit("{", 1)[0], "records.jsonl does not end with an evaluation"),
    ("records.jsonl", lambda text: '{"test_accuracy": 1}\n' + text, "records.jsonl differs from what it was at the checkpoint"),
    ("overflow.jsonl", lambda text: text[:-9], r"overflow.jsonl: line \d+ is cut off or not JSON"),
    ("manifest.json", lambda text: text[:-9], "manifest.json cannot be read"),
    ("manifest.json", lambda text: text.replace('"octosim": "', '"octosim": "0.0.'), "is of octosim 0.0."),
    ("manifest.json", lambda text: text.replace('"format": 1', '"format": 2'), "is not the manifest of a run in format 1"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE)
def test_damaged_finished_runs_are_named_and_the_others_recorded(
    name: str, damage: Callable[[str], str], words: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    path = finished.parent / "tiny.toml"
    broken = tmp_path / "out/seed=0,accumulator=acc16"
    (broken / name).write_text(damage((broken / name).read_text()))
    read = study.read(path)
    states = study.run(read, study.rows(read, path), tmp_path / "out", path.read_text(), lambda rows, *rest: None)
    assert [state.state for state in states] == ["finished", "broken", "finished", "finished"]
    assert re.search(words, states[1].reason)
    assert len(set(pd.read_csv(tmp_path / "out/records.csv")["run"])) == 3


# ---- interruption --------------------------------------------------


def begun(folder: Path, process: subprocess.Popen[str]) -> None:
    """Waits until a run has checkpoints and is in the middle."""
    for _ in range(3000):
        for path in folder.glob("*/records.jsonl"):
            if path.read_bytes().count(b"\n") >= 15 and not (path.parent / "digest.txt").exists():
                return
        assert process.poll() is None, "the study ended before it could be interrupted"
        time.sleep(0.01)
    raise AssertionError("no run began")


def runs_of(process: int) -> set[int]:
    """The processes in which a study trains."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    started = {int(child) for task in tasks for child in task.read_text().split()}
    return {child for child in started if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()}


def works(process: int) -> bool:
    """Whether a process is there, and not as a zombie that waits for the machine's init."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda s: s.name
)
def test_killed_and_started_again(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    """The records of a study that nothing disturbed, to the byte; no process is left, no finished run is made again."""
    path = file(tmp_path, LONG)
    line = ("study", str(path), "--jobs", "2", "--checkpoint-every", "10", "--out")
    process = subprocess.Popen(
        [sys.executable, "-m", "octosim.cli", *line, "broken"], cwd=tmp_path, env=os.environ.copy(), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    begun(tmp_path / "broken", process)
    started = runs_of(process.pid)
    assert started
    process.send_signal(number)
    if number == signal.SIGKILL:
        assert process.wait() == -signal.SIGKILL
        for _ in range(1000):
            if not any(map(works, started)):
                break
            time.sleep(0.01)
    else:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command continues" in errors and "Traceback" not in errors
        assert not any(Path(f"/proc/{pid}").exists() for pid in started)  # ended, and waited for
        states = {row["state"] for row in json.loads((tmp_path / "broken/study.json").read_text())["rows"]}
        assert "interrupted" in states and states <= {"finished", "interrupted", "waiting"}
    assert not any(map(works, started))
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").glob("*/digest.txt")}
    unfinished = [p for p in (tmp_path / "broken").glob("*/manifest.json") if not (p.parent / "digest.txt").exists()]
    assert unfinished
    done = octosim(*line, "broken", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert same_records(whole, tmp_path / "broken")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no masks of signals here")
def test_ctrl_c_does_not_reach_a_process_that_imports(tmp_path: Path) -> None:
    """The first process of a study begins with Ctrl-C blocked, as the others do; the study has it unblocked afterwards."""
    blocked = "import signal, sys; sys.exit(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, signal\nfrom octosim.study import study\n\nif __name__ == '__main__':\n"
        f"    process = multiprocessing.get_context('spawn').Process(target=exec, args=({blocked!r},))\n"
        "    study._start(process)\n    process.join()\n"
        "    print(process.exitcode, signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "1 set()\n", done.stdout + done.stderr


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match="nowhere.toml: no such study"):
        study.read(tmp_path / "nowhere.toml")
    done = octosim("study", str(file(tmp_path, TINY)), "--out", "/proc/nowhere")
    assert done.returncode == 2 and "cannot make /proc/nowhere" in done.stderr


def test_list_prints_every_study_of_the_package() -> None:
    done = octosim("study", "list", "--json")
    found = {row["name"]: row["runs"] for row in json.loads(done.stdout)}
    assert done.returncode == 0 and sorted(found) == study.shipped() and min(found.values()) > 1
