"""The page on a socket of this machine, with a tiny bundle of the real classes, and a real headless Chromium."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
from hallo3.animation import load
from hallo3.runtime.forecast import Forecaster
from hallo3.serving.jobs import JobQueue, Limits
from hallo3.serving.store import Job
from hallo3.serving.worker import Worker

PATIENCE = 180_000  # ms: a page in a browser beside other tests


@dataclass(frozen=True)
class Site:
    """A running page: its address, what answers, and where its files are."""

    url: str
    answers: Any
    folder: Path

    def every_job(self) -> list[Job]:
        """The jobs of all visits."""
        names = [path.name for path in (self.answers.jobs.folder / "jobs").iterdir()]
        return [job for job in map(self.answers.jobs.store.get, names) if job is not None]


@pytest.fixture(scope="session")
def web_model(tiny_bundle: Path) -> Any:
    return load(str(tiny_bundle), device="cpu")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, web_model: Any) -> Iterator[Callable[..., Site]]:
    """Gives a function that starts a page; they share the folder of uploads, as Gradio knows one a process."""
    for name in ("gradio", "uvicorn"):
        pytest.importorskip(name, reason="needs the extra `web`")
    import uvicorn

    from hallo3.web import settle_gradio
    from hallo3.web.answers import Answers
    from hallo3.web.app import PageServer, create_app
    from hallo3.web.visits import Visits

    folder = tmp_path_factory.mktemp("web")
    settle_gradio(folder)
    running: list[tuple[uvicorn.Server, threading.Thread, JobQueue]] = []

    def run(*, token: str | None = None, **limits: Any) -> Site:
        kept = Limits(**{"per_minute": 10_000, **limits})
        jobs = JobQueue(folder / f"jobs-{len(running)}", kept, common={"bundle": str(tiny_bundle)})
        answers = Answers(
            Visits(jobs, folder / "uploads", keep_seconds=3600.0), web_model, Forecaster(str(tiny_bundle), web_model)
        )
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        worker = Worker(jobs, web_model, on_end=answers.learn)
        app = create_app(answers, worker, bundle=str(tiny_bundle), token=token, port=port)
        server = PageServer(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread, jobs))
        return Site(f"http://127.0.0.1:{port}/", answers, folder)

    yield run
    for server, thread, jobs in running:
        server.should_exit = True
        thread.join(60)
        jobs.close()


@pytest.fixture(scope="session")
def site(start: Callable[..., Site]) -> Site:
    """One page for all tests that leave it as it was. Small limits, so that they can be reached."""
    return start(upload_bytes=300_000, seconds=3.0)


class Brake:
    """Holds a site's denoiser between two steps, so that its page can be looked at meanwhile. calls: of it."""

    def __init__(self, site: Site) -> None:
        self._site, self._when, self.calls = site, _never, 0

    def hold(self, when: Callable[[Job], bool]) -> None:
        """Steps wait while this is so of a running job."""
        self._when = when

    def release(self) -> None:
        """Steps go on."""
        self._when = _never

    def __call__(self, *_: object) -> None:
        self.calls += 1
        deadline = time.monotonic() + PATIENCE / 1000
        while any(self._when(job) for job in self._site.every_job() if job.state == "running"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _never(_: Job) -> bool:
    return False


@pytest.fixture
def brake(site: Site, web_model: Any) -> Iterator[Brake]:
    made = Brake(site)
    hook = web_model.transformer.register_forward_pre_hook(made)
    yield made
    made.release()
    hook.remove()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser, started once."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium")
    pretend = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *pretend])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Gives a function that opens a page as a new visitor, and afterwards checks that nothing was fetched elsewhere."""
    opened: list[tuple[Any, list[str]]] = []

    def go(url: str, **options: Any) -> Any:
        context = chromium.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        elsewhere: list[str] = []
        page.on("request", lambda r: r.url.startswith((url, "data:", "blob:")) or elsewhere.append(r.url))
        page.on("pageerror", lambda error: elsewhere.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#animate")
        page.wait_for_selector("#stage .note, #stage video, #stage .problem")  # it has asked how it stands
        opened.append((context, elsewhere))
        return page

    yield go
    for context, elsewhere in opened:
        context.close()
        assert elsewhere == []


@pytest.fixture(scope="session")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A portrait and a recording of 0.6 s, which is three clips of the tiny bundle."""
    folder = tmp_path_factory.mktemp("sent")
    tiny.portrait().save(folder / "anna.png")
    return {"portrait": folder / "anna.png", "speech": tiny.write_wav(folder / "hello.wav", tiny.speech(0.6))}
