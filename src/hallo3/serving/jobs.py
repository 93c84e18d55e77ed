"""The queue of jobs: what comes in is checked and kept within limits, what goes out is found again, and expires."""

import json
import math
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..animation import AnimationRequest, check_settings
from ..consent import STATEMENT
from ..errors import UserError, disk_is_full, users_to_mend
from ..media.images import read_image
from ..media.progress import Written, read_written
from ..media.sound import read_speech
from ..settings import Settings
from .store import Job, Store, keep_from_others

GRACE = 60.0  # seconds that an expired result's file outlives its record, for those who are just fetching it
_BLOCK = 1 << 20
_DECODED_AT_ONCE = 2  # uploads: a picture may take 150 MB while it is looked at


@dataclass(frozen=True)
class Limits:
    """What a queue takes.

    waiting: jobs that wait, besides those being made. upload_bytes: of a portrait or a recording. pixels: of a
    portrait. seconds: of speech. stored_bytes: of all jobs together; above that none is taken. per_minute: jobs of one
    client. keep_seconds: how long a finished job and its result are kept.
    """

    waiting: int = 16
    upload_bytes: int = 50_000_000
    pixels: int = 50_000_000
    seconds: float = 600.0
    stored_bytes: int = 10_000_000_000
    per_minute: int = 30
    keep_seconds: float = 86_400.0

    @classmethod
    def asked(
        cls, queue: int, max_upload: float, max_seconds: float, max_stored: float, rate: int, keep_seconds: float
    ) -> "Limits":
        """As the command line has them: max_upload in MB, max_stored in GB."""
        return cls(
            waiting=queue,
            upload_bytes=round(max_upload * 1e6),
            seconds=max_seconds,
            stored_bytes=round(max_stored * 1e9),
            per_minute=rate,
            keep_seconds=keep_seconds,
        )


