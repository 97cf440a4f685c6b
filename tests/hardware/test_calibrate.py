"""Calibration: the fit finds what made the times, tables are read or refused, and the targets of docs/validation.md hold."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kit.cli import octosim

from octosim import cost, hardware
from octosim.cost import fit, pool
from octosim.errors import OctosimError
from octosim.hardware import efficiency
from octosim.textfile import Row
from octosim.trace import Op, with_winograd

ROOT = Path(__file__).resolve().parents[2]
LAYERS = """network,layer,type,in_c,in_h,in_w,out_c,out_h,out_w,kh,kw,sh,sw,groups,macs,weight_count,bias,int8_scale_term,fused_activation
tiny,c1,Convolution,3,32,32,32,32,32,3,3,1,1,1,884736,864,1,102,1
tiny,dw,ConvolutionDepthWise,32,32,32,32,16,16,3,3,2,2,32,73728,288,1,101,1
tiny,c2,Convolution,32,16,16,64,16,16,3,3,1,1,1,4718592,18432,1,2,0
tiny,p1,Pooling,64,16,16,64,1,1,0,0,1,1,64,0,0,0,0,0
tiny,fc,InnerProduct,64,1,1,10,1,1,1,1,1,1,1,640,640,1,0,0
"""  # noqa: E501
SUMMARY = "network,activation_elements_sum\ntiny,200000\n"


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "layers.csv").write_text(LAYERS)
    (tmp_path / "summary.csv").write_text(SUMMARY)
    return tmp_path


def random_network(rng):
    """Operations of many kinds and sizes."""
    ops = []
    for i in range(rng.integers(10, 30)):
        side, c, n = int(rng.choice([7, 14, 28, 56])), int(rng.choice([16, 64, 256])), int(rng.choice([16, 64, 256]))
        kernel, groups = ((3, c) if rng.random() < 0.3 else (int(rng.choice([1, 3, 5])), 1))
        k, filters = c // groups * kernel * kernel, c if groups > 1 else n
        m, weights = side * side, 4 * filters * k
        op = Op(f"conv{i}", "forward", "gemm", "conv", (m, k, filters // groups), "float32", 4 * m * c + weights,
                4 * m * filters, groups=groups, kernel=(kernel, kernel), weights=weights)
        ops.append(with_winograd(op))
        ops.append(Op(f"add{i}", "forward", "elementwise", "add", (m * filters,), "float32", 8 * m * filters, 4 * m * filters))
    return ops


def samples(truth, count=30, noise=0.0, offset=0.0, campaign="a", seed=0):
    rng, device, found = np.random.default_rng(seed), hardware.load("pi4"), []
    for i in range(count):
        ops = random_network(rng)
        for threads in (1, 4):
            prepared = cost.prepare(ops, device, threads)
            time = cost.times(prepared, np.tile(truth, (len(ops), 1)))[0].sum()
            found.append(fit.Sample(f"n{i}", campaign, prepared, time * np.exp(offset + noise * rng.standard_normal())))
    return found


@pytest.fixture
def truth():
    f = efficiency.shipped()["pool"]["float32"]
    return cost.vector(f.model_copy(update={"conv3x3": 0.3, "depthwise": 0.1, "pointwise": 0.9, "overhead_us": 12.0}))


def test_the_fit_predicts_networks_it_has_not_seen(truth):
    fitted = fit.fit(samples(truth, noise=0.05), "float32", prior=cost.vector(efficiency.shipped()["pool"]["float32"]))
    fresh = samples(truth, seed=1)
    error = fit.log_times(fresh, fitted.factors) - np.log([s.time_s for s in fresh])
    assert fit.median_error(error) < 0.06


def test_one_wild_measurement_does_not_move_the_fit(truth):
    some = samples(truth, noise=0.02)
    wild = [fit.Sample(s.network, s.campaign, s.ops, s.time_s * (8 if i < 2 else 1)) for i, s in enumerate(some)]
    prior = cost.vector(efficiency.shipped()["pool"]["float32"])
    fresh = samples(truth, seed=1)
    one, two = (fit.log_times(fresh, fit.fit(x, "float32", prior=prior).factors) for x in (some, wild))
    assert np.abs(one - two).max() < 0.1


def test_a_campaign_that_is_slow_as_a_whole_is_an_offset(truth):
    some = samples(truth, 15) + samples(truth, 15, campaign="b", offset=0.4, seed=2)
    fitted = fit.fit(some, "float32", campaigns=True)
    assert fitted.campaigns["b"] - fitted.campaigns["a"] == pytest.approx(0.4, abs=0.1)


def test_leave_one_out_leaves_every_thread_count_of_a_network_out(truth):
    some = samples(truth, 6)
    prior = cost.vector(efficiency.shipped()["pool"]["float32"])
    found = fit.leave_one_out(some, "float32", {}, prior)
    assert found.shape == (12,) and np.isfinite(found).all()
    alone = fit.leave_one_out(some[:2], "float32", {}, prior)  # no other network: the prior
    assert alone == pytest.approx(fit.log_times(some[:2], {"float32": prior}))


def test_nothing_to_fit():
    with pytest.raises(OctosimError, match="no measurements"):
        fit.fit([], "float32")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_layers(tables):
    stack, other = fit.networks(tables / "layers.csv", tables / "summary.csv")["tiny"]
    assert other == 200_000 - 3 * 1024 - (32 * 1024 + 32 * 256 + 64 * 256 + 64 + 10)
    ops = fit.layer_ops(stack, other, "float32", False)
    named = {op.layer: op for op in ops}
    assert [cost.kind_of(named[n]) for n in ("c1", "dw", "c2", "p1", "fc")] == [
        "conv", "depthwise", "conv3x3", "elementwise", "linear"]  # fmt: skip
    assert sum(op.macs for op in ops) == 884736 + 73728 + 4718592 + 640
    assert named["dw"].shape == (256, 9, 1) and named["dw"].groups == 32 and named["dw"].weights == 4 * 288
    assert sum(op.elements for op in ops if op.name == "other") == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("line, change, message", [
    (2, ("in_c", 0), "in_c is 0, expected a size above zero for Convolution"), (2, ("out_c", 0), "out_c is 0"),
    (2, ("kh", 0), "kh is 0"), (2, ("out_w", 0), "out_w is 0"), (4, ("weight_count", 0), "weight_count is 0"),
    (4, ("groups", 7), "groups is 7, which does not divide the channels, 32 in and 64 out"),
    (3, ("groups", 64), "groups is 64, which does not divide the channels, 32 in and 32 out"),
    (5, ("out_h", 0), "out_h is 0, expected a size above zero for Pooling"),
    (6, ("weight_count", 0), "weight_count is 0, expected a size above zero for InnerProduct"),
    (6, ("weight_count", 9), "weight_count is 9, expected at least the 10 of out_c"), (6, ("macs", 0), "macs is 0"),
    (6, ("type", "ReLU"), "type is 'ReLU', expected one of Convolution, "), (6, ("type", "Gemm"), "type is 'Gemm'"),
    (6, ("type", ""), "type is ''"), (2, ("in_c", "x"), "in_c is 'x', expected a whole number")])
def test_layers_that_are_none(tables, line, change, message):
    lines = (tables / "layers.csv").read_text().splitlines()
    cells = dict(zip(lines[0].split(","), lines[line - 1].split(","), strict=True)) | {change[0]: str(change[1])}
    lines[line - 1] = ",".join(cells.values())
    (tables / "layers.csv").write_text("\n".join(lines))
    with pytest.raises(OctosimError, match=re.escape(f"layers.csv, line {line}: {message}")):
        fit.networks(tables / "layers.csv")


def test_layers_in_int8(tables):
    stack, _ = fit.networks(tables / "layers.csv")["tiny"]
    ops = fit.layer_ops(stack, 0, "float16", True)
    names = [(op.layer, op.name) for op in ops if op.kind == "elementwise"]
    # codes go from c1 to dw to c2; c2's output is float again
    assert names == [("c1", "quantize"), ("c1", "requantize"), ("dw", "requantize"), ("c2", "requantize"), ("p1", "pool"),
                     ("fc", "quantize"), ("fc", "requantize")]  # fmt: skip
    assert {op.dtype for op in ops if op.kind == "gemm"} == {"int8"}
    assert next(op for op in ops if op.layer == "c2" and op.name == "requantize").writes == 2 * 64 * 256


def test_attention():
    ops = fit.attention_ops("a", 145, 768, 12, "float32")
    assert sum(op.macs for op in ops) == 4 * 145 * 768**2 + 2 * 145 * 145 * 768
    assert sum(op.weights for op in ops) == 4 * 4 * 768**2


def test_measurements(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("network,precision,threads,value,unit,metric,backend\na,fp32,1,2,ms,latency_min,ncnn-cpu\n"
                    "a,fp32,1,9,ms,latency_max,ncnn-cpu\na,fp32,1,1,ms,latency_min,ncnn-vulkan-gpu0\nb,int8,4,0.5,s,latency_min,ncnn-cpu\n")
    found = fit.measurements(path)
    assert [(m.network, m.threads, m.time_s, m.is_int8) for m in found] == [("a", 1, 0.002, False), ("b", 4, 0.5, True)]


@pytest.mark.parametrize("precision, type_", [
    ("int8", "int8"), ("INT8", "int8"), ("int8-default", "int8"), ("fp16", "float16"), ("FP16", "float16"),
    ("fp16-default(asimdhp)", "float16"), ("float16", "float16"), ("fp32", "float32"), ("Float32", "float32")])
def test_precisions(tmp_path, precision, type_):
    """In any case, with what a program says beside it."""
    (tmp_path / "m.csv").write_text(f"network,precision,threads,value\na,{precision},1,2\n")
    (row,) = fit.measurements(tmp_path / "m.csv")
    assert row.type == type_ and row.is_int8 == (type_ == "int8") and row.precision == precision
    net = tmp_path / "layers.csv"
    net.write_text(LAYERS)
    ncnn = hardware.load_runtime("ncnn")
    path = fit.operations(replace(row, network="tiny"), hardware.load("pi5"), fit.networks(net), "sdot", ncnn)[1]
    assert path == {"int8": "sdot"}.get(type_, type_)


@pytest.mark.parametrize("row", ["a,fp32,1,2,,", "a,fp32,1,2,LATENCY_MIN,CPU", "a,fp32,1,2,,ncnn-CPU"])
def test_blank_metrics_and_backends_are_the_common_ones(tmp_path, row):
    (tmp_path / "m.csv").write_text(f"network,precision,threads,value,metric,backend\n{row}\na,fp32,1,3,latency_avg,\n")
    assert [m.time_s for m in fit.measurements(tmp_path / "m.csv")] == [0.002]


@pytest.mark.parametrize("column", ["units", "Unit", "UNIT", "unit(s)", "Backend", "metrics", "batches", "Device", "run-time"])
def test_columns_that_are_nearly_known_are_refused(tmp_path, column):
    (tmp_path / "m.csv").write_text(f"network,precision,threads,value,{column}\na,fp32,1,2,s\n")
    with pytest.raises(OctosimError, match=rf"m.csv: column {re.escape(column)}, did you mean [a-z]+\?"):
        fit.measurements(tmp_path / "m.csv")


def test_other_columns_are_not_read(tmp_path):
    (tmp_path / "m.csv").write_text("network,precision,threads,value,Note,unit,Units,devices tried\na,fp32,1,2,x,s,h,3\n")
    assert fit.measurements(tmp_path / "m.csv")[0].time_s == 2


@pytest.mark.parametrize("text, message", [
    *((f"network,precision,threads,value\na,fp32,1,2\na,{precision},1,2\n",
       f"m.csv, line 3: precision is '{precision}', expected int8, fp16 or fp32")
      for precision in ("int16", "", "quantized", "fp64", "int81", "w8a8", "uint8", "bf16")),
    *((f"network,precision,threads,value,metric,backend\na,fp32,1,2,{rest}\n", "m.csv: every row is left out")
      for rest in ("latency_avg,cpu", "latency_min,vulkan", "throughput,")),
    ("", "expected a CSV with the columns"), ("network,value\na,1\n", "expected a CSV with the columns"),
    ("network,precision,threads,value\na,fp32,1,x\n", "line 2: value is 'x', expected a time above zero"),
    ("network,precision,threads,value,unit\na,fp32,1,1,h\n", "unit is 'h', expected s, ms or us"),
    ("network,precision,threads,value\na,fp32,1,-1\n", "above zero"),
    ("network,precision,threads,value\na,fp32,1,nan\n", "above zero")])
def test_measurements_that_are_none(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(OctosimError, match=message):
        fit.measurements(tmp_path / "m.csv")


def test_files_that_are_none(tmp_path):
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip")
    (tmp_path / "l.csv").write_text("network,layer\na,b\n")
    for path, read in (("x.csv", fit.measurements), ("b.csv.gz", fit.measurements), ("l.csv", fit.networks)):
        with pytest.raises(OctosimError, match="cannot be read|no such CSV file|no column"):
            read(tmp_path / path)


# --- a device's own calibration ---------------------------------------------------------------------------------------


def write_measurements(tables, factor):
    """Times of the tiny network on a Pi 4 that is slower than the model by a factor."""
    stack, other = fit.networks(tables / "layers.csv", tables / "summary.csv")["tiny"]
    lines = ["network,precision,threads,value,unit,device"]
    for precision in ("fp32", "int8"):
        for threads in (1, 2, 4):
            ops = fit.layer_ops(stack, other, "float32", precision == "int8")
            time = sum(c.time_s for c in cost.predict(ops, hardware.load("pi4"), threads)) * factor
            lines.append(f"tiny,{precision},{threads},{1000 * time},ms,board")
    (tables / "m.csv").write_text("\n".join(lines) + "\n")


def test_calibrate_command(tables):
    write_measurements(tables, 1.4)
    arguments = ("profiles", "calibrate", "--from", "m.csv", "--profile", "pi4", "--layers", "layers.csv",
                 "--summary", "summary.csv")
    done = octosim(*arguments, "-o", "mine.toml", folder=tables)
    assert done.returncode == 0, done.stderr
    assert "float32: 3 measurements; median error" in done.stderr and "smlal" in done.stderr
    mine = hardware.load(tables / "mine.toml")
    assert set(mine.calibration) == {"float32", "smlal"} and mine.name == "raspberry-pi-4"
    stack, other = fit.networks(tables / "layers.csv", tables / "summary.csv")["tiny"]
    ops = fit.layer_ops(stack, other, "float32", False)
    before, after = (sum(c.time_s for c in cost.predict(ops, d)) for d in (hardware.load("pi4"), mine))
    assert after / before == pytest.approx(1.4, rel=0.1)
    printed = octosim(*arguments, folder=tables)
    assert "[calibration.float32]" in printed.stdout and "source = " in printed.stdout
    found = json.loads(octosim(*arguments, "--json", folder=tables).stdout)
    assert found["float32"]["report"]["fitted"] < found["float32"]["report"]["uncalibrated"]
    assert found["float32"]["report"]["worse"] is False and "predict worse" not in printed.stderr


def as_dotted_keys(text):
    """The same profile with its factors before every table."""
    import tomllib

    import tomli_w

    data = tomllib.loads(text)
    factors = data.pop("calibration")
    lines = [f"calibration.{path}.{key} = {value!r}" for path, row in factors.items() for key, value in row.items()]
    return "\n".join([*lines, tomli_w.dumps(data)])


@pytest.mark.parametrize("form", [str, as_dotted_keys, lambda text: text.replace("[calibration.", "[ calibration . ")],
                         ids=["tables", "dotted keys", "blanks"])  # fmt: skip
def test_a_calibrated_profile_is_calibrated_again(tables, form):
    """Into the file itself: what is fitted again is replaced, other arithmetics and comments stay."""
    arguments = ("profiles", "calibrate", "--from", "m.csv", "--profile", "./mine.toml", "--layers", "layers.csv",
                 "-o", "mine.toml")  # fmt: skip
    write_measurements(tables, 1.4)
    assert octosim(*arguments[:5], "pi4", *arguments[6:], folder=tables).returncode == 0
    first = hardware.load(tables / "mine.toml").calibration
    text = (tables / "mine.toml").read_text(encoding="utf-8")
    (tables / "mine.toml").write_text(form(text), encoding="utf-8")
    lines = (tables / "m.csv").read_text().splitlines()
    (tables / "m.csv").write_text("\n".join(line for line in lines if "int8" not in line))
    done = octosim(*arguments, folder=tables)
    assert done.returncode == 0, done.stderr
    again = hardware.load(tables / "mine.toml").calibration
    assert again["smlal"] == first["smlal"] and set(again) == {"float32", "smlal"}
    if form is not as_dotted_keys:
        assert (tables / "mine.toml").read_text(encoding="utf-8").startswith(text.split("[calibration.")[0])


@pytest.mark.parametrize("more", [(), ("--json",), ("-o", "mine.toml")])
def test_factors_that_make_it_worse_are_told(tables, more):
    """Two networks measured of which the model is right on average, one far slower and the other far faster."""
    for name in ("layers.csv", "summary.csv"):
        lines = (tables / name).read_text().splitlines()
        copies = [line.replace("tiny", "twin") for line in lines[1:] if "tiny" in line]
        (tables / name).write_text("\n".join([*lines, *copies]) + "\n")
    rows = []
    for name, factor in (("tiny", 0.5), ("twin", 2.0)):
        write_measurements(tables, factor)
        head, *measured = (tables / "m.csv").read_text().splitlines()
        rows += [line.replace("tiny", name) for line in measured]
    (tables / "m.csv").write_text("\n".join([head, *rows]) + "\n")
    done = octosim("profiles", "calibrate", "--from", "m.csv", "--profile", "pi4", "--layers", "layers.csv",
                   "--summary", "summary.csv", *more, folder=tables)
    assert done.returncode == 0 and "predict worse than those before" in done.stderr, done.stderr
    if "--json" in more:
        assert json.loads(done.stdout)["float32"]["report"]["worse"] is True


@pytest.mark.parametrize("arguments, message", [
    (("--from", "none.csv", "--profile", "pi4"), "none.csv: no such CSV file"),
    (("--from", "m.csv", "--profile", "pi4"), "network 'tiny' is neither in the table of layers nor the path of an .onnx file"),
    (("--from", "m.csv", "--profile", "pi4", "--layers", "layers.csv", "--device", "x"),
     "no measurement of a device that begins"),
    (("--from", "m.csv", "--profile", "pi4", "--layers", "layers.csv", "-o", "x.json"), "x.json: the name must end in .toml"),
    (("--from", "m.csv", "--profile", "pi4", "--layers", "layers.csv", "--runtime", "tensorrt"), "runtime tensorrt runs on"),
    (("--from", "m.csv", "--profile", "jetson", "--layers", "layers.csv"), "is no CPU core with an accumulator smlal or sdot")])
def test_calibrate_command_refuses(tables, arguments, message):
    write_measurements(tables, 1.0)
    done = octosim("profiles", "calibrate", *arguments, folder=tables)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def with_columns(tables, **columns):
    """Adds columns to the measurements; a tuple's values go to the rows in turn."""
    head, *rows = (tables / "m.csv").read_text().splitlines()
    turns = {name: values if isinstance(values, tuple) else (values,) for name, values in columns.items()}
    rows = [",".join([row, *(values[i % len(values)] for values in turns.values())]) for i, row in enumerate(rows)]
    (tables / "m.csv").write_text("\n".join([",".join([head, *columns]), *rows]) + "\n")


