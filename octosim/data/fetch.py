"""Downloads of data sets into the cache, by checksum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from octosim import files
from octosim.data import sets
from octosim.errors import OctosimError


def _why(error: BaseException) -> str:
    """The root of a failed download in a few words; the chain above it is the HTTP library's inner life."""
    if isinstance(error, ValueError) and "does not match the known hash" in str(error):
        return "what came has not the expected sha256"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def fetch(name: str, progress: bool = False) -> Path:
    """Downloads a data set into the cache, by checksum; returns its folder, or its archive where it is one.

    A file that fails its checksum or a lost connection leaves nothing half-written, and raises OctosimError; what is there
    already is not downloaded again.
    """
    import pooch  # here, since in a notebook its import may warn of a progress bar

    name, source = sets.resolve(name)
    if source.url is None:
        raise OctosimError(f"data set {name} is in the package: there is nothing to fetch")
    if source.archive is None:
        folder, wanted = sets.cache() / name, list(zip(source.files, source.sha256, strict=True))
    else:
        folder, wanted = sets.cache(), [source.archive]

    def download(url: str, target: str, caller: Any) -> None:
        files.unfinished.add(Path(target))
        try:
            pooch.HTTPDownloader(progressbar=progress, timeout=30)(url, target, caller)
        finally:
            files.unfinished.discard(Path(target))

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make {folder}: {error.strerror}; XDG_CACHE_HOME names another folder") from None
    if not os.access(folder, os.W_OK):
        raise OctosimError(f"{folder} is not writable; XDG_CACHE_HOME names another folder")
    pooch.get_logger().setLevel("WARNING")
    for file, digest in wanted:
        try:
            pooch.retrieve(
                source.url + file, f"sha256:{digest}", fname=file, path=folder,
                downloader=download,
            )  # fmt: skip
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: the checksum
            raise OctosimError(f"could not fetch {source.url}{file}: {_why(error)}") from None
    return folder if source.archive is None else folder / source.archive[0]
