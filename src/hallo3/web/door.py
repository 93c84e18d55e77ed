"""Before the page: who comes in, what of Gradio is reachable, how much may be sent, and what a browser may do with it.

Gradio's server can do more than this page needs: fetch addresses, stream, run events by name, show its own state.
`_OPEN` is what the page in a browser uses; the rest is not there.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import in_one_line, show_bug
from ..serving.guard import NotAllowed, check_local, check_origin, is_token
from ..serving.jobs import Busy, Limits, Rates, reason_of
from .visits import Visit, Visits

VISIT = "hallo3.visit"  # where a request's scope has it
PAGE, UPLOAD, EVENT, ENTER = "/", "/gradio_api/upload", "/gradio_api/run/predict", "/enter"
_OPEN = {
    "GET": re.compile(
        r"/|/theme\.css|/manifest\.json|/favicon\.ico|/(assets|static|svelte|videos)/.+"
        r"|/gradio_api/(theme\.css|startup-events|upload_progress|heartbeat/\w+|file=.+)"
    ),
    "POST": re.compile(f"{UPLOAD}|{EVENT}|{ENTER}"),
}
_MOST = {UPLOAD: 1_000_000, EVENT: 1_000_000, ENTER: 10_000}  # bytes of a request that are no file
_log = logging.getLogger(__name__)
_HEADERS = {
    # Nothing is fetched from elsewhere, whatever a library's page names, and no other site shows this one in a frame.
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "permissions-policy": "camera=(self), microphone=(self)",
}
_ENTRANCE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>hallo3</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: light dark; font-family: system-ui, sans-serif }}
body {{ max-width: 22rem; margin: 20vh auto 0; padding: 0 1rem }}
input, button {{ font: inherit; padding: .5rem; width: 100%; box-sizing: border-box; margin-top: .5rem }}</style>
<h1>hallo3</h1><form method="post" action="enter"><label>Token
<input name="token" type="password" autocomplete="current-password" required autofocus></label>
<button>Enter</button></form><p role="alert">{said}</p></html>"""


