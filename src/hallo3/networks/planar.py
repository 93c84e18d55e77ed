"""The VAE's convolutions over time as convolutions over planes.

PyTorch computes float32 Conv3d on a CPU without oneDNN, several times slower than Conv2d. A causal convolution over
three frames is one over a plane whose channels are those of the three frames. On a single frame, which causal padding
repeats, the kernel's three planes add up first. Results are equal up to rounding; parameters and their names stay.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXResnetBlock3D,
    CogVideoXSpatialNorm3D,
)
from torch import Tensor, nn

CHANNEL_PIECES = 8


class PlanarCausalConv3d(CogVideoXCausalConv3d):
    """A causal convolution of the VAE, computed over planes."""

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(B, C, T, H, W)` and the frames before it → `(B, C', T, H, W)` and the frames to keep."""
        taps, frames = self.time_kernel_size, inputs.shape[2]
        weight, bias = self.conv.weight, self.conv.bias
        padding = (self.height_pad, self.width_pad)
        if taps == 1:
            return _by_plane(inputs, weight.squeeze(2), bias, padding), None
        if conv_cache is None and frames == 1:
            kept = inputs.expand(-1, -1, taps - 1, -1, -1)
            return _by_plane(inputs, weight.sum(2), bias, padding), kept
        before = inputs[:, :, :1].expand(-1, -1, taps - 1, -1, -1) if conv_cache is None else conv_cache
        padded = torch.cat([before, inputs], 2)
        stacked = torch.cat([padded[:, :, tap : tap + frames] for tap in range(taps)], 1)
        flat = weight.transpose(1, 2).flatten(1, 2)
        return _by_plane(stacked, flat, bias, padding), padded[:, :, frames:].detach()


class PlanarSpatialNorm3D(CogVideoXSpatialNorm3D):
    """The decoder's norm; its pointwise convolutions look at the latents before these are enlarged, not after."""

    def forward(self, f: Tensor, zq: Tensor, conv_cache: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Features `(B, C, T, H, W)`, latents `(B, c, t, h, w)` → features normed, and nothing to keep."""
        scale, shift = self.conv_y(zq)[0], self.conv_b(zq)[0]
        normed = self.norm_layer(f)
        if torch.is_grad_enabled():
            return normed * _enlarge(scale, f.shape) + _enlarge(shift, f.shape), {}
        # In place, some channels at a time: only so much of scale and shift is enlarged at once.
        pieces = [x.chunk(CHANNEL_PIECES, 1) for x in (normed, scale, shift)]
        for part, by, plus in zip(*pieces, strict=True):
            part.mul_(_enlarge(by, f.shape)).add_(_enlarge(plus, f.shape))
        return normed, {}


class FrugalSiLU(nn.SiLU):
    """The VAE's activation, written over its input, a norm's result that nothing else needs."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.silu(x, inplace=not torch.is_grad_enabled())


def _enlarge(x: Tensor, shape: torch.Size) -> Tensor:
    size = shape[-3:]
    if size[0] > 1 and size[0] % 2 == 1:  # the first frame stands for itself alone
        first = F.interpolate(x[:, :, :1], size=(1, *size[1:]))
        return torch.cat([first, F.interpolate(x[:, :, 1:], size=(size[0] - 1, *size[1:]))], 2)
    return F.interpolate(x, size=size)


def _by_plane(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Conv2d on every frame of `(B, C, T, H, W)`."""
    planes = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    result = F.conv2d(planes, weight.contiguous(memory_format=torch.channels_last), bias, padding=padding)
    return result.unflatten(0, (len(x), -1)).transpose(1, 2)


def use_planes(vae: nn.Module, convolutions: bool = True) -> nn.Module:
    """Lets `AutoencoderKLCogVideoX` compute its causal convolutions over planes; returns it.

    convolutions: False replaces norms and activations alone, which is right for a GPU: diffusers' norms enlarge the
    latents before they look at them, and keep them enlarged for the next piece. Decoding takes half the memory without.
    """
    for module in vae.modules():
        if type(module) is CogVideoXSpatialNorm3D:
            module.__class__ = PlanarSpatialNorm3D
        elif isinstance(module, CogVideoXResnetBlock3D) and type(module.nonlinearity) is nn.SiLU:
            module.nonlinearity.__class__ = FrugalSiLU
        elif convolutions and type(module) is CogVideoXCausalConv3d and _has_planes(module):
            module.__class__ = PlanarCausalConv3d
    return vae


def _has_planes(module: CogVideoXCausalConv3d) -> bool:
    return module.conv.stride == (1, 1, 1) and module.pad_mode != "replicate"
