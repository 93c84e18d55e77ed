"""Reading speech: any sound that PyAV decodes, resampled once to 16 kHz mono, its original kept for the result."""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from numpy.typing import NDArray

from ..errors import UserError
from .announced import announced_length
from .containers import is_picture, open_media, unreadable

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.2
MAX_SECONDS = 2 * 3600.0
SILENCE = 3e-4  # peak amplitude, −70 dB: a muted microphone, while a whisper recorded too low stays well above
_RATES = range(2_000, 768_001)


@dataclass(frozen=True, eq=False)
class Speech:
    """A recording: what the networks hear, and how to stream what people hear.

    samples: (n,) float32 at 16 kHz, mono, about −1 to 1.
    description: one line for reports.
    sample_rate, channels: of the recording itself (channels 1 or 2: more are mixed down to 2).
    path or original: where `blocks` streams it from; original is (channels, n) float32.
    """

    samples: NDArray[np.float32]
    description: str
    sample_rate: int
    channels: int
    path: Path | None = None
    original: NDArray[np.float32] | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    def blocks(self, sample_rate: int) -> Iterator[NDArray[np.float32]]:
        """Streams the recording at its own quality, resampled once: blocks (channels, n) float32 at `sample_rate`."""
        if self.path is not None:
            yield from decode_sound(self.path, sample_rate, self.channels)
        elif self.original is not None:
            yield from _resample(_frames_of([self.original], self.sample_rate), sample_rate, self.channels)

    def digest(self) -> str:
        """SHA-256 of the 16 kHz samples: tells whether a resumed job has the same speech."""
        return hashlib.sha256(np.ascontiguousarray(self.samples).data).hexdigest()


def read_speech(path: str | os.PathLike[str], *, max_seconds: float = MAX_SECONDS) -> Speech:
    """Reads the speech of a sound or video file of any rate and channel count, resampled once to 16 kHz mono.

    Decoded in blocks: beyond the result (230 MB an hour) memory does not grow with length.
    Raises UserError for a file that is missing, empty, unreadable, without sound, damaged or cut short, silent, shorter
    than 0.2 s or longer than `max_seconds` (two hours unless told), or with samples that are not numbers.
    """
    path = Path(path)
    with open_media(path, "speech") as container:
        stream = sound_stream(container, path)
        rate, channels = stream.rate, min(stream.layout.nb_channels, 2)
        kind = f"{_quality(rate, stream.layout.nb_channels)}, {stream.codec_context.name}"
        length = announced_length(container, stream, path)
    if length is not None and length.seconds > max_seconds:
        raise _too_long(path, max_seconds)
    samples = _collect(decode_sound(path, SAMPLE_RATE, 1), path, max_seconds)
    return Speech(samples, f"{path.name}: {len(samples) / SAMPLE_RATE:.2f} s, {kind}", rate, channels, path=path)


def speech_from_samples(samples: NDArray[np.floating], sample_rate: int, name: str = "speech") -> Speech:
    """Speech from an array: (n,) mono or (channels, n), float, about −1 to 1, at `sample_rate` Hz.

    Raises UserError as `read_speech`; ValueError for another shape or an impossible rate.
    """
    original = np.atleast_2d(np.asarray(samples, dtype=np.float32))
    if original.ndim != 2 or original.shape[0] not in (1, 2):
        raise ValueError(f"samples must be (n,) or (1 or 2, n), not {np.shape(samples)}")
    if sample_rate not in _RATES:
        raise ValueError(f"sample_rate must be {_RATES.start} to {_RATES.stop - 1} Hz, not {sample_rate}")
    channels = len(original)
    mono = heard_from_blocks([original], sample_rate, name)
    description = f"{name}: {len(mono) / SAMPLE_RATE:.2f} s, {_quality(sample_rate, channels)}"
    return Speech(mono, description, sample_rate, channels, original=original)


def heard_from_blocks(blocks: Iterable[NDArray[np.float32]], sample_rate: int, name: str) -> NDArray[np.float32]:
    """What the networks hear, (n,) at 16 kHz, of sound that comes in blocks (1 or 2, n) at `sample_rate` Hz.

    Beyond the result, memory does not grow with length. Raises UserError as `read_speech`.
    """
    return _collect(_resample(_frames_of(blocks, sample_rate), SAMPLE_RATE, 1), name)


def _collect(blocks: Iterable[NDArray[np.float32]], name: object, max_seconds: float = math.inf) -> NDArray[np.float32]:
    collected = bytearray()  # grows in place: a list of blocks would need the memory twice to be joined
    for block in blocks:
        collected += block.tobytes()
        if len(collected) > max_seconds * SAMPLE_RATE * 4:
            raise _too_long(name, max_seconds)
    samples = np.frombuffer(collected, np.float32)
    _check(samples, str(name))
    return samples


def decode_sound(path: str | os.PathLike[str], sample_rate: int, channels: int) -> Iterator[NDArray[np.float32]]:
    """Streams the first sound of a file: blocks (channels, n) float32 at `sample_rate`; channels 1 or 2.

    Raises UserError for an unreadable file, and, naming the second reached, where it is damaged or cut short.
    """
    path = Path(path)
    with open_media(path, "sound") as container:
        stream = sound_stream(container, path)
        yield from _resample(_decoded(container, stream, path), sample_rate, channels)


