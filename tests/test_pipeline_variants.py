"""The pipeline on bundles of the paper's other variants, and with other counts of motion frames."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from hallo3.bundles.index import missing_parts
from hallo3.bundles.layout import load_components, save_components
from hallo3.conditions.motion import to_frames
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.sampling.guidance import GuidanceScales

BOX = (8.0, 8.0, 30.0, 30.0)
SCALES = GuidanceScales(2.0, 3.0, 1.5)  # every branch


def variant_bundle(folder: Path, speech: str, identity: str, motion_frames: int = 2) -> Path:
    parts = tiny.components()
    parts["transformer"] = tiny.randomise(parts["transformer"].in_variant(speech, identity))
    if not parts["transformer"].identity.reference:
        del parts["reference_network"]
    save_components(folder, parts, tiny.config() | {"motion_frames": motion_frames})
    return folder


@pytest.mark.parametrize(
    ("speech", "identity"), [("joint", "none"), ("norm", "face_norm"), ("cross", "face"), ("joint", "reference")]
)
def test_a_variant_is_a_whole_bundle(tmp_path: Path, speech: str, identity: str) -> None:
    """It loads, animates as well from what is cached as from what is computed anew, and is saved as it was."""
    folder = variant_bundle(tmp_path / "one", speech, identity)
    assert missing_parts(folder) == ()
    pipeline = Hallo3Pipeline.from_pretrained(folder)
    assert (pipeline.reference_network is None) == (identity != "reference")
    made = pipeline.prepare(tiny.portrait(), tiny.speech(0.5), "a woman talks", face_box=BOX, guidance=SCALES)
    cached, exact = (list(pipeline.render(made, cached=c)) for c in (True, False))
    for one, other in zip(cached, exact, strict=True):
        torch.testing.assert_close(one.motion, other.motion, atol=2e-5, rtol=0)
    pipeline.save_pretrained(tmp_path / "two")
    assert missing_parts(tmp_path / "two") == ()
    again = Hallo3Pipeline.from_pretrained(tmp_path / "two")
    made = again.prepare(tiny.portrait(), tiny.speech(0.5), "a woman talks", face_box=BOX, guidance=SCALES)
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(cached, again.render(made), strict=True))


def test_without_identity_no_face_is_searched_for(tmp_path: Path) -> None:
    pipeline = Hallo3Pipeline.from_pretrained(variant_bundle(tmp_path / "b", "cross", "none"))
    blank = tiny.portrait().point(lambda _: 0)
    assert pipeline.prepare(blank, tiny.speech(0.2)).notices == ()
    assert pipeline(blank, tiny.speech(0.2)).frames.shape == (5, tiny.HEIGHT, tiny.WIDTH, 3)


def test_a_reference_network_is_missed_where_the_denoiser_needs_it(tmp_path: Path) -> None:
    parts = tiny.components() | {"reference_network": None}
    save_components(tmp_path / "b", parts, tiny.config())
    assert missing_parts(tmp_path / "b") == ("reference_network",)
    with pytest.raises(UserError, match="without reference_network"):
        Hallo3Pipeline.from_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="needs a reference network"):
        Hallo3Pipeline(**parts)
    # The denoiser alone decides, whichever came first.
    save_components(tmp_path / "b", {"transformer": parts["transformer"].in_variant("cross", "face")})
    assert missing_parts(tmp_path / "b") == ()
    assert load_components(tmp_path / "b", ["reference_network"]) == {"reference_network": None}


@pytest.mark.parametrize(("motion_frames", "clips", "filled"), [(1, 3, 1), (2, 3, 1), (4, 4, 2)])
def test_motion_frames(tiny_bundle: Path, motion_frames: int, clips: int, filled: int) -> None:
    """Clips of 9 frames add 9 − k, start from the last k of the clip before, and hear from k frames before on."""
    pipeline = Hallo3Pipeline.from_pretrained(tiny_bundle, motion_frames=motion_frames)
    made = pipeline.prepare(tiny.portrait(), tiny.speech(0.7), "a woman", face_box=BOX)
    assert (made.num_frames, made.num_clips) == (18, clips)
    seen, heard = [], []
    hooks = [
        pipeline.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :, 16:])),
        pipeline.transformer.speech_projection.register_forward_pre_hook(lambda _, args: heard.append(args[0][0])),
    ]
    found = list(pipeline.render(made))
    for hook in hooks:
        hook.remove()
    assert sum(len(clip.frames) for clip in found) == 18
    step = tiny.FRAMES - motion_frames
    assert [len(clip.frames) for clip in found] == [min(step, 18 - i * step) for i in range(clips)]
    for image_latents in seen:
        assert image_latents[:, :filled].any() and not image_latents[:, filled:].any()
    for clip, windows in zip(found, heard[1:], strict=True):  # the first is the dropped speech
        start = clip.index * step - motion_frames
        assert torch.equal(windows[max(0, -start)], made.windows[max(0, start) : max(0, start) + 1][0])
        assert clip.index or not windows[:motion_frames].any()
    for clip in found[:-1]:
        assert clip.motion.shape == (motion_frames, 3, tiny.HEIGHT, tiny.WIDTH)
        assert np.array_equal(to_frames(clip.motion), clip.frames[-motion_frames:])
    rest = pipeline.render(made, first_clip=1, last_motion=found[0].motion)
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(found[1:], rest, strict=True))


def test_a_clip_is_longer_than_its_motion_frames(tiny_bundle: Path) -> None:
    with pytest.raises(UserError, match="motion_frames is 9, num_frames 9"):
        Hallo3Pipeline.from_pretrained(tiny_bundle, motion_frames=9)


def test_the_bundle_says_how_many_pixels_motion_frames_lose(tiny_bundle: Path) -> None:
    def clips(mask: float, other: bool = False) -> list[np.ndarray]:
        """The second clip, of the first one's end or of something else."""
        pipeline = Hallo3Pipeline.from_pretrained(tiny_bundle, motion_mask=mask)
        made = pipeline.prepare(tiny.portrait(), tiny.speech(0.5), "a woman", face_box=BOX)
        motion = next(iter(pipeline.render(made))).motion
        rest = pipeline.render(made, first_clip=1, last_motion=-motion if other else motion)
        return [clip.frames for clip in rest]

    published = Hallo3Pipeline.from_pretrained(tiny_bundle).config.motion_mask
    assert published == 0.1
    assert all(map(np.array_equal, clips(1.0), clips(1.0, other=True))), "nothing is left to see"
    assert not all(map(np.array_equal, clips(0.0), clips(0.0, other=True)))
    assert not all(map(np.array_equal, clips(0.0), clips(published)))
