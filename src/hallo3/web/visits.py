"""Visits: which browser a job belongs to, and that all of a visit goes when it is over."""

import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..serving.jobs import JobQueue, UnknownJob
from ..serving.store import Job

MOST = 1000  # visits at a time; beyond that those that have made nothing are forgotten, the idlest first
MOST_UPLOADS = 16  # of a visit, before the newest
UNUSED = 60.0  # seconds after which an upload is deleted that no visit has come to use


@dataclass(eq=False)
class Visit:
    """One browser.

    name: only it knows that. seen: when it last asked. jobs, uploads: its own, the newest last. records: what finished
    videos say of themselves, by job. rights: whether the visitor has stated to have them. beginning: held while a video
    is begun.
    """

    name: str
    seen: float
    jobs: list[str] = field(default_factory=list)
    uploads: list[Path] = field(default_factory=list)
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    rights: bool = False
    beginning: threading.Lock = field(default_factory=threading.Lock)


class Visits:
    """Who is there.

    jobs: the queue. uploads: the folder where what browsers send arrives. keep_seconds: how long after its last sign of
    life a visit is over; its jobs are then cancelled, and its results and uploads deleted.
    """

    def __init__(self, jobs: JobQueue, uploads: Path, keep_seconds: float) -> None:
        self.jobs, self.uploads, self.keep_seconds = jobs, uploads, keep_seconds
        self._lock = threading.Lock()
        self._visits: dict[str, Visit] = {}
        self._leaving: list[str] = []
        self._kept = frozenset[Path]()

    def keep_uploads(self) -> None:
        """What lies among the uploads now is the page's own and stays."""
        self._kept = frozenset(self.uploads.rglob("*"))

    def begin(self) -> Visit:
        """A new visit."""
        visit = Visit(secrets.token_urlsafe(18), time.monotonic())
        with self._lock:
            if len(self._visits) >= MOST:
                idle = min((one for one in self._visits.values() if not one.jobs), key=_seen, default=None)
                if idle is not None:
                    del self._visits[idle.name]
            self._visits[visit.name] = visit
        return visit

    def get(self, name: str | None) -> Visit | None:
        """The visit of this name, which has just given a sign of life; None if there is none, or no more."""
        with self._lock:
            visit = self._visits.get(name or "")
            if visit is not None:
                visit.seen = time.monotonic()
            return visit

    def use(self, visit: Visit, upload: Path) -> None:
        """Keeps an upload as long as the visit lasts, or until the visitor has sent some more."""
        with self._lock:
            others = [path for path in visit.uploads if path != upload]
            visit.uploads = [*others[-MOST_UPLOADS:], upload]

    def keep(self, visit: Visit, job: str) -> None:
        """Makes a job the visit's own; where the visit has ended meanwhile, the job goes as its others went."""
        with self._lock:
            there = self._visits.get(visit.name) is visit
            (visit.jobs if there else self._leaving).append(job)

    def jobs_of(self, visit: Visit) -> list[Job]:
        """A visit's jobs, the newest first."""
        found = []
        for name in reversed(visit.jobs):
            try:
                found.append(self.jobs.get(name))
            except UnknownJob:  # expired
                continue
        return found

    def stored(self) -> int:
        """Bytes of all uploads, jobs and results."""
        return self.jobs.store.stored() + sum(found.st_size for _, found in self._files())

    def clear(self, visit: Visit) -> None:
        """Cancels and deletes all that a visit has made."""
        with self._lock:
            self._leaving += visit.jobs
            visit.jobs.clear()
            visit.records.clear()
        self._drop()

    def tidy(self) -> None:
        """Ends the visits that are over, and deletes what nobody uses any more."""
        over = time.monotonic() - self.keep_seconds
        with self._lock:
            for visit in [one for one in self._visits.values() if one.seen < over]:
                del self._visits[visit.name]
                self._leaving += visit.jobs
            used = self._kept.union(*(visit.uploads for visit in self._visits.values()))
        self._drop()
        for path, found in self._files():
            if path not in used and found.st_mtime < time.time() - UNUSED:
                path.unlink(missing_ok=True)

    def _drop(self) -> None:
        """Deletes the jobs that nobody is there for; one that is being made, when it has stopped.

        Not under the lock: every answer of the page takes it, and table and disk may be slow.
        """
        with self._lock:
            leaving, self._leaving = self._leaving, []
        left = list(leaving)
        try:
            for name in leaving:
                self.jobs.store.cancel(name)
                if self.jobs.forget(name):
                    left.remove(name)
        finally:
            with self._lock:
                self._leaving += left

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every upload, and its size and time. Gradio moves them when they have come: one may be gone at any moment."""
        for path in list(self.uploads.rglob("*")):
            with suppress(FileNotFoundError):
                found = path.stat()
                if stat.S_ISREG(found.st_mode) and path.name != "hash_seed.txt":
                    yield path, found


def _seen(visit: Visit) -> float:
    return visit.seen
