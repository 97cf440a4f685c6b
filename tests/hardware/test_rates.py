"""Measured rates: prices by hand, interpolation, the fit, the profile that calibration writes, and its command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.checkasm import CEXT
from kit.cli import octosim

from octosim import core, cost, engine, graph, hardware, methods
from octosim.bench import calibrate
from octosim.cost import compare
from octosim.engine import plan
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, MaxPool, ReLU
from octosim.engine.network import nodes
from octosim.errors import OctosimError
from octosim.hardware import rates
from octosim.trace import Op

ROW = {"threads": 1, "us_per_call": 2.0, "ps_per_mac": 10.0, "ps_per_left": 100.0, "ps_per_right": 50.0, "ps_per_result": 20.0}


def product(kind="linear", dtype="int8", pass_="forward", **more):
    return {"kind": kind, "dtype": dtype, "pass": pass_} | ROW | more


def some(products=None, passes=None):
    return rates.Rates.model_validate({
        "source": "test", "kernels": rates.KERNELS, "tiling": {"int8": 16, "float32": 16}, "spread": 0.1,
        "products": products or [product(), product("convolution"), product("depthwise"), product("convolution", pass_="dX")],
        "passes": passes or [{"name": "relu", "threads": 1, "elements": [100, 10000], "us": [1.0, 10.0]},
                             {"name": "batchnorm", "threads": 1, "ps_per_run": 3000.0, "ps_per_byte": 500.0,
                              "elements": [100, 10000], "us": [1.0, 100.0]},
                             {"name": "sgd", "threads": 1, "elements": [100, 10000], "us": [1.0, 10.0]}],
        "bandwidth": [{"level": "L1D", "threads": 1, "bytes": 1000, "gb_s": 100.0},
                      {"level": "main memory", "threads": 1, "bytes": 10**6, "gb_s": 10.0}]})  # fmt: skip


WIDE, NARROW = (rates.Tiling(int8=n, float32=n, in_place=True) for n in (16, 8))
TILES = rates.Tiling(int8=16, float32=16, depth=64, in_place=True)
W = rates.Work


def like(work):
    return pytest.approx(tuple(work))


def gemm(m=10, k=20, n=30, pass_="forward", dtype="int8", writes=0, **more):
    return Op("fc1", pass_, "gemm", "linear", (m, k, n), dtype, 0, writes, **more)


def elementwise(name, elements, **more):
    return Op("x1", "forward", "elementwise", name, (elements,), "float32", 4 * elements, 4 * elements, function=name, **more)


def test_a_product_by_hand():
    """10 x 20 x 30, 30 columns in blocks of 16: 6400 MACs at 10 ps, 200 x 100 ps, 600 x 50 ps, 320 x 20 ps."""
    compute, memory, overhead = rates.time_of(gemm(), some(), 1)
    assert compute == pytest.approx(6400 * 10e-12)
    assert memory == pytest.approx((200 * 100 + 600 * 50 + 320 * 20) * 1e-12)
    assert overhead == pytest.approx(2e-6)


@pytest.mark.parametrize("kernel, stride, taps", [(3, 1, 9), (1, 1, 1), (3, 2, 6), (1, 2, 1), (5, 2, 15)])
def test_dx_of_a_convolution_is_products_of_dy(kernel, stride, taps):
    """5 filters, 4 channels, images of 8 x 6.  With stride 2, of the rows of X with one residue: a product with the columns of
    two neighbours; 3 x 3: of one row of taps and of two, 2 taps wide."""
    pixels = 3 * 8 * 6
    op = gemm(pixels // stride**2, 5, kernel**2 * 4, "dX", kernel=(kernel, kernel), stride=stride, writes=4 * 4 * pixels)
    m, k, n, dy = pixels / stride**2, 5 * taps, 4 * stride, 5 * pixels / stride**2
    scattered = 4 * pixels if stride > 1 else 0  # lines of X of each residue come from a product of their own
    expected = W(macs=m * k * 16, left=m * k, right=k * n, result=4 * pixels * 16 / n, near=dy, scattered=scattered)
    assert tuple(rates.work(op, WIDE)) == like(expected)


@pytest.mark.parametrize("dtype, filters, share", [("int8", 5, 6 / 8), ("float32", 256, 6 / 8), ("float32", 5, 1)])
def test_dx_of_an_unpadded_convolution_leaves_out_lines_of_padding(dtype, filters, share):
    """Images of 8 x 8, dY of 6 x 6: 18 of 24 pairs of a line of X and one of dY; float32 where its sums' blocks allow it."""
    op = gemm(3 * 36, filters, 9 * 16, "dX", dtype=dtype, kernel=(3, 3), writes=4 * 16 * 3 * 64)
    whole = replace(op, shape=(3 * 60, filters, 9 * 16))
    assert rates.work(op, WIDE).macs == pytest.approx(share * 3 * 64 * 9 * filters * 16)
    assert rates.work(op, WIDE).scattered == (3 * 64 * 16 if share < 1 else 0), "each run of lines is a product"
    assert rates.work(whole, WIDE).macs == pytest.approx(3 * 64 * 9 * filters * 16) and not rates.work(whole, WIDE).scattered


