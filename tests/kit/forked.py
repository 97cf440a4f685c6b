"""A program that imports octosim once and forks a process for each command line that it reads, one JSON object a line.

It has no threads and does nothing with what it imports, so a fork is what a new process is after its imports.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

MODULES = (
    "octosim.cli.first_page", "octosim.api", "octosim.workload", "octosim.graph.onnx", "octosim.bench.steps", "octosim.report",
    "octosim.evidence.audit", "octosim.evidence.check", "octosim.evidence.diff", "octosim.evidence.golden",
)  # fmt: skip


def become(request: dict[str, Any]) -> None:
    """This process is the command's from now on: its folder, variables and streams."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    outputs = [os.open(path, os.O_WRONLY | os.O_APPEND) for path in request["paths"]]
    for number, file in enumerate([nothing, *outputs]):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(open(number, mode, closefd=False), line_buffering=number == 2)  # noqa: SIM115
        for number, mode in enumerate(("rb", "wb", "wb"))
    )
    sys.argv = ["octosim", *request["arguments"]]
    sys.path[:0] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def code_of(child: int, limit: int) -> int:
    """The exit code of a process as `subprocess` has it; one that takes too long is killed."""

    def end(*_: Any) -> None:
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(limit)
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def command() -> int:
    """Runs the command and what is to be done at its end; its exit code."""
    from octosim.cli import main

    code: Any = 0
    try:
        main()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else int(code is not None)


def serve() -> None:
    """Returns in the processes that are forked."""
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            become(json.loads(line))
            return
        print(code_of(child, json.loads(line)["limit"]), flush=True)
    sys.exit()


if __name__ == "__main__":
    for module in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with contextlib.suppress(ImportError):
        importlib.import_module("octosim.cli.app").build()  # reads the modules of all commands
    gc.collect()
    gc.freeze()  # pages that no collection of a child's touches stay common
    serve()
    os._exit(command())  # the interpreter's end takes longer than most commands
