"""Run directories and bench files, checked while they are read; the page is made from sound values only."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from octosim import outcome
from octosim.errors import OctosimError
from octosim.files import JSON_BYTES, LINE_BYTES, json_value, open_regular, read_bytes
from octosim.integrity import check_told

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A training run as found on disk.  records: a row a step of step, epoch, loss, test_accuracy (0..1), test_loss."""

    name: str
    path: Path
    manifest: dict[str, Any]
    records: pd.DataFrame
    timing: list[dict[str, Any]]  # of each checkpoint: wall_s (seconds), images_per_s
    digest: str | None  # "sha256:<hex>"; None: unfinished
    notes: tuple[str, ...]
    failure: str = ""  # why it ended before its last step, in one sentence, where its folder or its study says so

    @property
    def decides(self) -> dict[str, Any]:
        return self.manifest["decides"]

    @property
    def caveats(self) -> list[str]:
        """What of the method did not act, of a finished run."""
        return outcome.caveats(self.manifest)

    @property
    def environment(self) -> dict[str, Any]:
        return self.manifest["environment"]


@dataclass(frozen=True)
class Study:
    """What a study's folder says of its runs.  reasons: why runs broke off, by the name of their folder."""

    path: Path
    title: str
    about: str
    reasons: dict[str, str]


@dataclass(frozen=True)
class Records:
    """All that was found at the paths of a report.  skipped: (path, reason)."""

    runs: list[Run]
    benches: list[Bench]
    studies: list[Study]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class Bench:
    """A bench file: predicted and measured seconds per layer and pass (the JSON of `octosim bench`, checked)."""

    name: str
    path: Path
    data: dict[str, Any]


# Characters that HTML or UTF-8 cannot carry: C0/C1 controls (except tab and newline), lone surrogates, noncharacters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_KINDS: dict[str, Callable[[Any], bool]] = {
    "an object": lambda v: isinstance(v, dict),
    "a list": lambda v: isinstance(v, list),
    "a string": lambda v: isinstance(v, str),
    "a whole number": lambda v: isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**63,
    "a number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= 1e300,
    # The comparison is false for NaN and infinity and cannot overflow for a huge int.
    "a number >= 0": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1e300,
}

Fields = Iterable[tuple[str, str]]  # (dotted name, key of _KINDS)

_MANIFEST_FIELDS = (
    ("decides.octosim", "a string"),
    ("decides.model", "a string"),
    ("decides.data.name", "a string"),
    ("decides.method.name", "a string"),
    ("decides.method.parameters", "an object"),
    ("decides.seed", "a whole number"),
    ("environment.cpu", "a string"),
    ("environment.isa", "a string"),
    ("environment.threads", "a whole number"),
    ("command", "a string"),
)
_BENCH_FIELDS = (
    ("model", "a string"),
    ("batch_size", "a whole number"),
    ("method", "a string"),
    ("device.name", "a string"),
    ("device.title", "a string"),
    ("environment.cpu", "a string"),
    ("environment.isa", "a string"),
    ("environment.threads", "a whole number"),
    ("layers", "a list"),
    ("total", "an object"),
    ("command", "a string"),
)
_ROW_FIELDS = (("layer", "a string"), ("pass", "a string"), ("macs", "a number >= 0"), ("bytes", "a number >= 0"))
_ROW_OPTIONAL = (
    ("predicted", "an object"),
    ("predicted.time_s", "a number >= 0"),
    ("predicted.bound", "a string"),
    ("measured", "an object"),
    ("measured.median_s", "a number >= 0"),
    ("measured.p25_s", "a number >= 0"),
    ("measured.p75_s", "a number >= 0"),
    ("measured.n", "a whole number"),
)
_TOTAL_OPTIONAL = tuple(
    (key, "a number >= 0") for key in ("time_s", "p25_s", "p75_s", "predicted_time_s", "macs", "bytes")
)
_PEER_FIELDS = (("time_s", "a number >= 0"), ("ratio", "a number >= 0"))


