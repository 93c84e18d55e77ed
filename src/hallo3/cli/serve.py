"""`hallo3 serve`: jobs over HTTP."""

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .options import Bundle, Certificate, Decoding, Device, Dtype, PrivateKey, Strategy, Weights

if TYPE_CHECKING:
    from ..serving.jobs import Limits

WHERE, LIMITS = "Where it listens", "Limits"


def command(
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond this machine it needs a token.", rich_help_panel=WHERE)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free one, and says which.", rich_help_panel=WHERE)
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help="What clients must know. Better by the variable: other users see the command line.",
            envvar="HALLO3_TOKEN",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Jobs and results. [default: serve in hallo3's cache folder]",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None,
    bundle: Bundle = "embedded",
    queue: Annotated[int, typer.Option(min=1, help="Jobs that may wait.", rich_help_panel=LIMITS)] = 16,
    max_upload: Annotated[
        float, typer.Option(min=0.001, help="MB of a portrait or a recording.", rich_help_panel=LIMITS)
    ] = 50,
    max_seconds: Annotated[
        float, typer.Option(min=0.2, max=7200, help="Seconds of speech.", rich_help_panel=LIMITS)
    ] = 600,
    max_stored: Annotated[
        float, typer.Option(min=0.001, help="GB kept in all; above that no job is taken.", rich_help_panel=LIMITS)
    ] = 10,
    rate: Annotated[int, typer.Option(min=1, help="Jobs a minute of one client.", rich_help_panel=LIMITS)] = 30,
    keep: Annotated[float, typer.Option(min=0.001, help="Hours that results are kept.", rich_help_panel=LIMITS)] = 24,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    strategy: Strategy = "auto",
    weights: Weights = "auto",
    decoding: Decoding = "auto",
) -> None:
    """Take jobs over HTTP and make them one after the other, with one loaded model.

    Submit, status, events, result, cancel, health and metrics: docs/server.md, and /openapi.json of the running server.
    Stopped or killed, it goes on with every job at its last clip when it is started again.
    """
    import fastapi  # noqa: F401  (what is not installed is said before a model is loaded)
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401

    from ..bundles.places import home
    from ..serving.guard import is_loopback
    from ..serving.jobs import Limits

    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise UserError("--token: must be printable ASCII, not empty, without blanks around it")
    if not is_loopback(host) and token is None:
        raise UserError(f"--host {host}: opens the server to others, which needs a token; set HALLO3_TOKEN")
    limits = Limits(
        waiting=queue,
        upload_bytes=round(max_upload * 1e6),
        seconds=max_seconds,
        stored_bytes=round(max_stored * 1e9),
        per_minute=rate,
        keep_seconds=keep * 3600,
    )
    common = {"bundle": bundle, "certificate": certificate, "private_key": private_key}
    how = {"device": device, "dtype": dtype, "strategy": strategy, "weights": weights, "decoding": decoding}
    _serve(data or home() / "serve", limits, common, how, host, port, token)


def _serve(
    folder: Path,
    limits: "Limits",
    common: dict[str, str | Path | None],
    how: dict[str, str],
    host: str,
    port: int,
    token: str | None,
) -> None:
    import uvicorn
    from filelock import FileLock, Timeout

    from ..animation import AnimationRequest, load, signer_of
    from ..serving.api import create_app
    from ..serving.jobs import JobQueue
    from ..serving.worker import Worker

    signer_of(AnimationRequest(Path(), Path(), Path(), **common))  # type: ignore[arg-type]
    jobs = JobQueue(folder, limits, common=common)
    try:
        lock = FileLock(folder / "server.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another server uses it; stop that, or choose another --data") from None
    with lock, _listening(host, port) as listening:
        pipeline = load(str(common["bundle"]), **how)
        worker = Worker(jobs, pipeline)
        app = create_app(jobs, [worker], token=token)
        worker.on_end = app.state.metrics.ended
        _announce(listening, host, token, str(common["bundle"]), folder)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listening])
    jobs.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"--host {host} --port {port}: can't listen there ({reason}); choose others") from None


def _announce(listening: socket.socket, host: str, token: str | None, bundle: str, folder: Path) -> None:
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {bundle} at http://{shown}:{port} (/openapi.json; jobs in {folder})", flush=True)
    from ..serving.guard import is_loopback

    if not is_loopback(host):
        print(
            "note: whoever reaches this machine and knows the token can submit jobs, and fetch those whose names they "
            "know; /health answers anyone. Traffic is not encrypted: put a proxy with TLS before it.",
            file=sys.stderr,
            flush=True,
        )
    elif token is None:
        print(
            "note: without a token, everyone who is logged in on this machine can use it.", file=sys.stderr, flush=True
        )
