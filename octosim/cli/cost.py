"""The command `octosim cost`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from octosim.cli import words
from octosim.cli.compared import Compared
from octosim.cli.importing import shapes_of
from octosim.cli.settings import with_settings
from octosim.cli.terminal import AsJson, check_output, parameters, print_json, say
from octosim.errors import OctosimError
from octosim.files import is_onnx
from octosim.workload import WHOLE_STEP, CostQuery, Price, Workload, batch_sizes, dtype_of, price, source, typed, types_of

LARGEST = 1024
"""The largest batch at which the crossover is looked for."""


@with_settings(*WHOLE_STEP)
def cost(
    settings: dict[str, Any],
    profile: Annotated[
        str, typer.Option(help="Device: a profile's name or alias, or a .toml file.", **words.of("profiles"))
    ] = "jetson",
    model: Annotated[
        str, typer.Option(help="Network, by name, or a model file (.toml), or an ONNX file.", **words.of("models"))
    ] = "simplecnn",
    batch_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Images a step, or several: 1,8,32; 100 if not given, of an ONNX file its own or 1."),
    ] = None,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Training method, octo if not given; `octosim methods` lists them; not for ONNX files.", **words.of("methods")
        ),
    ] = None,
    set_: Annotated[
        list[str], typer.Option("--set", help="A parameter of the method, KEY=VALUE.", **words.of_setting("parameters"))
    ] = [],  # noqa: B006
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Arithmetic of the products: int8, float16 or fp16, float32 or fp32 (of ONNX files if not given).",
            **words.of("dtypes"),
        ),  # fmt: skip
    ] = None,
    batchnorm: Annotated[bool, typer.Option(help="Keep the network's batch normalization; not for ONNX files.")] = True,
    inference: Annotated[bool, typer.Option("--inference", help="The forward pass only.")] = False,
    threads: Annotated[Optional[int], typer.Option(help="Cores that work at once; all if not given.")] = None,  # noqa: UP045
    clock_ghz: Annotated[Optional[float], typer.Option(help="Clock of the first engine; the profile's if not given.")] = None,  # noqa: UP045
    image: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Input size, HEIGHTxWIDTHxCHANNELS; by default the network's or 28x28x1; not for ONNX files."),
    ] = None,
    classes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Classes of your data; the network's or 10 if not given; not for ONNX files."),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Your data, a name or a path as for `octosim train`: size, classes and number of the images; of an ONNX file "
                 "the number alone.", **words.of("data"),
        ),  # fmt: skip
    ] = None,
    runtime: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Software whose kernels run, as tflite, ncnn, pytorch, mnn, tensorrt; `octosim profiles runtimes`.",
            **words.of("runtimes"),
        ),  # fmt: skip
    ] = None,
    mode: Annotated[Optional[str], typer.Option(help="Power mode of a Jetson, as 10W.", **words.of("modes"))] = None,  # noqa: UP045
    cluster: Annotated[
        str | None, typer.Option(help="One cluster of a big.LITTLE chip's CPU cores, as a53; or dla.", **words.of("clusters"))
    ] = None,  # noqa: UP045
    images: Annotated[Optional[int], typer.Option(help="Images of your data set: prints the time of an epoch.")] = None,  # noqa: UP045
    epochs: Annotated[Optional[int], typer.Option(help="With --images or --data: prints time and energy of N epochs.")] = None,  # noqa: UP045
    advise: Annotated[bool, typer.Option("--advise", help="Find the best batch, type, method and device.")] = False,
    max_memory: Annotated[Optional[float], typer.Option(help="With --advise: MiB that a step may take.")] = None,  # noqa: UP045
    max_energy: Annotated[Optional[float], typer.Option(help="With --advise: joules that a step may take.")] = None,  # noqa: UP045
    deadline: Annotated[Optional[float], typer.Option(help="With --advise: seconds that a step may take.")] = None,  # noqa: UP045
    sweep: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="`trainable`: steps that train the last layer, the last two, and so on to all (`trainable:1,4,all`: "
                          "these); or a .csv file to write all devices, types and batches to."),
    ] = None,
    csv: Annotated[Optional[Path], typer.Option("--csv", help="With --sweep trainable: also write its rows as CSV.")] = None,  # noqa: UP045
    lenient: Annotated[bool, typer.Option("--lenient", help="Count unknown ONNX operators as memory traffic.")] = False,
    shape: Annotated[
        list[str], typer.Option(help="Sizes of an input of an ONNX file that it leaves open, NAME=1x3x224x224.")
    ] = [],  # noqa: B006
    compare: Annotated[
        str | None,
        typer.Option(help="Other profiles, separated by commas, or all: totals only.", **words.of("profiles", several=True)),
    ] = None,  # noqa: UP045
    plot: Annotated[Optional[Path], typer.Option(help="Bars of the compared totals, .png or .svg.")] = None,  # noqa: UP045
    roofline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The layers under the first device's roofline, .png or .svg."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Predict what a training step or an inference costs on a device, by types that it computes in, and whether INT8 pays.

    Example: octosim cost --profile jetson --model lenet5 --batch-size 128

    Example: octosim cost --profile pi4 --model resnet18.onnx --inference --dtype int8 --threads 4 --compare pi5,rk3588

    Example: octosim cost --profile pi4 --model mobilenet --data photos/ --image 64x64x3 --batch-size 16 --epochs 20

    Example: octosim cost --profile pi4 --model resnet20 --image 32x32x3 --advise --max-memory 200 --deadline 1

    Example: octosim cost --model resnet18.onnx --batch-size 1,8,32 --compare all --sweep points.csv

    Example: octosim cost --profile pi4 --model resnet20 --image 32x32x3 --sweep trainable --compare pi5 --plot curves.svg

    Example: octosim cost --profile pi4 --model resnet20 --image 32x32x3 --method octo --set keep=float32

    Example: octosim cost --profile pi4 --model vgg11 --image 32x32x3 --batch-size 1,8,32,128 --compare jetson --plot bars.png
    """
    from octosim import hardware
    from octosim.cli import answer, compared, trainable

    check_output("--plot", plot, ".png", ".svg")
    check_output("--roofline", roofline, ".png", ".svg")
    check_output("--csv", csv, ".csv")
    fine_tuning = trainable.asks(sweep)
    table = None if sweep is None or fine_tuning else Path(sweep)
    check_output("--sweep", table, ".csv")
    if csv and not fine_tuning:
        raise OctosimError("--csv goes with --sweep trainable")
    _check_together(
        sweep, advise,
        {"--plot": plot, "--roofline": roofline, "--images": images, "--epochs": epochs, "--advise": advise or None},
    )  # fmt: skip
    devices = compared.read(profile, compare)
    limits = {"--max-memory": max_memory, "--max-energy": max_energy, "--deadline": deadline}
    for option, value in limits.items():
        if value is not None and not 0 < value < float("inf"):
            raise OctosimError(f"{option} must be above 0, not {value}")
        if value is not None and not advise:
            raise OctosimError(f"{option} goes with --advise")
    sizes = batch_sizes(batch_size)
    if data is not None:
        image, classes, images = _of_data(data, model, image, classes, images)
    if images is not None and images < 1:
        raise OctosimError(f"--images must be at least 1, not {images}")
    if epochs is not None and (epochs < 1 or images is None):
        raise OctosimError(f"--epochs must be at least 1, not {epochs}" if images else "--epochs goes with --images or --data")
    devices.replace(lambda device: hardware.configured(device, mode, cluster, clock_ghz))
    dtype = dtype_of(dtype, model, devices.devices[0])
    asked = CostQuery(model, method, dtype, inference, image, lenient, parameters(set_), batchnorm, runtime, shapes_of(shape),
                  settings, classes)  # fmt: skip
    if sweep is not None and fine_tuning:
        _sweep_trainable(asked, sweep, devices, sizes, threads, csv, plot, json_)
        return
    first = source(asked)
    if table is not None:
        from octosim.cli import advise as advice

        count = advice.sweep(asked, first, devices, sizes, threads, table)
        if json_:
            print_json({"points": count, "file": str(table)} | devices.json())
        else:
            say(f"{table}: {count} points")
            devices.show()
        return
    if advise:
        from octosim.cli import advise as advice

        room = None if max_memory is None else max_memory * 2**20
        batches = advice.sizes_of(first, sizes)
        found = advice.advise(asked, devices, batches, threads, advice.Limits(room, max_energy, deadline), images, epochs)
        if json_:
            print_json(found)
        else:
            advice.show(found)
            devices.show()
        return
    several = compare is not None or len(sizes) > 1
    if plot and not several:
        raise OctosimError("--plot goes with --compare or with several batch sizes")
    groups = devices.each(
        lambda device: [point(asked, first, device, first.batch(size), threads, images, epochs) for size in sizes]
    )
    points = [each for group in groups for each in group]
    main = devices.devices[0]
    if roofline:
        from octosim.cost import plots

        both = [costs for name, costs in points[0][1].items() if name in (first.dtype, "float32")]
        plots.roofline(main, both, f"{model}, batch {points[0][0]['batch_size']}", roofline, threads)
    if plot:
        from octosim.cost import plots

        plots.bars([record for record, _ in points], answer.title(asked, first, sizes, types=True), plot)
    if not several:
        record, costs = points[0]
        print_json(record) if json_ else answer.show_layers(record, costs[first.dtype], main, asked)
        return
    records = [{k: v for k, v in record.items() if k != "layers"} for record, _ in points]
    crossing = _crossovers(asked, first, devices.devices, threads) if len(sizes) > 1 else {}
    if json_:
        print_json({"devices": records} | ({"crossover": crossing} if crossing else {}) | devices.json())
        return
    answer.show_points(answer.title(asked, first, sizes), records)
    for name, batch_from in crossing.items():
        text = f"from batch {batch_from} on" if batch_from else f"at no batch up to {_most(first)}"
        say(f"{name}: by the predicted times alone, without their intervals, INT8 pays {text}")
    devices.show()


