"""Files of every command: atomic writes, JSON within limits, locks, and what a record says about the machine."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from octosim.errors import OctosimError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

JSON_BYTES = 64 << 20  # of a JSON file
LINE_BYTES = 4 << 20  # of a line of a JSON-lines file
JSON_DEPTH = 100
JSON_VALUES = 5_000_000
FIFO_S = 5.0  # how long a write waits for the reader of a FIFO
unfinished: set[Path] = set()
"""Temporary files that are being written: whoever ends this process at once removes them first."""
_ABANDONED_S = 86400.0  # a temporary file this old has no writer, where the file system knows no locks


def is_onnx(name: str | Path) -> bool:
    """Whether a file is an ONNX file, by its name."""
    return str(name).casefold().endswith(".onnx")


# ---- atomic writes --------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file as a whole, durably; a symbolic link stays, and its target is replaced.

    A character device or a FIFO is written to; a folder, a socket and a block device are refused.  OctosimError where the disk
    is full, the folder is missing or not writable.  Temporary files that killed processes left in the folder are removed.
    """
    try:
        target = _write_to_special(path, content)
        if target is not None:
            _replace(target, content)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise OctosimError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def _write_to_special(path: Path, content: bytes) -> Path | None:
    """Writes to what is no regular file; else the regular file, there or not, that `path` means."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISREG(mode) and not _is_descriptor(path):
        return Path(os.path.realpath(path))
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        kind = "a folder" if stat.S_ISDIR(mode) else "a socket" if stat.S_ISSOCK(mode) else "a block device"
        raise OSError(errno.EINVAL, f"it is {kind}")
    with os.fdopen(_open_special(path, mode), "wb", buffering=0) as file:
        os.set_blocking(file.fileno(), True)
        left = memoryview(content)
        while left:
            left = left[file.write(left) or 0 :]
    return None


def _is_descriptor(path: Path) -> bool:
    """Whether the path leads through /proc/PID/fd, as /dev/stdout does: a stream of this process, which a shell has open."""
    place = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        if re.fullmatch(r"/proc/(self|thread-self|\d+)(/task/\d+)?/fd|/dev/fd", os.path.dirname(place)):
            return True
        if not os.path.islink(place):
            return False
        place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
    return False


def _open_special(path: Path, mode: int) -> int:
    until = time.monotonic() + FIFO_S
    while True:
        try:
            return os.open(path, os.O_WRONLY | (os.O_NONBLOCK if stat.S_ISFIFO(mode) else 0) | getattr(os, "O_NOCTTY", 0))
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > until:
                raise
        time.sleep(0.05)


def _replace(target: Path, content: bytes) -> None:
    sweep(target.parent, target.name)
    # a name of its own for each process and thread, which leaves room where the target's name is as long as names may be
    temporary = target.with_name(f".{target.name[:40]}.{os.urandom(4).hex()}.octosim.tmp")
    unfinished.add(temporary)
    try:
        with _opened(_open_locked(temporary, wait=True, flags=os.O_EXCL | getattr(os, "O_BINARY", 0))) as file:
            with contextlib.suppress(OSError, AttributeError):
                os.fchmod(file.fileno(), stat.S_IMODE(os.stat(target).st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # while the lock keeps other writers' sweeps from it; Windows replaces no open file
                os.replace(temporary, target)
        if fcntl is None:
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        unfinished.discard(temporary)
    sync_folder(target.parent)


def _opened(fd: int) -> BinaryIO:
    try:
        return os.fdopen(fd, "wb")
    except BaseException:
        os.close(fd)
        raise


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # writable, not readable
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a file system without it
            raise
    finally:
        os.close(fd)


def sweep(folder: Path, name: str = "") -> None:
    """Removes the temporary files of `write_atomic` whose process is gone.  name: of a file, whose temporary files under the
    names of earlier versions go too.  It tells of no error: it is housekeeping."""
    earlier = re.compile(rf"\.{re.escape(name)}\.\d+\.tmp") if name else None
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            ours = entry.name.startswith(".") and entry.name.endswith(".octosim.tmp")
            if ours or earlier and earlier.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_abandoned(entry)


def _remove_abandoned(entry: os.DirEntry[str]) -> None:
    if not entry.is_file(follow_symlinks=False):
        return
    if fcntl is None:
        os.unlink(entry.path)  # which Windows refuses while the file is open
        return
    fd = os.open(entry.path, os.O_RDWR | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    try:
        _try_lock(fd)
        if _same_file(fd, entry.path):
            os.unlink(entry.path)
    except BlockingIOError:
        return  # its process lives
    except OSError:
        if time.time() - os.fstat(fd).st_mtime > _ABANDONED_S:
            os.unlink(entry.path)
    finally:
        os.close(fd)


# ---- locks --------------------------------------------------


def _try_lock(fd: int, wait: bool = False) -> None:
    """BlockingIOError where another open file holds the lock; another OSError where the file system has none."""
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    import msvcrt

    while True:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            return
        except OSError as error:
            if not wait:
                raise BlockingIOError(errno.EWOULDBLOCK, "locked") from error
        time.sleep(0.1)


def _same_file(fd: int, path: str | Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, which goes with the lock; the kernel drops the lock of a process that dies.

    busy: the sentence where another process holds it.  wait: wait for that process.  NFS locks between machines; a file system
    without locks (ENOLCK, ENOTSUP) is taken as it is.
    """
    try:
        fd = _open_locked(path, wait)
    except BlockingIOError:
        raise OctosimError(busy) from None
    except OSError as error:
        raise OctosimError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # while it is held: who waits for this file finds another inode there, and begins again
        os.close(fd)


