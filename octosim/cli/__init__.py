"""The command line.  Bad input ends with one sentence and exit code 2; Ctrl-C leaves a run that resumes.

This module imports little, so that Ctrl-C ends `octosim` quietly from the first moment on.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

TYPE_CHECKING = False  # not of typing, whose import takes as long as all else here
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as a shell reports it."""
READER_GONE = 141
"""Exit code where the reader of standard output has ended (`| head`): 128 + SIGPIPE."""


class _Output:
    """Standard output or error.  Only a failure of standard output ends the command, and only quietly or with a sentence."""

    def __init__(self, stream: Any, required: bool) -> None:
        self._stream, self._required = stream, required

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError) as error:  # ValueError: closed
            self._fail(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Sends the rest to nowhere, so that the interpreter's last flush succeeds."""
        from octosim.errors import OctosimError

        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass
        if isinstance(error, BrokenPipeError) and self._required:
            raise SystemExit(READER_GONE)
        if self._required:
            raise OctosimError(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}")


def _open_streams() -> None:
    """Standard streams that are closed (`>&-`, daemons) lead nowhere; no file of a command may take their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a locale without a name's characters
        setattr(sys, name, _Output(stream, required=name == "stdout"))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ctrl-C: ends the process at once, whatever it does.  A KeyboardInterrupt would do as much where no library catches it.

    What has to end well catches the signal itself (`train.Interrupt`); files are written as a whole or not at all.
    """
    for path in tuple(getattr(sys.modules.get("octosim.files"), "unfinished", ())):
        try:
            os.unlink(path)
        except OSError:
            pass
    try:
        if os.isatty(2):
            os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    finally:
        os._exit(INTERRUPTED)


def _usage(error: Any) -> str:
    """A mistake in the command line in one sentence; empty where the help has been printed instead."""
    from pydantic import ValidationError

    from octosim.schema import wanted

    cause, parameter = error.__cause__, getattr(error, "param", None)
    if isinstance(cause, ValidationError) and parameter is not None:
        problem: Any = cause.errors()[0]
        option = parameter.opts[-1] if parameter.param_type_name == "option" else parameter.human_readable_name
        text = f"{option} must be {wanted(problem)}, not '{problem['input']}'"
    else:
        text = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    joint = " See" if text.endswith("?") else "; see"
    return f"{text}{joint} {context.command_path} --help" if text and context else text


def _run() -> int:
    from octosim.cli.commands import NAMES
    from octosim.errors import ArgumentError, OctosimError

    sentence, completion = "", os.environ.get("_OCTOSIM_COMPLETE")
    try:
        if sys.argv[1:] in ([], ["--help"]) and not completion:
            from octosim.cli import first_page

            first_page.show()
            sys.stdout.flush()
            return 0 if sys.argv[1:] else 2
        from octosim.cli.app import build

        if completion == "complete_bash":
            from octosim.cli.words import complete_in_bash

            complete_in_bash(build())
            return 0
        code = build(*NAMES.intersection(sys.argv[1:2]))(prog_name="octosim", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ArgumentError as error:
        from octosim.settings import spelling

        sentence = error.spelled(spelling)
    except OctosimError as error:
        sentence = str(error)
    except MemoryError as error:
        sentence = f"not enough memory{': ' * bool(str(error))}{error}"
    except OSError as error:
        if "--install-completion" not in sys.argv:  # typer's, which writes to the shell's file
            raise
        sentence = f"the completion cannot be installed: {error.filename}: {error.strerror}; --show-completion prints it"
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error of typer's parser
            raise
        sentence = _usage(error)
    if sentence:
        from octosim.cli.terminal import sentence_text

        sys.stderr.write(f"octosim: {sentence_text(sentence)}\n")
    try:
        sys.stdout.flush()
    except OctosimError:
        pass  # the first sentence is said already
    return 2


def main() -> None:
    """The console script."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them reads the metadata of all that is installed
    gc.set_threshold(20_000, 20, 20)  # imports make much and drop little: collecting took a tenth of a short command
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell's `&` has it ignored
    if ours:
        signal.signal(signal.SIGINT, _leave)
    _open_streams()
    sys.exit(_run())
