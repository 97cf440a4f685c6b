"""Clocks of octosim's own loops on Arm cores: how tools/schedule.py finds them, and how the cost model takes them."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from octosim import cost, hardware
from octosim.engine import plan
from octosim.errors import OctosimError
from octosim.hardware import runtime as runtime_files
from octosim.train import Config, Run

ROOT = Path(__file__).resolve().parents[2]
OCTOSIM = hardware.load_runtime("octosim")


@pytest.fixture(scope="module")
def schedule() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield importlib.import_module("schedule")


@pytest.fixture(scope="module")
def step() -> list[cost.Op]:
    run = Run(Config(model="resnet20", data="fashion-mnist-5k", image="32x32x3", method="octo", batch_size=8))
    return plan.trace(run.network, 8)


ARM_FOUND = [
    "ret", "mov\tx12, #0x10b0", "cbz\tx1, #0", "tbnz\tw0, #31, #0", "b.hi\t#0", "bl\t#0", "adrp\tx0, #0", "bic\tw0, w1, #0xff",
]  # fmt: skip
ARM = """
0000000000401224 <begin_marked>:
  401224:\tret
0000000000401230 <octo_x>:
  401230:\tmov\tx12, #0x10b0                \t// #4272
  401234:\tcbz\tx1, 401248 <octo_x+0x18>
  401238:\ttbnz\tw0, #31, 401248 <octo_x+0x18>
  40123c:\tb.hi\t401264 <octo_x+0x34>  // b.pmore
  401240:\tbl\t400100 <memset>
  401244:\tadrp\tx0, 48a000 <table>
  401248:\tbic\tw0, w1, #0xff
"""
X86 = """
0000000000401000 <octo_x>:
  401000:\tbnd jmp 401020 <main+0x20>
  401006:\tcall   401040 <memset>
  40100b:\tvmovaps 0x2eeb(%rip),%ymm0        # 403f00 <table>
  401013:\tcs nopw 0x0(%rax,%rax,1)
  40101d:\tjne    401020 <main+0x20>
  401020:\tret
