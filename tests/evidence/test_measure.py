"""Measures of a training step: against formulas written out, against an independent float32 run, and as a property of a run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from kit.cli import octosim
from kit.examples import examples
from kit.registers import PRODUCTS, Stop, operands, passes, stop_after_4
from kit.thin import diagonal

from octosim import core, engine, methods, train
from octosim.engine import probes
from octosim.engine.layers import Flatten, Linear, Reshape
from octosim.engine.nodes import Context, Convolution, FullProduct
from octosim.engine.registers import AccumulatorModel, exact_sums, multiply, x_windows
from octosim.methods.fp32 import Fp32
from octosim.methods.octo import Octo
from octosim.numerics import EXACT32
from octosim.train import measure

RUN = dict(model="lenet5", batch_size=20, steps=3)
PASSES = {"forward": ("x", "w"), "dX": ("dy", "w"), "dW": ("x", "dy")}


def metered(**change: Any) -> train.Run:
    run = train.Run(train.Config(**RUN | dict(measure=1) | change))
    run.meter = measure.Meter(run.layers, run.data.train_images.shape[1:], run.registers.accumulator)
    return run


def by_key(run: train.Run) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    rows = {(r["layer"], r["pass"], r["role"], r["against"]): r for r in run.measures}
    assert len(rows) == len(run.measures)
    return rows


# ---- the measures ----

reals = arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=16))


@examples(100)
@given(reals, st.randoms(use_true_random=False))
def test_errors_are_their_formulas(reference: np.ndarray, random: Any) -> None:
    """In Python integers and floats, one element after the other."""
    values = np.array([random.choice([r, -r, 0.0, r + 0.5]) for r in reference.tolist()], np.float32)
    found = measure.errors(reference, values)
    r, v = reference.tolist(), values.tolist()
    noise, signal = (math.fsum(x * x for x in xs) for xs in ([b - a for a, b in zip(r, v, strict=True)], r))
    power, n = math.fsum(b * b for b in v), len(r)
    largest = max(abs(b - a) for a, b in zip(r, v, strict=True))
    assert found["elements"] == n and found["max_error"] == pytest.approx(largest, rel=1e-5)  # six digits are kept
    assert found["mse"] == pytest.approx(noise / n, rel=1e-5)
    assert found["bias"] == pytest.approx(math.fsum(v) / n - math.fsum(r) / n, rel=1e-5, abs=1e-9)
    assert found["zeros"] == pytest.approx(v.count(0) / n, abs=1e-6)
    assert found["reference_zeros"] == pytest.approx(r.count(0) / n, abs=1e-6)
    if signal and noise:
        assert found["sqnr_db"] == pytest.approx(10 * math.log10(signal / noise), rel=1e-5, abs=1e-9)
    else:
        assert found["sqnr_db"] is None
    if signal and power:
        cosine = math.fsum(a * b for a, b in zip(r, v, strict=True)) / math.sqrt(signal * power)
        assert found["cosine"] == pytest.approx(cosine, rel=1e-5, abs=1e-9)
    else:
        assert found["cosine"] is None


def test_errors_of_long_tensors_and_of_infinities() -> None:
    long = np.ones(3 * measure.BLOCK + 1, np.float32)
    assert measure.errors(long, 3 * long) | {"cosine": 1.0} == {
        "elements": long.size, "sqnr_db": pytest.approx(10 * math.log10(1 / 4), rel=1e-5), "mse": 4.0, "bias": 2.0,
        "max_error": 2.0, "cosine": 1.0, "zeros": 0.0, "reference_zeros": 0.0,
    }  # fmt: skip
    for value in (np.inf, np.nan):
        bad = measure.errors(long, np.where(np.arange(long.size) == 7, value, long))
        assert bad["mse"] is None and bad["max_error"] is None and bad["sqnr_db"] is None
        json.dumps(bad, allow_nan=False)


@pytest.mark.parametrize("ratio", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("zero", [0, -127, 31])
def test_what_codes_do(ratio: float, zero: int) -> None:
    """Every code of a range, clipped or not, counted by brute force in exact multiples of a scale."""
    scale = 0.125
    real = np.arange(-1270, 1271, dtype=np.float32) * np.float32(scale / 10)
    limit = int(127 * ratio)
    steps = np.arange(-1270, 1271)  # tenths of a code
    wanted = np.rint(steps / 10).astype(int) + zero
    low, high = max(-127, zero - limit), min(127, zero + limit)
    q = np.clip(wanted, low, high).astype(np.int8)
    found = measure.code_use(real, q, scale, zero, (low, high))
    assert found["used_codes"] == len(set(q.tolist())) == high - low + 1
    outside = [s for s in steps.tolist() if 2 * (s + 10 * zero) < 20 * low - 10 or 2 * (s + 10 * zero) > 20 * high + 10]
    assert found["clipped"] == pytest.approx(len(outside) / len(steps), abs=1e-6)
    expected = [0] * measure.BINS
    for code in q.tolist():
        expected[(code + 127) // measure.BIN] += 1
    assert found["histogram"] == expected


def test_a_code_of_minus_128_joins_the_first_bin() -> None:
    q = np.array([-128, -127, 127], np.int8)
    assert measure.code_use(np.zeros(3, np.float32), q, 1.0, 0, (-128, 127))["histogram"][0] == 2


# ---- sums ----


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: f"{type(p).__name__}{p.shape}")
@pytest.mark.parametrize("pass_", PASSES)
def test_a_sample_holds_sums_of_the_whole(product: Any, pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And exact_sums are the kernels' own; with a sample that is as large as the product, all sums are in it."""
    three = dict(zip(("x", "w", "dy"), operands(product), strict=True))
    taken = {name: three[name] for name in PASSES[pass_]}
    whole = passes(product, *three.values(), -7)[pass_]
    assert np.array_equal(exact_sums(product, pass_, taken, -7), whole)
    assert np.array_equal(multiply(product, pass_, taken, -7), whole)
    monkeypatch.setattr(measure, "COUNTED", 1)
    monkeypatch.setattr(measure, "FILTERS", 2)
    few = exact_sums(*(lambda p, o: (p, pass_, o))(*measure._sample(product, pass_, taken, -7)), -7)
    if pass_ != "dW":
        assert np.array_equal(few, whole[:1])
    else:
        rows = whole.reshape(len(whole), -1)[: 1 if product.groups > 1 else 2]
        chosen = np.unique(np.linspace(0, rows.shape[1] - 1, measure.COLUMNS).astype(int))
        assert len(chosen) == min(measure.COLUMNS, rows.shape[1]) and np.array_equal(few, rows[:, chosen])


