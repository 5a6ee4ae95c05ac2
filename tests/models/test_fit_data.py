"""What `fit` gets: every form of the same data gives the same loss, and what can't be trained on is one sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_detectors import TINY_NETWORK

import retinanet_tf as rn
from retinanet_tf.compat import KERAS_3
from retinanet_tf.config.config import AnchorConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
BOXES = np.array([[[4, 4, 40, 40], [20, 10, 60, 44]], [[1, 2, 30, 32], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 2], np.float32)
LABELS = np.array([[0, 2], [1, -1], [-1, -1]])
COUNTS = [2, 1, 0]
SMALL = {**TINY_NETWORK, "anchors": AnchorConfig(max_level=5)}


def targets(boxes=BOXES, labels=LABELS):
    return {"boxes": boxes, "labels": labels}


def rows(values):
    """The objects of each image, without padding."""
    return [value[:count] for value, count in zip(values, COUNTS, strict=True)]


def objects(values):
    made = np.empty(3, object)
    made[:] = rows(values)
    return made


def ragged(values):
    return tf.RaggedTensor.from_row_lengths(np.concatenate(rows(values)), COUNTS)


def dataset(x, y, *weights):
    return tf.data.Dataset.from_tensor_slices((x, y, *weights)).batch(3)


def generator(x, y, *weights):
    while True:
        yield (x, y, *weights)


class Sequence(keras.utils.Sequence):
    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


class Batches(keras.utils.Sequence):
    def __init__(self, batches):
        super().__init__()
        self.batches, self.ended = batches, 0

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]

    def on_epoch_end(self):
        self.ended += 1


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = rn.RetinaNet(num_classes=3, **SMALL)
    model.compile(keras.optimizers.SGD(0.0), loss=rn.retinanet_losses())
    return model


def losses(model, *data, **options):
    return model.evaluate(*data, verbose=0, batch_size=options.pop("batch_size", None), return_dict=True, **options)


@pytest.fixture(scope="module")
def expected(model):
    return losses(model, IMAGES, targets(), batch_size=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64, np.float16, np.float64])
def test_pixels_of_every_type_are_the_same_images(model, expected, kind):
    assert losses(model, IMAGES.astype(kind), targets(), batch_size=3) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", [rows, objects, ragged, tf.constant, np.ndarray.tolist], ids=lambda f: f.__name__)
def test_objects_in_every_form_are_the_same_targets(model, expected, form):
    y = targets(form(BOXES), form(LABELS))
    assert losses(model, IMAGES, y, batch_size=3) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [LABELS.astype(np.float32), LABELS.astype(np.int8)])
def test_padding_may_hold_anything(model, expected, labels):
    boxes = np.where(LABELS[..., None] < 0, np.nan, BOXES)
    assert losses(model, IMAGES, targets(boxes, labels), batch_size=3) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", [dataset, generator, Sequence])
@pytest.mark.parametrize("weights", [(), (np.float32([1, 1, 1]),)])
def test_batches_in_every_form_are_the_same_data(model, expected, form, weights):
    assert losses(model, form(IMAGES, targets(), *weights), steps=1) == pytest.approx(expected, rel=1e-5)
    history = model.fit(form(IMAGES, targets(), *weights), steps_per_epoch=1, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.slow
def test_the_end_of_data_of_unknown_length_is_no_step(model):
    """Keras 3 finds it by asking for one batch more, and would take a metric's mean over that one too."""
    data = tf.data.Dataset.from_tensor_slices((IMAGES, targets())).batch(1, drop_remainder=True)
    unknown = data.filter(lambda *batch: True)
    assert losses(model, unknown) == pytest.approx(losses(model, data), rel=1e-5)
    model.compile(keras.optimizers.SGD(0.0), loss=rn.retinanet_losses(), jit_compile=False)
    known, found = (model.fit(one, verbose=0).history for one in (data, unknown))
    assert {name: found[name][0] for name in known} == pytest.approx({name: known[name][0] for name in known}, rel=1e-5)


