"""The worker: takes jobs from the queue and makes their videos with one loaded model, one after the other."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..animation import AnimationRequest, Event, Listener, animate, begun
from ..errors import Ended, UserError, disk_is_full, in_one_line, show_bug
from ..media.progress import CannotResume
from ..media.video import BeingWritten
from .jobs import RESULT, JobQueue, reason_of
from .store import LEASE, Job

if TYPE_CHECKING:
    from ..pipeline import Hallo3Pipeline

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_TIDYING = 5.0
SECONDS_UNTIL_ROOM = 60.0  # after a full disk, before the job is gone on with
SECONDS_BETWEEN_STEPS = 0.25  # events of steps that come faster are not kept
_log = logging.getLogger(__name__)


class Worker:
    """Makes the jobs of a queue with one model.

    jobs: the queue; any number of workers, in any number of processes, may share its folder. pipeline: the loaded
    model, which this worker alone uses. name: must be its own among those who share the folder, and the same after a
    restart: a worker goes on at once with the job that it had when it died; another's is taken over when its lease has
    run out.
    on_end: called with each job that ends here, as it then is, and the seconds that it took.

    Either `start` it, and it works in a thread of its own until `stop`; or call `work_once` where a loop of yours is.
    """

    def __init__(
        self,
        jobs: JobQueue,
        pipeline: "Hallo3Pipeline",
        *,
        name: str = "worker-1",
        on_end: Callable[[Job, float], None] = lambda job, seconds: None,
    ) -> None:
        self.jobs, self.pipeline, self.name = jobs, pipeline, name
        self.on_end = on_end
        self._stopping = threading.Event()
        self._resting = 0.0  # until when, by `time.monotonic`
        self._thread: threading.Thread | None = None

    @property
    def is_working(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begins to work, in a thread of its own."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=f"hallo3 {self.name}", daemon=True)
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Stops within a step; the job in hand goes back to the queue and is later gone on with at its last clip.

        timeout: seconds to wait for that.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def work_once(self) -> bool:
        """Takes one job, if there is one, and makes it. Returns whether there was one."""
        job = self.jobs.store.claim(self.name)
        if job is None:
            return False
        began = time.monotonic()
        state = self._make(job, lambda: time.monotonic() - began)
        self.jobs.settle()
        if state is not None:
            self.on_end(replace(job, state=state), time.monotonic() - began)
        return True

    # ---------------------------------------------------------------------------------------------------------- inside

    def _run(self) -> None:
        tidied = 0.0
        while not self._stopping.is_set():
            try:
                if time.monotonic() - tidied > SECONDS_BETWEEN_TIDYING:
                    self.jobs.tidy()
                    tidied = time.monotonic()
                worked = time.monotonic() >= self._resting and self.work_once()
            except Exception as error:  # A full disk, a locked table: neither ends the service.
                show_bug(error)
                _log.error("%s", in_one_line(error))
                worked = False
                self._stopping.wait(1)
            except Ended as ended:  # of the processes that make a job together: none of them can go on
                if ended.line is not None:
                    _log.error("%s", ended.line)
                return
            if not worked:
                self._stopping.wait(SECONDS_BETWEEN_LOOKS)

    def _make(self, job: Job, took: Callable[[], float]) -> str | None:
        """Makes a job's video and says so in the table. Returns the state in which it ended; None if it did not."""
        store, hearing = self.jobs.store, _Hearing(self.jobs, job, self.name, self._stopping)

        def end(state: str, error: str | None = None, **facts: Any) -> str | None:
            return state if store.finish(job.id, self.name, state, error, took=took(), **facts) else None

        try:
            with hearing:
                self._animate(self.jobs.request(job), hearing)
        except _Cancelled:
            return end("cancelled")
        except (_Stopped, BeingWritten):
            store.release(job.id, self.name, took=took())
            return None
        except _Taken:
            return None
        except Exception as error:
            if disk_is_full(error) or isinstance(error, sqlite3.OperationalError):
                self._rest(job, error, took())
                return None
            show_bug(error)
            line = self.jobs.in_senders_words(in_one_line(error), job)
            if not isinstance(error, UserError):
                _log.error("%s", line)
            return end("failed", line)
        done = hearing.done
        size = (self.jobs.place(job.id) / RESULT).stat().st_size
        return end("done", frames=done.get("frames", 0), seconds=done.get("seconds", 0.0), bytes=size)

    def _rest(self, job: Job, error: Exception, took: float) -> None:
        """Gives a job back that this machine can't go on with now; its clips stay, and so does its turn."""
        line = f"server: can't go on now ({reason_of(error)}); the video is gone on with later"
        _log.error("%s", line)
        self._resting = time.monotonic() + SECONDS_UNTIL_ROOM
        self.jobs.store.release(job.id, self.name, line, took=took)

    def render(self, request: AnimationRequest, listen: Listener) -> None:
        """Makes one video. A subclass may have it made elsewhere: what `listen` raises must end the making.

        Raises UserError for what is wrong with the job.
        """
        render(request, self.pipeline, listen)

    def _animate(self, request: AnimationRequest, hearing: "_Hearing") -> None:
        if request.output.exists():  # killed between the finished video and the word of it
            hearing.done = _facts_of(request)
            return
        self.render(request, hearing)


def render(request: AnimationRequest, pipeline: "Hallo3Pipeline", listen: Listener) -> None:
    """Makes a video with a loaded model; a half-made one is gone on with, or made anew where that can't be."""
    try:
        animate(replace(request, resume=begun(request.output)), pipeline=pipeline, listen=listen)
    except CannotResume:  # left by another version of hallo3, or damaged with the disk
        animate(replace(request, overwrite=True), pipeline=pipeline, listen=listen)


def _facts_of(request: AnimationRequest) -> Event:
    from ..media.video import probe

    info = probe(request.output)
    return {"frames": info.frames, "seconds": info.frames / float(info.fps)}


class _Cancelled(Exception):
    """Whoever sent the job wants it no more."""


class _Stopped(Exception):
    """The worker is to stop."""


class _Taken(Exception):
    """Another worker has the job: this one was silent for too long."""


class _Hearing:
    """Listens to `animate`: keeps its events, ends it when it is to end, and gives signs of life while it lasts."""

    def __init__(self, jobs: JobQueue, job: Job, worker: str, stopping: threading.Event) -> None:
        self.done: Event = {}
        self._jobs, self._job, self._worker, self._stopping = jobs, job, worker, stopping
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._give_signs, daemon=True)
        self._noted = 0.0

    def __enter__(self) -> None:
        self._pulse.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pulse.join()

    def __call__(self, event: Event) -> None:
        if event["event"] == "done":  # the table says so itself, with the state
            self.done = event
            return
        if self._stopping.is_set():
            raise _Stopped
        wanted = self._jobs.store.alive(self._job.id, self._worker)
        if wanted == "cancel":
            raise _Cancelled
        if wanted == "leave":
            raise _Taken
        now = time.monotonic()
        if event["event"] == "step":
            if now - self._noted < SECONDS_BETWEEN_STEPS:
                return
            self._noted = now
        self._jobs.store.note(self._job.id, self._worker, event)

    def _give_signs(self) -> None:
        while not self._ended.wait(LEASE / 3):
            try:
                self._jobs.store.alive(self._job.id, self._worker)
            except sqlite3.OperationalError as error:  # perhaps only now: without another the job would be taken over
                _log.error("server: can't say now that its job is being made (%s)", error)
