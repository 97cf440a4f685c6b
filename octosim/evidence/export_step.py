"""The training step of a run as one C99 program: the calls of a step on static memory, into the core's reference kernels.

    void octosim_init(void);                                             before the first step: the weights that the run began with
    int octosim_images(void);                                            images of the next step
    int octosim_step(const octosim_pixel *, const octosim_label *, float *loss);   0, or a status with octosim_error()

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

from octosim import core, train
from octosim.core.call import ffi
from octosim.engine import plan
from octosim.engine.nodes import Array
from octosim.errors import OctosimError
from octosim.evidence import core_source
from octosim.evidence.export_c import FLAGS
from octosim.evidence.step_record import TYPES, Call, Recorded, Recording, Region, record

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
/* A step on so many images and their labels.  Returns 0, or a status, whose sentence octosim_error() has.  OCTOSIM_STEPS are the
   run's; later ones have the learning rate of the last. */
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

SLOTS = re.compile(r"OCTO_SLOT_[A-Z]+\b")


@dataclass(frozen=True)
class Program:
    """files: their text by name.  ram: bytes by what they hold: "state", "values", "scratch".  initial: bytes of initial values and
    other constants."""

    files: dict[str, str]
    ram: dict[str, int]
    initial: int
    recording: Recording


# ---- literals --------------------------------------------------


def _float(value: float) -> str:
    value = float(np.float32(value))
    return f"{value.hex()}f"


def _integer(value: int, kind: str) -> str:
    if kind.startswith("u"):
        return f"{value % 2**64}u" if value < 2**32 else f"{value % 2**64}ull"
    if value == -(2**63):
        return "(-9223372036854775807LL - 1)"
    if value == -(2**31):
        return "(-2147483647 - 1)"
    return str(value) if abs(value) < 2**31 else f"{value}LL"


def _literals(kind: str, content: bytes) -> list[str] | None:
    """The elements of an array as C has them; None where a float is infinite or NaN."""
    dtype = next((dtype for dtype, name in TYPES.items() if name == kind), np.dtype(np.float64))
    values = np.frombuffer(content, dtype)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            return None
        suffix = "f" if kind == "float" else ""
        return [each.hex() + suffix for each in values.tolist()]
    return [_integer(each, kind) for each in values.tolist()]


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


# ---- the writer --------------------------------------------------


class _Writer:
    """Names of memory and the text of calls."""

    def __init__(self, made: Recording) -> None:
        self.made = made
        self.names: dict[int, str] = {}  # of regions that stay, by address
        self.constants: list[str] = []
        self.states: list[str] = []
        self.begin: list[str] = []
        self.structs: dict[str, str] = {}  # by text, the name
        self.state = self.flash = 0
        memory, used = made.memory, set[str]()
        owner = {memory.at(t.__array_interface__["data"][0]).start: name for name, t in made.tensors.items() if t.nbytes}
        special = {
            memory.at(made.labels.__array_interface__["data"][0]).start: "step_labels",
            memory.at(int(ffi.cast("uintptr_t", made.step.at))).start: "step_number",
        } | {memory.at(int(ffi.cast("uintptr_t", n.at))).start: f"rate_{i}" for i, n in enumerate(made.numbers)}
        self.images = memory.at(made.images.__array_interface__["data"][0]).start
        for region in memory.regions:
            if region.start not in made.initial:
                continue
            if region.start == self.images:
                self.names[region.start] = "images"
                continue
            given = special.get(region.start) or owner.get(region.start)
            name = _identifier(given) if given else f"{_identifier(region.name)}_{len(self.names)}"
            while name in used:
                name += "_"
            used.add(name)
            self.names[region.start] = name
            self._declare(region, name, region.start in made.written or not region.arrays)

    def _declare(self, region: Region, name: str, changes: bool) -> None:
        kind, content = region.kind, self.made.initial[region.start]
        count = region.size // ffi.sizeof(kind)
        literals = None if kind.startswith("octo_") else _literals(kind, content)
        if literals is None and any(content):
            kind, changes = "uint32_t" if kind == "float" else kind, True
            literals = _literals("uint32_t" if kind == "uint32_t" else "uint8_t", content)
        many = f"[{count}]"
        if not changes:
            self.constants.append(f"static const {kind} {name}{many} = {{\n{_wrapped(literals or [])}\n}};")
            self.flash += region.size
            return
        self.states.append(f"static {region.kind} {name}{many};")
        self.state += region.size
        if not any(content):
            self.begin.append(f"    memset({name}, 0, sizeof {name});")
            return
        held = kind if not kind.startswith("octo_") else "uint8_t"
        self.constants.append(f"static const {held} first_{name}[] = {{\n{_wrapped(literals or [])}\n}};")
        self.begin.append(f"    memcpy({name}, first_{name}, sizeof {name});")
        self.flash += region.size

    # ---- arguments

    def pointer(self, address: int, kind: str) -> str:
        """A pointer to elements of a type."""
        region = self.made.memory.at(address)
        offset = address - region.start
        if region.start in self.made.arena:
            return f"AT({kind}, {self.made.arena[region.start] + offset})"
        name = self.names[region.start]
        if region.kind == kind and offset % ffi.sizeof(kind) == 0:
            return f"{name} + {offset // ffi.sizeof(kind)}" if offset else name
        field = self._field(region, offset)
        if field and field[1] == kind:
            return f"&{name}[{field[2]}].{field[0]}"
        const = "" if region.start in self.made.written or not region.arrays else "const "
        inside = f"(({const}char *){name} + {offset})" if offset else name
        return f"({const}{kind} *)({const}void *){inside}"

    def value(self, address: int, kind: str) -> str:
        """The number at an address."""
        region = self.made.memory.at(address)
        offset = address - region.start
        name = self.names.get(region.start)
        if name and region.kind == kind and offset % ffi.sizeof(kind) == 0:
            return f"{name}[{offset // ffi.sizeof(kind)}]"
        field = self._field(region, offset)
        if name and field and field[1] == kind:
            return f"{name}[{field[2]}].{field[0]}"
        return f"*{self.pointer(address, kind)}" if "(" in self.pointer(address, kind) else f"*({self.pointer(address, kind)})"

    @staticmethod
    def _field(region: Region, offset: int) -> tuple[str, str, int] | None:
        if not region.kind.startswith("octo_"):
            return None
        index, offset = divmod(offset, ffi.sizeof(region.kind))
        for name, field in ffi.typeof(region.kind).fields:
            if field.offset == offset:
                return name, field.type.cname, index
        return None

    def argument(self, argument: Any, parameter: str, local: list[str]) -> str:
        """An argument of a call, as the core's replay takes it."""
        base = re.sub(r"\bconst\b|\*|\w+$", "", parameter).strip()
        if isinstance(argument, core.Scalar) and "*" not in parameter:
            held = ffi.typeof(argument.at).item.cname
            text = self.value(int(ffi.cast("uintptr_t", argument.at)), held)
            return text if held == base else f"({base}){text}"
        if "*" in parameter:
            at = argument.at if isinstance(argument, core.Scalar) else argument
            if at == ffi.NULL:
                return "NULL"
            if parameter.count("*") == 2:
                listed = ", ".join(self.pointer(int(ffi.cast("uintptr_t", each)), base) for each in at)
                return self._named(f"static const {base} *const {{}}[] = {{{{{listed}}}}};", "list", local, "images" in listed)
            if base.startswith("octo_") and "const" in parameter:
                text = self._struct(ffi.cast(f"{base} *", at)[0], ffi.typeof(base))
                return "&" + self._named(f"static const {base} {{}} = {text.replace('{', '{{').replace('}', '}}')};",
                                         base.removeprefix("octo_"), local, "images" in text)  # fmt: skip
            return self.pointer(int(ffi.cast("uintptr_t", at)), base)
        if base == "float":
            return _float(float(argument))
        if base == "double":
            return float(argument).hex()
        return _integer(int(argument) % 2**64 if base == "uint64_t" else int(argument), base)

    def _named(self, text: str, prefix: str, local: list[str], inside: bool) -> str:
        if inside:  # it points to an argument of the function
            name = f"{prefix}_here_{len(local)}"
            local.append("    " + text.removeprefix("static ").format(name))
            return name
        if text not in self.structs:
            self.structs[text] = f"{prefix}_{len(self.structs)}"
        return self.structs[text]

    def _struct(self, value: Any, kind: Any) -> str:
        parts = []
        for name, field in kind.fields:
            held = getattr(value, name)
            if field.type.kind == "pointer":
                at = int(ffi.cast("uintptr_t", held))
                parts.append(self.pointer(at, field.type.item.cname) if at else "NULL")
            elif field.type.kind == "array":
                parts.append("{" + ", ".join(_integer(int(each), field.type.item.cname) for each in held) + "}")
            elif field.type.cname == "float":
                parts.append(_float(held))
            else:
                parts.append(_integer(int(held), field.type.cname))
        return "{" + ", ".join(parts) + "}"

    def call(self, call: Call, local: list[str]) -> str:
        given = [
            self.argument(argument, parameter, local)
            for argument, parameter in zip(call.arguments, core_source.prototypes()[call.function], strict=True)
        ]
        text = ", ".join(given)
        return f"    TRY({call.function}({text}));"

    def step(self, number: int, tape: Recorded) -> str:
        local: list[str] = []
        lines: list[str] = []
        key: tuple[str, ...] = ()
        for call in tape.made:
            if call.key != key:
                key = call.key
                lines.append(f"    /* {', '.join(key)} */")
            lines.append(self.call(call, local))
        body = "\n".join([*local, *lines])
        unused = "" if re.search(r"\bimages\b", body) else "    (void)images;\n"
        return f"static int step_{number}(const octosim_pixel *images) {{\n{unused}{body}\n    return OCTO_OK;\n}}\n"


