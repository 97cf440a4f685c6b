"""The command line.  Bad input ends with one sentence and exit code 2; Ctrl-C leaves a run that resumes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import octosim
from octosim.errors import OctosimError

app = typer.Typer(
    name="octosim",
    help="Bit-exact simulation, cost prediction and profiling of INT8 training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
profiles_app = typer.Typer(no_args_is_help=True, help="Hardware profiles: list, show, check a file, its schema.")
methods_app = typer.Typer(invoke_without_command=True, help="Training methods: what they are, their parameters.")
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch.")
app.add_typer(profiles_app, name="profiles")
app.add_typer(data_app, name="data")
app.add_typer(methods_app, name="methods")

# Where there is no terminal to fit (a file, a pipe), tables keep their full width.
out_console = Console(width=None if sys.stdout.isatty() else 160)
err_console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)

Threads = Annotated[Optional[int], typer.Option(help="Threads of the kernels; all cores if not given.")]  # noqa: UP045
_MODEL = typer.Option(
    help="Network: simplecnn, lenet5, mlp, alexnet, vgg11, vgg-small-7, resnet20, mobilenet, or a model file, .toml."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def _command() -> str:
    """The command as the user typed it, for manifests."""
    return shlex.join(["octosim", *sys.argv[1:]])


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _seconds(value: float | None) -> str:
    """A time for people: three digits and a unit."""
    if value is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _count(value: float) -> str:
    """A count for people: three digits and k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bar() -> Progress:
    """A progress bar on standard error, off when that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err_console, disable=not err_console.is_terminal, transient=True)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        from octosim import core

        core.set_threads(threads)


# ---- training --------------------------------------------------


def _parameters(settings: list[str], **named: str | None) -> dict[str, Any]:
    """--set key=value and the switches that stand for one."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise OctosimError(f"--set takes KEY=VALUE, not '{setting}'")
        found[key.replace("-", "_")] = value
    for key, given in named.items():
        if given is not None:
            found[key] = given
    return found


def _numbers(option: str, text: str) -> list[float]:
    """0.5,0.75 -> [0.5, 0.75]; empty -> []."""
    try:
        return [float(part) for part in text.split(",") if text]
    except ValueError:
        raise OctosimError(f"{option} takes numbers with commas between them, as in 0.5,0.75, not '{text}'") from None


def _follow(bar: Progress, task: TaskID, quiet: bool) -> Any:
    """A callback that moves the bar and, where there is no terminal, prints a line an epoch."""
    shown = [0.0]

    def follow(p: Any) -> None:
        accuracy = "" if p.test_accuracy is None else f", test {100 * p.test_accuracy:.2f} %"
        bar.update(task, completed=p.step, total=p.steps, description=f"epoch {p.epoch}, loss {p.loss:.4f}{accuracy}")
        if p.test_accuracy is not None and p.test_accuracy != shown[0] and not quiet:
            shown[0] = p.test_accuracy
            bar.console.print(f"epoch {p.epoch}, step {p.step}: loss {p.loss:.4f}{accuracy}", highlight=False)

    return follow


