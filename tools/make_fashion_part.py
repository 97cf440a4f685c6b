"""Makes octosim/datasets/fashion-mnist-5k from Debian's package dataset-fashion-mnist (MIT, Zalando).

The part is the first 500 training and the first 100 test images of each of the ten classes, in their original order, as idx
files compressed without a time stamp: the same input gives the same bytes.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb unpacked
    python tools/make_fashion_part.py unpacked octosim/datasets/fashion-mnist-5k
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np

PARTS = {"train": 500, "t10k": 100}  # images of each class


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array of an idx file: magic 0x0000 08 <dimensions>, sizes, data."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), compresslevel=9, mtime=0))
    print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


def main(unpacked: Path, out: Path) -> None:
    source = unpacked / "usr/share/datasets/fashion-mnist"
    out.mkdir(parents=True, exist_ok=True)
    for part, each in PARTS.items():
        labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz")
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(10)]))
        write_idx(out / f"{part}-images-idx3-ubyte.gz", read_idx(source / f"{part}-images-idx3-ubyte.gz")[chosen])
        write_idx(out / f"{part}-labels-idx1-ubyte.gz", labels[chosen])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
