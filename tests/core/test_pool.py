"""Blocks of memory: theirs as long as an array refers to them, used again after."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octosim import engine, graph, methods
from octosim.core.memory import PAGE, SMALL, Pool
from octosim.engine.nodes import Context


def test_a_block_is_free_when_its_last_view_is_gone() -> None:
    pool = Pool()
    array = pool.empty((100, 300), np.float32)
    assert type(array) is np.ndarray and array.shape == (100, 300) and array.flags.c_contiguous and array.flags.writeable
    size = -(-array.nbytes // PAGE) * PAGE
    view = array[3:].reshape(-1).view(np.int32)[5:]
    assert pool.held == pool.used == pool.most == size
    address = array.__array_interface__["data"][0]
    del array
    assert pool.used == size, "the view still refers to it"
    view[:] = 7
    del view
    assert pool.used == 0 and pool.held == size
    again = pool.empty((100 * 300,), np.int32)
    assert again.__array_interface__["data"][0] == address and pool.held == size
    pool.trim()
    assert pool.held == size, "in use"
    del again
    pool.trim()
    assert pool.held == 0 and pool.most == size


def test_a_block_is_at_most_twice_as_large() -> None:
    pool = Pool()
    large = pool.empty((1 << 22,), np.uint8)
    del large
    small = pool.empty((1 << 20,), np.uint8)
    assert pool.held == (1 << 22) + (1 << 20)
    half = pool.empty((1 << 21,), np.uint8)
    assert pool.held == (1 << 22) + (1 << 20) and pool.used == pool.held
    del small, half


def test_small_arrays_are_not_in_blocks() -> None:
    pool = Pool()
    assert pool.empty((SMALL - 1,), np.uint8).size == SMALL - 1 and pool.held == 0
    assert pool.empty((3, 0), np.float32).shape == (3, 0)


@given(st.lists(st.tuples(st.integers(SMALL, 1 << 20), st.booleans()), max_size=30))
@settings(max_examples=50)
def test_no_two_arrays_share_memory(wanted: list[tuple[int, bool]]) -> None:
    pool, alive = Pool(), []
    for number, (size, keep) in enumerate(wanted):
        array = pool.empty((size,), np.uint8)
        array[:] = number % 251
        if keep:
            alive.append((number, array))
        del array
    assert all((array == number % 251).all() for number, array in alive)
    assert sum(array.nbytes for _, array in alive) <= pool.used <= pool.held <= pool.most


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_step_takes_no_more_memory_than_the_one_before(method: str) -> None:
    """The third step finds every block that it needs, and nothing is in use after it."""
    made = methods.make(method, {})
    network = engine.Network(graph.layers("lenet5", 10, made.batchnorm), (28, 28, 1), made, 0)
    images, labels = np.zeros((60, 28, 28, 1), np.uint8), np.zeros(60, np.int32)
    images[:, ::3] = np.arange(60, dtype=np.uint8)[:, None, None, None]
    held = []
    for step in (1, 2, 3):
        network.gradients(images, labels, Context(True, 0, step), done=lambda node: None)
        held.append(network.pool.held)
    assert held[1] == held[2]
    assert network.pool.used == 0
