"""Training runs: (model, data, method, seed ...) -> a run directory; resume and replay to the same bits.

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

import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

import octosim
from octosim import accumulate, core, data, footprint, loader, measure, methods, models, optim
from octosim.errors import OctosimError
from octosim.nodes import Array, Context, Node
from octosim.numerics import EXACT32
from octosim.recorded import RecordedSteps, Replay

FORMAT = 1
EPOCHS = 3  # where neither epochs nor steps are given


@dataclass(frozen=True)
class Config:
    """Everything that a user chooses and that decides the bits of a run and of its records.

    epochs, steps: the run's length; both given, the sooner end.  lr None: the optimizer's own.  weight_decay: of the parameters
    in optim.DECAYED.  schedule, milestones, gamma, warmup: see optim.Schedule.  augment: of loader.AUGMENTATIONS.
    label_smoothing: of the training loss; the test loss is without.  eval_every: also evaluate after every so many steps.
    accumulator: the register of the int8 products, of numerics.ACCUMULATORS.  count_overflow: write what happens in it in every
    so many steps; decides no bit.  measure: write the errors of every so many steps against float32; decides no bit.
    """

    model: str = "simplecnn"
    data: str = "fashion-mnist-5k"
    method: str = "octo"
    parameters: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    lr: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    warmup: int = 0
    augment: str = "none"
    label_smoothing: float = 0.0
    batch_size: int = 100
    epochs: int | None = None
    steps: int | None = None
    eval_every: int | None = None
    seed: int = 0
    batchnorm: bool = True
    accumulator: str = EXACT32.name
    count_overflow: int | None = None
    measure: int | None = None


@dataclass(frozen=True)
class Progress:
    """What a run reports after each step: total steps, this step's loss, and the latest test accuracy if there is one."""

    step: int
    steps: int
    epoch: int
    loss: float
    test_accuracy: float | None


Batch = tuple[Array, Array]
"""Images uint8 (batch, height, width, channels) and labels int32 (batch,)."""


