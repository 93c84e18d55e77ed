"""What can be asked of the page's server besides by its page: files, other addresses, other visits, other sites."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from waiting import until

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio", reason="needs the extra `web`")


@pytest.fixture
def client(site: Any) -> Iterator[Any]:
    """A visitor without a browser."""
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as client:
        assert client.get("/").status_code == 200
        yield client


def upload(client: Any, path: Path) -> Any:
    return client.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})


def ask(client: Any, site: Any, part: str, given: dict[int, Any]) -> Any:
    """Calls the event that answers with `part` as the page does; given: inputs by their place, the others empty."""
    config = json.loads(client.get("/").text.split("window.gradio_config = ", 1)[1].split(";</script>", 1)[0])
    names = {one["id"]: one["props"].get("elem_id") for one in config["components"]}
    event = next(one for one in config["dependencies"] if one["outputs"] and names.get(one["outputs"][0]) == part)
    data = [given.get(place) for place in range(len(event["inputs"]))]
    body = {"data": data, "fn_index": event["id"], "session_hash": "abc", "event_data": None, "trigger_id": None}
    return client.post("/gradio_api/run/predict", json=body)


def file_of(path: object) -> dict[str, Any]:
    return {"path": str(path), "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


def test_only_what_is_sent_here_is_read(client: Any, site: Any, sent: dict[str, Path]) -> None:
    """An event may name a file that its sender has uploaded, and no other of this machine or the network."""
    (kept,) = upload(client, sent["portrait"]).json()
    shown = ask(client, site, "preview", {0: file_of(kept)})
    assert "no face was found" in shown.text, "the event is reached"
    kept_before = sorted((site.folder / "uploads").rglob("*"))
    for path in (
        *("/etc/passwd", sent["portrait"], site.answers.jobs.folder / "jobs.sqlite", f"{kept}/../../../../anna.png"),
        *("http://127.0.0.1:9/x.png", "https://example.org/x.png", "file:///etc/passwd", "", "\0", 7, [str(kept)]),
    ):
        file = {**file_of(kept), "path": str(path) if isinstance(path, Path) else path}
        for given in (file, {"deeper": [file]}):
            answer = ask(client, site, "preview", {0: given})
            assert answer.status_code == 400 and answer.text == "event: is none of this page's", path
    assert sorted((site.folder / "uploads").rglob("*")) == kept_before, "nothing was copied to where it can be read"


def events_of(client: Any) -> list[dict[str, Any]]:
    """Every event of the page as a browser is told of it."""
    config = json.loads(client.get("/").text.split("window.gradio_config = ", 1)[1].split(";</script>", 1)[0])
    found: list[dict[str, Any]] = config["dependencies"]
    return found


def made_up(events: list[dict[str, Any]]) -> Iterator[Any]:
    """Bodies of events that no page sends: other events, other numbers of inputs, inputs of other kinds."""
    values = (
        7,
        -1,
        999,
        1.5,
        "x",
        "\ud800",
        "",
        [],
        ["x"],
        {},
        {"path": None},
        {"orig_name": 7},
        None,
        True,
        "9" * 5000,
    )
    for event in events:
        fine = {"data": [None] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "abc"}
        yield fine
        for value in values:
            for name in ("data", "fn_index", "session_hash", "event_data", "trigger_id", "event_id"):
                yield {**fine, name: value}
            yield {**fine, "event_data": {"index": value}}
            yield {**fine, "event_data": {"index": value, "value": value}}
            yield {**fine, "data": [value] * len(event["inputs"])}
        yield from ({**fine, "data": fine["data"][:-1]}, {**fine, "data": [*fine["data"], 1]})
        yield from ({**fine, name: True} for name in ("batched", "simple_format"))
        yield from ({key: value for key, value in fine.items() if key != name} for name in fine)
    yield from values


@pytest.mark.slow
def test_no_event_fills_the_log(start: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever is sent as an event is answered, and never by a traceback, which a visitor could fill a disk with."""
    site = start()
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as client:
        events = events_of(client)
        bodies = [json.dumps(body) for body in made_up(events)]
        headers = {"Content-Type": "application/json"}
        answers = {body: client.post("/gradio_api/run/predict", content=body, headers=headers) for body in bodies}
    assert len(events) > 10 and not [body for body, answer in answers.items() if answer.status_code >= 500]
    assert {answer.text for answer in answers.values() if answer.status_code == 400} == {
        "event: is none of this page's"
    }
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err and "a bug" not in said.out + said.err


