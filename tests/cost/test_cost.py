"""The cost model: hand-computed cases, what binds, fallbacks, and that more work is never faster."""

from __future__ import annotations

import json
import math
import time
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octosim import cost, hardware
from octosim.errors import OctosimError
from octosim.hardware.efficiency import PATHS, CpuFactors, parse, shipped, toml
from octosim.trace import DTYPE_BYTES, PASSES, Op, with_winograd


def fig(value, kind="estimate"):
    return {"value": value, "kind": kind, "source": "test"}


def engine(name="cpu", trains=True, macs=None, efficiency=0.5, **more):
    macs = macs or {"int8": 8, "float32": 4}
    return {"name": name, "accumulator": "exact32", "trains": trains, "units": fig(2), "clock_ghz": fig(1),
            "macs_per_clock": {d: fig(v) for d, v in macs.items()},
            "gemm_efficiency": {d: fig(efficiency) for d in macs}, **more}


def device(engines=None, overhead_us=1, bandwidth=4, **more):
    return hardware.Device.model_validate({
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
    """Xavier NX: 8 x 8 tiles of 128 x 128 are 11 waves over 6 multiprocessors of 8 x 128 MACs a clock."""
    jetson = hardware.load("jetson")
    (one,) = cost.predict([gemm(1000, 1000, 1000)], jetson)
    clocks = 11 * (128 * 128 / 1024 * 1000 + 600)
    assert one.compute_s == pytest.approx(clocks / 1.1e9 / jetson.engines[0].efficiency("int8"), rel=0.15)
    assert one.compute_s <= clocks / 1.1e9 / jetson.engines[0].efficiency("int8") * (1 + 1e-9)  # or a better tile
    missed = 6e6 - 0.5 * 512 * 1024
    assert one.memory_s == pytest.approx(missed / 46e9 + (6e6 - missed) / (40 * 6 * 1.1e9), rel=1e-3)
    assert one.time_s == pytest.approx(26e-6 + max(one.compute_s, one.memory_s))


def test_factors_by_hand():
    """A product on the Pi 4's four cores: the equations of docs/cost-model.md, with the shipped factors."""
    (pi,) = cost.predict([gemm(1000, 1000, 1000, "float32")], hardware.load("pi4"))
    f = shipped()["raspberry-pi-4"]["float32"]
    cores = 4 / (1 + 3 * f.serial)
    compute = 1e9 / (1.5e9 * 4 * cores * f.pointwise * 1000 / (1000 + f.k_half) * 125**2 / (4 * math.ceil(125**2 / 4)))
    bandwidth = max(5e9, min(20e9, 0.6 * 12.8e9)) * f.bandwidth
    missed = 12e6 - 0.5 * 2**20
    memory = missed / bandwidth + 0.5 * 2**20 / (f.cache * 1.5e9)
    assert pi.compute_s == pytest.approx(compute) and pi.memory_s == pytest.approx(memory)
    assert pi.overhead_s == pytest.approx((f.overhead_us + f.fork_us) * 1e-6)
    assert pi.time_s == pytest.approx(pi.overhead_s + max(compute, memory) + f.exposed * min(compute, memory))


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


# --- CPU cores with factors -------------------------------------------------------------------------------------------

FACTORS = CpuFactors(
    conv3x3=0.5, conv=0.5, pointwise=0.8, depthwise=0.25, linear=0.5, elementwise=4.0, bandwidth=1.0, cache=8.0, k_half=10.0,
    serial=0.1, in_order=0.8, exposed=0.5, overhead_us=1.0, fork_us=5.0, spread=0.2, source="test")


def cpu(core="Cortex-A72", cache_kib=1024, peak=None, **factors):
    toy = device([engine(macs={"int8": 8, "float32": 4}, accumulator="smlal", core=core) | {"units": fig(4)}], bandwidth=4,
                 caches=[{"name": "L2", "shared_by": "4 cores", "size_kib": fig(cache_kib)}])
    made = FACTORS.model_copy(update=factors)
    memory = toy.memory.model_copy(update={"bandwidth_peak_gb_s": hardware.Figure(**fig(peak)) if peak else None})
    return toy.model_copy(update={"calibration": {"float32": made, "smlal": made}, "memory": memory})


def conv(channels=64, filters=64, side=56, kernel=3, stride=1, groups=1, dtype="float32"):
    m, k, n = side * side, channels // groups * kernel * kernel, filters // groups
    size, weights = DTYPE_BYTES[dtype], filters * k * DTYPE_BYTES[dtype]
    return Op("conv1", "forward", "gemm", f"conv {kernel}x{kernel}", (m, k, n), dtype, m * channels * size + weights,
              m * filters * size, groups=groups, kernel=(kernel, kernel), stride=stride, weights=weights)


@pytest.mark.parametrize("side, stride", [(2, 2), (3, 1), (3, 2), (7, 7)])
def test_a_window_in_the_first_cache_is_cheaper_than_memory(side, stride):
    """On a core with factors; a device without counts each of a window's elements."""
    outputs = 10**6 // stride**2
    pool = Op("pool", "forward", "elementwise", "maxpool", (side**2 * outputs,), "float32", 4 * 10**6, 4 * outputs,
              kernel=(side, side))  # fmt: skip
    copy = replace(pointwise(), shape=(outputs,), reads=4 * outputs, writes=4 * outputs)
    windowed, passed = cost.predict([pool, copy], cpu(cache_kib=0.001))
    moved = max(4 * (10**6 + outputs), 8 * outputs * (1 + side**2 / 8))
    assert windowed.compute_s == pytest.approx(passed.compute_s * moved / (8 * outputs), rel=0.01)
    assert windowed.memory_s == pytest.approx(passed.memory_s * (10**6 + outputs) / (2 * outputs), rel=0.01)  # no border
    toy = device([engine() | {"elementwise_per_clock": fig(1)}])
    plain, other = cost.predict([pool, copy], toy)
    assert plain.compute_s == pytest.approx(side**2 * other.compute_s)


@pytest.mark.parametrize("op, kind", [
    (conv(), "conv"), (with_winograd(conv()), "conv3x3"), (conv(stride=2), "conv"), (conv(kernel=5), "conv"),
    (conv(kernel=1), "pointwise"), (conv(kernel=1, stride=2), "conv"), (conv(groups=64), "depthwise"),
    (conv(groups=8), "conv"), (conv(kernel=1, groups=8), "conv"), (gemm(1, 100, 10), "linear"),
    (gemm(32, 100, 10), "pointwise"),
    (pointwise(), "elementwise"),
    (replace(conv(groups=64), shape=(1, 3136, 9), pass_="dW"), "depthwise"),
    (replace(conv(groups=64), shape=(3136, 1, 9), pass_="dX"), "depthwise")])
def test_kinds(op, kind):
    assert cost.kind_of(op) == kind


@pytest.mark.parametrize("op, chosen", [
    (conv(), True), (conv(stride=2), False), (conv(kernel=5), False), (conv(groups=2), False), (conv(channels=3), False),
    (conv(filters=8), False), (gemm(), False), (pointwise(), False)])
def test_winograd_where_it_pays(op, chosen):
    assert (with_winograd(op).algorithm == "winograd") == chosen


def test_winograd_computes_a_quarter_and_moves_more():
    direct, fast = cost.predict([conv(), with_winograd(conv())], cpu(cache_kib=0.001, conv3x3=0.5, conv=0.5, k_half=1e-6))
    assert fast.compute_s == pytest.approx(direct.compute_s / 4, rel=1e-3)  # 56 is a multiple of its tile
    assert fast.memory_s > direct.memory_s
    (odd,) = cost.predict([with_winograd(conv(side=13))], cpu(conv3x3=0.5, conv=0.5))
    (plain,) = cost.predict([conv(side=13)], cpu(conv3x3=0.5, conv=0.5))
    assert odd.compute_s == pytest.approx(plain.compute_s / 4 * (16 / 13) ** 2)


def test_winograd_keeps_int8_codes_in_16_bits():
    """By hand: 64 x 56 x 56 codes in, int32 sums out, 64 x 64 x 9 weights."""
    op = with_winograd(replace(conv(dtype="int8"), writes=4 * 64 * 56 * 56))
    p = cost.prepare([op], cpu(cache_kib=0.001))
    values, weights = 64 * 56 * 56, 64 * 64 * 9
    assert op.reads - op.weights == values and op.weights == weights
    assert p.weights[0] == 36 / 9 * 2 * weights
    assert p.other[0] == values + 4 * values + 2 * 36 / 16 * (2 * values + 4 * values) + cost.PADDING * values


def test_without_factors_every_algorithm_costs_the_same():
    direct, fast = cost.predict([conv(), with_winograd(conv())], device())
    assert fast.time_s == direct.time_s


def test_depthwise_small_k_and_tiny_m_reach_less():
    def rate(op):
        (one,) = cost.predict([op], cpu())
        return op.macs / one.compute_s

    full = rate(conv(kernel=1, channels=512, filters=512))
    assert rate(conv(groups=64)) < full / 2
    assert rate(conv(kernel=1, channels=4, filters=512)) < full / 2
    assert rate(conv(kernel=1, channels=512, filters=512, side=1)) < full / 2
    assert rate(conv(kernel=1, channels=512, filters=5)) < full
    assert rate(conv(groups=64)) == pytest.approx(4 * 1e9 * 4 * 0.25 / 1.3)  # 16 tasks on 4 cores


def test_in_order_cores():
    (slow,), (fast,) = (cost.predict([conv()], cpu(core)) for core in ("Cortex-A53", "Cortex-A72"))
    assert slow.compute_s == pytest.approx(fast.compute_s / 0.8) and slow.memory_s == fast.memory_s
    (named,), (unknown,) = (cost.predict([conv()], cpu(core).model_copy(update={"title": title}))
                            for core, title in ((None, "Board (4x Cortex-A55)"), (None, "Board (Cortex-A76, Cortex-A55)")))
    assert named.compute_s == slow.compute_s and unknown.compute_s == fast.compute_s


def test_a_working_set_in_the_cache_spares_main_memory():
    (small,), (large,) = (cost.predict([pointwise(10_000)], cpu(cache_kib=size)) for size in (160, 0.001))
    assert small.memory_s == pytest.approx(80_000 / 8e9)         # 8 bytes a clock at 1 GHz
    assert large.memory_s == pytest.approx(80_000 / 4e9, rel=1e-3)
    (half,) = cost.predict([pointwise(10_000)], cpu(cache_kib=80_000 / 1024))  # half of it counts
    assert half.memory_s == pytest.approx(40_000 / 8e9 + 40_000 / 4e9)


def test_weights_of_a_large_network_come_from_memory_even_if_a_layer_fits():
    small = conv(kernel=1)
    (alone,) = cost.predict([small], cpu(cache_kib=8192))
    crowded = cost.predict([small, *[conv(kernel=1, channels=1024, filters=1024)] * 8], cpu(cache_kib=8192))[0]
    assert crowded.memory_s > alone.memory_s


def test_threads():
    big = conv(side=224)
    one, two, four, many = (cost.predict([big], cpu(), threads)[0] for threads in (1, 2, 4, 64))
    assert one.compute_s == pytest.approx(two.compute_s * 2 / 1.1) and one.compute_s == pytest.approx(four.compute_s * 4 / 1.3)
    assert many == four == cost.predict([big], cpu())[0]
    assert (one.overhead_s, two.overhead_s) == (pytest.approx(1e-6), pytest.approx(6e-6))
    with pytest.raises(OctosimError, match="threads must be at least 1, not 0"):
        cost.predict([big], cpu(), 0)


def test_several_cores_draw_more_bandwidth_only_where_the_memory_has_it():
    def memory(threads, peak):
        return cost.predict([pointwise(10**7)], cpu(cache_kib=0.001, peak=peak), threads)[0].memory_s

    assert memory(1, 100) == pytest.approx(memory(4, None)) == pytest.approx(memory(4, 5), rel=1e-6)
    assert memory(4, 20) == pytest.approx(memory(1, 20) / 3, rel=1e-3)     # 0.6 x 20 GB/s for 4
    assert memory(4, 100) == pytest.approx(memory(1, 100) / 4, rel=1e-3)   # no core draws more than 4


def test_tiles_of_an_accelerator():
    tile = {"m": fig(16), "n": fig(16), "k_bytes": fig(32)}
    plain, tiled = device(), device([engine(tile=tile)])
    for shape, waste in (((160, 320, 160), 1), ((1, 320, 160), 16), ((160, 33, 160), 64 / 33), ((160, 320, 20), 32 / 20)):
        (a,), (b,) = (cost.predict([gemm(*shape)], toy) for toy in (plain, tiled))
        assert b.compute_s == pytest.approx(a.compute_s * waste)


def test_intervals():
    toy = cpu()
    forward = cost.total(cost.predict([conv()], toy), toy)
    training = cost.total(cost.predict([conv(), gemm(pass_="dW", dtype="float32")], toy), toy)
    other = cost.total(cost.predict([conv()], device()), device())
    for found in (forward, training, other):
        assert found["time_low_s"] < found["time_s"] < found["time_high_s"]
        assert found["time_low_s"] * found["time_high_s"] == pytest.approx(found["time_s"] ** 2)
    assert forward["time_high_s"] / forward["time_s"] == pytest.approx(math.exp(1.2816 * math.hypot(0.2, 0.3)))
    assert training["time_high_s"] / training["time_s"] > forward["time_high_s"] / forward["time_s"]
    assert cost.total([], toy)["time_high_s"] == 0


def test_shipped_factors():
    found = shipped()
    assert set(found["pool"]) == set(PATHS)
    assert set(found) - {"pool"} <= set(hardware.names())
    assert parse(tomllib.loads(toml(found))) == found
    for rows in found.values():
        for path, f in rows.items():
            assert 0.05 <= f.spread < 0.6 and 0.5 < f.in_order < 1.5 and 0.3 < f.bandwidth < 2, path
            assert all(getattr(f, kind) <= 1 for kind in cost.KINDS[:-1]), path


def test_whose_factors():
    pi4, host = hardware.load("pi4"), hardware.load("jetson")
    found = shipped()
    assert cost.factors_of(pi4, pi4.engines[0], "int8") == found["raspberry-pi-4"]["smlal"]
    assert cost.factors_of(pi4.model_copy(update={"name": "other"}), pi4.engines[0], "int8") == found["pool"]["smlal"]
    assert cost.factors_of(pi4.model_copy(update={"calibration": {"smlal": FACTORS}}), pi4.engines[0], "int8") == FACTORS
    assert cost.factors_of(host, host.engines[0], "int8") is None


@given(st.sampled_from([conv(), conv(groups=64), with_winograd(conv()), conv(kernel=1), gemm(1, 500, 300), pointwise()]),
       st.integers(0, 10**8), st.integers(1, 8))
def test_with_factors_more_bytes_are_never_faster(op, extra, threads):
    more = replace(op, reads=op.reads + extra)
    (a,), (b,) = (cost.predict([x], cpu(), threads) for x in (op, more))
    assert b.time_s >= a.time_s * (1 - 1e-12) and math.isfinite(b.time_s)


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
    costs = cost.predict([gemm(), pointwise(pass_="dX")], hardware.load("pi4"))
    found = cost.cost_json(costs, hardware.load("pi4"), peak_bytes=7)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["device"] == "raspberry-pi-4" and found["notes"] == []
    assert found["total"] == cost.total(costs, hardware.load("pi4"), 7)
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


@pytest.mark.parametrize("name", [n for n in hardware.names() if hardware.load(n).training.status != "forward-only"])
def test_every_profile_that_trains_prices_every_pass(name):
    ops = [gemm(dtype=d, pass_=p) for d in ("int8", "float32") for p in PASSES[:3]] + [
        pointwise(pass_=p) for p in PASSES]
    toy = hardware.load(name)
    costs = cost.predict(ops, toy)
    assert len(costs) == len(ops) and all(0 < c.time_s < 10 for c in costs)
    assert all(c.dtype_used == c.op.dtype or f"{name} has no int8 units" in c.note for c in costs)


def test_fast_enough_for_sweeps():
    ops = [gemm(m=1 + i % 1000) for i in range(20_000)]
    start = time.perf_counter()
    cost.predict(ops, device())
    assert time.perf_counter() - start < 5, "20,000 operations; 0.1 s on an idle machine"
