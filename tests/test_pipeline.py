"""The pipeline on a tiny bundle of the real classes: what is cached or resumed equals the plain computation."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

import tiny
from hallo3.animation import AnimationRequest, animate
from hallo3.bundles.places import embedded_bundle
from hallo3.errors import UserError
from hallo3.media.sound import read_speech
from hallo3.media.watermark import detect
from hallo3.pipeline import Hallo3Pipeline, derived_generator
from hallo3.sampling.guidance import GuidanceScales

BOX = (8.0, 8.0, 30.0, 30.0)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Hallo3Pipeline:
    loaded = Hallo3Pipeline.from_pretrained(tiny_bundle)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def frames_of(pipeline: Hallo3Pipeline, seconds: float = 0.7, **options: object) -> np.ndarray:
    options = {"watermark": False, "face_box": BOX, **options}
    found = pipeline(tiny.portrait(), tiny.speech(seconds), "a woman talks", **options)
    return found.frames


def test_as_many_frames_as_the_speech_lasts(pipeline: Hallo3Pipeline) -> None:
    assert frames_of(pipeline, 0.7).shape == (18, tiny.HEIGHT, tiny.WIDTH, 3)  # 0.7 s · 25 = 17.5
    assert len(frames_of(pipeline, 0.2)) == 5


def test_same_seed_same_frames(pipeline: Hallo3Pipeline) -> None:
    first = frames_of(pipeline, seed=3)
    assert np.array_equal(first, frames_of(pipeline, seed=3))
    assert not np.array_equal(first, frames_of(pipeline, seed=4))


def test_weights_that_its_user_keeps_elsewhere_give_the_same_frames(tiny_bundle: Path) -> None:
    """As diffusers' `enable_sequential_cpu_offload`: between the calls the denoiser's are nowhere on the device."""
    own = Hallo3Pipeline.from_pretrained(tiny_bundle)
    before = frames_of(own)
    cpu_offload(own.transformer, execution_device=torch.device("cpu"))
    assert own.transformer.device.type == "meta"
    assert np.array_equal(frames_of(own), before)


def test_weights_that_come_leaf_by_leaf_are_computed_where_they_come_to(tiny_bundle: Path) -> None:
    """As diffusers' group offloading of every leaf: the denoiser itself has no hook."""
    own, there = Hallo3Pipeline.from_pretrained(tiny_bundle), torch.device("cpu:0")
    before = frames_of(own)
    apply_group_offloading(own.transformer, there, offload_type="leaf_level")
    assert next(own.transformer.parameters()).device != there
    assert own._execution_device == there
    assert np.array_equal(frames_of(own), before)


@pytest.mark.parametrize("scales", [GuidanceScales(), GuidanceScales(2.0, 3.0, 1.5)])
def test_cached_conditions_equal_recomputed_ones(pipeline: Hallo3Pipeline, scales: GuidanceScales) -> None:
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.7), "a woman talks", face_box=BOX, guidance=scales)
    cached = [clip.motion for clip in pipeline.render(performance)]
    exact = [clip.motion for clip in pipeline.render(performance, cached=False)]
    for a, b in zip(cached, exact, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_resumed_equals_uninterrupted(pipeline: Hallo3Pipeline) -> None:
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.7), "a woman", face_box=BOX)
    whole = list(pipeline.render(performance))
    assert len(whole) == 3
    again = pipeline.prepare(tiny.portrait(), tiny.speech(0.7), "a woman", face_box=BOX)
    rest = list(pipeline.render(again, first_clip=2, last_motion=whole[1].motion))
    assert len(rest) == 1
    assert np.array_equal(rest[0].frames, whole[2].frames)


