"""Speech features against the published implementation's recording, long recordings against whole encoding."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from hallo3.bundles.places import embedded_bundle
from hallo3.conditions.speech import (
    ChunkedSpeech,
    clip_windows,
    encode_speech,
    num_clips,
    num_video_frames,
    speech_windows,
)
from hallo3.media.sound import read_speech

GOLDEN = Path(__file__).parents[1] / "data/golden/audio"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "audio_io.safetensors")


@pytest.fixture(scope="module")
def encoder():
    return Wav2Vec2Model.from_pretrained(GOLDEN / "wav2vec").eval()


@pytest.fixture(scope="module")
def extractor():
    return Wav2Vec2FeatureExtractor.from_pretrained(GOLDEN / "wav2vec")


def murmur(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like speech: syllables of filtered noise, with pauses, on an offset."""
    random = np.random.default_rng(seed)
    n = int(seconds * 16000)
    noise = np.convolve(random.standard_normal(n + 31), np.hanning(32), "valid")
    marks = np.arange(0, seconds + 0.12, 0.12)
    syllables = np.interp(np.arange(n) / 16000, marks, random.random(len(marks)))
    return (0.02 * noise * np.clip(syllables * 2 - 0.7, 0, None) + 0.01).astype(np.float32)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def test_equals_the_published_recording(golden, encoder, extractor):
    waveform = golden["waveform"].numpy()
    features = encode_speech(waveform, encoder, extractor)
    windows = speech_windows(features)
    clips = torch.stack([clip_windows(windows, c) for c in range(len(golden["clip_audio_embeds"]))])
    assert relative(features, golden["audio_embeds"]) <= 2e-5
    assert relative(windows[:], golden["audio_windows"]) <= 2e-5
    assert relative(clips, golden["clip_audio_embeds"]) <= 2e-5
    # The recording's third clip lies wholly past the end of the speech: it need not be rendered.
    assert num_video_frames(len(waveform)) == int(golden["num_frames"]) == 68
    assert num_clips(68) == 2 == len(clips) - 1


@pytest.mark.parametrize(("seconds", "clips"), [(0.2, 1), (1.88, 1), (1.9, 2), (2, 2), (5, 3), (10, 6), (600, 320)])
def test_as_many_clips_as_the_speech_needs(seconds, clips):
    assert num_clips(num_video_frames(round(seconds * 16000))) == clips


def test_frames_are_counted_in_whole_numbers():
    # 0.28 s are 7 frames; in floating point 4480 / 16000 · 25 is a little more.
    assert [num_video_frames(n) for n in (1, 640, 641, 4480, 16000)] == [1, 1, 2, 7, 25]


def test_padding_fills_whole_clips_and_a_full_one_gets_none(encoder, extractor):
    assert len(encode_speech(murmur(49 * 0.04), encoder, extractor)) == 49
    assert len(encode_speech(murmur(49 * 0.04 + 0.01), encoder, extractor)) == 98
    assert len(encode_speech(murmur(1.0), encoder, extractor, num_frames=17)) == 34


@pytest.mark.parametrize("motion_frames", [1, 2, 4])
def test_clips_chain_over_their_motion_frames(motion_frames):
    rows = torch.arange(1.0, 99.0).reshape(98, 1, 1, 1)  # the window of frame i holds i + 1
    new = 49 - motion_frames
    clips = [
        clip_windows(rows, c, motion_frames=motion_frames).flatten() for c in range(num_clips(98, 49, motion_frames))
    ]
    assert all(len(clip) == 49 for clip in clips)
    assert clips[0][:motion_frames].tolist() == [0] * motion_frames
    for clip, following in itertools.pairwise(clips):
        assert torch.equal(clip[-motion_frames:], following[:motion_frames])
    heard = torch.cat([clip[motion_frames:] for clip in clips])
    assert torch.equal(heard[:98], rows.flatten())
    assert heard[98:].eq(98).all()
    assert len(heard) == new * len(clips)


def test_a_clip_past_the_end_is_refused():
    with pytest.raises(IndexError, match="clip 3"):
        clip_windows(torch.zeros(98, 5, 12, 4), 3)


def test_windows_repeat_the_end_rows():
    features = torch.arange(6.0).reshape(6, 1, 1)
    windows = speech_windows(features, 5)[:].flatten(1)
    assert windows[0].tolist() == [0, 0, 0, 1, 2]
    assert windows[3].tolist() == [1, 2, 3, 4, 5]
    assert windows[5].tolist() == [3, 4, 5, 5, 5]
    assert torch.equal(speech_windows(features, 5)[2:4].flatten(1), windows[2:4])


