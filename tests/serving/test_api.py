"""The server over real HTTP: a whole job, its events, cancelling, what is refused, and that results expire."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving_help import submission, wait_until

import tiny
from hallo3.media.credentials import read_credentials
from hallo3.media.provenance import read_provenance
from hallo3.media.video import probe
from hallo3.serving.jobs import JobQueue, Limits
from waiting import Brake, until

FORM = "multipart/form-data; boundary=y"
PART = b'--y\r\nContent-Disposition: form-data; name="speech"; filename="a.wav"\r\n\r\n'
httpx = pytest.importorskip("httpx")


def read_events(client: Any, job: str, last: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every event of a job's stream, to its end: number and content."""
    found, number = [], ""
    with client.stream("GET", f"/v1/jobs/{job}/events", headers={"Last-Event-ID": last} if last else {}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("id:"):
                number = line[3:].strip()
            if line.startswith("data:"):
                found.append((number, json.loads(line[5:])))
    return [(event_id or number, event) for event_id, event in found]


def test_a_whole_job(serve: Callable[..., Any], sent: dict[str, bytes], tmp_path: Path) -> None:
    client = serve()
    health = client.get("/health").json()
    assert (health["status"], health["bundle"]) == ("ok", "tiny"), "not where it lies"
    answer = client.post(
        "/v1/jobs", **submission(sent, prompt="a woman talks", settings='{"no_face": true, "seed": 5}')
    )
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["state"] in ("queued", "running") and job["settings"]["seed"] == 5
    events = read_events(client, job["id"])
    kinds = [event["event"] for _, event in events]
    assert kinds[0] == "queued" and kinds[-1] == "done" and kinds.count("clip") == 2 and "start" in kinds
    assert not any(str(tmp_path) in json.dumps(event) for _, event in events), "a path of the server's"
    later = read_events(client, job["id"], last=events[1][0] or "1")
    assert len(later) < len(events) and later[-1][1]["event"] == "done"
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert (done["state"], done["frames"], done["ahead"], done["error"]) == ("done", 10, None, None)
    video = client.get(f"/v1/jobs/{job['id']}/result")
    assert video.status_code == 200 and video.headers["content-type"] == "video/mp4"
    (tmp_path / "got.mp4").write_bytes(video.content)
    assert probe(tmp_path / "got.mp4").frames == 10
    record, signed = read_provenance(tmp_path / "got.mp4"), read_credentials(tmp_path / "got.mp4")
    assert record is not None and record["seed"] == 5 and record["watermark"] and signed is not None
    assert client.get(f"/v1/jobs/{job['id']}/result", headers={"Range": "bytes=0-7"}).content[4:] == b"ftyp"
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "done"
    place = tmp_path / "data" / "jobs" / job["id"]
    until(lambda: [path.name for path in place.iterdir()] == ["result.mp4"])  # neither likeness nor voice are kept
    until(lambda: 'hallo3_jobs_ended_total{state="done"} 1.0' in client.get("/metrics").text)
    text = client.get("/metrics").text
    assert 'hallo3_jobs{state="done"} 1.0' in text
    assert 'hallo3_requests_total{method="POST",status="202"} 1.0' in text


def test_cancelling(serve: Callable[..., Any], brake: Brake, sent: dict[str, bytes], tmp_path: Path) -> None:
    """A job that would take very long stops within a step, the one behind it is made; a waiting one goes at once."""
    client = serve()
    brake.hold(lambda: brake.calls > 1)
    slow = client.post("/v1/jobs", **submission(sent, settings='{"no_face": true, "steps": 1000}')).json()["id"]
    waiting, last = (client.post("/v1/jobs", **submission(sent)).json()["id"] for _ in range(2))
    assert client.post(f"/v1/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    until(lambda: (client.get(f"/v1/jobs/{slow}").json()["progress"] or {}).get("event") == "step")
    client.post(f"/v1/jobs/{slow}/cancel")
    brake.release()
    over = wait_until(client, slow, "cancelled")
    assert over["progress"]["clip"] == over["progress"]["step"] == 0
    assert brake.calls == 2, "the step in hand was the last"
    assert read_events(client, slow)[-1][1] == {"event": "cancelled"}
    assert client.get(f"/v1/jobs/{slow}/result").status_code == 409
    until(lambda: not list((tmp_path / "data" / "jobs" / slow).iterdir()))  # it is said first, then cleared
    wait_until(client, last, "done")


def refused(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    (line,) = answer.json().values()
    assert list(answer.json()) == ["error"] and "\n" not in line and "Traceback" not in line
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"rights": "false"}, 400, ["rights", "I have the right"]),
        ({"rights": "maybe"}, 422, ["rights"]),
        ({"settings": "{"}, 400, ["settings", "JSON"]),
        ({"settings": "[1]"}, 400, ["settings"]),
        ({"settings": '{"bundle": "/etc"}'}, 400, ["bundle", "no such setting"]),
        ({"settings": '{"watermark": false}'}, 400, ["watermark", "no such setting"]),
        ({"settings": '{"steps": 0}'}, 400, ["steps"]),
        ({"settings": '{"no_face": true, "face": 1}'}, 400, ["--no-face"]),
        ({"prompt": "w" * 5000}, 422, ["prompt"]),
        ({"prompt": "w" * 70_000}, 400, []),
    ],
)
def test_refused_fields(
    fields: dict[str, str], status: int, words: list[str], serve: Callable[..., Any], sent: dict[str, bytes]
) -> None:
    refused(serve(working=False).post("/v1/jobs", **submission(sent, **fields)), status, *words)


