"""Faults of the host, tried on purpose: kills, failing file operations, damaged files, several processes on one run, several
threads in one process.

    python tests/faults/campaign.py kills --tries 500
    python tests/faults/campaign.py operations --tries 2000
    python tests/faults/campaign.py damage --tries 10000
    python tests/faults/campaign.py race --tries 20
    python tests/faults/campaign.py threads --tries 100

Each ends with a table and exit code 1 where anything was lost, changed a result unnoticed, hung, took too much memory or ended
with a traceback.  Try I of a seed is the same in every campaign (--only I makes it alone).  Commands run in forked children of
this process, which has octosim imported already, so that a try takes milliseconds; shim.c, compiled here and preloaded, makes
file operations fail.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import damaging
import numpy as np
from running import COUNT, FROM_THEN_ON, KILL, ONCE, SHORT, Ended, Fault, Worker, apart, ended, start

SHIM = Path(__file__).parent / "shim.c"
HANG_S, PATIENCE_S = 10.0, 600.0
"""A command on these small inputs that takes longer counts as hanging (`running.Clock`).  Those that only prepare a campaign
have more time."""

# ---- jobs --------------------------------------------------


MODEL = """
[[layers]]
kind = "conv"
filters = 3
kernel = 3

[[layers]]
kind = "batchnorm"

[[layers]]
kind = "relu"

[[layers]]
kind = "flatten"