def _check_together(sweep: str | None, advise: bool, given: dict[str, Any]) -> None:
    """Options that would say nothing beside --advise or --sweep.  given: values by option, None where it is not there."""
    from octosim.cli import trainable

    others: tuple[str, ...]
    if sweep is None:
        main, others = "--advise", ("--plot", "--roofline") if advise else ()
    elif trainable.asks(sweep):
        main, others = f"--sweep {trainable.NAME}", ("--roofline", "--images", "--epochs", "--advise")
    else:
        main, others = f"--sweep {sweep}", ("--plot", "--roofline", "--images", "--epochs", "--advise")
    for option in others:
        if given[option] is not None:
            raise OctosimError(f"{option} does not go with {main}; leave out one of them")


def _of_data(
    name: str, model: str, image: str | None, classes: int | None, images: int | None
) -> tuple[str | None, int | None, int | None]:
    """--image, --classes and --images of a data set; the first two are an ONNX file's own."""
    from octosim.data import load

    for option, value in {"--classes": classes, "--images": images}.items():
        if value is not None:
            raise OctosimError(f"{option} comes from the data: leave out one of {option} and --data")
    if is_onnx(model):
        return image, None, len(load(name).train_images)
    found = load(name, image)
    count, *size = found.train_images.shape
    return "x".join(map(str, [1] * (3 - len(size)) + size)), len(found.classes) or None, count


