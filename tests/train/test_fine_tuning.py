"""Runs that begin with given weights or train a part of their network, and gradient accumulation."""

from __future__ import annotations

import dataclasses
import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from kit.small import few_images
from safetensors.numpy import load_file, save_file

from octosim import core, engine, methods, train
from octosim.engine import plan
from octosim.engine.accumulation import accumulated
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, Flatten, GlobalAvgPool, Linear, MaxPool, ReLU, Residual
from octosim.engine.nodes import Context
from octosim.engine.selection import Selection, trained
from octosim.errors import OctosimError
from octosim.evidence.golden import golden

SHAPE = (28, 28, 1)
STACK = (
    Conv2d(4, 3, pad=1), BatchNorm(), ReLU(), MaxPool(4, 4),
    Residual((Conv2d(4, 3, pad=1), BatchNorm(), ReLU(), Conv2d(4, 3, pad=1), BatchNorm()), ()), ReLU(),
    Residual((Conv2d(6, 3, 2, 1), BatchNorm()), (Conv2d(6, 1, 2), BatchNorm())), ReLU(), GlobalAvgPool(), Linear(10),
)  # fmt: skip
PLAIN = (Conv2d(4, 3, pad=1), ReLU(), MaxPool(4, 4), Conv2d(4, 3), ReLU(), Flatten(), Linear(12), ReLU(), Linear(10))
"""Without batch normalization: conv1, conv2, fc1, fc2."""
SHORT = dict(batch_size=10, steps=4, lr=0.05)


def stack_of(method: str):
    return STACK if methods.METHODS[method].batchnorm else PLAIN


def run_of(stack=PLAIN, method: str = "octo", **settings) -> train.Run:
    given = {k: v for k, v in SHORT.items() if k not in methods.METHODS[method].unused} | settings
    return train.Run(train.Config(method=method, **given), stack, few_images("fashion-mnist-5k"))


def taken_steps(run: train.Run, steps: int, records: bool = False) -> train.Run:
    run.allow_replay = records
    for _ in range(steps):
        run.train_step()
    return run


# ---- the selection --------------------------------------------------

CHOSEN = {
    "all": (dict(), dict(conv1="wb", conv2="wb", fc1="wb", fc2="wb")),
    "last": (dict(train_last=2), dict(fc1="wb", fc2="wb")),
    "patterns": (dict(train=["conv*"], freeze=["conv2"]), dict(conv1="wb")),
    "union": (dict(train=["conv1"], train_last=1), dict(conv1="wb", fc2="wb")),
    "head": (dict(update="head"), dict(fc2="wb")),
    "biases": (dict(update="biases"), dict(conv1="b", conv2="b", fc1="b", fc2="wb")),
    "biases of": (dict(update="biases", train=["fc1"]), dict(fc1="b")),
}


@pytest.mark.parametrize("settings, expected", CHOSEN.values(), ids=CHOSEN)
def test_which_parameters_are_trained(settings: dict, expected: dict[str, str]) -> None:
    run = run_of(method="fp32", **settings)
    assert trained(run.network.nodes) == {name: sorted(keys) for name, keys in expected.items()}
    assert set(run.slots) == {f"{name}.{key}" for name, keys in expected.items() for key in keys}


def test_a_normalization_belongs_to_the_layer_before_it() -> None:
    run = run_of(STACK, "fp32", train_last=3)  # conv4, conv5 (the shortcut) and fc1
    assert set(trained(run.network.nodes)) == {"conv4", "bn4", "conv5", "bn5", "fc1"}


