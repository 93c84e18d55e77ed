"""The paper's variants learn: what each has gets a gradient, and what it lacks is not asked for."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.networks.reference import ReferenceNetwork
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.training.loop import LoopSettings, StepRandom
from hallo3.training.phases import (
    Drops,
    Phase,
    PhaseBatch,
    choose_parameters,
    image_latents,
    motion_pictures,
    phase_loss,
)
from hallo3.training.vae import EMBEDDED_VAE, make_vae

SHARED = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 32, "time_embed_dim": 8, "text_embed_dim": 8}
CONDITIONS = {
    "speech_blocks": 2, "speech_channels": 4, "speech_intermediate_dim": 8, "speech_tokens": 2, "speech_token_dim": 8,
    "face_embed_dim": 4, "face_tokens": 2, "face_token_dim": 8,
}  # fmt: skip


def phase(**changes):
    values = {
        "trains": (r"^denoiser\.",),
        "speech": True,
        "drops": Drops(text=0, image_latents=0, reference=0, speech=0),
    }
    return Phase(**(values | {"loop": LoopSettings(steps=1)} | changes))


@pytest.fixture(scope="module")
def vae():
    return make_vae(EMBEDDED_VAE | {"block_out_channels": (8, 8, 8, 8)}).eval()


def make_batch(motion_frames=2):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return PhaseBatch(
        latents=normal(2, 3, 16, 8, 8),
        reference=normal(2, 1, 16, 8, 8),
        pictures=normal(2, 3, 1 + motion_frames, 64, 64).clamp(-1, 1),
        text=normal(2, 4, 8),
        face=normal(2, 4),
        windows=normal(2, 9, 5, 2, 4),
        mouth=torch.zeros(2, 3, 8, 8),
    )


def make_networks(speech, identity):
    torch.manual_seed(0)
    denoiser = Hallo3Transformer3DModel(
        **SHARED, **CONDITIONS, position_rows=100, speech_conditioning=speech, identity_conditioning=identity
    )
    networks = nn.ModuleDict({"denoiser": denoiser})
    if denoiser.identity.reference:
        networks["reference_network"] = ReferenceNetwork(**SHARED, position_rows=100)
    for parameter in networks.parameters():
        if not parameter.any():  # what starts at zero stops gradients on their way
            nn.init.normal_(parameter, 0, 0.1)
    return networks


@pytest.mark.parametrize(
    ("speech", "identity"), [("joint", "none"), ("norm", "face_norm"), ("cross", "face"), ("joint", "reference")]
)
def test_every_parameter_of_a_variant_learns(vae, speech, identity):
    networks = make_networks(speech, identity)
    count = choose_parameters(networks, phase(trains=("",)))
    assert count == sum(p.numel() for p in networks.parameters())
    loss, _ = phase_loss(networks, vae, Hallo3DPMScheduler(), make_batch(), phase(), StepRandom.at(0, 0))
    loss.backward()
    assert [name for name, p in networks.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("motion_frames", "filled"), [(1, 1), (2, 1), (4, 2)])
def test_motion_frames_fill_latent_frames(vae, motion_frames, filled):
    batch, chosen = make_batch(motion_frames), phase(motion_frames=motion_frames)
    shown = motion_pictures(batch, chosen, StepRandom.at(0, 0))
    assert torch.equal(shown[:, :, 0], batch.pictures[:, :, 0])
    lost = (shown[:, :, 1:] == 0).all(1)
    assert lost.any() and torch.equal(lost, lost[:, :1].expand_as(lost))
    latents = image_latents(vae, shown, 3, StepRandom.at(0, 0))
    assert latents[:, :filled].any() and not latents[:, filled:].any()
    networks = make_networks("cross", "none")
    assert phase_loss(networks, vae, Hallo3DPMScheduler(), batch, chosen, StepRandom.at(0, 0))[0].isfinite()


def test_a_clip_is_longer_than_its_motion_frames():
    with pytest.raises(ValidationError, match="motion_frames is 4; a clip of 4 frames must be longer"):
        phase(motion_frames=4, clip_frames=4)
