"""InputError: the one exception for wrong input, such as a file, an id or a setting."""


class InputError(ValueError):
    """Input that can't be used.

    The message is a sentence that names the file, id or parameter, what is wrong with it and what to do. The command
    line prints it without a traceback and exits with status 1; any other exception is a bug and keeps its traceback.
    """
