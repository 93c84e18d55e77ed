"""What the meters say of a bundle's videos of drawn people, beside what they say of the truth."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.identity import matched_distances, slope
from ..evaluation.meters import Floats, structural_similarity
from ..evaluation.motion import dynamics, flow_speed, light_error, mean_speed, seam_ratio
from ..evaluation.statistics import Interval
from ..evaluation.sync import wrong_recordings
from ..studio.dataset import Sample
from .score_cases import FACES_EVERY, FPS, Case, Mouth, Person
from .score_table import Score, Scores, over

FLOW_EVERY = 5  # frames between two pairs whose flow is measured


@dataclass(frozen=True)
class Reading:
    """What the meters say of one video.

    faces: (n, c) embeddings. subject, background: mean speed in pixels a frame. seam: change across clip borders over
    change inside clips, NaN where there is but one clip. light: grey levels by which the brightness differs from the
    truth's.
    """

    mouth: Mouth
    faces: Floats
    subject: float
    background: float
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
    "seams": lambda case, reading: reading.seam,
    "light": lambda case, reading: reading.light,
}


def surroundings(*truths: Sample) -> NDArray[np.bool_]:
    """Where neither the subject nor anything before it is in any frame: (H, W)."""
    taken = [mask.any(axis=0) for truth in truths for mask in (truth.subject_mask, truth.foreground_mask)]
    return ~np.any(taken, axis=0)


def read_case(case: Case, encoder: Any, borders: Sequence[int]) -> ReadCase:
    """Reads both videos of a case; encoder: of faces; borders: first frames of the clips after the first."""
    truth, person = case.truth, Person(case.truth)

    def read(frames: NDArray[np.uint8]) -> Reading:
        places, speed, behind = person.follow(frames), flow_speed(frames, FLOW_EVERY), surroundings(truth)
        return Reading(
            mouth=person.mouth(frames, places),
            faces=person.faces(encoder, frames, places),
            subject=mean_speed(speed, truth.subject_mask[0] > 0),
            background=mean_speed(speed, behind),
            seam=seam_ratio(frames, borders) if borders else np.nan,
            light=light_error(frames, truth.frames),
        )

    dynamic, gallery = truth.meta["scene"]["dynamic"], person.gallery(encoder)
    return ReadCase(truth.opening, truth.loudness, dynamic, gallery, read(case.frames), read(truth.frames))


def drawn_scores(cases: Sequence[ReadCase]) -> Scores:
    """Medians over at least two cases; of wrong recordings the 90th percentile of |correlation|."""
    scores: Scores = {}
    for name, compare in COMPARED.items():
        made, true = ([compare(case, reading) for case, reading in pairs] for pairs in _both(cases))
        scores |= over(name, made, true)
        if name == "amplitude":
            scores["wrong recordings"] = _wrong_recordings(cases)
    return scores | over("identity", *([identity(i, pairs) for i in range(len(cases))] for pairs in _both(cases)))


def _both(cases: Sequence[ReadCase]) -> tuple[list[tuple[ReadCase, Reading]], list[tuple[ReadCase, Reading]]]:
    return [(case, case.made) for case in cases], [(case, case.true) for case in cases]


def _wrong_recordings(cases: Sequence[ReadCase]) -> Score:
    truths, loudness = [case.opening for case in cases], [case.loudness for case in cases]
    made, true = (
        float(np.percentile(wrong_recordings([one.mouth.opening for _, one in pairs], truths, loudness), 90))
        for pairs in _both(cases)
    )
    return Score(made, truth=true)


def identity(index: int, pairs: Sequence[tuple[ReadCase, Reading]]) -> float:
    """Distance of a video's faces to its own person over that to the other cases' people: 0 is the person, 1 nobody."""
    faces = pairs[index][1].faces
    found = [float(matched_distances(faces, case.gallery).mean()) for case, _ in pairs]
    others = [distance for number, distance in enumerate(found) if number != index]
    return found[index] / max(float(np.median(others)), 1e-6)


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
