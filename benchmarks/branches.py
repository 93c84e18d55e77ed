"""Guidance branches in one forward of the denoiser, or in turn: `python benchmarks/branches.py [BUNDLE] [--rounds 7]`.

Median time of a sampling step, either way in turn on the same network. On a GPU `animate` measures it itself, once.
"""

from typing import Annotated

import typer

from hallo3.animation import load
from hallo3.runtime.branches import IN_TURN, measure_branches
from hallo3.sampling.guidance import branches


def main(
    bundle: Annotated[str, typer.Argument()] = "embedded",
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 7,
    device: Annotated[str, typer.Option()] = "auto",
    strategy: Annotated[str, typer.Option()] = "auto",
    compiled: Annotated[bool, typer.Option("--compile")] = False,
) -> None:
    """Compare the two."""
    pipeline = load(bundle, device=device, strategy=strategy, compiled=compiled)
    count = max(2, len(branches(pipeline.guidance)))
    place = pipeline._execution_device
    seconds = measure_branches(pipeline, place, count, rounds)
    print(f"{bundle} on {place}, {pipeline.transformer.dtype}, {count} branches, median of {rounds}")
    for name, taken in seconds.items():
        print(f"{name:9} {taken:8.3f} s a step, {taken / seconds[IN_TURN]:.2f}")


if __name__ == "__main__":
    typer.run(main)
