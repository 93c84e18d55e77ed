"""The page on a socket of this machine, with a tiny bundle of the real classes, and a real headless Chromium."""

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from web_help import patient_page

import tiny
from hallo3.animation import load
from hallo3.runtime.forecast import Forecaster
from hallo3.serving.jobs import JobQueue, Limits
from hallo3.serving.store import Job
from hallo3.serving.worker import Worker
from waiting import PATIENCE, Brake


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


Serving = Callable[..., AbstractContextManager[Site]]


@pytest.fixture(scope="session")
def web_model(tiny_bundle: Path) -> Any:
    return load(str(tiny_bundle), device="cpu")


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, web_model: Any) -> Iterator[Serving]:
    """Gives a context manager of a page that runs; they share the folder of uploads, as Gradio knows one a process.

    None of them tidies unasked: it would delete what another's visits use.
    """
    for name in ("gradio", "uvicorn"):
        pytest.importorskip(name, reason="needs the extra `web`")
    import uvicorn

    from hallo3.web import app as web_app
    from hallo3.web import settle_gradio
    from hallo3.web.answers import Answers
    from hallo3.web.app import PageServer, create_app
    from hallo3.web.visits import Visits

    folder, numbers = tmp_path_factory.mktemp("web"), count()
    settle_gradio(folder)

    @contextmanager
    def serve(*, token: str | None = None, **limits: Any) -> Iterator[Site]:
        kept = Limits(**{"per_minute": 10_000, **limits})
        jobs = JobQueue(folder / f"jobs-{next(numbers)}", kept, common={"bundle": str(tiny_bundle)})
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
        try:
            yield Site(f"http://127.0.0.1:{port}/", answers, folder)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            jobs.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_app, "SECONDS_BETWEEN_TIDYING", 1e9)
        yield serve


@pytest.fixture
def start(serving: Serving) -> Iterator[Callable[..., Site]]:
    """Gives a function that starts a page for this test."""
    with ExitStack() as running:
        yield lambda **options: running.enter_context(serving(**options))


@pytest.fixture(scope="session")
def site(serving: Serving) -> Iterator[Site]:
    """One page for all tests that leave it as it was. Small limits, so that they can be reached."""
    with serving(upload_bytes=300_000, seconds=3.0) as running:
        yield running


class SiteBrake(Brake):
    """Holds a site's denoiser between two steps, so that its page can be looked at meanwhile."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site = site

    def hold_while(self, when: Callable[[Job], bool] = lambda job: True) -> None:
        """Steps wait while this is so of a running job."""
        self.hold(lambda: any(when(job) for job in self._site.every_job() if job.state == "running"))


@pytest.fixture
def brake(site: Site, web_model: Any) -> Iterator[SiteBrake]:
    made = SiteBrake(site)
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
        page = patient_page(chromium, **options)
        elsewhere: list[str] = []
        page.on("request", lambda r: r.url.startswith((url, "data:", "blob:")) or elsewhere.append(r.url))
        page.on("pageerror", lambda error: elsewhere.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#animate")
        page.wait_for_selector("#stage .note, #stage video, #stage .problem")  # it has asked how it stands
        opened.append((page.context, elsewhere))
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
