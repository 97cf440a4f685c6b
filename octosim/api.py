"""The Python API: `octosim.train`, `octosim.open`, `octosim.cost` and `octosim.study`, and what they return.

    >>> import octosim
    >>> from octosim.methods.octo import Octo
    >>> run = octosim.train(model="lenet5", method=Octo(lac="off"), batch_size=20, steps=2)
    >>> run
    <octosim.Run lenet5, fashion-mnist-5k, octo: 2 of 2 steps>
    >>> list(run.records.columns[:3]), len(run.records)
    (['step', 'epoch', 'loss'], 2)
    >>> run.verify().equal
    True

A run is a folder on disk, as of `octosim train`: what is made here can be resumed, verified and reported from the command line,
and the other way round.  Everything works in a thread and in processes that are spawned; a `Run` may be sent to one.
"""

from __future__ import annotations

import html
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octosim import core, data, graph, hardware, methods, outcome, workload  # noqa: I001 - by name
from octosim import study as _study
from octosim import train as _train
from octosim.data import dataset as data_sets
from octosim.engine import Network
from octosim.engine.layers import Layer, Residual
from octosim.engine.nodes import Array, Context, Method
from octosim.errors import OctosimError, suggest
from octosim.files import is_onnx, read_lines, write_atomic
from octosim.methods.recipes import with_recipe
from octosim.numerics import Accumulator
from octosim.train import Config, Progress, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Arrays = tuple[Array, Array, Array, Array]
"""Training images, training labels (N,), test images, test labels.  Images are uint8 or float32, (N, height, width, channels),
(N, channels, height, width) or (N, height, width), or vectors (N, values); labels integers from 0."""

_ARRAYS = data.ARRAYS  # a name that no argument hides
LAYERS = "layers.toml"
"""The model's name where layers were given; the manifest holds them."""


_OPTION = r"(?<![^\s(;'])--"  # that begins a word: a path may have two dashes too


@contextmanager
def _in_arguments() -> Iterator[None]:
    """Errors name the arguments of Python in place of the command line's options."""
    try:
        yield
    except OctosimError as error:
        raise OctosimError(_spelled(str(error))) from None


def _spelled(text: str) -> str:
    """A sentence with the arguments of Python in place of the command line's options."""
    text = re.sub(rf"{_OPTION}no-([a-z-]+)", r"\1=False", text)
    text = re.sub(rf"{_OPTION}resume\b", "octosim.open(...).resume()", text)
    return re.sub(rf"{_OPTION}([a-z][a-z-]*)", lambda match: match[1].replace("-", "_"), text)


def _whole(name: str, value: Any) -> int:
    """A whole number of at least 1; OctosimError names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise OctosimError(f"{name} is {value!r}, expected a whole number")
    if value < 1:
        raise OctosimError(f"{name} must be at least 1, not {value}")
    return int(value)


def _path(name: str, value: Any) -> Path:
    """A path; OctosimError names the argument."""
    if not isinstance(value, str | os.PathLike) or "\0" in os.fsdecode(value):
        raise OctosimError(f"{name} is {value!r}, expected a path")
    return Path(os.fsdecode(value))


def _name(value: Any) -> Any:
    """A path object as the text that names a model or data."""
    return os.fsdecode(value) if isinstance(value, os.PathLike) else value


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came while a run was trained.  run: it, at the checkpoint that was written; `run.resume()` continues it."""

    def __init__(self, run: Run):
        super().__init__(f"interrupted after step {run.step}; octosim.open({str(run.folder)!r}).resume() continues the run")
        self.run = run


# ---- runs --------------------------------------------------