REFUSED = {
    "no such layer": (dict(train=["conv9"]), "train 'conv9' matches no layer with parameters; did you mean 'conv"),
    "no layer like it": (dict(freeze=["*z"]), "freeze '\\*z' matches no layer with parameters .known: conv1, conv2"),
    "too many": (dict(train_last=5), "train_last must be in 1 .. 4, the network's weighted layers, not 5"),
    "too few": (dict(train_last=0), "train_last must be at least 1, not 0"),
    "nothing": (dict(train_last=1, freeze=["fc*"]), "leave nothing to train"),
    "update": (dict(update="some"), "update must be one of all, biases, head, not 'some'"),
    "statistics": (dict(batchnorm_statistics="on"), "batchnorm_statistics must be one of batch, frozen, not 'on'"),
    "rate": (dict(rate=["conv1"]), "rate takes PATTERN=FACTOR"),
    "rate of 0": (dict(rate=["conv1=0"]), "rate takes PATTERN=FACTOR with a factor above 0"),
    "rate of none": (dict(rate=["x=1"]), "rate 'x' matches no layer"),
    "rate of niti": (dict(rate=["fc1=2"], method="niti"), "rate has no meaning for method niti"),
    "accumulate": (dict(accumulate=0), "accumulate must be at least 1"),
    "accumulate more": (dict(accumulate=11), "accumulate must be at most batch_size 10"),
    "accumulate niti": (dict(accumulate=2, method="niti"), "method niti are integers"),
    "accumulate and count": (dict(accumulate=2, count_overflow=1), "count_overflow looks at whole batches"),
    "batch norm of one": (dict(batch_size=1, stack=STACK), "layer bn1: batch normalization over a batch of one image"),
    "batch norm of micro": (dict(accumulate=10, stack=STACK), "bn1: batch normalization over a micro-batch of one image"),
}  # fmt: skip


@pytest.mark.parametrize("settings, sentence", REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(OctosimError, match=sentence):
        run_of(**settings)


@pytest.mark.parametrize("method", ["banner", "fqat", "octo-reference"])
def test_other_normalizations_than_ours_cannot_be_frozen_behind_trained_layers(method: str) -> None:
    with pytest.raises(OctosimError, match="layer bn1: the batch normalization of method .* cannot be frozen"):
        run_of(STACK, method, batchnorm_statistics="frozen")
    run_of(STACK, method, train_last=1, batchnorm_statistics="frozen")  # all of it infers


# ---- frozen layers, with every method --------------------------------------------------


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_step_stops_at_the_first_trained_layer(method: str) -> None:
    """No parameter before it moves, nothing of it is kept, and no gradient is made; C makes the same step as Python."""
    stack = stack_of(method)
    run = run_of(stack, method, train_last=2)
    first = min(node.index for node in run.network.nodes if node.trained)
    before = [node for node in run.network.nodes if node.index < first and not node.backward]
    weighted = {node.name for node in before if node.layer.weighted}
    assert weighted and run.network.nodes[first].layer.weighted
    own = run.network.tensors()
    held = {name: tensor.copy() for name, tensor in own.items()}
    taken_steps(run, 4)
    moved = {name for name, tensor in own.items() if tensor.tobytes() != held[name].tobytes()}
    of_ranges = {f"{node.name}.{key}" for node in before for key in node.state if key in ("x_range", "counts", "lac_places")}
    assert not {name for name in moved if name.split(".")[0] in {node.name for node in before}} - of_ranges
    assert {f"{node.name}.w" for node in run.network.nodes if node.layer.weighted and node.backward} <= moved
    again = taken_steps(run_of(stack, method, train_last=2), 4, records=True)
    assert again.digest() == run.digest()

    made = plan.plan(plan.dry(stack, SHAPE, run.method, selection=Selection(last=2)), 10)
    whole = plan.plan(plan.dry(stack, SHAPE, run.method), 10)
    backward = {call.key[0] for call in made.calls if call.key[1] in ("dX", "dW")}
    assert backward == {node.name for node in run.network.nodes if node.backward} & {call.key[0] for call in whole.calls}
    products = [call.key for call in made.calls if call.product and call.key[1] != "forward"]
    assert (run.network.nodes[first].name, "dX") not in products and not {key[0] for key in products} & weighted
    memory, all_of_it = plan.memory(made), plan.memory(whole)
    assert memory["activations"] < all_of_it["activations"] / 2
    assert memory["peak"] < all_of_it["peak"] or method == "fqat"  # whose inference in integers needs more than a step


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in ("laq", "blaq")])
def test_a_frozen_layer_between_trained_ones_changes_no_other(method: str) -> None:
    """One step: the others move as in full training; the frozen one's weights stay, and its product dW is not made."""
    whole, part = run_of(PLAIN, method), run_of(PLAIN, method, freeze=["fc1"])
    kept = {key: v.copy() for key, v in part.network.tensors().items() if key in ("fc1.w", "fc1.b")}
    for run in (whole, part):
        taken_steps(run, 1)
    ours, theirs = part.network.tensors(), whole.network.tensors()
    for name, tensor in ours.items():
        node, key = name.split(".")
        if node != "fc1" or key not in part.network.nodes[-3].frozen:
            np.testing.assert_array_equal(tensor, theirs[name], name)
    for name, tensor in kept.items():
        np.testing.assert_array_equal(ours[name], tensor)
    made = plan.plan_like(part.network, 10)
    products = {call.key for call in made.calls if call.product}
    assert ("fc1", "dX") in products and ("fc1", "dW") not in products
    of_all = plan.memory(plan.plan_like(whole.network, 10))["activations"]
    assert plan.memory(made)["activations"] <= of_all - (method != "niti")  # whose ReLU keeps what the layer takes


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in ("niti", "wage")])
@pytest.mark.parametrize("settings", [dict(update="biases"), dict(freeze=["fc1"])], ids=["biases", "frozen layer"])
def test_c_makes_the_steps_of_python(method: str, settings: dict) -> None:
    runs = [taken_steps(run_of(stack_of(method), method, **settings) if "freeze" not in settings else run_of(
        PLAIN, method, **settings), 4, records) for records in (False, True)]  # fmt: skip
    assert runs[0].digest() == runs[1].digest()
    if settings.get("update") == "biases":
        products = {call.key for call in plan.plan_like(runs[0].network, 10).calls if call.product}
        assert {layer for layer, pass_ in products if pass_ == "dW"} == {"fc1"}  # the head


