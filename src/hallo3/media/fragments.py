"""A video as a growing stream: one header, then one self-contained piece of fragmented MP4 for each clip.

Every clip is encoded by a fresh H.264 encoder as closed groups of pictures, and its bytes depend on nothing but its own
frames, its place in the video and the speech. So a video resumed after any clip is the same, byte for byte. The stream
plays while it grows, from a file or a pipe.
"""

import io
import struct
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from numpy.typing import NDArray

from .sound import Speech

PACKET = 1024  # samples in an AAC packet; the first packet is the encoder's run-in, cut away by an edit list
BITS_PER_CHANNEL = 96_000
_BT709 = 1  # the colour matrix in H.264's own numbering
_TICKS = 512  # of the video's clock in one frame


class FragmentEncoder:
    """Encodes clips of frames, with their share of the speech, into pieces of one fragmented MP4 (H.264 High, AAC).

    width, height: of the frames given; odd sizes are padded to even by repeating the last column or row.
    fps: frames per second, an integer or a ratio. crf: quality, 1 (nearly lossless) to 51, see x264.
    speech: None for a video without sound. The sound starts with the picture; behind the speech comes silence.
    metadata: tags for the header, see `provenance`.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        fps: int | Fraction = 25,
        crf: float = 18,
        speech: Speech | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.width, self.height = width, height
        self.fps = Fraction(fps)
        self.crf = crf
        self.metadata = dict(metadata or {})
        self.track = SpeechTrack(speech) if speech is not None else None
        self.clips = 0
        self.frames = 0
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame

    def header(self) -> bytes:
        """The start of the stream (ftyp and moov boxes). It depends on the settings alone."""
        # What the boxes say of the encoders is known only when something has been encoded: a black frame will do. Sound
        # that starts before zero makes the muxer write the edit list that cuts the run-in.
        black = np.zeros((1, self.height, self.width, 3), np.uint8)
        data = self._mux(black, [bytes(8)] if self.track else [], -PACKET, "+delay_moov")
        return b"".join(data[start:end] for name, start, end in boxes(data) if name in (b"ftyp", b"moov"))

    def clip(self, frames: NDArray[np.uint8]) -> bytes:
        """The next piece (moof and mdat boxes). frames: (F, height, width, 3) uint8 RGB, F ≥ 1."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (self.height, self.width, 3):
            raise ValueError(f"frames must be uint8 (F, {self.height}, {self.width}, 3), not {frames.shape}")
        if not len(frames):
            raise ValueError("a clip has at least one frame")
        first = self.track.count if self.track else 0
        sound = list(self._sound_until(self.frames + len(frames)))
        data = bytearray(self._mux(frames, sound, 0, ""))
        self.clips += 1
        _place(data, self.clips, {1: self.frames * _TICKS * self.fps.denominator, 2: first * PACKET})
        self.frames += len(frames)
        return b"".join(data[start:end] for name, start, end in boxes(data) if name in (b"moof", b"mdat"))

    def skip(self, clips: int, frames: int) -> None:
        """Goes on behind clips encoded earlier. The speech before is encoded again: its encoder remembers."""
        self.clips, self.frames = clips, frames
        for _ in self._sound_until(frames):
            pass

    def _sound_until(self, frames: int) -> Iterator[bytes]:
        """The packets not yet taken that start before this frame."""
        if self.track is None:
            return iter(())
        return self.track.packets(round(frames / self.fps * self.track.sample_rate))

    def _mux(self, frames: NDArray[np.uint8], sound: list[bytes], sound_start: int, flags: str) -> bytes:
        """A small MP4 of these frames, from time 0, and AAC packets, from sample `sound_start`."""
        file = io.BytesIO()
        ticks = self.fps.numerator * _TICKS
        options = {"movflags": f"+empty_moov+default_base_moof{flags}", "video_track_timescale": str(ticks)}
        with av.open(file, "w", format="mp4", options=options) as container:
            container.metadata.update(self.metadata)
            video = container.add_stream("libx264", rate=self.fps, options=_video_options(self.crf))
            video.width, video.height = self.width + self.width % 2, self.height + self.height % 2
            video.pix_fmt, video.time_base = "yuv420p", 1 / self.fps
            _tag_colours(video.codec_context)
            audio = self.track.add_to(container) if self.track else None
            for index, frame in enumerate(frames):
                picture = _to_yuv(frame, self._reformatter)
                picture.pts, picture.time_base = index, 1 / self.fps
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
            for index, payload in enumerate(sound):
                assert audio is not None
                packet = av.Packet(payload)
                packet.stream, packet.time_base = audio, Fraction(1, audio.rate)
                packet.pts = packet.dts = sound_start + index * PACKET
                packet.duration, packet.is_keyframe = PACKET, True
                container.mux(packet)
        return file.getvalue()


