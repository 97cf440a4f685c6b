"""octosim.torch: the products are octosim's own to the bit, the modules are PyTorch's in all else."""

from __future__ import annotations

import copy
import doctest
import io
from typing import Any

import numpy as np
import pytest

import octosim
from octosim import core, engine, methods
from octosim.engine import nodes, probes
from octosim.engine import registers as accumulators
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, GlobalAvgPool, Linear, MaxPool, ReLU, Residual
from octosim.numerics import find

torch = pytest.importorskip("torch")
nn = torch.nn
ot = pytest.importorskip("octosim.torch")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_docstring() -> None:
    assert doctest.testmod(ot).failed == 0


# ---- the same sums as octosim's own engine --------------------------------------------------

BODY = (Conv2d(6, 3, 2, 1), BatchNorm(), ReLU(), DepthwiseConv2d(3, 1, 1), BatchNorm())
STACK = (Conv2d(4, 3, 1, 1), BatchNorm(), ReLU(), MaxPool(2, 2), Residual(BODY, (Conv2d(6, 1, 2), BatchNorm())), ReLU(),
         GlobalAvgPool(), Linear(5))  # fmt: skip


class Peer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.dw1, self.bn3 = nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.BatchNorm2d(6)
        self.conv3, self.bn4 = nn.Conv2d(4, 6, 1, 2), nn.BatchNorm2d(6)
        self.pool, self.avgpool, self.fc1 = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        body = self.bn3(self.dw1(torch.relu(self.bn2(self.conv2(x)))))
        x = torch.relu(body + self.bn4(self.conv3(x)))
        return self.fc1(self.avgpool(x).flatten(1))


def own_step(stack: Any, images: np.ndarray, labels: np.ndarray, method: Any, accumulator: str) -> tuple[Any, Any]:
    """The network before, and what its engine's step made."""
    network = engine.Network(stack, images.shape[1:], method, 3)
    held = accumulators.AccumulatorModel(find(accumulator))
    held.install(network.nodes)
    params = {f"{n.name}.{k}": v.copy() for n in network.nodes for k, v in n.params.items()}
    observed = probes.watch(network)
    with core.float_environment():
        observed.indices = {node.name: node.index for node in network.nodes}  # type: ignore[attr-defined]
        network.gradients(images, labels.astype(np.int32), nodes.Context(training=True, seed=3, step=1))
    return params, observed


def load(module: Any, params: dict[str, np.ndarray]) -> None:
    """octosim's parameters into PyTorch's module with the same names."""
    names = {"w": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}
    for key, values in params.items():
        layer, _, name = key.partition(".")
        target = getattr(getattr(module, layer), names[name])
        source = torch.from_numpy(values)
        target.data.copy_(source.permute(0, 3, 1, 2) if values.ndim == 4 else source)


@pytest.mark.parametrize("accumulator", ["exact32", "acc16", "maddubs", "acc14-wrap"])
@pytest.mark.parametrize("method", ["octo", "hindsight", "fp32"])
def test_sums_are_those_of_the_engine(method: str, accumulator: str) -> None:
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (3, 9, 9, 3), dtype=np.uint8), rng.integers(0, 5, 3)
    made = methods.make(method, {"lac": "off"} if method == "octo" else {})
    params, expected = own_step(STACK, images, labels, made, accumulator)
    peer = Peer()
    load(peer, params)
    converted = ot.convert(peer, made, accumulator, seed=3)
    for name in ("conv1", "conv2", "conv3", "dw1", "fc1"):  # the layers' numbers in the random streams
        getattr(converted, name).index = expected.indices[name]
    observed = probes.Observed()
    x = torch.from_numpy(core.images(images, 1 / 255, 0.0)).permute(0, 3, 1, 2)
    with ot.observing(converted, observed):
        ot.cross_entropy(converted(x), torch.from_numpy(labels)).backward()
    keys = [key for key in expected.tensors if key[2] in ("sums", "x", "w", "dy", "result")]
    assert len({key[:2] for key in keys if key[2] == "sums"}) == 14  # 5 layers in 3 passes; no dX of the first
    for key in keys:
        if key[2] == "result":
            continue
        assert np.array_equal(observed.tensors[key], expected.tensors[key].reshape(observed.tensors[key].shape)), key
    for name, p in converted.named_parameters():
        layer, _, kind = name.partition(".")
        node_grad = expected.tensors.get((layer, "dW", "gradient of w")) if kind == "weight" else None
        if node_grad is not None:
            mine = p.grad.permute(0, 2, 3, 1) if p.ndim == 4 else p.grad
            assert np.array_equal(mine.numpy().reshape(node_grad.shape), node_grad), name


