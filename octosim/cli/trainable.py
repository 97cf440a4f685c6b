"""`octosim cost --sweep trainable`: a training step from the last layer alone to all of them."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octosim.cli.answer import energy_text, memory_text
from octosim.cli.compared import Compared
from octosim.cli.tables import Table
from octosim.cli.terminal import count_text, progress_bar, say, time_text
from octosim.cost.compare import SHORT
from octosim.errors import OctosimError
from octosim.files import is_onnx
from octosim.workload import CostQuery, Workload, source

NAME, ALL = "trainable", "all"
CSV_FIELDS = (
    "device", "train_last", "first_layer", "trained_parameters", "dtype", "runtime", "batch_size", "time_s", "time_low_s",
    "time_high_s", "energy_j", "peak_bytes", "hypothetical",
)  # fmt: skip


def asks(sweep: str | None) -> bool:
    """Whether --sweep is `trainable` or `trainable:1,4,all`."""
    return sweep is not None and sweep.partition(":")[0] == NAME


def choices(sweep: str, layers: int) -> list[int | None]:
    """How many of the last weighted layers each point trains, None for all: those after the colon, or every number."""
    _, colon, text = sweep.partition(":")
    if not colon:
        return [*range(1, layers), None]
    found: list[int | None] = []
    for part in text.split(","):
        if part != ALL and not (part.isascii() and part.isdigit() and 1 <= int(part) <= layers):
            raise OctosimError(
                f"--sweep {NAME}: takes numbers in 1 .. {layers}, the network's weighted layers, or {ALL}, as in "
                f"{NAME}:1,2,{ALL}, not '{part}'"
            )
        found.append(None if part == ALL else int(part))
    return list(dict.fromkeys(found))


def rows(asked: CostQuery, sweep: str, devices: Compared, batch: int | None, threads: int | None) -> list[dict[str, Any]]:
    """A row for each choice of layers and each device: what is trained, and by type of the products what a step takes."""
    from octosim.cli.cost import point

    if asked.inference:
        raise OctosimError(f"--sweep {NAME} prices training steps; leave out --inference")
    for name in ("train", "train_last"):
        if asked.tuning.get(name):
            raise OctosimError(f"--sweep {NAME} chooses the trained layers; leave out --{name.replace('_', '-')}")
    if is_onnx(asked.model):
        raise OctosimError(
            f"--sweep {NAME} is for octosim's own networks; `octosim import {asked.model} -o net/` makes one: --model net/"
        )
    whole = source(asked)
    some = choices(sweep, sum(node.layer.weighted for node in whole.network.nodes))
    found = []
    with progress_bar() as bar:
        task = bar.add_task("pricing", total=len(some) * len(devices.devices))
        for last in some:
            chosen = replace(asked, tuning=asked.tuning | {"train_last": last})
            made = whole if last is None else source(chosen)
            price = functools.partial(point, chosen, made, batch=made.batch(batch), threads=threads)
            for record, _ in devices.each(lambda device, price=price: price(device=device)):  # type: ignore[misc]
                about = {"device": record["device"], "train_last": last, "batch_size": record["batch_size"], **_trained(made)}
                found.append(about | {"method": made.method, "dtype": made.dtype, "types": record["types"]})
                bar.advance(task)
    return found


def _trained(made: Workload) -> dict[str, Any]:
    """The first layer that a step trains, and the number of its trained parameters."""
    nodes = [node for node in made.network.nodes if node.trained]
    return {
        "first_layer": nodes[0].name,
        "trained_parameters": sum(node.params[key].size for node in nodes for key in node.trained),
    }


def as_csv(found: Sequence[dict[str, Any]]) -> bytes:
    """A line for each row and type."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in found:
        for dtype, priced in row["types"].items():
            last = ALL if row["train_last"] is None else row["train_last"]
            writer.writerow(row | priced | {"dtype": dtype, "train_last": last})
    return text.getvalue().encode()


def show(found: Sequence[dict[str, Any]], heading: str) -> None:
    """A table with the times, energies and memory of each choice on each device, float32 beside the type asked for."""
    own = found[0]["dtype"]
    dtypes = [own, *(["float32"] if own != "float32" else [])]
    table = Table("device", title=heading)
    table.add_column("trained layers", justify="right")
    table.add_column("from", rank=3)
    table.add_column("parameters", justify="right", rank=4)
    for dtype in dtypes:
        table.add_column(SHORT[dtype], justify="right")
    table.add_column("share of all", justify="right", rank=5)
    for dtype in dtypes:
        table.add_column(f"{SHORT[dtype]} energy", justify="right", rank=0 if dtype == own else 6)
    for dtype in dtypes:
        table.add_column(f"{SHORT[dtype]} memory", justify="right", rank=0 if dtype == own else 2)
    full = {row["device"]: row["types"][own]["time_s"] for row in found if row["train_last"] is None}
    for device in dict.fromkeys(row["device"] for row in found):
        for row in (row for row in found if row["device"] == device):
            sides = [row["types"].get(dtype) for dtype in dtypes]
            share = f"{100 * sides[0]['time_s'] / full[device]:.0f} %" if device in full else "-"
            table.add_row(
                device, ALL if row["train_last"] is None else row["train_last"], row["first_layer"],
                count_text(row["trained_parameters"]), *("-" if side is None else time_text(side["time_s"]) for side in sides),
                share, *("-" if side is None else energy_text(side) for side in sides),
                *("-" if side is None else memory_text(side["peak_bytes"]) for side in sides),
            )  # fmt: skip
        table.add_section()
    table.show()
    for text in dict.fromkeys(row["types"][own]["hypothetical"] for row in found):
        if text:
            say(text)
