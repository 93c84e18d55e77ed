"""`hallo3 serve` with its models on other GPUs and machines, by Ray Serve: `python server.py --replicas 2`.

The queue, the HTTP before it and its workers stay in this process; a worker that has claimed a job sends it to one of
the replicas, each of which holds a loaded model, and hears from it what it hears from a model of its own.
"""

import asyncio
import errno
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report on its use otherwise
if not any(word.startswith("--address") for word in sys.argv):  # its own cluster: for this process and this machine
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0"}

import ray
import typer
import uvicorn
from filelock import FileLock, Timeout
from ray import serve
from ray.exceptions import RayActorError

from hallo3.animation import AnimationRequest, Event, load
from hallo3.bundles.places import home
from hallo3.errors import UserError, disk_is_full, in_one_line
from hallo3.media.video import BeingWritten
from hallo3.serving.api import create_app
from hallo3.serving.guard import check_exposure
from hallo3.serving.jobs import JobQueue, Limits
from hallo3.serving.listening import address_of, listen, run_server
from hallo3.serving.worker import Worker, render

HOST = "127.0.0.1"
BLOCK = 1 << 20  # bytes of a video that travel at once
TRIES = 3  # of a job whose replica dies
KEPT = 86_400  # seconds that a replica's machine keeps what was half made when its process died


@serve.deployment(max_ongoing_requests=1, health_check_timeout_s=120)
class Renderer:
    """A loaded model, on any machine of the cluster that has hallo3.

    What is half made when its process dies stays in hallo3's cache folder there, for the next one on that machine to go
    on with, a day at most; otherwise nothing of a job is kept.
    """

    def __init__(self, bundle: str, how: dict[str, str], alone: bool) -> None:
        if alone:
            _listen_to_this_machine()
        self._pipeline = load(bundle, **how)
        self._folder = home() / "replicas"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in self._folder.iterdir():
            if place.stat().st_mtime < time.time() - KEPT:
                shutil.rmtree(place, ignore_errors=True)
        self._making = threading.Lock()

    async def render(
        self, request: AnimationRequest, name: str, portrait: bytes, speech: bytes
    ) -> AsyncIterator[tuple[str, Any]]:
        """Yields ("event", …) as they come, then the video in ("block", bytes); else at last "error", "busy" or "full".

        Ends within a step when it is cancelled.
        """
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
        place, stopped = self._folder / name, threading.Event()

        def listen(event: Event) -> None:
            if stopped.is_set():
                raise _Stopped
            loop.call_soon_threadsafe(heard.put_nowait, event)

        making = loop.run_in_executor(None, self._render, request, place, portrait, speech, listen)
        making.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            while (event := await heard.get()) is not None:
                yield "event", event
            await making
        except Exception as error:
            kind = "busy" if isinstance(error, BeingWritten) else "full" if disk_is_full(error) else "error"
            yield kind, in_one_line(error).replace(f"{place}/", "")
            return
        finally:
            stopped.set()
        try:
            with open(place / "result.mp4", "rb") as video:
                while block := video.read(BLOCK):
                    yield "block", block
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _render(
        self, request: AnimationRequest, place: Path, portrait: bytes, speech: bytes, listen: Callable[[Event], None]
    ) -> None:
        with self._making:  # one that was cancelled may need a step to end
            place.mkdir(mode=0o700, exist_ok=True)
            (place / "portrait").write_bytes(portrait)
            (place / "speech").write_bytes(speech)
            output = place / "result.mp4"
            output.unlink(missing_ok=True)
            here = replace(request, portrait=place / "portrait", speech=place / "speech", output=output)
            try:
                render(here, self._pipeline, listen)
            except BeingWritten:  # another replica of this machine has it
                raise
            except _Stopped:
                shutil.rmtree(place, ignore_errors=True)
            except Exception:
                shutil.rmtree(place, ignore_errors=True)
                raise


