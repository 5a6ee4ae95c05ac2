"""experiments/fit.py: plain `model.fit` on a COCO file, to a SavedModel."""

import pytest

from retinanet_tf.data.synthetic import shapes


@pytest.mark.once
def test_fit_trains_evaluates_and_exports(tmp_path, forked):
    split = shapes.generate(tmp_path, num_train=6, num_val=6, image_size=64, seed=0)["train"]
    output = tmp_path / "fit"
    files = [f"--train={split.annotations}", f"--val={split.annotations}", f"--images={split.images}"]
    network = ["--backbone=resnet10_w16", "--image_size=64", "--batch_size=2", "--epochs=2", "--steps_per_epoch=2"]
    status, text = forked.run("experiments.fit", [*files, *network, f"--output={output}"])
    assert status == 0 and "AP50: " in text, text[-3000:]
    assert (output / "model.weights.h5").exists() and (output / "export/1/saved_model.pb").exists()
