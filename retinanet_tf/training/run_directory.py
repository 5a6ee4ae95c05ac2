"""The run directory of a training job: its files, its lock, and whether a job may resume in it.

flags.txt      every setting as a flagfile: `retinanet train --flagfile=DIR/flags.txt` repeats the run
run.json       the configuration, data, number of workers, versions, seed, git commit
labels.json    the dataset's category ids and names
checkpoints/   the newest training states, by step
log.csv        losses, learning rate, images per second, AP per epoch (an epoch ends at every checkpoint)
evaluations.json   the twelve COCO numbers and AP by class of every evaluation
tensorboard/   the same and images, for TensorBoard
best.weights.h5    (with best.json, best.run.json, best.labels.json) the weights of the best AP while training
model.weights.h5   the trained weights, written at the end
damaged_records.txt    records that on_bad_record=skip left out, if any
nonfinite_step_N.npz   the batch of a step whose loss was NaN, if any
metrics.json   the twelve COCO numbers at the end and the score with the best F1, if there is validation data
training.png   the curves of log.csv
lock           held by the running job
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import keras

from retinanet_tf import files
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flagfile
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.inference.checkpoint import SUFFIX, WEIGHTS, load_config, read_json, save_weights, saved_steps
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.provenance import provenance

LOG = "log.csv"
BEST_METRICS = "best.json"
EVALUATIONS = "evaluations.json"


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Locks `run_dir` for the block; the system releases the lock when the process ends, even by `kill -9`.

    Windows has no `flock`: there, nothing keeps two jobs out of one directory.

    Raises:
        InputError: another process holds the lock, named by host and process id; or it can't be written and locked.
    """
    lock = Path(run_dir) / "lock"
    with ExitStack() as stack:
        try:
            # Without a buffer, which a full disk would let neither write nor close.
            file = stack.enter_context(open(lock, "ab+", buffering=0))
            with suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode().strip() or "unknown"
            raise InputError(
                f"run_dir={run_dir} is in use by another job ({holder}); wait for its end or choose another run_dir."
            ) from None
        except OSError as error:
            raise InputError(
                f"{lock} can't be written and locked: {error.strerror or error}; choose another run_dir."
            ) from None
        yield


def save_best(model: RetinaNet, run_dir: Path, metrics: dict) -> None:
    """Keeps weights beside the last ones, with all that `load_detector(run_dir / "best.weights.h5")` needs."""
    save_weights(model, run_dir / f"best{SUFFIX}")
    for name in ("run.json", "labels.json"):
        files.write_text(run_dir / f"best.{name}", files.read_text(run_dir / name, "the file of the run"))
    files.write_json(run_dir / BEST_METRICS, metrics)


def read_evaluations(run_dir: Path, step: int) -> list[dict]:
    """The evaluations until a step, {"step", "AP", …}, the oldest first."""
    path = run_dir / EVALUATIONS
    rows = files.read_json(path, "the list of evaluations") if path.exists() else []
    return [row for row in rows if row["step"] <= step]


def start(
    run_dir: str | os.PathLike,
    config: Config,
    label_map: LabelMap,
    *,
    data: str,
    validation: str,
    init_weights: str = "",
    workers: int = 1,
) -> bool:
    """Writes a job's settings into its run directory, or recognizes the same job to resume.

    Another number of `workers` than before is the same job, and is printed. A folder without checkpoints and weights
    is a new one: its job failed before it had any.

    Returns:
        Whether the job was started before.

    Raises:
        InputError: another job's directory (the differing fields are named), or one that can't be written or has no
            run.json beside its weights; other workers than before where the order of the data depends on their number.
    """
    run_dir = Path(run_dir)
    paths = {"data": data, "validation": validation, "init_weights": init_weights}
    record = {"config": config.to_dict(), **paths, "labels": label_map.to_json()}
    record = json.loads(json.dumps(record))  # tuples become lists, as in the file
    existing = run_dir / "run.json"
    started = {**record, "workers": workers}
    if saved_steps(run_dir / "checkpoints") or any((run_dir / name).exists() for name in (f"best{SUFFIX}", WEIGHTS)):
        if not existing.exists():
            raise InputError(
                f"run_dir={run_dir} has checkpoints or weights but no run.json; put it back or choose another run_dir."
            )
        before = {"init_weights": "", **read_json(existing)}
        # Fields that are newer than the run had their default then.
        before["config"] = json.loads(json.dumps(load_config(run_dir).to_dict()))
        if differing := sorted(_differences(before, record)):
            raise InputError(
                f"run_dir={run_dir} holds a job that differs in {', '.join(differing)}; to resume it, give the "
                f"settings of {run_dir / 'flags.txt'}; to train its weights longer or in another way, give "
                f"init_weights={run_dir} and another run_dir."
            )
        _check_keras(run_dir, before.get("made_by", {}))
        if (earlier := before.get("workers", 1)) != workers and not (run_dir / WEIGHTS).exists():
            if config.data.shard_by == "files":
                raise InputError(
                    f"run_dir={run_dir} holds a job of {earlier} worker(s) with shard_by=files, whose batches depend "
                    f"on their number; start {earlier} again, or another run_dir with init_weights={run_dir}."
                )
            print(f"{run_dir}: begun by {earlier} worker(s), continued by {workers} with the same batches.")
            files.write_json(existing, {**started, "made_by": before.get("made_by", {})})
        return True
    files.make_folder(run_dir, "run_dir")
    files.write_text(run_dir / "flags.txt", flagfile(config, **paths, run_dir=str(run_dir)))
    label_map.save(run_dir / "labels.json")
    files.write_json(existing, {**started, "made_by": {**provenance(), "command": " ".join(sys.argv)}})
    return False


def _check_keras(run_dir: Path, made_by: dict[str, str]) -> None:
    """Raises InputError if an unfinished job was begun under the other of Keras 2 and 3, whose states differ."""
    versions = {name: made_by.get(name, "") for name in ("keras", "tensorflow")}
    finished = (run_dir / WEIGHTS).exists()
    if finished or versions["keras"].split(".")[0] in ("", keras.__version__.split(".")[0]):
        return
    raise InputError(
        f"the checkpoints in {run_dir} were written by Keras {versions['keras']} (TensorFlow "
        f"{versions['tensorflow']}), whose training state Keras {keras.__version__} can't read; resume with those "
        f"versions, or start from the weights: give init_weights={run_dir} and another run_dir."
    )


def _differences(before: dict, after: dict) -> Iterator[str]:
    for key, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            yield from _differences(before[key], value)
        elif before.get(key) != value:
            yield key
