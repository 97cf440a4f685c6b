"""Networks of named layers: any graph is trained as PyTorch trains it, and model files keep it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octosim import data, engine, graph, methods, train
from octosim.bench import peers
from octosim.engine.layers import (
    Add,
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    Residual,
)
from octosim.engine.nodes import Context
from octosim.errors import OctosimError
from octosim.graph import Entry, Graph, InputSpec

torch = pytest.importorskip("torch")


def net(*layers: tuple[object, ...]) -> Graph:
    """A graph of (name, layer, inputs ...)."""
    return Graph(tuple(Entry(name, layer, tuple(inputs)) for name, layer, *inputs in layers))  # type: ignore[arg-type]


HEAD = (("pool", GlobalAvgPool(), "end"), ("fc", Linear(5), "pool"))
GRAPHS = {
    "three users": net(
        ("stem", Conv2d(6, 3, 1, 1), "input"), ("bn", BatchNorm(), "stem"), ("act", ReLU(), "bn"),
        ("a", Conv2d(6, 3, 1, 1), "act"), ("b", Conv2d(6, 1), "act"),
        ("ab", Add(), "a", "b"), ("end", Add(), "ab", "act"), *HEAD,
    ),
    "a user between the shortcut and its addition": net(
        ("stem", Conv2d(6, 3, 1, 1), "input"), ("act", ReLU(), "stem"),
        ("c", Conv2d(6, 1), "act"), ("n", BatchNorm(), "c"),
        ("d", Conv2d(6, 1), "act"), ("sum", Add(), "act", "n"), ("end", Add(), "sum", "d"), *HEAD,
    ),
    "a tensor twice": net(("stem", Conv2d(6, 3, 2, 1), "input"), ("end", Add(), "stem", "stem"), *HEAD),
    "dense": net(
        ("c0", Conv2d(4, 3, 1, 1), "input"), ("c1", Conv2d(4, 3, 1, 1), "c0"), ("s1", Add(), "c0", "c1"),
        ("c2", Conv2d(4, 3, 1, 1), "s1"), ("s2", Add(), "s1", "c2"), ("s3", Add(), "s2", "c0"), ("end", ReLU(), "s3"), *HEAD,
    ),
    "the input twice": net(
        ("a", Conv2d(4, 3, 2, 1), "input"), ("b", Conv2d(4, 1, 2), "input"), ("m", MaxPool(), "a"), ("n", MaxPool(), "b"),
        ("end", Add(), "m", "n"), *HEAD,
    ),
    "relu and its input": net(
        ("c", Conv2d(4, 3, 1, 1), "input"), ("n", BatchNorm(), "c"), ("r", ReLU(), "n"), ("s", Add(), "n", "r"),
        ("dw", DepthwiseConv2d(), "s"), ("end", ReLU(), "dw"), *HEAD,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("method", ["fp32", "octo"])
def test_gradients_of_any_graph(name: str, method: str) -> None:
    """fp32's gradients are PyTorch's; octo's go the same way."""
    network = engine.Network(GRAPHS[name], (8, 8, 3), methods.make(method, {}), 1)
    model = peers.to_torch(GRAPHS[name], (8, 8, 3)).double()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in peers.weights_to_torch(network).items()}, strict=False)
    rng = np.random.default_rng(2)
    images, labels = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), rng.integers(0, 5, 4).astype(np.int32)
    loss, _ = network.gradients(images, labels, Context(True, 0, 1))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255)
    expected = torch.nn.functional.cross_entropy(model(pixels), torch.from_numpy(labels).long())
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5 if method == "fp32" else 0.1)
    found = peers.weights_to_torch(network)
    for key, p in model.named_parameters():
        if p.ndim < 2:
            continue
        wanted, got = p.grad.numpy(), found[f"grad.{key}"]
        if method == "fp32":
            assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max(), key
        else:
            assert (got * wanted).sum() / np.sqrt((got**2).sum() * (wanted**2).sum()) > 0.95, key


@pytest.mark.parametrize("method", ["fp32", "octo", "niti", "jetfire"])
def test_a_stack_and_its_graph_are_one_network(method: str) -> None:
    made = methods.make(method, {})
    stack = graph.layers("resnet20", 10, made.batchnorm, (16, 16, 3))[:8]
    stack = (*stack, GlobalAvgPool(), Linear(10))
    named = graph.as_graph(stack)
    digests = []
    for each in (stack, named, graph.parse_network("", json.loads(json.dumps(graph.describe(named))))):
        network = engine.Network(each, (16, 16, 3), made, 5)
        images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        network.gradients(images, np.arange(4, dtype=np.int32), Context(True, 5, 1))
        digests.append(train.run.digest_of({k: g for k, (_, g) in network.parameters().items() if isinstance(g, np.ndarray)}))
    assert len(set(digests)) == 1


