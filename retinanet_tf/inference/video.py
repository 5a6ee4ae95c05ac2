"""Video files: upright frames one after the other, and annotated copies; needs PyAV, the extra `video`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from retinanet_tf.data.sources.image_files import BadImage
from retinanet_tf.files import written_aside

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp", ".mts")
_CLOCK = 90_000  # ticks of a second in what is written


class Frame(NamedTuple):
    """A frame as players show it."""

    pixels: np.ndarray  # `(H, W, 3)` uint8 RGB
    time: float  # seconds from the start of the file


def is_video(path: str | os.PathLike) -> bool:
    """Whether a name ends like one of a video file."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def read_frames(path: str | os.PathLike) -> Iterator[Frame]:
    """Every frame of a video file's first video stream, turned as its rotation says.

    Raises:
        BadImage: the file can't be read, a frame doesn't decode, or PyAV isn't installed.
    """
    av = _pyav()
    count, step = 0, 0.04
    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        raise BadImage("can't be read as a video: it isn't a regular file")
    try:
        with av.open(os.path.abspath(path)) as container:  # FFmpeg takes "10:30.mp4" for an address
            if not container.streams.video:
                raise BadImage("has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            step = float(1 / stream.average_rate) if stream.average_rate else step
            start = float((stream.start_time or 0) * stream.time_base)  # MPEG streams don't begin at 0
            for frame in container.decode(stream):
                time = count * step if frame.time is None else frame.time - start
                # The rotation is counter-clockwise in degrees, as that of numpy.
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield Frame(np.ascontiguousarray(pixels), time)
                count += 1
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        where = f"doesn't decode after frame {count}" if count else "can't be read as a video"
        raise BadImage(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if not count:
        raise BadImage("has no frame")


class VideoWriter:
    """Writes frames to a video file of one size; made by `video_writer`.

    Attributes:
        resized: how many frames had another size than the first, to which they were fitted with black borders.
    """

    def __init__(self, container: Any, codec: str):
        self._container, self._codec = container, codec
        self._stream: Any = None
        self._size, self._last = (0, 0), -1
        self.resized = 0

    def write(self, pixels: np.ndarray, time: float) -> None:
        """Appends a frame `(H, W, 3)` uint8 that is shown from `time`, in seconds, on."""
        import av

        picture = Image.fromarray(pixels)
        if self._stream is None:
            self._size = picture.size
            self._stream = self._container.add_stream(self._codec, rate=30, options={"crf": "20", "preset": "veryfast"})
            self._stream.width, self._stream.height = (side + side % 2 for side in picture.size)  # as H.264 wants
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
        if picture.size != self._size:
            self.resized += 1
            picture = ImageOps.pad(picture, self._size)
        even = (self._stream.width - self._size[0], self._stream.height - self._size[1])
        padded = np.pad(np.asarray(picture), ((0, even[1]), (0, even[0]), (0, 0)), "edge")
        frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
        frame.pts = self._last = max(round(time * _CLOCK), self._last + 1)
        frame.time_base = Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))

    def flush(self) -> None:
        """Ends the stream."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())


@contextmanager
def video_writer(path: str | os.PathLike) -> Iterator[VideoWriter]:
    """Writes an MP4 file aside, which gets its name when the block ends without an error; BadImage without PyAV."""
    av = _pyav()
    with written_aside(path) as aside, av.open(aside, "w", format="mp4") as container:
        writer = VideoWriter(container, "libx264" if "libx264" in av.codecs_available else "mpeg4")
        yield writer
        writer.flush()


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        raise BadImage("needs PyAV; install it with: pip install 'retinanet_tf[video]'") from None
    return av
