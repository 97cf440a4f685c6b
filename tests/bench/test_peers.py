"""PyTorch's networks beside octosim's: the same layers frozen, the same steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kit.cli import octosim

from octosim import graph, hardware, methods
from octosim.bench import peers, steps
from octosim.engine import Network, selection
from octosim.errors import OctosimError
from octosim.train import Config

torch = pytest.importorskip("torch")
SHAPE = (8, 8, 3)
RULES = [
    {}, {"train_last": 1}, {"train_last": 3}, {"train": ["conv2*"]}, {"freeze": ["conv*"]}, {"update": "biases"},
    {"update": "head"}, {"batchnorm_statistics": "frozen"}, {"train_last": 4, "freeze": ["fc*"]},
]  # fmt: skip


def rules(chosen):
    defaults = {"train": [], "freeze": [], "train_last": None, "update": "all", "batchnorm_statistics": "batch", "rate": []}
    return selection.make(**defaults | chosen)


@pytest.mark.parametrize("chosen", RULES, ids=str)
def test_the_same_parameters_move(chosen):
    """A step of PyTorch moves the parameters and the statistics that octosim's moves, and no other."""
    torch.manual_seed(0)
    stack, chosen = graph.layers("resnet20", 5, True, in_shape=SHAPE), rules(chosen)
    network = Network(stack, SHAPE, methods.make("fp32", {}), 0, selection=chosen)
    made = []
    real = peers.to_torch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "to_torch", lambda *given: made.append(real(*given)) or made[-1])
        images = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
        labels = np.arange(6, dtype=np.int32) % 5
        task = peers.Task(stack, images, labels, "sgd", 0.1, 1, selection=chosen)
        [step] = peers.torch_steps(task, ["contiguous"]).values()
    before = {name: value.clone() for name, value in made[0].state_dict().items()}
    step()
    after = made[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = set()
    for node in network.nodes:
        expected |= {f"{node.index}.{peers.NAMES[key]}" for key in node.trained if f"{node.index}.{peers.NAMES[key]}" in before}
        if node.layer.stem == "bn" and node.backward and not node.running:
            expected |= {f"{node.index}.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == expected


def test_micro_batches_have_the_gradient_of_the_batch():
    torch.manual_seed(0)
    stack = graph.layers("lenet5", 5, False, in_shape=(28, 28, 1))
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    made = []
    real = peers.to_torch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "to_torch", lambda *given: made.append(real(*given)) or made[-1])
        for accumulate in (1, 3):
            torch.manual_seed(0)
            labels = np.arange(7, dtype=np.int32) % 5
            task = peers.Task(stack, images, labels, "sgd", 0.1, 1, accumulate=accumulate)
            peers.torch_steps(task, ["contiguous"])["contiguous"]()
    for one, parts in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(one, parts, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_frozen_is_told():
    stack = graph.layers("lenet5", 5, True, in_shape=(28, 28, 1))
    with pytest.raises(OctosimError, match="matches no layer"):
        peers.freeze(peers.to_torch(stack, (28, 28, 1)), stack, (28, 28, 1), rules({"train": ["convx"]}))


# ---- contests --------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "native"),
    [("fpu avx512f avx512_bf16 vme", True), ("amx_bf16", True), ("asimddp bf16 i8mm", True), ("avx512f", False)],
)
def test_bfloat16_where_the_processor_has_it(flags: str, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert peers.has_bfloat16(tmp_path) == native
    monkeypatch.setattr(peers, "has_bfloat16", lambda: native)
    told = {peers._cannot(kind) for kind in peers.TORCH_KINDS.values() if kind.half and not kind.compiled}
    assert told == ({""} if native else {"the processor has no instructions for bfloat16"})


def test_compiled_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler, or switched off, torch.compile is left out, and said so; what it cannot compile, too."""
    kind = peers.TORCH_KINDS["compiled contiguous"]
    monkeypatch.setattr(torch._dynamo.config, "disable", False)
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert peers._cannot(kind) == "torch.compile: no C++ compiler" and not peers._cannot(peers.TORCH_KINDS["contiguous"])
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    assert peers._cannot(kind).startswith("torch.compile: switched off")
    monkeypatch.setattr(peers, "_cannot", lambda kind: "no" if kind.half else "")

    def steps_of(task, names):
        def step():
            if "compiled" in names[0]:
                raise RuntimeError("no such instruction\nmore")

        return {names[0]: step}

    monkeypatch.setattr(peers, "torch_steps", steps_of)
    found = peers.torch_contest(None)
    assert list(found["torch"].ways) == ["contiguous", "channels_last"] and found["torch-bfloat16"].ways == {}
    assert found["torch"].left_out == ["torch.compile: no such instruction"] and found["torch-bfloat16"].left_out == ["no"]


def test_the_fastest_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a peer's ways to make a step; one that has no way here is only named."""
    import time

    def contest(task: peers.Task) -> dict[str, peers.Steps]:
        assert task.images.shape == (10, 28, 28, 1) and len(task.labels) == 10
        ways = {"slow": lambda: time.sleep(0.004), "fast": lambda: time.sleep(0.001)}
        none = peers.Steps("None", "0", {}, ["all: no"])
        return {"mine": peers.Steps("Mine", "1.2", ways, ["third: not here"]), "none": none}

    monkeypatch.setitem(steps.PEERS, "mine", contest)
    config = Config(model="mlp", batch_size=10)
    record = steps.step_bench(config, hardware.load("pi4"), against=["mine", "mine"], seconds=0.01, command="test")
    [row] = record["against"].values()
    assert row["what"] == "Mine, fast (the fastest of 2 ways)" and row["version"] == "1.2"
    assert row["time_s"] == row["all"]["fast"] < row["all"]["slow"]
    assert row["ratio"] == row["time_s"] / record["total"]["time_s"]
    assert record["left_out"] == ["Mine: third: not here", "None: all: no"]
    with pytest.raises(OctosimError, match="unknown peer 'mkl' .known: torch, jax, qwix, mine"):
        steps.step_bench(config, hardware.load("pi4"), against=["mkl"], seconds=0.01, command="test")


@pytest.mark.slow  # compiles for half a minute
def test_torch_compiled() -> None:
    done = octosim("bench", "--model", "lenet5", "--batch-size", "20", "--seconds", "0.2", "--against", "torch", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    ways = {"contiguous", "channels_last", "compiled contiguous", "compiled channels_last"}
    assert set(record["against"]["torch"]["all"]) == ways or any("torch.compile" in why for why in record["left_out"])
