"""Grids of runs: read and checked as a whole, trained in parallel processes, resumed after anything, with tidy records.

A study's directory holds
    NAME/          a run directory for each row (train.py)
    records.csv    a line for each evaluation of each finished run, in the order of the rows; replaced atomically
    study.json     the state of every row
    study.toml     the study as it was read
The records follow from the study alone: a study that was killed and started again has the same ones, to the byte.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BeforeValidator, Field, ValidationError, create_model

import octosim
from octosim import core, data, methods, outcome, settings, train
from octosim.errors import OctosimError, suggest
from octosim.files import locked, read_lines, write_atomic
from octosim.methods import recipes
from octosim.schema import Frozen, problems_text
from octosim.textfile import TOML_BYTES, read_text, read_toml

SHIPPED = Path(__file__).parent / "studies"
FORMAT = 1

# ---- the file --------------------------------------------------

_KINDS: dict[str, Any] = settings.kinds()
_Scalar = str | bool | int | float


def _settings(name: str, parameters: Any, wrap: Callable[[Any], Any]) -> Any:
    """A pydantic model with the fields of train.Config, all optional."""
    kinds: dict[str, Any] = {key: (parameters if key == "parameters" else wrap(kind), None) for key, kind in _KINDS.items()}
    return create_model(name, __base__=Frozen, **kinds, recipe=(wrap(str), None))


def _all_methods(value: Any) -> Any:
    return list(methods.METHODS) if value == "all" else value


def _all_recipes(value: Any) -> Any:
    return recipes.names() if value == "all" else value


_Base: Any = _settings("Base", dict[str, _Scalar], lambda kind: kind)
_Grid: Any = create_model(
    "Grid",
    __base__=_settings("Grid", dict[str, list[_Scalar]], lambda kind: list.__class_getitem__(kind)),
    method=(Annotated[list[str], BeforeValidator(_all_methods)], None),
    recipe=(Annotated[list[str], BeforeValidator(_all_recipes)], None),
)


MOST_ROWS = 10_000
"""Rows of a study: each is a run directory, and is built once before the first is trained."""


class Study(Frozen):
    """base: settings of every run, fields of train.Config.  grid: lists of settings; all combinations of each are rows.

    method = "all" in a grid stands for every method of METHODS, recipe = "all" for every recipe, whose settings those of the
    study replace.
    """

    title: str = ""
    about: str = ""
    base: _Base = Field(default_factory=_Base)
    grid: list[_Grid] = Field(min_length=1)


@dataclass(frozen=True)
class Row:
    """A run of a study; its name is that of its directory."""

    name: str
    config: train.Config


def shipped() -> list[str]:
    """Names of the studies in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def source(name: str) -> Path:
    """The file of a study: a shipped one's name, or a path."""
    if name in shipped():
        return SHIPPED / f"{name}.toml"
    if not name.endswith(".toml"):
        raise OctosimError(f"'{name}' is neither a .toml file nor a study of the package" + suggest(name, shipped()))
    return Path(name)


def text(path: Path) -> str:
    """The text of a study's file."""
    return read_text(path, TOML_BYTES, "study")


def read(path: Path) -> Study:
    """A study's file; OctosimError with the first thing that is wrong in it."""
    return _validated(read_toml(path, "study"), path)


def _validated(content: Any, path: Path) -> Study:
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise OctosimError(f"{path}: {problems_text(error, Study)}") from None


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """parameters {lac: off} -> method.lac: off."""
    rest = {key: value for key, value in settings.items() if key != "parameters"}
    return rest | {f"method.{key}": value for key, value in settings.get("parameters", {}).items()}


def _lists(grid: Any) -> dict[str, list[Any]]:
    return _flat(grid.model_dump(exclude_unset=True))


def _choices(grid: Any) -> Iterator[dict[str, Any]]:
    """Every combination of a grid's lists, flat; in the order of Config's fields, then parameters, the last fastest."""
    lists = _lists(grid)
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def _config(flat: dict[str, Any]) -> train.Config:
    settings = {key: value for key, value in flat.items() if not key.startswith("method.")}
    parameters = {key.removeprefix("method."): value for key, value in flat.items() if key.startswith("method.")}
    recipe = settings.pop("recipe", None)
    if recipe is not None:
        return train.Config(**recipes.with_recipe(recipe, settings | {"parameters": parameters}))
    return train.Config(**settings, parameters=parameters)