@pytest.mark.slow
def test_a_ragged_data_set_is_padded(model, expected):
    data = dataset(IMAGES, targets(ragged(BOXES), ragged(LABELS)))
    assert losses(model, data) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], np.array([0.0, 2.0, 0.5]), tf.constant([3, 0, 1])])
def test_sample_weights_are_factors_on_the_images_losses(model, weights):
    """Each image's loss by itself, times its weight, and the mean over the images."""
    alone = [losses(model, IMAGES[i : i + 1], targets(BOXES[i : i + 1], LABELS[i : i + 1])) for i in range(3)]
    weighted = losses(model, IMAGES, targets(), sample_weight=weights, batch_size=3)
    for name in ("class_logits_loss", "box_deltas_loss"):
        by_hand = np.mean([float(weight) * each[name] for weight, each in zip(weights, alone, strict=True)])
        assert weighted[name] == pytest.approx(by_hand, rel=1e-5)
    history = model.fit(IMAGES, targets(), sample_weight=weights, batch_size=3, verbose=0).history
    assert history["class_logits_loss"][0] == pytest.approx(weighted["class_logits_loss"], rel=1e-5)
    validated = model.fit(IMAGES, targets(), validation_data=(IMAGES, targets(), weights), verbose=0).history
    assert validated["val_class_logits_loss"][0] == pytest.approx(weighted["class_logits_loss"], rel=1e-5)


def changed(array, index, value):
    array = np.array(array, np.float32)
    array[index] = value
    return array


