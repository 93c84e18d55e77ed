"""The jobs' table, in SQLite: what survives a restart, and what keeps several workers from taking the same job."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

VERSION = 2
ENDED = ("done", "failed", "cancelled")
LEASE = 30.0  # seconds without a sign of life after which another worker takes a job over
MAX_CLAIMS = 3  # times that a job may take its worker down with it between two clips

_TABLES = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, settings TEXT NOT NULL, portrait TEXT NOT NULL, speech TEXT NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, expires REAL, error TEXT, progress TEXT,
    frames INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0, bytes INTEGER NOT NULL,
    cancel INTEGER NOT NULL DEFAULT 0, worker TEXT, lease REAL, claims INTEGER NOT NULL DEFAULT 0, took REAL
);
CREATE INDEX jobs_state ON jobs (state, created);
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX events_job ON events (job, seq);
"""


@dataclass(frozen=True)
class Job:
    """One job as the table has it.

    state: `queued`, `running`, `done`, `failed` or `cancelled`. settings: see `hallo3.settings.Settings`. portrait,
    speech: what their sender calls them. created, started, ended, expires: seconds since 1970. error: one line; of a
    job that waits, why it was given back. progress: the newest of the events `start`, `step` and `clip`. frames,
    seconds: of the result. bytes: that it takes on the disk. took: seconds that workers have spent on it, by a clock
    that nobody sets.
    """

    id: str
    state: str
    settings: dict[str, Any]
    portrait: str
    speech: str
    created: float
    started: float | None
    ended: float | None
    expires: float | None
    error: str | None
    progress: dict[str, Any] | None
    frames: int
    seconds: float
    bytes: int
    took: float | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ENDED


_COLUMNS = ", ".join(Job.__dataclass_fields__)


