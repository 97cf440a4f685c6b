"""octosim in somebody else's process: its threads, its forks, its floating-point environment, its share of the machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kit.isas import ISAS

from octosim import _core, core, data, methods, train
from octosim.core import call

F = np.float32
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = core.threads()
    yield
    core.set_threads(before)


# ---- threads --------------------------------------------------


def together(*functions: Callable[[], Any]) -> list[Any]:
    """The results of functions that run at the same time, a thread each; raises what one of them raised."""
    results: list[Any] = [None] * len(functions)

    def call(at: int, function: Callable[[], Any]) -> None:
        try:
            results[at] = function()
        except BaseException as error:
            results[at] = error

    threads = [threading.Thread(target=call, args=(at, function)) for at, function in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def test_two_threads_record_at_the_same_time() -> None:
    """Each tape holds the calls of its own thread, and each thread reads the numbers that it may read."""
    meet = threading.Barrier(3, timeout=60)

    def recorded(size: int) -> tuple[list[str], np.ndarray]:
        x, out, tape = np.arange(size, dtype=F), np.empty(size, np.int8), core.Tape()
        with tape.recording():
            meet.wait()
            found = core.value_range(x)
            meet.wait()
            core.quantize(x, core.symmetric_codes(found.low, found.high).inverse, out=out)
            with pytest.raises(core.CoreError, match="read while a step was recorded"):
                float(found.low)
            meet.wait()
        x[:] = -x[::-1]
        tape.replay()
        return tape.names, out

    def plain() -> tuple[float, float]:
        x = np.arange(7, dtype=F)
        for _ in range(2):
            meet.wait()
            ends = tuple(core.value_range(x))
        meet.wait()
        return ends

    first, second, ends = together(lambda: recorded(100), lambda: recorded(5000), plain)
    assert first[0] == second[0] == ["octo_range_f32", "octo_symmetric_codes", "octo_quantize_s8"] and ends == (0, 6)
    for _, out in (first, second):
        assert out[0] == -127 and out[-1] == 0


def digest(method: str, seed: int, steps: int, model: str = "mlp", records: bool = True) -> str:
    config = train.Config(model=model, method=method, batch_size=20, steps=steps, seed=seed)
    if not methods.METHODS[method].batchnorm:
        config = replace(config, batchnorm=False)
    run = train.Run(config, dataset=data.load("fashion-mnist-5k"))
    run.allow_replay = records
    for _ in range(steps):
        run.train_step()
    return run.digest()


@pytest.mark.parametrize("method", ["octo", "fp32", "niti"])
def test_threads_that_train_at_the_same_time(method: str) -> None:
    runs = [
        lambda seed=seed, records=records: digest(method, seed, 8, records=records)
        for seed in (0, 1)
        for records in (True, False)
    ]
    alone = [run() for run in runs]
    assert len(set(alone)) == 2
    for _ in range(3):
        assert together(*runs) == alone


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads /proc")
def test_workers_end_with_the_thread_that_called() -> None:
    """Each calling thread has workers of its own; they take part, their scratch memory is given back, and they end with it."""
    core.set_threads(3)
    a = np.random.default_rng(0).integers(-127, 128, (400, 300)).astype(np.int8)
    expected = core.gemm(a, a, transpose_b=True)

    def calls() -> int:
        for _ in range(30):
            np.testing.assert_array_equal(core.gemm(a, a, transpose_b=True), expected)
        core.trim()
        return len(os.listdir("/proc/self/task"))

    core.gemm(a, a, transpose_b=True)
    before = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        assert max(together(*[calls] * 4)) > before + 4
        until = time.monotonic() + 30  # Python's thread is joined before the system's has ended
        while len(os.listdir("/proc/self/task")) > before and time.monotonic() < until:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/task")) <= before  # another test's threads may have ended meanwhile


def test_a_call_s_threads_are_its_own_thread_s() -> None:
    """gemm(threads=) changes nothing for other threads, nor for what comes after."""
    core.set_threads(2)
    meet, a = threading.Barrier(2, timeout=60), np.ones((4, 4), np.int8)

    def inside() -> int:
        with call.threads_for_a_call(3):
            meet.wait()
            core.gemm(a, a, threads=1)
            meet.wait()
            return core.threads()

    def beside() -> list[int]:
        seen = []
        for _ in range(2):
            meet.wait()
            seen.append(core.threads())
        return seen

    with_openmp = call.lib.octo_max_threads() > 1 or core.threads() > 1
    assert together(inside, beside) == ([3, [2, 2]] if with_openmp else [1, [1, 1]])
    assert core.threads() == (2 if with_openmp else 1)


def test_the_instruction_set_changes_while_others_compute() -> None:
    """Results are the same, with whichever kernels a call began."""
    g = core.Conv(2, 14, 14, 8, 16, 3, 3, 1, 1)
    random = np.random.default_rng(0)
    x, dy = (random.integers(-127, 128, shape, np.int8) for shape in (g.x_shape, g.y_shape))
    before, expected, stop = core.isa(), core.conv_weight_grad(g, x, dy), threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for name in ISAS:
                core.set_isa(name)

    def compute() -> bool:
        try:
            return all(np.array_equal(core.conv_weight_grad(g, x, dy), expected) for _ in range(300))
        finally:
            stop.set()

    try:
        assert together(compute, exchange)[0]
    finally:
        core.set_isa(before)


# ---- forks --------------------------------------------------


def forked(work: Callable[[], str]) -> str:
    """What `work` returns in a forked process; it must end within 60 seconds."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], 60)[0]:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the forked process gives no answer")
        return os.read(reader, 1000).decode()
    finally:
        os.close(reader)
        os.waitpid(child, 0)


