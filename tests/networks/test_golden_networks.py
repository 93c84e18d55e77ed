"""Both networks equal the published implementation on its recorded tensors."""

import pytest
import torch
from network_cases import assert_agree, golden_io, golden_networks, published_state

from hallo3.bundles.names import UNUSED_NAMES, denoiser_key_map, reference_key_map, reference_unused_names


@pytest.fixture(scope="module")
def io():
    return golden_io()


@torch.no_grad()
def reference_features(io):
    _, reference_network = golden_networks()
    latents = torch.cat([io["reference_latents"]] * 2, 2)
    return reference_network(latents, torch.zeros(1, *io["text_embeds"].shape[1:]))


def test_reference_features(io):
    features = reference_features(io)
    assert len(features) == 3
    for i, feature in enumerate(features):
        assert_agree(feature, io[f"reference_features.{i}"])


@torch.no_grad()
def test_speech_and_face_tokens(io):
    denoiser, _ = golden_networks()
    assert_agree(denoiser.speech_projection(io["audio_embeds"]), io["audio_tokens"])
    assert_agree(denoiser.face_projection(io["face_embeds"]), io["face_tokens"])


@torch.no_grad()
@pytest.mark.parametrize("exact", [True, False])
def test_prediction(io, exact):
    denoiser, _ = golden_networks()
    given = {"speech": io["audio_embeds"], "face": io["face_embeds"], "reference": reference_features(io)}
    latents = torch.cat([io["latents"], io["image_latents"]], 2)
    conditions = given if exact else {"conditions": denoiser.conditions(**given)}
    assert_agree(denoiser(latents, io["timestep"], io["text_embeds"], **conditions), io["output"])


def test_every_published_name_is_known():
    denoiser, reference = published_state("model.diffusion_model."), published_state("ref_model.diffusion_model.")
    assert set(denoiser) == set(denoiser_key_map(3)) | set(UNUSED_NAMES)
    assert set(reference) == set(reference_key_map(3)) | reference_unused_names(3)
    assert not set(reference_key_map(3)) & reference_unused_names(3)
