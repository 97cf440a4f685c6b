"""The command line.  Bad input ends with one sentence and exit code 2; Ctrl-C leaves a run that resumes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

import octosim
from octosim import audit_command, cost_command
from octosim.errors import OctosimError
from octosim.terminal import AsJson, Threads, err_console, out_console, parameters
from octosim.terminal import bar as _bar
from octosim.terminal import count as _count
from octosim.terminal import print_json as _print_json
from octosim.terminal import seconds as _seconds
from octosim.terminal import use_threads as _use_threads

app = typer.Typer(
    name="octosim",
    help="Bit-exact simulation, cost prediction and profiling of INT8 training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
profiles_app = typer.Typer(no_args_is_help=True, help="Hardware profiles: list, show, check a file, its schema, calibrate.")
methods_app = typer.Typer(invoke_without_command=True, help="Training methods: what they are, their parameters.")
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch.")
app.add_typer(profiles_app, name="profiles")
app.add_typer(data_app, name="data")
app.add_typer(methods_app, name="methods")

_MODEL = typer.Option(
    help="Network: simplecnn, lenet5, mlp, alexnet, vgg11, vgg-small-7, resnet20, mobilenet, or a model file, .toml."
)


def _command() -> str:
    """The command as the user typed it, for manifests."""
    return shlex.join(["octosim", *sys.argv[1:]])


# ---- training --------------------------------------------------


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
    lac: Annotated[Optional[str], typer.Option(help="Octo's compensation: off, channel, feature, sample.")] = None,  # noqa: UP045
    prc: Annotated[Optional[str], typer.Option(help="Octo's range clipping: off, ratio, gauss, percentile.")] = None,  # noqa: UP045
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
    accumulator: Annotated[
        str, typer.Option(help="Register of the int8 products: exact32, sdot, vpdpbusd, maddubs, acc24, acc16-wrap ...")
    ] = "exact32",
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Take the --accumulator of a device: a profile's name or alias, or a .toml file."),
    ] = None,
    count_overflow: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="In every so many steps, write to overflow.jsonl what happened in the accumulators."),
    ] = None,
    measure: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="In every so many steps, write to measures.jsonl each layer's errors against float32."),
    ] = None,
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

    Example: octosim train --model lenet5 --profile pi4 --count-overflow 10
    """
    from octosim import train as trainer

    _use_threads(threads)
    if checkpoint_every < 1:
        raise OctosimError(f"--checkpoint-every must be at least 1, not {checkpoint_every}")
    if profile is not None:
        accumulator = _accumulator_of(profile, accumulator if _typed(ctx, "accumulator") else None)
    config = trainer.Config(
        model=model,
        data=data,
        method=method,
        parameters=parameters(set_, lac=lac, prc=prc),
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
        accumulator=accumulator,
        count_overflow=count_overflow,
        measure=measure,
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


def _typed(ctx: typer.Context, option: str) -> bool:
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _accumulator_of(profile: str, asked: str | None) -> str:
    """The accumulator that a profile states; asked: by --accumulator."""
    from octosim import hw

    device = hw.load(profile)
    stated = device.numerics.accumulator
    if stated is None:
        raise OctosimError(f"profile {device.name} states no numerics.accumulator; choose one with --accumulator")
    if asked is not None and asked != stated.value:
        raise OctosimError(f"--accumulator {asked} differs from {stated.value} of --profile {device.name}; give one of both")
    return stated.value


def _refuse_changes(ctx: typer.Context, folder: Path, asked: Any, stored: Any) -> None:
    """Options typed beside --resume must be those that the run was started with."""
    for key, value in vars(asked).items():
        typed = bool(value) if key == "parameters" else _typed(ctx, key)
        typed = typed or key == "accumulator" and _typed(ctx, "profile")
        if typed and getattr(stored, key) != value:
            raise OctosimError(f"{folder} was started with {key} = {getattr(stored, key)}, not {value}; --resume keeps it")


def _summary(folder: Path, as_json: bool) -> None:
    from octosim import train as trainer

    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    last = records[-1]
    result = {
        "out": str(folder), "step": last["step"], "loss": last["loss"], "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"], "digest": trainer.read_digest(folder),
        "parameters": trainer.read_manifest(folder).get("parameters", {}),
    }  # fmt: skip
    if as_json:
        _print_json(result)
        return
    if result["parameters"]:
        kinds = ", ".join(f"{name} {count:,}" for name, count in result["parameters"].items())
        print(f"{sum(result['parameters'].values()):,} parameters: {kinds}")
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


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A run directory.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same network.")],
    steps: Annotated[Optional[int], typer.Option(help="Compare so many steps; all if not given.")] = None,  # noqa: UP045
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """Replay two runs side by side and name the first step, layer, pass and index where they part.

    Exit code 0 if they do not part, 1 if they do.

    Example: octosim diff runs/vpdpbusd runs/maddubs
    """
    from octosim import diff as differ

    _use_threads(threads)
    if steps is not None and steps < 1:
        raise OctosimError(f"--steps must be at least 1, not {steps}")
    with _bar() as bar:
        task = bar.add_task("replaying both")
        result = differ.diff(first, second, steps, lambda step, most: bar.update(task, completed=step, total=most))
    if json_:
        _print_json(result)
    elif result["equal"]:
        out_console.print(f"no difference in {result['compared_steps']} steps", highlight=False)
    else:
        _show_diff(result)
    raise typer.Exit(0 if result["equal"] else 1)


