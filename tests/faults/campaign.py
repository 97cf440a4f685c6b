"""Faults of the host, tried on purpose: kills, failing file operations, damaged files, several processes on one run.

    python tests/faults/campaign.py kills --tries 500
    python tests/faults/campaign.py operations
    python tests/faults/campaign.py damage --tries 10000
    python tests/faults/campaign.py race --tries 20

Each ends with a table and exit code 1 where anything was lost, changed a result unnoticed, hung, took too much memory or ended
with a traceback.  Commands run in forked children of this process, which has octosim imported already, so that a try takes
milliseconds; shim.c, compiled here and preloaded, makes file operations fail.  --seed makes a campaign again.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHIM = Path(__file__).parent / "shim.c"
COUNT, ONCE, FROM_THEN_ON, SHORT, KILL = 1, 2, 3, 4, 5
HANG_S = 10.0
"""A command on these small inputs that takes longer counts as hanging; on a loaded machine raise it with --hang."""
MEMORY = 1 << 30


# ---- running a command in a forked child --------------------------------------------------


@dataclass
class Ended:
    """How a command ended.  code: its exit code, or minus the signal; hung: it was killed after HANG_S."""

    code: int
    output: str
    errors: str
    hung: bool
    peak: int  # bytes

    @property
    def wrong(self) -> str:
        """What is wrong whatever the input was; empty where nothing is."""
        if self.hung:
            return "hang"
        if "Traceback (most recent call last)" in self.errors:
            return "traceback"
        if self.code not in (0, 1, 2, 130, -signal.SIGKILL):
            return f"exit code {self.code}"
        if self.peak > MEMORY:
            return f"{self.peak >> 20} MiB"
        if self.code == 2 and not self.errors.strip():
            return "no sentence"
        return ""


def start(arguments: list[str], folder: Path, arm: Callable[[], None] = lambda: None) -> int:
    """Forks a child that is `octosim ARGUMENTS` in a folder; its process id.  It writes folder/.out and .err."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        for number, name in ((1, ".out"), (2, ".err")):
            fd = os.open(folder.with_name(folder.name + name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, number)
        sys.argv = ["octosim", *arguments]
        from octosim import cli

        arm()
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(pid: int, folder: Path, limit: float) -> Ended:
    until, hung = time.monotonic() + limit, False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            hung = True
            break
        time.sleep(0.002)
    texts = []
    for name in (".out", ".err"):
        path = folder.with_name(folder.name + name)
        texts.append(path.read_text("utf-8", "replace") if path.exists() else "")
        path.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], hung, usage.ru_maxrss * 1024)


# ---- jobs --------------------------------------------------


MODEL = """
[[layers]]
kind = "maxpool"
kernel = 4
stride = 4

[[layers]]
kind = "conv"
filters = 3
kernel = 3

[[layers]]
kind = "batchnorm"

[[layers]]
kind = "relu"

[[layers]]
kind = "flatten"

[[layers]]
kind = "linear"
"""
STUDY = """
title = "Two"
[base]
model = "small.toml"
batch_size = 20
steps = 4
eval_every = 2
[[grid]]
method = ["octo", "fp32"]
"""
TRAIN = (
    "train --model small.toml --method octo --batch-size 20 --steps 12 --eval-every 5 --checkpoint-every 3 "
    "--count-overflow 4 --measure 5 --threads 1 --out run"
).split()
RESUME = "train --resume --threads 1 --checkpoint-every 3 --out run".split()


@dataclass
class Job:
    """A command that writes, and the command that goes on after a fault.  Both run in a folder made by `prepare`."""

    name: str
    prepare: Callable[[Path], None]
    command: list[str]
    again: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def inputs(folder: Path) -> None:
    (folder / "small.toml").write_text(MODEL)
    (folder / "two.toml").write_text(STUDY)


def with_run(folder: Path) -> None:
    inputs(folder)
    shutil.copytree(REFERENCE / "run", folder / "run")


