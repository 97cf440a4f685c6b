"""Narrow accumulators and their accounting, against Python integers one step at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.examples import examples
from kit.registers import bits_of, narrow

from octosim import core
from octosim.errors import OctosimError
from octosim.numerics import ACCUMULATORS, EXACT32, Accumulator

SLOW = examples(60)


def slow(a: np.ndarray, b: np.ndarray, how: Accumulator) -> tuple[np.ndarray, int, int, list[int]]:
    """Sums, steps, narrowed steps, and needed bits, as design.md defines them."""
    out = np.zeros((a.shape[0], b.shape[1]), np.int64)
    steps = narrowed = 0
    needed = [0] * 34
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            products = [int(x) * int(y) for x, y in zip(a[i], b[:, j], strict=True)]
            acc, most = 0, 1
            for g in range(0, len(products), how.group):
                group = products[g : g + how.group]
                if how.pair_bits:
                    group = [narrow(sum(group[p : p + 2]), how.pair_bits, "saturate") for p in range(0, len(group), 2)]
                wanted = acc + sum(group)
                acc = narrow(wanted, how.bits, how.overflow)
                steps += 1
                narrowed += acc != wanted
                most = max(most, bits_of(wanted))
            out[i, j] = acc
            needed[min(most, 33)] += 1
    return out, steps, narrowed, needed


def check(a: np.ndarray, b: np.ndarray, how: Accumulator) -> None:
    expected, steps, narrowed, needed = slow(a, b, how)
    assert np.array_equal(core.gemm(a, b, accumulator=how), expected) or how == EXACT32
    found, overflow = core.gemm_counted(a, b, how)
    assert np.array_equal(found, expected)
    assert overflow.steps == steps and list(overflow.needed) == needed
    assert overflow.saturations + overflow.wraps == narrowed
    assert (overflow.wraps if how.overflow == "saturate" else overflow.saturations) == 0
    assert overflow.largest_bits == max((w for w in range(34) if needed[w]), default=0)
    assert overflow.would_overflow(16) == sum(needed[17:])


REGISTERS = st.builds(
    lambda bits, overflow, group, pairs: Accumulator("any", bits, overflow, group + group % 2 if pairs else group, pairs),
    st.integers(8, 32), st.sampled_from(["saturate", "wrap"]), st.one_of(st.integers(1, 9), st.sampled_from([32, 33, 32768])),
    st.sampled_from([None, None, 8, 16, 31]),
)  # fmt: skip


@SLOW
@given(
    how=REGISTERS, m=st.integers(1, 9), n=st.integers(1, 40), k=st.integers(1, 60), unsigned=st.booleans(),
    extreme=st.booleans(), ta=st.booleans(), tb=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_any_register(
    kernels: str, how: Accumulator, m: int, n: int, k: int, unsigned: bool, extreme: bool, ta: bool, tb: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    low, high, kind = (0, 256, np.uint8) if unsigned else (-128, 128, np.int8)
    a = rng.choice([low, high - 1], (m, k)).astype(kind) if extreme else rng.integers(low, high, (m, k), dtype=kind)
    b = rng.integers(-128, 128, (k, n), dtype=np.int8)
    check(a, b, how)
    stored_a, stored_b = (np.ascontiguousarray(a.T) if ta else a), (np.ascontiguousarray(b.T) if tb else b)
    found = core.gemm(stored_a, stored_b, transpose_a=ta, transpose_b=tb, accumulator=how)
    assert np.array_equal(found, core.gemm_counted(a, b, how)[0])


@pytest.mark.parametrize("name", ACCUMULATORS)
@pytest.mark.parametrize("unsigned", [False, True])
def test_all_pairs_of_codes_in_every_preset(kernels: str, name: str, unsigned: bool) -> None:
    """One product an output: 65,536 pairs, against the definition in NumPy integers."""
    how = ACCUMULATORS[name]
    a = np.arange(256).astype(np.uint8) if unsigned else np.arange(-128, 128).astype(np.int8)
    b = np.arange(-128, 128).astype(np.int8)
    product = np.multiply.outer(a.astype(np.int64), b.astype(np.int64))
    limit = 1 << (how.bits - 1)
    if how.pair_bits:
        pair = 1 << (how.pair_bits - 1)
        product = np.clip(product, -pair, pair - 1)
    narrowed = np.clip(product, -limit, limit - 1) if how.overflow == "saturate" else (product + limit) % (2 * limit) - limit
    assert np.array_equal(core.gemm(a[:, None], b[None, :], accumulator=how), narrowed)
    found, overflow = core.gemm_counted(a[:, None], b[None, :], how)
    assert np.array_equal(found, narrowed)
    assert overflow.saturations + overflow.wraps == (narrowed != product).sum()


@pytest.mark.parametrize("name", ["acc32", "acc32-wrap", "vpdpbusds", "vpdpbusd"])
@pytest.mark.parametrize("k", [131_071, 131_072, 133_145])
@pytest.mark.parametrize("sign", [1, -1])
def test_thirty_two_bits_at_their_ends(kernels: str, name: str, k: int, sign: int) -> None:
    """Sums of -128 * -128 pass 2^31 - 1 with the 131,072nd product."""
    how = ACCUMULATORS[name]
    a, b = np.full((1, k), -128, np.int8), np.full((k, 3), -128 if sign > 0 else 127, np.int8)
    total = k * 128 * (128 if sign > 0 else -127)
    expected = narrow(total, 32, how.overflow)
    found, overflow = core.gemm_counted(a, b, how)
    assert found.tolist() == [[expected] * 3]
    assert core.gemm(a, b, accumulator=how).tolist() == [[expected] * 3]
    assert (overflow.saturations + overflow.wraps > 0) == (expected != total) == (overflow.needed[33] == 3)


def test_same_on_every_instruction_set_and_thread_count(each_isa: list[tuple[str, int]]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (37, 300), dtype=np.int8), rng.integers(-128, 128, (300, 45), dtype=np.int8)
    for how in ACCUMULATORS.values():
        results = []
        for isa, threads in each_isa:
            core.set_isa(isa)
            found, overflow = core.gemm_counted(a, b, how, threads=threads)
            results.append((found.tobytes(), overflow))
        assert len(set(results)) == 1, how.name


def test_saturating_sums_depend_on_the_order() -> None:
    """What makes the order part of the definition."""
    a, b = np.array([[100, 100, -100]], np.int8), np.array([[100], [100], [100]], np.int8)
    how = ACCUMULATORS["acc12"]
    assert core.gemm(a, b, accumulator=how)[0, 0] == 2047 - 10000 + (0 if 2047 - 10000 >= -2048 else 10000 - 2047 - 2048)
    assert core.gemm(a[:, ::-1].copy(), b, accumulator=how)[0, 0] == 2047


def test_maddubs_reproduces_the_published_failure() -> None:
    """255 x 127 + 255 x 127 = 64,770 does not fit 16 bits: VPMADDUBSW saturates it, VPDPBUSD does not.

    So a library's u8 x s8 product differs between a CPU with VNNI and one without.
    """
    a, b = np.full((1, 64), 255, np.uint8), np.full((64, 1), 127, np.int8)
    assert core.gemm(a, b, accumulator=ACCUMULATORS["vpdpbusd"])[0, 0] == 64 * 255 * 127
    assert core.gemm(a, b, accumulator=ACCUMULATORS["maddubs"])[0, 0] == 32 * 32767
    half = a // 2  # 7-bit activations, the libraries' own remedy
    assert core.gemm(half, b, accumulator=ACCUMULATORS["maddubs"])[0, 0] == 64 * 127 * 127


@pytest.mark.parametrize("name", ["maddubs", "acc16", "acc24", "exact32"])
def test_proofs_are_sharp(name: str) -> None:
    """At the bound nothing overflows, one product further the extreme operands do."""
    how = ACCUMULATORS[name]
    for largest in (1, 5, 90, 127):
        k = how.safe_depth(largest, largest)
        assert how.proof(k, largest, largest).holds or how.pair_bits
        assert not how.proof(k + 1, largest, largest).holds
        if 0 < k < 40_000:
            for depth, overflows in ((k, False), (k + 1, True)):
                a = np.full((1, depth), largest, np.int8)
                _, overflow = core.gemm_counted(a, a.T.copy(), how)
                assert (overflow.saturations + overflow.wraps > 0) == overflows
    assert "2 x 127 x 127 = 32258 <= 2^15 - 1 = 32767" in ACCUMULATORS["maddubs"].proof(8, 127, 127).text
    assert ">" in ACCUMULATORS["maddubs"].proof(8, 255, 127).text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(bits=7), "bits must be in 8 .. 32, not 7"),
        (dict(bits="16"), "bits must be a whole number, not '16'"),
        (dict(group=2.0), "group must be a whole number, not 2.0"),
        (dict(pair_bits=True, group=4), "pair_bits must be a whole number, not True"),
        (dict(bits=33), "bits must be in 8 .. 32"),
        (dict(overflow="clip"), "overflow must be saturate or wrap, not 'clip'"),
        (dict(group=0), "group must be in 1 .. 32768"),
        (dict(pair_bits=16, group=3), "pair_bits must be in 8 .. 31 and group even"),
        (dict(pair_bits=32, group=4), "pair_bits must be in 8 .. 31"),
    ],
)
def test_bad_registers(change: dict, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        Accumulator(**(dict(name="x", bits=16, overflow="wrap") | change))
    assert words in str(caught.value)


def test_too_long_sums_are_refused() -> None:
    with pytest.raises(core.CoreError, match="longer than 2"):
        core.gemm_counted(np.zeros((1, 2**22 + 1), np.int8), np.zeros((2**22 + 1, 1), np.int8), ACCUMULATORS["acc16"])
