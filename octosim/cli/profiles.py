"""The commands `octosim profiles ...`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from octosim.cli import words
from octosim.cli.tables import Table, with_wide
from octosim.cli.terminal import (
    AsJson,
    check_output,
    command_line,
    hint,
    print_json,
    print_text,
    progress,
    say,
    shell_word,
)
from octosim.errors import OctosimError

profiles_app = typer.Typer(no_args_is_help=True, help="Hardware profiles: list, show, check a file, its schema, calibrate.")


@profiles_app.command("list")
@with_wide
def profiles_list(json_: AsJson = False) -> None:
    """All profiles: peaks in GMAC/s (dense), sustained bandwidth in GB/s.  Example: octosim profiles list"""
    from octosim import hardware
    from octosim.numerics import ACCUMULATORS

    devices = [hardware.load(name) for name in hardware.names()]
    rows: list[dict[str, Any]] = [
        {
            "name": d.name,
            "aliases": list(d.aliases),
            "title": d.title,
            "training": d.training.status,
            "bandwidth_gb_s": d.memory.bandwidth_sustained_gb_s.value if d.memory.bandwidth_sustained_gb_s else None,
            "engines": [
                {"name": e.name, "trains": e.trains, "accumulator": e.accumulator}
                | {f"{dtype}_gmac_s": e.peak_mac_s(dtype) / 1e9 or None for dtype in hardware.DTYPES}
                for e in d.engines
            ],
        }
        for d in devices
    ]
    if json_:
        print_json(rows)
        return
    table = Table(title="peaks in GMAC/s (one MAC is two operations), bandwidth in GB/s; - is none or unknown")
    for name in ("profile", "engine"):
        table.add_column(name)
    for name in ("int8", "float16", "float32", "GB/s"):
        table.add_column(name, justify="right", rank=1 if name == "float16" else 0)
    table.add_column("accumulator", rank=3)
    table.add_column("trains", rank=2)
    for row in rows:
        name, bandwidth = row["name"], _rate(row["bandwidth_gb_s"])
        for e in row["engines"]:
            accumulator = e["accumulator"] if e["accumulator"] in ACCUMULATORS else "-"
            trains = {"hypothetical": "hypothetically"}.get(row["training"], "yes") if e["trains"] else "no"
            rates = [_rate(e[f"{dtype}_gmac_s"]) for dtype in hardware.DTYPES]
            table.add_row(name, e["name"], *rates, bandwidth, accumulator, trains)
            name = bandwidth = ""
    table.show()


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@profiles_app.command("runtimes")
@with_wide
def profiles_runtimes(json_: AsJson = False) -> None:
    """Software whose kernels `octosim cost --runtime` prices.  Example: octosim profiles runtimes"""
    from octosim import hardware

    known = hardware.runtimes()
    if json_:
        print_json([r.model_dump(mode="json", exclude_none=True) for r in known])
        return
    table = Table(title="runtimes")
    ranks = {"runtime": 0, "aliases": 5, "engines": 0, "fuses": 3, "Winograd": 2, "int8 codes": 1, "trains": 0}
    for name, rank in ranks.items():
        table.add_column(name, rank=rank)
    for r in known:
        trains = "yes" if r.backward or r.name == "octosim" else "no"
        cells = ", ".join(r.aliases), ", ".join(r.engines), ", ".join(r.fuses), "yes" if r.winograd else "no", r.codes, trains
        table.add_row(r.name, *cells)
    table.show()


@profiles_app.command("schema")
def profiles_schema() -> None:
    """JSON Schema of a profile file.  Example: octosim profiles schema > profile.schema.json"""
    from octosim import hardware

    print_json(hardware.json_schema())


@profiles_app.command("show")
def profiles_show(
    name: Annotated[str, typer.Argument(help="A profile's name or alias, or a .toml file.", **words.of("profiles"))],
    toml: Annotated[bool, typer.Option("--toml", help="Print the profile's file, to begin one of your own.")] = False,
) -> None:
    """One profile as JSON, every number with its source.  Example: octosim profiles show jetson"""
    from octosim import hardware

    if toml:
        typer.echo(hardware.text_of(name), nl=False)
        return
    print_json(hardware.load(name).model_dump(mode="json", exclude_none=True))


@profiles_app.command("check")
def profiles_check(file: Annotated[Path, typer.Argument(help="A .toml file.")]) -> None:
    """Validate a profile, or a runtime's file.  Example: octosim profiles check my-board.toml"""
    from octosim import hardware

    if hardware.is_runtime(file):
        say(f"{file}: a good file of the runtime {hardware.load_runtime(file).title}")
    else:
        say(f"{file}: a good profile of {hardware.check(file).title}")


