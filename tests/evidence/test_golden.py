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
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.cli import octosim

from octosim import core, train
from octosim.engine import nodes, quantizers
from octosim.engine.registers import AccumulatorModel, EmulatedProduct, multiply
from octosim.errors import OctosimError
from octosim.evidence import check, golden
from octosim.numerics import ACCUMULATORS, Rounding, find

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


WINDOWS = """
[[layers]]
kind = "conv"
filters = 6
kernel = [3, 2]
stride = [4, 3]
pad = [0, 1, 2, 0]
[[layers]]
kind = "conv"
filters = 4
kernel = 3
groups = 2
pad = 1
stride = [1, 2]
[[layers]]
kind = "depthwise"
multiplier = 2
stride = [2, 1]
[[layers]]
kind = "depthwise"
dilation = [1, 2]
pad = [1, 2]
[[layers]]
kind = "conv"
filters = 8
groups = 4
kernel = [2, 3]
dilation = [3, 2]
pad = [2, 1, 1, 0]
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


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of convolutions with groups, dilation, and other sizes down than across."""
    path = tmp_path_factory.mktemp("model") / "windows.toml"
    path.write_text(WINDOWS)
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


def simulated(bench: Path) -> str:
    """What a testbench prints, which compiles without a warning."""
    line = ["iverilog", "-g2001", "-Wall", "-o", "tb", bench.name]
    done = subprocess.run(line, capture_output=True, text=True, cwd=bench.parent)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return subprocess.run(["vvp", "tb"], capture_output=True, text=True, cwd=bench.parent).stdout


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


@needs_cc
@pytest.mark.parametrize("accumulator", ["exact32", "acc16", "acc12-wrap", "maddubs", "vpdpbusds"])
def test_groups_dilation_and_uneven_windows(windows: str, accumulator: str, tmp_path: Path) -> None:
    """In all passes, by the C program and by Verilog's forward pass; and the vectors are those that `octosim check` reads."""
    rows = made(windows, tmp_path, accumulator=accumulator, batch_size=2)
    assert set(rows) == {"conv1", "conv2", "dw1", "dw2", "conv3", "fc1"}
    for name, row in rows.items():
        done = compile_and_run(Path(row["checker"]))
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("are equal") == len(row["passes"]) == (2 if name == "conv1" else 3)
        if shutil.which("iverilog"):
            assert " 0 wrong" in simulated(Path(row["testbench"]))
        loaded = check.read_vectors(Path(row["npz"]))
        for pass_ in row["passes"]:
            held, model = loaded.operands(pass_), AccumulatorModel(loaded.accumulator)
            again = multiply(EmulatedProduct("", loaded.product, model), pass_, held, loaded.x_zero)
            assert np.array_equal(again.ravel(), loaded.numbers[golden.SUMS[pass_]].ravel())
            wide = {key: values.astype(np.int64) for key, values in held.items()}
            exact = check._exact(loaded.product, pass_, wide, loaded.x_zero)
            if accumulator == "exact32":
                assert np.array_equal(exact, again.ravel())


PASSES = {"qat": {"forward"}, "banner": {"forward", "dX"}}
"""Those with int8 products, of methods where not all are."""


