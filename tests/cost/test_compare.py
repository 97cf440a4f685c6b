"""INT8 beside float32: memory by hand, what is gained and why not, what fits, the crossover, pictures, speed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from kit.cli import octosim

from octosim import core, cost, engine, graph, hardware, methods
from octosim.bench import memory
from octosim.cost import compare, plots
from octosim.engine import plan
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, Dropout, Flatten, Linear, MaxPool, ReLU, Residual
from octosim.engine.nodes import Context
from octosim.trace import Op
from octosim.workload import CostQuery, source

SHAPE = (8, 8, 3)


STACK = (Conv2d(4, 3, pad=1), BatchNorm(), ReLU(), MaxPool(), Flatten(), Linear(10))


def network(method, stack=STACK, shape=SHAPE):
    return engine.Network(stack, shape, methods.make(method, {}), None)


def parts(method, batch, stack=STACK, training=True):
    return plan.memory(plan.plan(plan.dry(stack, SHAPE, methods.make(method, {})), batch, training=training))


def test_memory_by_hand():
    """conv 8x8x3 -> 8x8x4, batch normalization, ReLU, pooling to 4x4x4, a linear layer of 64 x 10; batch 2."""
    weights, others, running = 4 * 27 + 640, 4 + 10 + 8, 8  # biases, gamma and beta
    x, y, pooled = 2 * 192, 2 * 256, 2 * 64
    found = parts("fp32", 2)
    assert found["weights"] == 4 * (weights + others + running) and found["optimizer"] == 4 * (weights + others)
    # the image, batch normalization's input, the linear layer's input; argmax, which tells what ReLU passed on, too; logits,
    # their gradient and a channel's mean and deviation
    small = 2 * 4 * 20 + 4 * 8
    assert found["activations"] == 4 * (x + y + pooled) + pooled + small
    assert found["gradients"] == 4 * 640 and found["peak"] == sum(found[name] for name in found if name != "peak")
    int8, lac = parts("octo", 2), 3 * (4 + 10)
    assert int8["weights"] == 4 * (weights + others + lac + running + 2 * 2)  # two running ranges
    # codes of the weights, of both inputs and of the normalized values; argmax
    assert int8["activations"] - (weights + x + pooled + y + pooled) - small in range(200)
    forward = parts("octo", 2, training=False)
    assert forward["weights"] == int8["weights"] and forward["activations"] == forward["optimizer"] == forward["gradients"] == 0


def test_a_residual_blocks_gradient_waits():
    """While the body's gradient goes back, the shortcut's copy is held."""
    block = Residual((Conv2d(4, 3, pad=1),))
    stacks = ((Conv2d(4, 3, pad=1), *some, Flatten(), Linear(10)) for some in (block.body, (block,)))
    plain, branched = (parts("fp32", 64, stack) for stack in stacks)
    assert branched["activations"] == plain["activations"] and branched["peak"] - plain["peak"] > 0.8 * 64 * 256 * 4


@pytest.mark.parametrize("model", graph.MODELS)
@pytest.mark.parametrize("method", ["octo", "fp32"])
def test_memory_grows_with_the_batch_and_training_takes_more(model, method):
    shape = (32, 32, 3)
    net = network(method, graph.layers(model, 10, in_shape=shape), shape)

    def peak(batch, training=True):
        return plan.memory(plan.plan_like(net, batch, training=training))["peak"]

    one, two, forward = peak(8), peak(16), peak(8, False)
    assert forward < one < two
    largest = plan.largest_batch(net, 2**30)
    assert peak(largest) <= 2**30 < peak(largest + 1)
    assert plan.largest_batch(net, 1000) == 0


class Watch(core.Probe):
    """What the layers of a network keep when the loss is computed."""

    def __init__(self, net):
        self.net, self.kept = net, 0

    def call(self, name, number, function, arguments):
        if core.here.key[0] == "loss":
            self.kept = memory.kept_bytes(self.net)
        return function(*arguments)


def kept(stack, shape, method, batch):
    """Bytes that a network of a method keeps of a forward pass, measured and planned."""
    net = engine.Network(stack, shape, methods.make(method, {}), 1)
    images, labels = np.random.default_rng(1).integers(0, 256, (batch, *shape), np.uint8), np.zeros(batch, np.int32)
    watch = Watch(net)
    with watch.watching():
        net.gradients(images, labels, Context(True, 1, 1))
    return watch.kept, plan.memory(plan.plan_like(net, batch))["activations"]


@pytest.mark.parametrize("inference", [False, True])
def test_memory_in_float16(inference):
    """Mixed precision: half of what is between the products, float32 masters beside float16 copies of what they read."""
    single, half = (source(CostQuery("lenet5", None, dtype, inference, None, False)) for dtype in ("float32", "float16"))
    jetson, torch = hardware.load("jetson"), hardware.load_runtime("pytorch")
    ours, theirs = (made.memory(jetson, 64, torch) for made in (half, single))
    assert theirs["weights"] > 0 and ours["peak"] == sum(value for name, value in ours.items() if name != "peak")
    for name in ("activations", "workspace"):
        assert theirs[name] <= 2 * ours[name] <= theirs[name] + 1
    assert (ours["gradients"], ours["optimizer"]) == (theirs["gradients"], theirs["optimizer"])
    matrices = sum(p.size for node in half.network.nodes for p in node.params.values() if p.ndim > 1)
    assert 0.9 * theirs["weights"] / 4 < matrices < theirs["weights"] / 4
    assert ours["weights"] == theirs["weights"] + (-2 if inference else 2) * matrices
    room = theirs["peak"]
    batch = half.largest(jetson, room, torch)
    assert batch > 64 == single.largest(jetson, room, torch)
    assert half.memory(jetson, batch, torch)["peak"] <= room < half.memory(jetson, batch + 1, torch)["peak"]


@pytest.mark.parametrize("model", ["lenet5", "resnet20", "mobilenet"])
@pytest.mark.parametrize("method", ["octo", "fp32"])
def test_memory_kept_is_what_a_network_keeps(model, method):
    shape = (32, 32, 3)
    measured, counted = kept(graph.layers(model, 10, in_shape=shape), shape, method, 8)
    assert measured == pytest.approx(counted, rel=0.03)


IN_NUMPY = {"wage", "dorefa", "fqat"}  # what they keep in arrays of NumPy's, which no call of the core takes, is not planned


@pytest.mark.parametrize("method", [method for method in methods.METHODS if method not in IN_NUMPY])
def test_memory_kept_by_each_method(method):
    block = Residual((Conv2d(16, 3, pad=1), BatchNorm(), ReLU(), DepthwiseConv2d()))
    stack = (Conv2d(8, 5, pad=2), BatchNorm(), ReLU(), MaxPool(), Conv2d(16, 3, 2, 1), BatchNorm(), ReLU(), block, ReLU(),
             Flatten(), Linear(40), ReLU(), Dropout(0.5), Linear(10))  # fmt: skip
    if not methods.METHODS[method].batchnorm:
        block = Residual((Conv2d(16, 3, pad=1), ReLU(), DepthwiseConv2d()))
        stack = tuple(block if isinstance(layer, Residual) else layer for layer in stack if not isinstance(layer, BatchNorm))
    measured, counted = kept(stack, (32, 32, 3), method, 8)
    assert measured == pytest.approx(counted, rel=0.03)


def test_a_network_without_weights_has_the_same_trace():
    for method in ("octo", "fp32"):
        made = [engine.Network(STACK, SHAPE, methods.make(method, {}), seed) for seed in (None, 3)]
        assert plan.trace(made[0], 5) == plan.trace(made[1], 5)


def sides(device, model="lenet5", batch=50):
    shape = (28, 28, 1)
    traces = [plan.trace(network(m, graph.layers(model, 10, in_shape=shape), shape), batch) for m in ("octo", "fp32")]
    return compare.side_by_side(*(cost.predict(ops, device) for ops in traces), device)


def test_reasons():
    nano, pi5 = sides(hardware.load("jetson-nano")), sides(hardware.load("pi5"), "vgg11")
    assert "no INT8 units" in nano["reason"] and not nano["pays"] and nano["gain"] < 1
    assert pi5["pays"] and pi5["gain"] > 2 and "times as fast" in pi5["reason"]
    assert sides(hardware.load("jetson"))["reason"].endswith(("takes", "saves", "gain", "fast"))
    slow = sides(hardware.load("raspberry-pi-3b-plus"), "vgg11", 4)
    assert not slow["pays"] and ("no faster" in slow["reason"] or "more than that saves" in slow["reason"])


def test_fit_and_advice():
    device = hardware.load("raspberry-pi-zero-2-w")  # 0.5 GiB, of which 0.8
    capacity = compare.capacity_bytes(device)
    assert capacity == 0.8 * 0.5 * 2**30
    largest = {"INT8": lambda c: 7, "FP32": lambda c: 0}

    def fit(**peaks):
        return compare.fit({name: {"peak": peak} for name, peak in peaks.items()}, largest, device)

    assert fit(INT8=1, FP32=2) == {"fits": {"INT8": True, "FP32": True}, "advice": ""}
    half = fit(INT8=1, FP32=2**30)
    assert half["fits"] == {"INT8": True, "FP32": False} and "fits: INT8 at this batch" in half["advice"]
    both = fit(INT8=2**30, FP32=2**30)
    assert "INT8 and FP32 do not fit in 0.4 GiB" in both["advice"] and "a batch of up to 7 in INT8" in both["advice"]
    assert "no batch fits" in compare.fit({"FP32": {"peak": 2**30}}, {"FP32": lambda c: 0}, device)["advice"]


def test_crossover():
    """10 us of quantizing at any batch, a product of 2 us an image in float32 and 1 in INT8: 1.05 (10 + b) = 2 b at 11.05."""
    toy = hardware.Device.model_validate({
        "name": "toy", "title": "toy", "overhead_us": {"value": 0, "kind": "estimate", "source": "test"},
        "training": {"status": "supported", "note": "toy"},
        "engines": [{"name": "cpu", "accumulator": "exact32", "trains": True,
                     "units": {"value": 1, "kind": "estimate", "source": "test"},
                     "clock_ghz": {"value": 1, "kind": "estimate", "source": "test"},
                     "macs_per_clock": {d: {"value": v, "kind": "estimate", "source": "test"} for d, v in
                                        (("int8", 2), ("float32", 1))},
                     "gemm_efficiency": {d: {"value": 1, "kind": "estimate", "source": "test"} for d in ("int8", "float32")},
                     "elementwise_per_clock": {"value": 1, "kind": "estimate", "source": "test"}}]})  # fmt: skip

    def int8(batch):
        quantize = Op("fc1", "forward", "elementwise", "quantize w", (10_000,), "float32", 0, 0)
        return [quantize, Op("fc1", "forward", "gemm", "linear", (batch, 2000, 1), "int8", 0, 0)]

    def float32(batch):
        return [Op("fc1", "forward", "gemm", "linear", (batch, 2000, 1), "float32", 0, 0)]

    assert compare.crossover(int8, None, float32, None, toy) == 12
    assert compare.crossover(int8, None, float32, None, toy, most=8) is None
    assert compare.crossover(float32, None, float32, None, toy) is None


def test_a_thousand_points():
    """Networks x devices x batches, INT8 and float32; ten seconds are asked of the whole, so a tenth here is far from noise."""
    nets = [network(m, graph.layers(name, 10, in_shape=(32, 32, 3)), (32, 32, 3)) for name in ("vgg11", "resnet20")
            for m in ("octo", "fp32")]  # fmt: skip
    devices = [hardware.load(name) for name in ("pi4", "pi5", "jetson", "atlas")]
    before, points = time.process_time(), 0
    for net in nets:
        for batch in (1, 8, 32):
            ops = plan.trace(net, batch)
            points += sum(compare.time_of(ops, device) > 0 for device in devices)
    assert points == 48 and time.process_time() - before < 48 / 1000 * 10 * 5  # five times: a slow machine


ASKED = ("cost", "--profile", "pi4", "--model", "vgg11", "--image", "32x32x3", "--batch-size")


def test_command_compares_and_plots(tmp_path: Path):
    bars, roof = tmp_path / "bars.png", tmp_path / "roof.svg"
    done = octosim(*ASKED, "50", "--compare", "jetson-nano,atlas", "--plot", str(bars), "--roofline", str(roof))
    assert done.returncode == 0, done.stderr
    assert "no INT8 units" in done.stdout and "hypothetical" in done.stdout and "gain" in done.stdout
    assert bars.read_bytes().startswith(b"\x89PNG") and "<svg" in roof.read_text()
    done = octosim(*ASKED, "1,128", "--compare", "raspberry-pi-zero-2-w", "--json")
    found = json.loads(done.stdout)
    assert [(r["device"], r["batch_size"]) for r in found["devices"]] == [
        (name, batch) for name in ("raspberry-pi-4", "raspberry-pi-zero-2-w") for batch in (1, 128)
    ]
    assert found["crossover"].keys() == {"raspberry-pi-4", "raspberry-pi-zero-2-w"}
    assert all(r["int8"]["peak_bytes"] == r["total"]["peak_bytes"] for r in found["devices"])
    assert found["devices"][3]["fits"] == {"INT8": False, "FP32": False} and "fit" in found["devices"][3]["advice"]


def test_plots_of_a_device_without_float32(tmp_path: Path):
    """Its only bar and its roof without a slope; no word of what float32 would need."""
    bars, roof = tmp_path / "bars.svg", tmp_path / "roof.svg"
    done = octosim("cost", "--profile", "k210", "--compare", "pi4", "--model", "lenet5", "--inference", "--batch-size", "4000",
                   "--plot", str(bars), "--roofline", str(roof))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "INT8 does not fit in 6.4 MiB" in done.stdout and "in FP32" not in done.stdout
    drawn = bars.read_text()
    assert "no float32" in drawn and all(f">{dtype}<" in drawn for dtype in ("int8", "float32"))
    assert "bandwidth unknown" in roof.read_text() and "conv2" in roof.read_text()


def test_command_shows_memory_and_float32():
    done = octosim(*ASKED, "4")
    assert done.returncode == 0 and "memory: " in done.stdout and "INT8 is" in done.stdout, done.stderr


@pytest.mark.parametrize("more, message", [
    (("1,x",), "--batch-size takes whole numbers"), (("1,0",), "--batch-size must be at least 1, not 0"),
    (("1", "--plot", "x.png"), "--plot goes with --compare"),
    (("1,2", "--plot", "nowhere/x.png"), "--plot: there is no folder nowhere to write in"),
    (("1", "--roofline", "x.what"), "--roofline x.what: the name must end in .png or .svg")])
def test_command_refuses(more, message):
    done = octosim(*ASKED, *more)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_roofs():
    pi = hardware.load("pi4")
    assert plots.roofs(pi)["float32"] == (pytest.approx(24e9), pytest.approx(0.6 * 12.8e9))
    assert plots.roofs(pi, 1)["int8"] == (pytest.approx(12e9), pytest.approx(5e9))


def test_a_device_without_float32():
    done = octosim("cost", "--profile", "edge-tpu", "--model", "lenet5", "--inference", "--compare", "pi4", "--json")
    tpu, pi = json.loads(done.stdout)["devices"]
    assert tpu["gain"] is None and tpu["float32"]["time_s"] is None and "no engine computes in float32" in tpu["reason"]
    assert pi["gain"] > 0


def test_a_picture_has_every_type_and_opens_what_is_hypothetical(tmp_path: Path):
    picture = tmp_path / "types.svg"
    done = octosim(*ASKED, "1,8", "--profile", "jetson", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    drawn = picture.read_text()
    assert all(f">{dtype}<" in drawn for dtype in ("int8", "float16", "float32")) and "open: hypothetical" in drawn


@pytest.mark.parametrize("inference", [False, True])
def test_price_and_memory_of_a_runtime_are_of_one_plan(inference, monkeypatch):
    """Also the largest batch; what octosim fuses alone (poolings into the normalization before) is in no other software."""
    made = source(CostQuery("lenet5", None, "float32", inference, None, False))
    plans = []

    def watched(network, batch, optimizer=None, training=True, poolings=True, real=plan.plan_like):
        plans.append((batch, poolings))
        return real(network, batch, optimizer, training, poolings)

    monkeypatch.setattr(plan, "plan_like", watched)
    jetson, torch = hardware.load("jetson"), hardware.load_runtime("pytorch")
    ops = made.ops(jetson, 8, torch)
    made.memory(jetson, 8, torch)
    assert plans == [(8, False)]
    assert sum(op.name == "maxpool" for op in ops if op.pass_ == "forward") == 2
    made.largest(jetson, 1e8, torch)
    assert {poolings for _, poolings in plans} == {False}


def test_memory_of_other_software():
    """Frameworks keep all gradients until the optimizer's step; int8 inference holds a byte for each weight and value."""
    training, inference, floats = (source(CostQuery("vgg11", None, dtype, infer, "32x32x3", False))
                                   for dtype, infer in (("float32", False), ("int8", True), ("float32", True)))  # fmt: skip
    pi, lite = hardware.load("pi4"), hardware.load_runtime("tflite")
    theirs, ours = (training.memory(pi, 4, hardware.load_runtime(name)) for name in ("pytorch", "octosim"))
    assert theirs["gradients"] == theirs["optimizer"] > ours["gradients"]
    assert theirs["peak"] == sum(value for name, value in theirs.items() if name != "peak")
    codes, wide = (made.memory(pi, 4, lite) for made in (inference, floats))
    assert codes["weights"] == pytest.approx(wide["weights"] / 4, rel=0.01)
    assert codes["peak"] == pytest.approx(wide["peak"] / 4, rel=0.01)
