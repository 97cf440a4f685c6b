"""octosim watch: what it says of runs in every state, who may have its page, and the page in a browser."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit import axe
from kit.browser import CHROMIUM, Browser
from kit.cli import octosim
from kit.pages import EVIL, lines, make_run, manifest, records

from octosim import watch
from octosim.errors import OctosimError
from octosim.watch.runs import POINTS, RunView, thinned

COUNTED = [{"step": 10, "layer": "conv2", "pass": "forward", "inexact": 31, "outputs": 100}]


def begin(path: Path, rows: list[dict], lock: bool = True, **settings: object) -> Path:
    """A run that trains, as far as its files tell."""
    make_run(path, rows, digest="", **settings)
    if lock:
        (path / ".lock").touch()
    return path


def age(run: Path, seconds: float) -> None:
    for file in run.iterdir():
        os.utime(file, (time.time() - seconds, time.time() - seconds))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A run in every state."""
    folder = tmp_path / "study"
    make_run(folder / "finished")
    low = make_run(folder / "chance", records(accuracies=(0.1, 0.1))) / "manifest.json"
    low.write_text(low.read_text().replace('"out": 10', '"units": 10'))
    begin(folder / "running", records()[:9])
    (folder / "running/overflow.jsonl").write_text(lines(COUNTED))
    begin(folder / "diverged", records()[:9])
    (folder / "diverged/failure.json").write_text(json.dumps({"step": 10, "reason": "step 10, layer conv2, dW: NaN"}))
    begin(folder / "damaged", records()[:9], lock=False)
    (folder / "damaged/failure.json").write_text("[" * 100_000)
    begin(folder / "broken", records()[:9], lock=False)
    begin(folder / "stopped", records()[:9], lock=False)
    begin(folder / "killed", records()[:9])
    age(folder / "killed", 1000)
    rows = [{"name": name, "state": "waiting", "reason": ""} for name in ("finished", "later", "../elsewhere")]
    rows.append({"name": "broken", "state": "broken", "reason": "no space left"})
    (folder / "study.json").write_text(json.dumps({"kind": "study", "title": EVIL, "rows": rows}))
    return folder


STATES = {
    "finished": ("finished", ""), "chance": ("at chance", ""), "running": ("running", ""), "later": ("waiting", ""),
    "diverged": ("diverged", "step 10, layer conv2"), "broken": ("broken", "no space left"),
    "damaged": ("unfinished", "step 9"), "stopped": ("unfinished", "step 9"), "killed": ("unfinished", "step 9"),
}  # fmt: skip


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_states(study: Path) -> None:
    before = contents(study)
    watched = watch.open_watch(study)
    assert {name: (run.state, run.detail) for name, run in watched.runs.items()} == STATES
    assert sum(watched.counts.values()) == len(STATES) and not watched.ended
    running = watched.runs["running"]
    assert running.saturated == {"share": 0.31, "layer": "conv2", "pass": "forward"}
    assert (running.steps, running.step, running.accuracy) == (1200, 9, None)
    assert watched.seconds_left is not None and watched.seconds_left >= 0
    assert contents(study) == before
    shown = [run.state for run in watched.ordered]
    assert shown[0] == "running" and shown[-1] == "waiting" and shown.index("diverged") < shown.index("finished")


def test_a_study_between_two_of_its_runs_has_not_ended(tmp_path: Path) -> None:
    """The last run has its digest, the next one no file yet: what watches it goes on, and says how long."""
    run = begin(tmp_path / "one", records()[:9])
    (tmp_path / "study.json").write_text(json.dumps({"rows": [{"name": "one"}, {"name": "two"}, {"name": "three"}]}))
    age(run, 10)
    watched = watch.open_watch(tmp_path)
    with (run / "records.jsonl").open("a") as out:
        out.write(lines(records()[9:12]))
    (run / "digest.txt").write_text("sha256:0")
    watched.look()
    assert watched.counts == {"finished": 1, "waiting": 2} and not watched.ended
    assert watched.seconds_left == pytest.approx(2 * 1200 * 10 / 3, rel=0.5)
    age(run, 1000)
    age(tmp_path, 1000)
    ended = watch.open_watch(tmp_path)
    assert ended.ended and ended.seconds_left is None


