"""Runtimes: software as an input of the cost model."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from kit import reader
from kit.cli import octosim

from octosim import cost, hardware
from octosim.cost import plots, reference, runtimes, sweep
from octosim.errors import OctosimError
from octosim.hardware import Runtime, load_runtime
from octosim.hardware.runtime import LayerKind, Work
from octosim.trace import Op, with_winograd


def fig(value, kind="estimate"):
    return {"value": value, "kind": kind, "source": "a test's own number"}


def board(**more):
    """A device without fitted factors: full efficiency, no overhead."""
    return hardware.Device.model_validate({
        "name": "toy", "title": "A toy", "overhead_us": fig(0), "training": {"status": "supported", "note": "a toy"},
        "engines": [{"name": "cpu", "accumulator": "exact32", "trains": True, "units": fig(4), "clock_ghz": fig(1.5),
                     "macs_per_clock": {"int8": fig(8), "float32": fig(4)},
                     "gemm_efficiency": {"int8": fig(1), "float32": fig(1)}}],
        "memory": {"bandwidth_sustained_gb_s": fig(5)}, **more})


@pytest.mark.parametrize("runtime", [None, "tflite", "octosim"])
@pytest.mark.parametrize("network", sorted(reference.NETWORKS))
@pytest.mark.parametrize("dtype, rate", [("int8", 48e9), ("float32", 24e9)])
def test_with_nothing_fitted_the_model_is_a_roofline(network, dtype, rate, runtime):
    ops = reference.NETWORKS[network](2, dtype)
    costs = cost.predict(ops, board(), runtime=runtime and load_runtime(runtime))
    expected = [max(op.macs / rate, op.bytes / 5e9) for op in ops]
    assert [c.time_s for c in costs] == pytest.approx(expected)


def conv(groups=1, pass_="forward", m=4096, k=576, n=64):
    return Op("conv1", pass_, "gemm", "conv 3x3", (m, k, n), "float32", 4 * (m * k // 9 + k * n), 4 * m * n, groups=groups,
              kernel=(3, 3), stride=1, weights=4 * k * n)


def test_shipped_runtimes():
    known = {r.name: r for r in hardware.runtimes()}
    assert {"octosim", "ncnn", "tflite", "mnn", "pytorch", "tensorrt", "onnxruntime", "armnn", "vendor-npu"} <= set(known)
    assert known["ncnn"].winograd and not known["tflite"].winograd
    assert load_runtime("litert") == known["tflite"]
    names = [alias for r in known.values() for alias in (r.name, *r.aliases)]
    assert len(names) == len(set(names))
    for runtime in known.values():
        assert len(runtime.source) > 20
        for rules in filter(None, (runtime.backward, runtime.accelerated)):
            assert set(rules.devices) <= set(hardware.names())


@pytest.mark.parametrize("text, message", [
    ("tflit", "unknown runtime 'tflit'; did you mean 'tflite'?"), ("nowhere.toml", "nowhere.toml: no such runtime file")])
def test_runtimes_that_are_not_there(text, message):
    with pytest.raises(OctosimError) as caught:
        load_runtime(text)
    assert message in str(caught.value)


def test_the_documentations_runtime_file(tmp_path):
    (block,) = [b for b in reader.blocks(reader.DOCS / "cost-model.md") if b.title == "mine.toml"]
    file = tmp_path / block.title
    file.write_text(block.text)
    done = octosim("profiles", "check", str(file))
    assert done.returncode == 0 and "a good file of the runtime My kernels" in done.stdout, done.stderr
    for more in (["--inference", "--dtype", "int8"], ["--dtype", "float32"]):
        assert octosim("cost", "--profile", "pi4", "--model", "mlp", "--runtime", str(file), *more).returncode == 0
    with pytest.raises(OctosimError, match="mine.toml: a runtime's file and not a device's profile"):
        hardware.load(file)
    (tmp_path / "board.toml").write_text(hardware.text_of("pi4"))
    with pytest.raises(OctosimError, match="board.toml: a device's profile and not a runtime's file"):
        load_runtime(tmp_path / "board.toml")


def test_a_runtime_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\ntitle = "Mine"\nsource = "my own kernels, timed"\nengines = ["cpu"]\nwinograd = true\n')
    assert load_runtime(file).winograd
    file.write_text('name = "mine"\ntitle = "Mine"\nsource = "x"\nengines = ["tpu"]\n')
    with pytest.raises(OctosimError, match="mine.toml: field engines"):
        load_runtime(str(file))


MNN = (Path(hardware.__file__).resolve().parents[2] / "hwprofiles/runtimes/mnn.toml").read_text()
COMPOSED = 'composed = ["depthwise dW", '


@pytest.mark.parametrize("old, new, wanted", [
    ('of = ["convolution"]', 'of = ["convolutions"]', ["backward.work[0].of[0] is 'convolutions'", "'convolution', "]),
    ('of = ["relu6"]', 'of = ["ReLU6"]', ["field backward.work[", "].of[0] is 'ReLU6'", "'relu6'"]),
    ('of = ["optimizer"]', 'of = [""]', ["].of[0] is ''", "'optimizer'"]),
    (COMPOSED, 'composed = ["depthwse dW", ', ["backward.composed[0] is 'depthwse dW'", "did you mean 'depthwise'?"]),
    (COMPOSED, 'composed = ["depthwise dw", ', ["backward.composed[0] is 'depthwise dw'", "did you mean 'dW'?"]),
    (COMPOSED, 'composed = ["depthwise", ', ["backward.composed[0] is 'depthwise'", "a kind of layer and a pass"]),
    (COMPOSED, 'composed = ["dW depthwise", ', ["backward.composed[0] is 'dW depthwise'", "as 'depthwise dW'"]),
    (COMPOSED, 'composed = ["product dX", ', ["composed[0] is 'product dX', but no work is of that kind and pass"]),
    ('"snapdragon-855"', '"Snapdragon 855"', ["backward.devices[0] is 'Snapdragon 855'", "lower-case"]),
])
def test_misspelt_words_of_a_runtime_file(old, new, wanted, tmp_path):
    """Each left out passes over tensors, and so changed prices."""
    file = tmp_path / "mine.toml"
    file.write_text(MNN)
    assert load_runtime(file) == load_runtime("mnn") and old in MNN
    file.write_text(MNN.replace(old, new, 1))
    with pytest.raises(OctosimError) as caught:
        load_runtime(file)
    sentence = str(caught.value)
    assert sentence.startswith(f"{file}: field ") and "\n" not in sentence and all(part in sentence for part in wanted)


def layer_ops():
    """An operation of each kind of layer."""
    plain = replace(conv(), kernel=(0, 0), weights=0)
    products = [conv(), conv(64, k=9, n=1), plain, replace(plain, weights=8)]
    names = {**runtimes.LAYERS, "relu backward": "relu", "max pool gradient": "maxpool"}
    return [*products, *(Op("x", "forward", "elementwise", name, (9,), "float32", 36, 36) for name in names),
            Op("o", "update", "update", "sgd", (9,), "float32", 72, 36)]  # fmt: skip


def test_files_may_name_the_kinds_of_layer_that_operations_are_of():
    assert {runtimes.layer_of(op) for op in layer_ops()} == set(get_args(LayerKind))


def test_which_runtime():
    pi, jetson, npu = (hardware.load(name) for name in ("pi4", "jetson", "hailo-8"))
    assert runtimes.choose(None, pi, "float32", True, True).name == "octosim"
    assert runtimes.choose(None, pi, "float32", False, False).name == "tflite"
    assert runtimes.choose(None, jetson, "float16", True, False).name == "pytorch"
    assert runtimes.choose(None, jetson, "int8", True, False).name == "octosim"
    assert runtimes.choose(None, jetson, "int8", False, False).name == "tensorrt"
    assert runtimes.choose(None, npu, "int8", False, False).name == "vendor-npu"
    assert runtimes.hypothetical(load_runtime("octosim"), jetson) and not runtimes.hypothetical(load_runtime("octosim"), pi)
    with pytest.raises(OctosimError, match="runtime tflite runs on cpu engines, and jetson-xavier-nx has none"):
        runtimes.choose("tflite", jetson, "int8", False, False)
    with pytest.raises(OctosimError, match="runtime ncnn does not train"):
        runtimes.choose("ncnn", pi, "float32", True, True)


def test_a_frameworks_backward_pass_is_slower():
    pi, torch = hardware.load("pi5"), load_runtime("pytorch")
    forward, dw = conv(), replace(conv(), pass_="dW", shape=(64, 4096, 576))
    relu = Op("relu1", "forward", "elementwise", "relu", (10**6,), "float32", 4 * 10**6, 4 * 10**6)
    update = Op("conv1", "update", "update", "sgd", (36864,), "float32", 12 * 36864, 8 * 36864)
    ops = [forward, relu, dw, update]
    rules = torch.backward
    changed = runtimes.training_ops(ops, torch)
    product, patches, activation, gradient, again, step = changed
    assert product == replace(forward, slow=1 / rules.forward.value)  # weights are variables: no Winograd
    assert patches.shape == again.shape == (4096 * 576,) and patches.passes == rules.patch_passes.value
    assert gradient.slow == pytest.approx(1 / rules.dw.value) and gradient.bytes == dw.bytes
    assert activation == replace(relu, passes=rules.passes.value) and step == replace(update, passes=rules.update_passes.value)
    assert runtimes.training_ops(ops, load_runtime("octosim")) == ops
    own, theirs = cost.predict(ops, pi), cost.predict(changed, pi, runtime=torch)
    assert len(theirs) == len(changed) + 1 and theirs[-1].op.layer == "step"
    assert theirs[-1].time_s == pytest.approx(rules.step_ms.value * 1e-3)
    assert sum(c.time_s for c in theirs) > 1.5 * sum(c.time_s for c in own)


def test_patches_and_winograd():
    torch = load_runtime("pytorch")
    one = torch.backward.dw.model_copy(update={"value": 1.0})
    inferring = torch.backward.model_copy(update={"patch_passes": one, "forward": None})
    other = torch.model_copy(update={"backward": inferring, "winograd": True})
    dw = replace(conv(), pass_="dW", shape=(64, 4096, 576))
    product, gradient, patches = runtimes.training_ops([conv(), dw], other)
    assert product == with_winograd(conv()) and gradient.bytes == dw.bytes
    assert patches.bytes == 2 * 4 * 4096 * 576 and patches.passes == 1  # the unfolded input, written and read


def counting(*work: dict) -> Runtime:
    """MNN with other passes, each as fast as octosim's loops."""
    mnn = load_runtime("mnn")
    one = mnn.backward.passes.model_copy(update={"value": 1.0})
    entries = tuple(Work.model_validate({"source": "a test"} | entry) for entry in work)
    return mnn.model_copy(update={"backward": mnn.backward.model_copy(update={
        "work": entries, "passes": one, "forward": one, "composed": ("depthwise dW",)})})  # fmt: skip


