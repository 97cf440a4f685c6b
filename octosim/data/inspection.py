"""`octosim data check`: what a user's own data hold, and what keeps a network from being trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from octosim.data.dataset import Array, Dataset, Options, parse_image, row_digests
from octosim.data.folder import Folder, Listing, listing, peek, quiet, read_image
from octosim.data.sources import is_own, load, open_source
from octosim.errors import ArgumentError, OctosimError
from octosim.settings import spelling

PREVIEW = (64, 64)
"""Height and width to which images of several sizes, or of a large one, are brought, where no --image is given."""
LARGE = 1 << 17
"""Pixels of an image above which a network's time and memory call for a smaller --image: cameras' pictures have millions."""
DARK = 32
"""Of 255: where no pixel reaches it, images of 10 or 12 bits were probably stored with 16."""
FEW = 10
"""Images of a class below which a warning is due."""

Progress = Callable[[int, int], None]


def check(
    name: str, image: str | None = None, test_share: float | None = None, progress: Progress | None = None,
    skip_unreadable: bool = False,
) -> dict[str, Any]:
    """What there is to know of a data set before training on it.

    "problems": sentences, each of which keeps a network from being trained; "warnings": what is odd.  "image": the size in
    which the images were looked at, where they have several.  Other fields are missing where the data cannot be read.
    """
    report: dict[str, Any] = {"data": name, "kind": "data set", "problems": [], "warnings": []}
    options = Options(parse_image(image) if image is not None else None, test_share, skip_unreadable)
    try:
        source = open_source(name, options) if is_own(name) else None
        report["kind"] = "data set" if source is None else type(source).__name__.lower()
        if isinstance(source, Folder):
            image = _look_at_files(source, image, report, progress)
        if not report["problems"]:
            _describe(load(name, image, test_share, progress=progress, skip_unreadable=skip_unreadable), report)
    except OctosimError as error:
        report["problems"].append(error.spelled(spelling) if isinstance(error, ArgumentError) else str(error))
    return report


# ---- files of images --------------------------------------------------


def _look_at_files(source: Folder, image: str | None, report: dict[str, Any], progress: Progress | None) -> str | None:
    """Tries every file; returns the size in which the images can be loaded."""
    listed = listing(source.path)
    files = listed.train + (listed.test or [])
    sizes: Counter[str] = Counter()
    channels = largest = 1
    broken = 0
    with quiet():
        for number, (path, _) in enumerate(files, start=1):
            try:
                read_image(path, source.options.image)
                height, width, depth = peek(path)
                sizes[f"{height} x {width}"] += 1
                channels, largest = max(channels, depth), max(largest, height * width)
            except OctosimError as error:
                broken += 1
                report["warnings" if source.options.skip_unreadable else "problems"].append(str(error))
            if progress:
                progress(number, len(files))
    report |= {"files": len(files), "broken": broken, "sizes": dict(sizes.most_common())}
    report["classes"] = _counts(listed)
    report["warnings"] += [f"{path} belongs to no class: left out" for path in listed.ignored]
    report["warnings"] += [f"{path} is no image: left out" for path in listed.others]
    report["warnings"] += [f"{path} is a link out of the folder" for path in listed.outside]
    if image is None and (len(sizes) > 1 or largest > LARGE):
        image = f"{PREVIEW[0]}x{PREVIEW[1]}x{channels}"
        report["image"] = image
        what = f"images have {len(sizes)} sizes" if len(sizes) > 1 else f"images of {next(iter(sizes))} pixels are large"
        report["warnings"].append(f"{what}: train with --image HEIGHTxWIDTHxCHANNELS, as --image {image}")
    return image


def _counts(found: Listing) -> list[dict[str, Any]]:
    train, test = (Counter(label for _, label in part) if part is not None else None for part in (found.train, found.test))
    assert train is not None
    return [
        {"name": name, "train": train[number], "test": None if test is None else test[number]}
        for number, name in enumerate(found.classes)
    ]


# ---- arrays --------------------------------------------------


def _describe(data: Dataset, report: dict[str, Any]) -> None:
    counts = [np.bincount(labels, minlength=len(data.classes)).tolist() for labels in (data.train_labels, data.test_labels)]
    report["classes"] = [
        {"name": name, "train": train, "test": test}
        for name, train, test in zip(data.classes, *counts, strict=bool(data.classes))
    ]
    report |= {
        "name": data.name, "train": len(data.train_labels), "test": len(data.test_labels), "test_share": data.test_share,
        "shape": list(data.train_images.shape[1:]), "dtype": str(data.train_images.dtype), "sha256": data.sha256,
    }  # fmt: skip
    report |= _values(data.train_images)
    if "files" not in report:  # those of a folder are there already
        report["warnings"] += data.notes
    largest = report["range"][1]
    if data.train_images.dtype == np.uint8 and data.train_images.ndim == 4 and largest < DARK:
        report["warnings"].append(
            f"the largest pixel is {largest} of 255: of images with 16 bits only the upper 8 are kept, float32 arrays keep all"
        )
    for row in report["classes"]:
        for part in ("train", "test"):
            if row[part] < FEW:
                report["warnings"].append(f"class {row['name']} has {row[part]} images to {part} with")
    most, least = max(counts[0]), min(counts[0])
    if most >= 10 * max(least, 1):
        report["warnings"].append(f"the largest class has {most / max(least, 1):.0f} times as many images as the smallest")
    _duplicates(data, report)


def _values(images: Array) -> dict[str, Any]:
    """Range, mean and deviation of the values to train on; of the channels, where they are few."""
    flat = images.reshape(-1, images.shape[-1])
    size, axis = 1 << 16, 0 if images.shape[-1] <= 4 else None
    sums = np.zeros((2, flat.shape[-1] if axis == 0 else 1))
    for first in range(0, len(flat), size):
        part = flat[first : first + size].astype(np.float64)
        sums += [np.atleast_1d(part.sum(axis)), np.atleast_1d((part**2).sum(axis))]
    mean, square = sums / (len(flat) if axis == 0 else flat.size)
    return {
        "range": [images.min().item(), images.max().item()],
        "mean": mean.tolist(),
        "deviation": np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
    }


def _duplicates(data: Dataset, report: dict[str, Any]) -> None:
    """Equal images in both parts, in one part, and with several labels."""
    train, test = row_digests(data.train_images), row_digests(data.test_images)
    labels: dict[bytes, set[int]] = {}
    for digest, label in zip([*train, *test], [*data.train_labels.tolist(), *data.test_labels.tolist()], strict=True):
        labels.setdefault(digest, set()).add(label)
    known = set(train)
    across = sum(digest in known for digest in test)
    within = len(train) - len(known)
    several = sum(len(found) > 1 for found in labels.values())
    report |= {"duplicates": {"across": across, "within_train": within, "several_labels": several}}
    if across:
        report["warnings"].append(f"{across} test images are also among those to train on: the test says too much")
    if within:
        report["warnings"].append(f"{within} images to train on are there more than once")
    if several:
        report["warnings"].append(f"{several} images have more than one label")
