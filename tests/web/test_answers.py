"""What the page asks, without a page: estimates, presets, what is shown of a job."""

import gc
import shlex
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hallo3.animation import load
from hallo3.errors import UserError
from hallo3.runtime.forecast import Forecaster, Work
from hallo3.sampling.guidance import GuidanceScales
from hallo3.serving.jobs import JobQueue, Limits
from hallo3.serving.store import Job
from hallo3.serving.worker import Worker
from hallo3.settings import Settings, read_settings
from hallo3.web import shown
from hallo3.web.answers import Answers, settings_of
from hallo3.web.samples import find_samples
from hallo3.web.visits import MOST, MOST_UPLOADS, Visits
from waiting import until


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Any:
    return load(str(tiny_bundle), device="cpu")


@pytest.fixture
def answers(tmp_path: Path, tiny_bundle: Path, model: Any) -> Iterator[Answers]:
    """What a page of the tiny bundle asks; no worker takes the jobs."""
    (tmp_path / "uploads").mkdir()
    jobs = JobQueue(tmp_path / "jobs", Limits(), common={"bundle": str(tiny_bundle)})
    yield Answers(Visits(jobs, tmp_path / "uploads", 60.0), model, Forecaster(str(tiny_bundle), model))
    jobs.close()


def uploaded(sent: dict[str, Path], folder: Path) -> list[dict[str, str]]:
    """Portrait and speech among the uploads, as the page names them."""
    files = []
    for path in sent.values():
        kept = folder / "uploads" / path.name
        kept.write_bytes(path.read_bytes())
        files.append({"path": str(kept), "orig_name": path.name})
    return files


def test_forecast(tiny_bundle: Path, model: Any) -> None:
    """More clips, steps and branches take longer; what was taken corrects the next estimate."""
    foretell = Forecaster(str(tiny_bundle), model)
    one = foretell(Work(0.2))
    assert (one.clips, one.steps) == (1, 2) and one.seconds > 0 and one.device == one.host > 0
    assert foretell(Work(0.4)).clips == 2
    many = foretell(Work(0.2, steps=20))
    assert many.seconds > one.seconds and many.notice == ""
    guided = foretell(Work(0.2, steps=20, guidance=GuidanceScales(2.0, 3.0, 2.0)))
    draft = foretell(Work(0.2, "draft", 20, GuidanceScales(2.0, 3.0, 2.0)))
    assert guided.seconds > many.seconds and guided.seconds > draft.seconds and "not equal" in draft.notice
    for factor in (3, 5, 100):
        foretell.learn(Work(0.2), factor * one.seconds)
    assert foretell(Work(0.2)).seconds == pytest.approx(5 * one.seconds)


def test_what_a_form_leaves_empty_is_left_out() -> None:
    read = settings_of({"quality": "draft", "seed": "7", "face_box": "", "steps": None})
    assert (read.quality, read.seed, read.face_box, read.steps) == ("draft", 7, None, None)


def test_nobody_begins_two_videos_or_one_of_nothing(answers: Answers, sent: dict[str, Path], tmp_path: Path) -> None:
    visit, files = answers.visits.begin(), uploaded(sent, tmp_path)
    for lacking in ((None, files[1]), (files[0], None)):
        with pytest.raises(UserError, match="there is none"):
            answers.begin(visit, *lacking, {}, rights=True, client="me")
    with pytest.raises(UserError, match="tick the box"):
        answers.begin(visit, *files, {}, rights=False, client="me")
    job = answers.begin(visit, *files, {"no_face": True}, rights=True, client="me")
    assert (job.portrait, job.speech) == ("anna.png", "hello.wav") and answers.ahead() == 1
    with pytest.raises(UserError, match="one of yours"):
        answers.begin(visit, *files, {}, rights=True, client="me")
    answers.cancel(visit)
    assert answers.visits.jobs_of(visit)[0].state == "cancelled"
    answers.visits.clear(visit)
    assert answers.visits.jobs_of(visit) == [] and answers.jobs.store.get(job.id) is None
    assert not (tmp_path / "jobs" / "jobs" / job.id).exists()


