"""What the meters say of a bundle's videos of drawn people, beside what they say of the truth."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.identity import matched_distances, slope
from ..evaluation.meters import Floats, structural_similarity
from ..evaluation.motion import dynamics, flow_speed, light_error, mean_speed, seam_ratio, sharpness
from ..evaluation.statistics import Interval
from ..evaluation.sync import wrong_recordings
from ..studio.dataset import Sample
from .score_cases import FACES_EVERY, FPS, Case, Mouth, Person
from .score_table import Score, Scores, over

FLOW_EVERY = 5  # frames between two pairs whose flow is measured
LEAST_PART = 200  # pixels of a foreground that can be measured


@dataclass(frozen=True)
class Reading:
    """What the meters say of one video.

    faces: (n, c) embeddings. subject, background, foreground: mean speed in pixels a frame, NaN where there is none.
    sharpness: of the subject, in grey levels a pixel. seam: change across clip borders over change inside clips, NaN
    where there is but one clip. light: grey levels by which the brightness differs from the truth's.
    """

    mouth: Mouth
    faces: Floats
    subject: float
    background: float
    foreground: float
    sharpness: float
    seam: float
    light: float


@dataclass(frozen=True)
class ReadCase:
    """A case's truth (tracks (F,), whether its surroundings move, the person's embeddings (n, c)), and two readings."""

    opening: Floats
    loudness: Floats
    dynamic: bool
    gallery: Floats
    made: Reading
    true: Reading


# What is compared case by case; the median over cases is the score.
COMPARED: dict[str, Callable[[ReadCase, Reading], float]] = {
    "sync": lambda case, reading: reading.mouth.sync.correlation,
    "lag": lambda case, reading: abs(reading.mouth.sync.lag),
    "amplitude": lambda case, reading: reading.mouth.sync.amplitude,
    "mouth shape": lambda case, reading: reading.mouth.shape,
    "subject dynamics": lambda case, reading: reading.subject / case.true.subject,
    "background dynamics": lambda case, reading: reading.background / case.true.background if case.dynamic else np.nan,
    "foreground dynamics": lambda case, reading: reading.foreground / case.true.foreground if case.dynamic else np.nan,
    "sharpness": lambda case, reading: reading.sharpness / case.true.sharpness,
    "seams": lambda case, reading: reading.seam,
    "light": lambda case, reading: reading.light,
}


def surroundings(*truths: Sample) -> NDArray[np.bool_]:
    """Where neither the subject nor anything before it is in any frame: (H, W)."""
    taken = [mask.any(axis=0) for truth in truths for mask in (truth.subject_mask, truth.foreground_mask)]
    return ~np.any(taken, axis=0)


class Reader:
    """The meters of one drawn person's videos, each as long as the truth."""

    def __init__(self, truth: Sample, encoder: Any):
        """Args: encoder: of faces."""
        self.truth, self.encoder, self.person = truth, encoder, Person(truth)
        self.behind, self.before = surroundings(truth), truth.foreground_mask[0] > 0

    @cached_property
    def gallery(self) -> Floats:
        """Embeddings (n, c) of the person."""
        return self.person.gallery(self.encoder)

    def __call__(self, frames: NDArray[np.uint8], borders: Sequence[int] = ()) -> Reading:
        """Reads frames (F, H, W, 3); borders: first frames of the clips after the first."""
        places, speed, subject = self.person.follow(frames), flow_speed(frames, FLOW_EVERY), self.truth.subject_mask[0]
        return Reading(
            mouth=self.person.mouth(frames, places),
            faces=self.person.faces(self.encoder, frames, places),
            subject=mean_speed(speed, subject > 0),
            background=mean_speed(speed, self.behind),
            foreground=mean_speed(speed, self.before) if self.before.sum() >= LEAST_PART else np.nan,
            sharpness=sharpness(frames[::FLOW_EVERY], subject > 0),
            seam=seam_ratio(frames, borders) if borders else np.nan,
            light=light_error(frames, self.truth.frames),
        )

    def case(self, made: Reading, true: Reading) -> ReadCase:
        """Two readings with what they are compared by."""
        truth = self.truth
        return ReadCase(truth.opening, truth.loudness, truth.meta["scene"]["dynamic"], self.gallery, made, true)