[[layers]]
kind = "linear"
"""
STUDY = """
title = "Two"
[base]
model = "small.toml"
data = "small.npz"
batch_size = 10
steps = 4
eval_every = 2
[[grid]]
method = ["octo", "fp32"]
"""
TRAIN = (
    "train --model small.toml --data small.npz --method octo --batch-size 10 --steps 12 --eval-every 5 --checkpoint-every 3 "
    "--count-overflow 4 --measure 5 --threads 1 --out run"
).split()
RESUME = "train --resume --threads 1 --checkpoint-every 3 --out run".split()


@dataclass
class Job:
    """A command that writes, and the command that goes on after a fault.  Both run in a folder that `prepare` fills.

    out: what the command writes, in that folder.
    """

    name: str
    prepare: Callable[[Path], None]
    command: list[str]
    again: Callable[[Path], list[str]]
    out: str

    def result(self, folder: Path) -> dict[str, bytes]:
        return run_files(folder / self.out)


def inputs(folder: Path) -> None:
    (folder / "small.toml").write_text(MODEL)
    (folder / "two.toml").write_text(STUDY)
    r = np.random.default_rng(0)
    sizes = {"train": 60, "test": 24}
    arrays = {f"x_{part}": r.integers(0, 256, (n, 6, 6), np.uint8) for part, n in sizes.items()}
    labels = {f"y_{part}": np.arange(n) % 4 for part, n in sizes.items()}
    np.savez(folder / "small.npz", **arrays, **labels)


def with_run(folder: Path) -> None:
    inputs(folder)
    shutil.copytree(REFERENCE / "run", folder / "run")


def with_network(folder: Path) -> None:
    damaging.write_onnx(folder / "net.onnx")


def with_times(folder: Path) -> None:
    with_network(folder)
    (folder / "times.csv").write_text(damaging.TIMES)


def run_files(folder: Path) -> dict[str, bytes]:
    """What must be equal of files: all but times and the environment of a manifest."""
    files = {}
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("timing.jsonl", "study.json"):
            content = path.read_bytes()
            if path.name == "manifest.json":
                content = json.dumps(json.loads(content)["decides"], sort_keys=True).encode()
            files[str(path.relative_to(folder))] = content
    return files


def jobs() -> list[Job]:
    def resume(folder: Path) -> list[str]:
        return RESUME if (folder / "run" / "manifest.json").exists() else TRAIN

    def same(text: str) -> Callable[[Path], list[str]]:
        return lambda folder: text.split()

    def anew(text: str, out: str) -> Callable[[Path], list[str]]:
        def again(folder: Path) -> list[str]:
            shutil.rmtree(folder / out, ignore_errors=True)
            return text.split()

        return again

    def job(name: str, prepare: Callable[[Path], None], text: str, out: str, folder: bool = False) -> Job:
        return Job(name, prepare, text.split(), anew(text, out) if folder else same(text), out)

    study = "study two.toml --jobs 1 --threads 1 --out study"
    found = [
        Job("train", inputs, TRAIN, resume, "run"),
        job("study", inputs, study, "study"),
        job("golden", with_run, "golden run --step 3 --layer fc1 --out vectors", "vectors", True),
        job("report", with_run, "report run -o page.html", "page.html"),
        job("export", with_run, "export run --to c --out deploy", "deploy", True),
        job("scaffold", inputs, "new method mine --out package", "package", True),
    ]
    try:
        importlib.import_module("onnx")
    except ImportError:
        return found
    return [
        *found,
        job("import", with_network, "import net.onnx -o net", "net", True),
        job("calibrate", with_times, "profiles calibrate --from times.csv --profile pi4 -o fitted.toml", "fitted.toml"),
    ]


REFERENCE = Path()  # a finished run, made once


# ---- campaigns --------------------------------------------------


@dataclass
class Tally:
    """What a campaign found.  failures: sentences; outcomes: how often a command ended so; slowest: seconds, by command; most:
    the largest memory of a command, bytes."""

    tries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    most: int = 0

    def fail(self, text: str) -> None:
        self.failures.append(text)
        print(f"FAILED: {text}", flush=True)

    def saw(self, name: str, done: Ended, seconds: float) -> None:
        self.tries += 1
        self.outcomes[f"{name}: {'killed' if done.code < 0 else f'exit {done.code}'}"] += 1
        self.slowest[name] = max(self.slowest.get(name, 0.0), seconds)
        self.most = max(self.most, done.peak)

    def join(self, other: Tally) -> None:
        self.tries += other.tries
        self.outcomes += other.outcomes
        self.failures += other.failures
        self.slowest |= {name: max(s, self.slowest.get(name, 0.0)) for name, s in other.slowest.items()}
        self.most = max(self.most, other.most)


@contextlib.contextmanager
def workplace(prepare: Callable[[Path], None]) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fault", dir=REFERENCE.parent)).resolve()
    try:
        prepare(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def expected(job: Job, worker: Worker) -> tuple[Any, int]:
    """The result without a fault, and the number of file operations of the parent process."""
    with workplace(job.prepare) as folder:
        done = worker.run(job.command, folder, PATIENCE_S, Fault(COUNT))
        if done.code:
            raise SystemExit(f"{job.name} without a fault: exit code {done.code}: {done.errors}")
        return job.result(folder), done.operations


def recover(job: Job, worker: Worker, folder: Path, want: Any, limit: float, what: str, tally: Tally) -> None:
    """Runs the command that goes on; it must end well, with the result of a run without a fault and no file left over."""
    done = worker.run(job.again(folder), folder, limit)
    if done.wrong or done.code:
        tally.fail(f"{job.name}, {what}, then again: {done.wrong or f'exit code {done.code}'}: {done.errors.strip()[-300:]}")
        return
    if job.result(folder) != want:
        tally.fail(f"{job.name}, {what}, then again: another result")
    left = [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")] + [str(p) for p in folder.rglob("*.part")]
    if left:
        tally.fail(f"{job.name}, {what}, then again: left over {left}")


FAULTS = {
    "EIO": (ONCE, errno.EIO), "ENOSPC": (ONCE, errno.ENOSPC), "full from then on": (FROM_THEN_ON, errno.ENOSPC),
    "read-only from then on": (FROM_THEN_ON, errno.EROFS), "short write": (SHORT, errno.ENOSPC), "kill": (KILL, 0),
}  # fmt: skip


def chosen(asked: Asked) -> list[Job]:
    return [job for job in jobs() if job.name in asked.jobs or not asked.jobs]


def all_expected(asked: Asked, tally: Tally, worker: Worker) -> dict[str, tuple[Any, int]]:
    """`expected` of each job that is asked for."""
    wants = {job.name: expected(job, worker) for job in chosen(asked)}
    for name, (_, count) in wants.items():
        if count < 3:
            tally.fail(f"{name}: the shim saw {count} file operations: it is not preloaded, or counts the wrong ones")
    return wants


def operations(tally: Tally, asked: Asked, wants: Any, worker: Worker, numbers: Iterator[int]) -> None:
    """File operations of the jobs: one fails once, all from it on, half of a write is written, or the process dies.

    Each operation with each fault where --tries is as large as that; otherwise as many of them, in an order that is drawn.
    """
    tries = [(job, at, name) for job in chosen(asked) for at in range(1, wants[job.name][1] + 1) for name in FAULTS]
    random.Random(asked.seed).shuffle(tries)
    for number in numbers:
        if number >= len(tries):
            break
        job, at, name = tries[number]
        want, count = wants[job.name]
        with workplace(job.prepare) as folder:
            what = f"{name} at operation {at} of {count} (--only {number})"
            mode, code = FAULTS[name]
            began = time.monotonic()
            done = worker.run(job.command, folder, asked.limit, Fault(mode, at, code))
            tally.saw(job.name, done, time.monotonic() - began)
            if done.wrong:
                tally.fail(f"{job.name}, {what}: {done.wrong}: {done.errors.strip()[-300:]}")
            recover(job, worker, folder, want, asked.limit, what, tally)


def kills(tally: Tally, asked: Asked, wants: Any, worker: Worker, numbers: Iterator[int]) -> None:
    """SIGKILL, SIGTERM or SIGINT at a random moment, up to three times in a row, then the command that goes on."""
    durations, each = dict[str, float](), chosen(asked)
    for number in numbers:
        chance, job = random.Random(f"{asked.seed} {number}"), each[number % len(each)]
        if job.name not in durations:
            with workplace(job.prepare) as folder:
                began = time.monotonic()
                ended(start(job.command, folder), folder, PATIENCE_S)
                durations[job.name] = time.monotonic() - began
        with workplace(job.prepare) as folder:
            arguments, sent = job.command, []
            for _ in range(chance.randint(1, 3)):
                began = time.monotonic()
                pid = start(arguments, folder)
                time.sleep(chance.uniform(0, durations[job.name]))
                signalled = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signalled)
                sent.append(signalled.name)
                done = ended(pid, folder, asked.limit)
                tally.saw(job.name, done, time.monotonic() - began)
                if done.wrong and done.code != -signal.SIGTERM:
                    tally.fail(f"{job.name}, {'+'.join(sent)}: {done.wrong}: {done.errors.strip()[-300:]}")
                arguments = job.again(folder)
            what = f"{'+'.join(sent)} (--only {number})"
            recover(job, worker, folder, wants[job.name][0], asked.limit, what, tally)


def undamaged(asked: Asked, tally: Tally, worker: Worker) -> list[damaging.Reader]:
    """Writes the files; the commands that read them, each of which ends well before damage."""
    readers = damaging.prepare(REFERENCE, worker, [[*TRAIN[:-1], "other", "--seed", "1"]], PATIENCE_S)
    for reader in readers:
        with workplace(lambda folder: copy(reader, folder)) as folder:  # noqa: B023 - called here
            done = worker.run(reader.command.split(), folder, PATIENCE_S)
            if done.code != (1 if reader.command.startswith("diff") else 0):
                tally.fail(f"{reader.command} without damage: exit code {done.code}: {done.errors.strip()[-300:]}")
    return readers


def copy(reader: damaging.Reader, folder: Path) -> None:
    for name in reader.files:
        kept = REFERENCE / name
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, folder / name)


def damage(tally: Tally, asked: Asked, readers: Any, worker: Worker, numbers: Iterator[int]) -> None:
    """A damaged file before each command that reads it: no traceback, no hang, and no result from it but the right one."""
    finished = run_files(REFERENCE / "run")
    order = [reader for reader in readers for _ in range(reader.weight)]
    random.Random(asked.seed).shuffle(order)
    for number in numbers:
        chance, reader = random.Random(f"{asked.seed} {number}"), order[number % len(order)]
        with workplace(lambda folder: copy(reader, folder)) as folder:  # noqa: B023 - called here
            files = [p for p in sorted((folder / reader.read).rglob("*")) if p.is_file()] or [folder / reader.read]
            path = chance.choice(files)
            before, original = damaging.meaning(path), path.read_bytes()
            path.write_bytes(damaging.damaged(original, path.name, chance))
            content = path.read_bytes()
            resumes = reader.command.startswith("train --resume")
            if resumes and path.name != "digest.txt" and chance.random() < 0.5:
                (folder / "run" / "digest.txt").unlink()  # a run that goes on from its last checkpoint
            changed = damaging.meaning(path) != before
            began = time.monotonic()
            done = worker.run(reader.command.split(), folder, asked.limit)
            tally.saw(reader.command.split()[0], done, time.monotonic() - began)
            where = f"{reader.command}, {path.relative_to(folder)} damaged (--only {number})"
            if done.wrong:
                tally.fail(f"{where} ({content[:80]!r}): {done.wrong}: {done.errors.strip()[-400:]}")
            elif reader.command == "verify run" and done.code == 0 and changed and path.name in damaging.DECISIVE:
                tally.fail(f"{where}: accepted: {damaging.difference(original, content)}")
            elif resumes and done.code == 0 and changed:
                after = run_files(folder / "run")
                if {**after, "manifest.json": b""} != {**finished, "manifest.json": b""}:
                    tally.fail(f"{where}: resumed to another result: {damaging.difference(original, content)}")


def race(tally: Tally, asked: Asked, wants: Any, worker: Worker, numbers: Iterator[int]) -> None:
    """A run and two that resume it, at once: each ends well or with a sentence, and the run has all its records."""
    job = jobs()[0]
    want, _ = wants[job.name]
    for number in numbers:
        with workplace(inputs) as folder:
            began = time.monotonic()
            first = start(TRAIN, folder)
            until = began + asked.limit
            while not (folder / "run" / "manifest.json").exists() and time.monotonic() < until:
                time.sleep(0.001)
            others = []
            for _ in range(2):
                twin = folder.with_name(folder.name + f"-{len(others)}")  # only for the names of its output files
                twin.symlink_to(folder)
                others.append((start(RESUME, twin), twin))
            results = [ended(first, folder, asked.limit)] + [ended(pid, twin, asked.limit) for pid, twin in others]
            for _, twin in others:
                twin.unlink()
            tally.saw(f"race {sorted(done.code for done in results)}", results[0], time.monotonic() - began)
            for done in results:
                if done.wrong or done.code not in (0, 2):
                    tally.fail(f"race: {done.wrong or f'exit code {done.code}'}: {done.errors.strip()[-300:]}")
            recover(job, worker, folder, want, asked.limit, f"three processes (--only {number})", tally)


def trained(method: str, seed: int, recorded: bool) -> str:
    """The digest of a run after eight steps."""
    from octosim import train

    network, images = REFERENCE / "small.toml", REFERENCE / "small.npz"
    run = train.Run(train.Config(model=str(network), data=str(images), method=method, batch_size=10, seed=seed))
    run.allow_replay = recorded
    for _ in range(8):
        run.train_step()
    return run.digest()


def forked(work: Callable[[], str], limit: float) -> str:
    """What `work` returns in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    answered = select.select([reader], [], [], 6 * limit)[0]
    if not answered:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with open(reader, "rb") as answer:
        return answer.read().decode() if answered else "hang"


