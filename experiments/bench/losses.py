"""Cost of the losses, forward and backward, beside other implementations; time and peak memory.

    python -m experiments.bench.losses --json=losses.json

Logits (2, 50 000, 80) as a detector has them early in training, 0.2 % positives and 0.2 % ignored anchors. All compared
are graphs of the same tape; the peers get a one-hot made beforehand, which costs them nothing here.
"""

import importlib.util
import math
import multiprocessing
import os
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from experiments.bench.memory import process_memory
from experiments.bench.timing import Rows, in_turns
from retinanet_tf.cli.main import run
from retinanet_tf.losses.box import GIoULoss, SmoothL1Loss
from retinanet_tf.losses.classification import CrossEntropyLoss, FocalLoss
from retinanet_tf.losses.mining import mine

_ROUNDS = flags.DEFINE_integer("rounds", 20, "Timed calls of everything, in turns.")
_SHAPE = (2, 50_000, 80)


def main() -> None:
    """Times every loss and its peers, then measures memory."""
    rows = Rows()
    targets, logits = _problem()
    one_hot = tf.one_hot(targets, _SHAPE[-1])
    peers = _peers(logits, one_hot)
    _focal(rows, targets, logits, one_hot, peers)
    _ohem(rows, targets, logits, peers)
    _boxes(rows, targets)
    _memory(rows)
    rows.write()


Peers = dict[str, tuple[Callable[[], None], float | None]]


def _peers(logits: tf.Tensor, one_hot: tf.Tensor) -> Peers:
    """{name: (a step of the peer's focal loss with gamma 2, limit of the ratio to it)}."""
    theirs = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, alpha=0.25, gamma=2.0, from_logits=True, reduction="none"
    )
    peers = {
        "Keras BinaryFocalCrossentropy": (_step(lambda x: theirs(one_hot, x), logits), 0.45),
        "the textbook formula under XLA": (_step(lambda x: _textbook(one_hot, x), logits, compiled=True), 0.7),
        "the textbook formula": (_step(lambda x: _textbook(one_hot, x), logits), None),
        "one copy of the logits": (_copy(logits), None),
    }
    if importlib.util.find_spec("tensorflow_addons") is not None:
        from tensorflow_addons.losses import sigmoid_focal_crossentropy

        loss = _step(lambda x: sigmoid_focal_crossentropy(one_hot, x, from_logits=True), logits)
        peers["tensorflow-addons SigmoidFocalCrossEntropy"] = (loss, 0.45)
    return peers


def _focal(rows: Rows, targets: tf.Tensor, logits: tf.Tensor, one_hot: tf.Tensor, peers: Peers) -> None:
    ours = {f"focal loss, gamma {g:g}": _step(partial(FocalLoss(g).call, targets), logits) for g in (2.0, 0.5)}
    # The peers above have γ = 2, a square; a root is dearer for everyone.
    root = "the textbook formula of gamma 0.5 under XLA"
    alike = {root: _step(lambda x: _textbook(one_hot, x, 0.5), logits, compiled=True)}
    times = in_turns({**{name: peer for name, (peer, _) in peers.items()}, **alike, **ours}, _ROUNDS.value)
    for name in ours:
        for peer, (_, limit) in peers.items():
            comparable = "gamma 2" in name or "XLA" not in peer
            rows.add(name, times[name], peer, times[peer], limit if comparable else None)
    rows.add("focal loss, gamma 0.5", times["focal loss, gamma 0.5"], root, times[root], 0.7)


def _ohem(rows: Rows, targets: tf.Tensor, logits: tf.Tensor, peers: Peers) -> None:
    corner = np.random.default_rng(1).uniform(0, 800, (_SHAPE[1], 2))
    boxes = tf.constant(np.concatenate([corner, corner + 64], 1), tf.float32)
    loss = CrossEntropyLoss()
    plain = _step(lambda x: loss.call(targets, x), logits)
    for name in ("OHEM", "OHEM 1:3"):

        def mined(x, name=name):
            return _mined(loss, targets, x, boxes, name)

        limited = {peer: (step, limit) for peer, (step, limit) in peers.items() if limit}
        steps = {"mined": _step(mined, logits), "plain": plain, **{peer: step for peer, (step, _) in limited.items()}}
        times = in_turns(steps, _ROUNDS.value)
        rows.add(f"cross entropy with {name}", times["mined"], "cross entropy alone", times["plain"], None)
        for peer, (_, limit) in limited.items():
            rows.add(f"cross entropy with {name}", times["mined"], peer, times[peer], limit)


