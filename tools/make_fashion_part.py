"""Makes octosim/data/datasets/fashion-mnist-5k from Debian's package dataset-fashion-mnist (MIT, Zalando).

The part is the first 500 training and the first 100 test images of each of the ten classes, in their original order, as idx
files compressed without a time stamp: the same input and the same zlib give the same bytes.

    python tools/make_fashion_part.py                 downloads the package with apt-get (after apt-get update, if need be)
    python tools/make_fashion_part.py --from FOLDER   takes the package unpacked by dpkg -x, or a folder of the four files
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

PACKAGE = "dataset-fashion-mnist"
PARTS = {"train": 500, "t10k": 100}  # images of each class
OUT = Path(__file__).resolve().parent.parent / "octosim/data/datasets/fashion-mnist-5k"
# SHA-256 of the unpacked idx files.  Debian's .gz differ from Zalando's in their headers; what is in them does not.
CONTENT = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def download(folder: Path) -> Path:
    """Downloads Debian's package into a folder and unpacks it there."""
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
    (deb,) = folder.glob(f"{PACKAGE}_*.deb")
    subprocess.run(["dpkg", "-x", deb, folder / "unpacked"], check=True)
    return folder / "unpacked"


def read_idx(folder: Path, name: str) -> np.ndarray:
    """A uint8 array of an idx file: magic 0x0000 08 <dimensions>, sizes, data; its content checked."""
    content = gzip.decompress((folder / name).read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != CONTENT[name]:
        raise ValueError(f"{folder / name}: its content has sha256 {found}, expected {CONTENT[name]}")
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def packed_idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes(), compresslevel=9, mtime=0)


def make(source: Path, out: Path) -> None:
    """Writes the four files of the part into out and prints their SHA-256, the ones that octosim/data.py has to hold."""
    installed = source / "usr/share/datasets/fashion-mnist"
    folder = installed if installed.is_dir() else source
    files = {}
    for part, each in PARTS.items():
        images_name, labels_name = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
        labels = read_idx(folder, labels_name)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(10)]))
        files[images_name] = packed_idx(read_idx(folder, images_name)[chosen])
        files[labels_name] = packed_idx(labels[chosen])
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        half = out / f"{name}.part"
        half.write_bytes(content)
        os.replace(half, out / name)
        print(f"{hashlib.sha256(content).hexdigest()}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="the unpacked files; else: downloaded")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="default: the folder in this checkout")
    arguments = parser.parse_args()
    try:
        if arguments.source is not None:
            make(arguments.source, arguments.out)
        else:
            with tempfile.TemporaryDirectory() as folder:
                make(download(Path(folder)), arguments.out)
    except (OSError, EOFError, ValueError, zlib.error, subprocess.CalledProcessError) as error:
        sys.exit(f"make_fashion_part: {error}")


if __name__ == "__main__":
    main()
