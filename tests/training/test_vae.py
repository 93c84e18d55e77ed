import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from hallo3.bundles.layout import load_components
from hallo3.errors import UserError
from hallo3.networks.lean_vae import make_lean
from hallo3.studio.dataset import Material, write_dataset
from hallo3.training.config import VaeTraining
from hallo3.training.loop import LoopSettings, StepRandom
from hallo3.training.vae import EMBEDDED_VAE, VaeSettings, fold_scale, latent_deviations, make_vae, train_vae, vae_loss
from hallo3.training.vae_run import train_vae_file
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


@pytest.mark.parametrize("convolutions", [True, False])
def test_the_lean_vae_computes_what_the_plain_one_does(convolutions):
    torch.manual_seed(0)
    plain = AutoencoderKLCogVideoX(**EMBEDDED_VAE | {"block_out_channels": (8, 8, 16, 16)}).eval()
    lean = AutoencoderKLCogVideoX(**EMBEDDED_VAE | {"block_out_channels": (8, 8, 16, 16)}).eval()
    lean.load_state_dict(plain.state_dict())
    make_lean(lean, convolutions)
    assert plain.state_dict().keys() == lean.state_dict().keys()
    video, latents = torch.randn(2, 3, 9, 16, 24), torch.randn(2, 16, 7, 2, 3)
    with torch.no_grad():
        for frames in (1, 3, 9):
            torch.testing.assert_close(lean.encoder(video[:, :, :frames])[0], plain.encoder(video[:, :, :frames])[0])
        # Latent frames 0–2, then two at a time with the cache of those before.
        torch.testing.assert_close(lean.decode(latents).sample, plain.decode(latents).sample, rtol=1e-4, atol=1e-5)
    for vae in (plain, lean):
        (vae.encoder(video)[0].square().mean() + vae.decoder(latents[:, :, :3])[0].square().mean()).backward()
    for (name, ours), theirs in zip(lean.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


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


def test_a_file_trains_a_vae_killed_or_not_into_a_partial_bundle(tmp_path, recordings):
    from hallo3.bundles.index import read_index

    write_dataset(
        tmp_path / "data", 2, 0, split="train", frames=9, height=64, width=96, material=Material.find(recordings)
    )
    loop = LoopSettings(steps=10, optimizer="muon", learning_rate=2e-3, muon_rate=5e-3, save_every=4, log_every=1)
    settings = {"data": tmp_path / "data", "crop": 32, "loss": VaeSettings(), "loop": loop}
    whole = VaeTraining(out=tmp_path / "whole", **settings)
    bundle = train_vae_file(whole, log=lambda line: None)
    cut = VaeTraining(out=tmp_path / "cut", **settings)
    assert train_vae_file(cut, lambda line: None, until=6) == cut.out
    files = [bundle, train_vae_file(cut, log=lambda line: None)]
    first, second = (load_components(folder, ["vae"])["vae"].state_dict() for folder in files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(read_index(bundle).parts) == {"vae"}
    again = VaeTraining(out=tmp_path / "again", start=str(bundle), **settings | {"loop": LoopSettings(steps=1)})
    train_vae_file(again, log=lambda line: None)
    with pytest.raises(UserError, match="smaller than clip_frames and crop"):
        train_vae_file(VaeTraining(out=tmp_path / "large", **settings | {"crop": 128}))
    with pytest.raises(UserError, match="sizes"):
        train_vae_file(VaeTraining(out=tmp_path / "odd", sizes={"widths": 3}, **settings))