def test_rates_are_factors() -> None:
    """Of the first step of SGD: the layer moves by that factor; in C as well."""
    plain, half = (taken_steps(run_of(method="fp32", **s), 1) for s in (dict(), dict(rate=["fc*=0.25", "fc2=0.5"])))
    begun = run_of(method="fp32").network.tensors()
    for name, tensor in half.network.tensors().items():
        factor = {"fc1": 0.25, "fc2": 0.5}.get(name.split(".")[0], 1.0)
        other, start = plain.network.tensors()[name], begun[name]
        np.testing.assert_allclose(tensor - start, factor * (other - start), rtol=2e-3, atol=2e-7)
    settings = dict(rate=["fc*=0.25", "conv1=3"], schedule="step", milestones=[0.5])
    digests = {taken_steps(run_of(**settings), 4, records).digest() for records in (False, True)}
    assert len(digests) == 1


# ---- output channels --------------------------------------------------

BY_CHANNEL = [
    ("fp32", {}, 1), ("octo", {}, 2), ("octo", {"lac": "off", "prc_of": "all"}, 1), ("qat", {}, 1), ("ui8", {}, 1),
    ("hindsight", {}, 1),
]  # fmt: skip
GROUPED = (
    Conv2d(8, 3, pad=1), BatchNorm(), ReLU(), MaxPool(4, 4), DepthwiseConv2d(3, multiplier=2), ReLU(),
    Conv2d(8, 3, pad=1, groups=4), ReLU(), Flatten(), Linear(12), ReLU(), Linear(10),
)  # fmt: skip
SHARES = ["conv*=0.4", "dw*=0.3", "fc1=0.25", "fc2=0.01"]
OUTPUTS = {"conv1": 4, "dw1": 6, "conv2": 4, "fc1": 3, "fc2": 1}
"""Of 8, 16 (2 a channel), 8 (2 a group), 12 and 10."""


