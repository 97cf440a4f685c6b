"""The files of a run.

A run directory holds
    manifest.json          what decides the bits ("decides") and what does not ("environment"); how many numbers are trained;
                           of a finished run "outcome": {"caveats"}, what of its method did not act; "sums" of its own fields
    records.jsonl          one object a step: step, epoch, loss, learning_rate; where evaluated also test_loss and, where the
                           network has classes, test_accuracy; after an epoch also metrics, where the method has any
    overflow.jsonl         with count_overflow, an object a counted step, layer and pass: what happened in the accumulators
    measures.jsonl         with measure, an object a measured step, layer, pass, role and reference (measure.py)
    timing.jsonl           one object a checkpoint: step, epoch, and since the one before wall_s and images_per_s; not part of
                           what must be equal
    checkpoint.safetensors parameters, running statistics and optimizer state, replaced atomically; in its metadata the step,
                           and sums of the tensors, of "decides" and of the records up to that step
    init.safetensors       with init, the tensors that the run began with, whose digest the manifest has
    digest.txt             sha256 over the checkpoint's tensors after the last step; its presence means "finished"
    failure.json           why a step could not be made (a NaN, in which layer): {"step", "reason"}; until the run goes on
    data.npz               the data of a run that was given arrays, in Python
    .lock                  while a process works on the run
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

import octosim
from octosim import core, data, graph, integrity, methods
from octosim.data import Dataset
from octosim.engine import optimizers, plan
from octosim.engine.layers import Stack
from octosim.engine.network import Network, is_covered
from octosim.engine.nodes import Array, Method
from octosim.engine.selection import trained
from octosim.errors import OctosimError
from octosim.files import (
    environment,
    locked,
    read_bytes,
    read_json,
    read_lines,
    read_tensors,
    write_atomic,
)
from octosim.integrity import (
    LINES,
    Part,
    are_parts,
    changed_fields,
    check_about,
    field_sums,
    is_format,
    part_of,
    refuse_changed,
    sha256_of,
)
from octosim.train.config import Config, from_json
from octosim.train.initial import about_in, check_tensors, digest_of
from octosim.train.run import Data, Run, load_data

FORMAT = 1
CHECKPOINT_FORMAT = 2  # 1 had no sums
LOCK = ".lock"
ARRAYS_FILE = "data.npz"
INIT = "init.safetensors"


# ---- manifest --------------------------------------------------


def parameter_counts(run: Run) -> dict[str, int]:
    """How many trained numbers of each kind there are in all layers: w, b, gamma, a method's own as lac_mu ..."""
    counts: dict[str, int] = {}
    for node in run.network.nodes:
        for name in node.params:
            if name in node.trained:
                counts[name] = counts.get(name, 0) + node.params[name].size
    return counts


def memory(run: Run) -> dict[str, dict[str, int]]:
    """Bytes of a step by what they hold, with the run's method and with fp32, as `plan.memory` has them."""
    shape, batch = run.data.train_images.shape[1:], run.config.batch_size
    used = {"fp32": methods.make("fp32", {}), run.config.method: run.method}
    return {
        name: plan.memory(plan.plan(_dry(run, shape, method), batch, run.optimizer))
        for name, method in used.items()
    }


def _dry(run: Run, shape: tuple[int, ...], method: Method) -> Network:
    return plan.dry(run.layers, shape, method, True, run.source, run.network.selection, run.network.accumulate)


def _fine_tuning(run: Run) -> dict[str, Any]:
    """What decides the bits of a run that begins with given weights, or trains a part of its network."""
    selection, found = run.network.selection, dict[str, Any]()
    if run.initial is not None:
        found["init"] = {"sha256": run.initial.sha256}
    if not selection.everything:
        found["trained"] = trained(run.network.nodes)
    if channels := {node.name: node.outputs for node in run.network.nodes if node.outputs is not None}:
        found["channels"] = channels
    if selection.statistics != "batch":
        found["batchnorm_statistics"] = selection.statistics
    rates = {node.name: node.rate for node in run.network.nodes if node.rate != 1}
    return found | ({"rates": rates} if rates else {}) | ({"accumulate": c} if (c := run.config.accumulate) > 1 else {})


