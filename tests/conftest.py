"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: threads beside them would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # tables are as wide as in a pipe, whatever started the tests

from kit.isas import ISAS  # noqa: E402

from octosim import core, extensions  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's `&`: processes that tests start would ignore it, too
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


KERNELS = sorted({(isa, 1 + number % 2) for number, isa in enumerate(ISAS)} | {(ISAS[-1], 1), (ISAS[-1], 2)})
"""Every instruction set of this CPU, with one or two threads in turn; the last, which steps use, with both."""


@pytest.fixture(params=KERNELS, ids=lambda p: f"{p[0]}-{p[1]}")
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of KERNELS; leaves the core as it was."""
    isa, threads = core.isa(), core.threads()
    core.set_isa(request.param[0])
    core.set_threads(request.param[1])
    yield request.param[0]
    core.set_isa(isa)
    core.set_threads(threads)


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """A module that one test names with a method is not trusted in those after it."""
    before = os.environ.get(extensions.TRUSTED)
    yield
    os.environ.pop(extensions.TRUSTED, None)
    if before is not None:
        os.environ[extensions.TRUSTED] = before


@pytest.fixture
def each_isa() -> Iterator[list[tuple[str, int]]]:
    """For tests that switch themselves: each instruction set with two of one to three threads; the core stays as it was."""
    isa, threads = core.isa(), core.threads()
    yield [(name, 1 + (number + turn) % 3) for number, name in enumerate(ISAS) for turn in (0, 1)]
    core.set_isa(isa)
    core.set_threads(threads)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """test_study.LONG, undisturbed."""
    from kit.cli import octosim
    from kit.studies import LONG, file

    folder = tmp_path_factory.mktemp("long")
    done = octosim("study", str(file(folder, LONG)), "--jobs", "2", "--out", "whole", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "whole"
