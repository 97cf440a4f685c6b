"""Pages of the documentation site that are made of the code, of reports/ and of notebooks: a hook of mkdocs (mkdocs.yml).

None of them is kept in the repository.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY_FILES = ("csv", "toml", "json", "py", "svg", "png")


def text(value: object) -> str:
    """For a cell of a table, or a line of text: nothing in it is markup."""
    return re.sub(r"([|*_\[\]])", r"\\\1", html.escape(str(value), quote=False)).replace("\n", " ")


def code(value: object) -> str:
    """In the type of code, in a table too."""
    return f"<code>{html.escape(str(value), quote=False).replace('|', '&#124;')}</code>" if str(value) else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# ---- the command line --------------------------------------------------


def commands() -> list[tuple[str, Any]]:
    """Every command with its full name, groups before what they hold."""
    import typer

    from octosim.cli.app import app

    def walk(name: str, command: Any) -> Iterable[tuple[str, Any]]:
        yield name, command
        for child, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {child}", inner)

    return list(walk("octosim", typer.main.get_command(app)))


def _help(words: str) -> str:
    """A help text: its examples as code."""
    parts = []
    for paragraph in inspect.cleandoc(words).split("\n\n"):
        before, *examples = re.split(r"\bExample:\s*", " ".join(paragraph.split()))
        parts += [text(before.strip())] if before.strip() else []
        parts += [f"```\n{example.strip()}\n```" for example in examples]
    return "\n\n".join(parts)


def _type(command: Any, parameter: Any) -> str:
    import typer

    if getattr(parameter, "is_flag", False):
        return ""
    if not hasattr(parameter, "display_type"):  # a typer that has click's types
        return str(parameter.type.name)
    return str(parameter.display_type(typer.Context(command))).strip("<>")


def cli_page() -> str:
    parts = ["# Command line\n\nEach command, as `--help` tells it. Bad input ends with one sentence and exit code 2.\n"]
    for name, command in commands():
        if name == "octosim":
            continue
        parts.append(f"## {name}\n\n{_help(command.help or '')}\n")
        panels: dict[str, list[list[str]]] = {}
        for each in command.params:
            if each.name == "help" or getattr(each, "hidden", False):
                continue
            argument = each.param_type_name == "argument"
            spellings = (each.name or "").upper() if argument else ", ".join((*each.opts, *each.secondary_opts))
            default = each.default if each.default not in (None, (), [], "", False) and not callable(each.default) else ""
            default = "required" if each.required else str(default)
            panel = getattr(each, "rich_help_panel", None) or ("Arguments" if argument else "Options")
            kind = "" if argument else _type(command, each)
            panels.setdefault(panel, []).append([code(spellings), text(kind), text(default), text(each.help or "")])
        for panel, rows in panels.items():
            parts.append(f"**{panel}**\n\n" + table(["", "Type", "Default", "Meaning"], rows))
    return "\n".join(parts)


# ---- Python --------------------------------------------------

API = {
    "octosim": "Runs, costs and studies",
    "octosim.torch": "PyTorch",
    "octosim.core": "Products and operators of the core",
    "octosim.numerics": "Accumulators, roundings, requantizations",
    "octosim.graph": "Networks as data",
    "octosim.testing": "For methods of your own",
}


def _docstring(thing: Any) -> str:
    """A docstring as Markdown: doctests as code, lines "name: meaning" as a list."""
    parts, body = [], inspect.cleandoc(thing.__doc__ or "")
    for paragraph in re.split(r"\n\s*\n", body):
        lines = paragraph.splitlines()
        if lines and lines[0].lstrip().startswith(">>>"):
            parts.append("```python\n" + inspect.cleandoc("\n" + paragraph) + "\n```")
        elif re.match(r"[a-z_]\w*(, \w+)*: ", paragraph):
            items = re.split(r"(?:(?<=\n)|(?<=\.  )|^)(?=[a-z_]\w*(?:, \w+)*: )", paragraph)
            parts.append("\n".join(
                "- " + re.sub(r"^(.*?): ", lambda m: code(m[1]) + ": ", " ".join(html.escape(item, quote=False).split()))
                for item in items if item.strip()
            ))  # fmt: skip
        else:
            parts.append(html.escape(paragraph, quote=False).replace("*", r"\*"))
    return "\n\n".join(parts)


def _signature(name: str, thing: Any) -> str:
    try:
        words = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return name
    words = re.sub(r"'([^']*)'", lambda m: m[1] if re.search(r"[\[.|\]]|^[A-Z]|^(str|int|float|bool|None)$", m[1]) else m[0],
                   words)
    words = re.sub(r" at 0x[0-9a-f]+", "", words).replace("self, ", "").replace("(self)", "()")
    if len(name + words) > 100:
        words = re.sub(r", (?=\*?\*?\w+(: | = |,|=|\)))", ",\n    ", words.replace("(", "(\n    ", 1))
    return name + words


def _members(module: Any) -> list[tuple[str, Any]]:
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "").startswith(module.__name__)
    ]  # fmt: skip
    return [(name, getattr(module, name)) for name in names]


def api_page() -> str:
    import importlib

    from octosim import api

    parts = ["# Python\n\nWhat each name takes and returns; [octosim from Python](../python.md) shows them together.\n"]
    for module_name, title in API.items():
        module = importlib.import_module(module_name)
        parts.append(f"## {module_name}: {title.lower() if title != 'PyTorch' else title}\n\n{_docstring(module)}\n")
        for name, value in _members(module):
            if module_name == "octosim" and inspect.ismodule(value):
                value = getattr(api, name)
            if not callable(value) or not (value.__doc__ or "").strip() or typing.get_origin(value):
                continue
            parts.append(f"### {module_name}.{name}\n\n```python\n{_signature(name, value)}\n```\n\n{_docstring(value)}\n")
            if inspect.isclass(value) and value.__module__.startswith("octosim"):
                parts += _class_members(value)
    return "\n".join(parts)


def _class_members(cls: Any) -> Iterable[str]:
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else value
        if name.startswith("_") or not inspect.isfunction(inspect.unwrap(function)) or not function.__doc__:
            continue
        shown = name if isinstance(value, property) else _signature(name, function)
        yield f"#### {cls.__name__}.{name}\n\n```python\n{shown}\n```\n\n{_docstring(function)}\n"


# ---- settings, profiles --------------------------------------------------


def settings_page() -> str:
    from octosim.settings import Settings, kinds, spelling

    parts = [
        "# Settings of a run\n\nOne definition makes the options of `octosim train`, the keys of a study's `[base]` and "
        "`[[grid]]` and the fields of `octosim.Config`.\n"
    ]
    panels: dict[str, list[list[str]]] = {}
    for field in dataclasses.fields(Settings):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        kind = kinds()[field.name]
        words = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        default = "" if default is None or default in ([], {}) else str(default)
        panels.setdefault(field.metadata["panel"], []).append(
            [code(field.name), code(spelling(field.name)), code(words), code(default), text(field.metadata["help"])]
        )
    for panel, rows in panels.items():
        parts.append(f"## {panel}\n\n" + table(["Field, key", "Option", "Type", "Default", "Meaning"], rows))
    return "\n".join(parts)


def _schema_type(entry: dict[str, Any]) -> str:
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in entry:
        return " or ".join(_schema_type(each) for each in entry["anyOf"] if each.get("type") != "null")
    if "enum" in entry or "const" in entry:
        return ", ".join(code(each) for each in entry.get("enum", [entry.get("const")]))
    if entry.get("type") == "array":
        return f"list of {_schema_type(entry.get('items', {}))}"
    if entry.get("type") == "object":
        return f"table of {_schema_type(entry.get('additionalProperties') or {})}"
    return str(entry.get("type", ""))


def profile_page() -> str:
    from octosim.hardware.device import Device

    schema = Device.model_json_schema()
    parts = [
        "# Hardware profiles\n\nA device is one TOML file. Every number is a table `{ value, kind, source }`; the unit is the "
        "end of its key. What nobody knows is left out. `octosim profiles check FILE` checks a file, `octosim profiles schema` "
        "prints this as JSON Schema.\n"
    ]
    for name, entry in {"Device": schema, **schema["$defs"]}.items():
        words = _docstring(type("_", (), {"__doc__": entry.get("description", "")}))
        parts.append(f"## {name}\n\n{words}\n")
        if "properties" not in entry:
            parts.append(_schema_type(entry) + "\n")
            continue
        required = entry.get("required", [])
        rows = [
            [code(key), _schema_type(each), "required" if key in required else "", text(each.get("description", ""))]
            for key, each in entry["properties"].items()
        ]
        heads = ["Key", "Value", "", "Meaning"] if any(row[-1] for row in rows) else ["Key", "Value", ""]
        parts.append(table(heads, [row[: len(heads)] for row in rows]))
    return "\n".join(parts)


# ---- status --------------------------------------------------

YES, NO = "●", "–"
FORMS = {"onnx": "ONNX", "c": "C", "safetensors": "safetensors", "step": "Training step in C"}


def trains(method: str, network: Any) -> bool:
    """Whether a method takes a network as it is, without --float-layers."""
    from kit.layer_table import SHAPE

    from octosim import methods
    from octosim.engine import plan
    from octosim.errors import OctosimError

    made = methods.make(method, {})
    try:
        plan.dry(network, SHAPE, made).check(4)
    except OctosimError:
        return False
    return True


def exported(method: str, network: Any) -> set[str]:
    """The forms that a trained network can be written in."""
    from kit.layer_table import SHAPE
    from kit.small import run_of

    from octosim.errors import OctosimError
    from octosim.evidence import export, export_c, export_onnx, step_record

    forms: dict[str, Callable[[Any], Any]] = {
        "onnx": lambda run: export_onnx.onnx_model(run, "qoperator"), "c": export_c.program, "safetensors": export.tensors,
    }  # fmt: skip
    found = set[str]()
    try:
        step_record.record(run_of(method, network, SHAPE, 0))
        found.add("step")
    except OctosimError:
        pass
    try:
        run = run_of(method, network, SHAPE)
    except OctosimError:
        return found
    for name, write in forms.items():
        try:
            write(run)
            found.add(name)
        except OctosimError:
            pass
    return found


def status_page() -> str:
    from kit.layer_table import ROWS

    from octosim import core
    from octosim.engine.layers import LAYERS
    from octosim.methods import METHODS
    from octosim.numerics import ACCUMULATORS

    with_kind = {cls.kind: [row for row in ROWS.values() if any(type(e.layer) is cls for e in row.layers)] for cls in LAYERS}
    mark = {True: YES, False: NO}
    parts = [
        "# Status\n\nWhat works with what, asked of the code when this page was made, with the networks that the tests train "
        "(`tests/kit/layer_table.py`).\n",
        "## Methods and layers\n\nA layer that a method does not cover can run in float32 beside it: `--float-layers`.\n",
        table(
            ["Layer", *(f"<span class=turned>{name}</span>" for name in METHODS)],
            [[code(kind), *(mark[any(trains(m, row) for row in rows)] for m in METHODS)] for kind, rows in with_kind.items()],
        ),
        "## Methods and registers\n\nA method with int32 sums trains in every register of the table below; "
        "its products are counted there.\n",
    ]
    rows = []
    for name, cls in METHODS.items():
        narrow = cls.bits["accumulator"] == "int32" and "accumulator" not in cls.unused
        forms = exported(name, ROWS["relu"])
        torch = cls.values == "float32" and not cls.layers and "optimizer" not in cls.unused
        rows.append([code(name), mark[narrow], mark[torch], *(mark[form in forms] for form in FORMS)])
    parts.append(table(["Method", "Any register", "octosim.torch", *FORMS.values()], rows))
    rows = [
        [code(name), text(a.bits), text(a.overflow), text(a.group), text(a.pair_bits or "")] for name, a in ACCUMULATORS.items()
    ]
    parts += ["## Registers\n", table(["Name", "Bits", "Overflow", "Products summed exactly", "Bits of a pair"], rows)]
    parts.append(
        "## Instruction sets\n\nEvery method, layer and register computes the same bits with each of them: "
        + ", ".join(code(name) for name in core.isas()) + ". `checkasm` compares every kernel of each with the reference, the "
        "tests every method; those of Arm run under qemu.\n"
    )  # fmt: skip
    rows = []
    written = {name: exported("octo", row) for name, row in ROWS.items()}
    for kind, networks in with_kind.items():
        forms = set().union(*(written[name] for name, row in ROWS.items() if row in networks))
        rows.append([code(kind), *(mark[form in forms] for form in FORMS)])
    parts += ["## Layers and export\n\nOf a network trained with `octo`.\n", table(["Layer", *FORMS.values()], rows)]
    return "\n".join(parts)


# ---- reports, notebooks --------------------------------------------------


def report_pages() -> dict[str, str | bytes]:
    """reports/*/README.md with the files beside them, their pictures, and the gallery."""
    found: dict[str, str | bytes] = {}
    cards = []
    for readme in sorted(ROOT.glob("reports/*/README.md")):
        name, body = readme.parent.name, readme.read_text()
        for path in readme.parent.iterdir():
            if path.suffix[1:] in REPOSITORY_FILES:
                found[f"reports/{name}/{path.name}"] = path.read_bytes()
        title, first = body.split("\n\n")[0].removeprefix("# "), body.split("\n\n")[1]
        records = readme.parent / "records.csv"
        picture = _picture(records) if records.exists() else None
        if picture:
            found[f"reports/{name}/accuracy.svg"] = picture
            body = body.replace("\n\n", "\n\n![Test accuracy by configuration](accuracy.svg)\n\n", 1)
        found[f"reports/{name}/README.md"] = body
        image = f"[![{title}]({name}/accuracy.svg)]({name}/README.md)\n\n" if picture else ""
        cards.append(f"## [{title}]({name}/README.md)\n\n{image}{'' if first.startswith(('#', '`')) else first}\n")
    found["reports/index.md"] = (
        "# Reports\n\nStudies made with octosim, each with its command and its records. The same command gives the same bits "
        "on every machine.\n\n" + "\n".join(cards)
    )
    return found


