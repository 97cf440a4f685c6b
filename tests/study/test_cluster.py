"""Studies on a Dask scheduler with workers on loopback: the records of a study in processes, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.cli import octosim
from kit.studies import LONG, file, rows_of, same_records

from octosim import train
from octosim.errors import OctosimError
from octosim.study import cluster

distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")


def until(true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    for _ in range(int(seconds / 0.02)):
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen in {seconds} s")


class Dask:
    """A scheduler and workers, each in a process and a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start("scheduler", "--scheduler-file", str(self.file), "--host", "127.0.0.1", "--port", "0")
        until(self.file.exists, "the scheduler's start")
        self.address = until(self._address, "the scheduler's address")

    def _address(self) -> str:
        try:
            return str(json.loads(self.file.read_text())["address"])
        except ValueError:
            return ""

    def start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        log = open(self.folder / f"{kind}-{len(self.processes)}.log", "w")
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *options]
        self.processes.append(subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log))
        return self.processes[-1]

    def worker(self, name: str, threads: int = 1) -> subprocess.Popen[bytes]:
        place = self.folder / name
        place.mkdir()
        options = ("--nthreads", str(threads), "--no-nanny", "--local-directory", str(place))
        return self.start("worker", self.address, *options)

    def trains(self, name: str) -> bool:
        """Whether a run on the worker is in the middle."""
        return any(path.stat().st_size > 1000 for path in (self.folder / name).rglob("records.jsonl"))


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Dask]:
    (tmp_path / "dask").mkdir()
    it = Dask(tmp_path / "dask")
    yield it
    for process in it.processes:
        process.kill()
        process.wait()


def start(dask: Dask, folder: Path, text: str = LONG) -> subprocess.Popen[str]:
    line = ("study", str(file(folder, text)), "--cluster", dask.address, "--checkpoint-every", "5", "--out", "out")
    return subprocess.Popen(
        [sys.executable, "-m", "octosim.cli", *line], cwd=folder, env=os.environ.copy(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_worker_dies_and_another_comes(dask: Dask, whole: Path, tmp_path: Path) -> None:
    """SIGKILL of one of two workers in the middle of a run; later SIGINT of the study, and the same command once more."""
    first = dask.worker("first")
    dask.worker("second")
    process = start(dask, tmp_path)
    until(lambda: dask.trains("first"), "a run on the first worker")
    first.kill()
    dask.worker("third")
    until(lambda: list((tmp_path / "out").glob("*/digest.txt")), "the end of a run")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in errors and "Traceback" not in errors, errors
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/digest.txt")}
    process = start(dask, tmp_path)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "4 finished" in printed, errors
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert same_records(whole, tmp_path / "out")
    assert train.verify(next(path.parent for path in (tmp_path / "out").glob("*/digest.txt"))).equal


@pytest.mark.slow
def test_when_the_study_or_the_scheduler_goes(dask: Dask, tmp_path: Path) -> None:
    """A killed study's run ends on its worker; a killed scheduler leaves a study that continues."""
    endless = LONG.replace("steps = 160", "steps = 1000000")
    dask.worker("only")
    process = start(dask, tmp_path, endless)
    until(lambda: dask.trains("only"), "a run on the worker")
    process.kill()
    process.communicate()
    until(lambda: not dask.trains("only"), "the end of the run")
    process = start(dask, tmp_path, endless)
    until(lambda: dask.trains("only"), "a run on the worker")
    dask.scheduler.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in errors and "Traceback" not in errors, errors


def test_what_a_worker_refuses(dask: Dask, tmp_path: Path) -> None:
    """Threads of Dask's, another octosim; a model file goes with the run's manifest."""
    several = dask.worker("several", threads=2)
    with distributed.Client(dask.address, set_as_default=False) as client:
        until(client.nthreads, "a worker")
        done = octosim("study", str(file(tmp_path, LONG)), "--cluster", dask.address, folder=tmp_path)
        assert done.returncode == 2 and "start it with --nthreads 1" in done.stderr and done.stderr.count("\n") == 1
        several.kill()
        until(lambda: not client.nthreads(), "the worker's end")
        dask.worker("one")
        model = tmp_path / "own.toml"
        model.write_text('[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "linear"\n')
        (row,) = rows_of(tmp_path, f'[[grid]]\nmodel = ["{model}"]\nsteps = [3]\n')
        train.create(row.config, tmp_path / "run", "test")
        model.unlink()
        files = cluster.pack(tmp_path / "run")
        result = client.submit(cluster._remote, "run", files, 1, 100, "topic").result()
        assert "digest.txt" in result["files"], result
        other = files["manifest.json"].replace(b'"octosim": "', b'"octosim": "0.0.')
        result = client.submit(cluster._remote, "run", files | {"manifest.json": other}, 1, 100, "topic").result()
        assert "run: 'octosim' was 0.0." in result["reason"] and result["reason"].startswith("on worker tcp://127.0.0.1:")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "carrier-pigeon://home"])
def test_no_scheduler(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", "0.3s")
    rows = rows_of(tmp_path, LONG)
    with pytest.raises(OctosimError, match=f"no Dask scheduler answers at {address}"):
        cluster.train_all(rows, {}, tmp_path, print, bool, address=address, threads=1, command="", every=9)


def test_jobs_are_the_workers(tmp_path: Path) -> None:
    done = octosim("study", str(file(tmp_path, LONG)), "--cluster", "x:1", "--jobs", "2", folder=tmp_path)
    assert done.returncode == 2 and "--jobs is for runs on this machine" in done.stderr
