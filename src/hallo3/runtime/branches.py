"""How many guidance branches go through the denoiser in one forward: what is faster here, in the memory at hand."""

from functools import partial
from typing import Any

import torch

from ..networks.denoiser import Hallo3Transformer3DModel
from ..sampling.evaluation import BranchInputs, GuidedDenoiser
from ..sampling.guidance import branches
from .measured import remembered, seconds_of
from .operations import Grid, empty_inputs

IN_TURN, TOGETHER = "in turn", "together"


def choose_branches_at_once(pipeline: Any, device: torch.device, fits: bool, about: dict[str, Any]) -> int:
    """Branches in a forward: one, or all that the bundle's own guidance has.

    Measured once for a device and what `about` says of the run; not where a batch does not fit. On a CPU a batch is the
    same work in half as many pieces, so that its threads wait less for each other (`benchmarks/branches.py`).
    """
    count = len(branches(pipeline.guidance))
    if count == 1 or not fits:
        return 1
    if device.type == "cpu":
        return count
    known = {"what": "branches", "device": str(device), "grid": vars(Grid.of(pipeline.config)), "count": count, **about}
    found = remembered(known, (IN_TURN, TOGETHER), partial(_faster, pipeline, device, count))
    return count if found == TOGETHER else 1


def _faster(pipeline: Any, device: torch.device, count: int) -> str:
    seconds = measure_branches(pipeline, device, count, rounds=1)
    return min(seconds, key=lambda name: seconds[name])


@torch.no_grad()
def measure_branches(pipeline: Any, device: torch.device, count: int, rounds: int) -> dict[str, float]:
    """Seconds of a sampling step with `count` branches, either way, on inputs of the bundle's size."""
    denoiser = pipeline.transformer
    with torch.device("meta"):
        same: Any = Hallo3Transformer3DModel.from_config(denoiser.config)
    (latents, _, text), speech, lasting = empty_inputs(same, Grid.of(pipeline.config))

    def random(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, device=device, dtype=denoiser.dtype)

    conditions = same.conditions(speech=speech, **lasting).changed(random)
    image_latents = random(latents[:, :, : latents.shape[2] // 2])
    inputs = [BranchInputs((1 / count,), image_latents, random(text), {"conditions": conditions})] * count
    sample, timestep = random(image_latents).float(), torch.tensor(500, device=device)
    ways = {
        name: partial(GuidedDenoiser(denoiser, inputs, steps=1, at_once=at_once), 0, sample, timestep)
        for name, at_once in ((IN_TURN, 1), (TOGETHER, count))
    }
    with pipeline.strategy.using(pipeline, "transformer"):
        return seconds_of(ways, device, rounds)