def printable(value: Any) -> Any:
    """The same JSON value with every character that a page cannot carry replaced by U+FFFD."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [printable(v) for v in value]
    if isinstance(value, dict):
        return {printable(k): printable(v) for k, v in value.items()}
    return value


def _load(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = file.read(JSON_BYTES + 1)
        if len(content) > JSON_BYTES:
            raise OctosimError(f"{path.name} is larger than {JSON_BYTES:,} bytes")
        value = printable(json_value(content))
    except OSError as error:
        raise OctosimError(f"{path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise OctosimError(f"{path.name} is not valid JSON: {str(error).removeprefix('it is not JSON: ')}") from error
    if not isinstance(value, dict):
        raise OctosimError(f"{path.name}: expected a JSON object")
    return value


def lookup(value: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def check(where: str, value: Any, required: Fields, optional: Fields = ()) -> None:
    if not isinstance(value, dict):
        raise OctosimError(f"{where}: expected an object")
    for dotted, kind in required:
        found = lookup(value, dotted)
        if found is None:
            raise OctosimError(f"{where}: field {dotted} is missing, expected {kind}")
        if not _KINDS[kind](found):
            raise OctosimError(f"{where}: field {dotted} is {str(found)[:40]!r}, expected {kind}")
    for dotted, kind in optional:
        found = lookup(value, dotted)
        if found is not None and not _KINDS[kind](found):
            raise OctosimError(f"{where}: field {dotted} is {str(found)[:40]!r}, expected {kind} or null")


def _check_header(where: str, value: dict[str, Any], kind: str) -> None:
    if value.get("format") != FORMAT:
        raise OctosimError(f"{where}: format is {value.get('format')!r}, this octosim reads format {FORMAT}")
    if value.get("kind") != kind:
        raise OctosimError(f"{where}: kind is {value.get('kind')!r}, expected {kind!r}")


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.  Only its last line may be cut off (a run that was killed); that is noted."""
    rows: list[dict[str, Any]] = []
    try:
        with open_regular(path) as file:
            number = 0
            for line in iter(lambda: file.readline(LINE_BYTES + 1), b""):
                if not line.strip():
                    continue
                number += 1
                if len(line) > LINE_BYTES:
                    raise OctosimError(f"{path.name}: line {number} is longer than {LINE_BYTES:,} bytes")
                try:
                    row = json_value(line)
                except ValueError as error:
                    if not file.read(1):
                        notes.append(f"{path.name}: line {number} (the last) is cut off; the {number - 1} before it are used.")
                        break
                    raise OctosimError(f"{path.name}: line {number} is not valid JSON") from error
                if not isinstance(row, dict):
                    raise OctosimError(f"{path.name}: line {number}: expected an object")
                rows.append(row)
    except OSError as error:
        raise OctosimError(f"{path.name} cannot be read: {error.strerror}") from error
    return rows


_RECORD_COLUMNS = ("step", "epoch", "loss", "test_accuracy", "test_loss")


def _read_records(path: Path, notes: list[str]) -> pd.DataFrame:
    rows = read_lines(path, notes)
    whole = _KINDS["a whole number"]
    for number, row in enumerate(rows, start=1):
        for key in ("step", "epoch"):
            if not whole(row.get(key)) or row[key] < 0:
                raise OctosimError(f"{path.name}: line {number}: field {key} is missing or not a whole number >= 0")
        for key in ("loss", "test_accuracy", "test_loss"):
            value = row.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise OctosimError(f"{path.name}: line {number}: field {key} is not a number")
        if (accuracy := row.get("test_accuracy")) is not None and (accuracy < 0 or accuracy > 1):
            raise OctosimError(f"{path.name}: line {number}: test_accuracy is {accuracy}, expected 0 to 1")
    broken = [row["step"] for row in rows if "loss" in row and not _is_finite(row["loss"])]
    if broken:
        notes.append(f"The training loss is not a finite number in {len(broken)} records, first at step {broken[0]}.")
    if repeated := sum(1 for n in Counter(row["step"] for row in rows if "loss" in row).values() if n > 1):
        notes.append(f"records.jsonl repeats {repeated} steps; the last line of each is used.")
    return _table(rows)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame({key: [_finite(row.get(key)) for row in rows] for key in _RECORD_COLUMNS}, dtype=float)
    # last() takes the last value present in each column, so a separate evaluation line joins its step.
    return table.groupby("step", as_index=False, sort=True).last()


def _is_finite(value: Any) -> bool:
    return value is not None and -1e300 <= value <= 1e300


def _finite(value: float | None) -> float:
    """NaN for anything that a figure cannot place: null, NaN, infinity, an integer beyond float64."""
    return float(value) if value is not None and _is_finite(value) else float("nan")


def _read_digest(path: Path, last_step: int | None, notes: list[str]) -> str | None:
    try:
        with open_regular(path) as file:
            text = file.read(1000).decode("utf-8", "replace")
    except OSError:
        return None
    match = re.fullmatch(r"(sha256:[0-9a-f]{8,64})\s+step\s+(\d{1,18})\s*", text)
    if match is None:
        notes.append("digest.txt is not of the form 'sha256:<hex>  step <n>'; the run is shown as unfinished.")
        return None
    if last_step is not None and int(match[2]) != last_step:
        notes.append(f"digest.txt is of step {match[2]}, but the records end at step {last_step}.")
    return match[1]


