"""Training of the embedded bundle's VAE (diffusers' `AutoencoderKLCogVideoX`).

Learned on the posterior's mean with a little fixed noise: sampling an untrained posterior drowns the signal. At the end
constants are folded in: 0.7 · latents have unit variance in every channel, and the posterior's deviation is that noise.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hallo3.networks.lean_vae import make_lean
from hallo3.training.checkpoints import load_average
from hallo3.training.loop import Log, Loop, LoopSettings, StepRandom

EMBEDDED_VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "scaling_factor": 0.7,
    "sample_height": 128,
    "sample_width": 192,
}


# Red against blue, green against both: with brightness, an orthonormal basis of the colours.
COLOUR_DIFFERENCES = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]]) / torch.tensor([[2.0], [6.0]]).sqrt()


class VaeSettings(BaseModel):
    """What the VAE is trained for.

    Attributes:
        noise: Deviation of the noise on the latents, for latents of about unit variance.
        gradients, coarse: Weights of the loss on differences of neighbours, and on 2× and 4× reduced pictures.
        colour: Weight of the loss on the two colour differences of 4× reduced pictures. Greens and purples vary less
            than brightness does; without it the first steps lose them, and never find them again.
        changes: Weight of the loss on differences between consecutive frames.
        mouth: Further weight inside the mouth box.
        shrink: Weight of the mean square of the latents.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    noise: float = Field(default=0.08, gt=0)
    gradients: float = Field(default=0.5, ge=0)
    coarse: float = Field(default=0.5, ge=0)
    colour: float = Field(default=2.0, ge=0)
    changes: float = Field(default=0.5, ge=0)
    mouth: float = Field(default=4.0, ge=0)
    shrink: float = Field(default=1e-3, ge=0)


Batch = tuple[Tensor, Tensor]
"""Clips `(B, 3, F, H, W)` in [-1, 1], F = 4k + 1, and weights `(B, 1, F, H, W)` in 0…1 (1 inside the mouth)."""


def make_vae(config: dict[str, Any] | None = None, seed: int = 0) -> Any:
    """An untrained VAE whose posterior deviation is constant."""
    from diffusers import AutoencoderKLCogVideoX

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLCogVideoX(**(config or EMBEDDED_VAE))
    with torch.no_grad():
        out = vae.encoder.conv_out.conv
        channels = vae.config.latent_channels
        out.weight[channels:] = 0
        out.bias[channels:] = 0
    return make_lean(vae)


def vae_loss(vae: Any, batch: Batch, settings: VaeSettings, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
    """Loss of the reconstruction of a batch, and its parts."""
    pixels, mouth = batch
    pixels = pixels.contiguous(memory_format=torch.channels_last_3d)
    mean = vae.encoder(pixels)[0].chunk(2, dim=1)[0]
    noise = torch.randn(mean.shape, generator=random.torch) * settings.noise
    result = vae.decoder(mean + noise)[0]
    weight = 1 + settings.mouth * mouth
    error = result - pixels
    first = (error.abs() * weight).mean()
    across, down = error.diff(dim=-1).abs() * weight[..., 1:], error.diff(dim=-2).abs() * weight[..., 1:, :]
    slopes = across.mean() + down.mean()
    half = F.avg_pool3d(error, (1, 2, 2))
    quarter = F.avg_pool3d(half, (1, 2, 2))
    coarse = half.abs().mean() + quarter.abs().mean()
    colour = torch.einsum("oc,bcfhw->bofhw", COLOUR_DIFFERENCES, quarter).abs().mean()
    loss = first + settings.gradients * slopes + settings.coarse * coarse + settings.colour * colour
    loss = loss + settings.shrink * mean.square().mean()
    numbers = {"l1": float(error.detach().abs().mean()), "colour": float(colour.detach())}
    numbers["deviation"] = float(mean.detach().std())
    if pixels.shape[2] > 1:
        change = (error.diff(dim=2).abs() * weight[:, :, 1:]).mean()
        loss = loss + settings.changes * change
        numbers["change"] = float(change.detach())
        inside = mouth.sum() * 3
        if inside > 0:
            numbers["mouth"] = float((error.detach().abs() * mouth).sum() / inside)
    return loss, numbers


def train_vae(
    vae: Any,
    draw: Callable[[int, StepRandom], Batch],
    folder: Path,
    loop: LoopSettings,
    settings: VaeSettings,
    log: Log = print,
    until: int | None = None,
) -> None:
    """Trains on the batches that `draw(step, random)` gives; resumable. Leaves the averaged weights in `vae`.

    Args:
        until: Stop after this step; a later call goes on.
    """
    channels = vae.config.latent_channels
    vae.train()

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        return vae_loss(vae, draw(step, random), settings, random)

    Loop(vae, step_loss, folder, loop, log).run(until)
    load_average(vae, folder)
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[channels:] = 2 * math.log(settings.noise)
    vae.eval()


@torch.no_grad()
def fold_scale(vae: Any, deviations: Tensor) -> None:
    """Rescales the latents so that scaling_factor · latents have unit variance, leaving reconstructions as they are.

    Args:
        deviations: `(c,)` standard deviation of each latent channel now.
    """
    gain = 1 / (deviations * vae.config.scaling_factor)
    channels = len(gain)
    out = vae.encoder.conv_out.conv
    out.weight[:channels] *= gain[:, None, None, None, None]
    out.bias[:channels] *= gain
    out.bias[channels:] += 2 * gain.log()
    inverse = (1 / gain)[None, :, None, None, None]
    vae.decoder.conv_in.conv.weight *= inverse
    for name, module in vae.decoder.named_modules():
        # The decoder's norms look at the latents too.
        if name.endswith(("conv_y", "conv_b")):
            module.conv.weight *= inverse


@torch.no_grad()
def latent_deviations(vae: Any, clips: list[Tensor]) -> Tensor:
    """Standard deviation of each channel of the posterior's mean over clips `(B, 3, F, H, W)`: `(c,)`."""
    means = [vae.encoder(clip)[0].chunk(2, dim=1)[0].transpose(0, 1).flatten(1) for clip in clips]
    return torch.cat(means, 1).std(1)
