"""Trains with the n-th file operation killed or failing, recovers, and compares with a run that nothing disturbed.

python kit/run_faults.py FOLDER FAULT STRIDE: for every STRIDE-th n, a forked process trains a small run; this process does
what a user would do next, and prints a line of JSON: how many operations, and what went wrong.  The operations are Python's.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from octosim import core, train
from octosim.errors import OctosimError

FAULTS = {"eio": errno.EIO, "enospc": errno.ENOSPC, "full": errno.ENOSPC, "erofs": errno.EROFS}
"""full: every operation from the n-th on fails."""
FUNCTIONS = ("open", "mkdir", "replace", "fsync", "truncate", "unlink", "rmdir", "scandir", "listdir", "stat", "fchmod")
CONFIG = train.Config(model="mlp", batch_size=5, steps=5, eval_every=3, count_overflow=2, measure=2)
SAME = ("checkpoint.safetensors", "digest.txt", "records.jsonl", "overflow.jsonl", "measures.jsonl")
KILLED, SENTENCE = 9, 2


class Faults:
    """Counts file operations under a folder; from `arm` on, the n-th fails."""

    def __init__(self, folder: Path, fault: str, at: int):
        self.folder, self.fault, self.at, self.count = str(folder), fault, at, 0

    def strike(self, before_death: Any = None) -> None:
        self.count += 1
        if self.count != self.at and not (self.fault == "full" and self.count > self.at):
            return
        if self.fault == "kill":
            if before_death:
                before_death()
            os._exit(KILLED)
        raise OSError(FAULTS[self.fault], os.strerror(FAULTS[self.fault]))

    def ours(self, argument: Any) -> bool:
        if isinstance(argument, int):
            try:
                argument = os.readlink(f"/proc/self/fd/{argument}")
            except OSError:
                return False
        return isinstance(argument, (str, os.PathLike)) and os.fspath(argument).startswith(self.folder)

    def wrap(self, function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if arguments and self.ours(arguments[0]):
                self.strike()
            return function(*arguments, **options)

        return wrapped

    def wrap_open(self, function: Any) -> Any:
        """Of functions that give files: their writes count, too, and a killed one writes half."""

        def wrapped(target: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            ours = self.ours(target)
            if ours and not isinstance(target, int):
                self.strike()
            file = function(target, mode, *arguments, **options)
            return Written(file, self) if ours and mode != "r" and mode != "rb" else file

        return wrapped

    def arm(self) -> None:
        os.fdopen = self.wrap_open(os.fdopen)  # before os.open is another
        builtins.open = self.wrap_open(builtins.open)
        for name in FUNCTIONS:
            setattr(os, name, self.wrap(getattr(os, name)))
        fcntl.flock = self.wrap(fcntl.flock)


class Written:
    """A file whose writes are file operations."""

    def __init__(self, file: Any, faults: Faults):
        self._file, self._faults = file, faults

    def write(self, content: bytes) -> int:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._faults.strike(half)
        return self._file.write(content)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def work(folder: Path, resume: bool) -> None:
    run = train.reopen(folder) if resume else train.create(CONFIG, folder, "test")
    train.train(run, folder, every=2)


def attempt(folder: Path, fault: str, at: int, resume: bool) -> int:
    """In a process of its own: KILLED, SENTENCE, 0: it survived, 1: anything else, 3: there are fewer operations."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        faults = Faults(folder, fault, at)
        faults.arm()
        work(folder, resume)
        code = 0 if faults.count >= at else 3
    except OctosimError as error:
        code = SENTENCE if "\n" not in str(error) else 1
    except BaseException as error:
        print(f"{fault} at {at}: {error!r}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def recover(folder: Path) -> None:
    """What a user does next."""
    if not (folder / "manifest.json").exists():
        train.train(train.create(CONFIG, folder, "test"), folder)
    elif train.read_digest(folder) is None:
        train.train(train.reopen(folder), folder)
    train.check(folder)


def main() -> None:
    place, fault, stride = Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3])
    core.set_threads(1)  # a forked process has no other
    whole = place / "whole"
    work(whole, False)
    half(place / "half")  # a checkpoint in the middle, with records behind it
    wrong, tries, left = [], 0, set()
    for resume in (False, True):
        for at in range(1, 1000, stride):
            folder = place / f"{fault}{resume}{at}"
            if resume:
                shutil.copytree(place / "half", folder)
            code = attempt(folder, fault, at, resume)
            if code == 3:
                break
            tries += 1
            if code not in (0, KILLED, SENTENCE):
                wrong.append(f"{folder.name}: exit {code}")
            try:
                recover(folder)
            except Exception as error:
                wrong.append(f"{folder.name}: then {error!r}")
                continue
            wrong += [f"{folder.name}: {n}" for n in SAME if (folder / n).read_bytes() != (whole / n).read_bytes()]
            left |= {path.name for path in folder.iterdir()} - {*SAME, "manifest.json", "timing.jsonl", ".lock"}
    print(json.dumps({"tries": tries, "wrong": wrong, "left": sorted(left)}))


def half(folder: Path) -> None:
    def stop(progress: train.Progress) -> None:
        if progress.step == 3:
            raise InterruptedError

    try:
        train.train(train.create(CONFIG, folder, "test"), folder, stop, every=2)
    except OctosimError:
        pass


if __name__ == "__main__":
    main()
