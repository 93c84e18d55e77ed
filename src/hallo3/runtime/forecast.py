"""What an animation will take with a pipeline as it is loaded, by the estimates that chose how to load it."""

from collections import deque
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import torch

from ..bundles.sizes import bundle_sizes
from ..sampling.guidance import GuidanceScales
from ..sampling.shortcuts import Sampling
from .estimates import Estimate, Workload, clips_of, estimates
from .plan import speed_of, workload

if TYPE_CHECKING:
    from ..pipeline import Hallo3Pipeline

REMEMBERED = 5  # animations that correct the time of the next


@dataclass(frozen=True)
class Work:
    """What is to be animated: seconds of speech; a preset (`--quality`); steps and scales, the bundle's own if None."""

    seconds: float
    quality: str = "exact"
    steps: int | None = None
    guidance: GuidanceScales | None = None


@dataclass(frozen=True)
class Forecast:
    """One animation: clips, sampling steps of each, seconds that it takes, bytes of device and of host memory.

    On a CPU device and host memory are one, and both figures are the whole. notice: what the preset leaves out.
    """

    clips: int
    steps: int
    seconds: float
    device: float
    host: float
    notice: str


class Forecaster:
    """Foretells animations with one loaded pipeline.

    bundle: its folder or name. The machine's speed is measured once, here; what animations then take corrects it.
    Raises UserError for an unknown bundle.
    """

    def __init__(self, bundle: str, pipeline: "Hallo3Pipeline") -> None:
        self._sizes = bundle_sizes(bundle)
        self._device = torch.device(pipeline._execution_device)
        self._dtype: torch.dtype = pipeline.vae.dtype  # the denoiser's may be 8 bits
        self._way = (pipeline.strategy.name, pipeline.weights, pipeline.decoding)
        self._speed = speed_of(self._sizes, self._device, self._dtype)
        self._seen: deque[float] = deque(maxlen=REMEMBERED)

    def __call__(self, work: Work) -> Forecast:
        """Foretells an animation."""
        found, load = self._estimate(work)
        seconds = (found.seconds or 0.0) * (median(self._seen) if self._seen else 1.0)
        sampling = Sampling.by(work.quality, work.steps, self._sizes.settings["num_inference_steps"])
        clips, notice = clips_of(self._sizes, work.seconds), sampling.notice(load.branches)
        return Forecast(clips, load.steps, seconds, found.device, found.host, notice)

    def learn(self, work: Work, took: float) -> None:
        """An animation has taken so many seconds: the estimate counts neither encoders nor files nor other programs."""
        expected = self._estimate(work)[0].seconds
        if expected:
            self._seen.append(took / expected)

    def _estimate(self, work: Work) -> tuple[Estimate, Workload]:
        load = workload(self._sizes, work.seconds, work.steps, self._dtype, self._device, work.quality)
        if work.guidance is not None:
            load = replace(load, guidance=work.guidance)
        (found,) = estimates(self._sizes, load, self._speed, [self._way])
        return found, load
