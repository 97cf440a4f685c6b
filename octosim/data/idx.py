"""The idx format: MNIST and its kin are four such files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from octosim.errors import OctosimError
from octosim.files import open_regular

Array = np.ndarray[Any, Any]

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Values of an idx file by the third byte of its header."""


def _header(path: Path, content: bytes, types: dict[int, str]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Type, shape and size of the header."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in types or not 1 <= content[3] <= 4:
        what, begin = ("of bytes", "000008") if len(types) == 1 else ("of numbers", "0000, a type")
        raise OctosimError(
            f"{path} is not an idx file {what}: it starts with {content[:4].hex() or 'nothing'}, expected {begin} and 01 to 04"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise OctosimError(f"{path} is truncated: its header ends after {len(content)} bytes, expected {start}")
    return np.dtype(types[content[2]]), struct.unpack(f">{content[3]}I", content[4:start]), start


def parse_idx(path: Path, content: bytes, types: dict[int, str] = {0x08: ">u1"}) -> Array:  # noqa: B006
    """The array of an idx file's bytes, uint8 unless other types are allowed; OctosimError where they are none."""
    dtype, shape, start = _header(path, content, types)
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(content) - start != expected:
        raise OctosimError(f"{path}: the header says {expected} bytes of data, the file has {len(content) - start}")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array if dtype == np.uint8 else array.astype(dtype.newbyteorder("="))


def read_idx(path: Path, check: Any) -> Array:
    """The array of an idx file, compressed or not.  check(shape, dtype) may refuse it before its data are read."""
    try:
        with open_regular(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else file as stream:
                head = stream.read(4)
                head += stream.read(4 * head[3] if len(head) == 4 and head[3] <= 4 else 0)
                dtype, shape, _ = _header(path, head, TYPES)
                check(shape, dtype)
                expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
                return parse_idx(path, head + stream.read(expected + 1), TYPES)  # one more: it tells of a longer file
    except (OSError, EOFError, zlib.error) as error:
        text = getattr(error, "strerror", None) or error
        raise OctosimError(f"{path} cannot be read: {text}") from None
