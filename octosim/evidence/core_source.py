"""The C core's own reference kernels as one C99 text that holds only what some of its functions need.

The text is cut into top-level pieces (a function, a type, a macro, a conditional); a piece is kept if a piece that is kept uses
its name.  `FN(name)` is spelled out, and a kernel is called directly instead of through the table of an instruction set.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path

PARAMETERS = ("FN", "TARGET", "KIND", "OPERAND", "PRODUCT", "RESULT", "SUM", "POOL_LANES", "LANED")
"""Macros that a file of kernels defines for the file that it includes."""

HEADERS = ("octosim.h", "kernels.h", "dispatch.h")
REGISTER = "register.inc"
"""Products in a narrow accumulator."""
RUNTIME = ("octo_fail", "octo_scratch", "octo_threads")
"""Functions of dispatch.c, which needs an operating system; who uses this text defines them."""

_WORD = re.compile(r"[A-Za-z_]\w*")
_CALLED = re.compile(r"([A-Za-z_]\w*)\s*\(")
_PLAIN = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL)
_ATTRIBUTE = re.compile(r"__attribute__\s*\(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\)")
_DEFINE = re.compile(r"#\s*define\s+(\w+)(?:\((\w+)\))?[ \t]*(.*)")


def _folder() -> Traversable:
    package = importlib.resources.files("octosim") / "cext"
    return package if package.is_dir() else Path(__file__).resolve().parents[2] / "cext"


def read(name: str) -> str:
    """A source file of the core."""
    return (_folder() / name).read_text(encoding="utf-8")


@dataclass
class Piece:
    """kind: "function", "macro", "undef", "include", "pragma" or "other".  names: what it
    defines.  words, calls: what it uses."""

    text: str
    kind: str
    names: tuple[str, ...]
    file: str
    words: frozenset[str] = field(init=False)
    calls: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        plain = re.sub(r"\bFN\((\w+)\)", r"FN (\1_ref)(", _PLAIN.sub(" ", self.text))
        self.words, self.calls = frozenset(_WORD.findall(plain)), frozenset(_CALLED.findall(plain))


# ---- inclusion --------------------------------------------------


def _expanded(line: str, macros: Mapping[str, tuple[str | None, str]], whole: bool) -> str:
    """A line with the parameters of the file of kernels spelled out.  whole: those with an argument, too, which in
    another macro may be an argument of that."""
    before = None
    while before != line:
        before = line
        for name, (argument, body) in macros.items():
            if argument is None:
                line = re.sub(rf"\b{name}\b( ?)", body + r"\1" if body else "", line)
            elif whole:
                line = re.sub(rf"\b{name}\((\w+)\)", re.sub(rf"\b{argument}\b", r"\\1", body).replace("##", ""), line)
    return line


def _lines(name: str, macros: dict[str, tuple[str | None, str]]) -> Iterator[str]:
    """The lines of a file with those of its .inc files, without its guard and without threads."""
    skipping: list[bool] = []  # of each #ifdef _OPENMP: whether its lines are left out
    depth = 0
    guard = in_macro = False
    lines = read(name).splitlines()
    for number, line in enumerate(lines):
        bare = line.strip()
        if number + 1 < len(lines) and re.fullmatch(r"#ifndef \w+_H", bare):
            guard = True
            continue
        if guard and (re.fullmatch(r"#define \w+_H", bare) or number == len(lines) - 1):
            continue
        if bare == "#ifdef _OPENMP":
            skipping.append(True)
            depth = 0
            continue
        if skipping and bare.startswith("#if"):
            depth += 1
        elif skipping and depth == 0 and bare in ("#else", "#endif"):
            skipping = [] if bare == "#endif" else [not skipping[-1]]
            continue
        elif skipping and bare == "#endif":
            depth -= 1
        if skipping and skipping[-1]:
            continue
        included = re.fullmatch(r'#include "([^"]+)"', bare)
        if included:
            if included[1].endswith(".inc"):
                yield from _lines(included[1], macros)
            continue
        defined = _DEFINE.fullmatch(bare)
        if defined and defined[1] in PARAMETERS:
            macros[defined[1]] = defined[2], defined[3]
            if defined[1] != "FN":
                continue
        if bare.startswith("#undef") and bare.split()[1] in PARAMETERS:
            macros.pop(bare.split()[1], None)
            continue
        in_macro = bare.startswith("#define") or in_macro and lines[number - 1].endswith("\\")
        yield _expanded(line, macros, not in_macro) if macros else line


def _text(name: str) -> str:
    text = "\n".join(_lines(name, {})) + "\n"
    text = re.sub(r"\(\*\(\(struct octo_kernels \*\)NULL\)->(\w+)\)", r"(\1_ref)", text)  # the type of a kernel
    return re.sub(r"\bocto_table\.(\w+)", r"\1_ref", text)


# ---- pieces --------------------------------------------------


def _end(text: str, at: int) -> int:
    """Where the piece that begins at `at` ends: behind its `;`, or the brace that closes a function's body."""
    depth, body, start = 0, False, at
    while at < len(text):
        skipped = _PLAIN.match(text, at)
        if skipped:
            at = skipped.end()
            continue
        c = text[at]
        if c in "([{":
            body = body or (c == "{" and depth == 0 and _ATTRIBUTE.sub("", text[start:at]).rstrip().endswith(")"))
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth == 0 and c == "}" and body:
                return at + 1
        elif c == ";" and depth == 0:
            return at + 1
        at += 1
    return at