def threads(tally: Tally, asked: Asked, alone: Any, worker: Worker, numbers: Iterator[int]) -> None:
    """Two threads of a process train at once, with two threads of OpenMP, and one of them forks a child that trains: each has
    the bits of that run alone."""
    from octosim import core

    choices = list(alone)
    for number in numbers:
        core.set_threads(2)
        chance, found, began = random.Random(f"{asked.seed} {number}"), dict[int, str](), time.monotonic()
        drawn = [chance.choice(choices) for _ in range(3)]

        def work(at: int, drawn: Any = drawn, found: Any = found) -> None:
            try:
                found[at] = trained(*drawn[at])
                if at == 1:
                    found[2] = forked(lambda: trained(*drawn[2]), asked.limit)
            except BaseException as error:
                found[at] = repr(error)

        pair = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(2)]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join(6 * asked.limit)
        tally.saw("pair of threads and a fork", Ended(0, "", "", False, 0), time.monotonic() - began)
        for at, which in enumerate(drawn):
            if (got := found.get(at, "hang")) != alone[which]:
                tally.fail(f"{'a forked child' if at == 2 else 'a thread'} trains {which} (--only {number}): {got}")


def trained_alone(asked: Asked, tally: Tally, worker: Worker) -> dict[tuple[str, int, bool], str]:
    """`trained` of all methods that take batch normalization, recorded and not, which are the same."""
    from octosim import methods

    names = [name for name, method in methods.METHODS.items() if method.batchnorm]
    digests = {(name, seed): trained(name, seed, False) for name in names for seed in (0, 1)}
    return {(*which, recorded): digest for which, digest in digests.items() for recorded in (False, True)}