@profiles_app.command("validate")
@with_wide
def profiles_validate(
    from_: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", help="CSV of measured times of networks, as for calibrate, or of training steps (train_ms)."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="With --from, the device that was measured.", **words.of("profiles"))
    ] = None,  # noqa: UP045
    layers: Annotated[Optional[Path], typer.Option(help="CSV of the networks' layers.")] = None,  # noqa: UP045
    summary: Annotated[Optional[Path], typer.Option(help="CSV with the networks' activation_elements_sum.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="Take only rows whose device begins so.")] = "",
    runtime: Annotated[Optional[str], typer.Option(help="The software that was measured.", **words.of("runtimes"))] = None,  # noqa: UP045
    host: Annotated[
        bool, typer.Option("--host", help="Measure each method's training steps here, on one thread, against their prices.")
    ] = False,
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="With --host, a method to measure; may be given several times.  All if not given.",
                     **words.of("methods")),  # fmt: skip
    ] = None,
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="With --host, a model to measure; may be given several times.  resnet20 and mobilenet if not given.",
                     **words.of("models")),  # fmt: skip
    ] = None,
    batch_size: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, max=4096, help="With --host, images of a step; may be given several times.  32 if not given."),
    ] = None,
    threads: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, max=256, help="With --host, threads to measure with; may be given several times.  1 if not given."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--out", help="Also a page of Markdown (.md) with the table, its figures and the command."),
    ] = None,
    pool: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of ncnn_benchmark.csv.gz, ncnn_network_layers.csv and ncnn_network_summary.csv: how far the "
                          "CPU factors are off without a chip, a core, a network."),  # fmt: skip
    ] = None,
    factors: Annotated[Optional[Path], typer.Option(help="With --pool, write the factors fitted to all of it (TOML).")] = None,  # noqa: UP045
    json_: AsJson = False,
) -> None:
    """How far predictions are off: each sourced efficiency against its source, or a table of measurements against the model.

    Example: octosim profiles validate

    Example: octosim profiles validate --from measured.csv --layers layers.csv --profile pi4 --runtime tflite

    Rows of --from may name their own profile, mode, runtime and batch, in columns of these names.

    With --pool: the fits behind the shipped factors again, each with something left out (minutes).

    Example: octosim profiles validate --pool measured -o validation.md

    With --host: training steps on images of 32 x 32 on this machine, which is calibrated first (minutes) unless --profile names
    a calibrated profile of it; and the call whose price is off the most.

    Example: octosim profiles validate --host --method octo --method niti

    Example: octosim profiles validate --host --profile this-machine.toml --model lenet5 --threads 1 --threads 2
    """
    from octosim.cost import validate
    from octosim.textfile import csv_columns

    check_output("--out", out, ".md")
    if factors and not pool:
        raise OctosimError("--factors goes with --pool")
    if pool:
        if from_ or profile or layers or summary or device or runtime or host or method or model or batch_size or threads:
            raise OctosimError("--pool goes with --out and --factors alone")
        _validate_pool(pool, out, factors, json_)
        return
    if (method or model or batch_size or threads) and not host:
        raise OctosimError("--method, --model, --batch-size and --threads go with --host")
    if host:
        if from_ or layers or summary or device or runtime:
            raise OctosimError("--host measures here: --from, --layers, --summary, --device and --runtime do not go with it")
        rows = _validate_host(profile, json_, names=method, networks=model, batches=batch_size, threads=threads)
    elif from_ is None:
        if profile or layers or summary or device or runtime:
            raise OctosimError("--profile, --layers, --summary, --device and --runtime go with --from")
        rows = validate.efficiencies()
    else:
        columns = csv_columns(from_)
        if profile is None and ("train_ms" in columns or "profile" not in columns):
            raise OctosimError("--from needs --profile, the device that was measured")
        if "train_ms" in columns:
            _refuse_summary(summary)
            rows = validate.training(from_, layers, profile or "", runtime or "mnn", device)
        else:
            rows = validate.inference(from_, profile, layers, summary, device, runtime)
    heads, cells, lines = *_cells(rows), validate.said(rows)
    if out:
        from octosim.files import write_atomic

        write_atomic(out, _page(heads, cells, lines, profile or ("host" if host else None)).encode())
    if json_:
        print_json(rows)
        return
    table = Table(title="predicted against measured")
    for name, value in heads.items():
        table.add_column(name, justify="right" if value else "left", rank=RANKS.get(name, 0))
    for row in cells:
        table.add_row(*row)
    table.show()
    for line in lines:
        say(line)


RANKS = {
    "engine": 3, "type": 1, "precision": 1, "threads": 2, "roofline error, %": 2, "inside": 4, "worst call": 1, "worst s": 1,
    "speed": 2, "unpriced": 2, "low": 3, "high": 3,
}  # fmt: skip
"""Columns of `profiles validate` that a narrow terminal can do without."""


