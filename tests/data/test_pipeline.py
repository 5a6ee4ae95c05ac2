"""`load`: batches are right, a function of (seed, step), the same on N workers, and made elsewhere on request."""

import contextlib
import io
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import retinanet_tf as rn
from retinanet_tf.config.config import ModelConfig
from retinanet_tf.config.presets import presets
from retinanet_tf.data import pipeline, service, transforms
from retinanet_tf.data.batching import padded_length
from retinanet_tf.data.records.index import read_index
from retinanet_tf.data.records.prepare import prepare
from retinanet_tf.data.records.reader import labels_beside, read_records
from retinanet_tf.data.shuffle import Pools, shuffled
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from tests.batches import SMALL, TALL, WIDE, identify, same, seen, write_shards
from tests.datasets import annotation, write_coco


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Pattern of three shards of eleven images, seven wide and four tall."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.once
def test_an_unshuffled_pass_is_every_image_resized_padded_and_labelled(shards):
    records = {r.annotations.image_id: r for r in read_records(shards)}
    order = [i for i, r in records.items() if r.annotations.width >= r.annotations.height]
    order += [i for i in records if i not in order]
    batches = list(pipeline.load(shards, training=False, **SMALL))
    assert [len(images) for images, _ in batches] == [4, 3, 4]
    mean = np.float32(ModelConfig().pixel_mean)
    samples = [(i, {k: v[n] for k, v in o.items()}) for images, o in batches for n, i in enumerate(images)]
    for image_id, (image, objects) in zip(order, samples, strict=True):
        record = records[image_id]
        tall = record.annotations.height > record.annotations.width
        assert image.shape == ((64, 32, 3) if tall else (32, 64, 3))
        resized, scale = transforms.resize(np.asarray(Image.open(io.BytesIO(record.encoded))), 30, 50)
        height, width = resized.shape[:2]
        np.testing.assert_array_equal(image[:height, :width], resized)
        np.testing.assert_array_equal(image[height:], np.broadcast_to(mean, image[height:].shape))
        np.testing.assert_array_equal(image[:, width:], np.broadcast_to(mean, image[:, width:].shape))
        real = record.annotations.select(~record.annotations.iscrowd)
        count = len(real)
        expected = real.boxes * np.array([scale[1], scale[0]] * 2)
        np.testing.assert_allclose(objects["boxes"][:count], expected, atol=1e-4)
        assert objects["labels"][:count].numpy().tolist() == [{3: 0, 7: 1, 90: 2}[i] for i in real.category_ids]
        assert (objects["labels"][count:].numpy() == -1).all() and not objects["boxes"][count:].numpy().any()
    assert sum(int(r.annotations.iscrowd.sum()) for r in records.values()) == 1  # the crowd was there to leave out


def test_shards_of_several_folders_have_the_same_labels(shards, tmp_path):
    for name in "ab":
        shutil.copytree(pathlib.Path(shards).parent, tmp_path / name)
    pattern = tmp_path / "?" / pathlib.Path(shards).name
    assert labels_beside(pattern) == labels_beside(shards)
    LabelMap([3, 7, 90], ["other", "b", "c"]).save(tmp_path / "b/labels.json")
    with pytest.raises(InputError, match=r"a/labels.json and .*b/labels.json differ"):
        labels_beside(pattern)


@pytest.mark.once
def test_stretched_training_images_lie_on_one_square_canvas(shards):
    """Wide and tall ones in one batch; boxes grow by another factor in x than in y."""
    settings = {"image_size": 24, "max_size": 24, "resize": "stretch", "size_multiple": 16, "batch_size": 11}
    images, objects = next(iter(pipeline.load(shards, **settings, flip=0.0)))
    found = {}
    for image, boxes, labels in zip(images, objects["boxes"], objects["labels"], strict=True):
        assert image.shape == (32, 32, 3)
        found[np.round(image[0, :8]).astype(int).tobytes()] = (image[:24, :24], boxes[labels >= 0])
    assert len(found) == 11
    for record in read_records(shards):
        picture = np.asarray(Image.open(io.BytesIO(record.encoded)))
        resized = transforms.resize_to(tf.constant(picture), tf.constant([24, 24])).numpy()
        image, boxes = found[np.round(resized[0, :8]).astype(int).tobytes()]
        np.testing.assert_allclose(image, resized, atol=1e-3)
        real = record.annotations.select(~record.annotations.iscrowd)
        factors = np.array([24 / picture.shape[1], 24 / picture.shape[0]] * 2)
        np.testing.assert_allclose(boxes, real.boxes * factors, atol=1e-3)


