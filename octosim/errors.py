"""The one exception that means "the user can fix this", and the hint for a misspelt word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

MOST_WORDS = 20
"""Known words that a hint lists."""


class OctosimError(Exception):
    """Bad input: one clear sentence naming the file, the field and what was expected.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


class ArgumentError(OctosimError):
    """A wrong argument.  Its sentence has arguments in braces, "{batch_size} must be at least 1": str() says their names, and
    `spelled` says something else for them, as the command line its options."""

    def __init__(self, sentence: str):
        self.sentence = sentence
        super().__init__(self.spelled(str))

    def spelled(self, spell: Callable[[str], str]) -> str:
        return re.sub(r"\{([a-z_]+)\}", lambda match: spell(match[1]), self.sentence)


def sentence_of(error: Exception) -> str:
    """What another library's error says, in a line of at most 200 characters; its kind where it says nothing."""
    return (getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__)[:200]


@contextmanager
def reading(path: object, kind: str) -> Iterator[None]:
    """Makes one sentence of whatever a library raises that reads a file: zipfile, zlib, NumPy, or Python's parser, which NumPy
    gives an array's header."""
    try:
        yield
    except (OctosimError, MemoryError):
        raise
    except Exception as error:
        raise OctosimError(f"{path} cannot be read as {kind}: {sentence_of(error)}") from None


def suggest(word: str, known: Iterable[str], listing: str = "") -> str:
    """A hint to be added to an error's sentence: "; did you mean 'X'?" where a known word is near, else the known words.

    Case and punctuation do not count, and a part of a word is near (16: acc16).  listing: the command that prints all known
    words; it is named in place of more than MOST_WORDS.
    """
    import difflib  # only a mistake needs it

    names = sorted(known)
    letters = {name: _letters(name) for name in names}
    wanted = _letters(word[:100])
    near = [name for name in names if letters[name] == wanted]
    near = near or difflib.get_close_matches(word[:100].casefold(), names, 1)
    near = near or [name for name in names if letters[name] in difflib.get_close_matches(wanted, letters.values(), 1)]
    near = near or sorted((name for name in names if len(wanted) > 1 and wanted in letters[name]), key=len)
    if near:
        return f"; did you mean '{near[0]}'?"
    if listing and len(names) > MOST_WORDS:
        return f"; {listing} prints the {len(names)} known names"
    return f" (known: {', '.join(names)})"


def _letters(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))
