"""Runs and studies while they train, from their files alone: nothing there is locked or written."""

from octosim.watch.runs import Watch, open_watch
from octosim.watch.server import Server, serve

__all__ = ["Server", "Watch", "open_watch", "serve"]
