"""The command `octosim cost`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from octosim.cli.terminal import AsJson, check_output, count_text, out_console, parameters, print_json, say, time_text
from octosim.errors import OctosimError

LARGEST = 1024
"""The largest batch at which the crossover is looked for."""

LARGEST_IMAGE = 1 << 14
"""Of height, width and channels of an input."""

SHORT_DTYPES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Asked:
    """What the options say of the network and its arithmetic."""

    model: str
    method: str | None
    dtype: str | None
    inference: bool
    image: str | None
    lenient: bool
    parameters: dict[str, Any] = field(default_factory=dict)
    batchnorm: bool = True


@dataclass(frozen=True)
class Source:
    """A network to be priced.  dtype: of its products.  ops: its operations on a device at a batch size.  memory: the peak's
    parts at a batch size, and `largest` the largest batch for so many bytes; None where they are not known.  check: raises
    where a batch is too large for the accumulators."""

    method: str | None
    dtype: str
    ops: Callable[[Any, int], list[Any]]
    batch: Callable[[int | None], int]
    memory: Callable[[int], dict[str, int]] | None = None
    largest: Callable[[float], int] | None = None
    check: Callable[[int], None] | None = None


def cost(
    profile: Annotated[str, typer.Option(help="Device: a profile's name or alias, or a .toml file.")] = "jetson",
    model: Annotated[str, typer.Option(help="Network, by name, or a model file (.toml), or an ONNX file.")] = "simplecnn",
    batch_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Images a step, or several: 1,8,32; 100 if not given, of an ONNX file its own or 1."),
    ] = None,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Training method, octo if not given; `octosim methods` lists them; not for ONNX files."),
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="A parameter of the method, KEY=VALUE.")] = [],  # noqa: B006
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Arithmetic of the products: int8, float16 or fp16, float32 or fp32 (of ONNX files if not given)."),
    ] = None,
    batchnorm: Annotated[bool, typer.Option(help="Keep the network's batch normalization; not for ONNX files.")] = True,
    inference: Annotated[bool, typer.Option("--inference", help="The forward pass only.")] = False,
    threads: Annotated[Optional[int], typer.Option(help="Cores that work at once; all if not given.")] = None,  # noqa: UP045
    clock_ghz: Annotated[Optional[float], typer.Option(help="Of the first engine, in place of the profile's.")] = None,  # noqa: UP045
    image: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Input size, HEIGHTxWIDTHxCHANNELS; 28x28x1 if not given; not for ONNX files."),
    ] = None,
    lenient: Annotated[bool, typer.Option("--lenient", help="Count unknown ONNX operators as memory traffic.")] = False,
    compare: Annotated[Optional[str], typer.Option(help="Other profiles, separated by commas: totals only.")] = None,  # noqa: UP045
    plot: Annotated[Optional[Path], typer.Option(help="Bars of the compared totals, .png or .svg.")] = None,  # noqa: UP045
    roofline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The layers under the first device's roofline, .png or .svg."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Predict what a training step or an inference costs on a device, INT8 beside float32.

    Example: octosim cost --profile jetson --model lenet5 --batch-size 128

    Example: octosim cost --profile pi4 --model resnet18.onnx --inference --dtype int8 --threads 4 --compare pi5,rk3588

    Example: octosim cost --profile pi4 --model resnet20 --image 32x32x3 --method octo --set keep=float32

    Example: octosim cost --profile pi4 --model vgg11 --image 32x32x3 --batch-size 1,8,32,128 --compare jetson --plot bars.png
    """
    from octosim import hardware

    check_output("--plot", plot, ".png", ".svg")
    check_output("--roofline", roofline, ".png", ".svg")
    devices = [hardware.load(name) for name in (profile, *(compare or "").split(",")) if name]
    sizes = _batch_sizes(batch_size)
    dtype = SHORT_DTYPES.get(dtype or "", dtype)
    if dtype is not None and dtype not in hardware.DTYPES:
        raise OctosimError(f"--dtype must be one of {', '.join((*hardware.DTYPES, *SHORT_DTYPES))}, not '{dtype}'")
    if clock_ghz is not None:
        if not 0 < clock_ghz < 1000:
            raise OctosimError(f"--clock-ghz must be above 0 and below 1000, not {clock_ghz}")
        devices = [hardware.at_clock(device, clock_ghz) for device in devices]
    asked = Asked(model, method, dtype, inference, image, lenient, parameters(set_), batchnorm)
    first = source(asked)
    other = _float32(asked, first)
    several = compare is not None or len(sizes) > 1
    if plot and not several:
        raise OctosimError("--plot goes with --compare or with several batch sizes")
    points = [
        _point(asked, first, other, device, first.batch(size), threads) for device in devices for size in sizes
    ]
    if roofline:
        from octosim.cost import plots

        batch = first.batch(sizes[0])
        runs = [first, other] if other and points[0][0]["gain"] is not None else [first]  # an accelerator may have no floats
        both = [s.ops(devices[0], batch) for s in runs]
        plots.roofline(devices[0], both, f"{model}, batch {batch}", roofline, threads)
    if plot:
        from octosim.cost import plots

        plots.bars([record for record, _ in points], _title(asked, first, sizes), plot)
    if not several:
        record, costs = points[0]
        print_json(record) if json_ else _show_layers(record, costs, devices[0], asked)
        return
    records = [{k: v for k, v in record.items() if k != "layers"} for record, _ in points]
    crossing = _crossovers(first, other, devices, threads) if len(sizes) > 1 else {}
    if json_:
        print_json({"devices": records} | ({"crossover": crossing} if crossing else {}))
        return
    _show_points(_title(asked, first, sizes), records)
    for name, batch_from in crossing.items():
        text = f"from batch {batch_from} on" if batch_from else f"at no batch up to {_most(first)}"
        say(f"{name}: INT8 pays {text}")