@pytest.mark.once
def test_an_epoch_of_mixed_sizes_and_counts_is_traced_for_few_shapes(tmp_path):
    """0 to 40 objects on wide and tall images: every shape is one of those that are named, and the step is traced
    twice at most, the second time for sizes that vary; a second epoch, with its last partial batch, adds none."""
    from small_detectors import TINY_NETWORK

    import retinanet_tf as rn

    counts = (0, 3, 8, 9, 40, 1, 17)
    path, images = write_coco(tmp_path, [WIDE] * 4 + [TALL] * 3, boxes_an_image=0)
    content = json.loads(path.read_text())
    owners = [image["id"] for image, count in zip(content["images"], counts, strict=True) for _ in range(count)]
    boxes = [[1 + i % 20, 1 + i // 20, 9, 9] for i in range(len(owners))]
    content["annotations"] = [
        annotation(i, owner, box) for i, (owner, box) in enumerate(zip(owners, boxes, strict=True))
    ]
    path.write_text(json.dumps(content))
    prepare(path, images, tmp_path / "out", progress=False)
    pattern = str(tmp_path / "out" / "train-*.tfrecord")
    config = presets["mini"].replace(num_classes=3, image_size=32, max_size=64, batch_size=2, max_level=5)
    named = set(pipeline.batch_shapes(config, pattern))
    assert named == {(32, 64, 8), (32, 64, 16), (64, 32, 8), (64, 32, 16), (64, 32, 32), (64, 32, 64)}
    found = {(*x.shape[1:3], y["labels"].shape[1]) for x, y in pipeline.load_for_training(config, pattern).take(20)}
    assert found <= named and len(found) > 3

    model = rn.RetinaNet(num_classes=3, **TINY_NETWORK, anchors=config.anchors)
    model.compile("sgd", loss=rn.retinanet_losses())
    traces = []
    step, test_step = model.train_step, model.test_step
    model.train_step = lambda data: traces.append("train") or step(data)
    model.test_step = lambda data: traces.append("test") or test_step(data)
    sides = {"image_size": 32, "max_size": 64, "size_multiple": 32, "batch_size": 2}
    whole = pipeline.load(pattern, training=False, **sides)
    model.fit(whole, validation_data=whole, epochs=1, verbose=0)
    first = list(traces)
    model.fit(whole, validation_data=whole, epochs=3, initial_epoch=1, verbose=0)
    assert traces == first and first.count("train") <= 2 and first.count("test") <= 2


@pytest.mark.once
def test_shapes_are_static_as_far_as_they_can_be(shards):
    images, objects = pipeline.load(shards, **SMALL).element_spec
    assert images.shape == (4, None, None, 3) and images.dtype == tf.float32
    assert objects["boxes"].shape == (4, None, 4) and objects["labels"].shape == (4, None)
    square, _ = pipeline.load(shards, **{**SMALL, "max_size": 30}).element_spec
    assert square.shape == (4, 32, 32, 3)
    assert {tuple(i.shape) for i, _ in pipeline.load(shards, **SMALL).take(12)} == {(4, 32, 64, 3), (4, 64, 32, 3)}


@pytest.mark.once
def test_objects_are_padded_to_a_power_of_two_for_the_fullest_image(tmp_path):
    path, images = write_coco(tmp_path, [(20, 20)] * 8)
    coco = json.loads(path.read_text())
    owners = [1, 1, 1, 21, 31, 31, 41] + [51] * 9
    boxes = [[1, 1, 5 + 0.1 * n, 5] for n in range(len(owners))]  # all different: duplicates would be reported
    coco["annotations"] = [annotation(n + 1, owners[n], box) for n, box in enumerate(boxes)]
    path.write_text(json.dumps(coco))
    prepare(path, images, tmp_path / "out", shards=1, progress=False)
    batches = pipeline.load(tmp_path / "out" / "train-*", training=False, **{**SMALL, "batch_size": 2})
    batches = [objects for _, objects in batches]
    assert [o["boxes"].shape for o in batches] == [(2, m, 4) for m in (8, 8, 16, 8)]
    assert [o["labels"].shape for o in batches] == [(2, m) for m in (8, 8, 16, 8)]
    counts = [int(n) for o in batches for n in tf.reduce_sum(tf.cast(o["labels"] >= 0, tf.int32), axis=1)]
    assert counts == [3, 0, 1, 2, 1, 9, 0, 0]


@pytest.mark.parametrize(("objects", "length"), [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (1000, 1024)])
def test_padded_lengths(objects, length):
    assert int(padded_length(tf.constant(objects))) == length


@pytest.mark.once
def test_every_epoch_has_every_image_once_in_another_order_and_runs_agree(shards):
    known = identify(shards)
    assert len(known) == 11
    load = lambda **more: pipeline.load(shards, flip=0.0, **{**SMALL, "batch_size": 2}, **more)  # noqa: E731
    batches = seen(load().take(33), known)
    records = {r.annotations.image_id: r.annotations for r in read_records(shards)}
    for images, number in ((lambda a: a.width >= a.height, 7), (lambda a: a.height > a.width, 4)):
        mine = [i for batch in batches for i in batch if images(records[i])]
        epochs = [mine[start : start + number] for start in range(0, len(mine) - number + 1, number)]
        assert len(epochs) >= 5 and all(len(set(epoch)) == number for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > len(epochs) // 2
        assert all(bool(images(records[i])) == bool(images(records[batch[0]])) for batch in batches for i in batch)
    assert batches[:12] == seen(load().take(12), known)
    assert batches[:5] != seen(load(seed=1).take(5), known)


@pytest.mark.once
def test_a_start_step_continues_exactly(shards):
    options = {**SMALL, "flip": 0.5, "vertical_flip": 0.3, "scale_jitter": (0.7, 1.4), "colour_jitter": 0.2}
    whole = list(pipeline.load(shards, **options).take(15))
    same(whole[9:], pipeline.load(shards, start_step=9, **options).take(6))
    same(whole, pipeline.load(shards, **options).take(15))


@pytest.mark.once
def test_the_workers_batches_together_are_those_of_one_process(shards):
    whole = list(pipeline.load(shards, **SMALL).take(6))
    parts = [list(pipeline.load(shards, shard=(worker, 2), **SMALL).take(6)) for worker in range(2)]
    for step, (images, objects) in enumerate(whole):
        np.testing.assert_array_equal(images, np.concatenate([part[step][0] for part in parts]))
        np.testing.assert_array_equal(objects["boxes"], np.concatenate([part[step][1]["boxes"] for part in parts]))


@pytest.mark.once
def test_by_files_a_worker_reads_its_own_files_alone(shards):
    six = {**SMALL, "batch_size": 6}
    known, index = identify(shards), read_index(shards)
    files = {r.annotations.image_id: index.shard[n] for n, r in enumerate(read_records(shards))}
    for worker in range(3):
        own = {"shard": (worker, 3), "shard_by": "files"}
        batches = seen(pipeline.load(shards, flip=0.0, **six, **own).take(8), known)
        assert {len(batch) for batch in batches} == {2}
        assert {image for batch in batches for image in batch} == {i for i, file in files.items() if file == worker}
        config = presets["paper"].replace(image_size=30, max_size=50, max_level=5, batch_size=6, shard_by="files")
        ids = [pipeline.image_ids(config, shards, step, (worker, 3)) for step in range(8)]
        assert ids == [[str(image) for image in batch] for batch in batches]


@pytest.mark.once
def test_files_too_few_for_the_workers_are_shared_by_records(shards):
    for worker in range(4):
        own = {"shard": (worker, 4), **SMALL}
        same(*(pipeline.load(shards, shard_by=way, **own).take(4) for way in ("records", "files")))


def epochs_of(count, epochs, seed):
    draw = tf.function(lambda positions: shuffled(np.arange(count), positions, seed))
    return draw(tf.range(count * epochs, dtype=tf.int64)).numpy().reshape(epochs, count)


@pytest.mark.parametrize("count", [1, 2, 7, 24, 1000])
def test_every_epoch_is_a_permutation(count):
    assert (np.sort(epochs_of(count, 10, 3), axis=1) == np.arange(count)).all()


def test_epochs_do_not_share_their_order():
    """Neighbours of one epoch are neighbours in the next as rarely as chance has it: 1 in 1000."""
    epochs = epochs_of(1000, 20, 3)
    pairs = [set(zip(epoch, epoch[1:], strict=False)) for epoch in epochs]
    assert np.mean([len(a & b) for a, b in zip(pairs, pairs[1:], strict=False)]) / 999 < 0.004


def test_every_record_is_as_likely_first_as_any_other():
    """Chi-squared of 4000 epochs of 8, 7 degrees of freedom."""
    first = epochs_of(8, 4000, 0)[:, 0]
    assert ((np.bincount(first, minlength=8) - 500) ** 2 / 500).sum() < 30


def test_steps_take_the_two_pools_in_proportion():
    pools = Pools.by_orientation(np.array([4] * 75 + [3] * 25), np.array([3] * 75 + [4] * 25), False)
    records, tall = pools.draw(tf.range(400, dtype=tf.int64), 10, 0)
    tall = tall.numpy()
    assert tall.sum() == 100 and all(tall[start : start + 40].sum() in (9, 10, 11) for start in range(360))
    assert ((records.numpy() >= 75) == tall[:, None]).all()
    counts = np.bincount(records.numpy()[:40].ravel(), minlength=100)
    assert (counts == 4).all()


@pytest.mark.once
def test_flips_happen_at_their_rate_and_to_the_boxes_too(shards):
    known = identify(shards)
    plain = list(pipeline.load(shards, flip=0.0, **SMALL).take(30))
    flipped = total = 0
    for (images, objects), (its_images, its_objects) in zip(
        plain, pipeline.load(shards, **SMALL).take(30), strict=True
    ):
        for i in range(len(images)):
            total += 1
            if np.array_equal(images[i], its_images[i]):
                np.testing.assert_array_equal(objects["boxes"][i], its_objects["boxes"][i])
                continue
            flipped += 1
            width = (np.abs(images[i] - np.float32(ModelConfig().pixel_mean)).sum((0, 2)) > 0).sum()
            mirror, boxes = transforms.flip(images[i][:, :width], objects["boxes"][i], 1)
            np.testing.assert_allclose(its_images[i][:, :width], mirror, atol=1e-2)
            real = objects["labels"][i].numpy() >= 0
            np.testing.assert_allclose(its_objects["boxes"][i][real], boxes[real], atol=1e-3)
    assert len(known) == 11 and 0.3 < flipped / total < 0.7


@pytest.mark.once
def test_crowded_images_are_never_cut_short(tmp_path):
    path, images = write_coco(tmp_path, [WIDE] * 2, boxes_an_image=0)
    content = json.loads(path.read_text())
    content["annotations"] = [annotation(i, 1, [i % 30, i % 20, 3, 3]) for i in range(1, 131)]
    path.write_text(json.dumps(content))
    prepare(path, images, tmp_path / "out", progress=False)
    (batch,) = pipeline.load(str(tmp_path / "out" / "train-*"), training=False, **SMALL)
    assert batch[1]["labels"].shape == (2, 256) and (batch[1]["labels"].numpy() >= 0).sum(1).tolist() == [130, 0]


@pytest.mark.once
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_of_a_whole_split_are_counted(shards, batch_size):
    """Else Keras 3 counts one more in the means of its losses."""
    data = pipeline.load(shards, **{**SMALL, "batch_size": batch_size}, training=False)
    assert int(data.cardinality()) == sum(1 for _ in data)


def test_a_pattern_without_shards_is_named(tmp_path):
    with pytest.raises(InputError, match="no file matches .*none-\\*"):
        pipeline.load(str(tmp_path / "none-*"))


@pytest.mark.parametrize("path", [3, None, ["a", "b"], b"shards"])
def test_what_is_no_path_is_refused_by_name(path, tmp_path):
    calls = {
        "pattern": lambda: pipeline.load(path),
        "data": lambda: rn.train(presets["mini"], data=path or 3, run_dir=tmp_path / "run"),
        "run_dir": lambda: rn.train(presets["mini"], data="x", run_dir=path),
        "path": lambda: rn.export(None, path),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"^{name}=.* must be a path.$"):
            call()
    with pytest.raises(InputError, match="^config='mini' must be a Config"):
        pipeline.load_for_training("mini", "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_size": 20}, "image_size=30"),
        ({"batch_size": 3, "shard": (0, 2)}, "multiple of the 2 workers"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\) must be"),
        ({"shard": (-1, 2)}, r"shard=\(-1, 2\) must be"),
        ({"size_multiple": 0}, "size_multiple=0 must be above 0"),
        ({"start_step": -1}, "start_step=-1 must be at least 0"),
        ({"pixel_mean": (1, 2, 3, 4)}, "pixel_mean=1,2,3,4 must be 3 numbers"),
        ({"batch_size": "2"}, "batch_size='2' must be of type int"),
        ({"shard_by": "rows"}, "shard_by='rows' is not one of 'records', 'files'"),
        ({"on_bad_record": "ignore"}, "on_bad_record='ignore' is not one of"),
        ({"data_service": "localhost:1"}, "grpc://HOST:PORT"),
        ({"data_service": "grpc://localhost:1"}, "no dispatcher answers there .*data-service` starts one"),
        ({"data_service": "grpc://no..host:1"}, "no dispatcher answers there .*data-service` starts one"),
    ],
)
def test_wrong_arguments_are_named(shards, change, message, monkeypatch):
    monkeypatch.setattr(service, "WAIT_SECONDS", 0.0)
    with pytest.raises(InputError, match=message):
        pipeline.load(shards, **{**SMALL, **change})


