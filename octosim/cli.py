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
profiles_app = typer.Typer(no_args_is_help=True, help="Hardware profiles: list, show, check a file.")
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch.")
app.add_typer(profiles_app, name="profiles")
app.add_typer(data_app, name="data")

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
        str, typer.Option(help="Data set: fashion-mnist-5k (in the package), fashion-mnist, mnist.")
    ] = "fashion-mnist-5k",
    method: Annotated[str, typer.Option(help="Training method: octo, fp32.")] = "octo",
    lac: Annotated[Optional[str], typer.Option(help="Octo's compensation: off, channel, feature.")] = None,  # noqa: UP045
    prc: Annotated[Optional[str], typer.Option(help="Octo's range clipping: off, ratio, gauss.")] = None,  # noqa: UP045
    set_: Annotated[list[str], typer.Option("--set", help="Another parameter of the method, KEY=VALUE.")] = [],  # noqa: B006
    optimizer: Annotated[str, typer.Option(help="sgd or adam.")] = "sgd",
    lr: Annotated[Optional[float], typer.Option(help="Learning rate; the optimizer's own if not given.")] = None,  # noqa: UP045
    schedule: Annotated[str, typer.Option(help="Of the learning rate over the run: cosine, constant.")] = "cosine",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 100,
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 3,
    steps: Annotated[Optional[int], typer.Option(help="Stop after so many steps, if sooner.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Seed of weights, order and stochastic rounding.")] = 0,
    batchnorm: Annotated[bool, typer.Option(help="Keep the model's batch normalization.")] = True,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/MODEL-DATA-METHOD-seedN if not given.")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
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
        schedule=schedule,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
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
        finished = trainer.train(run, folder, _follow(bar, task, json_), checkpoint_every)
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
    model: Annotated[str, _MODEL] = "simplecnn",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 100,
    method: Annotated[str, typer.Option(help="Training method: octo, fp32.")] = "octo",
    inference: Annotated[bool, typer.Option("--inference", help="The forward pass only.")] = False,
    image: Annotated[str, typer.Option(help="Input size, HEIGHTxWIDTHxCHANNELS.")] = "28x28x1",
    json_: AsJson = False,
) -> None:
    """Predict what a training step costs on a device.

    Example: octosim cost --profile jetson --model lenet5 --batch-size 128
    """
    from octosim import cost as model_of
    from octosim import hw, methods, models

    device = hw.load(profile)
    if batch_size < 1:
        raise OctosimError(f"--batch-size must be at least 1, not {batch_size}")
    try:
        height, width, channels = (int(part) for part in image.split("x"))
    except ValueError:
        raise OctosimError(f"--image takes HEIGHTxWIDTHxCHANNELS, as in 28x28x1, not '{image}'") from None
    in_shape = (height, width, channels)
    network = models.Network(models.layers(model, 10, in_shape=in_shape), in_shape, methods.make(method, {}), 0)
    network.check(batch_size)
    ops = [op for op in models.trace(network, batch_size) if not inference or op.pass_ == "forward" and op.layer != "loss"]
    costs = model_of.predict(ops, device)
    record: dict[str, Any] = {"model": model, "batch_size": batch_size, "method": method} | model_of.cost_json(costs, device)
    if json_:
        _print_json(record)
        return
    table = Table(title=f"{model}, batch {batch_size}, {method}: predicted on {device.title}")
    for name in ("layer", "pass", "what"):
        table.add_column(name)
    for name in ("MACs", "bytes", "time", "bound by"):
        table.add_column(name, justify="right")
    for c in costs:
        macs = _count(c.op.macs) if c.op.macs else ""
        table.add_row(c.op.layer, c.op.pass_, c.op.name, macs, _count(c.op.bytes), _seconds(c.time_s), c.bound)
    out_console.print(table, highlight=False)
    total = record["total"]
    energy = "no energy figure in the profile" if total["energy_j"] is None else f"at most {total['energy_j']:.3g} J"
    out_console.print(
        f"step: {_seconds(total['time_s'])}, {energy}; training on this device is {total['training']}", highlight=False
    )
    for note in record["notes"]:
        out_console.print(note, highlight=False)


@app.command()
def bench(
    profile: Annotated[str, typer.Option(help="Device to predict for: a profile's name or alias, or a .toml file.")] = "jetson",
    model: Annotated[str, _MODEL] = "simplecnn",
    data: Annotated[str, typer.Option(help="Data set the measured steps take their images from.")] = "fashion-mnist-5k",
    method: Annotated[str, typer.Option(help="Training method: octo, fp32.")] = "octo",
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
        *(f"{peer} / octosim" for peer in against),
    ):
        table.add_column(column, justify="left" if column in ("shape", "pass") else "right")
    for row in record["rows"]:
        size = f"{row['m']} x {row['k']} x {row['n']}"
        table.add_row(
            row["shape"], row["pass"], size, _seconds(row["time_s"]), f"{row['ops_s'] / 1e9:.1f}",
            f"{100 * row['of_peak']:.0f} %", f"{100 * row['of_roof']:.0f} %",
            *(f"{row['against'][peer]['ratio']:.2f}" for peer in against),
        )  # fmt: skip
    out_console.print(table, highlight=False)
    print(f"register peak {limits['peak_ops_s'] / 1e9:.0f} GOPS, STREAM triad {limits['triad_bytes_s'] / 1e9:.1f} GB/s")
    if against:
        print(f"geometric mean against the faster of {' and '.join(against)}: {record['ratio']:.2f} times as fast")


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
    """All profiles.  Example: octosim profiles list"""
    from octosim import hw

    devices = [hw.load(name) for name in hw.names()]
    rows: list[dict[str, Any]] = [
        {"name": d.name, "aliases": list(d.aliases), "title": d.title, "training": d.training.status} for d in devices
    ]
    if json_:
        _print_json(rows)
        return
    table = Table("name", "aliases", "device", "training")
    for row in rows:
        table.add_row(str(row["name"]), ", ".join(row["aliases"]), str(row["title"]), str(row["training"]))
    out_console.print(table, highlight=False)


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
