"""HTTP before the queue: submit, status, events, result, cancel, health, metrics. `/openapi.json` describes it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, File, Form, Header, Path, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..bundles.places import published_name
from ..consent import STATEMENT
from ..errors import UserError, in_one_line, show_bug
from ..settings import Settings, read_settings
from ..version import __version__
from .guard import SUBMIT, Guard, GuardedRoute, NotAllowed
from .jobs import Busy, JobQueue, NotReady, UnknownJob, reason_of
from .metrics import CountAnswers, Metrics
from .processes import WorkerProcess
from .store import Job
from .worker import Worker

SECONDS_BETWEEN_LOOKS = 0.2
_log = logging.getLogger(__name__)
_FORM: Any = {"max_files": 2, "max_fields": 8, "max_part_size": 65_536}


class JobView(BaseModel):
    """A job as its sender sees it. Times are seconds since 1970."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    ahead: int | None
    """Jobs that are made before this one, of those waiting; null when it is not waiting."""
    progress: dict[str, Any] | None
    """The newest of the events `start`, `step` and `clip`, with `seconds_left` in the latter two."""
    error: str | None
    settings: dict[str, Any]
    created: float
    started: float | None
    ended: float | None
    expires: float | None
    """When job and result are forgotten."""
    frames: int
    seconds: float


class Problem(BaseModel):
    """What is wrong, in one line: what, where, what to do."""

    error: str


class Health(BaseModel):
    """Whether jobs are being made."""

    status: Literal["ok", "not working"]
    version: str
    bundle: str
    waiting: int


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in (401, 403, *statuses)}


_bearer = Depends(HTTPBearer(auto_error=False, description="The server's token, if it has one."))
JobName = Annotated[str, Path(description="The `id` that submitting gave.", max_length=100)]
routes = APIRouter(route_class=GuardedRoute, dependencies=[_bearer])


def _jobs(request: Request) -> JobQueue:
    jobs: JobQueue = request.app.state.jobs
    return jobs


Queue = Annotated[JobQueue, Depends(_jobs)]


@routes.post("/v1/jobs", status_code=202, name=SUBMIT, responses=_problems(400, 413, 422, 429))
def submit(
    jobs: Queue,
    portrait: Annotated[UploadFile, File(description="Picture of the person: PNG, JPEG, WebP, …")],
    speech: Annotated[UploadFile, File(description="Recording: WAV, MP3, M4A, FLAC, OGG, or a video's sound.")],
    rights: Annotated[bool, Form(description=f"true states: {STATEMENT}")] = False,
    prompt: Annotated[str, Form(description="Who is seen, what they do, and where.", max_length=4000)] = "",
    settings: Annotated[
        str,
        Form(
            description="A JSON object with any of these.",
            json_schema_extra={
                "contentMediaType": "application/json",
                "contentSchema": Settings.model_json_schema(),
            },
        ),
    ] = "{}",
) -> JobView:
    """Submit a job. Both files are decoded before this answers; what waits can be made.

    429 with `Retry-After` when the queue, the storage or the client's rate is full.
    """
    names = (portrait.filename or "", speech.filename or "")
    given = read_settings({**_object(settings), **({"prompt": prompt} if prompt else {})})
    return _view(jobs, jobs.submit(portrait.file, speech.file, given, rights=rights, names=names))


@routes.get("/v1/jobs/{name}", responses=_problems(404, 422))
def status(jobs: Queue, name: JobName) -> JobView:
    """How a job stands."""
    return _view(jobs, jobs.get(name))


@routes.post("/v1/jobs/{name}/cancel", responses=_problems(404, 422))
def cancel(jobs: Queue, name: JobName) -> JobView:
    """Cancel a job: at once while it waits, within a step while it is made. One that is over stays as it is."""
    return _view(jobs, jobs.cancel(name))


@routes.get(
    "/v1/jobs/{name}/result",
    response_class=FileResponse,
    responses={200: {"content": {"video/mp4": {}}, "description": "The video."}, **_problems(404, 409, 416, 422)},
)
def result(jobs: Queue, name: JobName) -> FileResponse:
    """The finished video; 409 while there is none."""
    return FileResponse(jobs.result(name), media_type="video/mp4", filename=f"hallo3-{name[:8]}.mp4")


async def _known(jobs: Queue, name: JobName) -> str:
    """Answers 404 before the stream begins."""
    await run_in_threadpool(jobs.get, name)
    return name


