"""octosim golden: the vectors are the run's numbers, and the C program that comes with them checks every bit."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from kit.cli import octosim

from octosim import core, train
from octosim.engine import nodes, quantizers
from octosim.engine.registers import InRegister, Registers
from octosim.errors import OctosimError
from octosim.evidence import golden
from octosim.numerics import ACCUMULATORS

CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="needs a C compiler")
TINY = """
[[layers]]
kind = "conv"
filters = 4
kernel = 3
stride = 2
pad = 1
[[layers]]
kind = "relu"
[[layers]]
kind = "depthwise"
[[layers]]
kind = "maxpool"
[[layers]]
kind = "conv"
filters = 5
kernel = 3
stride = 2
pad = 1
[[layers]]
kind = "flatten"
[[layers]]
kind = "linear"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with a strided, a depthwise and a fully connected layer, small enough for plain loops."""
    path = tmp_path_factory.mktemp("model") / "tiny.toml"
    path.write_text(TINY)
    return str(path)


def made(model: str, folder: Path, step: int = 2, layer: str | None = None, **change) -> dict[str, dict]:
    """Rows by layer."""
    train.create(train.Config(**dict(model=model, batch_size=4, steps=3) | change), folder / "run", "test")
    return {row["layer"]: row for row in golden.golden(folder / "run", step, layer, folder / "vectors")}


def compile_and_run(checker: Path) -> subprocess.CompletedProcess[str]:
    assert CC
    program = checker.with_suffix("")
    line = [CC, "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", str(checker), "-o", str(program)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return subprocess.run([str(program)], capture_output=True, text=True)


def flipped(header: Path, name: str, bit: int) -> None:
    """Changes one bit of one expected sum, in the middle of its array."""
    text = header.read_text()
    found = re.search(rf"octo_{header.stem}_{name}\[\d+\] = \{{\n(.*?)\n\}};", text, re.DOTALL)
    assert found
    values = found[1].split(",")
    place = len(values) // 2
    values[place] = str(int(values[place]) ^ (1 << bit))
    header.write_text(text[: found.start(1)] + ",".join(values) + text[found.end(1) :])


@needs_cc
@pytest.mark.parametrize("accumulator", ["exact32", "acc16", "acc16-wrap", "maddubs", "vpdpbusds", "smlal"])
def test_the_checker_passes(model: str, accumulator: str, tmp_path: Path) -> None:
    """Convolutions, depthwise and not, with stride, and a linear layer, in all passes of every kind of register."""
    rows = made(model, tmp_path, accumulator=accumulator)
    assert set(rows) == {"conv1", "dw1", "conv2", "fc1"}
    assert rows["conv1"]["passes"] == ["forward", "dW"]
    for name, row in rows.items():
        done = compile_and_run(Path(row["checker"]))
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("are equal") == len(row["passes"]) == (2 if name == "conv1" else 3)


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus Verilog")
@pytest.mark.parametrize("accumulator", ["exact32", "acc16", "acc12-wrap", "maddubs", "vpdpbusds", "smlal"])
def test_the_verilog_testbench(model: str, accumulator: str, tmp_path: Path) -> None:
    """Every kind of layer and register, without a warning; a sum with one wrong bit is found."""
    for name, row in made(model, tmp_path, accumulator=accumulator).items():
        bench = Path(row["testbench"])

        def shown(bench: Path = bench) -> str:
            line = ["iverilog", "-g2001", "-Wall", "-o", "tb", bench.name]
            done = subprocess.run(line, capture_output=True, text=True, cwd=bench.parent)
            assert done.returncode == 0 and not done.stderr, done.stderr
            return subprocess.run(["vvp", "tb"], capture_output=True, text=True, cwd=bench.parent).stdout

        sums = bench.with_name(f"{name}_forward.hex")
        lines = sums.read_text().split()
        assert f"{name} forward: {len(lines)} sums, 0 wrong" in shown()
        lines[len(lines) // 2] = f"{int(lines[len(lines) // 2], 16) ^ 1:08x}"
        sums.write_text("\n".join(lines))
        assert f"{len(lines)} sums, 1 wrong" in shown()


@needs_cc
def test_vectors_of_two_layers_in_one_program(model: str, tmp_path: Path) -> None:
    """Their names are by layer, and a header may be included twice; the rows name every file."""
    rows = made(model, tmp_path)
    program = tmp_path / "vectors" / "both.c"
    program.write_text(
        '#include "conv2.h"\n#include "fc1.h"\n#include "conv2.h"\n#include <stdio.h>\nint main(void)\n{\n'
        '    return printf("%s %s %d\\n", OCTO_CONV2_LAYER, OCTO_FC1_LAYER, OCTO_FC1_BATCH) < 0;\n}\n'
    )
    line = [CC or "", "-std=c99", "-Wall", "-pedantic", "-Werror", "-Wno-unused-const-variable", "-Wno-unused-variable"]
    done = subprocess.run([*line, str(program), "-o", str(tmp_path / "both")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([str(tmp_path / "both")], capture_output=True, text=True).stdout == "conv2 fc1 4\n"
    written = {path.name for path in (tmp_path / "vectors").glob("*.hex")}
    assert written == {Path(path).name for row in rows.values() for path in row["hex"].values()}


@needs_cc
@pytest.mark.parametrize("layer", ["conv2", "fc1"])
@pytest.mark.parametrize("sums", ["forward", "dw", "dx", "forward_codes", "dw_codes", "dx_codes"])
@pytest.mark.parametrize("bit", [0, 6])
def test_the_checker_finds_one_wrong_bit(model: str, layer: str, sums: str, bit: int, tmp_path: Path) -> None:
    row = made(model, tmp_path, layer=layer)[layer]
    flipped(Path(row["header"]), sums, bit)
    done = compile_and_run(Path(row["checker"]))
    tensor, _, codes = sums.partition("_")
    name, what = {"forward": "forward", "dw": "dW", "dx": "dX"}[tensor], "code" if codes else "sum"
    assert done.returncode == 1 and re.search(rf"{layer} {name}: {what} \d+ is -?\d+, the vectors have -?\d+", done.stdout)


@pytest.mark.parametrize("accumulator", ["exact32", "maddubs"])
def test_npz(model: str, accumulator: str, tmp_path: Path) -> None:
    """Operands, sums, scales and reals belong together, and are those of the step."""
    rows = made(model, tmp_path, accumulator=accumulator)
    with np.load(rows["conv2"]["npz"]) as file:
        v = dict(file)
    about = json.loads(str(v["about"]))
    assert about["step"] == 2 and about["accumulator"] == accumulator and about["parameters"]["rounding"] == "half-even"
    assert v["x"].dtype == v["w"].dtype == v["dy"].dtype == np.int8 and v["forward"].dtype == np.int32
    sizes = ("batch", "height", "width", "channels", "filters", "kernel_h", "kernel_w", "stride", "pad")
    g = core.Conv(*(int(v[name]) for name in sizes))
    for name in ("forward", "dw", "dx"):
        scale = Fraction(int(v[f"{name}_multiplier"]), 2 ** int(v[f"{name}_shift"]))
        codes = [max(-127, min(127, math.floor(value * scale + Fraction(1, 2)))) for value in v[name].ravel().tolist()]
        assert v[f"{name}_codes"].dtype == np.int8 and v[f"{name}_codes"].ravel().tolist() == codes
        assert np.abs(v[f"{name}_codes"]).max() == min(127, np.abs(v[name]).max())
    folder = Path(rows["conv2"]["npz"]).parent
    for name in ("x", "w", "dy", "forward", "forward_codes", "dw", "dx_codes"):
        lines = (folder / f"conv2_{name}.hex").read_text().splitlines()
        assert {len(line) for line in lines} == {2 * v[name].itemsize}
        big = np.dtype(f">i{v[name].itemsize}")
        assert np.array_equal(np.frombuffer(bytes.fromhex("".join(lines)), big), v[name].ravel())
    registers = Registers(ACCUMULATORS[accumulator])
    product = InRegister("conv2", nodes.Convolution(g), registers)
    assert np.array_equal(product.forward(v["x"], v["w"], x_zero=int(v["x_zero"])), v["forward"])
    assert np.array_equal(product.weight_grad(v["x"], v["dy"], x_zero=int(v["x_zero"])), v["dw"])
    assert np.array_equal(product.input_grad(v["dy"], v["w"]), v["dx"])
    low, high = core.value_range(v["x_real"])
    again = quantizers.asymmetric(v["x_real"], low, high)
    assert np.array_equal(again.q, v["x"]) and again.zero == v["x_zero"] and np.float32(again.scale) == v["x_scale"]
    weights = quantizers.symmetric(v["param_w"], *core.value_range(v["param_w"]))
    assert np.array_equal(weights.q, v["w"]) and np.float32(weights.scale) == v["w_scale"]
    scale = np.float32(core.product_scale(float(v["w_scale"]), float(v["dy_scale"])))
    assert np.array_equal(v["dx_real"], v["dx"].astype(np.float32) * scale)
    assert v["grad_w"].shape == v["w"].shape and v["y_real"].shape == v["forward"].shape == v["dy_real"].shape
    run = train.Run(train.Config(model=model, batch_size=4, steps=3, accumulator=accumulator))
    run.train_step()
    assert np.array_equal(run.tensors()["conv2.w"], v["param_w"])


def test_the_same_files_again(model: str, tmp_path: Path) -> None:
    one, two = (made(model, tmp_path / name, layer="fc1")["fc1"] for name in ("one", "two"))
    for kind in ("npz", "header", "checker"):
        assert Path(one[kind]).read_bytes() == Path(two[kind]).read_bytes()


def test_what_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match="no weighted layer 'conv9'; did you mean 'conv"):
        made(model, tmp_path / "a", layer="conv9")
    with pytest.raises(OctosimError, match=r"^step must be in 1 \.\. 3, the run's steps, not 4"):
        made(model, tmp_path / "b", step=4)
    with pytest.raises(OctosimError, match="layer conv1 has no int8 products"):
        made(model, tmp_path / "c", method="fp32")
    assert not list(tmp_path.glob("*/vectors"))


@needs_cc
def test_command_line(model: str, tmp_path: Path) -> None:
    made(model, tmp_path)
    done = octosim("golden", "run", "--step", "1", "--layer", "fc1", folder=tmp_path)
    assert done.returncode == 0 and "to check: cc run/golden-step1/fc1_check.c" in done.stdout, done.stderr
    assert compile_and_run(tmp_path / "run/golden-step1/fc1_check.c").returncode == 0
    rows = json.loads(octosim("golden", "run", "--layer", "conv1", "--json", "--out", "v", folder=tmp_path).stdout)
    (row,) = rows
    assert set(row.pop("hex")) >= {"x", "w", "dy"}
    assert row == {"layer": "conv1", "passes": ["forward", "dW"], "npz": "v/conv1.npz", "header": "v/conv1.h",
                   "checker": "v/conv1_check.c", "testbench": "v/conv1_tb.v"}  # fmt: skip