def read_case(case: Case, encoder: Any, borders: Sequence[int]) -> ReadCase:
    """Reads both videos of a case; encoder: of faces; borders: first frames of the clips after the first."""
    read = Reader(case.truth, encoder)
    return read.case(read(case.frames, borders), read(case.truth.frames, borders))


def drawn_scores(cases: Sequence[ReadCase]) -> Scores:
    """Medians over at least two cases; of wrong recordings the 90th percentile of |correlation|."""
    scores: Scores = {}
    for name, compare in COMPARED.items():
        made, true = ([compare(case, reading) for case, reading in pairs] for pairs in _both(cases))
        scores |= over(name, made, true)
        if name == "amplitude":
            scores["wrong recordings"] = _wrong_recordings(cases)
    galleries = [case.gallery for case in cases]
    made, true = (identities([found.faces for _, found in pairs], galleries).tolist() for pairs in _both(cases))
    return scores | over("identity", made, true)


def _both(cases: Sequence[ReadCase]) -> tuple[list[tuple[ReadCase, Reading]], list[tuple[ReadCase, Reading]]]:
    return [(case, case.made) for case in cases], [(case, case.true) for case in cases]


def _wrong_recordings(cases: Sequence[ReadCase]) -> Score:
    truths, loudness = [case.opening for case in cases], [case.loudness for case in cases]
    made, true = (
        float(np.percentile(wrong_recordings([one.mouth.opening for _, one in pairs], truths, loudness), 90))
        for pairs in _both(cases)
    )
    return Score(made, truth=true)


def identities(faces: Sequence[Floats], galleries: Sequence[Floats]) -> Floats:
    """Distance of each video's faces (n, c) to their person over that to the other people: 0 is the person, 1 nobody.

    Both sequences are of at least two people, in the same order; the distance to the others is the median.
    """
    found = np.array([[matched_distances(one, gallery).mean() for gallery in galleries] for one in faces])
    others = np.where(np.eye(len(found), dtype=bool), np.nan, found)
    return np.diag(found) / np.maximum(np.nanmedian(others, axis=1), 1e-6)


def view_scores(name: str, cases: Iterable[Case]) -> Scores:
    """Sync of people who are seen from one side."""
    pairs = []
    for case in cases:
        person = Person(case.truth)
        videos = (case.frames, case.truth.frames)
        pairs.append([person.mouth(frames, person.follow(frames)).sync.correlation for frames in videos])
    return over(f"{name} sync", *zip(*pairs, strict=True)) if pairs else {}


def still_scores(cases: Iterable[Case]) -> Scores:
    """SSIM of the portrait and the last frame where neither person nor surroundings move."""
    pairs = []
    for case in cases:
        mask, portrait = surroundings(case.truth), case.truth.frames[0]
        videos = (case.frames, case.truth.frames)
        pairs.append([structural_similarity(portrait, frames[-1], mask) for frames in videos])
    return over("still areas", *zip(*pairs, strict=True)) if pairs else {}


def text_scores(pairs: Iterable[tuple[Case, Case]]) -> Scores:
    """Share of pairs in which the surroundings move more where the prompt says that they move."""
    found = []
    for moving, still in pairs:
        mask = surroundings(moving.truth, still.truth)
        made = [dynamics(case.frames, mask, FLOW_EVERY) for case in (moving, still)]
        true = [dynamics(case.truth.frames, mask, FLOW_EVERY) for case in (moving, still)]
        found.append([float(made[0] > made[1]), float(true[0] > true[1])])
    return over("text control", *zip(*found, strict=True), statistic=np.mean) if found else {}


def long_scores(cases: Iterable[Case], encoder: Any) -> Scores:
    """How fast faces leave their person, in cosine distance a minute: the worst case, with the interval of its slope.

    Every face is compared with the rehearsal's most alike, so that turning away is no loss of identity.
    """
    made: list[Interval] = []
    true: list[Interval] = []
    for case in cases:
        person = Person(case.truth)
        gallery = person.gallery(encoder)
        for found, frames in ((made, case.frames), (true, case.truth.frames)):
            faces = person.faces(encoder, frames, person.follow(frames))
            found.append(slope(matched_distances(faces, gallery), FPS / FACES_EVERY))
    if not made:
        return {}
    worst = max(made, key=lambda one: one.value)
    truth = 60 * max(one.value for one in true)
    return {"identity slope": Score(60 * worst.value, 60 * worst.low, 60 * worst.high, truth)}
