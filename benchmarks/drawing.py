"""How fast the studio draws: `python benchmarks/drawing.py [--workers 2]`.

Whole clips with speech, truth, the face's embedding and writing, as `hallo3 studio dataset` makes them. Each worker
makes one clip first that is not counted: the drawing is compiled when it is first used. Bar: 10 frames of 128×192 a
second on two cores.
Last figures: docs/studio.md.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from hallo3.studio.dataset import write_dataset

BAR = 10.0


def draw(folder: Path, frames: int, size: tuple[int, int], job: tuple[int, int]) -> int:
    """Draws one clip of a number to a folder of its own."""
    number, seed = job
    height, width = size
    return write_dataset(
        folder / str(number), 1, seed, split="train", frames=frames, height=height, width=width, face_encoder="embedded"
    )


def main(
    clips: Annotated[int, typer.Option(min=1, help="Clips that are timed.")] = 8,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 65,
    height: Annotated[int, typer.Option(min=32)] = 128,
    width: Annotated[int, typer.Option(min=32)] = 192,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Prints frames a second; exit code 1 below the bar, which holds for 128×192."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        work = partial(draw, Path(name), frames, (height, width))
        list(pool.map(work, [(-1 - number, 10_000 + number) for number in range(workers)]))
        began = time.perf_counter()
        made = sum(pool.map(work, [(number, number) for number in range(clips)]))
        rate = made * frames / (time.perf_counter() - began)
    verdict = "" if (height, width) != (128, 192) else f"; bar {BAR:g}, {'met' if rate >= BAR else 'NOT met'}"
    print(
        f"{made} clips of {frames} frames of {height}×{width}, {workers} processes: {rate:.1f} frames a second{verdict}"
    )
    if verdict and rate < BAR:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
