"""What training costs beside the networks: `python benchmarks/training.py [--bundle embedded] [--rounds 5]`.

In one run, medians: the loader alone against the step, and the step against forward and backward of the bare networks
on random tensors of the same shapes. Ratios only; seconds depend on the machine.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from hallo3.bundles.index import read_index
from hallo3.bundles.layout import load_components
from hallo3.bundles.places import resolve
from hallo3.studio.dataset import write_dataset
from hallo3.training.config import Training
from hallo3.training.data import open_samples
from hallo3.training.loop import Loop, LoopSettings, StepRandom
from hallo3.training.phases import image_latents, motion_pictures
from hallo3.training.prepare import draw_batch
from hallo3.training.run import prepare_samples, step_function, training_networks, usable_samples

BARS = {"loader / step": 3.0, "bare / step": 0.9}


def median_seconds(work: Callable[[int], Any], rounds: int) -> float:
    """Median time of a call; the first one is not counted."""
    work(0)
    times = []
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def bare_step(networks: nn.ModuleDict, training: Training, config: dict[str, Any]) -> Callable[[int], None]:
    """Forward and backward of both networks on random tensors, nothing else."""
    denoiser, reference = networks["denoiser"], networks["reference_network"]
    sizes: Any = denoiser.config
    count, frames = training.batch, training.clip_frames
    rows, columns = config["sample_height"] // 8, config["sample_width"] // 8
    text = torch.randn(count, config["text_length"], sizes.text_embed_dim)
    portrait = torch.randn(count, 1, sizes.in_channels, rows, columns)
    latents = torch.randn(count, (frames - 1) // 4 + 1, sizes.in_channels, rows, columns)
    windows = torch.randn(count, frames, sizes.speech_window, sizes.speech_blocks, sizes.speech_channels)
    face = torch.randn(count, sizes.face_embed_dim)

    def step(number: int) -> None:
        networks.zero_grad(set_to_none=True)
        features = reference(portrait, text)
        steps = torch.full((count,), 500)
        prediction = denoiser(latents, steps, text, speech=windows, face=face, reference=features)
        prediction.square().mean().backward()

    return step


def measure(bundle: str, rounds: int, batch: int, work: Path) -> dict[str, float]:
    """Seconds of the loader, of the whole step, of the bare networks, and of the VAE's part of the step."""
    config = dict(read_index(resolve(bundle)).config)
    frames = config["num_frames"]
    size = {"height": config["sample_height"], "width": config["sample_width"]}
    write_dataset(work / "data", 4, 0, split="train", frames=frames, **size)
    training = Training(
        start=bundle,
        data=work / "data",
        out=work / "out",
        trains=("transformer_blocks",),
        speech=True,
        clip_frames=frames,
        batch=batch,
        loop=LoopSettings(steps=rounds + 1, log_every=10**6, save_every=10**6),
    )
    components = load_components(bundle)
    samples = open_samples(training.data)
    prepare_samples(samples, components, work / "prepared", frames, config["text_length"], 0, lambda line: None)
    networks = training_networks(components, training, lambda line: None)
    usable = usable_samples(samples, work / "prepared", training)
    step_loss = step_function(networks, components["vae"], usable, training)
    loop = Loop(networks, step_loss, training.out, training.loop, lambda line: None)

    def step(number: int) -> None:
        loop._take_step()
        loop.step += 1

    return {
        "loader": median_seconds(lambda n: draw_batch(usable, training, StepRandom.at(0, n)), rounds),
        "step": median_seconds(step, rounds),
        "bare": median_seconds(bare_step(networks, training, config), rounds),
        "encoding": median_seconds(lambda n: encode(components["vae"], usable, training, n), rounds),
    }


def encode(vae: Any, usable: list[Any], training: Training, number: int) -> None:
    """The VAE's part of a step: motion frames with their noise and lost pixels, which are new in every step."""
    random = StepRandom.at(0, number)
    batch = draw_batch(usable, training, random)
    image_latents(vae, motion_pictures(batch, training, random), batch.latents.shape[1], random)


def main(
    bundle: Annotated[str, typer.Option(help="Bundle whose networks are trained.")] = "embedded",
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls; the median counts.")] = 7,
    batch: Annotated[int, typer.Option(min=1, help="Clips of a step.")] = 2,
) -> None:
    """Prints seconds and the two ratios beside their bars; exit code 1 when one is missed."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(bundle, rounds, batch, Path(folder))
    for name, value in seconds.items():
        print(f"{name:8} {value:9.4f} s")
    ratios = {
        "loader / step": seconds["step"] / seconds["loader"],
        "bare / step": seconds["bare"] / seconds["step"],
    }
    for name, value in ratios.items():
        print(f"{name:14} {value:8.2f}   bar {BARS[name]}   {'met' if value >= BARS[name] else 'NOT met'}")
    print(f"of the step, encoding motion frames takes {seconds['encoding'] / seconds['step']:.0%}")
    if any(value < BARS[name] for name, value in ratios.items()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
