"""Vocal separation with networks whose answer is known: the real chunking and the real onnxruntime."""

import sys

import numpy as np
import pytest

from hallo3.conditions import vocals
from hallo3.conditions.vocals import separate_vocals, stream_vocals
from hallo3.errors import UserError
from tiny import write_vocal_network as write_network


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("vocals") / "identity.onnx")


def tones(seconds: float) -> np.ndarray:
    """Two channels of different tones between 200 Hz and 8 kHz, swelling, so that a shift or a swap shows."""
    t = np.arange(int(seconds * 44100)) / 44100
    left = sum(np.sin(2 * np.pi * f * t * (1 + 0.01 * t)) for f in (200, 1234, 4321)) * (0.2 + 0.05 * np.sin(t))
    right = sum(np.sin(2 * np.pi * f * t) for f in (333, 8000)) * 0.2
    return np.float32([left, right])


@pytest.mark.parametrize("seconds", [0.2, 5.9, 12.0])
def test_a_network_that_changes_nothing_gives_the_recording_back(identity, seconds):
    mixture = tones(seconds)
    voice = separate_vocals(mixture, identity)
    assert voice.shape == mixture.shape
    error = np.abs(voice - 1.009 * mixture)
    edge = 4000  # a tone that starts at full strength is not band-limited
    assert error[:, edge:-edge].max() < 2e-3 * np.abs(mixture).max()
    assert error.max() < 0.05 * np.abs(mixture).max()


def test_channels_reach_the_network_as_left_and_right(tmp_path):
    left_only = write_network(tmp_path / "left.onnx", gains=(1, 1, 0, 0))
    voice = separate_vocals(tones(3), left_only)
    assert np.abs(voice[1]).max() < 1e-6
    assert np.abs(voice[0] - 1.009 * tones(3)[0])[4000:-4000].max() < 2e-3


def test_blocks_give_what_the_whole_gives_in_constant_memory(identity):
    mixture = tones(8)
    blocks = (mixture[:, i : i + 10_007] for i in range(0, mixture.shape[1], 10_007))
    pieces = list(stream_vocals(blocks, identity))
    assert max(p.shape[1] for p in pieces) <= vocals.STEP
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), separate_vocals(mixture, identity))


def test_mono_becomes_two_equal_channels(identity):
    voice = separate_vocals(tones(1)[:1], identity)
    assert voice.shape == (2, 44100)
    np.testing.assert_array_equal(voice[0], voice[1])


def test_rumble_and_hiss_outside_the_network_are_left_out(identity):
    t = np.arange(44100 * 3) / 44100
    for frequency in (8, 20_000):
        voice = separate_vocals(np.float32(0.5 * np.sin(2 * np.pi * frequency * t))[None], identity)
        assert np.abs(voice[:, 10_000:-10_000]).max() < 0.02


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        separate_vocals(tones(0.2), tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match=r"text\.onnx: is not an ONNX network"):
        stream_vocals([], tmp_path / "text.onnx")
    other = write_network(tmp_path / "other.onnx", shape=(1, 4, 2048, 256))
    with pytest.raises(UserError, match=r"give Kim_Vocal_2\.onnx"):
        separate_vocals(tones(0.2), other)


def test_without_onnxruntime_the_extra_is_named(monkeypatch, identity):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install hallo3\[vocals\]"):
        stream_vocals([], identity)
