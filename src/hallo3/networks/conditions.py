"""What the denoiser is conditioned on, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LayerConditions = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class DenoiserConditions:
    """Keys and values of reference, face and speech, one tensor a layer; `None` where a condition is left out.

    Shapes: reference `(B, n, 2, heads, head_dim)`, face `(B, 1, m, 2, heads, head_dim)`, speech
    `(B, T, m, 2, heads, head_dim)`. A batch of one serves any batch of latents. They do not depend on the sampling
    step: build them once per clip and guidance branch, and the reference once per portrait.
    """

    reference: list[Tensor] | None = None
    face: list[Tensor] | None = None
    speech: list[Tensor] | None = None

    def layer(self, index: int) -> LayerConditions:
        """Reference, face and speech of one layer."""
        return (
            None if self.reference is None else self.reference[index],
            None if self.face is None else self.face[index],
            None if self.speech is None else self.speech[index],
        )

    def __getitem__(self, rows: slice) -> "DenoiserConditions":
        """Some rows of the batch; what has a batch of one is shared by all."""

        def take(layers: list[Tensor] | None) -> list[Tensor] | None:
            return layers if layers is None else [x if len(x) == 1 else x[rows] for x in layers]

        return DenoiserConditions(take(self.reference), take(self.face), take(self.speech))

    @staticmethod
    def concatenate(parts: Sequence["DenoiserConditions"]) -> "DenoiserConditions":
        """One batch of several branches. A condition that all parts share (the same list) is not copied."""

        def join(name: str) -> list[Tensor] | None:
            lists = [getattr(part, name) for part in parts]
            if all(layers is lists[0] for layers in lists) and (lists[0] is None or len(lists[0][0]) == 1):
                return lists[0]
            if any(layers is None for layers in lists):
                raise ValueError(f"some branches have a {name} condition and some have none")
            return [torch.cat(layers) for layers in zip(*lists, strict=True)]

        return DenoiserConditions(join("reference"), join("face"), join("speech"))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "DenoiserConditions":
        """On another device or in another dtype."""

        def move(layers: list[Tensor] | None) -> list[Tensor] | None:
            return layers if layers is None else [x.to(device=device, dtype=dtype) for x in layers]

        return DenoiserConditions(move(self.reference), move(self.face), move(self.speech))
