"""How an animation will run, before anything is loaded: ways estimated, the fastest exact one that fits chosen.

Where nothing exact fits, an approximate one is, and the result says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..bundles.sizes import BundleSizes, bundle_sizes
from ..errors import UserError
from ..sampling.guidance import GuidanceScales
from ..sampling.shortcuts import QUALITIES, Sampling
from .devices import choose_device, choose_dtype, free_host_memory, free_memory
from .estimates import DECODINGS, STRATEGIES, Estimate, Sizes, Speed, Workload, clips_of, estimates, seconds_of, ways
from .layout import Layout
from .operations import Grid, count_decoding, count_denoiser, measured_speed
from .quantized import MISSING, WEIGHTS, available, check_weights

Scales = Mapping[str, float | None]
"""Scales of guidance by the names of their settings (`speech_scale`, …); None, or none of that name: the bundle's."""
NO_SCALES: Scales = {}
ASSUMED_SPEED = {2: 150e12, 4: 19e12}  # operations a second of a GPU that is not here, by bytes a number


@dataclass(frozen=True)
class Plan:
    """What was found: every way, the preferred one first; the one to take (None: nothing fits), and why."""

    estimates: Sequence[Estimate]
    chosen: Estimate | None
    reason: str


@dataclass(frozen=True)
class Wanted:
    """What is asked for: `auto`, or one of `STRATEGIES`, of `WEIGHTS` and of `DECODINGS`."""

    strategy: str = "auto"
    weights: str = "auto"
    decoding: str = "auto"

    def check(self, device: torch.device, number_format: torch.dtype, elsewhere: bool = False) -> None:
        """Raises UserError for a name that there is not, and for weights that the device can't compute with.

        elsewhere: the device is not on this machine.
        """
        for option, known in (("strategy", STRATEGIES), ("weights", WEIGHTS), ("decoding", DECODINGS)):
            if getattr(self, option) not in ("auto", *known):
                raise UserError(
                    f"--{option} {getattr(self, option)}: there is no such {option}; use auto, {', '.join(known)}"
                )
        if self.weights != "auto":
            check_weights(self.weights, device, number_format, elsewhere)


@dataclass(frozen=True)
class Planned:
    """A plan, and what it is for.

    evaluations: of the denoiser in a clip, each of one guidance branch. device_memory, host_memory: bytes that may be
    used. speed: a sentence about the operations a second behind the estimates of time. notices: what the user should
    know beside. qualities: seconds in the way that was chosen, with every preset that goes with so many GPUs. gpus:
    that work on one clip; layout: how.
    """

    bundle: str
    device: str
    dtype: str
    device_memory: float
    host_memory: float
    seconds: float
    quality: str
    steps: int
    evaluations: int
    clips: int
    operations: float
    speed: str
    notices: tuple[str, ...]
    plan: Plan
    qualities: dict[str, float]
    gpus: int = 1
    layout: Layout | None = None


def plan(
    bundle: str,
    *,
    seconds: float = 10.0,
    quality: str = "exact",
    steps: int | None = None,
    scales: Scales = NO_SCALES,
    dtype: str = "auto",
    gpu_memory: float | None = None,
    host_memory: float | None = None,
    gpus: int = 1,
    wanted: Wanted = Wanted(),
) -> Planned:
    """Plans an animation of `seconds` of speech.

    scales: of guidance, in place of the bundle's own; a branch whose weight cancels takes no time. gpu_memory: bytes; a
    GPU of that size is planned for, which need not be here. Without it: this machine's device, and what is free on it.
    host_memory: bytes; without it what is free here, and no limit for a GPU that is elsewhere. gpus: of this kind, that
    work on one clip.

    Raises UserError for an unknown or damaged bundle, and for more GPUs than can share the work.
    """
    sizes = bundle_sizes(bundle)
    here = choose_device("auto")
    device = here if gpu_memory is None else torch.device("cuda")
    elsewhere = device.type != here.type
    number_format = choose_dtype(dtype, device)
    wanted.check(device, number_format, elsewhere)
    if gpus > 1 and device.type == "cpu":
        raise UserError(f"--gpus {gpus}: there is none here; say by --gpu-memory how much each has")
    if gpus > 1:
        Sampling.by(quality, steps, sizes.settings["num_inference_steps"]).check_shared()
    work = replace(workload(sizes, seconds, steps, number_format, device, quality, scales), gpus=gpus)
    layout = Sizes(sizes, work).layout  # refuses a number that can't share the work, before time is taken for counting
    speed = speed_of(sizes, here, number_format, elsewhere)
    device_memory = free_memory(device) if gpu_memory is None else gpu_memory
    if host_memory is None:
        host_memory = float("inf") if elsewhere else free_host_memory()
    if device.type == "cpu":
        device_memory = host_memory
    found = estimates(sizes, work, speed, ways(wanted.weights, wanted.decoding))
    forwards = clips_of(sizes, seconds) * work.evaluations
    chosen = choose(found, device_memory, host_memory, f"bundle {bundle}", wanted.strategy, elsewhere or available())
    return Planned(
        bundle=bundle,
        device=device.type,
        dtype=str(number_format).removeprefix("torch."),
        device_memory=device_memory,
        host_memory=host_memory,
        seconds=seconds,
        quality=quality,
        steps=work.steps,
        evaluations=work.evaluations,
        clips=clips_of(sizes, seconds),
        operations=forwards * speed.step,
        speed=speed.source,
        notices=() if sizes.downloaded else (f"{bundle} is not on this machine: get it with `hallo3 download hallo3`",),
        plan=chosen,
        qualities=_with_presets(sizes, work, steps, chosen.chosen, speed),
        gpus=gpus,
        layout=layout if gpus > 1 else None,
    )