def _cells(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, bool], list[list[str]]]:
    """Heads of the columns, with whether numbers stand below, and the cells."""
    shown = [{name: value for name, value in row.items() if name != "note"} for row in rows]
    heads = {
        name.replace("_", " ") + ", %" * ("error" in name): isinstance(value, int | float) and not isinstance(value, bool)
        for name, value in shown[0].items()
    }
    return heads, [
        [f"{100 * v:+.2f}" if "error" in name else f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in row.items()]
        for row in shown
    ]


def _page(heads: dict[str, bool], cells: Sequence[Sequence[str]], lines: Sequence[str], profile: str | None) -> str:
    """A table as a page of Markdown, with the command that made it."""
    from octosim import hardware

    device = hardware.load(profile) if profile else None
    source = f"\n{device.rates.source if device.rates else device.title}.\n" if device else ""
    rule = ["---:" if right else "---" for right in heads.values()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (list(heads), rule, *cells))
    figures = "\n".join(f"**{line[0].upper()}{line[1:]}.**" for line in lines)
    return f"# Predicted against measured\n\n```\n{command_line()}\n```\n{source}\n{figures}\n\n{table}\n"


def _validate_pool(folder: Path, page: Path | None, factors: Path | None, as_json: bool) -> None:
    from octosim.cost import pool, pool_page
    from octosim.files import write_atomic

    check_output("--factors", factors)
    measured = pool.Pool(pool.campaigns(folder))
    with progress("fitting", as_json) as follow:
        found = pool.evaluate(measured, progress=lambda share: follow(100 * share, 100))
    command = "octosim profiles validate --pool MEASURED"
    if factors:
        write_atomic(factors, pool.efficiency_file(measured, found, f"{command} --factors {factors.name}").encode())
    if page:
        write_atomic(page, pool_page.page(measured.campaigns, found, folder, f"{command} -o {page.name}").encode())
    if as_json:
        print_json(found)
    elif not page:
        print_text("\n".join(pool_page.rows_of(found["campaigns"])))


def _validate_host(profile: str | None, as_json: bool, **given: Any) -> list[dict[str, Any]]:
    from octosim import hardware
    from octosim.bench import validation

    device = hardware.load(profile) if profile else None
    with progress("measuring", as_json) as follow:
        wanted = {name: values for name, values in given.items() if values}
        return validation.host(device, **wanted, progress=lambda share: follow(100 * share, 100))


@profiles_app.command("calibrate")
def profiles_calibrate(
    from_: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", help="CSV of measured times of whole networks (.csv or .csv.gz)."),
    ] = None,
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --from, the device: a profile's name or alias, or a .toml file.", **words.of("profiles")),
    ] = None,
    layers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV of the networks' layers, where the measurements name networks and not .onnx files."),
    ] = None,
    summary: Annotated[Optional[Path], typer.Option(help="CSV with the networks' activation_elements_sum.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="Take only rows whose device begins so.")] = "",
    runtime: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="With --from, the software that was measured; ncnn if not given, mnn for training steps.",
            **words.of("runtimes"),
        ),  # fmt: skip
    ] = None,
    out: Annotated[Optional[Path], typer.Option("-o", "--out", help="A copy of the profile with the factors.")] = None,  # noqa: UP045
    json_: AsJson = False,
) -> None:
    """Measure octosim's kernels on this machine (about a minute) and print, or write, its profile.

    Example: octosim profiles calibrate -o this-machine.toml && octosim bench --profile this-machine.toml

    With --from: fit another CPU's efficiency factors to measured times of networks.  The CSV has the columns network,
    precision (int8, fp16 or fp32), threads, value and, if there, unit (ms) and device.

    Example: octosim profiles calibrate --from measured.csv --profile pi4 --runtime tflite -o my-pi4.toml

    A CSV with the columns network, batch and train_ms holds training steps: the runtime's backward pass is fitted, and written
    as a runtime file for `octosim cost --runtime`.

    Example: octosim profiles calibrate --from steps.csv --layers layers.csv --profile snapdragon-855 --runtime mnn -o mnn.toml
    """
    check_output("--out", out, ".toml")
    if from_ is None:
        if profile or layers or summary or device or runtime:
            raise OctosimError(
                "--profile, --layers, --summary, --device and --runtime go with --from; else this machine is measured"
            )
        _calibrate_host(out, json_)
        return
    if profile is None:
        raise OctosimError("--from needs --profile, the device that was measured")
    import tomli_w

    from octosim import hardware
    from octosim.cost import fit
    from octosim.hardware import efficiency
    from octosim.textfile import csv_columns

    if "train_ms" in csv_columns(from_):
        _refuse_summary(summary)
        _calibrate_training(from_, layers, profile, runtime or "mnn", device, out, json_)
        return
    rows = fit.measurements(from_, device)
    if not device:
        fit.one_device(row.row for row in rows)
    found = fit.calibrate(
        hardware.load(profile), rows, fit.networks(layers, summary) if layers else {}, from_.name,
        hardware.load_runtime(runtime) if runtime else None,
    )  # fmt: skip
    tables = {path: efficiency.table(f) for path, f in found.factors.items()}
    text = tomli_w.dumps({"calibration": tables})
    if out:
        from octosim.files import write_atomic

        whole = _with_calibration(hardware.text_of(profile), tables)
        hardware.parse(whole, str(out))
        write_atomic(out, whole.encode())
    if json_:
        print_json({path: f.model_dump() | {"report": found.report[path]} for path, f in found.factors.items()})
    elif not out:
        print_text(text)
    for path, r in found.report.items():
        hint(
            f"{path}: {r['measurements']} measurements; median error {100 * r['uncalibrated']:.1f} % before, "
            f"{100 * r['fitted']:.1f} % fitted, {100 * r['left_out']:.1f} % on networks left out of the fit, "
            f"{100 * r['one_scale']:.1f} % there by one scale"
        )
        if r["worse"]:
            hint(f"{path}: on networks left out of the fit these factors predict worse than those before; keep the profile "
                 "as it is, unless the measurements are of your board")  # fmt: skip


