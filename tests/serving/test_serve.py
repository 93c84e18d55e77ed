"""`hallo3 serve` as a process: killed and started again, stopped, with the embedded bundle, and what it refuses."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_help import submission, wait_until

import hallo3
import tiny
from hallo3.cli import main
from hallo3.media.credentials import LOCAL_FILE, read_credentials
from hallo3.media.personal import settings_folder
from hallo3.media.video import probe, read_video
from waiting import held_while, until

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason="needs the extra `serve`")

Started = tuple[subprocess.Popen[str], Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Gives a function that starts the command on a free port and gives the process and a client."""
    processes: list[subprocess.Popen[str]] = []

    def run(*options: str, data: str = "data", held: tuple[Path, int] | None = None) -> Started:
        words = ["-m", "hallo3", "serve", "--port", "0", "--data", str(tmp_path / data), *options]
        process = subprocess.Popen(
            held_while(held[0], *words, calls=held[1]) if held else [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
        )
        processes.append(process)
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, line + process.stderr.read()
        return process, httpx.Client(base_url=found[0].replace("0.0.0.0", "127.0.0.1"), timeout=60, trust_env=False)

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_and_started_again(
    start: Callable[..., Started], tiny_bundle: Path, sent: dict[str, bytes], tmp_path: Path
) -> None:
    """SIGKILL after the first clip: the finished result stays, the half one goes on, the waiting one is made."""
    settings = {"settings": '{"no_face": true, "steps": 40}'}
    brake = tmp_path / "brake"
    brake.touch()  # after the first job, of two clips of two steps, and some of the second clip of the next
    process, client = start("--bundle", str(tiny_bundle), held=(brake, 4 + 40 + 10))
    finished = client.post("/v1/jobs", **submission(sent)).json()["id"]
    wait_until(client, finished, "done")
    half, waiting = (client.post("/v1/jobs", **submission(sent, **settings)).json()["id"] for _ in range(2))
    state = tmp_path / "data" / "jobs" / half / "result.mp4.part.state"
    until(state.exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists() and not (state.parent / "result.mp4").exists()

    _, client = start("--bundle", str(tiny_bundle))
    assert client.get(f"/v1/jobs/{finished}/result").status_code == 200
    for job in (half, waiting):
        wait_until(client, job, "done")
    with client.stream("GET", f"/v1/jobs/{half}/events") as answer:
        text = answer.read().decode()
    assert '"done_already":0' in text.replace(" ", "") and '"done_already":1' in text.replace(" ", "")
    videos = []
    for job in (half, waiting):
        (tmp_path / f"{job}.mp4").write_bytes(client.get(f"/v1/jobs/{job}/result").content)
        videos.append(read_video(tmp_path / f"{job}.mp4").frames)
    assert (videos[0] == videos[1]).all(), "an interrupted job must give the frames of an uninterrupted one"


@pytest.mark.slow
def test_stopped_it_ends_soon_and_keeps_its_jobs(
    start: Callable[..., Started], tiny_bundle: Path, sent: dict[str, bytes], tmp_path: Path
) -> None:
    process, client = start("--bundle", str(tiny_bundle))
    job = client.post("/v1/jobs", **submission(sent, settings='{"no_face": true, "steps": 1000}')).json()["id"]
    until(lambda: (client.get(f"/v1/jobs/{job}").json()["progress"] or {}).get("event") == "step")
    client.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert process.stderr is not None and "Traceback" not in process.stderr.read()
    _, client = start("--bundle", str(tiny_bundle))
    assert client.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running")


@pytest.mark.slow
def test_the_embedded_bundle(start: Callable[..., Started], tmp_path: Path) -> None:
    """What a newcomer starts: a face is found, a second of speech is made, with every mark."""
    sample = Path(hallo3.__file__).parent / "embedded" / "sample"
    speech = tiny.write_wav(tmp_path / "speech.wav", tiny.speech(0.4)).read_bytes()
    sent = {"portrait": (sample / "portrait.png").read_bytes(), "speech": speech}
    _, client = start()
    job = client.post("/v1/jobs", **submission(sent, prompt="A man talks", settings='{"seed": 7}')).json()["id"]
    done = wait_until(client, job, "done", seconds=280)
    assert done["frames"] == 10
    (tmp_path / "got.mp4").write_bytes(client.get(f"/v1/jobs/{job}/result").content)
    info, signed = probe(tmp_path / "got.mp4"), read_credentials(tmp_path / "got.mp4")
    assert (info.width, info.height) == (192, 128) and signed is not None and signed.record is not None
    assert signed.record["watermark"] and signed.record["bundle"] == "embedded" and signed.record["seed"] == 7


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--host", "0.0.0.0"], "HALLO3_TOKEN"),
        (["--host", "::"], "HALLO3_TOKEN"),
        (["--host", "hallo3.example"], "HALLO3_TOKEN"),
        (["--token", ""], "--token"),
        (["--token", "zwölf"], "--token"),
        (["--bundle", "no-such-bundle"], "no-such-bundle"),
        (["--port", "99999"], "--port"),
        (["--queue", "0"], "--queue"),
        (["--keep", "-1"], "--keep"),
        (["--certificate", "no.pem"], "--private-key"),
        (["--device", "abacus"], "--device"),
        (["--device", "cpu", "--device", "abacus"], "abacus"),
        (["--data", "{file}"], "data"),
    ],
)
def test_refused(options: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("a file")
    words = [option.replace("{file}", str(tmp_path / "file")) for option in options]
    assert main(["serve", "--port", "0", "--data", str(tmp_path / "data"), *words]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


@pytest.mark.slow
def test_two_servers_and_what_is_exposed(
    start: Callable[..., Started], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, client = start("--bundle", str(tiny_bundle), "--host", "0.0.0.0", "--token", "s3cret")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    port, data = str(client.base_url.port), ["--data", str(tmp_path / "data")]
    assert main(["serve", "--port", "0", *data]) == 2 and "another server" in capsys.readouterr().err
    assert main(["serve", "--port", port, "--data", str(tmp_path / "other")]) == 2
    assert "can't listen" in capsys.readouterr().err
    process.terminate()
    assert process.stderr is not None
    said = process.stderr.read()
    assert "whoever reaches this machine" in said and "not encrypted" in said and "s3cret" not in said


@pytest.mark.slow
def test_no_secret_is_written_anywhere(
    start: Callable[..., Started], tiny_bundle: Path, sent: dict[str, bytes], tmp_path: Path
) -> None:
    """Neither token nor private key is in what the server says, stores, or answers; a wrong token isn't either."""
    process, client = start("--bundle", str(tiny_bundle), "--token", "s3cret-of-the-server")
    wrong = "s3cret-of-somebody-else"
    assert client.get("/metrics", headers={"Authorization": f"Bearer {wrong}"}).status_code == 401
    assert client.get(f"/v1/jobs/x?token={wrong}").status_code == 401
    client.headers["Authorization"] = "Bearer s3cret-of-the-server"
    job = client.post("/v1/jobs", **submission(sent)).json()["id"]
    wait_until(client, job, "done")
    answers = b"".join(
        client.get(path).content for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/result", "/metrics", "/openapi.json")
    )
    process.terminate()
    said = "".join(process.communicate())
    stored = b"".join(file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file())
    (own,) = (settings_folder() / LOCAL_FILE).read_bytes().split(b"PRIVATE KEY-----\n")[1::2]  # what signed the result
    for secret in (b"s3cret-of", b"PRIVATE KEY", own.splitlines()[0]):
        assert secret not in answers + stored + said.encode()


def test_a_base_install_is_told_what_it_lacks(tmp_path: Path) -> None:
    """Without the extra `serve`, as if FastAPI had never been installed."""
    code = "import sys; sys.modules['fastapi'] = None; from hallo3.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ),
    )
    assert done.returncode == 2 and "pip install 'hallo3[serve]'" in done.stderr and done.stderr.count("\n") == 1
