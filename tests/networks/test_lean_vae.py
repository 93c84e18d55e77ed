"""How the lean VAE's tensors lie in memory; that it computes what the plain one does: training/test_vae.py."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from hallo3.conditions.motion import decode_latents
from hallo3.networks import lean_vae
from hallo3.training.vae import EMBEDDED_VAE


@torch.no_grad()
def test_a_cpu_lays_nothing_out_anew_before_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first piece nor those that start from kept frames; the numbers that come in lie as they come."""
    vae = AutoencoderKLCogVideoX(**EMBEDDED_VAE | {"block_out_channels": (8, 8, 16, 16)}).eval()
    lean_vae.make_lean(vae, convolutions=True)
    convolve, layouts = lean_vae._conv, []

    def seen(x: torch.Tensor, *given: object) -> torch.Tensor:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last_3d))
        return convolve(x, *given)

    monkeypatch.setattr(lean_vae, "_conv", seen)
    list(decode_latents(vae, torch.randn(1, 5, 16, 2, 3)))
    assert len(layouts) > 40 and all(layouts)