SIZES = {  # elements of a 3x3 convolution of stride 2, 4 images of 32 x 32 x 16 to 16 x 16 x 64
    "input": 4 * 32 * 32 * 16, "result": 4 * 16 * 16 * 64, "weights": 64 * 16 * 9, "patches": 4 * 16 * 16 * 16 * 9,
    "windows": 4 * 16 * 16 * 64 * 9, "spread": 4 * 32 * 32 * 16 * 9,
}  # fmt: skip


@pytest.mark.parametrize("pass_", ["forward", "dX", "dW"])
@pytest.mark.parametrize("over", SIZES)
def test_counted_passes_go_over_the_sizes_of_the_layer(pass_, over):
    x, y, w = (4 * SIZES[name] for name in ("input", "result", "weights"))
    m, k, n = 4 * 16 * 16, 16 * 9, 64
    shape = {"forward": (m, k, n), "dX": (m, n, k), "dW": (n, m, k)}[pass_]
    reads, writes = {"forward": (x + w, y), "dX": (w + y, x), "dW": (x + y, w)}[pass_]
    weights = 0 if pass_ == "dW" else w
    op = Op("c", pass_, "gemm", "conv", shape, "float32", reads, writes, kernel=(3, 3), stride=2, weights=weights)
    for how, moved in (("copy", 2), ("combine", 3), ("read", 1), ("write", 1)):
        runtime = counting({"of": ["convolution"], "pass": pass_, "over": over, "how": how, "threads": "images", "times": 3.0})
        product, work = runtimes.training_ops([op], runtime, 4)
        assert product.macs == op.macs and work.bytes == moved * 4 * SIZES[over]
        assert (work.passes, work.calls, work.threads) == (3.0, 3, 4)
        assert work.elements == pytest.approx(moved * SIZES[over] / 2, abs=1)