WIDTH_HEIGHT = np.concatenate([BOXES[..., :2], BOXES[..., 2:] - BOXES[..., :2]], axis=-1)
FAULTS = {
    "bits of a camera": (IMAGES.astype(np.uint16) * 4, targets(), "x has values from 0 to 1020"),
    "signed bytes": (IMAGES.astype(np.int8), targets(), "x has values from -128"),
    "shares": ((IMAGES / 255).astype(np.float32), targets(), "x has values from 0 to 1; scale them"),
    "bright shares": ((IMAGES / 200).astype(np.float32), targets(), "x has values from 0 to 1.275; scale them"),
    "standardized": (((IMAGES - 120.0) / 60).astype(np.float32), targets(), "x has values from -2 to 2.25"),
    "mean subtracted": (IMAGES - 110.0, targets(), "x has values from -110"),
    "infinite pixel": (changed(IMAGES, (0, 0, 0, 0), np.inf), targets(), "x has values that are NaN or infinite"),
    "one NaN": (changed(IMAGES, (1, 13, 7, 2), np.nan), targets(), "x has values that are NaN or infinite"),
    "masks": (IMAGES > 99, targets(), "x is of type bool"),
    "grey": (IMAGES[..., 0], targets(), r"x has shape \(3, 48, 64\)"),
    "alpha": (np.pad(IMAGES, [(0, 0)] * 3 + [(0, 1)]), targets(), r"x has shape .*48, 64, 4\)"),
    "labels from 1": (IMAGES, targets(labels=np.where(LABELS < 0, -1, LABELS + 1)), "image 0 has a label beyond"),
    "ids of COCO": (IMAGES, targets(labels=np.where(LABELS == 1, 90, LABELS)), "image 1 has a label beyond"),
    "ignored labels": (IMAGES, targets(labels=np.where(LABELS == 1, -100, LABELS)), "image 1 has a negative label"),
    "half a label": (IMAGES, targets(labels=LABELS + 0.5), "image 0 has a label that is no whole number"),
    "one-hot": (IMAGES, targets(labels=np.eye(3)[LABELS]), r"labels has shape .*2, 3\)"),
    "names": (IMAGES, targets(labels=np.full((3, 2), "cat")), "labels is of type string"),
    "relative": (IMAGES, targets(BOXES / 64), "image 0 has boxes in 0 to 1"),
    "relative, beyond an edge": (IMAGES, targets(BOXES / 58), "image 0 has boxes in 0 to 1"),
    "width and height": (IMAGES, targets(WIDTH_HEIGHT + [[[40, 0, 0, 0]]]), "image 0 has a box with x2 < x1 or y2"),
    "corners exchanged": (IMAGES, targets(BOXES[..., [2, 3, 0, 1]]), "image 0 has a box with x2 < x1"),
    "larger picture's": (IMAGES, targets(BOXES * 20), "image 0 has a box outside of the image"),
    "NaN": (IMAGES, targets(changed(BOXES, (1, 0, 2), np.nan)), "image 1 has a box that is NaN"),
    "infinite": (IMAGES, targets(changed(BOXES, (1, 0, 2), np.inf)), "image 1 has a box that is NaN or infinite"),
    "with scores": (IMAGES, targets(np.pad(BOXES, [(0, 0), (0, 0), (0, 1)])), r"boxes has shape .*2, 5\)"),
    "of one image": (IMAGES, targets(BOXES[0], LABELS[0]), r"boxes has shape \(2, 4\)"),
    "fewer labels": (IMAGES, targets(labels=LABELS[:, :1]), r"M must be the same"),
    "fewer images": (IMAGES[:2], targets(), "x, boxes and labels are of 2, 3, 3 images"),
    "KerasCV's keys": (IMAGES, {"boxes": BOXES, "classes": LABELS}, "y is a dictionary of 'boxes', 'classes'"),
    "torchvision's": (IMAGES, [targets(BOXES[0], LABELS[0])] * 3, "y is a list"),
    "boxes alone": (IMAGES, BOXES, "y is a ndarray"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_arrays_that_cannot_be_trained_on_are_one_sentence(model, fault):
    x, y, sentence = FAULTS[fault]
    for use in (model.fit, model.evaluate, model.train_on_batch):
        with pytest.raises(rn.InputError, match=sentence) as raised:
            use(x, y)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fault", ["masks", "alpha", "with scores", "one-hot", "KerasCV's keys"])
@pytest.mark.parametrize("form", [dataset, generator, Sequence])
def test_data_sets_of_another_structure_are_one_sentence(model, form, fault):
    x, y, sentence = FAULTS[fault]
    with pytest.raises(rn.InputError, match=sentence) as raised:
        model.fit(form(x, y), verbose=0)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["standardized", "mean subtracted", "labels from 1", "relative", "NaN"])
@pytest.mark.parametrize("form", ["data set", "generator", "Sequence"])
def test_a_later_batch_is_looked_at_too(model, fault, form):
    x, y, sentence = FAULTS[fault]
    batches = [
        (images.astype(np.float32), targets(y["boxes"].astype(np.float32), y["labels"].astype(np.float32)))
        for images, y in ((IMAGES, targets()), (x, y))
    ]
    data = dataset(*batches[0]).concatenate(dataset(*batches[1]))
    data = {"data set": data, "generator": (batch for batch in batches), "Sequence": Batches(batches)}[form]
    with pytest.raises(rn.InputError, match=sentence) as raised:
        model.fit(data, steps_per_epoch=2, verbose=0)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_sequence_may_have_lists_of_objects_and_hears_of_its_epochs(model, expected):
    data = Batches([(IMAGES, targets(rows(BOXES), rows(LABELS)))])
    assert losses(model, data) == pytest.approx(expected, rel=1e-5)
    before = data.ended
    model.fit(data, epochs=2, verbose=0)
    assert data.ended >= before + 2


@pytest.mark.slow
@pytest.mark.parametrize("form", ["generator", "iterator", "Sequence"])
def test_later_batches_may_have_other_sizes_and_more_objects(model, form):
    """Keras 3 would hold them to what the first two have in common."""
    batches = []
    for count, width in ((2, 64), (2, 64), (9, 64), (2, 96), (0, 64)):
        y = targets(np.tile(BOXES[:, :1], (1, count, 1)), np.tile([[0], [1], [-1]], (1, count)))
        batches.append((np.full((3, 64, width, 3), 90, np.uint8), y))
    whole = {"generator": lambda: (batch for batch in batches), "iterator": lambda: map(tuple, batches)}
    made = whole.get(form, lambda: Batches(batches))
    apart = [losses(model, *batch, batch_size=3)["loss"] for batch in batches]
    assert losses(model, made())["loss"] == pytest.approx(np.mean(apart), rel=1e-5)
    history = model.fit(made(), steps_per_epoch=5, verbose=0, shuffle=False).history
    assert history["loss"] == pytest.approx([np.mean(apart)], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not KERAS_3, reason="Keras 2 has no such Sequence")
@pytest.mark.parametrize("count", [None, 3])
def test_a_sequence_may_be_without_end_and_hears_of_beginnings(model, count):
    class Endless(keras.utils.PyDataset):
        num_batches, began, ended = count, 0, 0

        def __getitem__(self, index):
            return IMAGES, targets()

        def on_epoch_begin(self):
            self.began += 1

        def on_epoch_end(self):
            self.ended += 1

    data = Endless(workers=2)
    model.fit(data, epochs=2, steps_per_epoch=None if count else 4, verbose=0)
    assert (data.began, data.ended) == ((2, 2) if count else (1, 0))


@pytest.mark.slow
@pytest.mark.skipif(not KERAS_3, reason="Keras 2 takes the batches of a Sequence itself")
def test_a_sequence_is_shuffled_unless_it_must_not_be(model):
    class Noted(Batches):
        def __getitem__(self, index):
            order.append(index)
            return self.batches[index]

    for shuffle in (True, False):
        order = []
        model.fit(Noted([(IMAGES, targets())] * 20), epochs=2, shuffle=shuffle, verbose=0)
        first, second = order[1:21], order[21:41]  # the first batch is looked at beforehand
        assert sorted(first) == sorted(second) == list(range(20))
        assert (first != second) if shuffle else (first == second == list(range(20)))


@pytest.mark.parametrize("x", ["data/train-*", None, [(IMAGES, targets())] * 2, {"images": IMAGES}])
def test_what_is_no_data_is_one_sentence(model, x):
    with pytest.raises(rn.InputError, match="x is of type .*; give arrays x and y, a data set"):
        model.fit(x, verbose=0)


@pytest.mark.parametrize("weights", [np.ones((3, 2)), ["a", "b", "c"], np.ones((3, 1, 1))])
def test_weights_of_another_shape_in_a_data_set_are_one_sentence(model, weights):
    with pytest.raises(rn.InputError, match="third part is .*; sample weights are numbers"):
        model.fit(dataset(IMAGES, targets(), weights), verbose=0)
    with pytest.raises(rn.InputError, match="a data set's third part is"):
        model.fit(tf.data.Dataset.from_tensors((IMAGES, targets(), 1.0)), verbose=0)


def test_images_without_objects_may_be_empty_lists(model):
    empty = targets([[], [], []], [[], [], []])
    padded = targets(np.zeros((3, 0, 4)), np.zeros((3, 0)))
    assert losses(model, IMAGES, empty, batch_size=3) == losses(model, IMAGES, padded, batch_size=3)


@pytest.mark.slow
def test_further_keys_of_targets_are_left_out(model, expected):
    y = {**targets(), "image_id": np.array(["a", "b", "c"]), "source": "x"}
    assert losses(model, IMAGES, y, batch_size=3) == pytest.approx(expected, rel=1e-5)
    del y["source"]
    assert losses(model, dataset(IMAGES, y)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_to_test_on_is_looked_at(model):
    x, y, sentence = FAULTS["labels from 1"]
    with pytest.raises(rn.InputError, match=sentence):
        model.test_on_batch(x, y)


@pytest.mark.parametrize("element", [IMAGES, {"images": IMAGES, **targets()}, (IMAGES, BOXES, LABELS, LABELS)])
def test_elements_that_are_no_pairs_are_one_sentence(model, element):
    with pytest.raises(rn.InputError, match="elements must be"):
        model.fit(tf.data.Dataset.from_tensors(element), verbose=0)


@pytest.mark.parametrize("part", ["x", "boxes", "labels"])
@pytest.mark.parametrize("wrap", [lambda value: {"a": value}, lambda value: (value,), tf.sparse.from_dense])
def test_nested_and_sparse_parts_of_a_data_set_are_one_sentence(model, part, wrap):
    x, y = IMAGES.astype(np.float32), targets()
    element = (wrap(x), y) if part == "x" else (x, {**y, part: wrap(y[part])})
    with pytest.raises(rn.InputError, match=f"^{part} is of type .*; it must be one array or tensor"):
        model.fit(tf.data.Dataset.from_tensors(element), verbose=0)


@pytest.mark.parametrize("data", [(IMAGES,), (IMAGES, targets(), None, 1)])
def test_validation_data_is_two_or_three_parts(model, data):
    with pytest.raises(rn.InputError, match="^validation_data must be"):
        model.fit(IMAGES, targets(), validation_data=data, verbose=0)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [[1.0]] * 3, [1.0, -1.0, 1.0], [np.nan, 1, 1], {"boxes": [1.0] * 3}])