def test_exact_sums_of_a_large_image() -> None:
    product = Convolution(core.Conv(1, 400, 400, 1, 1, 1, 1))
    x = np.full(product.geometry.x_shape, -128, np.int8)
    assert exact_sums(product, "dW", {"x": x, "dy": x}).tolist() == [[[[400 * 400 * 128 * 128]]]]


def test_exact_sums_beyond_32_bits() -> None:
    product = FullProduct(3 * EXACT32.safe_depth(128, 128) + 5, 2, 3)
    x, dy = (np.full((product.batch, n), 127, np.int8) for n in (2, 3))
    assert (exact_sums(product, "dW", {"x": x, "dy": dy}) == 127 * 127 * product.batch).all()
    assert 127 * 127 * product.batch > 2**32


# ---- a run ----


@pytest.mark.parametrize(("model", "method"), diagonal(["lenet5", "resnet20", "mobilenet"], list(methods.METHODS)))
def test_measuring_changes_no_bit(model: str, method: str) -> None:
    """For every method, and for residual and depthwise networks; float32 has no error at all."""
    shape = dict(model=model, method=method, batch_size=3, steps=2, batchnorm=methods.METHODS[method].batchnorm)
    run, plain = metered(**shape), train.Run(train.Config(**RUN | shape))
    for each in (run, plain):
        each.train_step(), each.train_step()
    assert run.digest() == plain.digest() and plain.measures == []
    rows = by_key(run)
    weighted = [node.name for node in run.network.nodes if node.layer.weighted]
    results = {("forward", "activation"), ("dW", "gradient"), ("dX", "error"), ("update", "update")}
    first = weighted[0]
    expected = {(n, p, r, "step") for n in weighted for p, r in results} - {(first, "dX", "error", "step")}
    found = {key for key in rows if key[3] == "step"}, {key for key in rows if key[3] == "layer"}
    wanted = expected, {(n, p, r, "layer") for n, p, r, _ in expected if p != "update"}
    if all(node.params["w"].dtype == np.float32 for node in run.network.nodes if node.layer.weighted):
        assert found == wanted
    else:  # what integer weights and their gradients stand for is not always known
        assert found[0] <= wanted[0] and found[1] <= wanted[1]
    json.dumps(run.measures, allow_nan=False)
    assert all(row["step"] == 2 for row in rows.values())
    if method == "fp32":
        assert all(row["mse"] == row["max_error"] == 0 and row["sqnr_db"] is None for row in rows.values())
        assert {key[3] for key in rows} == {"step", "layer"}
    else:
        assert all(row["role"] in measure.ROLES and row["against"] in measure.AGAINST for row in rows.values())
        assert any(row["max_error"] > 0 for row in rows.values())