CALIBRATE = ("profiles", "calibrate", "--from", "m.csv", "--profile", "pi4", "--layers", "layers.csv")


@pytest.mark.parametrize("columns, message", [
    ({"profile": "pi5"}, "m.csv, line 2: profile is pi5, and what is fitted is raspberry-pi-4"),
    ({"profile": ("", "nosuch")}, "m.csv, line 3: unknown profile 'nosuch'"),
    ({"runtime": ("ncnn", "tflite")}, "m.csv, line 3: runtime is tflite, and what is fitted is ncnn"),
    ({"runtime": "nosuch"}, "m.csv, line 2: unknown runtime 'nosuch'"),
    ({"mode": ("", "", "10W")}, "m.csv, line 4: profile raspberry-pi-4 has no power modes"),
    ({"batch": ("1", "2")}, "m.csv, line 3: network 'tiny': tables of layers are of one image"),
    ({"profile": "pi4", "runtime": "ncnn", "mode": ""}, "")])
def test_what_rows_say_of_themselves_is_not_ignored(tables, columns, message):
    write_measurements(tables, 1.0)
    with_columns(tables, **columns)
    done = octosim(*CALIBRATE, folder=tables)
    assert done.returncode == (2 if message else 0) and message in done.stderr, done.stderr


@pytest.mark.parametrize("devices, more, message", [
    ("one", (), ""), (("one", ""), (), ""), (("one", "two"), ("--device", "two"), ""),
    (("one", "two"), (), "m.csv: measurements of several devices, expected one or --device: 'one', 'two'"),
    (tuple("abcde"), (), "'a', 'b', 'c' and 2 more"),
    ("one", ("--device", "two"), "m.csv: no measurement of a device that begins with 'two'")])
