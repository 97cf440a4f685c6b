"""octosim check names what a kernel does otherwise; the planted kernels here are plain loops, not octosim's arithmetic."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.cli import octosim

from octosim import data
from octosim.errors import OctosimError
from octosim.evidence import check as checker
from octosim.evidence import golden
from octosim.numerics import Requantization, Rounding, find

SIZES = ("batch", "height", "width", "channels", "filters", "kernel_h", "kernel_w", "stride", "pad")


def sums_of(v: dict[str, Any], x: np.ndarray, w: np.ndarray, pad: int) -> list[list[tuple[int, int]]]:
    """The products (x, w) of each output of the forward pass, in ascending k."""
    n, h, wd, c, f, kh, kw, s, p = (int(v[k]) for k in SIZES)
    x, w = x.astype(int).reshape(n, h, wd, c), w.astype(int).reshape(f, kh, kw, c)
    padded = np.full((n, h + 2 * p, wd + 2 * p, c), pad)
    padded[:, p : p + h, p : p + wd] = x
    out = []
    for b in range(n):
        for oh in range((h + 2 * p - kh) // s + 1):
            for ow in range((wd + 2 * p - kw) // s + 1):
                window = padded[b, oh * s : oh * s + kh, ow * s : ow * s + kw].ravel().tolist()
                out += [list(zip(window, w[i].ravel().tolist(), strict=True)) for i in range(f)]
    return out


def exact(pairs: list[list[tuple[int, int]]]) -> np.ndarray:
    return np.array([sum(a * b for a, b in each) for each in pairs])


def clip(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def half_up(value: Fraction) -> int:
    return (value + Fraction(1, 2)).__floor__()


def double_rounding(sum_: int, multiplier: int, shift: int) -> int:
    """gemmlowp: the doubled high half, then a shift rounded half away from zero."""
    product = sum_ * multiplier
    high = (product + (1 << 30)) >> 31 if product >= 0 else -((-product - 1 + (1 << 30)) >> 31)
    right = shift - 31
    magnitude = (abs(high) + ((1 << right) >> 1)) >> right
    return magnitude if high >= 0 else -magnitude


def coded(v: dict[str, Any], sums: np.ndarray, how: Any = None, by: int = 0) -> np.ndarray:
    m, s = (np.broadcast_to(v[f"forward_{k}"], (int(v["filters"]),)).tolist() for k in ("multiplier", "shift"))
    how = how or (lambda value, m, s: half_up(Fraction(value * m, 1 << s)))
    return np.array([clip(how(int(x), m[i % len(m)], s[i % len(m)] + by), -127, 127) for i, x in enumerate(sums)])


def planted(name: str, v: dict[str, Any]) -> np.ndarray:
    """The forward pass of a kernel that does one thing otherwise."""
    x, w, zero = v["x"], v["w"], int(v["x_zero"])
    plain = sums_of(v, x, w, zero)
    f, kh, kw, c = int(v["filters"]), int(v["kernel_h"]), int(v["kernel_w"]), int(v["channels"])
    n, h, wd = int(v["batch"]), int(v["height"]), int(v["width"])
    match name:
        case "double rounding":
            return coded(v, v["forward"].ravel(), double_rounding)
        case "half-up" | "shift":
            return coded(v, v["forward"].ravel(), by=name == "shift")
        case "wrap":
            return (exact(plain) + 2**11) % 2**12 - 2**11
        case "pairs":
            return np.array([
                sum(clip(sum(a * b for a, b in each[i : i + 2]), -(2**15), 2**15 - 1) for i in range(0, len(each), 2))
                for each in plain
            ])  # fmt: skip
        case "layout":
            return exact(sums_of(v, x.ravel().reshape(n, c, h, wd).transpose(0, 2, 3, 1), w, zero))
        case "transposed":
            return exact(sums_of(v, x, w.ravel().reshape(kh, kw, c, f).transpose(3, 0, 1, 2), zero))
        case "zero point":
            return exact(sums_of(v, x, w, 0))
        case "unsigned":
            return exact(sums_of(v, x.view(np.uint8), w, zero))
        case "per tensor":
            at = int(np.argmin(v["forward_multiplier"] / 2.0 ** v["forward_shift"]))
            one = v | {f"forward_{k}": v[f"forward_{k}"][at] for k in ("multiplier", "shift")}
            return coded(one, v["forward"].ravel())
        case _:
            raise AssertionError(name)


PLANTED = {
    "double rounding": "if requantized with gemmlowp's double rounding",
    "half-up": "if codes are rounded half-up",
    "wrap": "if sums wrap at 12 bits",
    "pairs": "if pairs of products saturate at 16 bits",
    "layout": "if x, which is NHWC, is read as NCHW",
    "transposed": "if w is transposed: its memory is read as HWIO",
    "zero point": "if padding holds 0, not the zero point",
    "shift": "if the shift is off by one: one bit too far",
    "unsigned": "if x is read as unsigned",
    "per tensor": "if requantized per tensor, with the scale of the largest sum, not per channel",
}
ARITHMETIC = {
    "half-up": golden.Arithmetic(rounding=Rounding.HALF_EVEN),
    "per tensor": golden.Arithmetic(per_channel=True),
}


def vectors(
    folder: Path, shape: str, x_zero: int, arithmetic: golden.Arithmetic, seed: int = 0, accumulator: str = "exact32",
    operands: str = "random",
):  # fmt: skip
    row = golden.by_hand(shape, operands, find(accumulator), arithmetic, folder, x_zero, seed)
    return Path(row["npz"]), golden.read_npz(Path(row["npz"]))


def compared(npz: Path, mine: np.ndarray, **options: Any) -> dict[str, Any]:
    np.save(npz.with_name("mine.npy"), mine)
    return checker.check(npz, npz.with_name("mine.npy"), **options)


@pytest.mark.parametrize("name", PLANTED)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_planted_deviations_are_named(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw = data.draw
    kh, kw = draw(st.integers(2, 3)), draw(st.integers(1, 3))
    pad = draw(st.integers(1, min(kh, kw) - 1)) if min(kh, kw) > 1 else 0
    if name == "zero point" and not pad:
        kw, pad = 2, 1
    n, h, w, c, f, s = (draw(st.integers(*ends)) for ends in ((1, 2), (3, 6), (3, 6), (2, 5), (2, 6), (1, 2)))
    shape = f"conv,x={n}x{h}x{w}x{c},filters={f},kernel={kh}x{kw},stride={s},pad={pad}"
    zero = draw(st.integers(-100, 100).filter(bool))
    arithmetic = ARITHMETIC.get(name, golden.Arithmetic())
    operands = "corners" if name == "pairs" else "random"  # only -128 x -128 twice leaves a signed pair's 16 bits
    npz, v = vectors(tmp_path_factory.mktemp("check"), shape, zero, arithmetic, draw(st.integers(0, 1000)), operands=operands)
    tensor = "forward_codes" if name in ("double rounding", "half-up", "shift", "per tensor") else "forward"
    mine = planted(name, v)
    result = compared(npz, mine, tensor=tensor)
    if np.array_equal(mine, v[tensor].ravel()):
        assert result["equal"]
    else:
        assert PLANTED[name] in result["hypotheses"], (shape, zero, result)
        wrong = np.flatnonzero(mine != v[tensor].ravel())
        assert result["differ"] == wrong.size and sum(result["off_by"].values()) == mine.size
        assert np.ravel_multi_index(result["index"], v[tensor].shape) == wrong[0]


def test_every_planted_deviation_shows(tmp_path: Path) -> None:
    """On one shape that is large enough, each differs and is named; the table of the issue."""
    for name, text in PLANTED.items():
        arithmetic = ARITHMETIC.get(name, golden.Arithmetic(rounding=Rounding.HALF_UP))
        operands = "corners" if name == "pairs" else "random"
        if name == "half-up":  # ties are rare: a power of two makes some
            arithmetic = golden.Arithmetic(Requantization.POWER_OF_TWO, Rounding.HALF_EVEN)
        shape = "conv,x=2x9x8x6,filters=16,kernel=3x2,pad=1"
        npz, v = vectors(tmp_path / name, shape, 11, arithmetic, 3, operands=operands)
        if name == "double rounding":
            npz, v = _with_ties(npz)
        tensor = "forward_codes" if name in ("double rounding", "half-up", "shift", "per tensor") else None
        result = compared(npz, planted(name, v), tensor=tensor)
        assert not result["equal"] and text in result["hypotheses"], (name, result)


def _with_ties(npz: Path) -> tuple[Path, dict[str, Any]]:
    """Vectors with a sum just below a tie, which the first of gemmlowp's roundings makes one."""
    v = golden.read_npz(npz)
    largest, shift = int(v["forward"].max()), int(v["forward_shift"])
    multiplier = (201 << (shift - 1)) // largest  # largest x multiplier is below 100.5 x 2^shift, by less than 2^30
    codes = golden.Arithmetic().codes(v["forward"], multiplier, shift)
    np.savez(npz, **v | {"forward_multiplier": np.int64(multiplier), "forward_codes": codes})
    return npz, golden.read_npz(npz)