def _with_calibration(text: str, tables: dict[str, Any]) -> str:
    """A profile's text with these factors in place of those of the same arithmetics; it keeps the others, and its comments."""
    import tomli_w

    from octosim.textfile import parse_toml

    data = parse_toml(text, "profile")
    data["calibration"] = data.get("calibration", {}) | tables
    rest = re.sub(r"(?ms)^[ \t]*\[[ \t]*calibration\b.*?(?=^[ \t]*\[|\Z)", "", text).rstrip()
    found = f"{rest}\n\n{tomli_w.dumps({'calibration': data['calibration']})}"
    try:
        if parse_toml(found, "profile") == data:
            return found
    except OctosimError:  # its factors stand in another form, as keys with dots
        pass
    return tomli_w.dumps(data)


def _refuse_summary(summary: Path | None) -> None:
    if summary:
        raise OctosimError("--summary goes with inferences: training steps (train_ms) do not read it")


def _calibrate_training(
    from_: Path, layers: Path | None, profile: str, runtime: str, only: str, out: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Fits a framework's backward pass to training steps; the spread is that of networks left out, two at a time.

    only: what the rows' device begins with.
    """
    import numpy as np
    import tomli_w

    from octosim import hardware
    from octosim.cost import fit_training
    from octosim.files import write_atomic

    device, software = hardware.load(profile), hardware.load_runtime(runtime)
    measured = fit_training.steps(from_, layers, device, software, only)
    rows = fit_training.leave_out(measured, device, software)
    values = fit_training.fit(measured, device, software)
    count, spread = len({s.network for s in measured}), fit_training.spread_of(rows)
    devices = dict.fromkeys((s.device or device).name for s in measured)
    text = f"{from_.name}: {len(measured)} steps of {count} networks"
    fitted = fit_training.with_backward(software, values, spread, text, devices)
    error = float(np.median(np.abs(np.expm1([row["error"] for row in rows]))))
    text = tomli_w.dumps(fitted.model_dump(mode="json", exclude_none=True))
    if out:
        write_atomic(out, text.encode())
    if as_json:
        print_json({"backward": values, "spread": spread, "left_out": error, "steps": len(measured), "networks": count})
    elif not out:
        print_text(text)
    held = "two networks" if fit_training.held_out(count) == 2 else "one network"
    hint(f"{runtime}: median error {100 * error:.0f} % on steps of {held} left out of the fit, all splits of {count}")


def _calibrate_host(out: Path | None, as_json: bool) -> None:
    from octosim.bench import calibrate
    from octosim.files import write_atomic

    with progress("measuring", as_json) as follow:
        data = calibrate.calibrate(command=command_line(), progress=lambda share: follow(100 * share, 100))
    text = calibrate.toml(data)
    device = calibrate.load_check(text)
    if out:
        write_atomic(out, text.encode())
    elif not as_json:
        print_text(text)
    if as_json:
        print_json(device.model_dump(mode="json", exclude_none=True, by_alias=True))
    elif out and device.rates:
        hint(f"{out}: {device.title}, products within {100 * device.rates.spread:.0f} % (one standard deviation); "
             f"try octosim bench --profile {shell_word(out)}")  # fmt: skip