def rows(study: Study, path: Path) -> list[Row]:
    """The study's rows, none tried yet; OctosimError where two have one name."""
    total = sum(math.prod(len(values) for values in _lists(grid).values()) for grid in study.grid)
    if total > MOST_ROWS:
        raise OctosimError(f"{path}: the grids have {total:,} rows, expected at most {MOST_ROWS:,}")
    base = _flat(study.base.model_dump(exclude_unset=True))
    flats = [base | choice for grid in study.grid for choice in _choices(grid)]
    if not flats:
        raise OctosimError(f"{path}: a list of a grid is empty: the study has no rows")
    varied = [key for key in dict.fromkeys(k for f in flats for k in f) if len({repr(f.get(key)) for f in flats}) > 1]
    found: dict[str, Row] = {}
    for flat in flats:
        parts = [f"{key.removeprefix('method.')}={flat[key]}" for key in varied if key in flat]
        name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join(parts))[:200].lstrip(".") or "run"
        if name in found:
            if _config(flat) == found[name].config:
                raise OctosimError(f"{path}: two rows are {name}; every row of a study must be another run")
            # they differ in characters that no file's name has, or beyond its length
            name += "-" + hashlib.sha256(repr(sorted(flat.items())).encode()).hexdigest()[:8]
        found[name] = Row(name, _config(flat))
    return list(found.values())


def from_python(grid: Mapping[str, Any] | Sequence[train.Config]) -> tuple[Study, list[Row], str]:
    """A study of Python data: its content, its rows and the text of its file; OctosimError for what no study is.

    grid: the content of a study's file, or the runs' configurations.
    """
    where = Path("study")
    if isinstance(grid, Mapping):
        study = _validated(grid, where)
        return study, rows(study, where), tomli_w.dumps(study.model_dump(exclude_unset=True))
    configs = list(grid)
    if not configs or not all(isinstance(config, train.Config) for config in configs):
        raise OctosimError("a study takes a name, a file, its content or a list of Config")
    plain = [{key: value for key, value in asdict(config).items() if value is not None} for config in configs]
    content = {"grid": [{k: {p: [v] for p, v in x.items()} if k == "parameters" else [x] for k, x in c.items()} for c in plain]}
    study = _validated(content, where)
    return study, rows(study, where), tomli_w.dumps(content)


def check(plan: Sequence[Row], path: Path, progress: Callable[[int], None] | None = None) -> None:
    """Builds every run once, without a step: OctosimError names the first row that cannot be, or that is another's twin."""
    seen: dict[str, Row] = {}
    kept: dict[Any, data.Dataset] = {}
    for number, row in enumerate(plan, start=1):
        where = f"{path}, row {number} ({row.name})"
        try:
            c = row.config
            key = (c.data, *(getattr(c, name) for name in train.DATA))
            if key not in kept:
                kept[key] = train.load_data(c)
            made = train.Run(c, dataset=kept[key])
            identity = json.dumps(train.decides(made), sort_keys=True)
        except OctosimError as error:
            raise OctosimError(f"{where}: {error}") from None
        if identity in seen:
            raise OctosimError(f"{where} is the same run as {seen[identity].name}")
        seen[identity] = row
        if progress:
            progress(number)


# ---- one run, in a process of its own --------------------------------------------------


@dataclass
class State:
    """Where a row stands: waiting, running, finished, interrupted, diverged or broken (for `reason`)."""

    name: str
    state: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    reason: str = ""

    def fail(self, reason: str) -> None:
        """The run ended before its last step: it diverged, which is a result, or it is broken."""
        self.state, self.reason = outcome.failed(reason, self.step + 1)[0], reason

    def update(self, message: Mapping[str, Any]) -> None:
        """Sets fields by name."""
        for key, value in message.items():
            setattr(self, key, value)


def news(p: train.Progress) -> dict[str, Any]:
    """What a step changes of a row's State."""
    return {key: getattr(p, key) for key in ("step", "steps", "loss", "test_accuracy", "test_loss")}


ENDED = ("finished", "diverged", "broken")
"""The states after which a run takes no step any more."""


def taken(folder: Path) -> AbstractContextManager[None]:
    """Waits for a process that still works on the run: one that its killed study left, which ends at its next step."""
    return locked(folder.with_name(f".{folder.name}.lock"), f"{folder} is in use", wait=True)


def opened(folder: Path, config: train.Config, command: str) -> train.Run:
    """The run at its last checkpoint, or a new one."""
    if (folder / "manifest.json").exists():
        return train.reopen(folder)
    return train.create(config, folder, command)


def _mask(how: int) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(how, {signal.SIGINT})


