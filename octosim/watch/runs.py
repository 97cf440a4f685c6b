"""The runs of a folder as they grow.  A look reads only what was appended since the look before."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from octosim import outcome
from octosim.errors import OctosimError
from octosim.files import LINE_BYTES, json_value, open_regular, read_json

PATIENCE_S = 60.0
"""A run that writes nothing for so long, and for 5 of its steps, is not running, whatever its lock file says."""
POINTS = 240
"""Points of a curve at most; each is a mean of its steps."""
ORDER = ("running", "diverged", "broken", "unfinished", "at chance", "finished", "waiting")
"""States in the order in which a watcher wants to see their runs."""
RATE_S = 300.0
"""Seconds of the past that tell how fast a run is."""


class Lines:
    """The whole lines of a .jsonl file.  problem: why it could not be read to its end; changed_s: when it was written last."""

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, ""
        self.changed_s = 0.0  # since 1970
        self._offset, self._inode = 0, 0

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file began anew, and its objects since the last call."""
        anew, rows = self._read()
        if self.problem and not anew:  # it may be another file by now
            self._offset = self._inode = 0
            anew, rows = self._read()
        return anew, rows

    def _read(self) -> tuple[bool, list[dict[str, Any]]]:
        anew, self.problem = False, ""
        rows: list[dict[str, Any]] = []
        try:
            with open_regular(self.path) as file:
                about = os.fstat(file.fileno())
                anew = about.st_ino != self._inode or about.st_size < self._offset
                self._offset, self._inode = 0 if anew else self._offset, about.st_ino
                self.changed_s = about.st_mtime
                file.seek(self._offset)
                for line in iter(lambda: file.readline(LINE_BYTES + 1), b""):
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    row = json_value(line)
                    if not isinstance(row, dict):
                        raise ValueError("a line is no object")
                    rows.append(row)
                    self._offset += len(line)
        except FileNotFoundError:
            anew, self._offset, self._inode = True, 0, 0
        except (OSError, ValueError) as error:
            self.problem = f"{self.path.name} cannot be read: {getattr(error, 'strerror', None) or error}"
        return anew, rows

    def rewind(self) -> None:
        self._offset = self._inode = 0


def _number(value: Any) -> float | None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if real else None


