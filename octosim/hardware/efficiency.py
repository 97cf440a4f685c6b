"""Efficiency factors of CPU cores: what share of its peaks a core reaches, by kind of operation.

`efficiency.toml` beside this file holds them, fitted by `octosim profiles validate --pool`: under [pool] those of a core that
nobody measured, by arithmetic, and under [device.NAME] those of a device with measurements of its own.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from octosim.errors import OctosimError
from octosim.schema import Frozen, Positive, Text
from octosim.textfile import parse_toml

PATHS = ("float32", "float16", "smlal", "sdot")
"""Arithmetic with factors: a float type, or the instruction (octosim.numerics.ACCUMULATORS) that int8 products run on."""


class CpuFactors(Frozen):
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
    source: Text


@functools.cache
def shipped() -> dict[str, dict[str, CpuFactors]]:
    """Device name -> arithmetic -> factors, as fitted; "pool" is the device that nobody measured."""
    file = Path(__file__).with_name("efficiency.toml")
    try:
        return parse(parse_toml(file.read_text(encoding="utf-8"), file.name))
    except (OSError, OctosimError, ValidationError) as error:
        raise OctosimError(f"octosim/hardware/efficiency.toml cannot be used, reinstall octosim ({error})") from None


def parse(data: dict[str, Any]) -> dict[str, dict[str, CpuFactors]]:
    """The tables of an efficiency file."""
    groups = {"pool": data.get("pool", {}), **data.get("device", {})}
    return {name: {path: CpuFactors.model_validate(row) for path, row in rows.items()} for name, rows in groups.items()}


def toml(groups: dict[str, dict[str, CpuFactors]]) -> str:
    """The text of an efficiency file."""
    import tomli_w

    tables = {name: {path: table(factors) for path, factors in rows.items()} for name, rows in groups.items()}
    return tomli_w.dumps({"pool": tables.pop("pool"), "device": tables})


def table(factors: CpuFactors) -> dict[str, Any]:
    """One core's factors as data of a TOML file, four digits a number."""
    return {k: v if isinstance(v, str) else float(f"{v:.4g}") for k, v in factors.model_dump().items()}