def test_stride_2_saves_two_thirds_of_the_macs_of_dx():
    """Against the stride-1 convolution of a dY spread with zeros: 6 taps of 9, of half the rows."""
    same = {"kernel": (3, 3), "writes": 4 * 64 * 100}
    one, two = (rates.work(gemm(m, 32, 9 * 64, "dX", stride=s, **same), WIDE) for m, s in ((100, 1), (25, 2)))
    assert two.macs == pytest.approx(one.macs / 3)


def test_float32_dw_of_a_convolution_has_few_filters_side_by_side():
    few, many = (gemm(filters, 100, 36, "dW", dtype="float32", kernel=(3, 3)) for filters in (5, 50))
    assert rates.work(few, NARROW) == W(macs=36 * 100 * 8, left=3600, right=500, result=36 * 8)
    assert rates.work(many, NARROW) == W(macs=50 * 100 * 40, left=5000, right=3600, result=50 * 40)


@pytest.mark.parametrize("width, stride, planes", [(12, 1, 12), (11, 1, 12), (5, 1, 0), (12, 2, 0)])
def test_int8_dw_of_a_convolution_is_of_groups_of_four_pixels_or_of_gathered_windows(width, stride, planes):
    """3 images of 8 x width x 7, 3 x 3, padding 1, 5 filters.  Lines of 5 would waste more than a third of their groups."""
    lines, line = 3 * (8 // stride), width // stride
    op = gemm(5, lines * line, 63, "dW", kernel=(3, 3), stride=stride, geometry=(3, 8, width, 7, 5, 3, 3, stride, 1))
    macs = 16 * lines * planes * 64 if planes else 16 * lines * line * 64
    gathered, near = (0, lines * planes * 3 * 7) if planes else (lines * line * 63, 0)
    expected = W(macs=macs, left=16 * lines * line, right=gathered, result=5 * 63, near=near, summed=5 * 63)
    assert tuple(rates.work(op, WIDE)) == like(expected)


@pytest.mark.parametrize("filters, width, summed", [(448, 12, 0), (448, 5, 448 * 63 * 10), (400, 12, 400 * 63 * 10)])
def test_threads_sums_of_an_int8_dw_are_added_up_unless_each_has_its_own_channels(filters, width, summed):
    """Results of 2^18 and more from planes; gathered windows have no channels of their own."""
    op = gemm(filters, 24 * width, 630, "dW", kernel=(3, 3), geometry=(3, 8, width, 70, filters, 3, 3, 1, 1))
    assert rates.work(op, WIDE).summed == summed


def test_a_product_of_a_function_of_its_own_is_priced_by_itself():
    """Codes in blocks: 10 x 20 x 30; a profile without its costs takes those of the shape."""
    op = gemm(function="octo_gemm_blocks_s8")
    known = some([product(), product("octo_gemm_blocks_s8", ps_per_mac=30.0)])
    assert rates.time_of(op, known, 1)[0] == pytest.approx(10 * 20 * 32 * 30e-12) and rates.priced(op, known)
    assert rates.time_of(op, some(), 1)[0] == pytest.approx(10 * 20 * 32 * 10e-12)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("pass_, kernel", [("forward", (0, 0)), ("forward", (5, 5)), ("dX", (0, 0)), ("dW", (5, 5))])
def test_narrow_results_take_what_the_instruction_sets_columns_take(pass_, kernel, dtype):
    """6 columns: a vector of 8 on AVX2, one of 16 on AVX-512; of a dW the filters are the columns."""
    geometry = (4, 12, 12, 1, 6, 5, 5, 1, 0) if pass_ == "dW" else ()
    op = gemm(6, 256, 24, pass_, kernel=kernel, geometry=geometry) if geometry else gemm(100, 25, 6, pass_, kernel=kernel)
    narrow, wide = (rates.work(replace(op, dtype=dtype), tiling) for tiling in (NARROW, WIDE))
    assert wide.macs == 2 * narrow.macs and wide.right == narrow.right


@pytest.mark.parametrize("width, together, taps", [(30, 2, 6), (27, 1, 5)])
def test_neighbours_of_a_narrow_int8_convolution_share_its_columns(width, together, taps):
    """7 filters, 5 x 5 of 3 channels: two pixels see 6 taps of a line and have 14 columns; 27 pixels have no pairs.  Lines of
    30 are read in place, and nothing is packed; the kernel takes a line at a time."""
    pixels = 2 * 30 * width
    op = gemm(pixels, 75, 7, kernel=(5, 5), geometry=(2, 30, width, 3, 7, 5, 5, 1, 2))
    macs, rows = pixels // together * taps * 15 * 16, pixels // together
    expected = W(macs=macs, right=5 * taps * 3 * 7 * together, result=rows * 16, near=pixels * 3, lines=60)
    assert tuple(rates.work(op, WIDE)) == like(expected)
    packing = WIDE.model_copy(update={"in_place": False})
    assert rates.work(op, packing).left == rows * taps * 15
    assert not rates.work(op, packing).lines


@pytest.mark.parametrize("line, channels, stride, in_place", [(12, 16, 1, True), (7, 16, 1, False), (12, 257, 1, False),
                                                              (12, 129, 2, False), (12, 128, 2, True)])  # fmt: skip
def test_float32_windows_that_lie_close_are_read_in_place(line, channels, stride, in_place):
    op = gemm(3 * 8 * line, 9 * channels, 20, dtype="float32", kernel=(3, 3), stride=stride,
              geometry=(3, 8 * stride, line * stride, channels, 20, 3, 3, stride, 1))  # fmt: skip
    found = rates.work(op, WIDE)
    assert (found.left, found.lines) == ((0, 3 * 8 * 2) if in_place else (3 * 8 * line * 9 * channels, 0))


@pytest.mark.parametrize("channels, line, macs, by_vectors", [
    (3, 32, 0, 2 * 32 * 32 * 27 * 16),  # 27 steps: vectors
    (16, 32, 2 * 32 * 32 * 3 * 64 * 16, 0),  # in place: three runs of 48 steps are three of 64
    (16, 20, 2 * 32 * 32 * 3 * 64 * 16, 0),  # and lines of 20 take as long as of 32
    (16, 6, 2 * 32 * 16 * 192 * 16, 0)])  # packed: rows of 144 steps
def test_tiles_take_whole_tiles_and_leave_short_reductions_to_vectors(channels, line, macs, by_vectors):
    op = gemm(2 * 32 * line, 9 * channels, 12, kernel=(3, 3), geometry=(2, 32, line, channels, 12, 3, 3, 1, 1))
    macs = macs if line >= 7 else 2 * 32 * line * 192 * 16
    found = rates.work(op, TILES)
    assert (found.macs, found.vector_macs) == pytest.approx((macs, by_vectors))


def test_tiles_of_a_weight_gradient_round_up_filters_pixels_and_columns():
    """3 images of 8 x 12 are 288 pixels, five tiles deep, of any stride; 70 images are two calls, which both add to dW.  Rows
    are gathered but for 16 channels and lines of four pixels.  One channel stays with vectors."""
    op = gemm(20, 3 * 96, 135, "dW", kernel=(3, 3), geometry=(3, 8, 12, 15, 20, 3, 3, 1, 1))
    found = rates.work(op, TILES)
    rows = 288 * 135
    assert found == rates.Work(macs=32 * 5 * 64 * 144, left=32 * 288, right=rows, result=20 * 135, near=rows, summed=20 * 135)
    aligned = replace(op, shape=(20, 3 * 96, 144), geometry=(3, 8, 12, 16, 20, 3, 3, 1, 1))
    assert rates.work(aligned, TILES).near == 0
    assert rates.work(replace(op, stride=2, geometry=(3, 16, 24, 15, 20, 3, 3, 2, 1)), TILES) == found
    many = replace(op, shape=(20, 70 * 96, 135), geometry=(70, 8, 12, 15, 20, 3, 3, 1, 1))
    assert rates.work(many, TILES).result == 2 * 20 * 135
    single = replace(op, shape=(20, 3 * 96, 9), geometry=(3, 8, 12, 1, 20, 3, 3, 1, 1))
    assert rates.work(single, TILES).vector_macs == rates.work(single, WIDE).macs and not rates.work(single, TILES).macs


@pytest.mark.parametrize("file, text", [
    ("api_gemm.c", f"ROW = {rates.ROW}, WIDEST = {rates.WIDEST} "),
    ("api_gemm.c", f"needed * 8 <= all * {8 * rates.LINES_CUT:.0f} "),
    ("api_gemm.c", f"in_lines && size > 1 << {rates.LARGE.bit_length() - 1} "),
    ("api_gemm.c", f"some = (1 << {rates.MOST_OF_DY.bit_length() - 1}) / (g->filters * x->width);"),
    ("api_gemm.c", f"octo_min({rates.MOST_PIXELS} / x->width, some)"),
    ("api_gemm.c", f"x->width = {rates.LINE}, x->height = rows / {rates.LINE},"),
    ("kernels.h", f"OCTO_BLOCK_F32 = {rates.BLOCK_OF_SUMS},"),
    ("products.inc", f"a->width >= {rates.SHORT} && a->x_stride <= {rates.FAR} "),
    ("products.inc", f"filters <= {rates.FEW} && x->width >= {rates.SHORT})"),
    ("x86_gemm.inc", f"(n <= 2 * WIDE ? {rates.SHORTEST} : {rates.LONGER})"),
    ("x86_amx.inc", f"FN(side) = {rates.SIDE},"),
])  # fmt: skip
def test_numbers_of_the_kernels_are_those_of_the_core(file, text):
    assert (CEXT / file).read_text().count(text) == 1


def test_codes_in_blocks_add_runs_of_channels_to_dx():
    op = gemm(100, 20, 9 * 6, "dX", kernel=(3, 3), function="octo_conv_input_grad_blocks_s8")
    assert rates.work(op, WIDE) == W(macs=100 * 20 * 64, left=2000, right=20 * 54, result=6400, scattered=900)


def test_depthwise_work():
    """8 channels take as long as 16."""
    op = gemm(50, 9, 1, groups=8, kernel=(3, 3))
    assert rates.work(op, WIDE) == W(macs=16 * 450, left=50, result=800)
    assert rates.work(replace(op, pass_="dW", shape=(1, 50, 9)), WIDE) == rates.work(op, WIDE)


def test_passes_by_hand():
    assert sum(rates.time_of(elementwise("relu", 1000), some(), 1)) == pytest.approx(10**0.5 * 1e-6)
    assert sum(rates.time_of(elementwise("relu", 10), some(), 1)) == pytest.approx(1e-6)
    assert sum(rates.time_of(elementwise("relu", 10**6), some(), 1)) == pytest.approx(1000e-6)
    by_bytes = elementwise("batchnorm", 10000)
    assert sum(rates.time_of(by_bytes, some(), 1)) == pytest.approx(100e-6 + 80000 * 500e-12)
    in_runs = replace(by_bytes, channels=5)
    assert sum(rates.time_of(in_runs, some(), 1)) == pytest.approx(140e-6 + 2000 * 3000e-12)
    ten = Op("optimizer", "update", "update", "sgd", (1000,), "float32", 0, 0, groups=10, function="sgd")
    assert sum(rates.time_of(ten, some(), 1)) == pytest.approx(10 * 1e-6)


def test_unknown_passes_are_traffic_of_the_level_that_holds_it():
    small, large = elementwise("softmax", 100), elementwise("softmax", 10**6)
    assert rates.time_of(small, some(), 1)[1] == pytest.approx(800 / 100e9)
    assert rates.time_of(large, some(), 1)[1] == pytest.approx(8e6 / 10e9)
    assert not rates.priced(large, some()) and rates.priced(small, some()), "what takes a call is known"
    assert rates.priced(elementwise("relu", 1), some()) and rates.priced(gemm(), some())


def test_an_operation_without_a_measurement_is_told_and_widens_the_interval():
    """Of a calibrated profile with earlier names nothing has one."""
    device = hardware.load("pi4").model_copy(update={"rates": some()})
    known, unknown = (cost.predict([elementwise(name, 1000)], device)[0] for name in ("relu", "softmax"))
    assert not known.note and unknown.note == f"{device.name} has no measured time of softmax: priced by bandwidth"
    assert unknown.spread > known.spread


def test_threads_between_one_and_all():
    both = some([product(), product(threads=4, us_per_call=6.0, ps_per_mac=2.5)],
                [{"name": "relu", "threads": t, "elements": [1, 2], "us": [1.0, 2.0]}
                 for t in (1, 4)])  # fmt: skip
    one, two, four, more = (rates.time_of(gemm(), both, t) for t in (1, 2, 4, 9))
    assert one[0] > two[0] > four[0] and one[2] < two[2] < four[2] and more == four
    assert two[0] == pytest.approx(four[0] + (one[0] - four[0]) / 3)


@given(st.lists(st.floats(0, 5), min_size=3, max_size=3), st.integers(0, 10**6))
def test_non_negative_least_squares_finds_what_made_the_data(costs, seed):
    a = np.random.default_rng(seed).uniform(0.5, 2, (12, 3))
    found = calibrate.non_negative(a, a @ np.array(costs))
    assert (found >= 0).all() and a @ found == pytest.approx(a @ np.array(costs), rel=1e-2, abs=1e-2)


def test_non_negative_where_plain_least_squares_is_not():
    a = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert calibrate.non_negative(a, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0], abs=1e-6)