def _wrapped(words: Sequence[str]) -> str:
    return ",\n".join("    " + ", ".join(words[i : i + 12]) for i in range(0, len(words), 12))


# ---- the program --------------------------------------------------


def program(run: train.Run, compiler: Sequence[str] = ("cc",)) -> Program:
    """The training steps of a run that is before its first one; the run is good for nothing else afterwards.

    compiler: measures the scratch memory of the kernels.
    """
    c = run.config
    about = f"model {c.model}, data {run.data.name}, method {c.method}, seed {c.seed}, {run.steps} steps".replace("*/", "* /")
    made = record(run)
    w = _Writer(made)
    steps = [w.step(number, tape) for number, tape in enumerate(made.steps)]
    functions = sorted({call.function for tape in made.steps for call in tape.made})
    declared, defined = core_source.source([*functions, *core_source.RUNTIME])
    header = HEADER.format(
        about=about, batch=len(made.images), pixels=math.prod(made.images.shape[1:]), steps=run.steps, tensors=len(made.tensors),
        pixel=TYPES[made.images.dtype], label="uint8_t" if len(run.data.classes) <= 256 else "uint16_t",
    )  # fmt: skip
    top = HEAD.format(about=about) + declared
    body = f"{defined}\n{_memory(w)}\n" + "\n".join(steps) + _interface(made, w)
    needed = _scratch(header, top, body, made, compiler)
    main = (importlib.resources.files("octosim.evidence") / "training_main.c").read_text(encoding="utf-8")
    files = {"training.h": header, "training.c": top + _runtime(needed) + body, "main.c": main}
    return Program(files, {"state": w.state, "values": made.room, "scratch": sum(needed.values())}, w.flash, made)


