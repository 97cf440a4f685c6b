"""Calibration prices what `octosim cost` prices: times that the model made give its factors back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kit.cli import octosim

from octosim import cost, hardware
from octosim.cost import fit, fit_training, reference
from octosim.errors import OctosimError
from octosim.hardware import load_runtime
from octosim.textfile import Row


def shifted(device, path, **factors):
    """The device with known factors of its own in one arithmetic."""
    known = cost.factors_of(device, device.engines[0], "int8" if path in ("sdot", "smlal") else path)
    changed = {name: getattr(known, name) * value for name, value in factors.items()}
    return device.model_copy(update={"calibration": {path: known.model_copy(update=changed)}})


@pytest.mark.parametrize("name, path, dtype, threads", [
    ("pi5", "float16", "float16", 1), ("pi5", "sdot", "int8", 2), ("pi4", "float32", "float32", 4)])
def test_the_fit_returns_the_factors_that_made_the_times(name, path, dtype, threads):
    device = hardware.load(name)
    truth = shifted(device, path, conv=0.8, pointwise=0.7, bandwidth=0.8)
    samples = []
    for network, build in reference.NETWORKS.items():
        for batch in (1, 2):
            ops = build(batch, dtype)
            seconds = sum(c.time_s for c in cost.predict(ops, truth, threads))
            samples.append(fit.Sample(f"{network}{batch}", "made", cost.prepare(ops, device, threads), seconds))
    prior = cost.vector(cost.factors_of(device, device.engines[0], "int8" if path == "sdot" else path))
    found = fit.fit(samples, path, None, prior).factors
    error = fit.log_times(samples, found) - np.log([s.time_s for s in samples])
    assert np.abs(error).max() < 0.03
    expected = cost.vector(truth.calibration[path])
    conv, pointwise = (cost.PARAMETERS.index(kind) for kind in ("conv", "pointwise"))
    assert found[path][[conv, pointwise]] == pytest.approx(expected[[conv, pointwise]], rel=0.15)  # the prior pulls a little


def small_onnx(path):
    """Three convolutions of a 16 x 16 image, any batch."""
    onnx = pytest.importorskip("onnx")
    weights = [("w1", (16, 3, 3, 3)), ("w2", (32, 16, 3, 3)), ("w3", (8, 32, 1, 1))]
    chain = [("x", "w1", "a", 1), ("r", "w2", "b", 1), ("b", "w3", "y", 0)]
    nodes = [onnx.helper.make_node("Conv", [x, w], [y], pads=[p] * 4) for x, w, y, p in chain]
    nodes.insert(1, onnx.helper.make_node("Relu", ["a"], ["r"]))
    io = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in
          (("x", ("N", 3, 16, 16)), ("y", ("N", 8, 16, 16)))]
    initializers = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights]
    graph = onnx.helper.make_graph(nodes, "small", io[:1], io[1:], initializers)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("runtime", ["ncnn", "tflite"])
@pytest.mark.parametrize("precision", ["int8", "fp32", "fp16"])
def test_calibration_and_prediction_have_one_plan(tmp_path, runtime, precision):
    """With the factors of the profile itself every measured time is met: an ONNX file, a core with float16."""
    from octosim.workload import CostQuery, source

    path = small_onnx(tmp_path / "small.onnx")
    device, software = hardware.load("pi5"), load_runtime(runtime)
    row = fit.Measurement("pi5", str(path), precision, 2, 1.0, Row(path, 2, {}))
    planned, _ = fit.operations(row, device, {}, "sdot", software)
    dtype = {"int8": "int8", "fp32": "float32", "fp16": "float16"}[precision]
    asked = source(CostQuery(str(path), None, dtype, True, None, False, runtime=runtime))
    assert planned == asked.ops(device, 1, software)


@pytest.mark.parametrize("runtime", ["ncnn", "tflite", "pytorch"])
@pytest.mark.parametrize("precision, slow", [("fp32", 1.0), ("fp32", 1.7), ("int8", 1.7)])
def test_a_calibration_starts_from_what_is_priced(tmp_path, runtime, precision, slow):
    """The runtime's kernels and scale are in the factors, since a calibrated profile is priced without them."""
    path = small_onnx(tmp_path / "small.onnx")
    device, software = hardware.load("pi4"), load_runtime(runtime)
    row = fit.Measurement("pi4", str(path), precision, 2, 1.0, Row(path, 2, {}))
    ops, _ = fit.operations(row, device, {}, "smlal", software)
    seconds = cost.total(cost.predict(ops, device, 2, software), device)["time_s"]
    made = fit.calibrate(device, [replace(row, time_s=slow * seconds)], {}, "made", software)
    (report,) = made.report.values()
    assert report["uncalibrated"] == pytest.approx(1 - 1 / slow, abs=1e-6)
    own = device.model_copy(update={"calibration": made.factors})
    again = cost.total(cost.predict(ops, own, 2, software), own)["time_s"]
    assert again == pytest.approx(seconds, rel=1e-3) if slow == 1 else again > 1.2 * seconds


