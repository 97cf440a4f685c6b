"""The bits of training, frozen: tests/digests.json holds what each case's parameters are after its steps.

    python tests/kit/digests.py          # runs the cases that have no entry and adds them; drops entries of no case
    python tests/kit/digests.py WORD ... # runs the cases whose key holds a WORD too: for changes on purpose

The cases follow from the tables of methods and optimizers: a new method, parameter or optimizer has no entry until it is run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

from octosim import core
from octosim.engine.optimizers import OPTIMIZERS
from octosim.errors import OctosimError
from octosim.methods import METHODS
from octosim.train import Config, Run

FILE = Path(__file__).resolve().parent.parent / "digests.json"
STEPS = 12
BATCH = {"mlp": 20, "lenet5": 20, "resnet20": 4, "mobilenet": 4}
"""Models and their batch sizes.  The sums of larger batches are checkasm's affair."""
LARGE = ("resnet20", "mobilenet")
EVALUATED = 16  # test images

NUMBERS: dict[str, dict[str, Any]] = {
    "octo": {
        "lac_samples": {"lac": "sample", "lac_samples": 24},
        "lac_decay": 0.5,
        "prc_ratio": 0.8,
        "prc_z": {"prc": "gauss", "prc_z": 1.5},
        "prc_percentile": {"prc": "percentile", "prc_percentile": 98.0},
    },
    "octo-reference": {"lac_samples": 24, "lac_decay": 0.5, "prc_ratio": 0.8},
    "logbtq": {
        "barrier": 0.2,
        "t": 2.0,
        "weight_bound": 0.25,
        "activation_bound": 1.0,
        "block": {"accumulator": "blocked", "block": 8},
        "headroom": {"accumulator": "blocked", "headroom": 2},
    },
    "laq": {"weight_bits": 4},
    "blaq": {"weight_bits": 2, "blend": {"period": 1, "blend": 0.25}, "period": 1},
    "qat": {"smoothing": 0.5, "delay": 4},
    "niti": {"mu": 3},
    "wage": {"rate": 2.0},
    "dorefa": {"weight_bits": 1, "activation_bits": 4, "gradient_bits": 5},
    "ui8": {"grid": 7, "period": 5, "alpha": 40.0, "beta": {"alpha": 40.0, "beta": 0.999}},
    "dai8": {"threshold": 0.05, "k": 0.5, "a": 0.5},
    "hindsight": {"momentum": 0.5},
    "fqat": {"z": 1.5},
}
"""Another value of each numeric parameter, or the parameters that let it matter and then its value."""

EPOCHS: dict[str, list[dict[str, Any]]] = {
    "octo-reference": [{"lac_samples": 900}],
    "logbtq": [{"barrier": 0.2}, {"barrier": 0.2, "growth": 2.0}, {"barrier": 0.2, "growth": 2.0, "t_max": 6.0}],
}
"""Parameters of the runs over two epochs of 900 images a batch; those that matter there alone."""

FURTHER: dict[str, list[dict[str, Any]]] = {
    "octo": [
        {"lac": "off", "prc": "off"},
        {"lac": "feature", "zero_point": "dropped", "rounding": "stochastic", "keep": "float32"},
    ],
    "octo-reference": [{"lac": "off", "prc": "off", "rounding": "half-even"}],
    "laq": [{"weight_bits": 2}, {"weight_bits": 2, "ternary": "exact"}],
    "blaq": [{"weight_bits": 2, "ternary": "exact"}],
    "dorefa": [{"weight_bits": 2, "activation_bits": 2, "gradient_bits": 4, "edges": "quantized"}],
    "fqat": [{"variant": "b", "rounding": "stochastic"}, {"variant": "c", "rounding": "stochastic"}],
    "dai8": [{"threshold": 0.05, "rounding": "stochastic"}],
}
"""Values that matter only together."""

AT_WORK: dict[str, dict[str, Any]] = {"blaq": {"period": 1}}
"""Parameters of the cases that are about something else, where a method's own does nothing in the first epoch."""

SLOW = {"octo-reference", "logbtq"}
"""Methods that simulate: of their parameters the large models have only what matters together."""


def _text(parameters: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in parameters.items())


