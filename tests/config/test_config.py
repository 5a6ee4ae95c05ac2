"""Configuration: the paper's defaults, presets, JSON, flagfiles and flags, errors that name the field."""

import dataclasses
import json

import pytest
from absl import flags

from retinanet_tf import presets
from retinanet_tf.cli import flags as config_flags
from retinanet_tf.cli.main import expand_flagfiles
from retinanet_tf.config.config import Config
from retinanet_tf.config.flagfile import flagfile
from retinanet_tf.errors import InputError


def test_the_defaults_are_the_papers():
    """PAPER.md, §2 and §3, number by number."""
    config = Config()
    assert (config.loss.gamma, config.loss.alpha, config.loss.box_beta) == (2.0, 0.25, 0.11)
    assert (list(config.anchors.levels), config.anchors.anchors_per_cell) == ([3, 4, 5, 6, 7], 9)
    assert (config.model.subnet_depth, config.model.fpn_channels, config.model.prior) == (4, 256, 0.01)
    assert (config.assign.positive_iou, config.assign.negative_iou, config.assign.promote) == (0.5, 0.4, "never")
    train = config.train
    assert (train.steps, train.decay_steps, train.learning_rate) == (90_000, (60_000, 80_000), 0.01)
    assert (train.momentum, config.model.weight_decay, config.data.batch_size) == (0.9, 1e-4, 16)
    assert (config.model.image_size, config.model.max_size) == (600, 1000)
    detect = config.detect
    assert (detect.score_threshold, detect.pre_nms_top_k, detect.nms_iou, detect.max_detections) == (
        0.05,
        1000,
        0.5,
        100,
    )


def test_field_names_are_unique_and_explained():
    """A flag needs no section in its name, and every one says what it is."""
    fields = [field for section in dataclasses.fields(Config) for field in dataclasses.fields(section.type)]
    names = [field.name for field in fields]
    assert len(names) == len(set(names))
    assert all(len(field.metadata["help"]) > 10 for field in fields)


def test_the_detectron_preset_differs_from_the_paper_where_the_authors_code_does():
    paper, detectron = presets["paper"].flat(), presets["detectron"].flat()
    assert {name: value for name, value in detectron.items() if value != paper[name]} == {
        "normalizer": "replica",
        "promote": "above_negative",
        "warmup_steps": 500,
        "bias_lr_factor": 2.0,
    }


@pytest.mark.parametrize("name", presets)
def test_configurations_survive_json(name):
    for config in (presets[name], presets[name].replace(repeat_threshold="auto")):
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("values", ["x", {"loss": 3}, [1]])
def test_what_is_no_dictionary_of_sections_is_refused(values):
    with pytest.raises(InputError, match="must be a dictionary of dictionaries"):
        Config.from_dict(values)


def test_a_section_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"^loss=ModelConfig\(.* must be a LossConfig\.$"):
        Config(loss=presets["mini"].model)


def test_fields_of_another_version_are_refused_by_name():
    """An older run.json, whose settings this version may not have any more."""
    values = presets["mini"].to_dict()
    values["anchors"] |= {"min_level": 3, "anchor_offset": 0.5}
    with pytest.raises(InputError, match="has no field min_level, anchor_offset"):
        Config.from_dict(values)


def test_replace_reaches_into_sections_and_leaves_the_rest():
    changed = Config().replace(gamma=0.0, backbone="resnet101")
    assert changed.loss.gamma == 0.0 and changed.model.backbone == "resnet101"
    assert changed.replace(gamma=2.0, backbone="resnet50") == Config()


@pytest.fixture
def parsed():
    """Parses arguments into a fresh set of flags, as a command would."""
    before = flags.FLAGS
    values = flags.FlagValues()

    def parse(*arguments):
        values(["command", *arguments])
        return config_flags.read()

    try:
        flags.FLAGS = config_flags.flags.FLAGS = values
        for section in dataclasses.fields(Config):
            for field in dataclasses.fields(section.type):
                config_flags.define_field(section.name, field, values)
        flags.DEFINE_enum("preset", "paper", list(presets), "", flag_values=values)
        yield parse
    finally:
        flags.FLAGS = config_flags.flags.FLAGS = before


