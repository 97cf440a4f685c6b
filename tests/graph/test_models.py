"""Models as data: the table, model files, the graph, and what every model must be able to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kit.small import few_images, narrow
from kit.thin import diagonal

from octosim import core, cost, data, engine, graph, hardware, methods, train
from octosim.engine import fusion, plan
from octosim.engine.layers import (
    LAYERS,
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Item,
    Linear,
    MaxPool,
    ReLU,
    Residual,
)
from octosim.engine.layers.batchnorm import PooledBatchNorm
from octosim.engine.network import nodes
from octosim.engine.nodes import Context
from octosim.errors import OctosimError

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((28, 28, 1), (32, 32, 3))
FORMS = [(name, shape) for name in graph.MODELS for shape in SHAPES]


def network(model: str, shape: tuple[int, ...] = (28, 28, 1), method: str = "fp32", **options) -> engine.Network:
    made = methods.make(method, {})
    stack = graph.layers(model, 10, in_shape=shape, **{"batchnorm": made.batchnorm, **options})
    return engine.Network(stack, shape, made, 0)


def parameters(made: engine.Network) -> dict[str, np.ndarray]:
    return {f"{node.name}.{key}": w for node in made.nodes for key, w in node.params.items()}


# ---- the table --------------------------------------------------


def test_the_documents_table() -> None:
    """docs/models.md has a row for every model: trained parameters and multiply-accumulates of an image's forward pass."""
    rows = {}
    for line in (ROOT / "docs/models.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if cells and cells[0] in graph.MODELS:
            rows[cells[0]] = [int(cell.replace(",", "")) for cell in cells[-4:]]
    for name in graph.MODELS:
        found = []
        for shape in SHAPES:
            made = network(name, shape)
            found.append(sum(w.size for w in parameters(made).values()))
            found.append(sum(op.macs for op in plan.trace(made, 1) if op.pass_ == "forward"))
        assert rows[name] == found, name
    assert list(rows) == list(graph.MODELS)


@pytest.mark.parametrize(
    ("model", "shape", "count", "sides"),
    [  # weights of Octo's demo, as counted there, and the sides of its convolutions' outputs
        ("simplecnn", (28, 28, 1), 433_890, [24]),
        ("alexnet", (28, 28, 1), 24.7e6, [20, 8, 4, 4, 4]),
        ("alexnet", (32, 32, 3), 35.9e6, [32, 16, 8, 8, 8]),
        ("vgg11", (28, 28, 1), 21.7e6, [26, 24, 22, 20, 8, 6, 4, 2]),
        ("vgg11", (32, 32, 3), 46.9e6, [30, 28, 26, 24, 10, 8, 6, 4]),
        # He et al. 2016, table 6: 0.27 M
        ("resnet20", (32, 32, 3), 0.27e6, [32] * 7 + [16] * 7 + [8] * 7),
    ],
)
def test_published_sizes(model: str, shape: tuple[int, ...], count: float, sides: list[int]) -> None:
    made = network(model, shape, batchnorm=False)
    assert sum(w.size for w in parameters(made).values()) == pytest.approx(count, rel=0.02)
    assert [node.out_shape[0] for node in made.nodes if isinstance(node.layer, Conv2d)] == sides


@pytest.mark.parametrize(("model", "shape"), FORMS, ids=str)
def test_every_convolution_is_normalized(model: str, shape: tuple[int, ...]) -> None:
    made = nodes(graph.layers(model, 10, in_shape=shape), shape)
    for node in made:
        if isinstance(node.layer, Conv2d | DepthwiseConv2d):
            assert isinstance(made[node.index + 1].layer, BatchNorm)
    assert made[-1].out_shape == (10,)
    bare = nodes(graph.layers(model, 10, batchnorm=False, in_shape=shape), shape)
    assert [n.layer for n in bare] == [n.layer for n in made if not isinstance(n.layer, BatchNorm)]


@pytest.mark.parametrize(("form", "method"), diagonal(FORMS, list(methods.METHODS)), ids=str)
def test_trace_and_cost(form: tuple[str, tuple[int, ...]], method: str) -> None:
    """Products counted another way: outputs times weights of an output; the weight gradient does as many."""
    model, shape = form
    made = network(model, shape, method)
    ops = plan.trace(made, 3)
    macs_of = Counter[tuple[str, str]]()  # some products are made in parts
    for op in ops:
        macs_of[op.layer, op.pass_] += op.macs
    weighted = [node for node in made.nodes if node.layer.weighted]
    for node in weighted:
        macs = 3 * math.prod(node.out_shape) * math.prod(node.params["w"].shape[1:])
        if method == "octo-reference" and node.layer.stem != "fc":  # codes of 9 bits in two parts each: four int8 products
            macs *= 4
        passes = ("forward", "dW") if node is weighted[0] else ("forward", "dW", "dX")
        assert [macs_of.pop((node.name, pass_)) for pass_ in passes] == [macs] * len(passes)
        size = node.params["w"].size * (1 if method != "fp32" else 4)
        assert all(op.reads >= size for op in ops if op.layer == node.name and op.kind == "gemm" and op.pass_ == "forward")
    assert not any(macs_of.values())
    costs = cost.predict(ops, hardware.load("jetson"))
    assert cost.total(costs, hardware.load("jetson"))["time_s"] > 0


@pytest.mark.parametrize(
    ("model", "method", "full"),
    [(model, method, False) for model in graph.MODELS for method in methods.METHODS]
    + [
        pytest.param(model, method, True, marks=[pytest.mark.slow] * model.startswith(("vgg", "alexnet")))
        for model in graph.MODELS for method in ("octo", "fp32")
    ],
)
def test_gradients_of_colour_images_on_every_instruction_set(
    model: str, method: str, full: bool, each_isa: list[tuple[str, int]]
) -> None:
    """The forms for CIFAR-10, which no packaged data set has; the digests of whole steps are in test_train."""
    one = methods.make(method, {})
    stack = graph.layers(model, 10, one.batchnorm, (32, 32, 3))
    made = engine.Network(stack if full else narrow(stack), (32, 32, 3), one, 0)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), np.array([3], np.int32)
    before = [(node.state, {key: value.copy() for key, value in node.state.items()}) for node in made.nodes]
    digests = set()
    for isa in dict(each_isa):
        for state, first in before:  # some methods' ranges come from the step before
            state.update({key: value.copy() for key, value in first.items()})
        core.set_isa(isa)
        core.set_threads(1 if not digests else 3)
        loss = float(made.gradients(images, labels, Context(True, 0, 1))[0])
        total = hashlib.sha256(np.float32(loss).tobytes())
        for _, gradient in made.parameters().values():
            total.update(np.ascontiguousarray(gradient))
        digests.add(total.hexdigest())
    assert len(digests) == 1