def test_what_is_not_there(client: Any, site: Any) -> None:
    """Files of the machine and of jobs, and all of Gradio that this page has no use for."""
    jobs = site.answers.jobs.folder
    (site.folder / "examples").mkdir(exist_ok=True)
    for path in (
        "/etc/passwd",
        jobs / "jobs.sqlite",
        site.folder,
        Path.cwd() / "pyproject.toml",
        "http://127.0.0.1:9/",
    ):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404), path
    for path in (
        *("/config", "/gradio_api/info", "/gradio_api/openapi.json", "/monitoring", "/gradio_api/runs", "/docs"),
        *("/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/queue/data?session_hash=abc", "/openapi.json"),
        *("/videos/x/..%2f..%2fjobs.sqlite", "/videos/", "/gradio_api/custom_component/1/client/component/x.js"),
    ):
        assert client.get(path).status_code == 404, path
    for path in ("/gradio_api/queue/join", "/gradio_api/component_server", "/gradio_api/call/predict", "/login"):
        assert client.post(path, json={}).status_code == 404, path
    assert client.delete("/").status_code == 404 and client.get("/videos/nobody").status_code == 404


def test_the_path_is_the_one_that_is_routed(client: Any, site: Any) -> None:
    """What a header makes of the address opens nothing: neither of the page's server nor of another host."""
    port = site.url.rsplit(":", 1)[1].strip("/")
    for host in (f"127.0.0.1:{port}/theme.css?", f"127.0.0.1:{port}/theme.css#", "127.0.0.1/assets/x?", "localhost/x"):
        for path in ("/config", "/gradio_api/info", "/theme.css"):
            assert client.get(path, headers={"Host": host}).status_code in (400, 403), (host, path)
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as other:
        assert other.get("/theme.css").status_code == 200


