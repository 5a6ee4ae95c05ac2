"""Patience and callbacks of a job: when it ends by itself, after kills too, and what callbacks see."""

import json
import signal
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from PIL import Image
from small_jobs import TINY, log_of, write_shards
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import retinanet_tf as rn
from retinanet_tf import files
from retinanet_tf.data.pipeline import canvas_arguments
from retinanet_tf.evaluation.coco import METRICS
from retinanet_tf.training import run_directory, validation
from retinanet_tf.training.callbacks import EpochLog, Progress
from retinanet_tf.training.job import Job
from retinanet_tf.training.strategies import Worker
from retinanet_tf.training.validation import is_exhausted
from retinanet_tf.training.validation_loss import losses_per_image, validation_losses


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.3, 0.3, 0.3], 3),
        ([0.1, 0.2, 0.3, 0.25, 0.29, 0.4], 5),
        ([0.0, 0.0, 0.0, 0.1, 0.2], None),
        ([0.0] * 20, 10),
        ([0.5, 0.4], None),
        ([0.5, 0.4, 0.6, 0.6, 0.5999], 5),
        ([], None),
    ],
)
def test_patience_of_two(values, ends):
    """Strictly higher counts; zeros are allowed five times as many."""
    found = [count for count in range(len(values) + 1) if is_exhausted(values[:count], 2)]
    assert found[:1] == ([ends] if ends else [])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    shards = write_shards(tmp_path_factory.mktemp("shards"))
    return {"data": str(shards / "train-*.tfrecord"), "validation": str(shards / "val-*.tfrecord")}


@pytest.fixture(scope="module")
def model():
    return rn.RetinaNet.from_config(TINY)


@pytest.fixture
def evaluator_of(model, tmp_path, monkeypatch):
    """A function of AP of the evaluations to come, or KeyboardInterrupt instead of one.

    It returns another function: of the step after which a process resumes in `tmp_path`, that process' `Validation`.
    """
    label_map = rn.data.LabelMap(list(range(TINY.model.num_classes)), list("abcdefgh"[: TINY.model.num_classes]))
    source = SimpleNamespace(instances={"images": []}, encoded=lambda: iter(()))
    (tmp_path / "run.json").write_text("{}")
    label_map.save(tmp_path / "labels.json")

    def of_values(*values, **changes):
        coming, config = iter(values), TINY.replace(**{"steps": 6, "checkpoint_steps": 1, **changes})

        def analyse(detector, source):
            value = next(coming)
            if value is KeyboardInterrupt:
                raise value
            return SimpleNamespace(metrics=dict.fromkeys(METRICS, value), names=("a", "b"), ap=[0.5, None], best=None)

        monkeypatch.setattr(validation, "analyse", analyse)
        job = Job(config, {}, tf.distribute.get_strategy(), Worker(), label_map, source)
        return lambda step: validation.Validation(job, model, tmp_path, Progress(6, step, 4, lambda step: 0.1))

    return of_values


def evaluations(run_dir):
    """[(step, AP), …] as evaluations.json has them."""
    path = run_dir / "evaluations.json"
    return [(row["step"], row["AP"]) for row in json.loads(path.read_text())] if path.exists() else []