def test_the_fit_does_not_follow_what_was_disturbed():
    """Products of 3 us and 2 us a unit, with other work of 1 us in each pass; two of twenty took twice as long."""
    rows = []
    for i in range(20):
        took = (3 + 2 * (i + 1)) * (2 if i in (4, 11) else 1)
        rows.append(((1.0, float(i + 1), *(0.0,) * 8), took, took + 1))
    costs, off = calibrate.fit(rows)
    assert costs[:2] == pytest.approx([3, 2], rel=0.03) and costs[2:] == pytest.approx([0] * 8)
    assert np.median(np.abs(off)) < 0.01 and off.max() > 0.5


@given(st.sampled_from([0.0, 2000.0]), st.sampled_from([0.0, 300.0]), st.integers(0, 100))
def test_the_fit_of_a_pass_finds_what_runs_and_bytes_take(by_run, by_byte, seed):
    """Calls on 10^3 to 10^6 elements in runs of 2 to 64, some of which move twice the bytes."""
    rng = np.random.default_rng(seed)
    costs = {"ps_per_run": by_run, "ps_per_byte": by_byte}
    truth = rates.PassRate(name="pool", threads=1, elements=(2**10, 2**20), us=(2.0, 400.0), **costs)
    calls = [(2**e, 2**e / run, 2**e * size) for e in range(10, 21, 2) for run in (2, 8, 64) for size in (5, 10)]
    measured = [calibrate.Pass(*call, truth.time(*call) * rng.uniform(0.98, 1.02)) for call in calls]
    found = calibrate.fit_pass("pool", measured, 1)
    for elements, run, size in ((2**13, 4, 5), (2**18, 16, 10)):
        call = elements, elements / run, elements * size
        assert found.time(*call) == pytest.approx(truth.time(*call), rel=0.15)


