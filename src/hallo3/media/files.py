"""Files named by people: checked before they are read or written, so that a mistake costs one line and no work."""

import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

_LONGEST_NAME = 100  # bytes, so that what is added to it (.mp4.part.state and more) fits everywhere


def require_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a readable file that is not empty.

    `what` names the file's part in the job ("portrait", "speech") in the message.
    Raises UserError if there is no such file, or it is a folder, a device, empty or not readable.
    """
    path = Path(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise UserError(f"{path}: the {what} is a folder; name a file")
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: the {what} is not a plain file; copy it to one first")
        if found.st_size == 0:
            raise UserError(f"{path}: the {what} is an empty file; copy or record it again")
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path of the {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(
            f"{path}: the {what} cannot be read ({_reason(error)}); check the path and its rights"
        ) from None
    return path


def ensure_writable(path: str | os.PathLike[str], *kinds: str) -> Path:
    """The path of a result that can be written: one of `kinds` (`.mp4` by default), in a folder that takes new files.

    A symbolic link is followed, as it says where its owner wants the file. Whether an existing file may be replaced is
    the caller's decision.
    Raises UserError otherwise.
    """
    path = behind_link(Path(path))
    if path.is_dir():
        raise UserError(f"{path}: the output is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: the output is a device or a pipe; name a plain file, or send the video down -o -")
    kinds = kinds or (".mp4",)
    if path.suffix.lower() not in kinds:
        raise UserError(f"{path}: the output must end in {' or '.join(kinds)}; nothing else is written here")
    folder = path.parent
    if not folder.exists():
        raise UserError(f"{path}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise UserError(f"{path}: {folder} is not a folder; choose another place for the output")
    try:
        # Tried, not asked: rights, a read-only or full disk and a name too long all show here.
        descriptor, trial = tempfile.mkstemp(prefix=f"{path.name}.part.state.", dir=folder)
        os.close(descriptor)
        os.unlink(trial)
    except OSError as error:
        raise _no_place(path, error) from None
    return path


def behind_link(path: Path) -> Path:
    """What a symbolic link leads to, there or not; any other path as it is. Raises UserError for what can't be one."""
    try:
        return path.resolve() if path.is_symlink() else path
    except RuntimeError:
        raise UserError(f"{path}: a symbolic link that leads to itself; choose another place for the output") from None
    except (OSError, ValueError) as error:
        raise _no_place(path, error) from None


def safe_name(text: str) -> str:
    """A file name from untrusted text: letters, digits, `-`, `_`, `.` and blanks, never hidden, at most 100 bytes."""
    kept = re.sub(r"[^\w .-]", "_", text).strip(". ")
    kept = kept.encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore").strip(". ")
    return kept or "video"


@contextmanager
def writing(path: Path, kept: str) -> Iterator[None]:
    """Turns any failure of the disk (full, quota, gone) into a UserError; `kept` says what is left and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({_reason(error)}); {kept}") from error


def replace_file(path: Path, data: bytes, *, mode: int = 0o666, alone: bool = True) -> None:
    """Writes a whole file so that, after any interruption, either the old or the new one is there, never a part.

    mode: its rights, less those that the system's mask takes away; from its first byte on. alone: whether nobody else
    can be writing it at the same time; if somebody can, the draft gets a name of its own, which a kill may leave.
    """
    draft = path.with_name(f"{path.name}.tmp" if alone else f"{path.name}.{secrets.token_hex(4)}.tmp")
    draft.unlink(missing_ok=True)  # one left behind may have other rights
    try:
        with open(draft, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # Some network folders cannot; the rename itself has been done.
    finally:
        os.close(descriptor)


def _no_place(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be written ({_reason(error)}); choose another place for the output")


def _reason(error: Exception) -> str:
    """The system's own words, without the path that it repeats."""
    return (getattr(error, "strerror", None) or str(error)).lower()