def test_flags_change_the_preset(parsed):
    config = parsed("--preset=mini", "--gamma=0.5", "--decay_steps=10,20", "--anchor_ratios=1", "--promote=always")
    assert config == presets["mini"].replace(gamma=0.5, decay_steps=(10, 20), anchor_ratios=(1.0,), promote="always")


def test_a_list_of_the_wrong_kind_names_its_flag(parsed):
    with pytest.raises(InputError, match="--decay_steps=10,soon must be a list of int values"):
        parsed("--decay_steps=10,soon")


@pytest.mark.parametrize("threshold", ["auto", 0.1 + 0.2])
@pytest.mark.parametrize("name", presets)
def test_a_flagfile_repeats_the_configuration(parsed, name, threshold, tmp_path):
    changed = presets[name].replace(anchor_scales=(1.0, 2 ** (1 / 3)), momentum=0.1 + 0.2, seed=7)
    changed = changed.replace(class_alpha='"a, b=0.5",c=0.1', repeat_threshold=threshold)
    path = tmp_path / "flags.txt"
    path.write_text(flagfile(changed))
    flags.DEFINE_string("flagfile", "", "", flag_values=flags.FLAGS) if "flagfile" not in flags.FLAGS else None
    assert parsed(f"--flagfile={path}") == changed


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "x[1]*", "a,b", "--steps=3", "# no comment", "'q' \"r\"", "żółw 亀 ☕", "a\\n", "=", "{}"]
)
def test_texts_of_any_characters_survive_a_flagfile(parsed, value, tmp_path):
    """Or are refused: a blank at the end, which is cut off."""
    if value != value.rstrip():
        with pytest.raises(InputError, match="no flag file can hold"):
            flagfile(Config(), data=value)
        return
    changed = Config().replace(data_service=value)
    flags.DEFINE_string("data", "", "", flag_values=flags.FLAGS)
    (tmp_path / "flags.txt").write_text(flagfile(changed, data=value), encoding="utf-8")
    arguments = expand_flagfiles([f"--flagfile={tmp_path / 'flags.txt'}"])
    assert parsed(*arguments) == changed and flags.FLAGS["data"].value == value


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf--steps=5\n",
        "--steps=5\n".encode("utf-16"),
        "# caf\xe9\r\n\r\n // no\r\n  --steps=5\r\n".encode(),
        b"--flagfile=%s/inner.txt",
        b"-flagfile\n%s/inner.txt",
    ],
)
def test_flag_files_of_every_editor_are_read(content, tmp_path):
    (tmp_path / "inner.txt").write_text("--steps=5")
    (tmp_path / "outer.txt").write_bytes(content.replace(b"%s", str(tmp_path).encode()))
    for arguments in ([f"--flagfile={tmp_path}/outer.txt"], ["--flagfile", f"{tmp_path}/outer.txt"]):
        assert expand_flagfiles(["--seed=1", *arguments, "--gamma=0"]) == ["--seed=1", "--steps=5", "--gamma=0"]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("# caf\xe9\n--steps=5".encode("latin-1"), "isn't text in UTF-8: line 1 has the byte 0xe9"),
        ("--steps=5\n--data=\u0416".encode("cp1251"), "isn't text in UTF-8: line 2 has the byte 0xc6"),
        (b"--steps=5\0", "line 1 has a NUL character"),
        (b"\x89PNG\r\n\x1a\n", "isn't text in UTF-8"),
        (b"--flagfile=%s", "reads itself"),
        (b"--flagfile=nowhere.txt", "nowhere.txt can't be read"),
        (b"--flagfile=", "--flagfile must have a value"),
    ],
)
def test_flag_files_that_are_no_text_are_one_sentence(content, sentence, tmp_path):
    path = tmp_path / "flags.txt"
    path.write_bytes(content.replace(b"%s", str(path).encode()))
    with pytest.raises(InputError, match=sentence) as raised:
        expand_flagfiles([f"--flagfile={path}"])
    assert "\n" not in str(raised.value)


