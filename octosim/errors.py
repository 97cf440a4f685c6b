"""The one exception that means "the user can fix this", and the hint for a misspelt word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OctosimError(Exception):
    """Bad input: one clear sentence naming the file, the field and what was expected.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """'; did you mean "X"?' where a known word is near, else ' (known: ...)'; to be added to an error's sentence."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, 1)
    return f"; did you mean '{near[0]}'?" if near else f" (known: {', '.join(names)})"
