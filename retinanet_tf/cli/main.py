"""The `retinanet` command: its subcommands, their flags and --help, errors as one sentence, the exit status."""

import difflib
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable

from absl import app, flags, logging

from retinanet_tf.cli.before_tensorflow import import_tensorflow
from retinanet_tf.errors import InputError
from retinanet_tf.files import read_text

COMMANDS = {
    "prepare": "COCO, Pascal VOC, YOLO or CSV annotations and their images to TFRecord shards",
    "inspect": "report on a data set: classes, sizes, errors, objects that no anchor reaches",
    "train": "train a detector, or resume the training of a run directory",
    "evaluate": "COCO's twelve numbers of a detector or of a file of detections",
    "predict": "detections on images: JSON and annotated copies",
    "export": "a trained detector as a SavedModel for TensorFlow Serving, or as an ONNX or LiteRT file",
    "models": "published detectors and backbones by name, and how to check them",
    "import-weights": "weights of Detectron, detectron2, torchvision or keras.applications",
    "summary": "parameters and multiply-adds of the network, and its picture",
    "diagnose": "distribution of the loss over easy and hard examples (Figure 4)",
    "client": "send images to TensorFlow Serving",
    "data-service": "a dispatcher or worker that prepares batches for a trainer on another machine",
    "demo": "the whole chain on generated data, in minutes on two CPU cores",
}
WITHOUT_TENSORFLOW = ("client", "models", "predict")  # predict imports it unless the model is a file that needs none
_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def main() -> None:
    """Runs `retinanet COMMAND --flag=value …` and exits with its status."""
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command in _HELP:
        lines = [f"  {name:<16}{text}" for name, text in COMMANDS.items()]
        print("usage: retinanet COMMAND [--flag=value …]", *lines, sep="\n")
        print("`retinanet COMMAND --help` lists the flags of a command; --flagfile=FILE reads flags from a file.")
        sys.exit(0)
    if command == "--version":
        from retinanet_tf.version import __version__

        print(f"retinanet_tf {__version__}")
        sys.exit(0)
    if command not in COMMANDS:
        print(f"error: there is no command {command!r}.{_suggest(command, COMMANDS)} See --help.", file=sys.stderr)
        sys.exit(2)
    if command == "models" and arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--name={arguments[0]}"
    sys.argv = [f"retinanet {command}", *arguments]
    module = importlib.import_module(f"retinanet_tf.cli.{command.replace('-', '_')}")
    run(module.main, module.__doc__ or "", tensorflow=command not in WITHOUT_TENSORFLOW)


def run(main: Callable[[], int | None], description: str = "", *, tensorflow: bool = True) -> None:
    """Parses the absl flags, calls `main()` and exits with its status.

    Status 0 (or what `main` returns) is success, 1 an `InputError` (its sentence goes to stderr, without a
    traceback), 2 a wrong flag (with a suggestion), 130 an interruption from the keyboard, 141 a reader of the output
    that has left.

    Args:
      main: the command.
      description: text above the flags in --help.
      tensorflow: import TensorFlow first, without its start-up lines (--verbosity=1 shows them).
    """

    def parse(arguments: list[str]) -> list[str]:
        if any(argument in _HELP for argument in arguments[1:]):
            print(_help(arguments[0], description))
            sys.exit(0)
        return _parse(arguments)

    def guarded(arguments: list[str]) -> int | None:
        if len(arguments) > 1:
            print(f"error: {arguments[1]!r} is not a flag; every setting is written --name=value.", file=sys.stderr)
            return 2
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            if tensorflow:
                import_tensorflow()
            status = main()
            sys.stdout.flush()
            return status
        except InputError as error:
            print(f"error: {with_dashes(str(error), flags.FLAGS)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted.", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of the output has left, such as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    app.run(guarded, flags_parser=parse)


def with_dashes(message: str, names: flags.FlagValues) -> str:
    """A library error with its parameters as flags: `batch_size=3` becomes `--batch_size=3`."""

    def flag(match: re.Match) -> str:
        return f"--{match[0]}" if match[1] in names and (match[2] or "_" in match[1]) else match[0]

    return re.sub(r"(?<![\w\-./=])([a-z]\w*)(?![\w/-]|\.\w)(=?)", flag, message)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS([arguments[0], *expand_flagfiles(arguments[1:])])
    except flags.UnrecognizedFlagError as error:
        hint = _suggest(error.flagname, flags.FLAGS, "--")
        print(f"error: there is no flag --{error.flagname}.{hint} See --help.", file=sys.stderr)
    except (flags.Error, InputError) as error:
        missing = re.search(r"Flag (--\w+) must have a value other than None", str(error))
        sentence = f"{missing[1]} must have a value" if missing else str(error).removesuffix(".")
        print(f"error: {sentence}. See --help.", file=sys.stderr)
    sys.exit(2)


def expand_flagfiles(arguments: Iterable[str], outer: tuple[str, ...] = ()) -> list[str]:
    """The arguments with the lines of flag files in their place, and `~` at a value's start as the user's folder.

    absl's own reader of flag files takes any bytes for text; shells leave the `~` of --name=~/x as it is.
    """
    expanded, waiting = [], iter(arguments)
    for argument in waiting:
        match = re.fullmatch(r"--?flagfile(?:=(.*))?", argument)
        if not match:
            name, equals, value = argument.partition("=")
            expanded.append(name + equals + os.path.expanduser(value))
            continue
        path = os.path.expanduser(match[1] if match[1] is not None else next(waiting, ""))
        if not path:
            raise InputError("--flagfile must have a value.")
        if path in outer:
            raise InputError(f"the flag file {path} reads itself.")
        lines = [line.strip() for line in read_text(path, "the flag file").splitlines()]
        expanded += expand_flagfiles(
            [line for line in lines if line and not line.startswith(("#", "//"))], (*outer, path)
        )
    return expanded


def _suggest(word: str, names: Iterable[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {dashes}{close[0]}?" if close else ""


def _help(program: str, description: str) -> str:
    """Every flag of the project's modules with its default; absl shows those of one module."""
    names = {
        flag.name
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        for flag in defined
        if module == program or module.startswith(("retinanet_tf.", "experiments."))
    }
    lines = [description.strip(), "", f"usage: {program} [--flag=value …]"]
    for name in sorted(names):
        flag = flags.FLAGS[name]
        text = f"--{name}: {flag.help}"
        if default := (flag.default_as_str or "").strip("'"):
            text += f" (default {default})"
        lines += textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent=" " * 6)
    lines.append("  --flagfile: Read flags from this file, one per line.")
    lines.append("  --verbosity: 1 shows TensorFlow's start-up lines and informational messages. (default -1)")
    return "\n".join(lines)
