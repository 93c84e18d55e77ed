"""The page's web application: Gradio behind the door, the videos of a visit, and all that is temporary."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import socket

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from ..errors import UserError, in_one_line, show_bug
from ..serving.jobs import reason_of
from ..serving.worker import Worker
from .answers import Answers
from .door import VISIT, Door

SECONDS_BETWEEN_TIDYING = 5.0
_log = logging.getLogger(__name__)


def create_app(answers: Answers, worker: Worker, *, bundle: str, token: str | None, port: int) -> FastAPI:
    """The application. worker: started and stopped with it. port: where it listens. Call `settle_gradio` before."""
    import gradio

    from .events import Events
    from .page import Page, theme

    visits, limits = answers.visits, answers.jobs.limits

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        tidying = asyncio.create_task(_tidy(answers))
        try:
            yield
        finally:
            tidying.cancel()
            with suppress(asyncio.CancelledError):
                await tidying
            await run_in_threadpool(worker.stop)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.get("/videos/{name}")
    def video(request: Request, name: str, until: int | None = None, download: bool = False) -> Response:
        """A video of the visit that asks, as far as it is made; `until`: only so many bytes of it."""
        visit = request.scope[VISIT]
        if visit is None or name not in visit.jobs:
            return PlainTextResponse("video: there is none of this name in this visit", 404)
        try:
            path = answers.jobs.result(name) if until is None else answers.jobs.partial(name)
            if path is None:
                return PlainTextResponse("video: it is finished; load the page again", 404)
            found = path.stat()
        except (UserError, FileNotFoundError) as error:
            return PlainTextResponse(in_one_line(error), 404)
        if until is not None:  # it grows meanwhile
            found = os.stat_result((*found[:6], max(0, min(until, found.st_size)), *found[7:]))
        name = f"hallo3-{name[:8]}.mp4"
        kind = "attachment" if download else "inline"
        return _FirstBytes(
            path, media_type="video/mp4", filename=name, content_disposition_type=kind, stat_result=found
        )

    blocks, style = Page(answers, bundle, alone=token is None).build(), Path(__file__).with_name("style.css")
    app.add_middleware(Door, visits=visits, limits=limits, token=token, port=port, is_event=Events(blocks).has)
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css_paths=[style],
    )
    visits.keep_uploads()
    return app


class _FirstBytes(FileResponse):
    """As many bytes of a file as its `stat_result` says, however far it has grown by now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        left = 0

        async def send_the_first(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                left = int(Headers(raw=message["headers"])["content-length"])
            elif message["type"] == "http.response.body":
                message = {**message, "body": message.get("body", b"")[:left]}
                left -= len(message["body"])
            await send(message)

        await super().__call__(scope, receive, send_the_first)


class PageServer(uvicorn.Server):
    """Ends what pages keep open (Gradio's sign of life) before it waits for the answers that are on their way."""

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Ends the server."""
        page = self.config.app.routes[-1].app  # type: ignore[union-attr]
        page.stop_event.set()
        await super().shutdown(sockets)


async def _tidy(answers: Answers) -> None:
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_TIDYING)
        try:
            await run_in_threadpool(answers.visits.tidy)
        except Exception as error:  # a full disk, a locked table: what is over must still go later
            show_bug(error)
            _log.error("tidying: %s; it is tried again", reason_of(error) or in_one_line(error))
