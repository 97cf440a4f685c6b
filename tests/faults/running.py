"""How the campaigns run octosim's commands: in forked children, one command each or one after another."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

MEMORY = 1 << 30
COUNT, ONCE, FROM_THEN_ON, SHORT, KILL = 1, 2, 3, 4, 5
"""What shim.c does at a file operation."""


@dataclass
class Ended:
    """How a command ended.  code: its exit code, or minus the signal; hung: it was killed; peak: bytes; operations: those that
    the shim counted, where it was armed."""

    code: int
    output: str
    errors: str
    hung: bool
    peak: int
    operations: int = 0

    @property
    def wrong(self) -> str:
        """What is wrong whatever the input was; empty where nothing is."""
        if self.hung:
            return "hang"
        if "Traceback (most recent call last)" in self.errors:
            return "traceback"
        if self.code not in (0, 1, 2, 130, -signal.SIGKILL):
            return f"exit code {self.code}"
        if self.peak > MEMORY:
            return f"{self.peak >> 20} MiB"
        if self.code == 2 and not self.errors.strip():
            return "no sentence"
        return ""


def command(arguments: list[str]) -> int:
    """`octosim ARGUMENTS` in this process; its exit code."""
    from octosim import cli

    sys.argv = ["octosim", *arguments]
    code = 1
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class Clock:
    """Whether a process has hung: it took `limit` seconds of processor time, or six times that by the clock, since other work
    may keep the processors busy."""

    def __init__(self, pid: int, limit: float) -> None:
        self.pid, self.limit, self.began, self.worked = pid, limit, time.monotonic(), self._seconds(pid)

    @staticmethod
    def _seconds(pid: int) -> float:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def over(self) -> bool:
        waited = time.monotonic() - self.began
        return waited > 6 * self.limit or (waited > self.limit and self._seconds(self.pid) - self.worked > self.limit)


# ---- a child for one command, which may be sent signals --------------------------------------------------


def start(arguments: list[str], folder: Path) -> int:
    """Forks a child that is `octosim ARGUMENTS` in a folder; its process id.  It writes FOLDER.out and .err."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        for number, name in ((1, ".out"), (2, ".err")):
            fd = os.open(folder.with_name(folder.name + name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, number)
        code = command(arguments)
    finally:
        os._exit(code)


def ended(pid: int, folder: Path, limit: float) -> Ended:
    clock, hung = Clock(pid, limit), False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if clock.over():
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            hung = True
            break
        time.sleep(0.002)
    texts = []
    for name in (".out", ".err"):
        path = folder.with_name(folder.name + name)
        texts.append(path.read_text("utf-8", "replace") if path.exists() else "")
        path.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], hung, usage.ru_maxrss * 1024)


# ---- a child for many commands, one after another --------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault that shim.c makes at the operation `at`, from 1, below the command's folder.  error: an errno."""

    mode: int
    at: int = 0
    error: int = 0


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _serve(connection: Connection) -> None:
    """Makes the commands that come through a connection, until None comes."""
    shim = ctypes.CDLL(None)
    streams = [tempfile.TemporaryFile() for _ in range(2)]
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), number)
    while (task := connection.recv()) is not None:
        arguments, folder, fault = task
        os.chdir(folder)
        for number in (1, 2):
            os.lseek(number, 0, os.SEEK_SET)
            os.ftruncate(number, 0)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        if fault:
            shim.fault_arm(str(folder).encode(), fault.mode, fault.at, fault.error)
        code = command(arguments)
        seen = shim.fault_seen() if fault else 0
        if fault:
            shim.fault_arm(b"/", 0, 0, 0)
        os.chdir("/")
        gc.collect()
        texts = [os.pread(n, 1 << 20, 0).decode("utf-8", "replace") for n in (1, 2)]
        connection.send(Ended(code, texts[0], texts[1], False, _peak(), seen))
    os._exit(0)


class Worker:
    """A forked child that makes commands one after another; another takes its place where it died, hung or has made `most`."""

    def __init__(self, most: int = 400) -> None:
        self.most, self.count = most, 0
        self.process: multiprocessing.process.BaseProcess | None = None

    def run(self, arguments: list[str], folder: Path, limit: float, fault: Fault | None = None) -> Ended:
        if self.process is None or self.count >= self.most:
            self.close()
            forks = multiprocessing.get_context("fork")
            self.connection, theirs = forks.Pipe()
            self.process = forks.Process(target=_serve, args=(theirs,))
            self.process.start()
            theirs.close()
            self.count = 0
        self.count += 1
        assert self.process.pid is not None
        clock = Clock(self.process.pid, limit)
        self.connection.send((arguments, folder, fault))
        while not (answered := self.connection.poll(1.0)) and not clock.over():
            pass
        hung = not answered
        with contextlib.suppress(EOFError, ConnectionResetError):
            if not hung:
                return self.connection.recv()
        if hung:
            self.process.kill()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return Ended(code if code is not None else 1, "", "", hung, 0)

    def close(self) -> None:
        if self.process is not None:
            self.connection.send(None)
            self.process.join()
            self.process = None


def apart(part: Callable[[int, int], object], jobs: int) -> list[object]:
    """part(job, jobs) in as many forked processes; what they return."""
    if jobs == 1:
        return [part(0, 1)]
    forks = multiprocessing.get_context("fork")

    def run(job: int, connection: Connection) -> None:
        connection.send(part(job, jobs))

    started = []
    for job in range(jobs):
        ours, theirs = forks.Pipe(duplex=False)
        process = forks.Process(target=run, args=(job, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    results = []
    for process, connection in started:
        results.append(connection.recv())
        process.join()
    return results