def test_counted_passes_of_what_lies_between_products():
    pool = Op("p", "forward", "elementwise", "maxpool", (9 * 1000,), "float32", 4 * 4000, 4 * 1000)
    back = replace(pool, pass_="dX", reads=4 * 5000, writes=4 * 4000)
    places = {"of": ["maxpool"], "pass": "dX", "over": "windows", "apart": True, "threads": "one"}
    runtime = counting(places, places | {"over": "spread", "how": "write", "apart": False})
    kept, windows, spread = runtimes.training_ops([pool, back], runtime)
    assert kept.name == "maxpool" and windows.calls == 9 and windows.threads == 1
    assert windows.bytes == 2 * 4 * 9000 and spread.bytes == 4 * 9 * 4000
    relu = Op("r", "dX", "elementwise", "relu backward", (500,), "float32", 4000, 2000)
    step = Op("o", "update", "update", "sgd", (700,), "float32", 8400, 5600, groups=6)
    runtime = counting({"of": ["relu"], "pass": "dX", "over": "result", "interleaved": True},
                       {"of": ["optimizer"], "pass": "update", "over": "weights", "apart": True})  # fmt: skip
    (mask,), (copy,) = (runtimes.training_ops([op], runtime) for op in (relu, step))
    assert mask.slow == 1 / runtime.backward.interleaved.value and mask.bytes == 4000
    assert copy.bytes == 8 * 700 and copy.calls == 6
    deep = Op("d", "dW", "gemm", "depthwise", (1, 4096, 9), "float32", 4 * 8192 * 32, 1152, groups=32, kernel=(3, 3))
    assert runtimes.training_ops([deep], runtime) == []  # composed of passes, of which this runtime has none


@pytest.mark.parametrize(("only", "kernel", "m", "batch", "there"), [
    (["wide"], (3, 3), 64, 2, True), (["wide"], (1, 1), 64, 2, False), (["narrow"], (1, 1), 64, 2, True),
    (["narrow", "several"], (1, 1), 64, 1, False), (["several"], (3, 3), 64, None, True), (["batched"], (1, 1), 1, 1, False),
])  # fmt: skip
def test_passes_that_only_some_layers_have(only, kernel, m, batch, there):
    op = Op("c", "forward", "gemm", "conv", (m, 16, 8), "float32", 4 * (m * 16 + 128), 32 * m, kernel=kernel, weights=512)
    runtime = counting({"of": ["convolution"], "pass": "forward", "over": "result", "only": only})
    assert len(runtimes.training_ops([op], runtime, batch)) == 1 + there