class Store:
    """The table of jobs in one file, for all threads and processes that share it.

    path: the file; made if need be, for its owner alone: who reads a job's name may fetch its result. Times are seconds
    since 1970.
    Raises UserError for a file of another version, or one that is no table of jobs; OSError where it can't be made.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):  # new ones are as the first
            if file.exists():
                keep_from_others(file)
        try:
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")  # an accepted job outlives a power cut
            self._make(path)
        except sqlite3.Error as error:
            raise UserError(f"{path}: is no table of jobs that can be opened ({error}); move it away") from None

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _make(self, path: Path) -> None:
        with self._writing() as table:
            found = table.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                for statement in _TABLES.split(";"):
                    table.execute(statement)
                table.execute(f"PRAGMA user_version = {VERSION}")
            elif found == 1:
                table.execute("ALTER TABLE jobs ADD COLUMN took REAL")
                table.execute(f"PRAGMA user_version = {VERSION}")
            elif found != VERSION:
                raise UserError(f"{path}: is of another version of hallo3; move it away, or use another --data")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One change: wholly or not at all, and no other meanwhile."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # on a full disk SQLite has ended it itself
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, question: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(question, values).fetchall()

    # ------------------------------------------------------------------------------------------------- what is asked

    def get(self, job: str) -> Job | None:
        """The job of this name, unless it has expired."""
        asked = f"SELECT {_COLUMNS} FROM jobs WHERE id = ? AND (expires IS NULL OR expires > ?)"
        rows = self._rows(asked, job, time.time())
        return _job(rows[0]) if rows else None

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        found = {row["state"]: row["n"] for row in self._rows("SELECT state, count(*) AS n FROM jobs GROUP BY state")}
        return {state: found.get(state, 0) for state in ("queued", "running", *ENDED)}

    def ahead(self, job: Job) -> int:
        """How many waiting jobs come before this one."""
        asked = "SELECT count(*) AS n FROM jobs WHERE state = 'queued' AND (created, id) < (?, ?)"
        return int(self._rows(asked, job.created, job.id)[0]["n"])

    def stored(self) -> int:
        """Bytes of all jobs' files, as far as they are known."""
        return int(self._rows("SELECT coalesce(sum(bytes), 0) AS n FROM jobs")[0]["n"])

    def usual_seconds(self) -> float | None:
        """How long the last ten jobs that were made took, on average."""
        last = "SELECT took FROM jobs WHERE state = 'done' ORDER BY rowid DESC LIMIT 10"
        found = self._rows(f"SELECT avg(took) AS mean FROM ({last})")[0]["mean"]
        return None if found is None else float(found)

    def events(self, job: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
        """A job's events with a number greater than `after`, in order. Of sampling steps only the newest is kept."""
        rows = self._rows("SELECT seq, text FROM events WHERE job = ? AND seq > ? ORDER BY seq", job, after)
        return [(row["seq"], json.loads(row["text"])) for row in rows]

    # ------------------------------------------------------------------------------------------------ what is changed

    def add(self, job: Job, *, most_waiting: int) -> bool:
        """Puts a job at the end of the queue; False if so many are waiting already."""
        with self._writing() as table:
            waiting = table.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]
            if waiting >= most_waiting:
                return False
            table.execute(
                "INSERT INTO jobs (id, state, settings, portrait, speech, created, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job.id, "queued", json.dumps(job.settings), job.portrait, job.speech, job.created, job.bytes),
            )
            _note(table, job.id, {"event": "queued"})
        return True

    def claim(self, worker: str) -> Job | None:
        """A worker's next job: one that it had when it died, one whose worker is gone, else the oldest waiting."""
        now = time.time()
        with self._writing() as table:
            while True:
                row = table.execute(
                    "SELECT id, claims, cancel FROM jobs WHERE state = 'queued' "
                    "OR (state = 'running' AND (worker = ? OR lease < ?)) "
                    "ORDER BY state = 'queued', created, id LIMIT 1",
                    (worker, now),
                ).fetchone()
                if row is None:
                    return None
                if row["cancel"]:
                    _end(table, row["id"], "cancelled", None)
                elif row["claims"] >= MAX_CLAIMS:
                    _end(
                        table,
                        row["id"],
                        "failed",
                        f"the worker ended {MAX_CLAIMS} times on this job; try a shorter one",
                    )
                else:
                    break
            table.execute(
                "UPDATE jobs SET state = 'running', worker = ?, lease = ?, claims = claims + 1, "
                "error = NULL, started = coalesce(started, ?) WHERE id = ?",
                (worker, now + LEASE, now, row["id"]),
            )
            return _job(table.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (row["id"],)).fetchone())

    def alive(self, job: str, worker: str) -> str:
        """A sign of life. Returns what the worker should do: `go on`, `cancel`, or `leave` (it is another's now)."""
        with self._writing() as table:
            row = table.execute(
                "SELECT cancel FROM jobs WHERE id = ? AND state = 'running' AND worker = ?", (job, worker)
            ).fetchone()
            if row is None:
                return "leave"
            table.execute("UPDATE jobs SET lease = ? WHERE id = ?", (time.time() + LEASE, job))
            return "cancel" if row["cancel"] else "go on"

    def note(self, job: str, worker: str, event: Mapping[str, Any]) -> None:
        """Keeps an event of a job, if it is still this worker's."""
        with self._writing() as table:
            if not _owned(table, job, worker):
                return
            kind = event["event"]
            if kind == "step":
                table.execute("DELETE FROM events WHERE job = ? AND kind = 'step'", (job,))
            _note(table, job, event)
            if kind in ("start", "step", "clip"):
                table.execute("UPDATE jobs SET progress = ? WHERE id = ?", (json.dumps(dict(event)), job))
            if kind == "clip":  # it gets on: what comes later is not this clip's fault
                table.execute("UPDATE jobs SET claims = 0 WHERE id = ?", (job,))

    def finish(
        self, job: str, worker: str, state: str, error: str | None = None, *, took: float = 0.0, **facts: Any
    ) -> bool:
        """Ends a job, if it is still this worker's. took: seconds that this worker has spent on it. facts: columns
        `frames`, `seconds`, `bytes`.
        """
        with self._writing() as table:
            if not _owned(table, job, worker):
                return False
            _spent(table, job, took)
            _end(table, job, state, error)
            for name, value in facts.items():
                table.execute(f"UPDATE jobs SET {name} = ? WHERE id = ?", (value, job))
        return True

    def release(self, job: str, worker: str, why: str | None = None, *, took: float = 0.0) -> None:
        """Gives a job back, to be gone on with: the worker can't, and not by the job's fault. why: one line."""
        with self._writing() as table:
            if _owned(table, job, worker):
                _spent(table, job, took)
                given_back = "UPDATE jobs SET state = 'queued', worker = NULL, claims = 0, error = ? WHERE id = ?"
                table.execute(given_back, (why, job))

    def cancel(self, job: str) -> None:
        """Cancels a waiting job, or tells the worker of a running one; of no effect on one that is over."""
        with self._writing() as table:
            row = table.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is not None and row["state"] == "queued":
                _end(table, job, "cancelled", None)
            table.execute("UPDATE jobs SET cancel = 1 WHERE id = ? AND state = 'running'", (job,))

    def keep_until(self, job: str, expires: float, size: int) -> None:
        """When a job's record and result are to be forgotten, and what they take until then."""
        with self._writing() as table:
            table.execute("UPDATE jobs SET expires = ?, bytes = ? WHERE id = ?", (expires, size, job))

    def unsettled(self) -> list[Job]:
        """Jobs that are over and of which nobody has settled yet how long they are kept."""
        ended = ", ".join(f"'{state}'" for state in ENDED)
        rows = self._rows(f"SELECT {_COLUMNS} FROM jobs WHERE state IN ({ended}) AND expires IS NULL")
        return [_job(row) for row in rows]

    def expired(self, before: float) -> list[str]:
        """Names of the jobs that have expired before this time."""
        return [row["id"] for row in self._rows("SELECT id FROM jobs WHERE expires < ?", before)]

    def forget(self, job: str) -> None:
        """Deletes a job and its events."""
        with self._writing() as table:
            table.execute("DELETE FROM events WHERE job = ?", (job,))
            table.execute("DELETE FROM jobs WHERE id = ?", (job,))


def keep_from_others(path: Path) -> None:
    """Takes the rights to a file or folder from all but its owner."""
    rights = path.stat().st_mode
    if os.name == "posix" and rights & 0o077:
        path.chmod(rights & 0o700)


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["settings"] = json.loads(values["settings"])
    values["progress"] = None if values["progress"] is None else json.loads(values["progress"])
    return Job(**values)


def _owned(table: sqlite3.Connection, job: str, worker: str) -> bool:
    asked = "SELECT 1 FROM jobs WHERE id = ? AND worker = ? AND state = 'running'"
    return table.execute(asked, (job, worker)).fetchone() is not None


def _spent(table: sqlite3.Connection, job: str, took: float) -> None:
    table.execute("UPDATE jobs SET took = coalesce(took, 0) + ? WHERE id = ?", (took, job))


def _note(table: sqlite3.Connection, job: str, event: Mapping[str, Any]) -> None:
    text = json.dumps(dict(event))
    table.execute("INSERT INTO events (job, kind, text) VALUES (?, ?, ?)", (job, event["event"], text))


def _end(table: sqlite3.Connection, job: str, state: str, error: str | None) -> None:
    table.execute(
        "UPDATE jobs SET state = ?, error = ?, ended = ?, worker = NULL, lease = NULL WHERE id = ?",
        (state, error, time.time(), job),
    )
    _note(table, job, {"event": state, **({"error": error} if error else {})})
