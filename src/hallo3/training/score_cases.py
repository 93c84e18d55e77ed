"""The people that a bundle's score is measured on: drawn, held out, and known well enough to be read.

Everything that is drawn here depends on its seed alone, so two bundles are measured on the same cases.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..evaluation.identity import face_embeddings
from ..evaluation.meters import Floats, MouthMeter, partial_correlation
from ..evaluation.sync import SyncScore, lip_sync
from ..evaluation.tracking import FaceTracker, Places
from ..studio.dataset import Material, Sample, sample
from ..studio.identity import Identity
from ..studio.performance import performance
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
FACES_EVERY = 5  # frames between two that are embedded


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

    def faces(self, encoder: Any, frames: NDArray[np.uint8], places: Places) -> Floats:
        """Embeddings (n, c) of every fifth frame."""
        boxes = places.carry(self.truth.face_box)
        return face_embeddings(encoder, frames[::FACES_EVERY], boxes[::FACES_EVERY])

    def gallery(self, encoder: Any) -> Floats:
        """Embeddings (n, c) of the person in the rehearsal's poses."""
        return face_embeddings(encoder, self.rehearsal.frames, self.rehearsal.face_box)

    @cached_property
    def _meters(self) -> list[MouthMeter]:
        shift = np.random.default_rng(0).normal(0, JITTER, (JITTERS * REHEARSED, 2))
        boxes = np.tile(self.rehearsal.mouth_box, (JITTERS, 1)) + np.pad(shift, ((0, 0), (0, 2)))
        frames = [*self.rehearsal.frames] * JITTERS
        return [MouthMeter(frames, boxes, np.tile(shape, JITTERS)) for shape in (self.opening, self.width)]


def rehearse(truth: Sample) -> tuple[Rendered, Floats, Floats]:
    """The person of a drawn sample in `REHEARSED` poses around the sample's view, with openings and widths (n,)."""
    random = np.random.default_rng([9, truth.meta["seed"]])
    opening = random.random(REHEARSED) * (random.random(REHEARSED) > 0.2)
    width = random.normal(0.5, 0.2, REHEARSED).clip(0, 1)

    def around(track: Floats, spread: float) -> NDArray[np.float32]:
        return (track.mean() + random.normal(0, spread, REHEARSED)).astype(np.float32)

    acted = replace(
        performance(random, opening, width, "conversation"),
        yaw=around(truth.yaw, 0.12),
        pitch=around(truth.pitch, 0.07),
        roll=around(truth.roll, 0.07),
        body_yaw=around(0.65 * truth.yaw, 0.02),
    )
    identity, scene = Identity.from_dict(truth.meta["identity"]), Scene.from_dict(truth.meta["scene"])
    return render(identity, scene, acted, *truth.frames.shape[1:3]), opening, width


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
