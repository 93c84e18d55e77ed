"""Sentences, the training voices and the split of recordings."""

import shutil

import numpy as np
import pytest

from hallo3.errors import UserError
from hallo3.studio import voices
from hallo3.studio.articulation import articulation
from hallo3.studio.sentences import babble, sentence


def test_sentences_vary_and_repeat_with_their_seed():
    def texts(maker):
        rng = np.random.default_rng(3)
        return [maker(rng) for _ in range(300)]

    for maker in (sentence, babble):
        assert texts(maker) == texts(maker)
        assert len(set(texts(maker))) > 280
        assert all(text[0].isupper() and not set(text) & set("{}") for text in texts(maker))


def test_voices_of_the_splits_differ():
    names = {split: {voice.name for voice in voices.VOICES if voice.split == split} for split in ("train", "test")}
    assert len(names["train"]) > 100
    assert names["test"] and not names["train"] & names["test"]
    rng = np.random.default_rng(0)
    drawn = [voices.draw_voice(rng, "test") for _ in range(60)]
    assert {voice.split for voice in drawn} == {"test"}
    assert {voice.program for voice in drawn} == {"espeak-ng", "flite"}


@pytest.mark.parametrize("program", ["espeak-ng", "flite"])
def test_synthetic_speech(program):
    voice = next(voice for voice in voices.VOICES if voice.program == program and voice.english)
    text = "My mother remembers a warm summer."
    if shutil.which(program) is None:  # training's tools, which not every machine has
        with pytest.raises(UserError, match="apt install"):
            voices.synthesize(text, voice)
        return
    samples = voices.synthesize(text, voice)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert 1.0 < len(samples) / 16000 < 4.0
    np.testing.assert_array_equal(samples, voices.synthesize(text, voice))
    assert len(voices.synthesize(text, voice, rate=1.4)) < 0.85 * len(samples)
    higher = voices.synthesize(text, voice, pitch=1.3)
    assert abs(len(higher) / len(samples) - 1) < 0.1
    assert articulation(samples).opening.max() > 0.5


def test_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in ("espeak-ng", "flite"):
        voice = next(voice for voice in voices.VOICES if voice.program == program)
        with pytest.raises(UserError, match=f"{program}: not installed.*apt install {program}"):
            voices.synthesize("Hello.", voice)


def test_augmentation_keeps_length_and_movement():
    rng = np.random.default_rng(5)
    beat = np.repeat(np.tile([1.0, 0.0], 8), 4000)
    samples = (beat * rng.standard_normal(len(beat)) * 0.1).astype(np.float32)
    changed = 0
    for seed in range(12):
        result = voices.augment(samples, np.random.default_rng(seed))
        assert result.shape == samples.shape and result.dtype == np.float32
        assert np.abs(result).max() <= 1
        assert np.corrcoef(articulation(result).loudness, articulation(samples).loudness)[0, 1] > 0.85
        changed += not np.allclose(result / np.abs(result).max(), samples / np.abs(samples).max(), atol=1e-3)
    assert changed >= 4


def test_recordings_are_split_by_source(tmp_path):
    names = [f"{index:03d}.flac" for index in range(40)]
    for name in names:
        (tmp_path / name).touch()
    rows = [f"{name},fudan-generative-vision/hallo3" for name in names[:5]]
    (tmp_path / "manifest.csv").write_text("\n".join(["file,repo", *rows]))
    found = voices.recordings(tmp_path)
    assert [recording.path.name for recording in found] == names
    assert {recording.split for recording in found[:5]} == {"test"}
    test = sum(recording.split == "test" for recording in found[5:])
    assert 3 <= test <= 14
    with pytest.raises(UserError, match="no recordings"):
        voices.recordings(tmp_path / "nothing")
