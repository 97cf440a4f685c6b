"""How a run ends, said the same by every command: at chance, diverged or broken."""

from __future__ import annotations

import math
import re
from typing import Any

SURE = 3.0
"""Standard errors by which an accuracy must lie above chance to count as learned."""


def count(value: Any) -> int:
    """A positive whole number; 0 for whatever else a file may hold."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def steps(decides: dict[str, Any]) -> int | None:
    """The steps of a whole run; None where its manifest does not say so."""
    data = decides.get("data")
    images = count(data.get("train_images")) if isinstance(data, dict) else 0
    batch, epochs = count(decides.get("batch_size")), count(decides.get("epochs"))
    lengths = [count(decides.get("steps"))] + ([epochs * -(-images // batch)] if images and batch else [])
    return min((n for n in lengths if n), default=None)


def is_classifier(decides: dict[str, Any]) -> bool:
    """Whether a run's network gives classes, and not its input again."""
    layers = decides.get("layers")
    return not isinstance(layers, dict) or layers.get("loss", "cross-entropy") == "cross-entropy"


def score(accuracy: float | None, test_loss: float | None) -> str:
    """An evaluation in words: the accuracy, or the mean squared error of a network without classes; empty before the first."""
    if accuracy is not None:
        return f"{100 * accuracy:.2f} %"
    return "" if test_loss is None else f"error {test_loss:.4g}"


def chance(decides: dict[str, Any]) -> float | None:
    """The accuracy that guessing may reach on a run's test images; None where its manifest does not hold the classes."""
    if not is_classifier(decides):
        return None
    layers = decides.get("layers")
    layers = layers.get("layers") if isinstance(layers, dict) else layers
    rows = [row for row in layers if isinstance(row, dict)] if isinstance(layers, list) else []
    outputs = [row.get("units", row.get("filters")) for row in rows]  # the last of them makes a value a class
    classes = next((n for n in reversed(outputs) if isinstance(n, int) and n > 1), None)
    if classes is None:
        return None
    share = 1 / classes
    images = decides["data"].get("test_images")
    images = images if isinstance(images, int) and images > 0 else 1000
    return share + SURE * math.sqrt(share * (1 - share) / images)


def caveats(manifest: dict[str, Any]) -> list[str]:
    """What of its method did not act, of a finished run's manifest; empty where it says nothing."""
    outcome = manifest.get("outcome")
    told = outcome.get("caveats") if isinstance(outcome, dict) else None
    return [text for text in told if isinstance(text, str)] if isinstance(told, list) else []


def failed(reason: str, step: int) -> tuple[str, str]:
    """The state of a run that could not take a step, diverged or broken, and where or why."""
    if not re.search(r"\bNaN\b|infinit", reason):
        return "broken", reason
    layer = re.search(r"layer ([^,:]+)", reason)
    return "diverged", f"step {step}" + (f", layer {layer[1]}" if layer else "")