def test_several_devices_are_not_fitted_as_one(tables, devices, more, message):
    write_measurements(tables, 1.0)
    (tables / "m.csv").write_text((tables / "m.csv").read_text().replace(",device", ",from").replace(",board", ",-"))
    with_columns(tables, device=devices)
    done = octosim(*CALIBRATE, *more, folder=tables)
    assert done.returncode == (2 if message else 0) and message in done.stderr, done.stderr


@pytest.mark.parametrize("mode, slow", [("7W", False), ("", True)])
def test_a_rows_power_mode_is_the_one_that_is_fitted(tables, mode, slow):
    """Times made in a mode are met where the rows say so."""
    device, ncnn = hardware.load("jetson-orin-nano-cpu"), hardware.load_runtime("ncnn")
    nets, rows = fit.networks(tables / "layers.csv"), []
    for threads in (1, 2):
        row = fit.Measurement("a", "tiny", "fp32", threads, 1.0, Row(Path("m.csv"), 2, {"mode": mode}), mode=mode)
        ops, _ = fit.operations(row, device, nets, "sdot", ncnn)
        time = sum(c.time_s for c in cost.predict(ops, hardware.at_mode(device, "7W"), threads, ncnn))
        rows.append(replace(row, time_s=time))
    off = fit.calibrate(device, rows, nets, "made").report["float32"]["uncalibrated"]
    assert off > 0.1 if slow else off < 1e-9


