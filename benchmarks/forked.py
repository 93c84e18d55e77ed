"""`hallo3 …` in a fork of this process: a command of its own, without the seconds of reading the libraries."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path


def read_libraries() -> None:
    """Reads what the commands need; call it before the first fork."""
    import diffusers  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import hallo3.animation
    import hallo3.serving.api  # noqa: F401

    torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them


def start(words: list[str], log: Path) -> int:
    """`hallo3 …` as a process of its own; its number."""
    from hallo3.cli import main

    child = os.fork()
    if child:
        return child
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    sys.argv = ["hallo3", *words]
    code = 1
    try:
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """Its exit code (negative: the signal); None if it still runs after that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(child: int) -> None:
    """As the system does when memory runs out."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
