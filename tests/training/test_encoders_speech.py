"""The speech encoder learns articulation, resumes where it was interrupted, and is saved as the bundle needs it."""

import json

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from hallo3.conditions.speech import encode_speech
from hallo3.errors import UserError
from hallo3.training.encoders_speech import (
    UNKNOWN_PHONE,
    articulation_loss,
    correlation,
    draw_batch,
    draw_crop,
    evaluate_speech,
    layer_outputs,
    load_recordings,
    speech_config,
    train_speech,
)
from hallo3.training.loop import LoopSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four seconds each of noise whose loudness is the opening: the simplest speech there is."""
    path = tmp_path_factory.mktemp("speech")
    for seed in range(4):
        random = np.random.default_rng(seed)
        opening = np.clip(0.5 + 0.6 * np.sin(np.arange(100) * random.uniform(0.3, 0.6)), 0, 1).astype(np.float32)
        samples = (random.standard_normal(64000) * np.repeat(opening, 640)).astype(np.float32)
        phone = np.where(np.arange(100) < 90, (opening * 2.9).astype(int), -1)
        np.savez(
            path / f"{seed}.npz", samples=samples, opening=opening, width=opening, loudness=opening, phone_class=phone
        )
    return path


TINY = {"hidden_size": 8, "intermediate_size": 16, "conv_dim": 8}
QUIET = {"log": lambda line: None}


def test_layer_outputs_equal_the_encoding_that_animation_uses(folder):
    encoder = Wav2Vec2Model(speech_config(**TINY)).eval()
    samples = load_recordings(folder)[0].samples[: 49 * 640]
    with torch.no_grad():
        values = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))
        ours = layer_outputs(encoder, values[None], 49)[0]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    torch.testing.assert_close(ours, encode_speech(samples, encoder, extractor), rtol=1e-4, atol=1e-4)


def test_crops_keep_sound_and_tracks_together(folder):
    recording = load_recordings(folder)[0]
    crop = draw_crop(recording, 147, np.random.default_rng(3))
    assert crop["values"].shape == (147 * 640,)
    length = int(crop["known"].sum())
    assert 85 <= length <= 116
    loudness = np.abs(crop["values"].reshape(147, 640)).mean(1)
    assert correlation(loudness[:length], crop["opening"][:length]) > 0.9
    assert (crop["phone"][length:] == UNKNOWN_PHONE).all()
    assert (crop["values"][length * 640 :] == 0).all()


def test_batches_of_a_step_are_the_same_every_time(folder):
    recordings = load_recordings(folder)
    a, b = (draw_batch(recordings, 98, np.random.default_rng(5)) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_loss_passes_over_padding_and_unknown_phones():
    batch = {name: torch.zeros(1, 4) for name in ("opening", "width", "loudness")}
    batch |= {"known": torch.tensor([[1.0, 1, 0, 0]]), "phone": torch.full((1, 4), UNKNOWN_PHONE)}
    predicted = torch.zeros(3, 1, 4, 5)
    predicted[:, :, 2:] = 9.0
    assert articulation_loss(predicted, batch)[0].item() == 0
    predicted[:, :, 0] = 1.0
    assert articulation_loss(predicted, batch)[0].item() > 0


def test_a_few_steps_learn_the_opening_and_are_saved(folder, tmp_path):
    settings = LoopSettings(steps=25, learning_rate=1e-2, warmup=3, save_every=25, log_every=25)
    config = speech_config(**TINY)
    metrics = train_speech(folder, tmp_path, settings, config=config, batch_frames=98, **QUIET)
    assert metrics["held_out_recordings"] == 1
    assert metrics["opening_correlation_median"] > 0.4
    assert json.loads((tmp_path / "speech_encoder" / "metrics.json").read_text()) == metrics
    encoder = Wav2Vec2Model.from_pretrained(tmp_path / "speech_encoder").eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "feature_extractor")
    assert encode_speech(np.random.rand(16000).astype(np.float32), encoder, extractor).shape == (49, 12, 8)


def test_interrupted_training_goes_on_to_the_same_weights(folder, tmp_path):
    config = speech_config(**TINY)
    settings = LoopSettings(steps=4, warmup=1, save_every=2)
    whole = train_speech(folder, tmp_path / "whole", settings, config=config, batch_frames=49, **QUIET)
    lines = []

    def interrupt(line):
        lines.append(line)
        raise KeyboardInterrupt

    cut = LoopSettings(steps=4, warmup=1, save_every=2, log_every=3)
    with pytest.raises(KeyboardInterrupt):
        train_speech(folder, tmp_path / "cut", cut, config=config, batch_frames=49, log=interrupt)
    assert not (tmp_path / "cut" / "speech_encoder").exists()
    resumed = train_speech(folder, tmp_path / "cut", settings, config=config, batch_frames=49, **QUIET)
    assert resumed == whole


def test_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no .* recordings"):
        load_recordings(tmp_path)


def test_a_perfect_reading_correlates_perfectly(folder):
    recordings = load_recordings(folder)[:1]
    encoder = Wav2Vec2Model(speech_config(**TINY)).eval()

    class Cheat(torch.nn.Module):
        def forward(self, layers):
            answer = torch.zeros(3, 1, layers.shape[1], 6)
            answer[:, 0, :100, 0] = torch.from_numpy(recordings[0].opening)
            answer[:, 0, :100, 3:][..., 0] = torch.from_numpy((recordings[0].phone == 0).astype(np.float32))
            return answer

    metrics = evaluate_speech(encoder, Cheat(), recordings)
    assert metrics["opening_correlation_median"] == pytest.approx(1)
    assert metrics["layer_4_width_correlation"] == 0
    assert 0 < metrics["layer_12_phone_accuracy"] < 1
