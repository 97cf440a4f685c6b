"""Runtimes: what a piece of inference or training software does with a network, as data (`hwprofiles/runtimes/*.toml`).

A device says what the hardware can do; a runtime says what software makes of it: which operations it fuses, whether it uses
Winograd's algorithm, in which type tensors lie between layers, what a call costs, how its backward pass is built, and what
share of a core's peak its kernels reach.  The cost model prices the operations that the runtime would run.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
import os
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from octosim.errors import OctosimError, suggest
from octosim.hardware.figures import Delay, Figure, Kind, Ratio
from octosim.schema import Frozen, Positive, Text, problems_text
from octosim.textfile import TOML_BYTES, parse_toml, read_text

FloatPath = Literal["float32", "float16", "smlal", "sdot"]
Pass = Literal["forward", "dX", "dW", "update"]
LayerKind = Literal[
    "convolution", "depthwise", "linear", "product", "batchnorm", "relu", "relu6", "maxpool", "avgpool", "add", "concat",
    "bias", "optimizer",
]  # fmt: skip
"""Kinds of layer that passes are counted for: what octosim.cost.runtimes.layer_of tells operations apart by.  product: of two
tensors that are no parameters."""


def _kind_and_pass(text: str) -> str:
    kind, _, pass_ = text.partition(" ")
    kinds, passes = get_args(LayerKind), get_args(Pass)
    if kind not in kinds or pass_ not in passes:
        hint = suggest(kind, kinds) if kind not in kinds else suggest(pass_, passes)
        raise ValueError(f"is {text!r}, expected a kind of layer and a pass, as 'depthwise dW'{hint}")
    return text


class Kernels(Frozen):
    """Shares of a core's peak in one arithmetic, and costs of calls, that replace those fitted for the core.

    Names as in octosim.hardware.efficiency.CpuFactors.  spread: standard deviation of ln(measured / predicted) that a
    prediction with these kernels had on measurements that they were not fitted to.  scale: as Runtime's, of this arithmetic.
    """

    conv3x3: Ratio | None = None
    conv: Ratio | None = None
    pointwise: Ratio | None = None
    depthwise: Ratio | None = None
    linear: Ratio | None = None
    elementwise: Figure | None = None
    bandwidth: Figure | None = None
    cache: Figure | None = None
    k_half: Figure | None = None
    serial: Figure | None = None
    exposed: Ratio | None = None
    overhead_us: Figure | None = None
    fork_us: Figure | None = None
    spread: Figure | None = None
    scale: Figure | None = None

    def given(self) -> dict[str, float]:
        """The factors present, by name."""
        names = type(self).model_fields.keys() - {"scale"}
        return {name: figure.value for name in names if (figure := getattr(self, name)) is not None}


class Work(Frozen):
    """Passes over tensors that a framework makes for each layer of a kind, counted in its source.

    of: kinds of layer.  pass_, "pass" in a file: forward, dX, dW or update.
    over: what is passed over.  Of a product "input", "result", "weights", "patches" (the unfolded input, im2col) and "spread"
    (the input once for each place of the kernel, col2im); of pooling "windows" in place of patches.
    how: "copy" reads and writes, "combine" reads two and writes, "read", "write".
    threads: "all", "images" (one for each image) or "one".
    only: "wide" where only kernels above 1x1 have it, "narrow" where only those of 1x1, "batched" where only more than one row,
    "several" where only more than one image; all of them.
    times: how often, each a call; apart: a call for each place of a kernel or window, or tensor of parameters.
    slow: times as long as a plain loop computes.  interleaved: threads take every so many-th element.
    """

    of: Annotated[tuple[LayerKind, ...], Field(strict=False)]
    pass_: Annotated[Pass, Field(alias="pass")]
    over: Literal["input", "result", "weights", "patches", "windows", "spread"]
    how: Literal["copy", "combine", "read", "write"] = "copy"
    threads: Literal["all", "images", "one"] = "all"
    only: Annotated[tuple[Literal["wide", "narrow", "batched", "several"], ...], Field(strict=False)] = ()
    apart: bool = False
    times: Positive = 1.0
    slow: Positive = 1.0
    interleaved: bool = False
    source: Text


class Loops(Frozen):
    """Clocks an element and core of a runtime's passes over memory, by the function that makes them, its data in the L1 cache.

    core: an Engine's core.
    """

    core: Text
    kind: Kind
    source: Text
    clocks: dict[str, Positive]


ProfileName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Backward(Frozen):
    """How a framework computes gradients.

    forward: speed of a training step's forward products as a share of an inference's without Winograd's algorithm; absent:
    they are an inference's.  forward_depthwise: of depthwise ones, 1 where absent.  dx, dw: speed of the gradients as a share
    of an inference's product, as forward ones where absent.  depthwise: of depthwise gradients.
    patch_passes: how often convolutions, forward ones where `forward` is there, write the unfolded input (im2col) and read it.
    passes: passes over a tensor for each elementwise operation, where octosim's kernels make one.
    update_passes: passes over the parameters in an optimizer step, where octosim's kernel makes one.
    work: passes counted in the framework's source, in place of patch_passes and update_passes; `passes` then says how many
    times as long as octosim's loop over the same bytes each takes.  interleaved: speed of those in which threads take every so
    many-th element.  composed: what is made of such passes alone, or is among them ("depthwise dW": kind of layer and pass).
    call_us: of each operation of a training step.  step_ms: of each step, whatever its size.
    devices: names of profiles, also own ones, on which the spread was measured, where it is of those alone: elsewhere that of
    the core's factors adds.
    """

    forward: Figure | None = None
    forward_depthwise: Figure | None = None
    dx: Figure | None = None
    dw: Figure | None = None
    depthwise: Figure
    patch_passes: Figure | None = None
    passes: Figure
    update_passes: Figure | None = None
    work: Annotated[tuple[Work, ...], Field(strict=False)] = ()
    composed: Annotated[tuple[Annotated[str, AfterValidator(_kind_and_pass)], ...], Field(strict=False)] = ()
    interleaved: Figure | None = None
    call_us: Delay
    step_ms: Delay
    spread: Figure
    devices: Annotated[tuple[ProfileName, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _has_a_price(self) -> Backward:
        """What is composed of passes costs what these do, and without any nothing; a bias's are among its product's."""
        counted = {f"{kind} {work.pass_}" for work in self.work for kind in work.of}
        counted |= {f"bias {name.partition(' ')[2]}" for name in counted if name.startswith(("convolution ", "linear "))}
        for i, name in enumerate(self.composed):
            if name not in counted:
                raise ValueError(f"composed[{i}] is {name!r}, but no work is of that kind and pass: it would cost nothing")
        return self


class Runtime(Frozen):
    """Software as the cost model sees it.

    engines: the kinds of engine that it drives.  float16: whether float networks run in float16 on CPU cores that have it.
    winograd: whether 3x3 convolutions of stride 1 use Winograd's algorithm.  fuses: operations that disappear in the product
    before them, of "norm" (batch normalization, bias, constants), "activation", "gate" (x sigmoid(x)) and "add" (residual
    additions); "silu": x sigmoid(x) is one operation, where an ONNX file has two; "pointwise": operations on each value that
    follow each other are one.
    queued: a GPU's calls are launched ahead of it: a step takes as long as all calls or as all work, whichever is longer.
    tf32: which float32 products run in TF32 where an engine has it: "all", "convolutions" or "none".
    codes: what int8 networks keep between layers: "throughout" int8 codes everywhere, requantized in the product's epilogue;
    "products" codes only from product to product, else floats.  border: whether convolutions copy their input with a border.
    scale: how many times as long an inference takes on CPU cores as its rules say, over published figures of several devices.
    call_us: cost of a call on an accelerator, from the CPU that launches it.  kernels: by arithmetic.
    loops: by core, of functions that a plan names; others take what the core's fitted bytes a clock say.
    backward: absent where the runtime does not train.  accelerated: in its place on GPUs and NPUs, where they differ.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: Text
    aliases: Annotated[tuple[str, ...], Field(strict=False)] = ()
    note: str = ""
    source: Text
    engines: Annotated[tuple[Literal["cpu", "gpu", "npu"], ...], Field(strict=False)]
    float16: bool = False
    winograd: bool = False
    tf32: Literal["all", "convolutions", "none"] = "none"
    fuses: Annotated[tuple[Literal["norm", "activation", "add", "gate", "silu", "pointwise"], ...], Field(strict=False)] = ()
    codes: Literal["throughout", "products"] = "throughout"
    border: bool = False
    call_us: Delay | None = None
    queued: bool = False
    scale: Figure | None = None
    spread: Positive = 0.3
    kernels: dict[FloatPath, Kernels] = {}  # noqa: RUF012
    loops: Annotated[tuple[Loops, ...], Field(strict=False)] = ()
    backward: Backward | None = None
    accelerated: Backward | None = None

    def scale_of(self, path: str) -> float:
        """Times as long as its rules say that an inference in an arithmetic takes on CPU cores."""
        kernels = self.kernels.get(path)  # type: ignore[call-overload]
        scales = self.scale, kernels and kernels.scale
        return math.prod(figure.value for figure in scales if figure)

    @model_validator(mode="after")
    def _drives_something(self) -> Runtime:
        if not self.engines:
            raise ValueError("engines is empty, expected cpu, gpu or npu")
        return self

    def loops_of(self, core: str | None) -> Loops | None:
        """The loops of a core, None where none are known."""
        return next((loops for loops in self.loops if loops.core == core), None)


