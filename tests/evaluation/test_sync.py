"""Lip sync: the truth scores perfectly, planted faults are seen for what they are."""

import numpy as np
import pytest

from hallo3.evaluation.sync import follows_loudness, lip_sync, wrong_recordings


def opening(seed: int, frames: int = 120) -> np.ndarray:
    """A track like a mouth's: syllables and pauses, 0…1."""
    random = np.random.default_rng(seed)
    return np.convolve(random.random(frames + 4) ** 2, np.hanning(7)[1:-1] / 3, "valid")[:frames]


def test_the_truth_is_in_sync() -> None:
    score = lip_sync(opening(0), opening(0))
    assert (score.correlation, score.best, score.lag) == (pytest.approx(1), pytest.approx(1), 0)
    assert score.amplitude == pytest.approx(1)


@pytest.mark.parametrize("late", [-3, -1, 2, 5])
def test_a_shifted_sound_shows_as_a_lag(late: int) -> None:
    score = lip_sync(np.roll(opening(1), late), opening(1))
    assert score.lag == late
    assert score.best > 0.95 > score.correlation


def test_a_small_mouth_shows_as_amplitude_and_nothing_else() -> None:
    score = lip_sync(0.3 + 0.1 * opening(2), opening(2))
    assert score.correlation == pytest.approx(1) and score.amplitude == pytest.approx(0.1)


def test_frozen_and_shuffled_mouths_are_not_in_sync() -> None:
    frozen = lip_sync(np.full(120, 0.4), opening(3))
    assert (frozen.correlation, frozen.lag, frozen.amplitude) == (0, 0, pytest.approx(0, abs=1e-9))
    shuffled = np.random.default_rng(0).permutation(opening(3))
    assert abs(lip_sync(shuffled, opening(3)).correlation) < 0.3


def test_tracks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="120 and 100 frames"):
        lip_sync(opening(0), opening(0, 100))
    with pytest.raises(ValueError, match="at 5 lags"):
        lip_sync(opening(0, 11), opening(0, 11))


def moving_with(loudness: np.ndarray, seed: int = 0) -> np.ndarray:
    """A mouth that opens and shuts at random, more where it is loud: its motion between frames."""
    return loudness[1:] * np.random.default_rng(seed).random(len(loudness) - 1)


def test_lips_that_move_while_it_is_loud_follow_the_loudness() -> None:
    loudness = opening(4, 250)
    assert follows_loudness(moving_with(loudness), loudness) > 0.6


def test_frozen_trembling_and_shifted_lips_follow_nothing() -> None:
    loudness = opening(4, 250)
    assert follows_loudness(np.zeros(249), loudness) == 0
    assert abs(follows_loudness(moving_with(np.ones(250)), loudness)) < 0.25
    assert abs(follows_loudness(np.roll(moving_with(loudness), 25), loudness)) < 0.3
    assert abs(follows_loudness(moving_with(opening(9, 250)), loudness)) < 0.3


def test_the_right_mouths_do_not_follow_wrong_recordings() -> None:
    tracks = [opening(seed) for seed in range(8)]
    loudness = [np.full(120, 0.5)] * 8
    found = wrong_recordings(tracks, tracks, loudness)
    assert found.shape == (8,) and np.percentile(found, 90) < 0.25
    # A mouth that moves with whatever anybody says is told.
    anything = [np.mean(tracks, axis=0)] * 8
    assert np.percentile(wrong_recordings(anything, tracks, loudness), 90) > 0.3
    # A mouth that does the same whatever is said is told by the recordings being alike.
    assert wrong_recordings(tracks[:1] * 8, tracks[:1] * 8, loudness).min() > 0.99


def test_only_recordings_that_are_as_loud_are_compared() -> None:
    tracks = [opening(0), opening(1), opening(0), opening(0, 90)]
    loudness = [np.full(120, level) for level in (0.2, 0.25, 0.9)] + [np.full(90, 0.6)]
    found = wrong_recordings(tracks, tracks, loudness)
    # 0 with 1 and 1 with 0; 2 and 3 have no equal, and are compared with the nearest, over what they have in common.
    assert len(found) == 4
    assert found[:2].max() < 0.5 and found[2:].min() > 0.99
