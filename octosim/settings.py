"""What a user chooses of a run: each setting with its default, help text, panel, spelling and range.

The one definition of `octosim train`'s options, of a study's keys and of `train.Config`, which adds the checks.  It imports
nothing heavy: the command line reads it before anything else is loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from octosim.errors import ArgumentError

NETWORK, METHOD, OPTIMIZER, LENGTH, FINE_TUNING, ARITHMETIC, MEASURING = (
    "Network and data", "Method", "Optimizer", "Length of the run", "Fine-tuning", "Arithmetic", "Measuring"
)  # fmt: skip
"""Panels of the help, in their order."""


class _Metadata(typing.TypedDict):
    help: str
    panel: str
    option: str
    parse: Callable[[str], Any] | None
    least: float | None
    below: float | None
    positive: bool
    later: bool


def setting(
    default: Any, help: str, panel: str, *, option: str = "", parse: Callable[[str], Any] | None = None,
    least: float | None = None, below: float | None = None, positive: bool = False, later: bool = False,
) -> Any:  # fmt: skip
    """A field of Settings.

    default: a list or dict is copied.  help: what it chooses, its unit and range.  panel: of the help.  option: its spelling on
    the command line, where that is not the field's name.  parse: of the option's text, where the field is no number, string,
    flag or list of strings.  least, below, positive: its range; None is in every range.  later: manifests of earlier versions
    do not have it.
    """
    metadata: _Metadata = {
        "help": help, "panel": panel, "option": option, "parse": parse, "least": least, "below": below, "positive": positive,
        "later": later,
    }  # fmt: skip
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=typing.cast(Any, metadata))
    return field(default=default, metadata=typing.cast(Any, metadata))


def numbers(text: str) -> list[float]:
    """0.5,0.75 -> [0.5, 0.75]; empty -> []."""
    return [float(part) for part in text.split(",") if text]


@dataclass(frozen=True)
class Settings:
    """Everything that a user chooses and that decides the bits of a run and of its records, but for eval_every, count_overflow
    and measure, which decide records alone."""

    model: str = setting(
        "simplecnn", "Network: simplecnn, lenet5, mlp, alexnet, vgg11, vgg-small-7, resnet20, preresnet20, mobilenet ... or a "
        "model file.", NETWORK,
    )  # fmt: skip
    data: str = setting(
        "fashion-mnist-5k", "Data set: fashion-mnist-5k (in the package), fashion-mnist, mnist, cifar10; or your own: a folder "
        "of images a class, .npz, .csv, idx files.", NETWORK,
    )  # fmt: skip
    method: str = setting("octo", "Training method; `octosim methods` lists them.", METHOD)
    parameters: dict[str, Any] = setting({}, "A parameter of the method, KEY=VALUE; may be repeated.", METHOD, option="--set")
    optimizer: str = setting("sgd", "sgd or adam.", OPTIMIZER)
    lr: float | None = setting(
        None, "Learning rate, above 0; the optimizer's own if not given.", OPTIMIZER, positive=True
    )
    weight_decay: float = setting(
        0.0, "L2 weight decay, from 0; applied to weights, not to biases and normalization.", OPTIMIZER, least=0
    )
    schedule: str = setting("cosine", "Schedule of the learning rate over the run: cosine, step, constant.", OPTIMIZER)
    milestones: list[float] = setting(
        [], "Milestones of --schedule step: shares of the run, as 0.5,0.75, or epochs, as 80,120.", OPTIMIZER, parse=numbers
    )
    gamma: float = setting(0.1, "Factor on the learning rate at each milestone, above 0.", OPTIMIZER, positive=True)
    warmup: int = setting(0, "Steps in which the learning rate rises to its full value.", OPTIMIZER, least=0)
    augment: str = setting("none", "Augmentation of the training images: none, crop-flip.", NETWORK)
    label_smoothing: float = setting(
        0.0, "Share of a label's probability that is spread over all classes, in [0, 1).", OPTIMIZER, least=0, below=1
    )
    batch_size: int = setting(100, "Images a step, at least 1.", LENGTH, least=1)
    epochs: int | None = setting(None, "Passes over the training set; 3 without --steps.", LENGTH, least=1)
    steps: int | None = setting(None, "Steps; with --epochs, whichever ends sooner.", LENGTH, least=1)
    eval_every: int | None = setting(
        None, "Evaluate on the test set every N steps, and after every epoch.", MEASURING, least=1
    )
    seed: int = setting(0, "Seed of weights, order and stochastic rounding, 0 .. 2^64 - 1.", LENGTH, least=0, below=2**64)
    batchnorm: bool = setting(True, "Keep the network's batch normalization.", NETWORK)
    hidden_batchnorm: bool = setting(
        False, "Batch normalization behind hidden fully connected layers too.", NETWORK, later=True
    )
    float_layers: bool = setting(
        False, "Run layers that the method does not cover in float32, instead of refusing.", METHOD, later=True
    )
    accumulator: str = setting(
        "exact32", "Accumulator of the int8 products: exact32, sdot, vpdpbusd, maddubs, acc24, acc16-wrap ...", ARITHMETIC
    )
    count_overflow: int | None = setting(
        None, "Every N steps, append the accumulators' overflow statistics to overflow.jsonl.", MEASURING, least=1
    )
    measure: int | None = setting(
        None, "Every N steps, append each layer's errors against float32 to measures.jsonl.", MEASURING, least=1
    )

    image: str | None = setting(None, "Bring images to HEIGHTxWIDTHxCHANNELS, as 96x96x3.", NETWORK, later=True)
    test_share: float | None = setting(
        None, "Share of each class to test with, of data without a test part; 0.2 if not given.", NETWORK, later=True
    )
    skip_unreadable: bool = setting(
        False, "Leave out image files that cannot be decoded, and say which, instead of refusing all.", NETWORK, later=True
    )
    limit: int | None = setting(None, "Train on N images, as many of each class.", NETWORK, later=True)
    normalize: str | None = setting(
        None, "Input: data (mean 0, deviation 1 in each channel) or none; by default data for float32 only.", NETWORK,
        later=True,
    )  # fmt: skip

    init: str | None = setting(
        None, "Begin with the weights of a run directory, an imported network, a .safetensors or .onnx file.", FINE_TUNING,
        later=True,
    )  # fmt: skip
    train: list[str] = setting(
        [], "Train the layers that match PATTERN alone, as conv1* or fc1; may be repeated. Adds to --train-last.", FINE_TUNING,
        later=True,
    )  # fmt: skip
    freeze: list[str] = setting(
        [], "Do not train the layers that match PATTERN; may be repeated.", FINE_TUNING, later=True
    )  # fmt: skip
    train_last: int | None = setting(
        None, "Train the last N weighted layers alone, each with the normalization behind it.", FINE_TUNING, least=1, later=True
    )
    update: str = setting(
        "all", "Trained parameters of these layers: all; biases, and the whole head; head, the last layer alone.", FINE_TUNING,
        later=True,
    )  # fmt: skip
    channels: list[str] = setting(
        [], "PATTERN=SHARE of the output channels of layers: train the first ones alone, as conv*=0.25; may be repeated, the "
        "last match counts.", FINE_TUNING, later=True,
    )  # fmt: skip
    batchnorm_statistics: str = setting(
        "batch", "Statistics of batch normalization in training: batch, or frozen, the running ones.", FINE_TUNING, later=True
    )
    rate: list[str] = setting(
        [], "PATTERN=FACTOR on the learning rate of layers, as conv*=0.1; may be repeated, the last match counts.", FINE_TUNING,
        later=True,
    )  # fmt: skip
    accumulate: int = setting(
        1, "Make each step in N micro-batches of batch size / N images and add their gradients.", FINE_TUNING, least=1,
        later=True,
    )  # fmt: skip

    def check_ranges(self) -> None:
        """Refuses a number out of its setting's range; ArgumentError."""
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None and isinstance(value, int | float) and not _within(value, each.metadata):
                raise ArgumentError(f"{{{each.name}}} must be {_range(each.metadata)}, not {value}")


def _within(value: float, metadata: Any) -> bool:
    least, below = metadata["least"], metadata["below"]
    return (
        not (metadata["positive"] and not 0 < value < float("inf"))
        and not (least is not None and not least <= value < float("inf"))
        and not (below is not None and not value < below)
    )


def _range(metadata: Any) -> str:
    least, below = metadata["least"], metadata["below"]
    if metadata["positive"]:
        return "a positive number"
    if below is None:
        return f"at least {least}"
    return "in 0 .. 2^64 - 1" if below == 2**64 else f"in [{least}, {below})"


@functools.cache
def kinds() -> dict[str, Any]:
    """The type of each setting."""
    return typing.get_type_hints(Settings)


def spelling(name: str) -> str:
    """A setting, or an argument of a function, as an option of the command line."""
    named = {each.name: each.metadata["option"] for each in dataclasses.fields(Settings)}
    return named.get(name) or f"--{name.replace('_', '-')}"