@pytest.mark.parametrize("method, parameters, accumulate", BY_CHANNEL, ids=str)
def test_the_first_channels_move_as_in_full_training(method: str, parameters: dict, accumulate: int) -> None:
    """One step: their rows, to the bit but for float32 sums, and those alone; then steps in C as in Python."""
    settings = dict(method=method, parameters=parameters, accumulate=accumulate, weight_decay=0.01)
    whole, part = run_of(GROUPED, **settings), run_of(GROUPED, channels=SHARES, **settings)
    assert {node.name: node.outputs for node in part.network.nodes if node.outputs} == OUTPUTS
    before = {name: tensor.copy() for name, tensor in part.network.tensors().items()}
    for run in (whole, part):
        taken_steps(run, 1)
    theirs = whole.network.tensors()
    for name, tensor in part.network.tensors().items():
        layer, key = name.split(".")
        count = OUTPUTS.get(layer) if key in part.network.nodes[-1].params else None
        exact = 0 if methods.METHODS[method].bits["accumulator"] == "int32" and method != "qat" else 1e-5
        np.testing.assert_allclose(tensor[:count], theirs[name][:count], exact, exact * 1e-3, err_msg=name)
        if count:
            np.testing.assert_array_equal(tensor[count:], before[name][count:], name)
    assert all(len(part.slots[f"{layer}.w"]["v"]) == count for layer, count in OUTPUTS.items())
    again = taken_steps(run_of(GROUPED, channels=SHARES, **settings), 3, records=True)
    assert again.digest() == taken_steps(part, 2).digest()


@pytest.mark.parametrize("method", ["fp32", "octo"])
def test_chosen_channels_are_planned(method: str) -> None:
    """dW's products, gradients and the optimizer's memory shrink; the other passes stay."""
    whole, part = (run_of(GROUPED, method, **s) for s in (dict(), dict(channels=SHARES)))
    plans = [plan.plan_like(run.network, 10) for run in (whole, part)]
    macs = [{(op.layer, op.pass_): op.macs for op in plan.ops(each) if op.macs} for each in plans]
    of_all = {"conv1": 8, "dw1": 16, "conv2": 8, "fc1": 12, "fc2": 10}
    for (layer, pass_), count in macs[0].items():
        share = Fraction(OUTPUTS[layer], of_all[layer]) if pass_ == "dW" else 1
        assert macs[1][layer, pass_] == share * count, (layer, pass_)
    assert plans[1].slots < plans[0].slots and plans[1].gradients < plans[0].gradients
    assert plans[1].weights == plans[0].weights


@pytest.mark.parametrize("settings, sentence", [
    (dict(channels=["conv1"]), "channels takes PATTERN=SHARE with a share above 0 and at most 1, as in conv"),
    (dict(channels=["conv1=1.5"]), "at most 1"),
    (dict(channels=["conv9=0.5"]), "channels 'conv9' matches no layer with parameters; did you mean"),
    (dict(channels=["fc*=0.5"], method="niti"), "channels has no meaning for method niti"),
    (dict(channels=["fc*=0.5"], parameters={"lac": "feature"}), "channels has no meaning for method octo"),
    (dict(channels=["fc*=0.5"], measure=1), "measure compares whole gradients: leave out channels"),
])  # fmt: skip
def test_channels_that_make_no_sense_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(OctosimError, match=sentence):
        run_of(**settings)


# ---- frozen batch normalization --------------------------------------------------


