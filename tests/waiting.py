"""Waiting for what works beside a test, holding it, and ending it: at a point of its work, not at a time."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

PATIENCE = 180.0  # seconds: beside other tests, on a machine of two cores
Found = TypeVar("Found")
_STOPPED = str(Path(__file__).with_name("stopped.py"))


def until(condition: Callable[[], Found | None], seconds: float = PATIENCE, pause: float = 0.02) -> Found:
    """Asks until the answer is true, and returns it. pause: seconds between two questions."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(pause)
    return found


def children(process: int) -> list[int]:
    """Ids of the processes that a process has started, on Linux."""
    found = []
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, thread.read_text().split())
    return found


def lives(process: int) -> bool:
    """Whether a process still runs; one that has ended and that nobody has asked for its exit code doesn't."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


class Brake:
    """Holds a network before it is called, while others look at what is there by then.

    A forward pre-hook: `network.register_forward_pre_hook(brake)`. calls: of it, the one that is held included.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.release()

    def hold(self, when: Callable[[], bool] = lambda: True) -> None:
        """Calls wait while this is so."""
        self._when = when

    def release(self) -> None:
        """Calls go on."""
        self._when: Callable[[], bool] = lambda: False

    def __call__(self, *_: object) -> None:
        self.calls += 1
        until(lambda: not self._when())


def killed_at(event: str, path: str, number: int, *words: str) -> list[str]:
    """`python WORDS…`, which is killed before `event` (of Python's audit) meets a path like this for the nth time."""
    return [sys.executable, _STOPPED, "kill", event, path, str(number), *words]


def killed_beyond(size: int, *words: str) -> list[str]:
    """`python WORDS…`, which is killed while it writes a file that grows beyond so many bytes."""
    return [sys.executable, _STOPPED, "grow", str(size), *words]


def held_while(file: Path, *words: str, calls: int = 0) -> list[str]:
    """`python WORDS…`, whose denoiser is held while this file is there; not before it has been called so many times."""
    return [sys.executable, _STOPPED, "hold", str(file), str(calls), *words]
