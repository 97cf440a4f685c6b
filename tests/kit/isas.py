"""The instruction sets of this processor."""

from __future__ import annotations

from octosim import core

ISAS = [name for name, supported in core.isas().items() if supported]