# ---- geometries, against PyTorch's own in float32 --------------------------------------------------

LAYERS = [
    (nn.Conv2d(4, 6, 3), (2, 4, 7, 8)), (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (2, 4, 7, 8)),
    (nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 0), dilation=(1, 3)), (2, 4, 7, 8)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 4, 5, 6)),
    (nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4, bias=False), (2, 4, 6, 6)),
    (nn.Conv2d(3, 2, 4, padding="same"), (2, 3, 6, 5)),
    (nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 5)), (nn.Conv1d(4, 6, 3, 2, 1, groups=2), (3, 4, 11)),
    (nn.Conv1d(3, 5, 2, dilation=3, padding=2), (2, 3, 9)),
    (nn.Conv1d(2, 2, 3, padding="same", padding_mode="circular"), (2, 2, 9)),
    (nn.Conv2d(2, 3, 2, padding=3), (1, 2, 3, 3)), (nn.Conv2d(3, 4, 3, stride=3), (3, 8, 8)), (nn.Linear(7, 3), (2, 5, 7)),
    (nn.Linear(7, 3, bias=False), (7,)), (nn.BatchNorm2d(3), (4, 3, 5, 5)), (nn.AdaptiveAvgPool2d(1), (2, 3, 4, 5)),
    (nn.Conv2d(4, 4, 1, stride=2), (2, 4, 5, 5)),
]  # fmt: skip


SHARE = 0.05
"""Of a result's terms, that rounding to int8 may be off: at most 0.041 over 40 seeds, of vectors of 7 values."""


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("layer, shape", LAYERS, ids=lambda v: str(v)[:60])
def test_geometries(layer: Any, shape: tuple[int, ...], channels_last: bool) -> None:
    """int8 products are off by a share of the sum of their terms' sizes: values of a result may cancel, errors do not."""
    layer = copy.deepcopy(layer)
    if hasattr(layer, "reset_parameters"):
        layer.reset_parameters()  # by this test's seed: LAYERS were drawn by whatever was imported before
    x = torch.randn(shape)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    sizes = copy.deepcopy(layer)
    for p in sizes.parameters():
        p.data.abs_()
    results = []
    for module, values in (
        (sizes, x.abs()), (copy.deepcopy(layer), x), (ot.convert(layer, "fp32", observe=0), x),
        (ot.convert(layer, "octo", lac="off"), x),
    ):  # fmt: skip
        each = values.clone().requires_grad_()
        y = module(each)
        dy = torch.sin(torch.arange(y.numel(), dtype=torch.float32)).reshape(y.shape)
        y.backward(dy.abs() if module is sizes else dy)
        results.append([y.detach(), each.grad, *(p.grad for _, p in sorted(module.named_parameters()))])
    for size, want, exact, coded in zip(*results, strict=True):
        assert torch.allclose(want, exact, rtol=1e-4, atol=1e-5) and want.shape == coded.shape
        bound = want if isinstance(layer, nn.BatchNorm2d) else size  # whose values are no sum of products
        assert (want - coded).norm() <= SHARE * bound.norm() + 1e-4