def _mined(loss: CrossEntropyLoss, targets: tf.Tensor, logits: tf.Tensor, boxes: tf.Tensor, name: str) -> tf.Tensor:
    """The mined loss as the training step has it: on the chosen anchors' logits alone."""
    chosen = mine(loss, targets, logits, boxes, {"OHEM": "ohem", "OHEM 1:3": "ohem_1_3"}[name])
    return loss.call(chosen.class_targets, tf.gather(logits, chosen.anchors, batch_dims=1))


def _boxes(rows: Rows, targets: tf.Tensor) -> None:
    rng = np.random.default_rng(2)
    deltas = tf.constant(rng.normal(0, 0.3, (*_SHAPE[:2], 4)), tf.float32)
    goals = tf.constant(rng.normal(0, 0.3, (*_SHAPE[:2], 4)), tf.float32)
    positive = tf.cast(targets >= 0, tf.float32)
    y_true = tf.concat([goals, positive[..., None]], axis=-1)
    huber = keras.losses.Huber(0.11, reduction="none")
    times = in_turns(
        {
            "smooth L1": _step(lambda x: SmoothL1Loss().call(y_true, x), deltas),
            "GIoU": _step(lambda x: GIoULoss().call(y_true, x), deltas),
            "huber": _step(lambda x: positive * huber(goals, x) * 4 / 0.11, deltas),
        },
        _ROUNDS.value,
    )
    for name, limit in (("smooth L1", 1.0), ("GIoU", None)):
        rows.add(f"{name} on the boxes", times[name], "Keras Huber, masked", times["huber"], limit)


def _problem() -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    share = rng.uniform(size=_SHAPE[:2])
    targets = np.where(share < 0.002, rng.integers(0, _SHAPE[-1], share.shape), -1)
    targets = np.where(share > 0.998, -2, targets).astype(np.int32)
    return tf.constant(targets), tf.constant(rng.normal(-math.log(99), 1.0, _SHAPE).astype(np.float32))


def _step(loss: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, compiled: bool = False) -> Callable[[], None]:
    """Forward and backward as one graph."""

    @tf.function(jit_compile=compiled or None)
    def graph(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(loss(x))
        return value, tape.gradient(value, x)

    def step() -> None:
        value, _ = graph(x)
        value.numpy()

    return step


def _copy(x: tf.Tensor) -> Callable[[], None]:
    copied = tf.function(lambda x: x + 1.0)
    return lambda: copied(x).device and None


def _textbook(one_hot: tf.Tensor, logits: tf.Tensor, gamma: float = 2) -> tf.Tensor:
    """Eq. 5 as one writes it down, with the stable cross entropy."""
    p = tf.sigmoid(logits)
    surprise = tf.nn.sigmoid_cross_entropy_with_logits(one_hot, logits)
    p_t = one_hot * p + (1.0 - one_hot) * (1.0 - p)
    alpha_t = 0.25 * one_hot + 0.75 * (1.0 - one_hot)
    return alpha_t * (1.0 - p_t) ** gamma * surprise


def _memory(rows: Rows) -> None:
    """Peak memory of a process of its own, which has made the graph for small arrays before it sees large ones."""
    context = multiprocessing.get_context("spawn")
    for name, limit in (("focal loss", 2.5), ("OHEM", 2.5), ("the textbook formula", None)):
        with context.Pool(1) as pool:
            used, size = pool.apply(_peak, (name,))
        rows.add_memory(f"{name}: peak memory beyond the logits", used, size, limit)


def _peak(name: str) -> tuple[int | None, int]:
    """Bytes by which one step's peak exceeds what was held before, and bytes of the logits; Linux only."""
    if not os.path.exists("/proc/self/status"):
        return None, 1
    corner = np.random.default_rng(1).uniform(0, 800, (200_000, 2))
    boxes = tf.constant(np.concatenate([corner, corner + 64], 1), tf.float32)
    loss, hard = FocalLoss(), CrossEntropyLoss()
    losses = {
        "focal loss": loss.call,
        "OHEM": lambda t, x: _mined(hard, t, x, boxes[: tf.shape(x)[1]], "OHEM"),
        "the textbook formula": lambda t, x: _textbook(tf.one_hot(t, _SHAPE[-1]), x),
    }

    @tf.function(reduce_retracing=True)
    def graph(targets, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_sum(losses[name](targets, logits))
        return value, tape.gradient(value, logits)

    for anchors in (1000, 2000, 200_000):
        targets = tf.fill((2, anchors), -1)
        logits = tf.fill((2, anchors, _SHAPE[-1]), -4.6)
        before = process_memory("VmRSS")
        graph(targets, logits)
    return process_memory("VmHWM") - before, logits.dtype.size * int(tf.size(logits))


if __name__ == "__main__":
    run(main)
