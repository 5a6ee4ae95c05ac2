"""How every command starts and ends: flags parsed, input errors as one sentence, exit status as shells expect."""

import difflib
import sys
from collections.abc import Callable

from absl import app, flags, logging

from retinanet_tf.errors import InputError


def run(main: Callable[[], int | None]) -> None:
    """Parses the absl flags, calls `main()` and exits with its status.

    Status 0 (or what `main` returns) is success, 1 an `InputError` (its sentence goes to stderr, without a
    traceback), 2 a wrong flag (with a suggestion), 130 an interruption from the keyboard.
    """

    def guarded(arguments: list[str]) -> int | None:
        if len(arguments) > 1:
            print(f"error: {arguments[1]!r} is not a flag; every setting is written --name=value.", file=sys.stderr)
            return 2
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            return main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from what is finished.", file=sys.stderr)
            return 130

    app.run(guarded, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f" Did you mean --{close[0]}?" if close else ""
        print(f"error: there is no flag --{error.flagname}.{hint} See --help.", file=sys.stderr)
    except flags.Error as error:
        print(f"error: {error} See --help.", file=sys.stderr)
    sys.exit(2)
