"""Damage to files, and the commands that read them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from running import Worker

PROFILES = Path(__file__).resolve().parents[2] / "hwprofiles"
TIMES = "network,precision,threads,value\n" + "".join(f"net.onnx,fp32,{n},{ms}\n" for n, ms in ((1, 3.0), (2, 1.7), (4, 1.1)))

# ---- damage to a file's bytes --------------------------------------------------

ODD = [None, True, -1, 0, 2**63, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "[/b]", [], {}, [[]], "9" * 400, -5, 1.5]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _leaves(item, (*path, key))


def _damaged_json(text: str, chance: random.Random) -> str:
    value = json.loads(text)
    places = list(_leaves(value))
    if not places:
        return "[]"
    *path, last = chance.choice(places)
    inner = value
    for key in path:
        inner = inner[key]
    if chance.random() < 0.2:
        del inner[last]
    else:
        inner[last] = chance.choice(ODD)
    return json.dumps(value)


def damaged(content: bytes, name: str, chance: random.Random) -> bytes:
    """Some damage: bits, bytes, lines, or a value of another kind in JSON."""
    kind = chance.randrange(9)
    at = chance.randrange(len(content) + 1)
    if kind == 0 and content:
        changed = bytearray(content)
        changed[min(at, len(content) - 1)] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + content[at + chance.randrange(1, 50) :]
    if kind == 3:
        return content[:at] + chance.randbytes(chance.randrange(1, 40)) + content[at:]
    if kind == 4:
        deep = [b"[" * 100_000, b"{" * 100_000, b'{"a":' * 5000]
        return chance.choice([b"", b"\x00", *deep, b"\xff\xfe", b"null\n", b"[]\n", b"1e999\n"])
    if kind in (5, 6, 7) and name.endswith((".json", ".jsonl")):
        lines = content.decode("utf-8", "replace").splitlines(keepends=True)
        if name.endswith(".json"):
            return _damaged_json("".join(lines), chance).encode("utf-8", "surrogatepass")
        row = chance.randrange(len(lines)) if lines else 0
        if lines:
            how = chance.randrange(4)
            if how == 0:
                lines.insert(row, lines[chance.randrange(len(lines))])
            elif how == 1:
                del lines[row]
            elif how == 2:
                lines[row] = _damaged_json(lines[row], chance) + "\n"
            else:
                chance.shuffle(lines)
        return "".join(lines).encode("utf-8", "surrogatepass")
    if kind in (5, 6) and b"=" in content and name.endswith(".toml"):
        lines = content.split(b"\n")
        row = chance.choice([n for n, line in enumerate(lines) if b"=" in line])
        key = lines[row].partition(b"=")[0]
        odd = [b"nan", b"-1", b"0", b"1e308", b"''", b"'x'", b"[]", b"{}", b"true", b"9" * 40, b"[[[1]]]", b"'\\ud800'", b"inf"]
        lines[row] = key + b"= " + chance.choice(odd)
        return b"\n".join(lines)
    lines = content.split(b"\n")
    chance.shuffle(lines)
    return b"\n".join(lines)


def meaning(path: Path) -> Any:
    """What must not change unnoticed in a run's file; bytes where it cannot be read."""
    try:
        content = path.read_bytes()
        if path.name == "manifest.json":
            kept = {key: json.loads(content).get(key) for key in ("decides", "format", "kind", "config")}
            return json.dumps(kept, sort_keys=True)
        if path.suffix == ".jsonl":
            return [json.dumps(json.loads(line), sort_keys=True) for line in content.splitlines()]
        if path.suffix == ".safetensors":
            from safetensors.numpy import load

            return {name: (tensor.dtype.str, tensor.shape, tensor.tobytes()) for name, tensor in load(content).items()}
        return content.split()
    except Exception:
        return path.read_bytes()


def difference(before: bytes, after: bytes) -> str:
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    return f"at byte {at}: {before[max(0, at - 20) : at + 40]!r} became {after[max(0, at - 20) : at + 40]!r}"


