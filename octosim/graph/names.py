"""Names of imported layers: those of the program that the network comes from, as far as they can be seen."""

from __future__ import annotations

import re
from collections.abc import Container

PARAMETER = re.compile(r"[./](weight|kernel|bias|gamma|beta|w|b|W|B|weight_quantized|kernel:0)$")
GENERATED = re.compile(r"(onnx::|const|val_|_val|t\d+$|\d+$|[a-zA-Z]$|[a-zA-Z]\d+$)")
"""Names that exporters make up for folded weights."""


def layer_name(weight: str, node: str, stem: str, taken: Container[str], numbers: dict[str, int]) -> str:
    """A new name for a layer: its weight's ("features.0.weight"), its node's ("/features/features.0/Conv") or its kind's.

    numbers: the last number behind a name without one, kept between the calls: a chain of thousands is named in their time.
    """
    weight = re.sub(r"(_quantized|_DequantizeLinear_Output|:0)$", "", weight)
    name = ""
    if PARAMETER.search(weight) and not GENERATED.match(weight):
        name = PARAMETER.sub("", weight)
    elif "/" in node:
        parts = [part for part in node.split("/") if part]
        name = parts[-2] if len(parts) > 1 else parts[0]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-")[:150]
    if name and name not in taken:
        return name
    if name and stem not in name:
        name = f"{name}.{stem}"
        if name not in taken:
            return name
    base = f"{name}." if name else stem
    count = numbers.get(base, 0) + 1
    while f"{base}{count}" in taken:
        count += 1
    numbers[base] = count
    return f"{base}{count}"
