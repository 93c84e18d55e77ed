"""Visits while table and disk are slow, and what goes when a visit ends in the middle of an answer."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from hallo3.runtime.forecast import Forecaster
from hallo3.serving.jobs import JobQueue, Limits
from hallo3.serving.worker import Worker
from hallo3.web.answers import Answers
from hallo3.web.visits import Visit, Visits


@pytest.fixture
def answers(tmp_path: Path, tiny_bundle: Path, web_model: Any) -> Iterator[Answers]:
    """What a page of the tiny bundle asks; no worker takes the jobs."""
    (tmp_path / "uploads").mkdir()
    jobs = JobQueue(tmp_path / "jobs", Limits(), common={"bundle": str(tiny_bundle)})
    yield Answers(Visits(jobs, tmp_path / "uploads", 60.0), web_model, Forecaster(str(tiny_bundle), web_model))
    jobs.close()


@pytest.fixture
def files(tmp_path: Path, answers: Answers) -> list[dict[str, str]]:
    """Portrait and speech among the uploads, as the page names them."""
    portrait, speech = (tmp_path / "uploads" / name for name in ("anna.png", "hello.wav"))
    tiny.portrait().save(portrait)
    tiny.write_wav(speech, tiny.speech(0.2))
    return [{"path": str(path), "orig_name": path.name} for path in (portrait, speech)]


def test_a_table_that_is_locked_stops_no_answer(answers: Answers, files: list[dict[str, str]], tmp_path: Path) -> None:
    """Who deletes waits for the table; who only asks whose visit it is does not."""
    visit, other = answers.visits.begin(), answers.visits.begin()
    job = answers.begin(visit, *files, {"no_face": True}, rights=True, client="me")
    table = sqlite3.connect(tmp_path / "jobs" / "jobs.sqlite", isolation_level=None)
    table.execute("BEGIN IMMEDIATE")
    clearing = threading.Thread(target=answers.visits.clear, args=(visit,))
    clearing.start()
    while visit.jobs:
        time.sleep(0.01)
    asking = threading.Thread(target=answers.visits.get, args=(other.name,))
    asking.start()
    asking.join(15)  # half as long as the other waits for the table
    waits = asking.is_alive()
    table.execute("ROLLBACK")
    table.close()
    for thread in (clearing, asking):
        thread.join()
    assert not waits
    assert answers.jobs.store.get(job.id) is None and not answers.jobs.place(job.id).exists()


def test_what_could_not_be_deleted_is_deleted_later(
    answers: Answers, files: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = answers.visits.begin()
    job = answers.begin(visit, *files, {"no_face": True}, rights=True, client="me")
    with monkeypatch.context() as broken:
        broken.setattr(answers.jobs.store, "_connection", sqlite3.connect(":memory:"))
        with pytest.raises(sqlite3.OperationalError):
            answers.visits.clear(visit)
    assert answers.jobs.store.get(job.id) is not None
    answers.visits.tidy()
    assert answers.jobs.store.get(job.id) is None and not answers.jobs.place(job.id).exists()


def test_a_visit_that_ends_while_its_video_is_begun(answers: Answers, files: list[dict[str, str]]) -> None:
    """Nobody is there any more for the job that comes into the queue then."""
    visit, places, decoding = answers.visits.begin(), answers.jobs.folder / "jobs", answers.jobs._decoding
    begin = {"rights": True, "client": "me"}
    beginning = threading.Thread(target=answers.begin, args=(visit, *files, {"no_face": True}), kwargs=begin)
    with decoding, decoding:  # where it waits meanwhile
        beginning.start()
        while not list(places.iterdir()):
            time.sleep(0.01)
        visit.seen = -1e9
        answers.visits.tidy()
    beginning.join()
    assert answers.visits.get(visit.name) is None
    answers.visits.tidy()
    assert not list(places.iterdir()) and answers.ahead() == 0


def test_a_page_that_looks_while_another_window_deletes(
    answers: Answers, files: list[dict[str, str]], web_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is changed on it, and nothing is written to the log; it looks again."""
    gradio = pytest.importorskip("gradio", reason="needs the extra `web`")
    from hallo3.web.door import VISIT
    from hallo3.web.page import Page

    page, visit = Page(answers, "embedded", alone=True), answers.visits.begin()
    page.build()
    request: Any = SimpleNamespace(request=SimpleNamespace(scope={VISIT: visit}))
    answers.begin(visit, *files, {"no_face": True}, rights=True, client="me")
    assert Worker(answers.jobs, web_model).work_once()
    jobs_of = answers.visits.jobs_of

    def jobs_and_then_none(asked: Visit) -> Any:
        found = jobs_of(asked)
        answers.visits.clear(asked)  # between the question which jobs there are and the one what they say
        return found

    monkeypatch.setattr(answers.visits, "jobs_of", jobs_and_then_none)
    first = page.on_tick(request, {})
    assert first == [gradio.skip()] * 8
    monkeypatch.undo()
    seen, _, stage, *_ = page.on_tick(request, {})
    assert seen and "The video is shown here" in stage