def test_gradients_that_meet_are_in_the_trace() -> None:
    """Nine blocks: the sum at the first one's input is a pass of its own, the others' are made where the additions before them
    undo their ReLU; the last addition's gradient comes from one layer."""
    ops = plan.trace(network("resnet20"), 4)
    size = 4 * 28 * 28 * 16
    assert [(op.layer, op.shape) for op in ops if op.function == "octo_add" and op.pass_ == "dX"] == [("conv2", (size,))]
    undone = [op for op in ops if op.function == "octo_relu_backward"]
    assert [round(op.bytes * 8 / op.elements, 1) for op in undone] == [65.0, *[97.0] * 8]
    assert undone[-1].shape == (size,) and not [op for op in ops if op.function in ("octo_relu_f32", "octo_copy_f32")]


def test_sums_of_a_depthwise_convolution_are_short() -> None:
    """Its weight gradient sums pixels, not pixels times channels; longer sums than 32 bits hold are taken in parts."""
    stack = (DepthwiseConv2d(), Flatten(), Linear(2))
    made = engine.Network(stack, (100, 100, 8), methods.make("dai8", {}), 0)
    assert made.nodes[0].layer.product(made.nodes[0], 13).depths[2] == 130_000
    made.check(13)
    made.check(14)


# ---- the graph --------------------------------------------------


