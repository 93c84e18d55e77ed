"""The kernel of the denoiser's joint attention: asked for by name, or the fastest exact one as measured here.

Kernels are diffusers' attention backends. Face and speech attention have few keys and stay with PyTorch's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    _maybe_download_kernel_for_backend,
    dispatch_attention_fn,
)
from torch import Tensor

from ..bundles.sizes import BundleSizes
from ..errors import UserError
from .measured import remembered, seconds_of

TRIAL = 64  # tokens
AGREEMENT = 0.02  # largest difference from PyTorch's own, of its largest number, that rounding in 16 bits explains


@dataclass(frozen=True)
class Kernel:
    """backend: its name in diffusers. exact: the same up to rounding. downloads: from the hub, so only if named."""

    backend: str
    exact: bool = True
    downloads: bool = False


KERNELS = {
    "native": Kernel("native"),
    "cudnn": Kernel("_native_cudnn"),
    "flash": Kernel("flash"),
    "flash3": Kernel("_flash_3"),
    "flash3-hub": Kernel("_flash_3_hub", downloads=True),
    "sage": Kernel("sage", exact=False),
    "sage-hub": Kernel("sage_hub", exact=False, downloads=True),
}
"""By the names of `--attention`: PyTorch's choice, cuDNN, FlashAttention 2 and 3, SageAttention (8 bits)."""


@dataclass(frozen=True)
class JointShape:
    """Of the denoiser's joint attention: tokens that ask, tokens that are seen, heads, numbers a head."""

    queries: int
    keys: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, sizes: BundleSizes) -> "JointShape":
        """In the clips of a bundle."""
        k, settings = sizes.denoiser, sizes.settings
        frames = (settings["num_frames"] - 1) // 4 + 1
        tokens = settings["sample_height"] * settings["sample_width"] // (8 * k.get("patch_size", 2)) ** 2
        queries = settings["text_length"] + frames * tokens
        seen = tokens * (k.get("identity_conditioning", "both") in ("reference", "both"))
        heard = frames * k.get("speech_tokens", 32) * (k.get("speech_conditioning", "cross") == "joint")
        return cls(queries, queries + seen + heard, k.get("num_attention_heads", 48), k.get("attention_head_dim", 64))

    def random(self, device: torch.device, number_format: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(1, m, heads, head_dim)`."""

        def drawn(count: int) -> Tensor:
            return torch.randn(1, count, self.heads, self.head_dim, device=device, dtype=number_format)

        return drawn(self.queries), drawn(self.keys), drawn(self.keys)


def choose_attention(
    name: str,
    shape: JointShape,
    device: torch.device,
    number_format: torch.dtype,
    kernels: Mapping[str, Kernel] = KERNELS,
) -> str:
    """The kernel to use: `name`, or by `auto` the fastest exact one that needs no download.

    It is measured on the shape in use, once for a device and the versions of the libraries; not where only one runs, as
    on a CPU. Raises UserError for a name that there is not, and for a kernel that does not run here.
    """
    if name == "auto":
        offered = [one for one, kernel in kernels.items() if kernel.exact and not kernel.downloads]
        running = [
            one for one in offered if one == "native" or not _obstacle(kernels[one], shape, device, number_format)
        ]
        if len(running) == 1:
            return "native"
        about = {"what": "attention", "device": str(device), "dtype": str(number_format), "shape": vars(shape)}
        return remembered(about, running, partial(_fastest, running, shape, device, number_format, kernels))
    if name not in kernels:
        raise UserError(f"--attention {name}: there is no such kernel; use auto, {', '.join(kernels)}")
    reason = "" if name == "native" else _obstacle(kernels[name], shape, device, number_format)
    if reason:
        raise UserError(f"--attention {name}: does not run here ({reason}); use auto or native")
    return name


def _obstacle(kernel: Kernel, shape: JointShape, device: torch.device, number_format: torch.dtype) -> str:
    """Why a kernel does not run on a few tokens; empty if it does."""
    try:
        _call(kernel, *JointShape(TRIAL, TRIAL, shape.heads, shape.head_dim).random(device, number_format))
    except Exception as error:  # whatever a kernel's library says of a device or a number format that it doesn't know
        return " ".join(str(error).split())[:160] or type(error).__name__
    return ""


@torch.no_grad()
def _fastest(
    offered: list[str],
    shape: JointShape,
    device: torch.device,
    number_format: torch.dtype,
    kernels: Mapping[str, Kernel],
) -> str:
    """Of those that agree with PyTorch's own."""
    inputs = shape.random(device, number_format)
    expected = _call(kernels["native"], *inputs)
    ways: dict[str, Callable[[], Any]] = {}
    for name in offered:
        found = _call(kernels[name], *inputs)
        if bool((found - expected).abs().max() <= AGREEMENT * expected.abs().max()):
            ways[name] = partial(_call, kernels[name], *inputs)
    seconds = seconds_of(ways, device)
    return min(seconds, key=lambda name: seconds[name])


def _call(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    backend = AttentionBackendName(kernel.backend)
    _check_attention_backend_requirements(backend)
    _maybe_download_kernel_for_backend(backend)
    return dispatch_attention_fn(query, key, value, backend=backend)


def use_attention(denoiser: Any, name: str) -> None:
    """Lets the joint attention of every layer use a kernel that `choose_attention` gave."""
    if name != "native":  # what a layer takes by itself
        for block in denoiser.transformer_blocks:
            block.attention.set_attention_backend(KERNELS[name].backend)
