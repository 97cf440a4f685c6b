"""A network with its data and optimizer, and the steps of its training, in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from octosim import core, data, engine, graph, limits, methods, numerics
from octosim.data import batches
from octosim.engine import inputs, optimizers, plan, probes, schedules
from octosim.engine import registers as accumulators
from octosim.engine.accumulation import micro_batch
from octosim.engine.layers import Stack
from octosim.engine.nodes import SEEN, Array, Circumstances, Context, Method, Node, Seen
from octosim.engine.replay import RecordedSteps
from octosim.errors import ArgumentError, OctosimError, suggest
from octosim.numerics import EXACT32
from octosim.train import measure
from octosim.train.config import EPOCHS, NORMALIZATIONS, Config
from octosim.train.initial import digest_of
from octosim.train.initial import fit as fit_initial
from octosim.train.initial import read as read_initial

CALIBRATION, CALIBRATED = 512, 64
"""Images, the first of the first epoch's order, that set the ranges of activations before the first step, and of a pass."""
INSPECTED = 64
"""Images, at most, of the pass whose tensors a method inspects."""
DATA = ("image", "test_share", "skip_unreadable", "limit")
"""Settings that say how `data` is read."""
MOST_MICRO = 1024
"""Micro-batches of a step, whose random streams 2^32 tensors hold."""

Batch = tuple[Array, Array]
"""Images (batch, height, width, channels) or vectors (batch, values), uint8 or float32, and labels int32 (batch,)."""


Data = data.Dataset | Callable[[], data.Dataset]
"""A data set, or what loads it."""


def load_data(config: Config, progress: Callable[[int, int], None] | None = None) -> data.Dataset:
    """The data of a configuration.  progress: is told of the images decoded and their number."""
    told = ((name, getattr(config, name)) for name in DATA)
    chosen: dict[str, Any] = {name: value for name, value in told if value is not None and value is not False}  # 0 is told
    return data.load(config.data, **chosen | ({"progress": progress} if progress else {}))


def source_of(config: Config, network: graph.Graph, dataset: data.Dataset, method: Method) -> inputs.Input:
    """How the input of a network is normalized that is trained on a data set."""
    images = dataset.train_images
    if config.normalize not in (None, *NORMALIZATIONS):
        raise OctosimError(f"unknown normalization '{config.normalize}'" + suggest(str(config.normalize), NORMALIZATIONS))
    asked = inputs.of_network(network.input, images) if config.normalize is None else None
    if config.normalize is None:
        normalize = images.dtype == np.float32 or method.normalize == "data"
    else:
        normalize = config.normalize == "data"
    if asked:
        return asked
    known: dict[bool, inputs.Input] = dataset.normalizations
    if normalize not in known:
        known[normalize] = inputs.measured(images, normalize)
    return known[normalize]