def test_a_pass_over_all_elements_alike_has_no_runs():
    calls = [calibrate.Pass(2**e, 0.0, 2.0**e, 2.0**e / 1000) for e in range(8, 14)]
    assert calibrate.fit_pass("relu", calls, 1).ps_per_run == 0


PROBES = (
    calibrate.Probe((8, 8, 2), 2, (Conv2d(4, 3, pad=1), BatchNorm(), ReLU(), MaxPool(), Conv2d(6, 3), *calibrate._dense(20))),
    calibrate.Probe((8, 8, 1), 2, (Conv2d(8, 3, 2, 1), BatchNorm(), ReLU(), DepthwiseConv2d(), *calibrate._dense(30))),
)


@pytest.fixture(scope="module")
def device():
    """A quick, coarse calibration of this machine."""
    before = core.threads()
    few = {"probes": PROBES, "rounds": 1, "threads": (1,)}
    text = calibrate.toml(calibrate.calibrate(**few))
    assert core.threads() == before
    return calibrate.load_check(text)


def test_no_layer_of_the_models_is_measured():
    """A layer: geometry of its input, kernel, stride, padding, outputs; of fully connected ones inputs and outputs."""

    def layers(stack, shape):
        return {(node.in_shape, node.layer) for node in nodes(stack, shape) if node.layer.weighted
                and node.out_shape != (10,)}  # fmt: skip

    own = set().union(*(layers(probe.layers, probe.images) for probe in calibrate.PROBES))
    for model in graph.MODELS:
        for shape in ((28, 28, 1), (32, 32, 3)):
            assert not own & layers(graph.layers(model, 10, in_shape=shape), shape)


