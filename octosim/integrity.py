"""Whether the files of a run directory are as they were written: sums, which need neither the core nor a replay."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octosim.errors import OctosimError
from octosim.files import JSON_BYTES, open_regular, parse_json, read_bytes

LINES = ("records.jsonl", "overflow.jsonl", "measures.jsonl")
"""The files that grow with the steps and are the same in each run of a manifest."""


def sha256_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def field_sums(content: dict[str, Any]) -> dict[str, str]:
    """A short sum of each field of a manifest, and of each field inside those that are objects."""
    made: dict[str, str] = {}
    for key, value in content.items():
        inner = {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {}
        made |= {name: sha256_of(each)[:16] for name, each in (inner or {key: value}).items()}
    return made


def changed_fields(content: dict[str, Any]) -> list[str]:
    """The fields of a manifest whose sums are not those that were written with them; none without sums (octosim 0.1)."""
    if "sums" not in content:
        return []
    written = content["sums"] if isinstance(content["sums"], dict) else {}
    found = field_sums({key: value for key, value in content.items() if key != "sums"})
    return [name for name in {**found, **written} if found.get(name) != written.get(name)]


def refuse_changed(folder: Path, changed: list[str]) -> None:
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise OctosimError(f"{folder / 'manifest.json'}: field {changed[0]}{more} is not as it was written; the run is damaged")


def is_format(value: Any, expected: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == expected


@dataclass
class Part:
    """The beginning of a .jsonl file: how much of it belongs to a checkpoint."""

    lines: int = 0
    size: int = 0  # bytes
    hash: Any = field(default_factory=hashlib.sha256)

    def add(self, content: bytes) -> None:
        """Takes whole lines."""
        self.lines += content.count(b"\n")
        self.size += len(content)
        self.hash.update(content)

    def told(self) -> dict[str, Any]:
        return {"lines": self.lines, "bytes": self.size, "sha256": self.hash.hexdigest()}


def part_of(path: Path, limit: int | None = None) -> Part:
    """A file's first `limit` bytes, all if None; an empty part where there is no file."""
    part = Part()
    try:
        with open_regular(path) as file:
            while content := file.read(1 << 20 if limit is None else min(1 << 20, limit - part.size)):
                part.add(content)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OctosimError(f"{path} cannot be read: {error.strerror}") from None
    return part


def are_parts(value: Any) -> bool:
    """Whether a value has the shape of the sums of records."""
    if not isinstance(value, dict) or not set(value) <= set(LINES):
        return False
    counts = [part.get(name) if isinstance(part, dict) else None for part in value.values() for name in ("lines", "bytes")]
    return all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)


def check_parts(folder: Path, about: dict[str, Any]) -> dict[str, Part]:
    """The parts of the records whose sums a checkpoint's metadata have; OctosimError where they are not what they were then."""
    told, step, parts = about["records"], about["step"], {}
    for name in LINES:
        held = told.get(name, Part().told())
        part = parts[name] = part_of(folder / name, held["bytes"])
        if part.told() != held:
            kind = "is missing or shorter than" if part.size < held["bytes"] else "differs from"
            raise OctosimError(f"{folder / name} {kind} what it was at the checkpoint of step {step}; the run is damaged")
    if parts["records.jsonl"].lines != step:
        raise OctosimError(f"{folder / 'records.jsonl'}: the checkpoint of step {step} was saved without all records")
    return parts


def check_about(path: Path, about: dict[str, Any], content: dict[str, Any]) -> None:
    """OctosimError where the metadata of a checkpoint are not those that were saved, or belong to another manifest."""
    if about.get("sum") != sha256_of({name: value for name, value in about.items() if name != "sum"}):
        raise OctosimError(f"{path}: its metadata are not as they were saved; the checkpoint is damaged")
    if about.get("decides") != sha256_of(content["decides"]):
        raise OctosimError(f"{path} is the checkpoint of another run than its manifest's")
    if about.get("manifest_sums") and "sums" not in content:
        raise OctosimError(f"{path.with_name('manifest.json')}: field sums is missing; the run is damaged")


def check_told(folder: Path, content: dict[str, Any]) -> None:
    """OctosimError where a run's manifest, records or digest.txt are not those that were written, as far as sums tell.

    content: the manifest.  Tensors are not read; a run without a checkpoint, or of octosim 0.1, has fewer sums.
    """
    refuse_changed(folder, changed_fields(content))
    path = folder / "checkpoint.safetensors"
    if not os.path.lexists(path):
        return
    about = _header(path)
    if about is None:
        return
    check_about(path, about, content)
    check_parts(folder, about)
    end = folder / "digest.txt"
    if end.exists() and read_bytes(end, 1000) != f"sha256:{about['sha256']}  step {about['step']}\n".encode():
        raise OctosimError(f"{end} is not the digest of the checkpoint beside it; the run is damaged")


def _header(path: Path) -> dict[str, Any] | None:
    """The metadata of a checkpoint, without its tensors; None of octosim 0.1's."""
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(min(size, JSON_BYTES))
    except OSError as error:
        raise OctosimError(f"{path} cannot be read: {error.strerror}") from None
    header = parse_json(text, f"{path}: its header")
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text_of = metadata.get("octosim") if isinstance(metadata, dict) else None
    if text_of is None:
        return None
    about = parse_json(str(text_of).encode(errors="replace"), f"{path}: its metadata")
    if not isinstance(about, dict) or not are_parts(about.get("records")) or "step" not in about or "sha256" not in about:
        raise OctosimError(f"{path} cannot be read: its metadata are not a checkpoint's")
    return about