def _memory(w: _Writer) -> str:
    structs = [text.format(name) for text, name in w.structs.items()]
    return (
        "/* ---- memory: numbers that the run began with, what changes, and values that come and go ---- */\n\n"
        + "\n".join([*w.constants, *w.states])
        + f"\nstatic union {{\n    double aligned[2];\n    uint8_t bytes[{max(1, w.made.room)}];\n}} arena __attribute__((aligned(16)));\n\n"
        "#define AT(type, offset) ((type *)(void *)(arena.bytes + (offset)))\n"
        "#ifndef TRY\n#define TRY(call)                     \\\n    do {                              \\\n        int status_ = (call);         \\\n"
        "        if (status_) return status_;  \\\n    } while (0)\n#endif\n\n" + "\n".join(structs) + "\n"
    )


def _interface(made: Recording, w: _Writer) -> str:
    rates, tensors = len(made.numbers), []
    for name, tensor in sorted(made.tensors.items()):
        text = json.dumps(f"{name} {tensor.dtype.str} {tensor.shape}\n")
        where = w.pointer(tensor.__array_interface__["data"][0], TYPES[tensor.dtype]) if tensor.nbytes else '""'
        tensors.append(f"    {{{text}, {where}, {tensor.nbytes}}}")
    rows = [
        f"    {{{entry.first}u, {entry.index}, {{{', '.join(float(n).hex() for n in entry.numbers)}}}}}" for entry in made.schedule
    ]
    w.flash += len(rows) * (8 + 8 * rates)
    losses = [w.value(tape.loss, made.memory.at(tape.loss).kind) for tape in made.steps]
    lines = ["    switch (now->step) {"]
    for number, loss in enumerate(losses):
        lines.append(f"    case {number}: status = step_{number}(images); *loss = (float){loss}; break;")
    lines += ["    default: break;", "    }"]
    counts = ", ".join(str(tape.images) for tape in made.steps)
    return f"""
/* ---- steps ---- */

/* From the step `first` on; the last row holds for ever. */
static const struct {{
    uint32_t first;
    int32_t step;
    double rates[{rates}];
}} schedule[] = {{
{(","+chr(10)).join(rows)}
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
{chr(10).join(lines).replace("now->step", "schedule[row].step")}
    return status;
}}

const octosim_tensor octosim_tensors[OCTOSIM_TENSORS] = {{
{(","+chr(10)).join(tensors)}
}};
"""


