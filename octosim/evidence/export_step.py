"""The training step of a run as one C99 program: the calls of a step on static memory, into the core's reference kernels.

    void octosim_init(void);     before the first step: the weights that the run began with
    int octosim_images(void);    images of the next step
    int octosim_step(const octosim_pixel *images, const octosim_label *labels, float *loss);    0, or a status

Nothing is allocated and nothing is called but memcpy, memset and memmove.  The bits are octosim's under the same conditions as
those of `export_c`.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim import train
from octosim.engine import plan
from octosim.errors import ArgumentError, OctosimError
from octosim.evidence import core_source
from octosim.evidence.export import machines, write
from octosim.evidence.export_c import FLAGS
from octosim.evidence.step_record import TYPES, Recording, address_of, record
from octosim.evidence.step_writer import Writer

OPTIMIZED = "-O1"
"""Of the program that measures: it is compiled once, and makes each kind of step twice."""
SPARE = 64
"""Bytes of scratch memory behind what kernels write: some read a few elements too far."""

HEADER = """/* Made by octosim export --training from {about}. */
#ifndef OCTOSIM_TRAINING_H
#define OCTOSIM_TRAINING_H
#include <stddef.h>
#include <stdint.h>

enum {{ OCTOSIM_BATCH = {batch}, OCTOSIM_PIXELS = {pixels}, OCTOSIM_STEPS = {steps}, OCTOSIM_TENSORS = {tensors} }};
typedef {pixel} octosim_pixel;
typedef {label} octosim_label;

/* Before the first step: the numbers that the run began with. */
void octosim_init(void);
/* Images of the next step, at most OCTOSIM_BATCH, of OCTOSIM_PIXELS values each: height, width, channels. */
int octosim_images(void);
/* A step on these images and their labels.  Returns 0, or a status, whose sentence octosim_error() has.  OCTOSIM_STEPS is the
   run's number of steps; later ones have the learning rate of the last. */
int octosim_step(const octosim_pixel *images, const octosim_label *labels, float *loss);
const char *octosim_error(void);

/* All tensors that training changes or keeps.  name: with type and shape, as the digest has it. */
typedef struct {{
    const char *name;
    const void *values;
    size_t bytes;
}} octosim_tensor;
extern const octosim_tensor octosim_tensors[OCTOSIM_TENSORS];
#endif
"""

HEAD = """/* Made by octosim export --training from {about}.
   Compile with -std=c99 or -ffp-contract=off, and without -ffast-math. */
#include "training.h"
"""

RUNTIME = """
/* ---- in the place of an operating system ---- */

static const char *octosim_failure = "no error";

int octo_fail(int status, const char *format, ...) {{
    octosim_failure = format;
    return status;
}}

int octo_threads(void) {{ return 1; }}

{memory}
/* Memory that kernels work in, as much as this program's calls need. */
void *octo_scratch(enum octo_slot slot, int64_t bytes) {{
    (void)bytes;
    switch (slot) {{
{cases}
    default: return NULL;
    }}
}}
"""

PROBE = """
#include <stdio.h>
#include <stdlib.h>

static unsigned char *probe_memory[OCTO_SLOTS], probe_fill;
static int64_t probe_asked[OCTO_SLOTS], probe_most[OCTO_SLOTS];

static void probe_look(enum octo_slot slot) {{
    int64_t at = probe_asked[slot];
    while (at > 0 && probe_memory[slot][at - 1] == probe_fill) at--;
    if (at + {spare} < probe_asked[slot]) at += {spare};
    else at = probe_asked[slot];
    if (probe_asked[slot] && at > probe_most[slot]) probe_most[slot] = at;
}}

int octo_fail(int status, const char *format, ...) {{
    (void)format;
    return status;
}}

int octo_threads(void) {{ return 1; }}

void *octo_scratch(enum octo_slot slot, int64_t bytes) {{
    bytes = bytes > 1 ? bytes : 1;
    if (probe_asked[slot] < bytes) {{
        probe_look(slot);
        free(probe_memory[slot]);
        probe_memory[slot] = aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64);
        if (!probe_memory[slot]) exit(3);
        probe_asked[slot] = bytes;
        memset(probe_memory[slot], probe_fill, (size_t)bytes);
    }}
    return probe_memory[slot];
}}
"""
"""The same where the memory is measured: what is no longer as it was filled was used."""

PROBE_MAIN = """
int main(int count, char **arguments) {{
    static octosim_pixel images[OCTOSIM_BATCH * OCTOSIM_PIXELS];
    uint32_t word = 1;
    (void)arguments;
    probe_fill = count > 1 ? 0x5a : 0xa5;
    for (long i = 0; i < (long)(sizeof images / sizeof *images); i++)
        word = word * 1664525u + 1013904223u, images[i] = (octosim_pixel)((word >> 24){scaled});
    octosim_init();
{steps}
    for (int slot = 0; slot < OCTO_SLOTS; slot++) probe_look((enum octo_slot)slot);
    for (int slot = 0; slot < OCTO_SLOTS; slot++) printf("%lld\\n", (long long)probe_most[slot]);
    return 0;
}}
"""

ARENA = """
static union {{
    double aligned[2];
    uint8_t bytes[{room}];
}} arena __attribute__((aligned(16)));