LAYERS = st.one_of(
    st.builds(Conv2d, st.integers(1, 64), st.integers(1, 5), st.integers(1, 2), st.integers(0, 2)),
    st.builds(DepthwiseConv2d), st.builds(Linear, st.none() | st.integers(1, 9)), st.builds(Dropout, st.floats(0, 0.9)),
    st.just(ReLU()), st.just(Flatten()), st.builds(BatchNorm, st.floats(1e-6, 0.1), st.floats(0.01, 1)), st.just(MaxPool()),
)  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph in which each layer's output is used, whether its shapes fit or not."""
    name = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True)
    names = draw(st.lists(name, min_size=1, max_size=8, unique=True))
    entries, open_ends = [], ["input"]
    for name in names:
        if name == "input":
            continue
        source = draw(st.sampled_from(open_ends))
        entries.append(Entry(name, draw(LAYERS), (source,)))
        open_ends = [*(e for e in open_ends if e == "input" or e != source), name]
    ends = [e for e in open_ends if e != "input"]
    while len(ends) > 1:
        name = f"sum-{len(entries)}-of-it-all"
        entries.append(Entry(name, Add(), (ends[0], ends[1])))
        ends = [*ends[2:], name]
    channels = draw(st.integers(1, 4))
    values = st.none() | st.tuples(*[st.floats(0.1, 2)] * channels)
    shape = draw(st.none() | st.just((32, 16, channels)))
    spec = InputSpec(shape, draw(values), draw(values), draw(st.sampled_from(["nhwc", "nchw"])))
    return Graph(tuple(entries), spec)


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_files_and_manifests_keep_a_graph(tmp_path_factory: pytest.TempPathFactory, network: Graph) -> None:
    path = tmp_path_factory.mktemp("model") / "model.toml"
    path.write_text(graph.to_toml(network))
    assert graph.find(str(path)).layers == network
    assert graph.parse_network("", json.loads(json.dumps(graph.describe(network)))) == network


CONV = "[[layers]]\nname = 'c'\nkind = 'conv'\nfilters = 4\nkernel = 3\n"
HEADS = "[[layers]]\nname = 'f'\nkind = 'flatten'\n[[layers]]\nname = 'fc'\nkind = 'linear'\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CONV + "inputs = []\n" + HEADS, "layer 1: field 'inputs' must be a list of names"),
        (CONV + "inputs = ['d']\n" + HEADS, "layer c (conv): its input 'd' is no layer before it"),
        (CONV + "inputs = ['inpt']\n" + HEADS, "did you mean 'input'?"),
        (CONV + CONV + HEADS, "layer c (conv): another layer has this name"),
        (CONV + HEADS + "inputs = ['c', 'f']", "layer fc (fc): it takes 1 inputs, not 2"),
        (CONV + "[[layers]]\nkind = 'add'\ninputs = ['c']\n" + HEADS, "it takes 2 inputs, not 1"),
        (CONV + HEADS + "[[layers]]\nname='d'\nkind='relu'\ninputs=['c']", "layer fc (fc): nothing takes its output"),
        (CONV.replace("'c'", "'a/b'") + HEADS, "layer a/b (conv): its name must be letters"),
        (CONV.replace("'c'", "'input'") + HEADS, "its name must be"),
        (CONV.replace("'c'", "3") + HEADS, "layer 1: field 'name' must be a string, not 3"),
        (CONV + "[[layers]]\nkind = 'residual'\nbody = [{kind='relu'}]\n" + HEADS, "use an 'add' with two inputs"),
        ("[[layers]]\nkind = 'add'", "takes several inputs; name the layers"),
        ("input = 3\n" + CONV + HEADS, "[input]: expected a table"),
        ("[input]\nshape = [32, 32]\n" + CONV + HEADS, "[input]: field 'shape' must be [height, width, channels]"),
        ("[input]\nshpe = [32, 32, 3]\n" + CONV + HEADS, "[input]: unknown field 'shpe'; did you mean 'shape'?"),
        ("[input]\nmean = [0.1, nan]\n" + CONV + HEADS, "[input]: field 'mean' must be a list of numbers"),
        ("[input]\ndeviation = [0.1, 0]\n" + CONV + HEADS, "[input]: field 'deviation' must be a list of positive numbers"),
        ("[input]\nshape = [8, 8, 3]\nmean = [0.1]\n" + CONV + HEADS, "one for each channel"),
        ("[input]\nlayout = 'nwhc'\n" + CONV + HEADS, "[input]: field 'layout' must be one of nhwc, nchw"),
        (CONV + "pad = 3\n" + HEADS, "layer c (conv): the padding 3 of a conv 3x3 must be smaller than its kernel"),
    ],
)
def test_bad_graphs(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(content)
    with pytest.raises(OctosimError) as caught:
        graph.layers(str(path), 10)
    assert words in str(caught.value) and str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_graph_is_trained_verified_and_kept(tmp_path: Path) -> None:
    content = graph.to_toml(replace(GRAPHS["three users"], input=InputSpec((28, 28, 1))))
    path = tmp_path / "net.toml"
    path.write_text(content.replace("units = 5\n", ""))
    config = train.Config(model=str(path), batch_size=10, steps=2)
    run = train.create(config, tmp_path / "run", "test")
    assert {"stem", "ab", "end"} <= {node.name for node in run.network.nodes}
    assert train.train(run, tmp_path / "run")
    path.unlink()
    assert train.verify(tmp_path / "run").equal
    bare = graph.layers("resnet20", 10, in_shape=data.load("fashion-mnist-5k").train_images.shape[1:])
    assert any(isinstance(item, Residual) for item in bare)
