"""How the lean VAE's tensors lie in memory; that it computes what the plain one does: training/test_vae.py."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch._subclasses.fake_tensor import FakeTensorMode

from hallo3.conditions.motion import decode_latents
from hallo3.networks import lean_vae
from hallo3.training.vae import EMBEDDED_VAE


def small_vae() -> AutoencoderKLCogVideoX:
    vae = AutoencoderKLCogVideoX(**EMBEDDED_VAE | {"block_out_channels": (8, 8, 16, 16)}).eval()
    lean_vae.make_lean(vae)
    return vae


@torch.no_grad()
def test_a_cpu_lays_nothing_out_anew_before_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first piece nor those that start from kept frames; the numbers that come in lie as they come."""
    vae = small_vae()
    convolve, layouts = lean_vae._conv, []

    def seen(x: torch.Tensor, *given: object) -> torch.Tensor:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last_3d))
        return convolve(x, *given)

    monkeypatch.setattr(lean_vae, "_conv", seen)
    list(decode_latents(vae, torch.randn(1, 5, 16, 2, 3)))
    assert len(layouts) > 40 and all(layouts)


@torch.no_grad()
def test_a_gpu_beside_it_changes_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    vae = small_vae()
    convolve, calls = lean_vae._conv, []
    monkeypatch.setattr(lean_vae, "_conv", lambda *given: calls.append(given) or convolve(*given))
    list(decode_latents(vae, torch.randn(1, 1, 16, 2, 3)))
    assert len(calls) > 20


@pytest.mark.parametrize("ours", [lean_vae.LeanPointConv3d, lean_vae.LeanCausalConv3d, lean_vae.LeanDownsample3D])
def test_on_cuda_convolutions_are_the_libraries_own(ours: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the tensor, which has no numbers here."""
    layer: Any = next(module for module in small_vae().modules() if type(module) is ours)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(ours.__mro__[1], "forward", lambda _, x, *given: seen.append(x))
    with FakeTensorMode():
        layer(torch.empty(1, 8, 2, 4, 4, device="cuda"))
    assert [x.device.type for x in seen] == ["cuda"]
