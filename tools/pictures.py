"""Makes the pictures of the documentation's tutorial and tasks, and executes its notebooks: runs the commands of each page, and
keeps what it shows.

    python tools/pictures.py [PAGE ...]     PAGE: tutorial, pays, mine, resnet18 ...; all of them if none is named
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def main() -> None:
    from kit import notebooks, reader

    for page in reader.WALKS:
        if sys.argv[1:] and page.stem not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            reader.walk(page, Path(folder), reduced=False)
            for name in reader.pictures(page):
                (page.parent / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(Path(folder) / name, page.parent / name)
                print(page.parent / name, (page.parent / name).stat().st_size)
    for path in notebooks.NOTEBOOKS:
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                notebooks.save(path, notebooks.execute(path, Path(folder), reduced=False))
            print(path, path.stat().st_size)


if __name__ == "__main__":  # studies start processes
    main()
