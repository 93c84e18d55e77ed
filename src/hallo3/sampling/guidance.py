"""Classifier-free guidance with separate scales for speech, text and reference (paper 3.4)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..errors import UserError


class GuidanceScales(NamedTuple):
    """Scales of guidance. The defaults are the published ones; 1 for all is no guidance.

    More speech: better lip sync. More text: livelier subject and background. More reference: a steadier identity.
    """

    speech: float = 3.5
    text: float = 3.5
    reference: float = 1.0


class Branch(NamedTuple):
    """One evaluation of the network: the conditions that it sees, and its weight in the sum.

    What it does not see is replaced by what training shows instead: zero speech windows, zero text embeddings; for the
    reference zero image latents and the features of zero latents. The face is in every branch.
    """

    reference: bool
    text: bool
    speech: bool
    weight: float


def branches(scales: GuidanceScales = GuidanceScales()) -> list[Branch]:  # noqa: B008
    """The branches to evaluate, fewest conditions first; a branch whose weight cancels is left out.

    `x0(∅) + λr·[x0(r) − x0(∅)] + λt·[x0(r,t) − x0(r)] + λa·[x0(r,t,a) − x0(r,t)]`, ordered by branch. λr = 1 and
    λt = λa = λ leave the published pair: `x0(r)` with weight 1 − λ and `x0(r,t,a)` with λ. The weights add up to 1.

    Raises:
        UserError: a scale that is not a finite number.
    """
    for name, scale in scales._asdict().items():
        if not math.isfinite(scale):
            raise UserError(f"guidance scale for {name} is {scale}: give a finite number (published: 3.5)")
    every = [
        Branch(False, False, False, 1 - scales.reference),
        Branch(True, False, False, scales.reference - scales.text),
        Branch(True, True, False, scales.text - scales.speech),
        Branch(True, True, True, scales.speech),
    ]
    return [branch for branch in every if branch.weight != 0]


def combine(predictions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of the branches' predictions, of x0 or of v."""
    first, *others = [prediction * weight for prediction, weight in zip(predictions, weights, strict=True)]
    return sum(others, start=first)