def test_refused_uploads(serve: Callable[..., Any], sent: dict[str, bytes], tmp_path: Path) -> None:
    """Nothing that can't be made waits, and nothing of it stays on the disk."""
    client = serve(working=False, upload_bytes=60_000, seconds=1.0, pixels=64 * 48)
    long = tiny.write_wav(tmp_path / "long.wav", tiny.speech(1.2)).read_bytes()
    tiny.portrait().resize((128, 48)).save(tmp_path / "wide.png")
    cases = [
        ("portrait", b"no picture" * 99, 400, ["anna.png", "not a picture"]),
        ("portrait", b"", 400, ["anna.png", "empty"]),
        ("portrait", sent["portrait"][:500], 400, ["anna.png"]),
        ("portrait", (tmp_path / "wide.png").read_bytes(), 400, ["anna.png", "megapixels"]),
        ("speech", sent["portrait"], 400, ["hello.wav", "picture"]),
        ("speech", b"#EXTM3U\nfile:///etc/passwd\n", 400, ["hello.wav"]),
        ("speech", long, 400, ["hello.wav", "larger"]),
        ("speech", bytes(200_000), 400, ["hello.wav", "larger"]),
    ]
    for name, data, status, words in cases:
        answer = client.post("/v1/jobs", **submission({**sent, name: data}))
        refused(answer, status, *words)
        assert str(tmp_path) not in answer.text
    refused(client.post("/v1/jobs", **submission({**sent, "speech": bytes(2_000_000)})), 413, "1.12 MB")
    unsaid = client.post("/v1/jobs", content=iter([PART, *[bytes(100_000)] * 20]), headers={"Content-Type": FORM})
    refused(unsaid, 413, "1.12 MB")
    refused(client.post("/v1/jobs", data={"rights": "true"}), 422, "portrait")
    refused(client.post("/v1/jobs", content=b"x", headers={"Content-Type": FORM}), 400)
    assert not list((tmp_path / "data" / "jobs").iterdir())
    long_enough = serve(working=False, seconds=0.3)
    refused(long_enough.post("/v1/jobs", **submission(sent)), 400, "hello.wav", "longer than 0.3 s")


def test_unknown_names(serve: Callable[..., Any]) -> None:
    client = serve(working=False)
    for path in ("/v1/jobs/nobody", "/v1/jobs/nobody/result", "/v1/jobs/nobody/events", "/v1/jobs/..%2f..%2fx", "/no"):
        refused(client.get(path), 404)
    refused(client.post("/v1/jobs/nobody/cancel"), 404)
    refused(client.delete("/v1/jobs/nobody"), 405)


def test_a_failed_job_says_why(serve: Callable[..., Any], sent: dict[str, bytes]) -> None:
    """No face is found in noise: known only when the model looks."""
    client = serve()
    job = client.post("/v1/jobs", **submission(sent, settings="{}")).json()["id"]
    failed = wait_until(client, job, "failed")
    assert "face" in failed["error"] and "\n" not in failed["error"]
    assert read_events(client, job)[-1][1] == {"event": "failed", "error": failed["error"]}
    refused(client.get(f"/v1/jobs/{job}/result"), 409, "face")


def test_a_full_queue_rate_and_storage(serve: Callable[..., Any], sent: dict[str, bytes]) -> None:
    client = serve(working=False, waiting=2)
    ahead = [client.post("/v1/jobs", **submission(sent)).json()["ahead"] for _ in range(2)]
    assert ahead == [0, 1]
    full = client.post("/v1/jobs", **submission(sent))
    refused(full, 429, "queue", "2 jobs")
    assert int(full.headers["retry-after"]) >= 1
    often = serve(working=False, per_minute=1)
    refused(often.post("/v1/jobs", data={}), 422)
    answer = often.post("/v1/jobs", **submission(sent))
    refused(answer, 429, "rate")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    refused(serve(working=False, waiting=9, stored_bytes=1000).post("/v1/jobs", **submission(sent)), 429, "storage")