class Run:
    """A network with its data and optimizer, at some step.

    records: whether steps that nobody observes may be recorded and made again without Python, by `recorded`, where the method
    allows it; the bits are the same.
    """

    def __init__(self, config: Config, layers: models.Stack | None = None, dataset: data.Dataset | None = None):
        """layers: of a run from a model file, which its manifest holds; the file may be gone or changed since.
        dataset: config.data, where it is loaded already."""
        for name in ("batch_size", "epochs", "steps", "eval_every", "count_overflow", "measure"):
            value = getattr(config, name)
            if value is not None and value < 1:
                raise OctosimError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not 0 <= config.seed < 2**64:
            raise OctosimError(f"--seed must be in 0 .. 2^64 - 1, not {config.seed}")
        if not 0 <= config.label_smoothing < 1:
            raise OctosimError(f"--label-smoothing must be in [0, 1), not {config.label_smoothing}")
        self.config = config
        self.method = methods.make(config.method, config.parameters)
        for name in self.method.unused:
            if getattr(config, name) != getattr(Config(), name):
                raise OctosimError(f"--{name.replace('_', '-')} has no meaning for method {config.method}, see docs/methods.md")
        self.optimizer = optim.make(config.optimizer, config.lr, config.weight_decay)
        self.schedule = optim.Schedule(config.schedule, tuple(config.milestones), config.gamma, config.warmup)
        optim.check_schedule(self.schedule)
        loader.check_augmentation(config.augment)
        if layers is None:
            models.find(config.model)  # an unknown model is told before the data is read
        self.data = dataset or data.load(config.data)
        images = len(self.data.train_labels)
        if config.batch_size > images:
            raise OctosimError(
                f"--batch-size {config.batch_size} is larger than the {images} training images of {self.data.name}"
            )
        self.steps_per_epoch = -(-images // config.batch_size)
        self.epochs = EPOCHS if config.epochs is None and config.steps is None else config.epochs
        lengths = (config.steps, self.epochs and self.epochs * self.steps_per_epoch)
        self.steps = min(length for length in lengths if length is not None)
        if self.steps >= 2**32:  # Philox counts steps in 32 bits
            raise OctosimError(f"a run has at most 2^32 - 1 steps, not {self.steps}")
        if config.warmup >= self.steps:
            raise OctosimError(f"--warmup must be less than the run's {self.steps} steps, not {config.warmup}")
        in_shape = self.data.train_images.shape[1:]
        self.layers = layers or models.layers(config.model, len(self.data.classes), config.batchnorm, in_shape)
        self.network = models.Network(self.layers, in_shape, self.method, config.seed)
        self.registers = accumulate.Registers(accumulate.find(config.accumulator))
        self._check_registers()
        self.registers.install(self.network.nodes)
        self.overflow: list[dict[str, Any]] = []
        self.measures: list[dict[str, Any]] = []
        self.meter: measure.Meter | None = None  # `train` makes one; a replay measures nothing
        slots = () if "optimizer" in self.method.unused else self.optimizer.slots
        self.slots = {
            name: {slot: np.zeros_like(w) for slot in slots}
            for name, w in ((f"{n.name}.{k}", v) for n in self.network.nodes for k, v in n.params.items())
        }
        self.step = 0
        self.records = False
        self.recorded = RecordedSteps(self.network)
        self.test_accuracy: float | None = None
        self._train_labels = self.data.train_labels.astype(np.int32)
        self._test_labels = self.data.test_labels.astype(np.int32)
        self._order: tuple[int, Array] = (-1, np.empty(0, np.int64))

    def _check_registers(self) -> None:
        """Refuses sums that the exact register cannot hold; in any other an overflow is what the user wants to see."""
        register, batch = self.registers.accumulator, self.config.batch_size
        chosen = "--count-overflow" if register == EXACT32 else f"--accumulator {register.name}"
        if register == EXACT32:
            self.network.check(batch)
        if register == EXACT32 and not self.config.count_overflow:
            return
        if not any(op.kind == "gemm" and op.dtype == "int8" for op in models.trace(self.network, batch)):
            raise OctosimError(f"{chosen} is for methods with int8 products, which {self.config.method} does not have")
        accumulate.check(self.network.nodes, batch, register)

    def order(self, epoch: int) -> Array:
        """The training images' order in an epoch (from 0)."""
        if self._order[0] != epoch:
            self._order = (epoch, loader.order(len(self._train_labels), self.config.seed, epoch))
        return self._order[1]

    def batch(self, step: int) -> Batch:
        """Augmented images and labels of a step (from 1); the last batch of an epoch may be smaller."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        size = self.config.batch_size
        chosen = self.order(epoch)[index * size : (index + 1) * size]
        augment = loader.AUGMENTATIONS[self.config.augment]
        return augment(self.data.train_images[chosen], self.config.seed, step), self._train_labels[chosen]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step (from 1)."""
        return optim.rate(self.optimizer.lr, self.schedule, step, self.steps, self.steps_per_epoch)

    @property
    def epoch(self) -> int:
        """The epoch (from 1) of the last step."""
        return (self.step - 1) // self.steps_per_epoch + 1

    def train_step(
        self, tick: models.Tick | None = None, batch: Batch | None = None, replay: Replay = core.Tape.replay
    ) -> float:
        """Takes the next step and returns its loss.  self.overflow is then what happened in its accumulators, self.measures its
        errors, where they were counted and measured.

        batch: what `self.batch` made for it before, if it did.  tick: called in steps that Python makes; replay: makes a
        recorded one.  OctosimError names step and layer of the first NaN or infinity; the parameters are good for nothing then.
        """
        self.step += 1
        images, labels = batch or self.batch(self.step)
        context = Context(training=True, seed=self.config.seed, step=self.step, steps=self.steps, epoch=self.epoch)
        numbers = self.learning_rate(self.step), *self.optimizer.corrections(self.step)
        self.registers.counting, self.registers.counts = self._due(self.config.count_overflow), []
        meter = self.meter if self._due(self.config.measure) else None
        self.measures = []
        try:
            if meter or not self._recordable(len(labels)):
                with self._measured(meter, (images, labels), context, numbers):
                    loss = float(self._make(images, labels, context, numbers, tick))
            else:
                loss = self.recorded.take(self._make, images, labels, context, numbers, tick, replay)
        except core.NotFiniteError as error:
            raise OctosimError(f"step {self.step}, {error}; a smaller --lr may help") from None
        self.overflow = [
            {"step": self.step, "layer": layer, "pass": pass_, "accumulator": self.registers.accumulator.name}
            | accumulate.as_record(count)
            for layer, pass_, count in self.registers.counts
        ]
        return loss

    def _recordable(self, images: int) -> bool:
        """Whether a step on so many images may be recorded: not on the smaller batch at the end of an epoch, nor where sums are
        counted or narrowed, or the passes observed."""
        registers = self.registers
        plain = registers.accumulator == EXACT32 and not registers.counting and registers.seen is None
        plain &= self.network.method is self.method
        return self.records and self.method.recordable and plain and images == self.config.batch_size

    def _make(
        self, images: Array, labels: Array, context: Context, numbers: optim.Numbers, tick: models.Tick | None
    ) -> core.Number:
        """Forward and backward passes and the update, as the method has them; the loss."""

        def gradients(done: Callable[[Node], None] | None = None) -> core.Number:
            loss, _ = self.network.gradients(images, labels, context, tick, self.config.label_smoothing, done)
            self.registers.counting = False  # a second pass of the same step is not counted again
            return loss

        nodes, (lr, *corrections) = self.network.nodes, numbers
        update = optim.Update(self.optimizer, self.method, context, lr, tuple(corrections), nodes, self.slots)
        with np.errstate(over="ignore", invalid="ignore"):  # as models.QUIET
            return self.method.step(nodes, gradients, update, context)

    @contextmanager
    def _measured(
        self, meter: measure.Meter | None, batch: Batch, context: Context, numbers: tuple[float, ...]
    ) -> Iterator[None]:
        """Around a step: measures it, where there is a meter."""
        if not meter:
            yield
            return
        lr, *corrections = numbers

        def trial(name: str, w: Array, g: Array) -> None:
            held = {slot: self.slots[name].get(slot, np.zeros_like(w)) for slot in self.optimizer.slots}
            copies = {slot: v.astype(np.float32) for slot, v in held.items()}
            self.optimizer.update(tuple(corrections), lr, self.optimizer.decay, w, g, copies)

        with meter.step(self.network, self.registers, batch, context, self.config.label_smoothing, trial):
            yield
        self.measures = [{"step": self.step} | row for row in meter.finish(self.network)]

    def _due(self, every: int | None) -> bool:
        """Whether the step is one of every so many."""
        return every is not None and self.step % every == 0

    def advance(self, batch: Batch | None = None) -> dict[str, Any]:
        """One step and, after an epoch's or the run's last and where asked for, the test set: the step's record."""
        loss = self.train_step(batch=batch)
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": loss,
            "learning_rate": None if "lr" in self.method.unused else self.learning_rate(self.step),
        }
        if self.step == self.steps or self.step % self.steps_per_epoch == 0 or self._due(self.config.eval_every):
            try:
                test_loss, self.test_accuracy = self.network.evaluate(self.data.test_images, self._test_labels)
            except core.NotFiniteError as error:
                raise OctosimError(f"after step {self.step}, test set, {error}; a smaller --lr may help") from None
            record |= {"test_loss": test_loss, "test_accuracy": self.test_accuracy}
        if self.step == self.steps or self.step % self.steps_per_epoch == 0:
            metrics = self.method.metrics(self.network.nodes)
            record |= {"metrics": metrics} if metrics else {}
        return record

    def tensors(self) -> dict[str, Array]:
        """Everything that changes in training, by name."""
        slots = {f"optimizer.{name}.{slot}": v for name, kept in self.slots.items() for slot, v in kept.items()}
        return {**self.network.tensors(), **slots}

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and little-endian bytes of all tensors, in the order of their names."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            total.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
            total.update(tensor.tobytes())
        return total.hexdigest()


