"""A VAE's training as a file says it: what it sees, from stills to clips to whole frames, and its result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hallo3.errors import UserError
from hallo3.media.files import writing
from hallo3.training.config import VaeTraining
from hallo3.training.data import Photographs, Sample, cut_clip, open_samples, to_pixels
from hallo3.training.journal import KEPT, check_wandb
from hallo3.training.loop import Log, StepRandom
from hallo3.training.parallel import alone, barrier, rank
from hallo3.training.vae import EMBEDDED_VAE, Batch, fold_scale, latent_deviations, make_vae, train_vae
from hallo3.training.vae_start import start_vae

STILLS = 120  # that the start of a new VAE is computed from
STILL_BATCH = 3  # drawn stills of a batch


def train_vae_file(training: VaeTraining, log: Log = print, until: int | None = None) -> Path:
    """Trains a VAE and writes it as a partial bundle; goes on where it was interrupted.

    Args:
        until: Stop after this step, without a bundle; a later call goes on.

    Returns:
        The bundle's folder.

    Raises:
        UserError: for data or a start that can't be used.
    """
    say = log if rank() == 0 else lambda line: None
    check_wandb(training.loop.wandb)
    samples = open_samples(training.data)
    with alone(training.out):
        return _train_vae_file(training, samples, say, until)


def _train_vae_file(training: VaeTraining, samples: list[Sample], say: Log, until: int | None) -> Path:
    from hallo3.bundles.layout import save_components

    height, width = samples[0].frames.shape[1:3]
    photographs = None if training.photographs is None else Photographs(training.photographs, height, width)
    for sample in samples:
        if len(sample.frames) < training.clip_frames or min(sample.frames.shape[1:3]) < training.crop:
            raise UserError(f"{sample.folder}: smaller than clip_frames and crop; draw larger clips or lower them")
    vae = _start(training, samples, photographs)
    say(f"trains {sum(p.numel() for p in vae.parameters() if p.requires_grad):,} parameters on {len(samples)} clips")
    draw = vae_batches(samples, photographs, training.loop.steps, training.crop, training.clip_frames)
    train_vae(vae, draw, training.out, training.loop.seeded(training.seed), training.loss, say, until)
    if until is not None and until < training.loop.steps:
        return training.out
    if rank() == 0:
        finish_vae(vae, samples, training.clip_frames)
        with writing(training.out / "bundle", KEPT):
            save_components(training.out / "bundle", {"vae": vae})
        say(f"wrote {training.out / 'bundle'}")
    barrier()
    return training.out / "bundle"


def _start(training: VaeTraining, samples: list[Sample], photographs: Photographs | None) -> Any:
    """A bundle's VAE, or a new one that begins with principal components."""
    from hallo3.bundles.layout import load_components
    from hallo3.networks.lean_vae import make_lean

    if training.start is not None:
        return make_lean(load_components(training.start, ["vae"])["vae"])
    try:
        vae = make_vae(EMBEDDED_VAE | training.sizes, training.seed)
    except (TypeError, ValueError) as error:
        raise UserError(f"sizes: {' '.join(str(error).split())[:200]}; see AutoencoderKLCogVideoX") from error
    start_vae(vae, still_pictures(samples, photographs, STILLS, training.seed))
    return vae


def still_pictures(samples: list[Sample], photographs: Photographs | None, count: int, seed: int) -> Tensor:
    """`(count, 3, H, W)`: frames of samples, and a third photographs if there are any."""
    random = np.random.default_rng([seed, 1])
    pictures = []
    for index in range(count):
        if photographs is not None and index % 3 == 2:
            picture = photographs.draw(random)
        else:
            frames = samples[int(random.integers(len(samples)))].frames
            picture = frames[int(random.integers(len(frames)))]
        pictures.append(to_pixels(picture[None])[:, 0])
    return torch.stack(pictures)


def vae_batches(
    samples: list[Sample], photographs: Photographs | None, steps: int, crop: int = 64, clip_frames: int = 9
) -> Callable[[int, StepRandom], Batch]:
    """Stills for the first fifth of the training, then short clips too; crops, then whole frames towards the end."""

    def draw(step: int, random: StepRandom) -> Batch:
        chance = random.numpy

        def pick() -> Sample:
            return samples[int(chance.integers(len(samples)))]

        if step < steps // 5 or step % 3 == 0:
            parts = [cut_clip(pick(), 1, crop, crop, chance, 0.4) for _ in range(STILL_BATCH)]
            if photographs is not None:
                parts.append(_cut_still(photographs, crop, chance))
        elif step > 0.8 * steps and step % 3 == 1:
            sample = pick()
            height, width = sample.frames.shape[1:3]
            parts = [cut_clip(sample, clip_frames, height, width, chance)]
        else:
            parts = [cut_clip(pick(), clip_frames, crop, crop, chance, 0.7)]
        return torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])

    return draw


def _cut_still(photographs: Photographs, crop: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A part of a photograph `(3, 1, crop, crop)`, without a mouth."""
    whole = to_pixels(photographs.draw(random)[None])
    top = int(random.integers(whole.shape[-2] - crop + 1))
    left = int(random.integers(whole.shape[-1] - crop + 1))
    return whole[..., top : top + crop, left : left + crop], torch.zeros(1, 1, crop, crop)


def finish_vae(vae: Any, samples: list[Sample], frames: int) -> None:
    """Folds in the latents' scale, measured on clips of so many frames."""
    chosen = samples[:: max(1, len(samples) // 24)]
    clips = [to_pixels(sample.frames[:frames])[None] for sample in chosen]
    fold_scale(vae, latent_deviations(vae, clips))
