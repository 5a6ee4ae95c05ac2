"""Settings compared on a small data set in a few minutes a run: recipes/bccd.flags reduced, one row after the other.

What a comparison has in common: flags, data, training, and OUTPUT/NAME.json with mean and standard deviation over the
seeds. A run that has finished isn't trained again, so a comparison that was interrupted goes on, and further rows and
seeds join those in the file.

The blood cells:       --train=bccd/instances_train.json --val=bccd/instances_val.json --images=bccd/images
The playing cards:     --train=cards/train --val=cards/val
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
from absl import flags

import retinanet_tf as rn
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.config.config import Config
from retinanet_tf.config.presets import presets
from retinanet_tf.data.sources import read_source
from retinanet_tf.errors import InputError
from retinanet_tf.evaluation.evaluator import analyse
from retinanet_tf.evaluation.source import open_source
from retinanet_tf.inference.checkpoint import load_detector
from retinanet_tf.provenance import provenance

REDUCED = presets["mini"].replace(
    **{"image_size": 240, "max_size": 320, "batch_size": 4, "learning_rate": 5e-3},
    **{"adamw_decay": 0.05, "ema_decay": 0.99, "warmup_steps": 100, "vertical_flip": 0.5},
    **{"scale_jitter": (0.8, 1.25), "translate_jitter": 0.2, "colour_jitter": 0.3, "checkpoint_steps": 400},
)
"""At 240 to 320 pixels; `--steps` says how long, the annotations how many classes."""
Choice = Callable[[rn.data.Annotations], rn.data.Annotations]


def all_of(annotations: rn.data.Annotations) -> rn.data.Annotations:
    """Every training picture."""
    return annotations


def main(name: str, rows: Mapping[str, Mapping], base: Config, choose: Choice = all_of) -> None:
    """A comparison as a command: trains every row with every seed, and writes the numbers so far after each.

    Args:
        name: of the comparison, its default folder and its file.
        rows: what each changes in `base`, by its name.
        base: the configuration but for steps and seed.
        choose: the training pictures of all that there are.
    """
    # Here, since the tables of the paper have flags of the same names.
    flags.DEFINE_string(
        "train", None, "Annotations of the training pictures, as `retinanet prepare` reads.", required=True
    )
    flags.DEFINE_string("val", None, "Annotations of the validation pictures.", required=True)
    flags.DEFINE_string("images", None, "Their folder, if the annotations don't say it.")
    flags.DEFINE_string("output", f"runs/{name}", "Folder for shards, runs and numbers.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the trainings.")
    flags.DEFINE_list("rows", [], "Numbers of the rows to run, from 0; all by default.")
    flags.DEFINE_integer("steps", 800, "Training steps.")
    run(lambda: _compare(name, rows, base, choose))


def _compare(name: str, rows: Mapping[str, Mapping], base: Config, choose: Choice) -> None:
    given = flags.FLAGS
    output, shards = Path(given.output), Path(given.output) / "shards"
    train, train_images = read_source(given.train, images=given.images)
    val, val_images = read_source(given.val, label_map=train.label_map, images=given.images)
    train = choose(train)
    if not all(number.isdecimal() and int(number) < len(rows) for number in given.rows):
        raise InputError(f"--rows={','.join(given.rows)}: {name} has rows 0 to {len(rows) - 1}.")
    if not given.seeds or not all(seed.isdecimal() for seed in given.seeds):
        raise InputError(f"--seeds={','.join(given.seeds)} must be a list of whole numbers.")
    chosen = [list(rows)[int(number)] for number in given.rows] or list(rows)
    scale = (
        f"reduced: {len(train.images)} training pictures, {len(val.images)} of validation, {given.steps} steps of 4 at "
        "240 to 320 pixels"
    )
    path = output / f"{name}.json"
    found = _before(path, scale)
    rn.data.prepare(train, train_images, shards, "train", progress=False)
    rn.data.prepare(val, val_images, shards, "val", progress=False)
    source = open_source(str(shards / "val-*.tfrecord"))
    base = base.replace(num_classes=len(train.label_map.names), steps=given.steps)
    for seed in given.seeds:
        for row in chosen:
            keras.backend.clear_session()
            start, run_dir = time.perf_counter(), output / row.replace(" ", "_") / seed
            config = base.replace(**rows[row], seed=int(seed))
            rn.train(config, data=str(shards / "train-*.tfrecord"), run_dir=run_dir)
            analysis = analyse(load_detector(run_dir), source)
            numbers = {key: analysis.metrics[key] for key in ("AP", "AP50")}
            numbers |= dict(zip(analysis.names, analysis.ap, strict=True))
            found.setdefault(row, {})[seed] = numbers
            files.write_json(path, _result(name, found, rows, scale))
            minutes = (time.perf_counter() - start) / 60
            print(
                f"{row}, seed {seed}:", {key: round(value, 3) for key, value in numbers.items()}, f"{minutes:.1f} min"
            )


def _before(path: Path, scale: str) -> dict[str, dict]:
    """What an earlier call has found: {row: {seed: numbers}}; raises InputError if it had other pictures or steps."""
    if not path.exists():
        return {}
    before = files.read_json(path, "the comparison")
    if before["scale"] != scale:
        raise InputError(f"{path} is of other pictures or steps ({before['scale']}); give another --output.")
    return {row["row"]: row["seeds"] for row in before["rows"]}


def _result(name: str, found: Mapping[str, Mapping], rows: Mapping[str, Mapping], scale: str) -> dict:
    """The numbers by row, with mean and standard deviation over the seeds."""
    table = []
    for row in [row for row in rows if row in found]:
        seeds = found[row]
        values = {key: [numbers[key] for numbers in seeds.values()] for key in next(iter(seeds.values()))}
        mean = {key: round(statistics.mean(of), 4) for key, of in values.items()}
        spread = {key: round(statistics.stdev(of), 4) for key, of in values.items() if len(of) > 1}
        table.append(
            {"row": row, "changes": dict(rows[row]), "mean": mean, "standard_deviation": spread, "seeds": seeds}
        )
    return {"name": name, "scale": scale, "rows": table, "made_by": provenance()}