def test_a_spread_of_one_device_is_wider_elsewhere():
    mnn, ops = load_runtime("mnn"), runtimes.training_ops([conv(), replace(conv(), pass_="dW", shape=(64, 4096, 576))],
                                                          load_runtime("mnn"))  # fmt: skip
    for name in ("snapdragon-855", "pi4"):
        device = hardware.load(name)
        spreads = {c.spread for c in cost.predict(ops, device, runtime=mnn) if c.op.layer != "step"}
        own = mnn.backward.spread.value
        assert min(spreads) == own if name == "snapdragon-855" else min(spreads) > own


def test_threads_and_calls_of_one_operation():
    """A pass on one thread takes a core's time; each of its calls costs one."""
    pi = hardware.load("pi5")
    op = Op("c", "dX", "elementwise", "copy", (10**5,), "float32", 4 * 10**5, 4 * 10**5)
    runtime = counting()
    free, alone, often = (cost.predict([x], pi, 4, runtime)[0] for x in (op, replace(op, threads=1), replace(op, calls=5)))
    assert 2 < alone.compute_s / free.compute_s <= 4 and alone.overhead_s == free.overhead_s
    assert often.overhead_s == pytest.approx(5 * free.overhead_s)
    assert cost.predict([replace(op, threads=8)], pi, 4, runtime)[0].time_s == free.time_s


def test_passes_repeat_the_time_of_one():
    """Memory, caches and arithmetic alike; the working set is that of one pass."""
    pi5 = hardware.load("pi5")
    for elements in (10**4, 10**7):
        relu = Op("relu", "forward", "elementwise", "relu", (elements,), "float32", 4 * elements, 4 * elements)
        once, often = (cost.predict([replace(relu, passes=passes)], pi5)[0] for passes in (1.0, 2.5))
        assert often.time_s - often.overhead_s == pytest.approx(2.5 * (once.time_s - once.overhead_s))


def test_a_framework_trains_otherwise_on_a_gpu():
    torch, pi, nano = load_runtime("pytorch"), hardware.load("pi4"), hardware.load("jetson-nano")
    assert runtimes.on(torch, pi) == torch and runtimes.on(torch, nano).backward == torch.accelerated != torch.backward
    assert runtimes.choose("pytorch", nano, "float32", True, True).backward == torch.accelerated
    assert runtimes.choose(None, nano, "float16", True, True).backward == torch.accelerated
    relu = [Op("relu", "forward", "elementwise", "relu", (100,), "float32", 400, 400)]
    (nanos,), (agx,) = (cost.predict(relu, hardware.load(name), runtime=torch) for name in ("jetson-nano", "agx-xavier"))
    assert nanos.overhead_s == pytest.approx(1.8 * agx.overhead_s) and agx.overhead_s == pytest.approx(103e-6)


def test_a_core_with_float16_alone_lends_its_own_factors():
    pi5 = hardware.load("pi5")
    lent, own = (cost.factors_of(pi5, pi5.engines[0], d) for d in ("float32", "float16"))
    assert lent.conv == own.conv and lent.spread > own.spread
    pi4 = hardware.load("pi4")
    assert cost.factors_of(pi4, pi4.engines[0], "float32").conv != own.conv


@pytest.mark.parametrize("threads, share", [(1, 0.25), (2, 0.5), (4, 1.0), (None, 1.0)])
def test_energy_is_idle_and_the_share_of_busy_cores(threads, share):
    pi = hardware.load("pi4")
    costs = cost.predict([conv(m=10**5)], pi, threads)
    found = cost.total(costs, pi)
    idle, busy = pi.power.idle_w.value, pi.power.busy_w.value
    assert found["energy_j"] == pytest.approx(found["time_s"] * (idle + share * (busy - idle)))
    assert found["energy_is"] == "estimate"


@pytest.mark.parametrize("name", ["jetson", "jetson-nano", "atlas", "rk3588-npu"])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_threads_are_a_cpus(name, dtype):
    """An accelerator works with all units, whatever its CPU's threads."""
    chip = hardware.load(name)
    ops = reference.NETWORKS["mobilenet_v2"](1, dtype if name != "rk3588-npu" else "int8")
    whole, few = (cost.predict(ops, chip, threads) for threads in (None, 1))
    assert few == whole and {c.share for c in few} == {1.0}
    assert sweep.times(sweep.table(lambda batch: ops), [2], [(chip, None, 1)]) == pytest.approx(sum(c.time_s for c in whole))
    assert plots.roofs(chip, 1) == plots.roofs(chip)


