"""What a step of the solver asks of the denoiser: the guidance branches, as one batch or one after the other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..networks.conditions import DenoiserConditions
from .guidance import combine
from .shortcuts import EXACT, Evaluated, Shortcuts, evaluated_steps

Evaluate = Callable[[Tensor, Tensor], list[Tensor]]
"""Sample (1, T, 16, h, w) and timestep () → v of each guidance branch, in float32."""


@dataclass(frozen=True)
class BranchInputs:
    """Guidance branches of one clip that are evaluated in one forward.

    weights: of each branch in the sum. image_latents: (B, T, 16, h, w) and text_embeds: (B, L, c), of B branches.
    given: the denoiser's conditions.
    """

    weights: tuple[float, ...]
    image_latents: Tensor
    text_embeds: Tensor
    given: dict[str, Any]


def as_one_batch(inputs: Sequence[BranchInputs]) -> BranchInputs:
    """Several branches in one forward. Their conditions must be prepared (`DenoiserConditions`)."""
    if len(inputs) == 1:
        return inputs[0]
    return BranchInputs(
        weights=tuple(weight for one in inputs for weight in one.weights),
        image_latents=torch.cat([one.image_latents for one in inputs]),
        text_embeds=torch.cat([one.text_embeds for one in inputs]),
        given={"conditions": DenoiserConditions.concatenate([one.given["conditions"] for one in inputs])},
    )


def evaluate(denoiser: Any, one: BranchInputs, sample: Tensor, timestep: Tensor) -> list[Tensor]:
    """v of each branch, (1, T, 16, h, w) float32.

    sample: (1, T, 16, h, w) float32. timestep: a number on the device.
    """
    noisy = sample.to(one.image_latents.dtype).expand(len(one.image_latents), -1, -1, -1, -1)
    joined = torch.cat([noisy, one.image_latents], dim=2)
    return list(denoiser(joined, timestep[None], one.text_embeds, **one.given).float().split(1))


class GuidedDenoiser:
    """The denoiser with guidance, for one clip: gives the v that a step of the solver takes.

    inputs: one of each branch, the one with the most conditions last. steps: of the run. at_once: branches in one
    forward, where their conditions are prepared. Results are the same up to rounding; a batch takes the memory of
    several forwards, and brings streamed layers only once. together: evaluates all branches, with other processes, in
    place of `denoiser`; where only the last is asked for, too, as that takes them no longer.
    """

    def __init__(
        self,
        denoiser: Any,
        inputs: Sequence[BranchInputs],
        steps: int,
        *,
        shortcuts: Shortcuts = EXACT,
        at_once: int = 1,
        together: Evaluate | None = None,
    ) -> None:
        count = at_once if together is None and all("conditions" in one.given for one in inputs) else 1
        groups = [inputs[start : start + count] for start in range(0, len(inputs), count)]
        self._denoiser, self._together = denoiser, together
        self._forwards = [as_one_batch(group) for group in groups]
        self._last = self._forwards[-1] if len(groups[-1]) == 1 else inputs[-1]
        self._weights = [weight for one in inputs for weight in one.weights]
        self._evaluated = evaluated_steps(steps, shortcuts)
        self._guidance: Tensor | float = 0.0  # what it added to the last branch's v

    def __call__(self, index: int, sample: Tensor, timestep: Tensor) -> Tensor:
        """v of step `index` after guidance, (1, T, 16, h, w) float32."""
        evaluated = self._evaluated[index]
        if evaluated is not Evaluated.ALL:
            v = self._branches([self._last], sample, timestep)[-1]
            return v + self._guidance if evaluated is Evaluated.LAST_WITH_KEPT else v
        found = self._branches(self._forwards, sample, timestep)
        v = combine(found, self._weights)
        if Evaluated.LAST_WITH_KEPT in self._evaluated:
            self._guidance = v - found[-1]
        return v

    def _branches(self, forwards: Sequence[BranchInputs], sample: Tensor, timestep: Tensor) -> list[Tensor]:
        if self._together is not None:
            return self._together(sample, timestep)
        return [v for one in forwards for v in self._evaluate(one, sample, timestep)]

    def _evaluate(self, one: BranchInputs, sample: Tensor, timestep: Tensor) -> list[Tensor]:
        if not self._denoiser.is_cache_enabled:
            return evaluate(self._denoiser, one, sample, timestep)
        with self._denoiser.cache_context(str(id(one))):  # under this name it keeps what it knows of these branches
            return evaluate(self._denoiser, one, sample, timestep)


@contextmanager
def first_block_cache(denoiser: Any, threshold: float) -> Iterator[None]:
    """The denoiser skips layers that would change little, each branch by itself (`Shortcuts.cache`); 0 skips none."""
    if threshold == 0 or len(denoiser.transformer_blocks) < 2:
        yield
        return
    from diffusers import FirstBlockCacheConfig

    denoiser.enable_cache(FirstBlockCacheConfig(threshold))
    try:
        yield
    finally:
        denoiser.disable_cache()
