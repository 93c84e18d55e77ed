"""Bars for bytes on their way: downloads and conversions."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]


@contextmanager
def transfers(*labels: str, quiet: bool) -> Iterator[list[Advance]]:
    """Gives one function for each label, to be called with bytes done and bytes in all; silent without a terminal."""
    if quiet or not sys.stderr.isatty():
        yield [lambda done, total: None for _ in labels]
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def advance(label: str) -> Advance:
            task = progress.add_task(label, total=None, visible=False)
            return lambda done, total: progress.update(task, completed=done, total=total, visible=True)

        yield [advance(label) for label in labels]