def decides(run: Run) -> dict[str, Any]:
    """What a run's bits depend on."""
    c, d = run.config, run.data
    in_float = [node.name for node in run.network.nodes if not is_covered(run.method, node)]
    outside = graph.plugins.identities(node.layer for node in run.network.nodes)
    return {
        "octosim": octosim.__version__,
        "model": c.model,
        "batchnorm": c.batchnorm,
        "layers": graph.describe(run.layers),
        "data": {
            "name": d.name,
            "sha256": d.sha256,
            "train_images": len(d.train_labels),
            "test_images": len(d.test_labels),
        },
        "method": methods.describe(c.method, run.method),
        "numerics": {
            "accumulator": c.accumulator if run.method.bits["accumulator"] == "int32" else run.method.bits["accumulator"],
            "float": "float32" if run.method.values == "float32" else "none",
        },
        "optimizer": None if "optimizer" in run.method.unused else optimizers.describe(run.optimizer, run.schedule),
        "augment": c.augment,
        "label_smoothing": c.label_smoothing,
        "batch_size": c.batch_size,
        "epochs": run.epochs,
        "steps": c.steps,
        "seed": c.seed,
    } | ({"float_layers": in_float} if in_float else {}) | ({"layer_plugins": outside} if outside else {}) | (
        {"input": run.source.describe()} if run.source.describe() else {}
    ) | _fine_tuning(run)  # fmt: skip


def _origin(run: Run) -> dict[str, Any]:
    """Where a run's weights come from, and what of them was not taken."""
    assert run.initial is not None
    unfit = {key: list(getattr(run.initial, key)) for key in ("unfit", "missing", "unknown")}
    return {"source": run.config.init, "taken": list(run.initial.taken), **unfit}


def manifest(run: Run, command: str) -> dict[str, Any]:
    """The manifest of a run; `config` inside is what `Config` needs to make it again, `data` what its images are."""
    return {
        "format": FORMAT,
        "kind": "run",
        "decides": decides(run),
        "config": asdict(run.config),
        "data": {
            "name": run.data.name,
            "sha256": run.data.sha256,
            "image_shape": list(run.data.train_images.shape[1:]),
            "classes": list(run.data.classes),
        } | ({"path": run.data.path, "test_share": run.data.test_share} if run.data.path else {}),
        "parameters": parameter_counts(run),
        **({"init": _origin(run)} if run.initial is not None else {}),
        "memory": memory(run),
        "environment": environment(core.isa(), core.threads()),
        "command": command,
    }


def write_manifest(folder: Path, content: dict[str, Any], sums: bool = True) -> None:
    """Replaces the manifest.  sums: whether it gets sums of its fields, which octosim 0.1's have not."""
    fields = plain({key: value for key, value in content.items() if key != "sums"})
    if sums:
        fields |= {"sums": field_sums(fields)}
    write_atomic(folder / "manifest.json", (json.dumps(fields, indent=2) + "\n").encode())