def switches(method: str, large: bool = False) -> dict[str, dict[str, Any]]:
    """The method's parameters off their defaults, one after the other and in some combinations, by the text of their key.

    large: without the numbers, which smaller models show as well.  AssertionError where a parameter has no other value here.
    """
    cls = METHODS[method]
    kinds = typing.get_type_hints(cls)
    choices: list[dict[str, Any]] = []
    numbers: list[dict[str, Any]] = []
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if typing.get_origin(kinds[field.name]) is typing.Literal:
            choices += [{field.name: value} for value in typing.get_args(kinds[field.name]) if value != field.default]
        else:
            other = NUMBERS.get(method, {}).get(field.name)
            if other is None and any(field.name in chosen for chosen in EPOCHS.get(method, [])):
                continue
            assert other is not None, f"tests/kit/digests.py: NUMBERS has no other value of parameter {field.name} of {method}"
            numbers.append(other if isinstance(other, dict) else {field.name: other})
    single = ([] if method in SLOW else choices) if large else choices + numbers
    wanted = single + FURTHER.get(method, [])
    return {_text(chosen): chosen for chosen in wanted}


def _settings(method: str, model: str) -> dict[str, dict[str, Any]]:
    """Fields of Config by the text of their key: everything that is frozen of a method on a model."""
    cls = METHODS[method]
    unused, int8 = cls.unused, cls.bits["accumulator"] == "int32"
    plain = {"batchnorm": getattr(cls, "batchnorm", True)}
    found: dict[str, dict[str, Any]] = {"default": {}}
    for text, parameters in switches(method, model in LARGE).items():
        found[text] = {"parameters": parameters}
    if model != "mlp" and plain["batchnorm"]:
        found["no batchnorm"] = {"batchnorm": False}
    if "optimizer" not in unused:
        found |= {f"optimizer {name}": {"optimizer": name} for name in OPTIMIZERS if name != Config().optimizer}
    if int8 and "accumulator" not in unused and model not in LARGE:
        found |= {f"register {name}": {"accumulator": name} for name in ("acc16", "acc20-wrap")}
    if model == "mlp":  # two epochs, whose last batches are smaller
        for parameters in EPOCHS.get(method, [{}]):
            found[f"epochs {_text(parameters)}".strip()] = {"batch_size": 900, "parameters": parameters}
    if model == "lenet5":
        found["seed"] = {"seed": 2**63 - 1}
        found["crop-flip"] = {"augment": "crop-flip"}
        if "optimizer" not in unused:
            found["schedule"] = {"schedule": "step", "milestones": [0.25, 0.75], "warmup": 3, "weight_decay": 0.01, "lr": 0.02}
            found["adam, decay"] = {"optimizer": "adam", "weight_decay": 0.01}
            found["smoothing"] = {"label_smoothing": 0.1}
    if "lr" not in unused:  # sgd's own is too large for such batches
        lr = 0.001 if method == "octo-reference" and model in LARGE else 0.01
        found = {text: ({} if "optimizer" in fields else {"lr": lr}) | fields for text, fields in found.items()}
    found["default"] = {"parameters": {}} | found["default"]
    return {text: plain | {"parameters": AT_WORK.get(method, {})} | fields for text, fields in found.items()}


def cases() -> dict[str, Config]:
    """Every case by its key, "method/model/what differs from the defaults"."""
    return {
        f"{method}/{model}/{text}": Config(
            **{"model": model, "method": method, "steps": STEPS, "batch_size": batch, "seed": 7} | fields
        )
        for model, batch in BATCH.items()
        for method in METHODS
        for text, fields in _settings(method, model).items()
    }


def outcome(config: Config, records: bool = True) -> str:
    """The first 16 digits of the digest after the run's steps, and the loss on some test images; where it diverged otherwise.

    records: whether steps may be recorded and replayed."""
    run = Run(config)
    run.allow_replay = records
    try:
        for _ in range(run.steps):
            run.train_step()
        loss, _ = run.network.evaluate(run.data.test_images[:EVALUATED], run.data.test_labels[:EVALUATED].astype("int32"))
    except OctosimError as error:  # a run that diverges does so in the same step and layer
        return str(error).split(":")[0]
    return f"{run.digest()[:16]} {loss.hex()}"


def frozen() -> dict[str, str]:
    """The file's entries."""
    entries: dict[str, str] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return entries


def main(words: list[str]) -> int:
    wanted, known = cases(), frozen()
    entries = {key: entry for key, entry in known.items() if key in wanted}
    for key, config in wanted.items():
        if key in entries and not any(word in key for word in words):
            continue
        entries[key] = outcome(config)
        print(f"{key}: {entries[key]}, was {known.get(key)}", flush=True)
        FILE.write_text(json.dumps(entries, indent=0, sort_keys=True) + "\n")
    print(f"{len(entries)} entries of {len(wanted)} cases with {core.isa()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
