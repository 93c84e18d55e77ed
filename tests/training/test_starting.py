"""The embedded networks before training already show the picture of the motion frames, standing still."""

import pytest
import torch

from hallo3.training.starting import CONDITIONS, SHARED, TEXT_LENGTH, make_networks


@pytest.fixture(scope="module")
def networks():
    return make_networks(SHARED, CONDITIONS).eval()


def predict(networks, known, noise):
    text = torch.zeros(1, TEXT_LENGTH, SHARED["text_embed_dim"])
    with torch.no_grad():
        features = networks["reference_network"](torch.zeros(1, 1, 32, 16, 24), text)
        latents = torch.cat([noise, known], 2)
        return networks["denoiser"](latents, torch.tensor([999]), text, reference=features)


def smooth(generator):
    """Latents with the variance of the embedded VAE's."""
    return 1.25 * torch.randn(1, 1, 16, 16, 24, generator=generator)


def test_untrained_networks_predict_a_still_picture(networks):
    generator = torch.Generator().manual_seed(1)
    still = smooth(generator)
    known = torch.cat([still, torch.zeros(1, 8, 16, 16, 24)], 1)
    prediction = predict(networks, known, torch.randn(1, 9, 16, 16, 24, generator=generator))
    # At the last timestep v is −x0.
    error = (prediction + still).square().mean((0, 2, 3, 4)) / still.square().mean()
    assert error.max() < 0.08, error


def test_another_picture_gives_another_video(networks):
    generator = torch.Generator().manual_seed(2)
    noise, rest = torch.randn(1, 9, 16, 16, 24, generator=generator), torch.zeros(1, 8, 16, 16, 24)
    first, second = smooth(generator), smooth(generator)
    change = predict(networks, torch.cat([second, rest], 1), noise) - predict(
        networks, torch.cat([first, rest], 1), noise
    )
    expected = (first - second).expand_as(change)
    assert torch.corrcoef(torch.stack([change.flatten(), expected.flatten()]))[0, 1] > 0.95


def test_networks_too_narrow_for_content_start_without_it():
    small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 32, "time_embed_dim": 8}
    networks = make_networks(SHARED | small, CONDITIONS)
    assert not networks["denoiser"].proj_out.weight.any()
