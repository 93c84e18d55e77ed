"""The folder of one run of the page: its owner's alone, and gone when the run is over, however it ends."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PREFIX, LOCK = "hallo3-web-", "lock"


class Terminated(BaseException):
    """The process was asked to end (SIGTERM)."""


@contextmanager
def own_folder() -> Iterator[Path]:
    """Gives a new folder among the temporary files, and deletes it afterwards.

    Those of runs that were killed, which nobody can have deleted, go first. SIGTERM, and the end of the terminal, raise
    `Terminated` meanwhile; the caller then calls `end_as_asked`.
    """
    _remove_left()
    before = _on_signals()
    try:
        with (
            tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name,
            FileLock(Path(name) / LOCK),
        ):
            yield Path(name)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_as_asked() -> None:
    """Ends the process as SIGTERM does where nobody minds it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


def _on_signals() -> dict[int, Any]:
    """What was done at each signal before."""

    def terminate(*_: object) -> None:
        raise Terminated

    def end(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)  # whoever listens to that now, a web server, ends in good order

    before: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    hung_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hung_up is not None and signal.getsignal(hung_up) != signal.SIG_IGN:  # nohup
        before[hung_up] = signal.signal(hung_up, end)
    return before


def _remove_left() -> None:
    """Deletes the folders of this user's runs that have ended: nobody holds their lock."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            mine = not hasattr(os, "getuid") or place.lstat().st_uid == os.getuid()
            if mine and place.is_dir() and not place.is_symlink() and not _is_new(place / LOCK):
                with FileLock(place / LOCK, timeout=0):
                    shutil.rmtree(place, ignore_errors=True)


def _is_new(lock: Path) -> bool:
    """Whether a run may have made this file and not locked it yet. Raises OSError if there is none."""
    return abs(time.time() - lock.stat().st_mtime) < 1