def _show_diff(result: dict[str, Any]) -> None:
    where = f"step {result['step']}, {result['layer']}, {result['pass']}: {result['tensor']}"
    if result["values"] is not None:
        where += f" at {result['index']} is {result['values'][0]} and {result['values'][1]}"
    out_console.print(f"the runs part at {where}", highlight=False, markup=False)
    table = Table(title=f"tensors of step {result['step']} that differ")
    for column in ("layer", "pass", "tensor", "dtype"):
        table.add_column(column)
    for column in ("differ", "largest", "SQNR, dB"):
        table.add_column(column, justify="right")
    table.add_column("off by: elements")
    rows = [row for row in result["tensors"] if row["differ"] != 0]
    shown = [row for row in rows if row["pass"] != "update"] or rows
    for row in shown:
        cells = (row["layer"], row["pass"], row["tensor"], row["dtype"])
        if row["differ"] is None:
            table.add_row(*cells, "other shape", "", "", "")
            continue
        sqnr = "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        classes = ", ".join(f"{n}: {count}" for n, count in (row["off_by"] or {}).items() if n != "0")
        table.add_row(*cells, f"{100 * row['differ'] / row['elements']:.2f} %", f"{row['largest']:.3g}", sqnr, classes)
    out_console.print(table, highlight=False)
    if len(shown) < len(rows):
        out_console.print(f"and {len(rows) - len(shown)} tensors after the update (--json has them)", highlight=False)