@pytest.mark.parametrize("change", [{"accumulator": "acc16"}, {"accumulator": "maddubs"}, {"parameters": {"lac": "feature"}}])
def test_measuring_changes_no_bit_in_any_register(change: dict[str, Any]) -> None:
    run, plain = metered(**change, count_overflow=2), train.Run(train.Config(**RUN | change))
    for _ in range(3):
        run.train_step(), plain.train_step()
    assert run.digest() == plain.digest()


def test_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = octosim("train", "--model", "lenet5", "--batch-size", "50", "--steps", "4", "--measure", "2", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "measures.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {2, 4} and {row["role"] for row in rows} == set(measure.ROLES)
    assert {row["against"] for row in rows} == set(measure.AGAINST)
    done = octosim("train", "--resume", "--measure", "3", "--out", str(folder))
    assert done.returncode == 2 and "was started with measure = 2, not 3" in done.stderr


def twins(steps: int, **change: Any) -> tuple[train.Run, probes.Observed, train.Run, probes.Observed, dict[str, Any]]:
    """An octo run and a float32 run that starts its last step from the same numbers, both observed in it; parameters before."""
    octo = train.Run(train.Config(**RUN | change))
    fp32 = train.Run(train.Config(**RUN | change | dict(method="fp32", parameters={})))
    while octo.step < steps - 1:
        octo.train_step()
    fp32.step = octo.step
    source = octo.tensors()
    for name, tensor in fp32.tensors().items():
        tensor[...] = source[name]
    before = {n.name: {k: v.copy() for k, v in n.params.items()} for n in octo.network.nodes if n.layer.weighted}
    seen = [probes.watch(run.network) for run in (octo, fp32)]
    octo.train_step(), fp32.train_step()
    return octo, seen[0], fp32, seen[1], before


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_accumulated_error_is_that_against_a_float32_run(optimizer: str) -> None:
    """The third step of an octo run, and a float32 run from the same weights, statistics and momenta: the very same rows."""
    run = metered(optimizer=optimizer, weight_decay=1e-3)
    while run.step < 3:
        run.train_step()
    rows = by_key(run)
    octo, own, fp32, other, before = twins(3, optimizer=optimizer, weight_decay=1e-3)
    few = slice(measure.IMAGES)
    nodes = {node.name: node for node in fp32.network.nodes}
    for name, params in before.items():
        w = params["w"]
        for pass_, tensor, role in (("forward", "output", "activation"), ("dX", "result", "error")):
            if (name, pass_, tensor) in own.tensors:
                expected = measure.errors(other.tensors[name, pass_, tensor][few], own.tensors[name, pass_, tensor][few])
                assert rows[name, pass_, role, "step"].items() >= expected.items() and expected["mse"] > 0
        gradients = (seen.tensors[name, "dW", "gradient of w"] for seen in (other, own))
        assert rows[name, "dW", "gradient", "step"].items() >= measure.errors(*gradients).items()
        after = next(node.params["w"] for node in octo.network.nodes if node.name == name)
        expected = measure.errors(nodes[name].params["w"] - w, after - w)
        assert rows[name, "update", "update", "step"].items() >= expected.items() and expected["mse"] > 0


def test_updates_are_measured_at_the_rates_of_their_layers() -> None:
    run = metered(method="fp32", rate=["conv1=0.1", "fc*=3"])
    run.train_step()
    assert {row["mse"] for row in run.measures if row["role"] == "update" and row["against"] == "step"} == {0}


@pytest.mark.parametrize("model", ["lenet5", "mobilenet"])
def test_local_and_operand_errors(model: str) -> None:
    """The layers' own inputs and gradients through products in float64; codes back to reals by their scales."""
    shape = dict(model=model, batch_size=10)
    run = metered(**shape)
    run.train_step(), run.train_step()
    rows = by_key(run)
    _, seen, _, _, before = twins(2, **shape)
    few = slice(measure.IMAGES)
    for name, params in before.items():
        w = params["w"]
        tensors = {key[1:]: value for key, value in seen.tensors.items() if key[0] == name}
        product = seen.products[name, "forward"][0]
        g, x, dy = product.geometry, tensors["forward", "input"], tensors["dW", "gradient"]
        windows = x_windows(g, x.astype(np.float64), 0)
        dys = dy.reshape(g.y_shape).astype(np.float64)
        taps = w.reshape(g.filters, g.kernel_h, g.kernel_w, -1).astype(np.float64)
        depthwise = product.groups > 1
        y = np.einsum("bhwijc,cij->bhwc" if depthwise else "bhwijc,fijc->bhwf", windows, taps[..., 0] if depthwise else taps)
        dw = np.einsum("bhwijc,bhwc->cij" if depthwise else "bhwijc,bhwf->fijc", windows, dys)
        for pass_, role, reference, value in (
            ("forward", "activation", (y + params["b"])[few], tensors["forward", "output"][few]),
            ("dW", "gradient", dw, tensors["dW", "gradient of w"]),
        ):
            found, expected = rows[name, pass_, role, "layer"], measure.errors(reference, value)
            assert found["sqnr_db"] == pytest.approx(expected["sqnr_db"], abs=0.01), (name, pass_)
            assert found["elements"] == expected["elements"]
            assert found["cosine"] == pytest.approx(expected["cosine"], abs=1e-4)
        for pass_, operand, role, real in (
            ("forward", "x", "activation", x), ("forward", "w", "weight", w), ("dW", "x", "activation", x),
            ("dW", "dy", "error", dy), ("dX", "dy", "error", dy), ("dX", "w", "weight", w),
        ):  # fmt: skip
            if (pass_, operand) not in tensors:
                assert name == next(iter(before)) and pass_ == "dX"
                continue
            meaning = seen.meanings[name, operand][-1]
            part = slice(None) if operand == "w" else few
            q = tensors[pass_, operand][part]
            expected = measure.errors(real[part], core.dequantize(q, meaning.scale, zero=meaning.zero))
            ends = int(tensors[pass_, operand].min()), int(tensors[pass_, operand].max())
            expected |= measure.code_use(real[part], q, meaning.scale, meaning.zero, ends)
            assert rows[name, pass_, role, "operand"].items() >= expected.items()


@pytest.mark.parametrize("prc", ["off", "ratio", "gauss"])
def test_histograms_tell_clipping(prc: str) -> None:
    run = metered(parameters={"prc": prc})
    run.train_step()
    rows = [row for key, row in by_key(run).items() if key[2:] == ("error", "operand")]
    assert rows and all(sum(row["histogram"]) == sum(row["unclipped_histogram"]) == row["elements"] for row in rows)
    same = [row["histogram"] == row["unclipped_histogram"] for row in rows]
    assert all(same) if prc == "off" else not all(same)
    assert any(row["clipped"] > 0 for row in rows) == (prc != "off")


@pytest.mark.parametrize("accumulator", ["exact32", "acc16", "maddubs"])
def test_registers_are_counted_as_by_count_overflow(accumulator: str) -> None:
    """With a batch of the sample's size, forward and dX are counted whole."""
    run = metered(accumulator=accumulator, batch_size=measure.COUNTED, count_overflow=1)
    run.train_step()
    rows, whole = by_key(run), {(r["layer"], r["pass"]): r for r in run.overflow}
    assert len(whole) == 14
    for (layer, pass_), account in whole.items():
        row = rows[layer, pass_, "accumulator", "exact"]
        if pass_ != "dW":
            assert row.items() >= account.items()
        assert row["outputs"] == row["elements"] and row["largest_bits"] <= account["largest_bits"]
        assert (row["max_error"] == 0) == (row["inexact"] == 0)
    inexact = sum(row["inexact"] for row in rows.values() if row["role"] == "accumulator")
    if accumulator != "maddubs":  # whose few saturated pairs need not be in the sample
        assert (inexact == 0) == (accumulator == "exact32")


@pytest.mark.parametrize("prefetch", [False, True])
def test_measures_survive_a_resume(prefetch: bool, tmp_path: Path) -> None:
    config = train.Config(**RUN | dict(steps=6, measure=2))
    for name in ("whole", "broken"):
        run = train.create(config, tmp_path / name, "test")
        if name == "broken":
            with pytest.raises(Stop):
                train.train(run, tmp_path / name, stop_after_4, 3, prefetch)
            assert '"step": 4' in (tmp_path / name / "measures.jsonl").read_text()
            run = train.reopen(tmp_path / name)
        assert train.train(run, tmp_path / name, prefetch=prefetch)
    for name in ("digest.txt", "records.jsonl", "measures.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "whole/measures.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in (2, 4, 6) for _ in range(len(rows) // 3)]
    assert not (tmp_path / "whole/overflow.jsonl").exists()
    assert train.verify(tmp_path / "broken").equal


# ---- methods of other kinds ----


@dataclass(frozen=True)
class Bifurcated(Octo):
    """As Banner: two copies of dY, codes for dX and dY itself for dW."""

    def error(self, node, dy, context):
        return super().error(node, dy, context), dy

    def weight_grad(self, node, error, context):
        real = core.dequantize(node.saved["x"].q, node.saved["x"].scale, zero=node.saved["x"].zero)
        node.grads["w"] = node.layer.product(node, len(real)).weight_grad(real, error[1])
        node.grads |= {k: np.zeros_like(v) for k, v in node.params.items() if k != "w"}

    def input_grad(self, node, error, context):
        return super().input_grad(node, error[0], context)


@dataclass(frozen=True)
class Codes(Fp32):
    """As NITI: weights are int8 codes with an exponent; here in float32 products, and with no optimizer's update."""

    def init(self, node, seed):
        w = node.params["w"]
        node.params["w"] = core.quantize(w, 2.0**8)
        node.state["exponent"] = np.array([-8], np.int32)

    def _as_real(self, node):
        return replace_params(node, np.ldexp(node.params["w"].astype(np.float32), -8))

    def forward(self, node, x, context):
        return super().forward(self._as_real(node), x, context)

    def weight_grad(self, node, error, context):
        super().weight_grad(self._as_real(node), error, context)

    def input_grad(self, node, error, context):
        return super().input_grad(self._as_real(node), error, context)


def replace_params(node, w):
    """The node, sharing everything but its parameters."""
    return replace(node, params=node.params | {"w": w})


def rows_of(network: engine.Network, run: train.Run) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """A measured pass of another network in the place of a run's."""
    registers = AccumulatorModel(EXACT32)
    registers.install(network.nodes)
    context = Context(training=True, seed=0, step=1)
    batch = run.batch(1)
    meter = measure.Meter(run.layers, run.data.train_images.shape[1:], EXACT32)
    with meter.step(network, registers, batch, context, 0.0, lambda name, w, g: None):
        network.gradients(*batch, context)
    assert not network.observers
    return {(r["layer"], r["pass"], r["role"], r["against"]): r for r in meter.finish(network)}


def test_errors_of_a_tuple_and_float_products() -> None:
    run = train.Run(train.Config(**RUN))
    network = engine.Network(run.layers, run.data.train_images.shape[1:], Bifurcated(), 0)
    seen = probes.watch(network)
    network.gradients(*run.batch(1), Context(training=True, seed=0, step=1))
    assert seen.meanings["conv2", "dy"][-1].q.dtype == np.int8
    rows = rows_of(engine.Network(run.layers, run.data.train_images.shape[1:], Bifurcated(), 0), run)
    assert rows["conv2", "dX", "error", "operand"]["used_codes"] > 9
    assert ("conv2", "dW", "error", "operand") not in rows  # dW took dY itself
    x = rows["conv2", "dW", "activation", "operand"]  # the codes' values, in float32
    assert "used_codes" not in x and x["mse"] == rows["conv2", "forward", "activation", "operand"]["mse"]
    assert ("conv2", "dW", "accumulator", "exact") not in rows and ("conv2", "dX", "accumulator", "exact") in rows


@pytest.mark.parametrize("known", [True, False])
def test_integer_weights(known: bool) -> None:
    """With an exponent they have values, and products in float32 no error; without, only what needs no value is measured."""
    run = train.Run(train.Config(**RUN))
    network = engine.Network(run.layers, run.data.train_images.shape[1:], Codes(), 0)
    if not known:
        for node in network.nodes:
            node.state.pop("exponent", None)
    rows = rows_of(network, run)
    against = {key[3] for key in rows}
    assert against == ({"layer", "step"} if known else {"layer"})
    assert ("conv2", "forward", "activation", "layer") in rows or not known
    assert ("conv2", "dW", "gradient", "layer") in rows
    for key, row in rows.items():
        assert row["mse"] == 0 or key[1] == "update"


def test_values_of_what_methods_pass_around() -> None:
    q = np.array([[-127, 0, 3]], np.int8)
    by_channel = core.Tensor(q, scales=np.array([1, 2, 3], np.float32))
    assert measure._real(core.Tensor(q, exponent=-2)).tolist() == [[-31.75, 0, 0.75]]
    assert measure._real(core.Tensor(q, 0.5, 3)).tolist() == [[-65, -1.5, 0]]
    assert measure._real(by_channel).tolist() == [[-127, 0, 9]] and measure._real(q) is None
    other = core.Tensor(q.copy())
    assert measure.meaning_of(q[:, 1:], [other, core.Tensor(q, exponent=4)]) == (16.0, 0)
    assert measure.meaning_of(q, [other, by_channel]) is None
    assert measure.meaning_of(q, [other]) is None
    seen = probes.Observed()
    seen.add("conv1", "forward", "input", core.Tensor(q, exponent=-2))
    assert np.array_equal(seen.tensors["conv1", "forward", "input"], q)


def test_a_shadow_that_overflows_leaves_its_rows_out() -> None:
    """The float32 network's own NaN is not the run's."""
    run = metered(method="octo", batchnorm=False)
    for node in run.network.nodes:
        if node.layer.weighted:
            node.params["w"] *= np.float32(1e9)
    network, context = run.network, Context(training=True, seed=0, step=1)
    shown = run.meter._take_weights(network) and run.meter._shadow_step(run.batch(1), context, 0.0, lambda name, w, g: None)
    assert shown == {}


def test_fully_connected_layers_of_tokens_are_measured() -> None:
    """Their products have a row for each token of each image."""
    layers = (Reshape((56, 14)), Linear(8), Linear(6), Flatten(), Linear(10))
    run = train.Run(train.Config(**RUN | dict(batch_size=4, measure=1, batchnorm=False)), layers)
    run.meter = run.new_meter()
    run.train_step()
    assert {(row["layer"], row["pass"]) for row in run.measures} >= {("fc1", "forward"), ("fc2", "dX"), ("fc2", "dW")}