def _listen_to_this_machine() -> None:
    """Ray Serve gives every replica a port that is open to all addresses, and no setting for it (2.60)."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: add_port(server, "127.0.0.1:0")


class _Stopped(Exception):
    """Whoever asked for the video wants it no more."""


class RoutedWorker(Worker):
    """A worker whose videos are made by whichever replica is free. Arguments: as `Worker`; replicas: Ray's handle."""

    def __init__(self, jobs: JobQueue, replicas: Any, *, name: str) -> None:
        super().__init__(jobs, None, name=name)  # type: ignore[arg-type]
        self._replicas = replicas.options(method_name="render", stream=True)

    def render(self, request: AnimationRequest, listen: Callable[[Event], None]) -> None:
        """Has one video made; again where its replica dies."""
        for left in reversed(range(TRIES)):
            try:
                self._render(request, listen)
                return
            except RayActorError:
                if not left:
                    raise UserError(f"job: its replica died {TRIES} times; try a shorter one") from None

    def _render(self, request: AnimationRequest, listen: Callable[[Event], None]) -> None:
        name, draft = request.output.parent.name, request.output.with_suffix(".fetched")
        answers = self._replicas.remote(request, name, request.portrait.read_bytes(), request.speech.read_bytes())
        try:
            with open(draft, "wb") as video:
                for kind, value in answers:
                    if kind == "error":
                        raise UserError(value)
                    if kind == "full":
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    if kind == "busy":  # another replica of that machine has not let go of the job yet
                        raise BeingWritten(value)
                    if kind == "event":
                        listen(value)
                    else:
                        video.write(value)
                video.flush()
                os.fsync(video.fileno())
            draft.replace(request.output)
        except BaseException:
            answers.cancel()
            draft.unlink(missing_ok=True)
            raise


def start(bundle: str, replicas: int, gpus: float, address: str, how: dict[str, str]) -> Any:
    """Starts Ray, or joins the cluster at `address`, and the replicas; returns their handle when all have loaded."""
    if address:
        ray.init(address)
    else:  # a cluster of this machine alone, which nobody else can reach
        most = max(os.cpu_count() or 1, replicas + 1)
        ray.init(num_cpus=most, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")  # HTTP comes through our own door
    options = {"num_cpus": 1, "num_gpus": gpus}
    application = Renderer.options(num_replicas=replicas, ray_actor_options=options).bind(bundle, how, not address)  # type: ignore[attr-defined]
    return serve.run(application, name="hallo3", route_prefix=None)


def main(
    replicas: Annotated[int, typer.Option(min=1, help="Loaded models.")] = 2,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each replica.")] = 0,
    address: Annotated[str, typer.Option(help="Of a Ray cluster to join; else one of this machine is started.")] = "",
    bundle: Annotated[
        str, typer.Option(help="Model: `embedded`, or a folder or name that all machines know.")
    ] = "embedded",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, and says which.")] = 8000,
    data: Annotated[Path | None, typer.Option(help="Jobs and results.", show_default="serve in hallo3's cache")] = None,
    token: Annotated[str | None, typer.Option(envvar="HALLO3_TOKEN", help="What clients must know.")] = None,
    dtype: Annotated[str, typer.Option(help="As `hallo3 serve --dtype`.")] = "auto",
    strategy: Annotated[str, typer.Option(help="As `hallo3 serve --strategy`.")] = "auto",
) -> None:
    """Take jobs over HTTP at 127.0.0.1, as `hallo3 serve` does, and have them made by replicas of a Ray cluster."""
    load_all = partial(start, bundle, replicas, gpus, address, {"dtype": dtype, "strategy": strategy})
    try:
        _serve(data or home() / "serve", bundle, port, token, replicas, load_all)
    except UserError as error:
        print(f"hallo3: error: {in_one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None


def _serve(folder: Path, bundle: str, port: int, token: str | None, replicas: int, load_all: Callable[[], Any]) -> None:
    """Folder and port are taken before the replicas load, which takes minutes."""
    check_exposure(HOST, token)
    jobs = JobQueue(folder, Limits(), common={"bundle": bundle})
    lock = FileLock(folder / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another server uses it; stop that, or choose another --data") from None
    with lock, listen(HOST, port) as listening:
        handle = load_all()
        workers = [RoutedWorker(jobs, handle, name=f"ray-{number + 1}") for number in range(replicas)]
        app = create_app(jobs, workers, token=token)
        for worker in workers:
            worker.on_end = app.state.metrics.ended
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        said = f"serving {bundle} at {address_of(listening, HOST)}, {replicas} replicas"
        run_server(uvicorn.Server(config), listening, lambda: print(said, flush=True))
    serve.shutdown()
    ray.shutdown()
    jobs.close()


if __name__ == "__main__":
    typer.run(main)
