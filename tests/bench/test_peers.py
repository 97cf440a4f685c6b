"""PyTorch's networks beside octosim's: the same layers frozen, the same steps."""

from __future__ import annotations

import numpy as np
import pytest

from octosim import graph, methods
from octosim.bench import peers
from octosim.engine import Network, selection
from octosim.errors import OctosimError

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
        [step] = peers.torch_steps(stack, images, labels, "sgd", 0.1, 1, ("contiguous",), selection=chosen).values()
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
            peers.torch_steps(stack, images, labels, "sgd", 0.1, 1, ("contiguous",), accumulate=accumulate)["contiguous"]()
    for one, parts in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(one, parts, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_frozen_is_told():
    stack = graph.layers("lenet5", 5, True, in_shape=(28, 28, 1))
    with pytest.raises(OctosimError, match="matches no layer"):
        peers.freeze(peers.to_torch(stack, (28, 28, 1)), stack, (28, 28, 1), rules({"train": ["convx"]}))
