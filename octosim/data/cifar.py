"""CIFAR-10's batches: six pickles of Python 2, which are read without running any of them; and the binary edition."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from octosim.errors import OctosimError

Array = np.ndarray[Any, Any]
PIXELS = 32 * 32 * 3


class _Stand:
    """Stands for numpy's array and dtype in a pickle: keeps what it is given, does nothing.

    The real ones are no safe choice: numpy.dtype's __setstate__ can change a dtype that the whole process shares.
    """

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Admits the three names of a CIFAR-10 batch, as stands; so a pickle can build containers, and call nothing."""

    admitted = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs; refused")
        return _Stand


def parse_batch(path: Path, content: bytes) -> tuple[Array, Array]:
    """Images uint8 (N, 32, 32, 3) and labels uint8 (N,) of a CIFAR-10 batch's bytes (protocol 2, from Python 2).

    Raises OctosimError, naming the file, for anything else; a pickle that asks for other names than a batch's is refused.
    Source: the layout on the data set's page, cs.toronto.edu/~kriz/cifar.html: a row is 1024 red, green, blue bytes.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle may raise nearly anything
        raise OctosimError(f"{path} is not a CIFAR-10 batch: {error or type(error).__name__}") from None
    data, labels = (batch.get(b"data"), batch.get(b"labels")) if isinstance(batch, dict) else (None, None)
    match data.state if isinstance(data, _Stand) else None:
        # version, shape, dtype, whether columns come first, bytes: what numpy.ndarray.__reduce__ keeps
        case (1, (int(rows), 3072), _Stand(arguments=(b"u1", *_)), False, bytes(pixels)) if len(pixels) == rows * 3072:
            pass
        case _:
            raise OctosimError(f"{path}: its 'data' are not uint8 rows of 3072, as expected of a CIFAR-10 batch")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise OctosimError(f"{path}: its 'labels' are not a list of small integers, as expected of a CIFAR-10 batch")
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.uint8)


def parse_records(path: Path, content: bytes, labels: int = 1) -> tuple[Array, Array]:
    """Images uint8 (N, 32, 32, 3) and labels uint8 (N,), each record's last, of a file of the binary edition."""
    size = labels + PIXELS
    if not content or len(content) % size:
        raise OctosimError(f"{path} has {len(content)} bytes, expected a multiple of {size}: records of labels and 3072 bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    images = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, labels - 1].copy()