@pytest.mark.parametrize("command", ["calibrate", "validate"])
@pytest.mark.parametrize("text, columns", [
    ("network;precision;threads;value\na;fp32;1;2,5\n", "network, precision, threads, value"),
    ("network\tbatch\ttrain_ms\na\t1\t2\n", "batch, network, train_ms"), ("a,b\n1,2\n", "network, precision, threads, value"),
    ("", "network, precision, threads, value")])
def test_a_file_that_is_no_table_is_told_all_columns(tables, command, text, columns):
    (tables / "m.csv").write_text(text)
    done = octosim("profiles", command, *CALIBRATE[2:], folder=tables)
    assert done.returncode == 2 and f"expected a CSV with the columns {columns}" in done.stderr, done.stderr
    assert ("separated by semicolons or tabs" in done.stderr) == (";" in text or "\t" in text)


@pytest.mark.parametrize("command", ["calibrate", "validate"])
@pytest.mark.parametrize("head, message", [
    ("network,precision,threads,value", "m.csv: no measurement"), ("network,batch,train_ms", "m.csv: no training step")])
def test_a_table_of_no_rows(tables, command, head, message):
    (tables / "m.csv").write_text(f"{head}\n")
    done = octosim("profiles", command, "--from", "m.csv", "--profile", "pi4", folder=tables)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("row, message", [
    (("tiny", "fp32", "pi4", "10W", ""), "m.csv, line 2: profile raspberry-pi-4 has no power modes"),
    (("tiny", "fp32", "nosuch", "", ""), "m.csv, line 2: unknown profile 'nosuch'"),
    (("tiny", "fp32", "pi4", "", "tensorrt"), "m.csv, line 2: runtime tensorrt runs on"),
    (("other", "fp32", "pi4", "", ""), "m.csv, line 2: network 'other' is neither in"),
    (("no.onnx", "fp32", "pi4", "", ""), "m.csv, line 2: no.onnx"),
    (("tiny", "fp32", "", "", ""), "m.csv, line 2: tiny has no profile, and --profile does not say")])
