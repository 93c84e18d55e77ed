"""Workers in processes of their own: every job is made once, and none is lost when one of them is killed."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving_help import submission, wait_until

from hallo3.errors import UserError
from hallo3.media.video import read_video
from hallo3.serving import processes
from hallo3.serving.jobs import JobQueue, Limits
from hallo3.serving.processes import WorkerProcess
from hallo3.settings import Settings
from waiting import children, lives, until

HOW = {"device": "cpu"}


@pytest.mark.slow
def test_two_of_which_one_is_killed(
    tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SECONDS_BEFORE_ANOTHER", 0.1)
    limits, common = Limits(waiting=100, per_minute=1000), {"bundle": str(tiny_bundle)}
    jobs, ended = JobQueue(tmp_path / "data", limits, common=common), list[str]()
    settings = Settings(no_face=True, steps=100)
    portrait, speech = (sent[name] for name in ("portrait", "speech"))
    workers = [
        WorkerProcess(jobs.folder, limits, common, HOW, name=name, on_end=lambda job, _: ended.append(job.id))
        for name in ("worker-1", "worker-2")
    ]
    try:
        for worker in workers:
            worker.open()
        # Not before: the first would have made them all while the second loads.
        made = [jobs.submit(io.BytesIO(portrait), io.BytesIO(speech), settings, rights=True).id for _ in range(6)]
        started = [(jobs.folder / "jobs" / name / "result.mp4.part.state") for name in made]
        until(lambda: any(state.exists() for state in started))  # a clip is done
        os.kill(workers[0]._process.pid, signal.SIGKILL)
        until(lambda: all(jobs.get(name).is_over for name in made))
        until(lambda: len(ended) == len(made))
        until(lambda: all(worker.is_working for worker in workers))  # the killed one again, too
    finally:
        for worker in workers:
            worker.stop(180)
    assert not any(worker.is_working for worker in workers)
    assert sorted(ended) == sorted(made), "each once"
    events = {name: [event["event"] for _, event in jobs.events(name)] for name in made}
    assert all(kinds[-1] == "done" for kinds in events.values())
    assert sum(kinds.count("start") for kinds in events.values()) in (6, 7), "but for the one that went on"
    videos = [read_video(jobs.result(name)).frames for name in made]
    assert all((video == videos[0]).all() for video in videos)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path / "data", Limits(), {"bundle": "no-such-bundle"}, HOW, name="worker-1")
    with pytest.raises(UserError, match="no-such-bundle"):
        worker.open()
    assert not worker.is_working


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_server_of_two_devices(tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes]) -> None:
    """Its processes work side by side, and end with it, even if it is killed."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    where = ["--port", "0", "--data", str(tmp_path / "data"), "--bundle", str(tiny_bundle)]
    command = [sys.executable, "-m", "hallo3", "serve", *where, "--device", "cpu", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split()[0]
        client = httpx.Client(base_url=address, timeout=60, trust_env=False)
        made = [client.post("/v1/jobs", **submission(sent)).json()["id"] for _ in range(4)]
        for name in made:
            wait_until(client, name, "done", seconds=300)
        assert client.get("/health").status_code == 200
        until(lambda: 'hallo3_jobs_ended_total{state="done"} 4.0' in client.get("/metrics").text)
        found = children(process.pid)
        started = [child for child in found if "spawn_main" in Path("/proc", str(child), "cmdline").read_text()]
        assert len(started) == 2, "one for each device; what else it starts keeps its books"
    finally:
        process.kill()
        process.communicate()
    until(lambda: not any(map(lives, found)))


@pytest.mark.slow
def test_no_process_is_left_by_one_that_stops(tmp_path: Path, tiny_bundle: Path, sent: Any) -> None:
    worker = WorkerProcess(tmp_path / "data", Limits(), {"bundle": str(tiny_bundle)}, HOW, name="worker-1")
    worker.open()
    worker.start()
    assert worker.is_working
    pid = worker._process.pid
    worker.stop(180)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
