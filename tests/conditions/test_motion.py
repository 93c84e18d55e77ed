"""Image latents, motion frames and streamed decoding, with a small random VAE of the real class."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import AutoencoderKLCogVideoX

from hallo3.conditions.motion import (
    decode_latents,
    decode_video,
    encode_image_latents,
    encode_reference_latents,
    encode_video,
    in_tiles,
    mask_pixels,
    to_frames,
    to_tensor,
)
from hallo3.conditions.placement import execution_device

SIZES = {"block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2, "scaling_factor": 0.7}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(**SIZES).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def portrait():
    return torch.rand(1, 3, 32, 48, generator=seeded(1)) * 2 - 1


def test_pictures_survive_the_way_there_and_back():
    picture = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    tensor = to_tensor(picture)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    np.testing.assert_array_equal(to_frames(tensor)[0], picture)
    assert to_frames(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1)).ravel().tolist() == [0, 255]


def test_one_random_mask_for_all_frames_and_channels():
    frames = torch.full((2, 3, 200, 300), 0.7)
    masked = mask_pixels(frames, generator=seeded())
    lost = masked == 0
    assert torch.equal(lost, lost[:1, :1].expand_as(lost))
    assert masked[~lost].eq(0.7).all()
    assert lost.float().mean() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(masked, mask_pixels(frames, generator=seeded()))
    assert not torch.equal(masked, mask_pixels(frames, generator=seeded(1)))
    assert torch.equal(mask_pixels(frames, 0.0), frames)


@pytest.mark.parametrize(("k", "filled"), [(1, 1), (2, 1), (4, 2)])
def test_portrait_and_motion_frames_go_through_the_vae_together(vae, portrait, k, filled):
    motion = torch.rand(k, 3, 32, 48, generator=seeded(2)) * 2 - 1
    latents = encode_image_latents(vae, portrait, motion, seeded(3), 13)
    assert latents.shape == (1, 13, 16, 4, 6)
    assert not latents[:, filled:].any()
    video = torch.cat([portrait, motion])[None].transpose(1, 2)
    moments = vae.encoder(video)[0]
    mean, logarithm = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=seeded(3))
    expected = 0.7 * (mean + noise * (logarithm.clamp(-30, 20) / 2).exp())
    torch.testing.assert_close(latents[:, :filled], expected.transpose(1, 2))


def test_too_many_motion_frames_are_refused(vae, portrait):
    with pytest.raises(ValueError, match="4 motion frames fill 2 of 1"):
        encode_image_latents(vae, portrait, portrait.repeat(4, 1, 1, 1), seeded(), 1)


def test_encoding_is_in_one_piece_and_leaves_the_vae_as_it_was(vae):
    video = torch.rand(1, 3, 17, 32, 48, generator=seeded(4)) * 2 - 1
    mean = vae.encoder(video)[0][:, :16].transpose(1, 2)
    torch.testing.assert_close(encode_video(vae, video), 0.7 * mean)
    assert vae.num_sample_frames_batch_size == 8
    cut = vae.encode(video).latent_dist.mode().transpose(1, 2)
    assert (cut - mean).abs().max() > 1e-3 * mean.abs().max()  # what diffusers' pieces of eight would give


def test_the_reference_latent_is_a_sample_and_depends_on_the_seed_alone(vae):
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    latents = encode_reference_latents(vae, picture, seeded(5))
    assert latents.shape == (1, 1, 16, 4, 6)
    assert torch.equal(latents, encode_reference_latents(vae, picture, seeded(5)))
    assert not torch.equal(latents, encode_reference_latents(vae, picture, seeded(6)))
    black = encode_reference_latents(vae, np.zeros_like(picture), seeded(5))
    torch.testing.assert_close(black, encode_video(vae, torch.full((1, 3, 1, 32, 48), -1.0), seeded(5)))


@pytest.mark.parametrize(("latent_frames", "pieces"), [(1, [1]), (2, [8]), (3, [9]), (5, [9, 8]), (7, [9, 8, 8])])
def test_streamed_decoding_equals_decoding_all_at_once(vae, latent_frames, pieces):
    latents = torch.randn(1, latent_frames, 16, 2, 3, generator=seeded(7))
    whole = vae.decode(latents.transpose(1, 2) / 0.7).sample[0].transpose(0, 1).clamp(-1, 1)
    streamed = list(decode_video(vae, latents))
    assert [len(piece) for piece in streamed] == pieces
    assert torch.equal(torch.cat(streamed), whole)
    frames = np.concatenate(list(decode_latents(vae, latents)))
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, to_frames(whole))


def test_tiles_of_the_published_size_are_the_vaes_own():
    """There its own tiles and what they share are whole latents."""
    torch.manual_seed(0)
    published = AutoencoderKLCogVideoX(**SIZES, sample_height=480, sample_width=720).eval()
    latents = torch.randn(1, 1, 16, 32, 48, generator=seeded(8))
    with in_tiles(published), torch.no_grad():
        own = published.decode(latents.transpose(1, 2) / 0.7).sample[0].transpose(0, 1).clamp(-1, 1)
        (streamed,) = decode_video(published, latents)
    assert torch.equal(streamed, own)
    assert not torch.equal(streamed, torch.cat(list(decode_video(published, latents))))


@pytest.mark.parametrize("canvas", [(96, 128), (80, 112)])
@pytest.mark.parametrize("sample", [(48, 64), (96, 128), (80, 112), (128, 192), (72, 120), (16, 24)])
def test_tiles_are_put_together_where_they_belong(sample, canvas):
    """Whatever the VAE's own picture and the one to decode; the norms of a random VAE see few latents, but a picture
    moved by one latent is further away."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(**SIZES, sample_height=sample[0], sample_width=sample[1]).eval()
    height, width = canvas
    latents = torch.randn(1, 3, 16, height // 8, width // 8, generator=seeded(8))
    whole = torch.cat(list(decode_video(vae, latents)))
    before = dict(vars(vae))
    with in_tiles(vae):
        tiled = torch.cat(list(decode_video(vae, latents)))
    assert vars(vae) == before
    assert tiled.shape == whole.shape == (9, 3, height, width)
    assert 0 < difference(tiled, whole) < 0.5 < difference(whole[..., 8:], whole[..., :-8])


def difference(frames, others):
    return (frames - others).abs().mean() / others.abs().mean()


def test_number_format_is_the_vaes(vae, portrait):
    half = AutoencoderKLCogVideoX.from_config(vae.config).eval().to(torch.bfloat16)
    latents = encode_image_latents(half, portrait, portrait, seeded(), 3)
    assert latents.dtype == torch.bfloat16
    assert all(piece.dtype == torch.float32 for piece in decode_video(half, latents))


def test_an_offloaded_vae_is_called_through_its_hook(portrait):
    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(**SIZES).eval()
    latents = torch.randn(1, 3, 16, 2, 3, generator=seeded(9))
    plain = torch.cat(list(decode_video(vae, latents)))
    moves = []
    cpu_offload_with_hook(vae, execution_device="cpu")
    before = vae._hf_hook.pre_forward
    vae._hf_hook.pre_forward = lambda module, *args, **kwargs: moves.append(module) or before(module, *args, **kwargs)
    assert execution_device(vae) == torch.device("cpu")
    assert torch.equal(torch.cat(list(decode_video(vae, latents))), plain)
    assert moves == [vae]  # once: three latent frames are one piece
