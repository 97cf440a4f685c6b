"""cffi API-mode build of `octosim._core`: the declarations are octosim.h itself, between its two marks."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = sorted(path.name for path in HERE.glob("*.c") if path.name != "checkasm.c")
HEADERS = sorted(path.name for path in HERE.iterdir() if path.suffix in (".h", ".inc", ".def") and path.stem[:6] != "checks")


def declarations() -> str:
    """The part of octosim.h that cffi reads, comments included."""
    text = (HERE / "octosim.h").read_text()
    return text.split("/* cffi: begin */")[1].split("/* cffi: end */")[0]


ARGUMENT = {"float": "F(%d)", "double": "D(%d)", "int": "I(%d)", "uint32_t": "U(%d)", "int64_t": "(c->args[%d].i)",
            "uint64_t": "((uint64_t)c->args[%d].i)", "*": "((void *)c->args[%d].p)"}  # fmt: skip
"""How a parameter of a type is taken from an `octo_call`."""

REPLAY = """
#include <string.h>
#include <time.h>
#include "octosim.h"
#define NUMBER(at, type, held, field) (c->indirect >> (at) & 1 ? (type)*(const held *)c->args[at].p : (type)c->args[at].field)
#define F(at) NUMBER(at, float, float, d)
#define D(at) NUMBER(at, double, float, d)
#define I(at) NUMBER(at, int, int32_t, i)
#define U(at) NUMBER(at, uint32_t, uint32_t, i)
%(calls)s
static const struct { const char *name; int (*call)(const octo_call *); } replayed[] = {
%(rows)s
};
int octo_function(const char *name) {
    for (int i = 0; i < (int)(sizeof replayed / sizeof *replayed); i++)
        if (!strcmp(replayed[i].name, name)) return i;
    return -1;
}
static double now(int clock) {
    struct timespec t;
    clock_gettime((clockid_t)clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
int octo_replay(int64_t count, const octo_call *calls, int clock, double *seconds, int64_t *at) {
    double before = seconds ? now(clock) : 0;
    for (int64_t i = 0; i < count; i++) {
        int status = replayed[calls[i].function].call(calls + i);
        if (status) {
            *at = i;
            return status;
        }
        if (seconds) {
            double after = now(clock);
            seconds[i] = after - before, before = after;
        }
    }
    return OCTO_OK;
}
"""


def replay(declared: str) -> str:
    """octo_replay and what it calls: for each function with a status, one that takes its arguments from an octo_call."""
    calls, rows, most = [], [], int(re.search(r"OCTO_ARGUMENTS = (\d+)", declared)[1])
    for name, listed in re.findall(r"^int (octo_\w+)\(([^)]*)\);", declared, re.MULTILINE):
        if listed == "void" or name in ("octo_replay", "octo_function"):
            continue
        types = ["*" if "*" in each else each.split()[-2] for each in listed.split(",")]
        assert len(types) <= most, f"{name} has more parameters than an octo_call holds"
        taken = ", ".join(ARGUMENT[kind] % at for at, kind in enumerate(types))
        calls.append(f"static int call_{name}(const octo_call *c) {{ return {name}({taken}); }}")
        rows.append(f'    {{"{name}", call_{name}}},')
    return REPLAY % {"calls": "\n".join(calls), "rows": "\n".join(rows)}


# -fno-math-errno lets sqrtf become an instruction; it changes no result.  setup.py adds OpenMP where the compiler has it.
flags = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]

ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "octosim._core",
    replay(declarations()),
    sources=[f"cext/{name}" for name in SOURCES],
    depends=[f"cext/{name}" for name in HEADERS],
    include_dirs=["cext"],
    extra_compile_args=flags,
    py_limited_api=True,
)
