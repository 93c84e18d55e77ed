"""The queue and its workers without HTTP: who takes a job, what a death leaves, and two workers on one folder."""

import contextlib
import errno
import io
import os
import re
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hallo3.animation import animate
from hallo3.errors import UserError
from hallo3.media.video import read_video
from hallo3.serving import worker as worker_of
from hallo3.serving.jobs import Busy, JobQueue, Limits, UnknownJob, shown_name
from hallo3.serving.store import LEASE, MAX_CLAIMS, Job
from hallo3.serving.worker import Worker
from hallo3.settings import Settings
from waiting import until


def open_queue(folder: Path, bundle: Path, **limits: Any) -> JobQueue:
    return JobQueue(folder / "data", Limits(**limits), common={"bundle": str(bundle)})


def submit(jobs: JobQueue, sent: dict[str, bytes], **settings: Any) -> Job:
    wanted = Settings(no_face=True, **settings)
    return jobs.submit(io.BytesIO(sent["portrait"]), io.BytesIO(sent["speech"]), wanted, rights=True)


class Died(BaseException):
    """Stands for the death of a process: nothing behind it catches it."""


def test_a_job_whose_worker_died_goes_on_at_its_last_clip(
    tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first clip is on the disk; the frames are those of an uninterrupted run."""
    jobs = open_queue(tmp_path, tiny_bundle)
    job = submit(jobs, sent, seed=3)
    note = jobs.store.note

    def note_and_die(name: str, worker: str, event: Any) -> None:
        note(name, worker, event)
        if event["event"] == "clip":
            raise Died

    monkeypatch.setattr(jobs.store, "note", note_and_die)
    with pytest.raises(Died):
        Worker(jobs, tiny_model).work_once()
    monkeypatch.undo()
    assert jobs.get(job.id).state == "running" and jobs.partial(job.id) is not None
    jobs.close()

    jobs = open_queue(tmp_path, tiny_bundle)
    assert not Worker(jobs, tiny_model, name="another").work_once(), "its lease has not run out"
    assert Worker(jobs, tiny_model).work_once()
    assert jobs.get(job.id).state == "done"
    starts = [event for _, event in jobs.events(job.id) if event["event"] == "start"]
    assert [event["done_already"] for event in starts] == [0, 1]
    for name in ("portrait", "speech"):
        (tmp_path / name).write_bytes(sent[name])
    request = Settings(no_face=True, seed=3).request(
        tmp_path / "portrait", tmp_path / "speech", tmp_path / "whole.mp4", bundle=str(tiny_bundle)
    )
    animate(request, pipeline=tiny_model)
    assert (read_video(jobs.result(job.id)).frames == read_video(tmp_path / "whole.mp4").frames).all()


def test_one_model_makes_all_jobs(
    tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the bundle was loaded again")

    monkeypatch.setattr("hallo3.animation.load", load)
    monkeypatch.setattr("hallo3.bundles.layout.load_pipeline", load)
    jobs = open_queue(tmp_path, tiny_bundle)
    made = [submit(jobs, sent, steps=1), submit(jobs, sent, seed=1, quality="draft")]
    worker = Worker(jobs, tiny_model)
    assert worker.work_once() and worker.work_once()
    assert [jobs.get(job.id).state for job in made] == ["done", "done"]


def test_claims(tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = open_queue(tmp_path, tiny_bundle)
    first, second = submit(jobs, sent), submit(jobs, sent)
    store = jobs.store
    claimed = [store.claim("a"), store.claim("b"), store.claim("c")]
    assert [job.id if job else None for job in claimed] == [first.id, second.id, None]
    again = store.claim("a")
    assert again is not None and again.id == first.id, "after a restart, its own first"
    late = time.time() + LEASE + 1
    monkeypatch.setattr("hallo3.serving.store.time.time", lambda: late)
    assert store.alive(second.id, "b") == "go on"
    taken = store.claim("c")
    assert taken is not None and taken.id == first.id
    assert store.alive(first.id, "a") == "leave" and store.alive(first.id, "c") == "go on"
    assert not store.finish(first.id, "a", "done"), "it is another's"
    store.note(first.id, "a", {"event": "notice", "message": "late"})
    assert all(event["event"] != "notice" for _, event in jobs.events(first.id))
    store.release(first.id, "c")
    for _ in range(MAX_CLAIMS):
        found = store.claim("c")
        assert found is not None and found.id == first.id
    assert store.claim("c") is None
    failed = jobs.get(first.id)
    assert failed.state == "failed" and "ended 3 times" in (failed.error or "")


def test_a_clock_that_is_set_while_a_job_is_made(
    tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day back, then a year on: the job is made once, and what is told of durations has nothing to do with it."""
    jobs, moved, real = open_queue(tmp_path, tiny_bundle), [0.0, -86_400.0, 365 * 86_400.0], time.time
    monkeypatch.setattr("hallo3.serving.store.time.time", lambda: real() + moved[0])
    job, began = submit(jobs, sent), time.monotonic()
    hook = tiny_model.transformer.register_forward_pre_hook(lambda *_: moved.append(moved.pop(0)))
    assert Worker(jobs, tiny_model).work_once()
    hook.remove()
    made = jobs.store.get(job.id) or jobs.store.unsettled()[0]
    assert made.state == "done" and 0 < (made.took or 0) <= time.monotonic() - began
    assert jobs.store.usual_seconds() == made.took
    kinds = [event["event"] for _, event in jobs.events(job.id)]
    assert kinds.count("start") == kinds.count("done") == 1


def test_a_table_of_the_version_before_is_used(tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes]) -> None:
    jobs = open_queue(tmp_path, tiny_bundle)
    job = submit(jobs, sent)
    jobs.close()
    with sqlite3.connect(tmp_path / "data" / "jobs.sqlite") as table:
        table.execute("ALTER TABLE jobs DROP COLUMN took")
        table.execute("PRAGMA user_version = 1")
    jobs = open_queue(tmp_path, tiny_bundle)
    assert jobs.get(job.id) == job and jobs.store.claim("a") is not None
    assert jobs.store.finish(job.id, "a", "done", took=3.0) and jobs.store.usual_seconds() == 3.0