def _picture(records: Path) -> bytes | None:
    """Test accuracy of each configuration at its end: the mean, and a point a seed."""
    import io

    import pandas as pd
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = pd.read_csv(records)
    last = rows.dropna(subset=["test_accuracy"]).groupby("run", sort=False).last().reset_index()
    last["what"] = last["run"].str.replace(r"(^|,)seed=\d+", "", regex=True).str.strip(",").str.replace("method=", "")
    means = last.groupby("what")["test_accuracy"].mean().sort_values()
    if len(means) < 2:
        return None
    figure = Figure(figsize=(7, 1.2 + 0.19 * len(means)))
    axes = figure.add_subplot()
    places = {what: i for i, what in enumerate(means.index)}
    axes.plot(100 * last["test_accuracy"], last["what"].map(places), "o", markersize=3, color="#0072B2", alpha=0.6)
    axes.plot(100 * means, range(len(means)), "|", markersize=9, color="#D55E00")
    axes.set_yticks(range(len(means)), [what[:48] for what in means.index], fontsize=7)
    axes.set_xlabel("test accuracy, % (points: seeds; bars: means)", fontsize=8)
    axes.grid(axis="x", linewidth=0.3)
    figure.tight_layout()
    out = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "octosim"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def notebook_pages() -> dict[str, str | bytes]:
    """docs/notebooks/*.ipynb as they were executed, with their pictures."""
    import nbformat
    from nbconvert import MarkdownExporter

    found: dict[str, str | bytes] = {}
    for path in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        body, resources = MarkdownExporter().from_notebook_node(nbformat.read(path, 4))
        for name, content in resources["outputs"].items():
            found[f"notebooks/{path.stem}-{name}"] = content
            body = body.replace(f"]({name})", f"]({path.stem}-{name})")
        body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
        body = re.sub(r'<table border="1" class="dataframe">', "<table>", body)  # the theme lets those without a class scroll
        found[f"notebooks/{path.stem}.md"] = f"{body}\n\n[The notebook]({path.name})\n"
        found[f"notebooks/{path.name}"] = path.read_bytes()
    return found


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/api.md": api_page,
    "reference/settings.md": settings_page,
    "reference/profile.md": profile_page,
    "reference/status.md": status_page,
    "changes.md": lambda: (ROOT / "CHANGELOG.md").read_text(),
}


def made() -> dict[str, str | bytes]:
    """Every generated file by its place in docs/."""
    if str(ROOT / "tests") not in sys.path:  # here: mkdocs puts the path back after it has loaded a hook
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    return {name: page() for name, page in PAGES.items()} | report_pages() | notebook_pages()


# ---- mkdocs --------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, content in made().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that are right in the repository, right in the site."""
    if not page.file.src_uri.startswith("reports/"):
        markdown = markdown.replace("](../reports/", "](reports/")
    return re.sub(r"\n+(?=\n\n```)", "", markdown)