def test_errors_of_rows_name_their_line(tables, row, message):
    from octosim.cost import validate

    if row[0] == "no.onnx":
        pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    (tables / "m.csv").write_text(f"network,precision,profile,mode,runtime,threads,value\n{','.join(row)},1,1\n")
    with pytest.raises(OctosimError, match=re.escape(message)):
        validate.inference(tables / "m.csv", None, tables / "layers.csv", None, "", None)


@pytest.mark.parametrize("speed", [1.0, 1.05, 1.5, 4.0])
def test_one_scale_of_all_times_keeps_shares_of_a_peak(tables, speed):
    """Of times that a core cannot reach, too; the report says how far the factors that are returned are off."""
    text = (tables / "layers.csv").read_text().splitlines()
    (tables / "layers.csv").write_text("\n".join([*text, *(line.replace("tiny", "twin") for line in text[1:])]))
    device, ncnn, nets = hardware.load("pi4"), hardware.load_runtime("ncnn"), fit.networks(tables / "layers.csv")
    rows = []
    for network in ("tiny", "twin"):
        row = fit.Measurement("a", network, "fp32", 1, 1.0, Row(Path("m.csv"), 2, {}))
        ops, _ = fit.operations(row, device, nets, "smlal", ncnn)
        rows.append(replace(row, time_s=sum(c.time_s for c in cost.predict(ops, device, 1, ncnn)) / speed))
    found = fit.calibrate(device, rows, nets, "made")
    factors, report = found.factors["float32"], found.report["float32"]
    assert all(getattr(factors, kind) <= 1 for kind in (*cost.KINDS[:-1], "exposed"))
    own = device.model_copy(update={"calibration": found.factors})
    off = [sum(c.time_s for c in cost.predict(fit.operations(row, own, nets, "smlal", ncnn)[0], own, 1, ncnn)) / row.time_s - 1
           for row in rows]  # fmt: skip
    assert np.median(np.abs(off)) == pytest.approx(report["fitted"], abs=0.02)
    assert report["left_out"] <= report["one_scale"] + 1e-9


