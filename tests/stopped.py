"""Runs a command that is killed or held at a point of its work, whatever else the machine has to do meanwhile.

`python stopped.py HOW WORDS…` does what `python WORDS…` does, where the words are -m MODULE …, -c PROGRAM … or FILE …,
until HOW ends or holds it; `waiting.py` says how.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


def kill(event: str, path: str, number: str) -> None:
    """Dies as by a power cut: nothing is finished, closed or removed."""
    left = int(number)

    def hear(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if name == event and any(fnmatch(str(one), path) for one in arguments[:2]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def grow(size: str) -> None:
    """Dies in the middle of a write, of which the beginning is on the disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it


def hold(file: str, calls: str) -> None:
    """The denoiser waits before a call; of several processes that of the first, and so the others wait for it."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from waiting import Brake

    brake = Brake()
    brake.hold(lambda: brake.calls > int(calls) and Path(file).exists())

    def wait(module: object, *_: object) -> None:
        if type(module).__name__ == "Hallo3Transformer3DModel":  # importing it here would say more than the command
            brake()

    if os.environ.get("RANK", "0") == "0":
        register_module_forward_pre_hook(wait)


def run(words: list[str]) -> None:
    """Does what `python WORDS…` does."""
    first, *rest = words
    sys.path[0] = str(Path.cwd())
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "-c", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


HOW: dict[str, Callable[..., None]] = {"kill": kill, "grow": grow, "hold": hold}

if __name__ == "__main__":
    name, *given = sys.argv[1:]
    stop = HOW[name]
    number = stop.__code__.co_argcount
    stop(*given[:number])
    run(given[number:])
