"""Networks as data: named layers and what each takes.  A `Stack`, which is a chain with residual blocks, is short for one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from octosim.engine.layers import Add, Item, Layer, Residual, Stack
from octosim.engine.nodes import LOSSES
from octosim.errors import OctosimError, suggest

INPUT = "input"
"""The name of a network's input among a layer's inputs."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
"""A layer's name: part of the names of tensors and of files."""

LAYOUTS = ("nhwc", "nchw")


@dataclass(frozen=True)
class InputSpec:
    """What a network takes.

    shape: (height, width, channels) of the images that it was made for, or (values,) of vectors; None: any.
    mean, deviation: of each channel; pixels in 0 .. 1 are normalized to (pixel - mean) / deviation.  None: the method's input.
    layout: of the program that the network comes from; images here are always (height, width, channels).
    """

    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    layout: str = "nhwc"


@dataclass(frozen=True)
class Entry:
    """A layer of a graph.  inputs: names of layers before it, or INPUT.  place: what errors call it, where not its name."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    place: str = field(default="", compare=False)

    @property
    def where(self) -> str:
        return f"{self.place} ({self.name})" if self.place else f"layer {self.name} ({self.layer.stem})"


@dataclass(frozen=True)
class Graph:
    """A network: layers, each behind those whose outputs it takes.  The last layer's output is the network's.

    loss: of LOSSES; "mse" is an autoencoder's, whose target is the input that its first layer gets.

    OctosimError for a name that is none or stands twice, an input that no earlier layer makes, another number of inputs than a
    layer takes, and a layer whose output nothing takes.
    """

    layers: tuple[Entry, ...]
    input: InputSpec = InputSpec()
    loss: str = LOSSES[0]

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise OctosimError(f"field 'loss' must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        seen = {INPUT}
        for entry in self.layers:
            if not NAME.fullmatch(entry.name) or entry.name in (INPUT, ".", ".."):
                raise OctosimError(f"{entry.where}: its name must be letters, digits, '_', '.' and '-', and not '{INPUT}'")
            if entry.name in seen:
                raise OctosimError(f"{entry.where}: another layer has this name")
            for source in entry.inputs:
                if source not in seen:
                    raise OctosimError(f"{entry.where}: its input '{source}' is no layer before it" + suggest(source, seen))
            least, most = arity(entry.layer)
            if not least <= len(entry.inputs) <= most:
                count = str(least) if least == most else f"at least {least}"
                raise OctosimError(f"{entry.where}: it takes {count} inputs, not {len(entry.inputs)}")
            seen.add(entry.name)
        unused = seen - {INPUT} - {source for entry in self.layers for source in entry.inputs} - {self.output}
        for entry in self.layers:
            if entry.name in unused:
                raise OctosimError(f"{entry.where}: nothing takes its output")

    @property
    def output(self) -> str:
        return self.layers[-1].name if self.layers else INPUT


def arity(layer: Layer | type[Layer]) -> tuple[int, int]:
    """The least and the largest number of inputs of a layer."""
    given: Any = layer.inputs
    return (given, given) if isinstance(given, int) else given


def of_stack(stack: Sequence[Item], spec: InputSpec = InputSpec()) -> Graph:
    """A stack's layers in their order: of a residual block its body, its shortcut and an `Add` of the two.

    Names are the kinds' with a number: "conv1", "bn1".
    """
    made: list[Entry] = []
    count: Counter[str] = Counter()

    def place(layer: Layer, inputs: tuple[str, ...], where: str) -> str:
        count[layer.stem] += 1
        made.append(Entry(f"{layer.stem}{count[layer.stem]}", layer, inputs, where))
        return made[-1].name

    def expand(items: Sequence[Item], source: str, where: str) -> str:
        for number, item in enumerate(items, 1):
            here = f"{where}layer {number}"
            if isinstance(item, Residual):
                body = expand(item.body, source, f"{here}, body ")
                shortcut = expand(item.shortcut, source, f"{here}, shortcut ")
                source = place(Add(), (body, shortcut), here)
            else:
                source = place(item, (source,), here)
        return source

    expand(stack, INPUT, "")
    return Graph(tuple(made), spec)


def as_graph(network: Graph | Stack) -> Graph:
    """The network as a graph: a stack's layers each take the output of the one before."""
    return network if isinstance(network, Graph) else of_stack(network)


def without(graph: Graph, kind: type[Layer]) -> Graph:
    """The graph without the layers of a kind that takes and gives one tensor."""
    behind = {INPUT: INPUT}
    kept: list[Entry] = []
    for entry in graph.layers:
        inputs = tuple(behind[source] for source in entry.inputs)
        if isinstance(entry.layer, kind):
            behind[entry.name] = inputs[0]
        else:
            kept.append(replace(entry, inputs=inputs))
            behind[entry.name] = entry.name
    return replace(graph, layers=tuple(kept))