def test_headers_and_other_sites(client: Any, site: Any) -> None:
    answer = httpx.get(site.url, trust_env=False, timeout=60)
    cookie, policy = answer.headers["set-cookie"], answer.headers["content-security-policy"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        for answer in (client.get("/", headers=headers), client.post("/gradio_api/upload", headers=headers)):
            assert answer.status_code == 403 and answer.text.startswith(("host:", "origin:"))
    port = site.url.rsplit(":", 1)[1].strip("/")
    assert client.get("/", headers={"Origin": f"http://127.0.0.1:{port}"}).status_code == 200


def test_limits_of_what_is_sent(client: Any, site: Any, start: Callable[..., Any], sent: dict[str, Path]) -> None:
    """Nothing larger than the limit is kept, whether its length is said or not; nor more than there is room for."""
    before = set((site.folder / "uploads").rglob("*"))
    large = {"files": ("large.wav", bytes(2_000_000))}
    answer = client.post("/gradio_api/upload", files=large)
    assert answer.status_code == 413 and "0.3 MB" in answer.text
    form = {"Content-Type": "multipart/form-data; boundary=y"}
    part = b'--y\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    unsaid = client.post("/gradio_api/upload", content=iter([part, *[bytes(100_000)] * 20]), headers=form)
    assert unsaid.status_code == 413
    assert client.post("/gradio_api/run/predict", content=b" " * 1_100_000).status_code == 413
    kept = set((site.folder / "uploads").rglob("*")) - before
    assert not [path for path in kept if path.is_file() and path.stat().st_size > 300_000]
    full = start(stored_bytes=1)
    with httpx.Client(base_url=full.url, timeout=60, trust_env=False) as other:
        other.get("/")
        answer = upload(other, sent["portrait"])
        assert answer.status_code == 429 and answer.text.startswith("storage:") and answer.headers["retry-after"]


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
def test_an_upload_that_the_disk_has_no_room_for(
    client: Any, site: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for the full disk: one line, no traceback, and what has come is deleted."""
    import resource

    large = tmp_path / "large.wav"
    large.write_bytes(bytes(250_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = sorted(path for path in (site.folder / "uploads").rglob("*") if path.is_file())
    capfd.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        answer = upload(client, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert answer.status_code == 503 and answer.text.startswith("server: can't do this now (")
    assert "\n" not in answer.text and "Traceback" not in capfd.readouterr().err
    for left in set((site.folder / "uploads").rglob("*")).difference(files):
        os.utime(left, (time.time() - 3600,) * 2)
    site.answers.visits.tidy()
    kept = {path for path in (site.folder / "uploads").rglob("*") if path.is_file()}
    assert kept <= set(files), "what other tests sent may be old enough to go, too"
    assert upload(client, large).status_code == 200


def test_a_token(start: Callable[..., Any], sent: dict[str, Path]) -> None:
    """Without it nothing but the entrance is shown; with it one comes in, and it is asked again elsewhere."""
    site = start(token="s3cret", per_minute=5)
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as client:
        entrance = client.get("/")
        assert entrance.status_code == 401 and 'name="token"' in entrance.text and "gradio" not in entrance.text
        for path in ("/theme.css", "/videos/x", "/assets/index.js", "/gradio_api/heartbeat/abc"):
            answer = client.get(path)
            assert answer.status_code == 401 and answer.text.startswith("token:"), path
        assert upload(client, sent["portrait"]).status_code == 401
        for wrong in ("", "S3cret", "s3cret2"):
            answer = client.post("/enter", data={"token": wrong})
            assert answer.status_code == 401 and "set-cookie" not in answer.headers
        assert (
            client.post("/enter", data={"token": "s3cret"}, headers={"Origin": "http://evil.example"}).status_code
            == 403
        )
        answer = client.post("/enter", data={"token": "s3cret"})
        assert answer.status_code == 303 and "HttpOnly" in answer.headers["set-cookie"]
        assert client.get("/").status_code == 200 and client.get("/theme.css").status_code == 200
        client.post("/enter", data={"token": "x"})
        assert client.post("/enter", data={"token": "x"}).status_code == 429, "no one tries tokens for long"
        assert httpx.get(site.url, trust_env=False).status_code == 401


def submit(client: Any, site: Any, sent: dict[str, Path], **form: Any) -> str:
    """Begins a video in the name of a visitor without a browser; returns its name."""
    (cookie,) = client.cookies.values()
    files = [{"path": upload(client, path).json()[0], "orig_name": path.name} for path in sent.values()]
    given = {"no_face": True, **form}
    job = site.answers.begin(site.answers.visits.get(cookie), *files, given, rights=True, client="me")
    return str(job.id)


def test_a_video_that_grows(
    client: Any, site: Any, brake: Any, sent: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """What is asked for is sent, in ranges too, however long the file has become."""
    brake.hold_while(lambda job: site.answers.live(job) is not None)
    name = submit(client, site, sent)
    made = until(lambda: site.answers.live(site.answers.jobs.get(name)))
    whole = site.answers.jobs.partial(name).read_bytes()
    assert len(whole) >= made.size > 100
    for asked, most in ((100, 100), (0, 0), (-5, 0)):
        answer = client.get(f"/videos/{name}?until={asked}")
        assert (answer.status_code, answer.content) == (200, whole[:most])
    answer = client.get(f"/videos/{name}?until={10**12}")  # a clip may still be written behind the one that waits
    assert answer.status_code == 200 and answer.content.startswith(whole)
    assert site.answers.jobs.partial(name).read_bytes().startswith(answer.content)
    part = client.get(f"/videos/{name}?until=100", headers={"Range": "bytes=90-"})
    assert (part.status_code, part.content) == (206, whole[90:100])
    assert client.get(f"/videos/{name}?until=0", headers={"Range": "bytes=0-"}).status_code == 416
    brake.release()
    until(lambda: site.answers.jobs.get(name).is_over)
    assert client.get(f"/videos/{name}").content == site.answers.jobs.result(name).read_bytes()
    assert "Traceback" not in capfd.readouterr().err


def test_a_visit_ends(
    start: Callable[..., Any], sent: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some time after the last sign of life its jobs, results and uploads are gone, the page's own samples are not."""
    monkeypatch.setattr("hallo3.web.app.SECONDS_BETWEEN_TIDYING", 0.05)
    site = start()
    visits = site.answers.visits
    samples = {path for path in (site.folder / "uploads").rglob("*") if path.suffix == ".jpg"}
    visit = visits.begin()
    (site.folder / "uploads" / "mine").mkdir()
    mine = {name: site.folder / "uploads" / "mine" / name for name in ("anna.png", "hello.wav")}
    for path, source in zip(mine.values(), sent.values(), strict=True):
        path.write_bytes(source.read_bytes())
    form = {"no_face": True, "steps": "1000"}
    files = [{"path": str(path), "orig_name": path.name} for path in mine.values()]
    job = site.answers.begin(visit, *files, form, rights=True, client="me")
    for path in mine.values():
        os.utime(path, (time.time() - 3600,) * 2)
    visits.tidy()
    assert visits.get(visit.name) is visit and visits.jobs_of(visit)[0].id == job.id
    assert all(path.exists() for path in mine.values()), "they are in use"
    visits.keep_seconds = 0.0
    places = [site.answers.jobs.folder / "jobs" / job.id, *mine.values()]
    until(lambda: not any(place.exists() for place in places))
    assert visits.get(visit.name) is None and site.answers.jobs.store.get(job.id) is None
    assert samples and all(path.exists() for path in samples)


def test_tidying_outlives_a_failure(
    start: Callable[..., Any], sent: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A table that can't be written while a visit ends: its likeness goes as soon as it can."""
    monkeypatch.setattr("hallo3.web.app.SECONDS_BETWEEN_TIDYING", 0.05)
    site = start()
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as client:
        client.get("/")
        name = submit(client, site, sent, steps="1000")
    place, table = site.answers.jobs.folder / "jobs" / name, site.answers.jobs.store._connection
    table.execute("PRAGMA query_only = 1")
    site.answers.visits.keep_seconds = 0.0
    until(lambda: "tidying" in caplog.text)
    assert place.exists()
    table.execute("PRAGMA query_only = 0")
    until(lambda: not place.exists())


@pytest.mark.parametrize("act", ["stored", "tidy"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_upload_that_is_just_being_moved(
    site: Any, sent: dict[str, Path], monkeypatch: pytest.MonkeyPatch, act: str, moment: str
) -> None:
    """Gone just before it is looked at, or just after: neither counting nor tidying minds."""
    moved, real, gone = site.folder / "uploads" / "moved.png", Path.stat, list[str]()
    moved.write_bytes(sent["portrait"].read_bytes())
    os.utime(moved, (time.time() - 3600,) * 2)

    def look(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == moved and moment == "before":
            gone.append(act)
            moved.unlink(missing_ok=True)
        found = real(path, follow_symlinks=follow_symlinks)
        if path == moved and moment == "after":
            gone.append(act)
            moved.unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", look)
        getattr(site.answers.visits, act)()
    assert gone == [act] and not moved.exists()
