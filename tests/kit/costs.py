"""The prices of training steps, frozen: tests/costs.json holds what `octosim cost --json` says of every method.

    python tests/kit/costs.py          # runs the cases that have no entry and adds them; drops entries of no case
    python tests/kit/costs.py WORD ... # runs the cases whose key holds a WORD too: for changes on purpose
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from octosim.cli.app import app
from octosim.methods import METHODS

FILE = Path(__file__).resolve().parent.parent / "costs.json"
PROFILES = ("raspberry-pi-4", "jetson-agx-orin", "atlas-200dk", "ryzen-9-6900hx")
MODELS = {"lenet5": "28x28x1", "resnet20": "32x32x3", "mobilenet": "32x32x3"}
LAYERED = ("fp32", "octo")
"""Methods whose passes are frozen one by one, of larger models by a checksum; of other methods the totals are."""


def cases() -> dict[str, list[str]]:
    """Arguments of `octosim` by the case's key, "method/model/profile"."""
    return {
        f"{method}/{model}/{profile}": [
            "cost", "--profile", profile, "--model", model, "--image", image, "--method", method, "--json",
            *(["--batch-size", "32"] if method == "octo-reference" else []),
        ]
        for method, cls in METHODS.items()
        for model, image in MODELS.items()
        for profile in PROFILES
        if getattr(cls, "batchnorm", True)  # `octosim cost` has no network without
    }  # fmt: skip


def shortened(value: Any) -> Any:
    """Floats to nine digits: the last ones are libm's."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    return [shortened(item) for item in value] if isinstance(value, list) else value


def outcome(key: str, arguments: list[str]) -> dict[str, Any]:
    """What the command prints, without prose."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        app(arguments, standalone_mode=False)
    record: dict[str, Any] = shortened(json.loads(printed.getvalue()))
    layers = record.pop("layers")
    entry = {
        "total": {k: v for k, v in record["total"].items() if k != "training"},
        "memory": record["memory"],
        "notes": record["notes"],
        "gain": record.get("gain"),
        "pays": record.get("pays"),
        "fits": record.get("fits"),
    }
    method, model, _ = key.split("/")
    if method in LAYERED:
        columns = "layer", "pass", "name", "dtype", "macs", "bytes", "time_s", "bound"
        passes = [[op[name] for name in columns] for op in layers]
        whole = model == "lenet5"
        entry["layers"] = passes if whole else hashlib.sha256(json.dumps(passes).encode()).hexdigest()[:16]
    return entry


def frozen() -> dict[str, Any]:
    """The file's entries."""
    entries: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return entries


def main(words: list[str]) -> int:
    wanted, known = cases(), frozen()
    entries = {key: entry for key, entry in known.items() if key in wanted}
    for key, arguments in wanted.items():
        if key in entries and not any(word in key for word in words):
            continue
        entries[key] = outcome(key, arguments)
        print(f"{key}: {entries[key]['total']}, was {known[key]['total'] if key in known else None}", flush=True)
    lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(entries.items()))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(entries)} entries of {len(wanted)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
