"""The C text of recorded steps: names of memory, literals, calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from octosim import core
from octosim.core.call import ffi
from octosim.evidence import core_source
from octosim.evidence.step_record import TYPES, Call, Recorded, Recording, Region, address_of

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
    return re.sub(r"^(?=\d)", "layer_", re.sub(r"\W", "_", name))


# ---- the writer --------------------------------------------------


class Writer:
    """Names of memory and the text of calls."""

    def __init__(self, recording: Recording) -> None:
        self.made = recording
        self.names: dict[int, str] = {}  # of regions that stay, by address
        self.constants: list[str] = []
        self.states: list[str] = []
        self.begin: list[str] = []
        self.structs: dict[str, str] = {}  # by text, the name
        self.state = self.flash = 0
        memory, used = recording.memory, set[str]()
        owner = {memory.of(t).start: name for name, t in recording.tensors.items() if t.nbytes}
        special = {
            memory.of(recording.labels).start: "step_labels",
            memory.of(recording.step).start: "step_number",
        } | {memory.of(n).start: f"rate_{i}" for i, n in enumerate(recording.numbers)}
        self.images = memory.of(recording.images).start
        for region in memory.regions:
            if region.start not in recording.initial:
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
            self._declare(region, name, region.start in recording.written or not region.arrays)

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

    def tensor(self, name: str) -> str:
        """The array that a tensor of the run is."""
        return self.names[self.made.memory.of(self.made.tensors[name]).start]

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
        pointer = self.pointer(address, kind)
        return f"*{pointer}" if "(" in pointer else f"*({pointer})"

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
            text = self.value(address_of(argument), held)
            return text if held == base else f"({base}){text}"
        if "*" in parameter:
            at = argument.at if isinstance(argument, core.Scalar) else argument
            if at == ffi.NULL:
                return "NULL"
            if parameter.count("*") == 2:
                listed = ", ".join(self.pointer(address_of(each), base) for each in at)
                return self._named(f"static const {base} *const {{}}[] = {{{{{listed}}}}};", "list", local, "images" in listed)
            if base.startswith("octo_") and "const" in parameter:
                text = self._struct(ffi.cast(f"{base} *", at)[0], ffi.typeof(base))
                return "&" + self._named(f"static const {base} {{}} = {text.replace('{', '{{').replace('}', '}}')};",
                                         base.removeprefix("octo_"), local, "images" in text)  # fmt: skip
            return self.pointer(address_of(at), base)
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
                at = address_of(held)
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
