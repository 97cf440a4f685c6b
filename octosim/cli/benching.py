"""The command `octosim bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from octosim.cli import words
from octosim.cli.settings import with_settings
from octosim.cli.tables import Table
from octosim.cli.terminal import (
    AsJson,
    Threads,
    check_output,
    command_line,
    count_text,
    hint,
    is_typed,
    plural,
    print_json,
    progress,
    say,
    time_text,
    use_threads,
)
from octosim.errors import OctosimError
from octosim.settings import spelling


@with_settings(
    "model", "data", "image", "test_share", "skip_unreadable", "limit", "normalize", "method", "parameters", "optimizer",
    "batch_size", "train", "freeze", "train_last", "update", "channels", "batchnorm_statistics",
    "accumulate",
    data="Data set, or your own data, that the measured steps take their images from.",
)  # fmt: skip
def bench(
    ctx: typer.Context,
    settings: dict[str, Any],
    profile: Annotated[
        str, typer.Option(help="Device to predict for: a profile's name or alias, or a .toml file.", **words.of("profiles"))
    ] = "jetson",
    against: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Peers to measure in the same process: torch, jax, qwix; with --kernels torch, onnxruntime, apytypes.",
            **words.of("peers", several=True),
        ),
    ] = None,
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
    from octosim import hardware, methods
    from octosim import train as trainer
    from octosim.files import write_atomic

    check_output("--out", out)
    check_output("--pyperf", pyperf)
    check_output("--plot", plot, ".png", ".svg")
    device = hardware.load(profile)
    use_threads(threads)
    if seconds is not None and not 0 < seconds <= 3600:
        raise OctosimError(f"--seconds must be in (0, 3600], not {seconds}")
    peers = [name for names in against or () for name in names.split(",") if name]
    if kernels:
        for name in (*settings, "profile", "pyperf", "memory"):
            if is_typed(ctx, name):
                raise OctosimError(f"{spelling(name)} is for training steps, not for --kernels")
        _bench_kernels(peers, seconds or 0.15, out, plot, json_)
        return
    if plot:
        raise OctosimError("--plot goes with --kernels")
    config = trainer.Config(**settings, batchnorm=methods.find(settings["method"]).batchnorm)
    with progress("measuring", json_) as follow:
        record = bencher.step_bench(
            config, device, against=peers, seconds=seconds or 3.0, command=command_line(), raw=pyperf, memory=memory,
            progress=lambda share: follow(100 * share, 100),
        )  # fmt: skip
    if out:
        write_atomic(out, (json.dumps(record, indent=2) + "\n").encode())
    if json_:
        print_json(record)
    else:
        _show_bench(record)


def _bench_kernels(against: list[str], seconds: float, out: Path | None, plot: Path | None, as_json: bool) -> None:
    from octosim.bench.kernels import PRODUCTS, kernel_bench, plot_roofline, wrong_peers
    from octosim.files import write_atomic

    with progress("measuring", as_json) as follow:
        record = kernel_bench(
            against, seconds=seconds, command=command_line(), progress=lambda share: follow(100 * share, 100)
        )
    if out:
        write_atomic(out, (json.dumps(record, indent=2) + "\n").encode())
    if plot:
        plot_roofline(record, plot)
    if as_json:
        print_json(record)
        return
    env, limits = record["environment"], record["limits"]
    products = [peer for peer in against if peer in PRODUCTS]
    table = Table(title=f"int8 matrix products: {env['cpu']}, {env['isa']}, {plural(env['threads'], 'thread')}")
    for column in (
        "shape",
        "pass",
        "M x K x N",
        "time",
        "GOPS",
        "of peak",
        "of roof",
        *(f"{peer} / octosim" for peer in products),
    ):
        rank = {"of peak": 2, "of roof": 3, "M x K x N": 1}.get(column, 0)
        table.add_column(column, justify="left" if column in ("shape", "pass") else "right", rank=rank)
    for row in record["rows"]:
        size = f"{row['m']} x {row['k']} x {row['n']}"
        table.add_row(
            row["shape"], row["pass"], size, time_text(row["time_s"]), f"{row['ops_s'] / 1e9:.1f}",
            f"{100 * row['of_peak']:.0f} %", f"{100 * row['of_roof']:.0f} %",
            *(_peer_cell(row, peer) for peer in products),
        )  # fmt: skip
    table.show()
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
        table.show()
    say(f"register peak {limits['peak_ops_s'] / 1e9:.0f} GOPS, STREAM triad {limits['triad_bytes_s'] / 1e9:.1f} GB/s")
    if "ratio" in record:
        worst = min((row for row in record["rows"] if "ratio" in row), key=lambda row: row["ratio"])
        say(
            f"geometric mean against the faster peer: {record['ratio']:.2f} times as fast; "
            f"least {worst['ratio']:.2f} ({worst['shape']} {worst['pass']})"
        )
    for sentence in wrong_peers(record):
        say(sentence)


def _peer_cell(row: dict[str, Any], peer: str) -> str:
    """The ratio of a peer's time to ours; with its operands where its faster product is wrong here, or "wrong"."""
    if peer not in row["against"]:
        return "wrong"
    mark = f" ({row['against'][peer]['operands']})" if any(case["peer"] == peer for case in row["wrong"]) else ""
    return f"{row['against'][peer]['ratio']:.2f}{mark}"


