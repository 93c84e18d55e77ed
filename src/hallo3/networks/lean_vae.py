"""The VAE in less time and memory: the same results up to rounding, the same parameters and names.

On a CPU its tensors lie channels last, from layer to layer. PyTorch sends no float32 Conv3d to oneDNN unless asked
directly, and its own is several times slower. Convolutions of one point are linear maps of the channels. On CUDA
convolutions are diffusers' own; which it is, each call tells by where its tensor lies. On every device the decoder's
norms weigh features by maps of the latents' size: each number of them holds for a block of features, and is never
written out for all of these.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXResnetBlock3D,
    CogVideoXSafeConv3d,
    CogVideoXSpatialNorm3D,
)
from diffusers.models.downsampling import CogVideoXDownsample3D
from torch import Tensor, nn


class LeanPointConv3d(CogVideoXSafeConv3d):
    """A convolution of one point, as a linear map of the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, T, H, W)` → `(B, C', T, H, W)`."""
        if input.is_cuda:
            return super().forward(input)
        return F.linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class LeanCausalConv3d(CogVideoXCausalConv3d):
    """A causal convolution of the VAE, channels last."""

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(B, C, T, H, W)` and the frames before it → `(B, C', T, H, W)` and the frames to keep."""
        if inputs.is_cuda:
            return super().forward(inputs, conv_cache)
        taps, frames = self.time_kernel_size, inputs.shape[2]
        if taps == 1:
            return self.conv(inputs), None
        if conv_cache is None and frames == 1:  # the frames before are the same one: the kernel's planes add up
            kept = inputs.expand(-1, -1, taps - 1, -1, -1)
            return _conv(inputs, self.conv.weight.sum(2, keepdim=True), self.conv), kept
        before = inputs[:, :, :1].expand(-1, -1, taps - 1, -1, -1) if conv_cache is None else conv_cache
        # Each as its convolution wants it: of two layouts `cat` makes a third, which is laid out anew.
        padded = torch.cat([x.contiguous(memory_format=torch.channels_last_3d) for x in (before, inputs)], 2)
        # A copy: what lies in `padded` beside it would stay in memory as well.
        return _conv(padded, self.conv.weight, self.conv), padded[:, :, frames:].detach().clone()


class LeanSpatialNorm3D(CogVideoXSpatialNorm3D):
    """The decoder's norm; its maps stay as small as the latents they come from."""

    def forward(self, f: Tensor, zq: Tensor, conv_cache: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Features `(B, C, T, H, W)`, latents `(B, c, t, h, w)` → features normed, and nothing to keep."""
        scale, shift = self.conv_y(zq)[0], self.conv_b(zq)[0]
        normed = self.norm_layer(f)
        if f.shape[2] == 1 or f.shape[2] % 2 == 0:
            return _weigh(normed, scale, shift), {}
        first, rest = slice(0, 1), slice(1, None)  # the first frame stands for itself alone
        pieces = [_weigh(normed[:, :, part], scale[:, :, part], shift[:, :, part]) for part in (first, rest)]
        return torch.cat(pieces, 2) if torch.is_grad_enabled() else normed, {}


class LeanDownsample3D(CogVideoXDownsample3D):
    """The encoder's step to half the size; pairs of frames are averaged where they lie."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, T, H, W)` → `(B, C', t, H/2, W/2)`; t is half of T, where time is compressed."""
        if x.is_cuda:
            return super().forward(x)
        if self.compress_time and x.shape[2] > 1:
            odd = x.shape[2] % 2  # then the first frame stands for itself alone
            halves = torch.lerp(x[:, :, odd::2], x[:, :, odd + 1 :: 2], 0.5)
            x = torch.cat([x[:, :, :odd], halves], 2) if odd else halves
        frames = F.pad(x, (0, 1, 0, 1)).transpose(1, 2)
        return self.conv(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class LeanSiLU(nn.SiLU):
    """The VAE's activation, written over its input, a norm's result that nothing else needs."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.silu(x, inplace=not torch.is_grad_enabled())


def _weigh(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Features `(B, C, T, H, W)` · scale + shift, both `(B, C, t, h, w)`; over the features, when nothing learns."""
    blocks = features
    for dim in (4, 3, 2):
        blocks = blocks.unflatten(dim, (scale.shape[dim], -1))
    scale, shift = (x[:, :, :, None, :, None, :, None] for x in (scale, shift))
    if torch.is_grad_enabled():
        return torch.addcmul(shift, blocks, scale).reshape(features.shape)
    torch.addcmul(shift, blocks, scale, out=blocks)
    return features


def _conv(x: Tensor, weight: Tensor, conv: nn.Conv3d) -> Tensor:
    """Convolution over time and planes with the bias and padding of `conv`, through oneDNN where that is faster."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return F.conv3d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    x, weight = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, weight))
    how: tuple[Any, ...] = conv.padding, conv.stride, conv.dilation, conv.groups
    return torch.mkldnn_convolution(x, weight, conv.bias, *how)  # type: ignore[attr-defined]


def make_lean(vae: nn.Module, convolutions: bool = True) -> nn.Module:
    """Lets `AutoencoderKLCogVideoX` compute in this way; returns it.

    convolutions: False replaces norms and activations alone, as all this does on CUDA: diffusers' norms enlarge the
    latents before they look at them, and keep them enlarged for the next piece. Decoding takes half the memory without.
    """
    for module in vae.modules():
        if type(module) is CogVideoXSpatialNorm3D:
            module.__class__ = LeanSpatialNorm3D
        elif isinstance(module, CogVideoXResnetBlock3D) and type(module.nonlinearity) is nn.SiLU:
            module.nonlinearity.__class__ = LeanSiLU
        elif convolutions and type(module) is CogVideoXCausalConv3d and module.pad_mode != "replicate":
            module.__class__ = LeanCausalConv3d
        elif convolutions and type(module) is CogVideoXDownsample3D:
            module.__class__ = LeanDownsample3D
        elif convolutions and type(module) is CogVideoXSafeConv3d and module.kernel_size == (1, 1, 1):
            module.__class__ = LeanPointConv3d
    return vae