def load_runtime(name_or_path: str | Path) -> Runtime:
    """The runtime of a name, an alias or the path of a .toml file; OctosimError where there is none."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or os.sep in text:
        return _parse(read_text(Path(name_or_path), TOML_BYTES, "runtime file"), text)
    files = _files()
    if text in files:  # the others need not be read
        return _shipped(text)
    names = runtime_names()
    if text not in names:
        raise OctosimError(f"unknown runtime '{text}'" + suggest(text, names, "octosim profiles runtimes"))
    return _shipped(names[text])


def runtime_names() -> dict[str, str]:
    """The shipped runtimes' names by what they are called, aliases too."""
    return {alias: name for name in _files() for alias in (name, *_shipped(name).aliases)}


def runtimes() -> list[Runtime]:
    """All shipped runtimes, by name."""
    return [_shipped(name) for name in _files()]


@functools.cache
def _files() -> dict[str, Traversable]:
    """The file of each runtime by its name, in alphabetic order."""
    package = importlib.resources.files("octosim") / "hwprofiles" / "runtimes"
    folder: Traversable = package if package.is_dir() else Path(__file__).resolve().parents[2] / "hwprofiles" / "runtimes"
    if not folder.is_dir():
        raise OctosimError(f"{folder}: the folder of runtimes is missing, reinstall octosim")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {file.name.removesuffix(".toml"): file for file in files}


@functools.cache
def _shipped(name: str) -> Runtime:
    file = _files()[name]
    return _parse(file.read_text(encoding="utf-8"), file.name)


def _parse(text: str, where: str) -> Runtime:
    data = parse_toml(text, where)
    if "training" in data and "overhead_us" in data:
        raise OctosimError(f"{where}: a device's profile and not a runtime's file; --profile takes it")
    try:
        return Runtime.model_validate(data)
    except ValidationError as error:
        raise OctosimError(f"{where}: {problems_text(error, Runtime)}") from None