def test_no_weights_are_the_best_without_an_object_that_counts(evaluator_of, tmp_path, monkeypatch, capsys):
    kept, values = [], (-1.0, -1.0, 0.0, 0.0, 0.2)
    monkeypatch.setattr(run_directory, "save_best", lambda model, folder, best: kept.append((best["step"], best["AP"])))
    evaluator = evaluator_of(*values, eval_steps=1)(0)
    for evaluator.progress.step in range(1, 6):
        evaluator.on_epoch_end(evaluator.progress.step - 1, {})
    assert kept == [(3, 0.0), (5, 0.2)] and evaluations(tmp_path) == list(enumerate(values, 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["step 2: AP —, AP50 —", "step 3: AP 0.000, AP50 0.000"]


def test_an_evaluation_that_ends_before_it_is_recorded_comes_again(evaluator_of, tmp_path, monkeypatch):
    """The best weights were kept, or not, the log's row too: nothing is lost, and equal numbers are kept once."""
    restart, kept = evaluator_of(0.2, 0.2, 0.2, 0.2, eval_steps=2), []
    (tmp_path / run_directory.LOG).write_text("epoch,loss,step\n0,1.5,2\n")
    save_best, write_json = run_directory.save_best, files.write_json

    def interrupted(*_):
        raise KeyboardInterrupt

    def keep(model, run_dir, metrics):
        save_best(model, run_dir, metrics)
        kept.append(metrics["step"])

    def interrupted_at_the_record(path, value):
        return interrupted() if path.name == run_directory.EVALUATIONS else write_json(path, value)

    for saving, writing in ((interrupted, write_json), (keep, interrupted_at_the_record)):
        monkeypatch.setattr(run_directory, "save_best", saving)
        monkeypatch.setattr(files, "write_json", writing)
        with pytest.raises(KeyboardInterrupt):
            restart(2).on_train_begin()
    assert (kept, evaluations(tmp_path)) == ([2], [])
    monkeypatch.setattr(files, "write_json", write_json)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpochLog, "add", interrupted)
        restart(2).on_train_begin()
    restart(2).on_train_begin()
    assert (kept, evaluations(tmp_path)) == ([2], [(2, 0.2)])
    (row,) = log_of(tmp_path)
    assert (row["loss"], row["val_AP"]) == ("1.5", "0.2")


def test_evaluations_are_remembered_after_kills(model, evaluator_of, tmp_path, capsys):
    """AP .2 in the warm-up, then .1 three times: killed after step 1 and within the evaluation of 3, 4 is the last."""

    def begin(step):
        """The callbacks of a process that resumes after a step, and what its epochs do."""
        evaluator = restart(step)
        zeros = (tf.zeros([1, 64, 64, 3]), {"boxes": tf.zeros([1, 8, 4]), "labels": -tf.ones([1, 8], tf.int32)})
        callbacks = keras.callbacks.CallbackList([*evaluator.loggers(lambda: zeros), evaluator], model=model)
        model.stop_training = False
        callbacks.on_train_begin()

        def epoch():
            evaluator.progress.step += 1
            step = evaluator.progress.step
            callbacks.on_epoch_end(step - 1, {"loss": 1.0, "step": step})
            return model.stop_training

        return epoch

    restart = evaluator_of(0.2, 0.1, KeyboardInterrupt, 0.1, 0.1, eval_steps=1, warmup_steps=1, patience=2)
    assert not begin(0)()
    epoch = begin(1)
    assert not epoch()
    with pytest.raises(KeyboardInterrupt):
        epoch()
    epoch = begin(3)  # the checkpoint of step 3 was there: its evaluation comes first
    assert not model.stop_training and epoch()
    assert "job ends after step 4" in capsys.readouterr().out
    begin(4)
    assert model.stop_training, "killed after the last evaluation, it trains no further step"
    assert evaluations(tmp_path) == [(1, 0.2), (2, 0.1), (3, 0.1), (4, 0.1)]
    assert json.loads((tmp_path / "evaluations.json").read_text())[0]["per_category"] == {"a": 0.5, "b": None}
    assert [(float(row["step"]), float(row["val_AP"])) for row in log_of(tmp_path)] == evaluations(tmp_path)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert "AP/a" in tags and "AP/b" not in tags and "val_AP" in tags


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_stop_changes_no_evaluation(evaluator_of, tmp_path, monkeypatch, epoch, every):
    """After any step of 11, evaluations come where the job without a stop has them: at epochs' ends."""
    monkeypatch.setattr(run_directory, "save_best", lambda *_: None)
    restart = evaluator_of(*[0.1] * 200, steps=11, checkpoint_steps=epoch, eval_steps=every)
    found = []
    for stop in range(11):
        (tmp_path / run_directory.EVALUATIONS).unlink(missing_ok=True)
        for begin, end in ((0, stop), (stop, 11)):
            evaluator = restart(begin)
            evaluator.on_train_begin()
            for evaluator.progress.step in range(begin + 1, end + 1):
                if evaluator.progress.step % epoch == 0 or evaluator.progress.step == 11:
                    evaluator.on_epoch_end(0)
        found.append([step for step, _ in evaluations(tmp_path)])
    assert found == [found[0]] * 11
    ends = [*range(epoch, 11, epoch), 11]
    reached = [next(end for end in ends if end >= due) for due in range(every, 12, every)]
    assert set(found[0]) <= set(reached) and len(found[0]) == len(set(reached))


@pytest.mark.slow
def test_a_signal_in_the_last_step_of_an_epoch_loses_no_row(data, tmp_path):
    """What the epoch's logs were comes once, its evaluation too, which the next process makes."""
    config, run_dir = TINY.replace(steps=4, checkpoint_steps=2, eval_steps=2), tmp_path / "run"
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: signal.raise_signal(signal.SIGTERM) if batch == 1 else None
    )
    with pytest.raises(SystemExit):
        rn.train(config, **data, run_dir=run_dir, verbose=0, callbacks=[stop])
    assert [row["step"] for row in log_of(run_dir)] == ["2"] and evaluations(run_dir) == []
    rn.train(config, **data, run_dir=run_dir, verbose=0)
    assert [(int(row["step"]), float(row["val_AP"])) for row in log_of(run_dir)] == evaluations(run_dir)
    assert [step for step, _ in evaluations(run_dir)] == [2, 4]
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [[event.step for event in events.Tensors(tag)] for tag in ("loss", "val_AP")] == [[2, 4], [2, 4]]


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", ["image", "replica"])
def test_validation_loss_is_that_of_the_images_together(model, data, normalizer):
    """The sum of its parts, the same for every batch size, and training's own loss of one batch without decay."""
    config = TINY.replace(normalizer=normalizer, batch_size=6)
    losses, sizes = rn.retinanet_losses(config.loss), canvas_arguments(config)
    loaded = {b: rn.data.load(data["validation"], training=False, batch_size=b, **sizes) for b in (4, 6)}
    per_image = losses_per_image(model, losses)
    found = [validation_losses(per_image, normalizer, dataset) for dataset in loaded.values()]
    for one in found:
        assert one == pytest.approx(found[0], rel=1e-5)
        assert one["loss"] == pytest.approx(one["class_logits_loss"] + one["box_deltas_loss"], rel=1e-6)
    trained = rn.RetinaNet.from_config(config)
    trained.set_weights(model.get_weights())
    trained.compile("sgd", loss=losses)
    images, objects = next(iter(loaded[6]))
    assert len(images) == 6
    trained.compute_loss(images, objects, trained(images, training=False))
    logs = {name: float(value) for name, value in trained.get_metrics_result().items()}
    for name in ("class_logits_loss", "box_deltas_loss"):
        assert found[0][name] == pytest.approx(logs[name], rel=1e-4)