@pytest.mark.parametrize("threads", [1, 2, 3, None])
def test_a_cluster_takes_its_share_of_the_boards_power(threads):
    """By the peak of its cores; the same whether it was chosen by the model or by name."""
    chip = hardware.load("rk3588")
    idle, busy = chip.power.idle_w.value, chip.power.busy_w.value
    a76, a55 = (e.units.value * e.clock_ghz.value * e.macs_per_clock.float32.value for e in chip.engines)
    for cluster, peak in (("a76", a76), ("a55", a55)):
        alone = hardware.with_cluster(chip, cluster)
        costs = cost.predict([conv(m=10**5)], alone, threads)
        found = cost.total(costs, alone)
        watts = idle + (busy - idle) * peak / (a76 + a55) * (threads or 4) / 4
        assert found["energy_j"] == pytest.approx(watts * found["time_s"])
    costs = cost.predict([conv(m=10**5)], chip, threads)
    fast = hardware.with_cluster(chip, "a76")
    assert cost.total(costs, chip)["energy_j"] == pytest.approx(
        cost.total(cost.predict([conv(m=10**5)], fast, threads), fast)["energy_j"])
    pi = hardware.load("pi4")
    assert hardware.with_cluster(pi, "neon").power == pi.power


def test_budgets_and_upper_bounds_are_called_so():
    assert {name: cost.total(cost.predict([conv()], d), d)["energy_is"] for name in ("jetson-nano", "atlas-200dk")
            for d in [hardware.load(name)]} == {"jetson-nano": "by budget", "atlas-200dk": "at most"}


def test_dataflow_chips_state_throughput():
    hailo = hardware.load("hailo-8")
    costs = cost.predict(reference.NETWORKS["resnet50-v1"](1, "int8"), hailo)
    assert all(c.overhead_s == 0 for c in costs)
    assert any("1 / throughput" in note for note in cost.cost_json(costs, hailo)["notes"])


def test_gpus_compute_whole_waves_of_tiles():
    """A seventh tile on six multiprocessors takes more than a sixth; a wide product reaches more of the peak."""
    jetson = hardware.load("jetson")

    def compute(m, n, k=4096):
        (one,) = cost.predict([Op("fc", "forward", "gemm", "linear", (m, k, n), "int8", 0, 0)], jetson)
        return one.compute_s

    assert compute(128 * 7, 128) > 1.15 * compute(128 * 6, 128)
    assert compute(4096, 4096) / (4096 * 4096) < 0.7 * compute(64, 64) / (64 * 64)
    times = [compute(m, 512) for m in range(32, 2048, 32)]
    assert all(a <= b * (1 + 1e-9) for a, b in zip(times, times[1:], strict=False))


def test_a_depthwise_convolution_is_no_tensor_core_product():
    jetson = hardware.load("jetson")
    op = Op("dw", "forward", "gemm", "conv 3x3", (3136, 9, 1), "int8", 0, 0, groups=64, kernel=(3, 3))
    (one,) = cost.predict([op], jetson)
    assert one.op.macs / one.compute_s <= 0.25 * 384 * 1.1e9 * 1.001


def test_tensors_in_a_gpus_cache_spare_main_memory():
    orin = hardware.load("jetson-agx-orin")
    (small,), (large,) = (cost.predict([Op("r", "forward", "elementwise", "relu", (n,), "int8", n, n)], orin)
                          for n in (10**5, 10**8))
    assert small.memory_s / 1e5 < 0.5 * large.memory_s / 1e8
    assert math.isclose(large.memory_s, 2e8 / 189e9, rel_tol=0.1)


def test_a_softwares_scale_multiplies_every_time():
    pi, tflite = hardware.load("pi4"), load_runtime("tflite")
    plain = tflite.model_copy(update={"scale": None})
    ops = [conv(), conv(groups=1, m=16), Op("r", "forward", "elementwise", "relu", (10**5,), "float32", 4 * 10**5, 4 * 10**5)]
    for slow, fast in zip(cost.predict(ops, pi, 2, tflite), cost.predict(ops, pi, 2, plain), strict=True):
        assert slow.time_s == pytest.approx(tflite.scale.value * fast.time_s)


def test_a_chip_that_takes_one_image_at_a_time():
    """A batch is N inferences: weights that do not fit cross the link for each, activations never do."""
    chip, runtime = hardware.load("coral-edge-tpu"), load_runtime("vendor-npu")

    def layer(batch, width):
        m, k, n = 3136 * batch, 9 * width, width
        return Op("conv1", "forward", "gemm", "conv 3x3", (m, k, n), "int8", m * width + k * n, m * n, kernel=(3, 3), stride=1,
                  weights=k * n, images=batch)  # fmt: skip

    for width in (64, 1024):  # 9 MiB of weights and 3 MiB of activations an image in the second
        one, many = ([cost.predict([layer(batch, width)], chip, None, runtime)[0] for batch in (1, 16)])
        assert many.time_s == pytest.approx(16 * one.time_s) and many.op.macs == 16 * one.op.macs
    together = cost.predict([replace(layer(64, 64), images=1)], chip, None, runtime)[0]
    assert together.memory_s > 0 == cost.predict([layer(64, 64)], chip, None, runtime)[0].memory_s