def test_the_users_folder_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flags.txt").write_text("--output=~/x")
    expanded = expand_flagfiles(["--data=~/d/train-*", f"--flagfile={tmp_path}/flags.txt", "--name=a~/b", "--page"])
    assert expanded == [f"--data={tmp_path}/d/train-*", f"--output={tmp_path}/x", "--name=a~/b", "--page"]


def test_another_batch_size_brings_the_schedule_with_it():
    """The linear rule: twice the batch, twice the rate, half the steps; what is given by a flag stays as given."""
    scaled = presets["paper"].scaled_to_batch(32)
    assert (scaled.data.batch_size, scaled.train.learning_rate, scaled.train.steps) == (32, 0.02, 45_000)
    assert scaled.train.decay_steps == (30_000, 40_000)
    with pytest.raises(InputError, match=r"batch_size=0 must lie in \[1, 65536\]"):
        presets["paper"].scaled_to_batch(0)


def test_a_batch_size_flag_scales_what_no_other_flag_sets(parsed):
    config = parsed("--batch_size=8", "--steps=100")
    assert (config.train.learning_rate, config.train.steps) == (0.005, 100)
    assert config.train.decay_steps == (120_000, 160_000)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"gama": 1.0}, "'gama' is not a field"),
        ({"normalizer": "batch"}, "normalizer='batch' is not one of 'image', 'replica', 'global'"),
        ({"max_level": 4}, r"max_level=4 must lie in \[5, 7\]"),
        ({"prior": 0.0}, r"prior=0.0 must lie in \(0, 1\)\."),
        ({"positive_iou": 1.1}, r"positive_iou=1.1 must lie in \(0, 1\]\."),
        ({"steps": 0}, r"steps=0 must lie in \[1, inf\)\."),
        ({"learning_rate": float("nan")}, "learning_rate=nan must lie in"),
        ({"gamma": float("inf")}, "gamma=inf must lie in"),
        ({"anchor_ratios": (0.5, -1.0)}, r"anchor_ratios=0.5,-1.0 must lie in \(0, inf\)\."),
        ({"anchor_scales": ()}, "need at least one number each"),
        ({"pixel_mean": (1.0, 2.0)}, "pixel_mean=1.0,2.0 must be 3 numbers"),
        ({"negative_iou": 0.6}, "negative_iou=0.6 must be at most positive_iou=0.5"),
        ({"resize": "squash"}, "resize='squash' is not one of 'shorter_side', 'stretch'"),
        ({"image_size": 1200}, "image_size=1200 must be at most max_size=1000; give both"),
        ({"resize": "stretch"}, "resize=stretch makes squares: max_size=1000 must equal image_size=600"),
        ({"repeat_threshold": 1.5}, r"repeat_threshold=1.5 must lie in \[0, 1\]"),
        ({"repeat_threshold": "often"}, "repeat_threshold='often' must be of type float or 'auto'"),
        ({"scale_jitter": (1.2, 0.8)}, "scale_jitter=1.2,0.8 must name the smaller first"),
    ],
)
def test_wrong_values_are_refused_by_name(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Config().replace(**change)


@pytest.mark.parametrize("name", ["batch_size", "accumulation", "mining_examples", "pre_nms_top_k"])
def test_numbers_that_tensorflow_cannot_count_to_are_refused(name):
    with pytest.raises(InputError, match=rf"{name}=1000000000000 must lie in \[1, \d+\]"):
        Config().replace(**{name: 10**12})


def test_every_number_has_a_range():
    fields = [field for section in dataclasses.fields(Config) for field in dataclasses.fields(section.type)]

    def is_number(value):
        return isinstance(value[0] if isinstance(value, tuple) else value, int | float) and not isinstance(value, bool)

    free = {field.name for field in fields if is_number(field.default) and not field.metadata["within"]}
    assert not free
