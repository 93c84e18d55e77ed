"""What is asked of a request before its body is read: a token, the right host, room in the queue."""

import ipaddress
import secrets
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Message

from ..errors import UserError
from .jobs import JobQueue

SUBMIT = "submit"  # the operation that takes room
_BESIDE_FILES = 1_000_000  # bytes of a submission that are neither portrait nor speech


class NotAllowed(UserError):
    """No token, a wrong one, or a page of another site asks in its reader's name. status: 401 or 403."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Lets in who knows the token; without a token, those on this machine alone.

    Without a token a browser on this machine could be made to submit by any page that it shows: what comes from a page
    of another host, or asks for another name of this machine, is refused.
    """

    def __init__(self, jobs: JobQueue, token: str | None) -> None:
        self._jobs, self._token = jobs, token
        self._most = 2 * jobs.limits.upload_bytes + _BESIDE_FILES

    async def check(self, request: Request, operation: str) -> None:
        """Raises NotAllowed; Busy for a submission that there is no room for."""
        if self._token is not None:
            self._check_token(request)
        else:
            check_local(request)
        if operation == SUBMIT:
            client = request.client.host if request.client else "unknown"
            await run_in_threadpool(self._jobs.admit, client)

    def limited(self, request: Request) -> Request:
        """The request, with a body that ends in an error (413) where it is larger than what can be a submission.

        Before anything is read where it says its length, else while it is read.
        """
        too_large = HTTPException(413, f"is larger than {self._most / 1e6:g} MB; make portrait and speech smaller")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._most:
            raise too_large
        seen = 0

        async def receive() -> Message:
            nonlocal seen
            message = await request.receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise too_large
            return message

        return Request(request.scope, receive)

    def _check_token(self, request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not is_token(given.strip(), self._token or ""):
            raise NotAllowed("token: missing or wrong; send the header `Authorization: Bearer TOKEN`", 401)


def is_token(given: str, token: str) -> bool:
    """Whether what was given is the token; takes as long for a nearly right one as for any other."""
    return secrets.compare_digest(given.encode(errors="replace"), token.encode())


def check_exposure(host: str, token: str | None) -> None:
    """Raises UserError for a token that can't be sent, and for an address beyond this machine without one."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise UserError("--token: must be printable ASCII, not empty, without blanks around it")
    if not is_loopback(host) and token is None:
        raise UserError(f"--host {host}: opens the server to others, which needs a token; set HALLO3_TOKEN")


def check_local(request: HTTPConnection) -> None:
    """Raises NotAllowed for a request that another host's page makes, or that calls this machine by another name."""
    host = request.headers.get("host", "")
    if _netloc_of(f"//{host}") != host or not is_loopback(_host_of(f"//{host}")):
        raise NotAllowed(f"host: {host[:80]!r} is not this machine; ask 127.0.0.1, or start with --token", 403)
    check_origin(request)


def check_origin(request: HTTPConnection, remedy: str = "start with --token to use one") -> None:
    """Raises NotAllowed for a request that a page of another origin makes. remedy: what to do where it should."""
    origin = request.headers.get("origin")
    if origin is not None and _netloc_of(origin) != request.headers.get("host", ""):
        raise NotAllowed(f"origin: a page of another site may not ask; {remedy}", 403)


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _netloc_of(address: str) -> str:
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


class GuardedRoute(APIRoute):
    """A route that asks the app's guard first, before the body comes in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            guard: Guard = request.app.state.guard
            await guard.check(request, self.name)
            return await handle(guard.limited(request))

        return guarded