#define AT(type, offset) ((type *)(void *)(arena.bytes + (offset)))
#ifndef TRY
#define TRY(call)                    \\
    do {{                             \\
        int status_ = (call);        \\
        if (status_) return status_; \\
    }} while (0)
#endif

"""

SLOTS = re.compile(r"OCTO_SLOT_[A-Z]+\b")


@dataclass(frozen=True)
class Program:
    """files: their text by name.  ram: bytes by what they hold: "state", "values", "scratch".  initial: bytes of constants and
    initial values."""

    files: dict[str, str]
    ram: dict[str, int]
    initial: int
    recording: Recording


# ---- the program --------------------------------------------------


def program(run: train.Run, compiler: Sequence[str] = ("cc",)) -> Program:
    """The training steps of a run that is before its first one; the run is good for nothing else afterwards.

    compiler: measures the scratch memory of the kernels.
    """
    c = run.config
    about = f"model {c.model}, data {run.data.name}, method {c.method}, seed {c.seed}, {run.steps} steps".replace("*/", "* /")
    recording = record(run)
    w = Writer(recording)
    steps = [w.step(number, tape) for number, tape in enumerate(recording.steps)]
    functions = sorted({call.function for tape in recording.steps for call in tape.made})
    declared, defined = core_source.source([*functions, *core_source.RUNTIME])
    header = HEADER.format(
        about=about, batch=len(recording.images), pixels=math.prod(recording.images.shape[1:]), steps=run.steps,
        tensors=len(recording.tensors), pixel=TYPES[recording.images.dtype], label=TYPES[_label(run)],
    )  # fmt: skip
    top = HEAD.format(about=about) + declared
    body = f"{defined}\n{_memory(w)}\n" + "\n".join(steps) + _interface(recording, w)
    needed = _scratch(header, top, body, recording, compiler)
    main = (importlib.resources.files("octosim.evidence") / "training_main.c").read_text(encoding="utf-8")
    files = {"training.h": header, "training.c": top + _runtime(needed) + body, "main.c": main}
    return Program(files, {"state": w.state, "values": recording.room, "scratch": sum(needed.values())}, w.flash, recording)


def _memory(w: Writer) -> str:
    structs = [text.format(name) for text, name in w.structs.items()]
    return (
        "/* ---- memory: numbers that the run began with, what changes, and values that come and go ---- */\n\n"
        + "\n".join([*w.constants, *w.states])
        + ARENA.format(room=max(1, w.made.room)) + "\n".join(structs) + "\n"
    )  # fmt: skip


def _interface(recording: Recording, w: Writer) -> str:
    rates, tensors = len(recording.numbers), []
    for name, tensor in sorted(recording.tensors.items()):
        text = json.dumps(f"{name} {tensor.dtype.str} {tensor.shape}\n")
        where = w.pointer(address_of(tensor), TYPES[tensor.dtype]) if tensor.nbytes else '""'
        tensors.append(f"    {{{text}, {where}, {tensor.nbytes}}}")
    rows = []
    for entry in recording.schedule:
        rows.append(f"    {{{entry.first}u, {entry.index}, {{{', '.join(float(n).hex() for n in entry.numbers)}}}}}")
    w.flash += len(rows) * (8 + 8 * rates)
    losses = [w.value(tape.loss, recording.memory.at(tape.loss).kind) for tape in recording.steps]
    lines = ["    switch (schedule[row].step) {"]
    for number, loss in enumerate(losses):
        lines.append(f"    case {number}: status = step_{number}(images); *loss = (float){loss}; break;")
    lines += ["    default: break;", "    }"]
    counters = [name for name in recording.tensors if name.rpartition(".")[2] in recording.run.method.counters]
    cleared = "\n".join(f"        memset({(held := w.tensor(name))}, 0, sizeof {held});" for name in counters)
    if cleared:
        ends = f"steps_done % {recording.run.steps_per_epoch}u == 0 || steps_done == OCTOSIM_STEPS"
        lines.append(f"    if ({ends}) {{ /* an epoch's counters */\n{cleared}\n    }}")
    counts = ", ".join(str(tape.images) for tape in recording.steps)
    return f"""