def _show_bench(record: dict[str, Any]) -> None:
    env = record["environment"]
    parts = [(record["method"], record)] + ([("fp32", record["fp32"])] if "fp32" in record else [])
    for name, part in parts:
        title = (
            f"{record['model']}, batch {record['batch_size']}, {name}: predicted on {record['device']['title']}"
            f"{' (hypothetical)' if record['device']['hypothetical'] else ''}, measured here"
        )
        table, ranks = Table(title=title), dict[str, int]()
        for column in ("layer", "pass"):
            table.add_column(column)
        for rank, column in enumerate(("predicted", "measured", "of limit", "MACs", "bound by", "middle half", "bytes")):
            ranks[column] = max(0, rank - 1)
        for column in ("MACs", "bytes", "predicted", "bound by", "measured", "of limit", "middle half"):
            table.add_column(column, justify="right", rank=ranks[column])
        for row in part["layers"]:
            measured = row["measured"]
            middle = f"{time_text(measured['p25_s'])} .. {time_text(measured['p75_s'])}" if measured else ""
            shown = (time_text(measured["median_s"]), _of_limit(row), middle) if measured else ("-", "", "")
            macs = count_text(row["macs"]) if row["macs"] else ""
            predicted = row["predicted"]
            table.add_row(
                row["layer"],
                row["pass"],
                macs,
                count_text(row["bytes"]),
                time_text(predicted["time_s"]),
                predicted["bound"],
                *shown,
            )
        total = part["total"]
        table.add_section()
        table.add_row(
            "step", "", count_text(total["macs"]), count_text(total["bytes"]), time_text(total["predicted_time_s"]), "",
            time_text(total["time_s"]), "", f"{time_text(total['p25_s'])} .. {time_text(total['p75_s'])}",
        )  # fmt: skip
        table.show()
    table = Table(title=f"whole step here: {env['cpu']}, {env['isa']}, {plural(env['threads'], 'thread')}")
    for column in ("what", "median", "against " + record["method"]):
        table.add_column(column, justify="left" if column == "what" else "right")
    own = record["total"]["time_s"]
    table.add_row(f"octosim {record['method']}", time_text(own), "1.00")
    if "fp32" in record:
        table.add_row(
            "octosim fp32",
            time_text(record["fp32"]["total"]["time_s"]),
            f"{record['fp32']['total']['time_s'] / own:.2f}",
        )
    for peer in record.get("against", {}).values():
        table.add_row(peer["what"], time_text(peer["time_s"]), f"{peer['ratio']:.2f}")
    table.show()
    for why in record.get("left_out", ()):
        say(f"left out: {why}")
    for name, part in parts:
        said = ", ".join(f"{what.replace('_', ' ')} {time_text(seconds)}" for what, seconds in part["parts"].items())
        say(f"{name}: {said}")
    if "limit" in record:
        limit = record["limit"]
        say(
            f"limit: the int8 products at the register peak of {2 * limit['peak_mac_s'] / 1e9:.0f} GOPS take "
            f"{time_text(limit['time_s'])}, {100 * limit['share']:.0f} % of the step"
        )  # fmt: skip
    _show_targets(record["layers"], own)
    if "memory" in record:
        _show_memory(record["method"], record["memory"])
    if "fp32" in record:
        ratio = record["fp32"]["total"]["predicted_time_s"] / record["total"]["predicted_time_s"]
        say(f"predicted on {record['device']['title']}: {record['method']} is {ratio:.2f} times as fast as fp32; "
            f"training there is {record['device']['training']}")  # fmt: skip
    figure = record["total"]["is"]["predicted_time_s"]
    say(f"measured: the times of this machine; {figure}: those of {record['device']['name']}")
    if record["device"]["hypothetical"]:
        say(record["device"]["hypothetical"])
    for dtype, row in record["device"]["frameworks"].items():
        say(f"predicted there: {dtype} training by {row['runtime']} {time_text(row['time_s'])} "
            f"({time_text(row['time_low_s'])} to {time_text(row['time_high_s'])})")  # fmt: skip
    if record["device"]["here"]:
        errors = ", ".join(f"{100 * part['total']['error']:+.0f} % ({name})" for name, part in parts)
        say(f"this machine is {record['device']['name']}: the prediction is off by {errors}")
        if not record["device"]["calibrated"]:
            say("octosim profiles calibrate -o this-machine.toml measures its kernels for a nearer one")
    if record["state"]["slowed"]:
        hint(f"slowed down: {', '.join(record['state']['slowed'])}; a cool machine with a good supply is faster")
    if record["state"]["busy"]:
        hint(f"busy: {record['state']['busy']}; the times are those of a machine with neighbours")
    if record["unstable"]:
        hint(f"unstable: the middle half of {', '.join(record['unstable'])} is wide; is another job running? try --seconds 10")


