"""Evaluation during and after training: COCO numbers, the best weights, log.csv and TensorBoard."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import keras
import tensorflow as tf

from retinanet_tf import files
from retinanet_tf.data.pipeline import canvas_arguments, load
from retinanet_tf.evaluation.analysis import Analysis
from retinanet_tf.evaluation.evaluator import analyse
from retinanet_tf.evaluation.source import Source
from retinanet_tf.inference import checkpoint
from retinanet_tf.inference.detector import Detector
from retinanet_tf.losses.classification import retinanet_losses
from retinanet_tf.models.layers import precision_policy
from retinanet_tf.models.retinanet import RetinaNet
from retinanet_tf.training import run_directory
from retinanet_tf.training.callbacks import LOGGED_METRICS, LOSSES, EpochLog, EvaluateAndKeep, Progress, decimal
from retinanet_tf.training.job import Job
from retinanet_tf.training.tensorboard import Board
from retinanet_tf.training.validation_loss import losses_per_image, validation_losses


class Validation:
    """Evaluates a model in training, or the average of its weights.

    Args:
        job: its chief worker alone evaluates and writes, with weights that all workers read together.
        model: in training, as `compile_model` made it.
        run_dir: the job's folder.
        progress: counts the job's steps.
    """

    def __init__(self, job: Job, model: RetinaNet, run_dir: Path, progress: Progress):
        self.config, self.label_map, self.source, self.worker = job.config, job.label_map, job.source, job.worker
        self.model, self.average, self.run_dir, self.progress = model, model.step.average, run_dir, progress
        # Variables of several workers can only be read by all together. The chief evaluates a copy.
        with precision_policy(self.config.train.precision):
            self.eval_model = RetinaNet.from_config(self.config) if self.worker.count > 1 else model
        self.detector = Detector(self.eval_model, self.label_map, self.config.detect, jit_compile=self.config.train.xla)
        self.board: Board | None = None
        self.loss_graphs: tuple[Callable, tf.data.Dataset] | None = None  # traced at the first evaluation
        self.analysed: tuple[int, Analysis] | None = None  # the last evaluation and its step

    def callbacks(self, first_batch: Callable[[], tuple[tf.Tensor, dict]]) -> list:
        """For the loop, after its `progress`: evaluation, log.csv, TensorBoard."""
        callbacks: list[keras.callbacks.Callback] = []
        train, progress = self.config.train, self.progress
        every = train.eval_steps
        evaluated = every and (self.source or self.worker.count > 1)
        if evaluated:
            history = [(row["step"], row["AP"]) for row in run_directory.read_evaluations(self.run_dir, progress.step)]
            settings = (history, train.patience, train.warmup_steps)
            steps = (self._numbers, self._keep, self._record)
            callbacks.append(EvaluateAndKeep(*steps, progress, every, self._best(), self._weights, *settings))
        if self.worker.is_chief:
            names = (*LOGGED_METRICS, *(LOSSES if train.validation_loss else ()))
            columns = [f"val_{name}" for name in names] if evaluated else []
            callbacks.append(EpochLog(str(self.run_dir / run_directory.LOG), columns))
            self.board = Board(self.run_dir / "tensorboard", progress)
            if progress.step == 0:
                self.board.inputs(first_batch(), self.label_map)
            callbacks.append(self.board)
        return callbacks

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
            if self.eval_model is not self.model:
                self.eval_model.set_weights(self.model.get_weights())
            yield

    def _numbers(self) -> dict[str, float]:
        if self.source is None:
            return dict.fromkeys(LOGGED_METRICS, -math.inf)
        losses = self._losses(self.source) if self.config.train.validation_loss else {}
        return self._analyse(self.source).metrics | losses

    def _record(self, step: int, numbers: dict[str, float]) -> None:
        if self.analysed:
            analysis, rows = self.analysed[1], run_directory.read_evaluations(self.run_dir, step - 1)
            classes = dict(zip(analysis.names, analysis.ap, strict=True))
            rows.append({"step": step, **numbers, "per_category": classes})
            files.write_json(self.run_dir / run_directory.EVALUATIONS, rows)
            if step < self.config.train.steps:
                self.analysed = None  # `finish` needs the last one alone, and each holds all detections

    def _losses(self, source: Source) -> dict[str, float]:
        if self.loss_graphs is None:
            # One device has all of a batch here.
            parts = self.model.distribute_strategy.num_replicas_in_sync * self.config.train.accumulation
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

    def _best(self) -> float:
        path = self.run_dir / run_directory.BEST_METRICS
        return files.read_json(path, "the best metrics")["AP"] if path.exists() else -math.inf

    def _keep(self, step: int, metrics: dict[str, float]) -> None:
        run_directory.save_best(self.eval_model, self.run_dir, {"step": step, **metrics})