class Door:
    """Lets browsers in: every request goes through here.

    visits: each browser that comes in has one. limits: of what is sent. token: what visitors must enter; without one
    only requests to this machine's own address are answered. port: names the cookies, which all ports would share.
    is_event: whether a request's body is an event as the page sends them; may raise ValueError where not.
    """

    def __init__(
        self,
        app: ASGIApp,
        visits: Visits,
        limits: Limits,
        token: str | None,
        port: int,
        is_event: Callable[[Any], bool],
    ) -> None:
        self._app, self._visits, self._limits, self._token = app, visits, limits, token
        self._is_event = is_event
        self._cookie = f"hallo3_visit_{port}"
        self._entering = Rates(limits.per_minute, "tokens")
        self._sending = Rates(4 * limits.per_minute, "files")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(_HEADERS)
        receive = self._limited(scope, receive)
        try:
            answer = await self._answer(Request(scope, receive), headers)
        except Busy as error:
            answer = _line(429, str(error))
            headers["retry-after"] = str(error.retry_after)
        except NotAllowed as error:
            answer = _line(error.status, str(error))
        except HTTPException as error:
            answer = _line(error.status_code, str(error.detail))
        receive = scope.get("hallo3.receive", receive)
        await _without_failing(answer, scope, receive, _with_headers(send, headers))

    async def _answer(self, request: Request, headers: dict[str, str]) -> ASGIApp:
        """What answers a request: the page behind, or the door itself."""
        if self._token is None:
            check_local(request)
        else:
            check_origin(request, "where it is this one, a proxy before it must pass the header `Host` on")
        path = request.scope["path"]  # what is routed by; the address has the `Host` header in it
        open_here = _OPEN.get("GET" if request.method == "HEAD" else request.method)
        if open_here is None or not open_here.fullmatch(path):
            return _line(404, "page: there is nothing of this name")
        if path == ENTER:
            return await self._enter(request, headers)
        visit = self._visits.get(request.cookies.get(self._cookie))
        if visit is None and self._token is not None:
            if path == PAGE:
                return HTMLResponse(_ENTRANCE.format(said=""), 401)
            raise NotAllowed("token: this page was left too long, or never entered; load it again", 401)
        if visit is None and path in (PAGE, EVENT):
            visit = self._visits.begin()
            headers["set-cookie"] = self._cookie_of(visit)
        request.scope[VISIT] = visit
        if path == UPLOAD:
            await self._check_room(request)
        if path == EVENT:
            await self._check_event(request)
        return self._app

    async def _enter(self, request: Request, headers: dict[str, str]) -> ASGIApp:
        """Somebody says the token."""
        if self._token is None:
            return RedirectResponse(".", 303)
        self._entering.count(request.client.host if request.client else "unknown")
        (given, *_) = parse_qs((await request.body()).decode(errors="replace")).get("token", [""])
        if not is_token(given.strip(), self._token):
            return HTMLResponse(_ENTRANCE.format(said="token: this is not it; ask whoever runs this page"), 401)
        headers["set-cookie"] = self._cookie_of(self._visits.begin())
        return RedirectResponse(".", 303)

    def _cookie_of(self, visit: Visit) -> str:
        return f"{self._cookie}={visit.name}; HttpOnly; SameSite=Lax; Path=/"

    async def _check_room(self, request: Request) -> None:
        self._sending.count(request.client.host if request.client else "unknown")
        if await run_in_threadpool(self._visits.stored) >= self._limits.stored_bytes:
            raise Busy("storage: this page keeps as much as it may; try again later", 600)

    async def _check_event(self, request: Request) -> None:
        """Raises NotAllowed for an event that is not as the page sends them, or that names any file but an upload.

        Gradio would write a traceback for the one. The file it would fetch from the network, or copy from this machine
        to where the page may read it: where it is mounted, not launched, it does not look where files come from.
        """
        body = await request.body()
        try:
            event = json.loads(body)
            fine = self._is_event(event) and all(map(self._is_upload, _paths_in(event)))
        except (ValueError, RecursionError):
            fine = False
        if not fine:
            raise NotAllowed("event: is none of this page's", 400)

        async def again() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        request.scope["hallo3.receive"] = again

    def _is_upload(self, path: object) -> bool:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(self._visits.uploads.resolve())

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """What comes in, ended by an error (413) where it is larger than anything that the page sends."""
        path = scope["path"]
        most = _MOST.get(path, 0) + (self._limits.upload_bytes if path == UPLOAD else 0)
        said = Headers(scope=scope).get("content-length", "")
        seen = int(said[:20]) if said.isdecimal() else 0

        async def limited() -> Message:
            nonlocal seen
            if seen > most:
                raise self._too_large(path)
            message = await receive()
            if not said.isdecimal():
                seen += len(message.get("body", b""))
            if seen > most:
                raise self._too_large(path)
            return message

        return limited

    def _too_large(self, path: str) -> HTTPException:
        what = {UPLOAD: "file", EVENT: "event", ENTER: "token"}.get(path, "request")
        limit = self._limits.upload_bytes if path == UPLOAD else _MOST.get(path, 0)
        return HTTPException(413, f"{what}: is larger than {limit / 1e6:g} MB, the limit; make it smaller")


def _paths_in(value: Any) -> Iterator[object]:
    """Whatever Gradio might take for the place of a file."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _paths_in(one)


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            found = MutableHeaders(scope=message)
            for name, value in headers.items():
                found[name] = value
        await send(message)

    return with_headers


async def _without_failing(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers; where that fails, by one line in place of a traceback that a visitor could have written at will."""
    status = 0

    async def send_unless_failed(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        if status != 500:
            await send(message)

    try:
        await answer(scope, receive, send_unless_failed)
        reason, line = None, "server: can't do this; try again later"
    except Exception as error:
        if status not in (0, 500):  # an answer is on its way
            raise
        show_bug(error)
        status, reason = 500, reason_of(error)
        line = in_one_line(error) if reason is None else f"server: can't do this now ({reason}); try again later"
        _log.error("%s", line)
    if status == 500:
        await _line(500 if reason is None else 503, line)(scope, receive, send)


def _line(status: int, text: str) -> ASGIApp:
    return PlainTextResponse(text, status)