def test_two_workers_share_a_folder(tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes]) -> None:
    """Each with a table of its own, as in two processes; every job is made once."""
    queues = [open_queue(tmp_path, tiny_bundle, per_minute=100) for _ in range(2)]
    ended: list[str] = []
    model = threading.Lock()

    class OneAtATime(Worker):
        """The two have one model here, which only one may use at a time."""

        def _animate(self, *arguments: Any) -> None:
            with model:
                super()._animate(*arguments)

    workers = [
        OneAtATime(jobs, tiny_model, name=name, on_end=lambda job, _: ended.append(job.id))
        for jobs, name in zip(queues, "ab", strict=True)
    ]
    made = [submit(queues[0], sent, seed=seed).id for seed in range(4)]
    for worker in workers:
        worker.start()
    until(lambda: len(ended) == 4)
    for worker in workers:
        worker.stop()
        assert not worker.is_working
    assert sorted(ended) == sorted(made) and {queues[1].get(name).state for name in made} == {"done"}


def test_stopping_gives_the_job_back(
    tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes]
) -> None:
    jobs = open_queue(tmp_path, tiny_bundle)
    job, worker = submit(jobs, sent, steps=1000), Worker(jobs, tiny_model)
    worker.start()
    until(lambda: (jobs.get(job.id).progress or {}).get("event") == "step")
    worker.stop(180)
    assert not worker.is_working and jobs.get(job.id).state == "queued"


def test_a_full_disk_is_waited_out(
    tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses from the second clip on: the job keeps the first and its turn, and ends when there is room."""
    monkeypatch.setattr("hallo3.serving.worker.SECONDS_UNTIL_ROOM", 0.1)
    jobs, fsync, room = open_queue(tmp_path, tiny_bundle), os.fsync, threading.Event()
    job = submit(jobs, sent, seed=3)

    def fsync_on_a_full_disk(file: int) -> None:
        if jobs.written(job.id) is not None and not room.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", fsync_on_a_full_disk)
    worker = Worker(jobs, tiny_model)
    worker.start()
    # The one that is seen: it is tried again soon, and then has no error for a while.
    given_back = until(lambda: seen if (seen := jobs.get(job.id)).error else None)
    assert given_back.state in ("queued", "running") and "disk is full" in (given_back.error or "")
    assert "--resume" not in (given_back.error or "") and jobs.partial(job.id) is not None
    room.set()
    until(lambda: jobs.get(job.id).is_over)
    worker.stop()
    ended = jobs.get(job.id)
    assert (ended.state, ended.error, ended.frames) == ("done", None, 10)
    starts = [event["done_already"] for _, event in jobs.events(job.id) if event["event"] == "start"]
    assert starts[0] == 0 and set(starts[1:]) == {1}


def test_a_worker_outlives_a_table_that_refuses(
    tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Signs of life that can't be written come again: else a step of half a minute would lose the job."""
    monkeypatch.setattr("hallo3.serving.worker.LEASE", 0.06)
    jobs = open_queue(tmp_path, tiny_bundle)
    job = submit(jobs, sent)
    table = jobs.store._connection
    jobs.store.claim("a")
    table.execute("UPDATE jobs SET lease = 0")
    table.execute("PRAGMA query_only = 1")
    with worker_of._Hearing(jobs, job, "a", threading.Event()):
        until(lambda: "can't say now" in caplog.text)
        assert table.execute("SELECT lease FROM jobs").fetchone()[0] == 0
        table.execute("PRAGMA query_only = 0")
        until(lambda: table.execute("SELECT lease FROM jobs").fetchone()[0] > 0)


def test_what_a_left_state_of_another_version_costs(
    tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes]
) -> None:
    """Only the start: the job is made anew, not failed."""
    jobs = open_queue(tmp_path, tiny_bundle)
    job = submit(jobs, sent)
    for name in ("result.mp4.part", "result.mp4.part.state"):
        (jobs.place(job.id) / name).write_bytes(b"of another version")
    assert Worker(jobs, tiny_model).work_once() and jobs.get(job.id).state == "done"