def _read_run(path: Path) -> Run:
    manifest = _load(path / "manifest.json")
    _check_header("manifest.json", manifest, "run")
    check("manifest.json", manifest, _MANIFEST_FIELDS)
    check_told(path, json_value(read_bytes(path / "manifest.json", JSON_BYTES)))
    notes: list[str] = []
    begun = os.path.lexists(path / "records.jsonl") or os.path.lexists(path / "digest.txt")  # else it made no step yet
    records = _read_records(path / "records.jsonl", notes) if begun else _table([])
    timing = []
    if (path / "timing.jsonl").exists():
        timing = read_lines(path / "timing.jsonl", notes)
        for number, row in enumerate(timing, start=1):
            check(f"timing.jsonl: line {number}", row, (), [(k, "a number >= 0") for k in ("wall_s", "images_per_s")])
    if records.empty:
        notes.append("records.jsonl holds no records yet.")
    last = None if records.empty else int(records["step"].iloc[-1])
    digest = _read_digest(path / "digest.txt", last, notes)
    failure = "" if digest else _read_failure(path / "failure.json", notes)
    return Run(_name(path), path, manifest, records, timing, digest, tuple(notes), failure)


def _read_failure(path: Path, notes: list[str]) -> str:
    if not path.exists():
        return ""
    try:
        reason = _load(path).get("reason")
    except OctosimError as error:
        notes.append(f"{error}.")
        return ""
    return " ".join(reason.split()) if isinstance(reason, str) else ""


def _read_bench(path: Path) -> Bench:
    data = _load(path)
    _check_header(path.name, data, "bench")
    check(path.name, data, _BENCH_FIELDS, (("fp32", "an object"), ("against", "an object")))
    blocks = [("", data)] + ([("fp32.", data["fp32"])] if data.get("fp32") else [])
    for prefix, block in blocks:
        check(f"{path.name}: {prefix or 'top level'}", block, (("layers", "a list"), ("total", "an object")))
        for index, row in enumerate(block["layers"]):
            check(f"{path.name}: {prefix}layers[{index}]", row, _ROW_FIELDS, _ROW_OPTIONAL)
        check(f"{path.name}: {prefix}total", block["total"], (), _TOTAL_OPTIONAL)
    for peer, value in (data.get("against") or {}).items():
        check(f"{path.name}: against.{peer}", value, _PEER_FIELDS)
    return Bench(_name(path), path, data)


def _name(path: Path) -> str:
    return printable(path.name or path.resolve().name)


def _candidates(path: Path) -> list[tuple[str, Path]]:
    """What a PATH stands for: ("run" or "bench", path) pairs.  Folders are searched one level down."""
    if path.is_file():
        return [("bench", path)]
    if not path.is_dir():
        raise OctosimError("no such file or folder")
    if (path / "manifest.json").exists() or (path / "records.jsonl").exists():
        return [("run", path)]
    found: list[tuple[str, Path]] = []
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and ((entry / "manifest.json").exists() or (entry / "records.jsonl").exists()):
            found.append(("run", entry))
        elif entry.is_file() and entry.suffix == ".json" and _may_be_bench(entry):
            found.append(("bench", entry))
    if not found:
        raise OctosimError("no run folder (with a manifest.json) and no bench file in it")
    return found


def _may_be_bench(path: Path) -> bool:
    """False for sound JSON of another kind, which a folder may hold; a broken file is kept, to be named as skipped."""
    try:
        return _load(path).get("kind") == "bench"
    except OctosimError:
        return True


def _read_study(folder: Path) -> Study | None:
    """The study of a folder; None where it is none.  OctosimError where its file is damaged."""
    path = folder / "study.json"
    if not path.exists():
        return None
    value = _load(path)
    if value.get("kind") != "study":
        return None
    check(str(path), value, (("rows", "a list"),), (("title", "a string"), ("about", "a string")))
    reasons = {}
    for index, row in enumerate(value["rows"]):
        check(f"{path}: rows[{index}]", row, (("name", "a string"), ("state", "a string")), (("reason", "a string"),))
        if row["state"] in ("broken", "diverged"):
            reasons[row["name"]] = str(row.get("reason") or "")
    return Study(folder, str(value.get("title") or ""), " ".join(str(value.get("about") or "").split()), reasons)


def read_all(paths: Iterable[Path]) -> Records:
    found = Records([], [], [], [])
    seen: set[Path] = set()
    studies: dict[Path, Study] = {}

    def study_of(folder: Path) -> Study | None:
        place = folder.resolve()
        if place not in studies:
            try:
                study = _read_study(folder)
            except (OctosimError, OSError) as error:
                found.skipped.append((str(folder / "study.json"), str(error)))
                return None
            if study is None:
                return None
            studies[place] = study
            found.studies.append(study)
        return studies[place]

    for path in paths:
        try:
            candidates = _candidates(path)
            if path.is_dir():
                study_of(path)
        except (OctosimError, OSError) as error:
            found.skipped.append((str(path), getattr(error, "strerror", None) or str(error)))
            continue
        for kind, item in candidates:
            if item.resolve() in seen:
                continue
            seen.add(item.resolve())
            try:
                if kind == "run":
                    run = _read_run(item)
                    study = studies.get(item.resolve().parent)
                    found.runs.append(replace(run, failure=run.failure or (study.reasons.get(item.name, "") if study else "")))
                else:
                    found.benches.append(_read_bench(item))
            except (OctosimError, OSError) as error:
                found.skipped.append((str(item), str(error)))
    return found
