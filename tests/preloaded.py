"""hallo3 as a command whose libraries are loaded already: importing them is most of a short command's time.

`python preloaded.py SOCKET` imports them and waits. `python preloaded.py SOCKET WORDS…` has WORDS run, as
`python WORDS…` would, by a fork of that process, with the caller's standard streams, folder and environment; the exit
code is its own.
"""

import atexit
import json
import os
import signal
import socket
import sys
from pathlib import Path


def ask(place: str, words: list[str]) -> int:
    """Has the words run; returns the exit code."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(place)
        socket.send_fds(asking, [b"."], [0, 1, 2])
        asking.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode())
        asking.shutdown(socket.SHUT_WR)
        return int(asking.recv(16) or 1)


def wait(place: str) -> list[str]:
    """Loads the libraries and answers at `place`; returns, in a process of their own, the words that one is to run."""
    from hallo3.cli.app import hush_libraries

    hush_libraries()
    import hallo3.pipeline  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.bind(f"{place}.new")
        waiting.listen()
        os.rename(f"{place}.new", place)
        while True:
            asked = waiting.accept()[0]
            if not os.fork():
                break
            asked.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams = socket.recv_fds(asked, 1, 3)[1]
    with asked.makefile("rb") as reading:
        words, folder, environment = json.loads(reading.read())
    if worker := os.fork():
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        asked.sendall(str(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])).encode())
        os._exit(0)
    asked.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Python's own still take the new ones for what the old ones were, which a pipe and a file answer differently.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(words)


def run(words: list[str]) -> int:
    """Does what `python WORDS…` does, where the words are -m hallo3 … or -c PROGRAM."""
    if words[:2] == ["-m", "hallo3"]:
        from hallo3.cli import main

        sys.argv = ["hallo3", *words[2:]]
        return main()
    option, program = words
    assert option == "-c"
    sys.argv = ["-c"]
    sys.path.insert(0, str(Path.cwd()))
    exec(program, {"__name__": "__main__"})
    return 0


def end(code: int) -> None:
    """Ends the process without taking apart what it shares with the others, which costs seconds."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    place, *words = sys.argv[1:]
    if words:
        sys.exit(ask(place, words))
    end(run(wait(place)))