def _directive(text: str, at: int) -> int:
    """Where a directive at `at` ends; one of a condition with all up to its #endif."""
    depth = 0
    while True:
        end = text.index("\n", at)
        while text[end - 1] == "\\":
            end = text.index("\n", end + 1)
        word = re.match(r"\s*#\s*(if|endif)", text[at:end])
        if word:
            depth += 1 if word[1] == "if" else -1
        if depth == 0:
            return end + 1
        at = end + 1


def _names(text: str) -> tuple[str, tuple[str, ...]]:
    """Kind and names of a declaration or definition."""
    plain = _ATTRIBUTE.sub("", _PLAIN.sub(" ", text)).strip()
    enum = re.match(r"enum\s*(\w*)\s*\{(.*?)\}", plain, re.DOTALL)
    if enum:
        return "other", tuple(filter(None, (enum[1], *re.findall(r"(?:^|,)\s*(\w+)", enum[2]))))
    struct = re.match(r"(?:struct|union)\s+(\w+)\s*\{", plain)
    if struct:
        return "other", (struct[1],)
    if plain.startswith("typedef"):
        last = re.search(r"(\w+)\s*(?:\([^()]*\)\s*)?;$", plain)
        return "other", (last[1],) if last else ()
    head = plain.split("{")[0]
    if "=" in head or "(" not in head:
        variable = re.search(r"(\w+)\s*(?:\[[^=]*)?(?:=|;|$)", head)
        return "other", (variable[1],) if variable else ()
    called = re.search(r"(\w+)\s*\((?:[^()]|\([^()]*\))*\)\s*;?$", head.strip())
    return "function", (called[1],) if called else ()


