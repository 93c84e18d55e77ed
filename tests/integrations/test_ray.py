"""The server under Ray Serve: two replicas on this machine, with random weights."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from hallo3.animation import load
from hallo3.media.inspection import inspect
from hallo3.media.video import read_video
from hallo3.serving.jobs import JobQueue
from hallo3.serving.worker import Worker
from hallo3.settings import Settings
from waiting import until

pytest.importorskip("ray.serve", reason="needs the extra `ray`")
httpx = pytest.importorskip("httpx")
psutil = pytest.importorskip("psutil")
SERVER = Path(__file__).parents[2] / "integrations" / "ray" / "server.py"
WORDS = '{"no_face": true, "seed": %d, "steps": %d}'

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def process(home: Path, tiny_bundle: Path) -> Iterator[Any]:
    words = [sys.executable, str(SERVER), "--replicas", "2", "--port", "0", "--bundle", str(tiny_bundle)]
    environment = {**os.environ, "HALLO3_HOME": str(home), "RAY_TMPDIR": "/tmp"}  # sockets need a short path
    with open(home / "log", "w") as log:
        started = psutil.Popen(
            [*words, "--data", str(home / "data")], stdout=subprocess.PIPE, stderr=log, env=environment
        )
    yield started
    children = started.children(recursive=True)
    started.terminate()
    psutil.wait_procs([started, *children], timeout=60)
    for left in (started, *children):
        if left.is_running():
            left.kill()


@pytest.fixture(scope="module")
def client(process: Any, home: Path) -> Any:
    line = process.stdout.readline().decode()
    assert "2 replicas" in line, line + (home / "log").read_text()
    return httpx.Client(base_url=line.split()[3].rstrip(","), timeout=60, trust_env=False)


def submit(client: Any, seed: int, steps: int, settings: str = WORDS, *, seconds: float = 0.6) -> str:
    files = {"portrait": picture(), "speech": sound(seconds)}
    data = {"rights": "true", "prompt": "a woman talks", "settings": settings % (seed, steps)}
    answer = client.post("/v1/jobs", files=files, data=data)
    assert answer.status_code == 202, answer.text
    name: str = answer.json()["id"]
    return name


def picture() -> bytes:
    import io

    with io.BytesIO() as file:
        tiny.portrait().save(file, "PNG")
        return file.getvalue()


def sound(seconds: float = 0.6) -> bytes:
    import io
    import wave

    with io.BytesIO() as file:
        with wave.open(file, "wb") as recording:
            recording.setparams((1, 2, 16_000, 0, "NONE", ""))
            recording.writeframes((tiny.speech(seconds) * 32_000).astype("<i2").tobytes())
        return file.getvalue()


def state(client: Any, job: str) -> Any:
    return client.get(f"/v1/jobs/{job}").json()


def unended(client: Any, job: str) -> Any:
    found = state(client, job)
    assert found["state"] in ("queued", "running"), found
    return found


def events(client: Any, job: str) -> list[Any]:
    """All of a job that has ended."""
    lines = client.get(f"/v1/jobs/{job}/events").text.splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def frames(client: Any, job: str, folder: Path) -> Any:
    until(lambda: state(client, job)["state"] in ("done", "failed"))
    assert state(client, job)["state"] == "done", state(client, job)
    path = folder / f"{job}.mp4"
    path.write_bytes(client.get(f"/v1/jobs/{job}/result").content)
    return read_video(path).frames


def test_nothing_listens_beyond_this_machine(process: Any, client: Any) -> None:
    """Neither the server nor any process of Ray."""
    ours = {process.pid, *(child.pid for child in process.children(recursive=True))}
    assert len(ours) > 4
    heard = [c.laddr.ip for c in psutil.net_connections("tcp") if c.pid in ours and c.status == psutil.CONN_LISTEN]
    assert heard and {address.removeprefix("::ffff:") for address in heard} <= {"127.0.0.1", "::1"}


def test_both_replicas_work_at_once_and_are_cancelled_within_a_step(client: Any, home: Path) -> None:
    jobs = [submit(client, seed, 1000, seconds=12) for seed in (1, 2)]  # minutes, which nobody waits for
    until(lambda: all((unended(client, job)["progress"] or {}).get("event") == "step" for job in jobs))
    for job in jobs:
        client.post(f"/v1/jobs/{job}/cancel")
    until(lambda: all(state(client, job)["state"] == "cancelled" for job in jobs))
    until(lambda: not list((home / "replicas").iterdir()))  # neither likeness nor voice stays


def test_results_are_those_of_a_worker_without_ray(client: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    sent = {seed: submit(client, seed, 3) for seed in (3, 4, 5)}
    queue = JobQueue(tmp_path / "jobs", common={"bundle": str(tiny_bundle)})
    worker = Worker(queue, load(str(tiny_bundle), device="cpu"))
    (tmp_path / "portrait").write_bytes(picture())
    (tmp_path / "speech").write_bytes(sound())
    for seed, job in sent.items():
        with open(tmp_path / "portrait", "rb") as portrait, open(tmp_path / "speech", "rb") as speech:
            asked = Settings(seed=seed, steps=3, no_face=True, prompt="a woman talks")
            own = queue.submit(portrait, speech, asked, rights=True)
        assert worker.work_once()
        assert (frames(client, job, tmp_path) == read_video(queue.result(own.id)).frames).all()
        found = inspect(tmp_path / f"{job}.mp4")
        assert found.tags and found.tags["seed"] == seed and found.credentials
    queue.close()


def test_a_mistake_is_told_in_one_line(client: Any) -> None:
    job = submit(client, 6, 3, '{"seed": %d, "steps": %d}')
    until(lambda: state(client, job)["state"] == "failed")
    assert state(client, job)["error"].startswith("portrait: no face was found")


def test_a_job_outlives_its_replica(process: Any, client: Any, tmp_path: Path) -> None:
    """Both replicas are killed in the middle of a job; it is made nevertheless, with the frames of another run."""
    job = submit(client, 7, 300, seconds=1)
    # One of the third clip's steps, of four clips: the first is on the disk, and the fourth has not begun.
    until(lambda: (unended(client, job)["progress"] or {}).get("clip", 0) >= 2)
    replicas = [child for child in process.children(recursive=True) if "Renderer" in " ".join(child.cmdline())]
    assert len(replicas) == 2
    for replica in replicas:
        replica.kill()
    again = submit(client, 7, 300, seconds=1)
    assert (frames(client, job, tmp_path) == frames(client, again, tmp_path)).all()
    for name, begun in ((job, 2), (again, 1)):
        starts = [event["done_already"] for event in events(client, name) if event["event"] == "start"]
        assert len(starts) == begun and starts[0] == 0 and all(starts[1:]), "gone on with, not made anew"
