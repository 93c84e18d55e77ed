"""The queue and its workers without HTTP: who takes a job, what a death leaves, and two workers on one folder."""

import contextlib
import io
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
from hallo3.serving.jobs import Busy, JobQueue, Limits, UnknownJob
from hallo3.serving.store import LEASE, MAX_CLAIMS, Job
from hallo3.serving.worker import Worker
from hallo3.settings import Settings


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
    deadline = time.monotonic() + 120
    while len(ended) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
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
    while jobs.get(job.id).state != "running" or (jobs.get(job.id).progress or {}).get("event") != "step":
        time.sleep(0.02)
    worker.stop(60)
    assert not worker.is_working and jobs.get(job.id).state == "queued"


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
    import os

    jobs = open_queue(tmp_path, tiny_bundle)
    job = submit(jobs, sent)
    for name, age in (("fresh", 0), ("old", 7200)):
        (jobs.place(name)).mkdir()
        os.utime(jobs.place(name), (time.time() - age,) * 2)
    os.utime(jobs.place(job.id), (time.time() - 7200,) * 2)
    jobs.tidy()
    assert {path.name for path in (tmp_path / "data" / "jobs").iterdir()} == {"fresh", job.id}


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