/* ---- steps ---- */

/* From the step `first` on; the last row holds for ever. */
static const struct {{
    uint32_t first;
    int32_t step;
    double rates[{rates}];
}} schedule[] = {{
{_listed(rows)}
}};
static const int32_t step_images[] = {{{counts}}};
static uint32_t steps_done;

static long schedule_row(void) {{
    static long row;
    if (schedule[row].first > steps_done + 1) row = 0;
    while (row + 1 < (long)(sizeof schedule / sizeof *schedule) && schedule[row + 1].first <= steps_done + 1) row++;
    return row;
}}

int octosim_images(void) {{ return (int)step_images[schedule[schedule_row()].step]; }}

const char *octosim_error(void) {{ return octosim_failure; }}

void octosim_init(void) {{
    steps_done = 0;
{chr(10).join(w.begin)}
}}

int octosim_step(const octosim_pixel *images, const octosim_label *labels, float *loss) {{
    int status = OCTO_OK;
    long row = schedule_row();
    for (int32_t i = 0; i < step_images[schedule[row].step]; i++) step_labels[i] = labels[i];
    step_number[0] = ++steps_done;
{chr(10).join(f"    rate_{i}[0] = schedule[row].rates[{i}];" for i in range(rates))}
{chr(10).join(lines)}
    return status;
}}

const octosim_tensor octosim_tensors[OCTOSIM_TENSORS] = {{
{_listed(tensors)}
}};
"""


def _listed(rows: Sequence[str]) -> str:
    return ",\n".join(rows)


def _runtime(needed: dict[str, int]) -> str:
    place = "static double scratch_{}[{}] __attribute__((aligned(64)));\n"
    memory = "".join(place.format(slot.lower(), -(-size // 64) * 8) for slot, size in needed.items())
    cases = "\n".join(f"    case {slot}: return scratch_{slot.lower()};" for slot in needed)
    return RUNTIME.format(memory=memory, cases=cases)


def _scratch(header: str, top: str, body: str, made: Recording, compiler: Sequence[str]) -> dict[str, int]:
    """Bytes of scratch memory that the steps' calls use, by slot: measured by making each kind of step."""
    slots = list(dict.fromkeys(SLOTS.findall(re.search(r"enum octo_slot \{([^}]*)\}", top)[1])))  # type: ignore[index]
    steps = "\n".join(f"    step_{number}(images);" for number in range(len(made.steps)))
    scaled = " / 256.0f" if made.images.dtype == np.float32 else ""
    source = (
        "#define _ISOC11_SOURCE\n#define TRY(call) (void)(call)\n"
        + top + PROBE.format(spare=SPARE) + body.replace("return octosim_failure", 'return ""')
        + PROBE_MAIN.format(steps=steps, scaled=scaled)
    )  # fmt: skip
    most = dict.fromkeys(slots, 0)
    with tempfile.TemporaryDirectory(prefix="octosim-") as folder:
        path = Path(folder) / "probe.c"
        path.write_text(source)
        path.with_name("training.h").write_text(header)
        binary = _compiled([path], (*compiler, "-std=gnu11", OPTIMIZED), Path(folder) / "probe")
        for arguments in ((), ("again",)):
            ran = subprocess.run([str(binary), *arguments], capture_output=True, text=True)
            found = ran.stdout.split()
            if ran.returncode or len(found) != len(slots):
                raise OctosimError(f"the scratch memory cannot be measured: the program ended with exit code {ran.returncode}")
            most = {slot: max(most[slot], int(size)) for slot, size in zip(slots, found, strict=True)}
    return {slot: size for slot, size in most.items() if size}


def _compiled(sources: Sequence[Path], compiler: Sequence[str], out: Path) -> Path:
    if shutil.which(compiler[0]) is None:
        raise OctosimError(f"the export of a training step needs the C compiler {compiler[0]}, which is not there")
    done = subprocess.run([*compiler, *map(str, sources), "-o", str(out)], capture_output=True, text=True)
    if done.returncode:
        raise OctosimError(f"{sources[0].name} does not compile: {done.stderr[:500]}")
    return out


def _label(run: train.Run) -> np.dtype[Any]:
    """What holds a label."""
    return np.dtype(np.uint8 if len(run.data.classes) <= 256 else np.int32)


