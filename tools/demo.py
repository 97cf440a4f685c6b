"""The main job, end to end: INT8 and float32 training on real images, the step predicted for a Jetson and timed here, a report.

Usage: python tools/demo.py FOLDER.  Every command is printed before it runs; all of them work the same from a shell.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path


def octosim(*arguments: str) -> None:
    """Runs one command, shown first."""
    print(f"\n$ octosim {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "octosim.cli", *arguments], check=True)


def main(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    runs = {method: folder / f"simplecnn-{method}" for method in ("octo", "fp32")}
    for method, out in runs.items():
        octosim("train", "--model", "simplecnn", "--method", method, "--epochs", "5", "--out", str(out))
    octosim("verify", str(runs["octo"]))
    octosim("bench", "--profile", "jetson", "--model", "simplecnn", "--out", str(folder / "bench.json"))
    octosim("report", *map(str, runs.values()), str(folder / "bench.json"), "-o", str(folder / "report.html"))
    print(f"\nOpen {folder / 'report.html'} in a browser.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