CAMPAIGNS: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "kills": (all_expected, kills), "operations": (all_expected, operations), "damage": (undamaged, damage),
    "threads": (trained_alone, threads),
    "race": (lambda asked, tally, worker: all_expected(Asked(0, 0, ("train",)), tally, worker), race),
}  # fmt: skip
"""What is found out once before the tries, and the tries."""


# ---- the program --------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.  limit: seconds of processor time after which a command hangs; jobs: their names, or none
    for all."""

    seed: int
    limit: float
    jobs: tuple[str, ...] = ()


def within(numbers: Sequence[int], seconds: float | None, tally: Tally) -> Iterator[int]:
    """These numbers, as long as the time lasts; each minute it says how far it is."""
    began = said = time.monotonic()
    for number in numbers:
        now = time.monotonic()
        if seconds is not None and now - began >= seconds:
            return
        if now - said >= 60:
            print(f"try {number}: {len(tally.failures)} failures after {now - began:.0f} s", flush=True)
            said = now
        yield number


def _with_shim() -> None:
    """Starts this program again with the shim preloaded."""
    if "OCTOSIM_FAULT_SHIM" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="shim"))
    library = folder / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"], check=True)
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    changed = os.environ | threads | {"LD_PRELOAD": str(library), "OCTOSIM_FAULT_SHIM": str(folder), "MPLBACKEND": "agg"}
    os.execve(sys.executable, [sys.executable, *sys.argv], changed)


def _once() -> None:
    """What takes most of a command's time and is the same in each: the command line's parser, and the collector's way through
    all modules."""
    import typer.main

    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(importlib.import_module("octosim.cli.app").app)
    gc.collect()
    gc.freeze()


def main() -> int:
    global REFERENCE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=tuple(CAMPAIGNS))
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--only", type=int, help="the try of this number alone")
    parser.add_argument("--first", type=int, default=0, help="go on from this try: those before it were made")
    parser.add_argument("--job", action="append", default=[], help="kills, operations: only these jobs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the tries")
    parser.add_argument("--seconds", type=float, help="begin no further try after so long")
    parser.add_argument("--hang", type=float, default=HANG_S, help="seconds of processor time after which a command hangs")
    given = parser.parse_args()
    _with_shim()
    del os.environ["LD_PRELOAD"]  # the processes of a study are not this campaign's
    for name in ("cli.app", "cli.importing", "evidence.audit", "report", "study", "train"):  # imported once, for all children
        importlib.import_module(f"octosim.{name}")
    _once()

    place = Path(tempfile.mkdtemp(prefix="faults")).resolve()
    REFERENCE = place / "reference"
    REFERENCE.mkdir()
    asked, began = Asked(given.seed, given.hang, tuple(given.job)), time.monotonic()
    tries = range(given.first, given.tries) if given.only is None else range(given.only, given.only + 1)

    def part(job: int, of: int) -> Tally:
        tally = Tally()
        with contextlib.closing(Worker()) as worker:
            CAMPAIGNS[given.campaign][1](tally, asked, shared, worker, within(tries[job::of], given.seconds, tally))
        return tally

    tally = Tally()
    try:
        inputs(REFERENCE)
        done = ended(start(TRAIN, REFERENCE), REFERENCE, PATIENCE_S)
        if done.code:
            raise SystemExit(f"{' '.join(TRAIN)}: {done.errors}")
        with contextlib.closing(Worker()) as worker:
            shared = CAMPAIGNS[given.campaign][0](asked, tally, worker)
        for each in apart(part, given.jobs):
            tally.join(each)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(os.environ["OCTOSIM_FAULT_SHIM"], ignore_errors=True)
    for outcome, count in sorted(tally.outcomes.items()):
        print(f"{count:6}  {outcome}")
    print("slowest:", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(tally.slowest.items())))
    print(f"largest memory: {tally.most >> 20} MiB")
    print(f"{given.campaign}: {tally.tries} tries, {len(tally.failures)} failures, {time.monotonic() - began:.0f} s")
    return 1 if tally.failures or not tally.tries else 0


if __name__ == "__main__":
    sys.exit(main())
