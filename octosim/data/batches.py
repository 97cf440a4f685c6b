"""The batches of a run: the images' order, their augmentation, and batches made ahead of the steps that need them.

All of it is a function of (seed, epoch) or (seed, step), so a run goes on from any step, with any number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from octosim import core
from octosim.errors import OctosimError, suggest

Array = np.ndarray[Any, Any]
Made = TypeVar("Made")

ORDER, AUGMENT = 0xFFFFFFFF, 0xFFFFFFFE  # Philox tensor numbers; the layers' count up from 0
PAD = 4
SHIFTS = 2 * PAD + 1  # places of the crop along one axis
AHEAD = 2  # batches: one is ready while the next is made, also where that one starts with an epoch's sort


def order(images: int, seed: int, epoch: int) -> Array:
    """The order of so many images in an epoch (from 0): they are sorted by 64-bit Philox keys (seed, epoch)."""
    return np.argsort(core.philox(2 * images, seed, epoch, ORDER).view("<u8"), kind="stable")


# ---- augmentation --------------------------------------------------


def crop_flip(images: Array, seed: int, step: int) -> Array:
    """Each image padded by 4 black pixels, cropped to its size at a random place and mirrored left to right half the time.

    The usual augmentation of CIFAR-10 (He et al. 2016, section 4.2).  images: uint8 or float32 (batch, height, width,
    channels).  Word i of the Philox stream (seed, step) chooses for image i: floor(word * 162 / 2^32) =
    (row * 9 + column) * 2 + mirrored; no choice is more than 2^-24 more likely than another.
    """
    batch, height, width, channels = images.shape
    words = core.philox(batch, seed, step, AUGMENT).astype(np.uint64)
    choice = (words * np.uint64(2 * SHIFTS**2) >> np.uint64(32)).astype(np.intp)
    row, column = np.divmod(choice // 2, SHIFTS)
    padded = np.zeros((batch, height + 2 * PAD, width + 2 * PAD, channels), images.dtype)
    padded[:, PAD:-PAD, PAD:-PAD] = images
    # a row of pixels with its channels is one run of bytes: windows over those are copied fastest
    lines = padded.reshape(batch, height + 2 * PAD, (width + 2 * PAD) * channels)
    windows = sliding_window_view(lines, (height, width * channels), axis=(1, 2))
    cropped = windows[np.arange(batch), row, column * channels].reshape(images.shape)
    mirrored = np.flatnonzero(choice % 2)
    some = cropped[mirrored]
    turned = np.empty_like(some)
    for channel in range(channels):  # four times as fast as some[:, :, ::-1], which copies a pixel's channels one by one
        turned[..., channel] = some[:, :, ::-1, channel]
    cropped[mirrored] = turned
    return cropped


AUGMENTATIONS: dict[str, Callable[[Array, int, int], Array]] = {
    "none": lambda images, seed, step: images,
    "crop-flip": crop_flip,
}
"""(images (batch, height, width, channels), seed, step) -> images of the same shape."""


def check_augmentation(name: str) -> None:
    """OctosimError where the augmentation is unknown."""
    if name not in AUGMENTATIONS:
        raise OctosimError(f"unknown augmentation '{name}'" + suggest(name, AUGMENTATIONS))


# ---- ahead of the steps --------------------------------------------------


def ahead(make: Callable[[int], Made], steps: range) -> Generator[Made, None, None]:
    """make(step) for each step, made in a background thread while the step before runs; at most AHEAD wait.

    What make raises is raised where its batch is asked for.  Closing the generator (`contextlib.closing`) drops what waits and
    ends the thread.
    """
    pool = ThreadPoolExecutor(1, "octosim-batches")
    try:
        waiting = deque(pool.submit(make, step) for step in steps[:AHEAD])
        for step in steps[AHEAD:]:
            made = waiting.popleft().result()
            waiting.append(pool.submit(make, step))
            yield made
        for left in waiting:
            yield left.result()
    finally:
        pool.shutdown(cancel_futures=True)
