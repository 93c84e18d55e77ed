"""The people that a bundle's score is measured on: drawn, held out, and known well enough to be read.

Everything that is drawn here depends on its seed alone, so two bundles are measured on the same cases.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..evaluation.identity import face_features
from ..evaluation.meters import CropMeter, Floats, partial_correlation
from ..evaluation.sync import SyncScore, lip_sync
from ..evaluation.tracking import FaceTracker, Places
from ..studio.dataset import Material, Sample, sample
from ..studio.identity import Identity
from ..studio.performance import lift, performance
from ..studio.renderer import Rendered, render
from ..studio.scene import PLACES, STILL_ONLY, Scene

FPS = 25
FIRST_SEED = 50_000  # of held-out samples, beyond any that are drawn while developing
STILL_SECONDS = 10
PAIR_SECONDS = 2
VIEWS = {"profile": "side", "high view": "high", "low view": "low"}  # names and the studio's styles
REHEARSED = 64  # frames in which a person is learned
JITTERS = 8  # times each is seen, moved about
JITTER = 1.5  # pixels: about what the tracker is off by
FACES_EVERY = 5  # frames between two whose faces are looked at
FACE = (24, 20)  # rows and columns in which a face is read
FACE_RIDGE = 3.0
LARGEST_BLUR = 2.0  # pixels: a blurred face is the person's all the same
OTHERS, OTHER_POSES = 8, 8  # people whom a person is told from, and poses of each
TURNED = 0.35, 0.2  # radians by which yaw and pitch of a head go astray where its pose is learned


@dataclass(frozen=True)
class Case:
    """A held-out drawn person, what they say and look like, and the video (F, H, W, 3) that a bundle made of it."""

    truth: Sample
    frames: NDArray[np.uint8]


@dataclass(frozen=True)
class Mouth:
    """A mouth as a person's meters read it.

    opening: (F,) about 0…1. sync: with the recording's articulation. shape: correlation of the width that was read and
    the width that belongs to the recording, beyond what the opening says of it.
    """

    opening: Floats
    sync: SyncScore
    shape: float


class Person:
    """The meters of one drawn person.

    They learn from a rehearsal: the same person drawn in other poses around the same view, whose lips open and widen
    without regard to each other or to any recording. So the truth of a case is as new to them as a bundle's video.
    """

    def __init__(self, truth: Sample):
        self.truth = truth
        self.tracker = FaceTracker(truth.frames, truth.face_box)
        self.rehearsal, self.opening, self.width = rehearse(truth)

    def follow(self, frames: NDArray[np.uint8]) -> Places:
        """Where the face is in frames `(F, H, W, 3)` that begin with the portrait's pose."""
        return self.tracker(frames)

    def mouth(self, frames: NDArray[np.uint8], places: Places) -> Mouth:
        """Reads the mouth of a video as long as the truth."""
        boxes, truth = places.carry(self.truth.mouth_box), self.truth
        opening, width = (meter(frames, boxes) for meter in self._meters)
        given = np.column_stack([truth.opening, truth.opening**2])
        return Mouth(opening, lip_sync(opening, truth.opening), partial_correlation(width, truth.width, given))

    def identity(self, frames: NDArray[np.uint8], places: Places) -> Floats:
        """Who it is (n,) in every fifth frame: about 0 for the person, about 1 for anyone else in the same light."""
        return self._likeness(frames[::FACES_EVERY], places.carry(self.truth.face_box)[::FACES_EVERY])

    def pose(self, frames: NDArray[np.uint8], places: Places) -> Floats:
        """Yaw and pitch (n, 2) of the head in every fifth frame, in radians."""
        return self._pose(frames[::FACES_EVERY], places.carry(self.truth.face_box)[::FACES_EVERY])

    def faces(self, frames: NDArray[np.uint8], places: Places) -> Floats:
        """Features (n, c) of the face in every fifth frame."""
        return face_features(frames[::FACES_EVERY], places.carry(self.truth.face_box)[::FACES_EVERY])

    @cached_property
    def _meters(self) -> list[CropMeter]:
        boxes = np.concatenate([_jittered(self.rehearsal.mouth_box, number) for number in range(JITTERS)])
        frames = [*self.rehearsal.frames] * JITTERS
        return [CropMeter(frames, boxes, np.tile(shape, JITTERS)) for shape in (self.opening, self.width)]

    @cached_property
    def _likeness(self) -> CropMeter:
        drawn = [self.rehearsal, *(rehearse(self.truth, OTHER_POSES, other=1 + n)[0] for n in range(OTHERS))]
        values = np.repeat([0.0, 1.0], [REHEARSED, OTHERS * OTHER_POSES])
        return _face_meter(drawn, values)

    @cached_property
    def _pose(self) -> CropMeter:
        turned = rehearse(self.truth, spread=TURNED)[0]
        drawn = [self.rehearsal, turned]
        return _face_meter(drawn, np.concatenate([np.stack([one.yaw, one.pitch], axis=1) for one in drawn]))