def _open_locked(path: Path, wait: bool, flags: int = 0) -> int:
    """A file that is there and locked, made where it is not; without a lock where the file system has none."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | flags, 0o666)
        try:
            try:
                _try_lock(fd, wait)
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
                return fd
            if _same_file(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its holder, or a sweep, removed it meanwhile


# ---- reading --------------------------------------------------


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file to read; OSError for anything else, a FIFO or a device among them."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; OctosimError where it cannot be read or is larger."""
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise OctosimError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > limit:
        raise OctosimError(f"{path} cannot be read: it is larger than {limit:,} bytes")
    return content


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # an open one goes to the end


def _nests_too_deep(content: bytes) -> bool:
    depth = 0
    for bracket in re.finditer(rb"[][{}]", _STRING.sub(b"", content)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > JSON_DEPTH:
            return True
    return False


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"field {name!r} stands twice in an object")
    return content


def json_value(content: bytes) -> Any:
    """The value of a JSON text in UTF-8; ValueError for what is not JSON, nests deeper than JSON_DEPTH, has more than
    JSON_VALUES values, or has a field twice in an object.  NaN and Infinity are read as floats."""
    opened = content.count(b"{") + content.count(b"[")
    if opened + content.count(b",") > JSON_VALUES:
        raise ValueError(f"its JSON has more than {JSON_VALUES:,} values")
    if opened > JSON_DEPTH and _nests_too_deep(content):
        raise ValueError(f"its JSON nests deeper than {JSON_DEPTH} levels")
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {str(error).splitlines()[0]}") from None


def parse_json(content: bytes, where: str) -> Any:
    """`json_value`, with OctosimError, beginning with `where`."""
    try:
        return json_value(content)
    except ValueError as error:
        raise OctosimError(f"{where} cannot be read: {error}") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file of at most JSON_BYTES."""
    return parse_json(read_bytes(path, JSON_BYTES), str(path))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; OctosimError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise OctosimError(f"{path} cannot be read: {error}") from None


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a JSON-lines file, one by one, each with the offset of its end; none where there is no file.

    OctosimError at the first line that is longer than LINE_BYTES, without its end, or no JSON object.
    """
    try:
        with open_regular(path) as file:
            end = 0
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), start=1):
                if len(line) > LINE_BYTES:
                    raise OctosimError(f"{path}: line {number} is longer than {LINE_BYTES:,} bytes")
                end += len(line)
                try:
                    row = parse_json(line, "it") if line.endswith(b"\n") else None
                except OctosimError:
                    row = None
                if not isinstance(row, dict):
                    raise OctosimError(f"{path}: line {number} is cut off or not JSON")
                yield row, end
    except FileNotFoundError:
        return
    except OSError as error:
        raise OctosimError(f"{path} cannot be read: {error.strerror}") from None


# ---- the machine --------------------------------------------------


def environment(isa: str, threads: int) -> dict[str, Any]:
    """The machine and the software around, on which no bit of a run depends.  isa, threads: those of the core."""
    from importlib.metadata import version  # which takes as long to import as the help text

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "isa": isa,
        "threads": threads,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "platform": platform.platform(terse=True),
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
