import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from hallo3.bundles.names import denoiser_key_map, reference_key_map
from hallo3.errors import UserError
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.training.config import read_training
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
from hallo3.training.starting import make_networks
from hallo3.training.vae import EMBEDDED_VAE, make_vae

CONFIGS = Path(__file__).parents[2] / "configs"
SHARED = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 32, "time_embed_dim": 8, "text_embed_dim": 8}
CONDITIONS = {
    "speech_blocks": 2, "speech_channels": 4, "speech_intermediate_dim": 8, "speech_tokens": 2, "speech_token_dim": 8,
    "face_embed_dim": 4, "face_tokens": 2, "face_token_dim": 8,
}  # fmt: skip


def phase(**changes):
    values = {"trains": (r"^denoiser\.",), "speech": True, "loop": LoopSettings(steps=1)}
    return Phase(**(values | changes))


@pytest.fixture(scope="module")
def networks():
    return make_networks(SHARED, CONDITIONS)


@pytest.fixture(scope="module")
def vae():
    return make_vae(EMBEDDED_VAE | {"block_out_channels": (8, 8, 8, 8)}).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return PhaseBatch(
        latents=normal(2, 3, 16, 16, 24),
        reference=normal(2, 1, 16, 16, 24),
        pictures=normal(2, 3, 3, 128, 192).clamp(-1, 1),
        text=normal(2, 32, 8),
        face=normal(2, 4),
        windows=normal(2, 9, 5, 2, 4),
        mouth=torch.zeros(2, 3, 16, 24),
    )


def names(networks):
    return {name for name, parameter in networks.named_parameters() if parameter.requires_grad}


# Of the published graph, without the numbers of layers.
JOINT = {
    "transformer.layers.{}.input_layernorm", "transformer.layers.{}.attention.query_key_value",
    "transformer.layers.{}.attention.dense", "mixins.adaln_layer.query_layernorm_list.{}",
    "mixins.adaln_layer.key_layernorm_list.{}",
}  # fmt: skip
FACE = {
    f"transformer.layers.{{}}.face_{part}" for part in ("input_layernorm", "attn.query", "attn.key_value", "attn.dense")
}
FACE |= {"transformer.face_proj.proj", "transformer.face_proj.norm"}
SPEECH = {
    f"transformer.layers.{{}}.audio_{part}"
    for part in ("input_layernorm", "attn.query", "attn.key_value", "attn.dense")
}
SPEECH |= {f"transformer.audio_proj.{part}" for part in ("proj1", "proj2", "proj3", "conv1", "norm")}


def published(networks):
    """Names of what trains, in the published graph, with {} for a layer: every layer has all of them."""
    layers = networks["denoiser"].config.num_layers
    found = {}
    maps = {"denoiser": denoiser_key_map(layers), "reference_network": reference_key_map(layers)}
    for network, names in maps.items():
        there = {theirs for theirs, ours in names.items() if networks[network].get_parameter(ours).requires_grad}
        modules = {re.sub(r"(?<=[.])\d+(?=[.])", "{}", name.rpartition(".")[0] + ".")[:-1] for name in there}
        whole = {name for name in names if re.sub(r"(?<=[.])\d+(?=[.])", "{}", name).rpartition(".")[0] in modules}
        assert there == whole, "weight and bias of every layer"
        found[network] = modules
    return found


def test_the_published_phases_train_what_the_paper_says(networks):
    first, second = (read_training(CONFIGS / f"phase{n}.yaml", ["data=x", "out=y"]) for n in (1, 2))
    choose_parameters(networks, first)
    assert published(networks) == {"denoiser": JOINT | FACE, "reference_network": JOINT}
    choose_parameters(networks, second)
    assert published(networks) == {"denoiser": SPEECH, "reference_network": set()}


def test_a_wrong_configuration_is_refused(networks):
    with pytest.raises(ValidationError):
        phase(surprise=1)
    with pytest.raises(UserError, match="names no parameter"):
        choose_parameters(networks, phase(trains=("nonsense",)))


def test_every_trained_parameter_gets_a_gradient(networks, vae, batch):
    chosen = phase(
        trains=("^denoiser", "^reference_network"), drops=Drops(text=0, image_latents=0, reference=0, speech=0)
    )
    choose_parameters(networks, chosen)
    with torch.no_grad():
        for name, parameter in networks.named_parameters():
            if not parameter.any():  # what starts at zero stops gradients on their way
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(name)))
    loss, _ = phase_loss(networks, vae, Hallo3DPMScheduler(), batch, chosen, StepRandom.at(0, 0))
    loss.backward()
    without = [name for name, p in networks.named_parameters() if p.grad is None]
    # Text is not read out after the last layer.
    assert without == []
    networks.zero_grad(set_to_none=True)


