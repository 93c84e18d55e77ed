"""Lip sync with known truth: whether a mouth follows what is said, how late, how far, and only that."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .meters import Floats, correlation

LAGS = 5  # frames looked at on either side: 0.2 s, where people notice that sound and lips are apart
SYLLABLE = 5  # frames


@dataclass(frozen=True)
class SyncScore:
    """How a mouth's track follows the truth's.

    Attributes:
        correlation: Pearson's, without a shift. best: at `lag`.
        lag: Frames by which the mouth is late (negative: early) where the correlation is highest.
        amplitude: Deviation of the track over the truth's; 0 where the mouth does not move.
    """

    correlation: float
    best: float
    lag: int
    amplitude: float


def lip_sync(track: Floats, truth: Floats, lags: int = LAGS) -> SyncScore:
    """Compares tracks `(F,)` of one length, frame by frame and shifted by up to `lags` frames.

    Raises:
        ValueError: for tracks of unequal length, or too short to be shifted.
    """
    if len(track) != len(truth) or len(track) <= 2 * lags + 1:
        raise ValueError(f"tracks of {len(track)} and {len(truth)} frames can't be compared at {lags} lags")
    shifts = sorted(range(-lags, lags + 1), key=abs)  # of equal ones, the smallest shift
    found = {shift: correlation(*_overlap(track, truth, shift)) for shift in shifts}
    lag = max(found, key=lambda shift: found[shift])
    deviation = float(np.std(truth))
    return SyncScore(found[0], found[lag], lag, float(np.std(track)) / deviation if deviation > 1e-9 else 0.0)


def _overlap(track: Floats, truth: Floats, shift: int) -> tuple[Floats, Floats]:
    """The parts of both that lie over each other when the track is taken `shift` frames earlier."""
    if shift >= 0:
        return track[shift:], truth[: len(truth) - shift]
    return track[:shift], truth[-shift:]


def follows_loudness(motion: Floats, loudness: Floats, window: int = SYLLABLE) -> float:
    """Correlation of a mouth's motion `(F − 1,)` between frames with how loud the speech is `(F,)`.

    For pictures whose mouths have no truth: lips move while somebody speaks. Both are averaged over `window` frames,
    because lips also rest open within a syllable.
    """
    calm = np.hanning(window + 2)[1:-1]
    return correlation(*(np.convolve(track, calm, "same") for track in (motion, loudness[1:])))


def wrong_recordings(
    tracks: Sequence[Floats], truths: Sequence[Floats], loudness: Sequence[Floats], tolerance: float = 0.2
) -> NDArray[np.float64]:
    """|Mean correlation| of each track `(n,)` with the truths of the other recordings that are about as loud.

    A mouth that just moves when anything is said correlates with any speech of the same loudness. Over four seconds two
    recordings that have nothing in common correlate too, by about 0.2 one way or the other; over several recordings
    that is as often up as down, and what the mouth has in common with all of them stays.

    Args:
        tracks, truths, loudness: `(F,)` each, one of every case; pairs are compared over their common length.
        tolerance: Largest difference of mean loudness (0…1) of two recordings that count as equally loud. A case
            without an equal is compared with the one that is nearest.
    """
    means = np.array([float(np.mean(values)) for values in loudness])
    found = []
    for i, track in enumerate(tracks):
        others = sorted((abs(means[i] - means[j]), j) for j in range(len(truths)) if j != i)
        equal = [j for difference, j in others if difference <= tolerance] or [j for _, j in others[:1]]
        lengths = [min(len(track), len(truths[j])) for j in equal]
        pairs = zip(equal, lengths, strict=True)
        found.append(abs(float(np.mean([correlation(track[:size], truths[j][:size]) for j, size in pairs]))))
    return np.array(found)