def _with_presets(
    sizes: BundleSizes, work: Workload, steps: int | None, way: Estimate | None, speed: Speed
) -> dict[str, float]:
    """Seconds with each preset that can be had; none where no way fits."""
    found: dict[str, float] = {}
    if way is None:
        return found
    for name in QUALITIES:
        sampling = Sampling.by(name, steps, sizes.settings["num_inference_steps"])
        if work.gpus == 1 or not sampling.skips_layers:
            one = replace(work, steps=sampling.steps, shortcuts=sampling.shortcuts)
            found[name] = seconds_of(Sizes(sizes, one), way.strategy, speed)
    return found


def choose_for(
    folder: Path,
    device: torch.device,
    number_format: torch.dtype,
    wanted: Wanted,
    what: str,
    room: tuple[int, int] | None = None,
    scales: Scales = NO_SCALES,
) -> Estimate:
    """The way in which a bundle's folder is loaded on a device of this machine.

    room: bytes of device and host memory that may be taken; what is free where it is None. scales: see `plan`.
    Raises UserError, before anything is loaded, for something that there is not, and when the memory that is free does
    not suffice.
    """
    wanted.check(device, number_format)
    sizes = bundle_sizes(folder)
    considered = ways(wanted.weights, wanted.decoding)
    work = workload(sizes, 1.0, None, number_format, device, scales=scales)
    found = estimates(sizes, work, considered=considered)
    device_memory, host_memory = room or (free_memory(device), free_host_memory())
    plan = choose(found, device_memory, host_memory, what, wanted.strategy, available())
    if plan.chosen is None:
        raise UserError(plan.reason)
    return plan.chosen


def batch_fits(
    folder: Path,
    device: torch.device,
    number_format: torch.dtype,
    chosen: Estimate,
    scales: Scales = NO_SCALES,
) -> bool:
    """Whether all guidance branches of a step can go through the denoiser at once, in the way that was chosen.

    To be asked before anything is loaded. scales: see `plan`.
    """
    sizes = bundle_sizes(folder)
    work = workload(sizes, 1.0, None, number_format, device, scales=scales)
    beside = (work.branches - 1) * Sizes(sizes, work).denoising()
    return chosen.stages["denoising"] + beside <= free_memory(device)


def workload(
    sizes: BundleSizes,
    seconds: float,
    steps: int | None,
    number_format: torch.dtype,
    device: torch.device,
    quality: str = "exact",
    scales: Scales = NO_SCALES,
) -> Workload:
    """What animating with a bundle amounts to, with its own scales of guidance where `scales` gives none."""
    settings = sizes.settings
    given = {name: scales.get(f"{name}_scale") for name in GuidanceScales._fields}
    guidance = GuidanceScales(
        **{name: float(settings[f"{name}_scale"]) if one is None else one for name, one in given.items()}
    )
    sampling = Sampling.by(quality, steps, settings["num_inference_steps"])
    # Any device but the CPU has its own memory, and is taken for a GPU.
    kind = "cpu" if device.type == "cpu" else "cuda"
    return Workload(seconds, sampling.steps, guidance, number_format.itemsize, kind, sampling.shortcuts)


def speed_of(sizes: BundleSizes, here: torch.device, number_format: torch.dtype, elsewhere: bool = False) -> Speed:
    """Operations of a bundle's networks, and how many of them a second: measured on `here`, or assumed of elsewhere."""
    grid = Grid.of(sizes.settings)
    if elsewhere:
        per_second, words = ASSUMED_SPEED[number_format.itemsize], "assumed of a GPU that is not here"
    else:
        precision = str(number_format).removeprefix("torch.")
        per_second, words = measured_speed(here, precision), f"measured here ({here.type}, {precision})"
    source = f"{per_second / 1e12:,.2f} TFLOP/s, {words}"
    return Speed(count_denoiser(sizes.denoiser, grid).step, count_decoding(sizes.vae, grid), per_second, source)


def choose(
    found: Sequence[Estimate],
    device_memory: float,
    host_memory: float,
    what: str,
    strategy: str = "auto",
    can_quantise: bool = True,
) -> Plan:
    """The first way that fits into so many bytes, of the strategy asked for if one is.

    Where nothing fits, the plan has no choice, and the reason says what to do.
    """
    passed: list[str] = []
    for one in found:
        if strategy not in ("auto", one.strategy):
            continue
        obstacle = _obstacle(one, device_memory, host_memory)
        if not obstacle and one.weights != "full" and not can_quantise:
            obstacle = f"needs {MISSING}"
        if not obstacle:
            fits = f"{one.name} fits" + ("" if one.exact else " (approximate)")
            return Plan(found, one, "; ".join([fits, *passed]))
        passed.append(f"{one.name} {obstacle}")
    memory = f"{device_memory / 1e9:.1f} GB of memory"
    if device_memory != host_memory and not math.isinf(host_memory):
        memory = f"{device_memory / 1e9:.1f} GB of device and {host_memory / 1e9:.1f} GB of host memory"
    advice = "close other programs, use --dtype bfloat16, --strategy auto, or a smaller bundle"
    return Plan(found, None, f"{what} does not fit into {memory}: {'; '.join(passed)}; {advice}")


def _obstacle(one: Estimate, device_memory: float, host_memory: float) -> str:
    if max(one.device, one.others) > device_memory:
        return f"needs {max(one.device, one.others) / 1e9:.1f} GB of device memory"
    return f"needs {one.host / 1e9:.1f} GB of host memory" if one.host > host_memory else ""