def _start(process: Any) -> None:
    """Starts a process that Ctrl-C reaches when it has begun to work, not while it imports."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # which the first start of a process would begin with, and unblock the signals
    _mask(signal.SIG_BLOCK)
    try:
        process.start()
    finally:
        _mask(signal.SIG_UNBLOCK)


def _work(folder: Path, config: train.Config, command: str, threads: int, every: int, parent: int, pipe: Connection) -> None:
    """Trains a run to its end, telling `pipe` how it goes."""
    told = 0.0

    def tell(p: train.Progress) -> None:
        nonlocal told
        if os.getppid() != parent:
            os._exit(1)  # killed; whoever starts the study again continues from the last checkpoint
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            pipe.send(news(p))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study's process ends this one; `train` catches both
    _mask(signal.SIG_UNBLOCK)
    try:
        core.set_threads(threads)
        with taken(folder):
            if train.read_digest(folder) is None:
                done = train.train(opened(folder, config, command), folder, tell, every)
                pipe.send({"state": "finished" if done else "interrupted"})
            else:
                pipe.send({"state": "finished"})
    except OctosimError as error:
        pipe.send({"failure": str(error)})
    except BrokenPipeError:
        pass  # the study was killed while the run ended


# ---- records --------------------------------------------------

_OVERFLOW = ("additions", "saturations", "wraps", "pair_saturations", "outputs", "inexact")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, none where it does not exist."""
    try:
        return [row for row, _ in read_lines(path)]
    except OctosimError as error:
        raise OctosimError(f"{error}; move the run away to train it again") from None