def functions(stack, shape, method):
    net = plan.dry(stack, shape, methods.make(method, {}))
    return {op.function for op in plan.ops(plan.plan(net, 2)) if op.kind != "gemm"}


@pytest.mark.parametrize("method", ["octo", "fp32"])
@pytest.mark.parametrize("model", graph.MODELS)
def test_the_probes_call_every_function_of_the_models(model, method):
    every = set().union(*(functions(probe.layers, probe.images, method) for probe in calibrate.PROBES))
    assert functions(graph.layers(model, 10, in_shape=(32, 32, 3)), (32, 32, 3), method) <= every


def test_calibration_prices_every_model(device):
    assert device.rates is not None and device.engines[0].units.value == 1
    of_shapes = [p for p in device.rates.products if not p.kind.startswith("octo_")]
    assert {(p.kind, p.dtype, p.pass_) for p in of_shapes} == {
        (kind, dtype, pass_) for kind in ("convolution", "linear", "depthwise") for dtype in ("int8", "float32")
        for pass_ in ("forward", "dX", "dW")}  # fmt: skip
    assert "octo_gemm_blocks_s8" in {p.kind for p in device.rates.products}
    names = {row.name for row in device.rates.passes}
    for model in graph.MODELS:
        shape = (32, 32, 3)
        for method in ("octo", "fp32"):
            net = engine.Network(graph.layers(model, 10, in_shape=shape), shape, methods.make(method, {}), None)
            ops = plan.trace(net, 4)
            unmeasured = {op.function for op in ops if op.kind != "gemm"} - names
            # what is in no probe here
            known = ("dropout_f32", "avgpool_f32", "avgpool_backward_f32", "add", "copy_f32")
            assert unmeasured <= {f"octo_{name}" for name in known}
            costs = cost.predict(ops, device, 1)
            assert all(c.time_s == pytest.approx(c.compute_s + c.memory_s + c.overhead_s) and c.time_s > 0 for c in costs)
            assert compare.time_of(ops, device, 1) == pytest.approx(sum(c.time_s for c in costs))


