"""What the denoiser is conditioned on, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Condition = list[Tensor] | Tensor | None
"""One tensor a layer; or, in the adaptive norm variants, one addition to the time embedding; `None` for left out."""

LayerConditions = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class DenoiserConditions:
    """Keys and values of reference, face and speech, one tensor a layer; `None` where a condition is left out.

    Shapes: reference `(B, n, 2, heads, head_dim)`, face `(B, 1, m, 2, heads, head_dim)`, speech
    `(B, T, m, 2, heads, head_dim)`. What is added to the time embedding in their place is one tensor for all layers:
    face `(B, 1, time_embed_dim)`, speech `(B, T, time_embed_dim)`. A batch of one serves any batch of latents. They do
    not depend on the sampling step: build them once per clip and guidance branch, and the reference once per portrait.
    """

    reference: list[Tensor] | None = None
    face: Condition = None
    speech: Condition = None

    def layer(self, index: int) -> LayerConditions:
        """Reference, face and speech of one layer."""
        return (
            None if self.reference is None else self.reference[index],
            self.face[index] if isinstance(self.face, list) else None,
            self.speech[index] if isinstance(self.speech, list) else None,
        )

    def told(self, temb: Tensor) -> Tensor:
        """The time embedding with what is added to it.

        `(B, d)` → `(B, 1, d)`, one row for everything; with speech that is added `(B, 1 + T, d)`: a row for the text,
        which belongs to no frame and hears nothing, and one for each latent frame.
        """
        rows = temb.unsqueeze(1)
        if isinstance(self.face, Tensor):
            rows = rows + self.face
        if isinstance(self.speech, Tensor):
            rows = torch.cat([rows, rows + self.speech], 1)
        return rows

    @property
    def speech_frames(self) -> int | None:
        """Latent frames that the speech is for."""
        return None if self.speech is None else _first(self.speech).shape[1]

    def __getitem__(self, rows: slice) -> "DenoiserConditions":
        """Some rows of the batch; what has a batch of one is shared by all."""
        return self.changed(lambda x: x if len(x) == 1 else x[rows])

    @staticmethod
    def concatenate(parts: Sequence["DenoiserConditions"]) -> "DenoiserConditions":
        """One batch of several branches. A condition that all parts share (the same object) is not copied.

        Raises ValueError where some have a condition and some have none.
        """
        return DenoiserConditions(
            _join("reference", [part.reference for part in parts]),  # type: ignore[arg-type]
            _join("face", [part.face for part in parts]),
            _join("speech", [part.speech for part in parts]),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "DenoiserConditions":
        """On another device or in another dtype."""
        return self.changed(lambda x: x.to(device=device, dtype=dtype))

    def changed(self, change: Callable[[Tensor], Tensor]) -> "DenoiserConditions":
        """With `change` of every tensor in its place."""

        def each(condition: Condition) -> Condition:
            if isinstance(condition, list):
                return [change(x) for x in condition]
            return None if condition is None else change(condition)

        return DenoiserConditions(each(self.reference), each(self.face), each(self.speech))  # type: ignore[arg-type]


def _first(condition: list[Tensor] | Tensor) -> Tensor:
    return condition[0] if isinstance(condition, list) else condition


def _join(name: str, found: Sequence[Condition]) -> Condition:
    """One condition of several branches as a batch."""
    first = found[0]
    if all(condition is first for condition in found) and (first is None or len(_first(first)) == 1):
        return first
    if any(condition is None for condition in found):
        raise ValueError(f"some branches have a {name} condition and some have none")
    if isinstance(first, list):
        return [torch.cat(layers) for layers in zip(*found, strict=True)]  # type: ignore[arg-type]
    return torch.cat(found)  # type: ignore[arg-type]