def thinned(points: list[tuple[int, float]], most: int = POINTS) -> list[tuple[int, float]]:
    """A curve of at most so many points: the means of equal parts, each at its last step; the last point stays."""
    if len(points) <= most:
        return points
    edges = [(len(points) - 1) * i // (most - 1) for i in range(most)]
    parts = [points[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts] + points[-1:]


class RunView:
    """A run directory.  version grows with every change; reason: why the study called it broken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.version, self.reason, self.problem = 1, "", ""
        self.state, self.detail = "waiting", ""
        self.steps: int | None = None
        self.accumulator = ""
        self.chance: float | None = None
        self.step_s: float | None = None
        self._records, self._overflow = Lines(folder / "records.jsonl"), Lines(folder / "overflow.jsonl")
        self._manifest_s = 0.0  # when it was written
        self._seen: tuple[Any, ...] = ()  # what the last look found
        self._forget()
        self._counted: dict[tuple[str, str], tuple[int, int]] = {}

    def _forget(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.accuracies: list[tuple[int, float]] = []
        self.test_loss: float | None = None
        self._past: list[tuple[float, int]] = []  # (seconds, step) of looks that found new steps

    @property
    def step(self) -> int:
        return self.losses[-1][0] if self.losses else 0

    @property
    def accuracy(self) -> float | None:
        return self.accuracies[-1][1] if self.accuracies else None

    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or self.steps is None or self.step_s is None:
            return None
        return max(0.0, (self.steps - self.step) * self.step_s - max(0.0, time.time() - self._records.changed_s))

    @property
    def changed_s(self) -> float:
        """When it was written last, in seconds since 1970; 0 of a run that has not begun."""
        return max(self._records.changed_s, self._manifest_s)

    @property
    def saturated(self) -> dict[str, Any] | None:
        """The layer and pass with the largest share of sums that its register falsified, at the last counted step."""
        shares = [(inexact / outputs, layer, pass_) for (layer, pass_), (inexact, outputs) in self._counted.items() if outputs]
        if not shares:
            return None
        share, layer, pass_ = max(shares)
        return {"share": share, "layer": layer, "pass": pass_}

    def look(self) -> None:
        """Reads what is new."""
        self._read_records()
        self._read_overflow()
        self.problem = self._records.problem or self._overflow.problem
        try:
            self._read_manifest()
        except OctosimError as error:
            self.problem = str(error)
        self._time()
        self.state, self.detail = self._state()
        seen = (self.state, self.detail, self.step, len(self.accuracies), self.steps, self.saturated, self.step_s)
        if seen != self._seen:
            self._seen = seen
            self.version += 1

    def _read_manifest(self) -> None:
        path = self.folder / "manifest.json"
        try:
            written = path.stat().st_mtime
        except OSError:
            return
        if written == self._manifest_s:
            return
        decides = read_json(path)
        decides = decides.get("decides") if isinstance(decides, dict) else None
        told = decides.get("data") if isinstance(decides, dict) else None
        if not isinstance(decides, dict) or not isinstance(told, dict):
            raise OctosimError(f"{path} is not the manifest of a run")
        self._manifest_s = written
        self.steps = outcome.steps(decides)
        numerics = decides.get("numerics")
        self.accumulator = str(numerics.get("accumulator", "")) if isinstance(numerics, dict) else ""
        self.chance = outcome.chance(decides)

    def _read_records(self) -> None:
        anew, rows = self._records.read()
        if rows and not anew and outcome.count(rows[0].get("step")) <= self.step:  # continued from a checkpoint before its end
            self._records.rewind()
            anew, rows = self._records.read()
        if anew:
            self._forget()
        for row in rows:
            step, loss, accuracy = outcome.count(row.get("step")), _number(row.get("loss")), _number(row.get("test_accuracy"))
            if step and loss is not None:
                self.losses.append((step, loss))
            if step and accuracy is not None:
                self.accuracies.append((step, accuracy))
            if step and (error := _number(row.get("test_loss"))) is not None:
                self.test_loss = error

    def _time(self) -> None:
        """Seconds a step: of the last minutes that were watched; before there are two looks, since the run began."""
        if not self.step or self._past and self._past[-1][1] == self.step:
            return
        self._past.append((self._records.changed_s, self.step))
        while len(self._past) > 2 and self._past[-1][0] - self._past[1][0] > RATE_S:
            self._past.pop(0)
        first, last = self._past[0], self._past[-1]
        if last[1] > first[1] and last[0] > first[0]:
            self.step_s = (last[0] - first[0]) / (last[1] - first[1])
        elif self._manifest_s:
            self.step_s = max(0.0, self._records.changed_s - self._manifest_s) / self.step

    def _read_overflow(self) -> None:
        anew, rows = self._overflow.read()
        if anew:
            self._counted = {}
        for row in rows:
            key = str(row.get("layer")), str(row.get("pass"))
            outputs = outcome.count(row.get("outputs"))
            self._counted[key] = min(outcome.count(row.get("inexact")), outputs), outputs

    def _state(self) -> tuple[str, str]:
        if (self.folder / "digest.txt").exists():
            low = self.accuracy is not None and self.chance is not None and self.accuracy <= self.chance
            return ("at chance" if low else "finished"), ""
        if self.problem:
            return "broken", self.problem
        reason = self.reason
        try:
            found = read_json(self.folder / "failure.json")
            reason = " ".join(str(found["reason"]).split()) or reason
        except (OctosimError, LookupError, TypeError):
            pass
        if reason:
            return outcome.failed(reason, self.step + 1)
        if not self._manifest_s:
            return "waiting", ""
        quiet = time.time() - self.changed_s
        patience = max(PATIENCE_S, 5 * (self.step_s or 0.0))
        begins = not self.losses and quiet < PATIENCE_S
        if begins or ((self.folder / ".lock").exists() and quiet < patience):
            return "running", ""
        return "unfinished", f"step {self.step}" if self.losses else ""

    def snapshot(self) -> dict[str, Any]:
        """What a page shows of the run, as JSON has it."""
        loss = self.losses[-1][1] if self.losses else None
        return {
            "name": self.name, "state": self.state, "detail": self.detail, "step": self.step, "steps": self.steps,
            "loss": loss, "accuracy": self.accuracy, "score": outcome.score(self.accuracy, self.test_loss),
            "chance": self.chance, "saturated": self.saturated,
            "accumulator": self.accumulator, "seconds_left": self.seconds_left,
            "losses": thinned(self.losses), "accuracies": thinned(self.accuracies),
        }  # fmt: skip


class Watch:
    """A run directory, or a folder of them: a study's."""

    def __init__(self, path: Path) -> None:
        self.path, self.title = path, path.resolve().name
        self.is_run = _is_run(path)
        self.runs: dict[str, RunView] = {path.resolve().name: RunView(path)} if self.is_run else {}
        if self.is_run:
            next(iter(self.runs.values())).name = self.title
        self._study_s = 0.0
        self.look()

    def look(self) -> None:
        if not self.is_run:
            self._read_study()
            try:
                with os.scandir(self.path) as entries:
                    names = sorted(e.name for e in entries if not e.name.startswith(".") and _is_run(Path(e.path)))
            except OSError:
                names = []
            for name in names:
                self.runs.setdefault(name, RunView(self.path / name))
        for run in self.runs.values():
            run.look()

    def _read_study(self) -> None:
        """The title, the runs that wait, and why runs are broken; a study's file that cannot be read says nothing."""
        path = self.path / "study.json"
        try:
            written = path.stat().st_mtime
            if written == self._study_s:
                return
            study = read_json(path)
            rows = [row for row in study["rows"] if isinstance(row.get("name"), str)]
            self.title = str(study.get("title") or self.title)
        except (OSError, OctosimError, LookupError, TypeError, AttributeError):
            return
        self._study_s = written
        for row in rows:
            if Path(row["name"]).name == row["name"]:  # a folder in this one
                run = self.runs.setdefault(row["name"], RunView(self.path / row["name"]))
                run.reason = str(row.get("reason") or "") if row.get("state") in ("broken", "diverged") else ""

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        order = ("finished", "running", "waiting", "at chance", "diverged", "unfinished", "broken")
        return {state: n for state in order if (n := sum(run.state == state for run in self.runs.values()))}

    @property
    def ordered(self) -> list[RunView]:
        """The runs, what runs or went wrong first: a study has more of them than a screen has lines."""
        return sorted(self.runs.values(), key=lambda run: ORDER.index(run.state))

    @property
    def ended(self) -> bool:
        """Whether nothing runs, nor will soon: a study pauses between two of its runs."""
        if "running" in self.counts:
            return False
        written = max([self._study_s, *(run.changed_s for run in self.runs.values())])
        return "waiting" not in self.counts or time.time() - written > PATIENCE_S

    @property
    def seconds_left(self) -> float | None:
        """Of all runs together; None where no run tells, and where nothing runs any more."""
        if self.ended:
            return None
        running = [run for run in self.runs.values() if run.state == "running"]
        left = [s for run in running if (s := run.seconds_left) is not None]
        whole = [run.step_s * run.steps for run in self.runs.values() if run.step_s and run.steps]
        waiting = self.counts.get("waiting", 0) * (math.fsum(whole) / len(whole) if whole else 0.0)
        if not left and (running or not whole):
            return None
        return max([*left, (math.fsum(left) + waiting) / max(1, len(running))])

    def summary(self) -> dict[str, Any]:
        return {
            "title": self.title, "counts": self.counts, "seconds_left": self.seconds_left, "runs": len(self.runs),
            "order": [run.name for run in self.ordered],
        }  # fmt: skip


def _is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file() or (path / "records.jsonl").is_file()


def open_watch(path: Path) -> Watch:
    """OctosimError where the path is neither a run nor a folder of runs."""
    try:
        if not path.is_dir():
            what = "no folder" if path.exists() else "not there"
            raise OctosimError(f"{path} is {what}; expected a run directory or a folder of them")
        watch = Watch(path)
    except (OSError, ValueError) as error:
        raise OctosimError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not watch.runs:
        raise OctosimError(f"{path} is neither a run directory (it has no manifest.json) nor a folder of them")
    return watch
