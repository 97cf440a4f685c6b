"""Plans of steps: what they cost to make, against what a real step records, and layers and methods that nobody priced."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from octosim import core, methods, train
from octosim.engine import plan

RECORDABLE = [name for name in methods.METHODS if methods.make(name, {}).recordable]


@pytest.mark.parametrize("method", RECORDABLE)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_dry_plan_is_what_a_step_records(method: str, optimizer: str) -> None:
    """Call by call, with operands and keys."""
    run = train.Run(train.Config(model="lenet5", method=method, optimizer=optimizer, batch_size=20))
    run.records = True
    for _ in range(2):
        run.train_step()
    assert run.recorded.tape
    made = plan.plan(plan.dry(run.layers, (28, 28, 1), run.method), 20, run.optimizer)
    assert list(made.calls) == run.recorded.tape.calls


def test_a_plan_touches_no_memory() -> None:
    """VGG-11 at batch 512: gigabytes of tensors."""
    code = """
import resource
from octosim import graph, methods
from octosim.engine import plan
made = plan.plan(plan.dry(graph.layers("vgg11", 10, in_shape=(32, 32, 3)), (32, 32, 3), methods.make("octo", {})), 512)
assert plan.memory(made)["peak"] > 1 << 30
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 << 10


def test_reads_that_are_declared_twice_are_counted_twice() -> None:
    x, column = np.ones((40, 8), np.float32), np.ones(8, np.float32)
    tape = core.Tape(dry=True)
    core.at("bn1", "forward")
    with tape.recording():
        core.batchnorm_forward(x, column, column, column.copy(), column.copy(), eps=1e-5, momentum=0.1)
    op = plan.operation(tape.calls[0])
    assert op.reads == 2 * x.nbytes + 4 * column.nbytes and op.writes == x.nbytes + 4 * column.nbytes
    assert (op.layer, op.pass_, op.shape, op.function) == ("bn1", "forward", (320,), "octo_batchnorm_forward")