def test_sample_weights_that_are_no_factors_are_one_sentence(model, weights):
    with pytest.raises(rn.InputError, match="sample_weight"):
        model.fit(IMAGES, targets(), sample_weight=weights, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", [dataset, generator, Sequence])
def test_weights_beside_a_data_set_are_refused_and_those_inside_are_looked_at(model, form):
    for use in (model.fit, model.evaluate):
        with pytest.raises(rn.InputError, match="sample_weight is for arrays"):
            use(form(IMAGES, targets()), sample_weight=np.ones(3))
    for value in (-1.0, np.nan):
        weights = np.float32([1, value, 1])
        with pytest.raises(rn.InputError, match="sample_weight must be 3 finite|image 1 has a sample_weight that is"):
            model.fit(form(IMAGES, targets(), weights), steps_per_epoch=1, verbose=0)


@pytest.mark.slow
@pytest.mark.slow
def test_no_batch_of_a_generator_is_lost_on_two_devices(two_devices):
    """Keras 3 opens data twice there, so it needs a form that can be."""
    with two_devices.scope():
        model = rn.RetinaNet(num_classes=3, **TINY_NETWORK)
        model.compile("sgd", loss=rn.retinanet_losses(), jit_compile=False)
    batches = [(IMAGES, targets())] * 3
    if KERAS_3:
        for start in (model.fit, model.evaluate):
            with pytest.raises(rn.InputError, match="x is a generator, whose first batches"):
                start(iter(batches))
    else:
        model.fit(iter(batches), verbose=0)
        assert int(model.optimizer.iterations.numpy()) == 3


def test_class_weights_are_refused(model):
    with pytest.raises(rn.InputError, match="class_weight is for models with a single output"):
        model.train_on_batch(IMAGES, targets(), class_weight={0: 1.0})


@pytest.mark.slow
def test_validation_data_in_a_list_are_checked(model):
    x, y, sentence = FAULTS["labels from 1"]
    with pytest.raises(rn.InputError, match=sentence):
        model.fit(IMAGES, targets(), validation_data=[x, y], verbose=0)
    history = model.fit(IMAGES, targets(), validation_data=[IMAGES, targets(rows(BOXES), rows(LABELS))], verbose=0)
    assert "val_loss" in history.history


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_dark_pictures_are_no_fault(model, value):
    """Black ones with objects; any that have none, at the end of a film."""
    dark = np.full((3, 48, 64, 3), value, np.float32)
    empty = targets(labels=np.full((3, 2), -1))
    assert np.isfinite(losses(model, dark, targets() if value in (0.0, 1.0) else empty)["loss"])


@pytest.fixture(scope="module")
def compiled_loss(model):
    outputs = {name: tf.zeros((3, 576, width)) for name, width in (("class_logits", 3), ("box_deltas", 4))}
    return tf.function(
        lambda boxes, labels: model.compute_loss(x=np.float32(IMAGES), y=targets(boxes, labels), y_pred=outputs),
        jit_compile=True,
        input_signature=[tf.TensorSpec((3, 2, 4)), tf.TensorSpec((3, 2), tf.int32)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["labels from 1", "ignored labels", "NaN", "corners exchanged"])
def test_inside_a_step_wrong_targets_make_the_loss_nan(compiled_loss, fault):
    """For loops of one's own; XLA has no assertions."""
    _, y, _ = FAULTS[fault]
    assert np.isfinite(compiled_loss(BOXES, LABELS))
    assert np.isnan(compiled_loss(y["boxes"], y["labels"]))