def _batch_sizes(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise OctosimError(f"--batch-size takes whole numbers with commas between them, as in 1,8,32, not '{text}'") from None
    for size in sizes:
        if size < 1:
            raise OctosimError(f"--batch-size must be at least 1, not {size}")
    return list(dict.fromkeys(sizes))


def source(asked: Asked) -> Source:
    """The network that the options name."""
    return _onnx(asked) if asked.model.casefold().endswith(".onnx") else _own(asked)


def _onnx(asked: Asked) -> Source:
    from octosim import cost as model_of
    from octosim.cost import onnx as onnx_ops

    if asked.method is not None:
        raise OctosimError("--method is for octosim's own networks; an ONNX file takes --dtype")
    if asked.image is not None:
        raise OctosimError("--image is for octosim's own networks; an ONNX file has the size of its inputs")
    if not asked.batchnorm:
        raise OctosimError("--no-batchnorm is for octosim's own networks; export the ONNX file without it")
    if asked.parameters:
        raise OctosimError("--set is for the methods of octosim's own networks; an ONNX file has none")
    path, kind = Path(asked.model), asked.dtype or "float32"

    def ops(device: Any, batch: int | None) -> list[Any]:
        floats = None
        if asked.inference and kind == "int8":
            # compilers for accelerators keep codes throughout; on CPUs the rest is in the narrowest float type there is
            halves = any("float16" in engine.macs_per_clock.given() for engine in device.engines)
            floats = ("float16" if halves else None) if model_of.path_of(device.engines[0], "int8") else "int8"
        return onnx_ops.ops(
            path, batch=batch, dtype=kind, float_dtype=floats, inference=asked.inference, lenient=asked.lenient
        )

    return Source(None, kind, ops, lambda batch: onnx_ops.batch_size(path, batch))


def _own(asked: Asked) -> Source:
    from octosim import graph, methods
    from octosim.engine import plan

    if asked.lenient:
        raise OctosimError("--lenient is for ONNX files; octosim's own networks have no unknown operators")
    if asked.dtype == "float16":
        raise OctosimError("octosim's own networks train in int8 or float32; --dtype float16 is for ONNX files")
    method = asked.method or {"float32": "fp32"}.get(asked.dtype or "", "octo")
    if asked.dtype is not None and (method == "fp32") != (asked.dtype == "float32"):
        raise OctosimError(f"--method {method} does not compute in {asked.dtype}")
    try:
        height, width, channels = (int(part) for part in (asked.image or "28x28x1").split("x"))
    except ValueError:
        raise OctosimError(f"--image takes HEIGHTxWIDTHxCHANNELS, as in 28x28x1, not '{asked.image}'") from None
    shape = (height, width, channels)
    if not all(1 <= size <= LARGEST_IMAGE for size in shape):
        raise OctosimError(f"--image takes sizes in 1 .. {LARGEST_IMAGE}, not {asked.image}")
    made = methods.make(method, asked.parameters)
    network = plan.dry(graph.layers(asked.model, 10, asked.batchnorm, in_shape=shape), shape, made)
    plans: dict[int, plan.Plan] = {}

    def check(batch: int) -> None:
        if not asked.inference:  # the sums that grow with the batch are those of dW
            network.check(batch)

    def planned(batch: int) -> plan.Plan:
        if batch not in plans:
            check(batch)
            plans[batch] = plan.plan_like(network, batch, training=not asked.inference)
        return plans[batch]

    return Source(
        method, "float32" if method == "fp32" else "int8", lambda device, batch: plan.ops(planned(batch)),
        lambda batch: batch or 100, lambda batch: plan.memory(planned(batch)),
        lambda capacity: plan.largest_batch(network, capacity, not asked.inference), check,
    )  # fmt: skip


def _float32(asked: Asked, first: Source) -> Source | None:
    """The same network in float32, to set beside INT8."""
    if first.dtype != "int8":
        return None
    method = None if first.method is None else "fp32"
    return source(replace(asked, method=method, dtype="float32", parameters={}))


def _point(asked: Asked, first: Source, other: Source | None, device: Any, batch: int, threads: int | None) -> tuple[Any, Any]:
    """One network, device and batch: the record that --json prints, and the costs of the operations."""
    from octosim import cost as model_of
    from octosim.cost.compare import fit, side_by_side

    costs = model_of.predict(first.ops(device, batch), device, threads)
    memory = first.memory(batch) if first.memory else None
    record: dict[str, Any] = {
        "model": asked.model, "batch_size": batch, "method": first.method, "parameters": asked.parameters,
        "dtype": first.dtype, "threads": threads,
    }  # fmt: skip
    record |= model_of.cost_json(costs, device, memory["peak"] if memory else None)
    record["memory"] = memory
    if other:
        try:
            wide = model_of.predict(other.ops(device, batch), device, threads)
        except OctosimError:  # an accelerator without float units
            wide = None
        record |= side_by_side(costs, wide, device)
        if memory and other.memory and first.largest and other.largest:
            peak = {"INT8": memory["peak"]} | ({"FP32": other.memory(batch)["peak"]} if wide else {})
            largest = {"INT8": first.largest, "FP32": other.largest}
            record["int8"]["peak_bytes"], record["float32"]["peak_bytes"] = peak["INT8"], peak.get("FP32")
            record |= fit(peak, {name: largest[name] for name in peak}, device)
            record["fits"].setdefault("FP32", None)
    elif memory and first.largest:
        record |= fit({first.dtype: memory["peak"]}, {first.dtype: first.largest}, device)
    return record, costs


def _most(first: Source) -> int:
    """The largest batch, of powers of two up to LARGEST, that the method's accumulators allow."""
    batch = LARGEST
    while first.check and batch > 1:
        try:
            first.check(batch)
            break
        except OctosimError:
            batch //= 2
    return batch


def _crossovers(first: Source, other: Source | None, devices: list[Any], threads: int | None) -> dict[str, int | None]:
    from octosim.cost.compare import crossover

    if other is None or first.memory is None:  # an ONNX file's batch may be fixed
        return {}
    return {
        d.name: crossover(lambda b, d=d: first.ops(d, b), lambda b, d=d: other.ops(d, b), d, threads, _most(first))  # type: ignore[misc]
        for d in devices
        if any("float32" in engine.macs_per_clock.given() for engine in d.engines)
    }


# ---- output --------------------------------------------------


def _title(asked: Asked, first: Source, sizes: list[int | None]) -> str:
    batch = ", ".join(str(first.batch(size)) for size in sizes)
    against = " against float32" if first.dtype == "int8" else ""
    step = "inference" if asked.inference else "training step"
    return f"{Path(asked.model).name}, batch {batch}, {first.method or first.dtype}{against}: predicted {step}"


def _interval(total: dict[str, Any]) -> str:
    return f"{time_text(total['time_low_s'])} .. {time_text(total['time_high_s'])}"


def _energy(total: dict[str, Any]) -> str:
    return "-" if total["energy_j"] is None else f"{total['energy_j']:.3g} J"


def _bytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.4g} MiB"


