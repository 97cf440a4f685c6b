"""Ctrl-C and SIGTERM as a flag."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """Turns Ctrl-C and SIGTERM into the flag `asked`, so that what is in progress ends well; only in the main thread."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.SIG_IGN:  # a shell's `&`, a study's process: others decide
                continue
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: signals are not ours
                pass
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
