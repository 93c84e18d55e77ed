"""The mouth track follows sounds made by formant synthesis, and nothing but the sounds."""

import numpy as np
import pytest
from scipy import signal

from hallo3.studio.articulation import PhoneClass, articulation

RATE = 16000
FORMANTS = {
    "a": ((750, 90), (1200, 110), (2500, 150), (3500, 200)),
    "i": ((280, 60), (2250, 110), (2900, 150), (3600, 200)),
    "u": ((300, 60), (750, 80), (2300, 200), (3400, 250)),
    "m": ((250, 80), (1000, 400), (2200, 400), (3300, 500)),
}
# A nasal is damped: the mouth is shut.
LEVEL = {"a": 1.0, "i": 0.7, "u": 0.7, "m": 0.35}


def sound(name, seconds, pitch=120.0):
    """A pulse train through four resonances in series, in units of a full-scale /a/."""
    count = round(seconds * RATE)
    phase = np.cumsum(pitch * (1 + 0.02 * np.sin(np.arange(count) * 2e-3))) / RATE
    source = np.diff(np.floor(phase), prepend=0.0)
    source = signal.lfilter([1], [1, -0.96], signal.lfilter([1], [1, -0.96], source))  # the glottis: -12 dB an octave
    source = np.append(source[:1], np.diff(source))  # the lips: +6 dB an octave
    for frequency, width in FORMANTS[name]:
        radius = np.exp(-np.pi * width / RATE)
        poles = [1, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2]
        source = signal.lfilter([sum(poles)], poles, source)
    return (0.3 * LEVEL[name] * source / np.sqrt(np.mean(source**2))).astype(np.float32)


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def sequence(names, seconds=0.4, pitch=120.0):
    return np.concatenate([silence(0.4), *(sound(name, seconds, pitch) for name in names), silence(0.4)])


def middles(track, count, seconds=0.4):
    """Values in the middle of each of the sounds of `sequence`."""
    return [float(track[round((0.4 + seconds * (index + 0.5)) * 25)]) for index in range(count)]


@pytest.mark.parametrize("pitch", [105.0, 150.0, 210.0])
def test_vowels_and_nasals_look_different(pitch):
    movement = articulation(sequence("amiuma", pitch=pitch))
    a, m, i, u, m_again, a_again = middles(movement.opening, 6)
    assert min(a, a_again) > 0.7
    assert max(m, m_again) < 0.2
    assert m < i < a - 0.2
    assert u < a - 0.3
    a, m, i, u, _, _ = middles(movement.width, 6)
    assert i > 0.65 > 0.3 > u
    assert abs(a - 0.5) < 0.2


def test_phone_classes():
    hiss = 0.05 * np.random.default_rng(0).standard_normal(round(0.4 * RATE))
    hiss = signal.sosfilt(signal.butter(4, 4000, "highpass", fs=RATE, output="sos"), hiss).astype(np.float32)
    samples = np.concatenate([sequence("amiu"), hiss, silence(0.4)])
    kinds = articulation(samples).phone_class
    assert middles(kinds, 4) == [PhoneClass.OPEN, PhoneClass.CLOSED, PhoneClass.SPREAD, PhoneClass.ROUNDED]
    assert kinds[round(2.6 * 25)] == PhoneClass.FRICATIVE
    assert kinds[2] == kinds[-2] == PhoneClass.SILENCE


def test_silence_is_closed():
    for samples in (silence(1), 1e-5 * np.random.default_rng(1).standard_normal(RATE).astype(np.float32)):
        movement = articulation(samples)
        assert movement.opening.max() < 0.01
        assert movement.loudness.max() == 0
        assert set(movement.phone_class) == {PhoneClass.SILENCE}
    assert articulation(sequence("a")).opening[:7].max() < 0.05


def test_steady_noise_does_not_open_the_mouth():
    speech = sequence("amau")
    noise = 0.004 * np.random.default_rng(2).standard_normal(len(speech)).astype(np.float32)
    movement = articulation(speech + noise)
    assert movement.opening[2:7].max() < 0.1
    assert middles(movement.opening, 1)[0] > 0.6


def test_a_mouth_closes_in_a_tenth_of_a_second_without_delay():
    # Edges on frame 20 and 30: the track passes half its height there and is done within 80 ms of it.
    opening = articulation(np.concatenate([silence(0.8), sound("a", 0.4), silence(0.8)])).opening
    top = opening[25]
    assert opening[17] < 0.1 * top < 0.9 * top < opening[22]
    assert opening[27] > 0.9 * top > 0.1 * top > opening[32]
    rising = np.interp(0.5 * top, opening[16:24], np.arange(16, 24) + 0.5)
    falling = np.interp(-0.5 * top, -opening[26:34], np.arange(26, 34) + 0.5)
    assert abs(rising - 20) < 0.6
    assert abs(falling - 30) < 0.6


def test_shifted_speech_shifts_the_track():
    speech = sequence("aimumai", seconds=0.23)
    movement = articulation(speech)
    shifted = articulation(np.concatenate([silence(7 * 640 / RATE), speech]))
    assert len(shifted) == len(movement) + 7
    np.testing.assert_allclose(shifted.opening[7:], movement.opening, atol=0.03)
    np.testing.assert_allclose(shifted.width[7:], movement.width, atol=0.03)


def test_level_does_not_matter():
    speech = sequence("aimumai", seconds=0.23)
    movement, quiet = articulation(speech), articulation(0.25 * speech)
    np.testing.assert_allclose(quiet.opening, movement.opening, atol=1e-4)
    np.testing.assert_allclose(quiet.loudness, movement.loudness, atol=1e-4)
    np.testing.assert_array_equal(quiet.phone_class, movement.phone_class)


def test_lengths():
    for count, frames in ((0, 0), (1, 1), (640, 1), (641, 2), (16000, 25)):
        movement = articulation(np.zeros(count, np.float32))
        assert len(movement) == len(movement.width) == len(movement.phone_class) == frames
    assert len(articulation(sound("a", 1.0), fps=50)) == 50


def test_long_recordings_are_taken_in_pieces():
    short = sequence("aimu")
    tracks = articulation(np.concatenate([short] * 30)).opening  # more than one block of analysis steps
    one = articulation(np.concatenate([short] * 3)).opening
    count = len(articulation(short))
    np.testing.assert_allclose(tracks[20 * count : 21 * count], one[count : 2 * count], atol=0.02)


def test_bad_arguments():
    with pytest.raises(ValueError, match="one dimension"):
        articulation(np.zeros((2, 100)))
    with pytest.raises(ValueError, match="do not divide"):
        articulation(np.zeros(100), fps=24)
