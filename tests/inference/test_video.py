"""Videos: every frame upright and at its time, annotated copies that play as long, broken files named."""

import json
import os
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from retinanet_tf.data.sources.image_files import BadImage
from retinanet_tf.inference.predict import predict
from retinanet_tf.inference.video import read_frames
from tests.small_detectors import Quarter

av = pytest.importorskip("av", reason="videos need PyAV, the extra video")
TIMES = (0, 1, 2, 4, 7, 8, 9, 11, 12, 13)  # tenths of a second
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise: the matrix of an MP4 file's header


def write(path, sizes, codec="libx264", form=None, rotation=0):
    """A video with a frame of each size (width, height), red at the left and brighter with time."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p" if codec == "libx264" else "yuv444p"
        stream.width, stream.height = sizes[0]
        for number, (width, height) in enumerate(sizes):
            pixels = np.full((height, width, 3), 20 * number, np.uint8)
            pixels[:, : width // 2, 0] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = TIMES[number], Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:
        content = bytearray(path.read_bytes())
        a, b, c, d = (value << 16 for value in TURNS[rotation])
        start = content.index(b"tkhd") + 44
        content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
    return path


def changing(path, sizes):
    """A stream of JPEG files of several sizes, one after the other."""
    parts = []
    for number, size in enumerate(sizes):
        part = write(path.with_name(f"{number}.mjpeg"), [size], "mjpeg", "mjpeg")
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("rotation", [0, *TURNS])
def test_frames_are_upright_and_so_are_boxes_and_the_copy(tmp_path, rotation):
    path = write(tmp_path / "a.mp4", [(64, 48)] * 10, rotation=rotation)
    frames = list(read_frames(path))
    assert [round(frame.time, 6) for frame in frames] == [tenth / 10 for tenth in TIMES]
    red = np.zeros((48, 64), bool)
    red[:, :32] = True
    upright = np.rot90(red, -rotation // 90)
    for frame in frames[:8]:
        pixels = frame.pixels.astype(int)
        assert pixels.shape[:2] == upright.shape
        assert ((pixels[..., 0] - pixels[..., 1] > 60) == upright).mean() > 0.95
    predictions = predict(Quarter(), [path], tmp_path / "out", batch_size=2, progress=False)
    height, width = upright.shape
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert rows == predictions.detections and len(rows) == 20
    assert [(row["frame"], row["time"]) for row in rows[::2]] == [(i, t / 10) for i, t in enumerate(TIMES)]
    assert all(row["bbox"] == [width / 2, height / 2, width / 2, height / 2] for row in rows[::2])
    assert predictions.counts == {str(path): {"toilet": 10}} and predictions.pictures[str(path)].name == "a.mp4"
    copy = list(read_frames(tmp_path / "out" / "pictures" / "a.mp4"))
    assert [frame.pixels.shape for frame in copy] == [(height, width, 3)] * 10
    np.testing.assert_allclose([frame.time for frame in copy], np.array(TIMES) / 10, atol=1e-4)
    assert (tmp_path / "out" / "contact_sheet.jpg").exists()


def test_times_are_from_the_start_of_a_stream_that_begins_later(tmp_path):
    """An MPEG stream's first frame isn't at 0."""
    path = write(tmp_path / "a.mts", [(64, 48)] * 10, form="mpegts")
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time > 0
    assert [round(frame.time, 3) for frame in read_frames(path)] == [tenth / 10 for tenth in TIMES]


def test_odd_sizes_and_frames_of_another_size(tmp_path):
    write(tmp_path / "odd.avi", [(63, 47)] * 10, "ffv1")
    changing(tmp_path / "changing.mpg", [(96, 96), (128, 72), (96, 96)])
    predictions = predict(Quarter(), [tmp_path], tmp_path / "out", progress=False)
    assert not predictions.unreadable
    shapes = {
        path.name: [frame.pixels.shape[:2] for frame in read_frames(path)] for path in predictions.pictures.values()
    }
    assert shapes == {"odd.mp4": [(48, 64)] * 10, "changing.mp4": [(96, 96)] * 3}
    assert len(predictions.notes) == 1 and "changing.mpg: 1 of 3 frames had another size" in predictions.notes[0]
    widths = [row["bbox"][2] for row in predictions.detections if "changing" in row["image_id"]]
    assert widths[::2] == [48, 64, 48], "boxes are in each frame's own pixels"


def test_a_video_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mov").write_bytes(b"")
    content = write(tmp_path / "whole.mp4", [(64, 48)] * 3).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage, match="can't be read as a video"):
        list(read_frames(tmp_path / "text.mp4"))
    predictions = predict(Quarter(), [tmp_path], tmp_path / "out", progress=False)
    assert {path.rsplit("/", 1)[1] for path, _ in predictions.unreadable} == {"text.mp4", "empty.mov", "cut.mp4"}
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["whole.mp4"]


def test_pipes_are_no_videos_and_names_no_addresses(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(BadImage, match="it isn't a regular file"):
        list(read_frames(tmp_path / "pipe.mp4"))
    write(tmp_path / "10:30.mp4", [(64, 48)] * 2)
    monkeypatch.chdir(tmp_path)
    assert len(list(read_frames("10:30.mp4"))) == 2


def test_without_the_library_a_video_is_named_and_pictures_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").touch()
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    predictions = predict(Quarter(), [tmp_path], tmp_path / "out", progress=False)
    assert list(predictions.counts) == [str(tmp_path / "b.png")]
    ((path, reason),) = predictions.unreadable
    assert path.endswith("a.mp4") and "retinanet_tf[video]" in reason
