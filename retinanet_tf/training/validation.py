"""Evaluation during and after training: COCO numbers, the best weights, log.csv and TensorBoard."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import keras
import tensorflow as tf

from retinanet_tf import files
from retinanet_tf.data.pipeline import canvas_arguments, load
from retinanet_tf.detection.rounding import round_up
from retinanet_tf.evaluation.analysis import Analysis
from retinanet_tf.evaluation.evaluator import analyse
from retinanet_tf.evaluation.source import Source
from retinanet_tf.inference import checkpoint
from retinanet_tf.inference.detector import Detector
from retinanet_tf.losses.classification import retinanet_losses
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.training import run_directory
from retinanet_tf.training.callbacks import LOSSES, EpochLog, Progress, decimal
from retinanet_tf.training.job import Job
from retinanet_tf.training.tensorboard import Board
from retinanet_tf.training.validation_loss import losses_per_image, validation_losses

LOGGED_METRICS = ("AP", "AP50", "AP75")
"""The numbers of an evaluation that go into the logs, as val_AP and so on."""


class Validation(keras.callbacks.Callback):
    """Evaluates a model in training, or the average of its weights, and keeps the best weights.

    At the first epoch's end after every `eval_steps`, AP goes into the logs. An evaluation that was due when an earlier
    process ended comes at the beginning.

    Args:
        job: its chief worker alone evaluates and writes, with weights that all workers read together.
        model: in training, as `compile_model` made it.
        run_dir: the job's folder.
        progress: counts the job's steps.
    """

    def __init__(self, job: Job, model: RetinaNet, run_dir: Path, progress: Progress):
        super().__init__()
        self.config, self.label_map, self.source, self.worker = job.config, job.label_map, job.source, job.worker
        self.trained, self.average, self.run_dir, self.progress = model, model.step.average, run_dir, progress
        # Variables of several workers can only be read by all together. The chief evaluates a copy.
        with precision_policy(self.config.train.precision):
            self.eval_model = RetinaNet.from_config(self.config) if self.worker.count > 1 else model
        self.detector = Detector(self.eval_model, self.label_map, self.config.detect, jit_compile=self.config.train.xla)
        self.log = EpochLog(run_dir / run_directory.LOG, progress.step)
        self.board: Board | None = None
        self.loss_graphs: tuple[Callable, tf.data.Dataset] | None = None  # traced at the first evaluation
        self.analysed: tuple[int, Analysis] | None = None  # the last evaluation and its step
        best, rows = run_dir / run_directory.BEST_METRICS, run_directory.read_evaluations(run_dir, progress.step)
        self.best = files.read_json(best, "the best metrics")["AP"] if best.exists() else -math.inf
        self.next = self._due_after(rows[-1]["step"] if rows else 0)

    def loggers(self, first_batch: Callable[[], tuple[tf.Tensor, dict]]) -> list[keras.callbacks.Callback]:
        """log.csv and TensorBoard: for the loop, after its `progress` and before the checkpoints and this callback."""
        if not self.worker.is_chief:
            return []
        self.board = Board(self.run_dir / "tensorboard", self.progress)
        if self.progress.step == 0:
            self.board.inputs(first_batch(), self.label_map)
        return [self.log, self.board]

    def on_train_begin(self, logs=None):
        if self.progress.step < self.next:
            self._be_patient()
        else:
            self.on_epoch_end(0)

    def on_epoch_end(self, epoch, logs=None):
        step = self.progress.step
        if step < self.next:
            return
        self.next = self._due_after(step)
        with self._weights():
            if self.source is None:
                return  # another worker's to evaluate
            losses = self._losses(self.source) if self.config.train.validation_loss else {}
            analysis = self._analyse(self.source)
            metrics = analysis.metrics | losses
            if 0 <= metrics["AP"] > self.best:  # −1: no object that counts
                self.best = metrics["AP"]
                run_directory.save_best(self.eval_model, self.run_dir, {"step": step, **metrics})
        if step < self.config.train.steps:
            self.analysed = None  # `finish` needs the last one alone, and each holds all detections
        print(f"step {step}: AP {decimal(metrics['AP'])}, AP50 {decimal(metrics['AP50'])}")
        logged = {f"val_{name}": metrics[name] for name in (*LOGGED_METRICS, *LOSSES) if name in metrics}
        self.log.add(step, logged)
        if self.board:
            self.board.scalars(logged)
        # Last: an evaluation that isn't recorded is due again.
        rows = run_directory.read_evaluations(self.run_dir, step - 1)
        rows.append({"step": step, **metrics, "per_category": dict(zip(analysis.names, analysis.ap, strict=True))})
        files.write_json(self.run_dir / run_directory.EVALUATIONS, rows)
        if logs is not None:
            logs.update(logged)
        self._be_patient()

    def _due_after(self, step: int) -> float:
        """The step of the next evaluation, an epoch's end; infinite if there is none."""
        train = self.config.train
        every = train.eval_steps if self.source or self.worker.count > 1 else 0
        due = (step // every + 1) * every if every else math.inf
        return min(round_up(due, train.checkpoint_steps), train.steps) if due <= train.steps else math.inf

    def _be_patient(self) -> None:
        """Ends the job if its evaluations have brought no higher AP for `patience`."""
        step, patience = self.progress.step, self.config.train.patience
        rows = run_directory.read_evaluations(self.run_dir, step) if patience else []
        values = [row["AP"] for row in rows if row["step"] > self.config.train.warmup_steps]
        if patience and is_exhausted(values, patience):
            self.trained.stop_training = True
            print(
                f"patience={patience}: AP no longer rises, and the job ends after step {step}; "
                f"best.weights.h5 has the weights of the best AP, {self.best:.3f}."
            )

    def finish(self) -> None:
        """Writes metrics.json and, last, the weights, which mark a finished run."""
        if self.average:
            self.average.keep()
        with self._weights():
            if not self.worker.is_chief:
                return
            if self.source:
                analysis = self._analyse(self.source)
                threshold = {"threshold": analysis.best.score if analysis.best else None}
                files.write_json(self.run_dir / "metrics.json", {**analysis.metrics, **threshold})
                numbers = ", ".join(f"{name} {decimal(value)}" for name, value in analysis.metrics.items())
                print(f"{self.run_dir}: {numbers}")
            checkpoint.save_weights(self.eval_model, self.run_dir / checkpoint.WEIGHTS)

    @contextmanager
    def _weights(self) -> Iterator[None]:
        """Inside the block, `eval_model` has the weights to evaluate."""
        with self.average.swapped() if self.average else nullcontext():
            if self.eval_model is not self.trained:
                self.eval_model.set_weights(self.trained.get_weights())
            yield

    def _losses(self, source: Source) -> dict[str, float]:
        if self.loss_graphs is None:
            # One device has all of a batch here.
            parts = self.trained.distribute_strategy.num_replicas_in_sync * self.config.train.accumulation
            sizes, batch_size = canvas_arguments(self.config), max(1, self.config.data.batch_size // parts)
            dataset = load(source.name, training=False, label_map=self.label_map, batch_size=batch_size, **sizes)
            losses = retinanet_losses(self.config.loss, self.label_map.unique_names)
            self.loss_graphs = losses_per_image(self.eval_model, losses), dataset
        per_image, dataset = self.loss_graphs
        return validation_losses(per_image, self.config.loss.normalizer, dataset)

    def _analyse(self, source: Source) -> Analysis:
        """The evaluation, also for TensorBoard; once for a step."""
        step = self.progress.step
        if self.analysed and self.analysed[0] == step:
            return self.analysed[1]
        analysis = analyse(self.detector, source)
        self.analysed = step, analysis
        if self.board:
            self.board.detections(self.detector, source)
            self.board.classes(dict(zip(analysis.names, analysis.ap, strict=True)))
        return analysis


ZERO_FACTOR = 5
"""A detector may begin with AP 0 for a while: it has this many times the patience to leave it."""


def is_exhausted(values: Sequence[float], patience: int) -> bool:
    """Whether `patience` evaluations in a row brought no higher AP than the best before them.

    >>> is_exhausted([0.3, 0.3], 2), is_exhausted([0.3, 0.3, 0.3], 2), is_exhausted([0.0, 0.0, 0.0, 0.1], 2)
    (False, True, False)

    Args:
        values: AP of all evaluations that count, the oldest first.
        patience: evaluations, above 0.
    """
    best = max(values, default=0.0)
    if best <= 0:
        return len(values) >= ZERO_FACTOR * patience
    return len(values) - 1 - list(values).index(best) >= patience
