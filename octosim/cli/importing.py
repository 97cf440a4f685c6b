"""The command `octosim import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octosim.cli import words
from octosim.cli.terminal import AsJson, print_json, say
from octosim.errors import OctosimError


def shapes_of(given: list[str]) -> dict[str, tuple[int, ...]]:
    """Sizes of inputs by name, of options NAME=1x3x224x224."""
    found: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, equals, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split("x"))
        except ValueError:
            shape = ()
        if not equals or not name or not shape or not all(1 <= size < 1 << 24 for size in shape):
            raise OctosimError(f"--shape takes an input's name and its sizes, as in x=1x3x224x224, not '{text}'")
        found[name] = shape
    return found


def import_(
    file: Annotated[Path, typer.Argument(help="An ONNX file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for model.toml and weights.safetensors.")],
    classes: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Replace the last layer by a new one for N classes.")
    ] = None,
    shape: Annotated[list[str], typer.Option(help="Sizes of an input that the file leaves open, NAME=1x3x224x224.")] = [],  # noqa: B006
    loss: Annotated[
        str,
        typer.Option(
            help="Loss: cross-entropy, or mse for an autoencoder, whose target is its input.", **words.of("losses")
        ),
    ] = "cross-entropy",
    json_: AsJson = False,
) -> None:
    """Import a network with its weights, to train it.

    Example: octosim import net.onnx -o net/ --classes 10

    `octosim train --model net/` trains it, `--model net.onnx` too.
    """
    from octosim import graph
    from octosim.engine.nodes import LOSSES
    from octosim.graph import onnx

    if loss not in LOSSES:
        raise OctosimError(f"--loss must be one of {', '.join(LOSSES)}, not '{loss}'")
    if loss != LOSSES[0] and classes is not None:
        raise OctosimError("--classes is for networks with classes, which the loss mse has not")
    imported = onnx.read(file, shapes_of(shape), loss)
    if classes is not None:
        imported = onnx.with_classes(imported, classes)
    graph.save(imported, out)
    spec = imported.graph.input
    size = sum(tensor.size for tensor in imported.weights.values())
    if json_:
        print_json({
            "folder": str(out), "layers": len(imported.graph.layers), "weights": size, "input": list(spec.shape or ()),
            "notes": list(imported.notes),
        })  # fmt: skip
        return
    shape_ = spec.shape or ()
    kind = f"images of {'x'.join(map(str, shape_))}" if len(shape_) == 3 else f"vectors of {shape_[0]} values"
    say(f"{out}: {len(imported.graph.layers)} layers for {kind}, {size:,} numbers")
    for note in imported.notes:
        say(note)
