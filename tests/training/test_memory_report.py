"""What `retinanet train --dry_run` says of a compiled step's memory, for a plan counted by hand."""

import re

import pytest
from small_jobs import TINY

import retinanet_tf as rn
from retinanet_tf.config.flagfile import flagfile
from retinanet_tf.data.synthetic import shapes
from retinanet_tf.models.step_memory import StepMemory
from retinanet_tf.training import memory_report


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    made = shapes.generate(folder / "coco", num_train=4, num_val=1, image_size=64)["train"]
    rn.data.prepare(made.annotations, made.images, folder, "train", shards=1, progress=False)
    return str(folder / "train-*.tfrecord")


def test_the_batches_that_cards_hold(shards, monkeypatch):
    """4 images per device need 9 GB and each further one 1.5: 90 % of 8 GB hold 2, of 24 GB 12."""
    asked = []

    def planned(model, batch, canvas, objects):
        asked.append((model.jit_compile, batch, canvas, objects))
        return StepMemory(batch, 9_000_000_000, 1_500_000_000)

    monkeypatch.setattr(memory_report, "step_memory", planned)
    config = TINY.replace(batch_size=8, accumulation=2)
    text = memory_report.memory_report(config, shards, replicas=2)
    assert asked == [(True, 4, (64, 64), 8)]
    assert "4 images of 64x64 per device needs 9.00 GB, each further image 1.500 GB" in text
    assert "2 on 8 GB, 4 on 12 GB, 6 on 16 GB, 12 on 24 GB" in text  # whole parts of two images


@pytest.mark.once
def test_a_dry_run_says_it_where_xla_compiles_the_step(shards, tmp_path, forked):
    (tmp_path / "job.flags").write_text(flagfile(TINY.replace(batch_size=2, xla="true")))
    flags = ["--flagfile=job.flags", f"--data={shards}", f"--run_dir={tmp_path / 'run'}", "--dry_run"]
    status, output = forked.run("train", flags, tmp_path)
    assert status == 0 and not (tmp_path / "run").exists(), output
    assert "XLA compiles the step, for at most 1 shapes: canvases 64x64" in output
    assert re.search(r"A step of 2 images of 64x64 per device needs \d\.\d\d GB", output), output