def sound_stream(container: InputContainer, path: Path) -> AudioStream:
    """The file's main sound. Raises UserError if there is none, or none that can be decoded."""
    if not container.streams.audio:
        picture = is_picture(container)
        kind = "picture" if picture else "video without sound" if container.streams.video else "file without sound"
        raise UserError(f"{path}: this is a {kind}; give a recording of speech")
    stream = container.streams.best("audio") or container.streams.audio[0]
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise UserError(f"{path}: the sound is of an unknown or protected kind; convert it to WAV")
    if stream.rate not in _RATES or not 1 <= stream.layout.nb_channels <= 64:
        raise UserError(
            f"{path}: the sound claims {stream.rate} Hz and {stream.layout.nb_channels} channels; convert it to WAV"
        )
    return stream


def _decoded(container: InputContainer, stream: AudioStream, path: Path) -> Iterator[AudioFrame]:
    """Decoded frames in order; what is no sound at the very start or end (tags, half a frame) is passed over.

    Raises UserError naming the second where the sound breaks off or stops before its announced end.
    """
    announced = announced_length(container, stream, path)
    if stream.codec_context.name == "flac":
        # Its check sums are exact, and not looked at unless asked.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    reached, failure = 0.0, None
    for packet in _packets(container, stream, path):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            failure = (reached, error)
            continue
        if frames and failure and failure[0] > 0:
            raise UserError(f"{path}: the sound is damaged at {failure[0]:.2f} s; copy it again or cut it before that")
        for frame in frames:
            reached += frame.samples / frame.sample_rate
            yield frame
    if not reached and failure:
        raise unreadable(path, "sound", failure[1])
    if announced is not None and reached < announced.seconds - announced.slack:
        raise UserError(
            f"{path}: the sound is damaged or cut short: {announced.seconds:.2f} s are announced and {reached:.2f} s"
            " can be read; copy it again, or convert it to WAV to keep what is there"
        )


def _packets(container: InputContainer, stream: AudioStream, path: Path) -> Iterator["Packet[AudioStream]"]:
    seconds = 0.0
    try:
        for packet in container.demux(stream):
            if packet.pts is not None and packet.time_base:
                seconds = float(packet.pts * packet.time_base)
            yield packet
    except av.FFmpegError as error:
        raise UserError(f"{path}: the file is damaged at {seconds:.2f} s ({error.strerror}); copy it again") from None


def _resample(frames: Iterable[AudioFrame], rate: int, channels: int) -> Iterator[NDArray[np.float32]]:
    """Frames of any format as blocks (channels, n) float32; a change of format on the way starts a new resampler."""
    layout = "mono" if channels == 1 else "stereo"
    resampler, current = None, None
    for frame in frames:
        frame.pts = None  # the sound is taken as it comes: gaps in time stamps are neither filled nor cut
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != current:
            if resampler is not None:
                yield from _arrays(resampler.resample(None))
            # Mixed down to a weighted mean: FFmpeg's plain sum of channels leaves −1 to 1.
            mix = {"rematrix_maxval": "1.0"}
            resampler, current = av.AudioResampler(format="fltp", layout=layout, rate=rate, options=mix), kind
        assert resampler is not None
        yield from _arrays(resampler.resample(frame))
    if resampler is not None:
        yield from _arrays(resampler.resample(None))


def _arrays(frames: Iterable[AudioFrame | None]) -> Iterator[NDArray[np.float32]]:
    # A resampler with nothing to do passes on what it gets, the end mark None too.
    return (frame.to_ndarray().astype(np.float32, copy=False) for frame in frames if frame is not None)


def _frames_of(blocks: Iterable[NDArray[np.float32]], rate: int) -> Iterator[AudioFrame]:
    for block in blocks:
        layout = "mono" if len(block) == 1 else "stereo"
        for start in range(0, block.shape[1], rate):
            part = np.ascontiguousarray(block[:, start : start + rate])
            frame = AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate = rate
            yield frame


def _check(samples: NDArray[np.float32], name: str) -> None:
    """UserError unless 16 kHz samples can be speech."""
    for start in range(0, len(samples), SAMPLE_RATE * 60):
        finite = np.isfinite(samples[start : start + SAMPLE_RATE * 60])
        if not finite.all():
            second = (start + int(np.argmin(finite))) / SAMPLE_RATE
            raise UserError(f"{name}: the sound has values that are not numbers at {second:.2f} s; export it again")
    check_seconds(name, len(samples) / SAMPLE_RATE, math.inf)
    if max(float(samples.max()), -float(samples.min())) < SILENCE:
        raise UserError(f"{name}: the sound is silent; give a recording of speech")


def _quality(rate: int, channels: int) -> str:
    return f"{rate} Hz {('mono', 'stereo')[channels - 1] if channels <= 2 else f'{channels} channels'}"


def check_seconds(name: object, seconds: float, max_seconds: float = MAX_SECONDS) -> None:
    """Raises UserError, naming `name`, unless sound of this length can be speech to animate."""
    if not seconds >= MIN_SECONDS:
        raise UserError(f"{name}: the sound lasts {seconds:.2f} s; at least {MIN_SECONDS} s of speech are needed")
    if seconds > max_seconds:
        raise _too_long(name, max_seconds)


def _too_long(name: object, max_seconds: float) -> UserError:
    limit = f"{max_seconds / 3600:g} h" if max_seconds >= 3600 else f"{max_seconds:g} s"
    return UserError(f"{name}: the sound is longer than {limit}, the limit; cut it into parts")
