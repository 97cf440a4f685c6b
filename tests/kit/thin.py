"""Products of parameters, of which the default tests take a diagonal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def diagonal(*lists: Sequence[Any]) -> list[Any]:
    """Every combination of one value of each list; the slow tests have them all, the default ones each value of each list."""
    longest = max(map(len, lists))
    kept = {tuple(at % len(values) for values in lists) for at in range(longest)}
    return [
        pytest.param(*(values[i] for values, i in zip(lists, at, strict=True)), marks=[] if at in kept else [pytest.mark.slow])
        for at in itertools.product(*(range(len(values)) for values in lists))
    ]