def test_two_deviations_at_once(tmp_path: Path) -> None:
    npz, v = vectors(tmp_path, "conv,x=1x6x5x4,filters=6,kernel=3,pad=1", 9, golden.Arithmetic())
    turned = v["w"].ravel().reshape(3, 3, 4, 6).transpose(3, 0, 1, 2)
    sums = exact(sums_of(v, v["x"], turned, 0))
    assert (
        "if padding holds 0, not the zero point and if w is transposed: its memory is read as HWIO"
        in (compared(npz, sums)["hypotheses"])
    )
    wrapped = (sums + 2**14) % 2**15 - 2**14
    result = compared(npz, wrapped)
    assert result["hypotheses"] == [] and 0 < result["closest"]["equal"] < 1  # three are not tried


def test_a_rounding_with_a_layout(tmp_path: Path) -> None:
    """Codes rounded half away from zero, so that ties below zero alone are off by one; and the same in another order."""
    arithmetic = golden.Arithmetic(Requantization.POWER_OF_TWO, Rounding.HALF_UP)
    npz, v = vectors(tmp_path, "conv,x=2x9x8x6,filters=16,kernel=3x2,pad=1", 11, arithmetic, 3)

    def away(value: int, multiplier: int, shift: int) -> int:
        real = Fraction(value * multiplier, 1 << shift)
        return half_up(real) if real >= 0 else -half_up(-real)

    mine = coded(v, v["forward"].ravel(), away).reshape(v["forward"].shape)
    codes = v["forward_codes"]
    assert np.all(mine[mine != codes] == codes[mine != codes] - 1) and np.all(codes[mine != codes] <= 0)
    result = compared(npz, mine, tensor="forward_codes")
    assert "if codes are rounded half-away" in result["hypotheses"] and set(result["off_by"]) == {"0", "1"}
    turned = np.ascontiguousarray(mine.transpose(0, 3, 1, 2))
    found = compared(npz, turned, tensor="forward_codes")["hypotheses"]  # half to even gives the same here
    assert {f"if codes are rounded {name} and if written as NCHW" for name in ("half-even", "half-away")} <= set(found)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 2, 3, 0), (0, 2, 1, 3), (2, 2, 2, 2)])
