"""The network's input: bytes and float32 values, normalized before any method quantizes them."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from kit.own_data import npz

from octosim import core, methods, train
from octosim.engine.inputs import Input, measured
from octosim.engine.plan import dry
from octosim.errors import OctosimError

F = np.float32
FLOATS = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=60, deadline=None)
@given(
    images=arrays_of.arrays(np.float32, st.tuples(st.integers(2, 20), st.integers(1, 4)), elements=FLOATS)
    | arrays_of.arrays(np.uint8, st.tuples(st.integers(2, 20), st.integers(1, 3), st.integers(1, 3))),
    normalize=st.booleans(),
)
def test_measured(images: Any, normalize: bool) -> None:
    """Mean and deviation against exact fractions; the limit is that of what the first layer gets."""
    source = measured(images, normalize)
    assert source.floats == (images.dtype == F) and bool(source.mean) == normalize
    if normalize:
        unit = 1 if source.floats else Fraction(1, 255)
        for channel, (mean, deviation) in enumerate(zip(source.mean, source.deviation, strict=True)):
            values = [Fraction(float(v)) * unit for v in images[..., channel].reshape(-1)]
            exact = sum(values) / len(values)
            largest = max(map(abs, values))
            assert abs(mean - exact) <= largest * Fraction(1, 2**22)
            variance = float(sum((v - exact) ** 2 for v in values) / len(values))
            expected = max(variance**0.5, float(largest) * 2.0**-16) if len(set(values)) > 1 else 1.0
            assert deviation == pytest.approx(expected, rel=1e-4)
    got = source.values(images, np.empty(images.shape, F)) if not source.is_plain else images / F(255)
    assert np.abs(got).max() <= source.limit * (1 + 1e-5) + 0.02  # where a mean is 2^16 deviations
    assert dataclasses.asdict(source) == dataclasses.asdict(measured(images, normalize))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_values_against_numpy(kernels: str, dtype: Any) -> None:
    """To the bit, with every instruction set: the order of roundings is part of the definition."""
    x = np.random.default_rng(0).integers(0, 256, (5, 7, 3, 3)).astype(dtype)
    source = Input(dtype == F, (0.5, -1.25, 0.1), (0.25, 3.0, 0.7), 9.0)
    scale = (1 / np.array(source.deviation)).astype(F)
    shift = (-np.array(source.mean) / np.array(source.deviation)).astype(F)
    plain = x if dtype == F else x.astype(F) * F(1 / 255)
    assert np.array_equal(source.values(x, np.empty(x.shape, F)), plain * scale + shift)
    assert np.array_equal(Input(True).values(plain, np.empty(x.shape, F)), plain)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mean": (1.0,)}, "1 means and 0 deviations"),
        ({"mean": (1.0,), "deviation": (0.0,)}, "deviation is .*above 0"),
        ({"mean": (float("nan"),), "deviation": (1.0,)}, "mean is .*expected finite numbers"),
        ({"mean": (1e39,), "deviation": (1.0,)}, "mean is .*expected finite numbers"),
        ({"limit": 0.0}, "limit is .*above 0"),
    ],
)
def test_inputs_that_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(OctosimError, match=words):
        Input(**change)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three clusters far from 0, as vectors and as images, in float32."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("blobs")
    made = {}
    for name, shape in (("vectors", (12,)), ("images", (12, 12, 3))):
        centres = 3 * rng.standard_normal((3, *shape))
        y, ty = rng.integers(0, 3, 60), rng.integers(0, 3, 30)
        x, tx = ((50 * (centres[n] + rng.standard_normal((len(n), *shape))) + 300).astype(F) for n in (y, ty))
        made[name] = npz(root / f"{name}.npz", (x, y, tx, ty))
    return made


@pytest.mark.parametrize("kind", ["vectors", "images"])
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_learns_from_float32(blobs: dict[str, Path], method: str, kind: str) -> None:
    """Also recorded, to the same bits, and the plan of a step takes such an input."""
    config = train.Config(
        model={"vectors": "mlp", "images": "lenet5"}[kind], data=str(blobs[kind]), method=method, batch_size=20, steps=18,
        epochs=6, batchnorm=methods.METHODS[method].batchnorm,
    )  # fmt: skip
    digests = set()
    for records in (False, True):
        run = train.Run(config)
        run.allow_replay = records
        while run.step < run.steps:
            record = run.advance()
        digests.add(run.digest())
        assert record["test_accuracy"] >= 0.6  # chance is a third
    assert len(digests) == 1
    assert train.memory(run)[method]["peak"] > 0


def test_normalization_changes_what_the_network_gets() -> None:
    digests = {}
    for normalize in (None, "none", "data"):
        run = train.Run(train.Config(model="mlp", steps=2, batch_size=10, limit=40, normalize=normalize))
        run.advance()
        digests[normalize] = run.digest()
        assert ("input" in train.decides(run)) == (normalize == "data")
    assert digests[None] == digests["none"] != digests["data"]
    with pytest.raises(OctosimError, match="unknown normalization 'dta'; did you mean 'data'"):
        train.Run(train.Config(normalize="dta"))


def test_the_input_of_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text("[input]\nmean = [0.5]\ndeviation = [0.25]\n[[layers]]\nkind = 'flatten'\n[[layers]]\nkind = 'linear'\n")
    base = train.Config(model=str(path), steps=2, batch_size=10, limit=40)
    run = train.Run(base)
    assert (run.source.mean, run.source.deviation, run.source.limit) == ((0.5,), (0.25,), 2.0)
    assert train.decides(run)["input"] == run.source.describe()
    assert train.Run(dataclasses.replace(base, normalize="none")).source.is_plain
    assert train.Run(dataclasses.replace(base, normalize="data")).source.mean != (0.5,)
    with pytest.raises(OctosimError, match=r"\[input\]: field 'mean' has 1 numbers, the data have 3 channels"):
        train.Run(dataclasses.replace(base, image="8x8x3"))


def test_niti_clips_what_is_beyond_the_limit() -> None:
    made = methods.make("niti", {})
    for limit, largest in ((1.0, 127), (2.0**-3, 127), (1.5, 96)):
        tensor = made.input_values(np.array([limit, -limit, 0, 9 * limit], F), limit)
        assert tensor.q.tolist() == [largest, -largest, 0, 127]
        assert 63 < largest and limit == pytest.approx(largest * 2.0**tensor.exponent, rel=0.01)


def test_a_dry_network_takes_the_input_of_its_run(blobs: dict[str, Path]) -> None:
    run = train.Run(train.Config(model="mlp", data=str(blobs["vectors"]), batch_size=20, steps=1))
    network = dry(run.layers, (12,), run.method, source=run.source)
    assert network.source is run.source and core.threads() >= 1
