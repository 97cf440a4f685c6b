"""Plans of steps: what they cost to make, against what a real step records, and layers and methods that nobody priced."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from kit.checkasm import CEXT

from octosim import core, methods, stepclock, train
from octosim.engine import network, plan, probes
from octosim.engine.layers import Conv2d, Flatten, Linear, ReLU, Unweighted
from octosim.engine.nodes import Context, Method, Node
from octosim.errors import OctosimError
from octosim.report import write_report
from octosim.train.config import from_json
from octosim.train.directory import decides


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [(m, o) for o in ("sgd", "adam") for m in methods.METHODS if o == "sgd" or "optimizer" not in methods.METHODS[m].unused],
)
def test_a_dry_plan_is_what_a_step_records(method: str, optimizer: str) -> None:
    """Call by call, with operands and keys; the tape keeps no memory from being used again."""
    batchnorm = methods.METHODS[method].batchnorm
    run = train.Run(train.Config(model="lenet5", method=method, optimizer=optimizer, batch_size=20, batchnorm=batchnorm))
    run.allow_replay = True
    run.train_step()
    taken = run.network.pool.most
    run.train_step()
    assert run.network.pool.most <= 1.2 * taken  # blocks are used again in another order
    assert run.recorded.tape
    made = plan.plan(plan.dry(run.layers, (28, 28, 1), run.method, source=run.source), 20, run.optimizer)
    assert list(made.calls) == run.recorded.tape.calls


def test_a_plan_touches_no_memory() -> None:
    """VGG-11 at batch 512: gigabytes of tensors."""
    code = """
from octosim import graph, methods
from octosim.engine import plan, probes
made = plan.plan(plan.dry(graph.layers("vgg11", 10, in_shape=(32, 32, 3)), (32, 32, 3), methods.make("octo", {})), 512)
assert plan.memory(made)["peak"] > 1 << 30
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # of this program alone
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


def test_observers_and_the_clock_compose() -> None:
    """Two observers, and a probe of all calls, of the same steps in a narrow register: all see theirs, and no bit changes."""
    digests = set()
    for watched in (False, True):
        run = train.Run(train.Config(model="mlp", batch_size=20, accumulator="acc20", count_overflow=1))
        clock, some = stepclock.Clock(), [probes.watch(run.network) for _ in range(2 * watched)]
        for _ in range(2):
            clock.begin()
            run.train_step(watch=clock if watched else core.NO_PROBE)
            clock.end()
        assert len(run.overflow) == 8  # three layers, of which the first has no dX
        if watched:
            assert some[0].tensors.keys() == some[1].tensors.keys() and ("fc1", "forward", "sums") in some[0].tensors
            assert ("fc2", "dX") in clock.values and clock.parts["products"][0] > 0
        digests.add(run.digest())
    assert len(digests) == 1


# ---- a layer that octosim does not have --------------------------------------------------


@dataclass(frozen=True)
class Scale(Unweighted):
    """x times a number; here is all that there is of it."""

    by: float = 2.0
    stem: ClassVar[str] = "scale"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def _times(self, node: Node, x: Any) -> Any:
        one = np.full(x.shape[-1], self.by, np.float32)
        return core.affine(x, one, np.zeros_like(one), out=node.buffer(x.shape, np.float32))

    def forward(self, node: Node, x: Any, method: Method, context: Context) -> Any:
        return self._times(node, x)

    def input_grad(self, node: Node, dy: Any, method: Method, context: Context) -> Any:
        return self._times(node, dy)


WITH_SCALE = (Conv2d(4, 3, 3), Scale(), ReLU(), Flatten(), Linear(10))


@pytest.mark.parametrize("method", ["octo", "fp32"])
def test_a_layer_from_outside_trains_and_is_priced(method: str) -> None:
    run = train.Run(train.Config(method=method, batch_size=20, model="outside"), WITH_SCALE)
    run.allow_replay = True
    losses = [run.train_step() for _ in range(6)]
    assert run.recorded.tape and losses[-1] != losses[0]
    made = plan.plan(plan.dry(WITH_SCALE, (28, 28, 1), run.method), 20)
    assert list(made.calls) == run.recorded.tape.calls
    ops = [op for op in plan.ops(made) if op.layer == "scale1"]
    assert [(op.pass_, op.function, op.elements) for op in ops] == [
        ("forward", "octo_affine_f32", 20 * 9 * 9 * 4), ("dX", "octo_affine_f32", 20 * 9 * 9 * 4)]  # fmt: skip


