"""How many examples hypothesis draws: as many as a test names, or OCTOSIM_EXAMPLES for longer evidence (reports/core)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Settings of a property test."""
    count = int(os.environ.get("OCTOSIM_EXAMPLES", count))
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