def test_keras_own_resuming_is_refused(data, tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(rn.InputError, match="leave BackupAndRestore out"):
        rn.train(TINY, **data, run_dir=tmp_path / "run", callbacks=[backup])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_callbacks_see_the_logs_and_end_the_job(data, tmp_path):
    """Keras' own, on the training loss: it never falls by 1,000, so that the second epoch is the last."""
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e3, patience=1)
    seen = []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, dict(logs))))
    config = TINY.replace(steps=6, checkpoint_steps=1, eval_steps=2, validation_loss=True)
    rn.train(config, **data, run_dir=str(tmp_path / "run"), verbose=0, callbacks=[stop, record])
    assert [row["step"] for row in log_of(tmp_path / "run")] == ["1", "2"]
    assert [(epoch, logs["step"], "val_AP" in logs) for epoch, logs in seen] == [(0, 1, False), (1, 2, True)]
    assert float(log_of(tmp_path / "run")[1]["val_loss"]) == seen[1][1]["val_loss"] > 0
    assert "threshold" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (tmp_path / "run" / "model.weights.h5").exists()


def test_patience_without_an_ap_is_refused(data, tmp_path):
    options = {"run_dir": str(tmp_path / "run"), "data": data["data"]}
    with pytest.raises(rn.InputError, match="patience=2 counts evaluations"):
        rn.train(TINY.replace(patience=2), **options)
    with pytest.raises(rn.InputError, match="validation_loss is part of evaluations"):
        rn.train(TINY.replace(validation_loss=True), **options)
    with pytest.raises(rn.InputError, match="patience=2 counts evaluations"):
        rn.train(TINY.replace(patience=2, eval_steps=0), **options, validation=data["validation"])
    folder, labels = tmp_path / "empty", data["data"].replace("train-*.tfrecord", "labels.json")
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": rn.data.LabelMap.load(labels).to_json()}
    Image.new("RGB", (64, 64)).save(folder / "images" / "a.png")
    content["images"].append({"id": 1, "file_name": "a.png", "width": 64, "height": 64})
    (folder / "instances.json").write_text(json.dumps(content))
    rn.data.prepare(str(folder / "instances.json"), str(folder / "images"), folder, "val", progress=False)
    with pytest.raises(rn.InputError, match="has no object that counts"):
        rn.train(TINY.replace(patience=2), **options, validation=str(folder / "val-*.tfrecord"))
    assert not (tmp_path / "run").exists()
