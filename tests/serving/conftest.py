"""A server on a socket of this machine, with a tiny bundle of the real classes, and what is sent to it."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from hallo3.animation import load
from hallo3.serving.jobs import JobQueue, Limits
from hallo3.serving.worker import Worker
from waiting import Brake


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: Path) -> Any:
    return load(str(tiny_bundle), device="cpu")


@pytest.fixture
def brake(tiny_model: Any) -> Iterator[Brake]:
    """Holds the denoiser of the server in this process."""
    made = Brake()
    hook = tiny_model.transformer.register_forward_pre_hook(made)
    yield made
    made.release()
    hook.remove()


@pytest.fixture(scope="session")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A portrait and a recording of 0.4 s, which is two clips of the tiny bundle."""
    folder = tmp_path_factory.mktemp("sent")
    tiny.portrait().save(folder / "portrait.png")
    tiny.write_wav(folder / "speech.wav", tiny.speech(0.4))
    return {"portrait": (folder / "portrait.png").read_bytes(), "speech": (folder / "speech.wav").read_bytes()}


@pytest.fixture
def serve(tmp_path: Path, tiny_bundle: Path, tiny_model: Any) -> Iterator[Callable[..., Any]]:
    """Gives a function that starts a server and gives a client of it. working=False: nothing takes the jobs."""
    for name in ("fastapi", "httpx"):  # here, as a conftest that skips itself ends the whole run
        pytest.importorskip(name, reason="needs the extras `serve` and `dev`")
    import httpx
    import uvicorn

    from hallo3.serving.api import create_app

    running: list[tuple[uvicorn.Server, threading.Thread, httpx.Client, JobQueue]] = []

    def start(*, working: bool = True, token: str | None = None, **limits: Any) -> Any:
        jobs = JobQueue(
            tmp_path / "data", Limits(**{"per_minute": 1000, **limits}), common={"bundle": str(tiny_bundle)}
        )
        workers = [Worker(jobs, tiny_model)] if working else []
        app = create_app(jobs, workers, token=token)
        for worker in workers:
            worker.on_end = app.state.metrics.ended
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        port = listening.getsockname()[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        running.append((server, thread, client, jobs))
        return client

    yield start
    for server, thread, client, jobs in running:
        client.close()
        server.should_exit = True
        thread.join(180)
        jobs.close()