@pytest.mark.parametrize("method, keep", [("fp32", {}), ("octo", {}), ("octo", {"keep": "float32"})])
@pytest.mark.parametrize("relu", [False, True])
def test_frozen_statistics_are_constants(method: str, keep: dict, relu: bool) -> None:
    """Values and gradients of y = gamma (x - mean) / sqrt(var + eps) + beta, mean and var being the running ones; float64."""
    stack = (BatchNorm(), *((ReLU(),) if relu else ()), Flatten(), Linear(3))
    network = engine.Network(stack, (5, 4, 3), methods.make(method, keep), 1, selection=Selection(statistics="frozen"))
    node = network.nodes[0]
    rng = np.random.default_rng(1)
    for held, values in ((node.params, ("gamma", "beta")), (node.state, ("mean", "var"))):
        for key in values:
            held[key][:] = rng.uniform(0.5, 1.5, 3)
    gamma, beta, mean, var = (held[k].astype(float) for held, k in (
        (node.params, "gamma"), (node.params, "beta"), (node.state, "mean"), (node.state, "var")))  # fmt: skip
    x, dy = (rng.normal(size=(6, 5, 4, 3)).astype(np.float32) for _ in range(2))
    context = Context(True, 0, 1)
    y = network.passes[0].forward(node, x.copy(), network.method, context)
    inverse = 1 / np.sqrt(var + node.layer.eps)
    normal = (x - mean) * inverse
    expected = gamma * normal + beta
    signs = (expected > 0) if relu else np.ones_like(expected)
    np.testing.assert_allclose(y, expected * signs, rtol=1e-5, atol=1e-5)
    dx = network.passes[0].input_grad(node, dy.copy(), network.method, context)
    np.testing.assert_allclose(dx, dy * signs * gamma * inverse, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(node.grads["beta"], (dy * signs).sum((0, 1, 2)), rtol=1e-4, atol=1e-4)
    codes = np.clip(np.rint(normal * 16), -127, 127) / 16 if network.method.saves_int8 else normal
    np.testing.assert_allclose(node.grads["gamma"], (dy * signs * codes).sum((0, 1, 2)), rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(node.state["mean"], mean.astype(np.float32))


@pytest.mark.parametrize("method", ["octo", "fp32", "jetfire", "qat"])
def test_steps_on_one_image_with_frozen_statistics(method: str) -> None:
    settings = dict(batch_size=1, batchnorm_statistics="frozen", lr=1e-3)
    runs = [taken_steps(run_of(STACK, method, **settings), 5, records) for records in (False, True)]
    assert runs[0].digest() == runs[1].digest()
    for node in runs[0].network.nodes:
        if node.layer.stem == "bn":
            assert not node.state["mean"].any() and (node.state["var"] == 1).all()


# ---- accumulation --------------------------------------------------


@pytest.mark.parametrize("images, parts", [(12, 3), (12, 5), (10, 1)])
def test_gradients_are_added_in_order(images: int, parts: int) -> None:
    """Micro-batch by micro-batch in float32: G = ((g1 + g2) + ... + (r / s) gk) (s / m)."""
    network = engine.Network(PLAIN, SHAPE, methods.make("fp32", {}), 1)
    data, size, f = few_images("fashion-mnist-5k"), -(-images // parts), np.float32
    x, t = data.train_images[:images], data.train_labels[:images].astype(np.int32)
    total: dict[str, np.ndarray] = {}
    losses = []
    for i in range(0, images, size):
        share = f(len(t[i : i + size]) / size)
        losses.append(float(network.gradients(x[i : i + size], t[i : i + size], Context(True, 0, 1))[0]) * float(share))
        for name, (_, g) in network.parameters().items():
            total[name] = total[name] + g * share if name in total else g * share
    network.accumulate = parts
    loss, _ = network.gradients(x, t, Context(True, 0, 1))
    if parts > 1:
        assert float(loss) == pytest.approx(sum(losses) * size / images, rel=1e-6)
        for name, (_, g) in network.parameters().items():
            np.testing.assert_array_equal(g, total[name] * f(size / images), name)


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in ("niti", "wage")])
def test_accumulation_in_c_and_in_memory(method: str) -> None:
    stack = stack_of(method)
    runs = [taken_steps(run_of(stack, method, batch_size=12, accumulate=3), 4, records) for records in (False, True)]
    assert runs[0].digest() == runs[1].digest()
    whole, parts = (plan.plan(plan.dry(stack, SHAPE, runs[0].method, accumulate=n), 60) for n in (1, 3))
    one, three = plan.memory(whole), plan.memory(parts)
    assert three["activations"] < one["activations"] / 2
    if method != "octo-reference":  # of so small a network its many calls' recording is larger than the activations
        assert three["peak"] < one["peak"]
    weights = sum(w.size for node in runs[0].network.nodes for w in node.params.values())
    assert three["gradients"] == min(4 * weights, three["gradients"] + three["workspace"])
    macs = [sum(op.macs for op in plan.ops(each)) for each in (whole, parts)]
    assert macs[0] == macs[1]


def test_each_micro_batch_has_its_own_random_numbers() -> None:
    streams = []
    node = engine.Network(PLAIN, SHAPE, methods.make("fp32", {}), 1).nodes[0]

    def one(images, labels, context, done):
        streams.append(context.random(node.tensor(3)))
        return core.scalar(1.0), 0

    accumulated(one, [node], 2, np.zeros((5, 1)), np.zeros(5, np.int32), Context(True, 7, 9), None)
    assert len(set(streams)) == 3 and {stream[:2] for stream in streams} == {(7, 9)}


# ---- weights to begin with --------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of lenet5 with octo."""
    folder = tmp_path_factory.mktemp("init") / "source"
    run = train.create(train.Config(model="lenet5", batch_size=50, steps=3), folder, "test")
    assert train.train(run, folder)
    return folder


def finished(config: train.Config, folder: Path) -> str:
    run = train.create(config, folder, "test")
    assert train.train(run, folder)
    return train.read_digest(folder)


def test_a_run_that_began_with_given_weights_needs_their_file_no_more(source: Path, tmp_path: Path) -> None:
    given = shutil.copytree(source, tmp_path / "given")
    config = train.Config(model="lenet5", batch_size=50, steps=4, init=str(given), train_last=2)
    digest = finished(config, tmp_path / "a")
    begun = load_file(source / "checkpoint.safetensors")
    ended = load_file(tmp_path / "a" / "checkpoint.safetensors")
    for name in ("conv1.w", "bn1.gamma", "bn2.mean", "conv2.lac_mu"):
        np.testing.assert_array_equal(begun[name], ended[name])
    assert (begun["fc3.w"] != ended["fc3.w"]).any() and not any("conv1" in name for name in ended if "optimizer." in name)
    shutil.rmtree(given)
    verdict = train.verify(tmp_path / "a")
    assert verdict.equal and verdict.replayed == digest
    # stopped and continued
    run = train.create(dataclasses.replace(config, init=str(source)), tmp_path / "b", "test")

    def stop(progress: train.Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path / "b", stop, every=1)
    again = train.reopen(tmp_path / "b")
    assert again.step == 2
    while again.step < again.steps:
        again.train_step()
    assert again.digest() == digest
    # other weights are another run
    other = load_file(tmp_path / "a" / "init.safetensors")
    other["conv1.w"][0, 0, 0, 0] += 1
    save_file(other, tmp_path / "other.safetensors")
    assert finished(dataclasses.replace(config, init=str(tmp_path / "other.safetensors")), tmp_path / "c") != digest
    save_file(other, tmp_path / "a" / "init.safetensors")
    with pytest.raises(OctosimError, match="init.safetensors: its tensors are not those that the run began with"):
        train.verify(tmp_path / "a")


def test_a_run_that_trains_some_channels_is_replayed(tmp_path: Path) -> None:
    digest = finished(train.Config(model="lenet5", batch_size=50, steps=2, channels=["conv2=0.5"]), tmp_path / "a")
    assert train.read_manifest(tmp_path / "a")["decides"]["channels"] == {"conv2": 8}
    assert train.verify(tmp_path / "a").replayed == digest
    with pytest.raises(OctosimError, match="trains some output channels of layer conv2 alone"):
        golden(tmp_path / "a", 1, "conv2", tmp_path / "g")


def test_what_does_not_fit_is_listed(source: Path, tmp_path: Path) -> None:
    tensors = {k: v for k, v in load_file(source / "checkpoint.safetensors").items() if not k.startswith("optimizer.")}
    tensors["fc3.w"], tensors["fc3.b"] = np.zeros((5, 84), np.float32), np.zeros(5, np.float32)  # another head
    tensors["more.w"] = np.zeros(1, np.float32)
    del tensors["fc2.b"]
    save_file(tensors, tmp_path / "w.safetensors")
    run = train.Run(train.Config(model="lenet5", batch_size=50, steps=1, init=str(tmp_path / "w.safetensors")))
    made = run.initial
    assert made.unfit == ("fc3.w (float32 5 x 84, here float32 10 x 84)", "fc3.b (float32 5, here float32 10)")
    assert made.missing == ("fc2.b",) and made.unknown == ("more.w",)
    assert "as is right for another number of classes" in " ".join(made.sentences)
    np.testing.assert_array_equal(run.network.tensors()["conv1.w"], tensors["conv1.w"])


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name != "wage"])
def test_every_method_begins_with_float32_weights(method: str, tmp_path: Path) -> None:
    """Its own numbers stand for these weights, with ranges of real images before the first step."""
    weights = {k: v for k, v in run_of(method="fp32", seed=5).network.tensors().items()}
    save_file(weights, tmp_path / "w.safetensors")
    run = run_of(method=method, init=str(tmp_path / "w.safetensors"))
    assert {name for name in run.initial.taken if name.endswith(".w")} == {name for name in weights if name.endswith(".w")}
    own = run.network.tensors()["conv1.w"]
    if own.dtype == np.float32:
        np.testing.assert_array_equal(own, weights["conv1.w"])
    else:
        exponent = int(run.network.nodes[0].state["exponent"][0])
        np.testing.assert_allclose(own * 2.0**exponent, weights["conv1.w"], atol=2.0**exponent)
    taken_steps(run, 1)
    images = run.data.test_images[:20]
    logits = run.network.forward(run.network.input(images), Context(False, 0, 0))
    values = np.asarray(getattr(logits, "q", logits), np.float32)
    assert np.ptp(values, axis=0).min() > 0  # not all images alike