class Run:
    """A network with its data and optimizer, at some step.

    allow_replay: whether steps that nobody observes are recorded and replayed without Python, by `recorded`; the bits are the
    same.
    """

    @core.float_environment()
    def __init__(
        self, config: Config, layers: graph.Graph | Stack | None = None, dataset: Data | None = None,
        tensors: dict[str, Array] | None = None,
    ):  # fmt: skip
        """layers: of a run from a model file, which its manifest holds; the file may be gone or changed since.
        dataset: config.data, where it is loaded already, or what loads it when all else is found right.
        tensors: of config.init, where they are read already."""
        config.check_ranges()
        self.config = config
        self.method = methods.make(config.method, config.parameters)
        for name in self.method.unused:
            if getattr(config, name) != getattr(Config(), name):
                raise ArgumentError(f"{{{name}}} has no meaning for method {config.method}, see docs/methods.md")
        selection = config.selection
        self._check_fine_tuning()
        self.optimizer = optimizers.make(config.optimizer, config.lr, config.weight_decay)
        self.schedule = schedules.Schedule(config.schedule, tuple(config.milestones), config.gamma, config.warmup)
        schedules.check_schedule(self.schedule)
        batches.check_augmentation(config.augment)
        described = layers or graph.find(config.model).layers  # an unknown model is told before the data is read
        self.data = dataset() if callable(dataset) else dataset or load_data(config)
        images = len(self.data.train_labels)
        if config.batch_size > images:
            raise ArgumentError(
                f"{{batch_size}} {config.batch_size} is larger than the {images} training images of {self.data.name}"
            )
        self.steps_per_epoch = -(-images // config.batch_size)
        self.epochs = EPOCHS if config.epochs is None and config.steps is None else config.epochs
        lengths = (config.steps, self.epochs and self.epochs * self.steps_per_epoch)
        self.steps = min(length for length in lengths if length is not None)
        if self.steps >= 2**32:  # Philox counts steps in 32 bits
            raise OctosimError(f"a run has at most 2^32 - 1 steps, not {self.steps}")
        if config.warmup >= self.steps:
            raise ArgumentError(f"{{warmup}} must be less than the run's {self.steps} steps, not {config.warmup}")
        in_shape = self.data.train_images.shape[1:]
        if len(in_shape) != 3 and config.augment != "none":
            raise ArgumentError(f"{{augment}} {config.augment} is for images, and {self.data.name} has vectors")
        is_classifier = graph.as_graph(described).loss != "mse"
        if is_classifier and not self.data.classes:
            raise ArgumentError(f"{{data}}: {self.data.name} has no labels (y_train), which only the loss mse does without")
        if not is_classifier and config.label_smoothing:
            raise ArgumentError(f"{{label_smoothing}} is for labels, and the loss of {config.model} is mse")
        self.layers = layers or graph.layers(
            config.model, len(self.data.classes), config.batchnorm, in_shape, config.hidden_batchnorm
        )
        self._check_fits(in_shape)
        self.source = source_of(config, graph.as_graph(self.layers), self.data, self.method)
        self._check_memory(in_shape)
        initial = tensors if tensors is not None else read_initial(config.init) if config.init is not None else {}
        self.network = engine.Network(
            self.layers, in_shape, self.method, config.seed, config.float_layers, self.source, selection=selection,
            accumulate=config.accumulate, initial=initial,
        )  # fmt: skip
        self.network.batch = config.batch_size
        self.initial = fit_initial(config.init, initial, self.network) if config.init is not None else None
        self.registers = accumulators.AccumulatorModel(numerics.find(config.accumulator))
        self._check_registers()
        self._check_normalization(images)
        self.registers.install(self.network.nodes)
        self.overflow: list[dict[str, Any]] = []
        self.measures: list[dict[str, Any]] = []
        self.meter: measure.Meter | None = None  # `train` makes one; a replay measures nothing
        self.slots = optimizers.slots(self.optimizer, self.network)
        self.step = 0
        self.allow_replay = False
        self.recorded = RecordedSteps(self.network)
        self.test_accuracy: float | None = None
        self.test_loss: float | None = None
        self._train_labels = self.data.train_labels.astype(np.int32)
        self._test_labels = self.data.test_labels.astype(np.int32)
        self._order: tuple[int, Array] = (-1, np.empty(0, np.int64))

    def _check_fits(self, in_shape: tuple[int, ...]) -> None:
        """Refuses a network that is too deep for the images, or that takes images where the data are vectors."""
        try:
            engine.network.nodes(self.layers, in_shape)
        except OctosimError as error:
            if len(in_shape) == 3:
                remedy = "larger images ({image}) or a network with less pooling can do it"
                what = f"images of {' x '.join(map(str, in_shape))}"
            else:
                what, remedy = f"vectors of {in_shape[0]} numbers", "{model} mlp takes vectors"
            raise ArgumentError(f"{self.config.model} cannot take {what}, as {self.data.name} has: {error}; {remedy}") from None

    def _check_memory(self, in_shape: tuple[int, ...]) -> None:
        """Refuses a step that needs more memory than there is, before any of it is taken."""
        allowed = limits.usable()
        if allowed is None:
            return
        c = self.config
        network = plan.dry(self.layers, in_shape, self.method, c.float_layers, self.source, c.selection, c.accumulate)
        values = sum(math.prod(node.out_shape) for node in network.nodes) * self.config.batch_size
        weights = sum(w.size for node in network.nodes for w in node.params.values())
        if 4 * (weights + values) < allowed / 16:
            return  # far from it: a plan of the step takes longer
        needed = plan.memory(plan.plan(network, self.config.batch_size, self.optimizer))["peak"]
        if needed > allowed:
            raise ArgumentError(
                f"a step of {self.config.model} needs {needed / 2**30:,.3g} GiB of memory, and this process may use "
                f"{allowed / 2**30:,.3g} GiB; {self._what_fits(network, allowed)}"
            )

    def _what_fits(self, network: engine.Network, allowed: float) -> str:
        """What to change where a step needs more than `allowed` bytes."""
        c = self.config
        largest = plan.largest_batch(network, allowed)
        if largest < 1:
            return "one image needs more, too: take a smaller network or image size, or train fewer layers ({train_last})"
        said = f"{{batch_size}} {largest} fits"
        parts = 2 * c.accumulate
        while "optimizer" not in self.method.unused and 2 * parts <= c.batch_size and parts <= MOST_MICRO:
            same = plan.dry(
                network.graph, network.nodes[0].in_shape, self.method, c.float_layers, self.source, c.selection, parts
            )
            if plan.memory(plan.plan(same, c.batch_size, self.optimizer))["peak"] <= allowed:
                return said + f", and so does {{batch_size}} {c.batch_size} with {{accumulate}} {parts}"
            parts *= 2
        return said

    def new_meter(self) -> measure.Meter:
        """What measures the run's steps."""
        shape, accumulator = self.data.train_images.shape[1:], self.registers.accumulator
        return measure.Meter(self.layers, shape, accumulator, self.source, self.network.selection)

    def _check_fine_tuning(self) -> None:
        """Refuses, with OctosimError, settings that do not go together."""
        c = self.config
        if c.rate and "lr" in self.method.unused:
            raise ArgumentError(f"{{rate}} has no meaning for method {c.method}, which has no learning rate")
        if c.channels and c.measure is not None:
            raise ArgumentError("{measure} compares whole gradients: leave out {channels}")
        if c.accumulate == 1:
            return
        if "optimizer" in self.method.unused:
            raise ArgumentError(
                f"{{accumulate}} adds float32 gradients; those of method {c.method} are integers, with a scale of each batch"
            )
        if c.accumulate > min(c.batch_size, MOST_MICRO):
            most = f"{{batch_size}} {c.batch_size} and {MOST_MICRO}"
            raise ArgumentError(f"{{accumulate}} must be at most {most}, not {c.accumulate}")
        for name in ("count_overflow", "measure"):
            if getattr(c, name) is not None:
                raise ArgumentError(f"{{{name}}} looks at whole batches: leave out {{accumulate}}")

    def _check_normalization(self, images: int) -> None:
        """Refuses batch normalization over one value a channel, whose output is beta whatever its input, and over one image in
        every step, whose statistics are not those of inference."""
        last = images - (self.steps_per_epoch - 1) * self.config.batch_size
        size = micro_batch(self.config.batch_size, self.config.accumulate)
        whole = {self.config.batch_size, last if self.steps >= self.steps_per_epoch else self.config.batch_size}
        sizes = {min(size, images) for images in whole} | {images % size or size for images in whole}
        for node in self.network.nodes:
            if not node.layer.normalizes or not node.backward or node.running:
                continue
            if size == 1:
                micro = "a micro-batch" if self.config.accumulate > 1 else "a batch"
                raise ArgumentError(
                    f"layer {node.name}: batch normalization over {micro} of one image has other statistics than inference; "
                    "use {batchnorm_statistics} frozen, or a larger {batch_size}"
                )
            if min(sizes) * math.prod(node.in_shape[:-1]) == 1:
                batch = "a batch" if self.config.batch_size == 1 else f"the last batch of an epoch of {images} images"
                raise OctosimError(
                    f"layer {node.name}: batch normalization has one value a channel in {batch}, and nothing can be learned "
                    "from its input; choose another batch size"
                )

    def _check_registers(self) -> None:
        """Refuses sums that the exact register cannot hold; in any other an overflow is what the user wants to see."""
        register, batch = self.registers.accumulator, micro_batch(self.config.batch_size, self.config.accumulate)
        chosen = "{count_overflow}" if register == EXACT32 else f"{{accumulator}} {register.name}"
        if register == EXACT32:
            self.network.check(batch)
        if register == EXACT32 and not self.config.count_overflow:
            return
        if not any(op.kind == "gemm" and op.dtype == "int8" for op in plan.trace(self.network, batch)):
            raise ArgumentError(f"{chosen} is for methods with int8 products, which {self.config.method} does not have")
        accumulators.check(self.network.nodes, batch, register)

    def order(self, epoch: int) -> Array:
        """The training images' order in an epoch (from 0)."""
        if self._order[0] != epoch:
            self._order = (epoch, batches.order(len(self._train_labels), self.config.seed, epoch))
        return self._order[1]

    def batch(self, step: int) -> Batch:
        """Augmented images and labels of a step (from 1); the last batch of an epoch may be smaller."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        size = self.config.batch_size
        chosen = self.order(epoch)[index * size : (index + 1) * size]
        augment = batches.AUGMENTATIONS[self.config.augment]
        return augment(self.data.train_images[chosen], self.config.seed, step), self._train_labels[chosen]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step (from 1)."""
        return schedules.rate(self.optimizer.lr, self.schedule, step, self.steps, self.steps_per_epoch)

    @property
    def epoch(self) -> int:
        """The epoch (from 1) of the last step."""
        return (self.step - 1) // self.steps_per_epoch + 1

    @core.float_environment()
    def train_step(self, batch: Batch | None = None, watch: core.Probe = core.NO_PROBE) -> float:
        """Takes the next step and returns its loss.  self.overflow is then what happened in its accumulators, self.measures its
        errors, where they were counted and measured.

        batch: what `self.batch` made for it before, if it did.  watch: is told of the step's calls.  OctosimError names the
        step and layer of the first NaN or infinity; the parameters are good for nothing then.
        """
        self.step += 1
        images, labels = batch or self.batch(self.step)
        context = Context(training=True, seed=self.config.seed, step=self.step, steps=self.steps, epoch=self.epoch)
        if self.step == 1:
            self._calibrate()
            if self.initial is not None:
                self.initial.tensors.clear()  # the network has copies, and the run directory a file
        numbers = optimizers.numbers(self.optimizer, self.learning_rate(self.step), self.step, self.network)
        self.registers.counting, self.registers.counts = self._due(self.config.count_overflow), []
        meter = self.meter if self._due(self.config.measure) else None
        self.measures = []
        try:
            if meter or not self._replays(len(labels)):
                with self._measured(meter, (images, labels), context, numbers), watch.watching():
                    loss = float(self._make(images, labels, context, numbers))
            else:
                loss = self.recorded.take(self._make, images, labels, context, numbers, watch)
        except core.NotFiniteError as error:
            raise OctosimError(f"step {self.step}, {error}; a smaller learning rate may help") from None
        self.overflow = [
            {"step": self.step, "layer": layer, "pass": pass_, "accumulator": self.registers.accumulator.name}
            | accumulators.as_record(count)
            for layer, pass_, count in self.registers.counts
        ]
        return loss

    def _calibrate(self) -> None:
        """Before the first step of a run with given weights, or with layers that only infer: the ranges of activations."""
        if self.config.init is None and not self.network.needs_calibration:
            return
        chosen = self.order(0)[:CALIBRATION]
        parts = (self.data.train_images[chosen[i : i + CALIBRATED]] for i in range(0, len(chosen), CALIBRATED))
        self.network.calibrate(parts, Context(training=True, seed=self.config.seed, step=0, steps=self.steps))

    def _replays(self, images: int) -> bool:
        """Whether a step on that many images may be recorded: not on the smaller batch at the end of an epoch, nor where sums
        are counted or narrowed, or the passes observed."""
        registers = self.registers
        plain = registers.accumulator == EXACT32 and not registers.counting and not self.network.observers
        return self.allow_replay and plain and images == self.config.batch_size

    def _make(self, images: Array, labels: Array, context: Context, numbers: optimizers.Numbers) -> core.Number:
        """Forward and backward passes and the update, as the method has them; the loss."""

        def gradients(done: Callable[[Node], None] | None = None) -> core.Number:
            loss, _ = self.network.gradients(images, labels, context, self.config.label_smoothing, done)
            self.registers.counting = False  # a second pass of the same step is not counted again
            return loss

        nodes = self.network.nodes
        update = optimizers.Update.of(self.optimizer, self.network, context, numbers, self.slots)
        with np.errstate(over="ignore", invalid="ignore"), core.pooled(self.network.pool):  # as network.QUIET
            return self.method.step(nodes, gradients, update, context)

    @contextmanager
    def _measured(
        self, meter: measure.Meter | None, batch: Batch, context: Context, numbers: tuple[float, ...]
    ) -> Iterator[None]:
        """Around a step: measures it, where there is a meter."""
        if not meter:
            yield
            return
        update = optimizers.Update.of(self.optimizer, self.network, context, numbers, self.slots)
        rates = {node.name: update.rate(node) for node in self.network.nodes}

        def trial(name: str, w: Array, g: Array) -> None:
            layer = name.rpartition(".")[0]
            held = {slot: self.slots.get(name, {}).get(slot, np.zeros_like(w)) for slot in self.optimizer.slots}
            copies = {slot: v.astype(np.float32) for slot, v in held.items()}
            self.optimizer.update(update.corrections, rates[layer], self.optimizer.decay, w, g, copies)

        with meter.step(self.network, self.registers, batch, context, self.config.label_smoothing, trial):
            yield
        self.measures = [{"step": self.step} | row for row in meter.finish(self.network)]

    def _due(self, every: int | None) -> bool:
        """Whether the step is one of every so many."""
        return every is not None and self.step % every == 0

    @core.float_environment()
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
                self.test_loss, self.test_accuracy = self.network.evaluate(self.data.test_images, self._test_labels)
            except core.NotFiniteError as error:
                raise OctosimError(f"after step {self.step}, test set, {error}; a smaller learning rate may help") from None
            record |= {"test_loss": self.test_loss}
            record |= {} if self.test_accuracy is None else {"test_accuracy": self.test_accuracy}
        if self.step == self.steps or self.step % self.steps_per_epoch == 0:
            metrics = self.method.metrics(self.network.nodes)
            record |= {"metrics": metrics} if metrics else {}
        return record

    def caveats(self, seen: Seen | None = None) -> list[str]:
        """What of the method cannot act in this run; with the tensors of a step: or does not, see `Method.caveats`."""
        epochs = -(-self.steps // self.steps_per_epoch)
        return self.method.caveats(self.network.nodes, Circumstances(self.steps, epochs, self.config.optimizer), seen or {})

    @core.float_environment()
    def look_back(self) -> list[str]:
        """The caveats at the run's end.  A method that inspects tensors gets those of one more pass, which changes nothing."""
        if not self.method.inspects:
            return self.caveats()
        step = max(self.step, 1)
        images, labels = (part[:INSPECTED] for part in self.batch(step))
        context = Context(training=True, seed=self.config.seed, step=step, steps=self.steps, epoch=max(self.epoch, 1))
        state = [{key: value.copy() for key, value in node.state.items()} for node in self.network.nodes]
        tensors = probes.Tensors(SEEN)
        try:
            with probes.watching(self.network, tensors), core.pooled(self.network.pool):
                self.network.gradients(images, labels, context, self.config.label_smoothing)
        except core.NotFiniteError:
            return self.caveats()
        finally:
            for node, before in zip(self.network.nodes, state, strict=True):
                for key, value in before.items():
                    node.state[key][...] = value
                node.grads.clear()
        return self.caveats(tensors.kept)

    def tensors(self) -> dict[str, Array]:
        """Everything that changes in training, by name."""
        slots = {f"optimizer.{name}.{slot}": v for name, kept in self.slots.items() for slot, v in kept.items()}
        return {**self.network.tensors(), **slots}

    def digest(self) -> str:
        """`digest_of` all tensors."""
        return digest_of(self.tensors())
