import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from hallo3.networks.planar import use_planes
from hallo3.training.loop import LoopSettings, StepRandom
from hallo3.training.vae import EMBEDDED_VAE, VaeSettings, fold_scale, latent_deviations, make_vae, train_vae, vae_loss
from hallo3.training.vae_start import start_vae


def pictures(count, height=64, width=64, seed=0):
    """Soft coloured blobs `(count, 3, height, width)` in [-1, 1]."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(-1, 1, (count, 3, 6, 6)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def vae():
    vae = make_vae()
    start_vae(vae, pictures(24))
    return vae.eval()


@torch.no_grad()
def test_planes_compute_what_volumes_do():
    torch.manual_seed(0)
    plain = AutoencoderKLCogVideoX(**EMBEDDED_VAE | {"block_out_channels": (8, 8, 8, 8)}).eval()
    planar = AutoencoderKLCogVideoX(**EMBEDDED_VAE | {"block_out_channels": (8, 8, 8, 8)}).eval()
    planar.load_state_dict(plain.state_dict())
    use_planes(planar)
    assert plain.state_dict().keys() == planar.state_dict().keys()
    for frames in (1, 3, 9):
        video = torch.randn(1, 3, frames, 16, 24)
        torch.testing.assert_close(planar.encoder(video)[0], plain.encoder(video)[0], rtol=1e-4, atol=1e-4)
    # Latent frames 0–2, then two at a time with the cache of those before.
    latents = torch.randn(1, 16, 7, 2, 3)
    torch.testing.assert_close(planar.decode(latents).sample, plain.decode(latents).sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_start_keeps_what_a_linear_decoder_can_read(vae):
    seen = pictures(8, seed=5)
    latents = vae.encoder(seen[:, :, None])[0][:, :16, 0]
    cells = torch.cat([latents.permute(0, 2, 3, 1).reshape(-1, 16), torch.ones(8 * 64, 1)], 1)
    patches = torch.nn.functional.unfold(seen, 8, stride=8).transpose(1, 2).reshape(-1, 192)
    error = cells @ torch.linalg.lstsq(cells, patches).solution - patches
    assert float(error.abs().mean()) < 0.1 * float((patches - patches.mean(0)).abs().mean())


@torch.no_grad()
def test_folding_the_scale_changes_latents_but_not_pictures():
    vae = make_vae().eval()
    video = pictures(1)[:, :, None].expand(-1, -1, 9, -1, -1)
    mean = vae.encoder(video)[0][:, :16]
    before = vae.decoder(mean)[0]
    spread = vae.encoder(video)[0][:, 16:].clone()
    deviations = latent_deviations(vae, [video])
    fold_scale(vae, deviations)
    after = vae.encoder(video)[0]
    torch.testing.assert_close(vae.decoder(after[:, :16])[0], before, rtol=1e-3, atol=1e-4)
    scaled = latent_deviations(vae, [video]) * vae.config.scaling_factor
    torch.testing.assert_close(scaled, torch.ones(16), rtol=1e-3, atol=1e-3)
    gain = -2 * (deviations * vae.config.scaling_factor).log()
    torch.testing.assert_close(after[:, 16:], spread + gain[:, None, None, None], rtol=1e-3, atol=1e-3)


def test_training_improves_the_reconstruction_and_fixes_the_posterior(tmp_path, vae):
    numbers = []

    def draw(step, random):
        batch = pictures(2, 32, 32, seed=step)
        return batch[:, :, None], torch.zeros(2, 1, 1, 32, 32)

    learner = make_vae()
    start_vae(learner, pictures(24))
    settings = VaeSettings()
    numbers.append(vae_loss(learner, draw(99, None), settings, StepRandom.at(0, 0))[1]["l1"])
    loop = LoopSettings(steps=25, optimizer="muon", learning_rate=2e-3, muon_rate=5e-3, warmup=2, ema=0.5)
    train_vae(learner, draw, tmp_path, loop, settings, log=lambda line: None)
    numbers.append(vae_loss(learner, draw(99, None), settings, StepRandom.at(0, 0))[1]["l1"])
    assert numbers[1] < 0.8 * numbers[0]
    deviation = learner.encode(pictures(1)[:, :, None]).latent_dist.std
    torch.testing.assert_close(deviation, torch.full_like(deviation, settings.noise))


def test_the_mouth_weighs_more(vae):
    video = pictures(1, seed=3)[:, :, None]
    none, everywhere = torch.zeros(1, 1, 1, 64, 64), torch.ones(1, 1, 1, 64, 64)
    settings = VaeSettings(mouth=4.0)
    with torch.no_grad():
        plain = vae_loss(vae, (video, none), settings, StepRandom.at(0, 0))[0]
        weighted = vae_loss(vae, (video, everywhere), settings, StepRandom.at(0, 0))[0]
    assert float(weighted) > 2 * float(plain)
