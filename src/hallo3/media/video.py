"""Writing a video clip by clip so that any interruption can be resumed, and reading videos back."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import UserError
from .containers import is_picture, open_media
from .files import ensure_writable, sync_folder, writing
from .fragments import PACKET, FragmentEncoder
from .images import MAX_PIXELS
from .progress import CannotResume, Progress, load_progress, save_progress
from .sound import Speech, decode_sound, sound_stream


class BeingWritten(UserError):
    """Another run is writing this video, or has just made it."""


class VideoWriter:
    """Writes a video clip after clip: `PATH.part` grows and plays, `PATH.part.state` remembers, `finish` makes `PATH`.

    path: the result, `.mp4`. width, height: of the frames; odd sizes are padded to even. fps: frames per second.
    speech: the sound, at its own quality; None for a video without sound. metadata: tags, see `provenance`.
    fingerprint: names everything the frames depend on (seed, settings, inputs); resuming needs the same one. If it is a
    JSON object, the error names the setting that differs. crf: quality, 1 (nearly lossless) to 51.
    resume: goes on behind the last whole clip of an interrupted run, or starts if there is none. overwrite: replaces
    what an interrupted run has left; without it and without `resume` that is an error.

    `progress` tells what is there already: after resuming, `progress.frames`, `progress.clips` and `progress.carry`.
    A context manager: leaving it before `finish` keeps the unfinished files. A run resumed at any point gives the same
    file, byte for byte, as an uninterrupted one (before it is sealed: a signature is its own).

    Raises UserError for a place that cannot be written, a full disk (what is written is kept), an unfinished video
    in the way, or one begun with other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        *,
        fps: int | Fraction = 25,
        speech: Speech | None = None,
        metadata: Mapping[str, str] | None = None,
        fingerprint: str = "",
        crf: float = 18,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = ensure_writable(path)
        self.part = self.path.with_name(self.path.name + ".part")
        self.state = self.path.with_name(self.path.name + ".part.state")
        self.progress = Progress()
        self._encoder = FragmentEncoder(width, height, fps=fps, crf=crf, speech=speech, metadata=metadata)
        self._settings = {
            "width": width,
            "height": height,
            "fps": str(Fraction(fps)),
            "quality": float(crf),
            "sound": None if self._encoder.track is None else self._encoder.track.sample_rate,
            "fingerprint": fingerprint,
        }
        with self._writing():
            self._file = _open_alone(self.part)
        try:
            begun = self.state.exists()  # asked under the lock: another run may just have written or removed it
            if begun and not resume and not overwrite:
                raise UserError(
                    f"{self.part}: left by an interrupted run; go on with --resume, or start anew with --overwrite"
                )
            self._resume() if begun and resume else self._start()
        except BaseException:
            self.close()
            raise

    def write_clip(self, frames: NDArray[np.uint8], carry: Mapping[str, np.ndarray[Any, Any]] | None = None) -> None:
        """Appends one clip and saves the state.

        frames: (F, height, width, 3) uint8 RGB. carry: arrays that the next clip needs, given back in `progress.carry`.
        When this returns, the clip is on the disk.
        """
        piece = self._encoder.clip(frames)
        progress = Progress(self._encoder.clips, self._encoder.frames, dict(carry or {}))
        with self._writing():
            self._append(piece)
            save_progress(self.state, progress, self._file.tell(), self._settings)
        self.progress = progress

    def finish(self, seal: Callable[[Path, Path], None] | None = None) -> Path:
        """Makes the result of the clips written, by copying packets, and removes the unfinished files.

        Sound and picture end together. The result appears in one step, when it is complete and on the disk; until the
        unfinished files are gone no other run can write them.
        seal: called with the finished draft and the path of a file to make of it, which then is the result: a signed
        copy. What it raises leaves no result, and the unfinished files as they were.
        """
        if not self.progress.frames:
            raise ValueError("no clip has been written")
        if self._file.closed:
            raise ValueError("the writer is closed, and another run may be writing")
        draft, sealed = (self.path.with_name(f"{self.path.name}.part.{kind}") for kind in ("tmp", "sealed"))
        try:
            with open_media(self.part, "unfinished video") as source, self._writing():
                self._remux(source, draft)
                if seal is not None:
                    seal(draft, sealed)
                whole = draft if seal is None else sealed
                with open(whole, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(whole, self.path)
                sync_folder(self.path.parent)
        finally:
            draft.unlink(missing_ok=True)
            sealed.unlink(missing_ok=True)
        with self._writing():
            self.state.unlink()
            self._remove()
        return self.path

    def close(self) -> None:
        """Ends writing; the unfinished files are kept if they hold a clip."""
        if self._file.closed:
            return
        if not self.state.exists():
            with suppress(OSError):
                self._remove()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove(self) -> None:
        """Removes the unfinished video before its lock goes: no other run can have opened it in earnest by then."""
        if os.name == "nt":
            self._file.close()  # Windows removes no open file; and there is no lock there
        self.part.unlink()
        self._file.close()

    def _start(self) -> None:
        with self._writing():
            # The old state first: it must never describe the new file.
            self.state.unlink(missing_ok=True)
            self._file.truncate(0)
            self._append(self._encoder.header())

    def _resume(self) -> None:
        progress, size = load_progress(self.state, self._settings)
        header = self._encoder.header()
        if self._file.seek(0, os.SEEK_END) < size:
            raise CannotResume(f"{self.part}: shorter than its state says; start anew with --overwrite")
        self._file.seek(0)
        if self._file.read(len(header)) != header:
            raise CannotResume(f"{self.part}: begun by another version of the encoder; start anew with --overwrite")
        with self._writing():
            self._file.truncate(size)
            self._file.seek(size)
        self._encoder.skip(progress.clips, progress.frames)
        self.progress = progress

    def _append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def _writing(self) -> AbstractContextManager[None]:
        kept = f"{self.progress.frames} frames are kept: make room, then go on with --resume"
        return writing(self.path, kept if self.progress.frames else "make room or choose another place")

    def _remux(self, source: InputContainer, draft: Path) -> None:
        track, fps = self._encoder.track, self._encoder.fps
        # The clock of the whole film in samples: the edit lists then are exact.
        options = {"movflags": "+faststart", "movie_timescale": str(track.sample_rate if track else fps.numerator)}
        end = round(self.progress.frames / fps * track.sample_rate) if track else 0
        size, frames = 0, 0
        with av.open(str(draft.absolute()), "w", format="mp4", options=options) as target:
            target.metadata.update(self._encoder.metadata)
            for packet in _numbered(source, target, fps, end):
                size, frames = size + packet.size, frames + isinstance(packet.stream, VideoStream)
                target.mux(packet)
        if frames != self.progress.frames:  # where the file system has no locks, another run may have been here
            raise UserError(
                f"{self.part}: holds {frames} of the {self.progress.frames} frames that were written; was it changed "
                "meanwhile? start anew with --overwrite"
            )
        if draft.stat().st_size < size:
            raise OSError("the disk has taken only a part")


def _numbered(source: InputContainer, target: OutputContainer, fps: Fraction, end: int) -> Iterator[Packet]:
    """The packets of an unfinished video for the finished one, timed by their number; sound is cut at sample `end`."""
    streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
    count = dict.fromkeys(streams, 0)
    for packet in source.demux():
        if not packet.size:
            continue  # the end mark of a stream
        index = packet.stream_index
        number, count[index] = count[index], count[index] + 1
        if isinstance(packet.stream, AudioStream):
            start = (number - 1) * PACKET
            packet.time_base, length = Fraction(1, packet.stream.rate), min(PACKET, end - start)
        else:
            packet.time_base, start, length = 1 / fps, number, 1
        packet.pts = packet.dts = start
        packet.duration = length
        packet.stream = streams[index]
        yield packet


def _open_alone(path: Path) -> FileIO:
    """Opens for reading and writing without emptying; BeingWritten if another run is writing it."""
    while True:
        # Without a buffer: what a full disk refuses must not come again when the file is closed.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "rb+", buffering=0)
        try:
            import fcntl
        except ImportError:  # Windows: the unfinished file is not guarded
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BeingWritten(f"{path}: another run is writing it; wait for it or choose another output") from None
        except OSError:
            return file  # A file system without locks.
        if _still_there(file, path):
            return file
        file.close()  # Its writer has removed it since it was opened.


def _still_there(file: FileIO, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class SoundInfo:
    """The sound of a video as its packets state it: start and length in seconds, the encoder's run-in left out."""

    codec: str
    sample_rate: int
    channels: int
    start: float
    seconds: float


@dataclass(frozen=True)
class VideoInfo:
    """A video as its packets state it: size in pixels, frames and their rate, start and length in seconds."""

    codec: str
    profile: str | None
    pixel_format: str | None
    width: int
    height: int
    fps: Fraction
    frames: int
    start: float
    seconds: float
    sound: SoundInfo | None
    metadata: dict[str, str]


class Video(NamedTuple):
    """frames: (F, H, W, 3) uint8 RGB; fps; sound: (channels, n) float32 at sample_rate, or None."""

    frames: NDArray[np.uint8]
    fps: Fraction
    sound: NDArray[np.float32] | None
    sample_rate: int | None


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Measures a video by its packets, without decoding. Raises UserError for a file that is no readable video."""
    with open_media(path, "video") as container:
        video = _video_stream(container, Path(path))
        audio = sound_stream(container, Path(path)) if container.streams.audio else None
        spans = {stream.index: _Span() for stream in (video, audio) if stream is not None}
        for packet in container.demux(*(stream for stream in (video, audio) if stream is not None)):
            if packet.size and packet.pts is not None:
                start, length = (float(ticks * packet.time_base) for ticks in (packet.pts, packet.duration or 0))
                spans[packet.stream_index].add(start, length)
        sound = None
        if audio is not None:
            span = spans[audio.index]
            name, rate, channels = audio.codec_context.name, audio.rate, audio.layout.nb_channels
            sound = SoundInfo(name, rate, channels, span.first, span.end - span.first)
        span = spans[video.index]
        codec = video.codec_context
        return VideoInfo(
            codec=codec.name,
            profile=codec.profile,
            pixel_format=codec.pix_fmt,
            width=video.width,
            height=video.height,
            fps=_rate(video),
            frames=span.count,
            start=span.first,
            seconds=span.end - span.first,
            sound=sound,
            metadata=dict(container.metadata),
        )


def stream_frames(path: str | os.PathLike[str], *, fps: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Decodes a video frame by frame: (H, W, 3) uint8 RGB, turned as its display mark says.

    fps: frames a second to resample to, by dropping and repeating; none by default. Frames are repeated across gaps in
    the time stamps, however long they claim to be: the caller decides when it has enough.
    Raises UserError for an unreadable file or one that is damaged on the way.
    """
    with open_media(path, "video") as container:
        stream = _video_stream(container, Path(path))
        reformatter = VideoReformatter()
        for frame in container.decode(stream) if fps is None else _at_rate(container.decode(stream), stream, fps):
            yield _to_rgb(frame, reformatter)


def read_video(path: str | os.PathLike[str], *, sample_rate: int | None = None) -> Video:
    """Reads a whole video into memory, its sound (if it has one) at its own rate or at `sample_rate`.

    Raises UserError for a file that is no readable video.
    """
    frames = list(stream_frames(path))
    if not frames:
        raise UserError(f"{path}: the video has no frames; copy it again or convert it")
    with open_media(path, "video") as container:
        fps = _rate(_video_stream(container, Path(path)))
        audio = sound_stream(container, Path(path)) if container.streams.audio else None
        rate = None if audio is None else sample_rate or audio.rate
        channels = 0 if audio is None else min(audio.layout.nb_channels, 2)
    if rate is None:
        return Video(np.stack(frames), fps, None, None)
    sound = np.concatenate([np.zeros((channels, 0), np.float32), *decode_sound(path, rate, channels)], axis=1)
    return Video(np.stack(frames), fps, sound, rate)


class _Span:
    """First and last time, in seconds, of a stream's packets that are shown."""

    def __init__(self) -> None:
        self.count, self.first, self.end = 0, 0.0, 0.0

    def add(self, start: float, length: float) -> None:
        self.first = max(0.0, min(start, self.first)) if self.count else max(0.0, start)
        self.end = max(self.end, start + length)
        self.count += 1


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    if is_picture(container):
        raise UserError(f"{path}: is a picture, no video; give an MP4 file")
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise UserError(f"{path}: this is no video that can be read; give an MP4 file")
    if not 0 < stream.width * stream.height <= MAX_PIXELS:
        raise UserError(f"{path}: the video claims {stream.width}×{stream.height} pixels; convert it to MP4")
    return stream


def _rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _at_rate(frames: Iterable[VideoFrame], stream: VideoStream, fps: int) -> Iterator[VideoFrame]:
    graph = Graph()
    graph.link_nodes(graph.add_buffer(template=stream), graph.add("fps", str(fps)), graph.add("buffersink")).configure()
    for frame in chain(frames, (None,)):  # None: the end, after which the last ones come
        graph.vpush(frame)
        with suppress(av.BlockingIOError, av.EOFError):
            while True:
                yield graph.vpull()


def _to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError("a frame has too many pixels")
    array = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray().astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(array, frame.rotation // 90))
