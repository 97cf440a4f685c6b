"""`octosim.train`, `octosim.cost` and `octosim.study` are packages, and functions of the Python API as well."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that calls the function of `octosim.api` with its name."""

    def _function(self) -> Any:
        return getattr(importlib.import_module("octosim.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._function()(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())


def make_callable(package: str) -> None:
    """Makes an imported package callable."""
    sys.modules[package].__class__ = _Callable
