"""Small media files for the tests, made with PyAV and Pillow."""

import random
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

from hallo3.errors import UserError

TONE = 440.0


def tone(seconds: float, rate: int, channels: int = 1, loud: float = 0.3) -> np.ndarray:
    """A sine of 440 Hz that swells and fades, the same in all channels: (channels, n) float32."""
    time = np.arange(round(seconds * rate)) / rate
    wave = loud * np.sin(2 * np.pi * TONE * time) * (0.6 + 0.4 * np.sin(2 * np.pi * 1.5 * time))
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def write_sound(path: Path, codec: str, samples: np.ndarray, rate: int, layout: str, **options) -> Path:
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        _encode_sound(container, stream, samples, rate, layout)
    return path


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000, codec: str = "pcm_s16le") -> Path:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    return write_sound(path, codec, samples, rate, layout)


def write_video(path: Path, seconds: float = 1.0, sound: np.ndarray | None = None, rate: int = 44_100) -> Path:
    """A moving picture of 64×48 at 25 fps, with AAC sound if `sound` (channels, n) is given."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"threads": "1", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = None
        if sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream("aac", rate=rate, layout=layout)
        for index, frame in enumerate(pictures(round(seconds * 25), 64, 48)):
            picture = VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if audio is not None:
            _encode_sound(container, audio, sound, rate, layout)
    return path


def pictures(count: int, width: int, height: int, first: int = 0) -> np.ndarray:
    """Frames (count, height, width, 3) uint8 that all differ, smooth enough to be coded well."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for index in range(first, first + count):
        red = 127 + 100 * np.sin((x + 2 * index) / 11)
        green = 127 + 100 * np.sin((y - 3 * index) / 13)
        blue = np.full_like(red, 40 + (index * 7) % 160)
        frames.append(np.stack([red, green, blue], axis=-1))
    return np.stack(frames).astype(np.uint8)


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of a file, in turn cut short, with bytes changed, with a stretch of noise, with a stretch left out."""
    chance = random.Random(seed)
    for index in range(count):
        copy = bytearray(data)
        at = chance.randrange(len(data))
        length = chance.randrange(1, max(2, len(data) // 8))
        if index % 4 == 0:
            del copy[at:]
        elif index % 4 == 1:
            for _ in range(chance.randrange(1, 40)):
                copy[chance.randrange(min(len(copy), 4096))] = chance.randrange(256)
        elif index % 4 == 2:
            copy[at : at + length] = chance.randbytes(len(copy[at : at + length]))
        else:
            del copy[at : at + length]
        yield bytes(copy)


def only_user_errors(path: Path, data: bytes, read: Callable[[Path], object], count: int = 30) -> int:
    """Reads damaged copies of a file; raising anything but a UserError of one line fails. Returns how many were."""
    refused = 0
    for copy in damaged(data, count, seed=len(data)):
        path.write_bytes(copy)
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
            refused += 1
    return refused


def joined(blocks: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(blocks), axis=1)


def _encode_sound(container, stream, samples, rate, layout):
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
