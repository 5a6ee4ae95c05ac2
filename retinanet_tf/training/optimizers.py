"""Optimizers and learning-rate schedules (§4.1)."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from retinanet_tf.config.config import TrainConfig
from retinanet_tf.errors import InputError

DECOUPLED_DECAY = ("adamw", "lamb", "novograd", "rectified_adam", "sgdw")
"""The optimizers that `adamw_decay` belongs to."""
_WARMUP_START = 1 / 3
"""First warm-up learning rate as a share of the full one (authors' code)."""


@keras.saving.register_keras_serializable(package="retinanet_tf")
class WarmupStepSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a tenth of the rate at every boundary (§4.1; warm-up from the authors' code).

    Args:
        learning_rate: rate between warm-up and the first boundary.
        boundaries: steps from which on the rate is divided by ten once more.
        warmup_steps: steps of the warm-up, which begins at a third of the rate; 0 for none.
    """

    def __init__(self, learning_rate: float, boundaries: Sequence[int], warmup_steps: int = 0):
        self.learning_rate, self.boundaries, self.warmup_steps = learning_rate, tuple(boundaries), warmup_steps

    def __call__(self, step):
        """The float32 rate of an integer step, counted from 0."""
        step = tf.cast(step, tf.float32)
        passed = sum((tf.cast(step >= boundary, tf.float32) for boundary in self.boundaries), tf.constant(0.0))
        return _warmed_up(self.learning_rate * 10.0**-passed, step, self.warmup_steps)

    def get_config(self) -> dict:
        return dict(vars(self))


@keras.saving.register_keras_serializable(package="retinanet_tf")
class WarmupCosineSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then half a cosine down to zero at the last step."""

    def __init__(self, learning_rate: float, steps: int, warmup_steps: int = 0):
        self.learning_rate, self.steps, self.warmup_steps = learning_rate, steps, warmup_steps

    def __call__(self, step):
        """The float32 rate of an integer step, counted from 0."""
        step = tf.cast(step, tf.float32)
        progress = tf.clip_by_value((step - self.warmup_steps) / max(1, self.steps - self.warmup_steps), 0.0, 1.0)
        rate = 0.5 * self.learning_rate * (1.0 + tf.cos(math.pi * progress))
        return _warmed_up(rate, step, self.warmup_steps)

    def get_config(self) -> dict:
        return dict(vars(self))


def _warmed_up(rate, step, warmup_steps):
    if not warmup_steps:
        return rate
    share = tf.minimum(step / warmup_steps, 1.0)
    return rate * (_WARMUP_START + (1.0 - _WARMUP_START) * share)


def make_schedule(config: TrainConfig) -> keras.optimizers.schedules.LearningRateSchedule:
    """The schedule that `config` describes."""
    if config.schedule == "cosine":
        return WarmupCosineSchedule(config.learning_rate, config.steps, config.warmup_steps)
    return WarmupStepSchedule(config.learning_rate, config.decay_steps, config.warmup_steps)


@keras.saving.register_keras_serializable(package="retinanet_tf")
class AdamWOfKernels(keras.optimizers.AdamW):
    """PyTorch's AdamW, without weight decay of biases and norms, which a saved model of Keras' own would get back.

    Args:
        epsilon: beside √(v / (1 − β₂ᵗ)), as in PyTorch and in Kingma & Ba's algorithm 1. Keras adds its own beside √v,
            where it is the larger, the earlier the step.
        *args, **kwargs: of Keras' AdamW.
    """

    def __init__(self, *args: Any, epsilon: float = 1e-8, **kwargs: Any):
        super().__init__(*args, epsilon=epsilon, **kwargs)
        # A variable's own name comes last; in Keras 2 it follows its layers' and ends in ":0".
        self.exclude_from_weight_decay(var_names=[r"(^|/)(bias|beta|gamma)(:0)?$"])

    @property
    def epsilon(self) -> tf.Tensor:
        """What Keras adds beside √v at the present step."""
        step = tf.cast(self.iterations + 1, tf.float32)
        return self.corrected_epsilon * tf.sqrt(1.0 - tf.pow(tf.constant(self.beta_2, tf.float32), step))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self.corrected_epsilon = value

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.corrected_epsilon}


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """The optimizer that `config` describes, with its schedule.

    The paper's coupled weight decay (§4.1) isn't the optimizer's: it is a penalty in the model's loss.

    Raises:
        InputError: an optimizer of TensorFlow Addons where that can't be imported.
    """
    common = {"learning_rate": make_schedule(config), "global_clipnorm": config.clip_norm or None}
    if config.optimizer == "adamw":
        return AdamWOfKernels(weight_decay=config.adamw_decay, **common)
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(momentum=config.momentum, **common)
    return _from_addons(config, common["learning_rate"])


def _from_addons(config: TrainConfig, rate: keras.optimizers.schedules.LearningRateSchedule):
    try:
        import tensorflow_addons as tfa
    except ImportError as error:
        raise InputError(
            f"optimizer={config.optimizer} needs TensorFlow Addons, which can't be imported ({error}); use "
            "Python 3.10 or 3.11, or optimizer=sgd or adamw."
        ) from None
    clip = {"global_clipnorm": config.clip_norm} if config.clip_norm else {}
    make = {
        "lamb": lambda: tfa.optimizers.LAMB(rate, weight_decay_rate=config.adamw_decay, **clip),
        "novograd": lambda: tfa.optimizers.NovoGrad(rate, weight_decay=config.adamw_decay, **clip),
        "rectified_adam": lambda: tfa.optimizers.RectifiedAdam(rate, weight_decay=config.adamw_decay, **clip),
        "lazy_adam": lambda: tfa.optimizers.LazyAdam(rate, **clip),
        "sgdw": lambda: tfa.optimizers.SGDW(config.adamw_decay, rate, config.momentum, **clip),
        "lookahead_sgd": lambda: tfa.optimizers.Lookahead(
            keras.optimizers.legacy.SGD(rate, momentum=config.momentum, **clip)
        ),
    }
    return make[config.optimizer]()