@pytest.mark.parametrize("shape", ["conv,x=2x6x5x3,filters=4,kernel=3,stride=2,pad=1", "linear,x=9x30,units=4"])
def test_scales_of_other_channels(shape: str, order: tuple[int, ...], tmp_path: Path) -> None:
    npz, v = vectors(tmp_path, shape, 5 * shape.startswith("conv"), golden.Arithmetic(per_channel=True), 2)
    other = v | {f"forward_{key}": v[f"forward_{key}"][list(order)] for key in ("multiplier", "shift")}
    mine = coded(other, v["forward"].ravel())
    (named,) = (text for text in compared(npz, mine, tensor="forward_codes")["hypotheses"] if "exchanged" in text)
    moved = [f"{channel} has that of {of}" for channel, of in enumerate(order) if channel != of]
    assert named == "if the channels' scales are exchanged: channel " + ", ".join(moved)
    mine[0] ^= 1
    assert not compared(npz, mine, tensor="forward_codes")["hypotheses"]


@pytest.mark.parametrize("accumulator", ["exact32", "acc12", "acc14-wrap", "maddubs"])
@pytest.mark.parametrize("shape", ["conv,x=2x6x5x3,filters=4,kernel=3,stride=2,pad=1", "depthwise,x=2x5x5x4,kernel=3,pad=1",
                                   "linear,x=5x30,units=7",
                                   "conv,x=2x6x5x4,filters=6,groups=2,kernel=3x2,stride=1x2,pad=2x0,dilation=2x1"])  # fmt: skip