def write_outcome(folder: Path, caveats: list[str]) -> None:
    """Adds to the manifest of a run that ends what of its method did not act; an old one without sums stays without."""
    content = read_manifest(folder)
    write_manifest(folder, content | {"outcome": {"caveats": caveats}}, sums="sums" in content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run directory; OctosimError where there is none or it is not one of ours."""
    path = folder / "manifest.json"
    if not os.path.lexists(path):
        raise OctosimError(f"{folder} is not a run directory: it has no manifest.json")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != "run" or not is_format(content.get("format"), FORMAT):
        raise OctosimError(f"{path} is not the manifest of a run in format {FORMAT}")
    told = content.get("decides")
    given = told.get("data") if isinstance(told, dict) else None
    if not isinstance(given, dict) or not isinstance(given.get("sha256"), str):
        raise OctosimError(f"{path}: field decides.data.sha256 is missing, expected the checksum of the run's data")
    counts, held = content.get("parameters", {}), content.get("memory", {})
    for name, value in (("parameters", [counts]), ("memory", list(held.values()) if isinstance(held, dict) else [held])):
        for each in value:
            if not isinstance(each, dict) or not all(isinstance(n, int) and 0 <= n < 2**63 for n in each.values()):
                raise OctosimError(f"{path}: field {name} is {str(each)[:40]!r}, expected numbers by name")
    return content


def read_config(folder: Path) -> Config:
    """The configuration of a run directory."""
    return from_json(read_manifest(folder).get("config"), str(folder / "manifest.json"))


def rebuild(
    folder: Path, content: dict[str, Any], dataset: Dataset | None = None, place: str | None = None
) -> Run:  # fmt: skip
    """The run of a manifest before its first step.

    dataset: its data, where they are no named set.  place: where the user's own data of the run are now.
    """
    where = str(folder / "manifest.json")
    config = from_json(content.get("config"), where)
    refuse_changed(folder, [name for name in changed_fields(content) if name.startswith("config") or name == "decides.layers"])
    tensors = initial_tensors(folder, content) if config.init is not None else None
    try:
        dataset = dataset or _own_data(folder, content, config, place)
        if graph.is_file(config.model):
            return Run(config, graph.parse_network(f"{where}:", content["decides"].get("layers")), dataset, tensors)
        return Run(config, dataset=dataset, tensors=tensors)
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise OctosimError(f"{where} describes a run that cannot be built: {error!r}") from None


def _own_data(folder: Path, content: dict[str, Any], config: Config, place: str | None) -> Dataset | None:
    """The user's own data of a run, found where they were, or at another place; None for a data set by name."""
    if place is None and config.data == data.ARRAYS and os.path.lexists(folder / ARRAYS_FILE):
        return replace(data.load(str(folder / ARRAYS_FILE), limit=config.limit), name=data.ARRAYS, path=None)
    about, told = content.get("data"), content["decides"]["data"]
    path = about.get("path") if isinstance(about, dict) else None
    if place is None and path is None and not data.is_own(config.data):
        return None
    places = [place] if place is not None else [p for p in (path, config.data) if isinstance(p, str)]
    found = next((p for p in places if os.path.exists(p)), None)
    if found is None:
        raise OctosimError(
            f"{folder}: the run's data {places[0]} are not there; put them back, or name their place with --data (of "
            "octosim verify and octosim train --resume)"
        )
    dataset = load_data(replace(config, data=found))
    if dataset.sha256 != told["sha256"] and "decides.data" not in changed_fields(content):
        raise OctosimError(f"{folder}: the run's data had sha256 {told['sha256']}, those at {found} have {dataset.sha256}")
    return replace(dataset, name=str(told.get("name")))


def initial_tensors(folder: Path, content: dict[str, Any]) -> dict[str, Array]:
    """The tensors that a run began with; OctosimError where they are not those of its manifest."""
    (tensors, _), told = read_tensors(folder / INIT), content["decides"].get("init")
    if not isinstance(told, dict) or told.get("sha256") != digest_of(tensors):
        raise OctosimError(f"{folder / INIT}: its tensors are not those that the run began with; the file is damaged")
    return tensors


def told(content: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says decides its run, with the fields of layers and parameters of its method that came since then."""
    held = dict(content["decides"])
    with contextlib.suppress(OctosimError):
        held["layers"] = plain(graph.describe(graph.parse_network("manifest.json:", held.get("layers"))))
    method = held.get("method")
    if isinstance(method, dict) and isinstance(recorded := method.get("parameters"), dict):
        with contextlib.suppress(OctosimError):
            name = str(method.get("name"))
            defaults = plain(methods.parameters(methods.make(name, recorded)))
            held["method"] = method | {"parameters": defaults | recorded}
    return held


def differing(recorded: Any, expected: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(field, recorded, expected) of what differs between two values of JSON; 1, 1.0 and true are three values."""
    if isinstance(recorded, dict) and isinstance(expected, dict):
        for key in {**expected, **recorded}:
            yield from differing(recorded.get(key, ABSENT), expected.get(key, ABSENT), f"{name}.{key}" if name else key)
    elif isinstance(recorded, list) and isinstance(expected, list) and len(recorded) == len(expected):
        for index, (one, other) in enumerate(zip(recorded, expected, strict=True)):
            yield from differing(one, other, f"{name}[{index}]")
    elif type(recorded) is not type(expected) or recorded != expected:
        if not (isinstance(recorded, float) and isinstance(expected, float) and math.isnan(recorded) and math.isnan(expected)):
            yield name, recorded, expected


class _Absent:
    def __repr__(self) -> str:
        return "missing"


ABSENT = _Absent()


def plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


# ---- records --------------------------------------------------


_NUMBER = (int, float)
_RECORD: dict[str, Any] = {
    "step": int, "epoch": int, "loss": float, "learning_rate": (*_NUMBER, type(None)), "test_loss": float,
    "test_accuracy": float, "metrics": dict,
}  # fmt: skip
_NEEDED = ("step", "epoch", "loss", "learning_rate")


def check_record(row: dict[str, Any], where: str) -> None:
    """OctosimError where a line of records.jsonl has a field too few or many, or a value of another kind."""
    for name in _NEEDED:
        if name not in row:
            raise OctosimError(f"{where}: field {name} is missing")
    for name, value in row.items():
        if name not in _RECORD or isinstance(value, bool) or not isinstance(value, _RECORD[name]):
            raise OctosimError(f"{where}: field {name} is {str(value)[:40]!r}, which no record has")
        if isinstance(value, float) and not math.isfinite(value) or name == "test_accuracy" and not 0 <= value <= 1:
            raise OctosimError(f"{where}: field {name} is {value}")
    if "test_accuracy" in row and "test_loss" not in row:
        raise OctosimError(f"{where}: field test_loss is missing")


def _steps_of(run: Run, name: str, last: int) -> list[int]:
    """The steps up to `last` that have lines in a file."""
    every = {"records.jsonl": 1, "overflow.jsonl": run.config.count_overflow, "measures.jsonl": run.config.measure}[name]
    return list(range(every, last + 1, every)) if every else []


def sound_part(path: Path, steps: list[int]) -> Part:
    """The beginning of a file, which has the lines of these steps in order; OctosimError where it has not.

    A step of overflow.jsonl and measures.jsonl has several lines: those of the first step, for the same layers and passes.
    """
    keys: dict[int, list[Any]] = {}  # of the lines of each step
    rows, number, end = read_lines(path), 0, 0
    while True:
        try:
            row, offset = next(rows)
        except StopIteration:
            break
        except OctosimError:
            if list(keys) == steps:
                break  # a line that a kill cut off
            raise
        number += 1
        where, step = f"{path}: line {number}", row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise OctosimError(f"{where}: field step is {str(step)[:40]!r}, expected a whole number")
        if not steps or step > steps[-1]:
            break
        belongs = [*list(keys)[-1:], *steps[len(keys) :][:1]]
        if step not in belongs or path.name == "records.jsonl" and step in keys:
            raise OctosimError(f"{where} is of step {step}, expected step {belongs[-1]}")
        if path.name == "records.jsonl":
            check_record(row, where)
        keys.setdefault(step, []).append([row.get(name) for name in ("layer", "pass", "role", "against")])
        end = offset
    for step in steps:
        if keys.get(step) is None or keys[step] != keys[steps[0]]:
            raise OctosimError(f"{path}: the lines of step {step} are missing or not complete")
    return part_of(path, end)


# ---- checkpoint --------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """about: the metadata, with sums from format 2 on."""

    path: Path
    format: int
    step: int
    test_accuracy: float | None
    about: dict[str, Any]
    tensors: dict[str, Array]


def checkpoint_about(run: Run, decides: Any, parts: dict[str, Part], sums: bool) -> dict[str, Any]:
    """What a checkpoint says of itself.  decides: of the manifest; sums: whether the manifest has sums."""
    about = {
        "format": CHECKPOINT_FORMAT,
        "step": run.step,
        "test_accuracy": run.test_accuracy,
        "sha256": run.digest(),
        "decides": sha256_of(decides),
        "manifest_sums": sums,
        "records": {name: parts[name].told() for name in sorted(parts) if parts[name].size},
    }
    return about | {"sum": sha256_of(about)}


def save(run: Run, folder: Path, parts: dict[str, Part] | None = None) -> None:
    """Replaces the checkpoint.  parts: the records up to the run's step, which are on disk; by default all that is there."""
    content = read_manifest(folder)
    if parts is None:
        parts = {name: part_of(folder / name) for name in LINES}
    about = checkpoint_about(run, content["decides"], parts, "sums" in content)
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in run.tensors().items()}
    # one key: safetensors writes several in random order
    saved = save_tensors(arrays, {"octosim": json.dumps(about, sort_keys=True)})
    write_atomic(folder / "checkpoint.safetensors", saved)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of a run directory, None where there is none; OctosimError where it cannot be read."""
    path = folder / "checkpoint.safetensors"
    if not os.path.lexists(path):
        return None
    tensors, metadata = read_tensors(path)
    about = about_in(path, metadata) if "octosim" in metadata else _first_format(metadata)
    if not isinstance(about, dict) or not _is_about(about):
        raise OctosimError(f"{path} cannot be read: its metadata are not a checkpoint's, of format 1 or {CHECKPOINT_FORMAT}")
    return Checkpoint(path, about["format"], about["step"], about["test_accuracy"], about, tensors)


def _is_about(about: dict[str, Any]) -> bool:
    step, accuracy = about.get("step"), about.get("test_accuracy", "")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return False
    if accuracy is not None and not (isinstance(accuracy, float) and 0 <= accuracy <= 1):
        return False
    told = about.get("format")
    return is_format(told, 1) or is_format(told, CHECKPOINT_FORMAT) and are_parts(about.get("records"))


def _first_format(metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata of octosim 0.1's checkpoints, three strings."""
    about: dict[str, Any] = {name: text for name, text in metadata.items()}
    if about.get("format") == "1" and re.fullmatch(r"\d{1,10}", about.get("step", "")):
        about |= {"format": 1, "step": int(about["step"])}
        with contextlib.suppress(ValueError):
            about["test_accuracy"] = float(about["test_accuracy"]) if about.get("test_accuracy") else None
    return about


def check_sums(saved: Checkpoint, content: dict[str, Any]) -> None:
    """OctosimError where a checkpoint's tensors or metadata are not those that were saved, or belong to another manifest."""
    if saved.format == 1:
        return
    check_about(saved.path, saved.about, content)
    check_tensors(saved.path, saved.about, saved.tensors)


def check_parts(run: Run, folder: Path, saved: Checkpoint | None) -> dict[str, Part]:
    """The parts of the records that belong to a checkpoint; OctosimError where they are not what they were then."""
    step = saved.step if saved else 0
    if saved is None or saved.format == 1:
        return {name: sound_part(folder / name, _steps_of(run, name, step)) for name in LINES}
    return integrity.check_parts(folder, saved.about)


def restore(run: Run, saved: Checkpoint) -> None:
    """Brings a run to a checkpoint; OctosimError where that is not of its network."""
    if saved.step > run.steps:
        raise OctosimError(f"{saved.path}: its step is {saved.step}, but the run has {run.steps}; the checkpoint is damaged")
    target, tensors = run.tensors(), saved.tensors
    for name in {**target, **tensors}:
        if name not in target:
            raise OctosimError(f"{saved.path}: tensor '{name}' is none of the run's")
        if name not in tensors or tensors[name].shape != target[name].shape or tensors[name].dtype != target[name].dtype:
            raise OctosimError(f"{saved.path}: tensor '{name}' is missing or has another shape than the run's manifest says")
    for name, tensor in target.items():
        tensor[...] = tensors[name]
    run.step, run.test_accuracy = saved.step, saved.test_accuracy


# ---- digest --------------------------------------------------


def digest_text(digest: str, step: int) -> str:
    return f"sha256:{digest}  step {step}\n"


def read_end(folder: Path) -> tuple[str, int] | None:
    """Digest and step in digest.txt, None where the run is not finished; OctosimError where the file is damaged."""
    path = folder / "digest.txt"
    if not os.path.lexists(path):
        return None
    text = read_bytes(path, 1000).decode(errors="replace")
    match = re.fullmatch(r"sha256:([0-9a-f]{64})  step (\d{1,10})\n", text)
    if match is None:
        raise OctosimError(f"{path} cannot be read: it is not of the form 'sha256:DIGEST  step N'")
    return match[1], int(match[2])


def read_failure(folder: Path) -> tuple[int, str] | None:
    """The step that a run could not make, and why; None where the directory says nothing of that."""
    try:
        found = read_json(folder / "failure.json")
        return int(found["step"]), " ".join(str(found["reason"]).split())
    except (OctosimError, LookupError, TypeError, ValueError):
        return None


def read_digest(folder: Path) -> str | None:
    """The digest of a finished run, None for one that is not."""
    end = read_end(folder)
    return end[0] if end else None


# ---- the whole --------------------------------------------------


def last_record(folder: Path) -> dict[str, Any]:
    """The last record of a finished run; OctosimError where it has no evaluation."""
    path, last = folder / "records.jsonl", deque(read_lines(folder / "records.jsonl"), maxlen=1)
    row = last[0][0] if last else {}
    check_record(row, str(path))
    if "test_loss" not in row:
        raise OctosimError(f"{path} does not end with an evaluation")
    return row


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a run directory, whose files agree with each other; OctosimError names the first that does not.

    No step is taken: `verify` tells whether the numbers are right.
    """
    content = read_manifest(folder)
    from_json(content.get("config"), str(folder / "manifest.json"))
    refuse_changed(folder, changed_fields(content))
    end, saved = read_end(folder), load_checkpoint(folder)
    if saved:
        check_sums(saved, content)
    if end is None:
        if saved and saved.format != 1:
            integrity.check_parts(folder, saved.about)
        return content
    digest, step = end
    if saved is None:
        raise OctosimError(f"{folder / 'checkpoint.safetensors'} is missing, though digest.txt says that the run is finished")
    if saved.step != step or digest_of(saved.tensors) != digest:
        raise OctosimError(f"{folder / 'digest.txt'} is not the digest of the checkpoint beside it; the run is damaged")
    if saved.format == 1:
        sound_part(folder / "records.jsonl", list(range(1, step + 1)))
        return content
    for name, part in integrity.check_parts(folder, saved.about).items():
        if os.path.exists(folder / name) and os.path.getsize(folder / name) != part.size:
            raise OctosimError(f"{folder / name} goes on after the last step; the run is damaged")
    return content


def alone(folder: Path) -> AbstractContextManager[None]:
    """The lock of a run directory; OctosimError where another process has it."""
    return locked(folder / LOCK, f"{folder}: another process works on this run; wait for its end, or stop it")


def create(
    config: Config, folder: Path, command: str, layers: Stack | None = None, dataset: Data | None = None
) -> Run:
    """A new run directory; OctosimError where it exists or the configuration is refused (then nothing is written).

    An empty folder is taken, and one that a process left which died before the manifest was in place.  layers, dataset: see
    `Run`.
    """
    _refuse_existing(folder)
    run = Run(config, layers, dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make {folder}: {error.strerror}") from None
    try:
        with alone(folder):
            _refuse_existing(folder)
            sweep_run(folder)
            if run.initial is not None:
                write_atomic(folder / INIT, save_tensors(run.initial.tensors))
            write_manifest(folder, manifest(run, command))
    except OctosimError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # as it was, where nothing is in it
        raise
    return run


def _is_leftover(name: str) -> bool:
    return name in (LOCK, INIT) or name.startswith(".") and name.endswith(".tmp")


def _refuse_existing(folder: Path) -> None:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        names = [folder.name]  # no folder, or a closed one
    if not all(_is_leftover(name) for name in names):
        raise OctosimError(f"{folder} exists already: choose another --out, or continue that run with --resume")


def sweep_run(folder: Path) -> None:
    """Removes what a kill in the middle of a write leaves.  Only with the run's lock."""
    with contextlib.suppress(OSError):  # it is housekeeping
        for left in folder.glob(".*.tmp"):
            left.unlink()


def tidy(folder: Path) -> None:
    """Removes what a kill leaves in a finished run: a lock, temporary files.  Nothing where it cannot be written."""
    with contextlib.suppress(OctosimError), alone(folder):
        sweep_run(folder)


def reopen(folder: Path, dataset: Dataset | None = None, place: str | None = None) -> Run:
    """The run of a directory at its last checkpoint; OctosimError where the directory is damaged.  Changes no file.

    dataset, place: see `rebuild`.
    """
    content = read_manifest(folder)
    with alone(folder):
        run = rebuild(folder, content, dataset, place)
        now, then = plain(decides(run)), told(content)
        for key in {**now, **then}:
            before = then.get(key)
            if any(differing(before, now.get(key), key)):
                raise OctosimError(f"{folder}: '{key}' was {before} and is {now.get(key)} now; the bits could not be the same")
        refuse_changed(folder, changed_fields(content))
        saved = load_checkpoint(folder)
        if saved:
            check_sums(saved, content)
            restore(run, saved)
        check_parts(run, folder, saved)
    return run