def _jittered(boxes: Floats, seed: int) -> Floats:
    """Boxes (n, 4) as far off as the tracker's are."""
    return boxes + np.pad(np.random.default_rng(seed).normal(0, JITTER, (len(boxes), 2)), ((0, 0), (0, 2)))


def _face_meter(drawn: Sequence[Rendered], values: Floats) -> CropMeter:
    """Learns from the faces as they are, and from blurred ones: blur says nothing of who it is or where it looks."""
    from scipy.ndimage import gaussian_filter

    frames = np.concatenate([one.frames for one in drawn])
    boxes = np.concatenate([one.face_box for one in drawn])
    sizes = np.random.default_rng(2).uniform(0, LARGEST_BLUR, len(frames))
    blurred = [gaussian_filter(frame, (size, size, 0)) for frame, size in zip(frames, sizes, strict=True)]
    both = np.concatenate([_jittered(boxes, seed) for seed in (0, 1)])
    return CropMeter([*frames, *blurred], both, np.concatenate([values, values]), FACE_RIDGE, FACE)


def rehearse(
    truth: Sample, count: int = REHEARSED, *, spread: tuple[float, float] = (0.12, 0.07), other: int = 0
) -> tuple[Rendered, Floats, Floats]:
    """The person of a drawn sample in poses around the sample's view, with openings and widths (count,).

    spread: deviation of yaw and pitch in radians. other: above 0, somebody else in the same place and light.
    """
    random = np.random.default_rng([9, truth.meta["seed"], *([other] if other else [])])
    identity = Identity.sample(random) if other else Identity.from_dict(truth.meta["identity"])
    opening = random.random(count) * (random.random(count) > 0.2)
    width = random.normal(0.5, 0.2, count).clip(0, 1)

    def around(track: Floats, deviation: float) -> NDArray[np.float32]:
        return (track.mean() + random.normal(0, deviation, count)).astype(np.float32)

    acted, tilt = performance(random, opening, width, "conversation"), truth.meta["body_pitch"]
    acted = replace(
        acted,
        yaw=around(truth.yaw, spread[0]),
        pitch=around(truth.pitch, spread[1]),
        roll=around(truth.roll, 0.07),
        body_yaw=around(0.65 * truth.yaw, 0.02),
        # Who is seen from above or below is so as a whole, and the head lies elsewhere above the shoulders.
        body_pitch=np.full(count, tilt, np.float32),
        head_y=acted.head_y + np.float32(lift(float(truth.pitch.mean())) if tilt else 0),
    )
    return render(identity, Scene.from_dict(truth.meta["scene"]), acted, *truth.frames.shape[1:3]), opening, width


def drawn_truth(
    config: Mapping[str, Any], seed: int, seconds: float, material: Material | None = None, **wishes: Any
) -> Sample:
    """A held-out drawn person of the size in a bundle's settings; wishes: as `studio.dataset.sample` takes them."""
    size = {"height": config["sample_height"], "width": config["sample_width"]}
    return sample(seed, split="test", frames=round(seconds * FPS), material=material, **size, **wishes)


def generate(pipeline: Any, truth: Sample, seed: int, prompt: str | None = None, **options: Any) -> NDArray[np.uint8]:
    """The bundle's video of a truth's first frame and speech, (F, H, W, 3).

    prompt: in place of the truth's caption. options: as the pipeline takes them. Without a watermark: the bundle is
    measured, not the mark.
    """
    box = tuple(float(value) for value in truth.face_box[0])
    words = truth.caption if prompt is None else prompt
    options = {"watermark": False, "seed": seed, "face_box": box, **options}
    return pipeline(Image.fromarray(truth.frames[0]), truth.speech, words, **options).frames


def drawn_cases(
    pipeline: Any, first: int, count: int, seconds: float, material: Material | None = None, **wishes: Any
) -> Iterator[Case]:
    """Generates drawn cases one after the other; first: their first seed, from `FIRST_SEED` on."""
    for index in range(count):
        truth = drawn_truth(pipeline.config, FIRST_SEED + first + index, seconds, material, **wishes)
        yield Case(truth, generate(pipeline, truth, index))


def prompt_pairs(
    pipeline: Any, first: int, count: int, material: Material | None = None
) -> Iterator[tuple[Case, Case]]:
    """Generates pairs of one portrait and speech, prompted with surroundings that move and with ones that stand still.

    The truths are the same person, speech and movements before surroundings of either kind.
    """
    places = [place for place in PLACES if place not in STILL_ONLY]
    for index in range(count):
        seed, place = FIRST_SEED + first + index, places[index % len(places)]
        moving, still = (
            drawn_truth(pipeline.config, seed, PAIR_SECONDS, material, place=place, dynamic=dynamic)
            for dynamic in (True, False)
        )
        first_video, second_video = (generate(pipeline, moving, index, one.caption) for one in (moving, still))
        yield Case(moving, first_video), Case(still, second_video)