def test_a_scale_of_one_arithmetic():
    """Of int8 alone; factors of a calibration, which were fitted with the software, have neither it nor the kernels' spread."""
    pi, armnn = hardware.load("pi4"), load_runtime("armnn")
    int8 = armnn.kernels["smlal"]
    kernels = int8.model_copy(update={"scale": None})
    plain = armnn.model_copy(update={"kernels": armnn.kernels | {"smlal": kernels}})
    ops = [conv(), replace(conv(), dtype="int8"), Op("a", "forward", "elementwise", "add", (10**5,), "int8", 10**5, 10**5)]
    engine = pi.engines[0]
    fitted = pi.model_copy(update={"calibration": {"smlal": cost.factors_of(pi, engine, "int8")}})
    for device, times in ((pi, int8.scale.value), (fitted, 1.0)):
        slow, fast = (cost.predict(ops, device, 2, runtime) for runtime in (armnn, plain))
        expected = [1.0, times, times]
        assert [one.time_s / other.time_s for one, other in zip(slow, fast, strict=True)] == pytest.approx(expected)
        priced, without = (cost.priced_factors(device, engine, "int8", runtime) for runtime in (armnn, plain))
        assert priced == pytest.approx(cost.slowed(without, times))
    assert cost.predict(ops, pi, 2, armnn)[1].spread == int8.spread.value != cost.predict(ops, fitted, 2, armnn)[1].spread


def test_clusters_are_an_input():
    chip = hardware.load("rk3399")

    def clock(device, threads):
        return cost.prepare([conv()], device, threads).clock[0]

    assert [clock(chip, n) for n in (1, 2, 4)] == [1.8e9, 1.8e9, 1.416e9]
    assert clock(hardware.with_cluster(chip, "a53"), 1) == clock(hardware.with_cluster(chip, "Cortex-A53"), 1) == 1.416e9
    assert clock(chip, None) == 1.8e9
    with pytest.raises(OctosimError, match="profile rk3399 has no cluster 'a76'"):
        hardware.with_cluster(chip, "a76")


@pytest.mark.parametrize("name", ["rk3399", "rk3588", "odroid-n2-plus", "snapdragon-855"])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_network_runs_on_the_cluster_that_is_predicted_fastest(name, dtype):
    """More threads or a higher clock are never slower on a network whose products have work for all cores."""
    chip, tflite = hardware.load(name), load_runtime("tflite")
    ops = reference.NETWORKS["resnet50"](1, dtype)

    def seconds(device, threads=None):
        return sum(c.time_s for c in cost.predict(ops, device, threads, tflite))

    counts = range(1, 9)
    times = [seconds(chip, n) for n in counts]
    assert all(more <= few * (1 + 1e-9) for few, more in zip(times, times[1:], strict=False))
    alone = [hardware.with_cluster(chip, e.name) for e in chip.engines]
    assert times == pytest.approx([min(seconds(device, n) for device in alone) for n in counts])
    clocks = [seconds(hardware.at_clock(chip, x * chip.engines[0].clock_ghz.value)) for x in (0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1)]
    assert all(fast <= slow * (1 + 1e-9) for slow, fast in zip(clocks, clocks[1:], strict=False))
    found = sweep.times(sweep.table(lambda batch: ops), [4], [(chip, tflite, n) for n in counts])
    assert found[:, 0] == pytest.approx(times)


def test_a_cluster_that_cannot_train_leaves_the_step_to_the_others():
    chip = hardware.load("rk3399")
    a72, a53 = chip.engines
    ops = [conv(pass_="dW")]
    mixed = chip.model_copy(update={"engines": (a72.model_copy(update={"trains": False}), a53)})
    assert cost.prepare(ops, mixed).clock[0] == 1.416e9
    none = chip.model_copy(update={"engines": tuple(e.model_copy(update={"trains": False}) for e in chip.engines)})
    with pytest.raises(OctosimError, match="no engine has trains = true"):
        cost.prepare(ops, none)


@pytest.mark.parametrize("name", ["jetson", "jetson-agx-xavier", "jetson-orin-nx", "jetson-agx-orin"])
def test_products_run_on_a_dla_where_it_is_asked_for(name):
    """As in TensorRT; then on one of the two.  So a mode with fewer multiprocessors is never faster."""
    board, trt = hardware.load(name), load_runtime("tensorrt")
    ops = reference.NETWORKS["resnet50"](1, "int8")

    def engines(device):
        return {(c.engine.name, c.engine.units.value) for c in cost.prepare(ops, device, None, trt).runs}

    fastest = sum(c.time_s for c in cost.predict(ops, board, None, trt))
    for mode in [board, *(hardware.at_mode(board, m.name) for m in board.modes)]:
        assert {engine for engine, _ in engines(mode)} <= {"tensor-cores", "cuda-cores"}
        assert sum(c.time_s for c in cost.predict(ops, mode, None, trt)) >= fastest * 0.99  # MAXN may be the profile's
    assert engines(hardware.with_cluster(board, "dla")) == {("dla", 1)}


@pytest.mark.parametrize("name, mode, clock, watts", [
    ("jetson", "10W", 0.80325, 10), ("jetson", "mode_15w_6core", 1.10925, 15), ("jetson-agx-orin", "30W", 0.612, 30),
    ("jetson-tx2", "MAXQ", 0.85, 7.5), ("jetson-nano", "5W", 0.64, 5)])
