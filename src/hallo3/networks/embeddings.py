"""Latents and text to tokens and back, positions, and the modulation by the time embedding."""

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each `(T, n, head_dim)`, of the positions of the video tokens."""


class TokenEmbedding(nn.Module):
    """Patches of the latents and text embeddings to tokens, plus a learned table of positions.

    The table has one row a token of the sequence `[text ; video]` and is cut to the sequence in use.
    """

    def __init__(self, in_channels: int, width: int, patch_size: int, text_embed_dim: int, position_rows: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.text_proj = nn.Linear(text_embed_dim, width)
        self.position_table = nn.Parameter(torch.empty(1, position_rows, width))
        nn.init.normal_(self.position_table, std=0.02)

    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Latent frames, token rows and token columns of `(B, T, C, h, w)`."""
        _, frames, channels, height, width = latents.shape
        if channels != self.proj.in_channels:
            raise ValueError(f"latents have {channels} channels, the network takes {self.proj.in_channels}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"a latent grid of {height}×{width} does not divide by the patch size {self.patch_size}")
        return frames, height // self.patch_size, width // self.patch_size

    def forward(self, latents: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, T, C, h, w)` and `(B, L, c)` → video `(B, T, n, width)` and text `(B, L, width)`."""
        frames, rows, columns = self.grid(latents)
        words = text_embeds.shape[1]
        length, available = words + frames * rows * columns, self.position_table.shape[1]
        if length > available:
            raise ValueError(
                f"{words} text and {frames}×{rows}×{columns} video tokens make a sequence of {length}, longer than the "
                f"position table of {available} rows: take a smaller grid, fewer frames or a shorter text"
            )
        video = self.proj(latents.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (-1, frames))
        positions = self.position_table[:, words:length].unflatten(1, (frames, rows * columns))
        return video + positions, self.text_proj(text_embeds) + self.position_table[:, :words]


class RotaryPositions(nn.Module):
    """Rotary tables of a grid: a quarter of the head for time, three eighths each for row and column; theta 10,000.

    A module, so that context parallelism can take each device's tokens from its output.
    """

    def __init__(self, head_dim: int):
        super().__init__()
        if head_dim % 16:
            raise ValueError(f"attention_head_dim is {head_dim}: the rotary embedding needs a multiple of 16")
        self.head_dim = head_dim

    def forward(self, frames: int, rows: int, columns: int, device: torch.device) -> Rotary:
        """Cosines and sines, `(frames, rows·columns, head_dim)` each, in float32."""
        size = (rows, columns)
        cos, sin = get_3d_rotary_pos_embed(
            self.head_dim, None, size, frames, grid_type="slice", max_size=size, device=device
        )
        return cos.unflatten(0, (frames, -1)), sin.unflatten(0, (frames, -1))


Modulations = tuple[tuple[Tensor, Tensor, Tensor], ...]
"""(shift, scale, gate) of video attention, video MLP, text attention, text MLP."""


class Modulation(nn.Module):
    """One layer's expert adaptive layer norm: shifts, scales and gates, zero before training."""

    def __init__(self, time_embed_dim: int, width: int):
        super().__init__()
        self.linear = nn.Linear(time_embed_dim, 12 * width)
        start_at_zero(self.linear)

    def forward(self, temb: Tensor) -> Modulations:
        """A time embedding `(B, 1 or 1 + T, c)` → twelve tensors, video `(B, 1 or T, 1, width)`, text `(B, 1, width)`.

        One row serves text and video; of several, the first is for the text, the others for the latent frames.
        """
        chunks = self.linear(nn.functional.silu(temb)).chunk(12, -1)
        video = [video_rows(chunk).unsqueeze(2) for chunk in chunks[:6]]
        text = [chunk[:, :1] for chunk in chunks[6:]]
        return tuple(tuple(six[i : i + 3]) for six in (video, text) for i in (0, 3))


def video_rows(temb: Tensor) -> Tensor:
    """The rows for the video `(B, 1 or T, c)` of a time embedding, or of what was made of it, `(B, 1 or 1 + T, c)`."""
    return temb[:, 1:] if temb.shape[1] > 1 else temb


def start_at_zero(linear: nn.Linear) -> None:
    """Let a new layer's output start at zero, so that what it is added to starts unchanged."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x·(1 + scale) + shift`."""
    return torch.addcmul(shift, x, 1 + scale)


def unpatchify(tokens: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """`(B, T, rows·columns, c·p²)`, ordered (channel, row, column) → latents `(B, T, c, rows·p, columns·p)`."""
    x = tokens.unflatten(-1, (-1, patch_size, patch_size)).unflatten(2, (rows, columns))
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
