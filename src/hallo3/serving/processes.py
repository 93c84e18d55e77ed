"""Workers in processes of their own, each with a model of its own: one for each device of a server."""

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import UserError, hush_libraries, in_one_line, show_bug
from .jobs import JobQueue, Limits
from .store import Job
from .worker import Worker

SECONDS_BEFORE_ANOTHER = 5.0  # after a process has died: what kills it at its start must not keep the machine busy
_log = logging.getLogger(__name__)


class WorkerProcess:
    """A `Worker` in a process of its own, started again when it dies; the job that it had is gone on with.

    folder, limits, common: the queue's, see `JobQueue`. how: device, dtype, … of `animation.load`. name, on_end: see
    `Worker`. The process ends with the one that started it, however that ends.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        common: Mapping[str, Any],
        how: Mapping[str, Any],
        *,
        name: str,
        on_end: Callable[[Job, float], None] = lambda job, seconds: None,
    ) -> None:
        self.name, self.on_end = name, on_end
        self._given = (folder, limits, dict(common), dict(how), name)
        self._ready, self._stopping = threading.Event(), threading.Event()
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def is_working(self) -> bool:
        """Whether its process lives and has loaded the model."""
        return self._ready.is_set() and self._process.is_alive()

    def open(self) -> None:
        """Starts the process, which begins to work, and waits until it does. Raises UserError if it can't."""
        self._thread = threading.Thread(target=self._keep_going, name=f"hallo3 {self.name}", daemon=True)
        self._thread.start()
        while not self._ready.wait(0.1):
            if not self._thread.is_alive():
                raise UserError(self._failure or f"{self.name}: its process ended at once; memory may have run out")

    def start(self) -> None:
        """Nothing to do where it is open."""
        if self._thread is None:
            self.open()

    def stop(self, timeout: float | None = None) -> None:
        """Stops within a step; the job in hand goes back to the queue. timeout: seconds to wait for that."""
        self._stopping.set()
        self._tell_to_stop()
        if self._thread is not None:
            self._thread.join(timeout)

    # ---------------------------------------------------------------------------------------------------------- inside

    def _keep_going(self) -> None:
        opened = False
        while not self._stopping.is_set():
            self._begin()
            self._hear()
            self._process.join()
            opened = opened or self._ready.is_set()
            self._ready.clear()
            if not opened:
                return
            if not self._stopping.is_set():
                _log.error("%s: %s; it is started again", self.name, self._failure or "its process has died")
                self._stopping.wait(SECONDS_BEFORE_ANOTHER)

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._failure = None
        process = context.Process(target=_work, args=(theirs, *self._given), name=self.name, daemon=True)
        process.start()
        self._process = process
        theirs.close()
        if self._stopping.is_set():  # meanwhile
            self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        if self._pipe is not None and self._ready.is_set():
            with suppress(OSError):  # it has ended
                self._pipe.send("stop")
        elif self._process is not None:  # it has nothing to give back yet
            self._process.kill()

    def _hear(self) -> None:
        """Takes what the process says, until it ends or is to stop."""
        assert self._pipe is not None
        try:
            while True:
                match self._pipe.recv():
                    case "ready":
                        self._ready.set()
                    case str(line):
                        self._failure = line
                    case job, seconds:
                        self.on_end(job, seconds)
        except (EOFError, OSError):
            return


def _work(
    pipe: Connection, folder: Path, limits: Limits, common: dict[str, Any], how: dict[str, Any], name: str
) -> None:
    """What runs in the process: a worker, until it is told to stop, or the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is told to all: the server stops its workers
    hush_libraries()
    from ..animation import load

    try:
        pipeline = load(common["bundle"], **how)
        jobs = JobQueue(folder, limits, common=common)
    except Exception as error:
        show_bug(error)
        pipe.send(in_one_line(error))
        return
    worker = Worker(jobs, pipeline, name=name, on_end=lambda job, seconds: pipe.send((job, seconds)))
    pipe.send("ready")
    worker.start()
    with suppress(EOFError, OSError):  # whoever started it is gone
        pipe.recv()
    worker.stop()
    jobs.close()
