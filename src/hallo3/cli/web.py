"""`hallo3 web`: a page in the browser."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Stopped
from .options import (
    LIMITS,
    Attention,
    Bundle,
    Certificate,
    Compiled,
    Decoding,
    Device,
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
    from ..serving.jobs import Limits

FOR_EVER = 10 * 365 * 86_400.0  # seconds that jobs are kept: a visit decides


def command(
    host: Host = "127.0.0.1",
    port: Port = 7860,
    token: Token = None,
    bundle: Bundle = "embedded",
    queue: Queue = 16,
    max_upload: MaxUpload = 50,
    max_seconds: MaxSeconds = 600,
    max_stored: MaxStored = 10,
    rate: Rate = 30,
    keep: Annotated[
        float,
        typer.Option(min=0.001, help="Hours that a visit lasts without a sign of life.", rich_help_panel=LIMITS),
    ] = 1,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    strategy: Strategy = "auto",
    weights: Weights = "auto",
    decoding: Decoding = "auto",
    attention: Attention = "auto",
    compiled: Compiled = False,
) -> None:
    """Open a page on which portraits are made to speak, with one loaded model.

    It listens to this machine alone; Ctrl-C ends it. What visitors send and make is in a temporary folder, and is
    deleted when their visit is over: docs/web.md.
    """
    from ..serving.guard import check_exposure
    from ..serving.jobs import Limits
    from ..web.temporary import Terminated, end_as_asked, own_folder

    check_exposure(host, token)
    limits = Limits.asked(queue, max_upload, max_seconds, max_stored, rate, FOR_EVER)
    common = {"bundle": bundle, "certificate": certificate, "private_key": private_key}
    how: dict[str, Any] = {"device": device, "dtype": dtype, "strategy": strategy, "weights": weights}
    how |= {"decoding": decoding, "attention": attention, "compiled": compiled}
    try:
        with own_folder() as folder:
            _serve(folder, limits, keep * 3600, common, how, host, port, token)
    except KeyboardInterrupt:
        raise Stopped("stopped by Ctrl-C; what visitors sent and made is deleted") from None
    except Terminated:
        end_as_asked()


def _serve(
    folder: Path,
    limits: "Limits",
    keep_seconds: float,
    common: dict[str, str | Path | None],
    how: dict[str, Any],
    host: str,
    port: int,
    token: str | None,
) -> None:
    from ..animation import AnimationRequest, load, signer_of
    from ..serving.jobs import JobQueue
    from ..serving.listening import address_of, listen, run_server
    from ..serving.worker import Worker
    from ..web import settle_gradio

    signer_of(AnimationRequest(Path(), Path(), Path(), **common))  # type: ignore[arg-type]
    settle_gradio(folder)
    with listen(host, port) as listening:
        import gradio  # noqa: F401  (first: what it brings, the others need)
        import uvicorn

        from ..runtime.forecast import Forecaster
        from ..web.answers import Answers
        from ..web.app import PageServer, create_app
        from ..web.visits import Visits

        bundle, jobs = str(common["bundle"]), JobQueue(folder / "jobs", limits, common=common)
        pipeline = load(bundle, **how)
        visits = Visits(jobs, folder / "uploads", keep_seconds)
        answers = Answers(visits, pipeline, Forecaster(bundle, pipeline))
        taken = listening.getsockname()[1]
        worker = Worker(jobs, pipeline, on_end=answers.learn)
        app = create_app(answers, worker, bundle=bundle, token=token, port=taken)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        address = address_of(listening, host)
        run_server(PageServer(config), listening, lambda: _announce(address, host, token, bundle))
    jobs.close()


def _announce(address: str, host: str, token: str | None, bundle: str) -> None:
    from ..serving.guard import is_loopback

    print(f"{bundle}: open {address}", flush=True)
    if not is_loopback(host):
        said = (
            "whoever reaches this machine and knows the token can send files, use this machine's time, and see what "
            "they have made themselves. Traffic is not encrypted, and without encryption browsers give no camera and "
            "no microphone: put a proxy with TLS before it."
        )
    elif token is None:
        said = "without a token, everyone who is logged in on this machine can use the page."
    else:
        return
    print(f"note: {said}", file=sys.stderr, flush=True)
