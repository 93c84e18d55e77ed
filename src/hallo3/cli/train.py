"""`hallo3 train`: both phases, from a file of settings."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .progress import clock

if TYPE_CHECKING:
    from ..training.explain import Explanation


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings in YAML; configs/ has both phases.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE …", help="Settings that win over the file: data=clips loop.steps=500"),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what would train, memory and time; load nothing, train nothing.")
    ] = False,
) -> None:
    """Train the networks of a bundle on a dataset of `hallo3 studio dataset`.

    Checkpoints, metrics and, at the end, a bundle go to `out`. Stopped, the same command goes on where it was.
    """
    from ..runtime.devices import choose_device
    from ..training.config import read_training

    training = read_training(config, settings or ())
    if explain:
        from ..training.explain import explain as count

        show(count(training, choose_device(training.device)))
        return
    from ..training.run import train

    print(train(training, lambda line: print(line, file=sys.stderr, flush=True)))


def show(found: "Explanation") -> None:
    """Prints an explanation as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("module", "trains", "frozen")
    for group in found.groups:
        table.add_row(group.name, *(f"{n:,}" if n else "" for n in (group.trained, group.frozen)))
    table.add_section()
    table.add_row("all", f"{found.trained:,}", f"{found.frozen:,}")
    console.print(table)
    costs = Table("a step", "", show_header=False)
    for name, value in (
        ("weights", _bytes(found.weights)),
        ("gradients, averages, optimiser", _bytes(found.optimizer)),
        ("kept for gradients", _bytes(found.activations)),
        ("operations", f"{found.operations / 1e9:,.1f} GFLOP"),
        ("time, at least", f"{found.seconds:.2f} s"),
        (f"{found.steps:,} steps, at least", clock(found.seconds * found.steps)),
    ):
        costs.add_row(name, value)
    console.print(costs)


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