def test_power_modes(name, mode, clock, watts):
    device = hardware.load(name)
    found = hardware.at_mode(device, mode)
    assert found.engines[0].clock_ghz.value == pytest.approx(clock, abs=1e-4) and found.busy_w == watts and found.power.budget
    slow, fast = (sum(c.time_s for c in cost.predict([conv()], d)) for d in (found, device))
    assert slow >= fast * (1 - 0.01)
    with pytest.raises(OctosimError, match=f"profile {device.name} has no power mode '99W'"):
        hardware.at_mode(device, "99W")


@pytest.mark.parametrize("name, mode, units, sms", [
    ("jetson-agx-orin", "15W", [6, 768], 6), ("jetson-agx-orin", "30W", [8, 1024], 8),
    ("jetson-agx-orin", "50W", [16, 2048], 16), ("jetson-orin-nx", "10W", [4, 512], 4),
    ("jetson-orin-nx", "25W", [8, 1024], 8), ("jetson-orin-nano", "7W", [4, 512], 4),
    ("jetson-agx-xavier", "10W", [32, 256], 4), ("jetson-agx-xavier", "15W", [64, 512], 8), ("jetson", "10W", [48, 384], 6)])
def test_a_power_mode_turns_multiprocessors_off(name, mode, units, sms):
    """nvpmodel's TPC_PG_MASK: a bit for each pair of multiprocessors that is off."""
    gpu = [e for e in hardware.at_mode(hardware.load(name), mode).engines if e.kind == "gpu"]
    assert [e.units.value for e in gpu] == units and {e.multiprocessors.value for e in gpu} == {sms}


def test_the_bandwidth_of_a_mode_says_whether_it_was_measured():
    def kinds(name):
        device = hardware.load(name)
        modes = [hardware.at_mode(device, m.name) for m in device.modes if m.bandwidth_gb_s]
        return {mode.memory.bandwidth_sustained_gb_s.kind for mode in modes}

    assert kinds("jetson-agx-orin") == {"measured"} and kinds("jetson-orin-nx") == {"measured"}
    assert kinds("jetson-xavier-nx") == {"estimate"}  # in proportion to a fraction of the peak


def test_products_of_a_core_with_an_estimated_rate_have_wider_intervals():
    known, guessed = hardware.load("rk3399"), hardware.load("odroid-n2-plus")  # both with the pool's factors

    def spreads(device, op):
        return cost.predict([op], device)[0].spread

    passes = Op("relu1", "forward", "elementwise", "relu", (4096 * 64,), "float32", 4 * 4096 * 64, 4 * 4096 * 64)
    assert spreads(guessed, conv()) == pytest.approx(math.hypot(spreads(known, conv()), cost.model.ESTIMATED_SPREAD))
    assert spreads(guessed, passes) == spreads(known, passes)


def test_the_same_chip_at_another_clock_has_its_factors():
    slow, fast = (hardware.load(name) for name in ("raspberry-pi-4", "raspberry-pi-4-1-8ghz"))
    assert cost.factors_of(slow, slow.engines[0], "int8") == cost.factors_of(fast, fast.engines[0], "int8")