"""


@pytest.mark.parametrize(
    ("text", "instructions"),
    [
        (ARM, ARM_FOUND),
        (X86, ["jmp 0", "call 0", "vmovaps 0x2eeb(%rip),%ymm0", "nop", "jne 0", "ret"]),
    ],
    ids=["arm", "x86"],
)  # fmt: skip
def test_a_listing_has_no_targets(schedule: ModuleType, text: str, instructions: list[str]) -> None:
    found, symbols = schedule.listing(text)
    assert list(found.values()) == instructions
    assert found[symbols["octo_x"]] in instructions


def test_what_a_call_costs_cancels(schedule: ModuleType) -> None:
    assert schedule.each("octo_relu_f32", [1000 + 64 * 64 * 2.5, 1000 + 128 * 64 * 2.5]) == pytest.approx(2.5)
    assert schedule.each("octo_gemm_s8", [500 + 16 * 64 * 128 / 8, 500 + 2 * 16 * 64 * 128 / 8]) == pytest.approx(1 / 8)


def test_the_page_and_the_runtime_have_the_same_figures(schedule: ModuleType) -> None:
    page = (ROOT / "docs" / "arm-kernels.md").read_text().split(schedule.HERE)[0]
    rows = {cells[1].strip(" `"): cells[3:] for line in page.splitlines() if len(cells := line.strip("|").split("|")) == 6}
    assert [loops.core for loops in OCTOSIM.loops] == list(schedule.CORES)
    for i, loops in enumerate(OCTOSIM.loops):
        assert loops.clocks.keys() == schedule.ELEMENTWISE.keys() and loops.kind == "estimate"
        for function, clocks in loops.clocks.items():
            assert float(rows[function][i]) == pytest.approx(clocks, abs=0.051)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["octo_quantize_s8", "octo_sgd_f32", "octo_depthwise_forward_s8"])
def test_clocks_are_found_again(schedule: ModuleType, tmp_path_factory: pytest.TempPathFactory, function: str) -> None:
    """From C to clocks.  Another compiler or llvm makes others, but not by much."""
    missing = [name for name in ("aarch64-linux-gnu-gcc", "qemu-aarch64", "llvm-mca-19") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    folder = tmp_path_factory.getbasetemp()
    program = folder / "aarch64-linux-gnu-gcc-schedule"
    if not program.exists():
        schedule.build("aarch64-linux-gnu-gcc", folder)
    code = schedule.listing(schedule.run("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", program))
    runs = [
        schedule.executed(("qemu-aarch64", "-cpu", "cortex-a72", program), function, size, code)
        for size in schedule.sizes_of(function)
    ]
    clocks = schedule.each(
        function, [schedule.clocks(lines, "llvm-mca-19", "aarch64-linux-gnu", "cortex-a72") for lines in runs]
    )
    known = next(loops for loops in OCTOSIM.loops if loops.core == "Cortex-A72").clocks
    assert known.get(function, clocks) == pytest.approx(clocks, rel=0.3) and 0.01 < clocks < 30


@pytest.mark.parametrize("name", ["pi4", "pi5", "pi3", "rk3588"])
@pytest.mark.parametrize("threads", [1, 2])
def test_passes_take_the_clocks_of_their_core(step: list[cost.Op], name: str, threads: int) -> None:
    device = hardware.load(name)
    engine = device.engines[0]
    loops = OCTOSIM.loops_of(engine.core)
    assert loops
    found = {True: 0, False: 0}
    for priced in cost.predict(step, device, threads, OCTOSIM):
        known = priced.op.kind != "gemm" and priced.engine == engine.name and priced.op.function in loops.clocks
        if known and threads == 1:
            clocks = loops.clocks[priced.op.function] * priced.op.elements
            assert priced.compute_s == pytest.approx(clocks / (engine.clock_ghz.value * 1e9))
        assert ("(estimate)" in priced.note) == known
        found[known] += 1
    assert found[True] > 50 and found[False] > 20


def test_other_software_and_other_cores_take_bytes(step: list[cost.Op]) -> None:
    pi4 = hardware.load("pi4")
    ours, other = (cost.predict(step, pi4, 1, each) for each in (OCTOSIM, OCTOSIM.model_copy(update={"loops": ()})))
    assert sum(c.compute_s for c in ours) > sum(c.compute_s for c in other)
    assert not any(c.note for c in other) and not any(c.note for c in cost.predict(step, pi4, 1))
    xeon = hardware.load("xeon-gold-6455b")
    assert [c.time_s for c in cost.predict(step, xeon, 1, OCTOSIM)] == [c.time_s for c in cost.predict(step, xeon, 1)]


def test_a_calibrated_device_keeps_its_own(step: list[cost.Op]) -> None:
    """Factors that were fitted to the software hold its loops."""
    pi4 = hardware.load("pi4")
    factors = {path: cost.factors_of(pi4, pi4.engines[0], "int8" if path == "smlal" else path) for path in ("smlal", "float32")}
    own = pi4.model_copy(update={"calibration": factors})
    assert not any("(estimate)" in c.note for c in cost.predict(step, own, 1, OCTOSIM))


def test_a_function_that_no_loop_knows_is_priced(step: list[cost.Op]) -> None:
    ops = [dataclasses.replace(op, function="octo_new") for op in step if op.function == "octo_quantize_s8"]
    [first, *_] = cost.predict(ops, hardware.load("pi4"), 1, OCTOSIM)
    assert first.time_s > 0 and not first.note


def test_bad_loops(tmp_path: Path) -> None:
    text = runtime_files._files()["octosim"].read_text()
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(r"octo_add = [\d.]+", "octo_add = 0", text, count=1))
    with pytest.raises(OctosimError, match=r"mine\.toml.*loops\[0\]\.clocks\.octo_add"):
        hardware.load_runtime(path)