def test_own_tensors_are_equal_in_every_pass(shape: str, accumulator: str, tmp_path: Path) -> None:
    arithmetic = golden.Arithmetic(Requantization.GEMMLOWP, per_channel=True)
    npz, v = vectors(tmp_path, shape, 0 if shape.startswith("linear") else 5, arithmetic, accumulator=accumulator)
    loaded = checker.read_vectors(npz)
    for name in loaded.tensors:
        result = compared(npz, v[name], tensor=name)
        assert result["equal"] and result["off_by"] == {"0": v[name].size}
        sums, found = name.removesuffix("_codes"), v[name].astype(np.int64).ravel()
        # the deviations' own way is octosim's: nothing to explain
        explained, closest, _ = checker.explain(loaded, name, found, 0)
        assert closest is None
        if sums == name:
            (npz.parent / "mine.hex").write_text(golden.hex_lines(v[name]))
            assert checker.check(npz, npz.parent / "mine.hex", name)["equal"]
    other = checker.read_vectors(vectors(tmp_path / "b", shape, 0, arithmetic, accumulator="exact32")[0])
    assert set(other.tensors) == set(loaded.tensors)


@pytest.mark.parametrize("pass_", ["forward", "dx", "dw"])
def test_layouts(pass_: str, tmp_path: Path) -> None:
    npz, v = vectors(tmp_path, "conv,x=2x6x5x3,filters=4,kernel=3,pad=1", 5, golden.Arithmetic())
    turned = np.ascontiguousarray(v[pass_].transpose(0, 3, 1, 2))
    assert compared(npz, turned, tensor=pass_, layout="NCHW")["equal"]
    assert f"if written as {'OIHW' if pass_ == 'dw' else 'NCHW'}" in compared(npz, turned, tensor=pass_)["hypotheses"]


@pytest.mark.parametrize(
    "register, text",
    [
        ("acc14-wrap", "if sums wrap at 14 bits"),
        ("acc14", "if sums saturate at 14 bits"),
        ("maddubs", "if sums are those of maddubs, whose pairs saturate at 16 bits"),
    ],
)
@pytest.mark.parametrize("pass_", ["forward", "dx", "dw"])
def test_registers_in_every_pass(pass_: str, register: str, text: str, tmp_path: Path) -> None:
    shape = "conv,x=2x7x7x5,filters=6,kernel=3,pad=1"
    npz, v = vectors(tmp_path, shape, 5, golden.Arithmetic())
    _, other = vectors(tmp_path / "b", shape, 5, golden.Arithmetic(), accumulator=register)
    result = compared(npz, other[pass_], tensor=pass_)
    assert result["equal"] if np.array_equal(v[pass_], other[pass_]) else text in result["hypotheses"]