def test_the_calibrated_profile_names_its_source_and_no_host(device):
    import platform

    assert "octosim profiles calibrate" in device.rates.source and device.title in device.rates.source
    assert platform.node() not in device.rates.source
    assert device.memory.bandwidth_sustained_gb_s.kind == "measured" and device.overhead_us.kind == "measured"
    assert device.rates.bandwidth[-1].level == "main memory"


def test_toml_round_trip(device):
    text = calibrate.toml(device.model_dump(exclude_none=True, by_alias=True, mode="json"))
    assert hardware.parse(text, "x") == device


@pytest.mark.parametrize("change, message", [
    (("ps_per_mac = ", "ps_per_mac = -1"), "ps_per_mac"), (('kind = "linear"', 'kind = "lineal"'), "kind"),
    (('"main memory"', '""'), "level"),
    ((f"kernels = {rates.KERNELS}", "kernels = 0"), "rates were measured with other kernels .* `octosim profiles calibrate`"),
    ((f"kernels = {rates.KERNELS}\n", ""), "rates were measured with other kernels .* `octosim profiles calibrate`")])
def test_bad_rates_are_named(device, change, message):
    text = calibrate.toml(device.model_dump(exclude_none=True, by_alias=True, mode="json"))
    with pytest.raises(OctosimError, match=f"bad.toml: field .*{message}"):
        hardware.parse(text.replace(*change, 1), "bad.toml")


@pytest.mark.parametrize("arguments, message", [
    (("--profile", "pi4"), "go with --from"), (("--from", "x.csv"), "--from needs --profile")])
def test_command_refuses(arguments, message):
    done = octosim("profiles", "calibrate", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
