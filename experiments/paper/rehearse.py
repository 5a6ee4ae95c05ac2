"""Three training steps of every distinct job of the paper's tables, on real photos, on whatever machine this is.

    python -m experiments.paper.rehearse --data='shards/train-*.tfrecord'

Everything is the paper's but what needs its hardware and its weights: one image per step instead of 16 (the learning
rate by the linear rule), fresh weights where ImageNet's belong, and with --shrink smaller images. Jobs of one network
share it and begin with the same weights, so that their first losses can be compared. Finished jobs are in the result,
OUTPUT/paper/rehearsal.json, and aren't repeated; --tables takes a few. Keras 3 keeps the graphs of each job's step (the
70th didn't fit into 24 GB): start again what ends for lack of memory.
"""

import importlib
import time
from pathlib import Path

import keras
from absl import flags
from tqdm import tqdm

from experiments.paper import study
from retinanet_tf import files
from retinanet_tf.cli.main import run
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flagfile
from retinanet_tf.data.pipeline import load_for_training
from retinanet_tf.errors import InputError
from retinanet_tf.losses.classification import retinanet_losses
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.provenance import provenance
from retinanet_tf.training.optimizers import make_optimizer

TABLES = flags.DEFINE_list(
    "tables", [name for name in study.STUDIES if name != "losses"], "Studies to rehearse; `losses` isn't the paper's."
)
SHRINK = flags.DEFINE_integer("shrink", 1, "Divide the images' sides by this, where a step takes a minute.", 1)
STEPS = 3


def distinct_jobs(tables: list[str]) -> dict[str, Config]:
    """{name: configuration} of every job of the tables at the paper's scale, those of one network together."""
    found: dict[str, Config] = {}
    for table in tables:
        if table not in study.STUDIES:
            raise InputError(f"--tables={table} is none of {', '.join(study.STUDIES)}.")
        rows: study.Study = importlib.import_module(f"experiments.paper.{table}").STUDY
        for row in rows.rows:
            config = study.resolve(rows, row, "paper", seed=0)
            found.setdefault(study.job_name(config, "paper"), config)
    return dict(sorted(found.items(), key=lambda item: str((item[1].model, item[1].anchors))))


def rehearse(config: Config, model: RetinaNet, pattern: str, shrink: int = 1) -> dict:
    """Three steps of `model.fit`; {"image_size", "learning_rate", "losses" and "seconds" by step}."""
    size, longest = (side // shrink for side in (config.model.image_size, config.model.max_size))
    config = config.scaled_to_batch(1).replace(image_size=size, max_size=longest)
    model.compile(make_optimizer(config.train), loss=retinanet_losses(config.loss), jit_compile=False)
    losses, seconds = [], []
    data = load_for_training(config, pattern)
    for step in range(STEPS):
        start = time.perf_counter()
        history = model.fit(data.skip(step), steps_per_epoch=1, shuffle=False, verbose=0).history
        seconds.append(round(time.perf_counter() - start, 2))
        losses.append({name: round(float(history[name][0]), 5) for name in history if name.endswith("loss")})
    return {"image_size": size, "learning_rate": config.train.learning_rate, "losses": losses, "seconds": seconds}


def main() -> None:
    """Runs what is missing, writing after each job; with --dry_run prints every job as a flagfile."""
    if study.DRY_RUN.value:
        for name, config in distinct_jobs(TABLES.value).items():
            print(f"# {name}\n{flagfile(config)}")
        return
    if not study.DATA.value:
        raise InputError("--data is missing: a pattern of prepared shards of COCO photos (80 classes).")
    path = Path(study.OUTPUT.value) / "paper" / "rehearsal.json"
    files.make_folder(path.parent, "--output")
    done = files.read_json(path, "the rehearsal")["jobs"] if path.exists() else {}
    network, model, weights = None, None, None
    for name, config in tqdm(distinct_jobs(TABLES.value).items(), unit="job"):
        if name in done:
            continue
        if (config.model, config.anchors) != network:
            keras.backend.clear_session()
            keras.utils.set_random_seed(0)
            network, model = (config.model, config.anchors), RetinaNet.from_config(config)
            weights = model.get_weights()
        model.set_weights(weights)
        # What RetinaNet takes from the other sections of a configuration.
        model.normalizer, model.assign_config = config.loss.normalizer, config.assign
        names = ("mining", "mining_examples", "mining_nms")
        model.mining = {field: getattr(config.loss, field) for field in names}
        done[name] = rehearse(config, model, study.DATA.value, SHRINK.value)
        heading = {"steps": STEPS, "batch_size": 1, "data": study.DATA.value, "made_by": provenance()}
        files.write_json(path, {**heading, "jobs": done})


if __name__ == "__main__":
    run(main)
