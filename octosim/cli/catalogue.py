"""What there is: models, methods, data sets, runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from octosim.cli import words
from octosim.cli.tables import Table, with_wide
from octosim.cli.terminal import AsJson, err_console, hint, plural, print_json, print_text, progress, say

methods_app = typer.Typer(invoke_without_command=True, help="Training methods: what they are, their parameters.")
models_app = typer.Typer(no_args_is_help=True, help="Networks to train: list.")
runs_app = typer.Typer(no_args_is_help=True, help="Run directories: list.")
MOST_CLASSES = 30  # rows of a table
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch; check your own.")


@models_app.command("list")
@with_wide
def models_list(json_: AsJson = False) -> None:
    """Networks that --model names, with their size.  Example: octosim models list"""
    from octosim import graph, methods
    from octosim.engine import plan

    rows = []
    for name in graph.model_names():
        shape, classes = graph.usual(name)
        network = plan.dry(graph.layers(name, classes, in_shape=shape), shape, methods.make("fp32", {}))
        parameters = sum(values.size for node in network.nodes for values in node.params.values())
        weighted = sum(node.layer.weighted for node in network.nodes)
        macs = sum(op.macs for op in plan.trace(network, 1, training=False))
        rows.append({"name": name, "weighted_layers": weighted, "parameters": parameters, "macs": macs, "input": list(shape)})
    if json_:
        print_json(rows)
        return
    table = Table("model")
    for head, rank in (("weighted layers", 1), ("parameters", 0), ("MACs, inference", 0), ("input", 0)):
        table.add_column(head, justify="left" if head == "input" else "right", rank=rank)
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("weighted_layers", "parameters", "macs"))
        table.add_row(row["name"], *counts, " x ".join(map(str, row["input"])))
    table.show()
    say("sizes are for this input and 10 classes; train and cost take those of the data, or of --image and --classes")
    say("your own: --model FILE.toml, FILE.onnx with octosim import; see docs/models.md")


@runs_app.command("list")
@with_wide
def runs_list(
    folder: Annotated[Path, typer.Argument(help="Where to look, up to three folders down.")] = Path(),
    json_: AsJson = False,
) -> None:
    """Run directories and how far they are.  Example: octosim runs list studies/rounding"""
    from octosim.cli import watching
    from octosim.errors import OctosimError
    from octosim.watch.runs import Watch

    if not folder.is_dir():
        raise OctosimError(f"{folder} is no folder")
    watched: dict[Path, Watch] = {}  # by folder: a study says why its runs are broken
    runs = []
    for path in map(Path, words.run_folders(f"{folder}/")):
        if path.parent not in watched:
            watched[path.parent] = Watch(path.parent)
        if run := watched[path.parent].runs.get(path.name):
            run.name = str(path.relative_to(folder))
            runs.append(run)
    if json_:
        print_json([run.snapshot() | {"losses": len(run.losses), "accuracies": len(run.accuracies)} for run in runs])
    elif runs:
        watching.table_of(plural(len(runs), "run"), runs).show()
    else:
        say(f"no run directory in {folder}")


@methods_app.callback()
@with_wide
def methods_list(ctx: typer.Context, json_: AsJson = False) -> None:
    """Training methods: their papers, and the type of each tensor in a training step.

    Example: octosim methods

    Example: octosim methods show octo
    """
    if ctx.invoked_subcommand is None:
        _list_methods(json_)


def _list_methods(as_json: bool) -> None:
    from octosim import methods

    names, broken = methods.available()
    for sentence in broken.values():
        hint(sentence)
    rows = [methods.about(name) for name in names]
    if as_json:
        print_json([{key: value for key, value in row.items() if key not in ("doc", "parameters")} for row in rows])
        return
    table = Table("method", "what it does", "paper")
    for row in rows:
        table.add_row(row["name"], row["summary"], row["paper"])
    table.show()
    roles = list(rows[0]["bits"])
    table = Table("method", title="types; names of parameters are their bits")
    for rank, role in enumerate(roles):
        table.add_column(role, rank=rank)
    for row in rows:
        table.add_row(row["name"], *(row["bits"][role] for role in roles))
    table.show()


@methods_app.command("list", hidden=True)
@with_wide
def methods_list_too(json_: AsJson = False) -> None:
    """The same as `octosim methods`."""
    _list_methods(json_)


@methods_app.command("show")
@with_wide
def methods_show(name: Annotated[str, typer.Argument(help="A method.", **words.of("methods"))], json_: AsJson = False) -> None:
    """One method: its source, how it differs from the paper, its parameters.  Example: octosim methods show octo"""
    from octosim import methods
    from octosim.methods import recipes

    about = methods.about(name)
    known = name in recipes.names()
    recipe = {"source": recipes.find(name).source, "wants": recipes.find(name).wants} if known else {}
    if json_:
        print_json(about | ({"recipe": recipe | {"settings": recipes.settings_of(name)}} if known else {}))
        return
    print_text(f"{about['name']}: {about['summary']} ({about['paper']})\n\n{about['doc']}\n")
    for role, kind in about["bits"].items():
        say(f"{role + ':':<15}{kind}")
    table = Table("parameter", "default", "values", "meaning")
    for key, parameter in about["parameters"].items():
        table.add_row(key, str(parameter["default"]), parameter["values"], parameter["doc"])
    if about["parameters"]:
        table.show()
    if known:
        say(f"wants: {recipe['wants']}")
        say(f"recipe: {recipe['source']}")
        print_text(f"    octosim train --recipe {name}\n  is\n    {recipes.command(name)}")


@data_app.command("list")
@with_wide
def data_list(json_: AsJson = False) -> None:
    """Data sets and where they are.  Example: octosim data list"""
    from octosim import data

    rows = data.available()
    if json_:
        print_json(rows)
        return
    table = Table()
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int) else "left", rank=0 if key in ("name", "shape") else 1)
    for row in rows:
        table.add_row(*(" x ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for v in row.values()))
    table.show()
    say("your own: --data FOLDER (images, a folder a class), FILE.npz, FILE.csv or idx files; octosim data check PATH")


@data_app.command("check")
@with_wide
def data_check(
    path: Annotated[
        str,
        typer.Argument(help="A folder of images, a .npz or .csv file, idx files; or a data set's name.", **words.of("data")),
    ],
    image: Annotated[Optional[str], typer.Option(help="Bring images to HEIGHTxWIDTHxCHANNELS, as 96x96x3.")] = None,  # noqa: UP045
    test_share: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of each class to test with, of data without a test part; 0.2 if not given."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out image files that cannot be decoded, as train does with it.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """What your data hold: classes, sizes, broken files, duplicates, range and digest.

    Exit code 0 if a network can be trained on them, warnings or not; 2 if not.

    Example: octosim data check photos/ --image 96x96x3
    """
    from octosim import data

    with progress(f"reading {path}", json_) as follow:
        found = data.check(path, image, test_share, follow, skip_unreadable)
    if json_:
        print_json(found)
    else:
        _show_check(found)
    raise typer.Exit(2 if found["problems"] else 0)


def _show_check(found: dict[str, Any]) -> None:
    if "classes" in found:
        table = Table("class", title=f"{found['data']}: {plural(len(found['classes']), 'class', 'classes')}")
        for part in ("train", "test"):
            table.add_column(part, justify="right")
        for row in found["classes"][:MOST_CLASSES]:
            table.add_row(row["name"], *("-" if row[part] is None else str(row[part]) for part in ("train", "test")))
        table.show()
        if len(found["classes"]) > MOST_CLASSES:
            say(f"and {len(found['classes']) - MOST_CLASSES} classes (--json has them)")
    if found.get("sizes"):
        sizes = list(found["sizes"].items())
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        say("sizes: " + ", ".join(f"{size} ({count})" for size, count in sizes[:3]) + more)
    if "sha256" in found:
        share = f", {found['test_share']:.0%} of each class put aside for testing" if found["test_share"] else ""
        say(f"{found['train']:,} to train, {found['test']:,} to test{share}")
        shape = " x ".join(map(str, found["shape"]))
        looked = f" (looked at in {found['image']})" if found.get("image") else ""
        mean, deviation = (", ".join(f"{value:.4g}" for value in found[name]) for name in ("mean", "deviation"))
        low, high = found["range"]
        say(f"{found['dtype']}, {shape}{looked}; values {low:g} .. {high:g}, mean {mean}, deviation {deviation}")
        say(f"sha256:{found['sha256']}")
    for kind in ("warnings", "problems"):
        for line in found[kind]:
            hint(f"{kind[:-1]}: {line}")
    if found["problems"]:
        hint(f"{found['data']}: no network can be trained on it before that is mended")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist ...", **words.of("data"))],
    force: Annotated[bool, typer.Option("--force", help="Also where OCTOSIM_DATA has the set already.")] = False,
) -> None:
    """Download a data set, by checksum, into the cache.  Example: octosim data fetch mnist"""
    from octosim import data

    given = None if force else data.find_given(name)
    if given is not None:
        hint(f"{name} is in OCTOSIM_DATA already; --force downloads it into the cache")
        say(given)
        return
    say(data.fetch(name, progress=err_console.is_terminal))