@needs_cc
@pytest.mark.parametrize("accumulator", ["exact32", "acc16"])
@pytest.mark.parametrize("method", ["qat", "niti", "wage", "banner", "ui8", "dai8", "hindsight", "fqat"])
def test_every_method_with_int8_products(method: str, model: str, accumulator: str, tmp_path: Path) -> None:
    """The passes whose operands are int8, of the operands that the pass has: dY's codes may be others in dX than in dW."""
    rows = made(model, tmp_path, method=method, accumulator=accumulator, batch_size=2, limit=20)
    layers = json.loads((tmp_path / "vectors" / "vectors.json").read_text())["layers"]
    for name, row in rows.items():
        whole = PASSES.get(method, {"forward", "dW", "dX"}) - ({"dX"} if name == "conv1" else set())
        assert set(row["passes"]) == set(layers[name]["passes"]) == whole
        done = compile_and_run(Path(row["checker"]))
        assert done.returncode == 0 and done.stdout.count("are equal") == len(whole), done.stdout
    entry = layers["fc1"]
    with np.load(rows["fc1"]["npz"]) as v:
        for pass_, how in entry["passes"].items():
            sums = sums_of(tmp_path / "vectors", entry, pass_)
            assert sums == v[how["sums"]].ravel().tolist()
        if method == "dai8":  # of which dW's dY has a scale a channel
            assert entry["passes"]["dX"]["operands"] == ["dx_dy", "w"] and "scale" not in entry["tensors"]["dy"]
            real = v["dy_real"] / v["dx_dy_scale"]
            assert np.array_equal(np.rint(real).clip(-127, 127), v["dx_dy"])