def run_files(folder: Path) -> dict[str, bytes]:
    """What must be equal of a run: all but the manifest's environment and the wall times."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("timing.jsonl", "study.json"):
            content = path.read_bytes()
            if path.name == "manifest.json":
                content = json.dumps(json.loads(content)["decides"], sort_keys=True).encode()
            files[str(path.relative_to(folder))] = content
    return files


def jobs() -> list[Job]:
    def resume(folder: Path) -> list[str]:
        return RESUME if (folder / "run" / "manifest.json").exists() else TRAIN

    def same(command: list[str]) -> Callable[[Path], list[str]]:
        return lambda folder: command

    def anew(command: list[str], out: str) -> Callable[[Path], list[str]]:
        def again(folder: Path) -> list[str]:
            shutil.rmtree(folder / out, ignore_errors=True)
            return command

        return again

    study = "study two.toml --jobs 1 --threads 1 --out study".split()
    golden = "golden run --step 3 --layer fc1 --out vectors".split()
    page = "report run -o page.html".split()
    return [
        Job("train", inputs, TRAIN, resume, lambda folder: run_files(folder / "run")),
        Job("study", inputs, study, same(study), lambda folder: run_files(folder / "study")),
        Job("golden", with_run, golden, anew(golden, "vectors"), lambda folder: run_files(folder / "vectors")),
        Job("report", with_run, page, same(page), lambda folder: (folder / "page.html").read_bytes()),
    ]


REFERENCE = Path()  # a finished run, made once


# ---- campaigns --------------------------------------------------


@dataclass
class Tally:
    """What a campaign found.  failures: sentences; outcomes: how often a command ended so."""

    tries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def fail(self, text: str) -> None:
        self.failures.append(text)
        print(f"FAILED: {text}", flush=True)


@contextlib.contextmanager
def workplace(prepare: Callable[[Path], None]) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fault", dir=REFERENCE.parent)).resolve()
    try:
        prepare(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def expected(job: Job, limit: float) -> tuple[Any, int]:
    """The result without a fault, and the number of file operations of the parent process."""
    shim = ctypes.CDLL(None)
    with workplace(job.prepare) as folder:
        read, write = os.pipe()

        def arm() -> None:
            shim.fault_arm(str(folder).encode(), COUNT, 0, 0)
            exit_now = os._exit

            def tell(code: int) -> None:
                os.write(write, str(shim.fault_seen()).encode())
                exit_now(code)

            os._exit = tell  # type: ignore[assignment]

        done = ended(start(job.command, folder, arm), folder, limit)
        os.close(write)
        count = int(os.read(read, 20) or 0)
        os.close(read)
        if done.code:
            raise SystemExit(f"{job.name} without a fault: exit code {done.code}: {done.errors}")
        return job.result(folder), count


def recover(job: Job, folder: Path, want: Any, limit: float, what: str, tally: Tally) -> None:
    """Runs the command that goes on; it must end well, with the result of a run without a fault and no file left over."""
    done = ended(start(job.again(folder), folder), folder, limit)
    if done.wrong or done.code:
        tally.fail(f"{job.name}, {what}, then again: {done.wrong or f'exit code {done.code}'}: {done.errors.strip()[-300:]}")
        return
    if job.result(folder) != want:
        tally.fail(f"{job.name}, {what}, then again: another result")
    left = [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")] + [str(p) for p in folder.rglob("*.part")]
    if left:
        tally.fail(f"{job.name}, {what}, then again: left over {left}")


def operations(tally: Tally, limit: float, every: int, names: list[str]) -> None:
    """Each file operation of each job in turn: it fails once, from then on, half of a write is written, or the process dies."""
    shim = ctypes.CDLL(None)
    faults = [
        ("EIO", ONCE, errno.EIO), ("ENOSPC", ONCE, errno.ENOSPC), ("full from then on", FROM_THEN_ON, errno.ENOSPC),
        ("read-only from then on", FROM_THEN_ON, errno.EROFS), ("short write", SHORT, errno.ENOSPC), ("kill", KILL, 0),
    ]  # fmt: skip
    for job in jobs():
        if names and job.name not in names:
            continue
        want, count = expected(job, limit)
        if count < 3:
            tally.fail(f"{job.name}: the shim saw {count} file operations: it is not preloaded, or counts the wrong ones")
        for number in range(1, count + 1, every):
            for name, mode, code in faults:
                with workplace(job.prepare) as folder:
                    place = str(folder).encode()
                    arm = lambda: shim.fault_arm(place, mode, number, code)  # noqa: B023, E731 - used before the next turn
                    done = ended(start(job.command, folder, arm), folder, limit)
                    what = f"{name} at operation {number} of {count}"
                    tally.tries += 1
                    tally.outcomes[f"{job.name}: {'killed' if done.code < 0 else f'exit {done.code}'}"] += 1
                    if done.wrong:
                        tally.fail(f"{job.name}, {what}: {done.wrong}: {done.errors.strip()[-300:]}")
                    recover(job, folder, want, limit, what, tally)


def kills(tally: Tally, limit: float, tries: int, chance: random.Random, names: list[str]) -> None:
    """SIGKILL, SIGTERM or SIGINT at a random moment, up to three times in a row, then the command that goes on."""
    chosen = [job for job in jobs() if not names or job.name in names]
    wants = {}
    durations = {}
    for job in chosen:
        began = time.monotonic()
        wants[job.name], _ = expected(job, limit)
        durations[job.name] = time.monotonic() - began
    while tally.tries < tries:
        job = chosen[tally.tries % len(chosen)]
        with workplace(job.prepare) as folder:
            command, sent = job.command, []
            for _ in range(chance.randint(1, 3)):
                pid = start(command, folder)
                time.sleep(chance.uniform(0, durations[job.name]))
                number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                sent.append(number.name)
                done = ended(pid, folder, limit)
                tally.tries += 1
                tally.outcomes[f"{job.name}: {'killed' if done.code < 0 else f'exit {done.code}'}"] += 1
                if done.wrong and done.code != -signal.SIGTERM:
                    tally.fail(f"{job.name}, {'+'.join(sent)}: {done.wrong}: {done.errors.strip()[-300:]}")
                command = job.again(folder)
            if command == RESUME or job.name != "train" or not (folder / "run" / "manifest.json").exists():
                recover(job, folder, wants[job.name], limit, "+".join(sent), tally)


# ---- damage --------------------------------------------------

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


def damage(content: bytes, name: str, chance: random.Random) -> bytes:
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


DECISIVE = ("manifest.json", "records.jsonl", "overflow.jsonl", "measures.jsonl", "checkpoint.safetensors", "digest.txt")
READERS = [
    ("verify run", "run"), ("train --resume --threads 1 --out run", "run"), ("report run -o page.html", "run"),
    ("diff run other", "run"), ("audit run --step 2", "run"), ("golden run --step 2 --layer fc1 --out vectors", "run"),
    ("report study -o page.md", "study"), ("study two.toml --jobs 1 --threads 1 --out study", "study"),
    ("train --model small.toml --steps 1 --batch-size 10 --threads 1 --out new", "small.toml"),
    ("cost --model small.toml --profile pi4 --json", "small.toml"), ("study two.toml --dry-run", "two.toml"),
    ("profiles check board.toml", "board.toml"), ("cost --model mlp --profile board.toml", "board.toml"),
    ("report bench.json -o page.html", "bench.json"), ("cost --model net.onnx --profile pi4 --inference", "net.onnx"),
    ("profiles calibrate --from times.csv --profile pi4 -o fitted.toml", "times.csv"),
]  # fmt: skip


def _onnx(path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shapes = {"W": (4, 3, 3, 3), "F": (4, 10)}
    weights = [numpy_helper.from_array(np.full(shape, 0.1, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]), helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "F"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, 8, 8]), ("y", None))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


def damages(tally: Tally, limit: float, tries: int, chance: random.Random) -> None:
    """A damaged file before each command that reads it: no traceback, no hang, and no result from it but the right one."""
    with workplace(inputs) as base:
        study = "study two.toml --jobs 1 --threads 1 --out study".split()
        for command in (TRAIN, [*TRAIN[:-1], "other", "--seed", "1"], study):
            done = ended(start(command, base), base, 60)
            if done.code:
                raise SystemExit(f"{' '.join(command)}: {done.errors}")
        shutil.copy(Path(__file__).parent.parent.parent / "hwprofiles" / "raspberry-pi-4.toml", base / "board.toml")
        command = "bench --model mlp --batch-size 10 --seconds 0.05 --threads 1 --profile pi4 --out bench.json".split()
        done = ended(start(command, base), base, 60)
        if done.code:
            raise SystemExit(f"bench: {done.errors}")
        readers = READERS
        try:
            _onnx(base / "net.onnx")
        except ImportError:
            readers = [reader for reader in READERS if reader[1] not in ("net.onnx", "times.csv")]
        times = [(1, 3.0), (2, 1.7), (4, 1.1)]  # threads, milliseconds
        rows = "".join(f"net.onnx,fp32,{threads},{value}\n" for threads, value in times)
        (base / "times.csv").write_text("network,precision,threads,value\n" + rows)
        finished = run_files(base / "run")
        for command, _ in readers:  # else a command that always fails would pass
            with workplace(lambda folder: None) as folder:
                shutil.copytree(base, folder, dirs_exist_ok=True)
                done = ended(start(command.split(), folder), folder, 60)
                if done.code != (1 if command.startswith("diff") else 0):
                    tally.fail(f"{command} without damage: exit code {done.code}: {done.errors.strip()[-300:]}")
        while tally.tries < tries:
            command_text, read = readers[tally.tries % len(readers)]
            with workplace(lambda folder: None) as folder:
                shutil.copytree(base, folder, dirs_exist_ok=True)
                files = [p for p in sorted((folder / read).rglob("*")) if p.is_file()] or [folder / read]
                path = chance.choice(files)
                before = meaning(path)
                original = path.read_bytes()
                path.write_bytes(damage(original, path.name, chance))
                content = path.read_bytes()
                unfinished = command_text.startswith("train --resume") and chance.random() < 0.5
                if unfinished and path.name != "digest.txt":
                    (folder / "run" / "digest.txt").unlink()  # a run that goes on from its last checkpoint
                changed = meaning(path) != before
                done = ended(start(command_text.split(), folder), folder, limit)
                tally.tries += 1
                tally.outcomes[f"{command_text.split()[0]}: exit {done.code}"] += 1
                where = f"{command_text}, {path.relative_to(folder)} damaged"
                if done.wrong:
                    tally.fail(f"{where} ({content[:80]!r}): {done.wrong}: {done.errors.strip()[-400:]}")
                elif command_text == "verify run" and done.code == 0 and changed and path.name in DECISIVE:
                    tally.fail(f"{where}: accepted: {_difference(original, content)}")
                elif command_text.startswith("train --resume") and done.code == 0:
                    after = {name: got for name, got in run_files(folder / "run").items() if name != "manifest.json"}
                    if after != {name: want for name, want in finished.items() if name != "manifest.json"} and changed:
                        tally.fail(f"{where}: resumed to another result: {_difference(original, content)}")


def _difference(before: bytes, after: bytes) -> str:
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    return f"at byte {at}: {before[max(0, at - 20) : at + 40]!r} became {after[max(0, at - 20) : at + 40]!r}"


def race(tally: Tally, limit: float, tries: int) -> None:
    """A run and two that resume it, at once: each ends well or with a sentence, and the run has all its records."""
    job = jobs()[0]
    want, _ = expected(job, limit)
    for _ in range(tries):
        with workplace(inputs) as folder:
            first = start(TRAIN, folder)
            until = time.monotonic() + limit
            while not (folder / "run" / "manifest.json").exists() and time.monotonic() < until:
                time.sleep(0.001)
            others = []
            for _ in range(2):
                twin = folder.with_name(folder.name + f"-{len(others)}")  # only for the names of its output files
                twin.symlink_to(folder)
                others.append((start(RESUME, twin), twin))
            results = [ended(first, folder, limit)] + [ended(pid, twin, limit) for pid, twin in others]
            for _, twin in others:
                twin.unlink()
            tally.tries += 1
            tally.outcomes[str(sorted(done.code for done in results))] += 1
            for done in results:
                if done.wrong or done.code not in (0, 2):
                    tally.fail(f"race: {done.wrong or f'exit code {done.code}'}: {done.errors.strip()[-300:]}")
            recover(job, folder, want, limit, "three processes", tally)


# ---- the program --------------------------------------------------


def _with_shim() -> None:
    """Starts this program again with the shim preloaded."""
    if "OCTOSIM_FAULT_SHIM" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="shim"))
    library = folder / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"], check=True)
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    changed = os.environ | threads | {"LD_PRELOAD": str(library), "OCTOSIM_FAULT_SHIM": str(folder), "MPLBACKEND": "agg"}
    os.execve(sys.executable, [sys.executable, *sys.argv], changed)


def main() -> int:
    global REFERENCE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=("kills", "operations", "damage", "race"))
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="operations: only each N-th")
    parser.add_argument("--job", action="append", default=[], help="kills, operations: only these jobs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang", type=float, default=HANG_S, help="seconds after which a command counts as hanging")
    asked = parser.parse_args()
    _with_shim()
    del os.environ["LD_PRELOAD"]  # the processes of a study are not this campaign's
    for name in ("cli.app", "evidence.audit", "report", "study", "train"):  # imported once, for all children
        importlib.import_module(f"octosim.{name}")

    place = Path(tempfile.mkdtemp(prefix="faults")).resolve()
    REFERENCE = place / "reference"
    REFERENCE.mkdir()
    tally, chance, began = Tally(), random.Random(asked.seed), time.monotonic()
    try:
        inputs(REFERENCE)
        done = ended(start(TRAIN, REFERENCE), REFERENCE, 60)
        if done.code:
            raise SystemExit(f"{' '.join(TRAIN)}: {done.errors}")
        if asked.campaign == "kills":
            kills(tally, asked.hang, asked.tries, chance, asked.job)
        elif asked.campaign == "operations":
            operations(tally, asked.hang, asked.every, asked.job)
        elif asked.campaign == "damage":
            damages(tally, asked.hang, asked.tries, chance)
        else:
            race(tally, asked.hang, asked.tries)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(os.environ["OCTOSIM_FAULT_SHIM"], ignore_errors=True)
    for outcome, count in sorted(tally.outcomes.items()):
        print(f"{count:6}  {outcome}")
    print(f"{asked.campaign}: {tally.tries} tries, {len(tally.failures)} failures, {time.monotonic() - began:.0f} s")
    return 1 if tally.failures or not tally.tries else 0


if __name__ == "__main__":
    sys.exit(main())