# --- tf.data service --------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_a_sentence():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for start in (service.start_dispatcher, lambda port: service.start_worker("grpc://localhost:1", port)):
            with pytest.raises(InputError, match=f"port={port} can't be listened on"):
                start(port)


@pytest.mark.parametrize(("answer", "reason"), [(b"", "timed out"), (b"HTTP/1.0 400 Bad\r\n", "it is no gRPC server")])
def test_a_server_that_is_silent_or_of_another_kind_is_a_sentence(monkeypatch, shards, answer, reason):
    monkeypatch.setattr(service, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(service, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.sendall(answer)
                time.sleep(1.0)

        threading.Thread(target=serve, daemon=True).start()
        address = f"grpc://localhost:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^data_service={address}: no dispatcher answers there .{reason}"):
            pipeline.load(shards, data_service=address, **SMALL)


def test_another_server_than_the_dispatcher_is_a_sentence(shards):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    dispatcher = service.start_dispatcher()
    worker = service.start_worker(dispatcher.target, port, f"localhost:{port}")
    with pytest.raises(InputError, match=f"^data_service=grpc://localhost:{port}: what answers there is no dispatcher"):
        pipeline.load(shards, data_service=f"grpc://localhost:{port}", **SMALL)
    del worker


@pytest.mark.once
def test_two_workers_of_a_data_service_make_different_batches_of_the_same_run(shards):
    """Dispatcher and workers are processes of their own, started by the command."""
    with contextlib.ExitStack() as stack:

        def start(*flags):
            command = [sys.executable, "-m", "retinanet_tf", "data-service", *flags]
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=pathlib.Path(__file__).parents[2],
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        dispatcher = start("--port=0").stdout.readline().split()[-1]
        workers = [start(f"--dispatcher={dispatcher}") for _ in range(2)]
        assert all("a worker of" in worker.stdout.readline() for worker in workers)
        served = [i.numpy().tobytes() for i, _ in pipeline.load(shards, data_service=dispatcher, **SMALL).take(16)]
    # None twice; which first is the workers' affair, and a worker may have taken several blocks of 64 steps ahead.
    waiting = set(served)
    for images, _ in pipeline.load(shards, **SMALL).take(64 * 20):
        waiting.discard(images.numpy().tobytes())
        if not waiting:
            break
    assert not waiting and len(set(served)) == 16
