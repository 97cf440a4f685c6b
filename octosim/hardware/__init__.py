"""Devices: profiles, the machine at hand, measured rates and efficiency factors."""

from octosim.hardware.device import (
    DTYPES,
    Device,
    Dtype,
    Engine,
    Figure,
    aliases,
    at_clock,
    at_mode,
    check,
    configured,
    host,
    is_here,
    is_runtime,
    json_schema,
    load,
    names,
    parse,
    read_host,
    text_of,
    with_cluster,
)
from octosim.hardware.runtime import Runtime, load_runtime, runtimes

__all__ = [
    "DTYPES", "Device", "Dtype", "Engine", "Figure", "Runtime", "aliases", "at_clock", "at_mode", "check", "configured", "host",
    "is_here", "is_runtime", "json_schema", "load", "load_runtime", "names", "parse", "read_host", "runtimes", "text_of",
    "with_cluster",
]  # fmt: skip
