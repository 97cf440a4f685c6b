"""octosim in somebody else's process: its threads, its forks, its floating-point environment, its share of the machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octosim import core, data, methods, train

F = np.float32


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
    run.records = records
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