def _show_layers(record: dict[str, Any], costs: list[Any], device: Any, asked: Asked) -> None:
    title = f"{asked.model}, batch {record['batch_size']}, {record['method'] or record['dtype']}"
    table = Table(title=f"{title}: predicted on {device.title}")
    for name in ("layer", "pass", "what"):
        table.add_column(name)
    for name in ("MACs", "bytes", "time", "bound by"):
        table.add_column(name, justify="right")
    for c in costs:
        macs = count_text(c.op.macs) if c.op.macs else ""
        table.add_row(c.op.layer, c.op.pass_, c.op.name, macs, count_text(c.op.bytes), time_text(c.time_s), c.bound)
    out_console.print(table)
    total = record["total"]
    energy = "no energy figure in the profile" if total["energy_j"] is None else f"at most {_energy(total)}"
    lines = [
        f"{'inference' if asked.inference else 'step'}: {time_text(total['time_s'])} ({_interval(total)} with 80 % "
        f"probability), {energy}; training on this device is {total['training']}"
    ]
    if record["memory"]:
        parts = ", ".join(f"{name} {_bytes(value)}" for name, value in record["memory"].items() if name != "peak" and value)
        lines.append(f"memory: {_bytes(total['peak_bytes'])} ({parts})")
    if "gain" in record:
        gain = "" if record["gain"] is None else f"INT8 is {record['gain']:.2f} times as fast: "
        lines.append(f"float32: {time_text(record['float32']['time_s'])}; {gain}{record['reason']}")
    lines += [record["advice"]] if record.get("advice") else []
    for line in [*lines, *record["notes"]]:
        say(line)