def test_a_finished_video_without_the_word_of_it(
    tmp_path: Path, tiny_bundle: Path, tiny_model: Any, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = open_queue(tmp_path, tiny_bundle)
    job = submit(jobs, sent)

    def die(*_: Any, **__: Any) -> None:
        raise Died

    monkeypatch.setattr(jobs.store, "finish", die)
    with pytest.raises(Died):
        Worker(jobs, tiny_model).work_once()
    monkeypatch.undo()
    written = (jobs.place(job.id) / "result.mp4").stat().st_mtime_ns
    assert Worker(jobs, tiny_model).work_once()
    found = jobs.get(job.id)
    assert (found.state, found.frames, found.seconds) == ("done", 10, 0.4)
    assert jobs.result(job.id).stat().st_mtime_ns == written and found.bytes == jobs.result(job.id).stat().st_size


def test_the_limit_of_waiting_holds_between_asking_and_adding(
    tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes]
) -> None:
    jobs = open_queue(tmp_path, tiny_bundle, waiting=1)
    jobs.admit("one")
    jobs.admit("two")
    submit(jobs, sent)
    with pytest.raises(Busy):
        submit(jobs, sent)
    assert len(list((tmp_path / "data" / "jobs").iterdir())) == 1


def test_what_was_never_wholly_submitted_goes(tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes]) -> None:
    jobs = open_queue(tmp_path, tiny_bundle)
    job = submit(jobs, sent)
    for name, age in (("fresh", 0), ("old", 7200)):
        (jobs.place(name)).mkdir()
        os.utime(jobs.place(name), (time.time() - age,) * 2)
    os.utime(jobs.place(job.id), (time.time() - 7200,) * 2)
    jobs.tidy()
    assert {path.name for path in (tmp_path / "data" / "jobs").iterdir()} == {"fresh", job.id}


@pytest.mark.skipif(os.name != "posix", reason="rights as POSIX has them")
@pytest.mark.parametrize("older", [False, True])
def test_only_the_owner_reads_the_jobs(
    tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes], *, older: bool
) -> None:
    """Neither names nor prompts nor files, under the mask that most systems have; nor where it was otherwise before."""
    before = os.umask(0o022)
    try:
        if older:
            open_queue(tmp_path, tiny_bundle)  # left open: its journal stays
            for path in [tmp_path / "data" / "jobs", *(tmp_path / "data").glob("jobs.sqlite*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
        jobs = open_queue(tmp_path, tiny_bundle)
        submit(jobs, sent, prompt="what nobody else should know")
        found = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "data").glob("*")}
        assert found == dict.fromkeys(("jobs", "jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"), 0)
        assert older or not (tmp_path / "data").stat().st_mode & 0o077
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("anna's <b>é.png", "anna's <b>é.png"),
        ("/home/anna/-x.png", "-x.png"),
        ("a\nb\x1b[31m\u202egnp.\0", "a_b_[31m_gnp._"),
        ("\ud800.png", "_.png"),
        ("w" * 999, "w" * 255),
        ("/", ""),
    ],
)
def test_names_are_shown_as_they_were_given_in_one_line(given: str, shown: str) -> None:
    assert shown_name(given) == shown


def test_a_table_that_is_none(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "jobs.sqlite").write_text("no table" * 1000)
    with pytest.raises(UserError, match="no table of jobs"):
        open_queue(tmp_path, tiny_bundle)
    (tmp_path / "data" / "jobs.sqlite").unlink()
    with sqlite3.connect(tmp_path / "data" / "jobs.sqlite") as table:
        table.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="another version"):
        open_queue(tmp_path, tiny_bundle)
    with pytest.raises(UnknownJob):
        JobQueue(tmp_path / "other").get("x")


def test_the_example_of_the_documents(tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes], capsys: Any) -> None:
    """As it is written, but for the bundle, which is the tiny one here, and a face box, as noise has no face."""
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for name, data in (("portrait.png", sent["portrait"]), ("speech.wav", sent["speech"])):
        (tmp_path / name).write_bytes(data)
    for old, new in (
        ('"embedded"', repr(str(tiny_bundle))),
        ("rights=True", "rights=True, settings=Settings(no_face=True)"),
    ):
        assert old in example
        example = example.replace(old, new)
    with contextlib.chdir(tmp_path):
        exec(example, {"Settings": Settings})
    assert capsys.readouterr().out.startswith("done ")
