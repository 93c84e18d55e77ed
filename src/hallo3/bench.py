"""Where the time of an animation goes on this machine, stage by stage: `hallo3 bench`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .pipeline import Hallo3Pipeline

ONCE = {"_encode_text": "text", "_references": "reference network"}
EACH_CLIP = {
    "_image_latents": "motion frames",
    "_clip_inputs": "conditions",
    "_sample": "denoising",
    "_decode": "decoding",
}
SHOWN = ("watermark", "writing")
CLIPS = 2  # the second one starts from motion frames, as all but the first do


@dataclass(frozen=True)
class Stage:
    """name: what is done. each_clip: again in every clip, not once. seconds: the median of the times it was done."""

    name: str
    each_clip: bool
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What was measured.

    device, dtype, processor, threads: where. width, height, frames_a_clip, steps, branches: of what. stages: in their
    order, the loading of the bundle first. step_operations: of one guidance branch of a sampling step; a clip has
    steps · branches of them.
    """

    bundle: str
    device: str
    dtype: str
    processor: str
    threads: int
    width: int
    height: int
    frames_a_clip: int
    fps: int
    steps: int
    branches: int
    step_operations: int
    stages: tuple[Stage, ...]

    @property
    def clip_seconds(self) -> float:
        """Time of a clip."""
        return sum(stage.seconds for stage in self.stages if stage.each_clip)

    @property
    def frames_per_second(self) -> float:
        """Frames made a second once everything is prepared; `fps` of them are real time."""
        return self.frames_a_clip / self.clip_seconds

    @property
    def operations_per_second(self) -> float:
        """Of the denoiser."""
        denoising = next(stage.seconds for stage in self.stages if stage.name == "denoising")
        return self.step_operations * self.steps * self.branches / denoising

    def seconds_for(self, speech: float) -> float:
        """Time for so many seconds of speech with a loaded bundle."""
        clips = -(-round(speech * self.fps) // self.frames_a_clip)
        once = sum(stage.seconds for stage in self.stages if not stage.each_clip and stage.name != "loading")
        return once + clips * self.clip_seconds


def bench(
    bundle: str = "embedded",
    *,
    steps: int | None = None,
    repeats: int = 3,
    report: Callable[[int, int], None] = lambda done, whole: None,
    **how: str,
) -> Bench:
    """Animates the package's sample portrait without a face search, `repeats` times after one to warm up.

    report: called with (runs done, runs in all). how: device, dtype, strategy, weights, decoding, see `animation.load`.
    Raises UserError when the bundle can't be loaded here.
    """
    from .animation import load
    from .sampling.guidance import branches

    began = time.perf_counter()
    pipeline = load(bundle, **how)
    times: dict[str, list[float]] = {"loading": [time.perf_counter() - began]}
    steps = steps or pipeline.config.num_inference_steps
    for run in range(repeats + 1):
        taken = _run(pipeline, steps)
        if run:
            for name, seconds in taken.items():
                times.setdefault(name, []).extend(seconds)
        report(run + 1, repeats + 1)
    each_clip = (*EACH_CLIP.values(), *SHOWN)
    stages = tuple(Stage(name, name in each_clip, median(seconds)) for name, seconds in times.items())
    k = pipeline.config
    return Bench(
        bundle=bundle,
        **_machine(pipeline),
        width=k.sample_width,
        height=k.sample_height,
        frames_a_clip=k.num_frames - k.motion_frames,
        fps=k.fps,
        steps=steps,
        branches=len(branches(pipeline.guidance)),
        step_operations=_operations(pipeline),
        stages=stages,
    )


def _run(pipeline: "Hallo3Pipeline", steps: int) -> dict[str, list[float]]:
    """Seconds of every stage of two clips, by name."""
    from .bundles.places import embedded_bundle
    from .media.fragments import FragmentEncoder
    from .media.images import read_image
    from .media.sound import read_speech
    from .media.watermark import Watermark

    k, sample = pipeline.config, embedded_bundle() / "sample"
    heard = read_speech(sample / "speech.wav").samples
    speech = np.resize(heard, CLIPS * (k.num_frames - k.motion_frames) * 16_000 // k.fps)
    with _timed(pipeline) as times:
        began = time.perf_counter()
        performance = pipeline.prepare(read_image(sample / "portrait.png"), speech, "A person talks.", no_face=True)
        known = sum(seconds for taken in times.values() for seconds in taken)
        _wait(pipeline)
        times["speech and portrait"] = [time.perf_counter() - began - known]
        _, _, width, height = performance.framing.visible
        encoder, mark = FragmentEncoder(width, height, fps=k.fps), Watermark(0, height, width, fps=k.fps)
        for clip in pipeline.render(performance, num_inference_steps=steps):
            start = time.perf_counter()
            frames = mark.apply(clip.frames, encoder.frames)
            marked = time.perf_counter()
            encoder.clip(frames)
            for name, seconds in zip(SHOWN, (marked - start, time.perf_counter() - marked), strict=True):
                times.setdefault(name, []).append(seconds)
    return times


@contextmanager
def _timed(pipeline: "Hallo3Pipeline") -> Iterator[dict[str, list[float]]]:
    """Notes how long the pipeline's own steps take; the device has finished when a time is read."""
    times: dict[str, list[float]] = {}

    def watch(method: str, stage: str) -> None:
        plain = getattr(pipeline, method)

        def timed(*given: Any, **named: Any) -> Any:
            _wait(pipeline)
            began = time.perf_counter()
            result = plain(*given, **named)
            _wait(pipeline)
            times.setdefault(stage, []).append(time.perf_counter() - began)
            return result

        setattr(pipeline, method, timed)

    for method, stage in (ONCE | EACH_CLIP).items():
        watch(method, stage)
    try:
        yield times
    finally:
        for method in ONCE | EACH_CLIP:
            delattr(pipeline, method)


def _wait(pipeline: "Hallo3Pipeline") -> None:
    import torch

    if pipeline._execution_device.type == "cuda":
        torch.cuda.synchronize(pipeline._execution_device)


def _machine(pipeline: "Hallo3Pipeline") -> dict[str, Any]:
    import torch

    from .runtime.devices import device_name

    device = pipeline._execution_device
    dtype = str(pipeline.transformer.dtype).removeprefix("torch.")
    return {"device": device.type, "dtype": dtype, "processor": device_name(device), "threads": torch.get_num_threads()}


def _operations(pipeline: "Hallo3Pipeline") -> int:
    from .runtime.operations import Grid, count_denoiser

    k, ratio = pipeline.config, pipeline.vae.config.temporal_compression_ratio
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    grid = Grid((k.num_frames - 1) // ratio + 1, k.sample_height // scale, k.sample_width // scale, k.text_length)
    return count_denoiser(pipeline.transformer.config, grid).step