def _show_points(title: str, records: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    table.add_column("device")
    both = "gain" in records[0]
    columns = ["batch", "INT8", "float32", "gain", "INT8 energy", "float32 energy", "INT8 memory", "float32 memory"]
    for name in columns if both else ("batch", "time", "80 % interval", "against the first", "energy at most", "memory"):
        table.add_column(name, justify="right")
    for record in records:
        total, batch = record["total"], str(record["batch_size"])
        if both:
            sides = [record["int8"], record["float32"]]
            fits = record.get("fits", {"INT8": None, "FP32": None}).values()
            memory = [
                _bytes(side.get("peak_bytes")) + (" (too much)" if here is False else "")
                for side, here in zip(sides, fits, strict=True)
            ]
            table.add_row(
                record["device"], batch, *(time_text(side["time_s"]) for side in sides),
                "-" if record["gain"] is None else f"{record['gain']:.2f}",
                *(_energy(side) for side in sides), *memory,
            )  # fmt: skip
        else:
            ratio = f"{total['time_s'] / records[0]['total']['time_s']:.2f}"
            peak = _bytes(total["peak_bytes"])
            table.add_row(record["device"], batch, time_text(total["time_s"]), _interval(total), ratio, _energy(total), peak)
    out_console.print(table)
    several = len({record["batch_size"] for record in records}) > 1
    lines = []
    for record in records:
        where = f"{record['device']}, batch {record['batch_size']}" if several else record["device"]
        lines += [f"{where}: {record['reason']}"] if both else []
        lines += [f"{where}: {record['advice']}"] if record.get("advice") else []
    notes = [note for record in records for note in record["notes"]]
    status = {record["device"]: record["total"]["training"] for record in records}
    untrained = [f"{name}: training is {text}" for name, text in status.items() if not text.startswith("supported")]
    for line in dict.fromkeys([*lines, *notes, *untrained]):
        say(line)
