"""Peak memory of training steps, octosim's and PyTorch's, each in a process of its own and measured the same way.

Above what the process held before the model was built: the imports, the images and a model file as it was read are not counted,
nor is what passes before the first step (the ranges of activations of a fine-tuned network are found then).  Nor are pages of
files: the system reads a library's code in when it is first called, and can drop it again.  Needs Linux, whose
/proc/self/status has the resident set (VmRSS), its pages of files (RssFile) and its peak (VmHWM), which /proc/self/clear_refs
sets back.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from octosim import core, data, engine, graph, methods
from octosim.bench import peers
from octosim.engine.nodes import Array
from octosim.errors import ArgumentError, OctosimError
from octosim.train import Config, Run, load_data, source_of

STEPS = 3
THP_DISABLE = 41
"""PR_SET_THP_DISABLE of linux/prctl.h."""


def measure(config: Config, against: list[str], threads: int) -> dict[str, dict[str, Any]]:
    """By contestant (config's method, "fp32", "torch" where it is among the peers): peak_bytes, and of octosim's own what they
    are made of.

    OctosimError where the system is not Linux.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        raise ArgumentError("{memory} needs Linux: there is no /proc/self/clear_refs to write to")
    wanted = [config.method, *(["fp32"] if config.method != "fp32" else []), *(["torch"] if "torch" in against else [])]
    return {name: measure_one(config, name, threads) for name in wanted}


def measure_one(config: Config, contestant: str, threads: int) -> dict[str, Any]:
    """Of one contestant, see `measure`."""
    task = {"config": asdict(config), "contestant": contestant, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "octosim.bench.memory"], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["killed"]
        raise OctosimError(f"measuring the memory of {contestant}: {last[0]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _use_small_pages() -> None:
    """No huge pages in this process: they are counted whole, and which of them an allocation gets differs from run to run."""
    ctypes.CDLL(None).prctl(THP_DISABLE, 1, 0, 0, 0)


def _forget_peak() -> None:
    """Gives free memory back to the system and sets the peak to what is held."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: what loading left free would hide what a step takes
    if trim:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _own(field: str) -> int:
    """VmRSS or VmHWM without the pages of files, which only become more while there is memory."""
    return _resident(field) - _resident("RssFile")


def _octosim(config: Config, dataset: data.Dataset) -> tuple[Callable[[], Any], Callable[[], dict[str, int]]]:
    """A step, and the bytes of its last one by what they hold."""
    run = Run(config, dataset=dataset)
    run.allow_replay = True
    kept = _Kept(run.network)

    def parts() -> dict[str, int]:
        params = sum(w.nbytes for node in run.network.nodes for w in (*node.params.values(), *node.state.values()))
        return {
            "weights": params,
            "optimizer": sum(v.nbytes for slots in run.slots.values() for v in slots.values()),
            "kept": kept.most,
            "pool": run.network.pool.most,
        }

    return lambda: run.train_step(watch=kept), parts


class _Kept(core.Probe):
    """How much the layers keep when the forward pass is done, in steps that Python makes."""

    def __init__(self, network: engine.Network) -> None:
        self.network, self.most = network, 0

    def call(self, name: str, number: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        if core.here.key == ("loss", "forward"):
            self.most = max(self.most, kept_bytes(self.network))
        return function(*arguments)


def kept_bytes(network: engine.Network) -> int:
    """Bytes of the tensors, parameters apart, that the layers keep for the backward pass at the moment."""
    found: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            found[value.__array_interface__["data"][0]] = value.nbytes
        elif isinstance(value, tuple | list):
            for part in value:
                add(part)
        elif hasattr(value, "__dict__") or hasattr(value, "__slots__"):
            for name in getattr(value, "__slots__", None) or vars(value):
                add(getattr(value, name))

    for node in network.nodes:
        for value in node.saved.values():
            add(value)
    for parameter in (p for node in network.nodes for p in node.params.values()):
        found.pop(parameter.__array_interface__["data"][0], None)
    return sum(found.values())


def main() -> None:
    """The process of one contestant: the task as JSON on stdin, what it held on stdout."""
    task = json.load(sys.stdin)
    _use_small_pages()
    config = Config(**task["config"])
    core.set_threads(task["threads"])
    dataset = load_data(config)
    few = (STEPS + 1) * config.batch_size  # no order of all images is held beside the step
    dataset = replace(dataset, train_images=dataset.train_images[:few], train_labels=dataset.train_labels[:few])
    images, labels = dataset.train_images[: config.batch_size], dataset.train_labels[: config.batch_size].astype(np.int32)
    parts: Callable[[], dict[str, int]] = dict
    if task["contestant"] == "torch":
        peers.torch_module().set_num_threads(task["threads"])
    graph.find(config.model)
    _forget_peak()
    before = _own("VmRSS")
    if task["contestant"] == "torch":
        step = _torch(config, dataset, images, labels, task["threads"])
    else:
        own = Config(**task["config"] | ({} if task["contestant"] == config.method else {"method": "fp32", "parameters": {}}))
        step, parts = _octosim(own, dataset)
    _forget_peak()
    step()
    _forget_peak()
    for _ in range(STEPS):
        step()
    print(json.dumps({"peak_bytes": _own("VmHWM") - before} | parts()))


def _torch(config: Config, dataset: data.Dataset, images: Array, labels: Array, threads: int) -> Callable[[], Any]:
    shape = images.shape[1:]
    stack = graph.layers(config.model, len(dataset.classes), config.batchnorm, shape, config.hidden_batchnorm)
    source = source_of(config, graph.as_graph(stack), dataset, methods.make(config.method, config.parameters))
    task = peers.Task(stack, images, labels, config.optimizer, 0.01, threads, source, config.selection, config.accumulate)
    return peers.torch_steps(task, ["channels_last"])["channels_last"]


if __name__ == "__main__":
    main()
