"""What the meters say of a bundle's videos of drawn people, beside what they say of the truth."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..evaluation.identity import slope
from ..evaluation.meters import Floats, structural_similarity
from ..evaluation.motion import dynamics, flow_speed, light_error, mean_speed, part_change, seam_ratio, sharpness
from ..evaluation.statistics import Interval
from ..evaluation.sync import wrong_recordings
from ..studio.dataset import Sample
from .score_cases import FACES_EVERY, FPS, Case, Mouth, Person
from .score_table import Score, Scores, over

FLOW_EVERY = 5  # frames between two pairs whose flow is measured
LEAST_PART = 0.008  # share of the picture that a foreground takes, to be measured


@dataclass(frozen=True)
class Reading:
    """What the meters say of one video.

    identity: 0 for the person, 1 for somebody else, (n,) of every fifth frame. faces: (n, c) features, likewise.
    pose: degrees by which yaw and pitch of the head differ from the truth's, the larger mean of both. subject,
    background: mean speed in pixels a frame. foreground: its change in grey levels a frame, NaN where there is none.
    sharpness: of the subject, in grey levels a pixel. seam: change across clip borders over change inside clips, NaN
    where there is but one clip. light: grey levels by which the brightness differs from the truth's.
    """

    mouth: Mouth
    identity: Floats
    faces: Floats
    pose: float
    subject: float
    background: float
    foreground: float
    sharpness: float
    seam: float
    light: float


@dataclass(frozen=True)
class ReadCase:
    """A case's truth (tracks (F,), whether its surroundings move), and two readings."""

    opening: Floats
    loudness: Floats
    dynamic: bool
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
    "identity": lambda case, reading: later(reading.identity),
    "pose": lambda case, reading: reading.pose,
    "seams": lambda case, reading: reading.seam,
    "light": lambda case, reading: reading.light,
}


def later(track: Floats) -> float:
    """Mean of the second half: a first clip begins with the portrait, whatever a network knows of the person."""
    return float(track[len(track) // 2 :].mean())


def surroundings(*truths: Sample) -> NDArray[np.bool_]:
    """Where neither the subject nor anything before it is in any frame: (H, W)."""
    taken = [mask.any(axis=0) for truth in truths for mask in (truth.subject_mask, truth.foreground_mask)]
    return ~np.any(taken, axis=0)


class Reader:
    """The meters of one drawn person's videos, each as long as the truth."""

    def __init__(self, truth: Sample):
        self.truth, self.person = truth, Person(truth)
        self.behind, self.before = surroundings(truth), truth.foreground_mask[0] > 0

    def __call__(self, frames: NDArray[np.uint8], borders: Sequence[int] = ()) -> Reading:
        """Reads frames (F, H, W, 3); borders: first frames of the clips after the first."""
        places, speed, subject = self.person.follow(frames), flow_speed(frames, FLOW_EVERY), self.truth.subject_mask[0]
        return Reading(
            mouth=self.person.mouth(frames, places),
            identity=self.person.identity(frames, places),
            faces=self.person.faces(frames, places),
            pose=pose_error(self.truth, self.person.pose(frames, places)),
            subject=mean_speed(speed, subject > 0),
            background=mean_speed(speed, self.behind),
            foreground=part_change(frames, self.before) if self.before.mean() >= LEAST_PART else np.nan,
            sharpness=sharpness(frames[::FLOW_EVERY], subject > 0),
            seam=seam_ratio(frames, borders) if borders else np.nan,
            light=light_error(frames, self.truth.frames),
        )

    def case(self, made: Reading, true: Reading) -> ReadCase:
        """Two readings with what they are compared by."""
        truth = self.truth
        return ReadCase(truth.opening, truth.loudness, truth.meta["scene"]["dynamic"], made, true)


def pose_error(truth: Sample, pose: Floats) -> float:
    """Degrees by which yaw and pitch (n, 2) of every fifth frame differ from the truth's; the larger mean of both."""
    true = np.stack([truth.yaw, truth.pitch], axis=1)[::FACES_EVERY]
    return float(np.degrees(np.abs(pose - true).mean(axis=0).max()))


def read_case(case: Case, borders: Sequence[int]) -> ReadCase:
    """Reads both videos of a case; borders: first frames of the clips after the first."""
    read = Reader(case.truth)
    return read.case(read(case.frames, borders), read(case.truth.frames, borders))


def drawn_scores(cases: Sequence[ReadCase]) -> Scores:
    """Medians over at least two cases; of wrong recordings the 90th percentile."""
    scores: Scores = {}
    for name, compare in COMPARED.items():
        made, true = ([compare(case, reading) for case, reading in pairs] for pairs in _both(cases))
        scores |= over(name, made, true)
        if name == "amplitude":
            scores["wrong recordings"] = _wrong_recordings(cases)
    return scores


def _both(cases: Sequence[ReadCase]) -> tuple[list[tuple[ReadCase, Reading]], list[tuple[ReadCase, Reading]]]:
    return [(case, case.made) for case in cases], [(case, case.true) for case in cases]


def _wrong_recordings(cases: Sequence[ReadCase]) -> Score:
    truths, loudness = [case.opening for case in cases], [case.loudness for case in cases]
    made, true = (
        float(np.percentile(wrong_recordings([one.mouth.opening for _, one in pairs], truths, loudness), 90))
        for pairs in _both(cases)
    )
    return Score(made, truth=true)


def view_scores(name: str, cases: Iterable[Case]) -> Scores:
    """Sync and pose of people who are seen from one side."""
    pairs = []
    for case in cases:
        person, pair = Person(case.truth), []
        for frames in (case.frames, case.truth.frames):
            places = person.follow(frames)
            pose = pose_error(case.truth, person.pose(frames, places))
            pair.append((person.mouth(frames, places).sync.correlation, pose))
        pairs.append(pair)
    if not pairs:
        return {}
    made, true = np.moveaxis(np.array(pairs), 1, 0)
    return over(f"{name} sync", made[:, 0], true[:, 0]) | over(f"{name} pose", made[:, 1], true[:, 1])


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


def long_scores(cases: Iterable[Case]) -> Scores:
    """How fast faces leave their person, in shares of the way to somebody else a minute, beyond what the truth's do.

    The meter reads both videos at the same times in nearly the same poses, so that turning away is no loss of identity.
    The median over cases; of a single case its own interval (`identity.slope`).
    """
    made: list[Interval] = []
    true: list[Interval] = []
    for case in cases:
        person = Person(case.truth)
        tracks = [person.identity(frames, person.follow(frames)) for frames in (case.frames, case.truth.frames)]
        made.append(slope(tracks[0] - tracks[1], FPS / FACES_EVERY))
        true.append(slope(tracks[1], FPS / FACES_EVERY))
    found = over("identity slope", [60 * one.value for one in made], [60 * one.value for one in true])
    if len(made) == 1:
        (score,) = found.values()
        return {"identity slope": replace(score, low=60 * made[0].low, high=60 * made[0].high)}
    return found
