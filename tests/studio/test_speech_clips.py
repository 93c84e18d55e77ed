"""Speech clips: their movement belongs to them, and the files can be resumed."""

import wave

import numpy as np
import pytest

from hallo3.studio import speech_clips
from hallo3.studio.articulation import articulation
from hallo3.studio.voices import Recording


@pytest.fixture
def recorded(tmp_path):
    """Ten seconds of a hum that comes and goes, in a file."""
    seconds = np.arange(160000) / 16000
    hum = np.sin(2 * np.pi * 140 * seconds) + 0.5 * np.sign(np.sin(2 * np.pi * 700 * seconds))
    samples = 0.3 * hum * (np.sin(2 * np.pi * 0.9 * seconds) > 0)
    path = tmp_path / "hum.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((samples * 32767 / 1.6).astype("<i2").tobytes())
    return [Recording(path, "train")]


def test_clips_of_a_recording(recorded, monkeypatch):
    monkeypatch.setattr(speech_clips, "RECORDED_SHARE", 1.0)
    clips = [speech_clips.speech_clip(seed, 65, "train", recorded) for seed in range(4)]
    for clip in clips:
        assert clip.samples.shape == (65 * 640,) and clip.samples.dtype == np.float32
        assert len(clip.movement) == 65
        assert clip.source == "hum"
        heard = articulation(clip.samples).opening
        assert np.corrcoef(heard, clip.movement.opening)[0, 1] > 0.9
    again = speech_clips.speech_clip(0, 65, "train", recorded)
    np.testing.assert_array_equal(again.samples, clips[0].samples)
    assert not np.array_equal(clips[0].samples, clips[1].samples)


def test_recordings_shorter_than_the_clip_end_in_rest(recorded, monkeypatch):
    monkeypatch.setattr(speech_clips, "RECORDED_SHARE", 1.0)
    clip = speech_clips.speech_clip(1, 300, "train", recorded)
    assert len(clip.movement) == 300
    assert clip.movement.opening[255:].max() == 0
    assert set(clip.movement.width[255:]) == {0.5}


def test_files_are_resumed(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(speech_clips, "RECORDED_SHARE", 1.0)
    folder = tmp_path / "speech"
    assert speech_clips.write_speech(folder, 3, "train", recorded) == 3
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == ["00000.npz", "00001.npz", "00002.npz"]
    (folder / "00001.npz").unlink()
    assert speech_clips.write_speech(folder, 3, "train", recorded) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    with np.load(folder / "00001.npz") as data:
        assert 150 <= len(data["opening"]) <= 250
        assert len(data["samples"]) == 640 * len(data["opening"])
        assert set(data["phone_class"]) <= set(range(6))
