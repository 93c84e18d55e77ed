"""What a run shows while it goes on: a bar on a terminal, lines in a log, JSON events for programs, or nothing."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..durations import clock

Event = dict[str, Any]
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def listener(*, quiet: bool, as_json: bool) -> Iterator[Callable[[Event], None]]:
    """Gives the function that takes the events of `hallo3.animation.animate` and `hallo3.batch.run_batch`."""
    if quiet:
        yield lambda event: None
    elif as_json:
        yield lambda event: print(json.dumps(event), flush=True)
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _print_line


def _sentence(event: Event) -> str | None:
    match event["event"]:
        case "row":
            return f"{event['number']} of {event['rows']} (line {event['line']}): {event['output']}"
        case "failed":
            return f"line {event['line']}: {event['message']}"
        case "notice":
            return f"note: {event['message']}"
        case "start":
            return (
                f"{event['frames']} frames ({event['frames'] / event['fps']:.1f} s) in {event['clips']} clips of "
                f"{event['steps']} steps, {event['width']}×{event['height']} pixels; {event['framing']}"
            )
        case "clip":
            left = event["seconds_left"]
            return f"clip {event['clip'] + 1} of {event['clips']} is done; {clock(left)} left" if left else None
        case "done":
            output = "standard output" if event["output"] == "-" else event["output"]
            return f"{output} ({event['seconds']:.1f} s of video, made in {clock(event['took'])})"
    return None


def _print_line(event: Event) -> None:
    text = _sentence(event)
    if text is not None:
        print(text, file=sys.stdout if event["event"] == "done" else sys.stderr, flush=True)


@contextmanager
def _bar() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} % {task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading and encoding", total=None, left="")

        def show(event: Event) -> None:
            if event["event"] == "step":
                clip, step = f"clip {event['clip'] + 1} of {event['clips']}", f"step {event['step'] + 1}"
                progress.update(
                    task,
                    description=f"{clip}, {step} of {event['steps']}",
                    total=event["clips"] * event["steps"],
                    completed=event["clip"] * event["steps"] + event["step"] + 1,
                    left=f"{clock(event['seconds_left'])} left",
                )
            elif event["event"] == "done":
                progress.stop()
                _print_line(event)
            elif event["event"] == "row":  # another video after one that is done
                progress.reset(task, total=None, description="reading and encoding", left="")
                progress.start()
            if event["event"] not in ("step", "clip", "done"):
                text = _sentence(event)
                if text:
                    progress.console.print(text, highlight=False, markup=False)

        yield show


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to be called with things done and things in all: a bar, or now and then a line in a log."""
    began, last, first = time.monotonic(), -math.inf, None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return

    def line(done: int, total: int) -> None:
        nonlocal last, first
        first = done - 1 if first is None else first
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            left = (now - began) / max(1, done - first) * (total - done)
            print(f"{done} of {total} {what}; {clock(left)} left", file=sys.stderr, flush=True)
            last = now

    yield line