@pytest.mark.parametrize("profile", ["raspberry-pi-4", "raspberry-pi-5", "rk3399"])
def test_plain_convolutions_keep_the_order_of_a_roofline(profile):
    """Without Winograd's algorithm and depthwise layers, factors change little in the order of plain networks."""
    device, runtime, rows = hardware.load(profile), load_runtime("tflite"), []
    for side, width, blocks in itertools.product((56, 112, 224), (16, 64, 128), (3, 9)):
        net = reference._Builder(1, "float32", side)
        net.conv(width, 3, 2)
        for block in range(blocks):
            net.conv(width, 1)
            net.conv(width << (block // 3), 3, 2 if block % 3 == 2 else 1, added=block % 3 != 2)
        prepared = cost.prepare(net.ops, device, None, runtime)
        macs, moved = (np.array([getattr(op, name) for op in net.ops], float) for name in ("macs", "bytes"))
        roof = np.maximum(macs / (prepared.rate * prepared.cores), moved / prepared.bandwidth).sum()
        rows.append((roof, sum(c.time_s for c in cost.predict(net.ops, device, runtime=runtime))))
    order = [np.argsort(np.argsort(column)) for column in np.transpose(rows)]
    assert np.corrcoef(*order)[0, 1] > 0.97


@pytest.mark.parametrize("runtime, kernel, cut", [
    ("tensorrt", (3, 3), True), ("tensorrt", (0, 0), True), ("pytorch", (3, 3), True), ("pytorch", (0, 0), False),
    ("octosim", (3, 3), False)])  # fmt: skip
def test_what_runs_in_tf32(runtime, kernel, cut):
    device, software = hardware.load("jetson-orin-nx"), load_runtime(runtime)
    op = replace(conv(m=1 << 16, k=1024, n=512), kernel=kernel)
    priced = cost.predict([op], device, runtime=software)[0]
    without = cost.predict([op], device, runtime=software.model_copy(update={"tf32": "none"}))[0]
    assert ("TF32" in priced.note) is cut and (priced.compute_s < 0.5 * without.compute_s) is cut
    assert priced.dtype_used == "float32"
    half = cost.predict([replace(op, dtype="float16")], device, runtime=software)[0]
    assert not cut or priced.compute_s == pytest.approx(2 * half.compute_s, rel=0.2)


def test_calls_launched_ahead_hide_behind_work_or_work_behind_them():
    """PyTorch on a GPU: the longer of all calls and all work, of every operation exactly one of them."""
    device, software = hardware.load("jetson-agx-xavier"), load_runtime("pytorch")
    small, large = [conv(m=64, k=64, n=64)] * 9, [conv(m=1 << 16)] * 9
    alone = software.model_copy(update={"queued": False})
    for ops, launched in ((small, True), (large, False)):
        one, summed = (cost.predict(ops, device, runtime=r) for r in (software, alone))
        calls, work = (sum(part) for part in zip(*((c.overhead_s, c.time_s - c.overhead_s) for c in summed), strict=True))
        assert sum(c.time_s for c in one) == pytest.approx(max(calls, work))
        assert all((c.overhead_s > 0) is launched and (c.compute_s > 0) is not launched for c in one)
    table = sweep.table(lambda batch: [replace(op, shape=(batch * op.shape[0], *op.shape[1:])) for op in small])
    found = sweep.times(table, (1, 4096), [(device, software, None)])[0]
    expected = [sum(c.time_s for c in cost.predict(list(table(b)[0]), device, runtime=software)) for b in (1, 4096)]
    assert found == pytest.approx(expected)


def test_weights_that_do_not_fit_cross_the_link():
    """A chip without memory of its own: what fits costs nothing, the rest its bytes over USB."""
    device = hardware.load("coral-edge-tpu")
    assert device.memory.link_gb_s

    def seconds(k):
        op = Op("fc", "forward", "gemm", "linear", (1, k, 1024), "int8", k * 1025, 1024, weights=k * 1024)
        return cost.predict([op], device)[0]

    assert seconds(4096).memory_s == 0 and seconds(4096).bound != "memory"
    beyond = (64 << 20) - device.caches[0].size_kib.value * 1024
    assert seconds(1 << 16).memory_s == pytest.approx(beyond / (device.memory.link_gb_s.value * 1e9), rel=0.01)


def test_one_thread_runs_on_the_fastest_core():
    device = hardware.load("snapdragon-855")
    times = {n: cost.predict([conv(m=1 << 14)], device, threads=n)[0] for n in (1, 4)}
    prime, gold = 2.8416, 4 * 2.4192  # GHz of a76-prime, and of a76 together
    assert [times[n].share for n in (1, 4)] == pytest.approx([prime / (prime + gold), gold / (prime + gold)])
    assert times[1].compute_s < 4 * times[4].compute_s


def test_indirect_convolutions_are_as_fast_as_products():
    """TensorFlow Lite's int8 3x3 kernels, which unfold nothing; ncnn's unfold their input."""
    pi = hardware.load("pi4")
    shape = 784, 1152, 128
    wide, narrow = (Op("c", "forward", "gemm", f"conv {k}x{k}", shape, "int8", 0, 0, kernel=(k, k)) for k in (3, 1))
    for name, low, high in (("tflite", 0.9, 1.1), ("ncnn", 1.4, 2.5)):
        runtime = hardware.load_runtime(name)
        times = [cost.predict([op], pi, 4, runtime)[0].compute_s for op in (wide, narrow)]
        assert low < times[0] / times[1] < high


def test_a_runtimes_scale_is_of_inference_alone():
    """A training step's figures are fitted to training steps."""
    pi, torch = hardware.load("pi4"), hardware.load_runtime("pytorch")
    assert torch.scale.value > 1
    plain = torch.model_copy(update={"scale": None})
    forward = Op("c", "forward", "gemm", "conv 3x3", (784, 1152, 128), "float32", 10**6, 10**6, kernel=(3, 3))
    for ops, times in (([forward], torch.scale.value), ([forward, replace(forward, pass_="dW")], 1)):
        found = [cost.predict(ops, pi, 4, runtime)[0].time_s for runtime in (torch, plain)]
        assert found[0] / found[1] == pytest.approx(times)


@pytest.mark.parametrize("profile, threads, said", [
    ("rk3588", None, "runs on 4 cores of the cluster a76"),
    ("rk3588", 8, "runs on 4 cores of the cluster a76; --threads 8: rk3588 has no more than 4 in a cluster"),
    ("pi4", 4, ""), ("pi4", 16, "--threads 16: raspberry-pi-4 has no more than 4 in all"),
    ("jetson", None, ""), ("jetson", 2, "--threads 2 is of CPU cores: tensor-cores of jetson-xavier-nx computes as a whole"),
])  # fmt: skip
def test_where_a_network_runs_is_said(profile, threads, said):
    device = hardware.load(profile)
    op = Op("c", "forward", "gemm", "conv 3x3", (784, 1152, 128), "int8", 10**6, 10**6, kernel=(3, 3))
    assert cost.place(cost.predict([op], device, threads), device, threads) == said
