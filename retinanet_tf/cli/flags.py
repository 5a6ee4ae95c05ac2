"""absl flags of the configuration: one per field, with the presets' values in its help."""

import dataclasses
from typing import Any

from absl import flags

from retinanet_tf.config.config import Config
from retinanet_tf.config.presets import presets
from retinanet_tf.errors import InputError

_PRESET_HELP = (
    "Configuration that the other flags change: 'paper' (the text), 'detectron' (the authors' code), 'modern' (the "
    "recipe of torchvision's v2: AP 41.5 on COCO, from --init_weights=torchvision/resnet50_v2) or 'mini' (a small "
    "network for small images)."
)


def define(only: tuple[str, ...] | None = None, preset: bool = True) -> None:
    """Defines --preset and a flag for every field of the configuration (or of the sections named in `only`)."""
    if preset:
        flags.DEFINE_enum("preset", "paper", list(presets), _PRESET_HELP)
    for section in dataclasses.fields(Config):
        if only is not None and section.name not in only:
            continue
        for field in dataclasses.fields(getattr(presets["paper"], section.name)):
            define_field(section.name, field)


class _NumberOrWord(flags.ArgumentParser):
    """Parses a number, or leaves one of some words as it is."""

    def __init__(self, words: tuple[str, ...]):
        self.words = words

    def parse(self, argument: float | str) -> float | str:
        return argument if argument in self.words else float(argument)


def define_field(section: str, field: dataclasses.Field, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flag of one field of one section of the configuration."""
    values = {name: getattr(getattr(preset, section), field.name) for name, preset in presets.items()}
    default = values.pop("paper")
    others = ", ".join(f"{name}: {_text(value)}" for name, value in values.items() if value != default)
    help_text = f"{field.metadata['help']} (default {_text(default)}{'; ' + others if others else ''})"
    name, choices = field.name, field.metadata["choices"]
    if choices:
        flags.DEFINE_enum(name, None, list(choices), help_text, flag_values=flag_values)
    elif words := field.metadata["words"]:
        flags.DEFINE(_NumberOrWord(words), name, None, help_text, flag_values=flag_values)
    else:
        kind = {bool: "boolean", int: "integer", float: "float", tuple: "list", str: "string"}[type(default)]
        getattr(flags, f"DEFINE_{kind}")(name, None, help_text, flag_values=flag_values)


def _text(value: Any) -> str:
    return ",".join(f"{item:.6g}" for item in value) if isinstance(value, tuple) else str(value)


def read(base: Config | None = None) -> Config:
    """The configuration that the parsed flags describe: the preset (or `base`), then every flag that was given.

    If batch_size isn't the preset's, learning_rate, steps and decay_steps are scaled with it by the linear rule, unless
    they are given too.

    Raises:
      InputError: a list with elements of the wrong kind, named by its flag.
    """
    config = base or presets[flags.FLAGS.preset]
    changes: dict[str, Any] = {}
    for name, current in config.flat().items():
        if name not in flags.FLAGS or flags.FLAGS[name].value is None:
            continue
        value: Any = flags.FLAGS[name].value
        if isinstance(current, tuple):
            # An empty default is a tuple of integers (steps); every other one shows the kind of its elements.
            kind = type(current[0]) if current else int
            try:
                value = tuple(kind(item) for item in value)
            except ValueError:
                raise InputError(f"--{name}={','.join(value)} must be a list of {kind.__name__} values.") from None
        changes[name] = value
    if "batch_size" in changes:
        config = config.scaled_to_batch(changes["batch_size"])
    return config.replace(**changes)
