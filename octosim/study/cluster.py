"""Runs of a study on a Dask cluster.

A run's directory goes to a worker as bytes and comes back as bytes, so no file system need be shared.  A worker needs octosim
of the same version and the data set: `train.reopen` refuses both where they are others.  A run whose worker died begins again
on another one; as its manifest decides its bits, its records are the same.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from octosim import core, study, train
from octosim.errors import ArgumentError, OctosimError
from octosim.files import environment, write_atomic

POLL_S = 0.2
TIMEOUT = "10s"  # for the scheduler to answer
TRANSFER = "60s"  # for a finished run's files to arrive


class _Stopped(Exception):
    """The study no longer wants the run."""


def pack(folder: Path) -> dict[str, bytes]:
    """The files of a run directory, digest.txt last: its presence means "finished"."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in sorted(files, key=lambda path: (path.name == "digest.txt", path.name))}


def unpack(files: dict[str, bytes], folder: Path) -> None:
    """Writes what `pack` made, file by file, each atomically."""
    for name, content in files.items():
        write_atomic(folder / Path(name).name, content)


def _remote(name: str, files: dict[str, bytes], threads: int, every: int, topic: str) -> dict[str, Any]:
    """On a worker: trains the run of these files to its end.  {"files": ...}, or {"reason": ...} where it cannot be."""
    import distributed

    worker = distributed.get_worker()
    key, told = worker.get_current_task(), 0.0

    def tell(p: train.Progress) -> None:
        nonlocal told
        if time.monotonic() - told < 0.5:
            return
        told = time.monotonic()
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise _Stopped
        worker.log_event(topic, {"name": name} | study.news(p))

    with tempfile.TemporaryDirectory(dir=worker.local_directory) as place:
        folder = Path(place) / name
        try:
            if worker.state.nthreads != 1:
                raise OctosimError(_TOO_MANY)
            core.set_threads(threads)
            folder.mkdir()
            unpack(files, folder)
            run = train.reopen(folder)
            if run.step == 0:  # the manifest says where the run was made
                content = train.read_manifest(folder) | {"environment": environment(core.isa(), core.threads())}
                train.write_manifest(folder, content)
            train.train(run, folder, tell, every)
            return {"files": pack(folder)}
        except OctosimError as error:
            return {"reason": f"on worker {worker.address}: {str(error).replace(f'{place}/', '')}"}


_TOO_MANY = "a worker must have one thread of Dask's, as the kernels' threads are the process's; start it with --nthreads 1"


def _connect(address: str) -> Any:
    try:
        import distributed
    except ImportError:
        raise ArgumentError("{cluster} needs Dask: pip install 'octosim[cluster]'") from None
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is in the rows' states
    try:
        return distributed.Client(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise ArgumentError(f"{{cluster}}: no Dask scheduler answers at {address} ({str(error).splitlines()[0]})") from None


def train_all(
    rows: Sequence[study.Row], states: dict[str, study.State], out: Path, tell: study.Tell, asked: Callable[[], bool], *,
    address: str, threads: int, command: str, every: int,
) -> None:  # fmt: skip
    """study.TrainAll on the workers of the scheduler at `address` (tcp://host:port); each run has `threads` threads.

    Waits for workers while there are none.  Dask gives a run up whose worker died more often than the scheduler's
    distributed.scheduler.allowed-failures (3).  OctosimError where no scheduler answers or a worker has several threads.
    """
    if not rows:
        return
    client = _connect(address)
    topic = f"octosim-{uuid.uuid4()}"
    futures: dict[Any, study.State] = {}

    def listen(event: tuple[float, dict[str, Any]]) -> None:
        state = states[event[1]["name"]]
        if state.state in ("waiting", "running"):
            state.state = "running"
            state.update(event[1])

    try:
        if any(count != 1 for count in client.nthreads().values()):
            raise ArgumentError(f"{{cluster}} {address}: {_TOO_MANY}")
        client.subscribe_topic(topic, listen)
        for row in rows:
            if asked():
                break
            state = states[row.name]
            try:
                with study.taken(out / row.name):
                    study.opened(out / row.name, row.config, command)
                    files = pack(out / row.name)
            except OctosimError as error:
                state.fail(str(error))
                tell(state)
                continue
            key = f"{topic}-{len(futures)}"
            futures[client.submit(_remote, row.name, files, threads, every, topic, key=key)] = state
            tell(None)
        while futures and not asked():
            for future in [future for future in futures if future.done()]:
                state = futures[future]
                try:
                    _take(future, state, out / state.name)
                except TimeoutError:
                    continue  # the worker died that had it: the run is made again
                del futures[future]
                tell(state)
            tell(None)
            time.sleep(POLL_S)
    except _closed():  # the scheduler went away while runs were handed out
        for state in futures.values():
            state.state = "interrupted"
    finally:
        with suppress(_closed()):  # it went away: there is nothing to cancel
            client.cancel(list(futures), force=True)
        client.close(timeout=5)


def _closed() -> type[Exception]:
    """What Dask raises where something is asked of a client whose scheduler is gone."""
    import distributed

    error: type[Exception] = distributed.client.ClosedClientError
    return error


def _take(future: Any, state: study.State, folder: Path) -> None:
    """The end of a run: its files, or why it has none."""
    try:
        result = future.result(timeout=TRANSFER)
    except TimeoutError:
        raise
    except (OSError, asyncio.CancelledError, concurrent.futures.CancelledError):  # the scheduler went away
        state.state = "interrupted"
    except Exception as error:  # of the worker's side: its death too often, another version of Dask ...
        state.state, state.reason = "broken", " ".join(f"{type(error).__name__}: {error}".split())
    else:
        if "reason" in result:
            state.fail(result["reason"])
        else:
            unpack(result["files"], folder)
            state.state = "finished"
