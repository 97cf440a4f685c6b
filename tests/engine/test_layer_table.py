"""Every kind of layer in a small network: outputs, loss and gradients against PyTorch, training in INT8, a price."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import numpy as np
import pytest
from kit.layer_table import ROWS, SHAPE

from octosim import engine, methods
from octosim.bench import peers
from octosim.engine import layers, plan
from octosim.engine.nodes import Context
from octosim.engine.registers import AccumulatorModel
from octosim.errors import OctosimError
from octosim.graph import model_file
from octosim.methods import int8
from octosim.numerics import ACCUMULATORS

torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
def build(name: str, method: str = "fp32", seed: int = 1) -> tuple[engine.Network, np.ndarray, np.ndarray]:
    network = engine.Network(ROWS[name], SHAPE, methods.make(method, {}), seed)
    rng = np.random.default_rng(seed)
    for node in network.nodes:
        for key in {"b", "gamma", "beta", "positions", "token"} & set(node.params):
            if key not in node.zero_grad_params:
                node.params[key] += rng.normal(0, 0.3, node.params[key].shape).astype(np.float32)
    return network, rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8), rng.integers(0, 4, 4).astype(np.int32)


def test_every_kind_has_a_row() -> None:
    assert {type(entry.layer) for made in ROWS.values() for entry in made.layers} == set(layers.LAYERS)
    assert all(set(cls.rules) == {field.name for field in dataclasses.fields(cls)} for cls in layers.LAYERS)


@pytest.mark.parametrize("name", ROWS)
def test_outputs_and_gradients_are_pytorchs(name: str) -> None:
    network, images, labels = build(name)
    model = peers.to_torch(ROWS[name], SHAPE).double()
    state = {k: torch.from_numpy(v) for k, v in peers.weights_to_torch(network).items()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all("running" in k or "num_batches" in k for k in missing.missing_keys)
    context = Context(True, 0, 1)
    logits = network.forward(network.input(images), context).copy()
    loss = float(network.gradients(images, labels, context)[0])
    x = torch.from_numpy(images.transpose(0, 3, 1, 2) * float(np.float32(1 / 255)))
    wanted = model(x)
    assert np.abs(logits - wanted.detach().numpy()).max() <= 2e-5 * wanted.abs().max().item()
    entropy = torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels).long())
    entropy.backward()
    assert loss == pytest.approx(entropy.item(), rel=1e-5)
    found = peers.weights_to_torch(network)
    gradients = {f"grad.{k}": p.grad.numpy() for k, p in model.named_parameters()}
    assert set(gradients) == {key for key in found if key.startswith("grad.")}
    most = max(np.abs(value).max() for value in gradients.values())
    for key, value in gradients.items():
        scale = np.abs(value).max() if "bias" not in key else most  # in front of a normalization it is rounding alone
        assert np.abs(found[key] - value).max() <= 1e-4 * scale, key


@pytest.mark.parametrize("name", ROWS)
def test_octo_trains_it(name: str) -> None:
    """Three steps; the first loss is near float32's, and the step is priced."""
    network, images, labels = build(name, "octo")
    real, *_ = build(name)
    losses = []
    for step in range(1, 4):
        network.check(len(images))
        losses.append(float(network.gradients(images, labels, Context(True, 0, step))[0]))
        for node in network.nodes:
            for key, g in node.grads.items():
                if key not in node.zero_grad_params:
                    node.params[key] -= np.float32(0.02) * g
            node.known.clear()
    expected = float(real.gradients(images, labels, Context(True, 0, 1))[0])
    assert losses[0] == pytest.approx(expected, rel=0.03, abs=0.15) and np.isfinite(losses).all()
    made = plan.plan(plan.dry(ROWS[name], SHAPE, network.method), 4)
    macs = sum(op.macs for op in plan.ops(made))
    assert macs > 0 and all(op.bytes > 0 for op in plan.ops(made))


def test_one_seed_one_result_whatever_the_threads_and_instruction_set() -> None:
    from octosim import core

    names = ("attention", "squeeze and excite", "averagepool", "activations in a row", "gelu", "conv, dilation")
    before = core.isa()
    found = []
    for isa, threads in [(isa, 1) for isa, here in core.isas().items() if here] + [(before, 3)]:
        core.set_isa(isa)
        core.set_threads(threads)
        bits = []
        for name in names:
            network, images, labels = build(name, "octo")
            network.gradients(images, labels, Context(True, 0, 1))
            bits += [g.tobytes() for node in network.nodes for g in node.grads.values()]
        found.append(bits)
    core.set_isa(before)
    core.set_threads(1)
    assert all(bits == found[0] for bits in found)


def passed(name: str, register: str | None = None, counting: bool = False) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of a pass of octo, its products in a register."""
    network, images, labels = build(name, "octo")
    if register:
        registers = AccumulatorModel(ACCUMULATORS[register], counting=counting)
        registers.install(network.nodes)
    loss = float(network.gradients(images, labels, Context(True, 0, 1))[0])
    if counting:
        told = {(layer, pass_) for layer, pass_, _ in registers.counts}
        assert told and (name != "attention" or {("at", "forward"), ("at", "dX")} <= told)
    return loss, {f"{node.name}.{key}": g.copy() for node in network.nodes for key, g in node.grads.items()}


@pytest.mark.parametrize("name", ["attention", "conv, dilation", "depthwise, multiplier", "conv, strides and padding"])
def test_products_go_through_registers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 bits that wrap, and exact ones that are counted, change nothing; 16 bits do, for long weight gradients alike."""

    def same(a: tuple[float, dict[str, np.ndarray]], b: tuple[float, dict[str, np.ndarray]]) -> bool:
        return a[0] == b[0] and all(np.array_equal(a[1][key], b[1][key]) for key in a[1])

    exact, narrow = passed(name), passed(name, "acc16")
    assert same(passed(name, "acc32-wrap"), exact) and same(passed(name, "exact32", counting=True), exact)
    assert not same(narrow, exact)
    monkeypatch.setattr(int8, "SAFE", 100)
    if name != "attention":
        assert same(passed(name, "acc16"), narrow) and same(passed(name, "exact32", counting=True), exact)


@pytest.mark.parametrize("name", ROWS)
def test_model_files_hold_it(name: str) -> None:
    assert model_file.parse_network("my.toml:", tomllib.loads(model_file.to_toml(ROWS[name]))) == ROWS[name]
    manifest = json.loads(json.dumps(model_file.describe(ROWS[name])))
    assert model_file.parse_network("manifest:", manifest) == ROWS[name]


@pytest.mark.parametrize("method", ["niti", "jetfire"])
def test_methods_refuse_what_they_do_not_cover(method: str) -> None:
    cases = ("attention", "gelu", "multiply", "maxpool, padding") + (("add, broadcast",) if method == "niti" else ())
    for name in cases:
        with pytest.raises(OctosimError, match=r"layer \w+: method .* does not cover"):
            engine.Network(ROWS[name], SHAPE, methods.make(method, {}), 0)