@app.command()
def train(
    ctx: typer.Context,
    model: Annotated[str, _MODEL] = "simplecnn",
    data: Annotated[
        str, typer.Option(help="Data set: fashion-mnist-5k (in the package), fashion-mnist, mnist, cifar10.")
    ] = "fashion-mnist-5k",
    method: Annotated[str, typer.Option(help="Training method; `octosim methods` lists them.")] = "octo",
    lac: Annotated[Optional[str], typer.Option(help="Octo's compensation: off, channel, feature.")] = None,  # noqa: UP045
    prc: Annotated[Optional[str], typer.Option(help="Octo's range clipping: off, ratio, gauss.")] = None,  # noqa: UP045
    set_: Annotated[list[str], typer.Option("--set", help="Another parameter of the method, KEY=VALUE.")] = [],  # noqa: B006
    optimizer: Annotated[str, typer.Option(help="sgd or adam.")] = "sgd",
    lr: Annotated[Optional[float], typer.Option(help="Learning rate; the optimizer's own if not given.")] = None,  # noqa: UP045
    weight_decay: Annotated[float, typer.Option(help="Of the weights, not of biases and normalization.")] = 0.0,
    schedule: Annotated[str, typer.Option(help="Of the learning rate over the run: cosine, step, constant.")] = "cosine",
    milestones: Annotated[
        str, typer.Option(help="Of --schedule step: shares of the run, as 0.5,0.75, or epochs, as 80,120.")
    ] = "",
    gamma: Annotated[float, typer.Option(help="Factor on the learning rate at each milestone.")] = 0.1,
    warmup: Annotated[int, typer.Option(help="Steps in which the learning rate first rises to its full value.")] = 0,
    augment: Annotated[str, typer.Option(help="Of the training images: none, crop-flip.")] = "none",
    label_smoothing: Annotated[float, typer.Option(help="Share of a label's probability spread over all classes.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 100,
    epochs: Annotated[Optional[int], typer.Option(help="Passes over the training set; 3 without --steps.")] = None,  # noqa: UP045
    steps: Annotated[Optional[int], typer.Option(help="Steps; with --epochs, whichever ends sooner.")] = None,  # noqa: UP045
    eval_every: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Evaluate on the test set after every so many steps, besides every epoch."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and stochastic rounding.")] = 0,
    batchnorm: Annotated[bool, typer.Option(help="Keep the model's batch normalization.")] = True,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/MODEL-DATA-METHOD-seedN if not given.")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    prefetch: Annotated[
        bool, typer.Option(help="Make batches in a thread of their own; worth a try with fewer --threads than cores.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Train a network with a method's exact arithmetic; the same command gives the same bits on every machine.

    Example: octosim train --model simplecnn --data mnist --method octo --epochs 3 --seed 0 --out runs/a
    """
    from octosim import train as trainer

    _use_threads(threads)
    if checkpoint_every < 1:
        raise OctosimError(f"--checkpoint-every must be at least 1, not {checkpoint_every}")
    config = trainer.Config(
        model=model,
        data=data,
        method=method,
        parameters=_parameters(set_, lac=lac, prc=prc),
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=_numbers("--milestones", milestones),
        gamma=gamma,
        warmup=warmup,
        augment=augment,
        label_smoothing=label_smoothing,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        eval_every=eval_every,
        seed=seed,
        batchnorm=batchnorm,
    )
    folder = out or Path("runs") / f"{Path(model).stem}-{data}-{method}-seed{seed}"
    if resume:
        _refuse_changes(ctx, folder, config, trainer.read_config(folder))
        if trainer.read_digest(folder):
            err_console.print(f"{folder} is finished already", highlight=False)
            _summary(folder, json_)
            return
        run = trainer.reopen(folder)
        err_console.print(f"resuming {folder} after step {run.step}", highlight=False)
    else:
        run = trainer.create(config, folder, _command())
    with _bar() as bar:
        task = bar.add_task("starting", total=run.steps, completed=run.step)
        finished = trainer.train(run, folder, _follow(bar, task, json_), checkpoint_every, prefetch)
    if not finished:
        err_console.print(
            f"interrupted after step {run.step}; continue with: octosim train --resume --out {folder}", highlight=False
        )
        raise typer.Exit(130)
    _summary(folder, json_)


def _refuse_changes(ctx: typer.Context, folder: Path, asked: Any, stored: Any) -> None:
    """Options typed beside --resume must be those that the run was started with."""
    for key, value in vars(asked).items():
        source = ctx.get_parameter_source(key)
        typed = bool(value) if key == "parameters" else source is not None and source.name == "COMMANDLINE"
        if typed and getattr(stored, key) != value:
            raise OctosimError(f"{folder} was started with {key} = {getattr(stored, key)}, not {value}; --resume keeps it")


def _summary(folder: Path, as_json: bool) -> None:
    from octosim import train as trainer

    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    last = records[-1]
    result = {
        "out": str(folder), "step": last["step"], "loss": last["loss"], "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"], "digest": trainer.read_digest(folder),
    }  # fmt: skip
    if as_json:
        _print_json(result)
        return
    print(f"test accuracy {100 * last['test_accuracy']:.2f} %, test loss {last['test_loss']:.4f} after {last['step']} steps")
    print(f"sha256:{result['digest']}")
    print(f"run: {folder}")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """Replay a run from its manifest and compare the digests: exit code 0 if every bit is the same, 1 if not.

    Example: octosim verify runs/a
    """
    from octosim import train as trainer

    _use_threads(threads)
    with _bar() as bar:
        task = bar.add_task("replaying")
        verdict = trainer.verify(run, _follow(bar, task, True))
    if json_:
        _print_json(vars(verdict))
    elif verdict.equal:
        out_console.print(f"equal: sha256:{verdict.replayed}", highlight=False)
    else:
        where = "the records agree" if verdict.first_step is None else f"the records part at step {verdict.first_step}"
        out_console.print(f"different: recorded {verdict.recorded}, replayed {verdict.replayed}; {where}", highlight=False)
    raise typer.Exit(0 if verdict.equal else 1)


# ---- cost and bench --------------------------------------------------


@app.command()
def cost(
    profile: Annotated[str, typer.Option(help="Device: a profile's name or alias, or a .toml file.")] = "jetson",
    model: Annotated[str, typer.Option(help="Network: a name, a .toml file, or an ONNX file.")] = "simplecnn",
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Images a step; 100 if not given, of an ONNX file its own or 1."),
    ] = None,
    method: Annotated[Optional[str], typer.Option(help="Training method; not for ONNX files.")] = None,  # noqa: UP045
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Arithmetic of the products: int8, float16, float32; float32 for ONNX files if not given."),
    ] = None,
    inference: Annotated[bool, typer.Option("--inference", help="The forward pass only.")] = False,
    threads: Annotated[Optional[int], typer.Option(help="Cores that work at once; all if not given.")] = None,  # noqa: UP045
    clock_ghz: Annotated[Optional[float], typer.Option(help="Of the first engine, in place of the profile's.")] = None,  # noqa: UP045
    image: Annotated[str, typer.Option(help="Input size, HEIGHTxWIDTHxCHANNELS; not for ONNX files.")] = "28x28x1",
    lenient: Annotated[bool, typer.Option("--lenient", help="Count unknown ONNX operators as memory traffic.")] = False,
    compare: Annotated[Optional[str], typer.Option(help="Other profiles, separated by commas: totals only.")] = None,  # noqa: UP045
    json_: AsJson = False,
) -> None:
    """Predict what a training step or an inference costs on a device.

    Example: octosim cost --profile jetson --model lenet5 --batch-size 128

    Example: octosim cost --profile pi4 --model resnet18.onnx --inference --dtype int8 --threads 4 --compare pi5,rk3588
    """
    from octosim import cost as model_of
    from octosim import hw

    devices = [hw.load(name) for name in (profile, *(compare or "").split(",")) if name]
    if batch_size is not None and batch_size < 1:
        raise OctosimError(f"--batch-size must be at least 1, not {batch_size}")
    if dtype is not None and dtype not in hw.DTYPES:
        raise OctosimError(f"--dtype must be one of {', '.join(hw.DTYPES)}, not '{dtype}'")
    if clock_ghz is not None:
        if not 0 < clock_ghz < 1000:
            raise OctosimError(f"--clock-ghz must be above 0 and below 1000, not {clock_ghz}")
        devices = [hw.at_clock(device, clock_ghz) for device in devices]
    records, costs = [], []
    for device in devices:
        asked, ops = _cost_ops(model, device, batch_size, method, dtype, inference, image, lenient)
        costs = model_of.predict(ops, device, threads)
        records.append(asked | {"threads": threads} | model_of.cost_json(costs, device))
    first = records[0]
    if json_:
        _print_json(first if compare is None else {"devices": [{k: v for k, v in r.items() if k != "layers"} for r in records]})
        return
    step = "inference" if inference else "step"
    title = f"{model}, batch {first['batch_size']}, {first['method'] or first['dtype']}"
    if compare is not None:
        _show_comparison(f"{title}: predicted {step}", records)
        return
    table = Table(title=f"{title}: predicted on {devices[0].title}")
    for name in ("layer", "pass", "what"):
        table.add_column(name)
    for name in ("MACs", "bytes", "time", "bound by"):
        table.add_column(name, justify="right")
    for c in costs:
        macs = _count(c.op.macs) if c.op.macs else ""
        table.add_row(c.op.layer, c.op.pass_, c.op.name, macs, _count(c.op.bytes), _seconds(c.time_s), c.bound)
    out_console.print(table, highlight=False)
    total = first["total"]
    energy = "no energy figure in the profile" if total["energy_j"] is None else f"at most {total['energy_j']:.3g} J"
    out_console.print(
        f"{step}: {_seconds(total['time_s'])} ({_interval(total)} with 80 % probability), {energy}; "
        f"training on this device is {total['training']}",
        highlight=False,
    )
    for note in first["notes"]:
        out_console.print(note, highlight=False)


def _interval(total: dict[str, Any]) -> str:
    return f"{_seconds(total['time_low_s'])} .. {_seconds(total['time_high_s'])}"


def _cost_ops(
    model: str,
    device: Any,
    batch: int | None,
    method: str | None,
    dtype: str | None,
    inference: bool,
    image: str,
    lenient: bool,
) -> tuple[dict[str, Any], list[Any]]:
    """(what was asked, the operations) of a named network or an ONNX file."""
    if model.endswith(".onnx"):
        from octosim import cost as model_of
        from octosim import onnx_trace

        if method is not None:
            raise OctosimError("--method is for octosim's own networks; an ONNX file takes --dtype")
        kind = dtype or "float32"
        floats = None
        if inference and kind == "int8":
            # compilers for accelerators keep codes throughout; on CPUs the rest is in the narrowest float type there is
            halves = any("float16" in engine.macs_per_clock.given() for engine in device.engines)
            floats = ("float16" if halves else None) if model_of.path_of(device.engines[0], "int8") else "int8"
        ops = onnx_trace.ops(
            Path(model), batch=batch, dtype=kind, float_dtype=floats, inference=inference, lenient=lenient
        )
        return {"model": model, "batch_size": onnx_trace.batch_size(Path(model), batch), "method": None, "dtype": kind}, ops
    from octosim import methods, models

    if dtype == "float16":
        raise OctosimError("octosim's own networks train in int8 or float32; --dtype float16 is for ONNX files")
    method = method or {"float32": "fp32"}.get(dtype or "", "octo")
    try:
        height, width, channels = (int(part) for part in image.split("x"))
    except ValueError:
        raise OctosimError(f"--image takes HEIGHTxWIDTHxCHANNELS, as in 28x28x1, not '{image}'") from None
    batch = batch or 100
    in_shape = (height, width, channels)
    network = models.Network(models.layers(model, 10, in_shape=in_shape), in_shape, methods.make(method, {}), 0)
    network.check(batch)
    ops = [op for op in models.trace(network, batch) if not inference or op.pass_ == "forward" and op.layer != "loss"]
    kind = "int8" if any(op.kind == "gemm" and op.dtype == "int8" for op in ops) else "float32"
    if dtype not in (None, kind):
        raise OctosimError(f"--method {method} does not compute in {dtype}")
    return {"model": model, "batch_size": batch, "method": method, "dtype": kind}, ops


def _show_comparison(title: str, records: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    table.add_column("device")
    for name in ("time", "80 % interval", "against the first", "energy at most"):
        table.add_column(name, justify="right")
    for record in records:
        total = record["total"]
        energy = "-" if total["energy_j"] is None else f"{total['energy_j']:.3g} J"
        ratio = f"{total['time_s'] / records[0]['total']['time_s']:.2f}"
        table.add_row(record["device"], _seconds(total["time_s"]), _interval(total), ratio, energy)
    out_console.print(table, highlight=False)
    for note in dict.fromkeys(note for record in records for note in record["notes"]):
        out_console.print(note, highlight=False)


@app.command()
def bench(
    profile: Annotated[str, typer.Option(help="Device to predict for: a profile's name or alias, or a .toml file.")] = "jetson",
    model: Annotated[str, _MODEL] = "simplecnn",
    data: Annotated[str, typer.Option(help="Data set the measured steps take their images from.")] = "fashion-mnist-5k",
    method: Annotated[str, typer.Option(help="Training method; `octosim methods` lists them.")] = "octo",
    set_: Annotated[list[str], typer.Option("--set", help="A parameter of the method, KEY=VALUE.")] = [],  # noqa: B006
    optimizer: Annotated[str, typer.Option(help="sgd or adam.")] = "sgd",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 100,
    against: Annotated[Optional[str], typer.Option(help="Peers to measure in the same process: torch.")] = None,  # noqa: UP045
    kernels: Annotated[bool, typer.Option("--kernels", help="Measure int8 matrix products instead of training steps.")] = False,
    plot: Annotated[Optional[Path], typer.Option(help="With --kernels: a roofline plot, .png or .svg.")] = None,  # noqa: UP045
    threads: Threads = None,
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="About how long each contestant runs; 3, or 0.15 a shape with --kernels."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Also write the JSON record here, for `octosim report`.")] = None,  # noqa: UP045
    pyperf: Annotated[Optional[Path], typer.Option(help="Also write every measured step as pyperf JSON.")] = None,  # noqa: UP045
    json_: AsJson = False,
) -> None:
    """A training step predicted on a device beside the same step measured here, per layer and pass, INT8 and FP32.

    Example: octosim bench --profile jetson --model simplecnn --against torch --threads 2

    With --kernels: int8 matrix products at real networks' sizes, as shares of the machine's measured limits.

    Example: octosim bench --kernels --against torch,onnxruntime --plot roofline.png
    """
    from octosim import bench as bencher
    from octosim import hw
    from octosim import train as trainer

    device = hw.load(profile)
    _use_threads(threads)
    if seconds is not None and not 0 < seconds <= 3600:
        raise OctosimError(f"--seconds must be in (0, 3600], not {seconds}")
    peers = [name for name in (against or "").split(",") if name]
    if kernels:
        _bench_kernels(peers, seconds or 0.15, out, plot, json_)
        return
    if plot:
        raise OctosimError("--plot goes with --kernels")
    config = trainer.Config(
        model=model, data=data, method=method, parameters=_parameters(set_), optimizer=optimizer, batch_size=batch_size
    )
    with _bar() as bar:
        task = bar.add_task("measuring", total=100)
        record = bencher.step_bench(
            config, device, against=peers, seconds=seconds or 3.0, command=_command(), raw=pyperf,
            progress=lambda share: bar.update(task, completed=round(100 * share)),
        )  # fmt: skip
    if out:
        trainer.write_atomic(out, (json.dumps(record, indent=2) + "\n").encode())
    if json_:
        _print_json(record)
    else:
        _show_bench(record)


def _bench_kernels(against: list[str], seconds: float, out: Path | None, plot: Path | None, as_json: bool) -> None:
    from octosim import kernelbench
    from octosim import train as trainer

    with _bar() as bar:
        task = bar.add_task("measuring", total=100)
        record = kernelbench.kernel_bench(
            against, seconds=seconds, command=_command(), progress=lambda share: bar.update(task, completed=round(100 * share))
        )
    if out:
        trainer.write_atomic(out, (json.dumps(record, indent=2) + "\n").encode())
    if plot:
        kernelbench.plot_roofline(record, plot)
    if as_json:
        _print_json(record)
        return
    env, limits = record["environment"], record["limits"]
    table = Table(title=f"int8 matrix products: {env['cpu']}, {env['isa']}, {env['threads']} threads")
    for column in (
        "shape",
        "pass",
        "M x K x N",
        "time",
        "GOPS",
        "of peak",
        "of roof",
        *(f"{peer} / octosim" for peer in record["rows"][0]["against"]),
    ):
        table.add_column(column, justify="left" if column in ("shape", "pass") else "right")
    for row in record["rows"]:
        size = f"{row['m']} x {row['k']} x {row['n']}"
        table.add_row(
            row["shape"], row["pass"], size, _seconds(row["time_s"]), f"{row['ops_s'] / 1e9:.1f}",
            f"{100 * row['of_peak']:.0f} %", f"{100 * row['of_roof']:.0f} %",
            *(f"{peer['ratio']:.2f}" for peer in row["against"].values()),
        )  # fmt: skip
    out_console.print(table, highlight=False)
    side = record["isas"][0]["cube"]
    for title, columns, rows in (
        (
            f"{side} cubed with each instruction set",
            ("instruction set", "GOPS", "its register peak", "of peak"),
            [
                (r["isa"], f"{r['ops_s'] / 1e9:.1f}", f"{r['peak_ops_s'] / 1e9:.1f}", f"{100 * r['of_peak']:.0f} %")
                for r in record["isas"]
            ],
        ),
        (
            "products summed step by step, overflow counted",
            ("accumulator", "cubed", "GMAC/s", "apytypes"),
            [
                (
                    r["accumulator"],
                    str(r["cube"]),
                    f"{r['macs_s'] / 1e9:.2f}",
                    f"{r['apytypes_macs_s'] / 1e9:.3f}" if "ratio" in r else "",
                )
                for r in record["accumulators"]
            ],
        ),
        (
            "passes over memory",
            ("pass", "GB/s", "of a copy"),
            [(r["name"], f"{r['bytes_s'] / 1e9:.1f}", f"{100 * r['of_copy']:.0f} %") for r in record["codes"]],
        ),
    ):
        table = Table(title=title)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left")
        for cells in rows:
            table.add_row(*cells)
        out_console.print(table, highlight=False)
    print(f"register peak {limits['peak_ops_s'] / 1e9:.0f} GOPS, STREAM triad {limits['triad_bytes_s'] / 1e9:.1f} GB/s")
    if "ratio" in record:
        worst = min(record["rows"], key=lambda row: row["ratio"])
        print(
            f"geometric mean against the faster peer: {record['ratio']:.2f} times as fast; "
            f"least {worst['ratio']:.2f} ({worst['shape']} {worst['pass']})"
        )


def _show_bench(record: dict[str, Any]) -> None:
    env = record["environment"]
    parts = [(record["method"], record)] + ([("fp32", record["fp32"])] if "fp32" in record else [])
    for name, part in parts:
        title = (
            f"{record['model']}, batch {record['batch_size']}, {name}: predicted on {record['device']['title']}, measured here"
        )
        table = Table(title=title)
        for column in ("layer", "pass"):
            table.add_column(column)
        for column in ("MACs", "bytes", "predicted", "bound by", "measured", "middle half"):
            table.add_column(column, justify="right")
        for row in part["layers"]:
            measured = row["measured"]
            shown = (
                (_seconds(measured["median_s"]), f"{_seconds(measured['p25_s'])} .. {_seconds(measured['p75_s'])}")
                if measured
                else ("-", "")
            )
            macs = _count(row["macs"]) if row["macs"] else ""
            predicted = row["predicted"]
            table.add_row(
                row["layer"],
                row["pass"],
                macs,
                _count(row["bytes"]),
                _seconds(predicted["time_s"]),
                predicted["bound"],
                *shown,
            )
        total = part["total"]
        table.add_section()
        table.add_row(
            "step", "", _count(total["macs"]), _count(total["bytes"]), _seconds(total["predicted_time_s"]), "",
            _seconds(total["time_s"]), f"{_seconds(total['p25_s'])} .. {_seconds(total['p75_s'])}",
        )  # fmt: skip
        out_console.print(table, highlight=False)
    table = Table(title=f"whole step here: {env['cpu']}, {env['isa']}, {env['threads']} threads")
    for column in ("what", "median", "against " + record["method"]):
        table.add_column(column, justify="left" if column == "what" else "right")
    own = record["total"]["time_s"]
    table.add_row(f"octosim {record['method']}", _seconds(own), "1.00")
    if "fp32" in record:
        table.add_row(
            "octosim fp32",
            _seconds(record["fp32"]["total"]["time_s"]),
            f"{record['fp32']['total']['time_s'] / own:.2f}",
        )
    for peer in record.get("against", {}).values():
        table.add_row(peer["what"], _seconds(peer["time_s"]), f"{peer['ratio']:.2f}")
    out_console.print(table, highlight=False)
    if "fp32" in record:
        ratio = record["fp32"]["total"]["predicted_time_s"] / record["total"]["predicted_time_s"]
        out_console.print(f"predicted on {record['device']['title']}: {record['method']} is {ratio:.2f} times as fast as fp32; "
                          f"training there is {record['device']['training']}", highlight=False)  # fmt: skip
    if record["unstable"]:
        err_console.print(
            f"unstable: the middle half of {', '.join(record['unstable'])} is wide; is another job running? try --seconds 10",
            highlight=False,
        )


# ---- report --------------------------------------------------


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(help="Run directories, folders of them, bench JSON files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
    json_: AsJson = False,
) -> None:
    """One self-contained page from recorded runs and benches: curves, tables, predicted and measured times.

    Example: octosim report runs/a runs/b bench.json -o report.html
    """
    from octosim import report as reporter

    result = reporter.write_report(paths, out, _command())
    if json_:
        _print_json(result)
        return
    for path, reason in result["skipped"]:
        err_console.print(f"left out {path}: {reason}", highlight=False)
    out_console.print(f"{out}: {result['runs']} runs, {result['benches']} benches", highlight=False)


# ---- profiles and data --------------------------------------------------


@profiles_app.command("list")
def profiles_list(json_: AsJson = False) -> None:
    """All profiles: peaks in GMAC/s (dense), sustained bandwidth in GB/s.  Example: octosim profiles list"""
    from octosim import hw
    from octosim.numerics import ACCUMULATORS

    devices = [hw.load(name) for name in hw.names()]
    rows: list[dict[str, Any]] = [
        {
            "name": d.name,
            "aliases": list(d.aliases),
            "title": d.title,
            "training": d.training.status,
            "bandwidth_gb_s": d.memory.bandwidth_sustained_gb_s.value if d.memory.bandwidth_sustained_gb_s else None,
            "engines": [
                {"name": e.name, "trains": e.trains, "accumulator": e.accumulator}
                | {f"{dtype}_gmac_s": e.peak_mac_s(dtype) / 1e9 or None for dtype in hw.DTYPES}
                for e in d.engines
            ],
        }
        for d in devices
    ]
    if json_:
        _print_json(rows)
        return
    table = Table(title="peaks in GMAC/s (one MAC is two operations), bandwidth in GB/s; - is none or unknown")
    for name in ("profile", "engine"):
        table.add_column(name, no_wrap=True)
    for name in ("int8", "float32", "GB/s"):
        table.add_column(name, justify="right")
    table.add_column("accumulator")
    table.add_column("trains")
    for row in rows:
        name, bandwidth = row["name"], _rate(row["bandwidth_gb_s"])
        for e in row["engines"]:
            accumulator = e["accumulator"] if e["accumulator"] in ACCUMULATORS else "-"
            trains = {"hypothetical": "hypothetically"}.get(row["training"], "yes") if e["trains"] else "no"
            int8, float32 = _rate(e["int8_gmac_s"]), _rate(e["float32_gmac_s"])
            table.add_row(name, e["name"], int8, float32, bandwidth, accumulator, trains)
            name = bandwidth = ""
    out_console.print(table, highlight=False)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@profiles_app.command("schema")
def profiles_schema() -> None:
    """JSON Schema of a profile file.  Example: octosim profiles schema > profile.schema.json"""
    from octosim import hw

    _print_json(hw.json_schema())


@profiles_app.command("show")
def profiles_show(name: Annotated[str, typer.Argument(help="A profile's name or alias, or a .toml file.")]) -> None:
    """One profile as JSON, every number with its source.  Example: octosim profiles show jetson"""
    from octosim import hw

    _print_json(hw.load(name).model_dump(mode="json", exclude_none=True))


@profiles_app.command("check")
def profiles_check(file: Annotated[Path, typer.Argument(help="A .toml file.")]) -> None:
    """Validate a profile.  Example: octosim profiles check my-board.toml"""
    from octosim import hw

    device = hw.check(file)
    out_console.print(f"{file}: a good profile of {device.title}", highlight=False)


@profiles_app.command("calibrate")
def profiles_calibrate(
    from_: Annotated[Path, typer.Option("--from", help="CSV of measured times of whole networks (.csv or .csv.gz).")],
    profile: Annotated[str, typer.Option(help="The device: a profile's name or alias, or a .toml file.")],
    layers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV of the networks' layers, where the measurements name networks and not .onnx files."),
    ] = None,
    summary: Annotated[Optional[Path], typer.Option(help="CSV with the networks' activation_elements_sum.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="Take only rows whose device begins so.")] = "",
    out: Annotated[Optional[Path], typer.Option("-o", "--out", help="A copy of the profile with the factors.")] = None,  # noqa: UP045
    json_: AsJson = False,
) -> None:
    """Fit a CPU's efficiency factors to measured times; prints them as TOML, or writes a profile that has them.

    The CSV has the columns network, precision (int8, fp16 or fp32), threads, value and, if there, unit (ms) and device.

    Example: octosim profiles calibrate --from measured.csv --profile pi4 -o my-pi4.toml
    """
    from octosim import calibrate, efficiency, hw

    rows = [row for row in calibrate.measurements(from_) if row.device.startswith(device)]
    if not rows:
        raise OctosimError(f"{from_}: no measurement" + (f" of a device that begins with '{device}'" if device else ""))
    found = calibrate.calibrate(hw.load(profile), rows, calibrate.networks(layers, summary) if layers else {}, from_.name)
    text = "\n".join(f"[calibration.{path}]\n{efficiency.table(f)}" for path, f in found.factors.items())
    if out:
        from octosim.train import write_atomic

        write_atomic(out, f"{hw.text_of(profile).rstrip()}\n\n{text}".encode())
        hw.check(out)
    if json_:
        _print_json({path: f.model_dump() | {"report": found.report[path]} for path, f in found.factors.items()})
        return
    if not out:
        print(text)
    for path, r in found.report.items():
        err_console.print(
            f"{path}: {r['measurements']} measurements; median error {100 * r['uncalibrated']:.1f} % before, "
            f"{100 * r['fitted']:.1f} % fitted, {100 * r['left_out']:.1f} % on networks left out of the fit",
            highlight=False,
        )


@methods_app.callback()
def methods_list(ctx: typer.Context, json_: AsJson = False) -> None:
    """Training methods: their papers, and the type of each tensor in a training step.

    Example: octosim methods

    Example: octosim methods show octo
    """
    if ctx.invoked_subcommand is not None:
        return
    from octosim import methods

    rows = [methods.about(name) for name in methods.METHODS]
    if json_:
        _print_json([{key: value for key, value in row.items() if key not in ("doc", "parameters")} for row in rows])
        return
    table = Table("method", "what it does", "paper")
    for row in rows:
        table.add_row(row["name"], row["summary"], row["paper"])
    out_console.print(table, highlight=False)
    roles = list(rows[0]["bits"])
    table = Table("method", *roles, title="types; names of parameters are their bits")
    for row in rows:
        table.add_row(row["name"], *(row["bits"][role] for role in roles))
    out_console.print(table, highlight=False)


@methods_app.command("show")
def methods_show(name: Annotated[str, typer.Argument(help="A method.")], json_: AsJson = False) -> None:
    """One method: its source, how it differs from the paper, its parameters.  Example: octosim methods show octo"""
    from octosim import methods

    about = methods.about(name)
    if json_:
        _print_json(about)
        return
    print(f"{about['name']}: {about['summary']} ({about['paper']})\n\n{about['doc']}\n")
    for role, kind in about["bits"].items():
        print(f"{role + ':':<15}{kind}")
    table = Table("parameter", "default", "values", "meaning")
    for key, parameter in about["parameters"].items():
        table.add_row(key, str(parameter["default"]), parameter["values"], parameter["doc"])
    if about["parameters"]:
        out_console.print(table, highlight=False)


@data_app.command("list")
def data_list(json_: AsJson = False) -> None:
    """Data sets and where they are.  Example: octosim data list"""
    from octosim import data

    rows = data.available()
    if json_:
        _print_json(rows)
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out_console.print(table, highlight=False)


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="mnist, fashion-mnist ...")]) -> None:
    """Download a data set, by checksum, into the cache.  Example: octosim data fetch mnist"""
    from octosim import data

    out_console.print(str(data.fetch(name, progress=err_console.is_terminal)), highlight=False)


def _version(asked: bool) -> None:
    if asked:
        print(f"octosim {octosim.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    try:
        app()
    except OctosimError as error:
        sys.stdout.flush()
        print(f"octosim: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