def _runtime(needed: dict[str, int]) -> str:
    memory = "".join(
        f"static double scratch_{slot.lower()}[{-(-size // 64) * 8}] __attribute__((aligned(64)));\n" for slot, size in needed.items()
    )
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
        binary = _compiled([path], (*compiler, "-std=gnu11", "-O1"), Path(folder) / "probe")
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


# ---- comparison --------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What octosim's own steps give: the batches as the program reads them, losses, and the digest after the last."""

    batches: bytes
    losses: list[np.float32]
    digest: str


def expected(run: train.Run, steps: int) -> Expected:
    """The first steps of a run that is before its first one."""
    label = np.uint8 if len(run.data.classes) <= 256 else np.uint16
    parts, losses = [], []
    for step in range(1, steps + 1):
        images, labels = run.batch(step)
        parts += [np.ascontiguousarray(images).tobytes(), labels.astype(label).tobytes()]
        losses.append(np.float32(run.train_step((images, labels))))
    return Expected(b"".join(parts), losses, run.digest())


def run_c(folder: Path, compiler: Sequence[str] = ("cc",), runner: Sequence[str] = ()) -> dict[str, Any]:
    """Compiles the program of a folder without a warning and runs it on its batches: "losses" as float32, "digest", and the bytes
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
    """Bytes at the peak of the plan's values and weights, without the core's own scratch memory and its recording."""
    step = plan.plan_like(run.network, run.config.batch_size, run.optimizer)
    parts = plan.memory(step)
    return parts["peak"] - plan.SCRATCH - plan.RECORDED * len(step.calls)


def export(folder: Path, steps: int | None) -> tuple[Program, Expected | None]:
    """The program of a run directory, and what octosim's own first steps give; none without `steps`."""
    own = expected(train.replay(folder), steps) if steps else None
    return program(train.replay(folder)), own


__all__ = ["Array", "Expected", "Program", "expected", "export", "planned", "program", "run_c"]
