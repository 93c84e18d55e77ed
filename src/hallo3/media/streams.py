"""Writing a video into a pipe while it is made: it plays as it grows, and nothing of it can be taken back."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from .files import writing
from .fragments import FragmentEncoder
from .progress import Progress
from .sound import Speech


class Stream(Protocol):
    """What takes bytes and says how many it took: an unbuffered file, a pipe."""

    def write(self, data: memoryview, /) -> int | None: ...


class StreamWriter:
    """Writes a video clip after clip as fragmented MP4 into a pipe; used as `VideoWriter`, but never resumed or sealed.

    stream: where to, unbuffered; it stays open. The other arguments as `VideoWriter`.
    Raises UserError for a full disk behind the stream; BrokenPipeError when nobody reads it any more.
    """

    def __init__(
        self,
        stream: Stream,
        width: int,
        height: int,
        *,
        fps: int | Fraction = 25,
        speech: Speech | None = None,
        metadata: Mapping[str, str] | None = None,
        crf: float = 18,
    ) -> None:
        self.progress = Progress()
        self._stream = stream
        self._encoder = FragmentEncoder(width, height, fps=fps, crf=crf, speech=speech, metadata=metadata)
        self._send(self._encoder.header())

    def write_clip(self, frames: NDArray[np.uint8], carry: Mapping[str, np.ndarray[Any, Any]] | None = None) -> None:
        """Sends one clip. frames: (F, height, width, 3) uint8 RGB. carry: not kept, as nothing goes on from here."""
        self._send(self._encoder.clip(frames))
        self.progress = Progress(self._encoder.clips, self._encoder.frames)

    def finish(self, seal: Callable[[Path, Path], None] | None = None) -> None:
        """Nothing is left to write: a fragmented MP4 is whole after any clip. seal: must be None."""
        if seal is not None:
            raise ValueError("what is sent already cannot be signed")
        if not self.progress.frames:
            raise ValueError("no clip has been written")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _send(self, piece: bytes) -> None:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._stream.write(rest) or 0 :]
        except BrokenPipeError:
            raise
        except OSError as error:
            with writing(Path("-"), "make room, and start again: a stream cannot be resumed"):
                raise error
