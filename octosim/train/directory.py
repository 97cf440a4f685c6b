"""The files of a run.

A run directory holds
    manifest.json          what decides the bits ("decides") and what does not ("environment"); how many numbers are trained
    records.jsonl          one object a step: step, epoch, loss, learning_rate; where evaluated also test_loss, test_accuracy;
                           after an epoch also metrics, where the method has any
    overflow.jsonl         with count_overflow, an object a counted step, layer and pass: what happened in the accumulators
    measures.jsonl         with measure, an object a measured step, layer, pass, role and reference (measure.py)
    timing.jsonl           one object an epoch: epoch, wall_s, images_per_s; not part of what must be equal
    checkpoint.safetensors parameters, running statistics, optimizer state and the step, replaced atomically
    digest.txt             sha256 over the checkpoint's tensors after the last step; its presence means "finished"
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

import octosim
from octosim import core, graph, methods
from octosim.engine import optimizers, plan
from octosim.errors import OctosimError
from octosim.files import environment, write_atomic
from octosim.train.config import Config
from octosim.train.run import Run

FORMAT = 1


def parameter_counts(run: Run) -> dict[str, int]:
    """How many trained numbers of each kind there are in all layers: w, b, gamma, a method's own as lac_mu ..."""
    counts: dict[str, int] = {}
    for node in run.network.nodes:
        for name, values in node.params.items():
            counts[name] = counts.get(name, 0) + values.size
    return counts


def memory(run: Run) -> dict[str, dict[str, int]]:
    """Bytes of a step by what they hold, with the run's method and with fp32, as `plan.memory` has them."""
    shape, used = run.data.train_images.shape[1:], {"fp32": methods.make("fp32", {}), run.config.method: run.method}
    return {
        name: plan.memory(plan.plan(plan.dry(run.layers, shape, method), run.config.batch_size, run.optimizer))
        for name, method in used.items()
    }


def decides(run: Run) -> dict[str, Any]:
    """What a run's bits depend on."""
    c, d = run.config, run.data
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
        "method": {"name": c.method, "parameters": methods.parameters(run.method)},
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
    }


def manifest(run: Run, command: str) -> dict[str, Any]:
    """The manifest of a run; `config` inside is what `Config` needs to make it again."""
    return {
        "format": FORMAT,
        "kind": "run",
        "decides": decides(run),
        "config": asdict(run.config),
        "parameters": parameter_counts(run),
        "memory": memory(run),
        "environment": environment(core.isa(), core.threads()),
        "command": command,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run directory; OctosimError where there is none or it is not one of ours."""
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise OctosimError(f"{folder} is not a run directory: it has no manifest.json") from None
    except (OSError, ValueError) as error:
        raise OctosimError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("kind") != "run" or content.get("format") != FORMAT:
        raise OctosimError(f"{path} is not the manifest of a run in format {FORMAT}")
    return content


def read_config(folder: Path) -> Config:
    """The configuration of a run directory."""
    content = read_manifest(folder).get("config")
    known = {f.name for f in fields(Config)}
    if not isinstance(content, dict) or set(content) != known:
        raise OctosimError(f"{folder / 'manifest.json'}: 'config' must have exactly the fields {', '.join(sorted(known))}")
    return Config(**content)


def rebuild(folder: Path, config: Config) -> Run:
    """The run of a directory before its first step."""
    if not graph.is_file(config.model):
        return Run(config)
    stored = read_manifest(folder).get("decides", {}).get("layers")
    return Run(config, graph.parse(f"{folder / 'manifest.json'}:", stored))


def read_digest(folder: Path) -> str | None:
    """The digest of a finished run, None for one that is not."""
    try:
        return (folder / "digest.txt").read_text().split()[0].removeprefix("sha256:")
    except (FileNotFoundError, IndexError):
        return None


def save(run: Run, folder: Path) -> None:
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in run.tensors().items()}
    accuracy = "" if run.test_accuracy is None else repr(run.test_accuracy)
    content = save_tensors(arrays, {"format": str(FORMAT), "step": str(run.step), "test_accuracy": accuracy})
    write_atomic(folder / "checkpoint.safetensors", content)


def _restore(run: Run, folder: Path) -> None:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata()
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        step, accuracy = int(about["step"]), about["test_accuracy"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise OctosimError(f"{path} cannot be read: {error}") from None
    target = run.tensors()
    for name, tensor in target.items():
        if name not in saved or saved[name].shape != tensor.shape or saved[name].dtype != tensor.dtype:
            raise OctosimError(f"{path}: tensor '{name}' is missing or has another shape than the run's manifest says")
    for name, tensor in target.items():
        tensor[...] = saved[name]
    run.step = step
    run.test_accuracy = float(accuracy) if accuracy else None


def _truncate(path: Path, key: str, last: int) -> None:
    """Keeps the lines of a .jsonl file whose `key` is at most `last`; a line that a kill cut short goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)[key] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomic(path, "".join(kept).encode())


def create(config: Config, folder: Path, command: str) -> Run:
    """A new run directory; OctosimError where it exists or the configuration is refused (then nothing is written)."""
    if folder.exists():
        raise OctosimError(f"{folder} exists already: choose another --out, or continue that run with --resume")
    run = Run(config)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OctosimError(f"cannot make {folder}: {error.strerror}") from None
    write_atomic(folder / "manifest.json", (json.dumps(manifest(run, command), indent=2) + "\n").encode())
    return run


def reopen(folder: Path) -> Run:
    """The run of a directory, at its last checkpoint, its records cut back to there."""
    config, before = read_config(folder), read_manifest(folder)["decides"]
    run = rebuild(folder, config)
    now = decides(run)
    for key in now:
        if before.get(key) != json.loads(json.dumps(now[key])):
            raise OctosimError(f"{folder}: '{key}' was {before.get(key)} and is {now[key]} now; the bits could not be the same")
    for left in folder.glob(".*.tmp"):  # what a kill in the middle of a write leaves
        left.unlink(missing_ok=True)
    _restore(run, folder)
    _truncate(folder / "records.jsonl", "step", run.step)
    _truncate(folder / "overflow.jsonl", "step", run.step)
    _truncate(folder / "measures.jsonl", "step", run.step)
    _truncate(folder / "timing.jsonl", "epoch", run.step // run.steps_per_epoch)
    return run
