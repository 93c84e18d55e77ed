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
    from .sampling.shortcuts import Sampling

ONCE = {"_encode_text": "text", "look": "face", "_references": "reference network"}
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

    device, dtype, processor, threads: where. width, height, frames_a_clip, quality, steps, branches: of what.
    evaluations: of the denoiser in a clip, each of one guidance branch. step_operations: of one of them. stages: in
    their order, the loading of the bundle first. first_clip: seconds from the start of an animation with a loaded
    bundle until its first clip is encoded. device_memory: the most bytes of a GPU's memory that were taken; None on
    other devices.
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
    quality: str
    steps: int
    branches: int
    evaluations: int
    step_operations: int
    stages: tuple[Stage, ...]
    first_clip: float
    device_memory: int | None

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
        return self.step_operations * self.evaluations / self._seconds_of("denoising")

    @property
    def first_clip_share(self) -> float:
        """Time until the first clip, of the time that denoising and decoding alone take."""
        return self.first_clip / (self._seconds_of("denoising") + self._seconds_of("decoding"))

    def _seconds_of(self, name: str) -> float:
        return next(stage.seconds for stage in self.stages if stage.name == name)

    def seconds_for(self, speech: float) -> float:
        """Time for so many seconds of speech with a loaded bundle."""
        clips = -(-round(speech * self.fps) // self.frames_a_clip)
        once = sum(stage.seconds for stage in self.stages if not stage.each_clip and stage.name != "loading")
        return once + clips * self.clip_seconds


def bench(
    bundle: str = "embedded",
    *,
    quality: str = "exact",
    steps: int | None = None,
    repeats: int = 3,
    report: Callable[[int, int], None] = lambda done, whole: None,
    **how: Any,
) -> Bench:
    """Animates the package's sample, `repeats` times after one to warm up.

    The face is searched for with the embedded bundle only, whose sample it is. report: called with (runs done, runs in
    all). how: see `animation.load`.
    Raises UserError when the bundle can't be loaded here.
    """
    from .animation import load
    from .sampling.guidance import branches
    from .sampling.shortcuts import Sampling
    from .settings import read_settings

    read_settings({"quality": quality, "steps": steps})
    began = time.perf_counter()
    pipeline = load(bundle, **how)
    times: dict[str, list[float]] = {"loading": [time.perf_counter() - began]}
    sampling, count = Sampling.by(quality, steps, pipeline.config.num_inference_steps), len(branches(pipeline.guidance))
    first_clips = []
    for run in range(repeats + 1):
        taken, first = _run(pipeline, sampling, run, no_face=bundle != "embedded")
        if run:
            first_clips.append(first)
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
        quality=quality,
        steps=sampling.steps,
        branches=count,
        evaluations=sampling.evaluations(count),
        step_operations=_operations(pipeline),
        stages=stages,
        first_clip=median(first_clips),
        device_memory=_most_memory(pipeline),
    )


def _run(
    pipeline: "Hallo3Pipeline", sampling: "Sampling", run: int, no_face: bool
) -> tuple[dict[str, list[float]], float]:
    """Seconds of every stage of two clips, by name, and until the first one was encoded.

    run: another seed and prompt each time, as what a video has in common with the one before is not encoded again.
    """
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
        image, prompt = read_image(sample / "portrait.png"), f"A person talks, take {run}."
        performance = pipeline.prepare(image, speech, prompt, seed=run, no_face=no_face)
        known = sum(seconds for taken in times.values() for seconds in taken)
        _wait(pipeline)
        times["speech and portrait"] = [time.perf_counter() - began - known]
        _, _, width, height = performance.framing.visible
        encoder, mark = FragmentEncoder(width, height, fps=k.fps), Watermark(0, height, width, fps=k.fps)
        encoded = []
        for clip in pipeline.render(performance, num_inference_steps=sampling.steps, shortcuts=sampling.shortcuts):
            start = time.perf_counter()
            frames = mark.apply(clip.frames, encoder.frames)
            marked = time.perf_counter()
            encoder.clip(frames)
            encoded.append(time.perf_counter())
            for name, seconds in zip(SHOWN, (marked - start, encoded[-1] - marked), strict=True):
                times.setdefault(name, []).append(seconds)
    return times, encoded[0] - began


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
    from .runtime.measured import wait_for

    wait_for(pipeline._execution_device)


def _most_memory(pipeline: "Hallo3Pipeline") -> int | None:
    import torch

    device = pipeline._execution_device
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def _machine(pipeline: "Hallo3Pipeline") -> dict[str, Any]:
    import torch

    from .runtime.devices import device_name

    device = pipeline._execution_device
    dtype = str(pipeline.transformer.dtype).removeprefix("torch.")
    return {"device": device.type, "dtype": dtype, "processor": device_name(device), "threads": torch.get_num_threads()}


def _operations(pipeline: "Hallo3Pipeline") -> int:
    from .runtime.operations import Grid, count_denoiser

    return count_denoiser(pipeline.transformer.config, Grid.of(pipeline.config)).step