def test_a_layer_from_outside_is_measured_timed_and_reported(tmp_path: Path) -> None:
    config = train.Config(batch_size=20, model="outside", steps=3, measure=1, count_overflow=1)
    run = train.create(config, tmp_path / "run", "test", WITH_SCALE)
    assert train.train(run, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "measures.jsonl").read_text().splitlines()]
    assert {row["layer"] for row in rows} == {"conv1", "fc1"} and {row["step"] for row in rows} == {1, 2, 3}
    clock = stepclock.Clock()
    clock.begin()
    run.train_step(watch=clock)
    clock.end()
    assert {("scale1", "forward"), ("scale1", "dX")} <= set(clock.values)
    write_report([tmp_path / "run"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "outside" in page and "conv1" in page and f"{100 * run.test_accuracy:.2f}" in page


@pytest.mark.parametrize("method", ["niti", "jetfire", "fqat"])
def test_a_layer_that_a_method_does_not_cover(method: str) -> None:
    message = f"layer scale1: method {method} does not cover layers of the kind 'scale'"
    with pytest.raises(OctosimError, match=message):
        train.Run(train.Config(method=method, batch_size=20, model="outside"), WITH_SCALE)
    config = train.Config(method=method, batch_size=20, model="outside", float_layers=True)
    if method == "niti":
        with pytest.raises(OctosimError, match=f"{message}, and cannot have them in float32"):
            train.Run(config, WITH_SCALE)
        return
    run = train.Run(config, WITH_SCALE)
    run.train_step()
    assert decides(run)["float_layers"] == ["scale1"]


@pytest.mark.parametrize("method", methods.METHODS)
def test_what_a_method_covers_is_complete(method: str) -> None:
    """Every layer that it has passes of its own for, and the products, are among those that it covers."""
    made = methods.METHODS[method]
    assert made.covers is None or {"conv", "dw", "fc", *made.layers} <= set(made.covers)
    run = train.Run(train.Config(method=method, model="mlp", batch_size=20, batchnorm=made.batchnorm))
    assert "float_layers" not in decides(run)


def test_a_manifest_of_before_float_layers_is_read() -> None:
    content = asdict(train.Config())
    del content["float_layers"]
    assert from_json(content, "manifest.json") == train.Config()


def test_a_chain_of_thousands_of_layers() -> None:
    """Whose memory each passes on is found in linear time; by following the chain from each it took minutes."""
    began = time.process_time()
    made = network.nodes([Flatten(), Linear(4), *[ReLU()] * 20_000, Linear(3)], (6, 6, 1))
    assert time.process_time() - began < 10
    assert not made[1].in_place and all(node.in_place for node in made[2:-1])


def test_the_core_works_in_what_the_plan_says():
    """The plan counts memory that only C takes: its numbers are C's."""
    text = {name: (CEXT / name).read_text() for name in ("dispatch.h", "products.inc", "api_blocks.c", "kernels.h")}

    def number(file, pattern):
        (found,) = re.findall(pattern, text[file])
        return int(found)

    assert plan.CHUNK == number("dispatch.h", r"enum \{ CHUNK = (\d+) \};")
    block = number("kernels.h", r"enum \{ OCTO_BLOCK_F32 = (\d+),")
    assert plan.ROWS == number("products.inc", r"enum \{ ROWS = (\d+), DEEP")
    assert plan.DEEP == block * number("products.inc", r"DEEP = (\d+) \* OCTO_BLOCK_F32")
    assert plan.PANELS == 1 << number("products.inc", r"int64_t room = \(\(int64_t\)1 << (\d+)\) / \(TILE_COLS \* share\)")
    assert plan.WINDOWS == number("api_blocks.c", r"octo_max\(1, (\d+) / \(pixels \* n\)\)")
    assert f"(octo_min(some, g->batch) * pixels + {plan.BORDER // 32} * OCTO_SIDE) * n * 4" in text["api_blocks.c"]