def test_layers_that_have_no_vectors_are_left_out(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all layers one that has none is named and the others made; if it was asked for, it is refused."""
    vectors = golden.vectors

    def refusing(node: nodes.Node, *rest) -> tuple:
        if node.name == "conv2":
            raise OctosimError("layer conv2: a sum of dW needs more than 32 bits; use a smaller batch size")
        return vectors(node, *rest)

    monkeypatch.setattr(golden, "vectors", refusing)
    told: list[str] = []
    train.create(train.Config(model=model, batch_size=4, steps=3), tmp_path / "run", "test")
    rows = golden.golden(tmp_path / "run", 1, None, tmp_path / "vectors", tell=told.append)
    assert [row["layer"] for row in rows] == ["conv1", "dw1", "fc1"]
    assert len(told) == 1 and told[0].startswith("layer conv2: a sum of dW needs")
    with pytest.raises(OctosimError, match="layer conv2: a sum of dW needs"):
        golden.golden(tmp_path / "run", 1, "conv2", tmp_path / "vectors")


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus Verilog")
def test_a_layer_whose_name_begins_with_a_digit(tmp_path: Path) -> None:
    """As PyTorch's Sequential names them: no name of a Verilog module."""
    (tmp_path / "net.toml").write_text(TINY.replace('kind = "linear"', 'kind = "linear"\nname = "4.fc-1"'))
    row = made(str(tmp_path / "net.toml"), tmp_path, layer="4.fc-1")["4.fc-1"]
    assert "module layer_4_fc_1_tb" in Path(row["testbench"]).read_text() and " 0 wrong" in simulated(Path(row["testbench"]))


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus Verilog")
@pytest.mark.parametrize("accumulator", ["exact32", "acc16", "acc12-wrap", "maddubs", "vpdpbusds", "smlal"])
def test_the_verilog_testbench(model: str, accumulator: str, tmp_path: Path) -> None:
    """Every kind of layer and register, without a warning; a sum with one wrong bit is found."""
    for name, row in made(model, tmp_path, accumulator=accumulator).items():
        bench = Path(row["testbench"])
        sums = bench.with_name(f"{name}_forward.hex")
        lines = sums.read_text().split()
        assert f"{name} forward: {len(lines)} sums, 0 wrong" in simulated(bench)
        lines[len(lines) // 2] = f"{int(lines[len(lines) // 2], 16) ^ 1:08x}"
        sums.write_text("\n".join(lines))
        assert f"{len(lines)} sums, 1 wrong" in simulated(bench)


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


ALIKE = ["a.b", "a-b", "A_b", "4", "layer_4", "c", "c_dx"]
"""Layers' names that are one in C, in Verilog or on some file systems, or whose tensors would be each other's."""


@needs_cc
def test_names_that_are_alike(tmp_path: Path) -> None:
    """Vectors of all in one folder, one C program and one simulation; the names are the same if one layer alone is made."""
    conv = '[[layers]]\nkind = "conv"\nfilters = 2\nkernel = 3\nstride = 2\npad = 1\nname = "{}"\n'
    last = '[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "linear"\nname = "a_b"\n'
    (tmp_path / "net.toml").write_text("".join(map(conv.format, ALIKE)) + last)
    rows = made(str(tmp_path / "net.toml"), tmp_path, batch_size=1)
    files = [path for row in rows.values() for path in (row["npz"], row["header"], row["testbench"], *row["hex"].values())]
    assert len({path.lower() for path in files}) == len(files) and set(rows) == {*ALIKE, "a_b"}
    layers = json.loads((tmp_path / "vectors" / "vectors.json").read_text())["layers"]
    names = {name: Path(row["header"]).stem for name, row in rows.items()}
    shown = [f'{{"{n}", OCTO_{golden.identifier(s).upper()}_LAYER, octo_{golden.identifier(s)}_x}},' for n, s in names.items()]
    program = tmp_path / "vectors" / "all.c"
    program.write_text(
        "#include <stdio.h>\n" + "".join(f'#include "{stem}.h"\n' for stem in names.values())
        + "static const struct { const char *name, *layer; const int8_t *x; } all[] = {" + "\n".join(shown) + "};\n"
        "int main(void) {\n    for (int i = 0; i < 8; i++)\n"
        '        printf("%s %s %d\\n", all[i].name, all[i].layer, all[i].x[0]);\n    return 0;\n}\n'
    )  # fmt: skip
    line = [CC or "", "-std=c99", "-Wall", "-pedantic", "-Werror", "-Wno-unused-const-variable", "-Wno-unused-variable"]
    done = subprocess.run([*line, str(program), "-o", str(tmp_path / "all")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    firsts = {name: read_hex(tmp_path / "vectors", entry["tensors"]["x"]).ravel()[0] for name, entry in layers.items()}
    told = subprocess.run([str(tmp_path / "all")], capture_output=True, text=True).stdout.splitlines()
    assert sorted(told) == sorted(f"{name} {name} {firsts[name]}" for name in rows)
    modules = [re.search(r"^module (\w+);", Path(row["testbench"]).read_text(), re.M) for row in rows.values()]
    assert len({module[1] for module in modules if module}) == len(rows)
    (alone,) = golden.golden(tmp_path / "run", 2, "a-b", tmp_path / "alone")
    assert Path(alone["header"]).name == Path(rows["a-b"]["header"]).name
    assert Path(alone["header"]).read_bytes() == Path(rows["a-b"]["header"]).read_bytes()


@settings(max_examples=300, deadline=None)
@given(st.sets(st.from_regex(r"[aA4_]([aB1_.-]|_dx|_dw|_forward|layer_){0,5}", fullmatch=True), min_size=1, max_size=12))
def test_stems_are_unique_and_stable(names: set[str]) -> None:
    """Whatever the layers are called: as files where case does not count, in C with every tensor, in Verilog, in any order."""
    found = golden.stems(sorted(names))
    assert found == golden.stems(sorted(names, reverse=True)) and set(found) == names
    for name in names:
        assert golden.stems([name]) == {name: name}
        assert found[name] == name or re.fullmatch(rf"{re.escape(name)}_[0-9a-f]{{8}}", found[name])
    sums, operands = golden.SUMS.values(), ["x", "w", "dy"]
    tensors = [*sums, *operands, *(f"{each}_{part}" for each in sums for part in (*operands, "codes", "multiplier"))]
    stems = [golden.identifier(stem).lower() for stem in found.values()]
    symbols = [f"{stem}_{tensor}" for stem in stems for tensor in tensors]
    assert len(set(symbols)) == len(symbols)
    modules = [f"layer_{stem}" if stem[0].isdigit() else stem for stem in stems]
    assert len(set(modules)) == len(modules)


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
    registers = AccumulatorModel(ACCUMULATORS[accumulator])
    product = EmulatedProduct("conv2", nodes.Convolution(g), registers)
    assert np.array_equal(product.forward(v["x"], v["w"], x_zero=int(v["x_zero"])), v["forward"])
    assert np.array_equal(product.weight_grad(v["x"], v["dy"], x_zero=int(v["x_zero"])), v["dw"])
    assert np.array_equal(product.input_grad(v["dy"], v["w"]), v["dx"])
    low, high = core.value_range(v["x_real"])
    again = quantizers.asymmetric(v["x_real"], low, high)
    assert np.array_equal(again.q, v["x"]) and again.zero == v["x_zero"] and np.float32(again.scale) == v["x_scale"]
    weights = quantizers.symmetric(v["param_w"], *core.value_range(v["param_w"]))
    assert np.array_equal(weights.q, v["w"]) and np.float32(weights.scale) == v["w_scale"]
    scale = np.float32(core.combined_scale(float(v["w_scale"]), float(v["dy_scale"])))
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
                   "checker": "v/conv1_check.c", "testbench": "v/conv1_tb.v", "manifest": "v/vectors.json"}  # fmt: skip


# ---- the manifest: all that a generator of testbenches reads --------------------------------------------------


def narrow(value: int, bits: int, saturate: bool) -> int:
    limit = 1 << (bits - 1)
    return max(-limit, min(limit - 1, value)) if saturate else (value + limit) % (2 * limit) - limit


def in_register(products: list[tuple[int, int]], register: dict[str, int]) -> int:
    """A sum as the manifest describes its register."""
    total, low = 0, 128 if register["unsigned"] else 0
    for start in range(0, len(products), register["group"]):
        group = [(data + low) * other for data, other in products[start : start + register["group"]]]
        pairs = [sum(group[i : i + 2]) for i in range(0, len(group), 2)]
        if register["pair_bits"]:
            pairs = [narrow(pair, register["pair_bits"], True) for pair in pairs]
        total = narrow(total + sum(pairs), register["bits"], bool(register["saturate"]))
    return narrow(total - low * sum(other for _, other in products), 32, False)


def sums_of(folder: Path, entry: dict, pass_: str) -> list[int]:
    """A pass's sums, of the manifest and the hex files alone."""
    sizes, how, tensors = entry["sizes"], entry["passes"][pass_], entry["tensors"]
    held = {name: read_hex(folder, tensors[name]) for name in how["operands"]}
    lengths = {axis: n for t in tensors.values() for axis, n in zip(t["axes"], t["shape"], strict=True) if axis != "channel"}
    filters, depth = sizes["filters"] // sizes["groups"], sizes["depth"]
    sides = (("output row", "kernel row", "row", "h", "top"), ("output column", "kernel column", "column", "w", "left"))
    lengths |= {"channel": depth, "filter": filters}  # of a group, in a sum

    def at(name: str, place: dict[str, int]) -> int:
        """place: by axis; the channel of dX and the filter of forward and dW are the sum's own, others count in its group."""
        index = []
        own = place.get("channel", 0) // depth if pass_ == "dX" else place.get("filter", 0) // filters
        for axis, length in zip(tensors[name]["axes"], tensors[name]["shape"], strict=True):
            where = place.get(axis)
            for whole, kernel, pixel, side, edge in sides:
                stride, tap = sizes[f"stride_{side}"], place.get(kernel, 0) * sizes[f"dilation_{side}"]
                if axis == pixel and where is None:
                    where = place[whole] * stride + tap - sizes[f"pad_{edge}"]
                if axis == whole and where is None:
                    where, rest = divmod(place[pixel] + sizes[f"pad_{edge}"] - tap, stride)
                    where = -1 if rest else where
            if axis == "channel":
                where = place.get(axis, 0) % depth + (0 if name == "w" else own * depth)
            if axis == "filter" and pass_ == "dX":
                where = own * filters + place.get(axis, 0)
            if not 0 <= where < length:
                return entry["padding"] if name == "x" else 0
            index.append(where)
        return int(held[name][tuple(index)])

    out = tensors[how["sums"]]
    found = []
    for output in np.ndindex(*out["shape"]):
        place = dict(zip(out["axes"], output, strict=True))
        inner = [place | dict(zip(how["order"], i, strict=True)) for i in np.ndindex(*(lengths[axis] for axis in how["order"]))]
        found.append(in_register([tuple(at(name, each) for name in how["operands"]) for each in inner], entry["register"]))
    return found


def read_hex(folder: Path, tensor: dict) -> np.ndarray:
    words = np.array([int(line, 16) for line in (folder / tensor["file"]).read_text().split()], f"uint{tensor['bits']}")
    assert words.size == tensor["elements"] == math.prod(tensor["shape"])
    return words.astype(tensor["dtype"]).reshape(tensor["shape"])


@pytest.mark.parametrize("accumulator", ["acc16", "acc12-wrap", "maddubs", "vpdpbusds"])
@pytest.mark.parametrize("shape", [
    "conv,x=2x5x4x3,filters=4,kernel=3x2,stride=2,pad=1", "depthwise,x=2x4x4x3,kernel=3,pad=1", "linear,x=3x7,units=5",
    "conv,x=2x5x4x4,filters=6,groups=2,kernel=2x3,stride=2x1,pad=1x1x0x2,dilation=2x1",
    "depthwise,x=1x5x5x2,multiplier=2,kernel=3,dilation=2,pad=2x1",
])  # fmt: skip
def test_the_manifest_describes_the_files(shape: str, accumulator: str, tmp_path: Path) -> None:
    """Sums and codes of every pass again, of what vectors.json says and the hex files hold."""
    arithmetic = golden.Arithmetic(rounding=Rounding.FLOOR, per_channel=True)
    row = golden.by_hand(shape, "random", find(accumulator), arithmetic, tmp_path, x_zero=-3)
    (entry,) = json.loads(Path(row["manifest"]).read_text())["layers"].values()
    named = {tensor["file"] for tensor in entry["tensors"].values()} | set(entry["files"].values())
    assert named | {"vectors.json"} == {path.name for path in tmp_path.iterdir()}
    assert set(entry["passes"]) == {"forward", "dW", "dX"}
    for pass_, how in entry["passes"].items():
        sums = read_hex(tmp_path, entry["tensors"][how["sums"]])
        assert sums_of(tmp_path, entry, pass_) == sums.ravel().tolist(), pass_
        codes = (sums * np.array(how["multiplier"], np.int64)) >> np.array(how["shift"])
        low, high = entry["requantize"]["lowest"], entry["requantize"]["highest"]
        assert np.array_equal(codes.clip(low, high), read_hex(tmp_path, entry["tensors"][how["codes"]]))


def test_manifests_of_runs(model: str, tmp_path: Path) -> None:
    """Layers of one folder stand in one manifest, with scales; another's vectors.json is not replaced."""
    made(model, tmp_path, layer="conv2")
    golden.golden(tmp_path / "run", 2, "fc1", tmp_path / "vectors")
    layers = json.loads((tmp_path / "vectors" / "vectors.json").read_text())["layers"]
    assert set(layers) == {"conv2", "fc1"} and layers["conv2"]["about"]["step"] == 2
    with np.load(tmp_path / "vectors" / "conv2.npz") as v:
        for name, tensor in layers["conv2"]["tensors"].items():
            assert v[name].shape == tuple(tensor["shape"]) and v[name].dtype == tensor["dtype"]
        assert np.float32(layers["conv2"]["tensors"]["x"]["scale"]) == v["x_scale"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "vectors.json").write_text('{"kind": "mine"}')
    with pytest.raises(OctosimError, match=r"mine/vectors.json is not of octosim golden"):
        golden.golden(tmp_path / "run", 2, "fc1", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["vectors.json"]