# ---- run directories --------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file as a whole; OctosimError where the disk is full or the folder is not writable."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OctosimError(f"cannot write {path}: {error.strerror}") from None


def environment() -> dict[str, Any]:
    """What a run's bits do not depend on: the machine and the software around."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "isa": core.isa(),
        "threads": core.threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(terse=True),
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def parameter_counts(run: Run) -> dict[str, int]:
    """How many trained numbers of each kind there are in all layers: w, b, gamma, a method's own as lac_mu ..."""
    counts: dict[str, int] = {}
    for node in run.network.nodes:
        for name, values in node.params.items():
            counts[name] = counts.get(name, 0) + values.size
    return counts


def memory(run: Run) -> dict[str, dict[str, int]]:
    """Bytes of a step by what they hold, with the run's method and with fp32, as `footprint.footprint` has them."""
    batch, slots, networks = run.config.batch_size, len(run.optimizer.slots), {run.config.method: run.network}
    if "fp32" not in networks:
        plain = models.Network(run.layers, run.data.train_images.shape[1:], methods.make("fp32", {}), None)
        networks = {"fp32": plain} | networks
    return {name: footprint.footprint(network, batch, slots=slots) for name, network in networks.items()}


def decides(run: Run) -> dict[str, Any]:
    """What a run's bits depend on."""
    c, d = run.config, run.data
    return {
        "octosim": octosim.__version__,
        "model": c.model,
        "batchnorm": c.batchnorm,
        "layers": models.describe(run.layers),
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
        "optimizer": None if "optimizer" in run.method.unused else optim.describe(run.optimizer, run.schedule),
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
        "environment": environment(),
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


def _rebuild(folder: Path, config: Config) -> Run:
    """The run of a directory before its first step."""
    if not models.is_file(config.model):
        return Run(config)
    stored = read_manifest(folder).get("decides", {}).get("layers")
    return Run(config, models.parse(f"{folder / 'manifest.json'}:", stored))


def read_digest(folder: Path) -> str | None:
    """The digest of a finished run, None for one that is not."""
    try:
        return (folder / "digest.txt").read_text().split()[0].removeprefix("sha256:")
    except (FileNotFoundError, IndexError):
        return None


def _save(run: Run, folder: Path) -> None:
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
    run = _rebuild(folder, config)
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


class Interrupt:
    """Turns Ctrl-C and SIGTERM into the flag `asked`, so that what is in progress ends well; only in the main thread."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: signals are not ours
                pass
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def train(
    run: Run, folder: Path, progress: Callable[[Progress], None] | None = None, every: int = 100, prefetch: bool = False
) -> bool:
    """Trains to the end of the run, writing records and, every so many steps and after each epoch, a checkpoint.

    prefetch: make batches in a background thread, ahead of their steps; it changes no bit.  Returns False if it was interrupted
    (a checkpoint is written first).  A failing step (NaN, full disk) raises OctosimError; records and the last checkpoint stay
    good.
    """
    run.records = True
    if run.config.measure:
        run.meter = measure.Meter(run.layers, run.data.train_images.shape[1:], run.registers.accumulator)
    started, epoch_step = time.perf_counter(), run.step
    left = range(run.step + 1, run.steps + 1)
    batches = loader.ahead(run.batch, left) if prefetch else (run.batch(step) for step in left)
    try:
        with Interrupt() as interrupt, open(folder / "records.jsonl", "a") as records, closing(batches):
            for batch in batches:
                record = run.advance(batch)
                records.write(json.dumps(record) + "\n")
                for name, rows in (("overflow.jsonl", run.overflow), ("measures.jsonl", run.measures)):
                    if rows:
                        with open(folder / name, "a") as file:
                            file.writelines(json.dumps(row) + "\n" for row in rows)
                if progress:
                    progress(Progress(run.step, run.steps, record["epoch"], record["loss"], run.test_accuracy))
                epoch_ends, stop = run.step % run.steps_per_epoch == 0, interrupt.asked
                if epoch_ends or run.step % every == 0 or run.step == run.steps or stop:
                    records.flush()
                    os.fsync(records.fileno())
                    _save(run, folder)
                if epoch_ends:
                    now = time.perf_counter()
                    _time_epoch(folder, record["epoch"], now - started, (run.step - epoch_step) * run.config.batch_size)
                    started, epoch_step = now, run.step
                if stop:
                    break
    except OSError as error:
        raise OctosimError(f"cannot write records in {folder}: {error.strerror}") from None
    if run.step < run.steps:
        return False
    write_atomic(folder / "digest.txt", f"sha256:{run.digest()}  step {run.step}\n".encode())
    return True


def _time_epoch(folder: Path, epoch: int, wall_s: float, images: int) -> None:
    with open(folder / "timing.jsonl", "a") as file:
        file.write(json.dumps({"epoch": epoch, "wall_s": wall_s, "images_per_s": images / wall_s}) + "\n")


# ---- replay --------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a replay found.  first_step: the first step whose record differs, None where all are equal."""

    equal: bool
    recorded: str
    replayed: str
    first_step: int | None


def _losses(folder: Path) -> Iterator[tuple[int, float]]:
    path = folder / "records.jsonl"
    try:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            yield record["step"], record["loss"]
    except (OSError, ValueError, KeyError) as error:
        raise OctosimError(f"{path} cannot be read: {error}") from None


def replay(folder: Path) -> Run:
    """The run of a directory before its first step; OctosimError where its data are others now."""
    checksum = read_manifest(folder)["decides"]["data"]["sha256"]
    run = _rebuild(folder, read_config(folder))
    if run.data.sha256 != checksum:
        raise OctosimError(f"{folder}: the run's data {run.data.name} had sha256 {checksum}, here it has {run.data.sha256}")
    return run


def advance_before(run: Run, step: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Takes a run's steps until `step` is the next one; progress takes the step reached and the goal."""
    if not 1 <= step <= run.steps:
        raise OctosimError(f"--step must be in 1 .. {run.steps}, the run's steps, not {step}")
    run.records = True
    while run.step < step - 1:
        run.train_step()
        if progress:
            progress(run.step, step)


def verify(folder: Path, progress: Callable[[Progress], None] | None = None) -> Verdict:
    """Replays a finished run from its manifest, in memory, and compares records and digest."""
    read_config(folder)
    recorded = read_digest(folder)
    if recorded is None:
        raise OctosimError(f"{folder} has no digest.txt: the run is not finished (continue it with --resume)")
    run = replay(folder)
    first: int | None = None
    expected = dict(_losses(folder))
    while run.step < run.steps:
        record = run.advance()
        if first is None and expected.get(run.step) != record["loss"]:
            first = run.step
        if progress:
            progress(Progress(run.step, run.steps, record["epoch"], record["loss"], run.test_accuracy))
    replayed = run.digest()
    return Verdict(replayed == recorded and first is None, recorded, replayed, first)
