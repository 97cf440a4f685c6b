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
#define REAL(at, type) (c->indirect >> (16 + (at)) & 1 ? (type)*(const double *)c->args[at].p : NUMBER(at, type, float, d))
#define F(at) REAL(at, float)
#define D(at) REAL(at, double)
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
    uint64_t environment = octo_float_enter();
    double before = seconds ? now(clock) : 0;
    int status = OCTO_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        status = replayed[calls[i].function].call(calls + i);
        if (status) *at = i;
        if (seconds) {
            double after = now(clock);
            seconds[i] = after - before, before = after;
        }
    }
    octo_float_leave(environment);
    return status;
}
%(entered)s
"""

ENTERED = """static int entered_%(name)s(%(listed)s) {
    uint64_t environment = octo_float_enter();
    int status = %(name)s(%(names)s);
    octo_float_leave(environment);
    return status;
}
#define %(name)s entered_%(name)s"""
"""A function as Python calls it: in the floating-point environment of the definition, whatever its host has set.  There its
numbers become float32, too."""

FUNCTION = re.compile(r"^int (octo_\w+)\(([^)]*)\);", re.MULTILINE)


def in_double(listed: str) -> str:
    """Parameters of type float as double."""
    return re.sub(r"\bfloat (?=\w)", "double ", listed)


def for_python(declared: str) -> str:
    """The declarations of the functions that ENTERED defines."""
    return FUNCTION.sub(lambda found: f"int {found[1]}({in_double(found[2])});", declared)


def replay(declared: str) -> str:
    """octo_replay and what it calls: for each function with a status, one that takes its arguments from an octo_call; and the
    functions as Python calls them."""
    calls, rows, entered, most = [], [], [], int(re.search(r"OCTO_ARGUMENTS = (\d+)", declared)[1])
    for name, listed in FUNCTION.findall(declared):
        if listed == "void" or name in ("octo_replay", "octo_function", "octo_use_threads"):
            continue
        parameters = [each.split() for each in listed.split(",")]
        types = ["*" if "*" in "".join(words) else words[-2] for words in parameters]
        assert len(types) <= most, f"{name} has more parameters than an octo_call holds"
        taken = ", ".join(ARGUMENT[kind] % at for at, kind in enumerate(types))
        calls.append(f"static int call_{name}(const octo_call *c) {{ return {name}({taken}); }}")
        rows.append(f'    {{"{name}", call_{name}}},')
        names = ", ".join(words[-1].lstrip("*") for words in parameters)
        entered.append(ENTERED % {"name": name, "listed": in_double(listed), "names": names})
    return REPLAY % {"calls": "\n".join(calls), "rows": "\n".join(rows), "entered": "\n".join(entered)}


# -fno-math-errno lets sqrtf become an instruction; it changes no result.  setup.py adds OpenMP where the compiler has it.
flags = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]

ffi = FFI()
ffi.cdef(for_python(declarations()))
ffi.set_source(
    "octosim._core",
    replay(declarations()),
    sources=[f"cext/{name}" for name in SOURCES],
    depends=[f"cext/{name}" for name in HEADERS],
    include_dirs=["cext"],
    extra_compile_args=flags,
    extra_link_args=["-pthread"],  # before glibc 2.34 pthread_atfork is in a library of its own
    py_limited_api=True,
)