def product() -> str:
    core.set_threads(2)
    a = np.ones((512, 512), np.int8)
    return f"{int(core.gemm(a, a)[0, 0])} {core.threads()}"


@posix
def test_a_forked_process_computes() -> None:
    """With one thread, whether the main thread or another one forks, and so does its own child and a thread of it."""
    product()
    assert forked(product) == "512 1"
    assert together(product, lambda: forked(product))[1] == "512 1"
    assert forked(lambda: forked(product)) == "512 1"
    assert forked(lambda: together(product)[0]) == "512 1"


@posix
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 on: this process has threads
def test_a_pool_of_forked_processes() -> None:
    product()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap_async(product, [()] * 4).get(timeout=60) == ["512 1"] * 4


@posix
@pytest.mark.parametrize("steps", [1, 4], ids=["made", "recorded"])
def test_a_run_goes_on_in_both_processes(steps: int) -> None:
    """A fork in the midst of a run, while another thread trains: parent and child have memory of their own."""
    core.set_threads(2)
    batch = train.Config(model="lenet5", batch_size=50)

    def go(run: train.Run, count: int) -> str:
        for _ in range(count):
            run.train_step()
        return run.digest()

    def begun() -> train.Run:
        run = train.Run(batch, dataset=data.load("fashion-mnist-5k"))
        run.allow_replay = True
        go(run, steps)
        return run

    expected, run, beside = go(begun(), 5), begun(), begun()
    results = together(lambda: forked(lambda: go(run, 5)), lambda: go(beside, 5))
    assert results == [expected] * 2 and go(run, 5) == expected


# ---- the floating-point environment --------------------------------------------------

FLUSH, TOWARD_ZERO = (1 << 24, 3 << 22) if platform.machine() == "aarch64" else (0x9FC0, 0x7F80)
hosts = pytest.mark.parametrize("control", [FLUSH, TOWARD_ZERO], ids=["flush-to-zero", "toward-zero"])
has_control = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the environment is not set here")


@contextmanager
def set_by_the_host(control: int) -> Iterator[None]:
    """MXCSR or FPCR as a library may leave it."""
    before = call.lib.octo_float_enter()
    call.lib.octo_float_leave(control)
    try:
        yield
        assert call.lib.octo_float_enter() & ~0x3F == control & ~0x3F, "the host has again what it had set"
    finally:
        call.lib.octo_float_leave(before)
        call.lib.octo_float_enter()


X = np.random.default_rng(0).normal(size=100_000).astype(F)
TINY, SMALL = (X * F(1e-38)).reshape(-1, 1), (X[:90_000] * F(1e-20)).reshape(300, 300)

SCALE, SHIFT = np.full(1, 0.01, F), np.full(1, 1e-45, F)


def numbers() -> list[bytes]:
    """Sums and products with subnormal results, in slices of several threads, and numbers that the core makes by itself."""
    y = core.affine(TINY, SCALE, SHIFT)
    codes = core.symmetric_codes(-0.3, 0.1)
    tape, again = core.Tape(), np.empty(X.size, F)
    with tape.recording():
        core.affine(TINY, SCALE, SHIFT, out=again.reshape(-1, 1))
    again[:] = 0
    tape.replay()
    made = [y, again, core.gemm(SMALL, SMALL), core.column_sums(y), core.dropout(X, 0.3, (1, 2, 3))]
    return [array.tobytes() for array in made] + [call.ffi.buffer(codes.scale.memory)[:]]


@has_control
@hosts
def test_calls_do_not_depend_on_the_host(control: int) -> None:
    for threads in (1, 3):
        core.set_threads(threads)
        expected = numbers()
        with set_by_the_host(control):
            found = numbers()
        assert found == expected


@has_control
@hosts
def test_the_threads_of_another_library(control: int) -> None:
    """OpenMP's threads are there before the first call and have the host's environment."""
    openmp = ctypes.CDLL(None) if hasattr(ctypes.CDLL(None), "GOMP_parallel") else None
    try:
        openmp = openmp or ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("the core is not built with GNU OpenMP")
    core.set_threads(2)
    expected = numbers()
    leave = int(call.ffi.cast("intptr_t", call.ffi.addressof(_core.lib, "octo_float_leave")))

    def inside() -> list[bytes]:
        openmp.GOMP_parallel(ctypes.c_void_p(leave), ctypes.c_void_p(control), 2, 0)
        return numbers()

    assert together(inside)[0] == expected


@has_control
@pytest.mark.parametrize("method", methods.METHODS)
def test_runs_do_not_depend_on_the_host(method: str) -> None:
    """Nor does what a method does in NumPy."""
    core.set_threads(2)
    expected = digest(method, 5, 3, "lenet5")
    for control in (FLUSH, TOWARD_ZERO):
        with set_by_the_host(control):
            found = digest(method, 5, 3, "lenet5")
        assert found == expected
