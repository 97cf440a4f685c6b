"""Training in a given register: its sums against slow loops in the documented order, and as a property of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kit.registers import PRODUCTS, Stop, operands, passes, slow_passes, stop_after_4

from octosim import graph, train
from octosim.engine.nodes import Convolution, FullProduct
from octosim.engine.registers import WIDTHS, AccumulatorModel, EmulatedProduct, as_record, check
from octosim.errors import OctosimError
from octosim.numerics import ACCUMULATORS, EXACT32

RUN = dict(model="lenet5", batch_size=20, steps=2)


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: f"{type(p).__name__}{p.shape}")
@pytest.mark.parametrize("name", ["acc16", "acc16-wrap", "acc12", "vpdpbusds", "maddubs", "smlal"])
def test_against_slow_loops(product, name: str) -> None:
    """Sums and counts."""
    how = ACCUMULATORS[name]
    x, w, dy = operands(product)
    expected = slow_passes(product, x, w, dy, -7, how)
    registers = AccumulatorModel(how)
    plain = passes(EmulatedProduct("layer", product, registers), x, w, dy, -7)
    registers.counting = True
    counted = passes(EmulatedProduct("layer", product, registers), x, w, dy, -7)
    exact = passes(product, x, w, dy, -7)
    for (layer, pass_, count), (key, rows) in zip(registers.counts, expected.items(), strict=True):
        assert (layer, pass_) == ("layer", key)
        sums = [row[0] for row in rows]
        assert plain[key].ravel().tolist() == sums and counted[key].ravel().tolist() == sums, key
        record = as_record(count)
        assert record["saturations"] + record["wraps"] == sum(row[1] for row in rows)
        assert record["pair_saturations"] == sum(row[3] for row in rows)
        assert record["inexact"] == np.count_nonzero(plain[key] != exact[key])
        assert record["outputs"] == len(rows) and record["largest_bits"] == max(row[2] for row in rows)
        assert record["would_overflow"]["16"] == sum(row[2] > 16 for row in rows)


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: f"{type(p).__name__}{p.shape}")
@pytest.mark.parametrize("name", [name for name, how in ACCUMULATORS.items() if how.bits >= 18])
def test_wide_registers_are_exact(product, name: str) -> None:
    """Sums that fit, in every preset, are those of the exact kernels; shifted codes need pairs of 16 bits to hold them."""
    how = ACCUMULATORS[name]
    x, w, dy = operands(product, largest=31)
    exact = passes(product, x, w, dy, 3)
    found = passes(EmulatedProduct("layer", product, AccumulatorModel(how)), x, w, dy, 3)
    assert all(np.array_equal(exact[key], found[key]) for key in exact)
    counting = AccumulatorModel(how, counting=True)
    found = passes(EmulatedProduct("layer", product, counting), x, w, dy, 3)
    assert all(np.array_equal(exact[key], found[key]) for key in exact) and len(counting.counts) == 3


def test_float32_goes_through() -> None:
    product = PRODUCTS[0]
    x, w, dy = (v.astype(np.float32) for v in operands(product))
    found = passes(EmulatedProduct("layer", product, AccumulatorModel(ACCUMULATORS["acc8"])), x, w, dy, 0)
    exact = passes(product, x, w, dy, 0)
    assert all(np.array_equal(exact[key], found[key]) for key in exact)


# ---- runs --------------------------------------------------


def digest(**change) -> str:
    run = train.Run(train.Config(**RUN | change))
    while run.step < run.steps:
        run.train_step()
    return run.digest()


def test_exact_registers_train_to_the_same_bits_and_others_do_not() -> None:
    exact = digest()
    for name in ("sdot", "smlal", "vpdpbusd", "vpdpbusds", "acc32", "acc32-wrap"):
        assert digest(accumulator=name) == exact, name
    others = [digest(accumulator=name) for name in ("maddubs", "acc16", "acc16-wrap", "acc12")]
    assert len({exact, *others}) == 5


def test_exact32_uses_the_kernels_own_products() -> None:
    run = train.Run(train.Config(**RUN))
    products = [n.layer.product(n, 4) for n in run.network.nodes if n.layer.weighted]
    assert {type(p) for p in products} == {Convolution, FullProduct}


@pytest.mark.parametrize("model", ["resnet20", "mobilenet"])
def test_every_kind_of_layer(model: str) -> None:
    shape = dict(model=model, data="fashion-mnist-5k", batch_size=2, steps=1)
    assert digest(**shape, accumulator="vpdpbusds") == digest(**shape)


@pytest.mark.parametrize("accumulator", ["acc16", "maddubs"])
def test_a_run_keeps_its_register(accumulator: str, tmp_path: Path) -> None:
    """In the manifest, over a resume, and in a replay; so are the counts."""
    config = train.Config(**RUN | dict(steps=6, accumulator=accumulator, count_overflow=2))
    for name in ("whole", "broken"):
        run = train.create(config, tmp_path / name, "test")
        if name == "broken":
            with pytest.raises(Stop):
                train.train(run, tmp_path / name, stop_after_4, 3)
            run = train.reopen(tmp_path / name)
            assert run.step == 3
        assert train.train(run, tmp_path / name)
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    assert manifest["decides"]["numerics"]["accumulator"] == accumulator
    for name in ("digest.txt", "records.jsonl", "overflow.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert train.verify(tmp_path / "broken").equal
    rows = [json.loads(line) for line in (tmp_path / "whole/overflow.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in (2, 4, 6) for _ in range(14)]
    passes = {(row["layer"], row["pass"]) for row in rows}
    assert ("conv1", "dW") in passes and ("conv1", "dX") not in passes and ("fc3", "dX") in passes
    by_pass = {(r["layer"], r["pass"]): r for r in rows if r["step"] == 2}
    narrowed = by_pass["conv1", "dW"]["saturations"] + by_pass["conv1", "dW"]["wraps"]
    assert narrowed > 0 if accumulator == "acc16" else narrowed == 0
    pairs = sum(row["pair_saturations"] for row in rows)
    assert pairs == 0 if accumulator == "acc16" else 0 < pairs
    assert all(row["inexact"] <= row["outputs"] for row in rows) and sum(row["inexact"] for row in rows) > 0
    other = json.loads((tmp_path / "broken/manifest.json").read_text())
    other["config"]["accumulator"] = "sdot"
    (tmp_path / "broken/manifest.json").write_text(json.dumps(other))
    with pytest.raises(OctosimError, match="field config.accumulator is not as it was written"):
        train.reopen(tmp_path / "broken")
    del other["sums"]  # as octosim 0.1 wrote it
    (tmp_path / "broken/manifest.json").write_text(json.dumps(other))
    with pytest.raises(OctosimError, match="'numerics' was"):
        train.reopen(tmp_path / "broken")


@pytest.mark.parametrize("accumulator", [EXACT32.name, "acc16"])
def test_counting_changes_no_bit(accumulator: str) -> None:
    assert digest(accumulator=accumulator, count_overflow=1) == digest(accumulator=accumulator)


def test_counts_of_the_exact_register_say_what_would_be_enough() -> None:
    run = train.Run(train.Config(**RUN | dict(count_overflow=2)))
    run.train_step()
    assert run.overflow == []
    run.train_step()
    rows = {(r["layer"], r["pass"]): r for r in run.overflow}
    row = rows["conv2", "forward"]
    assert row["saturations"] == row["wraps"] == row["would_overflow"]["32"] == 0
    assert row["outputs"] == 20 * 10 * 10 * 16 and row["additions"] == row["outputs"] * 150
    counts = [row["would_overflow"][str(bits)] for bits in WIDTHS]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0
    assert 16 < row["largest_bits"] <= 23


def test_long_sums_are_taken_by_the_exact_register_and_by_narrow_ones() -> None:
    """200 images of 28 x 28: conv1's weight gradient sums 156,800 products, more than 32 bits hold for certain."""
    config = dict(model="lenet5", data="fashion-mnist-5k", batch_size=200, steps=1)
    for settings in (dict(method="niti", batchnorm=False), dict(), dict(accumulator="acc24")):
        run = train.Run(train.Config(**config, **settings))
        assert np.isfinite(run.train_step()), settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accumulator": "ack17"}, "unknown accumulator 'ack17'; did you mean"),
        ({"accumulator": "acc16", "method": "fp32"}, "accumulator acc16 is for methods with int8 products, which fp32"),
        ({"count_overflow": 1, "method": "fp32"}, "count_overflow is for methods with int8 products, which fp32"),
        ({"count_overflow": 0}, "count_overflow must be at least 1, not 0"),
    ],
)
def test_bad_configurations(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(OctosimError) as caught:
        train.create(train.Config(**RUN | change), tmp_path / "run", "test")
    assert words in str(caught.value) and not (tmp_path / "run").exists()


def test_sums_too_long_to_be_counted_are_refused() -> None:
    run = train.Run(train.Config(**RUN))
    with pytest.raises(OctosimError, match="layer conv1: a sum of .* is too long for accumulator acc16"):
        check(run.network.nodes, 6000, ACCUMULATORS["acc16"])
    assert graph.MODELS
