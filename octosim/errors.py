"""The one exception that means "the user can fix this"."""


class OctosimError(Exception):
    """Bad input: one clear sentence naming the file, the field and what was expected.

    The command line prints the sentence and exits with code 2, without a traceback.
    """