def test_integer_sums_of_grouped_and_dilated_convolutions() -> None:
    """The int32 sums are the exact sums of the codes that go in, counted or not, in a register or not."""
    layer = nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), dilation=(2, 1), groups=2)
    x = torch.randn(2, 4, 9, 7)
    for accumulator, observe in (("exact32", 0), ("exact32", 1), ("acc32-wrap", 1), ("acc16-wrap", 0), ("maddubs", 1)):
        module, observed = ot.convert(layer, "octo", accumulator, lac="off", observe=observe), probes.Observed()
        with ot.observing(module, observed):
            module(x).sum().backward()
        tensors = {key[1:]: v for key, v in observed.tensors.items() if key[2] in ("x", "w", "dy", "sums")}
        t = {key: torch.from_numpy(v.astype(np.float64)) for key, v in tensors.items()}
        product, zero = observed.products["conv2d", "forward"]
        codes = torch.nn.functional.pad(t["forward", "x"].permute(0, 3, 1, 2), (1, 1, 2, 2), value=zero).requires_grad_()
        w = t["forward", "w"].permute(0, 3, 1, 2).requires_grad_()
        y = torch.nn.functional.conv2d(codes, w, None, (2, 1), 0, (2, 1), 2)
        y.backward(t["dW", "dy"].permute(0, 3, 1, 2))
        exact = {"forward": y.detach().permute(0, 2, 3, 1), "dW": w.grad.permute(0, 2, 3, 1)}
        assert product.geometry.batch == 2
        for pass_, want in exact.items():
            got = t[pass_, "sums"].reshape(want.shape)
            if accumulator == "acc16-wrap":
                want = torch.remainder(want + 2**15, 2**16) - 2**15
            if accumulator == "maddubs":
                assert (got - want).abs().max() <= 2**16
            else:
                assert torch.equal(got, want), (accumulator, pass_)


# ---- a good citizen of PyTorch --------------------------------------------------


def small() -> Any:
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def step(module: Any, optimizer: Any) -> float:
    rng = torch.Generator().manual_seed(5)
    x, y = torch.rand(4, 2, 8, 8, generator=rng), torch.arange(4) % 3
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(module(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.01)])
def test_it_trains_and_is_copied_and_saved(optimizer: Any, tmp_path: Any) -> None:
    module = ot.convert(small(), "octo", "acc24")
    held = optimizer(module.parameters())
    losses = [step(module, held) for _ in range(8)]
    assert losses[-1] < losses[0]
    for other in (copy.deepcopy(module), _through_a_file(module)):
        assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True))
        x = torch.rand(2, 2, 8, 8)
        assert torch.equal(module.eval()(x), other.eval()(x))
        state = copy.deepcopy(held.state_dict())
        again = optimizer(other.train().parameters())
        again.load_state_dict(state)
        before = copy.deepcopy(module).train()
        third = optimizer(before.parameters())
        third.load_state_dict(copy.deepcopy(state))
        assert step(other, again) == step(before, third)