def test_two_windows_of_one_visit_begin_one_video(answers: Answers, sent: dict[str, Path], tmp_path: Path) -> None:
    """Pressed at the same moment: the second is told, and not only when the first is in the queue."""
    visit, ended, files = answers.visits.begin(), list[str](), uploaded(sent, tmp_path)

    def begin() -> None:
        try:
            answers.begin(visit, *files, {"no_face": True}, rights=True, client="me")
        except UserError as error:
            ended.append(str(error))

    decoding, places = answers.jobs._decoding, tmp_path / "jobs" / "jobs"
    windows = [threading.Thread(target=begin) for _ in range(2)]
    with decoding, decoding:  # where whoever has come first waits
        for window in windows:
            window.start()
        until(lambda: ended or len(list(places.iterdir())) == 2)
    for window in windows:
        window.join()
    assert len(visit.jobs) == len(list(places.iterdir())) == 1
    assert ended == ["video: one of yours is being made; wait for it, or cancel it"]


def test_what_a_video_says_of_itself_is_forgotten_with_it(
    answers: Answers, model: Any, sent: dict[str, Path], tmp_path: Path
) -> None:
    visit, files = answers.visits.begin(), uploaded(sent, tmp_path)
    answers.begin(visit, *files, {"no_face": True, "prompt": "a woman talks", "seed": "7"}, rights=True, client="me")
    assert Worker(answers.jobs, model).work_once()
    (job,) = answers.visits.jobs_of(visit)
    record = answers.record(visit, job)
    assert record["seed"] == 7 and answers.record(visit, job) is record
    kept = weakref.ref(visit)
    del visit, files
    for name in list(answers.visits._visits):
        answers.visits._visits[name].seen = -1e9
    answers.visits.tidy()
    gc.collect()
    assert kept() is None and "a woman talks" not in repr(vars(answers)), "neither here nor with the visit"


def test_visits_and_uploads_are_bounded(answers: Answers, tmp_path: Path) -> None:
    first = answers.visits.begin()
    first.jobs.append("kept")
    names = [answers.visits.begin().name for _ in range(MOST + 5)]
    assert answers.visits.get(names[0]) is None and answers.visits.get(names[-1]) is not None
    assert answers.visits.get(first.name) is first, "who has made something stays"
    for number in range(MOST_UPLOADS + 5):
        answers.visits.use(first, tmp_path / str(number))
    assert len(first.uploads) == MOST_UPLOADS + 1 and first.uploads[-1].name == str(MOST_UPLOADS + 4)


def job_of(settings: Settings) -> Job:
    given = settings.model_dump(mode="json")
    return Job("name", "done", given, "anna's <b>.png", "hello.wav", 1, 2, 70.0, None, None, None, 25, 1.0, 9)


def test_the_command_that_makes_a_video_again() -> None:
    plain = shown.command_for(job_of(Settings()), "embedded")
    assert plain == """hallo3 animate 'anna'"'"'s <b>.png' hello.wav --seed 0"""
    asked_for = {"prompt": "a b", "steps": 9, "text_scale": 2.5, "face_box": "1 2 30.5 4", "crf": 20}
    words = shlex.split(shown.command_for(job_of(read_settings({**asked_for, "seed": 1 << 60})), "hallo3"))
    assert words[2:6] == ["anna's <b>.png", "hello.wav", "--bundle", "hallo3"]
    given = " ".join(words[6:]).split(" --")
    expected = (
        "prompt a b",
        "steps 9",
        "text-scale 2.5",
        "face-box 1 2 30.5 4",
        "crf 20",
        f"seed {1 << 60}",
    )
    assert sorted(one.removeprefix("--") for one in given) == sorted(expected)
    assert shown.command_for(job_of(Settings(no_face=True)), "embedded").endswith("--seed 0 --no-face")


def test_what_people_send_is_escaped() -> None:
    job = job_of(read_settings({"prompt": "<script>alert(1)</script>"}))
    for text in (
        shown.result(job, {"seed": 0, "settings": {"prompt": "<script>"}}, "<b>"),
        shown.history([(replace(job, state="failed", error="<img src=x>"), {})], "embedded"),
        shown.problem("<script>"),
    ):
        assert "<script>" not in text and "<b>" not in text and "<img src=x" not in text


def test_how_long_it_took_is_no_difference_of_times() -> None:
    """Somebody may have set the clock meanwhile."""
    job = replace(job_of(Settings()), state="done", started=1000.0, ended=400.0, took=65.0)
    assert "made in 1:05;" in shown.result(job, {}, "embedded")


def test_samples_are_there() -> None:
    samples = find_samples()
    assert len(samples.people) == 5 and len(samples.recordings) == 3 and samples.prompts
    assert all(one.portrait.is_file() and one.caption for one in samples.people)
    assert all(one.speech.is_file() and one.words for one in samples.recordings)