def test_residual_blocks_become_nodes() -> None:
    stack = (
        Conv2d(4, 3, pad=1),
        ReLU(),
        Residual((Conv2d(8, 3, 2, 1), ReLU(), Conv2d(8, 3, pad=1)), (Conv2d(8, 1, 2), BatchNorm())),
        ReLU(),
        Residual((ReLU(), Residual((Conv2d(8, 3, pad=1),)))),
        GlobalAvgPool(),
        Linear(3),
    )
    made = nodes(stack, (8, 8, 2))
    assert [(n.name, n.inputs) for n in made] == [
        ("conv1", (-1,)), ("relu1", (0,)), ("conv2", (1,)), ("relu2", (2,)), ("conv3", (3,)), ("conv4", (1,)), ("bn1", (5,)),
        ("add1", (4, 6)), ("relu3", (7,)), ("relu4", (8,)), ("conv5", (9,)), ("add2", (10, 9)), ("add3", (11, 8)),
        ("avgpool1", (12,)), ("fc1", (13,)),
    ]  # fmt: skip
    assert [n.index for n in made] == list(range(len(made)))
    assert [n.name for n in made if isinstance(n.layer, ReLU) and not n.in_place] == ["relu4"]
    assert made[7].out_shape == (4, 4, 8) and made[13].out_shape == (8,)


@pytest.mark.parametrize("hidden", [(), (Flatten(),), (Dropout(0.0), Flatten())], ids=len)
def test_layers_do_not_write_over_what_another_needs(hidden: tuple) -> None:
    """The shortcut's tensor survives a ReLU of the body, also one behind layers whose output is their input's memory."""
    stack = (Flatten(), Linear(6), Residual((*hidden, ReLU(), Linear(6))), Linear(3))
    made = engine.Network(stack, (2, 2, 1), methods.make("fp32", {}), 0)
    x = np.random.default_rng(0).normal(size=(5, 2, 2, 1)).astype(np.float32)
    before = x.copy()
    made.forward(x, Context(False, 0, 0))
    assert np.array_equal(x, before)
    w = {name: value.astype(np.float64) for name, value in parameters(made).items()}
    t = x.reshape(5, 4) @ w["fc1.w"].T
    expected = (np.maximum(t, 0) @ w["fc2.w"].T + t) @ w["fc3.w"].T
    assert np.abs(made.forward(x, Context(False, 0, 0)) - expected).max() < 1e-5


def test_shapes_that_cannot_be_added() -> None:
    stack = (Conv2d(4, 3), Residual((Conv2d(8, 3, pad=1),)))
    with pytest.raises(OctosimError, match=r"layer 2 \(add1\): inputs of shapes \(6, 6, 8\) and \(6, 6, 4\) cannot"):
        nodes(stack, (8, 8, 1))
    with pytest.raises(OctosimError, match=r"layer 2, body layer 1 \(conv2\): a conv 9x9 cannot take"):
        nodes((Conv2d(4, 3), Residual((Conv2d(4, 9),))), (8, 8, 1))


DIFFERENTIATED = {
    "residual": (
        Conv2d(6, 3, pad=1), BatchNorm(), ReLU(),
        Residual((Conv2d(6, 3, pad=1), BatchNorm(), ReLU(), Conv2d(6, 3, pad=1), BatchNorm())), ReLU(),
        Residual((Conv2d(8, 3, 2, 1), BatchNorm()), (Conv2d(8, 1, 2), BatchNorm())), ReLU(), GlobalAvgPool(), Linear(4),
    ),
    "depthwise": (
        Conv2d(12, 3), BatchNorm(), ReLU(), DepthwiseConv2d(3, 2, 1), BatchNorm(), ReLU(), Conv2d(17, 1), BatchNorm(), ReLU(),
        DepthwiseConv2d(), BatchNorm(), ReLU(), GlobalAvgPool(), Linear(4),
    ),
}  # fmt: skip


CONV_BN = (Conv2d(5, 3, pad=1), BatchNorm())
BLOCKS: dict[str, tuple[Item, ...]] = {
    "identity": (Residual((*CONV_BN, ReLU(), *CONV_BN)), ReLU()),
    "projection": (
        Residual((Conv2d(8, 3, 2, 1), BatchNorm()), (Conv2d(8, 1, 2), BatchNorm())), ReLU(), Conv2d(5, 1), BatchNorm(),
    ),
    "no ReLU behind": (Residual(CONV_BN), Residual((*CONV_BN, ReLU()))),
    "no normalization": (Residual((Conv2d(5, 3, pad=1), ReLU(), Conv2d(5, 3, pad=1))), ReLU(), Residual((ReLU(),)), ReLU()),
    "nested": (Residual((*CONV_BN, Residual((*CONV_BN, ReLU())))), ReLU(), Residual((Residual(CONV_BN),)), ReLU()),
    "both the identity": (Residual(()), ReLU(), *CONV_BN, Residual((BatchNorm(),), (Dropout(0.25),)), ReLU()),
    "nothing but aliases": (Residual((Dropout(0.25),), (BatchNorm(), ReLU())), ReLU()),
    "pooling": (*CONV_BN, ReLU(), MaxPool(2, 2)),
    "pooling, in and behind a block": (Residual((*CONV_BN, ReLU(), MaxPool(1, 1))), ReLU(), MaxPool(2, 2), ReLU()),
    "poolings that stay": (*CONV_BN, ReLU(), MaxPool(2, 1), BatchNorm(), MaxPool(1), ReLU(), Residual((MaxPool(1, 1),))),
}  # fmt: skip