# ---- comparison --------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What octosim's own steps give: the batches as the program reads them, losses, and the digest after the last."""

    batches: bytes
    losses: list[np.float32]
    digest: str


def expected(run: train.Run, steps: int) -> Expected:
    """The first steps of a run that is before its first one."""
    label = _label(run)
    parts, losses = [], []
    for step in range(1, steps + 1):
        images, labels = run.batch(step)
        parts += [np.ascontiguousarray(images).tobytes(), labels.astype(label).tobytes()]
        losses.append(np.float32(run.train_step((images, labels))))
        if step % run.steps_per_epoch == 0 or step == run.steps:
            run.method.metrics(run.network.nodes)  # it counts from 0 again
    return Expected(b"".join(parts), losses, run.digest())


def run_c(folder: Path, compiler: Sequence[str] = ("cc",), runner: Sequence[str] = ()) -> dict[str, Any]:
    """Compiles the program of a folder without a warning and runs it on its batches: "losses", float32, "digest", and the bytes
    of its object file in "flash" and "ram"."""
    with tempfile.TemporaryDirectory(prefix="octosim-") as there:
        flags = (*compiler, *FLAGS, "-Werror")
        part = _compiled([folder / "training.c"], (*flags, "-c"), Path(there) / "training.o")
        binary = _compiled([folder / "main.c", part], flags, Path(there) / "training")
        ran = subprocess.run([*runner, str(binary), str(folder / "batches.bin")], capture_output=True, text=True)
        if ran.returncode:
            raise OctosimError(f"the program ended with exit code {ran.returncode}: {ran.stderr[:200]}")
        *lines, last = ran.stdout.splitlines()
        found = {"losses": [np.float32(line.split()[3]) for line in lines], "digest": last.removeprefix("sha256:")}
        return found | _sizes(part, compiler)


def _sizes(part: Path, compiler: Sequence[str]) -> dict[str, int | None]:
    """Bytes of code and constants, and of memory, of an object file, by binutils' size."""
    tool = re.sub(r"(gcc|cc|clang)$", "size", compiler[0])
    if shutil.which(tool) is None:
        return {"flash": None, "ram": None}
    words = subprocess.run([tool, str(part)], capture_output=True, text=True, check=True).stdout.splitlines()[1].split()
    text, data, bss = (int(word) for word in words[:3])
    return {"flash": text + data, "ram": data + bss}


def planned(run: train.Run) -> int:
    """Bytes at the peak of the plan's values and weights."""
    return plan.in_c(plan.plan_like(run.network, run.config.batch_size, run.optimizer))["peak"]


STEPS = 10
"""Steps that a program is compared over, where none are given."""


def export(folder: Path, out: Path, steps: int | None = None, comparing: bool = True) -> list[dict[str, Any]]:
    """Writes the training of a run as a C program: training.h, training.c, main.c, and the run's first batches in batches.bin.

    steps: to compare, STEPS or the run's where that has fewer, if not given.  Returns a row for each way to run it: "file",
    "bytes", "runtime", "steps", "losses" and "digest" (whether they are octosim's), "sha256", "flash" and "ram" of the object
    file, and of the memory "state", "values", "scratch", "initial" (constants), "planned" (the plan's peak).
    """
    run = train.replay(folder)
    if steps is not None and not 1 <= steps <= run.steps:
        raise ArgumentError(f"{{steps}} must be in 1 .. {run.steps}, the run's steps, not {steps}")
    steps = steps or min(STEPS, run.steps)
    peak = planned(run)
    made = program(train.replay(folder))
    own = expected(run, steps) if comparing else None
    if own and steps == run.steps and train.read_digest(folder) not in (None, own.digest):
        raise OctosimError(f"{folder}: its digest is not that of its steps: see octosim verify")
    files = {name: text.encode() for name, text in made.files.items()} | ({"batches.bin": own.batches} if own else {})
    write(out, files)
    row: dict[str, Any] = {"file": str(out / "training.c"), "bytes": len(files["training.c"]), "runtime": None}
    row |= made.ram | {"planned": peak, "initial": made.initial}
    if not own:
        return [row]
    rows = []
    for runtime, compiler, runner in machines():
        found = run_c(out, compiler, runner)
        same = {"losses": found["losses"] == own.losses, "digest": found["digest"] == own.digest}
        sizes = {key: found[key] for key in ("flash", "ram")}
        rows.append(row | {"runtime": runtime, "steps": steps, "sha256": found["digest"], **same, **sizes})
    return rows
