"""Training and what is made of a run: train, verify, diff, golden."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.progress import Progress, TaskID

from octosim.cli import outlook as outlooks
from octosim.cli import words
from octosim.cli.settings import with_settings
from octosim.cli.tables import Table
from octosim.cli.terminal import (
    AsJson,
    Threads,
    command_line,
    hint,
    is_typed,
    parameters,
    plural,
    print_json,
    progress,
    progress_bar,
    say,
    shell_word,
    use_threads,
)
from octosim.errors import OctosimError
from octosim.settings import ARITHMETIC, METHOD


def _follow(bar: Progress, task: TaskID, quiet: bool, outlook: Callable[[Any], None]) -> Any:
    """A callback that moves the bar and prints a line an epoch, and calls outlook with each step's progress, unless quiet."""
    shown = [""]

    def follow(p: Any) -> None:
        if not quiet:
            outlook(p)
        tested = f", test {p.score}" if p.score else ""
        bar.update(task, completed=p.step, total=p.steps, description=f"epoch {p.epoch}, loss {p.loss:.4f}{tested}")
        if p.score != shown[0] and not quiet:
            shown[0] = p.score
            hint(f"epoch {p.epoch}, step {p.step}: loss {p.loss:.4f}{tested}")

    return follow


@with_settings(parameters="Another parameter of the method, KEY=VALUE; may be repeated.")
def train(
    ctx: typer.Context,
    settings: dict[str, Any],
    recipe: Annotated[
        str | None,
        typer.Option(help="The settings in which all of a method acts, by its name (octosim methods show); options replace "
                     "them.", rich_help_panel=METHOD, **words.of("recipes")),
    ] = None,
    lac: Annotated[
        str | None,
        typer.Option(help="Octo's compensation: off, channel, feature, sample.", rich_help_panel=METHOD, **words.of("lac")),
    ] = None,
    prc: Annotated[
        str | None,
        typer.Option(help="Octo's range clipping: off, ratio, gauss, percentile.", rich_help_panel=METHOD, **words.of("prc")),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Take the --accumulator of a device: a profile's name or alias, or a .toml file.",
            rich_help_panel=ARITHMETIC,
            **words.of("profiles"),
        ),  # fmt: skip
    ] = None,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; runs/MODEL-DATA-METHOD-seedN if not given.", **words.of_runs())
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    prefetch: Annotated[
        bool, typer.Option(help="Make batches in a thread of their own; worth a try with fewer --threads than cores.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print steps, memory and the time that a few steps tell; write nothing.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Train a network with a method's exact arithmetic; the same command gives the same bits on every machine.

    Example: octosim train --model simplecnn --data mnist --method octo --epochs 3 --seed 0 --out runs/a

    Example: octosim train --model simplecnn --data photos/ --image 64x64x3 --batch-size 20

    Example: octosim train --recipe dorefa --epochs 15

    Example: octosim train --model lenet5 --profile pi4 --count-overflow 10

    Example: octosim train --model resnet20 --data cifar10 --init runs/pretrained --train-last 3 --lr 0.01
    """
    from octosim import extensions, graph
    from octosim import train as trainer
    from octosim.files import is_onnx
    from octosim.methods.recipes import settings_of, with_recipe

    use_threads(threads)
    if checkpoint_every < 1:
        raise OctosimError(f"--checkpoint-every must be at least 1, not {checkpoint_every}")
    settings["parameters"] |= parameters([], lac=lac, prc=prc)
    stated = {key for key in settings if is_typed(ctx, key)}
    if recipe is not None:
        settings = with_recipe(recipe, {key: settings[key] for key in {*stated, "parameters"}})
        stated |= set(settings_of(recipe))
    if profile is not None:
        asked = settings["accumulator"] if "accumulator" in stated else None
        settings["accumulator"] = _accumulator_of(profile, asked)
        stated.add("accumulator")
    config = trainer.Config(**settings)
    data = config.data
    name = f"{Path(config.model).stem}-{_data_name(data)}-{config.method}-seed{config.seed}"
    folder = out or Path("runs") / name
    if dry_run:
        if resume:
            raise OctosimError("--dry-run is of a run that begins; leave out --resume")
        outlooks.dry_run(config, json_)
        return
    if resume:
        if extensions.is_path(config.method):  # typed: the manifest may name it
            extensions.trust(extensions.top_of(config.method))
        stored = trainer.read_config(folder)
        moved = data if is_typed(ctx, "data") and data != stored.data and _is_own(stored.data) else None
        _refuse_changes(folder, config if moved is None else replace(config, data=stored.data), stored, stated)
        if trainer.read_digest(folder):
            trainer.check(folder)
            trainer.tidy(folder)
            hint(f"{folder} is finished already")
            _summary(folder, json_)
            return
        run = trainer.reopen(folder, place=moved)
        hint(f"resuming {folder} after step {run.step}")
    else:
        run = trainer.create(config, folder, command_line(), dataset=(lambda: _own_data(config)) if _is_own(data) else None)
        for sentence in run.initial.sentences if run.initial else ():
            hint(f"--init {config.init}: {sentence}")
        if is_onnx(config.model):
            for note in graph.load(config.model).notes:
                hint(f"{config.model}: {note}")
    if not json_:
        hint(f"{folder}: {outlooks.steps_text(run)}")
        for sentence in run.caveats():
            hint(f"caveat: {sentence}")
    with progress_bar() as bar:
        task = bar.add_task("starting", total=run.steps, completed=run.step)
        follow = _follow(bar, task, json_, outlooks.Outlook(run))
        finished = trainer.train(run, folder, follow, checkpoint_every, prefetch)
    if not finished:
        asked = "".join(f" --plugin {shell_word(module)}" for module in extensions.trusted())
        hint(f"interrupted after step {run.step}; continue with: octosim{asked} train --resume --out {shell_word(folder)}")
        raise typer.Exit(130)
    _summary(folder, json_)


def _is_own(data: str) -> bool:
    from octosim.data import is_own

    return is_own(data)


def _data_name(data: str) -> str:
    """Of a run directory: a path's last part, without its ending."""
    return Path(data).resolve().stem if _is_own(data) else data


def _own_data(config: Any) -> Any:
    """The user's own data, read with a progress bar."""
    from octosim import train as trainer

    with progress(f"reading {config.data}") as follow:
        found = trainer.load_data(config, follow)
    for note in found.notes:
        hint(note)
    shape = " x ".join(map(str, found.train_images.shape[1:]))
    kind = f"{found.train_images.dtype} images {shape}" if found.train_images.ndim == 4 else f"vectors of {shape} numbers"
    share = f", {found.test_share:.0%} of each class put aside for testing" if found.test_share else ""
    counts = f"{len(found.train_labels):,} to train and {len(found.test_labels):,} to test{share}"
    classes = plural(len(found.classes), "class", "classes") if found.classes else "no labels"
    hint(f"{found.name}: {classes}, {kind}, {counts}")
    return found


def _accumulator_of(profile: str, asked: str | None) -> str:
    """The accumulator that a profile states; asked: by --accumulator."""
    from octosim import hardware

    device = hardware.load(profile)
    stated = device.numerics.accumulator
    if stated is None:
        raise OctosimError(f"profile {device.name} states no numerics.accumulator; choose one with --accumulator")
    if asked is not None and asked != stated.value:
        raise OctosimError(f"--accumulator {asked} differs from {stated.value} of --profile {device.name}; give one of both")
    return stated.value


def _refuse_changes(folder: Path, asked: Any, stored: Any, stated: Collection[str]) -> None:
    """What is stated beside --resume, settings by name and parameters, must be what the run was started with."""
    from octosim import methods

    pairs = [(key, getattr(asked, key), getattr(stored, key)) for key in vars(asked) if key in stated and key != "parameters"]
    if asked.parameters and all(value == kept for key, value, kept in pairs if key == "method"):
        had, has = (methods.parameters(methods.make(stored.method, c.parameters)) for c in (stored, asked))
        pairs += [(key, has[key], had[key]) for key in asked.parameters]
    for key, value, kept in pairs:
        if value != kept:
            raise OctosimError(f"{folder} was started with {key} = {kept}, not {value}; --resume keeps it")


def _summary(folder: Path, as_json: bool) -> None:
    from octosim import outcome
    from octosim import train as trainer

    last, made = trainer.last_record(folder), trainer.read_manifest(folder)
    result = {
        "out": str(folder), "step": last["step"], "loss": last["loss"], "test_loss": last["test_loss"],
        "test_accuracy": last.get("test_accuracy"), "digest": trainer.read_digest(folder),
        "parameters": made.get("parameters", {}), "memory": made.get("memory", {}),
        "caveats": outcome.caveats(made),
    }  # fmt: skip
    if as_json:
        print_json(result)
        return
    outlooks.show_memory(result["parameters"], result["memory"])
    after = plural(last["step"], "step")
    if result["test_accuracy"] is None:
        say(f"mean squared test error {last['test_loss']:.6g} after {after}")
    else:
        say(f"test accuracy {100 * last['test_accuracy']:.2f} %, test loss {last['test_loss']:.4f} after {after}")
    for line in outlooks.ending(folder):
        say(line)
    for line in result["caveats"]:
        say(f"caveat: {line}")
    say(f"sha256:{result['digest']}")
    say(f"run: {folder}")


def verify(
    run: Annotated[Path, typer.Argument(help="A finished run directory.", **words.of_runs())],
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where your own data of the run are now; they must be the same to the bit.", **words.of("data")),
    ] = None,
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """Replay a run from its manifest and compare every file: exit code 0 if every bit is the same, 1 if not.

    Exit code 2 if a file is missing or cannot be read.

    Example: octosim verify runs/a
    """
    from octosim import train as trainer

    use_threads(threads)
    with progress("replaying", json_) as follow:
        verdict = trainer.verify(run, lambda p: follow(p.step, p.steps), place=data)
    if json_:
        print_json(vars(verdict))
    elif verdict.equal:
        say(f"equal: sha256:{verdict.replayed}")
    else:
        where = "the records agree" if verdict.first_step is None else f"the records part at step {verdict.first_step}"
        replayed = f"replayed {verdict.replayed}; {where}" if verdict.replayed else "not replayed"
        say(f"different: recorded {verdict.recorded}, {replayed}")
        for line in verdict.differences:
            say(f"  {line}")
    raise typer.Exit(0 if verdict.equal else 1)


def diff(
    first: Annotated[Path, typer.Argument(help="A run directory.", **words.of_runs())],
    second: Annotated[Path, typer.Argument(help="Another run directory, of the same network.", **words.of_runs())],
    steps: Annotated[Optional[int], typer.Option(help="Steps to compare; all if not given.")] = None,  # noqa: UP045
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """Replay two runs side by side and name the first step, layer, pass and index where they part.

    Exit code 0 if they do not part, 1 if they do.

    Example: octosim diff runs/vpdpbusd runs/maddubs
    """
    from octosim.evidence import diff as differ

    use_threads(threads)
    if steps is not None and steps < 1:
        raise OctosimError(f"--steps must be at least 1, not {steps}")
    with progress("replaying both", json_) as follow:
        result = differ.diff(first, second, steps, follow)
    if json_:
        print_json(result)
    elif result["equal"]:
        say(f"no difference in {plural(result['compared_steps'], 'step')}")
    else:
        _show_diff(result)
    if not json_:
        for folder, reason in zip(result["runs"], result.get("failures", ()), strict=False):
            if reason:
                say(f"{folder} ends there: {reason}")
    raise typer.Exit(0 if result["equal"] else 1)


def _show_diff(result: dict[str, Any]) -> None:
    where = f"step {result['step']}, {result['layer']}, {result['pass']}: {result['tensor']}"
    if result["values"] is not None:
        where += f" at {result['index']} is {result['values'][0]} and {result['values'][1]}"
    say(f"the runs part at {where}")
    table = Table(title=f"tensors of step {result['step']} that differ")
    for column, rank in (("layer", 0), ("pass", 0), ("tensor", 0), ("dtype", 2)):
        table.add_column(column, rank=rank)
    for column, rank in (("differ", 0), ("largest", 0), ("SQNR, dB", 1)):
        table.add_column(column, justify="right", rank=rank)
    table.add_column("off by: elements", rank=3)
    rows = [row for row in result["tensors"] if row["differ"] != 0]
    shown = [row for row in rows if row["pass"] != "update"] or rows
    for row in shown:
        cells = (row["layer"], row["pass"], row["tensor"], row["dtype"])
        if row["differ"] is None:
            table.add_row(*cells, "other shape", "", "", "")
            continue
        sqnr = "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        classes = ", ".join(f"{n}: {count}" for n, count in (row["off_by"] or {}).items() if n != "0")
        table.add_row(*cells, f"{100 * row['differ'] / row['elements']:.3g} %", f"{float(row['largest']):.3g}", sqnr, classes)
    table.show()
    if len(shown) < len(rows):
        say(f"and {len(rows) - len(shown)} tensors after the update (--json has them)")
