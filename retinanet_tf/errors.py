"""The one exception for input that is wrong: a file, an id, a flag."""


class InputError(ValueError):
    """Something given from outside can't be used.

    The message is one sentence that names the culprit (file, id or flag), says what is wrong with it and what to
    do. The commands of `experiments/` print it without a traceback and exit with status 1; everything that is not
    an InputError is a bug and keeps its traceback.
    """
