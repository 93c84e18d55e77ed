"""The two phases of training (spec: phase 1 identity, phase 2 speech) as configuration, and their loss."""

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from hallo3.conditions.motion import mask_pixels
from hallo3.errors import UserError
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.training.loop import LoopSettings, StepRandom

NETWORKS = {"denoiser": "transformer", "reference_network": "reference_network"}
"""The networks that are trained, by the names that `trains` uses, and what they are called in a bundle."""


def _compiles(expression: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression: {error}") from None
    return expression


Expression = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""


class Drops(BaseModel):
    """How often a condition is left out, so that it can be guided: chances per sample (published values)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    text: float = Field(default=0.1, ge=0, le=1)
    image_latents: float = Field(default=0.05, ge=0, le=1)
    reference: float = Field(default=0.05, ge=0, le=1)
    speech: float = Field(default=0.05, ge=0, le=1)


class Phase(BaseModel):
    """One phase of training.

    Attributes:
        trains: Regular expressions; parameters of `denoiser.…` and `reference_network.…` whose name one of them finds.
        frozen: Regular expressions that win over `trains`.
        speech: Whether the denoiser hears speech in this phase.
        drops: How often conditions are left out.
        motion_frames: First frames of the clip that the denoiser is shown beside the portrait (paper: 1, 2 or 4); a
            bundle made here is animated with as many.
        motion_noise: Mean and deviation of log σ of the noise on motion frames; empty for none.
        motion_mask: Share of pixels that motion frames lose.
        opening: Chance that a clip starts as the first of a video does: portrait and motion frames are its first frame.
        caption_for_reference: Whether the reference network reads the caption (published), or zeros as at inference.
        mouth: Further weight of the loss where the mouth is.
        least_timestep: Timesteps are uniform from here to 999 (published: from 0). What speech says shows at high ones.
        largest_travel: Clips whose head wanders farther are left out: RMS distance of the face box from where it was in
            the first frame, in pixels. Made in few steps, a video shows the mean of all that could happen: of heads
            that wander, a blur.
        clip_frames: Video frames of a training clip, 4k + 1.
        batch: Clips per step and process.
        loop: Steps, optimiser, averaging.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    trains: tuple[Expression, ...] = Field(min_length=1)
    frozen: tuple[Expression, ...] = ()
    speech: bool
    drops: Drops = Drops()
    motion_frames: Literal[1, 2, 4] = 2
    motion_noise: tuple[Annotated[float, Field(le=3)], Annotated[float, Field(ge=0)]] | tuple[()] = (-3.0, 0.5)
    motion_mask: float = Field(default=0.1, ge=0, le=1)
    opening: float = Field(default=0.0, ge=0, le=1)
    caption_for_reference: bool = True
    mouth: float = Field(default=0.0, ge=0)
    least_timestep: int = Field(default=0, ge=0, lt=1000)
    largest_travel: float | None = Field(default=None, gt=0)
    clip_frames: int = Field(default=49, ge=1)
    batch: int = Field(default=1, ge=1)
    loop: LoopSettings

    @model_validator(mode="after")
    def _longer_than_its_start(self) -> Self:
        if self.motion_frames >= self.clip_frames:
            raise ValueError(
                f"motion_frames is {self.motion_frames}; a clip of {self.clip_frames} frames must be longer"
            )
        return self


def choose_parameters(networks: nn.Module, phase: Phase) -> int:
    """Lets exactly the phase's parameters require gradients; returns how many numbers that are.

    Raises UserError for an expression that finds nothing.
    """
    names = [name for name, _ in networks.named_parameters()]
    for expression in (*phase.trains, *phase.frozen):
        if not any(re.search(expression, name) for name in names):
            raise UserError(f"trains: {expression!r} names no parameter; look at the names in a bundle's weights")
    count = 0
    for name, parameter in networks.named_parameters():
        chosen = any(re.search(e, name) for e in phase.trains) and not any(re.search(e, name) for e in phase.frozen)
        parameter.requires_grad_(chosen)
        count += parameter.numel() * chosen
    return count


@dataclass(frozen=True)
class PhaseBatch:
    """What a step learns from; latents are scaled (× 0.7).

    Attributes:
        latents: `(B, T, 16, h, w)` of the clip. reference: `(B, 1, 16, h, w)` of the portrait, black around the face.
        pictures: `(B, 3, 1 + k, H, W)` in [-1, 1]: the portrait and the clip's first k frames.
        text: `(B, L, c)`. face: `(B, c)`. windows: `(B, F, 5, blocks, c)` of speech.
        mouth: `(B, T, h, w)`, the share of each latent cell that the mouth covers.
        names: Of the clips.
    """

    latents: Tensor
    reference: Tensor
    pictures: Tensor
    text: Tensor
    face: Tensor
    windows: Tensor
    mouth: Tensor
    names: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "PhaseBatch":
        """The batch on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in values.items()}
        return PhaseBatch(**moved)


def normal(like: Tensor, random: StepRandom) -> Tensor:
    """Normal numbers of the shape of `like`, the same on every device: drawn on the CPU."""
    return torch.randn(like.shape, generator=random.torch).to(like)


def motion_pictures(batch: PhaseBatch, phase: Phase, random: StepRandom) -> Tensor:
    """Portrait and motion frames as training shows them: noise on the motion frames, then lost pixels."""
    pictures = batch.pictures.clone()
    for picture in pictures:
        if random.numpy.random() < phase.opening:
            picture[:] = picture[:, 1:2]
        motion = picture[:, 1:]
        if phase.motion_noise:
            sigma = float(torch.exp(torch.tensor(random.numpy.normal(*phase.motion_noise))))
            motion = motion + sigma * normal(motion, random)
        picture[:, 1:] = mask_pixels(motion, phase.motion_mask, random.torch)
    return pictures


@torch.no_grad()
def image_latents(vae: Any, pictures: Tensor, frames: int, random: StepRandom) -> Tensor:
    """Pictures `(B, 3, 1 + k, H, W)` → `(B, frames, 16, h, w)`: a posterior sample, then zeros."""
    mean, logarithm = vae.encoder(pictures)[0].chunk(2, dim=1)
    drawn = mean + (0.5 * logarithm).exp() * normal(mean, random)
    known = (drawn * vae.config.scaling_factor).transpose(1, 2)
    rest = known.new_zeros(len(known), frames - known.shape[1], *known.shape[2:])
    return torch.cat([known, rest], 1)


def phase_loss(
    networks: nn.Module, vae: Any, scheduler: Hallo3DPMScheduler, batch: PhaseBatch, phase: Phase, random: StepRandom
) -> tuple[Tensor, dict[str, float]]:
    """The v-prediction loss at uniform timesteps, every condition dropped now and then (spec section 8)."""
    count, frames = batch.latents.shape[:2]
    keep = {
        name: torch.from_numpy((random.numpy.random(count) >= chance).astype("float32")).to(batch.latents)
        for name, chance in phase.drops.model_dump().items()
    }
    text = batch.text * keep["text"][:, None, None]
    known = image_latents(vae, motion_pictures(batch, phase, random), frames, random)
    known = known * keep["image_latents"][:, None, None, None, None]
    portrait = batch.reference * keep["reference"][:, None, None, None, None]
    denoiser: Any = networks.get_submodule("denoiser")
    features = None
    if denoiser.identity.reference:
        caption = text if phase.caption_for_reference else torch.zeros_like(text)
        features = networks.get_submodule("reference_network")(torch.cat([portrait, portrait], 2), caption)
    noise = normal(batch.latents, random)
    timesteps = torch.randint(phase.least_timestep, len(scheduler), (count,), generator=random.torch).to(noise.device)
    noisy = scheduler.add_noise(batch.latents, noise, timesteps)
    prediction = denoiser(
        torch.cat([noisy, known], 2),
        timesteps,
        text,
        speech=batch.windows * keep["speech"][:, None, None, None, None] if phase.speech else None,
        face=None if denoiser.identity.face is None else batch.face,
        reference=features,
    )
    # 1/(1 − ᾱ) · (x0_pred − x0)² is the squared error of v.
    error = (prediction - scheduler.get_velocity(batch.latents, noise, timesteps)).square().mean(2)
    numbers = {"plain": float(error.detach().mean())}
    inside = float(batch.mouth.sum())
    if inside:
        numbers["mouth"] = float((error.detach() * batch.mouth).sum()) / inside
    return (error * (1 + phase.mouth * batch.mouth)).mean(), numbers