def _through_a_file(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_state_dicts_of_the_original() -> None:
    original, converted = small(), ot.convert(small(), "octo", lac="channel")
    assert set(original.state_dict()) <= set(converted.state_dict())
    converted.load_state_dict(original.state_dict())  # strict: what the original has not may be missing
    assert torch.equal(converted[0].weight, original[0].weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        converted.load_state_dict({k: v for k, v in original.state_dict().items() if k != "0.weight"})
    assert [n for n, _ in ot.convert(small(), "fp32").named_parameters()] == [n for n, _ in small().named_parameters()]


def test_a_state_dict_goes_on_with_the_random_streams() -> None:
    module, other = (ot.convert(small(), "hindsight") for _ in range(2))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    step(module, optimizer)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    for each in (module, other):
        step(each, torch.optim.SGD(each.parameters(), 0.1))
    assert torch.equal(module[0].weight, other[0].weight)
    assert set(ot.convert(small(), "fp32").state_dict()) == set(small().state_dict())


def test_inference_and_no_grad() -> None:
    module = ot.convert(small(), "octo")
    x = torch.rand(3, 2, 8, 8)
    module(x)
    state = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        y = module.eval()(x)
    assert not y.requires_grad and all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert torch.allclose(module(x[:1]), y[:1], atol=1e-5)  # running ranges: a batch does not matter


def test_the_report() -> None:
    module = ot.convert(small(), "octo", "acc12", observe=2)
    held = torch.optim.SGD(module.parameters(), 0.01)
    for _ in range(3):
        step(module, held)
    table = ot.report(module)
    assert [*zip(table["layer"], table["pass"], strict=True)] == [
        ("0", "forward"), ("0", "dW"), ("4", "forward"), ("4", "dX"), ("4", "dW"),
    ]  # fmt: skip
    conv = table.iloc[0]
    assert conv["outputs"] == 2 * 4 * 6 * 6 * 4 and conv["additions"] == conv["outputs"] * 18  # the first and the third step
    assert conv["saturations"] > 0 and 0 < conv["inexact"] <= conv["outputs"] and conv["sqnr_db"] < 20
    exact = ot.convert(small(), "octo", "exact32")
    step(exact, torch.optim.SGD(exact.parameters(), 0.01))
    assert (ot.report(exact)["sqnr_db"] > 20).all() and ot.report(exact)["inexact"].sum() == 0
    ot.reset(module)
    assert ot.report(module).empty


def test_what_is_skipped_and_refused() -> None:
    module = ot.convert(small(), skip=["0"])
    assert type(module[0]) is nn.Conv2d and type(module[4]) is not nn.Linear
    with pytest.raises(octosim.OctosimError, match="no submodule '9'"):
        ot.convert(small(), skip=["9"])
    for method in ("niti", "wage", "jetfire"):
        with pytest.raises(octosim.OctosimError, match="values of its own between layers"):
            ot.convert(small(), method)
    with pytest.raises(octosim.OctosimError, match="no layer that octosim.torch converts"):
        ot.convert(nn.ReLU())
    with pytest.raises(octosim.OctosimError, match="without DataParallel"):
        ot.convert(nn.DataParallel(small()))
    with pytest.raises(octosim.OctosimError, match="without DataParallel"):
        module[4]._replicate_for_data_parallel()
    with pytest.raises(octosim.OctosimError, match="not torch.float64"):
        ot.convert(small())(torch.rand(1, 2, 8, 8, dtype=torch.float64))
    with pytest.raises(octosim.OctosimError, match="expected 2 channels"):
        ot.convert(small())(torch.rand(1, 3, 8, 8))
    with pytest.raises(octosim.OctosimError, match="layer 0, forward: .*NaN"):
        ot.convert(small())(torch.full((1, 2, 8, 8), torch.nan))
    with pytest.raises(octosim.OctosimError, match="was not converted"):
        ot.report(small())
    module = ot.convert(small())
    loss = module(torch.rand(1, 2, 8, 8)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(octosim.OctosimError, match="second backward pass"):
        loss.backward()


@pytest.mark.parametrize("place", ["x", "w"])
def test_changes_in_place_are_refused(place: str) -> None:
    module = ot.convert(small(), "fp32")
    x = torch.rand(1, 2, 8, 8, requires_grad=True) * 1
    y = module(x)
    with torch.no_grad():
        (x if place == "x" else module[4].weight).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_batch_norm_refuses_a_second_backward_pass() -> None:
    y = ot.convert(nn.Sequential(nn.BatchNorm2d(2)), "fp32")(torch.rand(2, 2, 3, 3)).square().sum()
    y.backward(retain_graph=True)
    with pytest.raises(octosim.OctosimError, match="second backward pass"):
        y.backward()


def test_a_module_at_several_places_is_one() -> None:
    layer = nn.Linear(4, 4)
    module = ot.convert(nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer)), "fp32")
    assert module[0] is module[2] is module[3][0] and type(module[0]) is not nn.Linear


def test_hooks_and_attributes_stay() -> None:
    seen: list[str] = []
    original = small()
    original[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    original[0].register_forward_hook(lambda *_: seen.append("forward"))
    original[4].register_full_backward_hook(lambda *_: seen.append("backward"))
    module = ot.convert(original)
    module(torch.rand(1, 2, 8, 8)).sum().backward()
    assert seen == ["before", "forward", "backward"] and module[4].in_features == 144


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_that_stay_are_told() -> None:
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    for left in (normed, nn.ConvTranspose2d(2, 2, 1), nn.LSTM(2, 2)):
        with pytest.warns(UserWarning, match=rf"stay PyTorch's, in float32: 1 \({type(left).__name__}\)"):
            ot.convert(nn.Sequential(nn.Linear(4, 4), left))
    old = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(octosim.OctosimError, match="layer 0 makes its weight from others"):
        ot.convert(old, inplace=True)
    with pytest.raises(octosim.OctosimError, match="cannot be copied"):
        ot.convert(old)


def test_two_conversions_are_one_report() -> None:
    module = ot.convert(ot.convert(small(), skip=["4"]), "hindsight")
    step(module, torch.optim.SGD(module.parameters(), 0.1))
    assert list(dict.fromkeys(ot.report(module)["layer"])) == ["0", "4"]


def test_autocast() -> None:
    module = ot.convert(nn.Sequential(nn.Conv2d(2, 2, 1), small()), skip=["0"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(torch.rand(1, 2, 8, 8))
        assert y.dtype == torch.float32 == ot.cross_entropy(y.bfloat16(), torch.tensor([0])).dtype
    y.sum().backward()
    assert module[0].weight.grad.norm() > 0


def test_compiled() -> None:
    module = ot.convert(small())
    again = copy.deepcopy(module)
    x = torch.rand(2, 2, 8, 8)
    for each in (torch.compile(module, backend="eager"), again):
        each(x).sum().backward()
    assert torch.equal(module[0].weight.grad, again[0].weight.grad)
    with pytest.raises(octosim.OctosimError, match="trace the original"):
        torch.jit.trace(module, x)


ARGUMENTS = [
    (lambda: ot.convert(3), "not int"),
    (lambda: ot.convert(small(), methods.METHODS["octo"]), "expected a name or a method"),
    (lambda: ot.convert(small(), methods.METHODS["octo"](), lac="off"), "no argument 'lac'"),
    (lambda: ot.convert(small(), accumulator=16), "accumulator is 16"),
    (lambda: ot.convert(small(), seed=-1), "seed is -1"),
    (lambda: ot.convert(small(), observe=1.5), "observe is 1.5"),
    (lambda: ot.convert(small(), skip="fc"), "no submodule 'fc'"),
    (lambda: ot.report(None), "not NoneType"),
]


@pytest.mark.parametrize("call, sentence", ARGUMENTS)
def test_arguments(call: Any, sentence: str) -> None:
    with pytest.raises(octosim.OctosimError, match=sentence):
        call()


INPUTS = [
    (nn.Linear(3, 2), torch.zeros(0, 3), "has no values"),
    (nn.Linear(3, 2), torch.tensor(1.0), r"shape \(\)"),
    (nn.Linear(3, 2), np.zeros((1, 3), np.float32), "is ndarray"),
    (nn.Linear(3, 2), torch.eye(3).to_sparse(), "sparse"),
    (nn.Conv2d(3, 2, 1), torch.zeros(1, 1, 3, 4, 4), "expected 3 or 4 axes"),
    (nn.Conv1d(3, 2, 1), torch.zeros(4, 4), "expected 3 channels"),
    (nn.BatchNorm2d(3), torch.zeros(2, 3), "expected 4 axes"),
    (nn.BatchNorm1d(3), torch.zeros(1, 3), "one value a channel"),
    (nn.BatchNorm2d(3), torch.zeros(2, 4, 2, 2), "expected 3 channels"),
    (nn.AdaptiveAvgPool2d(1), torch.zeros(3, 3), "expected 3 or 4 axes"),
]


@pytest.mark.parametrize("layer, x, sentence", INPUTS, ids=lambda v: str(v)[:30].replace("\n", " "))
def test_inputs(layer: Any, x: Any, sentence: str) -> None:
    with pytest.raises(octosim.OctosimError, match=f"layer 0: .*{sentence}"):
        ot.convert(nn.Sequential(layer))(x)


def test_one_image_of_global_pooling() -> None:
    x = torch.rand(3, 4, 4)
    pool = nn.AdaptiveAvgPool2d(1)
    assert torch.allclose(ot.convert(nn.Sequential(pool))(x), pool(x))


@pytest.mark.parametrize("labels, sentence", [
    (torch.tensor([0.7, 1.9]), "labels are torch.float32"),
    (torch.tensor([2**32, 1]), "a label is 4294967296"),
    (torch.tensor([-100, 1]), "a label is -100"),
    (torch.tensor([0, 1, 2]), r"labels have shape \(3,\)"),
    ([0, 1], "labels are list"),
])  # fmt: skip
def test_labels(labels: Any, sentence: str) -> None:
    with pytest.raises(octosim.OctosimError, match=f"cross_entropy: {sentence}"):
        ot.cross_entropy(torch.rand(2, 3), labels)


@pytest.mark.parametrize("method", sorted(methods.METHODS))
@pytest.mark.filterwarnings("ignore:method .* has an update of its own")
def test_every_method_trains_or_is_refused(method: str) -> None:
    cls = methods.METHODS[method]
    try:
        module = ot.convert(small(), method)
    except octosim.OctosimError as error:
        assert cls.values != "float32" or cls.layers or "optimizer" in cls.unused, error
        return
    losses = [step(module, torch.optim.SGD(module.parameters(), 0.01)) for _ in range(2)]
    assert np.isfinite(losses).all()


# ---- attention --------------------------------------------------


@pytest.mark.parametrize("method, bound", [("fp32", 1e-5), ("octo", 0.08)])
def test_scaled_dot_product_attention(method: str, bound: float) -> None:
    session = ot.Session(methods.make(method, {"lac": "off"} if method == "octo" else {}), find("exact32"))
    shapes = (2, 2, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3)
    mask = torch.rand(5, 6) > 0.3
    mask[:, 0] = True
    for options in ({}, {"attn_mask": mask}, {"attn_mask": torch.randn(5, 6)}, {"scale": 0.3}):
        ours = [torch.randn(s).requires_grad_() for s in shapes]
        theirs = [t.detach().clone().requires_grad_() for t in ours]
        y = ot.scaled_dot_product_attention(session, *ours, **options)
        want = torch.nn.functional.scaled_dot_product_attention(*theirs, **options)
        grads = zip(*(torch.autograd.grad(v.square().sum(), t) for v, t in ((y, ours), (want, theirs))), strict=True)
        for a, b in ((y, want), *grads):
            assert (a - b).norm() <= bound * b.norm() + 1e-5
    q = torch.randn(2, 5, 4)
    causal = ot.scaled_dot_product_attention(session, q, q, q, is_causal=True)
    want = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert (causal - want).norm() <= max(bound, 1e-5) * want.norm()


@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention(batch_first: bool) -> None:
    original = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    converted = ot.convert(original, "fp32")
    converted.load_state_dict(original.state_dict())
    assert [name for name, _ in converted.named_parameters()] == [name for name, _ in original.named_parameters()]
    q, kv = torch.randn(3, 3, 8), torch.randn(3, 3, 8)
    padding = torch.tensor([[False, False, True]] * 3)
    for options in ({}, {"key_padding_mask": padding}, {"attn_mask": torch.ones(3, 3).triu(1).bool()}, {"need_weights": False}):
        for a, b in zip(converted(q, kv, kv, **options), original(q, kv, kv, **options), strict=True):
            assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-5))
    octo = ot.convert(original, "octo", "acc24", lac="off")
    octo(q, kv, kv)[0].sum().backward()
    assert octo.in_proj_weight.grad.norm() > 0 and len(ot.report(octo)) == 15  # no dX of the inputs
    with pytest.raises(octosim.OctosimError, match="choose its parameters without"):
        ot.convert(original, "octo", lac="channel")


@pytest.mark.parametrize("skip", [[], ["layers.0.self_attn", "layers.1.self_attn"]])
def test_transformers_of_pytorch_use_the_modules_in_inference_too(skip: list[str]) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    module = ot.convert(nn.TransformerEncoder(layer, 2), "octo", skip=skip, lac="off").eval()
    x, padding = torch.rand(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    y = module(x, src_key_padding_mask=padding)
    with torch.no_grad():  # where PyTorch has a function of the weights
        assert torch.equal(module(x, src_key_padding_mask=padding), y)


def test_one_sequence_of_attention_and_its_inputs() -> None:
    original = nn.MultiheadAttention(8, 2)
    module, q, padding = ot.convert(original, "fp32"), torch.rand(5, 8), torch.tensor([False] * 3 + [True] * 2)
    for a, b in zip(module(q, q, q, padding), original(q, q, q, padding), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    with pytest.raises(octosim.OctosimError, match="expected 8 columns"):
        module(q[:, :6], q, q)
    session = module.attention.scores.session
    q, k = torch.rand(1, 2, 5, 4), torch.rand(3, 1, 4, 4)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, k)
    for _ in range(2):
        assert torch.allclose(ot.scaled_dot_product_attention(session, q, k, k, name="own"), want, atol=1e-5)
    assert session.layers.count("own.scores") == 1
    with pytest.raises(octosim.OctosimError, match="layer own: .* expected 5 columns"):
        ot.scaled_dot_product_attention(session, torch.rand(2, 5), k, k, name="own")
    with pytest.raises(octosim.OctosimError, match="leading axes"):
        ot.scaled_dot_product_attention(session, torch.rand(2, 2, 5, 4), k, k, name="own")


@pytest.mark.slow
def test_resnet18_of_torchvision_has_the_engines_sums() -> None:
    """The CIFAR form: the first step's int32 sums of all passes."""
    from kit import torchvision_models

    torchvision = torchvision_models.torchvision()

    def block(filters: int, stride: int) -> Any:
        short = (Conv2d(filters, 1, stride), BatchNorm()) if stride > 1 else ()
        body = (Conv2d(filters, 3, stride, 1), BatchNorm(), ReLU(), Conv2d(filters, 3, 1, 1), BatchNorm())
        return Residual(body, short), ReLU()

    stack: Any = (Conv2d(64, 3, 1, 1), BatchNorm(), ReLU())
    for filters, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        stack += block(filters, stride)
    stack += (GlobalAvgPool(), Linear(10))
    module = torchvision.models.resnet18(num_classes=10)
    module.conv1, module.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 2)
    made = methods.make("octo", {"lac": "off"})
    params, expected = own_step(stack, images, labels, made, "exact32")
    ours = [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    theirs = list(dict.fromkeys(key[0] for key in expected.tensors))
    named = dict(zip(ours, theirs, strict=True))
    modules = dict(module.named_modules())
    for name, layer in named.items():
        w = torch.from_numpy(params[f"{layer}.w"])
        modules[name].weight.data.copy_(w.permute(0, 3, 1, 2) if w.ndim == 4 else w)
        if modules[name].bias is not None:
            modules[name].bias.data.copy_(torch.from_numpy(params[f"{layer}.b"]))
    converted, observed = ot.convert(module, made), probes.Observed()
    x = torch.from_numpy(core.images(images, 1 / 255, 0.0)).permute(0, 3, 1, 2)
    with ot.observing(converted, observed):
        ot.cross_entropy(converted(x), torch.from_numpy(labels)).backward()
    compared = 0
    for (layer, pass_, name), sums in observed.tensors.items():
        if name == "sums":
            compared += 1
            assert np.array_equal(sums, expected.tensors[named[layer], pass_, "sums"].reshape(sums.shape)), (layer, pass_)
    assert compared == 3 * 21 - 1