def test_growth(tmp_path: Path) -> None:
    """Lines join as they are whole; a run that goes on from its checkpoint, or begins anew, replaces what came after."""
    rows = records()
    folder = begin(tmp_path / "run", rows[:3])
    file = folder / "records.jsonl"
    age(folder, 30)
    run = RunView(folder)
    run.look()
    version = run.version
    run.look()
    assert (run.step, run.version) == (3, version)
    text = lines(rows[3:6])
    with file.open("a") as out:
        out.write(text[:-9])
    run.look()
    assert run.step == 5 and run.version > version
    with file.open("a") as out:
        out.write(text[-9:])
    run.look()
    assert [step for step, _ in run.losses] == [1, 2, 3, 4, 5, 6]
    assert run.step_s is not None and 7 < run.step_s < 16  # 3 steps in 30 seconds
    assert run.seconds_left is not None and run.seconds_left > 1000
    file.write_text(lines(rows[:4]))  # shorter
    run.look()
    assert [step for step, _ in run.losses] == [1, 2, 3, 4]
    file.write_text(lines([*rows[:4], *[row | {"loss": 9.0} for row in rows[4:6]]]))
    run.look()
    with file.open("r+") as out:  # cut at a checkpoint and grown past the last look, between two looks
        out.write(lines([row | {"loss": 7.0} for row in rows[:20]]))
    run.look()
    assert [step for step, _ in run.losses] == list(range(1, 21))
    file.unlink()
    run.look()
    assert run.step == 0


@pytest.mark.parametrize("line", ["[1]\n", "{broken}\n", "null\n", '{"step": 1}{\n', "\xff\n"])
def test_lines_of_another_kind(tmp_path: Path, line: str) -> None:
    folder = begin(tmp_path / "run", records()[:2])
    with (folder / "records.jsonl").open("a") as out:
        out.write(line)
    run = RunView(folder)
    run.look()
    assert run.state == "broken" and "records.jsonl" in run.detail and run.step == 2


@pytest.mark.parametrize("change", [{"decides": None}, {"decides": {"data": None}}, {"decides": {"data": {}}}])
def test_manifests_that_say_little(tmp_path: Path, change: dict) -> None:
    folder = begin(tmp_path / "run", [{"step": "x", "loss": True}, {"loss": 1.0}, *records()[:2]])
    (folder / "manifest.json").write_text(json.dumps(manifest() | change))
    run = RunView(folder)
    run.look()
    assert run.step == 2 and json.dumps(run.snapshot(), allow_nan=False)


@pytest.mark.parametrize("count", [0, 1, 2, POINTS, POINTS + 1, 10_007])
def test_thinned_curves(count: int) -> None:
    points = [(i, float(i)) for i in range(1, count + 1)]
    short = thinned(points)
    assert len(short) <= POINTS and short[-1:] == points[-1:]
    assert [step for step, _ in short] == sorted({step for step, _ in short})