def records(row: Row, folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a finished run: its settings, its record, and its overflow so far where it was counted."""
    settings = {name: getattr(row.config, name) for name in (f.name for f in fields(train.Config)) if name != "parameters"}
    parameters = methods.parameters(methods.make(row.config.method, row.config.parameters))
    fixed = {"run": row.name, **_flat(settings | {"parameters": parameters}), "digest": train.read_digest(folder)}
    try:
        kept, counted = _lines(folder / "records.jsonl"), _lines(folder / "overflow.jsonl")
        made = []
        for record in kept:
            if "test_loss" in record:
                so_far = [c for c in counted if c["step"] <= record["step"]]
                sums: dict[str, Any] = {key: sum(c[key] for c in so_far) for key in _OVERFLOW if so_far}
                if so_far:
                    sums["largest_bits"] = max(c["largest_bits"] for c in so_far)
                made.append(fixed | record | sums)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OctosimError(f"{folder}: its records cannot be read: {error!r}") from None
    if not made or made[-1]["step"] != kept[-1]["step"]:
        raise OctosimError(f"{folder / 'records.jsonl'} does not end with an evaluation; move the run away to train it again")
    train.check(folder)
    return made


def as_csv(table: Sequence[dict[str, Any]]) -> bytes:
    """Columns in order of appearance; what a row lacks is empty."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


# ---- the whole --------------------------------------------------


def _settle(plan: Sequence[Row], out: Path) -> dict[str, State]:
    """How the rows stand in the directory; OctosimError where a run there is another than the study's."""
    states = {row.name: State(row.name) for row in plan}
    for row in plan:
        folder, state = out / row.name, states[row.name]
        if not (folder / "manifest.json").exists():
            continue
        try:
            stored, decides = train.read_config(folder), train.read_manifest(folder).get("decides")
        except OctosimError as error:
            state.state, state.reason = "broken", str(error)
            continue
        version = decides.get("octosim") if isinstance(decides, dict) else None
        if not isinstance(decides, dict) or version != octosim.__version__:
            state.state = "broken"
            state.reason = f"{folder} is of octosim {version}, this is {octosim.__version__}; move it away to train it again"
            continue
        if stored != row.config:
            raise OctosimError(f"{folder} was started with other settings than the study's row; choose another --out")
        if train.read_digest(folder) is not None:
            state.state = "finished"
        elif (failure := train.read_failure(folder)) and outcome.failed(failure[1], 0)[0] == "diverged":
            made = _lines(folder / "records.jsonl")[: failure[0] - 1]
            state.step, state.loss = len(made), made[-1]["loss"] if made else None
            state.steps = outcome.steps(decides) or 0
            state.fail(failure[1])
    return states


Tell = Callable[[State | None], None]
"""Called with the state of a run that has ended, and with None now and then."""
TrainAll = Callable[[Sequence[Row], dict[str, State], Path, Tell, Callable[[], bool]], None]
"""Trains rows into their directories under a folder and keeps their states; returns early once the last argument is true."""


def run(
    study: Study, plan: Sequence[Row], out: Path, text: str, train_all: TrainAll,
    show: Callable[[list[State]], None] = lambda states: None,
) -> list[State]:  # fmt: skip
    """Trains what is not finished yet; Ctrl-C and SIGTERM leave a study that continues.  text: of its file."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make {out}: {error.strerror}") from None
    states = _settle(plan, out)
    write_atomic(out / "study.toml", text.encode())
    table: dict[str, list[dict[str, Any]]] = {}

    def note(state: State) -> None:
        """A run has ended: its records join the others'."""
        row = next(row for row in plan if row.name == state.name)
        if state.state == "finished":
            try:
                found = table[row.name] = records(row, out / row.name)
                last = found[-1]
                state.step = state.steps = last["step"]
                state.loss, state.test_accuracy, state.test_loss = last["loss"], last.get("test_accuracy"), last["test_loss"]
            except OctosimError as error:
                state.state, state.reason = "broken", str(error)

    def write() -> None:
        lines = [line for row in plan for line in table.get(row.name, [])]
        write_atomic(out / "records.csv", as_csv(lines))
        summary = {"format": FORMAT, "kind": "study", "title": study.title, "about": study.about}
        content = summary | {"rows": [vars(state) for state in states.values()]}
        write_atomic(out / "study.json", (json.dumps(content, indent=2) + "\n").encode())

    def tell(state: State | None) -> None:
        if state:
            note(state)
            write()
        show(list(states.values()))

    with train.Interrupt() as interrupt:
        for state in states.values():
            note(state)
        write()
        train_all([row for row in plan if states[row.name].state == "waiting"], states, out, tell, lambda: interrupt.asked)
        for state in states.values():
            if state.state == "running":
                state.state = "interrupted"
        write()
    return list(states.values())


def in_processes(
    rows: Sequence[Row], states: dict[str, State], out: Path, tell: Tell, asked: Callable[[], bool], *,
    jobs: int, threads: int, command: str, every: int,
) -> None:  # fmt: skip
    """TrainAll on this machine, `jobs` runs at once; whatever ends it, no process is left."""
    waiting = deque(rows)
    active: dict[Connection, tuple[Any, State]] = {}
    context = multiprocessing.get_context("spawn")
    try:
        while (waiting or active) and not asked():
            while waiting and len(active) < jobs:
                row = waiting.popleft()
                ours, theirs = context.Pipe(duplex=False)
                arguments = (out / row.name, row.config, command, threads, every, os.getpid(), theirs)
                process = context.Process(target=_work, args=arguments, daemon=True)
                _start(process)
                theirs.close()
                states[row.name].state = "running"
                active[ours] = process, states[row.name]
            for pipe in wait(list(active), timeout=0.5):
                assert isinstance(pipe, Connection)
                _listen(pipe, *active[pipe], asked())
                if active[pipe][1].state != "running":
                    process, state = active.pop(pipe)
                    process.join()
                    tell(state)
            tell(None)
    finally:
        for process, _ in active.values():
            process.terminate()  # each writes a checkpoint first
        for process, _ in active.values():
            process.join()


def in_this_process(command: str, every: int) -> TrainAll:
    """TrainAll one after the other, without another process."""

    def train_all(
        rows: Sequence[Row], states: dict[str, State], out: Path, tell: Tell, asked: Callable[[], bool]
    ) -> None:
        for row in rows:
            state, folder = states[row.name], out / row.name
            if asked():
                return
            state.state = "running"

            def note(p: train.Progress, state: State = state) -> None:
                state.update(news(p))

            try:
                with taken(folder):
                    done = train.train(opened(folder, row.config, command), folder, note, every)
                state.state = "finished" if done else "interrupted"
            except OctosimError as error:
                state.fail(str(error))
            tell(state)
            if state.state == "interrupted":
                return

    return train_all


def _listen(pipe: Connection, process: Any, state: State, asked: bool) -> None:
    """Takes a message of a run; its end without one is a crash, but where an end was asked for and the signal reached it."""
    try:
        message = pipe.recv()
    except (EOFError, OSError):
        process.join()
        message = {"failure": f"its process ended with exit code {process.exitcode}"}
        if asked and -process.exitcode in (signal.SIGINT, signal.SIGTERM):
            message = {"state": "interrupted"}
    if "failure" in message:
        state.fail(message.pop("failure"))
    state.update(message)
