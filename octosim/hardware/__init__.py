"""Devices: profiles, the machine at hand, measured rates and efficiency factors."""

from octosim.hardware.device import (
    DTYPES,
    Device,
    Dtype,
    Engine,
    Figure,
    aliases,
    at_clock,
    check,
    host,
    is_here,
    json_schema,
    load,
    names,
    parse,
    read_host,
    text_of,
)

__all__ = [
    "DTYPES", "Device", "Dtype", "Engine", "Figure", "aliases", "at_clock", "check", "host", "is_here", "json_schema", "load",
    "names", "parse", "read_host", "text_of",
]  # fmt: skip
