"""Memory of a training step: blocks that go back to their pool when the last array in them is gone.

What a layer keeps for its backward pass stays because the layer refers to it; everything else is used again as soon as the next
layer has read it.  So a network needs no plan of lifetimes, and its memory is what is referred to at the worst moment.
"""

from __future__ import annotations

import math
import mmap
from bisect import bisect_left, insort
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SMALL = 1 << 16
"""Bytes below which malloc is asked: it keeps small blocks itself, without new pages at each use."""

PAGE, HUGE = 1 << 12, 1 << 21
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""A forked process gets a copy: by default both would write to the same memory."""


class Lease(np.ndarray[Any, Any]):
    """The first array in a block.  Others are views of it and keep it alive; NumPy does not look through it for the owner of
    the memory, which is no array."""

    _pool: Pool | None = None
    _block: mmap.mmap

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.take_back(self._block)

    def pin(self) -> mmap.mmap:
        """The block, which stays where it is from now on."""
        if self._pool is not None:
            self._pool.pinned.add(self._block)
        return self._block


def owner(array: Array) -> Array:
    """The array that a view, of whatever depth, looks into."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class Pool:
    """Blocks of memory for arrays.  held: bytes of all blocks, in use or not; most: the largest that `held` has been.
    pinned: blocks whose place somebody relies on: used again like others, but not given back."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}
        self._sizes: list[int] = []  # the keys of _free, ascending
        self.held = 0
        self.most = 0
        self.pinned: set[mmap.mmap] = set()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of any content, in the smallest free block that holds it and is at most twice as large, or in a new one."""
        kind = np.dtype(dtype)
        size = kind.itemsize * math.prod(shape)
        if size < SMALL:
            return np.empty(shape, kind)
        block = None
        for i in range(bisect_left(self._sizes, size), len(self._sizes)):
            if self._sizes[i] > 2 * size:
                break
            if self._free[self._sizes[i]]:
                block = self._free[self._sizes[i]].pop()
                break
        block = block or self._new(-(-size // PAGE) * PAGE)
        return self.lease(shape, kind, block).view(np.ndarray)

    def lease(self, shape: tuple[int, ...], dtype: np.dtype[Any], block: mmap.mmap) -> Lease:
        """The first array in a block, which comes back when the array is gone."""
        lease = Lease(shape, dtype, block)
        lease._pool, lease._block = self, block
        return lease

    def take_back(self, block: mmap.mmap) -> None:
        """A block whose last array is gone."""
        self._free[len(block)].append(block)

    def reserve(self, size: int) -> mmap.mmap:
        """New memory of so many bytes."""
        return mmap.mmap(-1, size, **PRIVATE)

    def _new(self, size: int) -> mmap.mmap:
        block = self.reserve(size)
        if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        if size not in self._free:
            self._free[size] = []
            insort(self._sizes, size)
        self.held += size
        self.most = max(self.most, self.held)
        return block

    @property
    def used(self) -> int:
        """Bytes of the blocks with arrays in them."""
        return self.held - sum(size * len(blocks) for size, blocks in self._free.items())

    def trim(self) -> None:
        """Gives the free blocks back to the system, but for those that are pinned."""
        for size, blocks in self._free.items():
            kept = [block for block in blocks if block in self.pinned]
            self.held -= size * (len(blocks) - len(kept))
            blocks[:] = kept
