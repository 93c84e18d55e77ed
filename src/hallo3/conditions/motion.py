"""Image latents and motion frames: pictures → latents that the networks take, and latents → frames (spec section 6).

The VAE is diffusers' `AutoencoderKLCogVideoX`, 8× in space, 4× in time, the first frame alone. Random numbers are drawn
on the CPU, so that a seed gives the same noise on every device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.utils.accelerate_utils import apply_forward_hook
from numpy.typing import NDArray
from torch import Tensor

from .placement import execution_device

MASK_RATE = 0.1
SCALE = 8  # pixels along a side of a latent
_TILE = ("latent_min", "sample_min", "overlap_factor")  # of each side, as diffusers names them


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """A picture (H, W, 3) uint8 → (1, 3, H, W) float32 in [-1, 1]. `to_frames` is its exact inverse."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def to_frames(video: Tensor) -> NDArray[np.uint8]:
    """Frames (F, 3, H, W) in [-1, 1] → (F, H, W, 3) uint8, rounded to the nearest."""
    values = ((video.detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    return values.to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def mask_pixels(frames: Tensor, rate: float = MASK_RATE, generator: torch.Generator | None = None) -> Tensor:
    """Takes a share of the pixels away from motion frames, so that the network does not lean on them too much.

    Args:
        frames: `(..., H, W)` in [-1, 1], usually (k, 3, H, W). One mask serves all frames and channels.
        rate: Share of pixels lost, 0…1 (paper and published code: 0.1).
        generator: On the CPU.

    Returns:
        The frames with lost pixels at 0, mid grey.
    """
    lost = torch.rand(frames.shape[-2:], generator=generator) < rate
    return frames.masked_fill(lost.to(frames.device), 0.0)


def encode_video(vae: AutoencoderKLCogVideoX, video: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Encodes all frames in one piece: diffusers' class would cut into eights, and its group norms see less (3 % off).

    Args:
        video: `(B, 3, F, H, W)` in [-1, 1]; H and W multiples of 8.
        generator: Samples the posterior; without one the result is its mean.

    Returns:
        `(B, T, 16, h, w)`, × the VAE's scaling factor (0.7), on its device and in its number format; T is
        1 + (F−1)/4 for F = 1 + 4m, and three frames give one latent frame.
    """
    with _in_one_piece(vae, video.shape[2]):
        posterior = vae.encode(video.to(execution_device(vae), vae.dtype)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return (latents * vae.config["scaling_factor"]).transpose(1, 2)


@contextmanager
def _in_one_piece(vae: AutoencoderKLCogVideoX, frames: int) -> Iterator[None]:
    before = vae.num_sample_frames_batch_size
    vae.num_sample_frames_batch_size = frames
    try:
        yield
    finally:
        vae.num_sample_frames_batch_size = before


@torch.no_grad()
def encode_image_latents(
    vae: AutoencoderKLCogVideoX,
    portrait: Tensor,
    motion: Tensor,
    generator: torch.Generator,
    num_latent_frames: int,
) -> Tensor:
    """Image latents of a clip: portrait and motion frames through the VAE together, then zeros (spec section 6).

    Args:
        portrait: `(1, 3, H, W)` in [-1, 1].
        motion: `(k, 3, H, W)` in [-1, 1], masked already; k = 1 and 2 fill one latent frame, 4 fill two.
        generator: On the CPU; draws the sample of the posterior.
        num_latent_frames: T, 13 for a clip of 49 frames.

    Returns:
        `(1, T, 16, h, w)` on the VAE's device, in its number format.
    """
    frames = torch.cat([portrait.to(motion), motion]).transpose(0, 1)[None]
    known = encode_video(vae, frames, generator)
    if known.shape[1] > num_latent_frames:
        raise ValueError(f"{motion.shape[0]} motion frames fill {known.shape[1]} of {num_latent_frames} latent frames")
    rest = known.new_zeros(1, num_latent_frames - known.shape[1], *known.shape[2:])
    return torch.cat([known, rest], dim=1)


@torch.no_grad()
def encode_reference_latents(
    vae: AutoencoderKLCogVideoX, reference_image: NDArray[np.uint8], generator: torch.Generator
) -> Tensor:
    """The reference network's latent `(1, 1, 16, h, w)`, a sample of the posterior (spec sections 3 and 6).

    reference_image: the portrait on its canvas, (H, W, 3) uint8, black outside the face box (`face.black_outside`).
    """
    return encode_video(vae, to_tensor(reference_image)[:, :, None], generator)


def decode_video(vae: AutoencoderKLCogVideoX, latents: Tensor) -> Iterator[Tensor]:
    """Decodes latents piece by piece: the same frames as `vae.decode` of all, in less memory.

    Args:
        latents: `(1, T, 16, h, w)`, scaled as `encode_video` gives them.

    Yields:
        `(F, 3, H, W)` float32 in [-1, 1] on the VAE's device: nine frames (latent frames 0–2) if T is odd and more than
        one, then eight (two latent frames) at a time. With `vae.enable_tiling()` all frames in one piece; its tiles
        and what they share are rounded to whole latents.
    """
    z = latents.to(execution_device(vae), vae.dtype).transpose(1, 2) / vae.config["scaling_factor"]
    if vae.use_tiling and (z.shape[-2] > vae.tile_latent_min_height or z.shape[-1] > vae.tile_latent_min_width):
        with torch.no_grad(), _of_whole_latents(vae):
            yield _as_canvas(vae.decode(z).sample, z)
        return
    cache = None
    for start, stop in _latent_pieces(z.shape[2], vae.num_latent_frames_batch_size):
        with torch.no_grad():
            piece, cache = _decode_piece(vae, z[:, :, start:stop], cache)
            frames = _as_frames(piece)
        yield frames


@contextmanager
def in_tiles(vae: AutoencoderKLCogVideoX) -> Iterator[None]:
    """Decoding meanwhile goes tile by tile, each a quarter of the VAE's own picture, blended where they overlap.

    Less memory, and approximate: a tile's norms see the tile alone.
    """
    before = vae.use_tiling
    vae.use_tiling = True
    try:
        yield
    finally:
        vae.use_tiling = before


@contextmanager
def _of_whole_latents(vae: AutoencoderKLCogVideoX) -> Iterator[None]:
    """Rounds the VAE's tiles and what neighbours share to whole latents.

    Diffusers rounds the way from tile to tile down to latents, and what it blends and keeps to pixels. They agree at
    the published size; at others the tiles would be put together beside where they belong.
    """
    names = [f"tile_{what}_{side}" for side in ("height", "width") for what in _TILE]
    before = {name: getattr(vae, name) for name in names}
    for side in ("height", "width"):
        latents = max(2, before[f"tile_latent_min_{side}"])
        share = _shared(latents, before[f"tile_overlap_factor_{side}"])
        for what, value in zip(_TILE, (latents, SCALE * latents, share), strict=True):
            setattr(vae, f"tile_{what}_{side}", value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def _shared(tile: int, share: float) -> float:
    """What neighbouring tiles share, as close to `share` of `tile` latents as whole latents are.

    It is the nearest number of them from which diffusers' products come out whole: 33 · (1 − 6/33) is a little less
    than 27, of which it makes 26.
    """
    counts = sorted(range(1, tile), key=lambda count: abs(count - share * tile))
    exact = (n for n in counts if (int(tile * (1 - n / tile)), int(SCALE * tile * (n / tile))) == (tile - n, SCALE * n))
    return next(exact) / tile


def _as_canvas(sample: Tensor, z: Tensor) -> Tensor:
    """The frames of a sample put together from tiles, which must be of the latents' size."""
    height, width = (SCALE * size for size in z.shape[-2:])
    if sample.shape[-2:] != (height, width):
        raise RuntimeError(f"tiles make a picture of {tuple(sample.shape[-2:])}, not {(height, width)}")
    return _as_frames(sample)


def decode_latents(vae: AutoencoderKLCogVideoX, latents: Tensor) -> Iterator[NDArray[np.uint8]]:
    """As `decode_video`, yielding (F, H, W, 3) uint8."""
    return map(to_frames, decode_video(vae, latents))


def _latent_pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of latent frames decoded together: what does not fill a piece of `size` goes with the first."""
    surplus = count % size
    stop = min(size + surplus, count)
    yield 0, stop
    for start in range(stop, count, size):
        yield start, start + size


@apply_forward_hook
def _decode_piece(vae: AutoencoderKLCogVideoX, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Decodes latent frames after those that left `cache`: the ends of their causal convolutions' inputs."""
    if vae.post_quant_conv is not None:
        z = vae.post_quant_conv(z)
    return vae.decoder(z, conv_cache=_Spent.of(cache))


class _Spent(dict):
    """A cache of convolutions, by the names of layers within layers, which keeps nothing that was asked for.

    Each layer asks once and makes anew what the next piece needs of it; both together are a third of all that decoding
    would take.
    """

    @classmethod
    def of(cls, cache: Any) -> Any:
        """The cache as such a one; takes the entries out of `cache`."""
        if not isinstance(cache, dict):
            return cache
        return cls((name, cls.of(cache.pop(name))) for name in list(cache))

    def get(self, name: Any, default: Any = None) -> Any:
        """Gives the entry away."""
        return self.pop(name, default)


def _as_frames(sample: Tensor) -> Tensor:
    return sample[0].transpose(0, 1).float().clamp(-1, 1)