def test_a_token(serve: Callable[..., Any], sent: dict[str, bytes]) -> None:
    client = serve(working=False, token="s3cret")
    for path in ("/metrics", "/openapi.json", "/v1/jobs/x"):
        answer = client.get(path)
        refused(answer, 401, "token")
        assert answer.headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer wrong", "Bearer", "s3cret", "Basic s3cret", b"Bearer \xff"):
        refused(client.post("/v1/jobs", headers={"Authorization": wrong}, **submission(sent)), 401)
    assert client.get("/health").status_code == 200
    client.headers["Authorization"] = "Bearer s3cret"
    assert client.post("/v1/jobs", **submission(sent)).status_code == 202
    assert client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]


def test_without_a_token_pages_of_others_cannot_ask(serve: Callable[..., Any], sent: dict[str, bytes]) -> None:
    client = serve(working=False)
    refused(client.get("/metrics", headers={"Host": "evil.example"}), 403, "this machine")
    refused(client.post("/v1/jobs", headers={"Origin": "http://evil.example"}, **submission(sent)), 403, "origin")
    refused(client.post("/v1/jobs", headers={"Origin": "null"}, **submission(sent)), 403, "origin")
    same = f"http://{client.base_url.host}:{client.base_url.port}"
    assert client.post("/v1/jobs", headers={"Origin": same}, **submission(sent)).status_code == 202


def test_results_expire(
    serve: Callable[..., Any], sent: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still but where it is put on: not before the hour is over, and the file a minute later."""
    monkeypatch.setattr("hallo3.serving.worker.SECONDS_BETWEEN_TIDYING", 0.05)
    began, passed = time.time(), [0.0]
    monkeypatch.setattr("hallo3.serving.store.time.time", lambda: began + passed[0])
    client = serve(keep_seconds=3600.0)
    job = client.post("/v1/jobs", **submission(sent)).json()["id"]
    wait_until(client, job, "done")
    for passed[0] in (0, 3599):
        assert client.get(f"/v1/jobs/{job}/result").status_code == 200
    passed[0] = 3601
    assert client.get(f"/v1/jobs/{job}").status_code == 404
    refused(client.get(f"/v1/jobs/{job}/result"), 404)
    JobQueue(tmp_path / "data", Limits(keep_seconds=3600.0)).tidy()
    assert (tmp_path / "data" / "jobs" / job / "result.mp4").exists(), "who is just fetching it gets it"
    passed[0] = 3661
    until(lambda: 'hallo3_jobs{state="done"} 1.0' not in client.get("/metrics").text)
    assert not (tmp_path / "data" / "jobs" / job).exists()


def test_a_disk_that_refuses(serve: Callable[..., Any], sent: dict[str, bytes], tmp_path: Path) -> None:
    """The folder of the jobs is gone: no fault of the sender's, said as such, and nothing else breaks."""
    client = serve(working=False)
    (tmp_path / "data" / "jobs").rmdir()
    answer = client.post("/v1/jobs", **submission(sent))
    refused(answer, 503, "server", "no such file")
    assert answer.headers["retry-after"] == "60"
    (tmp_path / "data" / "jobs").mkdir()
    assert client.post("/v1/jobs", **submission(sent)).status_code == 202


def test_a_table_that_cannot_grow(tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes]) -> None:
    """The disk is full for the table alone: no bug, nothing half kept, and it goes on when there is room."""
    from fastapi.testclient import TestClient

    from hallo3.serving.api import create_app

    jobs = JobQueue(tmp_path / "data", Limits(per_minute=1000, waiting=1000), common={"bundle": str(tiny_bundle)})
    table, long = jobs.store._connection, {"prompt": "w" * 3900}
    pages = table.execute("PRAGMA page_count").fetchone()[0]
    table.execute(f"PRAGMA max_page_count = {pages}")
    client = TestClient(create_app(jobs), base_url="http://127.0.0.1", raise_server_exceptions=False)
    for _ in range(9):
        answer = client.post("/v1/jobs", **submission(sent, **long))
        if answer.status_code != 202:
            break
    refused(answer, 503, "server", "full")
    taken = jobs.store.counts()["queued"]
    assert len(list((tmp_path / "data" / "jobs").iterdir())) == taken, "what was refused is not kept"
    table.execute("PRAGMA max_page_count = 100000")
    assert client.post("/v1/jobs", **submission(sent, **long)).status_code == 202
    assert jobs.store.counts()["queued"] == taken + 1