class Run:
    """A training run in its folder: its records and, as of its last checkpoint, its network.

    folder: a run directory.  What a running process adds to it is seen at the next access.
    """

    def __init__(self, folder: str | Path):
        self.folder = _path("folder", folder)
        _train.read_manifest(self.folder)
        self._made: _train.Run | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __reduce__(self) -> Any:
        return Run, (self.folder,)

    @property
    def config(self) -> Config:
        """What the run was started with."""
        return _train.read_config(self.folder)

    @property
    def manifest(self) -> dict[str, Any]:
        """What decides the run's bits, and its environment."""
        return _train.read_manifest(self.folder)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the tensors after the last step, in hexadecimal; None while the run is not finished."""
        return _train.read_digest(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the last step was taken."""
        return self.digest is not None

    @property
    def records(self) -> pd.DataFrame:
        """A row a step: step, epoch, loss, learning_rate; where evaluated test_loss and test_accuracy in [0, 1], else NaN."""
        return self._frame("records.jsonl")

    @property
    def measures(self) -> pd.DataFrame:
        """Errors against float32, a row for each measured step, layer, pass, role and reference; empty without `measure`."""
        return self._frame("measures.jsonl")

    @property
    def overflow(self) -> pd.DataFrame:
        """What happened in the accumulators, a row for each counted step, layer and pass; would_overflow.N: the outputs that N
        bits would not have held.  Empty without `count_overflow`."""
        return self._frame("overflow.jsonl")

    def _frame(self, name: str) -> pd.DataFrame:
        import pandas as pd

        path = self.folder / name
        return pd.json_normalize([row for row, _ in read_lines(path)] if path.exists() else [])

    @property
    def state(self) -> _train.Run:
        """The network with its data and optimizer at the last checkpoint, to go on with in memory; it is made once."""
        if self._made is None:
            self._made = _train.reopen(self.folder)
        return self._made

    @property
    def network(self) -> Network:
        """The network at the last checkpoint."""
        return self.state.network

    @property
    def step(self) -> int:
        """The step of the last checkpoint."""
        return self.state.step

    def tensors(self) -> dict[str, Array]:
        """Parameters, running statistics and the optimizer's tensors at the last checkpoint, by "layer.name"."""
        return self.state.tensors()

    @core.float_environment()
    def logits(self, x: Array, batch_size: int = 500) -> Array:
        """What the network gives for images: float32 (N, classes), with running statistics.  x: of the data's type, uint8 or
        float32, (N, height, width, channels), (N, height, width) for one channel, or vectors (N, values).
        batch_size: images at once, which changes no bit but with methods that take a batch's own ranges.
        OctosimError for another shape or dtype."""
        batch_size = _whole("batch_size", batch_size)
        x, context = self._images(x), Context(training=False, seed=self.state.config.seed, step=0)
        made = []
        for i in range(0, len(x), batch_size):
            network = self.network
            y = network.forward(network.input(x[i : i + batch_size]), context)
            made.append(np.array(core.materialize(y)))
        return np.concatenate(made) if made else np.empty((0, *self.network.nodes[-1].out_shape), np.float32)

    def predict(self, x: Array) -> Array:
        """The class of each image, int64 (N,); see `logits`.  OctosimError for a network without classes, of the loss mse."""
        if self.network.graph.loss == "mse":
            raise OctosimError("predict: the network gives its input again and no classes; `logits` is its output")
        return np.argmax(self.logits(x), axis=1)

    @core.float_environment()
    def evaluate(self, x: Array | None = None, y: Array | None = None) -> dict[str, float]:
        """Mean loss and accuracy in [0, 1] on images uint8 (N, height, width, channels) and labels (N,), or on the test set.

        A network of the loss mse takes no labels and has no accuracy.
        """
        mse = self.network.graph.loss == "mse"
        if mse and x is not None:
            y = np.zeros(len(x), np.int32)
        if (x is None) != (y is None):
            raise OctosimError("evaluate takes images and labels, or neither for the run's test set")
        if x is None or y is None:
            x, y = self.state.data.test_images, self.state.data.test_labels
        x, labels = self._images(x), y if mse else _labels("y", y, len(x), self.network.nodes[-1].out_shape[-1])
        if not len(x):
            raise OctosimError("evaluate needs at least one image")
        loss, accuracy = self.network.evaluate(x, labels.astype(np.int32))
        return {"loss": loss} | ({} if accuracy is None else {"accuracy": accuracy})

    def _images(self, x: Any) -> Array:
        x, shape = np.asarray(x), self.network.nodes[0].in_shape
        if x.ndim == 3 and shape[-1] == 1:
            x = x[..., None]
        floats = self.network.source.floats
        if not (x.dtype.kind == "f" if floats else x.dtype == np.uint8) or x.shape[1:] != shape:
            expected = f"{'images' if len(shape) == 3 else 'vectors'} {'float32' if floats else 'uint8'}"
            raise OctosimError(f"x is {x.dtype} {x.shape}, expected {expected} (N, {', '.join(map(str, shape))})")
        return np.ascontiguousarray(x, self.network.source.dtype)

    @_in_arguments()
    def verify(self) -> Verdict:
        """Replays the run from its manifest and compares every file; `.equal`, `.differences`.  OctosimError while it is not
        finished, or where a file cannot be read."""
        return _train.verify(self.folder)

    @_in_arguments()
    def resume(
        self, on_step: Callable[[Progress], None] | None = None, *, progress: bool | None = None, checkpoint_every: int = 100
    ) -> Run:
        """Trains from the last checkpoint to the end; see `train`.  A finished run is returned as it is."""
        checkpoint_every = _whole("checkpoint_every", checkpoint_every)
        if self.finished:
            return self
        self._made = None
        _steps(self, on_step, progress, checkpoint_every)
        return self

    def save(self, folder: str | Path) -> Run:
        """Copies the run to another folder, which must not exist; returns it there.  Keeps a run without `out`."""
        try:
            shutil.copytree(self.folder, folder)
        except OSError as error:
            raise OctosimError(f"cannot copy the run to {folder}: {error.strerror or error}") from None
        return Run(folder)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Training loss and test accuracy (test loss where there are no classes) over the steps; path: also write the picture,
        .png, .svg or .pdf."""
        records = self.records
        figure = _figure(7, 3)
        loss = figure.add_subplot()
        loss.plot(records["step"], records["loss"], linewidth=0.9, color="#0072B2")
        loss.set(xlabel="step", ylabel="training loss")
        if "test_accuracy" in records:
            tested = records.dropna(subset=["test_accuracy"])
            accuracy = loss.twinx()
            accuracy.plot(tested["step"], 100 * tested["test_accuracy"], "o-", color="#D55E00", markersize=4)
            accuracy.set_ylabel("test accuracy, %")
        elif "test_loss" in records:
            tested = records.dropna(subset=["test_loss"])
            loss.plot(tested["step"], tested["test_loss"], "o-", color="#D55E00", markersize=4)
            loss.set_ylabel("mean squared error: training, test (dots)")
        loss.set_title(_title(self.config), fontsize=11)
        return _saved(figure, path)

    def _steps_taken(self) -> tuple[int, str]:
        """The steps that records.jsonl has, and the last evaluation in words."""
        records = self.records
        found = {name: records[name].dropna().tolist() for name in ("test_accuracy", "test_loss") if name in records}
        return len(records), outcome.score(*((found.get(name) or [None])[-1] for name in ("test_accuracy", "test_loss")))

    def __repr__(self) -> str:
        config, manifest = self.config, self.manifest
        epochs, steps = manifest["decides"].get("epochs"), manifest["decides"].get("steps")
        length = f"{steps} steps" if steps else f"{epochs} epochs"
        return f"<octosim.Run {config.model}, {config.data}, {config.method}: {self._steps_taken()[0]} of {length}>"

    def _repr_html_(self) -> str:
        config, (steps, score) = self.config, self._steps_taken()
        rows = {f.name: value for f in fields(Config) if (value := getattr(config, f.name)) != getattr(Config(), f.name)}
        rows = {"model": config.model, "data": config.data, "method": config.method} | rows | {"steps taken": steps}
        if score:
            rows["test" if score.startswith("error") else "test accuracy"] = score
        rows |= {"digest": self.digest or "not finished", "folder": self.folder}
        return _html("octosim run", rows)


@_in_arguments()
def open_run(folder: str | Path) -> Run:
    """The run in a folder, of `octosim.train` or `octosim train`; OctosimError where there is none."""
    return Run(folder)


@_in_arguments()
def train(
    config: Config | None = None,
    *,
    on_step: Callable[[Progress], None] | None = None,
    out: str | Path | None = None,
    recipe: str | None = None,
    model: str | Sequence[Any] | None = None,
    method: str | Method | None = None,
    accumulator: str | Accumulator | None = None,
    data: str | Arrays | None = None,
    progress: bool | None = None,
    threads: int | None = None,
    checkpoint_every: int = 100,
    **changes: Any,
) -> Run:
    """Trains a network with a method's exact arithmetic, and returns the run.

    config: what the run is; the other arguments replace its fields, and `changes` are more of them (steps=100, seed=1 ...).
    recipe: a method's name, in place of `config`: the settings in which all of it acts (`octosim methods show`).
    model: a name, a model file, or layers, as [Conv2d(8, 3), ReLU(), Flatten(), Linear(10)] of octosim.engine.layers.
    method: a name, an import path "module:Class", or a method with its parameters, as octosim.methods.octo.Octo(lac="off").
    accumulator: a name, or a `numerics.Accumulator`.
    data: a name, or arrays: see `Arrays`.  The run's folder keeps these, the first `limit` of them where that is given.
    out: the run's folder; without it a temporary one, which lasts as long as the `Run` (`Run.save` keeps it).
    on_step: called after each step with step, steps, epoch, loss and test_accuracy.
    progress: show a bar; None: on a terminal or in a notebook.
    threads: of the kernels; the number stays for what follows.

    Raises Interrupted at Ctrl-C, after a checkpoint; OctosimError for an argument that is refused and for a step with a NaN.
    """
    model, data = _name(model), _name(data)
    if config is not None and not isinstance(config, Config):
        raise OctosimError(f"config is {type(config).__name__}, expected an octosim.Config")
    if on_step is not None and not callable(on_step):
        raise OctosimError(f"on_step is {on_step!r}, expected a function")
    checkpoint_every = _whole("checkpoint_every", checkpoint_every)
    changes |= {key: value for key, value in (("method", method), ("accumulator", accumulator)) if value is not None}
    layers, dataset = None, None
    if isinstance(model, str):
        changes["model"] = model
    elif model is not None:
        layers, changes["model"] = graph.parse("model:", graph.describe(_checked_layers(model))), LAYERS
    if isinstance(data, str):
        changes["data"] = data
    elif data is not None:
        dataset, changes["data"] = _dataset(data), _ARRAYS
    if recipe is not None:
        if config is not None:
            raise OctosimError("give either config or recipe")
        named = {} if method is None else {"method": method if isinstance(method, str) else methods.name_of(method)}
        config = Config(**with_recipe(recipe, named))
    made = _config(config or Config(), changes)
    if dataset is not None:
        for name in ("image", "test_share", "skip_unreadable"):
            if getattr(made, name) != getattr(Config(), name):
                raise OctosimError(f"{name} has no meaning for data that are arrays")
    if threads is not None:
        core.set_threads(_whole("threads", threads))
    temporary = tempfile.TemporaryDirectory(prefix="octosim-") if out is None else None
    folder = Path(temporary.name) / "run" if temporary else _path("out", out)
    trained = dataset if dataset is None or made.limit is None else data_sets.limited(dataset, made.limit)
    _train.create(made, folder, f"octosim.train({made})", layers, trained)
    if dataset is not None:
        write_atomic(folder / _train.ARRAYS_FILE, _npz(dataset))
    run = Run(folder)
    run._temporary = temporary
    _steps(run, on_step, progress, checkpoint_every)
    return run


def _config(config: Config, changes: dict[str, Any]) -> Config:
    known = [f.name for f in fields(Config)]
    for name in changes:
        if name not in known:
            raise OctosimError(f"train has no argument '{name}'" + suggest(name, known))
    if "method" in changes and not isinstance(changes["method"], str):
        changes = {"parameters": {}} | changes
    return replace(config, **changes)


def _checked_layers(model: Any) -> Any:
    if not isinstance(model, Sequence):
        raise OctosimError(f"model is {type(model).__name__}, expected a name or a list of layers of octosim.engine.layers")
    for number, item in enumerate(model, 1):
        if not isinstance(item, Layer | Residual):
            raise OctosimError(f"model: layer {number} is {str(item)[:40]}, expected a layer of octosim.engine.layers")
    return tuple(model)


def _steps(run: Run, on_step: Callable[[Progress], None] | None, progress: bool | None, every: int) -> None:
    """Takes the steps that are left."""
    state = run.state
    with _bar(state, progress) as move:

        def tell(p: Progress) -> None:
            move(p)
            if on_step:
                on_step(p)

        done = _train.train(state, run.folder, tell, every)
    if not done:
        raise Interrupted(run)


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def _bar(run: _train.Run, progress: bool | None) -> Iterator[Callable[[Progress], None]]:
    """A progress bar, which appears after two seconds."""
    from tqdm.std import tqdm

    show = (sys.stderr is not None and sys.stderr.isatty() or _in_notebook()) if progress is None else progress
    with tqdm(total=run.steps, initial=run.step, unit="step", disable=not show, delay=2, mininterval=0.5) as bar:

        def move(p: Progress) -> None:
            tested = f", test {p.score}" if p.score else ""
            bar.set_description_str(f"epoch {p.epoch}, loss {p.loss:.4f}{tested}", refresh=False)
            bar.update()

        yield move


# ---- data as arrays --------------------------------------------------


def _labels(name: str, y: Any, count: int, classes: int) -> Array:
    y = np.asarray(y)
    if y.shape != (count,) or y.dtype.kind not in "iu" or y.size and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise OctosimError(f"{name} is {y.dtype} {y.shape}, expected {count} whole numbers in 0 .. {classes - 1}")
    return y.astype(np.int32)


def _dataset(arrays: Any) -> data.Dataset:
    """A data set of four arrays; OctosimError, naming the array, for another shape or dtype."""
    try:
        x, y, x_test, y_test = arrays
    except (TypeError, ValueError):
        raise OctosimError("data must be a name or four arrays: x_train, y_train, x_test, y_test") from None
    for name, array in zip(("x_train", "y_train", "x_test", "y_test"), (x, y, x_test, y_test), strict=True):
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            raise OctosimError(f"{name} has masked values, expected plain arrays")
        if array is None:
            raise OctosimError(f"{name} is None; data are four arrays: x_train, y_train, x_test, y_test")
    return data.from_arrays(np.asarray(x), np.asarray(y), np.asarray(x_test), np.asarray(y_test))


def _npz(d: data.Dataset) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, x_train=d.train_images, y_train=d.train_labels, x_test=d.test_images, y_test=d.test_labels
    )
    return buffer.getvalue()


# ---- cost --------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a step costs on one or several devices.

    results: for each device what `octosim cost --json` prints: "device", "total" (time_s, energy_j, peak_bytes ...), "runtime",
    "notes", "layers", "memory".
    """

    title: str
    results: tuple[dict[str, Any], ...]

    @property
    def total(self) -> dict[str, Any]:
        """The first device's total: time_s with time_low_s and time_high_s (80 %), energy_j, peak_bytes; None where unknown."""
        total: dict[str, Any] = self.results[0]["total"]
        return total

    @property
    def table(self) -> pd.DataFrame:
        """A row for each device, layer and pass: kind, dtype, macs, bytes, time_s, bound."""
        import pandas as pd

        return pd.DataFrame([{"device": result["device"]} | layer for result in self.results for layer in result["layers"]])

    @property
    def totals(self) -> pd.DataFrame:
        """A row a device."""
        import pandas as pd

        return pd.DataFrame([{"device": result["device"]} | result["total"] for result in self.results])

    def plot(self, path: str | Path | None = None) -> Figure:
        """The predicted time on each device with its 80 % interval; path: also write the picture, .png, .svg or .pdf."""
        figure = _figure(7, 1.5 + 0.4 * len(self.results))
        axes = figure.add_subplot()
        for y, result in enumerate(self.results):
            total = result["total"]
            axes.plot([1e3 * total["time_low_s"], 1e3 * total["time_high_s"]], [y, y], color="#0072B2", linewidth=2)
            axes.plot(1e3 * total["time_s"], y, "o", color="#0072B2")
        axes.set_yticks(range(len(self.results)), [result["device"] for result in self.results])
        axes.set_ylim(len(self.results) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set(xlabel="predicted time, ms; line: 80 % interval")
        axes.set_title(self.title, fontsize=11)
        axes.grid(axis="x", alpha=0.3)
        return _saved(figure, path)

    def __repr__(self) -> str:
        times = ", ".join(f"{result['device']} {result['total']['time_s'] * 1e3:.4g} ms" for result in self.results)
        return f"<octosim.Cost {self.title}: {times}>"

    def _repr_html_(self) -> str:
        totals = self.totals[["device", "time_s", "time_low_s", "time_high_s", "energy_j", "peak_bytes"]]
        return f"<p>{html.escape(self.title)}</p>{totals.to_html(index=False)}"


@_in_arguments()
def cost(
    model: str | Sequence[Any] | Run = "simplecnn",
    profile: str | Sequence[str] = "jetson",
    *,
    batch_size: int | None = None,
    method: str | Method | None = None,
    parameters: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    image: tuple[int, ...] | str | None = None,
    classes: int | None = None,
    batchnorm: bool = True,
    inference: bool = False,
    threads: int | None = None,
    runtime: str | Path | None = None,
    mode: str | None = None,
    cluster: str | None = None,
    clock_ghz: float | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    lenient: bool = False,
    **settings: Any,
) -> Cost:
    """Predicts time, energy and memory of a training step, or of an inference, on devices; nothing is computed.

    model: a name, a model file, an ONNX file, layers of octosim.engine.layers, or a run, which brings its own method, batch,
    image size and settings: none of the arguments that say these may be given beside it.
    profile: a device's name or alias or a profile's file; or several, of which equal ones are priced once.
    batch_size: 100 if not given; of an ONNX file its own.
    method: octo if not given; an ONNX file has none, and products of `dtype`: "int8", "float16", or "float32" if not given.
    image: (height, width, channels), or "HEIGHTxWIDTHxCHANNELS", or (values,) of vectors; classes: their number; those that the
    model is for if not given, else (28, 28, 1) and 10.
    threads: CPU cores that work at once; if not given all, of a chip with clusters as many as its first cluster has.
    runtime: the software whose kernels run, by name ("tflite", "pytorch", "mnn", "tensorrt" ...) or a runtime's file; the
    device's common one for an inference, octosim's own kernels for training if not given.
    mode: a Jetson's power mode ("10W"); cluster: one cluster of CPU cores ("a53"), or "dla"; clock_ghz: of the first engine.
    All of them are of every device.
    shapes: of an ONNX file's inputs that it leaves open, {"x": (1, 3, 224, 224)}; lenient: count its unknown operators as
    memory traffic.
    settings: train, freeze, train_last, update, channels, batchnorm_statistics, accumulate and float_layers, as `train` takes
    them.

    >>> from octosim.api import cost
    >>> result = cost("lenet5", ["pi4", "jetson"], batch_size=8)
    >>> result.totals["device"].tolist()
    ['raspberry-pi-4', 'jetson-xavier-nx']
    >>> [result["runtime"] for result in cost("lenet5", "pi4", dtype="float32", runtime="pytorch").results]
    ['pytorch']
    """
    threads = None if threads is None else _whole("threads", threads)
    software = None if runtime is None else os.fspath(_path("runtime", runtime))
    model = _name(model)
    if not isinstance(profile, str | os.PathLike | Sequence):
        raise OctosimError(f"profile is {profile!r}, expected a device's name, a profile's file or a list of them")
    for name, text in {"mode": mode, "cluster": cluster}.items():
        if not isinstance(text, str | None):
            raise OctosimError(f"{name} is {text!r}, expected a name")
    if isinstance(clock_ghz, bool) or not isinstance(clock_ghz, int | float | None):
        raise OctosimError(f"clock_ghz is {clock_ghz!r}, expected a number")
    named = [profile] if isinstance(profile, str | os.PathLike) else list(profile)
    loaded = [hardware.load(str(_path("profile", name))) for name in named]
    if not loaded:
        raise OctosimError("profile names no device")
    devices = [hardware.configured(device, mode, cluster, clock_ghz) for place, device in enumerate(loaded)
               if device not in loaded[:place]]  # fmt: skip
    source, title, batch_size = _source(
        model, devices[0], batch_size, method, parameters, dtype, image, classes, batchnorm, inference, shapes, lenient,
        settings,
    )  # fmt: skip
    batch = source.batch(batch_size)
    if source.check:
        source.check(batch)
    results = tuple(workload.price(source, device, batch, threads, software).record(software) for device in devices)
    for result in results:
        result["notes"] = [_spelled(note) for note in result["notes"]]
    what = "inference" if inference else "training step"
    return Cost(f"{title}, batch {batch}, {source.method or source.dtype}: {what}", results)


def _source(
    model: Any, device: hardware.Device, batch_size: int | None, method: str | Method | None,
    parameters: Mapping[str, Any] | None, dtype: str | None, image: tuple[int, ...] | str | None, classes: int | None,
    batchnorm: bool, inference: bool, shapes: Mapping[str, tuple[int, ...]] | None, lenient: bool, settings: dict[str, Any],
) -> tuple[workload.Workload, str, int | None]:  # fmt: skip
    """What is priced, its title and batch size; see `cost`.  device: the first."""
    batch_size = None if batch_size is None else _whole("batch_size", batch_size)
    classes = None if classes is None else _whole("classes", classes)
    sizes = _image(image)
    taken = {name: _shape("shapes", shape) for name, shape in (shapes or {}).items()}
    for name in settings:
        if name not in workload.WHOLE_STEP:
            raise OctosimError(f"cost has no argument '{name}'" + suggest(name, workload.WHOLE_STEP))
    checked = Config(**settings)
    tuning = {name: getattr(checked, name) for name in settings}
    if not isinstance(method, str | None) and Method not in type(method).__mro__:
        raise OctosimError(f"method is {str(method)[:60]}, expected a name or a method with its parameters")
    if parameters and not isinstance(method, str | None):
        raise OctosimError("parameters: a method that is an object has its own")
    if isinstance(model, Run):
        given = {"batch_size": batch_size, "method": method, "parameters": parameters, "dtype": dtype, "image": image,
                 "classes": classes, "batchnorm": None if batchnorm else False, "shapes": shapes,
                 "lenient": lenient or None} | settings  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise OctosimError(f"{name}: a run has its own, leave it out; the run's network at others: price its model")
        state = model.state
        network, config = state.network, state.config
        source = workload.of_network(
            state.layers, network.nodes[0].in_shape, state.method, inference, network.selection, network.accumulate,
            float_layers=True,
        )  # fmt: skip
        return source, config.model, config.batch_size
    title = "layers"
    if isinstance(model, str):
        title = Path(model).name if is_onnx(model) else model
    else:
        model = _checked_layers(model)
    asked = workload.CostQuery(
        model, method, workload.dtype_of(dtype, model, device), inference, sizes, lenient, dict(parameters or {}), batchnorm,
        shapes=taken, tuning=tuning, classes=classes,
    )  # fmt: skip
    return workload.source(asked), title, batch_size


def _image(image: Any) -> tuple[int, ...] | str | None:
    """The shape that `image` says, or its text."""
    if image is None or isinstance(image, str):
        return image
    shape = _shape("image", image)
    if len(shape) not in (1, 3):
        raise OctosimError(f"image is {image!r}, expected (height, width, channels), or (values,) of vectors")
    return shape


def _shape(name: str, sizes: Any) -> tuple[int, ...]:
    """Sizes of at least 1; OctosimError names the argument."""
    try:
        return tuple(_whole(name, size) for size in sizes)
    except (TypeError, OctosimError):
        raise OctosimError(f"{name} is {sizes!r}, expected whole numbers of at least 1") from None


# ---- studies --------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A grid of runs.  folder: of the study; states: what became of each run, by name."""

    folder: Path
    states: dict[str, str]

    @property
    def records(self) -> pd.DataFrame:
        """A row for each evaluation of each finished run: its settings, loss, test_loss, test_accuracy, overflow."""
        import pandas as pd

        return pd.read_csv(self.folder / "records.csv")

    @property
    def runs(self) -> dict[str, Run]:
        """The runs by name, those that were started."""
        return {name: Run(self.folder / name) for name in self.states if (self.folder / name / "manifest.json").exists()}

    def report(self, path: str | Path, profiles: Sequence[str] = ()) -> Path:
        """Writes the page of `octosim report`, .html or .md; profiles: devices on which the runs are priced."""
        from octosim.report import write_report

        command = f"octosim.api.Study.report({str(path)!r})"
        write_report([self.folder], Path(path), command, list(profiles), step_of=_train.step_of)
        return Path(path)

    def __repr__(self) -> str:
        finished = sum(state == "finished" for state in self.states.values())
        return f"<octosim.Study {self.folder}: {finished} of {len(self.states)} runs finished>"

    def _repr_html_(self) -> str:
        return _html("octosim study", {"folder": self.folder} | self.states)


@_in_arguments()
def study(
    grid: str | Path | Mapping[str, Any] | Sequence[Config],
    *,
    out: str | Path,
    jobs: int = 1,
    threads: int | None = None,
    checkpoint_every: int = 100,
) -> Study:
    """Trains a grid of runs; the same call again continues it.

    grid: a study's name or file, its content ({"base": {...}, "grid": [{"method": ["octo", "fp32"], "seed": [0, 1]}]}), or the
    runs' configurations.  out: the study's folder.
    jobs: runs at once; 1 trains in this process, more in spawned ones (a script needs `if __name__ == "__main__":` then).
    threads: of each run's kernels; not given, the threads of this process, divided by `jobs`.

    Raises KeyboardInterrupt at Ctrl-C, after checkpoints; OctosimError for a study that is refused.
    """
    folder, jobs = _path("out", out), _whole("jobs", jobs)
    checkpoint_every = _whole("checkpoint_every", checkpoint_every)
    threads = None if threads is None else _whole("threads", threads)
    if isinstance(grid, str | Path):
        path = _study.source(str(grid))
        content, text = _study.read(path), _study.text(path)
        rows = _study.rows(content, path)
    else:
        content, rows, text = _study.from_python(grid)
    _study.check(rows, folder)
    command = "octosim.study(...)"
    if jobs == 1:
        if threads is not None:
            core.set_threads(threads)
        made = _study.run(content, rows, folder, text, _study.in_this_process(command, checkpoint_every))
    else:
        import functools

        share = threads or max(1, core.threads() // jobs)
        train_all = functools.partial(_study.in_processes, jobs=jobs, threads=share, command=command, every=checkpoint_every)
        made = _study.run(content, rows, folder, text, train_all)
    if any(state.state in ("interrupted", "waiting") for state in made):
        raise KeyboardInterrupt("the study was interrupted; the same call continues it")
    return Study(folder, {state.name: state.state for state in made})


# ---- output --------------------------------------------------


def _title(config: Config) -> str:
    return f"{config.model}, {config.data}, {config.method}"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that a notebook shows; pyplot's alone are shown without this."""

        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", dpi=80)
            return drawn.getvalue()

    return Shown(figsize=(width, height), layout="constrained")


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        drawn = io.BytesIO()
        try:
            figure.savefig(drawn, format=Path(path).suffix.removeprefix(".") or "png", dpi=120)
        except ValueError as error:
            raise OctosimError(f"cannot write {path}: {error}") from None
        write_atomic(Path(path), drawn.getvalue())
    return figure


def _html(title: str, rows: Mapping[str, Any]) -> str:
    lines = "".join(f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table><caption>{html.escape(title)}</caption>{lines}</table>"
