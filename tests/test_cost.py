"""The cost model: hand-computed cases, what binds, fallbacks, and that more work is never faster."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octosim import cost, hw
from octosim.errors import OctosimError
from octosim.trace import DTYPE_BYTES, PASSES, Op


def fig(value, kind="estimate"):
    return {"value": value, "kind": kind, "source": "test"}


def engine(name="cpu", trains=True, macs=None, efficiency=0.5, **more):
    macs = macs or {"int8": 8, "float32": 4}
    return {"name": name, "accumulator": "exact32", "trains": trains, "units": fig(2), "clock_ghz": fig(1),
            "macs_per_clock": {d: fig(v) for d, v in macs.items()},
            "gemm_efficiency": {d: fig(efficiency) for d in macs}, **more}


def device(engines=None, overhead_us=1, bandwidth=4, **more):
    return hw.Device.model_validate({
        "name": "toy", "title": "A toy", "overhead_us": fig(overhead_us), "engines": engines or [engine()],
        "training": {"status": "hypothetical", "note": "a toy"},
        "memory": {"bandwidth_sustained_gb_s": fig(bandwidth)}, **more})


def gemm(m=100, k=200, n=300, dtype="int8", pass_="forward", traffic=None):
    size = DTYPE_BYTES.get(dtype, 4)
    reads = (m * k + k * n) * size if traffic is None else traffic
    return Op("conv1", pass_, "gemm", "conv 3x3", (m, k, n), dtype, reads, 0 if traffic is not None else m * n * 4)


def pointwise(elements=1000, kind="elementwise", pass_="forward"):
    return Op("relu1", pass_, kind, "relu", (elements,), "float32", 4 * elements, 4 * elements)


# 2 units x 1 GHz x 8 MAC x 0.5 = 8 GMAC/s in int8; 4 in float32; 4 GB/s; 1 us a call.


def test_by_hand():
    (one,) = cost.predict([gemm()], device())
    assert one.op.macs == 6_000_000 and one.op.bytes == 20_000 + 60_000 + 120_000
    assert one.compute_s == pytest.approx(6e6 / 8e9)        # 750 us
    assert one.memory_s == pytest.approx(200_000 / 4e9)     # 50 us
    assert one.overhead_s == pytest.approx(1e-6)
    assert one.time_s == pytest.approx(751e-6)
    assert (one.bound, one.dtype_used, one.note) == ("compute", "int8", "")


def test_float32_by_hand():
    (one,) = cost.predict([gemm(dtype="float32")], device())
    assert one.time_s == pytest.approx(1e-6 + 6e6 / 4e9)
    assert one.dtype_used == "float32"


def test_real_profile_by_hand():
    (one,) = cost.predict([gemm(1000, 1000, 1000)], hw.load("jetson"))
    assert one.compute_s == pytest.approx(1e9 / (48 * 1.1e9 * 128 * 0.45))
    assert one.memory_s == pytest.approx(6e6 / 46e9)
    assert one.time_s == pytest.approx(10e-6 + one.compute_s)
    (pi,) = cost.predict([gemm(1000, 1000, 1000, "float32")], hw.load("pi4"))
    assert pi.time_s == pytest.approx(10e-6 + 1e9 / (24e9 * 0.51))


@pytest.mark.parametrize("op, overhead_us, bound", [
    (gemm(), 1, "compute"), (gemm(1, 2000, 300), 1, "memory"), (gemm(2, 2, 2), 1, "overhead"),
    (gemm(), 0, "compute"), (pointwise(10**6), 1, "memory"), (pointwise(10), 1, "overhead"),
    (pointwise(0), 0, "compute"),                                     # nothing to do: the first of three equal times
    (gemm(2, 4000, 1, traffic=4000), 1, "compute"),                   # 1 us each: the first of three equal times
    (gemm(1, 4000, 1, traffic=4000), 1, "memory"),
    (pointwise(10**6, "update", "update"), 1, "memory")])
def test_bound(op, overhead_us, bound):
    (one,) = cost.predict([op], device(overhead_us=overhead_us))
    assert one.bound == bound


@pytest.mark.parametrize("kind, pass_", [("elementwise", "forward"), ("elementwise", "dX"), ("update", "update")])
def test_memory_traffic_prices_elementwise_work(kind, pass_):
    (one,) = cost.predict([pointwise(10**6, kind, pass_)], device())
    assert one.time_s == pytest.approx(1e-6 + 8e6 / 4e9)
    assert one.compute_s == 0 and one.dtype_used == "float32"


def test_elementwise_rate_binds_where_it_is_known():
    slow = device([engine(elementwise_per_clock=fig(0.1))])
    (one,) = cost.predict([pointwise(10**6)], slow)
    assert one.time_s == pytest.approx(1e-6 + 1e6 / 0.2e9)
    assert one.bound == "compute"


@pytest.mark.parametrize("macs, used, rate", [
    ({"float32": 4}, "float32", 4e9), ({"float16": 8, "float32": 4}, "float32", 4e9),
    ({"float16": 8}, "float16", 8e9)])
def test_without_int8_units_float32_runs_and_says_so(macs, used, rate):
    toy = device([engine(macs=macs)])
    ops = [gemm(), gemm(pass_="dW")]
    first, second = cost.predict(ops, toy)
    assert first.dtype_used == used == second.dtype_used
    assert first.compute_s == pytest.approx(6e6 / rate)
    assert first.note == f"toy has no int8 units for this pass: runs in {used}"
    assert cost.cost_json([first, second], toy)["notes"] == [first.note]


def test_int8_is_no_faster_than_float_compute_without_int8_units():
    toy = device([engine(macs={"float32": 4})])
    int8, float32 = cost.predict([gemm(), gemm(dtype="float32")], toy)
    assert int8.compute_s == float32.compute_s


def test_narrow_int8_units_are_used_even_if_slower():
    """The arithmetic asked for is what runs: int8 that loses to float32 shows as a loss."""
    (one,) = cost.predict([gemm()], device([engine(macs={"int8": 1, "float32": 4})]))
    assert one.dtype_used == "int8" and one.compute_s == pytest.approx(6e6 / 1e9)


def test_engines_that_do_not_train_run_forward_only():
    two = device([engine(), engine("npu", trains=False, macs={"int8": 80})])
    forward, dx, dw = cost.predict([gemm(), gemm(pass_="dX"), gemm(pass_="dW")], two)
    assert forward.compute_s == pytest.approx(6e6 / 80e9)
    assert dx.compute_s == dw.compute_s == pytest.approx(6e6 / 8e9)


def test_forward_only_device_refuses_the_backward_pass():
    npu = device([engine("npu", trains=False)])
    assert cost.predict([gemm(), pointwise()], npu)
    for op in (gemm(pass_="dX"), pointwise(pass_="update", kind="update")):
        with pytest.raises(OctosimError, match="profile toy: no engine has trains = true, so the pass"):
            cost.predict([op], npu)


def test_no_engine_for_a_type():
    with pytest.raises(OctosimError, match="no engine computes float32 or a wider type"):
        cost.predict([gemm(dtype="float32")], device([engine(macs={"int8": 8})]))
    with pytest.raises(OctosimError, match="layer conv1: a matrix product in 'int32' has no price"):
        cost.predict([gemm(dtype="int32")], device())


# --- totals -----------------------------------------------------------------------------------------------------------


def test_total_adds_up():
    toy = device(power={"busy_w": fig(5)})
    ops = [gemm(), pointwise(), gemm(pass_="dW")]
    costs = cost.predict(ops, toy)
    found = cost.total(costs, toy, peak_bytes=123)
    assert found["time_s"] == pytest.approx(sum(c.time_s for c in costs))
    assert found["energy_j"] == pytest.approx(5 * found["time_s"])
    assert found["peak_bytes"] == 123
    assert found["macs"] == 12_000_000 and found["bytes"] == sum(op.bytes for op in ops)
    assert found["training"] == "hypothetical: a toy"


def test_unknown_is_none():
    found = cost.total(cost.predict([gemm()], device()), device())
    assert found["energy_j"] is None and found["peak_bytes"] is None


def test_no_operations_cost_nothing():
    found = cost.total(cost.predict([], device()), device(power={"busy_w": fig(5)}))
    assert (found["time_s"], found["energy_j"], found["macs"], found["bytes"]) == (0, 0, 0, 0)


def test_cost_json_is_json_in_the_documented_shape():
    costs = cost.predict([gemm(), pointwise(pass_="dX")], hw.load("pi4"))
    found = cost.cost_json(costs, hw.load("pi4"), peak_bytes=7)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["device"] == "raspberry-pi-4" and found["notes"] == []
    assert found["total"] == cost.total(costs, hw.load("pi4"), 7)
    assert [(row["layer"], row["pass"], row["kind"]) for row in found["layers"]] == [
        ("conv1", "forward", "gemm"), ("relu1", "dX", "elementwise")]
    for row, one in zip(found["layers"], costs, strict=True):
        assert {"layer", "pass", "name", "kind", "macs", "bytes", "time_s", "bound"} <= set(row)
        assert (row["time_s"], row["macs"], row["bytes"]) == (one.time_s, one.op.macs, one.op.bytes)


# --- properties -------------------------------------------------------------------------------------------------------

DIM = st.integers(1, 4096)
OPS = st.one_of(
    st.builds(gemm, DIM, DIM, DIM, st.sampled_from(["int8", "float32"]), st.sampled_from(PASSES[:3]),
              st.one_of(st.none(), st.integers(0, 10**9))),
    st.builds(pointwise, st.integers(0, 10**8), st.sampled_from(["elementwise", "update"]), st.sampled_from(PASSES)))
RATE = st.floats(0.01, 1000)


def seconds(op, toy):
    return cost.predict([op], toy)[0].time_s


@given(OPS, st.integers(0, 10**9), st.sampled_from(["reads", "writes"]))
def test_more_bytes_are_never_faster(op, extra, side):
    more = Op(**{**vars(op), side: getattr(op, side) + extra})
    assert seconds(more, device()) >= seconds(op, device())


@given(DIM, DIM, DIM, st.integers(0, 2), st.integers(1, 1000), st.sampled_from(["int8", "float32"]))
def test_more_macs_are_never_faster(m, k, n, axis, extra, dtype):
    more = [m, k, n]
    more[axis] += extra
    assert seconds(gemm(*more, dtype, traffic=10), device()) >= seconds(gemm(m, k, n, dtype, traffic=10), device())


@given(OPS, RATE, RATE, st.floats(1, 100), st.sampled_from(["macs", "bandwidth", "overhead", "efficiency"]))
def test_a_faster_device_is_never_slower(op, macs, bandwidth, factor, what):
    f = {what: factor}
    slow = device([engine(macs={"int8": macs, "float32": macs}, efficiency=0.01)], 10, bandwidth)
    fast = device([engine(macs={d: macs * f.get("macs", 1) for d in ("int8", "float32")},
                          efficiency=0.01 * f.get("efficiency", 1))],
                  10 / f.get("overhead", 1), bandwidth * f.get("bandwidth", 1))
    assert seconds(op, fast) <= seconds(op, slow) * (1 + 1e-12)


@given(OPS, RATE)
def test_another_engine_never_hurts_a_type_that_is_there(op, macs):
    more = device([engine(), engine("more", macs={"int8": macs, "float32": macs})])
    assert seconds(op, more) <= seconds(op, device())


@given(OPS)
def test_times_add_up_and_bind(op):
    (one,) = cost.predict([op], device())
    parts = {"compute": one.compute_s, "memory": one.memory_s, "overhead": one.overhead_s}
    assert one.time_s == one.overhead_s + max(one.compute_s, one.memory_s)
    assert parts[one.bound] == max(parts.values())


@pytest.mark.parametrize("name", [n for n in hw.names() if hw.load(n).training.status != "forward-only"])
def test_every_profile_that_trains_prices_every_pass(name):
    ops = [gemm(dtype=d, pass_=p) for d in ("int8", "float32") for p in PASSES[:3]] + [
        pointwise(pass_=p) for p in PASSES]
    toy = hw.load(name)
    costs = cost.predict(ops, toy)
    assert len(costs) == len(ops) and all(0 < c.time_s < 10 for c in costs)
    assert all(c.dtype_used == c.op.dtype or f"{name} has no int8 units" in c.note for c in costs)


def test_fast_enough_for_sweeps():
    ops = [gemm(m=1 + i % 1000) for i in range(20_000)]
    start = time.perf_counter()
    cost.predict(ops, device())
    assert time.perf_counter() - start < 5, "20,000 operations; 0.1 s on an idle machine"
