"""Atomic writes on every kind of target, JSON within limits, and locks."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octosim import files
from octosim.errors import OctosimError
from octosim.files import locked, parse_json, read_json, read_lines, write_atomic

# ---- atomic writes --------------------------------------------------


def test_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".txt")  # as long as a name may be
    write_atomic(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    path.chmod(0o640)
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("there", [False, True])
def test_a_link_stays_and_its_target_is_replaced(there: bool, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    target = tmp_path / "inner/target"
    if there:
        target.write_text("old")
    (tmp_path / "link").symlink_to("inner/hop")
    (tmp_path / "inner/hop").symlink_to("target")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "inner/hop").is_symlink() and target.read_bytes() == b"new"


def test_a_device_is_written_to() -> None:
    before = os.stat("/dev/null")
    write_atomic(Path("/dev/null"), b"gone")
    assert os.path.samestat(before, os.stat("/dev/null"))
    with pytest.raises(OctosimError, match="cannot write /dev/full: No space left on device"):
        write_atomic(Path("/dev/full"), b"x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_of_ones_own_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        write_atomic(path, b"gone")
    except (PermissionError, OctosimError):
        pytest.skip("no devices on this file system")
    assert stat.S_ISCHR(path.stat().st_mode)


def test_a_fifo_gets_the_content(tmp_path: Path) -> None:
    path, content, got = tmp_path / "fifo", os.urandom(300_000), []
    os.mkfifo(path)

    def read() -> None:
        time.sleep(0.2)
        got.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    write_atomic(path, content)
    reader.join()
    assert got == [content] and stat.S_ISFIFO(path.stat().st_mode)


def test_a_fifo_without_a_reader_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FIFO_S", 0.1)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OctosimError, match="cannot write .*fifo: No such device or address"):
        write_atomic(tmp_path / "fifo", b"x")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_stdout_as_a_file(tmp_path: Path) -> None:
    """What a shell has open is written to: the file behind it is not another afterwards."""
    code = "from pathlib import Path; from octosim.files import write_atomic; write_atomic(Path('/dev/stdout'), b'page')"
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=out)
        assert os.path.samestat(os.fstat(out.fileno()), (tmp_path / "out").stat())
    assert (tmp_path / "out").read_bytes() == b"page"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout == b"page"


def _folder(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "folder": (_folder, "it is a folder"),
    "socket": (_socket, "it is a socket"),
    "loop": (lambda path: path.symlink_to(path.name), "levels of symbolic links"),
    "nul": (lambda path: None, "null"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = REFUSED[kind]
    path = tmp_path / ("a\0b" if kind == "nul" else "place")
    make(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OctosimError, match=words):
        write_atomic(path, b"x")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("path", ["missing/x", "file/x", "/proc/x", "x" * 256])
def test_where_nothing_can_be(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OctosimError, match="cannot write .*: "):
        write_atomic(tmp_path / path, b"x")


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "fdopen"])
@pytest.mark.parametrize("cleanup", [False, True])
def test_a_failing_call_is_a_sentence_and_the_old_file_stays(
    call: str, cleanup: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the temporary file cannot be removed, as on a file system that has become read-only."""
    path = tmp_path / "x"
    path.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        if cleanup:
            patch.setattr(os, "unlink", fail)
        with pytest.raises(OctosimError, match="x: Read-only file system"):
            write_atomic(path, b"new")
    assert path.read_text() == "old" or call == "fsync"
    write_atomic(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"], "the next write sweeps what is left"


def _hold(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    files._try_lock(fd)
    ready.set()
    time.sleep(60)


def test_sweeps_what_dead_processes_left(tmp_path: Path) -> None:
    """Not what a live one writes, nor what is another program's."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    alive = tmp_path / ".page.html.0000aaaa.octosim.tmp"
    process = context.Process(target=_hold, args=(alive, ready))
    process.start()
    assert ready.wait(60)
    kept = [alive, tmp_path / ".other.123.tmp", tmp_path / "x.octosim.tmp", tmp_path / ".page.html.tmp"]
    for path in kept[1:]:
        path.write_text("")
    for name in (".page.html.0000bbbb.octosim.tmp", ".else.0000cccc.octosim.tmp", ".page.html.4321.tmp"):
        (tmp_path / name).write_text("")
    write_atomic(tmp_path / "page.html", b"x")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "page.html"])
    process.kill()
    process.join()
    write_atomic(tmp_path / "page.html", b"x")
    assert not alive.exists()


def test_threads_that_write_one_file(tmp_path: Path) -> None:
    contents = [bytes([i]) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomic(tmp_path / "x", content), contents))
    assert (tmp_path / "x").read_bytes() in contents and len(list(tmp_path.iterdir())) == 1


def test_a_sweep_between_a_temporary_file_and_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may sweep in that moment: the file is made again."""
    lock, swept = files._try_lock, list[int]()

    def sweep_first(fd: int, wait: bool = False) -> None:
        if not swept:
            swept.append(fd)
            files.sweep(tmp_path)
            assert not list(tmp_path.iterdir())
        lock(fd, wait)

    monkeypatch.setattr(files, "_try_lock", sweep_first)
    write_atomic(tmp_path / "x", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"whole"
    assert swept and not files.unfinished


# ---- locks --------------------------------------------------


def _count(folder: Path, times: int) -> None:
    for _ in range(times):
        with locked(folder / "lock", "busy", wait=True):
            number = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(number + 1))


def test_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    threads = [threading.Thread(target=_count, args=(tmp_path, 50)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count").read_text() == "200" and not (tmp_path / "lock").exists()


def test_busy_and_stale(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("of a dead process")
    with locked(tmp_path / "lock", "busy"):
        with pytest.raises(OctosimError, match="^busy$"), locked(tmp_path / "lock", "busy"):
            pass
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("path", ["missing/lock", "folder", "link"])
def test_where_no_lock_can_be(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/elsewhere")
    with pytest.raises(OctosimError, match="cannot write "), locked(tmp_path / path, "busy"):
        pass


# ---- JSON --------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b'{"a": 1} x', "it is not JSON"),
        (b"[" * 100_000, "nests deeper than 100 levels"),
        (b'{"a":' * 100_000, "nests deeper than 100 levels"),
        (b'["' + b'\\"' * 3_000_000, "it is not JSON"),  # in linear time
        (b'{"a":' * 200 + b'"' + b'\\"' * 1_000_000, "nests deeper than 100 levels"),
        (b"[" + b"0," * 6_000_000 + b"0]", "has more than 5,000,000 values"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "field 'b' stands twice"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(200_000)) + b',"199999":1}', "field '199999' stands twice"),
        (b"1" * 10_000, "it is not JSON"),
        (b'"\\ud800', "it is not JSON"),
    ],
)
def test_what_is_not_json(content: bytes, words: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(OctosimError, match=words) as caught:
        parse_json(content, "x.json")
    assert str(caught.value).startswith("x.json ") and "\n" not in str(caught.value)
    assert time.perf_counter() - started < 10
    if b"\n" not in content:
        (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + content + b"\n")
        rows = read_lines(tmp_path / "x.jsonl")
        assert next(rows) == ({"a": 1}, 9)
        with pytest.raises(OctosimError, match="line 2 is "):
            next(rows)


def test_what_is_json(tmp_path: Path) -> None:
    deep = "[" * 100 + "]" * 100
    for text in (deep, json.dumps(["[{" * 1000, '\\"[' * 1000]), '\ufeff{"ä": 1e999}', "[" + "[]," * 1000 + "NaN]"):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert repr(read_json(tmp_path / "x.json")) == repr(json.loads(text.removeprefix("\ufeff")))


def test_only_regular_files_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in [(tmp_path / "fifo", "it is not a regular file"), (Path("/dev/zero"), "it is not a regular file"),
                        (tmp_path, "it is a folder"), (tmp_path / "no", "No such file")]:  # fmt: skip
        with pytest.raises(OctosimError, match=f"cannot be read: {words}"):
            read_json(path)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10**12)
    with pytest.raises(OctosimError, match="larger than 67,108,864 bytes"):
        read_json(tmp_path / "sparse")
    with pytest.raises(OctosimError, match="line 1 is longer than 4,194,304 bytes"):
        next(read_lines(tmp_path / "sparse"))
    assert list(read_lines(tmp_path / "none.jsonl")) == []
