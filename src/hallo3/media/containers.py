"""Opening sound and video files of unknown origin with PyAV."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer

from ..errors import UserError
from .files import require_file


@contextmanager
def open_media(path: str | os.PathLike[str], what: str) -> Iterator[InputContainer]:
    """Opens a media file for reading; every failure of PyAV inside the block becomes a UserError.

    `what` names the file's part in the job ("speech", "video"). Files that only point at other files or addresses
    (playlists) are refused, by allowing FFmpeg no protocol at all: reading one must not read another.
    """
    path = require_file(path, what)
    try:
        # Opened here and not by its name: FFmpeg reads some names as addresses ("concat:…").
        # Tags come in any encoding; a bad one is no reason to refuse the sound.
        options = {"protocol_whitelist": "none"}
        with open(path, "rb") as file, av.open(file, "r", options=options, metadata_errors="replace") as container:
            yield container
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise unreadable(path, what, error) from None


def is_picture(container: InputContainer) -> bool:
    """Whether this is a file of one picture, which FFmpeg reads as a film of one frame."""
    return container.format.name.endswith("_pipe") or container.format.name == "image2"


def unreadable(path: Path, what: str, error: Exception) -> UserError:
    """The error for a file that FFmpeg cannot make sense of."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{path}: the {what} cannot be read ({' '.join(reason.split())}); copy it again or convert it")
