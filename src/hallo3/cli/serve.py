"""`hallo3 serve`: jobs over HTTP."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .options import (
    LIMITS,
    RUN,
    WHERE,
    Attention,
    Bundle,
    Certificate,
    Compiled,
    Decoding,
    Dtype,
    Host,
    MaxSeconds,
    MaxStored,
    MaxUpload,
    Port,
    PrivateKey,
    Queue,
    Rate,
    Strategy,
    Token,
    Weights,
)

if TYPE_CHECKING:
    from ..serving.jobs import JobQueue, Limits
    from ..serving.processes import WorkerProcess
    from ..serving.worker import Worker


def command(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Token = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Jobs and results.",
            rich_help_panel=WHERE,
            show_default="serve in hallo3's cache folder",
        ),
    ] = None,
    bundle: Bundle = "embedded",
    queue: Queue = 16,
    max_upload: MaxUpload = 50,
    max_seconds: MaxSeconds = 600,
    max_stored: MaxStored = 10,
    rate: Rate = 30,
    keep: Annotated[float, typer.Option(min=0.001, help="Hours that results are kept.", rich_help_panel=LIMITS)] = 24,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, cpu, cuda, cuda:1, mps; given several times, each makes jobs with a model of its own.",
            rich_help_panel=RUN,
            show_default="auto",
        ),
    ] = None,
    dtype: Dtype = "auto",
    strategy: Strategy = "auto",
    weights: Weights = "auto",
    decoding: Decoding = "auto",
    attention: Attention = "auto",
    compiled: Compiled = False,
) -> None:
    """Take jobs over HTTP and make them one after the other, with one loaded model, or one on each of several devices.

    Submit, status, events, result, cancel, health and metrics: docs/server.md, and /openapi.json of the running server.
    Stopped or killed, it goes on with every job at its last clip when it is started again.
    """
    import fastapi  # noqa: F401  (what is not installed is said before a model is loaded)
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401

    from ..bundles.places import home
    from ..serving.guard import check_exposure
    from ..serving.jobs import Limits

    check_exposure(host, token)
    limits = Limits.asked(queue, max_upload, max_seconds, max_stored, rate, keep * 3600)
    common = {"bundle": bundle, "certificate": certificate, "private_key": private_key}
    how: dict[str, Any] = {"dtype": dtype, "strategy": strategy, "weights": weights, "decoding": decoding}
    how |= {"attention": attention, "compiled": compiled}
    _serve(data or home() / "serve", limits, common, device or ["auto"], how, host, port, token)


def _serve(
    folder: Path,
    limits: "Limits",
    common: dict[str, str | Path | None],
    devices: list[str],
    how: dict[str, Any],
    host: str,
    port: int,
    token: str | None,
) -> None:
    import uvicorn
    from filelock import FileLock, Timeout

    from ..animation import AnimationRequest, signer_of
    from ..serving.api import create_app
    from ..serving.jobs import JobQueue
    from ..serving.listening import address_of, listen, run_server
    from ..serving.processes import WorkerProcess

    signer_of(AnimationRequest(Path(), Path(), Path(), **common))  # type: ignore[arg-type]
    jobs = JobQueue(folder, limits, common=common)
    try:
        lock = FileLock(folder / "server.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another server uses it; stop that, or choose another --data") from None
    with lock, listen(host, port) as listening:
        workers = _workers(jobs, devices, how)
        app = create_app(jobs, workers, token=token)
        for worker in workers:
            worker.on_end = app.state.metrics.ended
        _open([worker for worker in workers if isinstance(worker, WorkerProcess)])
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        address, bundle = address_of(listening, host), str(common["bundle"])
        run_server(uvicorn.Server(config), listening, lambda: _announce(address, host, token, bundle, folder))
    jobs.close()


def _workers(jobs: "JobQueue", devices: list[str], how: dict[str, Any]) -> "list[Worker] | list[WorkerProcess]":
    """One in this process; or, for several devices, each in a process of its own."""
    from .. import several
    from ..animation import load
    from ..runtime.devices import choose_device
    from ..serving.processes import WorkerProcess
    from ..serving.worker import Worker

    if len(devices) == 1:
        return [Worker(jobs, load(str(jobs.common["bundle"]), device=devices[0], **how))]
    if several.led() is not None:
        raise UserError(f"--device {devices[1]}: torchrun puts all devices to one job; leave torchrun out, or --device")
    for device in devices:
        choose_device(device)
    return [
        WorkerProcess(jobs.folder, jobs.limits, jobs.common, {**how, "device": device}, name=f"worker-{number}")
        for number, device in enumerate(devices, 1)
    ]


def _open(workers: "list[WorkerProcess]") -> None:
    """Starts them one after the other: each sees the memory that those before have left."""
    for worker in workers:
        try:
            worker.open()
        except UserError:
            for other in workers:
                other.stop()
            raise


def _announce(address: str, host: str, token: str | None, bundle: str, folder: Path) -> None:
    print(f"serving {bundle} at {address} (/openapi.json; jobs in {folder})", flush=True)
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