def test_dropped_conditions_make_no_difference(networks, vae, batch):
    scheduler = Hallo3DPMScheduler()
    other = PhaseBatch(
        latents=batch.latents,
        reference=batch.reference + 1,
        pictures=-batch.pictures,
        text=batch.text + 1,
        face=batch.face,
        windows=batch.windows + 1,
        mouth=batch.mouth,
    )

    def loss(sample, drops):
        with torch.no_grad():
            chosen = phase(drops=drops, caption_for_reference=False)
            return float(phase_loss(networks, vae, scheduler, sample, chosen, StepRandom.at(0, 1))[0])

    with torch.no_grad():
        for parameter in networks.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    everything = Drops(text=1, image_latents=1, reference=1, speech=1)
    assert loss(batch, everything) == loss(other, everything)
    for name in Drops.model_fields:
        kept = everything.model_copy(update={name: 0.0})
        assert loss(batch, kept) != loss(other, kept), name


def test_without_speech_the_denoiser_does_not_hear(networks, vae, batch):
    other = PhaseBatch(**{**batch.__dict__, "windows": batch.windows + 1})
    losses = [
        phase_loss(networks, vae, Hallo3DPMScheduler(), sample, phase(speech=False), StepRandom.at(0, 0))[0].item()
        for sample in (batch, other)
    ]
    assert losses[0] == losses[1]


def test_the_loss_is_that_of_velocity_and_the_mouth_weighs_more(networks, vae, batch):
    scheduler = Hallo3DPMScheduler()
    plain, numbers = phase_loss(networks, vae, scheduler, batch, phase(), StepRandom.at(0, 2))
    assert plain.item() == pytest.approx(numbers["plain"], rel=1e-5)
    assert "mouth" not in numbers
    mouth = torch.zeros(2, 3, 16, 24)
    mouth[..., 8:10, 10:14] = 1
    weighted, numbers = phase_loss(
        networks,
        vae,
        scheduler,
        PhaseBatch(**{**batch.__dict__, "mouth": mouth}),
        phase(mouth=5.0),
        StepRandom.at(0, 2),
    )
    assert weighted.item() == pytest.approx(numbers["plain"] + 5 * numbers["mouth"] * float(mouth.mean()), rel=1e-4)


def test_motion_frames_lose_pixels_and_gain_noise_but_the_portrait_stays(batch):
    shown = motion_pictures(batch, phase(motion_noise=()), StepRandom.at(0, 0))
    assert torch.equal(shown[:, :, 0], batch.pictures[:, :, 0])
    lost = (shown[:, :, 1:] == 0).all(1)
    assert 0.08 < float(lost.float().mean()) < 0.12
    assert torch.equal(lost[:, 0], lost[:, 1])
    kept = ~lost[:, None].expand(-1, 3, -1, -1, -1)
    assert torch.equal(shown[:, :, 1:][kept], batch.pictures[:, :, 1:][kept])
    noisy = motion_pictures(batch, phase(motion_mask=0.0), StepRandom.at(0, 0))
    deviation = float((noisy[:, :, 1:] - batch.pictures[:, :, 1:]).std())
    assert 0.01 < deviation < 0.2
    opening = motion_pictures(batch, phase(opening=1.0, motion_noise=(), motion_mask=0.0), StepRandom.at(0, 0))
    assert torch.equal(opening, batch.pictures[:, :, 1:2].expand_as(opening))


def test_image_latents_fill_one_frame(vae, batch):
    latents = image_latents(vae, batch.pictures, 3, StepRandom.at(0, 0))
    assert latents.shape == (2, 3, 16, 16, 24)
    assert latents[:, 0].any() and not latents[:, 1:].any()


def test_drops_happen_as_often_as_the_paper_says(networks, vae, monkeypatch):
    """Each with the published chance, and apart from the others; 2,000 samples."""
    phase2 = read_training(CONFIGS / "phase2.yaml", ["data=x", "out=y"])
    shapes = {
        "latents": (3, 16, 2, 2), "reference": (1, 16, 2, 2), "pictures": (3, 3, 16, 16), "text": (4, 8), "face": (4,),
        "windows": (9, 5, 2, 4), "mouth": (3, 2, 2),
    }  # fmt: skip
    batch = PhaseBatch(**{name: torch.ones(50, *shape) for name, shape in shapes.items()})
    seen = []

    def denoise(latents, timestep, text, *, speech, face, reference):
        given = {
            "text": text,
            "image_latents": latents[:, :, 16:],
            "reference": reference,
            "speech": speech,
            "face": face,
        }
        seen.append(torch.stack([value.flatten(1).any(1) for value in given.values()]))
        return latents[:, :, :16]

    monkeypatch.setattr(networks["denoiser"], "forward", denoise)
    monkeypatch.setattr(networks["reference_network"], "forward", lambda latents, text: latents)
    for step in range(40):
        phase_loss(networks, vae, Hallo3DPMScheduler(), batch, phase2, StepRandom.at(0, step))
    dropped = ~torch.cat(seen, 1)
    for shares, chance in zip(dropped.float().mean(1), (0.1, 0.05, 0.05, 0.05, 0.0), strict=True):
        assert float(shares) == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 2000) ** 0.5)
    assert float((dropped[0] & dropped[3]).float().mean()) == pytest.approx(0.005, abs=0.006)