def _sweep_trainable(
    asked: CostQuery, sweep: str, devices: Compared, sizes: list[int | None], threads: int | None, csv: Path | None,
    plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from octosim.cli import trainable
    from octosim.files import write_atomic

    if len(sizes) > 1:
        raise OctosimError("--sweep trainable takes one --batch-size")
    found = trainable.rows(asked, sweep, devices, sizes[0], threads)
    heading = f"{Path(asked.model).name}, batch {found[0]['batch_size']}, {found[0]['method']}: predicted training step"
    if csv:
        write_atomic(csv, trainable.as_csv(found))
    if plot:
        from octosim.cost import plots

        plots.trainable(found, heading, plot)
    if as_json:
        print_json({"trainable": found} | devices.json())
    else:
        trainable.show(found, heading)
        devices.show()


def point(
    asked: CostQuery, first: Workload, device: Any, batch: int, threads: int | None, images: int | None = None,
    epochs: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """One network, device and batch: the record that --json prints, and by type the costs of the operations."""
    from octosim import cost as model_of
    from octosim.cli import answer
    from octosim.cost.compare import SHORT, fit, side_by_side

    prices: dict[str, Price] = {}
    rows: dict[str, dict[str, Any]] = {}
    largest: dict[str, Any] = {}
    for dtype in types_of(device, first, asked.inference):
        try:
            found = price(typed(asked, first, dtype), device, batch, threads, asked.runtime)
        except OctosimError:
            if dtype == first.dtype:
                raise
            continue  # an accelerator without such units
        prices[dtype] = found
        total = model_of.total(found.costs, device, found.peak)
        keys = ("time_s", "time_low_s", "time_high_s", "energy_j", "energy_is", "peak_bytes")
        rows[dtype] = {key: total[key] for key in keys} | {
            "weights_apart_bytes": (found.parts or {}).get("weights apart"), "runtime": found.runtime.name,
            "hypothetical": found.hypothetical,
        }  # fmt: skip
        if found.work.largest:
            largest[SHORT[dtype]] = lambda capacity, of=found: of.work.largest(device, capacity, of.runtime)
    chosen, priced = rows[first.dtype], {dtype: found.costs for dtype, found in prices.items()}
    record: dict[str, Any] = {"model": asked.model, "parameters": asked.parameters}
    record |= prices[first.dtype].record(asked.runtime)
    record["types"] = rows
    if "int8" in priced and first.dtype == "int8":
        record |= side_by_side(priced["int8"], priced.get("float32"), device, first.is_fixed)
        for name in ("int8", "float32"):
            record[name]["peak_bytes"] = rows[name]["peak_bytes"] if name in rows else None
    held: dict[str, Mapping[str, int]] = {SHORT[name]: found.parts for name, found in prices.items() if found.parts is not None}
    if held and set(held) <= set(largest):
        record |= fit(held, largest, device, first.fixed_batch)
        for name, row in rows.items():
            row["fits"] = record["fits"][SHORT[name]]
        if first.dtype == "int8":
            record["fits"].setdefault("FP32", None)
    record |= long_times(chosen, batch, images, epochs)
    record["answer"] = answer.sentence(record, priced, device, asked, images, epochs)
    return record, priced


def long_times(step: dict[str, Any], batch: int, images: int | None, epochs: int | None) -> dict[str, Any]:
    """What an epoch takes, and what all epochs take, of a step's time and energy."""
    if not images:
        return {"epoch_s": None}
    steps, joules = -(-images // batch), step["energy_j"]
    epoch = {"epoch_s": steps * step["time_s"]}
    if not epochs:
        return epoch
    return epoch | {
        "training_s": epochs * steps * step["time_s"], "training_j": None if joules is None else epochs * steps * joules,
    }  # fmt: skip


def _most(first: Workload) -> int:
    """The largest batch, of powers of two up to LARGEST, that the method's accumulators allow."""
    batch = LARGEST
    while first.check and batch > 1:
        try:
            first.check(batch)
            break
        except OctosimError:
            batch //= 2
    return batch


def _crossovers(asked: CostQuery, first: Workload, devices: list[Any], threads: int | None) -> dict[str, int | None]:
    from octosim.cost import runtimes
    from octosim.cost.compare import crossover

    if first.dtype != "int8" or first.method is None:  # an ONNX file's batch may be fixed
        return {}
    other = typed(asked, first, "float32")

    def trace(made: Workload, dtype: str, device: Any) -> tuple[Any, Any]:
        runtime = runtimes.choose(asked.runtime, device, dtype, not asked.inference, True)
        return (lambda batch: made.ops(device, batch, runtime)), runtime

    return {
        d.name: crossover(*trace(first, "int8", d), *trace(other, "float32", d), d, threads, _most(first))
        for d in devices
        if any("float32" in engine.macs_per_clock.given() for engine in d.engines)
    }