class SpeechTrack:
    """The AAC packets of a recording at its own quality, up to 48 kHz stereo, then of silence without end.

    Packet k holds the samples from (k − 1)·1024 on: packet 0 is the encoder's run-in.
    """

    def __init__(self, speech: Speech) -> None:
        self.sample_rate = output_rate(speech.sample_rate)
        self.layout = "mono" if speech.channels == 1 else "stereo"
        self.bit_rate = BITS_PER_CHANNEL * speech.channels
        self.count = 0
        self._frames = self._numbered(_in_packets(speech.blocks(self.sample_rate), speech.channels))
        self._ready: list[bytes] = []
        self._encoder = self._open()

    def packets(self, until: int) -> Iterator[bytes]:
        """The packets not yet taken that start before this sample."""
        while (self.count - 1) * PACKET < until:
            while not self._ready:
                self._ready = [bytes(packet) for packet in self._encoder.encode(next(self._frames))]
            self.count += 1
            yield self._ready.pop(0)

    def add_to(self, container: OutputContainer) -> AudioStream:
        """A stream for these packets in a file."""
        stream = container.add_stream("aac", rate=self.sample_rate, layout=self.layout)
        stream.bit_rate = self.bit_rate
        return stream

    def _open(self) -> AudioCodecContext:
        encoder = av.CodecContext.create("aac", "w")
        encoder.sample_rate, encoder.layout, encoder.format = self.sample_rate, self.layout, "fltp"
        encoder.bit_rate, encoder.time_base = self.bit_rate, Fraction(1, self.sample_rate)
        encoder.flags |= Flags.global_header
        return encoder

    def _numbered(self, blocks: Iterator[NDArray[np.float32]]) -> Iterator[AudioFrame]:
        for index, block in enumerate(blocks):
            frame = AudioFrame.from_ndarray(block, format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts = self.sample_rate, index * PACKET
            yield frame


def output_rate(sample_rate: int) -> int:
    """The rate of the result's sound: the recording's own, raised where needed to one that every player takes.

    44.1 kHz for its halves and quarters, 48 kHz for all else: a packet then is shorter than a video frame.
    """
    return 44_100 if 44_100 % sample_rate == 0 else 48_000


def boxes(data: bytes | bytearray, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """The MP4 boxes in data[start:end]: name, start and end of each, in bytes."""
    end = len(data) if end is None else end
    while start < end:
        size, name = struct.unpack_from(">I4s", data, start)
        yield name, start, start + size
        start += size


def _place(data: bytearray, number: int, times: Mapping[int, int]) -> None:
    """Gives a piece its place in the stream: its number (from 1) and, for each track, its decode time in ticks."""
    moof = next((start, end) for name, start, end in boxes(data) if name == b"moof")
    track = 0
    for name, start, end in boxes(data, moof[0] + 8, moof[1]):
        if name == b"mfhd":
            struct.pack_into(">I", data, start + 12, number)
        for inner, at, _ in boxes(data, start + 8, end) if name == b"traf" else ():
            if inner == b"tfhd":
                (track,) = struct.unpack_from(">I", data, at + 12)
            elif inner == b"tfdt":
                if data[at + 8] != 1:
                    raise RuntimeError("the muxer wrote a 32-bit decode time where 64 bits are expected")
                struct.pack_into(">Q", data, at + 12, times[track])


def _in_packets(blocks: Iterator[NDArray[np.float32]], channels: int) -> Iterator[NDArray[np.float32]]:
    """Cuts blocks of any length into (channels, 1024), then gives silence for ever."""
    rest = np.zeros((channels, 0), np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block], axis=1)
        whole = rest.shape[1] // PACKET * PACKET
        for start in range(0, whole, PACKET):
            yield np.ascontiguousarray(rest[:, start : start + PACKET])
        rest = rest[:, whole:]
    yield np.pad(rest, ((0, 0), (0, PACKET - rest.shape[1])))
    while True:
        yield np.zeros((channels, PACKET), np.float32)


def _video_options(crf: float) -> dict[str, str]:
    # One thread: x264's result depends on their number. No B-frames: they need decode times before the clip's start.
    options = {"crf": str(crf), "preset": "medium", "profile": "high", "bf": "0", "threads": "1"}
    return options | ({"x264-params": "asm=AVX2"} if _has_avx512() else {})


@cache
def _has_avx512() -> bool:
    """With AVX-512 x264 now and then makes other bytes of the same frames (benchmarks/encoder_repeats.py)."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return any(name == "X86_V4" or name.startswith("AVX512") for name in found)


def _tag_colours(encoder: Any) -> None:
    encoder.color_primaries, encoder.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    encoder.colorspace, encoder.color_range = _BT709, ColorRange.MPEG


def _to_yuv(frame: NDArray[np.uint8], reformatter: VideoReformatter) -> VideoFrame:
    """(height, width, 3) RGB as a BT.709 picture of even size."""
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return reformatter.reformat(
        picture,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