def test_command(tmp_path: Path) -> None:
    line = "golden --shape conv,x=1x6x6x4,filters=3,kernel=3,pad=1 --operands corners --accumulator acc16 --rounding half-even"
    assert octosim(*line.split(), "--requantize", "single-rounding", "--out", str(tmp_path)).returncode == 0
    npz, v = tmp_path / "layer.npz", golden.read_npz(tmp_path / "layer.npz")
    assert set(np.unique(v["x"])) <= {-128, -127, 0, 1, 127}
    done = octosim("check", str(npz), "--against", str(tmp_path / "layer_forward.hex"))
    assert done.returncode == 0 and "forward: equal, 108 elements" in done.stdout
    np.save(tmp_path / "mine.npy", np.ascontiguousarray(v["forward"].transpose(0, 3, 1, 2)))
    done = octosim("check", str(npz), "--against", str(tmp_path / "mine.npy"))
    assert done.returncode == 1 and "equal if written as NCHW" in done.stdout and "first at (0, " in done.stdout
    result = json.loads(octosim("check", str(npz), "--against", str(tmp_path / "mine.npy"), "--json").stdout)
    assert result["hypotheses"] == ["if written as NCHW"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("kind", Requantization)
@pytest.mark.parametrize("rounding", [None, *Rounding])
def test_the_c_program_has_every_requantization(kind: Requantization, rounding: Rounding | None, tmp_path: Path) -> None:
    try:
        arithmetic = golden.Arithmetic(kind, rounding, per_channel=rounding in (None, Rounding.FLOOR))
    except OctosimError as error:
        assert "chosen" in str(error) or kind is Requantization.FLOAT_SCALE
        return
    golden.by_hand("conv,x=1x5x5x3,filters=4,kernel=3,stride=2,pad=1", "random", find("acc16"), arithmetic, tmp_path, 3)
    line = ["cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "layer_check.c", "-o", "check"]
    subprocess.run(line, cwd=tmp_path, check=True)
    done = subprocess.run(["./check"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("are equal") == 3, done.stdout


@pytest.mark.parametrize(
    "shape, sentence",
    [
        ("pool,x=1x1", "must begin with conv, depthwise or linear"), ("conv,x=2x8x8x3,kernel=3", "filters=N is missing"),
        ("conv,x=2x8,filters=3,kernel=3", "x takes 4 numbers"), ("conv,x=2x8x8x3,filters=0,kernel=3", "filters takes 1"),
        ("conv,x=2x8x8x3,filters=3,kernel=3,pads=1", "'pads=1' is none of"), ("linear,x=2x8,units=a", "'units=a' is none of"),
        ("conv,x=2x8x8x3,filters=3,kernel=3,pad=3", "the padding 3 of a conv 3x3 must be smaller than its kernel"),
        ("conv,x=1x2x2x3,filters=3,kernel=5", "a conv 5x5 cannot take an input of shape"),
        ("conv,x=1x8x8x3,filters=4,kernel=3,groups=2", "3 channels and 4 filters of a conv 3x3 are not 2 groups"),
        ("conv,x=1x8x8x3,filters=4,kernel=3,pad=1x1x1", "pad takes 1 or 2 or 4 numbers of at least 0, with an x between"),
        ("depthwise,x=1x8x8x3,kernel=3,groups=3", "'groups=3' is none of x=N, kernel=N, stride=N"),
        ("conv,x=9999x9999x99999x9999,filters=1,kernel=1", "its tensors take .* bytes, expected at most 1,073,741,824"),
    ],
)  # fmt: skip
def test_bad_shapes(shape: str, sentence: str) -> None:
    with pytest.raises(OctosimError, match=sentence):
        golden.parse_shape(shape)


def test_bad_files(tmp_path: Path) -> None:
    npz, v = vectors(tmp_path, "linear,x=4x8,units=3", 0, golden.Arithmetic())
    (tmp_path / "text.hex").write_text("not hex\n")
    (tmp_path / "no.npy").write_bytes(b"no")
    np.save(tmp_path / "half.npy", np.array([0.5]))
    np.save(tmp_path / "short.npy", np.zeros(5, np.int32))
    np.savez(tmp_path / "other.npz", x=v["x"])
    for vectors_, mine, sentence in (
        (npz, "text.hex", "expected a .npy file, or hexadecimal"), (npz, "no.npy", "cannot be read as .npy"),
        (npz, "half.npy", "expected whole numbers"), (npz, "short.npy", "has 5 elements, expected those of"),
        (tmp_path / "other.npz", "short.npy", "has no vectors"), (tmp_path / "none.npz", "short.npy", "cannot be read"),
        (npz, "none.hex", "none.hex"),
    ):  # fmt: skip
        with pytest.raises(OctosimError, match=sentence):
            checker.check(vectors_, tmp_path / mine)
    with pytest.raises(OctosimError, match="no tensor 'forwards'; did you mean 'forward'"):
        checker.check(npz, tmp_path / "short.npy", "forwards")


# ---- headers of .npy --------------------------------------------------

HEADERS = {
    "open brackets": b"{'descr': '|i1', 'fortran_order': False, 'shape': (" + b"(" * 60,
    "deep brackets": b"(" * 5000,
    "a shape beyond 64 bits": b"{'descr': '|i1', 'fortran_order': False, 'shape': (%d,), }" % 10**30,
    "a product beyond 64 bits": b"{'descr': '|i1', 'fortran_order': False, 'shape': (%d, %d), }" % (2**40, 2**40),
    "a negative shape": b"{'descr': '|i1', 'fortran_order': False, 'shape': (-3,), }",
    "a truth value": b"{'descr': '|i1', 'fortran_order': False, 'shape': (True,), }",
    "no type": b"{'descr': 'x9', 'fortran_order': False, 'shape': (3,), }",
    "Python objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "a list as type": b"{'descr': [[[]]], 'fortran_order': False, 'shape': (3,), }",
    "a type in itself": b"{'descr': [('a', '|i1', (10**9,) * 9)], 'fortran_order': False, 'shape': (3,), }",
    "no dictionary": b"7",
    "not Python": b"\xff\xfe\x00'",
    "long": b" " * 20_000,
    "nothing": b"",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("kind", ["tensor", "vectors", "data"])
def test_headers(kind: str, header: bytes, tmp_path: Path) -> None:
    """NumPy raises errors of many kinds at them: each reader of its files makes one sentence of each."""
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)
    path = tmp_path / ("x.npy" if kind == "tensor" else "x.npz")
    if kind == "tensor":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("x_train", "y_train"):
                archive.writestr(f"{name}.npy", content)
    reader = {"tensor": checker.read_tensor, "vectors": golden.read_npz, "data": lambda path: data.load(str(path))}[kind]
    with pytest.raises(OctosimError) as caught:
        reader(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    "text, values",
    [
        ("00\nff\n80 // the least\n\n7f\n", [0, -1, -128, 127]), ("abc\r\n7ff", [-1348, 2047]), ("f\n7\n", [-1, 7]),
        ("// x\n" * 300_000 + "0001\n", [1]), ("deadbeef", [-559038737]), ("000001 ffffff", [1, -1]),
    ],
)  # fmt: skip
def test_hex_files(text: str, values: list[int], tmp_path: Path) -> None:
    (tmp_path / "x.hex").write_text(text)
    assert checker.read_tensor(tmp_path / "x.hex").tolist() == values


@pytest.mark.parametrize("text", ["00\nzz", "0\n00", "", "// 00\n", "0_1\n123", "+1\n-1", "0 0x", "é" * 2, "0" * 16])
def test_hex_files_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.hex").write_text(text, encoding="utf-8")
    with pytest.raises(OctosimError, match="x.hex: expected a .npy file, or hexadecimal numbers of the same number of digits"):
        checker.read_tensor(tmp_path / "x.hex")