@routes.get("/v1/jobs/{name}/events", response_class=EventSourceResponse, responses=_problems(404, 422))
async def events(
    jobs: Queue,
    known: Annotated[str, Depends(_known)],
    last_event_id: Annotated[str | None, Header(description="Where to go on: an event's `id`.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a job, as server-sent events: those so far, then those to come.

    `queued`, `start`, `step`, `clip`, `notice`; the last is `done`, `failed` (with `error`) or `cancelled`.
    """
    text = last_event_id or ""
    after = min(int(text), 1 << 62) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    while True:
        over = await run_in_threadpool(_is_over, jobs, known)  # asked first: events noted since come in the next round
        for number, event in await run_in_threadpool(jobs.events, known, after):
            yield ServerSentEvent(data=event, event=event["event"], id=str(number))
            after = number
        if over:
            return
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def _is_over(jobs: JobQueue, name: str) -> bool:
    try:
        return jobs.get(name).is_over
    except UnknownJob:  # it has expired meanwhile
        return True


@routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **_problems()})
def metrics(request: Request) -> Response:
    """Counts and states for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


def _health(request: Request) -> JSONResponse:
    """Whether jobs are being made; asks for no token."""
    jobs: JobQueue = request.app.state.jobs
    workers = request.app.state.workers
    well = not workers or any(worker.is_working for worker in workers)
    waiting = jobs.store.counts()["queued"]
    bundle = request.app.state.bundle
    found = Health(status="ok" if well else "not working", version=__version__, bundle=bundle, waiting=waiting)
    return JSONResponse(found.model_dump(), 200 if well else 503)


def _view(jobs: JobQueue, job: Job) -> JobView:
    ahead = jobs.store.ahead(job) if job.state == "queued" else None
    return JobView(ahead=ahead, **{name: getattr(job, name) for name in JobView.model_fields if name != "ahead"})


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"settings: is no JSON ({' '.join(str(error).split())[:100]}); send an object") from None
    if not isinstance(values, dict):
        raise UserError('settings: is no JSON object; send {"seed": 7, …}')
    return values


# ------------------------------------------------------------------------------------------------------------- the app


def create_app(jobs: JobQueue, workers: Sequence[Worker | WorkerProcess] = (), *, token: str | None = None) -> FastAPI:
    """The web application.

    jobs: the queue. workers: started and stopped with the application. token: what clients must know; without one only
    requests to this machine's own address are answered.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            for worker in workers:
                await run_in_threadpool(worker.stop)

    app = FastAPI(
        title="hallo3",
        version=__version__,
        summary="A portrait, a recording and a line of text in; a video in which that person says it out.",
        docs_url=None,  # those pages fetch scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # below, behind the guard
        lifespan=lifespan,
        form_limits=_FORM,
    )
    app.state.jobs, app.state.workers = jobs, workers
    app.state.bundle, _ = published_name(str(jobs.common.get("bundle", "embedded")))  # not where it lies
    app.state.guard, app.state.metrics = Guard(jobs, token), Metrics(jobs)
    app.include_router(routes)
    app.add_api_route("/health", _health, responses={200: {"model": Health}, 503: {"model": Health}})
    about = APIRouter(route_class=GuardedRoute)
    about.add_api_route("/openapi.json", lambda: app.openapi(), include_in_schema=False)
    app.include_router(about)
    app.add_middleware(CountAnswers, metrics=app.state.metrics)
    # What the disk and the memory refuse is named beside Exception, which alone would print where it came from.
    for kind in (Exception, OSError, MemoryError, UserError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _on_error)
    return app


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    """Every error is one line in the same shape; the status tells programs what people read there."""
    if isinstance(error, RequestValidationError):
        return _problem(422, _first_mistake(error))
    if isinstance(error, HTTPException):
        return _problem(error.status_code, f"request: {error.detail}", dict(error.headers or {}))
    if isinstance(error, Busy):
        return _problem(429, str(error), {"Retry-After": str(error.retry_after)})
    if isinstance(error, NotAllowed):
        return _problem(error.status, str(error), {"WWW-Authenticate": "Bearer"} if error.status == 401 else {})
    if isinstance(error, UserError):
        status = 404 if isinstance(error, UnknownJob) else 409 if isinstance(error, NotReady) else 400
        return _problem(status, str(error))
    show_bug(error)
    _log.error("%s", in_one_line(error))
    if (reason := reason_of(error)) is not None:  # ours to mend, and perhaps soon
        return _problem(503, f"server: can't do this now ({reason}); try again later", {"Retry-After": "60"})
    return _problem(500, in_one_line(error))


def _first_mistake(error: RequestValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part != "body") or "request"
    return f"{name[:80]}: {first['msg'][:1].lower()}{first['msg'][1:]}; see /openapi.json"


def _problem(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    text = " ".join(line.split()).encode(errors="replace").decode()
    return JSONResponse({"error": text}, status, headers=headers)