# ---- commands that read files --------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A command, the file or folder that is damaged before it, what else it needs, and how often it is tried: those that draw
    pages or start processes take seconds."""

    command: str
    read: str
    beside: tuple[str, ...] = ()
    weight: int = 10

    @property
    def files(self) -> tuple[str, ...]:
        return (self.read, *self.beside)


DECISIVE = (
    "manifest.json", "records.jsonl", "overflow.jsonl", "measures.jsonl", "checkpoint.safetensors", "digest.txt", "model.toml",
)  # fmt: skip
NEW = "--steps 1 --batch-size 10 --threads 1 --out new"
READERS = [
    Reader("verify run", "run", ("small.npz",), 40),
    Reader("train --resume --threads 1 --out run", "run", ("small.npz",), 40),
    Reader("report run -o page.html", "run", weight=1),
    Reader("diff run other", "run", ("other", "small.npz"), 20),
    Reader("audit run --step 2", "run", ("small.npz",), 20),
    Reader("golden run --step 2 --layer fc1 --out vectors", "run", ("small.npz",), 20),
    Reader("export run --to c --out deploy", "run", ("small.npz",), 3),
    Reader(f"train --model small.toml --data small.npz --init run {NEW}", "run", ("small.npz", "small.toml")),
    Reader("report study -o page.md", "study", weight=1),
    Reader("study two.toml --jobs 1 --threads 1 --out study", "study", ("two.toml", "small.npz", "small.toml"), 2),
    Reader(f"train --model small.toml --data small.npz {NEW}", "small.toml", ("small.npz",)),
    Reader(f"train --model small.toml --data small.npz {NEW}", "small.npz", ("small.toml",), 20),
    Reader("data check small.npz", "small.npz"),
    Reader("cost --model small.toml --image 6x6x1 --profile pi4 --json", "small.toml"),
    Reader("study two.toml --dry-run", "two.toml", ("small.npz", "small.toml")),
    Reader("profiles check board.toml", "board.toml", weight=20), Reader("cost --model mlp --profile board.toml", "board.toml"),
    Reader("report bench.json -o page.html", "bench.json", weight=1),
    Reader("cost --model net.onnx --profile pi4 --inference", "net.onnx", weight=20),
    Reader("import net.onnx -o net", "net.onnx", weight=20),
    Reader("cost --model net/model.toml --profile pi4", "net", weight=5),
    Reader("profiles calibrate --from times.csv --profile pi4 -o fitted.toml", "times.csv", ("net.onnx",)),
    Reader("check vectors/fc1.npz --against vectors/fc1_forward.hex", "vectors"),
]  # fmt: skip
NEED_ONNX = ("net.onnx", "net", "times.csv")


def write_onnx(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shapes = {"W": (4, 3, 3, 3), "F": (4, 10)}
    weights = [numpy_helper.from_array(np.full(shape, 0.1, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]), helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "F"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, 8, 8]), ("y", ["N", 10]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


def prepare(base: Path, worker: Worker, runs: list[list[str]], limit: float) -> list[Reader]:
    """Writes each kind of file that is damaged, by octosim's own commands; the readers."""
    commands = [
        *runs,
        "study two.toml --jobs 1 --threads 1 --out study".split(),
        "bench --model mlp --batch-size 10 --seconds 0.05 --threads 1 --profile pi4 --out bench.json".split(),
        "golden run --step 2 --layer fc1 --out vectors".split(),
    ]
    shutil.copy(PROFILES / "raspberry-pi-4.toml", base / "board.toml")
    readers = READERS
    try:
        write_onnx(base / "net.onnx")
        commands.append("import net.onnx -o net".split())
        (base / "times.csv").write_text(TIMES)
    except ImportError:
        readers = [reader for reader in READERS if reader.read not in NEED_ONNX]
    for arguments in commands:
        done = worker.run(arguments, base, limit)
        if done.code:
            raise SystemExit(f"{' '.join(arguments)}: {done.errors}")
    return readers