class Busy(UserError):
    """Not now: the queue, the disk or a client's share is full. retry_after: seconds after which to try again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))


class UnknownJob(UserError):
    """There is no job of this name, or no more."""


class NotReady(UserError):
    """The job has no result, or none yet."""


class JobQueue:
    """Jobs in a folder: submitted, looked at, cancelled and fetched by anyone who holds it, made by `Worker`s.

    folder: where the table and the files are, which their owner alone may read; made if need be. limits: what is taken.
    common: fields of `AnimationRequest` that all jobs share: `bundle`, the signer's `certificate` and `private_key`.

    For any number of threads; several processes may open the same folder. Nothing here loads a model.
    Raises UserError for a folder that can't be used.
    """

    def __init__(self, folder: Path, limits: Limits | None = None, *, common: Mapping[str, Any] | None = None) -> None:
        self.folder, self.limits, self.common = folder, limits or Limits(), dict(common or {})
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "jobs").mkdir(mode=0o700, exist_ok=True)
            keep_from_others(folder / "jobs")  # made by an older version, perhaps
            self.store = Store(folder / "jobs.sqlite")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"{folder}: cannot be written ({reason}); choose another --data") from None
        self._decoding = threading.Semaphore(_DECODED_AT_ONCE)
        self._rates = Rates(self.limits.per_minute, "jobs")

    def close(self) -> None:
        self.store.close()

    # -------------------------------------------------------------------------------------------------------- coming in

    def admit(self, client: str) -> None:
        """Counts one attempt of a client to submit, before anything is read. Raises Busy if there is no room."""
        self._rates.count(client)
        if self.store.counts()["queued"] >= self.limits.waiting:
            raise self._full()
        if self.store.stored() >= self.limits.stored_bytes:
            raise Busy("storage: the server keeps as much as it may; try again when older results have expired", 600)

    def submit(
        self,
        portrait: BinaryIO,
        speech: BinaryIO,
        settings: Settings | None = None,
        *,
        rights: bool,
        names: tuple[str, str] = ("", ""),
    ) -> Job:
        """Checks and queues one job; returns it. Call `admit` first.

        portrait, speech: open files, read once. names: what their sender calls them, for messages. rights: whether the
        sender makes `hallo3.consent.STATEMENT` for this job.

        Both files are decoded here, within the limits, so that what waits can be made. Raises UserError for what the
        sender can mend, and Busy if the queue has filled up meanwhile.
        """
        if not rights:
            raise UserError(f'rights: nothing is made before you state: "{STATEMENT}"; send rights=true to state it')
        settings = settings or Settings()
        name = secrets.token_urlsafe(18)  # who knows it may see the job: it must not be guessed
        place = self.place(name)
        shown = tuple(shown_name(given) or what for given, what in zip(names, INPUTS, strict=True))
        place.mkdir(mode=0o700)
        try:
            size = sum(
                self._keep(file, place / what, shown_as)
                for file, what, shown_as in zip((portrait, speech), INPUTS, shown, strict=True)
            )
            job = _new_job(name, settings, shown, size)
            self._check(job)
            if not self.store.add(job, most_waiting=self.limits.waiting):
                raise self._full()
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return job

    def _keep(self, file: BinaryIO, path: Path, name: str) -> int:
        limit, size = self.limits.upload_bytes, 0
        with open(path, "xb") as kept:
            while block := file.read(_BLOCK):
                size += len(block)
                if size > limit:
                    raise UserError(f"{name}: is larger than {limit / 1e6:g} MB, the limit; make it smaller")
                kept.write(block)
            kept.flush()
            os.fsync(kept.fileno())
        return size

    def _check(self, job: Job) -> None:
        request = self.request(job)
        try:
            check_settings(request)
            with self._decoding:
                read_image(request.portrait, max_pixels=self.limits.pixels)
                read_speech(request.speech, max_seconds=self.limits.seconds)
        except UserError as error:
            raise UserError(self.in_senders_words(str(error), job)) from None

    def _full(self) -> Busy:
        usual = self.store.usual_seconds() or 10.0
        return Busy(f"queue: is full, {self.limits.waiting} jobs are waiting; try again later", usual)

    # ----------------------------------------------------------------------------------------------------- looked after

    def get(self, name: str) -> Job:
        """The job of this name. Raises UnknownJob."""
        job = self.store.get(name)
        if job is None:
            hours = self.limits.keep_seconds / 3600
            raise UnknownJob(f"job: there is none of this name; finished ones are kept for {hours:g} h")
        return job

    def events(self, name: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
        """A job's events behind number `after`, each with its number; the last is `done`, `failed` or `cancelled`.

        The events of `hallo3.animation.animate`, and `queued`.
        """
        return self.store.events(name, after)

    def cancel(self, name: str) -> Job:
        """Cancels a job: at once while it waits, within a step while it is made. One that is over stays as it is."""
        self.get(name)
        self.store.cancel(name)
        self.settle()
        return self.get(name)

    def result(self, name: str) -> Path:
        """The finished video. Raises UnknownJob, and NotReady for a job without one."""
        job = self.get(name)
        if job.state != "done":
            why = f" ({job.error})" if job.error else ""
            raise NotReady(f"job: has no result, it is {job.state}{why}; see its events")
        return self.place(name) / RESULT

    def partial(self, name: str) -> Path | None:
        """The video as far as it is made, which plays; None before the first clip and after the last."""
        path = self.place(name) / f"{RESULT}.part"
        return path if path.exists() else None

    def written(self, name: str) -> Written | None:
        """How far the video is; None before the first clip and after the last."""
        return read_written(self.place(name) / f"{RESULT}.part.state")

    # ------------------------------------------------------------------------------------------------------ for workers

    def place(self, name: str) -> Path:
        """The folder of a job's files."""
        return self.folder / "jobs" / name

    def request(self, job: Job) -> AnimationRequest:
        """What is to be made for a job."""
        place, settings = self.place(job.id), Settings.model_validate(job.settings)
        return settings.request(place / "portrait", place / "speech", place / RESULT, **self.common)

    def in_senders_words(self, message: str, job: Job) -> str:
        """A message with the sender's names of the files in place of ours."""
        place = self.place(job.id)
        for path, name in (
            (place / "portrait", job.portrait),
            (place / "speech", job.speech),
            (place / RESULT, "result"),
        ):
            message = message.replace(str(path), name)
        return message.replace(str(place), "job")

    def settle(self) -> None:
        """Clears what jobs that are over leave behind, and says until when their records and results are kept."""
        for job in self.store.unsettled():
            place = self.place(job.id)
            for path in place.glob("*"):
                if job.state != "done" or path.name != RESULT:
                    path.unlink(missing_ok=True)
            size = 0
            with suppress(FileNotFoundError):  # deleted by whoever made it, or by hand
                size = (place / RESULT).stat().st_size
            self.store.keep_until(job.id, (job.ended or time.time()) + self.limits.keep_seconds, size)

    def forget(self, name: str) -> bool:
        """Deletes a job that is over, its result too, before it expires. False for one that is not over."""
        job = self.store.get(name)
        if job is not None and not job.is_over:
            return False
        shutil.rmtree(self.place(name), ignore_errors=True)
        self.store.forget(name)
        return True

    def tidy(self) -> None:
        """Settles what is over, and deletes what has expired or was never wholly submitted."""
        self.settle()
        now = time.time()
        for name in self.store.expired(now - min(GRACE, self.limits.keep_seconds)):
            shutil.rmtree(self.place(name), ignore_errors=True)
            self.store.forget(name)
        for place in (self.folder / "jobs").iterdir():
            try:
                forgotten = place.stat().st_mtime < now - 3600
            except FileNotFoundError:
                continue
            if forgotten and self.store.get(place.name) is None and place.name not in self.store.expired(now):
                shutil.rmtree(place, ignore_errors=True)


INPUTS = ("portrait", "speech")
RESULT = "result.mp4"


def _new_job(name: str, settings: Settings, shown: tuple[str, ...], size: int) -> Job:
    values = json.loads(settings.model_dump_json())
    return Job(name, "queued", values, shown[0], shown[1], time.time(), None, None, None, None, None, 0, 0.0, size)


def shown_name(text: str) -> str:
    """A file's name as its sender calls it, in one line, to be shown; no path may be made of it. Empty without one."""
    return "".join(one if one.isprintable() else "_" for one in text.rpartition("/")[2])[:255].strip()


def reason_of(error: BaseException) -> str | None:
    """What of this machine, and not of a job, is behind an error: disk, memory, the table; None if it is neither."""
    if disk_is_full(error):
        return "its disk is full"
    if isinstance(error, sqlite3.OperationalError):  # locked by another program, or its place is gone
        return str(error)
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if not isinstance(error, UserError) and users_to_mend(error):
        return "its memory ran out"
    return None


class Rates:
    """How often each client has tried in the last minute. what: is counted, for messages."""

    def __init__(self, per_minute: int, what: str) -> None:
        self._limit, self._what = per_minute, what
        self._tried: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def count(self, client: str) -> None:
        """Counts one attempt. Raises Busy if it is one too many."""
        now = time.monotonic()
        with self._lock:
            if len(self._tried) > 10_000:  # whoever has been quiet for a minute is forgotten
                self._tried = {name: times for name, times in self._tried.items() if times[-1] > now - 60}
            times = self._tried.setdefault(client, deque())
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= self._limit:
                raise Busy(f"rate: {self._limit} {self._what} a minute are the limit; wait", times[0] + 60 - now)
            times.append(now)
