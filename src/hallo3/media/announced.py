"""How long a sound says it is: the only way to see that a file was cut short, as decoders just stop at its end."""

import os
import re
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from av.audio.stream import AudioStream
from av.container import InputContainer

from ..errors import UserError

# Containers whose headers state the length, and its slack in seconds. For all others FFmpeg only estimates it.
_SLACK = {"wav": 0.02, "w64": 0.02, "aiff": 0.02, "flac": 0.02, "ogg": 0.1, "mp3": 0.25, "mov": 0.25, "matroska": 0.25}


class Announced(NamedTuple):
    """The length in seconds that a header promises, and how much less is no damage (delays, rounding)."""

    seconds: float
    slack: float


def announced_length(container: InputContainer, stream: AudioStream, path: Path) -> Announced | None:
    """The length that the file's own header promises for this sound; None where it promises nothing.

    Raises UserError where the file plainly ends before its own data does.
    """
    name = container.format.name.split(",")[0]
    if name not in _SLACK:
        return None
    seconds = 0.0
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif name == "matroska" and len(container.streams) == 1 and container.duration:
        seconds = container.duration / 1_000_000  # of the longest stream: only if there is no other
    with open(path, "rb") as file:
        if name == "wav":
            _check_riff(file, path)
        elif name == "ogg":
            _check_last_page(file, path)
        elif name == "mp3":
            seconds = _mp3_frames(file) * (1152 if stream.rate >= 32_000 else 576) / stream.rate
    return Announced(seconds, _SLACK[name]) if seconds > 0 else None


def _check_riff(file: BinaryIO, path: Path) -> None:
    """FFmpeg takes the length of a cut WAV from the file's size; its header still tells."""
    size = os.fstat(file.fileno()).st_size
    if file.read(4) != b"RIFF":
        return
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name == b"data":
            missing = file.tell() + length - size
            # Programs that write into a pipe put the largest number here, some zero.
            if length < 0x7FFF0000 and missing > 1:
                raise UserError(
                    f"{path}: the sound is cut short: {missing} of {length} bytes are missing; copy it again"
                )
            return
        file.seek(length + length % 2, os.SEEK_CUR)


def _check_last_page(file: BinaryIO, path: Path) -> None:
    """FFmpeg takes the length of an Ogg file from its last whole page; a page that was begun tells of the cut."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - 2 * 65_307))  # the largest page, twice
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0:
        return
    segments = tail[start + 26] if len(tail) > start + 26 else 0
    table = tail[start + 27 : start + 27 + segments]
    if not segments or len(table) < segments or start + 27 + segments + sum(table) > len(tail):
        raise UserError(f"{path}: the sound is cut short, its last page is not whole; copy it again")


def _mp3_frames(file: BinaryIO) -> int:
    """The number of frames in the Xing or Info tag of an MP3, 0 without one; FFmpeg mixes it with guesses."""
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        file.seek(10 + size)
    else:
        file.seek(0)
    frame = file.read(256)
    found = re.search(b"(?:Xing|Info)(.{4})(.{4})", frame, re.DOTALL)
    if not found or not found[1][3] & 1:
        return 0
    return int.from_bytes(found[2], "big")
