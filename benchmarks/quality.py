"""What presets and single shortcuts save and cost: `python benchmarks/quality.py BUNDLE [--steps 20] [--cases 4]`.

On drawn people that nobody was trained on, with guidance: evaluations of the denoiser, layers that it computed, seconds
of sampling (processor time, so that other work on the machine counts less), and how far the frames are from exact ones
(PSNR, SSIM). Beside it, what matters more: how the mouth follows the recording, as `hallo3 studio score` reads it, and
how far the frames are from the drawn truth. Two exact runs with other seeds show what a difference is worth.

The embedded bundle samples in one step, of which nothing can be left out. One for several steps is made from it by
`benchmarks/several_steps.yaml`. Figures are in docs/speed.md.
"""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image

from hallo3.animation import load
from hallo3.evaluation.meters import structural_similarity
from hallo3.pipeline import Hallo3Pipeline, Performance
from hallo3.sampling.guidance import branches
from hallo3.sampling.shortcuts import EXACT, QUALITIES, Shortcuts, count_evaluations, steps_of
from hallo3.studio.dataset import Material, Sample
from hallo3.training.score import contact_sheet
from hallo3.training.score_cases import FIRST_SEED, Person, drawn_truth

FIRST = 6000  # of the held-out seeds, beyond those of the score
SSIM_EVERY = 5  # frames

SINGLE = {
    "0.6 of the steps": Shortcuts(steps=0.6),
    "0.4 of the steps": Shortcuts(steps=0.4),
    "guided in the first 0.8": Shortcuts(guided=(0.0, 0.8)),
    "guided in the first 0.5": Shortcuts(guided=(0.0, 0.5)),
    "guided from 0.2 on": Shortcuts(guided=(0.2, 1.0)),
    "guidance every 2nd step": Shortcuts(guidance_every=2),
    "guidance every 3rd step": Shortcuts(guidance_every=3),
    "cache 0.05": Shortcuts(cache=0.05),
    "cache 0.1": Shortcuts(cache=0.1),
    "cache 0.2": Shortcuts(cache=0.2),
}


@dataclass(frozen=True)
class Case:
    """A drawn person, the meters that know them, and what a pipeline has prepared of them."""

    truth: Sample
    person: Person
    seed: int
    prepare: Any

    def performance(self, further: int = 0) -> Performance:
        """What is to be rendered; further: added to the seed."""
        return self.prepare(seed=self.seed + further)


@dataclass(frozen=True)
class Made:
    """Videos of all cases in one way: frames, share of layers that were computed, processor seconds of sampling."""

    videos: list[NDArray[np.uint8]]
    layers: float
    seconds: float


def cases_of(pipeline: Hallo3Pipeline, count: int, seconds: float, recordings: Path | None) -> list[Case]:
    """The first `count` held-out drawn people."""
    found, material = [], Material.find(recordings)
    for index in range(count):
        truth = drawn_truth(pipeline.config, FIRST_SEED + FIRST + index, seconds, material)
        box = tuple(float(value) for value in truth.face_box[0])
        portrait = Image.fromarray(truth.frames[0])
        prepare = partial(pipeline.prepare, portrait, truth.speech, truth.caption, face_box=box)
        found.append(Case(truth, Person(truth), index, prepare))
    return found


def make(pipeline: Hallo3Pipeline, performances: list[Performance], steps: int, shortcuts: Shortcuts) -> Made:
    """Renders all cases, and counts and times the denoiser meanwhile."""
    denoiser, layers, forwards, taken = pipeline.transformer, [0], [0], [0.0]
    began = [0.0]

    def before(*_: Any) -> None:
        began[0] = time.process_time()

    def after(*_: Any) -> None:
        taken[0] += time.process_time() - began[0]
        forwards[0] += 1

    def layer(_: Any, __: Any, found: tuple[torch.Tensor, ...]) -> None:
        layers[0] += len(found[0])  # branches in the batch

    blocks: Any = denoiser.transformer_blocks
    hooks = [denoiser.register_forward_pre_hook(before), denoiser.register_forward_hook(after)]
    hooks += [block.attention.register_forward_hook(layer) for block in blocks]
    videos = []
    for performance in performances:
        clips = pipeline.render(performance, num_inference_steps=steps, shortcuts=shortcuts)
        videos.append(np.concatenate([clip.frames for clip in clips]))
    for hook in hooks:
        hook.remove()
    return Made(videos, layers[0] / len(blocks), taken[0])


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """In decibels; of equal pictures infinite."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def row(name: str, steps: int, evaluations: int, made: Made, exact: Made, cases: list[Case]) -> str:
    """A line of the table."""
    pairs = list(zip(made.videos, exact.videos, strict=True))
    difference = statistics.mean(psnr(a, b) for a, b in pairs)
    alike = statistics.mean(
        structural_similarity(x, y) for a, b in pairs for x, y in zip(a[::SSIM_EVERY], b[::SSIM_EVERY], strict=True)
    )
    mouths = [
        case.person.mouth(video, case.person.follow(video)) for case, video in zip(cases, made.videos, strict=True)
    ]
    truth = statistics.mean(psnr(video, case.truth.frames) for case, video in zip(cases, made.videos, strict=True))
    return (
        f"| {name} | {steps} | {evaluations} | {made.layers / exact.layers:.2f} | {made.seconds / exact.seconds:.2f} | "
        f"{difference:.1f} | {alike:.3f} | {statistics.median(mouth.sync.correlation for mouth in mouths):.3f} | "
        f"{statistics.median(mouth.sync.amplitude for mouth in mouths):.2f} | {truth:.1f} |"
    )


def main(
    bundle: Annotated[str, typer.Argument()] = "embedded",
    steps: Annotated[int, typer.Option(help="Of the exact run.")] = 20,
    cases: Annotated[int, typer.Option(help="Drawn people.")] = 4,
    seconds: Annotated[float, typer.Option(help="Of each.")] = 2.48,
    only: Annotated[str, typer.Option(help="Names that begin so, beside exact.")] = "",
    recordings: Annotated[Path | None, typer.Option(help="Speech; else synthetic voices.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Folder for a picture of each way's videos.")] = None,
) -> None:
    """Measure every way on the same people and seeds."""
    pipeline = load(bundle)
    people, count = cases_of(pipeline, cases, seconds, recordings), len(branches(pipeline.guidance))
    same = [case.performance() for case in people]
    ways = {name: one.shortcuts for name, one in QUALITIES.items() if one.shortcuts != EXACT} | SINGLE
    print(f"{bundle}, {pipeline.transformer.dtype}, {steps} steps, {cases} people of {seconds} s, {count} branches")
    print("| way | steps | evaluations a clip | layers | time | PSNR | SSIM | sync | amplitude | PSNR to the truth |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    exact = make(pipeline, same, steps, EXACT)

    def show(name: str, made: Made, shortcuts: Shortcuts) -> None:
        taken = steps_of(steps, shortcuts)
        print(row(name, taken, count_evaluations(taken, count, shortcuts), made, exact, people), flush=True)
        if sheet is not None:
            sheet.mkdir(parents=True, exist_ok=True)
            contact_sheet(made.videos).save(sheet / f"{name.replace(' ', '-')}.png")

    show("exact", exact, EXACT)
    others = [case.performance(further=100) for case in people]
    if "another seed".startswith(only):
        show("another seed", make(pipeline, others, steps, EXACT), EXACT)
    for name, shortcuts in ways.items():
        if name.startswith(only):
            show(name, make(pipeline, same, steps_of(steps, shortcuts), shortcuts), shortcuts)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
