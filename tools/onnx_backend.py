"""How many models of onnx.backend.test `octosim cost` prices and `octosim import` takes, and what it says of the others.

    python tools/onnx_backend.py                    all models of the installed onnx package
    python tools/onnx_backend.py --json rows.json   keep what was said of each
    python tools/onnx_backend.py --only conv        models whose names contain a word
    python tools/onnx_backend.py --command cost     one of both commands
    python tools/onnx_backend.py --every 20         a sample: every twentieth model by name

Exit code 1 where a command ends in a traceback.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
from onnx.backend.test.case import model, node

from octosim.cli import _run

VERBS = {"cost": "priced", "import": "imported"}
LISTED = 25
"""Sentences that are printed, the most frequent ones."""


def said(*arguments: str) -> tuple[int, str]:
    """A command's exit code and its last line of error, in this process; -1 and the exception of a traceback."""
    out, before, sys.argv = io.StringIO(), sys.argv, ["octosim", *arguments]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(out):
            code = _run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 2
    except Exception:
        return -1, traceback.format_exc(limit=-2)
    finally:
        sys.argv = before
    lines = out.getvalue().strip().splitlines()
    return code, lines[-1] if lines else ""


def kind(sentence: str, path: Path) -> str:
    """A refusal without the names of its file, nodes and tensors."""
    text = sentence.removeprefix("octosim: ").replace(str(path), "FILE").replace(str(path.parent), "FOLDER")
    return re.sub(r"\(\d[\d, ]*\)|\b\d+\b", "N", re.sub(r"'[^']*'", "NAME", text))[:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for what was said of each model")
    parser.add_argument("--only", default="", help="a word of the models' names")
    parser.add_argument("--every", type=int, default=1, help="of the models in the order of their names, every Nth (default 1)")
    parser.add_argument("--command", choices=VERBS, action="append", help="cost or import; both if not given")
    given = parser.parse_args()
    commands = given.command or list(VERBS)
    models = {case.name: case.model for case in (*node.collect_testcases(None), *model.collect_testcases())}
    models = {name: made for name, made in models.items() if made is not None}  # others would be downloaded
    rows, broken = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for title in sorted(name for name in models if given.only in name)[:: given.every]:
            row: dict[str, object] = {"model": title}
            onnx.save(models[title], path)
            arguments = {
                "cost": ("cost", "--profile", "pi4", "--model", str(path)),
                "import": ("import", str(path), "-o", f"{folder}/net"),
            }
            for name in commands:
                code, sentence = said(*arguments[name])
                broken += code not in (0, 2) or code == 2 and not sentence.startswith("octosim: ")
                row |= {name: code, f"{name}_said": sentence if code else ""}
            rows.append(row)
    for name in commands:
        verb = VERBS[name]
        taken = sum(row[name] == 0 for row in rows)
        print(f"{verb}: {taken} of {len(rows)}; refused with a sentence: {sum(row[name] == 2 for row in rows)}")
        kinds = Counter(kind(str(row[f"{name}_said"]), path) for row in rows if row[name])
        for sentence, count in kinds.most_common(LISTED):
            print(f"{count:5d}  {sentence}")
        if len(kinds) > LISTED:
            print(f"       and {len(kinds) - LISTED} other sentences")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        for name in commands:
            if row[name] == -1:
                print(f"TRACEBACK {name} {row['model']}: {row[f'{name}_said']}")
    if broken or not rows:
        sys.exit(f"{broken} commands of {len(commands) * len(rows)} ended without a sentence")


if __name__ == "__main__":
    main()
