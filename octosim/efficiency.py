"""Efficiency factors of CPU cores: what share of its peaks a core reaches, by kind of operation.

`efficiency.toml` beside this file holds them, fitted by `tools/validate_cost.py --write`: under [pool] those of a core that
nobody measured, by arithmetic, and under [device.NAME] those of a device with measurements of its own.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from octosim.errors import OctosimError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

PATHS = ("float32", "float16", "smlal", "sdot")
"""Arithmetic with factors: a float type, or the instruction (octosim.numerics.ACCUMULATORS) that int8 products run on."""


class Factors(BaseModel):
    """One core's factors in one arithmetic; docs/cost-model.md has the equations.

    conv3x3, conv, pointwise, depthwise, linear: share of the peak that the arithmetic of these operations reaches, before
        the losses that k_half, serial and in_order describe.  conv3x3: with stride 1 and Winograd's algorithm; conv: others.
    elementwise: bytes a clock and core that a pass over memory processes, its data being in the cache.
    bandwidth: share of the profile's sustained bandwidth; above 1 where the profile's figure is of one thread.
    cache: bytes a clock from the last level of cache, for all cores together.
    k_half: length of the reduction at which a matrix product reaches half of its rate.
    serial: N threads work like N / (1 + serial (N - 1)).
    in_order: factor on the arithmetic of cores that issue in order.
    exposed: share of the smaller of compute and memory time that does not hide behind the larger.
    overhead_us, fork_us: of each operation, and in addition with more than one thread.
    spread: standard deviation of ln(measured / predicted) over networks (and, in the pool, devices) left out of the fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    conv3x3: Positive
    conv: Positive
    pointwise: Positive
    depthwise: Positive
    linear: Positive
    elementwise: Positive
    bandwidth: Positive
    cache: Positive
    k_half: Positive
    serial: Positive
    in_order: Positive
    exposed: Annotated[float, Field(gt=0, le=1)]
    overhead_us: Positive
    fork_us: Positive
    spread: Positive
    source: Annotated[str, Field(min_length=1, pattern=r"\S")]


@functools.cache
def shipped() -> dict[str, dict[str, Factors]]:
    """Device name -> arithmetic -> factors, as fitted; "pool" is the device that nobody measured."""
    file = importlib.resources.files("octosim") / "efficiency.toml"
    try:
        return parse(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise OctosimError(f"octosim/efficiency.toml cannot be used, reinstall octosim ({error})") from None


def parse(data: dict[str, Any]) -> dict[str, dict[str, Factors]]:
    """The tables of an efficiency file."""
    groups = {"pool": data.get("pool", {}), **data.get("device", {})}
    return {name: {path: Factors.model_validate(row) for path, row in rows.items()} for name, rows in groups.items()}


def toml(groups: dict[str, dict[str, Factors]]) -> str:
    """The text of an efficiency file, four digits a number."""
    lines = []
    for name, rows in groups.items():
        for path, factors in rows.items():
            lines.append(f"[{name}.{path}]" if name == "pool" else f"[device.{name}.{path}]")
            lines.append(table(factors))
    return "\n".join(lines)


def table(factors: Factors) -> str:
    """The lines of one table."""
    rows = factors.model_dump()
    return "".join(f'{k} = "{v}"\n' if isinstance(v, str) else f"{k} = {float(f'{v:.4g}')}\n" for k, v in rows.items())
