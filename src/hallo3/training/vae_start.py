"""A start for the VAE from which it learns in minutes: an encoder that already keeps the principal components.

Every level of the encoder begins as a principal component analysis of 2×2 patches of the level before, so that a latent
holds the first components of an 8×8 patch; residual branches begin at zero. The decoder's norms begin as plain group
norms and its residual branches at zero too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONSTANT = 4.0  # channels of this size keep the encoder's last group norm from dividing by what it should pass on


@torch.no_grad()
def start_vae(vae: Any, pictures: Tensor) -> None:
    """Sets the start of an untrained VAE of four levels, of which the last has four channels a latent channel or more.

    Args:
        pictures: `(n, 3, H, W)` in [-1, 1], a hundred or so of what it will see.
    """
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            _zero(module.conv)
        elif name.endswith("conv_y"):
            _zero(module.conv, bias=1.0)
        elif name.endswith("conv_b"):
            _zero(module.conv)
        elif name.startswith("decoder") and "upsamplers" in name and isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
    encoder = vae.encoder
    _zero(encoder.conv_in.conv)
    encoder.conv_in.conv.weight[:3, :, -1, 1, 1] = torch.eye(3)
    features = pictures
    for block in encoder.down_blocks:
        _pass_on(block.resnets[0], features.shape[1])
        for resnet in block.resnets[1:]:
            _pass_on(resnet, features.shape[1])
        if block.downsamplers:
            features = _components(block.downsamplers[0].conv, features)
    _close(encoder, features, vae.config.latent_channels)


def _zero(convolution: Any, bias: float = 0.0) -> None:
    nn.init.zeros_(convolution.weight)
    nn.init.constant_(convolution.bias, bias)


def _pass_on(resnet: Any, channels: int) -> None:
    """A resnet whose shortcut widens: the channels so far stay, the others are zero."""
    if resnet.in_channels != resnet.out_channels:
        _zero(resnet.conv_shortcut)
        for channel in range(channels):
            resnet.conv_shortcut.weight[channel, channel] = 1


def _components(convolution: Any, features: Tensor) -> Tensor:
    """Principal components of 2×2 patches `(n, c, h, w)` as a strided convolution; returns its output."""
    channels, wanted = features.shape[1], convolution.out_channels
    patches = F.unfold(features, 2, stride=2).transpose(1, 2).flatten(0, 1)
    vectors = torch.linalg.eigh(patches.T @ patches / len(patches))[1].flip(1)[:, :wanted]
    _zero(convolution)
    count = vectors.shape[1]
    convolution.weight[:count, :channels, :2, :2] = vectors.T.unflatten(1, (channels, 2, 2))
    return F.conv2d(features, convolution.weight[:, :channels, :2, :2], stride=2)


def _close(encoder: Any, features: Tensor, latents: int) -> None:
    """The last widening, norm and convolution: each latent is one component, brought to unit variance.

    A component comes as a pair a, −a, because SiLU(a) − SiLU(−a) = a.
    """
    resnet, channels = encoder.down_blocks[-1].resnets[0], features.shape[1]
    gains = 1 / features[:, :latents].transpose(0, 1).flatten(1).square().mean(1).sqrt().clamp(min=1e-3)
    groups = encoder.norm_out.num_groups
    size = resnet.out_channels // groups
    _zero(resnet.conv_shortcut)
    _zero(encoder.conv_out.conv)
    assert channels >= latents and size >= 4 * latents // groups
    for latent in range(latents):
        first = latent % groups * size + latent // groups * 4
        resnet.conv_shortcut.weight[first, latent] = gains[latent]
        resnet.conv_shortcut.weight[first + 1, latent] = -gains[latent]
        resnet.conv_shortcut.bias[first + 2] = CONSTANT
        resnet.conv_shortcut.bias[first + 3] = -CONSTANT
        encoder.conv_out.conv.weight[latent, first, -1, 1, 1] = 1
        encoder.conv_out.conv.weight[latent, first + 1, -1, 1, 1] = -1
    encoder.norm_out.weight.fill_((0.5 * CONSTANT**2 + 0.5) ** 0.5)