def test_rows_name_their_own_device_mode_runtime_and_batch(tmp_path, monkeypatch):
    """Each row as `octosim cost` prices it, with its interval; what a row leaves out the command's options say."""
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    from kit.onnx_nets import NETS, build

    from octosim.cost import validate

    net, shape = NETS["residual"]
    onnx.save(build(net, 17, shape), tmp_path / "net.onnx")
    (tmp_path / "m.csv").write_text(
        "network,precision,threads,value,unit,profile,mode,runtime,batch\n"
        "net.onnx,fp16,,1,ms,jetson-orin-nano,,trt,1\nnet.onnx,fp16,,1,ms,jetson-orin-nano,7W,trt,1\n"
        "net.onnx,fp16,,1,ms,jetson-orin-nano,,trt,4096\nnet.onnx,fp32,2,1,ms,pi4,,ncnn,\nnet.onnx,fp32,2,1,ms,,,,\n")
    done = octosim("profiles", "validate", "--from", "m.csv", "--profile", "pi5", "--runtime", "onnxruntime", "--json",
                   folder=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [r["profile"] for r in rows] == [*["jetson-orin-nano"] * 3, "raspberry-pi-4", "raspberry-pi-5"]
    assert [r["runtime"] for r in rows] == [*["tensorrt"] * 3, "ncnn", "onnxruntime"]
    times = [r["predicted"] for r in rows]
    assert times[1] >= times[0] and times[2] > 2 * times[0]
    for r in rows:
        assert r["low"] < r["predicted"] < r["high"] and r["inside"] == (r["low"] <= 1e-3 <= r["high"])
    priced = octosim("cost", "--profile", "pi4", "--model", "net.onnx", "--inference", "--dtype", "float32", "--threads", "2",
                     "--runtime", "ncnn", "--json", folder=tmp_path)  # fmt: skip
    total = json.loads(priced.stdout)["total"]
    assert [total["time_s"], total["time_low_s"], total["time_high_s"]] == [rows[3][k] for k in ("predicted", "low", "high")]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OctosimError, match="line 6: net.onnx has no profile, and --profile does not say the device either"):
        validate.inference(tmp_path / "m.csv", None, None, None, "", None)