def _of_limit(row: dict[str, Any]) -> str:
    """The least time of a layer's pass on this machine as a share of its measured time."""
    return "" if row["limit_s"] is None else f"{100 * row['limit_s'] / row['measured']['median_s']:.0f} %"


def _show_targets(rows: list[dict[str, Any]], step_s: float) -> None:
    """Says which passes of layers are farthest above their limits."""
    above = {
        f"{row['layer']} {row['pass']}": row["measured"]["median_s"] - row["limit_s"]
        for row in rows
        if row["measured"] and row["limit_s"] is not None
    }
    first = sorted(above, key=lambda name: -above[name])[:3]
    if first:
        told = ", ".join(f"{name} {time_text(above[name])}" for name in first if above[name] > 0)
        say(
            f"farthest above their limits: {told or 'none'}; all passes together {time_text(sum(above.values()))} of "
            f"{time_text(step_s)} (the limit: products at the register peak, or every operand once at the triad's rate)"
        )


def _show_memory(method: str, memory: dict[str, dict[str, Any]]) -> None:
    columns = {"weights": "weights", "optimizer": "optimizer", "kept": "kept for backward", "pool": "blocks of tensors"}
    table = Table("what", title="memory in MB above what the process held before the model was built")
    for rank, title in enumerate(("peak", "of torch's", *columns.values())):
        table.add_column(title, justify="right", rank=rank)
    for name, found in memory.items():
        share = f"{found['peak_bytes'] / memory['torch']['peak_bytes']:.2f}" if "torch" in memory else ""
        own = [f"{found[key] / 1e6:.1f}" if key in found else "" for key in columns]
        table.add_row("PyTorch FP32" if name == "torch" else f"octosim {name}", f"{found['peak_bytes'] / 1e6:.1f}", share, *own)
    table.show()
    if "fp32" in memory and method != "fp32":
        ratio = memory[method]["kept"] / memory["fp32"]["kept"]
        say(f"kept for the backward pass: {ratio:.2f} of fp32's")