def test_long_speech_in_chunks_is_near_whole_encoding(encoder, extractor):
    speech = murmur(30)
    whole = encode_speech(speech, encoder, extractor)
    chunked = encode_speech(speech, encoder, extractor, whole_seconds=12)
    assert isinstance(whole, torch.Tensor)
    assert isinstance(chunked, ChunkedSpeech)
    assert len(chunked) == len(whole) == 784
    # Measured: 1e-3 of the largest value here; before the transformer nothing differs but rounding (next test).
    assert relative(chunked[:], whole) <= 5e-3


def test_minute_long_chunks_of_a_trained_encoder_are_near_whole_encoding():
    """A trained transformer listens farther than a random one: this is the difference that users get."""
    bundle = embedded_bundle()
    encoder = Wav2Vec2Model.from_pretrained(bundle / "speech_encoder").eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(bundle / "feature_extractor")
    speech = np.tile(read_speech(bundle / "sample" / "speech.wav").samples, 14)[: 75 * 16000]
    whole, chunked = (
        encode_speech(speech, encoder, extractor, whole_seconds=80),
        encode_speech(speech, encoder, extractor),
    )
    assert isinstance(whole, torch.Tensor) and isinstance(chunked, ChunkedSpeech)
    print(f"largest difference {relative(chunked[:], whole):.4f}")
    assert relative(chunked[:], whole) <= 0.06


def test_a_chunk_differs_by_what_its_transformer_hears_and_nothing_else(extractor):
    torch.manual_seed(0)
    encoder = tiny_encoder()
    for layer in encoder.encoder.layers:  # deaf to its neighbours: attention adds nothing
        torch.nn.init.zeros_(layer.attention.out_proj.weight)
    torch.nn.init.zeros_(encoder.encoder.pos_conv_embed.conv.parametrizations.weight.original0)
    speech = murmur(20, seed=1)
    whole = encode_speech(speech, encoder, extractor)
    assert relative(encode_speech(speech, encoder, extractor, whole_seconds=6)[:], whole) <= 2e-5


def tiny_encoder(**changes) -> Wav2Vec2Model:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    return Wav2Vec2Model(Wav2Vec2Config(**(sizes | convolutions | changes))).eval()


def test_encoders_with_layer_norm_are_chunked_too(extractor):
    torch.manual_seed(0)
    encoder = tiny_encoder(feat_extract_norm="layer", conv_bias=True)
    speech = murmur(9)
    whole = encode_speech(speech, encoder, extractor)
    assert whole.shape == (245, 3, 16)
    assert relative(encode_speech(speech, encoder, extractor, whole_seconds=6)[:], whole) <= 5e-2


def test_chunks_are_the_same_in_whatever_order_they_are_read(encoder, extractor):
    speech = murmur(20)
    forward = encode_speech(speech, encoder, extractor, whole_seconds=6)
    backward = encode_speech(speech, encoder, extractor, whole_seconds=6)
    a = [clip_windows(speech_windows(forward), c) for c in range(num_clips(500))]
    b = [clip_windows(speech_windows(backward), c) for c in reversed(range(num_clips(500)))]
    assert all(torch.equal(x, y) for x, y in zip(a, reversed(b), strict=True))
    assert len(forward._chunks) <= 2


def test_the_encoder_is_left_as_it_was(encoder, extractor):
    encode_speech(murmur(9), encoder, extractor, whole_seconds=6)[:]
    assert not any(module._forward_hooks for module in encoder.modules())


def test_number_format_and_level_are_the_callers(encoder, extractor):
    speech = murmur(1.0)
    assert encode_speech(speech, encoder, extractor, dtype=torch.bfloat16).dtype == torch.bfloat16
    louder = encode_speech(speech * 8 + 0.3, encoder, extractor)
    assert relative(louder, encode_speech(speech, encoder, extractor)) <= 1e-3


def test_what_is_not_speech_is_refused(encoder, extractor):
    with pytest.raises(ValueError, match="samples"):
        encode_speech(np.zeros((2, 100), np.float32), encoder, extractor)
    encoder.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            encode_speech(murmur(1.0), encoder, extractor)
    finally:
        encoder.eval()