@pytest.mark.parametrize("arguments, message", [
    (("--factors", "f.toml"), "--factors goes with --pool"), (("--pool", ".", "--profile", "pi4"), "goes with"),
    (("--pool", "nowhere"), "no such CSV file")])
def test_pool_refuses(tmp_path, arguments, message):
    done = octosim("profiles", "validate", *arguments, folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("columns, row, message", [
    ("", "", "no column powersave: expected a CSV with the columns"),
    (",powersave", ",", "line 2: powersave is '', expected benchncnn's 0, 1 or 2"),
    (",powersave", ",x", "line 2: powersave is 'x', expected"), (",powersave", ",3", "line 2: powersave is '3', expected"),
    (",powersave", ",0", "no measurement of a device that is known (octosim/cost/ncnn_devices.toml)")])
def test_tables_that_are_no_pool(tables, columns, row, message):
    (tables / "layers.csv").rename(tables / pool.LAYERS)
    (tables / "summary.csv").rename(tables / pool.SUMMARY)
    with gzip.open(tables / pool.BENCHMARK, "wt") as file:
        file.write(f"device,network,precision,threads,value{columns}\nnone of these,tiny,fp32,1,2{row}\n")
    with pytest.raises(OctosimError, match=re.escape(message)):
        pool.campaigns(tables)


# --- against published measurements -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validation():
    """The figures of docs/validation.md, from the tables in OCTOSIM_MEASURED or beside OCTOSIM_DATA."""
    given = os.environ.get("OCTOSIM_MEASURED")
    data = os.environ.get("OCTOSIM_DATA")
    folder = Path(given) if given else Path(data).parent / "measured" if data else ROOT.parent / "shared" / "measured"
    if not (folder / "ncnn_benchmark.csv.gz").is_file():
        pytest.skip(f"no ncnn_benchmark.csv.gz in {folder} (OCTOSIM_MEASURED, or measured beside OCTOSIM_DATA)")
    return pool.evaluate(pool.Pool(pool.campaigns(folder)), pool.KEY_CHIPS)


def of_chip(found, chip, key, int8):
    ratios = [r[key] for r in found["predictions"]
              if r["chip"] == chip and r["role"] == "pool" and "Zero" not in r["name"] and "A55" not in r["name"]
              and (r["path"] in ("smlal", "sdot")) == int8]
    return fit.median_error(np.array(ratios))


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("chip", ["BCM2837", "BCM2711", "BCM2712", "RK3588"])
def test_targets(validation, chip, int8):
    """15 % with a network left out of the fit, 40 % with the chip left out: medians over networks and threads."""
    assert of_chip(validation, chip, "calibrated", int8) <= 0.15
    assert of_chip(validation, chip, "uncalibrated", int8) <= 0.40


@pytest.mark.slow
def test_ranks(validation):
    ranks = [r["uncalibrated"]["rank"] for r in validation["campaigns"] if r["role"] == "pool" and r["networks"] > 20]
    assert np.median(ranks) >= 0.95 and min(ranks) > 0.9


PLAIN = ("resnet18", "resnet50", "vgg16", "yolov4-tiny", "squeezenet")
"""Networks of 1x1 and 3x3 convolutions that are not depthwise."""


@pytest.mark.slow
def test_plain_convolutions_rank_no_worse_than_by_a_roofline(validation):
    """Uncalibrated, over the float campaigns of the key devices; the error is smaller as well."""
    by_campaign = {}
    for r in validation["predictions"]:
        if r["network"] in PLAIN and r["path"] in ("float32", "float16"):
            by_campaign.setdefault((r["name"], r["path"], r["threads"]), []).append(r)
    ranks, errors = {}, {}
    for key in ("roofline", "uncalibrated"):
        found = [pool.scores(np.array([np.log(r["measured_s"]) + r[key] for r in some]),
                             np.log([r["measured_s"] for r in some])) for some in by_campaign.values()]  # fmt: skip
        ranks[key], errors[key] = (np.mean([f[name] for f in found]) for name in ("rank", "median"))
    assert len(by_campaign) > 8
    assert ranks["uncalibrated"] >= ranks["roofline"] and errors["uncalibrated"] < errors["roofline"]


@pytest.mark.slow
def test_better_than_a_roofline(validation):
    rows = [r for r in validation["campaigns"] if r["role"] == "pool"]
    assert np.mean([r["uncalibrated"]["median"] for r in rows]) < 0.6 * np.mean([r["roofline"]["median"] for r in rows])
