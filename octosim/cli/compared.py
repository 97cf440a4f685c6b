"""The devices of `octosim cost`: those of --profile and --compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from octosim import hardware
from octosim.cli.terminal import say
from octosim.errors import OctosimError
from octosim.hardware import Device

ALL = "all"

Result = TypeVar("Result")


@dataclass
class Compared:
    """Devices in their order, each once.

    optional: names of those that `--compare all` brought: they are left out where they cannot take part.
    skipped: the reasons, by name.
    """

    devices: list[Device]
    optional: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)

    def each(self, work: Callable[[Device], Result]) -> list[Result]:
        """The result for each device; an optional one that raises OctosimError is left out from here on."""
        results, left = [], []
        for device in self.devices:
            try:
                results.append(work(device))
                left.append(device)
            except OctosimError as error:
                if device.name not in self.optional:
                    raise
                self.skipped[device.name] = str(error)
        self.devices = left
        return results

    def replace(self, change: Callable[[Device], Device]) -> None:
        """Each device at another clock, in a mode, or with some of its cores."""
        self.devices = self.each(change)

    def json(self) -> dict[str, dict[str, str]]:
        return {"skipped": self.skipped} if self.skipped else {}

    def show(self) -> None:
        """A line for each device that is left out."""
        for name, reason in self.skipped.items():
            say(f"left out {name}: {reason.removeprefix(f'profile {name}: ')}")


def read(profile: str, compare: str | None) -> Compared:
    """--profile and --compare: names, aliases and files with commas between them, or all."""
    given = [part for part in map(str.strip, (compare or "").split(",")) if part]
    named = [hardware.load(name) for name in (profile, *(name for name in given if name != ALL))]
    others = [hardware.load(name) for name in hardware.names()[:-1]] if ALL in given else []
    devices: list[Device] = []
    for device in (*named, *others):
        if device not in devices:
            devices.append(device)
    return Compared(devices, {device.name for device in others} - {device.name for device in named})