def pieces(file: str) -> list[Piece]:
    """The top-level pieces of a source file, each with the comment before it."""
    text, found, start = _text(file), list[Piece](), 0
    at = 0
    while True:
        space = re.compile(r"\s*").match(text, at)
        at = space.end() if space else at
        comment = re.compile(r"/\*.*?\*/", re.DOTALL).match(text, at)
        if comment:
            at = comment.end()
            continue
        if at >= len(text):
            return found
        lead = re.sub(r"/\* (?:-{3,}|cffi:).*?\*/", "", text[start:at].strip())
        lead = lead[lead.rindex("/*") :] + "\n" if "/*" in lead else ""
        if text[at] == "#":
            end = _directive(text, at)
            body = text[at:end].rstrip("\n")
            names = tuple(re.findall(r"^[ \t]*#\s*define\s+(\w+)", body, re.MULTILINE))
            names += tuple(re.findall(r"^static inline \w+ (\w+)\(", body, re.MULTILINE))
            kind = "macro"
            if body.startswith("#undef"):
                kind, names = "undef", (body.split()[1],)
            elif body.startswith("#include"):
                kind = "include"
            elif not names or "pragma STDC" in body:
                kind = "pragma"
            found.append(Piece(body if kind == "include" else lead + body, kind, names, file))
        else:
            end = _end(text, at)
            # an invocation of a macro belongs to the definition behind it, with the directives between
            invoked = re.compile(r"[A-Z_]+\([A-Z_]+\)\n").match(text, at)
            if invoked:
                end = invoked.end()
                while text[end] == "#":
                    directive = _directive(text, end)
                    end = directive
                end = _end(text, end)
            kind, names = _names(text[at:end] if not invoked else text[text.rindex("\nstatic", at, end) : end])
            found.append(Piece(lead + text[at:end], kind, names, file))
        start = at = end


def api_files() -> list[str]:
    """The files of the public functions."""
    return sorted(each.name for each in _folder().iterdir() if each.name.startswith("api_") and each.name.endswith(".c"))


@cache
def _all() -> tuple[Piece, ...]:
    return tuple(piece for name in (*HEADERS, "ref.c", REGISTER, *api_files()) for piece in pieces(name))


@cache
def prototypes() -> dict[str, tuple[str, ...]]:
    """The parameters of each function that returns a status, by its name, as octosim.h declares or REGISTER defines them."""
    declared = re.findall(r"^int (octo_\w+)\(([^)]*)\);", read("octosim.h"), re.MULTILINE)
    declared += re.findall(r"^static int (octosim_\w+)\(([^)]*)\) \{", read(REGISTER), re.MULTILINE)
    return {name: tuple(re.sub(r"\s+", " ", each).strip() for each in listed.split(",")) for name, listed in declared}


def source(functions: Iterable[str]) -> tuple[str, str]:
    """The declarations and the definitions that functions of octosim.h need, in their order; to be put around RUNTIME."""
    every = _all()
    by_name: dict[str, list[int]] = {}
    for number, piece in enumerate(every):
        if piece.kind not in ("undef", "pragma"):
            for name in piece.names:
                by_name.setdefault(name, []).append(number)
    kept: set[int] = set()
    waiting = [number for name in functions for number in by_name[name]]
    while waiting:
        number = waiting.pop()
        if number in kept:
            continue
        kept.add(number)
        piece = every[number]
        for word in piece.words:
            for other in by_name.get(word, ()):
                one = every[other]
                if one.kind == "function" and word not in piece.calls and not re.search("^octo_|_ref$", word):
                    continue  # a variable of that name
                private = one.file.startswith("api_") and not word.startswith("octo_")
                if not (private and one.file != piece.file):
                    waiting.append(other)
    parts: dict[bool, list[str]] = {True: [], False: []}
    files = {every[i].file for i in kept} | {"kernels.h"}
    included = sorted({piece.text for piece in every if piece.kind == "include" and piece.file in files})
    for number, piece in enumerate(every):
        used = number in kept or piece.kind == "pragma" and "STDC" in piece.text
        if piece.kind == "undef":
            used = any(every[i].file == piece.file and i in kept for i in by_name.get(piece.names[0], ()))
        if used:
            parts[piece.file in HEADERS].append(piece.text)
        last = number + 1 == len(every) or every[number + 1].file != piece.file
        if last and piece.file.startswith("api_"):
            mine = [every[i] for i in sorted(kept) if every[i].file == piece.file and every[i].kind == "macro"]
            undone = {each.names[0] for each in every if each.kind == "undef" and each.file == piece.file}
            lines = [f"#undef {name}" for each in mine for name in each.names if name not in undone]
            parts[False] += ["\n".join(lines)] if lines else []
    return "\n".join(included) + "\n\n" + "\n\n".join(parts[True]) + "\n", "\n\n".join(parts[False]) + "\n"