def get(server: watch.Server, path: str, host: str | None = None) -> tuple[int, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.putrequest("GET", path, skip_host=host is not None)
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer


def event(answer: http.client.HTTPResponse) -> dict:
    while True:
        line = answer.readline()
        assert line, "the events ended"
        if line.startswith(b"data: "):
            return json.loads(line[6:])


def test_page_and_events(study: Path) -> None:
    server = watch.serve(watch.open_watch(study))
    try:
        token = f"/{server.token}/"
        status, page = get(server, token)
        text = page.read().decode()
        assert status == 200 and "<title>octosim watch</title>" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # it loads nothing
        assert server.server_address[0] == "127.0.0.1" and "NONCE" not in text
        for path in ("/", "/events", f"/{server.token[:-1]}/", f"/{server.token}x/events", "/%2e%2e/", "/%e9/"):
            assert get(server, path)[0] == 403, path
        for host in ("example.org", f"example.org:{server.server_address[1]}", "127.0.0.1", "127.0.0.1:1"):
            assert get(server, token, host)[0] == 403, host
        assert get(server, token, f"localhost:{server.server_address[1]}")[0] == 200
        assert get(server, token + "../../etc/passwd")[0] == 404
        status, events = get(server, token + "events")
        first = event(events)
        assert status == 200 and set(first["changed"]) == set(STATES) and first["title"] == EVIL
        with (study / "running/records.jsonl").open("a") as out:
            out.write(lines(records()[9:12]))
        while not (told := event(events))["changed"]:
            pass
        assert list(told["changed"]) == ["running"] and told["changed"]["running"]["step"] == 12
        with pytest.raises(OctosimError, match=r"port \d+ of 127.0.0.1 cannot be had"):
            watch.serve(watch.open_watch(study), server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")
def test_page_in_a_browser(study: Path, tmp_path: Path) -> None:
    server = watch.serve(watch.open_watch(study))
    browser = Browser(tmp_path / "profile")
    try:
        for width in (390, 768, 1280, 1920):
            browser.open(server.url, width)
            browser.until(f"document.querySelectorAll('tbody tr').length == {len(STATES)}")
            assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelector('h1').textContent") == EVIL
        with (study / "running/records.jsonl").open("a") as out:
            out.write(lines(records()[9:12]))
        browser.until("document.body.innerText.includes('12 of 1,200')")
        browser.value("[...document.querySelectorAll('button')].find(b => b.textContent == 'running').click()")
        assert browser.value("document.querySelectorAll('#loss path.chosen').length") == 1
        assert browser.messages == []
    finally:
        browser.close()
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_axe(study: Path, tmp_path: Path) -> None:
    source = axe.rules()
    server = watch.serve(watch.open_watch(study))
    browser = Browser(tmp_path / "profile")
    try:
        for width in axe.WIDTHS:
            for scheme in axe.SCHEMES:
                axe.show(browser, server.url, width, scheme, f"document.querySelectorAll('tbody tr').length == {len(STATES)}")
                browser.value("[...document.querySelectorAll('button')].find(b => b.textContent == 'running').click()")
                assert axe.violations(browser, source) == [], (width, scheme)
    finally:
        browser.close()
        server.shutdown()
        server.server_close()


def test_command(study: Path) -> None:
    for width in (40, 80, 160):
        shown = octosim("watch", str(study), "--terminal", COLUMNS=str(width))
        assert shown.returncode == 0 and "diverged" in shown.stdout and shown.stderr == ""
    for path in (study / "later", study / "study.json", study / "finished/manifest.json"):
        refused = octosim("watch", str(path), "--terminal")
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and str(path) in refused.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = octosim("watch", str(study), "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 2 and "cannot be had" in refused.stderr


def test_runs_list(study: Path) -> None:
    """The runs of a folder, wherever they lie in it."""
    (study / "finished").rename(study.parent / "alone")
    rows = json.loads(octosim("runs", "list", str(study.parent), "--json").stdout)
    wanted = {f"study/{name}": state for name, (state, _) in STATES.items() if name not in ("finished", "later")}
    assert {row["name"]: row["state"] for row in rows} == wanted | {"alone": "finished"}
    for width in (80, 100, 160):
        shown = octosim("runs", "list", str(study.parent), COLUMNS=str(width)).stdout
        assert "8 runs" in shown and "alone" in shown and all(len(line) <= width for line in shown.splitlines())
    assert octosim("runs", "list", str(study / "running")).returncode == 0
    refused = octosim("runs", "list", str(study / "absent"))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_interrupt(study: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "octosim.cli", "watch", str(study)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout and "http://127.0.0.1:" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "" and process.returncode == 130