@app.command()
def golden(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    step: Annotated[int, typer.Option(help="The training step, from 1.")] = 1,
    layer: Annotated[Optional[str], typer.Option(help="One weighted layer, as conv1; all if not given.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="Folder to write to; RUN/golden-stepN if not given.")] = None,  # noqa: UP045
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """Forward and backward test vectors of a step for kernel and RTL authors: .npz, a C header, and a C program that checks it.

    Example: octosim golden runs/a --step 10 --layer conv2
    """
    from octosim import golden as maker

    _use_threads(threads)
    with _bar() as bar:
        task = bar.add_task("replaying", total=step)
        rows = maker.golden(
            run, step, layer, out or run / f"golden-step{step}", lambda now, last: bar.update(task, completed=now, total=last)
        )
    if json_:
        _print_json(rows)
        return
    for row in rows:
        out_console.print(f"{row['layer']}: {', '.join(row['passes'])}: {row['npz']}, {row['header']}", highlight=False)
    checker = Path(rows[0]["checker"])
    out_console.print(f"to check: cc {checker} -o {checker.stem} && ./{checker.stem}", highlight=False)


app.command()(audit_command.audit)


# ---- cost and bench --------------------------------------------------


app.command()(cost_command.cost)


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
    memory: Annotated[
        bool, typer.Option("--memory", help="Also the peak memory of each contestant, in processes of their own.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """A training step predicted on a device beside the same step measured here, per layer and pass, INT8 and FP32.

    Example: octosim bench --profile jetson --model simplecnn --against torch --threads 2 --memory

    With --kernels: int8 matrix products at real networks' sizes, as shares of the machine's measured limits.

    Example: octosim bench --kernels --against torch,onnxruntime --plot roofline.png
    """
    from octosim import bench as bencher
    from octosim import hw, methods
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
        model=model, data=data, method=method, parameters=parameters(set_), optimizer=optimizer, batch_size=batch_size,
        batchnorm=getattr(methods.METHODS.get(method), "batchnorm", True),
    )  # fmt: skip
    with _bar() as bar:
        task = bar.add_task("measuring", total=100)
        record = bencher.step_bench(
            config, device, against=peers, seconds=seconds or 3.0, command=_command(), raw=pyperf, memory=memory,
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
    for name, part in parts:
        said = ", ".join(f"{what.replace('_', ' ')} {_seconds(seconds)}" for what, seconds in part["parts"].items())
        out_console.print(f"{name}: {said}", highlight=False)
    if "limit" in record:
        limit = record["limit"]
        out_console.print(
            f"limit: the int8 products at the register peak of {2 * limit['peak_mac_s'] / 1e9:.0f} GOPS take "
            f"{_seconds(limit['time_s'])}, {100 * limit['share']:.0f} % of the step", highlight=False
        )  # fmt: skip
    if "memory" in record:
        _show_memory(record["method"], record["memory"])
    if "fp32" in record:
        ratio = record["fp32"]["total"]["predicted_time_s"] / record["total"]["predicted_time_s"]
        out_console.print(f"predicted on {record['device']['title']}: {record['method']} is {ratio:.2f} times as fast as fp32; "
                          f"training there is {record['device']['training']}", highlight=False)  # fmt: skip
    if record["device"]["here"]:
        errors = ", ".join(f"{100 * part['total']['error']:+.0f} % ({name})" for name, part in parts)
        out_console.print(f"this machine is {record['device']['name']}: the prediction is off by {errors}", highlight=False)
        if not record["device"]["calibrated"]:
            out_console.print("octosim profiles calibrate -o this-machine.toml measures its kernels for a nearer one")
    if record["unstable"]:
        err_console.print(
            f"unstable: the middle half of {', '.join(record['unstable'])} is wide; is another job running? try --seconds 10",
            highlight=False,
        )


def _show_memory(method: str, memory: dict[str, dict[str, Any]]) -> None:
    columns = {"weights": "weights", "optimizer": "optimizer", "kept": "kept for backward", "pool": "blocks of tensors"}
    table = Table("what", title="memory in MB above what the process held before the model was built")
    for title in ("peak", "of torch's", *columns.values()):
        table.add_column(title, justify="right")
    for name, found in memory.items():
        share = f"{found['peak_bytes'] / memory['torch']['peak_bytes']:.2f}" if "torch" in memory else ""
        own = [f"{found[key] / 1e6:.1f}" if key in found else "" for key in columns]
        table.add_row("PyTorch FP32" if name == "torch" else f"octosim {name}", f"{found['peak_bytes'] / 1e6:.1f}", share, *own)
    out_console.print(table, highlight=False)
    if "fp32" in memory and method != "fp32":
        ratio = memory[method]["kept"] / memory["fp32"]["kept"]
        out_console.print(f"kept for the backward pass: {ratio:.2f} of fp32's", highlight=False)


# ---- study --------------------------------------------------


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="A .toml file, or one in the package: accumulator-width, isa-divergence, methods, rounding, lac-prc-ablation."
        ),
    ],
    out: Annotated[Optional[Path], typer.Option(help="The study's directory; studies/NAME if not given.")] = None,  # noqa: UP045
    jobs: Annotated[Optional[int], typer.Option(help="Runs at once; as many as cores if not given.")] = None,  # noqa: UP045
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Threads of each run; cores / jobs if not given, 1 with --cluster."),
    ] = None,
    cluster: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ADDRESS", help="Train on the workers of this Dask scheduler, as tcp://host:8786."),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the study and list its rows; run nothing.")] = False,
    json_: AsJson = False,
) -> None:
    """A grid of runs, in parallel; the same command again continues it.  Records in records.csv, runs for `octosim report`.

    Exit code 1 if a run is broken; the others are trained all the same.

    Example: octosim study rounding --jobs 2 --out studies/rounding

    Example: octosim study rounding --cluster tcp://192.0.2.1:8786
    """
    import os
    from functools import partial

    from rich.live import Live

    from octosim import study as studier

    cores = os.cpu_count() or 1
    for option, value in (("--jobs", jobs), ("--threads", threads), ("--checkpoint-every", checkpoint_every)):
        if value is not None and value < 1:
            raise OctosimError(f"{option} must be at least 1, not {value}")
    if cluster and jobs:
        raise OctosimError("--jobs is for runs on this machine; with --cluster the workers decide how many run at once")
    jobs = jobs or cores
    path = studier.source(name)
    read = studier.read(path)
    plan = studier.rows(read, path)
    with _bar() as bar:
        task = bar.add_task("checking", total=len(plan))
        studier.check(plan, path, lambda number: bar.update(task, completed=number))
    folder = out or Path("studies") / path.stem
    if dry_run:
        if json_:
            _print_json({"out": str(folder), "rows": [row.name for row in plan]})
        else:
            print("\n".join(row.name for row in plan))
        return
    told: set[str] = set()
    with Live(console=err_console, auto_refresh=False, transient=True) as live:

        def show(states: list[Any]) -> None:
            if err_console.is_terminal:
                live.update(_study_table(read.title or path.stem, states), refresh=True)
                return
            for state in states:
                if state.state in ("finished", "broken") and state.name not in told:
                    told.add(state.name)
                    err_console.print(f"{state.name}: {state.state}", highlight=False)

        train_all: Any
        if cluster:
            from octosim.cluster import train_all as on_cluster

            train_all = partial(on_cluster, address=cluster, threads=threads or 1, command=_command(), every=checkpoint_every)
        else:
            train_all = partial(
                studier.in_processes,
                jobs=jobs, threads=threads or max(1, cores // jobs), command=_command(), every=checkpoint_every,
            )  # fmt: skip
        states = studier.run(read, plan, folder, path.read_text(), train_all, show)
    if json_:
        _print_json({"out": str(folder), "rows": [vars(state) for state in states]})
    else:
        out_console.print(_study_table(read.title or path.stem, states), highlight=False)
        out_console.print(f"records: {folder / 'records.csv'}; page: octosim report {folder}", highlight=False)
    for state in states:
        if state.state == "broken":
            err_console.print(f"{state.name} is broken: {state.reason}", highlight=False, markup=False)
    found = {state.state for state in states}
    if "interrupted" in found or "waiting" in found:
        err_console.print("interrupted; the same command continues", highlight=False)
        raise typer.Exit(130)
    raise typer.Exit(1 if "broken" in found else 0)


def _study_table(title: str, states: list[Any]) -> Table:
    counts = ", ".join(
        f"{sum(s.state == kind for s in states)} {kind}"
        for kind in ("finished", "running", "waiting", "interrupted", "broken")
        if any(s.state == kind for s in states)
    )
    table = Table(title=f"{title}: {counts}")
    for column in ("run", "state"):
        table.add_column(column)
    for column in ("step", "loss", "test accuracy"):
        table.add_column(column, justify="right")
    for s in states:
        step = f"{s.step} of {s.steps}" if s.steps else ""
        loss = "" if s.loss is None else f"{s.loss:.4f}"
        accuracy = "" if s.test_accuracy is None else f"{100 * s.test_accuracy:.2f} %"
        table.add_row(s.name, s.state, step, loss, accuracy)
    return table


# ---- report --------------------------------------------------


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(help="Run directories, folders of them, bench JSON files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write, .html or .md.")] = Path("report.html"),
    profile: Annotated[
        list[str], typer.Option(help="Predict the runs' time, energy and memory on this device; may be repeated.")
    ] = [],  # noqa: B006
    figures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for the figures as SVG and PNG files; of a .md page, OUT-figures if not given."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """One self-contained page from recorded runs and benches: curves, tables, predicted and measured times.

    Example: octosim report runs/a runs/b bench.json -o report.html

    Example: octosim report studies/rounding --profile pi4 --profile jetson --figures pictures -o report.md
    """
    from octosim import report as reporter

    result = reporter.write_report(paths, out, _command(), profile, figures)
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
    for name in ("int8", "float16", "float32", "GB/s"):
        table.add_column(name, justify="right")
    table.add_column("accumulator")
    table.add_column("trains")
    for row in rows:
        name, bandwidth = row["name"], _rate(row["bandwidth_gb_s"])
        for e in row["engines"]:
            accumulator = e["accumulator"] if e["accumulator"] in ACCUMULATORS else "-"
            trains = {"hypothetical": "hypothetically"}.get(row["training"], "yes") if e["trains"] else "no"
            rates = [_rate(e[f"{dtype}_gmac_s"]) for dtype in hw.DTYPES]
            table.add_row(name, e["name"], *rates, bandwidth, accumulator, trains)
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
    from_: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", help="CSV of measured times of whole networks (.csv or .csv.gz)."),
    ] = None,
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --from, the device: a profile's name or alias, or a .toml file."),
    ] = None,
    layers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV of the networks' layers, where the measurements name networks and not .onnx files."),
    ] = None,
    summary: Annotated[Optional[Path], typer.Option(help="CSV with the networks' activation_elements_sum.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="Take only rows whose device begins so.")] = "",
    out: Annotated[Optional[Path], typer.Option("-o", "--out", help="A copy of the profile with the factors.")] = None,  # noqa: UP045
    json_: AsJson = False,
) -> None:
    """Measure octosim's kernels on this machine (about a minute) and print, or write, its profile.

    Example: octosim profiles calibrate -o this-machine.toml && octosim bench --profile this-machine.toml

    With --from: fit another CPU's efficiency factors to measured times of networks.  The CSV has the columns network,
    precision (int8, fp16 or fp32), threads, value and, if there, unit (ms) and device.

    Example: octosim profiles calibrate --from measured.csv --profile pi4 -o my-pi4.toml
    """
    if from_ is None:
        if profile or layers or summary or device:
            raise OctosimError("--profile, --layers, --summary and --device go with --from; else this machine is measured")
        _calibrate_host(out, json_)
        return
    if profile is None:
        raise OctosimError("--from needs --profile, the device that was measured")
    import tomli_w

    from octosim import calibrate, efficiency, hw

    rows = [row for row in calibrate.measurements(from_) if row.device.startswith(device)]
    if not rows:
        raise OctosimError(f"{from_}: no measurement" + (f" of a device that begins with '{device}'" if device else ""))
    found = calibrate.calibrate(hw.load(profile), rows, calibrate.networks(layers, summary) if layers else {}, from_.name)
    text = tomli_w.dumps({"calibration": {path: efficiency.table(f) for path, f in found.factors.items()}})
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


def _calibrate_host(out: Path | None, as_json: bool) -> None:
    from octosim import hostbench
    from octosim.train import write_atomic

    with _bar() as bar:
        task = bar.add_task("measuring", total=100)
        data = hostbench.calibrate(command=_command(), progress=lambda share: bar.update(task, completed=round(100 * share)))
    text = hostbench.toml(data)
    device = hostbench.load_check(text)
    if out:
        write_atomic(out, text.encode())
    elif not as_json:
        print(text)
    if as_json:
        _print_json(device.model_dump(mode="json", exclude_none=True, by_alias=True))
    elif out and device.rates:
        err_console.print(f"{out}: {device.title}, products within {100 * device.rates.spread:.0f} % (one standard deviation); "
                          f"try octosim bench --profile {out}", highlight=False)  # fmt: skip


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
