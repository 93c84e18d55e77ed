"""How many operations the denoiser takes, counted by running its own code on tensors without numbers (meta device).

Multiplications and additions both count, as is usual: a product of matrices `(a, b) · (b, c)` is 2·a·b·c. What passes
over the data once (norms, rotation, softmax, activations) is not counted.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..networks.denoiser import Hallo3Transformer3DModel
from .measured import wait_for

# Side of the matrices whose product tells a device's speed, and how many products are awaited together. On a GPU a
# small one takes less time than its launch.
PROBES, SMALL_PROBE = {"cuda": (4096, 8)}, (1024, 1)


@dataclass(frozen=True)
class Grid:
    """What the denoiser runs on: latent frames, latent rows and columns, text tokens. The defaults are published."""

    frames: int = 13
    height: int = 60
    width: int = 90
    words: int = 226

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Grid":
        """Of a bundle's clips; settings: its pipeline's configuration."""
        return cls(
            frames=(settings["num_frames"] - 1) // 4 + 1,
            height=settings["sample_height"] // 8,
            width=settings["sample_width"] // 8,
            words=settings["text_length"],
        )


@dataclass(frozen=True)
class DenoiserOperations:
    """Operations of one guidance branch.

    step: a forward with prepared conditions, in every sampling step. clip: conditions of the speech, once a clip.
    lasting: conditions of face and reference, once a portrait. recomputed: a forward that makes them all anew.
    """

    step: int
    clip: int
    lasting: int
    recomputed: int


def count_denoiser(
    config: Mapping[str, Any],
    grid: Grid,
    *,
    fold_face: bool = False,
    fold_speech: bool = False,
    every_layer: bool = False,
) -> DenoiserOperations:
    """Operations of one guidance branch.

    Args:
        config: Of the denoiser; published where it says nothing.
        grid: Of its inputs.
        fold_face, fold_speech: See `Hallo3Transformer3DModel.fold_outputs`.
        every_layer: Builds the whole network. Otherwise networks of one and two layers are counted, from which the
            rest follows, as layers are alike.
    """
    defaults = {name: p.default for name, p in inspect.signature(Hallo3Transformer3DModel).parameters.items()}
    sizes = {name: config.get(name, default) for name, default in defaults.items()}
    layers = sizes["num_layers"]

    def counted(count: int) -> DenoiserOperations:
        with torch.device("meta"):
            denoiser = Hallo3Transformer3DModel(**sizes | {"num_layers": count})
        denoiser.fold_outputs(face=fold_face, speech=fold_speech)
        return _count(denoiser, grid)

    if every_layer:
        return counted(layers)
    one, two = vars(counted(1)), vars(counted(2))
    return DenoiserOperations(**{name: one[name] + (two[name] - one[name]) * (layers - 1) for name in one})


@torch.no_grad()
def _count(denoiser: Hallo3Transformer3DModel, grid: Grid) -> DenoiserOperations:
    inputs, speech, lasting = empty_inputs(denoiser, grid)
    conditions = denoiser.conditions(speech=speech, **lasting)
    return DenoiserOperations(
        step=operations_of(lambda: denoiser(*inputs, conditions=conditions)),
        clip=operations_of(lambda: denoiser.prepare_speech(speech)),
        lasting=operations_of(lambda: denoiser.conditions(**lasting)),
        recomputed=operations_of(lambda: denoiser(*inputs, speech=speech, **lasting)),
    )


def empty_inputs(denoiser: Hallo3Transformer3DModel, grid: Grid) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Any]]:
    """Latents, timestep and text of a forward; speech; face and reference: without numbers."""
    k: Any = denoiser.config

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    inputs = (
        empty(grid.frames, k.in_channels, grid.height, grid.width),
        torch.empty(1, device="meta"),
        empty(grid.words, k.text_embed_dim),
    )
    tokens = grid.height * grid.width // k.patch_size**2
    width = k.num_attention_heads * k.attention_head_dim
    speech = empty(4 * (grid.frames - 1) + 1, k.speech_window, k.speech_blocks, k.speech_channels)
    lasting: dict[str, Any] = {
        "face": None if denoiser.identity.face is None else empty(k.face_embed_dim),
        "reference": [empty(tokens, width)] * k.num_layers if denoiser.identity.reference else None,
    }
    return inputs, speech, lasting


def operations_of(work: Callable[[], Any]) -> int:
    """Operations of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def count_decoding(config: Mapping[str, Any], grid: Grid) -> int:
    """Operations of a clip's decoding by a VAE of this configuration, as diffusers' decoder takes them.

    In closed form, because counting takes longer than all else of a plan: a decoder is all convolutions.
    """
    latent, layers = config.get("latent_channels", 16), config.get("layers_per_block", 3) + 1
    widths = list(reversed(config["block_out_channels"]))
    compressed = int(math.log2(config.get("temporal_compression_ratio", 4)))
    frames, area = grid.frames, grid.height * grid.width
    before = widths[0]
    # For each position of a level: a convolution takes 27 products a pair of channels, a norm two maps of the latents.
    found = frames * area * (27 * latent * before + 2 * _residual(before, before, latent))
    for level, width in enumerate(widths):
        blocks = _residual(before, width, latent) + (layers - 1) * _residual(width, width, latent)
        found += frames * area * blocks
        before = width
        if level < len(widths) - 1:
            frames, area = (2 * frames - frames % 2 if level < compressed else frames), 4 * area
            found += frames * area * 9 * width**2
    found += frames * area * (2 * latent * before + 27 * before * config.get("out_channels", 3))
    return 2 * found


def _residual(width: int, out: int, latent: int) -> int:
    """Products for each position in a block of two norms and two convolutions, from `width` channels to `out`."""
    shortcut = width * out if width != out else 0
    return 2 * latent * (width + out) + 27 * out * (width + out) + shortcut


def measured_speed(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """Operations a second of a large product of matrices on this device, in this number format."""
    side, in_a_row = PROBES.get(device.type, SMALL_PROBE)
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, precision))

    def work() -> None:
        for _ in range(in_a_row):
            matrix @ matrix
        wait_for(device)

    work()  # libraries and clocks start with the first one
    done, began = 0, time.monotonic()
    while time.monotonic() - began < seconds or not done:
        work()
        done += in_a_row
    return 2 * side**3 * done / (time.monotonic() - began)
