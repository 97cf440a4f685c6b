"""The idx format: MNIST and its kin are four such files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from octosim.errors import OctosimError

Array = np.ndarray[Any, Any]


def parse_idx(path: Path, content: bytes) -> Array:
    """The uint8 array of an idx file's bytes; OctosimError names the file where they are not one."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not 1 <= content[3] <= 4:
        raise OctosimError(
            f"{path} is not an idx file of bytes: it starts with {content[:4].hex() or 'nothing'}, expected 000008 and 01 to 04"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise OctosimError(f"{path} is truncated: its header ends after {len(content)} bytes, expected {start}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        raise OctosimError(f"{path}: the header says {expected} bytes of data, the file has {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
