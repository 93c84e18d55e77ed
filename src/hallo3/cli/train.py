"""`hallo3 train`: both phases and the VAE, from a file of settings."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..durations import clock

if TYPE_CHECKING:
    from ..training.explain import Explanation


def command(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Settings in YAML; configs/ has both phases, adapters, a VAE.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE …", help="Settings that win over the file: data=clips loop.steps=500"),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what would train, memory and time; load nothing, train nothing.")
    ] = False,
) -> None:
    """Train the networks of a bundle, or a VAE, on a dataset of `hallo3 studio`.

    Checkpoints, metrics with their curves and, at the end, a bundle go to `out`. Stopped, the same command goes on
    where it was. On several GPUs: torchrun --nproc-per-node=8 -m hallo3 train CONFIG …
    """
    from ..runtime.devices import choose_device
    from ..training.config import VaeTraining, read_training

    training = read_training(config, settings or ())
    if explain:
        from ..training.explain import explain as count

        found = count(
            training, choose_device(getattr(training, "device", "cpu")), int(os.environ.get("WORLD_SIZE", "1"))
        )
        if os.environ.get("RANK", "0") == "0":
            show(found)
        return
    from ..training.parallel import launched, rank

    with launched():
        if isinstance(training, VaeTraining):
            from ..training.vae_run import train_vae_file

            bundle = train_vae_file(training, say)
        else:
            from ..training.run import train

            bundle = train(training, say)
        if rank() == 0:
            print(bundle)


def say(line: str) -> None:
    """A line of what goes on, beside the result."""
    print(line, file=sys.stderr, flush=True)


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
    costs = Table("a step of a process", "", show_header=False)
    for name, value in (
        ("clips", found.clip),
        ("processes", f"{found.processes}"),
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