def test_ranges_are_found_before_the_first_step(source: Path) -> None:
    """Layers that only infer have ranges of 512 images; without them all logits would be alike."""
    run = run_of(method="octo", train_last=1)
    taken_steps(run, 1)
    low, high = run.network.nodes[3].state["x_range"]
    assert low <= 0 < high
    whole = run_of(method="octo", steps=4)
    assert not whole.network.nodes[3].state["x_range"].any()
    assert run.network.needs_calibration and not whole.network.needs_calibration


NO_WEIGHTS = {
    "nothing": (lambda path: None, "does not exist: expected a run directory or a .safetensors file"),
    "a folder": (lambda path: path.mkdir(), "has neither checkpoint.safetensors, as a run, nor weights.safetensors"),
    "text": (lambda path: path.write_text("no"), "expected a run directory, an imported network, a .safetensors or"),
}


@pytest.mark.parametrize("make, sentence", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_no_weights(make, sentence: str, tmp_path: Path) -> None:
    make(tmp_path / "w")
    with pytest.raises(OctosimError, match=sentence):
        run_of(init=str(tmp_path / "w"))


def test_broken_or_strange_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x08")
    with pytest.raises(OctosimError, match="w.safetensors cannot be read"):
        run_of(init=str(path))
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(OctosimError, match="none of its tensors fits this network: it has x .float32 3.; expected conv1.w"):
        run_of(init=str(path))


def test_a_damaged_run_is_none_to_begin_with(source: Path, tmp_path: Path) -> None:
    path = shutil.copytree(source, tmp_path / "run") / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for given in (tmp_path / "run", path):
        with pytest.raises(OctosimError, match="checkpoint.safetensors: its tensors are not as they were saved"):
            run_of(init=str(given))


def test_cost_prices_the_shorter_step() -> None:
    """Of the last layers of resnet20: less time, less memory, as the plan of that step has them."""
    from octosim.hardware import load
    from octosim.workload import CostQuery, source

    device, peaks, times = load("pi4"), [], []
    own = SimpleNamespace(name="octosim")
    for tuning in ({}, {"train_last": 3}, {"train_last": 1}, {"accumulate": 4}):
        found = source(CostQuery("resnet20", "octo", None, False, "32x32x3", False, tuning=tuning))
        peaks.append(found.memory(device, 16, own)["peak"])
        times.append(sum(op.macs for op in found.ops(device, 16, own)))
    assert peaks[0] > peaks[1] > peaks[2] and times[0] > times[1] > times[2]
    assert peaks[3] < peaks[0] and times[3] == times[0]
    with pytest.raises(OctosimError, match="train_last must be in 1 .. "):
        source(CostQuery("resnet20", "octo", None, False, "32x32x3", False, tuning={"train_last": 99}))


# ---- attention --------------------------------------------------

TOKENS = """
[[layers]]
name = "patches"
kind = "conv"
filters = 8
kernel = 7
stride = 7
[[layers]]
name = "tokens"
kind = "reshape"
shape = [-1, 8]
[[layers]]
name = "qkv"
kind = "linear"
units = 24
[[layers]]
name = "q"
kind = "slice"
start = 0
stop = 8
[[layers]]
name = "k"
kind = "slice"
start = 8
stop = 16
inputs = ["qkv"]
[[layers]]
name = "v"
kind = "slice"
start = 16
inputs = ["qkv"]
[[layers]]
name = "heads"
kind = "attention"
heads = 2
inputs = ["q", "k", "v"]
[[layers]]
name = "flat"
kind = "flatten"
[[layers]]
name = "head"
kind = "linear"
"""
PRODUCTS = [f"heads.{name}_{side}" for name in ("scores", "mixture") for side in ("left", "right")]


@pytest.mark.parametrize("frozen", [True, False])
def test_ranges_of_attention_are_calibrated(frozen: bool, tmp_path: Path) -> None:
    """Before the first step of given weights, and where attention is frozen: inference depends on no batch's own range."""
    (tmp_path / "net.toml").write_text(TOKENS)
    data = few_images("fashion-mnist-5k")
    config = train.Config(model=str(tmp_path / "net.toml"), method="octo", **SHORT)
    first = train.Run(config, dataset=data)
    assert not any(first.tensors()[name].any() for name in PRODUCTS)
    save_file(first.network.tensors(), tmp_path / "w.safetensors")
    settings = dict(init=str(tmp_path / "w.safetensors")) | (dict(train_last=1) if frozen else {})
    run = train.Run(dataclasses.replace(config, **settings), dataset=data)
    run._calibrate()
    before = {name: run.tensors()[name].copy() for name in PRODUCTS}
    assert all(values[0] < values[1] for values in before.values())
    alone, together = (run.network.evaluate(data.test_images, run._test_labels, size)[0] for size in (1, 500))
    assert alone == pytest.approx(together, rel=1e-6)
    taken_steps(run, 2)
    assert all((run.tensors()[name] == values).all() == frozen for name, values in before.items())