def test_clips_are_chained_by_their_last_frames(pipeline: Hallo3Pipeline) -> None:
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.7), "a woman", face_box=BOX)
    first, second = [clip for clip, _ in zip(pipeline.render(performance), range(2), strict=False)]
    rest = pipeline.render(performance, first_clip=1, last_motion=torch.zeros_like(first.motion))
    assert not np.array_equal(next(rest).frames, second.frames)
    last = (first.motion.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    assert np.array_equal(last.round().astype(np.uint8), first.frames[-2:])


def test_every_condition_shows_in_the_frames(pipeline: Hallo3Pipeline) -> None:
    base = {"portrait": tiny.portrait(), "speech": tiny.speech(0.3), "prompt": "a woman", "face_box": BOX}
    base["watermark"] = False  # which depends on all of them
    changes = {
        "portrait": tiny.portrait().rotate(180),
        "speech": tiny.speech(0.3)[::-1].copy(),
        "prompt": "talks",
        "face_box": (20.0, 5.0, 30.0, 30.0),
    }
    frames = pipeline(**base).frames
    for name, value in changes.items():
        assert not np.array_equal(pipeline(**{**base, name: value}).frames, frames), name


def test_frames_say_that_they_are_generated() -> None:
    """Whoever takes frames by the short way gets marked ones, clips marked as one video."""
    pipeline = Hallo3Pipeline.from_pretrained("embedded")
    sample = embedded_bundle() / "sample"
    speech = read_speech(sample / "speech.wav").samples[:40_000]
    video = pipeline(sample / "portrait.png", speech, seed=5).frames
    plain = pipeline(sample / "portrait.png", speech, seed=5, watermark=False).frames
    assert len(video) > pipeline.config.num_frames and detect(video).found and not detect(plain).found
    assert np.abs(video.astype(int) - plain).mean() < 2
    other = pipeline(sample / "portrait.png", speech, seed=6).frames
    assert detect(video).identifier != detect(other).identifier


def test_square_portrait_comes_back_square(pipeline: Hallo3Pipeline) -> None:
    square = tiny.portrait().resize((100, 100))
    frames = pipeline(square, tiny.speech(0.2), no_face=True).frames
    assert frames.shape == (5, tiny.HEIGHT, tiny.HEIGHT, 3)


def test_no_face_is_refused_and_never_a_silent_zero(pipeline: Hallo3Pipeline) -> None:
    blank = tiny.portrait().point(lambda _: 0)
    with pytest.raises(UserError, match="--face-box"):
        pipeline(blank, tiny.speech(0.2), face_box=(900.0, 0.0, 20.0, 20.0))
    performance = pipeline.prepare(blank, tiny.speech(0.2), no_face=True)
    assert any("--no-face" in notice for notice in performance.notices)


def test_clip_noise_depends_on_seed_and_clip_alone() -> None:
    draw = [torch.randn(4, generator=derived_generator(seed, "clip", clip)) for seed, clip in ((1, 2), (1, 2), (1, 3))]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_speech(tiny_bundle: Path) -> None:
    """Ten minutes of speech: host memory grows by less than 50 MB after the first minute."""
    small = Hallo3Pipeline.from_pretrained(tiny_bundle, sample_height=16, sample_width=16, num_frames=49)
    performance = small.prepare(tiny.portrait(), tiny.speech(600.0), no_face=True, framing="crop")
    assert (performance.num_frames, performance.num_clips) == (15000, 320)
    used = []
    for clip in small.render(performance, num_inference_steps=1):
        if clip.index % 16 == 0:
            gc.collect()
            used.append(resident_bytes())
    first_minute = max(used[: 60 * 25 // 47 // 16 + 1])
    assert max(used) - first_minute < 50e6


def test_a_pipeline_serves_two_threads_one_after_the_other(pipeline: Hallo3Pipeline) -> None:
    """State is per call: a stream that waits is not disturbed by another one."""
    alone = frames_of(pipeline, 0.7)
    stream = pipeline.stream(tiny.portrait(), tiny.speech(0.7), "a woman talks", face_box=BOX, watermark=False)
    start = next(stream)
    other = threading.Thread(target=frames_of, args=(pipeline, 0.5), kwargs={"seed": 9, "num_inference_steps": 3})
    other.start()
    other.join()
    assert np.array_equal(np.concatenate([start, *stream]), alone)


@pytest.mark.parametrize(("part", "source"), [("transformer", "the denoiser"), ("vae", "the VAE")])
def test_values_that_are_no_numbers_are_refused(tiny_bundle: Path, tmp_path: Path, part: str, source: str) -> None:
    """They would be a black video."""
    broken = Hallo3Pipeline.from_pretrained(tiny_bundle)
    last = broken.transformer.proj_out if part == "transformer" else broken.vae.decoder.conv_out.conv
    torch.nn.init.constant_(last.bias, float("nan"))
    tiny.portrait().save(tmp_path / "p.png")
    tiny.write_wav(tmp_path / "s.wav", tiny.speech(0.4))
    request = AnimationRequest(tmp_path / "p.png", tmp_path / "s.wav", tmp_path / "o.mp4", no_face=True, steps=1)
    with pytest.raises(UserError, match=f"{source}: gives values that are no numbers"):
        animate(request, pipeline=broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "s.wav"]