@pytest.mark.parametrize("method", ["octo", "fp32", "hindsight"])
@pytest.mark.parametrize("name", BLOCKS)
def test_passes_done_together_change_no_bit(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient, state and the loss of two steps, with and without fused passes and shared gradients."""
    stack = (*CONV_BN, ReLU(), *BLOCKS[name], *BLOCKS[name], Flatten(), Linear(4))
    fused = engine.Network(stack, (6, 6, 3), methods.make(method, {}), 2)
    monkeypatch.setattr(fusion, "fuse", lambda nodes, passes, poolings: fusion.unfused(nodes, passes))
    plain = engine.Network(stack, (6, 6, 3), methods.make(method, {}), 2)
    assert any(isinstance(each, fusion.Done) for each in fused.passes) and not plain.fusion.sums_y
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 6, 6, 3), dtype=np.uint8), rng.integers(0, 4, 7).astype(np.int32)
    for step in (1, 2):
        losses = [[float(v) for v in made.gradients(images, labels, Context(True, 0, step))] for made in (fused, plain)]
        assert losses[0] == losses[1]
        for (key, (_, a)), (_, b) in zip(fused.parameters().items(), plain.parameters().values(), strict=True):
            assert np.array_equal(a, b), key
        for (key, a), b in zip(fused.tensors().items(), plain.tensors().values(), strict=True):
            assert np.array_equal(a, b), key


def test_max_poolings_that_the_normalization_does() -> None:
    """Behind a ReLU, of windows side by side, with one consumer each; not where other software is priced, nor with running
    statistics in training, which the pass knows nothing of."""
    bn_relu = BatchNorm(), ReLU()
    pools = {
        True: ((MaxPool(),), (MaxPool(3, 3),), (MaxPool(1, 1), Dropout(0.5))),
        False: (
            (MaxPool(3, 2),), (MaxPool(2, 2, 1),), (MaxPool((2, 2)),), (Dropout(0.5), MaxPool()), (Residual((MaxPool(1, 1),)),),
        ),
    }  # fmt: skip
    for fused, behind in ((fused, behind) for fused, several in pools.items() for behind in several):
        made = engine.Network((*bn_relu, *behind, Flatten(), Linear(3)), (7, 6, 2), methods.make("octo", {}), 1)
        assert any(isinstance(each, PooledBatchNorm) for each in made.passes) == fused, behind
        made.fuse(poolings=False)
        assert not any(isinstance(each, PooledBatchNorm) for each in made.passes)
    names = [{op.name for op in plan.trace(network("lenet5"), 4, poolings=poolings)} for poolings in (True, False)]
    assert names[0] - names[1] == {"batchnorm maxpool forward", "batchnorm maxpool backward"}
    assert names[1] - names[0] >= {"maxpool", "maxpool backward"}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients_are_finite_differences(name: str) -> None:
    """Along each tensor's own gradient g the loss changes by |g| a unit: (L(w + h g/|g|) - L(w - h g/|g|)) / 2h."""
    made = engine.Network(DIFFERENTIATED[name], (11, 10, 3), methods.make("fp32", {}), 2)
    rng = np.random.default_rng(0)
    for key, w in parameters(made).items():  # away from 0 and 1, where one normalization takes away what another does
        if not key.endswith(".w"):
            w += rng.normal(0, 0.3, w.shape).astype(np.float32)
    images = rng.integers(0, 256, (8, 11, 10, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, 8).astype(np.int32)

    def loss() -> float:
        return float(made.gradients(images, labels, Context(True, 0, 1))[0])

    loss()
    gradients = {key: g.copy() for key, (_, g) in made.parameters().items()}
    checked = 0
    for key, (w, _) in made.parameters().items():
        length = float(np.linalg.norm(gradients[key].astype(np.float64)))
        if length < 1e-3:  # a bias that batch normalization takes away again
            assert key.endswith(".b")
            continue
        kept, step = w.copy(), 4e-3
        w += np.float32(step / length) * gradients[key]
        up = loss()
        w[...] = kept - np.float32(step / length) * gradients[key]
        down = loss()
        w[...] = kept
        assert (up - down) / (2 * step) == pytest.approx(length, rel=0.03), key
        checked += 1
    assert checked >= 13


# ---- model files --------------------------------------------------

EXAMPLE = re.search(r"```toml\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL).group(1)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    def write(content: str) -> str:
        (tmp_path / "my.toml").write_text(content)
        return str(tmp_path / "my.toml")

    return write


def test_the_documents_example(file: Callable[[str], str]) -> None:
    block = Residual(
        (Conv2d(32, 3, 2, 1), BatchNorm(), ReLU(), Conv2d(32, 3, 1, 1), BatchNorm()), (Conv2d(32, 1, 2), BatchNorm())
    )
    expected = (Conv2d(16, 3, 1, 1), BatchNorm(), ReLU(), block, ReLU(), GlobalAvgPool(), Linear(10))
    assert graph.layers(file(EXAMPLE), 10) == expected
    assert graph.layers(file(EXAMPLE), 10, batchnorm=False)[2].body == (block.body[0], ReLU(), block.body[3])


@pytest.mark.parametrize("model", graph.MODELS)
def test_a_manifest_holds_every_model(model: str) -> None:
    """What a manifest stores makes the same layers again."""
    stack = graph.layers(model, 10, in_shape=(32, 32, 3))
    assert graph.parse("manifest:", json.loads(json.dumps(graph.describe(stack)))) == stack


CONV = "[[layers]]\nkind = 'conv'\nfilters = 4\nkernel = 3\n"
HEAD = "[[layers]]\nkind = 'flatten'\n[[layers]]\nkind = 'linear'\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "my.toml: expected a list of layers"),
        ("layers = 3", "my.toml: expected a list of layers"),
        ("layers = []", "my.toml: expected a list of layers"),
        ("layers = [3]", "my.toml: layer 1: expected a table with the field 'kind', one of conv, depthwise"),
        ("layers = [", "my.toml: not valid TOML"),
        ("title = 'x'\n" + CONV, "my.toml: unknown field 'title', expected [[layers]], [input] and loss only"),
        ("[[layers]]\nfilters = 3", "my.toml: layer 1: expected a table with the field 'kind'"),
        ("[[layers]]\nkind = 'cnv'", "my.toml: layer 1: field 'kind' is 'cnv', no kind of layer; did you mean 'conv'?"),
        (CONV + "[[layers]]\nkind = 'conv'\nfilters = 3", "layer 2 (conv): field 'kernel' is missing, expected an integer in"),
        (CONV + "filter = 3", "my.toml: layer 1 (conv): unknown field 'filter'; did you mean 'filters'?"),
        (CONV + "[[layers]]\nkind = 'relu'\nslope = 3", "my.toml: layer 2 (relu): unknown field 'slope': it has none"),
        (CONV + "pad = -1", "my.toml: layer 1 (conv): field 'pad' must be an integer in 0 .. 1024 or a list of two, "),
        (CONV + "stride = 1.0", "layer 1 (conv): field 'stride' must be an integer in 1 .. 1024 or a list of two, "),
        (CONV + "stride = true", "layer 1 (conv): field 'stride' must be an integer in 1 .. 1024 or a list of two, "),
        (CONV + "deviation = 'x'", "layer 1 (conv): field 'deviation' must be a positive number, not 'x'"),
        (CONV + "deviation = inf", "field 'deviation' must be a positive number, not inf"),
        (CONV + "[[layers]]\nkind = 'dropout'\nrate = 1", "(dropout): field 'rate' must be a number of at least 0, below 1"),
        ("[[layers]]\nkind = 'residual'", "layer 1 (residual): field 'body' is missing, expected a list of layers"),
        ("[[layers]]\nkind = 'residual'\nbody = []", "my.toml: layer 1 (residual), body: expected a list of layers"),
        (
            CONV + "[[layers]]\nkind = 'residual'\nbody = [{kind = 'relu'}, {kind = 'conv', filters = 0, kernel = 3}]",
            "my.toml: layer 2 (residual), body layer 2 (conv): field 'filters' must be an integer in 1 .. 1048576, not 0",
        ),
        # what fits no image, or no data set
        (CONV + "pad = 3\n" + HEAD, "my.toml: layer 1 (conv1): the padding 3 of a conv 3x3 must be smaller than its kernel"),
        (CONV.replace("3", "30") + HEAD, "my.toml: layer 1 (conv1): a conv 30x30 cannot take an input of shape (28, 28, 1)"),
        (CONV.replace("= 4", "= 4000") + HEAD, "my.toml: layer 1 (conv1): a conv 3x3 from 1 channels to 4000 is too wide"),
        (CONV, "my.toml: layer 1, the last, makes (26, 26, 4) of an image (28, 28, 1), expected one value for each of 10"),
        (HEAD + "units = 9", "layer 2, the last, makes (9,) of an image (28, 28, 1), expected one value for each of 10"),
        (HEAD + "[[layers]]\nkind = 'avgpool'", "layer 3 (avgpool1): a global average pooling cannot take an input of"),
    ],
)
def test_bad_model_files(content: str, words: str, file: Callable[[str], str], tmp_path: Path) -> None:
    name = file(content)
    with pytest.raises(OctosimError) as caught:
        train.create(train.Config(model=name, batch_size=5), tmp_path / "run", "test")
    assert words in str(caught.value) and "\n" not in str(caught.value).removesuffix("\n")
    assert not (tmp_path / "run").exists()


def test_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match="no such model file"):
        graph.find(str(tmp_path / "none.toml"))
    with pytest.raises(OctosimError, match="no model.toml in this folder"):
        (tmp_path / "folder.toml").mkdir()
        graph.find(str(tmp_path / "folder.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(OctosimError, match="not a text file in UTF-8"):
        graph.find(str(tmp_path / "bytes.toml"))


@pytest.mark.parametrize(("after", "method"), diagonal(["gone", "changed"], list(methods.METHODS)))
def test_a_run_needs_its_model_file_only_once(
    after: str, method: str, file: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resume and verify take the layers from the manifest."""
    monkeypatch.setattr(data, "load", few_images)
    name, folder = file(EXAMPLE), tmp_path / "run"
    config = train.Config(model=name, method=method, batch_size=20, steps=4, batchnorm=methods.METHODS[method].batchnorm)
    whole = train.create(config, tmp_path / "whole", "test")
    assert train.train(whole, tmp_path / "whole")

    def stop(progress: train.Progress) -> None:
        if progress.step == 2:
            raise InterruptedError

    with pytest.raises(OctosimError):  # as if the disk failed
        train.train(train.create(config, folder, "test"), folder, stop, every=1)
    if after == "gone":
        Path(name).unlink()
    else:
        file(HEAD)
    run = train.reopen(folder)
    assert 1 <= run.step < 4 and train.train(run, folder)
    assert train.read_digest(folder) == train.read_digest(tmp_path / "whole")
    assert train.verify(folder).equal


def test_a_broken_manifest_of_a_model_file(file: Callable[[str], str], tmp_path: Path) -> None:
    train.create(train.Config(model=file(HEAD), batch_size=20, steps=4), tmp_path / "run", "test")
    path = tmp_path / "run/manifest.json"
    content = json.loads(path.read_text())
    content["decides"]["layers"][1]["units"] = "ten"
    path.write_text(json.dumps(content))
    with pytest.raises(OctosimError, match="manifest.json: field decides.layers is not as it was written"):
        train.reopen(tmp_path / "run")
    del content["sums"]  # as octosim 0.1 wrote it
    path.write_text(json.dumps(content))
    with pytest.raises(OctosimError, match=r"manifest.json: layer 2 \(Linear\): field 'units' must be an integer"):
        train.reopen(tmp_path / "run")


def test_file_kinds_are_all_layers() -> None:
    from octosim.graph import model_file

    made = set(model_file.KINDS.values())
    assert made == {*LAYERS, Residual}
    assert not any(set(field.name for field in dataclasses.fields(cls)) ^ set(cls.rules) for cls in LAYERS)