def test_factors_of_a_calibration_are_not_overridden_by_a_runtime():
    device, tflite = hardware.load("pi4"), load_runtime("tflite")
    own = shifted(device, "float32", conv=0.5)
    ops = reference.NETWORKS["resnet50"](1, "float32")
    prepared = cost.prepare(ops, own, 1, tflite)
    assert (prepared.parameters == cost.vector(own.calibration["float32"])).all()


LAYERS = [{"name": "conv1", "kind": "conv", "in_channels": 3, "out_channels": 32, "kernel": 3, "stride": 2, "in_size": 64,
           "out_size": 32, "weights": 896},
          {"name": "dw", "kind": "depthwise", "in_channels": 32, "out_channels": 32, "kernel": 3, "stride": 1, "in_size": 32,
           "out_size": 32, "weights": 320},
          {"name": "pw", "kind": "conv", "in_channels": 32, "out_channels": 256, "kernel": 1, "stride": 1, "in_size": 32,
           "out_size": 32, "weights": 8448},
          {"name": "fc", "kind": "linear", "in_channels": 256, "out_channels": 1000, "kernel": 1, "stride": 1, "in_size": 1,
           "out_size": 1, "weights": 257000}]  # fmt: skip


def test_a_training_fit_meets_times_of_known_parameters(monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.setattr(fit_training, "NOISE", 0.02)  # these times have none: the prior counts for little
    device, mnn = hardware.load("snapdragon-855"), load_runtime("mnn")
    true = {"forward": 0.8, "depthwise": 0.2, "passes": 3.0, "interleaved": 0.1, "call_us": 80.0, "step_ms": 4.0}
    nets = {"all": LAYERS, "dense": [LAYERS[0], LAYERS[2]], "fc": LAYERS[2:], "dw": LAYERS[:2]}
    steps = [fit_training.Step(name, batch, tuple(fit_training.step_ops(layers, batch)), 1.0, threads=4)
             for name, layers in nets.items() for batch in (1, 4, 16)]
    times = np.exp(fit_training._Problem(steps, device, mnn).log_times(true))
    steps = [replace(step, time_s=float(t)) for step, t in zip(steps, times, strict=True)]
    found = fit_training.fit(steps, device, mnn)
    assert np.exp(fit_training._Problem(steps, device, mnn).log_times(found)) == pytest.approx(times, rel=0.1)
    fitted = fit_training.with_backward(mnn, found, 0.1, "a test's steps")
    from octosim.cost import runtimes

    predicted = [sum(c.time_s for c in cost.predict(runtimes.training_ops(s.ops, fitted, s.batch), device, 4, fitted))
                 for s in steps]  # fmt: skip
    assert np.median(np.abs(np.array(predicted) / times - 1)) < 0.06
    assert predicted == pytest.approx(times, rel=0.3)  # tiny passes divide unevenly among the cores
    assert not fitted.backward.devices and fit_training.with_backward(mnn, found, 0.1, "x", ["pi"]).backward.devices == ("pi",)
    other = fit_training.with_backward(mnn, dict.fromkeys(true, 3.0), 0.1, "other steps, which the fit may not lean to")
    assert fit_training.fit(steps, device, other) == found
    rows = fit_training.leave_out(steps[:9], device, mnn, 1)
    assert len(rows) == 9 and fit_training.spread_of(rows) >= 0.05


def test_a_spread_is_that_of_a_network_that_is_not_among_them():
    """Few networks say little of another one: four give their largest error, twenty nearly the quantile of their own."""
    for count, expected in ((4, 0.4), (5, 0.5), (20, 1.7)):
        rows = [{"network": name, "error": sign * 0.1 * (name + 1)} for name in range(count) for sign in (-1, 1)]
        assert fit_training.spread_of(rows) * cost.INTERVAL == pytest.approx(expected)


def test_the_largest_batch_of_a_file(tmp_path):
    """By the memory of one and two images: none where one does not fit."""
    from octosim.workload import CostQuery, source

    made = source(CostQuery(str(small_onnx(tmp_path / "small.onnx")), None, "float32", False, None, False))
    pi, own = hardware.load("pi4"), load_runtime("octosim")
    one, two = (made.memory(pi, batch, own)["peak"] for batch in (1, 2))
    assert [made.largest(pi, size, own) for size in (0, one / 2, one - 1, one, two - 1, two)] == [0, 0, 0, 1, 1, 2]


def test_layers_of_the_published_steps(tmp_path):
    """octosim's own table hangs together, and is what a table with other sizes is compared with."""
    own = fit_training.networks(fit_training.NETWORKS)
    assert list(own) == ["lenet", "alexnet", "squeezenet", "googlenet", "mobilenet"] and not fit_training.differences(own)
    for layer in (layer for layers in own.values() for layer in layers):
        ci, co, k, groups = layer["in_channels"], layer["out_channels"], layer["kernel"], 1
        if layer["kind"] in fit_training.PRODUCTS:
            groups = ci if layer["kind"] == "depthwise" else 1
            assert layer["weights"] - ci * co // groups * k * k in (0, co), layer  # with biases or without
        size, stride = layer["in_size"], layer["stride"]
        assert layer["out_size"] in (-(-size // stride), (size - k) // stride + 1, 1), layer
    ops = fit_training.step_ops(own["mobilenet"], 2)
    back = {op.name for op in ops if op.pass_ == "dX"}
    assert back == {"conv", "depthwise", "linear", "batchnorm", "relu6", "add", "avgpool"}
    text = fit_training.NETWORKS.read_text()
    table = tmp_path / "layers.csv"
    table.write_text(text.replace("googlenet,conv2,conv,64,192,3,2,56,28", "googlenet,conv2,conv,64,192,3,1,56,56"))
    (told,) = fit_training.differences(fit_training.networks(table))
    assert told.startswith("googlenet: 1 of 80 layers, conv2 first")
    table.write_text(text.replace("lenet,pool1,maxpool", "lenet,pool1,minpool"))
    with pytest.raises(OctosimError, match="kind is 'minpool', expected one of conv, "):
        fit_training.networks(table)


@pytest.mark.parametrize("layer, message", [
    ("conv,0,8,3,1,8,8,10", "in_channels is 0, expected a size above zero for conv"),
    ("conv,3,0,3,1,8,8,10", "out_channels is 0"), ("conv,3,8,0,1,8,8,10", "kernel is 0"),
    ("conv,3,8,3,1,8,0,10", "out_size is 0"), ("conv,3,8,3,1,8,8,0", "weights is 0"),
    ("depthwise,0,8,3,1,8,8,10", "in_channels is 0"),
    ("depthwise,3,8,3,1,8,8,10", "in_channels is 3, which does not divide the 8 out"),
    ("linear,0,8,1,1,1,1,10", "in_channels is 0"), ("relu,3,0,0,0,8,8,0", "out_channels is 0"),
    ("maxpool,3,3,2,2,0,4,0", "in_size is 0")])
def test_layers_of_no_size_are_refused(tmp_path, layer, message):
    head = "network,layer,kind,in_channels,out_channels,kernel,stride,in_size,out_size,weights"
    (tmp_path / "l.csv").write_text(f"{head}\na,c,conv,3,8,3,1,8,8,224\na,x,{layer}\n")
    with pytest.raises(OctosimError, match=f"l.csv, line 3: {message}"):
        fit_training.networks(tmp_path / "l.csv")


@pytest.mark.parametrize("layer", ["linear,4,8,1,0,0,0,40", "relu,3,3,0,0,8,8,0", "depthwise,4,8,3,1,8,8,80"])
def test_sizes_that_a_kind_does_not_have_may_be_zero(tmp_path, layer):
    head = "network,layer,kind,in_channels,out_channels,kernel,stride,in_size,out_size,weights"
    (tmp_path / "l.csv").write_text(f"{head}\na,x,{layer}\n")
    assert all(op.macs or op.elements for op in fit_training.step_ops(fit_training.networks(tmp_path / "l.csv")["a"], 2)[:-1])


def test_training_steps_of_onnx_files_on_several_devices(tmp_path):
    """Rows may name files, devices and steps of the last layer alone; what is read is priced as `octosim cost` prices it."""
    from octosim.workload import CostQuery, source

    path, table = small_onnx(tmp_path / "small.onnx"), tmp_path / "steps.csv"
    rows = [f"{path},{batch},5,{profile},{trains}" for batch in (2, 8) for profile in ("pi4", "") for trains in ("all", "head")]
    table.write_text("\n".join(["network,batch,train_ms,profile,trains", *rows]))
    pi5, torch = hardware.load("pi5"), load_runtime("pytorch")
    steps = fit_training.steps(table, None, pi5, torch)
    assert [s.device.name if s.device else None for s in steps[:4]] == ["raspberry-pi-4", "raspberry-pi-4", None, None]
    made = source(CostQuery(str(path), None, "float32", False, None, False, runtime="pytorch"))
    values = {name: getattr(torch.backward, name).value for name in fit_training.parameters(torch)}
    found = np.exp(fit_training._Problem(steps, pi5, torch).log_times(values))
    for at, (batch, device) in {0: (2, steps[0].device), 2: (2, pi5), 6: (8, pi5)}.items():
        priced = sum(c.time_s for c in cost.predict(made.ops(device, batch, torch), device, None, torch))
        assert found[at] == pytest.approx(priced, rel=0.05)  # tiny passes divide unevenly among the cores
    head = [op for op in steps[1].ops if op.pass_ != "forward"]
    assert {op.layer for op in head if op.kind == "gemm"} == {[op.layer for op in steps[1].ops if op.kind == "gemm"][-1]}
    assert found[1] < 0.7 * found[0]
    for text, message in [("other,2,5,,", "neither the path of an .onnx file nor in the table"),
                          (f"{path},2,5,,some", "trains is 'some', expected all or head")]:
        table.write_text(f"network,batch,train_ms,profile,trains\n{text}")
        with pytest.raises(OctosimError, match=message):
            fit_training.steps(table, None, pi5, torch)


def steps_table(path, columns, *rows):
    """Steps of three networks of octosim's own table, with more columns."""
    lines = [f"{network},1,{ms}{row}" for network, ms in (("lenet", 10), ("alexnet", 500), ("squeezenet", 150)) for row in rows]
    path.write_text("\n".join([f"network,batch,train_ms{columns}", *lines]))
    return path


def test_steps_have_threads_and_power_modes_of_their_own(tmp_path):
    from octosim.cost import validate

    table = steps_table(tmp_path / "t.csv", ",threads", ",1", ",4", ",")
    rows = validate.training(table, None, "pi4", "octosim")
    one, four, every = ([row["predicted"] for row in rows if row["threads"] == n] for n in (1, 4, "all"))
    assert len(one) == 3 and all(a > 1.5 * b and b == c for a, b, c in zip(one, four, every, strict=True))
    assert "threads" not in validate.training(steps_table(table, ",threads", ",4"), None, "pi4", "octosim")[0]
    rows = validate.training(steps_table(table, ",mode", ",7W", ","), None, "jetson-orin-nano-cpu", "octosim")
    assert all(slow["predicted"] > fast["predicted"] for slow, fast in zip(rows[::2], rows[1::2], strict=True))
    device, torch = hardware.load("jetson-orin-nano-cpu"), load_runtime("pytorch")
    steps = fit_training.steps(steps_table(table, ",profile,mode,threads", ",pi5,,2", ",,7W,"), None, device, torch)
    assert [(s.device.name, s.threads) for s in steps[:2]] == [("raspberry-pi-5", 2), (device.name, None)]
    assert steps[1].device == hardware.at_mode(device, "7W")


@pytest.mark.parametrize("only, count", [("", 6), ("Pixel", 3), ("Pix", 3), ("Mi 9", 3)])
def test_steps_of_one_device(tmp_path, only, count):
    table = steps_table(tmp_path / "t.csv", ",device,profile", ",Pixel,pi4", ",Mi 9,pi5")
    assert len(fit_training.steps(table, None, hardware.load("pi4"), load_runtime("pytorch"), only)) == count


@pytest.mark.parametrize("columns, row, only, message", [
    (",runtime", ",tflite", "", "t.csv, line 2: runtime is tflite, and what is fitted is pytorch"),
    (",runtime", ",nosuch", "", "t.csv, line 2: unknown runtime 'nosuch'"),
    (",mode", ",10W", "", "t.csv, line 2: profile raspberry-pi-4 has no power modes"),
    (",profile", ",nosuch", "", "t.csv, line 2: unknown profile 'nosuch'"),
    (",profile", ",coral-edge-tpu", "", "t.csv, line 2: runtime pytorch runs on"),
    (",threads", ",0", "", "t.csv, line 2: threads is '0', expected a number of threads above zero"),
    (",threads", ",many", "", "t.csv, line 2: threads is 'many'"),
    (",Threads", ",1", "", "t.csv: column Threads, did you mean threads"),
    (",device", ",Pixel", "Mi", "t.csv: no training step of a device that begins with 'Mi'")])
def test_what_steps_say_of_themselves_is_not_ignored(tmp_path, columns, row, only, message):
    table = steps_table(tmp_path / "t.csv", columns, row)
    with pytest.raises(OctosimError, match=message):
        fit_training.steps(table, None, hardware.load("pi4"), load_runtime("pytorch"), only)


def test_steps_of_several_devices_are_not_fitted_as_one(tmp_path):
    device, torch, table = hardware.load("pi4"), load_runtime("pytorch"), tmp_path / "t.csv"
    with pytest.raises(OctosimError, match="t.csv: measurements of several devices, expected one or --device: 'a', 'b'"):
        fit_training.steps(steps_table(table, ",device", ",a", ",b"), None, device, torch)
    table.write_text("network,batch,train_ms\nlenet,1,5\nalexnet,1,5\n")
    with pytest.raises(OctosimError, match="t.csv: 2 networks are too few to leave 2 out"):
        fit_training.leave_out(fit_training.steps(table, None, device, torch), device, torch)


@pytest.mark.parametrize("command", ["calibrate", "validate"])
@pytest.mark.parametrize("more, message", [
    (("--summary", "s.csv"), "--summary goes with inferences"), (("--device", "x"), "no training step of a device that begins"),
    (("--runtime", "tensorrt"), "runtime tensorrt runs on")])
def test_options_that_say_nothing_of_steps_are_refused(tmp_path, command, more, message):
    steps_table(tmp_path / "t.csv", ",device", ",a")
    done = octosim("profiles", command, "--from", "t.csv", "--profile", "pi4", *more, folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_steps_beside_octosims_own_say_that_it_is_another_program(tmp_path):
    from octosim.cost import runtimes, validate

    table = tmp_path / "steps.csv"
    table.write_text(f"network,batch,train_ms\n{small_onnx(tmp_path / 'small.onnx')},2,5")
    rows = validate.training(table, None, "pi4", "octosim")
    assert len(rows) == 1 and validate.said(rows)[-1] == runtimes.ANOTHER_PROGRAM
